//! What of ABI 1 outlives it, as it was: never to be changed. Other maps of it hold what a daemon
//! finds out anew.

use netd_common::abi::{self, flow_flag};
use netd_common::wire::{Address, Wire};

use super::{Inherited, Layout};

/// ABI 1: flows without a beginning and without [`flow_flag::OUTGOING`], embryos in an LRU map, no
/// rings of seats.
#[derive(Debug)]
pub(super) struct V1;

/// The one element of `CONFIG`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Config {
    pub epoch: u32,
    pub flags: u32,
    pub nat_first: u16,
    pub nat_last: u16,
    pub seed: u32,
    pub synced_at: u32,
    pub reserved: [u32; 3],
}

/// Key of a flow table.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tuple<A> {
    pub src: A,
    pub dst: A,
    pub sport: [u8; 2],
    pub dport: [u8; 2],
    pub proto: u8,
    pub reserved: [u8; 3],
}

/// Value of a flow table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Flow<A> {
    pub packets: u64,
    pub bytes: u64,
    pub last_seen: u32,
    pub epoch: u32,
    pub routed_at: u32,
    pub in_ifindex: u32,
    pub out_ifindex: u32,
    pub generation: u32,
    pub owner: u32,
    pub flags: u16,
    pub mtu: u16,
    pub state: u8,
    pub kind: u8,
    pub in_mac: [u8; 6],
    pub via: [u8; 16],
    pub src: A,
    pub dst: A,
    pub sport: [u8; 2],
    pub dport: [u8; 2],
    pub reserved: [u8; 4],
}

// SAFETY: `repr(C)`, integers only; the size is that of the fields.
unsafe impl Wire for Config {}
// SAFETY: as above; an address is bytes, and the sizes of both families are asserted.
unsafe impl<A: Address> Wire for Tuple<A> {}
// SAFETY: as above.
unsafe impl<A: Address> Wire for Flow<A> {}
const _: () = assert!(
    size_of::<Config>() == 32
        && size_of::<Tuple<abi::V4Addr>>() == 16
        && size_of::<Tuple<abi::V6Addr>>() == 40
        && size_of::<Flow<abi::V4Addr>>() == 88
        && size_of::<Flow<abi::V6Addr>>() == 112
);

impl Layout for V1 {
    const VERSION: u32 = 1;
    type Config = Config;
    type Tuple<A: Address> = Tuple<A>;
    type Flow<A: Address> = Flow<A>;

    fn config(old: &Config) -> Inherited {
        Inherited {
            epoch: old.epoch,
            seed: old.seed,
            flags: old.flags,
            synced_at: old.synced_at,
        }
    }

    fn tuple<A: Address>(old: &Tuple<A>) -> abi::Tuple<A> {
        abi::Tuple {
            src: old.src,
            dst: old.dst,
            sport: old.sport,
            dport: old.dport,
            proto: old.proto,
            reserved: [0; 3],
        }
    }

    fn flow<A: Address>(old: &Flow<A>) -> abi::Flow<A> {
        // The container that the flow is accounted to has sent the packet that opened it: as the
        // half for its packets, or the one for the replies, tells.
        let opener = if old.flags & flow_flag::REPLY == 0 {
            old.in_ifindex
        } else {
            old.out_ifindex
        };
        let outgoing = if opener == old.owner {
            flow_flag::OUTGOING
        } else {
            0
        };
        abi::Flow {
            packets: old.packets,
            bytes: old.bytes,
            last_seen: old.last_seen,
            epoch: old.epoch,
            routed_at: old.routed_at,
            in_ifindex: old.in_ifindex,
            out_ifindex: old.out_ifindex,
            generation: old.generation,
            owner: old.owner,
            flags: old.flags | outgoing,
            mtu: old.mtu,
            state: old.state,
            kind: old.kind,
            in_mac: old.in_mac,
            via: old.via,
            src: old.src,
            dst: old.dst,
            sport: old.sport,
            dport: old.dport,
            // When it began was not kept.
            created: old.last_seen,
        }
    }
}
