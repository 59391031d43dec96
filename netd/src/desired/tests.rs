use super::*;
use crate::host::{Address, FoundBy, LocalPrefix, MacAddr, Vrf};

pub(crate) const BRIDGE: u32 = 10;
pub(crate) const VETH: u32 = 20;
pub(crate) const UPLINK: u32 = 2;

pub(crate) fn link(ifindex: u32, name: &str, kind: LinkKind, master: Option<u32>) -> Link {
    Link {
        ifindex,
        name: name.to_owned(),
        mac: Some(MacAddr([2, 0, 0, 0, 0, ifindex as u8])),
        ethernet: !matches!(kind, LinkKind::Tun | LinkKind::Wireguard),
        headerless: matches!(kind, LinkKind::Tun | LinkKind::Wireguard),
        kind,
        mtu: 1500,
        up: true,
        carrier: true,
        master,
        lower: None,
        vrf: None,
        bridge: None,
        port: None,
        primary_v4: None,
        primary_v6: None,
        forwarding_v4: false,
        forwarding_v6: false,
        rp_filter: RpFilter::Off,
    }
}

fn address(ifindex: u32, network: &str, scope: AddressScope) -> Address {
    Address {
        ifindex,
        network: network.parse().unwrap(),
        peer: None,
        scope,
        broadcast: None,
        tentative: false,
        duplicate: false,
        deprecated: false,
        secondary: false,
        valid: true,
    }
}

pub(crate) fn container(host_ifindex: u32, bridge_ifindex: u32, addresses: &[&str]) -> Container {
    Container {
        host_ifindex,
        host_name: format!("veth{host_ifindex}"),
        bridge_ifindex,
        netnsid: Some(0),
        if_name: Some("eth0".to_owned()),
        if_index: 2,
        mac: Some(MacAddr([2, 1, 0, 0, 0, host_ifindex as u8])),
        mtu: 1500,
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        found_by: FoundBy::Namespace,
    }
}

/// lo, an uplink, a bridge with one container.
pub(crate) fn host() -> HostFacts {
    let mut lo = link(1, "lo", LinkKind::Loopback, None);
    lo.mtu = 65536;
    let mut uplink = link(UPLINK, "up0", LinkKind::Physical, None);
    uplink.primary_v4 = Some("198.18.0.1".parse().unwrap());
    HostFacts {
        links: vec![
            lo,
            uplink,
            link(BRIDGE, "br-web", LinkKind::Bridge, None),
            link(VETH, "veth20", LinkKind::Veth, Some(BRIDGE)),
        ],
        addresses: vec![
            address(1, "::1/128", AddressScope::Host),
            address(UPLINK, "198.18.0.1/24", AddressScope::Global),
            address(BRIDGE, "10.201.1.1/24", AddressScope::Global),
            address(BRIDGE, "fd00:201:1::1/64", AddressScope::Global),
            address(BRIDGE, "fe80::1/64", AddressScope::Link),
        ],
        containers: vec![container(
            VETH,
            BRIDGE,
            &["10.201.1.2/24", "fd00:201:1::2/64", "fe80::2/64"],
        )],
        settings: crate::host::Settings {
            local_ports: PortSpan {
                first: 32768,
                last: 60999,
            },
            ..Default::default()
        },
        socket_hooks: true,
        netns_cookie: 7,
        ..HostFacts::default()
    }
}

pub(crate) fn config(text: &str) -> Config {
    Config::parse(&format!("version = 1\n{text}"), "test").unwrap_or_else(|e| panic!("{e}"))
}

pub(crate) const WEB: &str = r#"
[[network]]
name = "web"
bridge = "br-web"
subnets = ["10.201.1.0/24", "fd00:201:1::/64"]
"#;

fn ids(config: &Config) -> Ids {
    let names = config.networks.iter().map(|network| network.name.as_str());
    Ids::default().assign(names).unwrap()
}

pub(crate) fn wanted(text: &str, facts: &HostFacts) -> Desired {
    let config = config(text);
    desired(&config, facts, &ids(&config))
}

/// Programs at interfaces.
fn hooks(desired: &Desired) -> Vec<(Hook, &str)> {
    let all = desired.attachments.iter();
    let all = all.filter(|(at, _)| !at.hook.is_cgroup());
    all.map(|(at, name)| (at.hook, name.as_str())).collect()
}

