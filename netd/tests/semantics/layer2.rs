//! What only a frame made by hand can say: tags, foreign MACs, frames for others, and gateways that are containers.

use std::net::IpAddr;

use netd::lab::{
    CLIENT, Capture, DATAGRAM, Frame, HOST, IptablesBackend, Question, Route, RuleSet,
    StandardHostOptions, WEB, Want, Way, frame, ip,
};

use super::world::{World, at, by, need_root};

const NOBODY: [u8; 6] = [0x02, 0, 0, 0, 0, 0x99];

#[test]
fn tags_from_containers() {
    need_root!();
    let world = World::standard(StandardHostOptions::default());
    let (q, ad) = (frame::ETHERTYPE_VLAN, frame::ETHERTYPE_SERVICE_VLAN);
    for (part, from, to) in [("icc = true", "c0", "c0b"), ("icc = false", "n1a", "n1b")] {
        let (a, b) = (world.host.container(from), world.host.container(to));
        let plain = |port| {
            Frame::ethernet(a.mac, b.mac)
                .ip(a.v4, b.v4)
                .udp(port, DATAGRAM)
        };
        let mut frames = vec![
            ("priority tag", plain(5001).vlan(q, 0)),
            ("VLAN 5", plain(5002).vlan(q, 5)),
            ("two tags", plain(5003).vlan(q, 0).vlan(q, 0)),
            ("service tag", plain(5004).vlan(ad, 0)),
            ("service tag and tag", plain(5005).vlan(ad, 0).vlan(q, 0)),
            ("untagged", plain(5006)),
        ];
        let (from, at) = ((&a.namespace, "eth0"), (&b.namespace, "eth0"));
        if part == "icc = true" {
            world.frames(part, from, at, &frames, &["untagged"]);
            continue;
        }
        // Here the untagged one is stopped as well; what shows that the capture sees is what asks for MACs.
        let arp = Frame::ethernet(a.mac, [0xff; 6]).ethertype(frame::ETHERTYPE_ARP);
        frames.push(("ARP", arp));
        world.frames(part, from, at, &frames, &["ARP"]);
    }
    world.end();
}

#[test]
fn frames_on_the_uplink() {
    need_root!();
    let world = World::standard(StandardHostOptions::default());
    let (client, host) = (&world.host.client, &world.host.host);
    host.set_promiscuous("up0", true).expect("promiscuous");
    let (own, up0) = (
        client.mac("eth0").expect("MAC"),
        host.mac("up0").expect("MAC"),
    );
    let n2b = &world.host.container("n2b").namespace;
    let to = |mac, port| Frame::ethernet(own, mac).ip(CLIENT, HOST).udp(port, 8084);
    let to6 = |mac, port| {
        Frame::ethernet(own, mac)
            .ip(ip("fd99::2"), ip("fd99::1"))
            .udp(port, 8084)
    };
    world.frames(
        "uplink",
        (client, "eth0"),
        (n2b, "eth0"),
        &[
            ("another MAC (OTHERHOST)", to(NOBODY, 5001)),
            ("another MAC (OTHERHOST), IPv6", to6(NOBODY, 5002)),
            ("VLAN 100", to(up0, 5003).vlan(frame::ETHERTYPE_VLAN, 100)),
            ("IPv6", to6(up0, 5004)),
            ("own MAC", to(up0, 5005)),
        ],
        &["own MAC", "IPv6"],
    );
    world.end();
}

#[test]
fn sources_that_cannot_be() {
    need_root!();
    let world = World::standard(StandardHostOptions::default());
    let (client, host) = (&world.host.client, &world.host.host);
    let eth = Frame::ethernet(
        client.mac("eth0").expect("MAC"),
        host.mac("up0").expect("MAC"),
    );
    let n2b = &world.host.container("n2b").namespace;
    let of = |to: IpAddr, sources: &[&'static str]| -> Vec<(&'static str, Frame)> {
        let numbered = sources.iter().zip(6001..);
        numbered
            .map(|(source, port)| (*source, eth.clone().ip(ip(source), to).udp(port, 8084)))
            .collect()
    };
    let v4 = [
        "10.201.2.2",
        "10.200.0.2",
        "198.18.0.1",
        "127.0.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "0.0.0.1",
        "240.0.0.1",
        "198.18.0.2",
    ];
    world.frames(
        "source",
        (client, "eth0"),
        (n2b, "eth0"),
        &of(HOST.into(), &v4),
        &["198.18.0.2"],
    );
    let v6 = ["fd00:201:2::2", "fd99::1", "::1", "ff02::1", "fd99::2"];
    world.frames(
        "source",
        (client, "eth0"),
        (n2b, "eth0"),
        &of(ip("fd99::1"), &v6),
        &["fd99::2"],
    );
    world.end();
}

