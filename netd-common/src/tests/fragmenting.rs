//! What is too large for an uplink and may be cut into pieces.

use super::*;
use crate::checksum::checksum;

const MACS: [u8; 12] = [2, 7, 7, 7, 7, 7, 2, 0, 0, 0, 0, 2];

/// The next hop is known, and every route leads out of UP0 with this MTU.
fn narrow(mtu: u32) -> Host<V4> {
    let mut host = Host::<V4>::new();
    host.model.neighbour = Some(MACS);
    host.model.v4.route = Box::new(move |_| {
        Ok(Route {
            oif: UP0,
            mtu,
            via: V4::GATEWAY.padded(),
            via_v6: false,
            src: V4::HOST,
        })
    });
    host
}

fn datagram(length: usize) -> Frame<V4Addr> {
    let payload: Vec<u8> = (0..length).map(|i| (i * 7) as u8).collect();
    Frame::udp((V4::of(C0), 40000), (V4::CLIENT, 53), &payload)
}

/// The pieces, in order, as they leave.
fn pieces(result: &Result<V4>) -> Vec<Vec<u8>> {
    let copies = result.copies.iter().map(|(oif, bytes)| {
        assert_eq!(*oif, UP0);
        assert_eq!(bytes[..12], MACS);
        bytes.clone()
    });
    copies.chain([result.bytes.clone()]).collect()
}

/// Puts pieces together as a receiver does (RFC 791 §3.2), after looking at every header.
fn reassemble(pieces: &[Vec<u8>], mtu: usize, field: u16) -> Vec<u8> {
    let mut payload: Vec<u8> = Vec::new();
    for (i, piece) in pieces.iter().enumerate() {
        let ip = &piece[14..];
        let total = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
        assert_eq!(ip.len(), total);
        assert!(total <= mtu, "{total}");
        assert_eq!(checksum(&[&ip[..20]]), [0, 0]);
        assert_eq!(ip[4..6], pieces[0][18..20], "one identification");
        let last = i + 1 == pieces.len();
        let more = if last { field & 0x2000 } else { 0x2000 };
        let offset = (field & 0x1fff) + payload.len() as u16 / 8;
        assert_eq!(u16::from_be_bytes([ip[6], ip[7]]), more | offset);
        payload.extend(&ip[20..]);
    }
    let mut whole = pieces[0][..34].to_vec();
    whole[16..18].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
    whole[20..22].copy_from_slice(&[0, 0]);
    whole[24..26].copy_from_slice(&[0, 0]);
    let sum = checksum(&[&whole[14..34]]);
    whole[24..26].copy_from_slice(&sum);
    whole.extend(payload);
    whole
}

#[test]
fn a_datagram_leaves_in_pieces_and_arrives_whole() {
    for mtu in [576, 1280, 1499] {
        let host = narrow(mtu as u32);
        for length in [mtu - 27, mtu - 20, mtu, 1400, 1471, 1472] {
            if length + 28 <= mtu {
                continue;
            }
            let sent = datagram(length);
            let result = host.sends(C0, sent.clone());
            assert_eq!(result.outcome, out::<V4>(UP0), "{length} by {mtu}");
            let whole = reassemble(&pieces(&result), mtu, 0);
            assert_eq!(verify::<V4>(&whole), Ok(()), "{length} by {mtu}");
            assert_eq!(whole[14 + 28..], sent.l4[8..]);
            assert_eq!(whole[26..30], V4::HOST.0, "masqueraded");
            assert_eq!(whole[22], 63);
        }
        // Control: what fits leaves whole.
        let result = host.sends(C0, datagram(mtu - 28));
        assert_eq!((result.outcome, result.copies.len()), (out::<V4>(UP0), 0));
        assert_eq!(verify::<V4>(&result.bytes), Ok(()));
    }
}

