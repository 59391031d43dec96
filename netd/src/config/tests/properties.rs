//! Properties: no text can stop the reader, and what is written is what is read.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use proptest::sample::select;

use super::super::*;

/// The configuration as a file that says every value, also the defaults.
fn to_toml(config: &Config) -> String {
    let quoted = |text: &str| format!("{text:?}");
    let list = |items: Vec<String>| format!("[{}]", items.join(", "));
    let host = &config.host;
    let uplinks = match &host.uplinks {
        UplinkSelection::Auto => quoted("auto"),
        UplinkSelection::Matching(names) => {
            list(names.iter().map(|name| quoted(name.as_str())).collect())
        }
    };
    let mut text = format!(
        "version = 1\n[host]\nuplinks = {uplinks}\nallow_direct_routing = {}\nmode = \"{}\"\n\
         pin_dir = {:?}\n",
        host.allow_direct_routing, host.mode, host.pin_dir
    );
    text += "[limits]\n";
    for (key, value) in [
        ("flows_v4", config.limits.flows_v4),
        ("flows_v6", config.limits.flows_v6),
    ] {
        text += &value.map_or(String::new(), |value| format!("{key} = {value}\n"));
    }
    if let NatPorts::Range(range) = config.nat.ports {
        text += &format!("[nat]\nports = \"{range}\"\n");
    }
    text += &format!(
        "[log]\nlevel = \"{}\"\nformat = \"{}\"\n",
        config.log.level, config.log.format
    );
    for uplink in &config.uplinks {
        text += &format!("[[uplink]]\nname = \"{}\"\n", uplink.name);
        text += &uplink
            .containers
            .map_or(String::new(), |x| format!("containers = \"{x}\"\n"));
        text += &uplink
            .return_path
            .map_or(String::new(), |x| format!("return_path = \"{x}\"\n"));
    }
    for network in &config.networks {
        let to = [Family::V4, Family::V6].map(|family| network.masquerade_to.of(family));
        text += &format!(
            "[[network]]\nname = {:?}\nbridge = \"{}\"\nsubnets = {}\n\
             mode = {{ ipv4 = \"{}\", ipv6 = \"{}\" }}\nicc = {}\ninternal = {}\nmasquerade = {}\n\
             masquerade_to = {}\ntrusted_interfaces = {}\nspoof = \"{}\"\n",
            network.name,
            network.bridge,
            list(
                network
                    .subnets
                    .iter()
                    .map(|net| quoted(&net.to_string()))
                    .collect()
            ),
            network.mode.ipv4,
            network.mode.ipv6,
            network.icc,
            network.internal,
            network.masquerade,
            list(
                to.iter()
                    .flatten()
                    .map(|address| quoted(&address.to_string()))
                    .collect()
            ),
            list(
                network
                    .trusted_interfaces
                    .iter()
                    .map(|name| quoted(name.as_str()))
                    .collect()
            ),
            network.spoof,
        );
    }
    for publish in &config.publishes {
        let host = match &publish.host {
            HostAddresses::Any => quoted("any"),
            HostAddresses::List(addresses) => list(
                addresses
                    .iter()
                    .map(|address| quoted(&address.to_string()))
                    .collect(),
            ),
        };
        text += &format!(
            "[[publish]]\nnetwork = {:?}\ncontainer = \"{}\"\nprotocol = \"{}\"\nhost = {host}\n\
             host_ports = \"{}\"\ncontainer_ports = \"{}\"\noverride = {}\n",
            publish.network,
            publish.container,
            publish.protocol,
            publish.host_ports,
            publish.container_ports,
            publish.override_listener,
        );
    }
    text
}

/// One network per index, so that names, bridges and subnets differ.
fn networks() -> impl Strategy<Value = Vec<Network>> {
    let one = (
        select(GatewayMode::ALL),
        select(GatewayMode::ALL),
        any::<[bool; 3]>(),
        select(Spoof::ALL),
        any::<[bool; 2]>(),
        0..3usize,
    );
    prop::collection::vec(one, 0..5).prop_map(|list| {
        type Choice = (GatewayMode, GatewayMode, [bool; 3], Spoof, [bool; 2], usize);
        let build = |(index, choice): (usize, Choice)| {
            let (ipv4, ipv6, [icc, internal, masquerade], spoof, to, trusted) = choice;
            let isolated = [ipv4, ipv6].contains(&GatewayMode::Isolated);
            Network {
                name: format!("net.{index}"),
                bridge: format!("br-{index}").parse().unwrap(),
                subnets: vec![
                    format!("10.200.{index}.0/24").parse().unwrap(),
                    format!("fd00:{index}::/64").parse().unwrap(),
                ],
                mode: GatewayModes { ipv4, ipv6 },
                icc,
                internal: internal || isolated,
                masquerade,
                masquerade_to: MasqueradeTo {
                    ipv4: to[0].then_some(Ipv4Addr::new(198, 18, 0, 1)),
                    ipv6: to[1].then_some(Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 1)),
                },
                trusted_interfaces: (0..trusted)
                    .map(|number| format!("wg{number}").parse().unwrap())
                    .collect(),
                spoof,
            }
        };
        list.into_iter().enumerate().map(build).collect()
    })
}