#[test]
fn a_network_with_a_container() {
    let got = wanted(WEB, &host());
    assert_eq!(got.warnings, [""; 0]);
    let network = got.tables.networks[&1];
    assert_eq!(network.bridge, BRIDGE);
    assert_eq!(network.gateway_v4, [10, 201, 1, 1]);
    let gateway: Ipv6Addr = "fd00:201:1::1".parse().unwrap();
    assert_eq!(network.gateway_v6, gateway.octets());
    let flags = network_flag::ACTIVE
        | network_flag::ICC
        | network_flag::MASQUERADE_V4
        | network_flag::MASQUERADE_V6;
    assert_eq!(network.flags, flags);
    assert_eq!(
        hooks(&got),
        [
            (Hook::BridgeIn, "br-web"),
            (Hook::BridgeOut, "br-web"),
            (Hook::FromUplink, "up0"),
            (Hook::ToEndpoint, "veth20"),
            (Hook::FromEndpoint, "veth20"),
        ]
    );
    assert_eq!(got.tables.endpoints[&VETH].flags, endpoint_flag::PEER);
    assert_eq!(got.tables.addrs_v4[&V4Addr([10, 201, 1, 2])].ifindex, VETH);
    assert_eq!(got.tables.addrs_v6.len(), 1, "not the link-local one");
    assert_eq!(got.tables.subnets_v4.len() + got.tables.subnets_v6.len(), 2);
    let uplinks: Vec<u32> = got.tables.uplinks.keys().copied().collect();
    assert_eq!(uplinks, [1, UPLINK]);
    assert_eq!(got.tables.uplinks[&1].flags, uplink_flag::LOOPBACK);
    assert_eq!(got.tables.uplinks[&UPLINK].addr_v4, [198, 18, 0, 1]);
    assert_eq!((got.config.nat_first, got.config.nat_last), (16384, 32767));
    let sysctls: Vec<_> = got.sysctls.keys().map(String::as_str).collect();
    assert_eq!(
        sysctls,
        [
            "net/ipv4/conf/br-web/forwarding",
            "net/ipv6/conf/br-web/forwarding"
        ],
        "nothing but the managed bridge"
    );
}

#[test]
fn accelerate_mode_has_no_guard() {
    let text = format!("[host]\nmode = \"accelerate\"\n{WEB}");
    let got = wanted(&text, &host());
    assert!(hooks(&got).iter().all(|(hook, _)| *hook != Hook::BridgeIn));
    // What the host's sockets send is led past the bridge all the same.
    assert!(hooks(&got).contains(&(Hook::BridgeOut, "br-web")));
    assert_eq!(got.config.flags, config_flag::ACCELERATE);
}

#[test]
fn the_hosts_sockets_have_their_hooks_where_they_can() {
    let cgroup = |desired: &Desired| {
        let hooks = desired.attachments.keys().filter(|at| at.hook.is_cgroup());
        assert!(hooks.clone().all(|at| at.ifindex == 0));
        hooks.count()
    };
    let got = wanted(WEB, &host());
    assert_eq!((cgroup(&got), got.config.netns_cookie), (8, 7));
    let facts = HostFacts {
        socket_hooks: false,
        ..host()
    };
    let got = wanted(WEB, &facts);
    assert_eq!(cgroup(&got), 0);
    assert!(got.warnings[0].contains("cgroup2 is not mounted"));
}

#[test]
fn the_engines_own_sockets_do_not_keep_a_port() {
    let publish = r#"
[[publish]]
network = "web"
container = "10.201.1.2"
protocol = "udp"
host_ports = "8000-8003"
container_ports = "9000-9003"
"#;
    let mut facts = host();
    facts.engine_ports = [(ListenerProtocol::Udp, 8001), (ListenerProtocol::Tcp, 8002)].into();
    let got = wanted(&format!("{WEB}{publish}"), &facts);
    let rows: Vec<_> = got
        .tables
        .publish_v4
        .iter()
        .map(|(key, backend)| {
            let first = u16::from_be_bytes(backend.host_first);
            let to = u16::from_be_bytes(backend.container_first);
            let port = u16::from_be_bytes(key.data.port);
            (port, key.bits - 64, backend.flags, (first, to))
        })
        .collect();
    let range = (8000, 9000);
    assert_eq!(
        rows,
        [
            (8002, 15, 0, range),
            (8000, 16, 0, range),
            (8001, 16, backend_flag::OVERRIDE, range),
        ]
    );
}

