//! What netd says of its file and of itself, and that it leaves nothing.

use std::path::Path;
use std::time::Duration;

use netd::lab::{
    CLIENT, Daemon, HOST, Leftovers, Question, Scope, StandardHost, StandardHostOptions, WEB, Way,
};
use nix::sys::signal::Signal;

use super::world::{Toml, World, at, by, need_root, program};

fn some(host: &StandardHost) -> Vec<Question> {
    let q = Question::new;
    vec![
        q("client", Way::Tcp, at(HOST, 8083), by("n2a", CLIENT)),
        q("c0", Way::Tcp, at(CLIENT, WEB), by("client", HOST)),
        q(
            "n2a",
            Way::Tcp,
            at(host.container("c0b").v4, WEB),
            netd::lab::Want::Nothing,
        ),
    ]
}

#[test]
fn a_bad_file_changes_nothing() {
    need_root!();
    let world = World::standard(StandardHostOptions::default());
    let standard = Toml::standard(&world.host);
    let code = |arguments: &[&str]| world.daemon.verb(arguments).expect("verb");
    let check = code(&["check"]);
    world.check("check", 0, check.code, check.code == 0);
    let questions = some(&world.host);
    world.ask("before", &questions);
    let good = standard.to_string();
    let bad = good.replacen("icc = true", "icc = \"perhaps\"", 1);
    assert_ne!(good, bad);
    let line = bad
        .lines()
        .position(|l| l.contains("perhaps"))
        .expect("the line")
        + 1;
    world.daemon.write_config(&bad).expect("write");
    for verb in ["check", "reload"] {
        let answer = code(&[verb]);
        world.check(
            &format!("{verb} of a bad file"),
            2,
            answer.code,
            answer.code == 2,
        );
        let place = format!("netd.toml:{line}:7");
        let named = answer.stderr.contains(&place);
        world.check(&format!("{verb} says where"), place, answer.stderr, named);
    }
    world.ask("still", &questions);
    // It is also what a restart finds: the last good copy serves.
    let mut world = world;
    world.daemon.stop(Signal::SIGTERM).expect("stop");
    world.ask("while no daemon runs", &questions);
    world.daemon.write_config(&good).expect("write");
    world.daemon.run(&[]).expect("run");
    world.ask("again", &questions);
    let refused = world.daemon.verb(&["unload"]).expect("unload");
    world.check("unload without --force", 1, refused.code, refused.code == 1);
    let lists =
        refused.stdout.contains("published ports") && refused.stdout.contains("masqueraded");
    world.check(
        "unload lists what would be open",
        "published ports, masqueraded networks",
        &refused.stdout,
        lists,
    );
    world.ask("not unloaded", &questions);
    world.end();
}

#[test]
fn nothing_is_left() {
    need_root!();
    let host = StandardHost::build(StandardHostOptions::default()).expect("host");
    let toml = Toml::standard(&host).to_string();
    let mut daemon = Daemon::prepare(Path::new(&program()), &host.host, &toml).expect("daemon");
    let files = daemon.files();
    let own = vec![
        daemon.pin_dir().to_owned(),
        files.lock,
        files.socket,
        files.state,
    ];
    let settings = || -> Vec<(String, String)> {
        let bridges =
            StandardHost::networks().map(|n| format!("net/ipv4/conf/{}/forwarding", n.bridge));
        let others = [
            "net/ipv4/ip_forward",
            "net/ipv4/ip_local_reserved_ports",
            "net/ipv6/conf/all/forwarding",
        ];
        let keys = bridges.into_iter().chain(others.map(str::to_owned));
        keys.map(|key| (key.clone(), host.host.sysctl(&key).expect("sysctl")))
            .collect()
    };
    let sysctls = settings();
    let before = Leftovers::take(Scope::Shared { own: own.clone() }).expect("snapshot");
    daemon.run(&[]).expect("run");
    assert_ne!(
        settings(),
        sysctls,
        "netd switches the bridges' forwarding on"
    );
    for (question, outcome) in some(&host).iter().zip(host.ask(
        &some(&host),
        Duration::from_millis(500),
        super::world::LONG,
        false,
    )) {
        assert!(
            question.want.matches(&outcome),
            "{}: {outcome}",
            question.name
        );
    }
    let during = before.differences(Duration::ZERO).expect("snapshot");
    assert!(
        during.iter().any(|line| line.contains("bpf")),
        "a snapshot that sees nothing proves nothing: {during:?}"
    );
    daemon.unload().expect("unload");
    assert_eq!(settings(), sysctls);
    let mut left = before
        .differences(Duration::from_secs(3))
        .expect("snapshot");
    // Hosts of tests that run beside this one in the same process.
    let beside = format!(" netns nd-{}-", std::process::id());
    left.retain(|line| !line.contains(&beside));
    assert!(left.is_empty(), "left behind:\n{}", left.join("\n"));
    for path in own {
        assert!(!path.exists(), "{}", path.display());
    }
}
