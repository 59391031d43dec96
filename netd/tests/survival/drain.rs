//! And back: `netd unload --drain` hands over to the kernel's own rules, and no connection breaks.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use netd::lab::{
    CLIENT, Connection, Daemon, HOST, Namespace, Outcome, ProbeOptions, RuleSet, StandardHost,
    StandardHostOptions, WEB,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::kernel_nat::json;
use crate::programs::{need_root, netd};
use crate::world::at;

const PATIENCE: Duration = Duration::from_secs(5);

/// A host with Docker's rules and netd in replace mode: netd first, as after `netd run`.
struct World {
    daemon: Daemon,
    host: StandardHost,
}

impl World {
    fn new() -> Self {
        let host = StandardHost::build(StandardHostOptions {
            forwarding: true,
            rules: vec![RuleSet::docker_29()],
            networks: &["def"],
            ..StandardHostOptions::default()
        })
        .expect("the standard host");
        let config = host.netd_toml("replace", "/sys/fs/bpf/overruled");
        let daemon = Daemon::start(netd(), &host.host, &config).unwrap_or_else(|e| panic!("{e}"));
        Self { daemon, host }
    }

    /// One connection in, one out.
    fn connect(&self) -> [Connection; 2] {
        let c0 = &self.host.container("c0").namespace;
        [
            open(&self.host.client, at(HOST, 8081)),
            open(c0, at(CLIENT, WEB)),
        ]
    }

    fn status(&self) -> Value {
        json(&self.daemon, &["status"])["data_plane"].clone()
    }

    fn flows(&self) -> u64 {
        json(&self.daemon, &["flows"])["total"]
            .as_u64()
            .expect("a number")
    }

    /// Starts `netd unload --force --drain …`, and waits until it drains.
    fn drain(&self, time: &str) -> Drain {
        let mut command: Command = self.host.host.command(netd());
        command
            .args(["unload", "--force", "--drain", time, "--json", "--pin-dir"])
            .arg(self.daemon.pin_dir())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("netd unload");
        let mut progress = String::new();
        let stderr = child.stderr.take().expect("a pipe");
        BufReader::new(stderr)
            .read_line(&mut progress)
            .expect("progress");
        Drain { child, progress }
    }
}

/// A `netd unload --drain` under way; killed if the test fails.
struct Drain {
    child: Child,
    /// The first line of its progress.
    progress: String,
}

impl Drain {
    /// Its exit code and its answer.
    fn end(mut self) -> (i32, Value) {
        let until = Instant::now() + Duration::from_secs(30);
        while self.child.try_wait().expect("its state").is_none() {
            assert!(Instant::now() < until, "it goes on and on");
            std::thread::sleep(Duration::from_millis(20));
        }
        let code = self.child.wait().expect("its end").code().unwrap_or(-1);
        let stdout = self.child.stdout.take().expect("a pipe");
        (code, serde_json::from_reader(stdout).expect("JSON"))
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn open(from: &Namespace, to: std::net::SocketAddr) -> Connection {
    let options = ProbeOptions::default().timeout(PATIENCE);
    Connection::open(from, to, &options).unwrap_or_else(|outcome| panic!("{to}: {outcome}"))
}

fn alive(connections: &mut [Connection]) {
    for connection in connections {
        let outcome = connection.exchange(100, PATIENCE);
        assert!(matches!(outcome, Outcome::Answered(_)), "{outcome}");
    }
}

#[test]
fn the_kernel_takes_new_flows_and_netd_goes_when_its_own_are_over() {
    need_root!();
    let world = World::new();
    let mut own = world.connect();
    alive(&mut own);
    assert_eq!(world.flows(), 2);
    assert_eq!(world.status()["draining"], false);

    let drain = world.drain("1m");
    assert!(
        drain.progress.contains("2 flows left"),
        "{}",
        drain.progress
    );
    assert_eq!(world.status()["draining"], true);
    let mut new = world.connect();
    alive(&mut new);
    alive(&mut own);
    assert_eq!(world.flows(), 2, "the new ones are not netd's");
    // What the daemon does for other reasons does not undo it.
    let reload = world.daemon.verb(&["reload"]).expect("reload");
    assert_eq!(reload.code, 0, "{reload:?}");
    assert_eq!(world.status()["draining"], true);

    drop(own);
    let (code, answer) = drain.end();
    assert_eq!((code, &answer["ok"]), (0, &Value::Bool(true)), "{answer}");
    let message = answer["message"].as_str().expect("a message");
    assert!(!message.contains("cut"), "{message}");
    assert!(!world.daemon.pin_dir().exists());
    alive(&mut new);
}

#[test]
fn flows_that_outlive_the_time_are_cut() {
    need_root!();
    let world = World::new();
    let mut own = world.connect();
    alive(&mut own);
    let began = Instant::now();
    let (code, answer) = world.drain("2s").end();
    assert!(
        began.elapsed() >= Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(code, 0, "{answer}");
    let message = answer["message"].as_str().expect("a message");
    assert!(message.contains("2 flows were cut"), "{message}");
    assert!(!world.daemon.pin_dir().exists());
}

#[test]
fn an_interrupt_gives_it_up_and_breaks_nothing() {
    need_root!();
    let world = World::new();
    let mut own = world.connect();
    alive(&mut own);
    let drain = world.drain("1m");
    let mut new = world.connect();
    alive(&mut new);
    let pid = Pid::from_raw(drain.child.id().cast_signed());
    kill(pid, Signal::SIGINT).expect("a signal");
    let (code, answer) = drain.end();
    assert_eq!((code, &answer["ok"]), (1, &Value::Bool(false)), "{answer}");
    assert_eq!(world.status()["draining"], false);
    alive(&mut own);
    // Begun while netd was drained: the kernel's, also now.
    alive(&mut new);
    assert_eq!(world.flows(), 2);
    let mut newer = world.connect();
    alive(&mut newer);
    assert_eq!(world.flows(), 4, "taken again");
    world.daemon.unload().unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn nonsense_is_refused_and_changes_nothing() {
    need_root!();
    let world = World::new();
    for time in ["soon", "-3m", "0s", "1000h"] {
        let option = format!("--drain={time}");
        let answer = world
            .daemon
            .verb(&["unload", "--force", &option])
            .expect("netd");
        assert_eq!(answer.code, 2, "{time}: {answer:?}");
    }
    assert_eq!(world.status()["draining"], false);
    world.daemon.unload().unwrap_or_else(|e| panic!("{e}"));
}
