//! What a valid file means.

use std::net::IpAddr;

use super::super::*;
use super::WEB;

/// The example of the specification, which shows every key.
const EXAMPLE: &str = r#"
version = 1

[host]
uplinks = "auto"
trust = []
allow_direct_routing = false
mode = "replace"
pin_dir = "/sys/fs/bpf/netd"

[[uplink]]
name = "tailscale0"
containers = "none"
return_path = "route"

[limits]
flows_v4 = 131072
flows_v6 = 32768

[nat]
ports = "auto"

[log]
level = "info"
format = "text"

[[network]]
name = "web"
bridge = "br-web"
subnets = ["10.201.1.0/24", "fd00:201:1::/64"]
mode = "nat"
icc = true
internal = false
masquerade = true
masquerade_to = []
trusted_interfaces = []
spoof = "nat"

[[publish]]
network = "web"
container = "10.201.1.2"
protocol = "tcp"
host = "any"
host_ports = 8080
container_ports = 80
override = false
"#;

fn parse(text: &str) -> Config {
    Config::parse(text, "netd.toml").unwrap_or_else(|error| panic!("{text}\n{error}"))
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn range(text: &str) -> PortRange {
    text.parse().unwrap()
}

fn web() -> Network {
    Network {
        name: "web".into(),
        bridge: "br-web".parse().unwrap(),
        subnets: vec![
            "10.201.1.0/24".parse().unwrap(),
            "fd00:201:1::/64".parse().unwrap(),
        ],
        mode: GatewayModes {
            ipv4: GatewayMode::Nat,
            ipv6: GatewayMode::Nat,
        },
        icc: true,
        internal: false,
        masquerade: true,
        masquerade_to: MasqueradeTo {
            ipv4: None,
            ipv6: None,
        },
        trusted_interfaces: vec![],
        spoof: Spoof::Nat,
    }
}

fn published() -> Publish {
    Publish {
        network: "web".into(),
        container: ip("10.201.1.2"),
        protocol: Protocol::Tcp,
        host: HostAddresses::Any,
        host_ports: range("8080"),
        container_ports: range("80"),
        override_listener: false,
    }
}

#[test]
fn the_full_example() {
    let expected = Config {
        host: Host {
            uplinks: UplinkSelection::Auto,
            allow_direct_routing: false,
            mode: Mode::Replace,
            pin_dir: "/sys/fs/bpf/netd".into(),
        },
        uplinks: vec![Uplink {
            name: "tailscale0".parse().unwrap(),
            containers: Some(ContainersAccess::None),
            return_path: Some(ReturnPath::Route),
        }],
        limits: Limits {
            flows_v4: Some(131_072),
            flows_v6: Some(32_768),
        },
        nat: Nat {
            ports: NatPorts::Auto,
        },
        log: Log {
            level: LogLevel::Info,
            format: LogFormat::Text,
        },
        networks: vec![web()],
        publishes: vec![published()],
    };
    let (config, warnings) = Config::check(EXAMPLE, "netd.toml").unwrap();
    assert_eq!(config, expected);
    assert!(warnings.is_empty(), "{warnings}");
}

#[test]
fn what_is_left_out_is_the_default() {
    assert_eq!(parse("version = 1"), Config::default());
    // The example writes the defaults out, so leaving them away must not change a thing.
    let config = parse(&format!(
        "{WEB}\n[[publish]]\nnetwork = 'web'\ncontainer = '10.201.1.2'\nhost_ports = 8080\n\
         container_ports = 80\n"
    ));
    assert_eq!(config.networks, [web()]);
    assert_eq!(config.publishes, [published()]);
    let example = parse(EXAMPLE);
    assert_eq!(
        (config.host, config.nat, config.log),
        (example.host, example.nat, example.log)
    );
    assert_eq!(
        config.limits,
        Limits {
            flows_v4: None,
            flows_v6: None
        }
    );
}

#[test]
fn every_value_that_is_not_the_default() {
    let config = parse(
        r#"
        version = 1
        [host]
        uplinks = ["eth0", "wg*"]
        trust = ["tailscale0"]
        allow_direct_routing = true
        mode = "accelerate"
        pin_dir = "/run/bpf/netd"
        [limits]
        flows_v4 = 0x100_0000
        flows_v6 = 1
        [nat]
        ports = "61000-65535"
        [log]
        level = "trace"
        format = "json"
        [[network]]
        name = "lab"
        bridge = "br-lab"
        subnets = ["10.202.0.0/16", "fd00:202::/48"]
        mode = { ipv4 = "nat-unprotected", ipv6 = "routed" }
        icc = false
        masquerade = false
        masquerade_to = ["198.18.0.9", "fd99::9"]
        trusted_interfaces = ["wg0"]
        spoof = "strict"
        [[network]]
        name = "vault"
        bridge = "br-vault"
        subnets = ["10.203.0.0/24"]
        mode = "isolated"
        internal = true
        spoof = "off"
        [[publish]]
        network = "lab"
        container = "10.202.0.2"
        protocol = "udp"
        host = ["127.0.0.1", "127.0.0.2", "198.18.0.1"]
        host_ports = "8000-8099"
        container_ports = "9000-9099"
        override = true
        [[publish]]
        network = "lab"
        container = "fd00:202::2"
        protocol = "sctp"
        host = "::"
        host_ports = "5000"
        container_ports = 6000
        "#,
    );
    assert_eq!(
        config.host,
        Host {
            uplinks: UplinkSelection::Matching(vec![
                "eth0".parse().unwrap(),
                "wg*".parse().unwrap()
            ]),
            allow_direct_routing: true,
            mode: Mode::Accelerate,
            pin_dir: "/run/bpf/netd".into(),
        }
    );
    assert_eq!(
        config.limits,
        Limits {
            flows_v4: Some(16 << 20),
            flows_v6: Some(1)
        }
    );
    assert_eq!(config.nat.ports, NatPorts::Range(range("61000-65535")));
    assert_eq!(
        config.log,
        Log {
            level: LogLevel::Trace,
            format: LogFormat::Json
        }
    );
    let lab = &config.networks[0];
    assert_eq!(
        lab.mode,
        GatewayModes {
            ipv4: GatewayMode::NatUnprotected,
            ipv6: GatewayMode::Routed
        }
    );
    assert_eq!(
        (lab.icc, lab.masquerade, lab.spoof),
        (false, false, Spoof::Strict)
    );
    assert_eq!(lab.masquerade_to.of(Family::V4), Some(ip("198.18.0.9")));
    assert_eq!(lab.masquerade_to.of(Family::V6), Some(ip("fd99::9")));
    assert_eq!(lab.trusted_interfaces, ["wg0".parse().unwrap()]);
    let vault = &config.networks[1];
    assert_eq!(
        (vault.mode.ipv4, vault.mode.ipv6),
        (GatewayMode::Isolated, GatewayMode::Isolated)
    );
    assert_eq!((vault.internal, vault.spoof), (true, Spoof::Off));
    let [first, second] = &config.publishes[..] else {
        panic!()
    };
    assert_eq!(
        first.host_addresses(),
        [ip("127.0.0.1"), ip("127.0.0.2"), ip("198.18.0.1")],
        "loopback addresses are fine"
    );
    assert_eq!(first.container_port(8042), Some(9042));
    assert_eq!(
        (first.container_port(7999), first.container_port(8100)),
        (None, None)
    );
    assert!(first.override_listener);
    assert_eq!(second.host_addresses(), [ip("::")]);
    assert_eq!(second.family(), Family::V6);
    assert_eq!(second.protocol.number(), 132);
    assert_eq!(
        second.host_ports,
        range("5000"),
        "on a routed network the host port is ignored"
    );
}

#[test]
fn any_means_the_family_of_the_container() {
    let with = |container: &str| {
        let text = format!(
            "{WEB}[[publish]]\nnetwork = 'web'\ncontainer = '{container}'\nhost = 'any'\n\
             host_ports = 80\ncontainer_ports = 80\n"
        );
        parse(&text).publishes[0].host_addresses()
    };
    assert_eq!(with("10.201.1.2"), [ip("0.0.0.0")]);
    assert_eq!(with("fd00:201:1::2"), [ip("::")]);
}

#[test]
fn publishes_that_do_not_overlap() {
    let text = |rows: &[(&str, &str, &str, &str)]| {
        let mut text = WEB.to_owned();
        for (container, protocol, host, ports) in rows {
            text += &format!(
                "[[publish]]\nnetwork = 'web'\ncontainer = '{container}'\nprotocol = '{protocol}'\n\
                 host = {host}\nhost_ports = '{ports}'\ncontainer_ports = '{ports}'\n"
            );
        }
        text
    };
    let config = parse(&text(&[
        ("10.201.1.2", "tcp", "'any'", "80"),
        ("fd00:201:1::2", "tcp", "'any'", "80"),
        ("10.201.1.2", "udp", "'any'", "80"),
        ("10.201.1.2", "tcp", "'any'", "81-90"),
        ("10.201.1.2", "tcp", "'127.0.0.1'", "91"),
        ("10.201.1.3", "tcp", "'127.0.0.2'", "91"),
        ("10.201.1.3", "tcp", "['127.0.0.1', '127.0.0.2']", "92-99"),
    ]));
    assert_eq!(config.publishes.len(), 7);
}

#[test]
fn trust_joins_the_uplinks() {
    let config = parse(
        r#"
        version = 1
        [host]
        trust = ["tailscale0", "wg*"]
        [[uplink]]
        name = "tailscale0"
        return_path = "symmetric"
        "#,
    );
    let policy = |name| config.uplink_policy(name);
    let (published, none) = (ContainersAccess::Published, ContainersAccess::None);
    let (route, symmetric) = (ReturnPath::Route, ReturnPath::Symmetric);
    let expect = |containers, return_path| UplinkPolicy {
        containers,
        return_path,
    };
    assert_eq!(policy("tailscale0"), expect(published, symmetric));
    assert_eq!(policy("wg7"), expect(published, route));
    assert_eq!(policy("eth0"), expect(none, route));
    assert_eq!(config.uplinks.len(), 2);
}

#[test]
fn the_most_specific_uplink_decides() {
    let config = parse(
        r#"
        version = 1
        [[uplink]]
        name = "*"
        containers = "all"
        return_path = "symmetric"
        [[uplink]]
        name = "wg*"
        containers = "published"
        [[uplink]]
        name = "wg0"
        containers = "none"
        [[uplink]]
        name = "e*0"
        containers = "published"
        [[uplink]]
        name = "et*"
        containers = "none"
        "#,
    );
    for (name, containers) in [
        ("wg0", ContainersAccess::None),
        ("wg1", ContainersAccess::Published),
        ("usb0", ContainersAccess::All),
        // Equally long: the first in the file.
        ("eth0", ContainersAccess::Published),
        ("eth1", ContainersAccess::None),
    ] {
        let policy = config.uplink_policy(name);
        assert_eq!(policy.containers, containers, "{name}");
        // Only the general entry says it.
        assert_eq!(policy.return_path, ReturnPath::Symmetric, "{name}");
    }
}

#[test]
fn uplinks_are_selected_by_pattern() {
    let selection = |line: &str| parse(&format!("version = 1\n[host]\n{line}")).host.uplinks;
    let listed = selection("uplinks = ['eth0', 'wg*']");
    assert!(listed.admits("eth0") && listed.admits("wg1") && !listed.admits("eth1"));
    assert!(selection("uplinks = 'auto'").admits("eth1"));
}

#[test]
fn masquerading_needs_nat_and_a_way_out() {
    let masquerades = |lines: &str| {
        let config = parse(&format!("{WEB}{lines}\n"));
        [Family::V4, Family::V6].map(|family| config.networks[0].masquerades(family))
    };
    assert_eq!(masquerades(""), [true, true]);
    assert_eq!(masquerades("mode = { ipv6 = 'routed' }"), [true, false]);
    assert_eq!(masquerades("mode = 'nat-unprotected'"), [true, true]);
    assert_eq!(masquerades("masquerade = false"), [false, false]);
    assert_eq!(masquerades("internal = true"), [false, false]);
}

#[test]
fn small_subnets_have_no_broadcast_address() {
    let config = parse(
        r#"
        version = 1
        [[network]]
        name = "pair"
        bridge = "br-pair"
        subnets = ["10.200.0.0/31"]
        [[publish]]
        network = "pair"
        container = "10.200.0.1"
        host_ports = 80
        container_ports = 80
        "#,
    );
    assert_eq!(config.publishes.len(), 1);
}

#[test]
fn normalized_json() {
    let json = parse(EXAMPLE).to_normalized_json();
    let expected = serde_json::json!({
        "schema": 1,
        "version": 1,
        "host": {
            "uplinks": "auto",
            "allow_direct_routing": false,
            "mode": "replace",
            "pin_dir": "/sys/fs/bpf/netd",
        },
        "uplink": [{ "name": "tailscale0", "containers": "none", "return_path": "route" }],
        "limits": { "flows_v4": 131072, "flows_v6": 32768 },
        "nat": { "ports": "auto" },
        "log": { "level": "info", "format": "text" },
        "network": [{
            "name": "web",
            "bridge": "br-web",
            "subnets": ["10.201.1.0/24", "fd00:201:1::/64"],
            "mode": { "ipv4": "nat", "ipv6": "nat" },
            "icc": true,
            "internal": false,
            "masquerade": true,
            "masquerade_to": { "ipv4": null, "ipv6": null },
            "trusted_interfaces": [],
            "spoof": "nat",
        }],
        "publish": [{
            "network": "web",
            "container": "10.201.1.2",
            "protocol": "tcp",
            "host": "any",
            "host_ports": { "first": 8080, "last": 8080 },
            "container_ports": { "first": 80, "last": 80 },
            "override": false,
        }],
    });
    assert_eq!(json, expected);
}

#[test]
fn many_publishes_are_read_in_linear_time() {
    let mut text = WEB.to_owned();
    for port in 1..=10_000 {
        text += &format!(
            "[[publish]]\nnetwork = 'web'\ncontainer = '10.201.1.2'\nhost_ports = {port}\n\
             container_ports = 80\n"
        );
    }
    let start = std::time::Instant::now();
    let (config, _) = Config::check(&text, "netd.toml").unwrap();
    assert_eq!(config.publishes.len(), 10_000);
    // 0.3 s without optimisation; a comparison of all pairs takes many times that.
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
}
