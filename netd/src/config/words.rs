//! Values that are one word of a fixed set.

use std::fmt;

use serde::{Serialize, Serializer};

use super::document::Keyword;

/// Declares an enum whose values are words of the file: one list serves reading, printing and
/// the suggestions of error messages.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$doc])* $variant,)+ }

        impl $name {
            /// Every value, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The word that stands for this value in the file and in JSON.
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl Keyword for $name {
            const WORDS: &'static [&'static str] = &[$($word,)+];

            fn from_word(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)+ _ => None }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.word())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.word())
            }
        }
    };
}

words! {
    /// Who enforces what: netd alone, or the Engine's rules with netd in front of them.
    Mode {
        /// The Engine's own rules are off; netd is the only enforcement.
        #[default]
        Replace = "replace",
        /// The Engine's own rules stay; netd takes new connections in front of them.
        Accelerate = "accelerate",
    }
}

words! {
    /// Which packets addressed to container addresses an uplink may deliver.
    ContainersAccess {
        /// None, except to published ports of routed networks.
        #[default]
        None = "none",
        /// Those to published container ports.
        Published = "published",
        /// All.
        All = "all",
    }
}

words! {
    /// Which way replies to an uplink's packets leave.
    ReturnPath {
        /// The way the routing table says.
        #[default]
        Route = "route",
        /// By the uplink that the flow came in on.
        Symmetric = "symmetric",
    }
}

words! {
    /// The lowest level of log lines.
    LogLevel {
        /// Only errors.
        Error = "error",
        /// And warnings.
        Warn = "warn",
        /// And at most one line per change.
        #[default]
        Info = "info",
        /// And what the daemon does about them.
        Debug = "debug",
        /// And everything else.
        Trace = "trace",
    }
}

words! {
    /// How log lines are written.
    LogFormat {
        /// For people.
        #[default]
        Text = "text",
        /// One JSON object per line.
        Json = "json",
    }
}

words! {
    /// What a network's gateway does with packets of one address family.
    GatewayMode {
        /// Masquerade out, published ports in, everything else dropped.
        #[default]
        Nat = "nat",
        /// As `nat`, but what arrives for a container's own address is accepted.
        NatUnprotected = "nat-unprotected",
        /// No translation; published container ports are open to direct routing.
        Routed = "routed",
        /// The bridge has no address; only with an internal network.
        Isolated = "isolated",
    }
}

impl GatewayMode {
    /// True if addresses are translated: `nat` and `nat-unprotected`.
    pub fn has_nat(self) -> bool {
        matches!(self, Self::Nat | Self::NatUnprotected)
    }
}

words! {
    /// How source addresses of containers are checked.
    Spoof {
        /// A foreign source never creates NAT or publish state and is dropped when addressed to
        /// the bridge; traffic inside the bridge is left alone.
        #[default]
        Nat = "nat",
        /// A foreign source address or MAC is dropped everywhere; ARP, NA and RA are checked.
        Strict = "strict",
        /// Not at all.
        Off = "off",
    }
}

words! {
    /// The protocol of a published port.
    Protocol {
        /// TCP
        #[default]
        Tcp = "tcp",
        /// UDP
        Udp = "udp",
        /// SCTP.
        Sctp = "sctp",
    }
}

impl Protocol {
    /// The protocol number in the IP header (IANA).
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}
