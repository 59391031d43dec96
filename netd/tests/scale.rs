//! Ten thousand publishes, from the start of a cold daemon to a connection.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use netd::lab::{ProbeOptions, StandardHost, StandardHostOptions};

const FIRST_PORT: u16 = 10_000;
const PUBLISHES: u16 = 10_000;
/// In an optimised build; the issue of the day is the daemon, not the compiler.
const LIMIT: Duration = Duration::from_secs(if cfg!(debug_assertions) { 5 } else { 1 });

/// Every publish is an entry of its own: the container's ports alternate, so none can be joined with its neighbour.
fn config() -> String {
    let mut text = String::from(
        "version = 1\n[host]\nmode = \"replace\"\n[[network]]\nname = \"def\"\nbridge = \"br-def\"\nsubnets = [\"10.200.0.0/24\"]\n",
    );
    for port in FIRST_PORT..FIRST_PORT + PUBLISHES {
        let _ = write!(
            text,
            "[[publish]]\nnetwork = \"def\"\ncontainer = \"10.200.0.2\"\nhost = \"0.0.0.0\"\nhost_ports = {port}\ncontainer_ports = {}\n",
            if port % 2 == 0 { 80 } else { 81 }
        );
    }
    text
}

#[test]
fn ten_thousand_publishes_answer_within_a_second() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    let host = StandardHost::build(StandardHostOptions {
        networks: &["def"],
        ..StandardHostOptions::default()
    })
    .expect("a host");
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("netd.toml");
    std::fs::write(&file, config()).expect("a file");
    let pin_dir = format!("/sys/fs/bpf/netd-scale-{}", std::process::id());
    let verb = |name: &str, more: &[&str]| {
        let mut command = host.host.command(env!("CARGO_BIN_EXE_netd"));
        command
            .arg(name)
            .args(more)
            .arg("--config")
            .arg(&file)
            .args(["--pin-dir", &pin_dir]);
        command
            .arg("--state-dir")
            .arg(directory.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    };
    // 20 ports that lead to c0:80, spread over the range by a step that is prime to it.
    let ports: Vec<u16> = (0..20u32)
        .map(|i| FIRST_PORT + (i * 7_919 % 5_000 * 2) as u16)
        .collect();

    let begin = Instant::now();
    let daemon = host.host.spawn(verb("run", &[])).expect("netd starts");
    let mut waiting = ports.clone();
    let quick = ProbeOptions::default().timeout(Duration::from_millis(100));
    while let Some(&port) = waiting.last() {
        let to = SocketAddr::new("198.18.0.1".parse().expect("an address"), port);
        if host.tcp("client", to, &quick).answered() {
            waiting.pop();
        }
        assert!(
            begin.elapsed() < Duration::from_secs(20),
            "ports {waiting:?} do not answer"
        );
    }
    let took = begin.elapsed();
    // The control: a port beyond the range is not published.
    let beyond = SocketAddr::new(
        "198.18.0.1".parse().expect("an address"),
        FIRST_PORT + PUBLISHES,
    );
    let control = host.tcp("client", beyond, &quick);
    drop(daemon);
    let unloaded = verb("unload", &["--force"]).status().expect("netd unload");

    assert!(!control.answered(), "{control:?}");
    assert!(unloaded.success(), "{unloaded}");
    println!(
        "{PUBLISHES} publishes: 20 ports answered {} ms after exec",
        took.as_millis()
    );
    assert!(took <= LIMIT, "{} ms after exec", took.as_millis());
}
