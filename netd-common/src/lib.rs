//! netd's packet engine: all packet logic, one source for the kernel and for native tests.
//!
//! | module | subject |
//! |---|---|
//! | [`abi`] | keys and values of every BPF map: the contract between the daemon and the programs |
//! | [`mod@drop`] | why a packet is dropped |
//! | [`wire`] | protocol headers |
//! | [`packet`] | where bytes live: an skb in the kernel, a slice in a test |
//! | [`checksum`] | one's complement arithmetic |
//! | [`crc32c`] | SCTP's checksum |
//! | [`parse`] | from bytes to a [`parse::Parsed`] header summary |
//! | [`quoted`] | the packet that an ICMP error quotes |
//! | [`tables`] | what the engine asks of the maps, the route table and the socket table |
//! | [`conntrack`] | flow states and their lifetimes |
//! | [`flow`] | creating, promoting, healing and ending flows |
//! | [`fragment`] | which parts of a packet have come |
//! | [`nat`] | rewriting a packet, choosing a source port |
//! | [`answer`] | ICMP errors that netd itself sends |
//! | [`mod@decide`] | what happens to a new flow |
//! | [`pipeline`] | the hooks of packets |
//! | [`host_access`] | the host's own sockets and published ports |
//!
//! Nothing here performs I/O, reads a clock or owns a map: the traits in [`packet`] and [`tables`]
//! are implemented by `netd-ebpf` over skbs and BPF maps, and by [`model`] natively.
#![cfg_attr(not(any(test, feature = "model")), no_std)]

pub mod abi;
pub mod answer;
pub mod checksum;
pub mod conntrack;
pub mod crc32c;
pub mod decide;
pub mod drop;
pub mod flow;
pub mod fragment;
pub mod host_access;
pub mod ipsec;
pub mod kernel_flow;
#[cfg(any(test, feature = "model"))]
pub mod model;
pub mod nat;
pub mod packet;
pub mod parse;
pub mod pipeline;
pub mod quoted;
pub mod room;
pub mod sabotage;
pub mod tables;
#[cfg(test)]
mod tests;
pub mod wire;
