//! The standard host: an uplink, a client beyond it, four bridges and eight containers.
//!
//! ```text
//!  client 198.18.0.2, fd99::2 ── up0 198.18.0.1, fd99::1 ── host ─┬─ br-def 10.200.0.0/24                    c0 c0b
//!                                                                 ├─ br-n1  10.201.1.0/24                    n1a n1b
//!                                                                 ├─ br-n2  10.201.2.0/24, fd00:201:2::/64   n2a n2b
//!                                                                 └─ br-n3  10.201.3.0/24 (internal)         n3a n3b
//! ```
//!
//! Bridges have `.1`, containers `.2` and `.3`. The client routes the container subnets through the host, so that
//! packets sent straight to container addresses arrive there. Everyone serves TCP 80 and UDP 5000, the host itself
//! TCP 9000 and UDP 9000.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use super::capture::LeakGuard;
use super::device::{Mac, VethEnd, add_veth};
use super::error::{LabError, Result};
use super::firewall::{IptablesBackend, RuleSet};
use super::namespace::Namespace;
use super::outcome::Outcome;
use super::ping::ping;
use super::probe::{ProbeOptions, tcp_probe, udp_probe};
use super::routing::Route;
use super::server::{Listen, Server};
use super::{IpNet, ip, net};

/// The host's address on the uplink.
pub const HOST: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// The client's address.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
/// The host's address on the extra uplink.
pub const HOST_EXTRA: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 1);
/// The far end of the extra uplink.
pub const CLIENT_EXTRA: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 2);

/// TCP port of every container and client.
pub const WEB: u16 = 80;
/// UDP port of every container and client.
pub const DATAGRAM: u16 = 5000;
/// TCP and UDP port of a service of the host itself.
pub const HOST_SERVICE: u16 = 9000;

/// How a [`StandardHost`] is built.
#[derive(Clone, Debug)]
pub struct StandardHostOptions {
    /// Transmit offload on every veth: on is a veth's default, off makes every packet carry whole checksums.
    pub tx_offload: bool,
    /// The host's `ip_forward` and IPv6 forwarding. Off: netd needs a bridge's own switch only, and sets it.
    pub forwarding: bool,
    /// Whether frames between ports of a bridge pass iptables (`br_netfilter`), as on hosts where Docker or Kubernetes
    /// switched it on. Without effect where the kernel lacks it.
    pub bridge_netfilter: bool,
    /// Rule sets to load in this order. Docker's `docker0` becomes `br-def`.
    pub rules: Vec<RuleSet>,
    /// How to load them.
    pub backend: IptablesBackend,
    /// FORWARD policy DROP for both families, after the rules.
    pub forward_drop: bool,
    /// A second uplink `up1` 198.19.0.1/24, fd98::1/64 with a client of its own.
    pub extra_uplink: bool,
    /// The uplink's MTU.
    pub uplink_mtu: u32,
    /// The networks to build with their containers, by name.
    pub networks: &'static [&'static str],
}

impl Default for StandardHostOptions {
    fn default() -> Self {
        Self {
            tx_offload: true,
            forwarding: false,
            bridge_netfilter: false,
            rules: Vec::new(),
            backend: IptablesBackend::Default,
            forward_drop: false,
            extra_uplink: false,
            uplink_mtu: 1500,
            networks: &["def", "n1", "n2", "n3"],
        }
    }
}

/// A bridge network of the standard host.
#[derive(Clone, Debug)]
pub struct Network {
    /// Its name: `def`, `n1`, `n2`, `n3`.
    pub name: &'static str,
    /// The bridge device.
    pub bridge: &'static str,
    /// The IPv4 subnet.
    pub subnet: IpNet,
    /// The IPv6 subnet, of `n2` only.
    pub subnet6: Option<IpNet>,
    /// Without a way in or out.
    pub internal: bool,
    /// Whether its containers reach each other (inter-container communication).
    pub icc: bool,
}

impl Network {
    /// The host's address on the bridge.
    pub fn gateway(&self) -> IpAddr {
        nth(self.subnet, 1)
    }

    /// The host's IPv6 address on the bridge.
    pub fn gateway6(&self) -> Option<IpAddr> {
        self.subnet6.map(|subnet| nth(subnet, 1))
    }
}

/// A container of the standard host. Its interface is `eth0`.
#[derive(Debug)]
pub struct Container {
    /// Its name: `c0`, `n1a`…
    pub name: &'static str,
    /// The name of its network.
    pub network: &'static str,
    /// Its network namespace.
    pub namespace: Namespace,
    /// Its IPv4 address.
    pub v4: IpAddr,
    /// Its IPv6 address, in `n2` only.
    pub v6: Option<IpAddr>,
    /// The address of its interface.
    pub mac: Mac,
    /// The host's end of its veth pair.
    pub host_device: String,
    /// TCP and UDP servers.
    pub server: Server,
}

