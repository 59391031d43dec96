//! The host's own sockets and published ports: which address a `connect()` or `sendmsg()` is led
//! to, and which one `recvmsg()` and `getpeername()` show.
//!
//! No packet is rewritten. A program of the host that names a published port of a local address
//! gets the container's address put in its place before the kernel has seen any, so neither a
//! proxy nor `route_localnet` is needed. `SOCKETS` remembers what was asked for, and the packet
//! hooks hold the socket to the container that it was led to (`pipeline/host_socket.rs`).
//!
//! | the program names | means |
//! |---|---|
//! | 0.0.0.0, `::` | loopback, as for the kernel (net/ipv4/route.c, net/ipv6/tcp_ipv6.c) |
//! | `::ffff:a.b.c.d` | the IPv4 tables; the new address is of that form too |
//!
//! Left alone are sockets bound to a loopback address or to a device: the container cannot be
//! reached from there.

use crate::{
    abi::{Config, SocketKey, SocketPeer, Tuple, backend_flag, config_flag, local_kind},
    decide::published,
    sabotage::{Check, enforced},
    tables::Tables,
    wire::{Address, Family, V6Addr},
};

/// A socket of the host and the address that it is to talk to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Call<A> {
    /// IP protocol of the socket.
    pub proto: u8,
    /// The address that the program named. [`translate`] replaces unspecified by loopback.
    pub dst: A,
    /// The port that it named, wire order.
    pub dport: [u8; 2],
    /// The address that the socket is bound to, or that the datagram is to be sent from;
    /// unspecified: none.
    pub src: A,
    /// The port that the socket is bound to, wire order; 0: none.
    pub sport: [u8; 2],
    /// The interface that it is bound to; 0: none.
    pub device: u32,
    /// Out: address of the container.
    pub backend: A,
    /// Out: its port, wire order.
    pub backend_port: [u8; 2],
    /// Out: its host veth.
    pub ifindex: u32,
}

/// What [`translate`] says. Numbers, for they cross a BPF function.
pub mod answer {
    /// The address stays as it is.
    pub const LEAVE: u32 = 0;
    /// To `backend`, `backend_port`.
    pub const TRANSLATE: u32 = 1;
    /// The port is published, but its container is not running: ECONNREFUSED, as from a closed
    /// port.
    pub const REFUSE: u32 = 2;
}

/// What the host's socket table says of a tuple.
pub mod listener {
    /// No socket.
    pub const NONE: u32 = 0;
    /// A socket that takes it from anyone.
    pub const ANYONE: u32 = 1;
    /// A UDP socket that is connected to the tuple's source.
    pub const CONNECTED: u32 = 2;
}

/// Is a socket of the network namespace with this cookie netd's business?
#[must_use]
#[inline(always)]
pub fn is_of_host(config: &Config, netns_cookie: u64) -> bool {
    config.netns_cookie != 0 && config.netns_cookie == netns_cookie
}

/// Decides where a call leads: an [`answer`]. `listens` asks the host's socket table, and answers
/// with a [`listener`].
///
/// The same rule as for packets from the network: a program of the host that listens on the port
/// keeps it, unless the publish overrides. But a datagram to a socket that is connected to its
/// sender is an answer, and never translated.
#[inline(always)]
pub fn translate<F: Family, T: Tables<F>>(
    tables: &T,
    config: &Config,
    call: &mut Call<F::Addr>,
    listens: impl FnOnce(&Tuple<F::Addr>) -> u32,
) -> u32 {
    if !tables.port_published(call.proto, call.dport) || config.flags & config_flag::DRAIN != 0 {
        return answer::LEAVE;
    }
    if call.device != 0 || call.src.is_loopback() {
        return answer::LEAVE;
    }
    // IP_TRANSPARENT, IP_FREEBIND: replies to that address go elsewhere.
    if !call.src.is_unspecified() && tables.local(&call.src) != local_kind::UNICAST {
        return answer::LEAVE;
    }
    if call.dst.is_unspecified() {
        call.dst = F::Addr::LOOPBACK;
    }
    if tables.local(&call.dst) != local_kind::UNICAST {
        return answer::LEAVE;
    }
    let mut tuple = Tuple {
        src: call.src,
        dst: call.dst,
        sport: call.sport,
        dport: call.dport,
        proto: call.proto,
        reserved: [0; 3],
    };
    let Some(backend) = published::<F, T>(tables, &tuple) else {
        return answer::LEAVE;
    };
    if tuple.src.is_unspecified() {
        // What the kernel would send from.
        tuple.src = call.dst;
    }
    let found = listens(&tuple);
    let overridden = backend.flags & backend_flag::OVERRIDE != 0;
    if (found == listener::CONNECTED || found == listener::ANYONE && !overridden)
        && enforced(Check::HostListener)
    {
        return answer::LEAVE;
    }
    let Some(target) = tables.endpoint_of(&backend.addr) else {
        return answer::REFUSE;
    };
    if tables.endpoint(target.ifindex).is_none() || tables.network(target.network).is_none() {
        return answer::REFUSE;
    }
    let offset =
        u16::from_be_bytes(call.dport).wrapping_sub(u16::from_be_bytes(backend.host_first));
    call.backend = backend.addr;
    call.backend_port = u16::from_be_bytes(backend.container_first)
        .wrapping_add(offset)
        .to_be_bytes();
    call.ifindex = target.ifindex;
    answer::TRANSLATE
}

impl<A: Address> Call<A> {
    /// Key of a translated call in `SOCKETS`.
    #[must_use]
    #[inline(always)]
    pub fn key(&self, cookie: u64) -> SocketKey {
        key(cookie, self.proto, self.backend.mapped(), self.backend_port)
    }

    /// Value of a translated call in `SOCKETS`.
    #[must_use]
    #[inline(always)]
    pub fn peer(&self, now: u32) -> SocketPeer {
        SocketPeer {
            addr: self.dst.mapped(),
            port: self.dport,
            reserved: [0; 2],
            ifindex: self.ifindex,
            seen: now,
        }
    }
}

/// Key of a socket and the peer that `recvmsg()` or `getpeername()` is about to show.
#[must_use]
#[inline(always)]
pub fn key(cookie: u64, proto: u8, addr: V6Addr, port: [u8; 2]) -> SocketKey {
    SocketKey {
        cookie,
        addr,
        port,
        proto,
        reserved: [0; 5],
    }
}
