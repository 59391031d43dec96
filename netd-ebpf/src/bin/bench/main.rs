//! BPF programs of the benchmark: the generator of frames, the sink that counts and checks them,
//! the reflector that answers them, and the bare forwarder that marks the limit.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod abi;
#[path = "../../access.rs"]
mod access;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        __sk_buff,
        tcx_action_base::{TCX_DROP, TCX_NEXT},
        xdp_action::{XDP_ABORTED, XDP_TX},
        xdp_md,
    },
    btf_maps::{Array, PerCpuArray},
    helpers::generated::{bpf_ktime_get_ns, bpf_redirect, bpf_redirect_peer, bpf_skb_load_bytes},
    macros::{btf_map, classifier, xdp},
    programs::{TcContext, XdpContext},
};

use crate::abi::{Bare, Expected, FRAME, Load, Seen};

#[btf_map]
static LOAD: Array<Load, 1> = Array::new();
#[btf_map]
static EXPECTED: Array<Expected, 1> = Array::new();
#[btf_map]
static SEEN: PerCpuArray<Seen, 1> = PerCpuArray::new();
#[btf_map]
static BARE: Array<Bare, 1> = Array::new();

/// `ETH_P_IP` as an skb's protocol has it: in wire order.
const IPV4: u32 = 0x0800u16.to_be() as u32;
const UDP: u8 = 17;
/// Version 4, five words of header: no options.
const VERSION: u8 = 0x45;

/// Where the fields are: Ethernet, IPv4 without options, UDP.
mod at {
    pub const DESTINATION_MAC: usize = 0;
    pub const SOURCE_MAC: usize = 6;
    pub const IP: usize = 14;
    pub const TTL: usize = IP + 8;
    pub const PROTOCOL: usize = IP + 9;
    pub const SOURCE: usize = IP + 12;
    pub const DESTINATION: usize = IP + 16;
    pub const SOURCE_PORT: usize = IP + 20;
    pub const DESTINATION_PORT: usize = IP + 22;
    pub const UDP_LENGTH: usize = IP + 24;
    pub const UDP_CHECKSUM: usize = IP + 26;
    pub const PAYLOAD: usize = IP + 28;
}

/// Fills a live frame and sends it out of the interface that it came in by.
///
/// Frames are recycled, and what is in one may have been rewritten on its way: every byte of the
/// headers is written anew.
#[xdp]
pub fn generator(ctx: XdpContext) -> u32 {
    let Some(load) = LOAD.get_ptr_mut(0) else {
        return XDP_ABORTED;
    };
    let context = ctx.as_ptr().cast::<xdp_md>();
    // SAFETY: the context outlives the program.
    let (data, end) = unsafe { ((*context).data as usize, (*context).data_end as usize) };
    if data + FRAME > end {
        return XDP_ABORTED;
    }
    let frame = data as *mut u8;
    // SAFETY: the value of an array element; generators do not run side by side. The frame is
    // in bounds.
    unsafe {
        let words: *const [u32; 5] = (&raw const (*load).frame).cast();
        for part in 0..FRAME / 20 {
            access::store(frame.add(part * 20).cast(), words.add(part).read());
        }
        if (*load).flows > 1 {
            let flow = (*load).next;
            (*load).next = if flow + 1 < (*load).flows {
                flow + 1
            } else {
                0
            };
            let first: [u8; 2] = access::load(frame.add(at::SOURCE_PORT).cast());
            let checksum: [u8; 2] = access::load(frame.add(at::UDP_CHECKSUM).cast());
            let port = u16::from_be_bytes(first).wrapping_add(flow as u16);
            // RFC 1624, equation 3, with m' - m = flow.
            let sum = u32::from(!u16::from_be_bytes(checksum)) + (flow & 0xffff);
            let folded = (sum & 0xffff) + (sum >> 16);
            let checksum = match !(((folded & 0xffff) + (folded >> 16)) as u16) {
                // RFC 768: zero stands for "no checksum".
                0 => 0xffff,
                checksum => checksum,
            };
            access::store(frame.add(at::SOURCE_PORT).cast(), port.to_be_bytes());
            access::store(frame.add(at::UDP_CHECKSUM).cast(), checksum.to_be_bytes());
        }
    }
    XDP_TX
}

/// Counts the datagrams that arrive, checks one of so many, and drops them all. Everything else
/// passes.
#[classifier]
pub fn sink(ctx: TcContext) -> i32 {
    let context = ctx.as_ptr().cast::<__sk_buff>();
    if udp_frame(context).is_none() {
        return TCX_NEXT;
    }
    let Some(seen) = SEEN.get_ptr_mut(0) else {
        return TCX_DROP;
    };
    // SAFETY: this CPU's element; tc programs of one CPU do not interrupt each other.
    let seen = unsafe { &mut *seen };
    seen.datagrams += 1;
    if seen.countdown > 0 {
        seen.countdown -= 1;
    } else if let Some(expected) = EXPECTED.get(0) {
        seen.countdown = u64::from(expected.every) - 1;
        check(context, expected, seen);
    }
    TCX_DROP
}

