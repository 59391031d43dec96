//! IPsec policies: what the kernel would encrypt or block never leaves in clear by a redirect.
//!
//! The policies are real; security associations are not needed to see that nothing leaves: a tunnel-mode policy without one
//! has the kernel hold the packet back and ask for one (net/xfrm: larval state).

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use netd::lab::{
    CLIENT, CLIENT_EXTRA, Capture, Connection, DATAGRAM, HOST, IptablesBackend, ProbeOptions,
    RuleSet, StandardHostOptions, WEB, Want, ip, tcp_probe, udp_probe,
};

use crate::world::{LONG, World, at, by, need_root};

const TUNNEL: &str = "tmpl src 198.18.0.1 dst 198.18.0.2 proto esp mode tunnel";
const TUNNEL6: &str = "tmpl src fd99::1 dst fd99::2 proto esp mode tunnel";

/// Adds or deletes policies; `false` where the kernel has no XFRM.
fn policy(world: &World, verb: &str, policies: &[String]) -> bool {
    for policy in policies {
        let arguments = format!("xfrm policy {verb} {policy}");
        let mut command = world.host.host.command("ip");
        let output = command.args(arguments.split(' ')).output().expect("ip");
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(error.contains("not supported"), "ip {arguments}: {error}");
            return false;
        }
    }
    true
}

fn out(source: impl std::fmt::Display, destination: impl std::fmt::Display, rest: &str) -> String {
    format!("src {source} dst {destination} dir out {rest}")
}

/// The selector alone, as it is deleted.
fn selector(policy: &str) -> String {
    policy
        .split(" action")
        .next()
        .and_then(|p| p.split(" tmpl").next())
        .expect("text")
        .trim_end()
        .to_owned()
}

fn two_uplinks() -> StandardHostOptions {
    StandardHostOptions {
        extra_uplink: true,
        ..Default::default()
    }
}

/// A container's flows to `covered` are refused and never seen in clear, those to `free` go on, and once the policies are
/// gone all is as before.
fn refused_and_never_in_clear(world: &World, policies: &[String], covered: IpAddr, free: IpAddr) {
    let n2b = &world.host.container("n2b").namespace;
    let quick = ProbeOptions::default().timeout(Duration::from_millis(300));
    let patient = ProbeOptions::default().timeout(LONG);
    let reaches = |to: IpAddr, options: &ProbeOptions| {
        udp_probe(n2b, at(to, DATAGRAM), options).report().is_some()
    };
    let name = &policies[0];
    world.check(
        &format!("{name}: before"),
        true,
        "no answer",
        reaches(covered, &patient),
    );
    let mut living = Connection::open(n2b, at(covered, WEB), &patient).expect("a connection");
    assert!(
        living.exchange(64, LONG).report().is_some(),
        "the connection works"
    );
    assert!(policy(world, "add", policies));

    let added = Instant::now();
    while reaches(covered, &quick) && added.elapsed() < LONG {}
    // The last probe waits for its answer in vain.
    let heard = added.elapsed().saturating_sub(quick.timeout);
    world.check(
        &format!("{name}: until netd has heard"),
        "less than a second",
        format!("{heard:?}"),
        heard < Duration::from_secs(1),
    );
    // What was there until netd heard of the policy may have been seen; nothing may be from now on.
    let capture = Capture::filtered(&world.host.client, "eth0", move |frame| {
        !frame.info.outgoing()
            && frame.decoded.destination == Some(covered)
            && frame.decoded.ports.is_some()
    })
    .expect("capture");
    for _ in 0..3 {
        world.check(
            &format!("{name}: UDP"),
            "refused",
            "an answer",
            !reaches(covered, &quick),
        );
        let got = tcp_probe(n2b, at(covered, WEB), &quick);
        world.check(
            &format!("{name}: TCP"),
            "refused",
            &got,
            got.report().is_none(),
        );
    }
    let got = living.exchange(64, Duration::from_millis(500));
    world.check(
        &format!("{name}: a living connection"),
        "silence",
        &got,
        got.report().is_none(),
    );
    world.check(
        &format!("{name}: others"),
        true,
        "no answer",
        reaches(free, &patient),
    );
    let seen = capture.stop();
    let clear = seen
        .iter()
        .filter(|frame| frame.decoded.ethertype != 0)
        .count();
    world.check(
        &format!("{name}: frames in clear"),
        0,
        format!("{clear}, first {:?}", seen.first()),
        clear == 0,
    );

    let gone: Vec<_> = policies.iter().map(|policy| selector(policy)).collect();
    assert!(policy(world, "delete", &gone));
    let deadline = Instant::now() + LONG;
    let mut back = false;
    while !back && Instant::now() < deadline {
        back = reaches(covered, &quick);
    }
    world.check(&format!("{name}: after"), true, back, back);
}

