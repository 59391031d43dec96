//! Why a packet is dropped. A number never changes its meaning and is never used again.

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $number:literal, $name:literal;)+) => {
        /// Why a packet is dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u16)]
        pub enum DropReason { $($(#[doc = $doc])+ $variant = $number,)+ }

        impl DropReason {
            /// All reasons, by number.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// Name for people and JSON.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// One sentence that says what happened.
            #[must_use]
            pub const fn explain(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii(),)+ }
            }

            /// The reason with this number.
            #[must_use]
            pub const fn from_number(number: u16) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

reasons! {
    /// A header is cut short or contradicts itself.
    Malformed = 1, "malformed";
    /// A container sent something other than ARP, IPv4 or IPv6.
    EtherType = 2, "ethertype";
    /// A container sent a VLAN-tagged frame.
    VlanTag = 3, "vlan-tag";
    /// The source address is not the container's.
    SpoofedAddress = 4, "spoofed-address";
    /// The source MAC is not the container's (spoof = "strict").
    SpoofedMac = 5, "spoofed-mac";
    /// The ARP or neighbour discovery message claims an address of another (spoof = "strict").
    SpoofedNeighbour = 6, "spoofed-neighbour";
    /// The destination is a container of another network.
    Isolation = 7, "isolation";
    /// Containers of this network may not talk to each other (icc = false).
    IccDisabled = 8, "icc-disabled";
    /// The network is internal.
    Internal = 9, "internal";
    /// The packet was addressed to a container from outside, and that port is not open to it.
    DirectRouting = 10, "direct-routing";
    /// The destination is a loopback address, which only the host itself may use.
    LoopbackDestination = 11, "loopback-destination";
    /// The source address cannot be real on this interface.
    MartianSource = 12, "martian-source";
    /// rp_filter is strict here and the route to the source leaves by another interface.
    ReversePath = 13, "reverse-path";
    /// The address belongs to a managed network, but no known container has it.
    UnknownEndpoint = 14, "unknown-endpoint";
    /// The stack forwarded a packet to a container past the uplink hook.
    ForwardedByStack = 15, "forwarded-by-stack";
    /// A frame for another MAC was flooded to this port.
    Flooded = 16, "flooded";
    /// There is no route to the destination, or an unreachable route.
    NoRoute = 17, "no-route";
    /// The route to the destination is a blackhole.
    Blackhole = 18, "blackhole";
    /// The route to the destination is prohibited.
    Prohibited = 19, "prohibited";
    /// TTL or hop limit reached zero.
    TtlExpired = 20, "ttl-expired";
    /// A fragment that would need translation.
    Fragment = 21, "fragment";
    /// The protocol has no ports to translate, and the network's addresses may not leave.
    UnsupportedProtocol = 22, "unsupported-protocol";
    /// An ICMP error from or to a container, about no flow that netd knows.
    IcmpError = 23, "icmp-error";
    /// The packet is larger than the MTU on its way.
    TooBig = 24, "too-big";
    /// The egress interface has no address to masquerade with.
    NoMasqueradeAddress = 25, "no-masquerade-address";
    /// No free source port was found for this destination.
    SourcePortsExhausted = 26, "source-ports-exhausted";
    /// The flow table is full.
    FlowTableFull = 27, "flow-table-full";
    /// TCP flags that no connection bears, or a RST of an unknown flow.
    InvalidTcpFlags = 28, "invalid-tcp-flags";
    /// The port is published, but its container is not running.
    NoBackend = 29, "no-backend";
    // 30 was headerless-device: no way led over an interface without an Ethernet header.
    /// The way leads over an interface that netd does not manage.
    UnmanagedEgress = 31, "unmanaged-egress";
    /// Another flow owns the tuple of the replies.
    TupleConflict = 32, "tuple-conflict";
    /// A kernel helper refused.
    HelperFailed = 33, "helper-failed";
    /// A chain of IPv6 extension headers that is too long or that must not be forwarded.
    ExtensionHeaders = 34, "extension-headers";
    /// A link-local source on a packet that leaves the link.
    LinkLocalSource = 35, "link-local-source";
    /// The user's policy.
    Policy = 36, "policy";
    /// A router advertisement from a container (spoof = "strict").
    RouterAdvertisement = 37, "router-advertisement";
    /// The publish, container or route that this flow depended on is gone; or a published port's
    /// server goes on with a connection that is not known.
    FlowEnded = 38, "flow-ended";
    /// The container has its share (a quarter) of the flow table.
    FlowShareExhausted = 39, "flow-share-exhausted";
    /// An ICMP error of a type that is never translated: a redirect, a source quench or an unknown one.
    IcmpType = 40, "icmp-type";
    /// What an ICMP error quotes is cut short, contradicts itself, or was not sent from where the error goes to.
    IcmpQuote = 41, "icmp-quote";
    /// A fragment came before the first one of its packet, which alone tells the ports; or is the
    /// rest of such a packet.
    FragmentOrder = 43, "fragment-order";
    /// A fragment overlaps or repeats another, or is the rest of a packet with such fragments.
    FragmentOverlap = 44, "fragment-overlap";
    /// A fragment came later than reassembly waits after the first one.
    FragmentExpired = 45, "fragment-expired";
    /// A fragment that is too small for its headers, of an odd length, or beyond the largest packet;
    /// or one of a packet in too many pieces.
    FragmentInvalid = 46, "fragment-invalid";
    /// A socket of the host was led to a container that is gone, and another has its address now.
    StaleHostSocket = 42, "stale-host-socket";
    /// The packet may be fragmented on its way, but cannot be: it has options, or is a GSO packet.
    CannotFragment = 47, "cannot-fragment";
    /// An echo reply that no echo request of a known flow asked for.
    UnsolicitedReply = 56, "unsolicited-reply";
    /// An IPsec policy covers the flow, and only the kernel can encrypt or block it.
    IpsecPolicy = 55, "ipsec-policy";
}

#[cfg(test)]
mod tests {
    use super::DropReason;

    #[test]
    fn numbers_and_names_are_unique() {
        for (i, a) in DropReason::ALL.iter().enumerate() {
            assert_eq!(DropReason::from_number(*a as u16), Some(*a));
            assert!(!a.explain().is_empty());
            for b in &DropReason::ALL[i + 1..] {
                assert_ne!(a.name(), b.name());
                assert_ne!(*a as u16, *b as u16);
            }
        }
        assert_eq!(DropReason::from_number(0), None);
    }
}
