//! Containers of MTU 1500 behind a tunnel of 1280, on a path where no router says what it cannot carry.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use netd::lab::{
    Capture, Captured, Direction, HOST_SERVICE, IptablesBackend, LeakGuard, Namespace,
    ProbeOptions, RuleSet, StandardHost, StandardHostOptions, WEB, bulk_transfer, frame::tcp_flags,
    tcp_probe, udp_probe,
};
use nix::errno::Errno;
use socket2::{Domain, Protocol, Socket, Type};

use crate::path::{Addresses, DEVICE, FAR, Path, addresses};
use crate::world::{LONG, World, at, by, need_root};

const MTU: u32 = 1280;
/// The MTU without the headers of IP and TCP: what a SYN may offer.
const MSS: [u16; 2] = [1240, 1220];
/// UDP port of a socket of the far server.
const PORT: u16 = 5001;
/// For a pause in a transfer; a black hole takes longer.
const PAUSE: Duration = Duration::from_secs(15);

/// A host with the narrow path, on which ICMP errors are lost.
struct Narrow {
    world: World,
    path: Path,
    /// None for bulk, with which a capture cannot keep up.
    guard: Option<LeakGuard>,
}

impl Narrow {
    fn new() -> Self {
        Self::beside(Vec::new())
    }

    fn for_bulk() -> Self {
        Self {
            guard: None,
            ..Self::new()
        }
    }

    /// On a host with these rules.
    fn beside(rules: Vec<RuleSet>) -> Self {
        let options = StandardHostOptions {
            rules,
            ..Default::default()
        };
        let mut path = None;
        let world = World::new(
            options,
            |host| path = Some(Path::by_tunnel(host, MTU).expect("the path")),
            |toml| toml,
        );
        let path = path.expect("built above");
        path.block_icmp_errors().expect("rules");
        let guard = LeakGuard::watch(
            &world.host.host,
            DEVICE,
            &StandardHost::masqueraded_subnets(),
        );
        Self {
            world,
            path,
            guard: Some(guard.expect("leak guard")),
        }
    }

    fn end(self) {
        match self.guard.map(LeakGuard::finish) {
            Some(Ok(seen)) => self.world.check("guard", "packets", seen, seen > 0),
            Some(Err(leak)) => self.world.check("guard", "no leak", leak, false),
            None => {}
        }
        self.world.end();
    }

    /// Moves bytes in both directions, asking from `from`; the server `name` answers.
    fn transfer(&self, from: &Namespace, to: SocketAddr, bytes: u64, direction: Direction) {
        let options = ProbeOptions::default().timeout(PAUSE);
        let moved = bulk_transfer(from, to, bytes, direction, &options);
        let name = format!("{direction:?} of {bytes} bytes, {} → {to}", from.role());
        match moved {
            Ok(transfer) => {
                println!("{name}: {:.2} Gbit/s", transfer.gigabits_per_second());
                self.world
                    .check(&name, bytes, transfer.bytes, transfer.bytes == bytes);
            }
            Err(outcome) => self.world.check(&name, bytes, outcome, false),
        }
    }
}

#[test]
fn a_gigabyte_leaves_by_a_tunnel_of_1280() {
    need_root!();
    let narrow = Narrow::for_bulk();
    let c0 = &narrow.world.host.container("c0").namespace;
    let to = at(addresses()[0].far, WEB);
    narrow.transfer(c0, to, 1 << 30, Direction::Upload);
    narrow.end();
}

#[test]
fn a_gigabyte_comes_by_a_tunnel_of_1280() {
    need_root!();
    let narrow = Narrow::for_bulk();
    let c0 = &narrow.world.host.container("c0").namespace;
    let to = at(addresses()[0].far, WEB);
    narrow.transfer(c0, to, 1 << 30, Direction::Download);
    narrow.end();
}