#[test]
fn what_a_policy_covers_never_leaves_in_clear() {
    need_root!();
    let world = World::standard(two_uplinks());
    let probe = [out("10.9.9.9/32", "10.9.9.9/32", "action block")];
    if !policy(&world, "add", &probe) {
        println!("skipped: the kernel has no XFRM");
        return;
    }
    let (client, extra) = (IpAddr::from(CLIENT), IpAddr::from(CLIENT_EXTRA));
    // By the translated source, by the container's own, and whoever asks.
    for policies in [
        out("198.18.0.1/32", "198.18.0.2/32", "action block"),
        out("10.201.2.0/24", "198.18.0.2/32", "action block"),
        out("10.201.2.0/24", "198.18.0.2/32", TUNNEL),
        out("0.0.0.0/0", "198.18.0.2/32", TUNNEL),
    ] {
        refused_and_never_in_clear(&world, &[policies], client, extra);
    }
    refused_and_never_in_clear(
        &world,
        &[out("fd00:201:2::/64", "fd99::2/128", TUNNEL6)],
        ip("fd99::2"),
        ip("fd98::2"),
    );
    let drops = world.daemon.verb(&["drops"]).expect("drops").stdout;
    world.check(
        "the reason",
        "ipsec-policy",
        &drops,
        drops.contains("ipsec-policy"),
    );
    world.end();
}

#[test]
fn an_exception_from_a_policy_is_served() {
    need_root!();
    let world = World::standard(StandardHostOptions::default());
    let wide = out(
        "0.0.0.0/0",
        "198.18.0.0/24",
        &format!("priority 20 {TUNNEL}"),
    );
    let narrow =
        "src 0.0.0.0/0 dst 198.18.0.2/32 proto udp dir out priority 10 action allow".to_owned();
    if !policy(&world, "add", &[narrow, wide]) {
        println!("skipped: the kernel has no XFRM");
        return;
    }
    let n2b = &world.host.container("n2b").namespace;
    let options = ProbeOptions::default().timeout(LONG);
    let quick = ProbeOptions::default().timeout(Duration::from_millis(300));
    let to: SocketAddr = at(CLIENT, WEB);
    let deadline = Instant::now() + LONG;
    while tcp_probe(n2b, to, &quick).report().is_some() && Instant::now() < deadline {}
    let got = tcp_probe(n2b, to, &quick);
    world.check(
        "TCP, which the wide policy covers",
        "refused",
        &got,
        got.report().is_none(),
    );
    let got = udp_probe(n2b, at(CLIENT, DATAGRAM), &options);
    world.outcome("UDP, which is excepted", by("client", HOST), got);
    world.end();
}

/// `ip xfrm policy setdefault out block`: what no policy matches is refused too.
#[test]
fn the_default_policy_counts() {
    need_root!();
    let world = World::standard(StandardHostOptions::default());
    let set_default = |to: &str| {
        let mut command = world.host.host.command("ip");
        let command = command.args(["xfrm", "policy", "setdefault", "out", to]);
        command.output().expect("ip").status.success()
    };
    let n2b = &world.host.container("n2b").namespace;
    let options = ProbeOptions::default().timeout(LONG);
    let quick = ProbeOptions::default().timeout(Duration::from_millis(300));
    let ask = |options: &ProbeOptions| udp_probe(n2b, at(CLIENT, DATAGRAM), options);
    world.outcome("before", by("client", HOST), ask(&options));
    if !set_default("block") {
        println!("skipped: the kernel has no default policy (Linux 5.15)");
        return;
    }
    let deadline = Instant::now() + LONG;
    while ask(&quick).report().is_some() && Instant::now() < deadline {}
    let got = ask(&quick);
    world.check(
        "blocked by default",
        "refused",
        &got,
        got.report().is_none(),
    );
    assert!(set_default("accept"));
    let deadline = Instant::now() + LONG;
    while ask(&quick).report().is_none() && Instant::now() < deadline {}
    world.outcome("accepted again", by("client", HOST), ask(&options));
    world.end();
}