/// The standard host with everything around it; all of it goes away when this is dropped.
#[derive(Debug)]
pub struct StandardHost {
    /// The host's namespace, where netd runs.
    pub host: Namespace,
    /// The client beyond the uplink.
    pub client: Namespace,
    /// The client beyond the extra uplink, if there is one.
    pub extra_client: Option<Namespace>,
    /// The containers, in the order of [`CONTAINERS`].
    pub containers: Vec<Container>,
    /// The servers of the clients and the host: `client`, `extra`, `host`.
    pub servers: Vec<Server>,
    options: StandardHostOptions,
}

/// Name, network and last part of the address of every container.
pub const CONTAINERS: [(&str, &str, u8); 8] = [
    ("c0", "def", 2),
    ("c0b", "def", 3),
    ("n1a", "n1", 2),
    ("n1b", "n1", 3),
    ("n2a", "n2", 2),
    ("n2b", "n2", 3),
    ("n3a", "n3", 2),
    ("n3b", "n3", 3),
];

impl StandardHost {
    /// Builds it; every link is ready and every server listens when this returns.
    pub fn build(options: StandardHostOptions) -> Result<Self> {
        let host = Namespace::create("host")?;
        let client = Namespace::create("client")?;
        connect_uplink(&host, "up0", &client, &options, ["198.18.0", "fd99:"])?;
        let extra_client = if options.extra_uplink {
            let extra = Namespace::create("extra")?;
            connect_uplink(&host, "up1", &extra, &options, ["198.19.0", "fd98:"])?;
            Some(extra)
        } else {
            None
        };
        let wanted = |name: &str| options.networks.contains(&name);
        for network in Self::networks().iter().filter(|n| wanted(n.name)) {
            add_network(&host, network)?;
        }
        let mut containers = Vec::with_capacity(CONTAINERS.len());
        for (name, network, last) in CONTAINERS.into_iter().filter(|c| wanted(c.1)) {
            containers.push(add_container(
                &host,
                name,
                &Self::network(network),
                last,
                options.tx_offload,
            )?);
        }
        let serve = |namespace: &Namespace, name: &str, tcp: u16, udp: u16| {
            Server::start(
                namespace,
                name,
                &[Listen::tcp_any(tcp), Listen::udp_any(udp)].concat(),
            )
        };
        let mut servers = vec![
            serve(&client, "client", WEB, DATAGRAM)?,
            serve(&host, "host", HOST_SERVICE, HOST_SERVICE)?,
        ];
        if let Some(extra) = &extra_client {
            servers.push(serve(extra, "extra", WEB, DATAGRAM)?);
        }
        let standard = Self {
            host,
            client,
            extra_client,
            containers,
            servers,
            options,
        };
        standard.apply_options()?;
        Ok(standard)
    }

    /// The networks of every standard host.
    pub fn networks() -> [Network; 4] {
        let network = |name, bridge, subnet, internal, icc| Network {
            name,
            bridge,
            subnet: net(subnet),
            subnet6: None,
            internal,
            icc,
        };
        let mut networks = [
            network("def", "br-def", "10.200.0.0/24", false, true),
            network("n1", "br-n1", "10.201.1.0/24", false, false),
            network("n2", "br-n2", "10.201.2.0/24", false, true),
            network("n3", "br-n3", "10.201.3.0/24", true, true),
        ];
        networks[2].subnet6 = Some(net("fd00:201:2::/64"));
        networks
    }

    /// A network by its name.
    ///
    /// # Panics
    /// If there is none.
    pub fn network(name: &str) -> Network {
        Self::networks()
            .into_iter()
            .find(|network| network.name == name)
            .unwrap_or_else(|| panic!("the standard host has no network {name:?}"))
    }

    /// The subnets whose addresses must never leave by an uplink.
    pub fn masqueraded_subnets() -> Vec<IpNet> {
        Self::networks()
            .into_iter()
            .flat_map(|network| [Some(network.subnet), network.subnet6])
            .flatten()
            .collect()
    }

    /// A container by its name.
    ///
    /// # Panics
    /// If there is none.
    pub fn container(&self, name: &str) -> &Container {
        self.containers
            .iter()
            .find(|container| container.name == name)
            .unwrap_or_else(|| panic!("the standard host has no container {name:?}"))
    }

    /// Adds a container with the address `.last` of a network, as those of [`CONTAINERS`] are made.
    pub fn add_container(
        &mut self,
        name: &'static str,
        network: &str,
        last: u8,
    ) -> Result<&Container> {
        let network = Self::network(network);
        let offload = self.options.tx_offload;
        let container = add_container(&self.host, name, &network, last, offload)?;
        self.containers.push(container);
        Ok(self.container(name))
    }

