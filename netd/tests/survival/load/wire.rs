//! Whole frames in bulk, past the stacks of both ends: what no sockets could be opened for in time.
//!
//! Frames are Ethernet, IPv4 without options, and UDP without a checksum or TCP whose checksum nobody at the other end
//! looks at. One system call moves many of them.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;

use netd::lab::{Mac, Namespace};

/// Frames of one system call.
pub const BATCH: usize = 128;
/// Bytes of the longest frame that is sent or of interest.
const LENGTH: usize = 64;
/// Bytes of socket memory: more than is under way at any time.
const BUFFER: libc::c_int = 64 << 20;

/// TCP flags.
pub const SYN: u8 = 2;
pub const FIN: u8 = 1;
pub const ACK: u8 = 16;

const ETHERNET: usize = 14;
const IP: usize = ETHERNET + 20;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// What tells frames apart; the rest is the same in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub source: (Ipv4Addr, u16),
    pub destination: (Ipv4Addr, u16),
    /// Flags of a TCP segment; None: a datagram.
    pub tcp: Option<u8>,
}

impl Segment {
    /// The same the other way.
    pub fn answer(self, tcp: Option<u8>) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            tcp,
        }
    }
}

/// Which frames a [`Wire`] receives: those with this port.
#[derive(Clone, Copy, Debug)]
pub enum Port {
    Source(u16),
    Destination(u16),
}

/// An AF_PACKET socket on a device.
pub struct Wire {
    socket: OwnedFd,
    /// Destination and source MAC of what is sent.
    ethernet: [u8; 12],
    sending: Vec<[u8; LENGTH]>,
    lengths: Vec<usize>,
    received: Vec<[u8; LENGTH]>,
}

