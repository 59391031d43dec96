//! Captures on a device, the guard against leaking container addresses, and injected frames.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::decode::Decoded;
use super::error::{LabError, Result};
use super::frame::ETHERTYPE_ARP;
use super::namespace::Namespace;
pub use super::packet_socket::FrameInfo;
use super::packet_socket::PacketSocket;

/// Sends raw frames out of a device, as they are.
pub fn inject(namespace: &Namespace, device: &str, frames: &[Vec<u8>]) -> Result<()> {
    let socket = PacketSocket::sending(namespace, device)?;
    for frame in frames {
        socket.send(frame).map_err(|e| {
            LabError::io(
                format!(
                    "send {} bytes on {device} in {}",
                    frame.len(),
                    namespace.role()
                ),
                e,
            )
        })?;
    }
    Ok(())
}

/// One captured frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// The bytes, without a VLAN tag that the kernel took out.
    pub bytes: Vec<u8>,
    /// What the kernel said about it.
    pub info: FrameInfo,
    /// The bytes, read.
    pub decoded: Decoded,
}

/// Frames of a device, kept from when this is made until it is stopped.
#[derive(Debug)]
pub struct Capture {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    place: String,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    seen: AtomicU64,
    dropped: AtomicU64,
    kept: Mutex<Vec<Captured>>,
}

/// How long the reader sleeps when nothing comes: what stopping a capture costs at most.
const IDLE: Duration = Duration::from_millis(20);

impl Capture {
    /// Keeps every frame of the device, both ways.
    pub fn start(namespace: &Namespace, device: &str) -> Result<Self> {
        Self::filtered(namespace, device, |_| true)
    }

    /// Keeps the frames that `keep` wants. The capture runs when this returns.
    pub fn filtered(
        namespace: &Namespace,
        device: &str,
        keep: impl FnMut(&Captured) -> bool + Send + 'static,
    ) -> Result<Self> {
        let ethernet = namespace.device(device)?.ethernet;
        let place = format!("{device} in {}", namespace.role());
        let socket = PacketSocket::receiving(namespace, device)?;
        socket
            .set_timeout(IDLE)
            .map_err(|e| LabError::io(format!("capture on {place}"), e))?;
        let shared = Arc::new(Shared::default());
        let reader = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name(format!("capture {place}"))
            .spawn(move || read(&socket, &reader, ethernet, keep))
            .map_err(|e| LabError::io("start a capture thread", e))?;
        Ok(Self {
            shared,
            thread: Some(thread),
            place,
        })
    }

    /// Device and namespace, for messages.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// How many frames went by, kept or not.
    pub fn seen(&self) -> u64 {
        self.shared.seen.load(Ordering::Relaxed)
    }

    /// How many frames the kernel dropped because they came too fast: the capture is blind to that many.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// What was kept so far.
    pub fn frames(&self) -> Vec<Captured> {
        self.kept().clone()
    }

    /// Waits until a kept frame satisfies `wanted`, and returns it.
    pub fn wait_for(
        &self,
        timeout: Duration,
        wanted: impl Fn(&Captured) -> bool,
    ) -> Option<Captured> {
        let deadline = Instant::now() + timeout;
        loop {
            let found = self.kept().iter().find(|frame| wanted(frame)).cloned();
            if found.is_some() || Instant::now() >= deadline {
                return found;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Reads what is still queued, ends the capture and returns what was kept.
    pub fn stop(mut self) -> Vec<Captured> {
        self.join();
        std::mem::take(&mut self.kept())
    }

    fn join(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Vec<Captured>> {
        self.shared
            .kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.join();
    }
}

fn read(
    socket: &PacketSocket,
    shared: &Shared,
    ethernet: bool,
    mut keep: impl FnMut(&Captured) -> bool,
) {
    let mut buffer = vec![0; 128 << 10];
    loop {
        // Read before the queue is found empty: what was sent before the stop is still kept.
        let stopping = shared.stop.load(Ordering::Acquire);
        match socket.receive(&mut buffer) {
            Ok((length, info)) => {
                shared.seen.fetch_add(1, Ordering::Relaxed);
                let bytes = buffer[..length].to_vec();
                let decoded = Decoded::read(&bytes, ethernet);
                let frame = Captured {
                    bytes,
                    info,
                    decoded,
                };
                if keep(&frame) {
                    shared
                        .kept
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(frame);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                if let Ok(dropped) = socket.dropped() {
                    shared.dropped.fetch_add(dropped.into(), Ordering::Relaxed);
                }
                // ENETDOWN comes once when the device goes down; it may come up again.
                let idle = error.kind() == io::ErrorKind::WouldBlock
                    || error.raw_os_error() == Some(libc::ENETDOWN);
                if stopping || !idle {
                    return;
                }
            }
        }
    }
}

/// Watches that no packet whose source lies in a masqueraded subnet leaves by an uplink.
#[derive(Debug)]
pub struct LeakGuard {
    capture: Capture,
    subnets: Vec<IpNet>,
}

impl LeakGuard {
    /// Watches what leaves by a device of the host.
    pub fn watch(namespace: &Namespace, device: &str, subnets: &[IpNet]) -> Result<Self> {
        Self::start(namespace, device, subnets, true)
    }

    /// Watches what arrives at the far end of an uplink: the packets as others see them.
    pub fn watch_far_end(namespace: &Namespace, device: &str, subnets: &[IpNet]) -> Result<Self> {
        Self::start(namespace, device, subnets, false)
    }

    fn start(
        namespace: &Namespace,
        device: &str,
        subnets: &[IpNet],
        outgoing: bool,
    ) -> Result<Self> {
        let watched = subnets.to_vec();
        let capture = Capture::filtered(namespace, device, move |frame| {
            frame.info.outgoing() == outgoing && leaks(&frame.decoded, &watched)
        })?;
        Ok(Self {
            capture,
            subnets: subnets.to_vec(),
        })
    }

    /// How many frames went by so far; those of the last moment may not be counted yet.
    pub fn seen(&self) -> u64 {
        self.capture.seen()
    }

    /// The packets that leaked so far.
    pub fn leaked(&self) -> Vec<Captured> {
        self.capture.frames()
    }

    /// Ends the watch and says how many frames went by: a guard that saw none proves nothing. The error lists the
    /// packets that leaked, or says that the guard was blind for a while.
    pub fn finish(mut self) -> std::result::Result<u64, String> {
        self.capture.join();
        let place = self.capture.place();
        let frames = self.capture.frames();
        if !frames.is_empty() {
            let subnets: Vec<String> = self.subnets.iter().map(IpNet::to_string).collect();
            let list: Vec<String> = frames
                .iter()
                .take(20)
                .map(|frame| frame.decoded.to_string())
                .collect();
            return Err(format!(
                "{} packets with a source in {} left by {place}:\n  {}",
                frames.len(),
                subnets.join(", "),
                list.join("\n  ")
            ));
        }
        match self.capture.dropped() {
            0 => Ok(self.capture.seen()),
            count => Err(format!(
                "the leak guard on {place} missed {count} frames: its queue was full"
            )),
        }
    }

    /// Ends the watch and says how many frames went by.
    ///
    /// # Panics
    /// With the list of [`LeakGuard::finish`].
    pub fn assert_clean(self) -> u64 {
        self.finish().unwrap_or_else(|list| panic!("{list}"))
    }
}

fn leaks(decoded: &Decoded, subnets: &[IpNet]) -> bool {
    decoded.ethertype != ETHERTYPE_ARP
        && decoded
            .source
            .is_some_and(|source| subnets.iter().any(|subnet| subnet.contains(&source)))
}