    /// Removes a container: its servers end, its namespace goes, and its interfaces have gone when this returns.
    ///
    /// # Panics
    /// If there is none of this name.
    pub fn remove_container(&mut self, name: &str) -> Result<()> {
        let at = self.containers.iter().position(|c| c.name == name);
        let at = at.unwrap_or_else(|| panic!("the standard host has no container {name:?}"));
        let device = self.containers.remove(at).host_device;
        // The kernel takes a namespace down in its own time.
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.host.ifindex(&device).is_ok() {
            if Instant::now() >= deadline {
                return Err(LabError::Invalid(format!(
                    "{device} is still there after {name} was removed: something holds its namespace"
                )));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// The namespace of a container, or of `host`, `client` (also `ext`) and `extra`.
    ///
    /// # Panics
    /// If there is none of this name.
    pub fn namespace(&self, name: &str) -> &Namespace {
        match name {
            "host" => &self.host,
            "client" | "ext" => &self.client,
            "extra" => self.extra_client.as_ref().expect("build with extra_uplink"),
            _ => &self.container(name).namespace,
        }
    }

    /// A TCP probe from a namespace of [`StandardHost::namespace`].
    pub fn tcp(&self, from: &str, to: SocketAddr, options: &ProbeOptions) -> Outcome {
        tcp_probe(self.namespace(from), to, options)
    }

    /// A UDP probe.
    pub fn udp(&self, from: &str, to: SocketAddr, options: &ProbeOptions) -> Outcome {
        udp_probe(self.namespace(from), to, options)
    }

    /// An echo request.
    pub fn ping(&self, from: &str, to: IpAddr, options: &ProbeOptions) -> Outcome {
        ping(self.namespace(from), to, options)
    }

    /// Watches every uplink for sources in [`StandardHost::masqueraded_subnets`].
    pub fn leak_guards(&self) -> Result<Vec<LeakGuard>> {
        let devices: &[&str] = if self.options.extra_uplink {
            &["up0", "up1"]
        } else {
            &["up0"]
        };
        devices
            .iter()
            .map(|device| LeakGuard::watch(&self.host, device, &Self::masqueraded_subnets()))
            .collect()
    }

    /// The configuration file of netd for this host: the networks that were built, and the published ports of the
    /// expected-results table (8081 → c0, 127.0.0.1:8082 → n1a, 198.18.0.1:8083 → n2a, 8084/udp → n2b, 8085 over IPv6 → n2a).
    /// `mode` is `replace` or `accelerate`.
    pub fn netd_toml(&self, mode: &str, pin_dir: &str) -> String {
        let mut text = format!("version = 1\n\n[host]\nmode = {mode:?}\npin_dir = {pin_dir:?}\n");
        let built = |name: &str| self.options.networks.contains(&name);
        for network in Self::networks().into_iter().filter(|n| built(n.name)) {
            let subnets: Vec<String> = [Some(network.subnet), network.subnet6]
                .iter()
                .flatten()
                .map(|net| format!("\"{net}\""))
                .collect();
            text += &format!(
                "\n[[network]]\nname = {:?}\nbridge = {:?}\nsubnets = [{}]\nicc = {}\ninternal = {}\nmasquerade = {}\n",
                network.name,
                network.bridge,
                subnets.join(", "),
                network.icc,
                network.internal,
                !network.internal,
            );
        }
        for (container, protocol, host, host_port, container_port) in PUBLISHED {
            let Some(container) = self.containers.iter().find(|c| c.name == container) else {
                continue;
            };
            let address = if host.contains(':') {
                container.v6.unwrap_or(container.v4)
            } else {
                container.v4
            };
            text += &format!(
                "\n[[publish]]\nnetwork = {:?}\ncontainer = \"{address}\"\nprotocol = {protocol:?}\nhost = {host:?}\n\
                 host_ports = {host_port}\ncontainer_ports = {container_port}\n",
                container.network,
            );
        }
        text
    }

    fn apply_options(&self) -> Result<()> {
        if self.options.forwarding {
            self.host.set_sysctl("net/ipv4/ip_forward", 1)?;
            self.host.set_sysctl("net/ipv6/conf/all/forwarding", 1)?;
        }
        if self.options.bridge_netfilter {
            self.host.set_bridge_netfilter(true)?;
        }
        for rules in &self.options.rules {
            self.host.load_rules(
                &rules.clone().rename_device("docker0", "br-def"),
                self.options.backend,
            )?;
        }
        if self.options.forward_drop {
            self.host
                .load_rules(&RuleSet::forward_drop(), self.options.backend)?;
            self.host
                .load_rules(&RuleSet::forward_drop().ipv6(), self.options.backend)?;
        }
        Ok(())
    }
}

/// Container, protocol, host address, host port, container port.
const PUBLISHED: [(&str, &str, &str, u16, u16); 6] = [
    ("c0", "tcp", "0.0.0.0", 8081, WEB),
    ("n1a", "tcp", "127.0.0.1", 8082, WEB),
    ("n2a", "tcp", "198.18.0.1", 8083, WEB),
    ("n2b", "udp", "0.0.0.0", 8084, DATAGRAM),
    ("n2b", "udp", "::", 8084, DATAGRAM),
    ("n2a", "tcp", "::", 8085, WEB),
];

fn connect_uplink(
    host: &Namespace,
    device: &str,
    client: &Namespace,
    options: &StandardHostOptions,
    [v4, v6]: [&str; 2],
) -> Result<()> {
    let mtu = options.uplink_mtu;
    add_veth(
        &VethEnd::new(host, device).mtu(mtu),
        &VethEnd::new(client, "eth0").mtu(mtu),
    )?;
    for (namespace, device, last) in [(host, device, 1), (client, "eth0", 2)] {
        namespace.set_tx_offload(device, options.tx_offload)?;
        namespace.add_address(device, net(&format!("{v4}.{last}/24")))?;
        namespace.add_address(device, net(&format!("{v6}:{last}/64")))?;
        namespace.set_up(device)?;
    }
    host.wait_ready(device)?;
    client.wait_ready("eth0")?;
    let (via4, via6) = (ip(&format!("{v4}.1")), ip(&format!("{v6}:1")));
    for network in StandardHost::networks() {
        client.add_route(&Route::to(network.subnet).via(via4))?;
        if let Some(subnet) = network.subnet6 {
            client.add_route(&Route::to(subnet).via(via6))?;
        }
    }
    Ok(())
}

fn add_network(host: &Namespace, network: &Network) -> Result<()> {
    let IpAddr::V4(gateway) = network.gateway() else {
        unreachable!("subnet is IPv4")
    };
    host.add_bridge(network.bridge, Some(mac_of(gateway)))?;
    host.add_address(
        network.bridge,
        with_prefix(network.gateway(), network.subnet),
    )?;
    if let (Some(gateway), Some(subnet)) = (network.gateway6(), network.subnet6) {
        host.add_address(network.bridge, with_prefix(gateway, subnet))?;
    }
    host.set_up(network.bridge)
}

fn add_container(
    host: &Namespace,
    name: &'static str,
    network: &Network,
    last: u8,
    tx_offload: bool,
) -> Result<Container> {
    let namespace = Namespace::create(name)?;
    let v4 = nth(network.subnet, last);
    let v6 = network.subnet6.map(|subnet| nth(subnet, last));
    let IpAddr::V4(address) = v4 else {
        unreachable!("subnet is IPv4")
    };
    let mac = mac_of(address);
    // Docker's names are veth and seven hexadecimal digits.
    let [_, b, c, d] = address.octets();
    let host_device = format!("veth{:07x}", u32::from_be_bytes([0, b, c, d]));
    add_veth(
        &VethEnd::new(&namespace, "eth0").mac(mac),
        &VethEnd::new(host, &host_device),
    )?;
    namespace.set_tx_offload("eth0", tx_offload)?;
    host.set_tx_offload(&host_device, tx_offload)?;
    host.attach(&host_device, network.bridge)?;
    host.set_up(&host_device)?;
    namespace.add_address("eth0", with_prefix(v4, network.subnet))?;
    if let (Some(v6), Some(subnet)) = (v6, network.subnet6) {
        namespace.add_address("eth0", with_prefix(v6, subnet))?;
    }
    namespace.set_up("eth0")?;
    namespace.wait_ready("eth0")?;
    host.wait_ready(&host_device)?;
    host.wait_ready(network.bridge)?;
    if !network.internal {
        namespace.add_route(&Route::default_via(network.gateway()))?;
        if let Some(gateway) = network.gateway6() {
            namespace.add_route(&Route::default_via(gateway))?;
        }
    }
    let server = Server::start(
        &namespace,
        name,
        &[Listen::tcp_any(WEB), Listen::udp_any(DATAGRAM)].concat(),
    )?;
    Ok(Container {
        name,
        network: network.name,
        namespace,
        v4,
        v6,
        mac,
        host_device,
        server,
    })
}

/// The address `subnet` + `last`.
fn nth(subnet: IpNet, last: u8) -> IpAddr {
    match subnet.network() {
        IpAddr::V4(network) => (u32::from(network) + u32::from(last)).to_be_bytes().into(),
        IpAddr::V6(network) => (u128::from(network) + u128::from(last))
            .to_be_bytes()
            .into(),
    }
}

fn with_prefix(address: IpAddr, subnet: IpNet) -> IpNet {
    IpNet::new(address, subnet.prefix_len()).expect("the subnet's own prefix length")
}

/// The address that Docker gave interfaces for years: 02:42 and the IPv4 address.
fn mac_of(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    [0x02, 0x42, a, b, c, d]
}
