//! What the benchmark and its BPF programs tell each other. Compiled into both.
//!
//! Addresses and Ethernet addresses are in wire order, ports are numbers.

/// A frame without its FCS: 64 bytes on the wire, the smallest that Ethernet has.
pub const FRAME: usize = 60;

/// What the generator sends; the value of the map `LOAD`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// The frame of the first flow, with valid checksums.
    pub frame: [u32; FRAME / 4],
    /// Number of flows. Their source ports follow the frame's.
    pub flows: u32,
    /// The flow of the next frame.
    pub next: u32,
    /// Zero.
    pub padding: u32,
}

/// What a sink takes for its own, and what it checks; the value of the map `EXPECTED`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    /// Source address.
    pub source: [u8; 4],
    /// Destination address.
    pub destination: [u8; 4],
    /// Destination Ethernet address.
    pub mac: [u8; 6],
    /// Lowest source port.
    pub source_port: u16,
    /// Number of source ports.
    pub source_ports: u16,
    /// Lowest destination port.
    pub destination_port: u16,
    /// Number of destination ports.
    pub destination_ports: u16,
    /// Time to live.
    pub ttl: u8,
    /// Zero.
    pub padding: u8,
    /// One of so many datagrams is checked; not zero.
    pub every: u32,
}

/// What a sink saw, on one CPU; the value of the map `SEEN`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// UDP datagrams over IPv4, whatever their addresses. All of them are dropped.
    pub datagrams: u64,
    /// Datagrams until the next check.
    pub countdown: u64,
    /// Datagrams that were checked.
    pub checked: u64,
    /// When the first was checked, by CLOCK_MONOTONIC, in nanoseconds.
    pub first: u64,
    /// When the last was checked.
    pub last: u64,
    /// Of those: another source, destination or Ethernet destination than expected.
    pub wrong_address: u64,
    /// Of those: another port than expected.
    pub wrong_port: u64,
    /// Of those: an IPv4 header or UDP checksum that does not hold.
    pub wrong_checksum: u64,
    /// Of those: another time to live than expected.
    pub wrong_ttl: u64,
    /// Of those: not the length that was sent, or unreadable.
    pub wrong_shape: u64,
}

/// What the bare forwarder does; the value of the map `BARE`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Bare {
    /// The destination address that it takes.
    pub address: [u8; 4],
    /// The UDP destination port that it takes.
    pub port: u16,
    /// Zero.
    pub padding: u16,
    /// The host's end of the container's veth pair.
    pub ifindex: u32,
    /// Ethernet destination and source to write.
    pub macs: [u32; 3],
}
