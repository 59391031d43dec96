//! The cgroup hooks: addresses that the host's own programs name and see.
//!
//! They run for every socket of the machine, and act for those of netd's own network namespace.
//! The fields of `struct bpf_sock_addr` may be read and written only word by word, each by the
//! hooks that it belongs to.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_F_CURRENT_NETNS, bpf_sock_addr, bpf_sock_tuple},
    helpers::generated::{
        bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval, bpf_sk_lookup_udp,
        bpf_sk_release, bpf_skc_lookup_tcp,
    },
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use netd_common::{
    abi::{Config, SocketPeer, Tuple, V4Addr, V6Addr, hook},
    host_access::{Call, answer, is_of_host, key, listener, translate},
    tables::Tables,
    wire::{Address as _, Family, V4, V6, proto},
};

use crate::{
    account, maps,
    tables::{FamilyMaps, Maps},
};

/// The call goes on; recvmsg and getpeername may say nothing else.
const GO_ON: i32 = 1;
/// The call ends with the error that was set.
const END: i32 = 0;
const ECONNREFUSED: i32 = 111;

/// connect() of an IPv4 socket.
#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    SockAddr(ctx.as_ptr().cast()).call4(hook::CONNECT4, 0)
}

/// connect() of an IPv6 socket, IPv4-mapped addresses included.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    SockAddr(ctx.as_ptr().cast()).call6(hook::CONNECT6, [0; 4])
}

/// sendmsg() of a UDP socket to an IPv4 address, also of an IPv6 socket to a mapped one.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr(ctx.as_ptr().cast());
    // SAFETY: a field of this hook.
    let source = unsafe { word(&raw const (*ctx.0).msg_src_ip4) };
    ctx.call4(hook::SENDMSG4, source)
}

/// sendmsg() of a UDP socket to an IPv6 address.
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr(ctx.as_ptr().cast());
    // SAFETY: a field of this hook.
    let source = unsafe { four_words((&raw const (*ctx.0).msg_src_ip6).cast()) };
    ctx.call6(hook::SENDMSG6, source)
}

/// recvmsg() of an IPv4 UDP socket: the sender's address.
#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    SockAddr(ctx.as_ptr().cast()).shown4(hook::RECVMSG4);
    GO_ON
}

/// recvmsg() of an IPv6 UDP socket.
#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    SockAddr(ctx.as_ptr().cast()).shown6(hook::RECVMSG6);
    GO_ON
}

/// getpeername() of an IPv4 socket.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    SockAddr(ctx.as_ptr().cast()).shown4(hook::GETPEERNAME4);
    GO_ON
}

/// getpeername() of an IPv6 socket.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    SockAddr(ctx.as_ptr().cast()).shown6(hook::GETPEERNAME6);
    GO_ON
}

/// The call in hand.
struct SockAddr(*mut bpf_sock_addr);

/// # Safety
/// `from` must be a word that the hook may read.
#[inline(always)]
unsafe fn word(from: *const u32) -> u32 {
    // SAFETY: the caller's. Volatile: two words must not become one load.
    unsafe { from.read_volatile() }
}

/// # Safety
/// `from` must be four words that the hook may read.
#[inline(always)]
unsafe fn four_words(from: *const u32) -> [u32; 4] {
    // SAFETY: the caller's.
    unsafe {
        [
            word(from),
            word(from.add(1)),
            word(from.add(2)),
            word(from.add(3)),
        ]
    }
}

#[inline(always)]
fn v4(word: u32) -> V4Addr {
    V4Addr(word.to_ne_bytes())
}

#[inline(always)]
fn v6(words: [u32; 4]) -> V6Addr {
    // SAFETY: sixteen bytes each, at least as aligned. Byte by byte, LLVM would spill every one.
    unsafe { core::mem::transmute::<[u32; 4], V6Addr>(words) }
}

/// An IPv4 address that an IPv6 socket names in its mapped form. A global function, for the stack of
/// both families together is too large. Returns an [`answer`] in the lowest 16 bits, then the port
/// and the address as they are in memory.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn call_mapped(ctx: *mut bpf_sock_addr, to: u32, hook: u32) -> u64 {
    let ctx = SockAddr(ctx);
    let Some(config) = ctx.config() else {
        return u64::from(answer::LEAVE);
    };
    // SAFETY: the socket is always there.
    let bound = unsafe { word(&raw const (*(*ctx.0).__bindgen_anon_1.sk).src_ip4) };
    let mut call = ctx.call::<V4>(v4(to), v4(bound));
    let answer = ctx.answer::<V4>(hook as u8, config, &mut call);
    let port = u16::from_ne_bytes(call.backend_port);
    u64::from(answer) | u64::from(port) << 16 | u64::from(call.backend.word()) << 32
}

