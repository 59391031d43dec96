//! Programs of the host that hold a published port: they keep it, unless the publish overrides or
//! they are the Engine's own.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use netd::lab::{CLIENT, Listen, Namespace, Process, Server};

use super::sockets::{Bound, Way, ask};
use super::{World, at, ip, need_root, published};

const LONG: Duration = Duration::from_secs(5);
const WAYS: [Way; 3] = [Way::Tcp, Way::Connected, Way::Unconnected];

/// A program of the host on every address of the port, or on one: asked at each address, at the
/// port of a publish that leaves it alone and of one that overrides.
#[test]
fn a_program_of_the_host_keeps_its_port_unless_the_publish_overrides() {
    need_root!();
    const KEEPS: u16 = 7011;
    const OVERRIDES: u16 = 7012;
    let mut servers = Vec::new();
    let world = World::with(
        "replace",
        |host| {
            for port in [KEEPS, OVERRIDES] {
                let listens = [
                    Listen::tcp(at("127.0.0.1", port)),
                    Listen::udp(at("127.0.0.1", port)),
                ];
                let server = Server::start(&host.host, "program", &listens);
                servers.push(server.expect("a server"));
            }
        },
        "",
    );
    let more = published(&world.host, "0.0.0.0", KEEPS, "")
        + &published(&world.host, "0.0.0.0", OVERRIDES, "override = true\n");
    let toml = World::toml(&world.host, "replace", &[]) + &more;
    assert_eq!(world.daemon.reload(&toml).expect("reload").code, 0);
    for (port, to, server) in [
        (KEEPS, "127.0.0.1", "program"),
        (KEEPS, "0.0.0.0", "program"),
        (KEEPS, "::ffff:127.0.0.1", "program"),
        // It listens on 127.0.0.1 alone.
        (KEEPS, "127.0.0.2", "n2a"),
        (KEEPS, "198.18.0.1", "n2a"),
        (KEEPS, "::ffff:198.18.0.1", "n2a"),
        (OVERRIDES, "127.0.0.1", "n2a"),
        (OVERRIDES, "0.0.0.0", "n2a"),
        (OVERRIDES, "198.18.0.1", "n2a"),
    ] {
        for way in WAYS {
            let asked = world
                .host
                .host
                .run(|| ask(way, &Bound::No, at(to, port), LONG));
            let answer = asked.unwrap_or_else(|error| panic!("{way:?} {to}:{port}: {error}"));
            assert_eq!(answer.report.server, server, "{way:?} {to}:{port}");
        }
    }
    drop(servers);
    world.end();
}

/// A server of the host answers clients of the host, whose own ports lie in a published range that
/// overrides: its answers are not taken for requests.
#[test]
fn answers_to_clients_in_a_published_range_arrive() {
    need_root!();
    const SERVED: u16 = 9000;
    let world = World::new("replace");
    let n2a = world.host.container("n2a");
    let range = format!(
        "\n[[publish]]\nnetwork = \"n2\"\ncontainer = \"{}\"\nprotocol = \"udp\"\n\
         host = \"0.0.0.0\"\nhost_ports = \"40000-60000\"\ncontainer_ports = \"20000-40000\"\n",
        n2a.v4
    );
    for (more, ways) in [
        ("", &WAYS[1..]),
        // Then only a connected client can be told from a server.
        ("override = true\n", &WAYS[1..2]),
    ] {
        let toml = World::toml(&world.host, "replace", &[]) + &range + more;
        assert_eq!(world.daemon.reload(&toml).expect("reload").code, 0);
        for way in ways {
            let bound = Bound::Address(at("198.18.0.1", 45000));
            let to = at("198.18.0.1", SERVED);
            let asked = world.host.host.run(|| ask(*way, &bound, to, LONG));
            let answer = asked.unwrap_or_else(|error| panic!("{way:?} {more}: {error}"));
            assert_eq!(answer.report.server, "host", "{way:?} {more}");
        }
    }
    world.end();
}

/// The Engine's proxy holds the port: netd wins, for the host and for the network. A program with
/// another name on the next port does not lose its own.
#[test]
fn the_engines_own_proxy_loses_its_port() {
    need_root!();
    const PROXY: u16 = 7021;
    const OTHER: u16 = 7022;
    let mut held = Vec::new();
    let world = World::with(
        "accelerate",
        |host| {
            held.push(Held::start(&host.host, "docker-proxy", PROXY));
            held.push(Held::start(&host.host, "some-proxy", OTHER));
        },
        "",
    );
    let more = [PROXY, OTHER].map(|port| published(&world.host, "0.0.0.0", port, ""));
    let toml = World::toml(&world.host, "accelerate", &[]) + &more.concat();
    assert_eq!(world.daemon.reload(&toml).expect("reload").code, 0);
    for (namespace, to, peer) in [
        (&world.host.host, "127.0.0.1", ip("10.201.2.1")),
        (&world.host.host, "198.18.0.1", ip("10.201.2.1")),
        (&world.host.client, "198.18.0.1", CLIENT.into()),
    ] {
        let answer = namespace
            .run(|| ask(Way::Tcp, &Bound::No, at(to, PROXY), LONG))
            .expect("an answer");
        assert_eq!(answer.report.server, "n2a", "{to}");
        assert_eq!(answer.report.peer.ip(), peer, "{to}");
        let answer = namespace
            .run(|| ask(Way::Tcp, &Bound::No, at(to, OTHER), LONG))
            .expect("an answer");
        assert_eq!(answer.report.server, "held", "{to}");
    }
    let check = world.daemon.verb(&["check", "--host"]).expect("check");
    let warned = |port| {
        check
            .stdout
            .contains(&format!("listens on 0.0.0.0:{port}/tcp"))
    };
    assert!(warned(OTHER) && !warned(PROXY), "{}", check.stdout);
    drop(held);
    world.end();
}

/// A port of the host, held by a process with a name; it answers as `held`.
struct Held {
    process: Process,
    directory: PathBuf,
}

impl Held {
    fn start(host: &Namespace, name: &str, port: u16) -> Self {
        let listener = host.run(|| TcpListener::bind(("0.0.0.0", port)));
        let listener = listener.expect("a listener");
        let unique = format!("netd-hold-{}-{port}", std::process::id());
        let directory = std::env::temp_dir().join(unique);
        std::fs::create_dir(&directory).expect("a directory");
        let program = directory.join(name);
        symlink("/bin/sh", &program).expect("a link");
        // The shell holds the socket as its output, until its input ends.
        let output = OwnedFd::from(listener.try_clone().expect("a clone"));
        let mut command = host.command(&program);
        command
            .args(["-c", "read line"])
            .stdin(Stdio::piped())
            .stdout(output);
        let process = host.spawn(command).expect("a process");
        std::thread::spawn(move || {
            while let Ok((mut stream, peer)) = listener.accept() {
                let report = format!("server=held peer={peer} local={peer}\n");
                let _ = stream.write_all(report.as_bytes());
                // Closing before it has read would reset the connection.
                let _ = stream.read(&mut [0; 64]);
            }
        });
        Self { process, directory }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.process.child().stdin.take());
        let _ = self.process.wait_timeout(LONG);
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
