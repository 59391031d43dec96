//! TUN and TAP devices: packets enter the kernel by a file descriptor (Documentation/networking/tuntap.rst).

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use super::error::{LabError, Result};
use super::namespace::Namespace;
use super::offload::interface_request;

/// What kind of device a [`Tun`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunKind {
    /// L3: packets start with the IP header, as on tailscale0 or a WireGuard device.
    Tun,
    /// L2: frames.
    Tap,
    /// L2, and every segment of a vectored write becomes a fragment of the packet (IFF_NAPI_FRAGS): its head holds
    /// only what the kernel pulled, so programs meet short linear parts.
    TapFragments,
}

/// An open TUN or TAP device, which goes away when this is dropped.
#[derive(Debug)]
pub struct Tun {
    file: File,
    device: String,
}

impl Tun {
    /// Makes a device, down. A missing /dev/net/tun is [`LabError::is_unsupported`] or a NotFound error.
    pub fn create(namespace: &Namespace, device: &str, kind: TunKind) -> Result<Self> {
        let doing = || format!("make {kind:?} {device} in {}", namespace.role());
        let flags = libc::IFF_NO_PI
            | match kind {
                TunKind::Tun => libc::IFF_TUN,
                TunKind::Tap => libc::IFF_TAP,
                TunKind::TapFragments => libc::IFF_TAP | libc::IFF_NAPI | libc::IFF_NAPI_FRAGS,
            };
        let mut request = interface_request(device).map_err(|e| LabError::io(doing(), e))?;
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // The device is made in the namespace in which the file was opened.
        let file = namespace
            .run(|| File::options().read(true).write(true).open("/dev/net/tun"))
            .map_err(|e| LabError::io(format!("{}: open /dev/net/tun", doing()), e))?;
        // SAFETY: the request is a whole ifreq that outlives the call; the kernel may write the name back.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        if result != 0 {
            return Err(LabError::io(doing(), io::Error::last_os_error()));
        }
        Ok(Self {
            file,
            device: device.to_owned(),
        })
    }

    /// The device's name.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Hands one packet or frame to the kernel, as if it had arrived on the device.
    pub fn send(&self, packet: &[u8]) -> io::Result<()> {
        (&self.file).write_all(packet)
    }

    /// Hands one frame to the kernel in pieces, each of which becomes a fragment with [`TunKind::TapFragments`].
    pub fn send_pieces(&self, pieces: &[&[u8]]) -> io::Result<()> {
        let slices: Vec<io::IoSlice<'_>> =
            pieces.iter().map(|piece| io::IoSlice::new(piece)).collect();
        (&self.file).write_vectored(&slices).map(drop)
    }

    /// Takes one packet or frame that left by the device; waits for it.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(buffer)
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
