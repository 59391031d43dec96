//! Settings of the network namespace: read, and changed so that the change can be undone.
//!
//! Files under /proc/sys/net show the namespace of the *calling thread*.

use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};

use super::facts::*;
use super::link::*;
use super::netlink::{Attributes, Netlink, i32_at, u32_at};
use super::{HostError, IpFamily};

// linux/netconf.h
const NETCONFA_IFINDEX: u16 = 1;
const NETCONFA_FORWARDING: u16 = 2;
const NETCONFA_RP_FILTER: u16 = 3;
const NETCONFA_IFINDEX_ALL: i32 = -1;
/// `struct netconfmsg` (one byte), aligned as the kernel's strict check wants it.
const NETCONFMSG: usize = 4;

const SYSCTL_ROOT: &str = "/proc/sys";

/// A setting that netd changed, with what is needed to undo it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SysctlChange {
    /// Its name as a path below /proc/sys.
    pub name: String,
    /// What it was.
    pub previous: String,
    /// What netd wrote.
    pub written: String,
}

/// What became of a change that was to be undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restored {
    /// The previous value is back.
    Yes,
    /// Someone changed it after netd did; their value stays.
    ChangedByOthers,
    /// It is gone, as the interface that it belonged to.
    Gone,
}

/// Reads a setting, such as `net/ipv4/ip_local_port_range`; `None` when the kernel has none.
pub fn read_sysctl(name: &str) -> Result<Option<String>, HostError> {
    match fs::read_to_string(path_of(name)) {
        Ok(value) => Ok(Some(value.trim_end().to_owned())),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(HostError::ReadSysctl {
            name: name.to_owned(),
            source,
        }),
    }
}

/// Changes a setting. `None` when it has that value already: then there is nothing to undo.
pub fn set_sysctl(name: &str, value: &str) -> Result<Option<SysctlChange>, HostError> {
    let failed = |source| HostError::WriteSysctl {
        name: name.to_owned(),
        value: value.to_owned(),
        source,
    };
    let previous =
        read_sysctl(name)?.ok_or_else(|| failed(io::Error::from(io::ErrorKind::NotFound)))?;
    if previous == value {
        return Ok(None);
    }
    fs::write(path_of(name), value).map_err(failed)?;
    Ok(Some(SysctlChange {
        name: name.to_owned(),
        previous,
        written: value.to_owned(),
    }))
}

/// Lets the kernel's route lookup forward packets that come in by a bridge (it refuses with
/// `BPF_FIB_LKUP_RET_FWD_DISABLED` otherwise), or not. The host's own switch is not touched.
pub fn set_bridge_forwarding(
    bridge: &str,
    family: IpFamily,
    on: bool,
) -> Result<Option<SysctlChange>, HostError> {
    // These two are directories beside the interfaces' own, and would change every interface.
    // A name with a slash cannot exist, and would lead elsewhere.
    if matches!(bridge, "" | "." | ".." | "all" | "default") || bridge.contains('/') {
        return Err(HostError::InterfaceName {
            name: bridge.to_owned(),
        });
    }
    let name = format!("net/{}/conf/{bridge}/forwarding", family.directory());
    set_sysctl(&name, if on { "1" } else { "0" })
}

impl SysctlChange {
    /// Writes the previous value back, unless someone else changed it meanwhile.
    pub fn restore(&self) -> Result<Restored, HostError> {
        match read_sysctl(&self.name)? {
            None => Ok(Restored::Gone),
            Some(now) if now != self.written => Ok(Restored::ChangedByOthers),
            Some(_) => match fs::write(path_of(&self.name), &self.previous) {
                Ok(()) => Ok(Restored::Yes),
                Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(Restored::Gone),
                Err(source) => Err(HostError::WriteSysctl {
                    name: self.name.clone(),
                    value: self.previous.clone(),
                    source,
                }),
            },
        }
    }
}

