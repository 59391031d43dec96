//! Which program sits at which interface.

use std::{fs, io, os::fd::AsFd as _, path::Path};

use serde::Serialize;

use super::{State, StateError, sys};
use crate::{
    dataplane::{
        AttachMode, Attachment, Hook, ROOT_CGROUP,
        clsact::{HANDLE, PRIORITY},
        sys::{cgroup_link, open_pinned},
    },
    host::filters::{BpfFilter, bpf_filters},
};

/// A program at an interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct AttachmentView {
    /// The interface; `None` where it is gone from this network namespace.
    pub interface: Option<String>,
    /// Its ifindex when the program was attached.
    pub ifindex: u32,
    /// The hook.
    pub hook: &'static str,
    /// Does it still see that interface's packets? Not once the interface is gone or moved.
    pub attached: bool,
}

/// Reads what is attached, ordered by interface: the pinned tcx links `links/<hook>-<ifindex>`, or
/// netd's filters at the interfaces of this network namespace.
///
/// # Errors
/// What the kernel says.
pub fn attachments(state: &State, how: AttachMode) -> Result<Vec<AttachmentView>, StateError> {
    let mut views = links(state)?;
    if how == AttachMode::Clsact {
        views.retain(|view| view.interface.as_deref() == Some(ROOT_CGROUP));
        views.extend(filters(state)?);
    }
    views.sort();
    Ok(views)
}

fn links(state: &State) -> Result<Vec<AttachmentView>, StateError> {
    let directory = state.directory.join("links");
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => {
            return Err(StateError::Read {
                path: directory,
                source,
            });
        }
    };
    let mut views = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(pinned) = name.to_str().and_then(Attachment::from_pin_name) else {
            continue;
        };
        if pinned.hook.is_cgroup() {
            views.push(AttachmentView {
                attached: is_at_cgroup(&entry.path())?,
                interface: Some(ROOT_CGROUP.to_owned()),
                ifindex: 0,
                hook: pinned.hook.program(),
            });
            continue;
        }
        match sys::tcx_link_target(&entry.path()) {
            Ok(target) => {
                let interface = state.interface(pinned.ifindex).map(str::to_owned);
                views.push(AttachmentView {
                    // A link follows its device into another namespace.
                    attached: target == pinned.ifindex && interface.is_some(),
                    interface,
                    ifindex: pinned.ifindex,
                    hook: pinned.hook.program(),
                });
            }
            // Removed since the directory was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                return Err(StateError::Read {
                    path: entry.path(),
                    source,
                });
            }
        }
    }
    Ok(views)
}

/// Does the link still sit at a control group?
fn is_at_cgroup(path: &Path) -> Result<bool, StateError> {
    let link = open_pinned(path).and_then(|link| cgroup_link(link.as_fd()));
    match link {
        Ok(link) => Ok(link.is_some_and(|link| link.cgroup != 0)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(StateError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

fn filters(state: &State) -> Result<Vec<AttachmentView>, StateError> {
    let mut views = Vec::new();
    for (&ifindex, interface) in &state.interfaces {
        let filters = bpf_filters(ifindex).map_err(|error| StateError::Read {
            path: format!("tc filters of {interface}").into(),
            source: io::Error::other(error),
        })?;
        views.extend(
            filters
                .iter()
                .filter_map(hook_of)
                .map(|hook| AttachmentView {
                    interface: Some(interface.clone()),
                    ifindex,
                    hook,
                    attached: true,
                }),
        );
    }
    Ok(views)
}

/// The hook of a filter that is netd's.
fn hook_of(filter: &BpfFilter) -> Option<&'static str> {
    Hook::ALL
        .into_iter()
        .map(Hook::program)
        .find(|name| filter.priority == PRIORITY && filter.handle == HANDLE && filter.name == *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_filters_of_netd_are_its_hooks() {
        let own = || BpfFilter {
            ifindex: 3,
            egress: false,
            priority: PRIORITY,
            handle: HANDLE,
            name: "from_uplink".into(),
            program: 7,
        };
        assert_eq!(hook_of(&own()), Some("from_uplink"));
        assert_eq!(hook_of(&BpfFilter { handle: 1, ..own() }), None);
        assert_eq!(
            hook_of(&BpfFilter {
                priority: 2,
                ..own()
            }),
            None
        );
        assert_eq!(
            hook_of(&BpfFilter {
                name: "cil_from_netdev".into(),
                ..own()
            }),
            None
        );
    }
}
