//! A path of three hops from a host to a server: what lies between them, and how narrow it begins.
//!
//! ```text
//!  host ── 100.64.1.1, fd64:1::1 ══ 100.64.1.2 ── exit ── 100.65.1.1 ─ 100.65.1.2 ── middle ── 100.66.1.1 ─ 100.66.1.9 ── far
//!                                   fd64:1::2             fd65:1::1    fd65:1::2               fd66:1::1    fd66:1::9
//! ```

use std::net::IpAddr;

use netd::lab::{
    DATAGRAM, IptablesBackend, LabError, Listen, Namespace, Route, RuleSet, Server, StandardHost,
    Tun, TunKind, TunLink, VethEnd, WEB, add_veth, ip, net,
};

/// The device of the host by which the path begins.
pub const DEVICE: &str = "tun0";
/// The name of the far server.
pub const FAR: &str = "far";

/// Addresses of one family on the path.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// Of the host on [`DEVICE`].
    pub host: IpAddr,
    /// Of the routers, as their ICMP errors have them.
    pub routers: [IpAddr; 2],
    /// Of the server.
    pub far: IpAddr,
}

/// Both families.
pub fn addresses() -> [Addresses; 2] {
    [
        Addresses {
            host: ip("100.64.1.1"),
            routers: [ip("100.64.1.2"), ip("100.65.1.2")],
            far: ip("100.66.1.9"),
        },
        Addresses {
            host: ip("fd64:1::1"),
            routers: [ip("fd64:1::2"), ip("fd65:1::2")],
            far: ip("fd66:1::9"),
        },
    ]
}

/// The routers and the server; they go away when this is dropped.
pub struct Path {
    /// The first router, beyond the tunnel or the wire.
    pub exit: Namespace,
    /// Where the server is.
    pub far: Namespace,
    /// The server, on TCP [`WEB`] and UDP [`DATAGRAM`].
    pub server: Server,
    _middle: Namespace,
    _link: Option<TunLink>,
}

impl Path {
    /// Begins with a header-less tunnel of this MTU on the host itself.
    pub fn by_tunnel(host: &StandardHost, mtu: u32) -> Result<Self, LabError> {
        let exit = Namespace::create("exit")?;
        let ends = [(&host.host, 1), (&exit, 2)];
        let [near, beyond] =
            ends.map(|(namespace, _)| Tun::create(namespace, DEVICE, TunKind::Tun));
        let (near, beyond) = (near?, beyond?);
        for (namespace, _) in ends {
            namespace.set_mtu(DEVICE, mtu)?;
        }
        address(ends)?;
        Self::beyond(host, exit, Some(TunLink::join(near, beyond)?))
    }

    /// Begins with a wire.
    pub fn by_wire(host: &StandardHost) -> Result<Self, LabError> {
        let exit = Namespace::create("exit")?;
        add_veth(
            &VethEnd::new(&host.host, DEVICE),
            &VethEnd::new(&exit, DEVICE),
        )?;
        address([(&host.host, 1), (&exit, 2)])?;
        Self::beyond(host, exit, None)
    }

    fn beyond(
        host: &StandardHost,
        exit: Namespace,
        link: Option<TunLink>,
    ) -> Result<Self, LabError> {
        let (middle, far) = (Namespace::create("middle")?, Namespace::create("far")?);
        join((&exit, "eth0"), (&middle, "eth0"), "65", 2)?;
        join((&middle, "eth1"), (&far, "eth0"), "66", 9)?;
        for router in [&exit, &middle] {
            router.set_sysctl("net/ipv4/ip_forward", 1)?;
            router.set_sysctl("net/ipv6/conf/all/forwarding", 1)?;
            // A machine that sends one error a second shows few hops.
            router.set_sysctl("net/ipv4/icmp_ratelimit", 0)?;
            router.set_sysctl("net/ipv6/icmp/ratelimit", 0)?;
        }
        for (destination, by) in [
            ("100.65.1.0/24", "100.64.1.2"),
            ("fd65:1::/64", "fd64:1::2"),
            ("100.66.1.0/24", "100.64.1.2"),
            ("fd66:1::/64", "fd64:1::2"),
        ] {
            host.host
                .add_route(&Route::to(net(destination)).via(ip(by)))?;
        }
        for (destination, by) in [
            ("100.66.1.0/24", "100.65.1.2"),
            ("fd66:1::/64", "fd65:1::2"),
        ] {
            exit.add_route(&Route::to(net(destination)).via(ip(by)))?;
        }
        for gateway in ["100.65.1.1", "fd65:1::1"] {
            middle.add_route(&Route::default_via(ip(gateway)))?;
        }
        for gateway in ["100.66.1.1", "fd66:1::1"] {
            far.add_route(&Route::default_via(ip(gateway)))?;
        }
        let listen = [Listen::tcp_any(WEB), Listen::udp_any(DATAGRAM)].concat();
        let server = Server::start(&far, FAR, &listen)?;
        Ok(Self {
            exit,
            far,
            server,
            _middle: middle,
            _link: link,
        })
    }

    /// From now on no ICMP error passes the first router or comes from it; echo does.
    pub fn block_icmp_errors(&self) -> Result<(), LabError> {
        let rules = |kinds: &[&str], of: &str| {
            let mut text = "*filter\n".to_owned();
            for chain in ["INPUT", "FORWARD", "OUTPUT"] {
                for kind in kinds {
                    text += &format!("-A {chain} {of} {kind} -j DROP\n");
                }
            }
            RuleSet::new("no ICMP errors", &(text + "COMMIT\n"))
        };
        let v4 = rules(
            &["destination-unreachable", "time-exceeded"],
            "-p icmp -m icmp --icmp-type",
        );
        let v6 = rules(
            &["destination-unreachable", "packet-too-big", "time-exceeded"],
            "-p ipv6-icmp -m icmp6 --icmpv6-type",
        );
        self.exit.load_rules(&v4, IptablesBackend::Default)?;
        self.exit.load_rules(&v6.ipv6(), IptablesBackend::Default)
    }
}

fn address(ends: [(&Namespace, u8); 2]) -> Result<(), LabError> {
    for (namespace, last) in ends {
        namespace.add_address(DEVICE, net(&format!("100.64.1.{last}/24")))?;
        namespace.add_address(DEVICE, net(&format!("fd64:1::{last}/64")))?;
        namespace.set_up(DEVICE)?;
    }
    for (namespace, _) in ends {
        namespace.wait_ready(DEVICE)?;
    }
    Ok(())
}

/// A veth pair with the addresses `.1` and `.last` of 100.`number`.1.0/24 and its like of IPv6.
fn join(
    a: (&Namespace, &str),
    b: (&Namespace, &str),
    number: &str,
    last: u8,
) -> Result<(), LabError> {
    add_veth(&VethEnd::new(a.0, a.1), &VethEnd::new(b.0, b.1))?;
    for ((namespace, device), last) in [(a, 1), (b, last)] {
        namespace.add_address(device, net(&format!("100.{number}.1.{last}/24")))?;
        namespace.add_address(device, net(&format!("fd{number}:1::{last}/64")))?;
        namespace.set_up(device)?;
    }
    a.0.wait_ready(a.1)?;
    b.0.wait_ready(b.1)
}