#[test]
fn replies_of_a_published_port_do_not_leave_in_clear() {
    need_root!();
    let world = World::standard(two_uplinks());
    let covers = [out("198.18.0.1/32", "198.18.0.2/32", TUNNEL)];
    let options = ProbeOptions::default().timeout(LONG);
    let quick = ProbeOptions::default().timeout(Duration::from_millis(300));
    let ask = |options: &ProbeOptions| tcp_probe(&world.host.client, at(HOST, 8083), options);
    world.outcome("before", by("n2a", CLIENT), ask(&options));
    if !policy(&world, "add", &covers) {
        println!("skipped: the kernel has no XFRM");
        return;
    }
    let deadline = Instant::now() + LONG;
    while ask(&quick).report().is_some() && Instant::now() < deadline {}
    let capture = Capture::filtered(&world.host.client, "eth0", |frame| {
        !frame.info.outgoing()
            && frame
                .decoded
                .ports
                .is_some_and(|(source, _)| source == 8083)
    })
    .expect("capture");
    world.outcome("with the policy", Want::Nothing, ask(&quick));
    let seen = capture.stop();
    world.check("answers in clear", 0, seen.len(), seen.is_empty());
    let other = tcp_probe(
        world.host.namespace("extra"),
        at(netd::lab::HOST_EXTRA, 8081),
        &options,
    );
    world.outcome(
        "a client that no policy covers",
        by("c0", CLIENT_EXTRA),
        other,
    );
    world.end();
}

/// The kernel gets the packet untouched: it is the one who knows what to do.
#[test]
fn accelerate_mode_leaves_it_to_the_kernel() {
    need_root!();
    let world = World::new(
        StandardHostOptions::default(),
        |host| {
            host.host
                .load_rules(&RuleSet::docker_29(), IptablesBackend::Nft)
                .expect("Docker's rules");
        },
        |toml| toml.host("mode", "\"accelerate\""),
    );
    let n2b = &world.host.container("n2b").namespace;
    let options = ProbeOptions::default().timeout(LONG);
    let quick = ProbeOptions::default().timeout(Duration::from_millis(300));
    let ask = |options: &ProbeOptions| udp_probe(n2b, at(CLIENT, DATAGRAM), options);
    world.outcome("before", by("client", HOST), ask(&options));
    let covers = out("0.0.0.0/0", "198.18.0.2/32", TUNNEL);
    if !policy(&world, "add", std::slice::from_ref(&covers)) {
        println!("skipped: the kernel has no XFRM");
        return;
    }
    let deadline = Instant::now() + LONG;
    while ask(&quick).report().is_some() && Instant::now() < deadline {}
    let capture = Capture::filtered(&world.host.client, "eth0", |frame| {
        !frame.info.outgoing() && frame.decoded.ports.is_some()
    })
    .expect("capture");
    let held_back = || -> u64 {
        // XfrmOutNoStates, XfrmOutPolBlock, XfrmOutError …: what the kernel did not send for a policy's sake.
        let statistics = world
            .host
            .host
            .run(|| std::fs::read_to_string("/proc/thread-self/net/xfrm_stat"));
        let statistics = statistics.expect("the kernel's XFRM statistics");
        let lines = statistics
            .lines()
            .filter(|line| line.starts_with("XfrmOut"));
        lines
            .filter_map(|line| line.split_whitespace().last()?.parse::<u64>().ok())
            .sum()
    };
    let before = held_back();
    let got = ask(&quick);
    world.check("with the policy", "silence", &got, got.report().is_none());
    let seen = capture.stop();
    world.check(
        "frames in clear",
        0,
        format!("{:?}", seen.first()),
        seen.is_empty(),
    );
    let after = held_back();
    world.check(
        "the kernel had the packet, and held it back",
        "more",
        after,
        after > before,
    );
    let drops = world.daemon.verb(&["drops"]).expect("drops").stdout;
    world.check(
        "netd drops it",
        "never",
        &drops,
        !drops.contains("ipsec-policy"),
    );
    assert!(policy(&world, "delete", &[selector(&covers)]));
    let deadline = Instant::now() + LONG;
    while ask(&quick).report().is_none() && Instant::now() < deadline {}
    world.outcome("after", by("client", HOST), ask(&options));
    world.end();
}
