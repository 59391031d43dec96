//! Requests to the kernel over one netlink socket, and the attributes of the answers.
//!
//! Messages are read attribute by attribute, and only those that netd needs. A typed decoder
//! gives up a whole message for one attribute that a newer kernel made longer, and an interface
//! that is overlooked for that reason would be an interface without protection.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_sys::{Socket, SocketAddr};

use super::HostError;

/// Largest answer the kernel puts into one datagram of a dump is 32 KiB.
const RECEIVE_BYTES: usize = 64 * 1024;
/// How often a dump that was disturbed by a change is begun again.
const DUMP_ATTEMPTS: u32 = 4;

const HEADER: usize = 16;
const NLMSG_ERROR: u16 = libc::NLMSG_ERROR as u16;
const NLMSG_DONE: u16 = libc::NLMSG_DONE as u16;
const NLM_F_REQUEST: u16 = libc::NLM_F_REQUEST as u16;
const NLM_F_DUMP: u16 = libc::NLM_F_DUMP as u16;
const NLM_F_ACK: u16 = libc::NLM_F_ACK as u16;
const NLM_F_DUMP_INTR: u16 = libc::NLM_F_DUMP_INTR as u16;
const NLM_F_CAPPED: u16 = libc::NLM_F_CAPPED as u16;
const NLM_F_ACK_TLVS: u16 = libc::NLM_F_ACK_TLVS as u16;
/// Extended error: a sentence of the kernel (linux/netlink.h).
const NLMSGERR_ATTR_MSG: u16 = 1;
/// Type bits of an attribute that are flags: nested, network byte order.
const ATTRIBUTE_TYPE: u16 = 0x3fff;

/// A socket of one netlink family, bound to the network namespace it was opened in.
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    pub(crate) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        // Only rtnetlink knows strict checking; it makes the kernel honour a dump's filters.
        socket.set_netlink_get_strict_chk(true)?;
        socket.set_ext_ack(true)?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: Vec::with_capacity(RECEIVE_BYTES),
        })
    }

    /// Asks for a list; `each` gets the body of every message of it.
    ///
    /// A change during the dump starts it again, a few times: under steady change the last
    /// answer is taken, for every change also sends an event that leads to the next reading.
    pub(crate) fn dump<T>(
        &mut self,
        what: &'static str,
        kind: u16,
        body: &[u8],
        mut each: impl FnMut(&mut Vec<T>, &[u8]),
    ) -> Result<Vec<T>, HostError> {
        for attempt in 1.. {
            let mut found = Vec::new();
            let undisturbed = self.transact(what, kind, NLM_F_DUMP, body, |answer| {
                each(&mut found, answer);
            })?;
            if undisturbed || attempt == DUMP_ATTEMPTS {
                return Ok(found);
            }
            tracing::debug!(what, attempt, "the host changed during a dump");
        }
        unreachable!("the loop ends at DUMP_ATTEMPTS")
    }

    /// Asks for one object.
    pub(crate) fn get<T>(
        &mut self,
        what: &'static str,
        kind: u16,
        body: &[u8],
        decode: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Option<T>, HostError> {
        let mut found = None;
        self.transact(what, kind, NLM_F_ACK, body, |answer| {
            found = decode(answer).or(found.take());
        })?;
        Ok(found)
    }

    /// Sends a request and reads until the kernel says that the answer is complete.
    /// False when the kernel saw a change in between.
    fn transact(
        &mut self,
        what: &'static str,
        kind: u16,
        flags: u16,
        body: &[u8],
        mut each: impl FnMut(&[u8]),
    ) -> Result<bool, HostError> {
        let failed = |source| HostError::Netlink {
            what,
            source,
            kernel_says: None,
        };
        self.sequence = self.sequence.wrapping_add(1);
        let request = message(kind, NLM_F_REQUEST | flags, self.sequence, body);
        let kernel = SocketAddr::new(0, 0);
        self.socket.send_to(&request, &kernel, 0).map_err(failed)?;

        let mut undisturbed = true;
        loop {
            self.buffer.clear();
            // BufMut for Vec grows without bound; a limit keeps the call to the reserved space.
            let mut space = bytes::BufMut::limit(&mut self.buffer, RECEIVE_BYTES);
            let received = match self.socket.recv(&mut space, libc::MSG_TRUNC) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other.map_err(failed)?,
            };
            if received > self.buffer.len() {
                return Err(failed(io::Error::other("an answer longer than 64 KiB")));
            }
            for answer in Messages(&self.buffer) {
                if answer.sequence != self.sequence {
                    continue; // left over from a request that was given up
                }
                undisturbed &= answer.flags & NLM_F_DUMP_INTR == 0;
                match answer.kind {
                    NLMSG_ERROR | NLMSG_DONE => {
                        return match answer.status() {
                            Ok(()) => Ok(undisturbed),
                            Err((source, kernel_says)) => Err(HostError::Netlink {
                                what,
                                source,
                                kernel_says,
                            }),
                        };
                    }
                    _ => each(answer.body),
                }
            }
        }
    }
}

/// A whole message: header and body.
fn message(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + body.len());
    out.extend_from_slice(&((HEADER + body.len()) as u32).to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&sequence.to_ne_bytes());
    out.extend_from_slice(&0u32.to_ne_bytes());
    out.extend_from_slice(body);
    out
}