impl SockAddr {
    #[inline(always)]
    fn call4(&self, hook: u8, source: u32) -> i32 {
        let Some(config) = self.config() else {
            return GO_ON;
        };
        // SAFETY: fields of the IPv4 hooks; the socket is always there.
        let (to, bound) = unsafe {
            let sk = (*self.0).__bindgen_anon_1.sk;
            (
                word(&raw const (*self.0).user_ip4),
                word(&raw const (*sk).src_ip4),
            )
        };
        let mut call = self.call::<V4>(v4(to), v4(if source != 0 { source } else { bound }));
        let answer = self.answer::<V4>(hook, config, &mut call);
        if answer == answer::TRANSLATE {
            // SAFETY: as above.
            unsafe {
                (&raw mut (*self.0).user_ip4).write_volatile(call.backend.word());
            }
            self.set_port(call.backend_port);
        }
        ended(answer)
    }

    #[inline(always)]
    fn call6(&self, hook: u8, source: [u32; 4]) -> i32 {
        let Some(config) = self.config() else {
            return GO_ON;
        };
        // SAFETY: fields of the IPv6 hooks; the socket is always there.
        let (to, bound6) = unsafe {
            let sk = (*self.0).__bindgen_anon_1.sk;
            (
                v6(four_words((&raw const (*self.0).user_ip6).cast())),
                v6(four_words((&raw const (*sk).src_ip6).cast())),
            )
        };
        let source = v6(source);
        let bound6 = if source.is_unspecified() {
            bound6
        } else {
            source
        };
        let to4 = match to.unmapped() {
            Some(to4) => Some(to4),
            // To `::` from a mapped address means 127.0.0.1 (net/ipv6/tcp_ipv6.c, datagram.c).
            None if to.is_unspecified() && bound6.unmapped().is_some() => Some(V4Addr::LOOPBACK),
            None => None,
        };
        let Some(to4) = to4 else {
            let mut call = self.call::<V6>(to, bound6);
            let answer = self.answer::<V6>(hook, config, &mut call);
            if answer == answer::TRANSLATE {
                self.set_v6(&call.backend);
                self.set_port(call.backend_port);
            }
            return ended(answer);
        };
        let said = call_mapped(self.0, to4.word(), u32::from(hook));
        let answer = said as u32 & 0xffff;
        if answer == answer::TRANSLATE {
            self.set_v6(&v4((said >> 32) as u32).mapped());
            self.set_port(((said >> 16) as u16).to_ne_bytes());
        }
        ended(answer)
    }

