//! The MSS of SYN and SYN-ACK, lowered to what both ways carry.

use super::*;

for_both_families! {
    out_by_a_tunnel
    in_by_a_tunnel
    into_a_small_container
    never_raised
    repeated_and_late
    every_place_of_the_option
    options_that_lie_are_left_alone
    without_the_option_nothing_is_added
    only_segments_that_open
}

const MSS: fn(u16) -> [u8; 4] = |mss| [2, 4, (mss >> 8) as u8, mss as u8];

fn headers<F: Addresses>() -> u16 {
    if F::VERSION == 4 { 40 } else { 60 }
}

/// Routes lead out of UP0 with this MTU.
fn tunnel<F: Addresses>(mtu: u32) -> Host<F> {
    let mut host = Host::<F>::new();
    host.uplink(UP0).mtu = mtu;
    F::tables_mut(&mut host.model).route = Box::new(move |_| {
        Ok(Route {
            oif: UP0,
            mtu,
            via: F::GATEWAY.padded(),
            via_v6: F::VERSION == 6,
            src: F::HOST,
        })
    });
    host
}

/// Options of the segment as it left.
fn options<F: Addresses>(result: &Result<F>) -> Vec<u8> {
    let l4 = result.parsed().l4 as usize;
    let length = usize::from(result.bytes[l4 + 12] >> 4) * 4;
    result.bytes[l4 + 20..l4 + length].to_vec()
}

fn to_world<F: Addresses>(flags: u8, options: &[u8]) -> Frame<F::Addr> {
    Frame::tcp((F::of(C0), 40000), (F::CLIENT, 80), flags, b"").tcp_options(options)
}

fn out_by_a_tunnel<F: Addresses>() {
    let host = tunnel::<F>(1280);
    let syn = host.sends(C0, to_world::<F>(SYN, &MSS(1460)));
    assert_eq!(syn.outcome, out::<F>(UP0));
    assert_eq!(options(&syn), MSS(1280 - headers::<F>()));
    let (_, port) = syn.src();
    let answer = Frame::tcp((F::CLIENT, 80), (F::HOST, port), SYN | ACK, b"");
    let back = host.arrive(UP0, answer.tcp_options(&MSS(1460)));
    assert_eq!(back.outcome, Outcome::Peer(C0));
    assert_eq!(options(&back), MSS(1280 - headers::<F>()));
}

/// The way back is not routed yet when the client's SYN comes.
fn in_by_a_tunnel<F: Addresses>() {
    let host = tunnel::<F>(1280);
    let syn = Frame::tcp((F::CLIENT, 40000), (F::HOST, 8081), SYN, b"");
    let there = host.arrive(UP0, syn.tcp_options(&MSS(1460)));
    assert_eq!(there.outcome, Outcome::Peer(C0));
    assert_eq!(options(&there), MSS(1280 - headers::<F>()));
    let answer = Frame::tcp((F::of(C0), 80), (F::CLIENT, 40000), SYN | ACK, b"");
    let back = host.sends(C0, answer.tcp_options(&MSS(1460)));
    assert_eq!(back.outcome, out::<F>(UP0));
    assert_eq!(options(&back), MSS(1280 - headers::<F>()));
}

fn into_a_small_container<F: Addresses>() {
    let mut host = tunnel::<F>(1500);
    host.model.endpoints.get_mut(&C0).expect("a container").mtu = 1300;
    let syn = Frame::tcp((F::CLIENT, 40000), (F::HOST, 8081), SYN, b"");
    let there = host.arrive(UP0, syn.tcp_options(&MSS(1460)));
    assert_eq!(options(&there), MSS(1300 - headers::<F>()));
    let answer = Frame::tcp((F::of(C0), 80), (F::CLIENT, 40000), SYN | ACK, b"");
    let back = host.sends(C0, answer.tcp_options(&MSS(1460)));
    assert_eq!(options(&back), MSS(1300 - headers::<F>()));
}

fn never_raised<F: Addresses>() {
    let host = tunnel::<F>(1280);
    let most = 1280 - headers::<F>();
    for mss in [0, 1, 536, most - 1, most, most + 1, 0xffff] {
        let sent = host.sends(C0, to_world::<F>(SYN, &MSS(mss)));
        assert_eq!(options(&sent), MSS(mss.min(most)));
    }
}