#[test]
fn a_port_whose_container_is_unknown_gets_its_programs_and_no_row() {
    let mut facts = host();
    facts.containers.clear();
    let got = wanted(WEB, &facts);
    assert!(hooks(&got).contains(&(Hook::FromEndpoint, "veth20")));
    assert!(got.tables.endpoints.is_empty() && got.tables.addrs_v4.is_empty());
    let mut facts = host();
    facts.containers[0].mac = None;
    assert!(wanted(WEB, &facts).tables.addrs_v4.is_empty());
}

#[test]
fn only_addresses_of_the_network_count_and_the_first_owner_stays() {
    let mut facts = host();
    facts
        .links
        .push(link(21, "veth21", LinkKind::Veth, Some(BRIDGE)));
    facts.containers.push(container(
        21,
        BRIDGE,
        &["10.201.1.2/24", "10.201.9.9/24", "10.201.1.3/24"],
    ));
    let got = wanted(WEB, &facts);
    let owners: Vec<_> = got
        .tables
        .addrs_v4
        .iter()
        .map(|(a, e)| (a.0[3], e.ifindex))
        .collect();
    assert_eq!(owners, [(2, VETH), (3, 21)]);
    assert_eq!(got.warnings.len(), 1, "{:?}", got.warnings);
}

#[test]
fn masquerade_follows_mode_family_and_internal() {
    use network_flag::{INTERNAL, MASQUERADE_V4, MASQUERADE_V6};
    for (extra, expected) in [
        ("", MASQUERADE_V4 | MASQUERADE_V6),
        ("mode = \"nat-unprotected\"", MASQUERADE_V4 | MASQUERADE_V6),
        ("mode = \"routed\"", 0),
        (
            "mode = { ipv4 = \"nat\", ipv6 = \"routed\" }",
            MASQUERADE_V4,
        ),
        ("masquerade = false", 0),
        ("internal = true", INTERNAL),
    ] {
        let got = wanted(&format!("{WEB}{extra}\n"), &host());
        let mask = MASQUERADE_V4 | MASQUERADE_V6 | INTERNAL;
        assert_eq!(got.tables.networks[&1].flags & mask, expected, "{extra}");
    }
}

fn publish(extra: &str) -> String {
    format!(
        "{WEB}[[publish]]\nnetwork = \"web\"\ncontainer = \"10.201.1.2\"\nhost_ports = 8080\ncontainer_ports = 80\n{extra}\n"
    )
}

#[test]
fn any_is_both_families_where_the_container_has_both() {
    let got = wanted(&publish(""), &host());
    assert_eq!(got.tables.publish_v4.len(), 1);
    let (key, backend) = got.tables.publish_v6.iter().next().unwrap();
    assert_eq!(key.bits, 176);
    assert_eq!(key.data.addr, V6Addr::default());
    let v6: Ipv6Addr = "fd00:201:1::2".parse().unwrap();
    assert_eq!(backend.addr, v6.into());
    assert_eq!(got.tables.exposed_v6.len(), 1);
    assert_eq!(got.tables.ports[&(8080 / 64)], 1 << (8080 % 64));

    let mut facts = host();
    facts.containers[0].addresses.truncate(1);
    let got = wanted(&publish(""), &facts);
    assert!(got.tables.publish_v6.is_empty() && got.tables.exposed_v6.is_empty());
    for host_is in ["host = \"0.0.0.0\"", "host = \"198.18.0.1\""] {
        let got = wanted(&publish(host_is), &host());
        assert!(got.tables.publish_v6.is_empty(), "{host_is}");
        assert_eq!(got.tables.publish_v4.len(), 1, "{host_is}");
    }
}

#[test]
fn a_publish_does_not_wait_for_its_container() {
    let mut facts = host();
    facts.containers.clear();
    let got = wanted(&publish("override = true"), &facts);
    let (key, backend) = got.tables.publish_v4.iter().next().unwrap();
    assert_eq!(
        (key.bits, key.data.port),
        (port_prefix_base::<V4Addr>() + 16, 8080u16.to_be_bytes())
    );
    assert_eq!(backend.addr, V4Addr([10, 201, 1, 2]));
    assert_eq!(backend.container_first, 80u16.to_be_bytes());
    assert_eq!(backend.flags, backend_flag::OVERRIDE);
    assert_eq!(got.tables.exposed_v4.len(), 1);
}

