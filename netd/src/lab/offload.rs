//! Offloads of a device, switched as `ethtool -K` does (SIOCETHTOOL, linux/ethtool.h).

use std::io;
use std::os::fd::AsRawFd;

use socket2::{Domain, Socket, Type};

use super::error::{LabError, Result};
use super::namespace::Namespace;

const SIOCETHTOOL: libc::Ioctl = 0x8946;

/// One offload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// The device fills in transport checksums of sent packets; off, packets on a veth carry whole ones.
    TransmitChecksum,
    /// The device checks transport checksums of received packets.
    ReceiveChecksum,
    /// Sending from scattered memory.
    ScatterGather,
    /// TCP segmentation by the device; on, a veth carries packets of up to 64 KiB.
    TcpSegmentation,
    /// Segmentation as late as possible by the stack.
    GenericSegmentation,
    /// Joining of received segments; on a veth also what NAPI, and so XDP redirect into it, needs.
    GenericReceive,
}

impl Offload {
    /// The ETHTOOL_G… and ETHTOOL_S… command numbers.
    fn commands(self) -> (u32, u32) {
        match self {
            Self::ReceiveChecksum => (0x14, 0x15),
            Self::TransmitChecksum => (0x16, 0x17),
            Self::ScatterGather => (0x18, 0x19),
            Self::TcpSegmentation => (0x1e, 0x1f),
            Self::GenericSegmentation => (0x23, 0x24),
            Self::GenericReceive => (0x2b, 0x2c),
        }
    }
}

/// `struct ethtool_value`.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

impl Namespace {
    /// Switches everything that lets a sender leave checksums or segmentation to the device: what
    /// `ethtool -K DEVICE tx off` does, together with tso, gso and sg.
    pub fn set_tx_offload(&self, device: &str, on: bool) -> Result<()> {
        let mut order = [
            Offload::TransmitChecksum,
            Offload::ScatterGather,
            Offload::TcpSegmentation,
            Offload::GenericSegmentation,
        ];
        // Segmentation needs checksums and scatter-gather: off in the other order.
        if !on {
            order.reverse();
        }
        order
            .into_iter()
            .try_for_each(|offload| self.set_offload(device, offload, on))
    }

    /// Switches one offload.
    pub fn set_offload(&self, device: &str, offload: Offload, on: bool) -> Result<()> {
        self.ethtool(device, offload.commands().1, on.into())
            .map(drop)
            .map_err(|e| {
                LabError::io(
                    format!("set {offload:?} {on} on {device} in {}", self.role()),
                    e,
                )
            })
    }

    /// Whether one offload is on.
    pub fn offload(&self, device: &str, offload: Offload) -> Result<bool> {
        self.ethtool(device, offload.commands().0, 0)
            .map(|value| value != 0)
            .map_err(|e| {
                LabError::io(
                    format!("read {offload:?} of {device} in {}", self.role()),
                    e,
                )
            })
    }

    fn ethtool(&self, device: &str, command: u32, data: u32) -> io::Result<u32> {
        let mut value = EthtoolValue { command, data };
        let mut request = interface_request(device)?;
        request.ifr_ifru.ifru_data = (&raw mut value).cast();
        let socket = self.run(|| Socket::new(Domain::IPV4, Type::DGRAM, None))?;
        // SAFETY: the request names a device and points to an ethtool_value that outlives the call.
        let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
        if result == 0 {
            Ok(value.data)
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

/// A `struct ifreq` with a device's name and nothing else.
pub(super) fn interface_request(device: &str) -> io::Result<libc::ifreq> {
    // SAFETY: plain data for which all zeroes is a value.
    let mut request = unsafe { std::mem::zeroed::<libc::ifreq>() };
    if device.len() >= request.ifr_name.len() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "device names have at most 15 bytes",
        ));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}