#[test]
fn a_published_port_and_ipv6_carry_bulk_by_a_tunnel_of_1280() {
    need_root!();
    const BYTES: u64 = 64 << 20;
    let narrow = Narrow::for_bulk();
    let [v4, v6] = addresses();
    let n2b = &narrow.world.host.container("n2b").namespace;
    for direction in [Direction::Upload, Direction::Download] {
        narrow.transfer(n2b, at(v6.far, WEB), BYTES, direction);
        narrow.transfer(&narrow.path.far, at(v4.host, 8081), BYTES, direction);
        narrow.transfer(&narrow.path.far, at(v6.host, 8085), BYTES, direction);
    }
    narrow.end();
}

#[test]
fn a_syn_offers_what_the_tunnel_carries() {
    need_root!();
    let narrow = Narrow::new();
    let host = &narrow.world.host;
    let n2b = host.container("n2b");
    for (Addresses { host: own, far, .. }, mss) in addresses().into_iter().zip(MSS) {
        // Out: the SYN as the server gets it, and the SYN-ACK as the container gets it.
        let out = || {
            let outcome = tcp_probe(
                &n2b.namespace,
                at(far, WEB),
                &ProbeOptions::default().timeout(LONG),
            );
            narrow
                .world
                .outcome(&format!("out to {far}"), by(FAR, own), outcome);
        };
        narrow.offers("out", (&narrow.path.far, &n2b.namespace), mss, mss, out);
        // In: the SYN as the container gets it, and the SYN-ACK as the client gets it.
        let (port, name) = if own.is_ipv4() {
            (8081, "c0")
        } else {
            (8085, "n2a")
        };
        let server = &host.container(name).namespace;
        let into = || {
            let outcome = tcp_probe(
                &narrow.path.far,
                at(own, port),
                &ProbeOptions::default().timeout(LONG),
            );
            narrow
                .world
                .outcome(&format!("in to {own}"), by(name, far), outcome);
        };
        narrow.offers("in", (server, &narrow.path.far), mss, mss, into);
        // What asks for less keeps it.
        let less = || connect_with_mss(&n2b.namespace, at(far, WEB), 1000).expect("connect");
        narrow.offers(
            "out, less",
            (&narrow.path.far, &n2b.namespace),
            1000,
            mss,
            less,
        );
    }
    // A route as wide as the container: nothing to lower.
    let wide = || {
        let to = at(netd::lab::CLIENT, WEB);
        let outcome = tcp_probe(&n2b.namespace, to, &ProbeOptions::default().timeout(LONG));
        narrow
            .world
            .outcome("wide", by("client", netd::lab::HOST), outcome);
    };
    narrow.offers("wide", (&host.client, &n2b.namespace), 1460, 1460, wide);
    narrow.end();
}

impl Narrow {
    /// Does something and reads the MSS of the SYN that arrives at the first place and the SYN-ACK that arrives at
    /// the second.
    fn offers(
        &self,
        part: &str,
        (server, client): (&Namespace, &Namespace),
        syn: u16,
        syn_ack: u16,
        work: impl FnOnce(),
    ) {
        let capture = |namespace| {
            Capture::filtered(namespace, "eth0", |frame| {
                let syn = frame
                    .decoded
                    .tcp_flags
                    .is_some_and(|f| f & tcp_flags::SYN != 0);
                syn && !frame.info.outgoing()
            })
            .expect("capture")
        };
        let captures = [capture(server), capture(client)];
        work();
        let expected = [
            (tcp_flags::SYN, syn),
            (tcp_flags::SYN | tcp_flags::ACK, syn_ack),
        ];
        for (capture, (flags, mss)) in captures.into_iter().zip(expected) {
            let name = format!("{part}: MSS of flags {flags:#04x} on {}", capture.place());
            capture.wait_for(LONG, |frame| frame.decoded.tcp_flags == Some(flags));
            let frames = capture.stop();
            let frame = frames.iter().find(|f| f.decoded.tcp_flags == Some(flags));
            let got = frame.and_then(mss_of);
            self.world
                .check(&name, mss, format!("{got:?}"), got == Some(mss));
            let right = frame.is_some_and(|f| {
                f.decoded.checksum == Some(true) || f.info.checksum_partial || f.info.checksum_valid
            });
            self.world
                .check(&format!("{name}: checksum"), "right", right, right);
        }
    }
}

