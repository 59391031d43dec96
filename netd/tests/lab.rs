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
            let verdict = guard.finish();
            match masquerade {
                true => assert!(verdict.is_ok_and(|seen| seen > 0)),
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
    // The control: while the far end has lost its address the same stream counts losses.
    let stream = UdpStream::start(
        &left,
        at("198.18.0.2:5000"),
        Duration::from_millis(2),
        &options,
    )?;
    std::thread::sleep(Duration::from_millis(50));
    right.delete_address("eth0", net("198.18.0.2/24"))?;
    std::thread::sleep(Duration::from_millis(50));
    right.add_address("eth0", net("198.18.0.2/24"))?;
    std::thread::sleep(Duration::from_millis(50));
    let report = stream.stop();
    assert!(report.lost() > 0 && report.received > 0, "{report}");
    // The connection outlives the gap.
    assert!(connection.exchange(100, Duration::from_secs(5)).answered());
    Ok(())
}

#[test]
fn hosts_side_by_side_do_not_meet() -> TestResult {
    need_root!();
    let first = StandardHost::build(StandardHostOptions::default())?;
    let second = StandardHost::build(StandardHostOptions {
        extra_uplink: true,
        ..Default::default()
    })?;
    let requests = |host: &StandardHost| host.servers[0].requests();
    let to_client = SocketAddr::new(CLIENT.into(), WEB);
    assert!(
        first
            .tcp("host", to_client, &ProbeOptions::default())
            .answered()
    );
    assert_eq!((requests(&first), requests(&second)), (1, 0));
    let to_extra = SocketAddr::new(CLIENT_EXTRA.into(), WEB);
    let outcome = second.tcp("host", to_extra, &ProbeOptions::default());
    assert!(
        Expect::AnswerFrom(HOST_EXTRA.into()).matches(&outcome),
        "{outcome}"
    );
    assert!(
        Expect::AnswerBy("extra".to_owned()).matches(&outcome),
        "{outcome}"
    );
    Ok(())
}

/// Not a test of its own: what the next one starts as a process, to end it by a signal.
#[test]
#[ignore = "a child process of another test"]
fn child_that_waits_in_a_namespace() -> TestResult {
    let namespace = Namespace::create("waits")?;
    let mut sleep = namespace.command("sleep");
    sleep.arg("60");
    let process = namespace.spawn(sleep)?;
    let daemon = Daemon::start(
        std::path::Path::new(env!("CARGO_BIN_EXE_netd")),
        &namespace,
        "version = 1\n",
    )?;
    println!(
        "ready {} {} {}",
        namespace.name(),
        process.pid(),
        daemon.pin_dir().display()
    );
    std::thread::sleep(Duration::from_secs(60));
    Ok(())
}