/// Its field holds the sum of the pseudo header, which a device would have completed.
#[test]
fn a_checksum_that_was_left_to_the_device_is_completed() {
    let host = narrow(1280);
    for length in 1300..1309 {
        for protocol in [proto::UDP, proto::TCP] {
            let mut sent = datagram(length);
            if protocol == proto::TCP {
                sent = Frame::tcp((V4::of(C0), 40000), (V4::CLIENT, 80), ACK, &sent.l4[8..]);
            }
            let mut bytes = sent.macs(bridge_mac(WEB), mac(C0)).bytes::<V4>();
            let l4 = (bytes.len() - 34) as u16;
            let field = if protocol == proto::UDP {
                34 + 6
            } else {
                34 + 16
            };
            let pseudo = [0, protocol, (l4 >> 8) as u8, l4 as u8];
            let [a, b] = checksum(&[&bytes[26..34], &pseudo]);
            bytes[field..field + 2].copy_from_slice(&[!a, !b]);
            // The model adds the change of addresses as to a whole checksum; a partial one, which is not
            // complemented, takes the opposite change. So the packet is given what makes it come out.
            let meta = Host::<V4>::meta(hook::FROM_ENDPOINT, C0);
            let mut host_without = narrow(1280);
            *host_without.flags(WEB) &= !network_flag::MASQUERADE_V4;
            let result = host_without.run(meta, bytes, 0);
            assert_eq!(result.outcome, out::<V4>(UP0));
            let whole = reassemble(&pieces(&result), 1280, 0);
            assert_eq!(verify::<V4>(&whole), Ok(()), "{protocol} of {length}");
        }
    }
    // None stays none, and a wrong one stays wrong.
    let mut none = datagram(1400);
    none.no_udp_checksum = true;
    let result = host.sends(C0, none);
    assert_eq!(pieces(&result)[0][40..42], [0, 0]);
    let mut wrong = datagram(1400).macs(bridge_mac(WEB), mac(C0)).bytes::<V4>();
    wrong[40] ^= 0x55;
    let result = host.run(Host::<V4>::meta(hook::FROM_ENDPOINT, C0), wrong, 0);
    let whole = reassemble(&pieces(&result), 1280, 0);
    assert!(verify::<V4>(&whole).is_err());
}

#[test]
fn what_cannot_be_cut_is_answered() {
    let cannot = Outcome::AnswerPeer(DropReason::CannotFragment);
    let host = narrow(1280);
    // A SYN with data (RFC 7413), whose options are brought down to the MTU.
    let data = vec![0; 1400];
    let segment = |flags| Frame::tcp((V4::of(C0), 40009), (V4::CLIENT, 80), flags, &data);
    assert_eq!(host.sends(C0, segment(SYN)).outcome, cannot);
    assert_eq!(host.sends(C0, segment(ACK)).outcome, out::<V4>(UP0));
    let mut options = datagram(1400);
    options.options = vec![1; 4];
    assert_eq!(host.sends(C0, options).outcome, cannot);
    let mut sctp = Frame::sctp((V4::of(C0), 40000), (V4::CLIENT, 53));
    sctp.l4.resize(1400, 0);
    assert_eq!(host.sends(C0, sctp).outcome, cannot);
    assert_eq!(host.sends(C0, datagram(2100)).outcome, cannot);
    let meta = Host::<V4>::meta(hook::FROM_ENDPOINT, C0);
    let gso = datagram(1800).macs(bridge_mac(WEB), mac(C0)).bytes::<V4>();
    assert_eq!(host.run(meta, gso.clone(), 1300).outcome, cannot);
    assert_eq!(
        host.run(meta, gso, 0).outcome,
        out::<V4>(UP0),
        "not a GSO packet"
    );
    let many = narrow(300);
    assert_eq!(many.sends(C0, datagram(1400)).outcome, cannot);
    assert_eq!(many.sends(C0, datagram(1000)).outcome, out::<V4>(UP0));
    // Asked to stay whole, it is told so; and a dying packet is dead.
    let whole = host.sends(C0, datagram(1400).whole()).outcome;
    assert_eq!(whole, Outcome::AnswerPeer(DropReason::TooBig));
    let dying = host.sends(C0, datagram(1400).ttl(1)).outcome;
    assert_eq!(dying, Outcome::AnswerPeer(DropReason::TtlExpired));
}

