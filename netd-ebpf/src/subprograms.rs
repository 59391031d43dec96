//! The steps of the slow path as global functions: the verifier checks each by itself.
//!
//! A global function takes the context and numbers and returns a number; the rest is in `SCRATCH_*`.

use aya_ebpf::bindings::__sk_buff;
use netd_common::{
    flow,
    packet::Packet,
    pipeline::steps,
    room,
    tables::Steps,
    wire::{V4, V6},
};

use crate::{
    skb::Skb,
    tables::{self, Maps},
};

/// For steps that ask the maps only: what a function does not use LLVM does not pass, and the
/// verifier insists on a context where one is declared.
const NO_CONTEXT: *mut __sk_buff = core::ptr::null_mut();

macro_rules! subprograms {
    ($family:ty, $from_endpoint:ident, $from_uplink:ident,
     $read_quoted:ident, $icmp_error:ident, $send_error:ident,

     $proceed:ident, $reroute:ident, $classify:ident,
     $publish:ident, $direct:ident, $egress:ident, $ipsec:ident, $ipsec_covers:ident, $ipsec_weight:ident,
     $prepare:ident, $reserve:ident, $commit:ident, $send:ident, $promote:ident, $try_source_port:ident, $kernel_forwards:ident,
     $end:ident, $reclaim:ident, $claim_seat:ident, $probe_seat:ident, $vacate_seat:ident,
     $answer:ident, $fragment:ident, $clamp_mss:ident,
     $route:ident, $host_listens:ident, $track:ident, $remember:ident, $sum_sctp:ident) => {
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $track(ctx: *mut __sk_buff, ifindex: u32) -> u32 {
            steps::track::<$family, _, _>(&mut Skb(ctx), &Maps(ctx), ifindex);
            0
        }
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $sum_sctp(ctx: *mut __sk_buff, verdict: u64) -> u64 {
            steps::sum_sctp::<$family, _, _>(&mut Skb(ctx), &Maps(ctx), verdict)
        }
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $remember(verdict: u64) -> u32 {
            steps::remember::<$family, _>(&Maps(NO_CONTEXT), verdict);
            0
        }
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
        extern "C" fn $icmp_error(
            ctx: *mut __sk_buff,
            ifindex: u32,
            network: u32,
            decision: u32,
        ) -> u64 {
            steps::icmp_error::<$family, _, _>(
                &mut Skb(ctx),
                &Maps(ctx),
                ifindex,
                network,
                decision,
            )
        }
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $read_quoted(ctx: *mut __sk_buff) -> u32 {
            steps::read_quoted::<$family, _, _>(&mut Skb(ctx), &Maps(ctx))
        }
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $send_error(ctx: *mut __sk_buff) -> u64 {
            steps::send_error::<$family, _, _>(&mut Skb(ctx), &Maps(ctx))
        }
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $proceed(ctx: *mut __sk_buff, decision: u32) -> u64 {
            steps::proceed::<$family, _, _>(&mut Skb(ctx), &Maps(ctx), decision)
        }
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $reroute(ctx: *mut __sk_buff, ifindex: u32) -> u64 {
            steps::reroute::<$family, _, _>(&mut Skb(ctx), &Maps(ctx), ifindex)
        }
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $classify(ifindex: u32, network: u32, fresh: u32) -> u32 {
            steps::classify::<$family, _>(&Maps(NO_CONTEXT), ifindex, network, fresh)
        }
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $publish(ctx: *mut __sk_buff, ifindex: u32, network: u32, fresh: u32) -> u32 {
            steps::publish::<$family, _>(&Maps(ctx), ifindex, network, fresh)
        }
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $direct(ctx: *mut __sk_buff, ifindex: u32, network: u32, fresh: u32) -> u32 {
            steps::direct::<$family, _>(&Maps(ctx), ifindex, network, fresh)
        }
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $egress(ctx: *mut __sk_buff, ifindex: u32, network: u32, fresh: u32) -> u32 {
            steps::egress::<$family, _>(&Maps(ctx), ifindex, network, fresh)
        }
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $ipsec() -> u32 {
            steps::ipsec::<$family, _>(&Maps(NO_CONTEXT))
        }
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $ipsec_covers(side: u32) -> u32 {
            steps::ipsec_covers::<$family, _>(&Maps(NO_CONTEXT), side)
        }
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $ipsec_weight(index: u32, side: u32) -> u64 {
            steps::ipsec_weight::<$family, _>(&Maps(NO_CONTEXT), index, side)
        }
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $send(ctx: *mut __sk_buff) -> u64 {
            steps::send::<$family, _, _>(&mut Skb(ctx), &Maps(ctx))
        }
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $prepare() -> u32 {
            steps::prepare::<$family, _>(&Maps(NO_CONTEXT))
        }
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $reserve(ctx: *mut __sk_buff) -> u32 {
            steps::reserve::<$family, _>(&Maps(ctx))
        }
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $commit() -> u32 {
            steps::commit::<$family, _>(&Maps(NO_CONTEXT))
        }
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $promote() -> u32 {
            steps::promote::<$family, _>(&Maps(NO_CONTEXT))
        }
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $end(generation: u32) -> u32 {
            flow::end::<$family, _>(&Maps(NO_CONTEXT), generation);
            0
        }
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $reclaim(pressing: u32) -> u32 {
            u32::from(room::reclaim::<$family, _>(
                &Maps(NO_CONTEXT),
                pressing != 0,
            ))
        }
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $claim_seat(confirmed: u32, owner: u32) -> u64 {
            steps::claim_seat::<$family, _>(&Maps(NO_CONTEXT), confirmed, owner)
        }
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $probe_seat(confirmed: u32, index: u32, owner: u32) -> u32 {
            room::probe_seat::<$family, _>(&Maps(NO_CONTEXT), confirmed != 0, index, owner)
        }
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $vacate_seat(confirmed: u32, index: u32) -> u32 {
            u32::from(room::vacate_seat::<$family, _>(
                &Maps(NO_CONTEXT),
                confirmed != 0,
                index,
            ))
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
        extern "C" fn $answer(ctx: *mut __sk_buff, ifindex: u32, verdict: u64) -> u64 {
            steps::answer::<$family, _, _>(&mut Skb(ctx), &Maps(ctx), ifindex, verdict)
        }
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $fragment(ctx: *mut __sk_buff, ifindex: u32) -> u64 {
            steps::fragment::<$family, _, _>(&mut Skb(ctx), &Maps(ctx), ifindex)
        }
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $clamp_mss(ctx: *mut __sk_buff) -> u32 {
            steps::clamp_mss::<$family, _, _>(&mut Skb(ctx), &Maps(ctx))
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
            fn icmp_error<P: Packet>(
                &self,
                _: &mut P,
                ifindex: u32,
                network: u32,
                decision: u32,
            ) -> u64 {
                $icmp_error(self.0, ifindex, network, decision)
            }
            #[inline(always)]
            fn read_quoted<P: Packet>(&self, _: &mut P) -> u32 {
                $read_quoted(self.0)
            }
            #[inline(always)]
            fn send_error<P: Packet>(&self, _: &mut P) -> u64 {
                $send_error(self.0)
            }
            #[inline(always)]
            fn proceed<P: Packet>(&self, _: &mut P, decision: u32) -> u64 {
                $proceed(self.0, decision)
            }
            #[inline(always)]
            fn reroute<P: Packet>(&self, _: &mut P, ifindex: u32) -> u64 {
                $reroute(self.0, ifindex)
            }
            #[inline(always)]
            fn classify(&self, ifindex: u32, network: u32, fresh: u32) -> u32 {
                $classify(ifindex, network, fresh)
            }
            #[inline(always)]
            fn publish(&self, ifindex: u32, network: u32, fresh: u32) -> u32 {
                $publish(self.0, ifindex, network, fresh)
            }
            #[inline(always)]
            fn direct(&self, ifindex: u32, network: u32, fresh: u32) -> u32 {
                $direct(self.0, ifindex, network, fresh)
            }
            #[inline(always)]
            fn egress(&self, ifindex: u32, network: u32, fresh: u32) -> u32 {
                $egress(self.0, ifindex, network, fresh)
            }
            #[inline(always)]
            fn send<P: Packet>(&self, _: &mut P) -> u64 {
                $send(self.0)
            }
            #[inline(always)]
            fn ipsec(&self) -> u32 {
                $ipsec()
            }
            #[inline(always)]
            fn ipsec_covers(&self, side: u32) -> u32 {
                $ipsec_covers(side)
            }
            #[inline(always)]
            fn ipsec_weight(&self, index: u32, side: u32) -> u64 {
                $ipsec_weight(index, side)
            }
            #[inline(always)]
            fn prepare(&self) -> u32 {
                $prepare()
            }
            #[inline(always)]
            fn reserve(&self) -> u32 {
                $reserve(self.0)
            }
            #[inline(always)]
            fn commit(&self) -> u32 {
                $commit()
            }
            #[inline(always)]
            fn promote(&self) -> u32 {
                $promote()
            }
            #[inline(always)]
            fn track<P: Packet>(&self, _: &mut P, ifindex: u32) {
                $track(self.0, ifindex);
            }
            #[inline(always)]
            fn sum_sctp<P: Packet>(&self, _: &mut P, verdict: u64) -> u64 {
                $sum_sctp(self.0, verdict)
            }
            #[inline(always)]
            fn remember(&self, verdict: u64) {
                $remember(verdict);
            }
            #[inline(always)]
            fn answer<P: Packet>(&self, _: &mut P, ifindex: u32, verdict: u64) -> u64 {
                $answer(self.0, ifindex, verdict)
            }
            #[inline(always)]
            fn fragment<P: Packet>(&self, _: &mut P, ifindex: u32) -> u64 {
                $fragment(self.0, ifindex)
            }
            #[inline(always)]
            fn clamp_mss<P: Packet>(&self, _: &mut P) -> u32 {
                $clamp_mss(self.0)
            }
            #[inline(always)]
            fn end(&self, generation: u32) {
                $end(generation);
            }
            #[inline(always)]
            fn reclaim(&self, pressing: u32) -> u32 {
                $reclaim(pressing)
            }
            #[inline(always)]
            fn claim_seat(&self, confirmed: u32, owner: u32) -> u64 {
                $claim_seat(confirmed, owner)
            }
            #[inline(always)]
            fn probe_seat(&self, confirmed: u32, index: u32, owner: u32) -> u32 {
                $probe_seat(confirmed, index, owner)
            }
            #[inline(always)]
            fn vacate_seat(&self, confirmed: u32, index: u32) -> u32 {
                $vacate_seat(confirmed, index)
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
    read_quoted_v4,
    icmp_error_v4,
    send_error_v4,
    proceed_v4,
    reroute_v4,
    classify_v4,
    publish_v4,
    direct_v4,
    egress_v4,
    ipsec_v4,
    ipsec_covers_v4,
    ipsec_weight_v4,
    prepare_v4,
    reserve_v4,
    commit_v4,
    send_v4,
    promote_v4,
    try_source_port_v4,
    kernel_forwards_v4,
    end_v4,
    reclaim_v4,
    claim_seat_v4,
    probe_seat_v4,
    vacate_seat_v4,
    answer_v4,
    fragment_v4,
    clamp_mss_v4,
    route_v4,
    host_listens_v4,
    track_v4,
    remember_v4,
    sum_sctp_v4
);
subprograms!(
    V6,
    from_endpoint_v6,
    from_uplink_v6,
    read_quoted_v6,
    icmp_error_v6,
    send_error_v6,
    proceed_v6,
    reroute_v6,
    classify_v6,
    publish_v6,
    direct_v6,
    egress_v6,
    ipsec_v6,
    ipsec_covers_v6,
    ipsec_weight_v6,
    prepare_v6,
    reserve_v6,
    commit_v6,
    send_v6,
    promote_v6,
    try_source_port_v6,
    kernel_forwards_v6,
    end_v6,
    reclaim_v6,
    claim_seat_v6,
    probe_seat_v6,
    vacate_seat_v6,
    answer_v6,
    fragment_v6,
    clamp_mss_v6,
    route_v6,
    host_listens_v6,
    track_v6,
    remember_v6,
    sum_sctp_v6
);