/// One slot of 100 ports per index, so that no two overlap.
fn publishes(networks: &[Network]) -> BoxedStrategy<Vec<Publish>> {
    let open: Vec<(usize, String)> = networks
        .iter()
        .enumerate()
        .filter(|(_, network)| !network.internal)
        .map(|(index, network)| (index, network.name.clone()))
        .collect();
    if open.is_empty() {
        return Just(Vec::new()).boxed();
    }
    let one = (
        select(open),
        any::<bool>(),
        select(Protocol::ALL),
        0..4usize,
        1..=100u16,
        1..=65_000u16,
        any::<bool>(),
    );
    prop::collection::vec(one, 0..20)
        .prop_map(|list| {
            type Choice = ((usize, String), bool, Protocol, usize, u16, u16, bool);
            let build = |(slot, choice): (usize, Choice)| {
                let ((network, name), v6, protocol, host, count, to, over) = choice;
                let first = 1000 + 100 * u16::try_from(slot).unwrap();
                let from = PortRange::new(first, first + count - 1).unwrap();
                let to = PortRange::new(to, to + count - 1).unwrap();
                let (container, loopback, any): (IpAddr, &str, &str) = if v6 {
                    (format!("fd00:{network}::2").parse().unwrap(), "::1", "::")
                } else {
                    (
                        format!("10.200.{network}.2").parse().unwrap(),
                        "127.0.0.1",
                        "0.0.0.0",
                    )
                };
                let other = if v6 { "fd99::1" } else { "198.18.0.1" };
                let list = |texts: &[&str]| {
                    HostAddresses::List(texts.iter().map(|text| text.parse().unwrap()).collect())
                };
                Publish {
                    network: name,
                    container,
                    protocol,
                    host: match host {
                        0 => HostAddresses::Any,
                        1 => list(&[any]),
                        2 => list(&[loopback]),
                        _ => list(&[loopback, other]),
                    },
                    host_ports: from,
                    container_ports: to,
                    override_listener: over,
                }
            };
            list.into_iter().enumerate().map(build).collect()
        })
        .boxed()
}

fn uplinks() -> impl Strategy<Value = Vec<Uplink>> {
    let access = prop::option::of(select(ContainersAccess::ALL));
    let path = prop::option::of(select(ReturnPath::ALL));
    prop::collection::btree_map("[a-z*][a-z0-9.*-]{0,14}", (access, path), 0..5).prop_map(|map| {
        let mut list: Vec<Uplink> = Vec::new();
        for (name, (containers, return_path)) in map {
            let name: NamePattern = name.parse().unwrap();
            // `a**` and `a*` are the same pattern.
            if list.iter().all(|other| other.name != name) {
                list.push(Uplink {
                    name,
                    containers,
                    return_path,
                });
            }
        }
        list
    })
}

fn configs() -> impl Strategy<Value = Config> {
    let selection = prop_oneof![
        Just(UplinkSelection::Auto),
        Just(UplinkSelection::Matching(vec![
            "eth0".parse().unwrap(),
            "wg*".parse().unwrap()
        ])),
    ];
    let host = (
        selection,
        any::<bool>(),
        select(Mode::ALL),
        "/[a-z /é\"\\\\]{1,20}[a-z]",
    )
        .prop_map(|(uplinks, allow_direct_routing, mode, pin_dir)| Host {
            uplinks,
            allow_direct_routing,
            mode,
            pin_dir: pin_dir.into(),
        });
    let flows = || prop::option::of(1..=16u32 << 20);
    let limits = (flows(), flows()).prop_map(|(flows_v4, flows_v6)| Limits { flows_v4, flows_v6 });
    let ports = prop_oneof![
        Just(NatPorts::Auto),
        (1024..=65_472u16, 63..=60_000u16).prop_map(|(first, more)| {
            NatPorts::Range(PortRange::new(first, first.saturating_add(more)).unwrap())
        }),
    ];
    let log = (select(LogLevel::ALL), select(LogFormat::ALL))
        .prop_map(|(level, format)| Log { level, format });
    let rest = networks().prop_flat_map(|networks| {
        let publishes = publishes(&networks);
        (Just(networks), publishes)
    });
    (host, uplinks(), limits, ports, log, rest).prop_map(
        |(host, uplinks, limits, ports, log, (networks, publishes))| Config {
            host,
            uplinks,
            limits,
            nat: Nat { ports },
            log,
            networks,
            publishes,
        },
    )
}

