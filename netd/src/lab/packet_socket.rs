//! An AF_PACKET socket on one device: raw frames in and out (packet(7)).

use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::AsRawFd;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::error::{LabError, Result};
use super::namespace::Namespace;

/// A socket that sees and sends whole frames of one device.
#[derive(Debug)]
pub(super) struct PacketSocket {
    socket: Socket,
}

/// What the kernel says about a received frame besides its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameInfo {
    /// PACKET_HOST, PACKET_OTHERHOST, PACKET_OUTGOING… of linux/if_packet.h.
    pub packet_type: u8,
    /// The VLAN tag that was taken out of the bytes: Ethernet type and control information.
    pub vlan: Option<(u16, u16)>,
    /// The transport checksum in the bytes is partial: it will be, or would have been, completed by a device.
    pub checksum_partial: bool,
    /// The kernel knows the transport checksum to be right.
    pub checksum_valid: bool,
    /// The length on the device, which may exceed the captured bytes.
    pub length: usize,
}

impl FrameInfo {
    /// Whether the frame was on its way out of the device.
    pub fn outgoing(&self) -> bool {
        self.packet_type == libc::PACKET_OUTGOING
    }
}

/// Both protocol numbers are in network order, as the kernel wants them.
const EVERY_PROTOCOL: u16 = (libc::ETH_P_ALL as u16).to_be();

impl PacketSocket {
    /// A socket that receives every frame of the device, both ways.
    pub(super) fn receiving(namespace: &Namespace, device: &str) -> Result<Self> {
        Self::open(namespace, device, EVERY_PROTOCOL)
    }

    /// A socket that only sends.
    pub(super) fn sending(namespace: &Namespace, device: &str) -> Result<Self> {
        Self::open(namespace, device, 0)
    }

    fn open(namespace: &Namespace, device: &str, protocol: u16) -> Result<Self> {
        let failed = |e: io::Error| {
            LabError::io(
                format!("open a packet socket on {device} in {}", namespace.role()),
                e,
            )
        };
        let ifindex = namespace.ifindex(device)?;
        let socket = namespace
            // Protocol 0: nothing is queued before the socket is bound to the device.
            .run(|| Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0))))
            .map_err(failed)?;
        let packets = Self { socket };
        packets
            .set_option(libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)
            .map_err(failed)?;
        // A busy test machine must not make a capture blind; BUFFORCE ignores the system's limit.
        packets
            .set_option(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 64 << 20)
            .map_err(failed)?;
        packets.bind(ifindex, protocol).map_err(failed)?;
        Ok(packets)
    }

    pub(super) fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.socket.set_read_timeout(Some(timeout))
    }

    pub(super) fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.socket.send(frame).map(drop)
    }

    /// The next frame, cut to the buffer; its bytes are `buffer[..n]`.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, FrameInfo)> {
        let mut vector = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        // Aligned like cmsghdr.
        let mut control = [0u64; 16];
        // SAFETY: sockaddr_ll and msghdr are plain data for which all zeroes is a value.
        let (mut address, mut message) = unsafe {
            (
                mem::zeroed::<libc::sockaddr_ll>(),
                mem::zeroed::<libc::msghdr>(),
            )
        };
        message.msg_name = (&raw mut address).cast();
        message.msg_namelen = size_of_val(&address) as libc::socklen_t;
        message.msg_iov = &raw mut vector;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        // SAFETY: every pointer in `message` is to a live local, with its length beside it.
        let length =
            unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut message, libc::MSG_TRUNC) };
        let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
        let mut info = FrameInfo {
            packet_type: address.sll_pkttype,
            length,
            ..FrameInfo::default()
        };
        if let Some(auxdata) = auxdata(&message) {
            if auxdata.tp_status & libc::TP_STATUS_VLAN_VALID != 0 {
                let ethertype = if auxdata.tp_status & libc::TP_STATUS_VLAN_TPID_VALID != 0 {
                    auxdata.tp_vlan_tpid
                } else {
                    super::frame::ETHERTYPE_VLAN
                };
                info.vlan = Some((ethertype, auxdata.tp_vlan_tci));
            }
            info.checksum_partial = auxdata.tp_status & libc::TP_STATUS_CSUMNOTREADY != 0;
            info.checksum_valid = auxdata.tp_status & libc::TP_STATUS_CSUM_VALID != 0;
        }
        Ok((length.min(buffer.len()), info))
    }

    /// How many frames the kernel dropped because the socket's queue was full; reading sets it to zero.
    pub(super) fn dropped(&self) -> io::Result<u32> {
        let mut statistics = MaybeUninit::<libc::tpacket_stats>::zeroed();
        let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
        // SAFETY: the pointer and length describe `statistics`.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                statistics.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: plain data, zeroed and then written by the kernel.
        Ok(unsafe { statistics.assume_init() }.tp_drops)
    }

    fn set_option(&self, level: i32, option: i32, value: i32) -> io::Result<()> {
        // SAFETY: the pointer and length describe `value`.
        let result = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                level,
                option,
                (&raw const value).cast(),
                size_of::<i32>() as libc::socklen_t,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    fn bind(&self, ifindex: u32, protocol: u16) -> io::Result<()> {
        // SAFETY: plain data for which all zeroes is a value.
        let mut address = unsafe { mem::zeroed::<libc::sockaddr_ll>() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = ifindex.cast_signed();
        // SAFETY: the pointer and length describe `address`.
        let result = unsafe {
            libc::bind(
                self.socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

fn auxdata(message: &libc::msghdr) -> Option<libc::tpacket_auxdata> {
    // SAFETY: recvmsg filled the control buffer that `message` points to.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give null or a whole header inside the buffer.
        let found = unsafe { *header };
        if found.cmsg_level == libc::SOL_PACKET && found.cmsg_type == libc::PACKET_AUXDATA {
            // SAFETY: the kernel puts a tpacket_auxdata behind a header of this kind; it may not be aligned.
            return Some(unsafe {
                libc::CMSG_DATA(header)
                    .cast::<libc::tpacket_auxdata>()
                    .read_unaligned()
            });
        }
        // SAFETY: as above.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    None
}