/// The maximum segment size that a captured SYN offers (RFC 9293 section 3.7.1).
fn mss_of(frame: &Captured) -> Option<u16> {
    let packet = frame.bytes.get(14..)?;
    let tcp = match frame.decoded.source? {
        IpAddr::V4(_) => packet.get(usize::from(packet[0] & 15) * 4..)?,
        IpAddr::V6(_) => packet.get(40..)?,
    };
    let mut options = tcp.get(20..usize::from(tcp.get(12)? >> 4) * 4)?;
    loop {
        match options {
            [1, rest @ ..] => options = rest,
            [2, 4, a, b, ..] => return Some(u16::from_be_bytes([*a, *b])),
            [_, length, ..] if *length >= 2 => options = options.get(usize::from(*length)..)?,
            _ => return None,
        }
    }
}

fn connect_with_mss(namespace: &Namespace, to: SocketAddr, mss: u32) -> io::Result<()> {
    namespace.run(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_tcp_mss(mss)?;
        socket.connect_timeout(&to.into(), LONG)
    })
}

/// A datagram that must not be fragmented and does not fit is answered by netd; the sender's own kernel believes it.
#[test]
fn a_datagram_with_df_gets_the_error() {
    need_root!();
    gets_the_error(Narrow::new());
}

/// No rule of anybody's eats that answer, in either family.
#[test]
fn the_error_comes_through_every_rule_set() {
    need_root!();
    for rules in [
        RuleSet::docker_20_10(),
        RuleSet::docker_29(),
        RuleSet::oracle_cloud(),
        RuleSet::tailscale(),
        RuleSet::ufw(),
        RuleSet::wg_quick(),
        RuleSet::forward_drop(),
    ] {
        println!("beside {}", rules.name());
        let twin = rules.ipv6_twin();
        gets_the_error(Narrow::beside(vec![rules, twin]));
    }
}

/// Of all that containers send, the stack sees nothing.
const EATS_CONTAINERS: &str = "*raw\n\
    -A PREROUTING -i br-+ -j DROP\n\
    COMMIT\n\
    *mangle\n\
    -A PREROUTING -m conntrack --ctstate INVALID -j DROP\n\
    COMMIT\n";

/// Not even rules that eat whatever of a container reaches the stack: nothing of it is punted there.
#[test]
fn the_error_comes_where_the_stack_sees_nothing_of_containers() {
    need_root!();
    let narrow = Narrow::new();
    let world = &narrow.world;
    let n2b = &world.host.container("n2b").namespace;
    let network = StandardHost::network("n2");
    let gateways = [network.gateway(), network.gateway6().expect("IPv6")];
    let ask = |gateway: IpAddr, patience| {
        let options = ProbeOptions::default().timeout(patience);
        udp_probe(n2b, at(gateway, HOST_SERVICE), &options)
    };
    // The control: a packet to the stack passes without the rules, and with them is eaten and counted.
    for gateway in gateways {
        let got = ask(gateway, LONG);
        world.check(&format!("{gateway}, no rules"), "ok", &got, got.answered());
    }
    // Of IPv6, all but neighbour discovery.
    let discovery = "*raw\n-A PREROUTING -p ipv6-icmp -j ACCEPT\n";
    let ipv6 = EATS_CONTAINERS.replacen("*raw\n", discovery, 1);
    for rules in [
        RuleSet::new("eats containers", EATS_CONTAINERS),
        RuleSet::new("eats containers", &ipv6).ipv6(),
    ] {
        let host = &world.host.host;
        host.load_rules(&rules, IptablesBackend::Default)
            .expect("rules");
    }
    for (gateway, family) in gateways.into_iter().zip(["ip", "ip6"]) {
        let before = world.host.host.counters().expect("counters");
        let got = ask(gateway, Duration::from_millis(500));
        world.check(&format!("{gateway}, rules"), "none", &got, !got.answered());
        let after = world.host.host.counters().expect("counters");
        let eats = format!("{family} raw PREROUTING");
        let moved = after.moved_since(&before);
        let eaten = moved
            .iter()
            .any(|m| m.rule.starts_with(&eats) && m.rule.ends_with("-j DROP"));
        world.check(&eats, "+1 -j DROP", format!("{moved:?}"), eaten);
    }
    gets_the_error(narrow);
}