/// Fragments of files, so that random texts get past the syntax.
fn fragments() -> impl Strategy<Value = String> {
    let words = select(vec![
        "version = 1\n",
        "[host]\n",
        "[[uplink]]\n",
        "[limits]\n",
        "[nat]\n",
        "[log]\n",
        "[[network]]\n",
        "[[publish]]\n",
        "name = ",
        "bridge = ",
        "subnets = ",
        "mode = ",
        "masquerade_to = ",
        "network = ",
        "container = ",
        "host = ",
        "host_ports = ",
        "container_ports = ",
        "ports = ",
        "uplinks = ",
        "trust = ",
        "pin_dir = ",
        "flows_v4 = ",
        "\"web\"\n",
        "\"\"\n",
        "'any'\n",
        "'10.200.0.0/24'\n",
        "['10.200.0.0/24', 'fd00::/64']\n",
        "'10.200.0.2'\n",
        "['::', '0.0.0.0']\n",
        "80\n",
        "-1\n",
        "99999999999999999999\n",
        "0xffff_ffff_ffff\n",
        "'1-65535'\n",
        "'65535-1'\n",
        "{ ipv4 = 'nat' }\n",
        "{}\n",
        "[]\n",
        "[[]]\n",
        "nan\n",
        "1979-05-27\n",
        "'''\n",
        "\u{feff}",
        "# ä\n",
        "\0",
        "\r",
        "\n",
        "*",
    ]);
    prop::collection::vec(words, 0..60).prop_map(|list| list.concat())
}

/// Reads a text and renders what was found; each finding lies inside the text.
fn survives(text: &str) {
    let lines = text.matches('\n').count() + 1;
    let report = match Config::check(text, "netd.toml") {
        Ok((config, warnings)) => {
            config.to_normalized_json();
            warnings
        }
        Err(ConfigError::Invalid(report)) => {
            assert!(!report.is_empty());
            report
        }
        Err(other) => panic!("{other}"),
    };
    for found in report.diagnostics() {
        assert!(
            (1..=lines).contains(&found.line) && found.column >= 1,
            "{found:?}"
        );
        assert!(found.help.is_some(), "{found:?}");
    }
    assert_eq!(report.render(false).is_empty(), report.is_empty());
    report.render(true);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        survives(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn arbitrary_texts_never_panic(text in "\\PC{0,200}") {
        survives(&text);
    }

    #[test]
    fn arbitrary_fragments_never_panic(text in fragments()) {
        survives(&text);
        survives(&format!("version = 1\n{text}"));
    }

    #[test]
    fn a_valid_file_with_one_change_never_panics(
        config in configs(),
        at in any::<prop::sample::Index>(),
        with in "\\PC{0,3}",
    ) {
        let mut text = to_toml(&config);
        let at = text.floor_char_boundary(at.index(text.len()));
        let end = text.ceil_char_boundary(at + 1);
        text.replace_range(at..end, &with);
        survives(&text);
    }

    #[test]
    fn what_is_written_is_read(config in configs()) {
        let text = to_toml(&config);
        let read = Config::parse(&text, "netd.toml").map_err(|error| {
            TestCaseError::fail(format!("{error}\nin\n{text}"))
        })?;
        prop_assert_eq!(read, config);
    }

    #[test]
    fn the_same_port_twice_is_always_found(
        config in configs(),
        which in any::<prop::sample::Index>(),
    ) {
        prop_assume!(!config.publishes.is_empty());
        let mut config = config;
        let again = config.publishes[which.index(config.publishes.len())].clone();
        let mode = config.network(&again.network).unwrap().mode.of(again.family());
        config.publishes.push(again);
        let refused = Config::parse(&to_toml(&config), "netd.toml").is_err();
        // Host ports of a routed network are ignored.
        prop_assert_eq!(refused, mode != GatewayMode::Routed);
    }
}
