//! Packets of the host's own sockets to the containers that [`crate::host_access`] led them to.
//!
//! A socket keeps the container's address for as long as it is open. The container may go, and its
//! address be given to another, with the daemon dead: then only this keeps the socket's packets
//! from the new owner.

use crate::{
    abi::SocketKey,
    packet::Packet,
    parse::parse,
    tables::Tables,
    wire::{Address, ETH_LEN, Eth, Family, V4, V6, ethertype},
};

/// Host veth of the only container that this packet may go to; 0: the host's sender was led to
/// none, and may send where it likes. A fragment without ports is no one's: alone it is never a
/// datagram.
#[inline(always)]
pub(super) fn bound_to<P: Packet, T: Tables<V4> + Tables<V6>>(
    packet: &mut P,
    tables: &T,
    eth: &Eth,
) -> u32 {
    let cookie = <T as Tables<V4>>::socket_cookie(tables);
    if cookie == 0 {
        return 0;
    }
    match eth.ethertype {
        ethertype::IPV4 => of_family::<V4, P, T>(packet, tables, cookie),
        ethertype::IPV6 => of_family::<V6, P, T>(packet, tables, cookie),
        _ => 0,
    }
}

#[inline(always)]
fn of_family<F: Family, P: Packet, T: Tables<F>>(packet: &mut P, tables: &T, cookie: u64) -> u32 {
    let Some(scratch) = tables.scratch() else {
        return 0;
    };
    let Ok(parsed) = parse::<F>(packet, ETH_LEN) else {
        return 0;
    };
    scratch.parsed = parsed;
    let tuple = &scratch.parsed.tuple;
    tables.socket_peer(&SocketKey {
        cookie,
        addr: tuple.dst.mapped(),
        port: tuple.dport,
        proto: tuple.proto,
        reserved: [0; 5],
    })
}
