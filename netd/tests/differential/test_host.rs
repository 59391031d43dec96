//! A host in a network namespace: devices, routes and listeners, and what the model is told of them.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Result;
use netd::lab::{Mac, Namespace, Route, RouteType, VethEnd, add_veth, ip, net};
use netd_common::drop::DropReason;
use netd_common::tables::{Route as Answer, RouteQuery};
use netd_common::wire::{Address, V4Addr, V6Addr};
use socket2::{Domain, Protocol, Socket, Type};

use crate::rules;

/// How many bridges there are. The last one does not forward.
pub const BRIDGES: usize = 5;
/// How many host veths of containers there are.
pub const VETHS: usize = 12;

/// An interface.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    pub ifindex: u32,
    pub mac: Mac,
}

/// The host.
pub struct TestHost {
    pub namespace: Namespace,
    pub bridges: Vec<Device>,
    pub veths: Vec<Device>,
    /// With addresses, routes and a default route.
    pub up0: Device,
    /// Another one with a smaller MTU.
    pub up1: Device,
    /// One that netd is told has no Ethernet header.
    pub tunnel: Device,
    /// One that netd is not told of.
    pub unmanaged: Device,
    _far: Namespace,
    _listeners: Vec<Socket>,
}

/// Ports that real programs listen on: protocol, address (None: any), port.
pub const LISTENERS: [(u8, Option<Ipv4Addr>, u16); 5] = [
    (6, None, 8085),
    (17, None, 8086),
    (6, Some(Ipv4Addr::new(198, 18, 0, 1)), 8087),
    (6, None, 61001),
    (17, None, 61002),
];

impl TestHost {
    /// Builds it.
    pub fn build() -> Result<Self> {
        let namespace = Namespace::create("differential")?;
        let far = Namespace::create("far")?;
        let mut bridges = Vec::new();
        for i in 0..BRIDGES {
            let name = format!("b{i}");
            let mac = [2, 0x42, 10, 200, 0, i as u8];
            namespace.add_bridge(&name, Some(mac))?;
            namespace.set_up(&name)?;
            let forwards = i + 1 < BRIDGES;
            for family in ["ipv4", "ipv6"] {
                let key = format!("net/{family}/conf/{name}/forwarding");
                namespace.set_sysctl(&key, u8::from(forwards))?;
            }
            bridges.push(Device {
                ifindex: namespace.ifindex(&name)?,
                mac,
            });
        }
        let veth = |name: &str, number: u8, mtu: u32| -> Result<Device> {
            let mac = [2, 0x42, 0, 0, 1, number];
            let peer = format!("p{name}");
            let end = VethEnd::new(&namespace, name).mac(mac).mtu(mtu);
            add_veth(&end, &VethEnd::new(&far, &peer).mtu(mtu))?;
            namespace.set_up(name)?;
            far.set_up(&peer)?;
            Ok(Device {
                ifindex: namespace.ifindex(name)?,
                mac,
            })
        };
        let veths = (0..VETHS)
            .map(|i| veth(&format!("e{i}"), i as u8, 1500))
            .collect::<Result<Vec<_>>>()?;
        let up0 = veth("up0", 100, 1500)?;
        let up1 = veth("up1", 101, 1400)?;
        let tunnel = veth("tun0", 102, 1500)?;
        let unmanaged = veth("other0", 103, 1500)?;
        for (device, address) in [
            ("up0", "198.18.0.1/24"),
            ("up0", "fd99::1/64"),
            ("up1", "198.18.1.1/24"),
            ("up1", "fd99:1::1/64"),
        ] {
            namespace.add_address(device, net(address))?;
        }
        for device in ["up0", "up1", "tun0", "other0"] {
            namespace.wait_ready(device)?;
        }
        let unicast = [
            ("0.0.0.0/0", Some("198.18.0.254"), "up0", "198.18.0.1"),
            ("100.64.0.0/16", Some("198.18.1.254"), "up1", "198.18.1.1"),
            ("100.68.0.0/24", None, "tun0", "198.18.0.1"),
            ("100.69.0.0/24", None, "other0", "198.18.0.1"),
            ("::/0", Some("fd99::fe"), "up0", "fd99::1"),
            ("fd64::/32", Some("fd99:1::fe"), "up1", "fd99:1::1"),
            ("fd68::/32", None, "tun0", "fd99::1"),
            ("fd69::/32", None, "other0", "fd99::1"),
        ];
        for (to, via, device, source) in unicast {
            let route = Route::to(net(to)).device(device).source(ip(source));
            let route = match via {
                Some(gateway) => route.via(ip(gateway)),
                None => route,
            };
            namespace.add_route(&route)?;
        }
        for (kind, v4, v6) in [
            (RouteType::BlackHole, "100.65.0.0/24", "fd65::/32"),
            (RouteType::Unreachable, "100.66.0.0/24", "fd66::/32"),
            (RouteType::Prohibit, "100.67.0.0/24", "fd67::/32"),
        ] {
            namespace.add_route(&Route::to(net(v4)).kind(kind))?;
            namespace.add_route(&Route::to(net(v6)).kind(kind))?;
        }
        rules::add(&namespace)?;
        let listeners = namespace.run(listen)?;
        Ok(Self {
            namespace,
            bridges,
            veths,
            up0,
            up1,
            tunnel,
            unmanaged,
            _far: far,
            _listeners: listeners,
        })
    }

    /// Interfaces by number, as the routes above lead to them.
    fn device(&self, number: u8) -> (u32, u32) {
        match number {
            0 => (self.up0.ifindex, 1500),
            1 => (self.up1.ifindex, 1400),
            2 => (self.tunnel.ifindex, 1500),
            _ => (self.unmanaged.ifindex, 1500),
        }
    }

