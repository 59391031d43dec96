//! Other people's firewalls: whatever they forbid to be forwarded, containers do not meet it.

use std::path::Path;
use std::time::Duration;

use netd::lab::{IptablesBackend, Question, RuleSet, StandardHost, StandardHostOptions, Want, Way};

use super::table::questions;
use super::world::{World, at, need_root};

/// What goes on between containers, and between them and the world; not what ends at the host.
fn of_containers(host: &StandardHost) -> Vec<Question> {
    let own = host.servers.iter().map(|server| server.name().to_owned());
    let mut own: Vec<String> = own.collect();
    own.retain(|name| name == "host");
    let mut all = questions(host);
    all.retain(|question| {
        let ends_at_host = match &question.want {
            Want::Answer(server, _) => own.contains(server),
            // The host's own address, and its refusals.
            Want::Reply => question.to.ip().to_string().ends_with(".1"),
            Want::Refused => true,
            Want::Nothing => question.from == "n3a",
        };
        question.from != "host" && !ends_at_host
    });
    all
}

fn under(rules: Vec<RuleSet>, forward_drop: bool) {
    if !IptablesBackend::Default.installed() {
        println!("skipped: iptables is not installed");
        return;
    }
    let options = StandardHostOptions {
        forwarding: true,
        rules,
        forward_drop,
        ..Default::default()
    };
    let world = World::new(
        options,
        |host| {
            // Bridged IPv4 meets them too. IPv6's neighbour discovery is left to the bridge: what is multicast stays
            // there with netd, and br_netfilter would let FORWARD drop it.
            if Path::new("/proc/sys/net/bridge").exists() {
                host.host
                    .set_sysctl("net/bridge/bridge-nf-call-iptables", 1)
                    .expect("sysctl");
            }
            // Without netd the rules see what the containers do: these counters are able to move.
            let before = host.host.counters().expect("counters");
            let neighbour = at(host.container("c0b").v4, netd::lab::WEB);
            let _ = Question::new("c0", Way::Tcp, neighbour, Want::Nothing)
                .ask(host, Duration::from_millis(500));
            let _ = Question::new(
                "c0",
                Way::Tcp,
                at(netd::lab::CLIENT, netd::lab::WEB),
                Want::Nothing,
            )
            .ask(host, Duration::from_millis(500));
            let moved = host
                .host
                .counters()
                .expect("counters")
                .forwarding_moved_since(&before);
            assert!(!moved.is_empty(), "no counter moves without netd");
        },
        |toml| toml,
    );
    // What came before has ended.
    std::thread::sleep(Duration::from_millis(200));
    let before = world.host.host.counters().expect("counters");
    world.ask("under the rules", &of_containers(&world.host));
    let moved = world
        .host
        .host
        .counters()
        .expect("counters")
        .forwarding_moved_since(&before);
    let list: Vec<String> = moved.iter().map(ToString::to_string).collect();
    world.check(
        "counters of FORWARD, nat and raw",
        "still",
        list.join("; "),
        moved.is_empty(),
    );
    world.end();
}

#[test]
fn docker_29_rules() {
    need_root!();
    under(vec![RuleSet::docker_29()], false);
}

#[test]
fn docker_20_10_rules() {
    need_root!();
    under(vec![RuleSet::docker_20_10()], false);
}

#[test]
fn oracle_cloud_rules() {
    need_root!();
    under(vec![RuleSet::oracle_cloud()], false);
}

#[test]
fn ufw_rules() {
    need_root!();
    under(vec![RuleSet::ufw()], false);
}

#[test]
fn tailscale_rules_and_forward_drop() {
    need_root!();
    under(vec![RuleSet::tailscale()], true);
}

#[test]
fn all_rules_in_the_worst_order() {
    need_root!();
    let all = vec![
        RuleSet::oracle_cloud(),
        RuleSet::ufw(),
        RuleSet::docker_29(),
        RuleSet::tailscale(),
        RuleSet::wg_quick(),
    ];
    under(all, true);
}

/// Rules that are loaded, and flushed, while netd runs.
#[test]
fn rules_that_come_and_go() {
    need_root!();
    if !IptablesBackend::Nft.installed() {
        println!("skipped: iptables-nft is not installed");
        return;
    }
    let world = World::standard(StandardHostOptions::default());
    let some = |host: &StandardHost| -> Vec<Question> {
        let mut all = of_containers(host);
        all.retain(|question| question.want != Want::Nothing);
        all
    };
    world.ask("without rules", &some(&world.host));
    for set in [RuleSet::oracle_cloud(), RuleSet::forward_drop()] {
        world
            .host
            .host
            .load_rules(&set, IptablesBackend::Nft)
            .expect("rules");
    }
    world.ask("with rules", &some(&world.host));
    world.host.host.flush_nft().expect("flush");
    world.ask("flushed", &some(&world.host));
    world.end();
}
