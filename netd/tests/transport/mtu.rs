//! What the MTU of a container's interface, smaller than the uplink's, does to who sends to it, and datagrams that may
//! be fragmented.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use netd::lab::{
    CLIENT, Capture, Captured, Connection, Direction, HOST, Namespace, ProbeOptions, StandardHost,
    StandardHostOptions, WEB, bulk_transfer, frame::protocol, ip, udp_probe,
};
use nix::errno::Errno;

use crate::mtu_tunnel::{path_mtu, set, without_fragments};
use crate::path::{Path, addresses};
use crate::world::{LONG, World, at, by, need_root};

/// Gives a container's interface, both ends, this MTU.
fn narrow(host: &StandardHost, container: &str, mtu: u32) {
    let container = host.container(container);
    container.namespace.set_mtu("eth0", mtu).expect("MTU");
    host.host.set_mtu(&container.host_device, mtu).expect("MTU");
}

/// As many bytes as a container's interface carries, without "don't fragment", by an uplink that carries less: they
/// arrive as they were sent, in pieces that fit.
fn arrives_in_pieces(world: &World, (far, device): (&Namespace, &str), to: IpAddr) {
    const PORT: u16 = 7777;
    const MTU: usize = 1280;
    let server = far
        .run(|| UdpSocket::bind(("0.0.0.0", PORT)))
        .expect("a socket");
    server
        .set_read_timeout(Some(Duration::from_millis(500)))
        .expect("timeout");
    let n2b = &world.host.container("n2b").namespace;
    let socket = n2b
        .run(|| may_be_fragmented(at(to, PORT)))
        .expect("a socket");
    let capture = Capture::filtered(far, device, |frame| {
        frame.decoded.protocol == Some(protocol::UDP) && !frame.info.outgoing()
    })
    .expect("capture");
    let mut buffer = vec![0; 4096];
    // The first to a new neighbour may be lost, all others not.
    let mut attempts = 4;
    for length in [MTU - 28, MTU - 27, 1400, 1471, 1472] {
        let sent: Vec<u8> = (0..length).map(|i| (i * 11) as u8).collect();
        let mut got = None;
        while got.is_none() && attempts > 0 {
            attempts -= 1;
            socket.send(&sent).expect("send");
            got = server.recv_from(&mut buffer).ok();
        }
        attempts = 1;
        let came = got.map_or(&[][..], |(length, _)| &buffer[..length]);
        let name = format!("{length} bytes to {to}");
        world.check(&name, length, came.len(), came == sent);
    }
    let frames = capture.stop();
    let pieces = frames
        .iter()
        .filter(|frame| frame.decoded.fragment.is_some());
    let (pieces, largest) = pieces.fold((0, 0), |(n, most), frame| {
        let total = usize::from(u16::from_be_bytes([frame.bytes[16], frame.bytes[17]]));
        (n + 1, most.max(total))
    });
    world.check("pieces", "two of each", pieces, pieces >= 8);
    world.check(
        "the largest",
        MTU,
        largest,
        largest <= MTU && largest > MTU - 28,
    );
}

/// A connected socket whose datagrams bear no DF.
fn may_be_fragmented(to: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    without_df(&socket)?;
    socket.connect(to)?;
    Ok(socket)
}

/// What it sends may be fragmented by routers (ip(7): IP_PMTUDISC_DONT).
fn without_df(socket: &impl AsRawFd) -> io::Result<()> {
    set(
        socket,
        libc::IPPROTO_IP,
        libc::IP_MTU_DISCOVER,
        libc::IP_PMTUDISC_DONT,
    )
}

/// The handshake is over, and so its MSS is past lowering, when the uplink becomes narrow: segments whose checksums
/// were left to the device go on, without DF, in pieces.
#[test]
fn segments_without_df_leave_an_uplink_that_became_narrow_in_pieces() {
    need_root!();
    const MTU: u32 = 1280;
    let world = World::standard(StandardHostOptions::default());
    let n2b = &world.host.container("n2b").namespace;
    let client = &world.host.client;
    let options = ProbeOptions::default().timeout(LONG);
    let mut connection =
        Connection::open(n2b, at(CLIENT, WEB), &options).expect("by the wide uplink");
    without_df(connection.stream()).expect("no DF");
    let to_client =
        |frame: &Captured| frame.decoded.protocol == Some(protocol::TCP) && !frame.info.outgoing();
    let exchange = |connection: &mut Connection, part: &str, length| {
        let capture = Capture::filtered(client, "eth0", to_client).expect("capture");
        let got = connection.exchange(length, LONG);
        world.outcome(&format!("{part}, {length} bytes"), by("client", HOST), got);
        let frames = capture.stop();
        let pieces = frames.iter().filter(|f| f.decoded.fragment.is_some());
        (pieces.count(), frames)
    };
    let (pieces, _) = exchange(&mut connection, "wide", 1400);
    world.check("wide: pieces", 0, pieces, pieces == 0);
    for (namespace, device) in [(&world.host.host, "up0"), (client, "eth0")] {
        namespace.set_mtu(device, MTU).expect("MTU");
    }
    world.daemon.settle().expect("settle");
    // One segment at a time: what a container hands over as many in one is not cut.
    for length in [1400; 5] {
        let (pieces, frames) = exchange(&mut connection, "narrow", length);
        world.check("narrow: pieces", "two", pieces, pieces >= 2);
        let largest = frames
            .iter()
            .map(|f| u32::from(u16::from_be_bytes([f.bytes[16], f.bytes[17]])))
            .max();
        world.check(
            "narrow: the largest",
            format!("at most {MTU}"),
            format!("{largest:?}"),
            largest.is_some_and(|length| length <= MTU),
        );
    }
    world.end();
}