/// The messages of one datagram. Ends at the first one that is cut.
pub(crate) struct Messages<'a>(pub(super) &'a [u8]);

/// One netlink message.
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) body: &'a [u8],
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let data = self.0;
        let length = u32_at(data, 0)? as usize;
        let found = Message {
            kind: u16_at(data, 4)?,
            flags: u16_at(data, 6)?,
            sequence: u32_at(data, 8)?,
            body: data.get(HEADER..length)?,
        };
        self.0 = data.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(found)
    }
}

impl Message<'_> {
    /// What an acknowledgement or the end of a dump says: an error number, and perhaps why.
    fn status(&self) -> Result<(), (io::Error, Option<String>)> {
        let code = u32_at(self.body, 0).unwrap_or(0) as i32;
        if code == 0 {
            return Ok(());
        }
        // An error message repeats the request (or its header) before its attributes.
        let repeated = match (self.kind, self.flags & NLM_F_CAPPED) {
            (NLMSG_DONE, _) => 0,
            (_, NLM_F_CAPPED) => HEADER,
            _ => (u32_at(self.body, 4).unwrap_or(0) as usize).next_multiple_of(4),
        };
        let extended = self.flags & NLM_F_ACK_TLVS != 0;
        let attributes = self.body.get(4 + repeated..).filter(|_| extended);
        let says = Attributes(attributes.unwrap_or_default())
            .find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG)
            .map(|(_, text)| text_of(text));
        Err((io::Error::from_raw_os_error(code.saturating_neg()), says))
    }
}

/// The attributes of a message or of a nested attribute. Ends at the first one that is cut.
pub(crate) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Attributes<'a> {
    /// The attributes behind a message's fixed part of that length.
    pub(crate) fn after(body: &'a [u8], fixed: usize) -> Self {
        Self(body.get(fixed..).unwrap_or_default())
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let data = self.0;
        let length = usize::from(u16_at(data, 0)?);
        let kind = u16_at(data, 2)? & ATTRIBUTE_TYPE;
        let value = data.get(4..length)?;
        self.0 = data.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// Adds an attribute to a request.
pub(crate) fn push_attribute(request: &mut Vec<u8>, kind: u16, value: &[u8]) {
    request.extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
    request.extend_from_slice(&kind.to_ne_bytes());
    request.extend_from_slice(value);
    request.resize(request.len().next_multiple_of(4), 0);
}

/// A number in host byte order.
pub(crate) fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    let bytes = data.get(at..at + 2)?;
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

/// A number in host byte order.
pub(crate) fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    let bytes = data.get(at..at + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// A signed number in host byte order.
pub(crate) fn i32_at(data: &[u8], at: usize) -> Option<i32> {
    u32_at(data, at).map(|value| value as i32)
}

/// An interface number in an attribute; 0 is none.
pub(crate) fn ifindex_of(value: &[u8]) -> Option<u32> {
    u32_at(value, 0).filter(|ifindex| *ifindex != 0)
}

/// A string, without the terminating zero.
pub(crate) fn text_of(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(&value[..end.unwrap_or(value.len())]).into_owned()
}

/// An address of 4 or 16 bytes.
pub(crate) fn ip_of(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?).into()),
        _ => None,
    }
}

/// The unspecified prefix of a family (`AF_INET`, `AF_INET6`).
pub(crate) fn any_prefix(family: u8) -> Option<IpNet> {
    let any: IpAddr = match i32::from(family) {
        libc::AF_INET => Ipv4Addr::UNSPECIFIED.into(),
        libc::AF_INET6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    IpNet::new(any, 0).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn attributes_round_trip_with_padding() {
        let mut request = Vec::new();
        push_attribute(&mut request, 3, b"eth0\0");
        push_attribute(&mut request, 4 | 0x8000, &1500u32.to_ne_bytes());
        assert_eq!(request.len(), 12 + 8);
        let found: Vec<_> = Attributes(&request).collect();
        assert_eq!(
            found,
            [(3, &b"eth0\0"[..]), (4, &1500u32.to_ne_bytes()[..])]
        );
        assert_eq!(text_of(found[0].1), "eth0");
    }

    #[test]
    fn a_refusal_carries_the_kernels_words() {
        let mut body = (-libc::EPERM).to_ne_bytes().to_vec();
        body.extend_from_slice(&[0; HEADER]);
        push_attribute(&mut body, NLMSGERR_ATTR_MSG, b"not for you\0");
        let datagram = message(NLMSG_ERROR, NLM_F_CAPPED | NLM_F_ACK_TLVS, 1, &body);
        let answer = Messages(&datagram).next().unwrap();
        let (error, says) = answer.status().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        assert_eq!(says.as_deref(), Some("not for you"));
    }

    proptest! {
        #[test]
        fn any_bytes_end_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let limit = bytes.len();
            prop_assert!(Messages(&bytes).take(limit + 1).count() <= limit);
            prop_assert!(Attributes(&bytes).take(limit + 1).count() <= limit);
            for message in Messages(&bytes) {
                let _ = message.status();
            }
        }
    }
}
