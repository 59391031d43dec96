//! The lab itself, in real namespaces: what it promises to the tests that stand on it.

use std::net::SocketAddr;
use std::time::Duration;

use netd::lab::*;

/// Ends the test with a word when it cannot run here.
macro_rules! need_root {
    () => {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: needs root");
            return Ok(());
        }
    };
}

type TestResult = Result<(), LabError>;

fn at(address: &str) -> SocketAddr {
    address.parse().unwrap_or_else(|e| panic!("{address}: {e}"))
}

/// Two namespaces on one veth pair: 198.18.0.1 and fd99::1 in the first, .2 and ::2 in the second.
fn pair() -> Result<(Namespace, Namespace), LabError> {
    let (left, right) = (Namespace::create("left")?, Namespace::create("right")?);
    add_veth(&VethEnd::new(&left, "up0"), &VethEnd::new(&right, "eth0"))?;
    for (namespace, device, host) in [(&left, "up0", 1), (&right, "eth0", 2)] {
        namespace.add_address(device, net(&format!("198.18.0.{host}/24")))?;
        namespace.add_address(device, net(&format!("fd99::{host}/64")))?;
        namespace.set_up(device)?;
    }
    left.wait_ready("up0")?;
    right.wait_ready("eth0")?;
    Ok((left, right))
}

#[test]
fn a_namespace_is_found_while_it_lives_and_gone_after() -> TestResult {
    need_root!();
    let namespace = Namespace::create("alone")?;
    let path = namespace.path();
    assert!(path.exists());
    let outside = std::fs::read_link("/proc/self/ns/net").expect("own namespace");
    let inside = namespace
        .run(|| std::fs::read_link("/proc/thread-self/ns/net"))
        .expect("namespace");
    assert_ne!(inside, outside);
    assert_eq!(
        std::fs::read_link("/proc/thread-self/ns/net").expect("own namespace"),
        outside
    );
    let output = namespace
        .command("readlink")
        .arg("/proc/self/ns/net")
        .output()
        .expect("readlink");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        inside.to_string_lossy()
    );
    drop(namespace);
    assert!(!path.exists());
    Ok(())
}

#[test]
fn a_panic_removes_the_namespace() -> TestResult {
    need_root!();
    let namespace = Namespace::create("panics")?;
    let path = namespace.path();
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _inside = namespace;
        panic!("on purpose");
    }));
    assert!(caught.is_err());
    assert!(!path.exists());
    Ok(())
}

#[test]
fn servers_say_who_asked() -> TestResult {
    need_root!();
    let (left, right) = pair()?;
    let listens = [Listen::tcp_any(80), Listen::udp_any(5000)].concat();
    let server = Server::start(&right, "right", &listens)?;
    let options = ProbeOptions::default();
    for (address, own) in [
        ("198.18.0.2", ip("198.18.0.1")),
        ("[fd99::2]", ip("fd99::1")),
    ] {
        let tcp = tcp_probe(&left, at(&format!("{address}:80")), &options);
        let udp = udp_probe(&left, at(&format!("{address}:5000")), &options);
        for outcome in [&tcp, &udp] {
            assert!(
                Expect::AnswerFrom(own).matches(outcome),
                "{address}: {outcome}"
            );
            let report = outcome.report().expect("report");
            assert_eq!(report.server, "right");
            assert_eq!(report.local.ip(), at(&format!("{address}:1")).ip());
        }
        let big = tcp_probe(
            &left,
            at(&format!("{address}:80")),
            &options.clone().payload(1 << 20),
        );
        assert!(big.answered(), "{big}");
        let closed = tcp_probe(&left, at(&format!("{address}:81")), &options);
        assert_eq!(closed, Outcome::Refused);
        let closed = udp_probe(&left, at(&format!("{address}:5001")), &options);
        assert_eq!(closed, Outcome::Refused);
    }
    assert_eq!(server.requests(), 6);
    let nowhere = tcp_probe(&left, at("203.0.113.1:80"), &options);
    assert!(Expect::Unreachable.matches(&nowhere), "{nowhere}");
    let quick = options.timeout(Duration::from_millis(200));
    let silent = tcp_probe(&left, at("198.18.0.99:80"), &quick);
    assert!(Expect::NoAnswer.matches(&silent), "{silent}");
    server.stop();
    let stopped = tcp_probe(&left, at("198.18.0.2:80"), &quick);
    assert_eq!(stopped, Outcome::Refused);
    Ok(())
}

