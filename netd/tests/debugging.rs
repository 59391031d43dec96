//! docs/debugging.md, line by line: what the usual tools show of a flow that netd carries.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use netd::lab::{
    Capture, Captured, Daemon, Namespace, ProbeOptions, RuleSet, StandardHost, StandardHostOptions,
};

const UPLINK: &str = "198.18.0.1";
const CLIENT: &str = "198.18.0.2";
const CONTAINER: &str = "10.200.0.2";
/// Each has several packets in either direction: beside them the neighbour and listener discovery that goes on meanwhile
/// is little.
const CONNECTIONS: u64 = 50;
/// Published on any address, leads to c0:80.
const PORT: u16 = 8081;

fn addr(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Received and sent packets by device (/proc/net/dev).
fn counters(namespace: &Namespace) -> BTreeMap<String, (u64, u64)> {
    let text = namespace
        .run(|| std::fs::read_to_string("/proc/thread-self/net/dev"))
        .expect("device counters");
    text.lines()
        .filter_map(|line| {
            let (name, numbers) = line.split_once(':')?;
            let numbers: Vec<u64> = numbers
                .split_whitespace()
                .filter_map(|n| n.parse().ok())
                .collect();
            Some((name.trim().to_owned(), (*numbers.get(1)?, *numbers.get(9)?)))
        })
        .collect()
}

/// Source and destination addresses of the TCP segments of the flow, without repetition.
fn seen(frames: &[Captured]) -> Vec<(String, String)> {
    let mut pairs: Vec<(String, String)> = frames
        .iter()
        .filter(|frame| frame.decoded.protocol == Some(6))
        .filter_map(|frame| {
            Some((
                frame.decoded.source?.to_string(),
                frame.decoded.destination?.to_string(),
            ))
        })
        .collect();
    pairs.sort();
    pairs.dedup();
    pairs
}

fn pair(from: &str, to: &str) -> (String, String) {
    (from.to_owned(), to.to_owned())
}

#[test]
fn the_usual_tools_show_half_of_a_flow() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    let host = StandardHost::build(StandardHostOptions {
        rules: vec![RuleSet::docker_29()],
        networks: &["def"],
        ..StandardHostOptions::default()
    })
    .expect("a host");
    let config = host.netd_toml("replace", "/sys/fs/bpf/overruled");
    let only_def: String = only_network(&config, "def");
    let daemon = Daemon::start(Path::new(env!("CARGO_BIN_EXE_netd")), &host.host, &only_def)
        .expect("netd runs");
    let c0 = host.container("c0");
    // Neighbours are resolved and the flow's maps are warm before anything is counted.
    let to = SocketAddr::new(addr(UPLINK), PORT);
    assert!(
        host.tcp("client", to, &ProbeOptions::default()).answered(),
        "the published port answers"
    );

    let captures = [
        Capture::start(&host.host, "up0"),
        Capture::start(&host.host, &c0.host_device),
        Capture::start(&host.host, "br-def"),
        Capture::start(&c0.namespace, "eth0"),
    ]
    .map(|capture| capture.expect("a capture"));
    let before = (
        counters(&host.host),
        counters(&c0.namespace),
        host.host.counters().expect("rules"),
    );
    for _ in 0..CONNECTIONS {
        let outcome = host.tcp("client", to, &ProbeOptions::default());
        assert!(outcome.answered(), "{outcome:?}");
    }
    std::thread::sleep(Duration::from_millis(200));
    let after = (
        counters(&host.host),
        counters(&c0.namespace),
        host.host.counters().expect("rules"),
    );
    let [uplink, veth, bridge, eth0] = captures.map(|capture| seen(&capture.stop()));

    assert_eq!(
        uplink,
        [pair(UPLINK, CLIENT), pair(CLIENT, UPLINK)],
        "tcpdump on the uplink"
    );
    assert_eq!(veth, [pair(CONTAINER, CLIENT)], "tcpdump on the host veth");
    assert_eq!(bridge, [], "tcpdump on the bridge");
    assert_eq!(
        eth0,
        [pair(CONTAINER, CLIENT), pair(CLIENT, CONTAINER)],
        "tcpdump inside the container"
    );

    let moved = |before: &BTreeMap<String, (u64, u64)>,
                 after: &BTreeMap<String, (u64, u64)>,
                 device: &str| {
        let (a, b) = (before[device], after[device]);
        (b.0 - a.0 > 2 * CONNECTIONS, b.1 - a.1 > 2 * CONNECTIONS)
    };
    assert_eq!(
        moved(&before.0, &after.0, &c0.host_device),
        (true, false),
        "host veth: RX moves, TX does not"
    );
    assert_eq!(
        moved(&before.0, &after.0, "br-def"),
        (false, false),
        "the bridge's counters"
    );
    assert_eq!(
        moved(&before.1, &after.1, "eth0"),
        (true, true),
        "the container's counters"
    );

    let rules = after.2.forwarding_moved_since(&before.2);
    assert!(rules.is_empty(), "FORWARD, nat and raw: {rules:?}");
    let conntrack = host
        .host
        .run(|| std::fs::read_to_string("/proc/thread-self/net/nf_conntrack"));
    if let Ok(text) = conntrack {
        assert!(
            !text.contains("dport=8081"),
            "conntrack has no entry: {text}"
        );
    }
    let flows = daemon
        .verb(&["flows", "--port", "8081"])
        .expect("netd flows");
    assert_eq!(flows.code, 0, "{}", flows.stderr);
    assert!(
        flows.stdout.contains("198.18.0.1:8081"),
        "netd flows has it: {}",
        flows.stdout
    );
}

/// The file's text without the networks that were not built, and without their publishes.
fn only_network(config: &str, name: &str) -> String {
    let mut document: toml::Table = config.parse().expect("the lab's file");
    for (section, key) in [("network", "name"), ("publish", "network")] {
        if let Some(toml::Value::Array(entries)) = document.get_mut(section) {
            entries.retain(|entry| entry.get(key).and_then(|v| v.as_str()) == Some(name));
        }
    }
    document.to_string()
}
