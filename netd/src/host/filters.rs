//! BPF filters at a clsact qdisc: how programs are attached where the kernel has no tcx.

use super::netlink::{Attributes, push_attribute, text_of, u32_at};
use super::{HostError, open};

// linux/pkt_sched.h, linux/pkt_cls.h, linux/rtnetlink.h
const TC_H_CLSACT: u32 = 0xffff_fff1;
const TC_H_INGRESS: u32 = 0xffff_fff2;
const TC_H_EGRESS: u32 = 0xffff_fff3;
const TCMSG: usize = 20;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_ID: u16 = 11;

/// A BPF filter at an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BpfFilter {
    /// Interface.
    pub(crate) ifindex: u32,
    /// Direction.
    pub(crate) egress: bool,
    /// Lower runs first.
    pub(crate) priority: u16,
    /// Tells filters of one priority apart.
    pub(crate) handle: u32,
    /// What its owner called it.
    pub(crate) name: String,
    /// The program.
    pub(crate) program: u32,
}

fn tcmsg(ifindex: u32, handle: u32, parent: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend_from_slice(&ifindex.to_ne_bytes());
    body.extend_from_slice(&handle.to_ne_bytes());
    body.extend_from_slice(&parent.to_ne_bytes());
    body.extend_from_slice(&0u32.to_ne_bytes());
    body
}

/// The BPF filters at the clsact qdisc of an interface, in both directions; none where it has no
/// such qdisc.
pub(crate) fn bpf_filters(ifindex: u32) -> Result<Vec<BpfFilter>, HostError> {
    let mut route = open(libc::NETLINK_ROUTE, "rtnetlink")?;
    let mut filters = Vec::new();
    for (parent, egress) in [(TC_H_INGRESS, false), (TC_H_EGRESS, true)] {
        let request = tcmsg(ifindex, 0, parent);
        let found = route.dump("filters", libc::RTM_GETTFILTER, &request, |found, body| {
            found.extend(decode(body, egress));
        });
        match found {
            Ok(found) => filters.extend(found),
            Err(HostError::Netlink { source, .. })
                if matches!(source.raw_os_error(), Some(libc::EINVAL | libc::ENODEV)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filters)
}

fn decode(body: &[u8], egress: bool) -> Option<BpfFilter> {
    let mut filter = BpfFilter {
        ifindex: u32_at(body, 4)?,
        egress,
        priority: (u32_at(body, 16)? >> 16) as u16,
        handle: u32_at(body, 8)?,
        name: String::new(),
        program: 0,
    };
    let mut is_bpf = false;
    for (kind, value) in Attributes::after(body, TCMSG) {
        match kind {
            TCA_KIND => is_bpf = text_of(value) == "bpf",
            TCA_OPTIONS => {
                for (kind, value) in Attributes(value) {
                    match kind {
                        TCA_BPF_NAME => filter.name = text_of(value),
                        TCA_BPF_ID => filter.program = u32_at(value, 0)?,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    // A priority is also listed by itself, as a filter with handle 0.
    (is_bpf && filter.handle != 0).then_some(filter)
}

/// Whether anything at all is attached to the interface's clsact qdisc.
pub(crate) fn has_filters(ifindex: u32) -> Result<bool, HostError> {
    let mut route = open(libc::NETLINK_ROUTE, "rtnetlink")?;
    for parent in [TC_H_INGRESS, TC_H_EGRESS] {
        let request = tcmsg(ifindex, 0, parent);
        let found = route.dump("filters", libc::RTM_GETTFILTER, &request, |found, _| {
            found.push(());
        })?;
        if !found.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Removes the clsact qdisc of an interface; it is no error when there is none.
pub(crate) fn delete_clsact(ifindex: u32) -> Result<(), HostError> {
    let mut route = open(libc::NETLINK_ROUTE, "rtnetlink")?;
    let mut request = tcmsg(ifindex, TC_H_CLSACT & 0xffff_0000, TC_H_CLSACT);
    push_attribute(&mut request, TCA_KIND, b"clsact\0");
    let done = route.get("the clsact qdisc", libc::RTM_DELQDISC, &request, |_| {
        None::<()>
    });
    match done {
        Err(HostError::Netlink { source, .. })
            if matches!(
                source.raw_os_error(),
                Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)
            ) =>
        {
            Ok(())
        }
        done => done.map(drop),
    }
}