#[test]
fn a_signal_removes_the_namespace_and_its_processes() -> TestResult {
    need_root!();
    use std::io::{BufRead, BufReader};
    for signal in [
        nix::sys::signal::SIGTERM,
        nix::sys::signal::SIGINT,
        nix::sys::signal::SIGKILL,
    ] {
        let mut child = std::process::Command::new(std::env::current_exe().expect("own path"))
            .args([
                "--exact",
                "child_that_waits_in_a_namespace",
                "--ignored",
                "--nocapture",
            ])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("start the child");
        let output = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
        let ready = output
            .lines()
            .map_while(Result::ok)
            .find_map(|line| line.split_once("ready ").map(|(_, rest)| rest.to_owned()))
            .expect("the child's line");
        let mut words = ready.split(' ');
        let mut word = || words.next().expect("a name, a pid, a pin directory");
        let (name, sleeper, pins) = (word(), word(), std::path::Path::new(word()));
        let path = std::path::Path::new(NETNS_DIR).join(name);
        let files = netd::run_state::RunFiles::of(pins);
        let unique = pins.file_name().expect("a directory");
        let left = [
            path,
            pins.to_owned(),
            std::env::temp_dir().join(unique),
            files.lock,
            files.socket,
            files.state,
        ];
        for path in &left {
            assert!(path.exists(), "{}", path.display());
        }
        assert!(
            sweep_stale().iter().all(|swept| !left.contains(swept)),
            "something of a living process was swept"
        );
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id().cast_signed()), signal)
            .expect("kill");
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(child.wait().expect("wait").signal(), Some(signal as i32));
        if signal == nix::sys::signal::SIGKILL {
            // Another test's first namespace may sweep at the same time.
            sweep_stale();
        }
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        let sleeping = || {
            std::fs::read_to_string(format!("/proc/{sleeper}/stat"))
                .is_ok_and(|stat| !stat.contains(") Z "))
        };
        let left = || left.iter().find(|path| path.exists());
        while left().is_some() || sleeping() {
            assert!(
                std::time::Instant::now() < deadline,
                "{signal}: {:?} or its process {sleeper} is still there",
                left()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(())
}

#[test]
fn policy_routing_is_built() -> TestResult {
    need_root!();
    let (left, right) = pair()?;
    let _server = Server::start(&right, "right", &Listen::tcp_any(80))?;
    right.add_address("lo", net("100.64.0.1/32"))?;
    right.add_address("lo", net("fd98::1/128"))?;
    let options = ProbeOptions::default().timeout(Duration::from_millis(500));
    for (target, via, any, rule) in [
        (
            "100.64.0.1:80",
            "198.18.0.2",
            "0.0.0.0/0",
            Rule::v4(5270, 52),
        ),
        ("[fd98::1]:80", "fd99::2", "::/0", Rule::v6(5270, 52)),
    ] {
        let probe = || tcp_probe(&left, at(target), &options);
        assert!(Expect::Unreachable.matches(&probe()), "{}", probe());
        left.add_route(&Route::to(net(any)).via(ip(via)).device("up0").table(52))?;
        assert!(Expect::Unreachable.matches(&probe()), "{}", probe());
        left.add_rule(&rule)?;
        assert!(probe().answered(), "{}", probe());
        left.delete_rule(&rule)?;
        assert!(Expect::Unreachable.matches(&probe()), "{}", probe());
        // A rule that ends in blackhole stands before one that would do.
        left.add_rule(&rule)?;
        let family = if any == "::/0" {
            Rule::v6(100, 0)
        } else {
            Rule::v4(100, 0)
        };
        let target_net = IpNet::from(at(target).ip());
        left.add_rule(&family.to(target_net).action(RuleAction::Prohibit))?;
        assert_eq!(probe(), Outcome::Unreachable(nix::errno::Errno::EACCES));
    }
    Ok(())
}

#[test]
fn a_vxlan_without_transmit_offload_gives_complete_checksums() -> TestResult {
    need_root!();
    let (left, right) = pair()?;
    left.set_tx_offload("up0", false)?;
    right.set_tx_offload("eth0", false)?;
    let ends = [
        (&left, "up0", "198.18.0.1", "198.18.0.2", 1),
        (&right, "eth0", "198.18.0.2", "198.18.0.1", 2),
    ];
    for (namespace, _, local, remote, last) in ends {
        let vxlan = Vxlan {
            name: "vx0",
            vni: 7,
            local: ip(local),
            remote: ip(remote),
            port: 4789,
            udp_checksum: true,
        };
        match namespace.add_vxlan(&vxlan) {
            Err(error) if error.is_unsupported() => {
                println!("skipped: the kernel has no VXLAN");
                return Ok(());
            }
            other => other?,
        }
        namespace.set_tx_offload("vx0", false)?;
        namespace.add_address("vx0", net(&format!("10.207.0.{last}/24")))?;
        namespace.set_up("vx0")?;
        namespace.wait_ready("vx0")?;
    }
    let _server = Server::start(
        &right,
        "right",
        &[Listen::tcp_any(80), Listen::udp_any(5000)].concat(),
    )?;
    let capture = Capture::start(&right, "eth0")?;
    let outcome = udp_probe(&left, at("10.207.0.2:5000"), &ProbeOptions::default());
    assert!(
        Expect::AnswerFrom(ip("10.207.0.1")).matches(&outcome),
        "{outcome}"
    );
    assert!(
        tcp_probe(
            &left,
            at("10.207.0.2:80"),
            &ProbeOptions::default().payload(5000)
        )
        .answered()
    );
    // The outer datagrams carry whole checksums: the receiver can only have found the inner ones by summing.
    let outer: Vec<_> = capture
        .stop()
        .into_iter()
        .filter(|frame| {
            frame.decoded.ports.is_some_and(|(_, to)| to == 4789) && !frame.info.outgoing()
        })
        .collect();
    assert!(!outer.is_empty());
    for frame in outer {
        assert_eq!(frame.decoded.checksum, Some(true), "{}", frame.decoded);
        assert!(!frame.info.checksum_partial);
    }
    Ok(())
}

#[test]
fn tun_and_tap_carry_packets_both_ways() -> TestResult {
    need_root!();
    let kinds = [
        (TunKind::Tun, "tun0"),
        (TunKind::Tap, "tap0"),
        (TunKind::TapFragments, "tapf0"),
    ];
    for (kind, device) in kinds {
        let namespace = Namespace::create("tun")?;
        let tun = match Tun::create(&namespace, device, kind) {
            Err(error) if error.is_unsupported() => {
                println!("skipped: the kernel has no {kind:?}");
                continue;
            }
            other => other?,
        };
        namespace.add_address(device, net("10.206.0.1/24"))?;
        namespace.set_up(device)?;
        namespace.wait_ready(device)?;
        let peer = [2, 0, 0, 0, 0, 9];
        let info = namespace.device(device)?;
        assert_eq!(info.ethernet, kind != TunKind::Tun);
        let start = match info.mac.filter(|_| info.ethernet) {
            Some(mac) => {
                namespace.set_neighbour(device, ip("10.206.0.2"), peer)?;
                Frame::ethernet(peer, mac)
            }
            None => Frame::bare(),
        };
        let request = start
            .ip([10, 206, 0, 2], [10, 206, 0, 1])
            .echo_request(77, 1)
            .payload(&[0x33; 900])
            .build();
        if kind == TunKind::TapFragments {
            let (head, rest) = request.split_at(64);
            tun.send_pieces(&[head, &rest[..400], &rest[400..]])
                .expect("send");
        } else {
            tun.send(&request).expect("send");
        }
        // Others than the reply may come first (IPv6's own).
        let mut buffer = vec![0; 4096];
        let reply = (0..50)
            .map(|_| {
                let length = tun.receive(&mut buffer).expect("receive");
                Decoded::read(&buffer[..length], info.ethernet)
            })
            .find(|decoded| decoded.icmp == Some((0, 0)))
            .expect("an echo reply");
        assert_eq!(reply.payload, vec![0x33; 900]);
        assert_eq!(reply.checksum, Some(true));
    }
    Ok(())
}

#[test]
fn optional_devices_are_made_or_named_unsupported() -> TestResult {
    need_root!();
    let (left, right) = pair()?;
    let inside = Namespace::create("inside")?;
    match left.add_vlan("up0", "up0.5", 5, false) {
        Err(error) if error.is_unsupported() => {
            println!("skipped: the kernel has no 802.1Q ({error})")
        }
        other => {
            other?;
            left.delete_device("up0.5")?;
        }
    }
    match left.add_macvlan("up0", "mv0", &inside) {
        Err(error) if error.is_unsupported() => {
            println!("skipped: the kernel has no macvlan ({error})")
        }
        other => {
            other?;
            inside.add_address("mv0", net("198.18.0.3/24"))?;
            inside.set_up("mv0")?;
            inside.wait_ready("mv0")?;
            assert!(ping(&inside, ip("198.18.0.2"), &ProbeOptions::default()).answered());
            inside.delete_device("mv0")?;
        }
    }
    // A device moves with its peer's end still connected.
    right.move_device("eth0", &inside)?;
    inside.add_address("eth0", net("198.18.0.2/24"))?;
    inside.set_up("eth0")?;
    inside.wait_ready("eth0")?;
    assert!(ping(&left, ip("198.18.0.2"), &ProbeOptions::default()).answered());
    assert!(right.device("eth0").is_err());
    Ok(())
}

#[test]
fn isolated_ports_do_not_reach_each_other() -> TestResult {
    need_root!();
    let host = StandardHost::build(StandardHostOptions::default())?;
    let options = ProbeOptions::default().timeout(Duration::from_millis(500));
    let (c0, c0b) = (host.container("c0"), host.container("c0b"));
    assert!(host.ping("c0", c0b.v4, &options).answered());
    for container in [c0, c0b] {
        host.host.set_port_isolated(&container.host_device, true)?;
    }
    assert!(Expect::NoAnswer.matches(&host.ping("c0", c0b.v4, &options)));
    assert!(host.ping("host", c0b.v4, &options).answered());
    Ok(())
}

#[test]
fn leftovers_are_found_and_a_clean_run_leaves_none() -> TestResult {
    need_root!();
    let before = Leftovers::take(Scope::Shared { own: Vec::new() })?;
    let namespace = Namespace::create("left")?;
    let name = namespace.name().to_owned();
    let found = before.differences(Duration::ZERO)?;
    assert!(found.contains(&format!("+ netns {name}")), "{found:?}");
    drop(namespace);
    let map = bpf_map();
    let found = before.differences(Duration::ZERO)?;
    assert!(
        found
            .iter()
            .any(|line| line.starts_with("+ bpf map") && line.ends_with(" nd_leftover")),
        "{found:?}"
    );
    drop(map);
    // Other tests of this process make namespaces and links of their own meanwhile; these two must go.
    let found = before.differences(Duration::from_millis(500))?;
    let still = |line: &String| line.contains(&name) || line.contains("nd_leftover");
    assert!(!found.iter().any(still), "{found:?}");
    Ok(())
}

/// A BPF array map named `nd_leftover`, held by its descriptor.
fn bpf_map() -> std::os::fd::OwnedFd {
    use std::os::fd::FromRawFd;
    /// The part of `union bpf_attr` that BPF_MAP_CREATE reads, up to the name.
    #[repr(C)]
    struct MapCreate {
        kind: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        flags: u32,
        inner: u32,
        numa_node: u32,
        name: [u8; 16],
    }
    let attributes = MapCreate {
        kind: 2,
        key_size: 4,
        value_size: 8,
        max_entries: 1,
        flags: 0,
        inner: 0,
        numa_node: 0,
        name: *b"nd_leftover\0\0\0\0\0",
    };
    // SAFETY: the attributes outlive the call, and the descriptor it gives is ours.
    unsafe {
        let fd = libc::syscall(
            libc::SYS_bpf,
            0,
            &raw const attributes,
            size_of::<MapCreate>(),
        );
        assert!(fd >= 0, "create a map: {}", std::io::Error::last_os_error());
        std::os::fd::OwnedFd::from_raw_fd(fd as i32)
    }
}
