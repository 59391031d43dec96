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
