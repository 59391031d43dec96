//! The keys of the file, in one place: for reading, for suggestions, and for the test that
//! compares them with the documentation.

/// A table of the file and its keys.
#[derive(Debug)]
pub(super) struct SectionKeys {
    /// As written in the file: empty for the top level, `[host]`, `[[network]]`.
    pub(super) title: &'static str,
    pub(super) keys: &'static [&'static str],
}

pub(super) const TOP: &str = "";
pub(super) const HOST: &str = "[host]";
pub(super) const UPLINK: &str = "[[uplink]]";
pub(super) const LIMITS: &str = "[limits]";
pub(super) const NAT: &str = "[nat]";
pub(super) const LOG: &str = "[log]";
pub(super) const NETWORK: &str = "[[network]]";
/// The table form of a network's `mode`.
pub(super) const MODE: &str = "`mode`";
pub(super) const PUBLISH: &str = "[[publish]]";

/// Every table.
pub(super) const SECTIONS: &[SectionKeys] = &[
    SectionKeys {
        title: TOP,
        keys: &[
            "version", "host", "uplink", "limits", "nat", "log", "network", "publish",
        ],
    },
    SectionKeys {
        title: HOST,
        keys: &[
            "uplinks",
            "trust",
            "allow_direct_routing",
            "mode",
            "pin_dir",
        ],
    },
    SectionKeys {
        title: UPLINK,
        keys: &["name", "containers", "return_path"],
    },
    SectionKeys {
        title: LIMITS,
        keys: &["flows_v4", "flows_v6"],
    },
    SectionKeys {
        title: NAT,
        keys: &["ports"],
    },
    SectionKeys {
        title: LOG,
        keys: &["level", "format"],
    },
    SectionKeys {
        title: NETWORK,
        keys: &[
            "name",
            "bridge",
            "subnets",
            "mode",
            "icc",
            "internal",
            "masquerade",
            "masquerade_to",
            "trusted_interfaces",
            "spoof",
        ],
    },
    SectionKeys {
        title: MODE,
        keys: &["ipv4", "ipv6"],
    },
    SectionKeys {
        title: PUBLISH,
        keys: &[
            "network",
            "container",
            "protocol",
            "host",
            "host_ports",
            "container_ports",
            "override",
        ],
    },
];

/// The keys of the table that is called `title`.
pub(super) fn keys(title: &str) -> &'static [&'static str] {
    SECTIONS
        .iter()
        .find(|section| section.title == title)
        .map_or(&[], |section| section.keys)
}

/// The title of the table that the top level's `key` holds.
pub(super) fn title(key: &str) -> &'static str {
    SECTIONS
        .iter()
        .map(|section| section.title)
        .find(|title| !title.is_empty() && title.trim_matches(['[', ']']) == key)
        .unwrap_or(TOP)
}