#[test]
fn a_routed_network_exposes_and_publishes_nothing() {
    let text = publish("").replace(
        "bridge = \"br-web\"",
        "bridge = \"br-web\"\nmode = { ipv4 = \"routed\", ipv6 = \"nat\" }",
    );
    let got = wanted(&text, &host());
    assert!(got.tables.publish_v4.is_empty());
    assert_eq!(got.tables.exposed_v4.len(), 1);
    assert_eq!(got.tables.publish_v6.len(), 1);
}

#[test]
fn the_bitmap_is_exactly_the_ranges() {
    let text = publish("").replace(
        "host_ports = 8080\ncontainer_ports = 80",
        "host_ports = \"60-200\"\ncontainer_ports = \"60-200\"\nprotocol = \"udp\"",
    );
    let got = wanted(&text, &host());
    let ports: Vec<u32> = got
        .tables
        .ports
        .iter()
        .flat_map(|(word, bits)| {
            (0..64)
                .filter(move |bit| bits >> bit & 1 == 1)
                .map(move |bit| (word - 1024) * 64 + bit)
        })
        .collect();
    assert!(ports.into_iter().eq(60..=200));
    // One range is a few rows, and all of them know where it begins.
    assert!(got.tables.publish_v4.len() <= 30);
    for backend in got.tables.publish_v4.values() {
        assert_eq!(backend.host_first, 60u16.to_be_bytes());
    }
}

#[test]
fn uplinks_are_l3_interfaces_that_the_file_admits() {
    let mut facts = host();
    facts.links.extend([
        link(30, "bond0", LinkKind::Bond, None),
        link(31, "eth1", LinkKind::Physical, Some(30)),
        link(32, "virbr0", LinkKind::Bridge, None),
        link(33, "vnet0", LinkKind::Tap, Some(32)),
        link(34, "tailscale0", LinkKind::Tun, None),
        link(36, "eth2", LinkKind::Physical, None),
        link(37, "ifb0", LinkKind::Ifb, None),
    ]);
    facts.links[1].rp_filter = RpFilter::Strict;
    let text = format!("[host]\ntrust = [\"tailscale0\"]\n{WEB}");
    let got = wanted(&text, &facts);
    let uplinks: Vec<u32> = got.tables.uplinks.keys().copied().collect();
    assert_eq!(uplinks, [1, UPLINK, 30, 32, 34, 36]);
    assert_eq!(
        got.tables.uplinks[&34].flags,
        uplink_flag::L3 | uplink_flag::CONTAINERS_PUBLISHED
    );
    assert_eq!(
        got.tables.uplinks[&UPLINK].flags,
        uplink_flag::STRICT_RP_FILTER
    );

    let text = format!("[host]\nuplinks = [\"eth*\", \"up0\"]\n{WEB}");
    let got = wanted(&text, &facts);
    let uplinks: Vec<u32> = got.tables.uplinks.keys().copied().collect();
    assert_eq!(uplinks, [1, UPLINK, 36], "lo always");
}

#[test]
fn an_uplink_of_a_vrf_is_refused_with_the_reason() {
    let mut facts = host();
    let mut bond = link(36, "bond2", LinkKind::Bond, Some(35));
    bond.vrf = Some(Vrf {
        ifindex: 35,
        table: 1035,
    });
    facts.links.extend([
        link(35, "blue", LinkKind::Vrf, None),
        bond,
        link(37, "eth3", LinkKind::Physical, None),
    ]);
    let got = wanted(WEB, &facts);
    let uplinks: Vec<u32> = got.tables.uplinks.keys().copied().collect();
    assert_eq!(uplinks, [1, UPLINK, 37], "eth3 is none of its members");
    let attached = |ifindex| got.attachments.keys().any(|at| at.ifindex == ifindex);
    assert!(attached(37) && !attached(36) && !attached(35));
    let [warning] = &got.warnings[..] else {
        panic!("{:?}", got.warnings);
    };
    assert!(
        warning.starts_with("bond2 belongs to the VRF blue (table 1035)"),
        "{warning}"
    );

    // Who leaves it out on purpose is not told.
    let got = wanted(&format!("[host]\nuplinks = [\"up0\"]\n{WEB}"), &facts);
    assert_eq!(got.warnings, [""; 0]);
}

#[test]
fn a_strict_rp_filter_is_told_where_replies_are_symmetric() {
    let mut facts = host();
    let text = format!("{WEB}[[uplink]]\nname = \"up0\"\nreturn_path = \"symmetric\"\n");
    for (filter, warnings) in [(RpFilter::Loose, 0), (RpFilter::Strict, 1)] {
        facts.links[1].rp_filter = filter;
        let got = wanted(&text, &facts);
        let flags = got.tables.uplinks[&UPLINK].flags;
        assert_ne!(flags & uplink_flag::SYMMETRIC, 0);
        assert_eq!(got.warnings.len(), warnings, "{:?}", got.warnings);
    }
}