fn gets_the_error(narrow: Narrow) {
    let n2b = &narrow.world.host.container("n2b").namespace;
    for (Addresses { host, far, .. }, headers) in addresses().into_iter().zip([28, 48]) {
        let socket = n2b
            .run(|| without_fragments(at(far, PORT)))
            .expect("a socket");
        let server = narrow
            .path
            .far
            .run(|| UdpSocket::bind(at(far, PORT)))
            .expect("a socket");
        let short = Some(Duration::from_millis(20));
        server.set_read_timeout(short).expect("a timeout");
        let largest = MTU as usize - headers;
        // The control: what fits is answered, and no error is pending.
        let answer = ask(&socket, &server, largest);
        narrow.world.check(
            &format!("{largest} bytes to {far}"),
            "an answer",
            format!("{answer:?}"),
            answer.as_ref().is_ok_and(|seen| *seen == host),
        );
        let error = ask(&socket, &server, largest + 1);
        narrow.world.check(
            &format!("{} bytes to {far}", largest + 1),
            "EMSGSIZE",
            format!("{error:?}"),
            error
                .as_ref()
                .is_err_and(|e| e.raw_os_error() == Some(Errno::EMSGSIZE as i32)),
        );
        let mtu = path_mtu(&socket).expect("the path's MTU");
        narrow.world.check(
            &format!("path MTU to {far}"),
            MTU,
            mtu,
            u32::try_from(mtu) == Ok(MTU),
        );
        // Now the kernel knows by itself, and what fits still goes.
        let refused = socket.send(&vec![0; largest + 1]);
        narrow.world.check(
            &format!("{} bytes to {far} again", largest + 1),
            "refused by the own kernel",
            format!("{refused:?}"),
            refused.is_err(),
        );
        let answer = ask(&socket, &server, largest);
        narrow.world.check(
            &format!("{largest} bytes to {far} again"),
            "an answer",
            format!("{answer:?}"),
            answer.is_ok(),
        );
    }
    narrow.end();
}

/// A connected socket whose datagrams bear DF, or may not be fragmented by the sender (ip(7), ipv6(7)).
pub fn without_fragments(to: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() {
        std::net::Ipv4Addr::UNSPECIFIED.into()
    } else {
        std::net::Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0))?;
    if to.is_ipv4() {
        set(
            &socket,
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            libc::IP_PMTUDISC_DO,
        )?;
    } else {
        set(
            &socket,
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_DO,
        )?;
    }
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    Ok(socket)
}

/// Sends a datagram of so many bytes to a socket of the far server, which answers it shortly: an answer of the same
/// length would be too large itself. Returns whom the server saw, or the error that came back instead.
fn ask(socket: &UdpSocket, server: &UdpSocket, length: usize) -> io::Result<IpAddr> {
    let mut buffer = vec![0; 4096];
    socket.send(&vec![0x42; length])?;
    let deadline = Instant::now() + Duration::from_secs(3);
    let mut seen = None;
    loop {
        if let Ok((got, from)) = server.recv_from(&mut buffer)
            && got == length
        {
            server.send_to(b"answer", from)?;
            seen = Some(from.ip());
        }
        match socket.recv(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if Instant::now() >= deadline {
                    return Err(error);
                }
            }
            Err(error) => return Err(error),
            Ok(_) => return seen.ok_or_else(|| io::Error::other("an answer to nothing")),
        }
    }
}

pub fn path_mtu(socket: &UdpSocket) -> io::Result<libc::c_int> {
    let (level, name) = if socket.local_addr()?.is_ipv4() {
        (libc::IPPROTO_IP, libc::IP_MTU)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU)
    };
    let mut value: libc::c_int = 0;
    let mut length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the pointers are to live locals, and the length is that of the value.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(value)
    } else {
        Err(io::Error::last_os_error())
    }
}

pub fn set(
    socket: &impl AsRawFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the pointer is to a live integer of the length given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
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
