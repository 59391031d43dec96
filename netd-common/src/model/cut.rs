//! Packets cut into fragments, and put together again, for tests.

use crate::wire::{ETH_LEN, Family};

use crate::checksum::checksum;

const ETH: usize = ETH_LEN as usize;

/// Cuts an Ethernet frame with an IP packet into fragments (RFC 791 §3.2, RFC 8200 §4.5). `lengths`:
/// bytes of each fragment but the last, multiples of eight. `kept`: bytes of IPv6 extension headers
/// that every fragment bears; those of IPv4 are options, which all of them bear.
///
/// # Panics
/// If the packet is shorter than that.
#[must_use]
pub fn cut<F: Family>(frame: &[u8], id: u32, kept: usize, lengths: &[usize]) -> Vec<Vec<u8>> {
    let header = header_len::<F>(frame) + kept;
    let (head, mut rest) = frame[ETH..].split_at(header);
    let mut offset = 0;
    let mut fragments = Vec::new();
    for length in lengths.iter().copied().chain([usize::MAX]) {
        let last = length == usize::MAX;
        let (part, left) = rest.split_at(if last { rest.len() } else { length });
        rest = left;
        fragments.push([&frame[..ETH], &fragment::<F>(head, id, offset, !last, part)].concat());
        offset += part.len();
    }
    fragments
}

/// One fragment of a packet that begins with `head`, from the IP header on: `part` at `offset`.
#[must_use]
pub fn fragment<F: Family>(
    head: &[u8],
    id: u32,
    offset: usize,
    more: bool,
    part: &[u8],
) -> Vec<u8> {
    let mut packet = head.to_vec();
    if F::VERSION == 4 {
        let field = (offset / 8) as u16 | if more { 0x2000 } else { 0 };
        let total = (head.len() + part.len()) as u16;
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        packet[4..6].copy_from_slice(&(id as u16).to_be_bytes());
        packet[6..8].copy_from_slice(&field.to_be_bytes());
        packet[10..12].copy_from_slice(&[0, 0]);
        let sum = checksum(&[&packet]);
        packet[10..12].copy_from_slice(&sum);
    } else {
        // The last header that is kept names the fragment header.
        let mut named = 6;
        let mut at = 40;
        while at < head.len() {
            named = at;
            at += (usize::from(head[at + 1]) + 1) * 8;
        }
        let next = packet[named];
        packet[named] = 44;
        let field = offset as u16 | u16::from(more);
        packet.extend([next, 0]);
        packet.extend(field.to_be_bytes());
        packet.extend(id.to_be_bytes());
        let payload = (packet.len() - 40 + part.len()) as u16;
        packet[4..6].copy_from_slice(&payload.to_be_bytes());
    }
    packet.extend(part);
    packet
}

/// Puts fragments together in any order: a frame again, with the header of the first.
///
/// # Panics
/// If they are not all of one packet's parts, once each.
#[must_use]
pub fn join<F: Family>(fragments: &[Vec<u8>]) -> Vec<u8> {
    let mut parts: Vec<_> = fragments.iter().map(|frame| part::<F>(frame)).collect();
    parts.sort_by_key(|part| part.offset);
    let mut whole = parts[0].head.clone();
    let mut offset = 0;
    for part in &parts {
        assert_eq!(part.offset, offset, "a gap or an overlap");
        assert_eq!(part.head, parts[0].head, "the fragments differ");
        offset += part.bytes.len();
        assert_eq!(
            part.more,
            offset != parts.iter().map(|p| p.bytes.len()).sum()
        );
        whole.extend(&part.bytes);
    }
    let ip = &mut whole[ETH..];
    let length = ip.len() as u16;
    if F::VERSION == 4 {
        ip[2..4].copy_from_slice(&length.to_be_bytes());
        ip[10..12].copy_from_slice(&[0, 0]);
        let header = usize::from(ip[0] & 0xf) * 4;
        let sum = checksum(&[&ip[..header]]);
        ip[10..12].copy_from_slice(&sum);
    } else {
        ip[4..6].copy_from_slice(&(length - 40).to_be_bytes());
    }
    whole
}

struct Part {
    /// The frame's headers without what differs between fragments.
    head: Vec<u8>,
    offset: usize,
    more: bool,
    bytes: Vec<u8>,
}

fn part<F: Family>(frame: &[u8]) -> Part {
    let mut head = frame[..ETH + header_len::<F>(frame)].to_vec();
    if F::VERSION == 4 {
        assert_eq!(
            checksum(&[&head[ETH..]]),
            [0, 0],
            "an IPv4 header's checksum"
        );
        let field = u16::from_be_bytes([head[ETH + 6], head[ETH + 7]]);
        head[ETH + 2..ETH + 4].fill(0);
        head[ETH + 6..ETH + 8].fill(0);
        head[ETH + 10..ETH + 12].fill(0);
        return Part {
            offset: usize::from(field & 0x1fff) * 8,
            more: field & 0x2000 != 0,
            bytes: frame[head.len()..].to_vec(),
            head,
        };
    }
    let mut named = ETH + 6;
    let mut at = ETH + 40;
    while frame[named] != 44 {
        named = at;
        at += (usize::from(frame[at + 1]) + 1) * 8;
    }
    head.extend(&frame[ETH + 40..at]);
    head[named] = frame[at];
    head[ETH + 4..ETH + 6].fill(0);
    let field = u16::from_be_bytes([frame[at + 2], frame[at + 3]]);
    Part {
        head,
        offset: usize::from(field & 0xfff8),
        more: field & 1 != 0,
        bytes: frame[at + 8..].to_vec(),
    }
}

fn header_len<F: Family>(frame: &[u8]) -> usize {
    if F::VERSION == 4 {
        usize::from(frame[ETH] & 0xf) * 4
    } else {
        40
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::frame::{Frame, verify},
        wire::{V4, V4Addr, V6, V6Addr},
    };

    #[test]
    fn cut_and_joined_is_the_same() {
        let v4 = Frame::udp((V4Addr([1; 4]), 1), (V4Addr([2; 4]), 2), &[7; 99]).bytes::<V4>();
        let v6 = Frame::udp((V6Addr([1; 16]), 1), (V6Addr([2; 16]), 2), &[7; 99]).bytes::<V6>();
        let mut pieces = cut::<V4>(&v4, 0x1234, 0, &[16, 8, 40]);
        assert_eq!(pieces.len(), 4);
        pieces.rotate_left(1);
        assert_eq!(join::<V4>(&pieces), v4);
        assert_eq!(verify::<V4>(&join::<V4>(&pieces)), Ok(()));
        assert_eq!(join::<V6>(&cut::<V6>(&v6, 9, 0, &[16, 8, 40])), v6);
    }
}