/// Settings of the namespace; what belongs to one interface goes into `links`.
///
/// The interfaces' settings come from one netlink dump per family: two files for each of a
/// thousand interfaces would cost a hundred times as much.
pub(super) fn read_settings(
    route: &mut Netlink,
    links: &mut [Link],
) -> Result<Settings, HostError> {
    let ipv4 = read_interface_settings(route, libc::AF_INET)?;
    let ipv6 = read_interface_settings(route, libc::AF_INET6)?;
    let all_of = |settings: &[InterfaceSettings]| {
        settings
            .iter()
            .find(|found| found.ifindex == NETCONFA_IFINDEX_ALL)
            .copied()
            .unwrap_or_default()
    };
    let (all_v4, all_v6) = (all_of(&ipv4), all_of(&ipv6));
    let rp_filter_all = RpFilter::from_sysctl(all_v4.rp_filter);

    for link in links {
        let ifindex = link.ifindex as i32;
        let of = |settings: &[InterfaceSettings]| {
            let at = settings.binary_search_by_key(&ifindex, |found| found.ifindex);
            at.map(|at| settings[at]).unwrap_or_default()
        };
        let own = of(&ipv4);
        link.forwarding_v4 = own.forwarding;
        link.rp_filter = RpFilter::in_force(rp_filter_all, RpFilter::from_sysctl(own.rp_filter));
        link.forwarding_v6 = of(&ipv6).forwarding;
    }

    let is_set = |name| Ok::<_, HostError>(read_sysctl(name)?.map(|value| value != "0"));
    Ok(Settings {
        ip_forward: all_v4.forwarding,
        ipv6_forwarding: all_v6.forwarding,
        rp_filter_all,
        src_valid_mark: is_set("net/ipv4/conf/all/src_valid_mark")?.unwrap_or(false),
        local_ports: read_ports("net/ipv4/ip_local_port_range", parse_range)?,
        reserved_ports: read_ports("net/ipv4/ip_local_reserved_ports", parse_list)?,
        bridge_nf_call_iptables: is_set("net/bridge/bridge-nf-call-iptables")?,
        bridge_nf_call_ip6tables: is_set("net/bridge/bridge-nf-call-ip6tables")?,
    })
}

#[derive(Clone, Copy, Default)]
struct InterfaceSettings {
    ifindex: i32,
    forwarding: bool,
    rp_filter: u32,
}

/// Sorted by ifindex; -1 is `all`. Empty for a family that is switched off.
fn read_interface_settings(
    route: &mut Netlink,
    family: i32,
) -> Result<Vec<InterfaceSettings>, HostError> {
    let request = [family as u8, 0, 0, 0];
    let what = "the interfaces' settings";
    let found = route.dump(what, libc::RTM_GETNETCONF, &request, |found, body| {
        if body.first() == Some(&(family as u8)) {
            found.extend(decode_settings(body));
        }
    });
    let mut found = match found {
        Err(HostError::Netlink { source, .. })
            if source.raw_os_error() == Some(libc::EOPNOTSUPP) =>
        {
            return Ok(Vec::new());
        }
        found => found?,
    };
    found.sort_by_key(|settings| settings.ifindex);
    Ok(found)
}

fn decode_settings(body: &[u8]) -> Option<InterfaceSettings> {
    let mut ifindex = None;
    let mut settings = InterfaceSettings::default();
    for (kind, value) in Attributes::after(body, NETCONFMSG) {
        match kind {
            NETCONFA_IFINDEX => ifindex = i32_at(value, 0),
            NETCONFA_FORWARDING => settings.forwarding = u32_at(value, 0)? != 0,
            NETCONFA_RP_FILTER => settings.rp_filter = u32_at(value, 0)?,
            _ => {}
        }
    }
    settings.ifindex = ifindex?;
    Some(settings)
}

fn read_ports<T>(name: &str, parse: fn(&str) -> Option<T>) -> Result<T, HostError> {
    let text = read_sysctl(name)?.unwrap_or_default();
    parse(&text).ok_or_else(|| HostError::ReadSysctl {
        name: name.to_owned(),
        source: io::Error::new(
            io::ErrorKind::InvalidData,
            format!("not a list of ports: {text:?}"),
        ),
    })
}

/// `32768\t60999`
fn parse_range(text: &str) -> Option<PortSpan> {
    let (first, last) = text.split_once(char::is_whitespace)?;
    Some(PortSpan {
        first: first.parse().ok()?,
        last: last.trim().parse().ok()?,
    })
}

/// `8080,9000-9010`, or nothing.
fn parse_list(text: &str) -> Option<Vec<PortSpan>> {
    let spans = text.split(',').filter(|part| !part.is_empty());
    spans
        .map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(PortSpan {
                first: first.parse().ok()?,
                last: last.parse().ok()?,
            })
        })
        .collect()
}

fn path_of(name: &str) -> PathBuf {
    Path::new(SYSCTL_ROOT).join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_settings_are_read_as_the_kernel_prints_them() {
        let span = |first, last| PortSpan { first, last };
        assert_eq!(parse_range("32768\t60999"), Some(span(32768, 60999)));
        assert_eq!(parse_range("32768"), None);
        assert_eq!(parse_list(""), Some(vec![]));
        let list = parse_list("8080,9000-9010");
        assert_eq!(list, Some(vec![span(8080, 8080), span(9000, 9010)]));
        assert_eq!(parse_list("80-x"), None);
    }

    #[test]
    fn names_that_are_not_one_interface_are_refused() {
        for name in ["", ".", "..", "all", "default", "../../kernel"] {
            let refused = set_bridge_forwarding(name, IpFamily::V4, true);
            assert!(
                matches!(refused, Err(HostError::InterfaceName { .. })),
                "{name:?}: {refused:?}"
            );
        }
    }
}
