//! A daemon that is asked to leave and does not, or not any more.

use std::time::{Duration, Instant};

use netd::lab::{Answered, Daemon, StandardHost, StandardHostOptions};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::kernel_nat::json;
use crate::programs::{need_root, netd};
use crate::world::config;

struct World {
    daemon: Daemon,
    host: StandardHost,
}

impl World {
    fn new() -> Self {
        let host = StandardHost::build(StandardHostOptions {
            networks: &["def"],
            ..StandardHostOptions::default()
        })
        .expect("the standard host");
        let daemon =
            Daemon::start(netd(), &host.host, &config(&host, "")).unwrap_or_else(|e| panic!("{e}"));
        Self { daemon, host }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.daemon.pid().expect("it runs").cast_signed())
    }

    fn running(&self) -> serde_json::Value {
        json(&self.daemon, &["status"])["daemon"]["pid"].clone()
    }
}

/// Stopped (SIGSTOP), it neither answers nor leaves. The other gives up and changes nothing; going on, the first does
/// not leave after all: nobody would be there.
#[test]
fn a_daemon_that_does_not_answer_stays() {
    need_root!();
    let world = World::new();
    let pid = world.pid();
    kill(pid, Signal::SIGSTOP).expect("stopped");
    let began = Instant::now();
    let Answered { code, stderr, .. } = world.daemon.verb(&["run", "--takeover"]).expect("netd");
    kill(pid, Signal::SIGCONT).expect("goes on");
    assert_eq!(code, 3, "{stderr}");
    assert!(stderr.contains(&format!("kill -9 {pid}")), "{stderr}");
    assert!(
        began.elapsed() < Duration::from_secs(25),
        "{:?}",
        began.elapsed()
    );
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(world.running(), pid.as_raw());
    world.daemon.settle().unwrap_or_else(|e| panic!("{e}"));
    world.daemon.unload().unwrap_or_else(|e| panic!("{e}"));
}

/// Killed between the question and the answer: the lock is free, and the other goes on.
#[test]
fn a_daemon_that_dies_when_asked_is_replaced() {
    need_root!();
    let world = World::new();
    let pid = world.pid();
    kill(pid, Signal::SIGSTOP).expect("stopped");
    let mut command = world.host.host.command(netd());
    command
        .args(["run", "--takeover", "--config"])
        .arg(world.daemon.directory().join("netd.toml"))
        .arg("--pin-dir")
        .arg(world.daemon.pin_dir())
        .arg("--state-dir")
        .arg(world.daemon.directory().join("state"))
        .stderr(std::process::Stdio::null());
    let mut other = world.host.host.spawn(command).expect("another daemon");
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(world.running(), pid.as_raw(), "it waits");
    kill(pid, Signal::SIGKILL).expect("killed");
    let until = Instant::now() + Duration::from_secs(20);
    while world.running() != other.pid() {
        let ended = other
            .wait_timeout(Duration::from_millis(50))
            .expect("its state");
        assert!(ended.is_none() && Instant::now() < until, "{ended:?}");
    }
    other.stop(Duration::from_secs(10)).expect("it leaves");
}

/// Looking whether a daemon runs holds its lock for a moment: no daemon is kept from starting by that.
#[test]
fn who_only_looks_keeps_no_daemon_from_starting() {
    need_root!();
    let mut world = World::new();
    let files = world.daemon.files();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let lookers: Vec<_> = (0..2)
        .map(|_| {
            let (files, stop) = (files.clone(), stop.clone());
            std::thread::spawn(move || {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    netd::run_state::running_pid(&files);
                }
            })
        })
        .collect();
    let started: Vec<_> = (0..5)
        .map(|_| {
            world.daemon.stop(Signal::SIGKILL).expect("killed");
            world.daemon.run(&[])
        })
        .collect();
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for looker in lookers {
        looker.join().expect("a looker");
    }
    for result in started {
        result.unwrap_or_else(|e| panic!("{e}"));
    }
    world.daemon.unload().unwrap_or_else(|e| panic!("{e}"));
}