#[test]
fn frames_to_another_mac_are_the_bridges() {
    need_root!();
    let world = World::standard(StandardHostOptions::default());
    let (c0, c0b) = (world.host.container("c0"), world.host.container("c0b"));
    let bridge = world.host.host.mac("br-def").expect("MAC");
    let to = |mac, port| {
        Frame::ethernet(c0.mac, mac)
            .ip(c0.v4, CLIENT)
            .udp(port, DATAGRAM)
    };
    let frames = [
        ("to the neighbour's MAC", to(c0b.mac, 5001)),
        ("to the bridge's MAC", to(bridge, 5002)),
    ];
    let neighbour = Capture::start(&c0b.namespace, "eth0").expect("capture");
    // By netd the first would reach the client around the neighbour.
    world.frames(
        "third MAC",
        (&c0.namespace, "eth0"),
        (&world.host.client, "eth0"),
        &frames,
        &["to the bridge's MAC"],
    );
    let came = neighbour
        .stop()
        .iter()
        .any(|f| f.decoded.payload == b"to the neighbour's MAC");
    world.check("third MAC: the neighbour", "has it", came, came);

    // A bridge that has forgotten where a MAC is floods; the frame is nobody else's.
    let flood = |mac, port| {
        Frame::ethernet(bridge, mac)
            .ip(ip("10.200.0.1"), c0b.v4)
            .udp(port, DATAGRAM)
    };
    world.frames(
        "flooded",
        (&world.host.host, "br-def"),
        (&c0b.namespace, "eth0"),
        &[
            ("for another MAC", flood(NOBODY, 5003)),
            ("for its MAC", flood(c0b.mac, 5004)),
        ],
        &["for its MAC"],
    );
    world.end();
}

#[test]
fn a_container_whose_gateway_is_a_container() {
    need_root!();
    if !IptablesBackend::Default.installed() {
        println!("skipped: iptables is not installed, and the gateway needs it to translate");
        return;
    }
    let world = World::standard(StandardHostOptions::default());
    let (c0, c0b) = (world.host.container("c0"), world.host.container("c0b"));
    c0.namespace
        .replace_route(&Route::default_via(c0b.v4))
        .expect("route");
    c0b.namespace
        .set_sysctl("net/ipv4/ip_forward", 1)
        .expect("sysctl");
    // Else it tells its neighbour the better way.
    for device in ["all", "eth0"] {
        c0b.namespace
            .set_sysctl(&format!("net/ipv4/conf/{device}/send_redirects"), 0)
            .expect("sysctl");
    }
    let to = at(CLIENT, WEB);
    // A gateway that does not translate sends a source that is not its own: dropped, not leaked.
    world.ask(
        "not translated",
        &[Question::new("c0", Way::Tcp, to, Want::Nothing)],
    );
    let rules = RuleSet::new(
        "masquerade",
        "*nat\n-A POSTROUTING -s 10.200.0.2/32 -o eth0 -j MASQUERADE\nCOMMIT\n",
    );
    c0b.namespace
        .load_rules(&rules, IptablesBackend::Default)
        .expect("rules");
    let by_gateway = Capture::filtered(&c0b.namespace, "eth0", |f| {
        f.info.outgoing() && f.decoded.destination == Some(CLIENT.into())
    })
    .expect("capture");
    world.ask(
        "through the gateway",
        &[Question::new("c0", Way::Tcp, to, by("client", HOST))],
    );
    let packets = by_gateway.stop().len();
    world.check(
        "packets through the gateway container",
        "some",
        packets,
        packets > 2,
    );
    world.ask(
        "the gateway itself",
        &[Question::new("c0b", Way::Tcp, to, by("client", HOST))],
    );
    world.end();
}
