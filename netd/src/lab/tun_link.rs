//! Two TUN devices joined to a tunnel: what leaves by one arrives at the other.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::error::{LabError, Result};
use super::tun::Tun;

/// How long a thread waits for a packet before it looks whether it is to end, in milliseconds.
const IDLE: u16 = 20;

/// A tunnel without encryption between two devices, made of one thread per direction. When this is dropped the threads
/// end and the devices go away.
#[derive(Debug)]
pub struct TunLink {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl TunLink {
    /// Joins two devices. What one cannot take, because it is down, is lost, as on any wire.
    pub fn join(a: Tun, b: Tun) -> Result<Self> {
        for tun in [&a, &b] {
            fcntl(tun, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|e| {
                LabError::io(format!("make {} a non-blocking device", tun.device()), e)
            })?;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let mut link = Self {
            stop: Arc::clone(&stop),
            threads: Vec::new(),
        };
        let (a, b) = (Arc::new(a), Arc::new(b));
        for (from, to) in [(&a, &b), (&b, &a)] {
            let (from, to, stop) = (Arc::clone(from), Arc::clone(to), Arc::clone(&stop));
            let name = format!("tunnel {}", from.device());
            let thread = std::thread::Builder::new()
                .name(name)
                .spawn(move || carry(&from, &to, &stop))
                .map_err(|e| LabError::io("start a tunnel's thread", e))?;
            link.threads.push(thread);
        }
        Ok(link)
    }
}

impl Drop for TunLink {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn carry(from: &Tun, to: &Tun, stop: &AtomicBool) {
    let mut buffer = vec![0; 65536];
    while !stop.load(Ordering::Acquire) {
        match from.receive(&mut buffer) {
            // EIO: the device is down.
            Ok(length) => drop(to.send(&buffer[..length])),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut fds = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
                let _ = poll(&mut fds, PollTimeout::from(IDLE));
            }
            // While the device is down, or for ever once it was deleted.
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(IDLE.into())),
        }
    }
}
