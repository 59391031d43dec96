//! Attaching without tcx (kernels before 6.6): filters at a clsact qdisc.

use std::collections::BTreeMap;

use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact,
};
use aya::programs::{SchedClassifier, TcAttachType};

use super::{Attached, Attachment, DataplaneError, Hook};
use crate::host::HostError;
use crate::host::filters::{BpfFilter, bpf_filters, delete_clsact, has_filters};

/// Priority of netd's filters: the first of all.
pub const PRIORITY: u16 = 1;
/// Handle of netd's filters within the priority: "nt".
pub const HANDLE: u32 = 0x6e74;

fn handle() -> TcHandle {
    TcHandle::from(HANDLE)
}

fn direction(hook: Hook) -> TcAttachType {
    if hook.is_egress() {
        TcAttachType::Egress
    } else {
        TcAttachType::Ingress
    }
}

/// netd's filter among those of an interface.
fn own(filters: &[BpfFilter], hook: Hook) -> Option<&BpfFilter> {
    filters.iter().find(|filter| {
        filter.priority == PRIORITY
            && filter.handle == HANDLE
            && filter.egress == hook.is_egress()
            && filter.name == hook.program()
    })
}

/// Attaches a program, or replaces it in place. True if the qdisc had to be made.
pub(super) fn attach(
    program: &mut SchedClassifier,
    attachment: Attachment,
    interface: &str,
) -> Result<bool, DataplaneError> {
    let failed = |reason: &dyn std::fmt::Display| DataplaneError::Attach {
        program: attachment.hook.program(),
        interface: interface.to_owned(),
        reason: reason.to_string(),
    };
    let direction = direction(attachment.hook);
    let filters = bpf_filters(attachment.ifindex)?;
    if own(&filters, attachment.hook).is_some() {
        let link = SchedClassifierLink::attached(interface, direction, PRIORITY, handle(), None)
            .map_err(|error| failed(&error))?;
        let id = program
            .attach_to_link(link)
            .map_err(|error| failed(&error))?;
        let link = program.take_link(id).map_err(|error| failed(&error))?;
        // Dropping it would detach: the filter is to outlive the daemon.
        std::mem::forget(link);
        return Ok(false);
    }
    let made = match qdisc_add_clsact(interface) {
        Ok(()) => true,
        Err(error) if error.to_string().contains("exists") || is_exists(&error) => false,
        Err(error) => return Err(failed(&error)),
    };
    let options = NlOptions {
        priority: PRIORITY,
        handle: handle(),
        classid: None,
    };
    let id = program
        .attach_with_options(interface, direction, TcAttachOptions::Netlink(options))
        .map_err(|error| failed(&error))?;
    let link = program.take_link(id).map_err(|error| failed(&error))?;
    std::mem::forget(link);
    Ok(made)
}

fn is_exists(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && io.raw_os_error() == Some(libc::EEXIST)
        {
            return true;
        }
        next = error.source();
    }
    false
}

/// Detaches a program; removes the qdisc with it where netd made that and nothing else uses it.
pub(super) fn detach(
    attachment: Attachment,
    interface: &str,
    made: bool,
) -> Result<(), DataplaneError> {
    let filters = bpf_filters(attachment.ifindex)?;
    if own(&filters, attachment.hook).is_some() {
        let failed = |reason: &dyn std::fmt::Display| DataplaneError::Detach {
            attachment,
            reason: reason.to_string(),
        };
        let direction = direction(attachment.hook);
        let link = SchedClassifierLink::attached(interface, direction, PRIORITY, handle(), None)
            .map_err(|error| failed(&error))?;
        // Dropping the link detaches it, but tells no error.
        aya::programs::Link::detach(link).map_err(|error| failed(&error))?;
    }
    if made && !has_filters(attachment.ifindex)? {
        delete_clsact(attachment.ifindex)?;
    }
    Ok(())
}

/// netd's filters at these interfaces.
pub(super) fn attachments(
    interfaces: &[u32],
    is_current: impl Fn(Hook, u32) -> bool,
) -> Result<BTreeMap<Attachment, Attached>, HostError> {
    let mut found = BTreeMap::new();
    for &ifindex in interfaces {
        let filters = bpf_filters(ifindex)?;
        for hook in Hook::ALL {
            if let Some(filter) = own(&filters, hook) {
                let state = if is_current(hook, filter.program) {
                    Attached::Current
                } else {
                    Attached::Outdated
                };
                found.insert(Attachment { hook, ifindex }, state);
            }
        }
    }
    Ok(found)
}