fn repeated_and_late<F: Addresses>() {
    let host = tunnel::<F>(1280);
    let most = MSS(1280 - headers::<F>());
    for _ in 0..3 {
        let sent = host.sends(C0, to_world::<F>(SYN, &MSS(1460)));
        assert_eq!(options(&sent), most);
    }
    // The way changed: a SYN that is repeated bears what is true now.
    let mut host = host;
    host.model.config.epoch += 1;
    F::tables_mut(&mut host.model).route = Box::new(move |_| {
        Ok(Route {
            oif: UP0,
            mtu: 1400,
            via: F::GATEWAY.padded(),
            via_v6: F::VERSION == 6,
            src: F::HOST,
        })
    });
    let sent = host.sends(C0, to_world::<F>(SYN, &MSS(1460)));
    assert_eq!(options(&sent), MSS(1400 - headers::<F>()));
}

/// Also at odd offsets, and at the end of the longest header. `Host::run` recomputes checksums.
fn every_place_of_the_option<F: Addresses>() {
    let host = tunnel::<F>(1280);
    let most = MSS(1280 - headers::<F>());
    for before in 0..=36usize {
        for mss in [1460u16, 0xfffe, 1281] {
            let mut sent = vec![1; before];
            sent.extend(MSS(mss));
            sent.resize(sent.len().next_multiple_of(4), 0);
            let mut expected = sent.clone();
            expected[before..before + 4].copy_from_slice(&most);
            let left = host.sends(C0, to_world::<F>(SYN, &sent));
            assert_eq!(options(&left), expected);
        }
    }
    let usual = [
        &MSS(1460)[..],
        &[4, 2, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0, 1, 3, 3, 7],
    ]
    .concat();
    let windows = [
        &[4, 2, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0][..],
        &[3, 3, 7],
        &MSS(1460),
        &[0],
    ]
    .concat();
    for sent in [usual, windows] {
        let left = options(&host.sends(C0, to_world::<F>(SYN, &sent)));
        assert_ne!(left, sent);
        let at = sent.windows(4).position(|w| w == MSS(1460)).unwrap();
        assert_eq!(left[at..at + 4], most);
        assert_eq!(
            (&left[..at], &left[at + 4..]),
            (&sent[..at], &sent[at + 4..])
        );
    }
}

fn options_that_lie_are_left_alone<F: Addresses>() {
    let host = tunnel::<F>(1280);
    for lie in [
        &[2, 3, 0xff, 0][..],
        &[2, 5, 0xff, 0xff, 0, 0, 0, 0],
        &[2, 0, 0xff, 0xff],
        &[1, 1, 1, 2],
        &[1, 1, 2, 4],
        &[1, 2, 4, 0xff],
        &[8, 0, 2, 4, 0xff, 0xff, 0, 0],
        &[8, 1, 2, 4, 0xff, 0xff, 0, 0],
        &[8, 200, 2, 4, 0xff, 0xff, 0, 0],
        &[0, 2, 4, 0xff, 0xff, 0, 0, 0],
        &[1; 40],
    ] {
        let left = host.sends(C0, to_world::<F>(SYN, lie));
        assert_eq!(left.outcome, out::<F>(UP0));
        assert_eq!(options(&left), lie);
    }
}

fn without_the_option_nothing_is_added<F: Addresses>() {
    let host = tunnel::<F>(1280);
    let left = host.sends(C0, to_world::<F>(SYN, &[]));
    assert_eq!(options(&left), []);
}

fn only_segments_that_open<F: Addresses>() {
    let host = tunnel::<F>(1280);
    host.connect(8081);
    for flags in [ACK, FIN | ACK] {
        let segment = Frame::tcp((F::of(C0), 80), (F::CLIENT, 40000), flags, b"");
        let left = host.sends(C0, segment.tcp_options(&MSS(1460)));
        assert_eq!(left.outcome, out::<F>(UP0));
        assert_eq!(options(&left), MSS(1460));
    }
}
