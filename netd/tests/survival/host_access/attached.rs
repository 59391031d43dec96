//! The hooks themselves: through restarts, without tcx, and on a host without cgroup2.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use netd::lab::{
    Daemon, Direction, ProbeOptions, StandardHost, StandardHostOptions, bulk_transfer, udp_probe,
};
use nix::sys::signal::Signal;

use super::sockets::{Bound, Way, ask, ask_stream, open, shown};
use super::{ANY, LOOPBACK, ONE, World, at, need_root};

const LONG: Duration = Duration::from_secs(5);

/// kill -9, restart and takeover: a connection lives on, and of those that are opened all the time
/// none fails. The programs are replaced in their links.
#[test]
fn restarts_are_not_noticed() {
    need_root!();
    let mut world = World::new("replace");
    let host = world.host.host.clone();
    let to = at("127.0.0.1", ANY);
    let (mut stream, socket) = host.run(|| {
        let socket = open(Way::Tcp, &Bound::No, to).expect("a socket");
        socket.connect(&to.into()).expect("a connection");
        socket.set_read_timeout(Some(LONG)).expect("a timeout");
        (socket.try_clone().expect("a clone").into(), socket)
    });
    let over = AtomicBool::new(false);
    let opened = thread::scope(|scope| {
        let opener = scope.spawn(|| {
            host.run(|| {
                let mut opened = 0;
                while !over.load(Ordering::Relaxed) {
                    for way in [Way::Tcp, Way::Connected, Way::Unconnected] {
                        let answer = ask(way, &Bound::No, to, LONG);
                        let answer = answer.unwrap_or_else(|e| panic!("{way:?} {opened}: {e}"));
                        assert_eq!(answer.report.server, "n2a", "{way:?} {opened}");
                        assert!(answer.shown.iter().all(|one| *one == to), "{answer:?}");
                        opened += 1;
                    }
                    thread::sleep(Duration::from_millis(10));
                }
                opened
            })
        });
        for _ in 0..3 {
            world.daemon.stop(Signal::SIGKILL).expect("killed");
            assert_eq!(ask_stream(&mut stream).expect("an answer").server, "n2a");
            world.daemon.run(&[]).expect("the daemon returns");
            world
                .daemon
                .run(&["--takeover"])
                .expect("another takes over");
            assert_eq!(ask_stream(&mut stream).expect("an answer").server, "n2a");
            assert_eq!(shown(&socket).expect("a peer"), to);
        }
        over.store(true, Ordering::Relaxed);
        opener.join().expect("the opener")
    });
    assert!(opened > 100, "{opened}");
    println!("{opened} opened");
    world.end();
}

/// Segments of 64 KiB that the host's veth cuts, datagrams in fragments, of which only the first has
/// ports, and checksums with and without the device's help.
#[test]
fn large_segments_and_fragments() {
    need_root!();
    for tx_offload in [true, false] {
        let options = StandardHostOptions {
            tx_offload,
            ..StandardHostOptions::default()
        };
        let host = StandardHost::build(options).expect("the standard host");
        let toml = World::toml(&host, "replace", &[ANY]);
        let program = Path::new(env!("CARGO_BIN_EXE_netd"));
        let daemon = Daemon::start(program, &host.host, &toml).expect("it runs");
        let options = ProbeOptions::default().timeout(LONG);
        for to in ["127.0.0.1", "::1", "::ffff:198.18.0.1"] {
            for direction in [Direction::Upload, Direction::Download] {
                let moved = bulk_transfer(&host.host, at(to, ANY), 32 << 20, direction, &options);
                assert!(moved.is_ok(), "{to} {direction:?} {tx_offload}: {moved:?}");
            }
            for payload in [1400, 1480, 4000, 20000] {
                let outcome = udp_probe(&host.host, at(to, ANY), &options.clone().payload(payload));
                assert!(
                    outcome.answered(),
                    "{to} {payload} {tx_offload}: {outcome:?}"
                );
                let server = outcome.report().map(|report| &*report.server);
                assert_eq!(server, Some("n2a"));
            }
        }
        daemon.unload().expect("unload");
    }
}

/// Where packets meet programs at clsact filters, the host's sockets do the same.
#[test]
fn without_tcx() {
    need_root!();
    let host = StandardHost::build(StandardHostOptions::default()).expect("the standard host");
    let toml = World::toml(&host, "replace", &[ANY, ONE, LOOPBACK]);
    let program = Path::new(env!("CARGO_BIN_EXE_netd"));
    let mut daemon = Daemon::prepare(program, &host.host, &toml).expect("a daemon");
    daemon.run(&["--no-tcx"]).expect("it runs");
    for (to, port, server) in [
        ("127.0.0.1", ANY, Some("n2a")),
        ("::1", ANY, Some("n2a")),
        ("fd99::1", ONE, Some("n2a")),
        ("::ffff:127.0.0.1", LOOPBACK, Some("n2a")),
        ("198.18.0.1", LOOPBACK, None),
    ] {
        for way in [Way::Tcp, Way::Connected, Way::Unconnected] {
            let patience = if server.is_some() {
                LONG
            } else {
                Duration::from_millis(300)
            };
            let asked = host
                .host
                .run(|| ask(way, &Bound::No, at(to, port), patience));
            let got = asked.as_ref().ok().map(|answer| &*answer.report.server);
            assert_eq!(got, server, "{way:?} {to}:{port}: {asked:?}");
        }
    }
    daemon.unload().expect("unload");
}

/// No cgroup2: the daemon says so and goes on; only the host's own programs are left out.
#[test]
fn without_cgroup2() {
    need_root!();
    let host = StandardHost::build(StandardHostOptions::default()).expect("the standard host");
    let toml = World::toml(&host, "replace", &[ANY]);
    // A mount namespace of its own, where every cgroup2 mount is gone.
    let script = format!(
        "#!/bin/sh\nexec unshare --mount sh -c '\n\
         awk \"\\$3 == \\\"cgroup2\\\" {{ print \\$2 }}\" /proc/mounts | while read at; do umount -l \
         \"$at\"; done\nexec {} \"$@\"' netd \"$@\"\n",
        env!("CARGO_BIN_EXE_netd")
    );
    let program = std::env::temp_dir().join(format!("netd-no-cgroup2-{}", std::process::id()));
    let written = std::fs::write(&program, script)
        .and_then(|()| std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)));
    written.expect("a script");
    let daemon = Daemon::start(&program, &host.host, &toml);
    let asked = |namespace: &str, to: &str| {
        let namespace = host.namespace(namespace);
        namespace.run(|| ask(Way::Tcp, &Bound::No, at(to, ANY), LONG))
    };
    let result = daemon.map(|daemon| {
        let status = daemon.verb(&["status"]).expect("status");
        (
            asked("host", "127.0.0.1"),
            asked("client", "198.18.0.1"),
            status,
            daemon,
        )
    });
    std::fs::remove_file(&program).expect("removed");
    let (from_host, from_client, status, daemon) = result.expect("it runs all the same");
    assert_eq!(
        from_host.expect_err("left to the kernel").kind(),
        io::ErrorKind::ConnectionRefused
    );
    assert_eq!(from_client.expect("an answer").report.server, "n2a");
    assert!(
        status.stdout.contains("cgroup2 is not mounted"),
        "{}",
        status.stdout
    );
    assert!(
        status.stdout.contains("no host access"),
        "{}",
        status.stdout
    );
    assert!(
        !status.stdout.contains("the root control group"),
        "{}",
        status.stdout
    );
    drop(daemon);
}