fn by_a_narrow_uplink(tx_offload: bool) {
    let options = StandardHostOptions {
        tx_offload,
        uplink_mtu: 1280,
        ..Default::default()
    };
    let world = World::standard(options);
    arrives_in_pieces(&world, (&world.host.client, "eth0"), CLIENT.into());
    world.end();
}

/// What the container leaves to its device (the checksum) nobody does to pieces.
#[test]
fn a_large_datagram_leaves_a_narrow_uplink_in_pieces() {
    need_root!();
    by_a_narrow_uplink(true);
}

#[test]
fn a_large_datagram_leaves_a_narrow_uplink_in_pieces_without_offload() {
    need_root!();
    by_a_narrow_uplink(false);
}

#[test]
fn a_large_datagram_leaves_a_tunnel_in_pieces() {
    need_root!();
    let mut path = None;
    let world = World::new(
        StandardHostOptions::default(),
        |host| path = Some(Path::by_tunnel(host, 1280).expect("the path")),
        |toml| toml,
    );
    let path = path.expect("built above");
    arrives_in_pieces(&world, (&path.far, "eth0"), addresses()[0].far);
    world.end();
}

#[test]
fn a_container_with_a_smaller_mtu_gets_bulk_and_tells_of_datagrams() {
    need_root!();
    let world = World::new(
        StandardHostOptions::default(),
        |host| {
            narrow(host, "n2a", 1280);
            narrow(host, "n2b", 1280);
        },
        |toml| toml,
    );
    let client = &world.host.client;
    for (to, own) in [
        (at(HOST, 8083), IpAddr::from(CLIENT)),
        (at(ip("fd99::1"), 8085), ip("fd99::2")),
    ] {
        for direction in [Direction::Upload, Direction::Download] {
            const BYTES: u64 = 8 << 20;
            let options = ProbeOptions::default().timeout(LONG);
            let name = format!("{direction:?} of {own}");
            match bulk_transfer(client, to, BYTES, direction, &options) {
                Ok(moved) => world.check(&name, BYTES, moved.bytes, moved.bytes == BYTES),
                Err(outcome) => world.check(&name, BYTES, outcome, false),
            }
        }
    }
    for (host, headers) in [(IpAddr::from(HOST), 28), (ip("fd99::1"), 48)] {
        let largest = 1280 - headers;
        let socket = client
            .run(|| without_fragments(at(host, 8084)))
            .expect("a socket");
        let mut buffer = vec![0; 4096];
        socket.send(&vec![7; largest + 1]).expect("send");
        let error = socket
            .recv(&mut buffer)
            .err()
            .and_then(|e| e.raw_os_error());
        let is_it = error == Some(Errno::EMSGSIZE as i32);
        world.check("one byte more", "EMSGSIZE", format!("{error:?}"), is_it);
        let mtu = path_mtu(&socket).expect("the path's MTU");
        world.check("path MTU", 1280, mtu, mtu == 1280);
        let options = ProbeOptions::default().timeout(LONG).payload(600);
        let got = udp_probe(client, at(host, 8084), &options);
        world.outcome(
            "what fits",
            by(
                "n2b",
                if host.is_ipv4() {
                    CLIENT.into()
                } else {
                    ip("fd99::2")
                },
            ),
            got,
        );
    }
    // A neighbour by the gateway too: the container is told, not the world.
    let c0 = &world.host.container("c0").namespace;
    let socket = c0
        .run(|| without_fragments(at(HOST, 8084)))
        .expect("a socket");
    socket.send(&[7; 1400]).expect("send");
    let error = socket
        .recv(&mut [0; 64])
        .err()
        .and_then(|e| e.raw_os_error());
    let is_it = error == Some(Errno::EMSGSIZE as i32);
    world.check("from a container", "EMSGSIZE", format!("{error:?}"), is_it);
    world.end();
}
