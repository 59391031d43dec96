//! SCTP: its CRC32c follows a change of the ports. `Host::run` verifies it by computing it anew.

use super::*;

for_both_families! {
    a_published_port_leads_to_another
    a_container_keeps_its_port_where_it_is_free
    a_sum_left_to_the_device_stays_zero
    the_length_is_that_of_the_ip_packet
    segments_of_any_size_are_the_kernels_to_judge
}

/// A packet with this many bytes of chunks.
fn sctp<F: Addresses>(src: (F::Addr, u16), dst: (F::Addr, u16), length: usize) -> Frame<F::Addr> {
    let mut frame = Frame::sctp(src, dst);
    frame.l4[4..8].copy_from_slice(&[0xde, 0xad, 0xbe, 0xef]);
    frame.l4.extend((0..length).map(|i| (i * 3) as u8));
    frame
}

/// The checksum field, of a frame without options.
fn crc<F: Addresses>(bytes: &[u8]) -> [u8; 4] {
    let at = 14 + if F::VERSION == 4 { 20 } else { 40 } + 8;
    bytes[at..at + 4].try_into().unwrap()
}

fn a_published_port_leads_to_another<F: Addresses>() {
    let mut host = Host::<F>::new();
    host.publish(proto::SCTP, 8132, C0, 3868);
    for length in [0, 4, 20, 1000, 1400] {
        let there = host.arrive(UP0, sctp::<F>((F::CLIENT, 9), (F::HOST, 8132), length));
        assert_eq!(there.outcome, Outcome::Peer(C0));
        assert_eq!(there.dst(), (F::of(C0), 3868));
        assert_ne!(crc::<F>(&there.bytes), [0; 4]);
        let back = host.sends(C0, sctp::<F>((F::of(C0), 3868), (F::CLIENT, 9), length));
        assert_eq!(back.outcome, out::<F>(UP0));
        assert_eq!(back.src(), (F::HOST, 8132));
    }
    // Control: to the same port, the checksum is the sender's.
    host.publish(proto::SCTP, 7000, C0, 7000);
    let frame = sctp::<F>((F::CLIENT, 9), (F::HOST, 7000), 100);
    let before = crc::<F>(&frame.bytes::<F>());
    let there = host.arrive(UP0, frame);
    assert_eq!(there.dst(), (F::of(C0), 7000));
    assert_eq!(crc::<F>(&there.bytes), before);
}

fn a_container_keeps_its_port_where_it_is_free<F: Addresses>() {
    let host = Host::<F>::new();
    let frame = |ifindex| sctp::<F>((F::of(ifindex), 9), (F::CLIENT, 7), 33);
    // Though it lies outside the range.
    assert_eq!(host.sends(C0, frame(C0)).src(), (F::HOST, 9));
    // A second one gets one from the range.
    let second = host.sends(C0B, frame(C0B));
    assert_eq!(second.outcome, out::<F>(UP0));
    let (address, port) = second.src();
    assert_eq!(address, F::HOST);
    assert!(port >= host.model.config.nat_first, "{port}");
    let answer = sctp::<F>((F::CLIENT, 7), (F::HOST, port), 50);
    let back = host.arrive(UP0, answer);
    assert_eq!(back.outcome, Outcome::Peer(C0B));
    assert_eq!(back.dst(), (F::of(C0B), 9));
}

fn a_sum_left_to_the_device_stays_zero<F: Addresses>() {
    let mut host = Host::<F>::new();
    host.publish(proto::SCTP, 8132, C0, 3868);
    let frame = sctp::<F>((F::CLIENT, 9), (F::HOST, 8132), 40).macs(UP_MAC, mac(C0));
    let mut bytes = frame.bytes::<F>();
    let at = bytes.len() - 40 - 4;
    bytes[at..at + 4].fill(0);
    let there = host.run(Host::<F>::meta(hook::FROM_UPLINK, UP0), bytes, 0);
    assert_eq!(there.dst(), (F::of(C0), 3868));
    assert_eq!(crc::<F>(&there.bytes), [0; 4]);
}

/// Options, extension headers and an Ethernet trailer are not covered.
fn the_length_is_that_of_the_ip_packet<F: Addresses>() {
    let mut host = Host::<F>::new();
    host.publish(proto::SCTP, 8132, C0, 3868);
    let mut frame = sctp::<F>((F::CLIENT, 9), (F::HOST, 8132), 24).macs(UP_MAC, mac(C0));
    let meta = Host::<F>::meta(hook::FROM_UPLINK, UP0);
    let padded = [frame.bytes::<F>(), vec![0; 9]].concat();
    let there = host.run(meta, padded, 0);
    assert_eq!(there.outcome, Outcome::Peer(C0));
    assert_eq!(verify::<F>(&there.bytes[..there.bytes.len() - 9]), Ok(()));
    frame.first_extension = 60;
    frame.options = if F::VERSION == 4 {
        vec![1; 8]
    } else {
        vec![proto::SCTP, 0, 1, 4, 0, 0, 0, 0]
    };
    let there = host.run(meta, frame.bytes::<F>(), 0);
    assert_eq!(there.outcome, Outcome::Peer(C0));
    let l4 = &there.bytes[there.parsed().l4 as usize..];
    let crc = crate::crc32c::crc32c(&[&l4[..8], &[0; 4], &l4[12..]]);
    assert_eq!(l4[8..12], crc.to_le_bytes());
}

fn segments_of_any_size_are_the_kernels_to_judge<F: Addresses>() {
    let mut host = Host::<F>::new();
    host.publish(proto::SCTP, 8132, C0, 3868);
    let mut frame = sctp::<F>((F::CLIENT, 9), (F::HOST, 8132), 3000).macs(UP_MAC, mac(C0));
    frame.fragment = 0x4000;
    let run = |gso_size, device_takes_segments| {
        let mut bytes = frame.bytes::<F>();
        let mut packet = GsoPacket {
            gso_size,
            device_takes_segments,
            ..GsoPacket::new(&mut bytes)
        };
        let meta = Host::<F>::meta(hook::FROM_UPLINK, UP0);
        host.model.run(&mut packet, &meta).outcome()
    };
    assert_eq!(run(0xffff, true), Outcome::Peer(C0));
    let refused = Outcome::AnswerBack(DropReason::TooBig);
    assert_eq!(run(0xffff, false), refused, "only the kernel knows them");
    assert_eq!(run(0, true), refused);
}
