//! The steps of the slow path as global functions: the verifier checks each by itself.
//!
//! A global function takes the context and numbers and returns a number; the rest is in `SCRATCH_*`.

use aya_ebpf::bindings::__sk_buff;
use netd_common::{
    packet::Packet,
    pipeline::steps,
    tables::Steps,
    wire::{V4, V6},
};

use crate::{
    skb::Skb,
    tables::{self, Maps},
};

macro_rules! subprograms {
    ($family:ty, $from_endpoint:ident, $from_uplink:ident, $proceed:ident, $decide:ident,
     $create:ident, $send:ident, $try_source_port:ident, $kernel_forwards:ident, $route:ident, $host_listens:ident) => {
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $from_endpoint(ctx: *mut __sk_buff, ifindex: u32) -> u64 {
            steps::from_endpoint::<$family, _, _>(&mut Skb(ctx), &Maps(ctx), ifindex)
        }
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $from_uplink(ctx: *mut __sk_buff, ifindex: u32) -> u64 {
            steps::from_uplink::<$family, _, _>(&mut Skb(ctx), &Maps(ctx), ifindex)
        }
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $proceed(ctx: *mut __sk_buff, ifindex: u32, decision: u32) -> u64 {
            steps::proceed::<$family, _, _>(&mut Skb(ctx), &Maps(ctx), ifindex, decision)
        }
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $decide(ctx: *mut __sk_buff, ifindex: u32, network: u32, fresh: u32) -> u32 {
            steps::decide::<$family, _>(&Maps(ctx), ifindex, network, fresh)
        }
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $send(ctx: *mut __sk_buff) -> u64 {
            steps::send::<$family, _, _>(&mut Skb(ctx), &Maps(ctx))
        }
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $create(ctx: *mut __sk_buff) -> u32 {
            steps::create::<$family, _>(&Maps(ctx))
        }
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $try_source_port(ctx: *mut __sk_buff, attempt: u32) -> u32 {
            steps::try_source_port::<$family, _>(&Maps(ctx), attempt)
        }
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $kernel_forwards(ctx: *mut __sk_buff, translated: u32) -> u32 {
            steps::kernel_forwards::<$family, _, _>(&mut Skb(ctx), &Maps(ctx), translated)
        }
        #[inline(never)]
        #[unsafe(no_mangle)]
        pub extern "C" fn $route(ctx: *mut __sk_buff) -> u32 {
            tables::route::<$family>(ctx)
        }
        #[inline(never)]
        #[unsafe(no_mangle)]
        pub extern "C" fn $host_listens(ctx: *mut __sk_buff) -> u32 {
            tables::host_listens::<$family>(ctx)
        }

        impl Steps<$family> for Maps {
            #[inline(always)]
            fn from_endpoint<P: Packet>(&self, _: &mut P, ifindex: u32) -> u64 {
                $from_endpoint(self.0, ifindex)
            }
            #[inline(always)]
            fn from_uplink<P: Packet>(&self, _: &mut P, ifindex: u32) -> u64 {
                $from_uplink(self.0, ifindex)
            }
            #[inline(always)]
            fn proceed<P: Packet>(&self, _: &mut P, ifindex: u32, decision: u32) -> u64 {
                $proceed(self.0, ifindex, decision)
            }
            #[inline(always)]
            fn decide(&self, ifindex: u32, network: u32, fresh: u32) -> u32 {
                $decide(self.0, ifindex, network, fresh)
            }
            #[inline(always)]
            fn send<P: Packet>(&self, _: &mut P) -> u64 {
                $send(self.0)
            }
            #[inline(always)]
            fn create(&self) -> u32 {
                $create(self.0)
            }
            #[inline(always)]
            fn try_source_port(&self, attempt: u32) -> u32 {
                $try_source_port(self.0, attempt)
            }
            #[inline(always)]
            fn kernel_forwards<P: Packet>(&self, _: &mut P, translated: u32) -> u32 {
                $kernel_forwards(self.0, translated)
            }
        }
    };
}

subprograms!(
    V4,
    from_endpoint_v4,
    from_uplink_v4,
    proceed_v4,
    decide_v4,
    create_v4,
    send_v4,
    try_source_port_v4,
    kernel_forwards_v4,
    route_v4,
    host_listens_v4
);
subprograms!(
    V6,
    from_endpoint_v6,
    from_uplink_v6,
    proceed_v6,
    decide_v6,
    create_v6,
    send_v6,
    try_source_port_v6,
    kernel_forwards_v6,
    route_v6,
    host_listens_v6
);