#[test]
fn an_injected_frame_is_captured_as_it_was_sent() -> TestResult {
    need_root!();
    let (left, right) = pair()?;
    let capture = Capture::start(&right, "eth0")?;
    let (source, destination) = (left.mac("up0")?, right.mac("eth0")?);
    let plain = Frame::ethernet(source, destination)
        .ip([198, 18, 0, 1], [198, 18, 0, 2])
        .udp(4242, 9)
        .payload(b"one");
    let tagged = plain
        .clone()
        .vlan(frame::ETHERTYPE_SERVICE_VLAN, 0)
        .vlan(frame::ETHERTYPE_VLAN, 5)
        .payload(b"two");
    inject(&left, "up0", &[plain.build(), tagged.build()])?;
    let wait = Duration::from_secs(2);
    let first = capture
        .wait_for(wait, |frame| frame.decoded.payload == b"one")
        .expect("the plain frame");
    assert_eq!(first.bytes, plain.build());
    assert_eq!(
        (first.decoded.checksum, first.info.vlan),
        (Some(true), None)
    );
    let second = capture
        .wait_for(wait, |frame| frame.decoded.payload == b"two")
        .expect("the tagged frame");
    // The kernel takes the outer tag out of the bytes.
    assert_eq!(second.info.vlan, Some((frame::ETHERTYPE_SERVICE_VLAN, 0)));
    assert_eq!(second.decoded.tags, [(frame::ETHERTYPE_VLAN, 5)]);
    Ok(())
}

/// Subnets of the standard host that need masquerade, as iptables would have it.
const MASQUERADE: &str = "*nat\n-A POSTROUTING -s 10.200.0.0/24 ! -o br-def -j MASQUERADE\n\
                          -A POSTROUTING -s 10.201.0.0/16 -o up0 -j MASQUERADE\nCOMMIT\n";