    /// Interfaces that packets may be forwarded from.
    fn forwarding(&self) -> Vec<u32> {
        let bridges = &self.bridges[..BRIDGES - 1];
        bridges.iter().map(|bridge| bridge.ifindex).collect()
    }

    /// What the IPv4 routes above answer, for queries from these bridges.
    pub fn route_v4(
        &self,
    ) -> impl Fn(&RouteQuery<V4Addr>) -> Result<Answer<V4Addr>, DropReason> + use<> {
        let devices = [0, 1, 2, 3].map(|n| self.device(n));
        let forwarding = self.forwarding();
        move |query| {
            if !forwarding.contains(&query.iif) {
                return Err(DropReason::HelperFailed);
            }
            let [a, b, c, _] = query.dst.0;
            let (number, via, src) = match (a, b, c) {
                _ if rules::lead_elsewhere(query) => (1, Some([198, 18, 1, 254]), [198, 18, 1, 1]),
                (198, 18, 0) => (0, None, [198, 18, 0, 1]),
                (198, 18, 1) => (1, None, [198, 18, 1, 1]),
                (100, 64, _) => (1, Some([198, 18, 1, 254]), [198, 18, 1, 1]),
                (100, 65, 0) => return Err(DropReason::Blackhole),
                (100, 66, 0) => return Err(DropReason::NoRoute),
                (100, 67, 0) => return Err(DropReason::Prohibited),
                (100, 68, 0) => (2, None, [198, 18, 0, 1]),
                (100, 69, 0) => (3, None, [198, 18, 0, 1]),
                _ => (0, Some([198, 18, 0, 254]), [198, 18, 0, 1]),
            };
            let (oif, mtu) = devices[number];
            Ok(Answer {
                oif,
                mtu,
                via: via.map_or(query.dst, V4Addr).padded(),
                via_v6: false,
                src: V4Addr(src),
            })
        }
    }

    /// What the IPv6 routes above answer, for queries from these bridges.
    pub fn route_v6(
        &self,
    ) -> impl Fn(&RouteQuery<V6Addr>) -> Result<Answer<V6Addr>, DropReason> + use<> {
        let devices = [0, 1, 2, 3].map(|n| self.device(n));
        let forwarding = self.forwarding();
        let addr = |text: &str| V6Addr::from(text.parse::<Ipv6Addr>().expect("an address"));
        move |query| {
            // bpf_ipv6_fib_lookup: what needs a strict interface is never forwarded.
            let strict = |a: &V6Addr| a.is_multicast() || a.is_link_local() || a.is_loopback();
            if strict(&query.src) || strict(&query.dst) {
                return Err(DropReason::NoRoute);
            }
            if !forwarding.contains(&query.iif) {
                return Err(DropReason::HelperFailed);
            }
            let b = query.dst.0;
            let (first, second) = ([b[0], b[1]], [b[2], b[3]]);
            let (number, via, src) = match (first, second) {
                _ if rules::lead_elsewhere(query) => (1, Some("fd99:1::fe"), "fd99:1::1"),
                ([0xfd, 0x99], [0, 0]) if b[4..8] == [0; 4] => (0, None, "fd99::1"),
                ([0xfd, 0x99], [0, 1]) if b[4..8] == [0; 4] => (1, None, "fd99:1::1"),
                ([0xfd, 0x64], [0, 0]) => (1, Some("fd99:1::fe"), "fd99:1::1"),
                ([0xfd, 0x65], [0, 0]) => return Err(DropReason::Blackhole),
                ([0xfd, 0x66], [0, 0]) => return Err(DropReason::NoRoute),
                ([0xfd, 0x67], [0, 0]) => return Err(DropReason::Prohibited),
                ([0xfd, 0x68], [0, 0]) => (2, None, "fd99::1"),
                ([0xfd, 0x69], [0, 0]) => (3, None, "fd99::1"),
                _ => (0, Some("fd99::fe"), "fd99::1"),
            };
            let (oif, mtu) = devices[number];
            Ok(Answer {
                oif,
                mtu,
                via: via.map_or(query.dst, addr).padded(),
                via_v6: true,
                src: addr(src),
            })
        }
    }

    /// MAC of an interface; that of `lo` is zero.
    pub fn mac(&self, ifindex: u32) -> Mac {
        let ups = [self.up0, self.up1, self.tunnel, self.unmanaged];
        let all = self.bridges.iter().chain(&self.veths).chain(&ups);
        all.into_iter()
            .find(|device| device.ifindex == ifindex)
            .map_or([0; 6], |device| device.mac)
    }
}

/// Opens [`LISTENERS`], for both families where they are bound to any address.
fn listen() -> Result<Vec<Socket>> {
    let mut sockets = Vec::new();
    for (protocol, address, port) in LISTENERS {
        let v4: SocketAddr = (address.unwrap_or(Ipv4Addr::UNSPECIFIED), port).into();
        let mut addresses = vec![(Domain::IPV4, v4)];
        if address.is_none() {
            addresses.push((Domain::IPV6, (Ipv6Addr::UNSPECIFIED, port).into()));
        }
        for (domain, address) in addresses {
            let kind = if protocol == 6 {
                (Type::STREAM, Protocol::TCP)
            } else {
                (Type::DGRAM, Protocol::UDP)
            };
            let socket = Socket::new(domain, kind.0, Some(kind.1))?;
            if domain == Domain::IPV6 {
                socket.set_only_v6(true)?;
            }
            socket.bind(&address.into())?;
            if protocol == 6 {
                socket.listen(1)?;
            }
            sockets.push(socket);
        }
    }
    Ok(sockets)
}
