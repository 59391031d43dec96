//! Three network namespaces: a client, a host with one bridge, a container behind it.
//!
//! ```text
//!  client 198.18.0.2 ── cl0 ═ up0 ── 198.18.0.1 host 10.200.0.1 ── docker0 ── veth0 ═ eth0 ── container 10.200.0.2
//! ```

use std::net::Ipv4Addr;

use anyhow::ensure;
use netd::lab::{Frame, Mac, Namespace, Offload, Route, VethEnd, add_veth, ip, net};

use crate::bpf::abi::FRAME;

/// The client's address.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
/// The host's address on its uplink.
pub const HOST: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// The container's address.
pub const CONTAINER: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 2);
/// The published port of the host.
pub const HOST_PORT: u16 = 8084;
/// The container's port behind it.
pub const CONTAINER_PORT: u16 = 5000;
/// The source port of the client's first flow; the others follow.
pub const CLIENT_PORT: u16 = 2000;
/// The most flows that source ports are there for.
pub const MAX_FLOWS: u16 = 60_000;
/// The client's device.
pub const CLIENT_DEVICE: &str = "cl0";
/// The host's uplink.
pub const UPLINK: &str = "up0";
/// The host's bridge.
pub const BRIDGE: &str = "docker0";
/// The host's end of the container's veth pair.
pub const PORT: &str = "veth0";
/// The container's device.
pub const CONTAINER_DEVICE: &str = "eth0";
/// Time to live as the client sends it.
pub const TTL: u8 = 64;

/// The three namespaces; they go away when this is dropped.
pub struct Topology {
    /// Where frames come from.
    pub client: Namespace,
    /// Where the backend works.
    pub host: Namespace,
    /// Where frames go to.
    pub container: Namespace,
    /// The address of [`CLIENT_DEVICE`].
    pub client_mac: Mac,
    /// The address of [`UPLINK`].
    pub uplink_mac: Mac,
    /// The address of [`BRIDGE`].
    pub bridge_mac: Mac,
    /// The address of [`CONTAINER_DEVICE`].
    pub container_mac: Mac,
}

impl Topology {
    /// Builds it, with every link ready and nothing that forwards.
    pub fn build() -> anyhow::Result<Self> {
        let client = Namespace::create("client")?;
        let host = Namespace::create("host")?;
        let container = Namespace::create("container")?;

        add_veth(
            &VethEnd::new(&client, CLIENT_DEVICE),
            &VethEnd::new(&host, UPLINK),
        )?;
        // A veth takes frames from XDP only where its far end has NAPI, which GRO switches on.
        host.set_offload(UPLINK, Offload::GenericReceive, true)?;
        client.add_address(CLIENT_DEVICE, net("198.18.0.2/24"))?;
        host.add_address(UPLINK, net("198.18.0.1/24"))?;

        host.add_bridge(BRIDGE, None)?;
        host.add_address(BRIDGE, net("10.200.0.1/24"))?;
        add_veth(
            &VethEnd::new(&host, PORT),
            &VethEnd::new(&container, CONTAINER_DEVICE),
        )?;
        host.attach(PORT, BRIDGE)?;
        container.add_address(CONTAINER_DEVICE, net("10.200.0.2/24"))?;

        for (namespace, device) in [
            (&client, CLIENT_DEVICE),
            (&host, UPLINK),
            (&host, BRIDGE),
            (&host, PORT),
            (&container, CONTAINER_DEVICE),
        ] {
            namespace.set_up(device)?;
        }
        for (namespace, device) in [
            (&client, CLIENT_DEVICE),
            (&host, UPLINK),
            (&host, PORT),
            (&host, BRIDGE),
            (&container, CONTAINER_DEVICE),
        ] {
            namespace.wait_ready(device)?;
        }
        container.add_route(&Route::default_via(ip("10.200.0.1")))?;

        Ok(Self {
            client_mac: client.mac(CLIENT_DEVICE)?,
            uplink_mac: host.mac(UPLINK)?,
            bridge_mac: host.mac(BRIDGE)?,
            container_mac: container.mac(CONTAINER_DEVICE)?,
            client,
            host,
            container,
        })
    }

    /// The frame of the client's first flow: UDP to the published port.
    pub fn frame(&self) -> anyhow::Result<[u32; FRAME / 4]> {
        const HEADERS: usize = 14 + 20 + 8;
        let payload: Vec<u8> = (0..FRAME - HEADERS).map(|i| b'a' + i as u8).collect();
        let bytes = Frame::ethernet(self.client_mac, self.uplink_mac)
            .ip(CLIENT, HOST)
            .ttl(TTL)
            .udp(CLIENT_PORT, HOST_PORT)
            .payload(&payload)
            .build();
        ensure!(bytes.len() == FRAME, "a frame of {} bytes", bytes.len());
        let mut words = [0; FRAME / 4];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Ok(words)
    }
}