    /// `CONFIG`, if the socket is of netd's own network namespace.
    #[inline(always)]
    fn config(&self) -> Option<&'static Config> {
        let config = maps::CONFIG.get(0)?;
        // SAFETY: the context outlives the program.
        is_of_host(config, unsafe { bpf_get_netns_cookie(self.0.cast()) }).then_some(config)
    }

    #[inline(always)]
    fn call<F: Family>(&self, dst: F::Addr, src: F::Addr) -> Call<F::Addr> {
        // SAFETY: fields of every hook; the socket is always there.
        let (device, sport) = unsafe {
            let sk = (*self.0).__bindgen_anon_1.sk;
            (
                word(&raw const (*sk).bound_dev_if),
                word(&raw const (*sk).src_port),
            )
        };
        Call {
            proto: self.proto(),
            dst,
            dport: self.port(),
            src,
            sport: (sport as u16).to_be_bytes(),
            device,
            ..Call::default()
        }
    }

    #[inline(always)]
    fn answer<F: FamilyMaps>(&self, hook: u8, config: &Config, call: &mut Call<F::Addr>) -> u32
    where
        Maps: Tables<F>,
    {
        let mut answer = self.decide::<F>(config, call);
        // A socket that cannot be remembered could not be kept from the address's next owner.
        if answer == answer::TRANSLATE && !self.remember::<F>(call) {
            answer = answer::REFUSE;
        }
        account::called(hook, answer);
        answer
    }

    /// [`translate`]. A function of its own, as [`Self::remember`] and [`Self::listens`]: what
    /// stands side by side does not add up on the stack.
    #[inline(never)]
    fn decide<F: FamilyMaps>(&self, config: &Config, call: &mut Call<F::Addr>) -> u32
    where
        Maps: Tables<F>,
    {
        // None of the lookups that are used here needs a packet.
        let maps = Maps(core::ptr::null_mut());
        translate::<F, _>(&maps, config, call, |tuple| self.listens::<F>(tuple))
    }

    /// Notes what the program asked for. False if there is no room.
    #[inline(never)]
    fn remember<F: Family>(&self, call: &Call<F::Addr>) -> bool {
        let now = <Maps as Tables<V4>>::now(&Maps(core::ptr::null_mut()));
        // SAFETY: the context outlives the program.
        let key = call.key(unsafe { bpf_get_socket_cookie(self.0.cast()) });
        let peer = call.peer(now);
        if let Some(known) = maps::SOCKETS.get_ptr_mut(key) {
            // SAFETY: a map value stays mapped while the program runs. A plain word: an LRU map
            // allocates a new element for every update.
            unsafe {
                if (*known).addr == peer.addr
                    && (*known).port == peer.port
                    && (*known).ifindex == peer.ifindex
                {
                    (*known).seen = now;
                    return true;
                }
            }
        }
        maps::SOCKETS.insert(key, peer, 0).is_ok()
    }

    /// What the host's socket table says: a [`listener`].
    #[inline(never)]
    fn listens<F: FamilyMaps>(&self, tuple: &Tuple<F::Addr>) -> u32 {
        let mut key = F::sock_tuple(tuple);
        let key_pointer = (&raw mut key).cast::<bpf_sock_tuple>();
        let netns = BPF_F_CURRENT_NETNS as i64 as u64;
        let ctx = self.0.cast();
        const ESTABLISHED: u32 = 1;
        const LISTEN: u32 = 10;
        match tuple.proto {
            proto::TCP => {
                // SAFETY: the first SOCK_TUPLE_LEN bytes of `key` are the tuple.
                let sock =
                    unsafe { bpf_skc_lookup_tcp(ctx, key_pointer, F::SOCK_TUPLE_LEN, netns, 0) };
                if sock.is_null() {
                    return listener::NONE;
                }
                // SAFETY: a referenced socket, released at once.
                let state = unsafe { (*sock).state };
                // SAFETY: as above.
                unsafe { bpf_sk_release(sock.cast()) };
                if state == LISTEN {
                    listener::ANYONE
                } else {
                    listener::NONE
                }
            }
            proto::UDP => {
                // SAFETY: as above.
                let sock =
                    unsafe { bpf_sk_lookup_udp(ctx, key_pointer, F::SOCK_TUPLE_LEN, netns, 0) };
                if sock.is_null() {
                    return listener::NONE;
                }
                // SAFETY: a referenced socket, released at once.
                let state = unsafe { (*sock).state };
                // SAFETY: as above.
                unsafe { bpf_sk_release(sock.cast()) };
                if state == ESTABLISHED {
                    listener::CONNECTED
                } else {
                    listener::ANYONE
                }
            }
            _ => listener::NONE,
        }
    }

    #[inline(always)]
    fn shown4(&self, hook: u8) {
        if self.config().is_none() {
            return;
        }
        // SAFETY: a field of the IPv4 hooks.
        let from = v4(unsafe { word(&raw const (*self.0).user_ip4) });
        let asked = self.asked(from.mapped());
        account::called(hook, u32::from(asked.is_some()));
        if let Some(asked) = asked {
            // SAFETY: a map value stays mapped while the program runs; a field of the IPv4 hooks.
            unsafe {
                (&raw mut (*self.0).user_ip4).write_volatile((*asked).addr.word(3));
                self.set_port((*asked).port);
            }
        }
    }

    #[inline(always)]
    fn shown6(&self, hook: u8) {
        if self.config().is_none() {
            return;
        }
        // SAFETY: fields of the IPv6 hooks.
        let from = v6(unsafe { four_words((&raw const (*self.0).user_ip6).cast()) });
        let asked = self.asked(from);
        account::called(hook, u32::from(asked.is_some()));
        if let Some(asked) = asked {
            // SAFETY: a map value stays mapped while the program runs.
            unsafe {
                self.set_v6(&(*asked).addr);
                self.set_port((*asked).port);
            }
        }
    }

    /// What the socket asked for when it was led to this peer.
    #[inline(always)]
    fn asked(&self, from: V6Addr) -> Option<*const SocketPeer> {
        // SAFETY: the context outlives the program.
        let cookie = unsafe { bpf_get_socket_cookie(self.0.cast()) };
        maps::SOCKETS.get_ptr(key(cookie, self.proto(), from, self.port()))
    }

    #[inline(always)]
    fn proto(&self) -> u8 {
        // SAFETY: a field of every hook.
        unsafe { word(&raw const (*self.0).protocol) as u8 }
    }

    /// The port, wire order.
    #[inline(always)]
    fn port(&self) -> [u8; 2] {
        // SAFETY: a field of every hook: a port in wire order in the first two bytes.
        (unsafe { word(&raw const (*self.0).user_port) } as u16).to_ne_bytes()
    }

    #[inline(always)]
    fn set_port(&self, port: [u8; 2]) {
        let port = u32::from(u16::from_ne_bytes(port));
        // SAFETY: a field of every hook.
        unsafe { (&raw mut (*self.0).user_port).write_volatile(port) };
    }

    /// Only in the IPv6 hooks.
    #[inline(always)]
    fn set_v6(&self, addr: &V6Addr) {
        // SAFETY: fields of the IPv6 hooks.
        unsafe {
            let to = (&raw mut (*self.0).user_ip6).cast::<u32>();
            to.write_volatile(addr.word(0));
            to.add(1).write_volatile(addr.word(1));
            to.add(2).write_volatile(addr.word(2));
            to.add(3).write_volatile(addr.word(3));
        }
    }
}

/// From an [`answer`] to the program's result.
#[inline(always)]
fn ended(answer: u32) -> i32 {
    if answer != answer::REFUSE {
        return GO_ON;
    }
    // SAFETY: an integer.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    END
}