#[test]
fn local_addresses_are_prefixes_of_every_kind() {
    let mut facts = host();
    let local = |prefix: &str, kind| LocalPrefix {
        prefix: prefix.parse().unwrap(),
        table: 255,
        kind,
        ifindex: Some(1),
    };
    facts.local = vec![
        local("198.19.0.0/24", LocalKind::Local),
        local("198.18.0.255/32", LocalKind::Broadcast),
        local("fe80::/128", LocalKind::Anycast),
        local("fe80::/128", LocalKind::Local),
    ];
    let got = wanted(WEB, &facts);
    let v4: Vec<_> = got
        .tables
        .local_v4
        .iter()
        .map(|(p, l)| (p.bits, p.data, l.kind))
        .collect();
    assert_eq!(
        v4,
        [
            (8, V4Addr([127, 0, 0, 0]), local_kind::UNICAST),
            (24, V4Addr([198, 19, 0, 0]), local_kind::UNICAST),
            (32, V4Addr([198, 18, 0, 255]), local_kind::BROADCAST),
        ]
    );
    let kinds: Vec<_> = got.tables.local_v6.values().map(|l| l.kind).collect();
    assert_eq!(kinds, [local_kind::UNICAST; 2], "::1 and fe80::");
}

#[test]
fn a_bridge_that_is_not_there_is_a_warning_and_still_closed() {
    let mut facts = host();
    facts.links.retain(|link| link.ifindex < BRIDGE);
    facts.containers.clear();
    let got = wanted(&publish(""), &facts);
    assert_eq!(got.warnings.len(), 1);
    assert_eq!(got.tables.networks[&1].bridge, 0);
    assert_eq!(got.tables.subnets_v4.len(), 1, "the subnet is known anyway");
    assert_eq!(got.tables.publish_v4.len(), 1);
    assert!(got.sysctls.is_empty());
}

#[test]
fn ports_are_reserved_only_where_they_must_be() {
    let mut facts = host();
    assert_eq!(wanted(WEB, &facts).reserved, None);
    facts.settings.local_ports = PortSpan {
        first: 1024,
        last: 65535,
    };
    facts.settings.reserved_ports = vec![PortSpan {
        first: 8080,
        last: 8080,
    }];
    let got = wanted(WEB, &facts);
    assert_eq!(got.sysctls[RESERVED_PORTS], "8080,61000-65535");
    assert_eq!(
        got.reserved,
        Some(PortSpan {
            first: 61000,
            last: 65535
        })
    );
    assert_eq!((got.config.nat_first, got.config.nat_last), (61000, 65535));
}

#[test]
fn trusted_interfaces_are_rows_while_they_exist() {
    let text = format!("{WEB}trusted_interfaces = [\"up0\", \"gone0\"]\n");
    let got = wanted(&text, &host());
    let trusted: Vec<_> = got
        .tables
        .trusted
        .keys()
        .map(|t| (t.network, t.ifindex))
        .collect();
    assert_eq!(trusted, [(1, UPLINK)]);
}

#[test]
fn ten_thousand_publishes_are_decided_quickly() {
    let mut text = WEB.to_owned();
    for port in 10000..20000 {
        text.push_str(&format!(
            "[[publish]]\nnetwork = \"web\"\ncontainer = \"10.201.1.2\"\nhost_ports = {port}\ncontainer_ports = 80\n"
        ));
    }
    let began = std::time::Instant::now();
    let got = wanted(&text, &host());
    assert_eq!(got.tables.publish_v4.len(), 10_000);
    assert_eq!(got.tables.publish_v6.len(), 10_000);
    // Quadratic work would take minutes; the limit allows for a slow, unoptimised build.
    assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
}

#[test]
fn an_interface_with_a_header_of_its_own_is_left_alone() {
    let mut facts = host();
    let mut infiniband = link(7, "ib0", LinkKind::Physical, None);
    infiniband.ethernet = false;
    facts.links.push(infiniband);
    let want = wanted(WEB, &facts);
    assert!(!want.tables.uplinks.contains_key(&7));
    assert!(!want.attachments.keys().any(|at| at.ifindex == 7));
    assert!(
        want.warnings[0].starts_with("ib0 is neither"),
        "{:?}",
        want.warnings
    );
}