#[test]
fn with_masquerade_nothing_leaks_and_without_it_the_guard_says_so() -> TestResult {
    need_root!();
    if !IptablesBackend::Default.installed() {
        println!("skipped: iptables is not installed");
        return Ok(());
    }
    let to_client = SocketAddr::new(CLIENT.into(), WEB);
    let options = ProbeOptions::default();
    for (masquerade, own) in [(true, HOST.into()), (false, ip("10.200.0.2"))] {
        let rules = if masquerade {
            vec![RuleSet::new("masquerade", MASQUERADE)]
        } else {
            Vec::new()
        };
        let host = StandardHost::build(StandardHostOptions {
            forwarding: true,
            rules,
            ..Default::default()
        })?;
        let guards = host.leak_guards()?;
        let outcome = host.tcp("c0", to_client, &options);
        assert!(
            Expect::AnswerFrom(own).matches(&outcome),
            "masquerade {masquerade}: {outcome}"
        );
        for guard in guards {
            assert!(guard.seen() > 0);
            let verdict = guard.finish();
            match masquerade {
                true => assert_eq!(verdict, Ok(())),
                false => {
                    let list = verdict.expect_err("the guard must see the container's address");
                    assert!(list.contains("TCP 10.200.0.2 port"), "{list}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn the_standard_host_is_closed_by_itself_and_open_with_forwarding() -> TestResult {
    need_root!();
    let options = ProbeOptions::default().timeout(Duration::from_millis(600));
    let (web, datagram) = (
        |address| SocketAddr::new(address, WEB),
        |address| SocketAddr::new(address, DATAGRAM),
    );
    for tx_offload in [true, false] {
        let host = StandardHost::build(StandardHostOptions {
            tx_offload,
            ..Default::default()
        })?;
        for container in &host.containers {
            let offload = container
                .namespace
                .offload("eth0", Offload::TransmitChecksum)?;
            assert_eq!(offload, tx_offload, "{}", container.name);
            for address in [Some(container.v4), container.v6].into_iter().flatten() {
                // The host and the neighbour reach everyone; nobody is reached through the host.
                let neighbour = host
                    .containers
                    .iter()
                    .find(|other| {
                        other.network == container.network && other.name != container.name
                    })
                    .expect("two containers in each network");
                let gateway = StandardHost::network(container.network);
                let gateway = if address.is_ipv4() {
                    Some(gateway.gateway())
                } else {
                    gateway.gateway6()
                };
                let expected = Expect::AnswerFrom(gateway.expect("gateway"));
                let outcome = host.tcp("host", web(address), &options);
                assert!(
                    expected.matches(&outcome),
                    "host to {}: {outcome}",
                    container.name
                );
                let outcome = host.udp(neighbour.name, datagram(address), &options);
                assert!(
                    outcome.answered(),
                    "{} to {}: {outcome}",
                    neighbour.name,
                    container.name
                );
                let outcome = host.ping(neighbour.name, address, &options);
                assert_eq!(outcome.to_string(), "ok");
            }
        }
        let c0 = host.container("c0");
        let outcome = host.tcp("client", web(c0.v4), &options);
        assert_eq!(outcome, Outcome::Timeout);
        assert_eq!(host.ping("client", c0.v4, &options), Outcome::Timeout);
        // The control: one switch, and the same probes pass.
        host.host.set_sysctl("net/ipv4/ip_forward", 1)?;
        let outcome = host.tcp("client", web(c0.v4), &options);
        assert!(
            Expect::AnswerFrom(CLIENT.into()).matches(&outcome),
            "{outcome}"
        );
        assert!(host.ping("client", c0.v4, &options).answered());
        // An internal network has no way back.
        let outcome = host.tcp("client", web(host.container("n3a").v4), &options);
        assert!(Expect::NoAnswer.matches(&outcome), "{outcome}");
    }
    Ok(())
}

#[test]
fn counters_of_the_rules_move_with_forwarded_packets_only() -> TestResult {
    need_root!();
    for backend in [IptablesBackend::Legacy, IptablesBackend::Nft] {
        if !backend.installed() {
            println!("skipped: iptables of {backend:?} is not installed");
            continue;
        }
        let rules = vec![
            RuleSet::docker_29(),
            RuleSet::oracle_cloud(),
            RuleSet::tailscale(),
            RuleSet::ufw(),
        ];
        let host = StandardHost::build(StandardHostOptions {
            forwarding: true,
            rules,
            backend,
            ..Default::default()
        })?;
        let options = ProbeOptions::default().timeout(Duration::from_millis(600));
        // Neighbours talk through the bridge alone, unless br_netfilter takes them past iptables.
        let c0b = SocketAddr::new(host.container("c0b").v4, WEB);
        for bridge_netfilter in [false, true] {
            if !host.host.set_bridge_netfilter(bridge_netfilter)? {
                println!("skipped: the kernel has no br_netfilter");
                continue;
            }
            let before = host.host.counters()?;
            assert!(before.len() > 50, "{}", before.len());
            assert!(host.tcp("c0", c0b, &options).answered());
            let moved = host.host.counters()?.forwarding_moved_since(&before);
            assert_eq!(!moved.is_empty(), bridge_netfilter, "{backend:?} {moved:?}");
        }
        let before = host.host.counters()?;
        let c0 = SocketAddr::new(host.container("c0").v4, WEB);
        assert!(Expect::NoAnswer.matches(&host.tcp("client", c0, &options)));
        let moved = host.host.counters()?.forwarding_moved_since(&before);
        assert!(
            !moved.is_empty(),
            "{backend:?}: a routed packet must move a counter"
        );
    }
    Ok(())
}

#[test]
fn every_rule_set_loads_with_every_backend() -> TestResult {
    need_root!();
    let sets = [
        RuleSet::docker_20_10(),
        RuleSet::docker_29(),
        RuleSet::oracle_cloud(),
        RuleSet::tailscale(),
        RuleSet::ufw(),
        RuleSet::wg_quick(),
        RuleSet::forward_drop(),
        RuleSet::forward_drop().ipv6(),
    ];
    for backend in [IptablesBackend::Legacy, IptablesBackend::Nft] {
        if !backend.installed() {
            println!("skipped: iptables of {backend:?} is not installed");
            continue;
        }
        for rules in &sets {
            Namespace::create("rules")?.load_rules(rules, backend)?;
        }
        let refused = Namespace::create("rules")?
            .load_rules(&RuleSet::new("bad", "*filter\n-A NO\n"), backend);
        assert!(
            matches!(refused, Err(LabError::Program { .. })),
            "{refused:?}"
        );
    }
    Ok(())
}

#[test]
fn bulk_and_streams_are_counted() -> TestResult {
    need_root!();
    let (left, right) = pair()?;
    let _server = Server::start(
        &right,
        "right",
        &[Listen::tcp_any(80), Listen::udp_any(5000)].concat(),
    )?;
    let options = ProbeOptions::default();
    for direction in [Direction::Upload, Direction::Download] {
        let bytes = (4 << 20) + 5;
        let transfer = bulk_transfer(&left, at("[fd99::2]:80"), bytes, direction, &options);
        assert_eq!(
            transfer.map(|transfer| transfer.bytes),
            Ok(bytes),
            "{direction:?}"
        );
    }
    let stream = UdpStream::start(
        &left,
        at("198.18.0.2:5000"),
        Duration::from_millis(2),
        &options,
    )?;
    let mut connection = Connection::open(&left, at("198.18.0.2:80"), &options).expect("connect");
    assert!(connection.exchange(100, options.timeout).answered());
    std::thread::sleep(Duration::from_millis(200));
    let report = stream.stop();
    assert!(report.sent >= 10 && report.lost() == 0, "{report}");
    // The control: with the far end down for a while the same stream counts losses.
    let stream = UdpStream::start(
        &left,
        at("198.18.0.2:5000"),
        Duration::from_millis(2),
        &options,
    )?;
    std::thread::sleep(Duration::from_millis(50));
    right.set_down("eth0")?;
    std::thread::sleep(Duration::from_millis(50));
    right.set_up("eth0")?;
    right.wait_ready("eth0")?;
    std::thread::sleep(Duration::from_millis(50));
    let report = stream.stop();
    assert!(report.lost() > 0 && report.received > 0, "{report}");
    // The connection outlives the gap.
    assert!(connection.exchange(100, Duration::from_secs(5)).answered());
    Ok(())
}