impl Wire {
    /// Sends from `device` to the neighbour with that MAC, and receives what comes in there with that port.
    pub fn open(
        namespace: &Namespace,
        device: &str,
        neighbour: Mac,
        wanted: Port,
    ) -> io::Result<Self> {
        let ifindex = namespace.ifindex(device).map_err(io::Error::other)?;
        let own = namespace.mac(device).map_err(io::Error::other)?;
        let protocol = (libc::ETH_P_IP as u16).to_be();
        let socket = namespace.run(|| {
            // SAFETY: no pointers; the result is checked. Protocol 0: nothing comes before the socket is bound.
            let fd =
                unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: a descriptor that was just made, and that nobody else has.
            Ok(unsafe { OwnedFd::from_raw_fd(fd) })
        })?;
        let mut ethernet = [0; 12];
        ethernet[..6].copy_from_slice(&neighbour);
        ethernet[6..].copy_from_slice(&own);
        let wire = Self {
            socket,
            ethernet,
            sending: Vec::with_capacity(BATCH),
            lengths: Vec::with_capacity(BATCH),
            received: vec![[0; LENGTH]; BATCH],
        };
        wire.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER)?;
        wire.set(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, BUFFER)?;
        wire.set(libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
        wire.filter(wanted)?;
        wire.set(libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, 1)?;
        // SAFETY: plain data for which all zeroes is a value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = ifindex.cast_signed();
        // SAFETY: the address is as long as said.
        let bound = unsafe {
            libc::bind(
                wire.socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
        };
        if bound == 0 {
            Ok(wire)
        } else {
            Err(io::Error::last_os_error())
        }
    }

    fn set(&self, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
        // SAFETY: the value is as long as said.
        let result = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                level,
                option,
                (&raw const value).cast(),
                size_of_val(&value) as libc::socklen_t,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Has the kernel pass over all other frames, so that several sockets of a device do not cost each other time.
    fn filter(&self, wanted: Port) -> io::Result<()> {
        const LOAD_HALF: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
        const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
        const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
        let (offset, port) = match wanted {
            Port::Source(port) => (IP, port),
            Port::Destination(port) => (IP + 2, port),
        };
        let code = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
        let mut program = [
            code(LOAD_HALF, 0, 0, offset as u32),
            code(JUMP_EQUAL, 0, 1, port.into()),
            code(RETURN, 0, 0, u32::MAX),
            code(RETURN, 0, 0, 0),
        ];
        let program = libc::sock_fprog {
            len: program.len() as u16,
            filter: program.as_mut_ptr(),
        };
        // SAFETY: the value is as long as said, and points to as many instructions as it says; all outlive the call.
        let result = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER,
                (&raw const program).cast(),
                size_of_val(&program) as libc::socklen_t,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Puts a frame into the next batch, and sends the batch when it is full.
    pub fn push(&mut self, segment: &Segment) -> io::Result<()> {
        let mut frame = [0; LENGTH];
        let length = write(&mut frame, &self.ethernet, segment);
        self.sending.push(frame);
        self.lengths.push(length);
        if self.sending.len() == BATCH {
            self.flush()?;
        }
        Ok(())
    }

    /// Sends what was put into the batch.
    pub fn flush(&mut self) -> io::Result<()> {
        let mut vectors: Vec<libc::iovec> = self
            .sending
            .iter_mut()
            .zip(&self.lengths)
            .map(|(frame, length)| libc::iovec {
                iov_base: frame.as_mut_ptr().cast(),
                iov_len: *length,
            })
            .collect();
        let mut messages = headers(&mut vectors);
        let mut done = 0;
        while done < messages.len() {
            // SAFETY: every header points to a vector, and every vector to a frame, that outlive the call.
            let sent = unsafe {
                libc::sendmmsg(
                    self.socket.as_raw_fd(),
                    messages[done..].as_mut_ptr(),
                    (messages.len() - done) as u32,
                    0,
                )
            };
            match usize::try_from(sent) {
                Ok(sent) => done += sent,
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.raw_os_error() != Some(libc::ENOBUFS) {
                        return Err(error);
                    }
                }
            }
        }
        self.sending.clear();
        self.lengths.clear();
        Ok(())
    }

    /// Takes what has come, one batch at most; waits for the first frame for as long as `patience`.
    pub fn receive(&mut self, patience: Duration) -> io::Result<Vec<Segment>> {
        let mut vectors: Vec<libc::iovec> = self
            .received
            .iter_mut()
            .map(|frame| libc::iovec {
                iov_base: frame.as_mut_ptr().cast(),
                iov_len: LENGTH,
            })
            .collect();
        let mut messages = headers(&mut vectors);
        if !patience.is_zero() {
            let mut poll = libc::pollfd {
                fd: self.socket.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: one descriptor, as said.
            unsafe { libc::poll(&raw mut poll, 1, patience.as_millis() as libc::c_int) };
        }
        // SAFETY: as for sending.
        let came = unsafe {
            libc::recvmmsg(
                self.socket.as_raw_fd(),
                messages.as_mut_ptr(),
                messages.len() as u32,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        let Ok(came) = usize::try_from(came) else {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock => Ok(Vec::new()),
                _ => Err(error),
            };
        };
        let frames = self.received[..came].iter().zip(&messages);
        Ok(frames
            .filter_map(|(frame, message)| read(&frame[..(message.msg_len as usize).min(LENGTH)]))
            .collect())
    }
}

fn headers(vectors: &mut [libc::iovec]) -> Vec<libc::mmsghdr> {
    let header = |vector: &mut libc::iovec| {
        // SAFETY: plain data for which all zeroes is a value.
        let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
        header.msg_hdr.msg_iov = vector;
        header.msg_hdr.msg_iovlen = 1;
        header
    };
    vectors.iter_mut().map(header).collect()
}

/// Writes the frame; its length.
fn write(frame: &mut [u8; LENGTH], ethernet: &[u8; 12], segment: &Segment) -> usize {
    let (protocol, transport) = match segment.tcp {
        Some(_) => (TCP, 20),
        None => (UDP, 16),
    };
    frame[..12].copy_from_slice(ethernet);
    frame[12..ETHERNET].copy_from_slice(&[8, 0]);
    let ip = &mut frame[ETHERNET..IP];
    ip[..12].copy_from_slice(&[
        0x45,
        0,
        0,
        20 + transport,
        0,
        0,
        0x40,
        0,
        64,
        protocol,
        0,
        0,
    ]);
    ip[12..16].copy_from_slice(&segment.source.0.octets());
    ip[16..20].copy_from_slice(&segment.destination.0.octets());
    let sum: u32 = ip
        .chunks_exact(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    ip[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    let ports = &mut frame[IP..];
    ports[..2].copy_from_slice(&segment.source.1.to_be_bytes());
    ports[2..4].copy_from_slice(&segment.destination.1.to_be_bytes());
    match segment.tcp {
        Some(flags) => {
            ports[12] = 5 << 4;
            ports[13] = flags;
            // A window.
            ports[14] = 0x40;
        }
        None => ports[5] = 16,
    }
    IP + usize::from(transport)
}

fn read(frame: &[u8]) -> Option<Segment> {
    let address = |at: usize| {
        let bytes: [u8; 4] = frame.get(at..at + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(bytes))
    };
    let port = |at: usize| Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
    if frame.get(ETHERNET) != Some(&0x45) {
        return None;
    }
    let tcp = match *frame.get(ETHERNET + 9)? {
        TCP => Some(*frame.get(IP + 13)?),
        UDP => None,
        _ => return None,
    };
    Some(Segment {
        source: (address(ETHERNET + 12)?, port(IP)?),
        destination: (address(ETHERNET + 16)?, port(IP + 2)?),
        tcp,
    })
}

#[test]
fn frames_survive_their_bytes() {
    for tcp in [None, Some(SYN), Some(FIN | ACK)] {
        let segment = Segment {
            source: (Ipv4Addr::new(198, 18, 128, 7), 1024),
            destination: (Ipv4Addr::new(10, 200, 0, 2), 0xfffe),
            tcp,
        };
        let mut frame = [0; LENGTH];
        let length = write(&mut frame, &[2; 12], &segment);
        assert_eq!(read(&frame[..length]), Some(segment));
        assert_eq!(
            netd::lab::frame::internet_sum(&frame[ETHERNET..IP], 0),
            0xffff
        );
        assert_eq!(segment.answer(tcp).answer(tcp), segment);
    }
}