#[test]
fn replies_of_a_published_port_too() {
    let host = narrow(1280);
    let question = Frame::udp((V4::CLIENT, 40000), (V4::HOST, 8081), b"?");
    assert_eq!(host.arrive(UP0, question).outcome, Outcome::Peer(C0));
    let answer = Frame::udp((V4::of(C0), 80), (V4::CLIENT, 40000), &[7; 1400]);
    let result = host.sends(C0, answer);
    assert_eq!(result.outcome, out::<V4>(UP0));
    let whole = reassemble(&pieces(&result), 1280, 0);
    assert_eq!(verify::<V4>(&whole), Ok(()));
    assert_eq!(whole[26..30], V4::HOST.0);
}

/// Without its Ethernet address only the last piece goes, and has the kernel find it out.
#[test]
fn an_unknown_next_hop_costs_the_datagram() {
    let mut host = narrow(1280);
    host.model.neighbour = None;
    let result = host.sends(C0, datagram(1400));
    assert_eq!((result.outcome, result.copies.len()), (out::<V4>(UP0), 0));
    assert!(is_fragment(&result.bytes));
    // A tunnel has no neighbours.
    let mut host = narrow(1280);
    host.model.neighbour = None;
    host.uplink(UP0).flags |= crate::abi::uplink_flag::L3;
    let result = host.sends(C0, datagram(1400));
    assert_eq!(
        (result.outcome, result.copies.len()),
        (Outcome::Device(UP0), 1)
    );
}

#[test]
fn its_length_and_one_packet_are_counted() {
    let host = narrow(1280);
    host.sends(C0, datagram(1400));
    let rows = host.model.v4.embryos.rows();
    let flow = rows.values().find(|flow| flow.packets > 0).expect("a flow");
    assert_eq!((flow.packets, flow.bytes), (1, 1400 + 42));
}

/// The pieces of pieces: what a container has cut to its own MTU is too large for a tunnel.
#[test]
fn fragments_are_cut_again() {
    let host = narrow(1280);
    let whole = datagram(2950);
    let mut wire = whole.packet::<V4>();
    let body = wire.split_off(20);
    let mut all = Vec::new();
    for (offset, part) in [(0, &body[..1480]), (185, &body[1480..])] {
        let mut frame = whole.clone();
        let last = offset != 0;
        frame.fragment = offset | if last { 0 } else { 0x2000 };
        let head = frame.macs(bridge_mac(WEB), mac(C0)).bytes::<V4>();
        let mut bytes = head[..34].to_vec();
        bytes[16..18].copy_from_slice(&(20 + part.len() as u16).to_be_bytes());
        bytes[24..26].copy_from_slice(&[0, 0]);
        let sum = checksum(&[&bytes[14..34]]);
        bytes[24..26].copy_from_slice(&sum);
        bytes.extend(part);
        let meta = Host::<V4>::meta(hook::FROM_ENDPOINT, C0);
        let result = host.run(meta, bytes, 0);
        assert_eq!(result.outcome, out::<V4>(UP0), "offset {offset}");
        let field = u16::from_be_bytes([result.bytes[20], result.bytes[21]]);
        assert_eq!(field & 0x2000 != 0, !last);
        all.extend(pieces(&result));
    }
    assert_eq!(all.len(), 4);
    let whole_again = reassemble(&all, 1280, 0);
    assert_eq!(verify::<V4>(&whole_again), Ok(()));
    assert_eq!(whole_again[42..], whole.l4[8..]);
}