/// Sends datagrams back to where they came from.
#[classifier]
pub fn reflector(ctx: TcContext) -> i32 {
    let context = ctx.as_ptr().cast::<__sk_buff>();
    let Some(frame) = udp_frame(context) else {
        return TCX_NEXT;
    };
    // No checksum sees the order of its words.
    // SAFETY: the headers are in bounds.
    unsafe {
        swap::<[u8; 6]>(frame, at::DESTINATION_MAC, at::SOURCE_MAC);
        swap::<[u8; 4]>(frame, at::SOURCE, at::DESTINATION);
        swap::<[u8; 2]>(frame, at::SOURCE_PORT, at::DESTINATION_PORT);
        bpf_redirect((*context).ifindex, 0) as i32
    }
}

/// The least that a forwarder in this place can do: find the address and the port, write the
/// Ethernet header, redirect.
#[classifier]
pub fn bare(ctx: TcContext) -> i32 {
    let context = ctx.as_ptr().cast::<__sk_buff>();
    let (Some(frame), Some(bare)) = (udp_frame(context), BARE.get(0)) else {
        return TCX_NEXT;
    };
    // SAFETY: the headers are in bounds.
    unsafe {
        let address: [u8; 4] = access::load(frame.add(at::DESTINATION).cast());
        let port: [u8; 2] = access::load(frame.add(at::DESTINATION_PORT).cast());
        if address != bare.address || u16::from_be_bytes(port) != bare.port {
            return TCX_NEXT;
        }
        access::store(frame.cast(), bare.macs);
        bpf_redirect_peer(bare.ifindex, 0) as i32
    }
}

/// The frame, if it is UDP over IPv4 without options and its headers are readable and writable.
#[inline(always)]
fn udp_frame(context: *mut __sk_buff) -> Option<*mut u8> {
    // SAFETY: the context outlives the program.
    let (protocol, data, end) = unsafe {
        (
            (*context).protocol,
            (*context).data as usize,
            (*context).data_end as usize,
        )
    };
    if protocol != IPV4 || data + at::PAYLOAD > end {
        return None;
    }
    let frame = data as *mut u8;
    // SAFETY: in bounds.
    let (version, protocol) = unsafe { (*frame.add(at::IP), *frame.add(at::PROTOCOL)) };
    (version == VERSION && protocol == UDP).then_some(frame)
}

/// # Safety
/// The frame must have a `T` at both offsets.
#[inline(always)]
unsafe fn swap<T: Copy>(frame: *mut u8, one: usize, other: usize) {
    // SAFETY: the caller's.
    unsafe {
        let (a, b) = (frame.add(one).cast::<T>(), frame.add(other).cast::<T>());
        let (first, second) = (access::load(a), access::load(b));
        access::store(a, second);
        access::store(b, first);
    }
}

/// Compares a datagram with what is expected, and sums it up.
#[inline(always)]
fn check(context: *mut __sk_buff, expected: &Expected, seen: &mut Seen) {
    // SAFETY: no arguments.
    seen.last = unsafe { bpf_ktime_get_ns() };
    if seen.checked == 0 {
        seen.first = seen.last;
    }
    seen.checked += 1;
    let mut frame = [0u8; FRAME];
    // SAFETY: the context outlives the program, and the size is the buffer's.
    let (length, status) = unsafe {
        let status = bpf_skb_load_bytes(context.cast(), 0, frame.as_mut_ptr().cast(), FRAME as u32);
        ((*context).len, status)
    };
    let udp_length = half(&frame, at::UDP_LENGTH);
    if status != 0 || length != FRAME as u32 || usize::from(udp_length) != FRAME - at::PAYLOAD + 8 {
        seen.wrong_shape += 1;
        return;
    }
    let addresses = bytes(&frame, at::SOURCE) == expected.source
        && bytes(&frame, at::DESTINATION) == expected.destination
        && bytes(&frame, at::DESTINATION_MAC) == expected.mac;
    seen.wrong_address += u64::from(!addresses);
    let ports = half(&frame, at::SOURCE_PORT).wrapping_sub(expected.source_port)
        < expected.source_ports
        && half(&frame, at::DESTINATION_PORT).wrapping_sub(expected.destination_port)
            < expected.destination_ports;
    seen.wrong_port += u64::from(!ports);
    seen.wrong_ttl += u64::from(frame[at::TTL] != expected.ttl);
    let header = sum(&frame, at::IP, at::SOURCE_PORT);
    // RFC 768: the pseudo header is both addresses, the protocol and the length.
    let datagram = sum(&frame, at::SOURCE, FRAME) + u32::from(UDP) + u32::from(udp_length);
    let valid =
        fold(header) == 0xffff && fold(datagram) == 0xffff && half(&frame, at::UDP_CHECKSUM) != 0;
    seen.wrong_checksum += u64::from(!valid);
}

/// A number in wire order.
#[inline(always)]
fn half(frame: &[u8; FRAME], offset: usize) -> u16 {
    u16::from_be_bytes(bytes(frame, offset))
}

#[inline(always)]
fn bytes<const N: usize>(frame: &[u8; FRAME], offset: usize) -> [u8; N] {
    core::array::from_fn(|i| frame[offset + i])
}

/// The sum of the words from one even offset to another.
#[inline(always)]
fn sum(frame: &[u8; FRAME], from: usize, to: usize) -> u32 {
    let mut sum = 0;
    let mut offset = from;
    while offset + 2 <= to {
        sum += u32::from(half(frame, offset));
        offset += 2;
    }
    sum
}

#[inline(always)]
fn fold(sum: u32) -> u32 {
    let sum = (sum & 0xffff) + (sum >> 16);
    (sum & 0xffff) + (sum >> 16)
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
