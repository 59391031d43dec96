//! Which program sits at which interface.

use std::{fs, io};

use netd_common::abi::hook;
use serde::Serialize;

use super::{State, StateError, sys};

/// A program at an interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct AttachmentView {
    /// The interface; `None` where it is gone from this network namespace.
    pub interface: Option<String>,
    /// Its ifindex when the program was attached.
    pub ifindex: u32,
    /// The hook.
    pub hook: &'static str,
    /// Does it still see that interface's packets? Not once the interface is gone.
    pub attached: bool,
}

/// Reads the pinned tcx links, `links/<hook>-<ifindex>`, ordered by interface. There are none
/// where the kernel has no tcx and programs are attached as clsact filters.
///
/// # Errors
/// What the kernel says.
pub fn attachments(state: &State) -> Result<Vec<AttachmentView>, StateError> {
    let directory = state.directory.join("links");
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(StateError::Read { path: directory, source }),
    };
    let mut views = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some((hook, ifindex)) = name.to_str().and_then(parse_pin_name) else { continue };
        match sys::tcx_link_target(&entry.path()) {
            Ok(target) => views.push(AttachmentView {
                interface: state.interface(ifindex).map(str::to_owned),
                ifindex,
                hook,
                attached: target == ifindex,
            }),
            // Removed since the directory was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(StateError::Read { path: entry.path(), source }),
        }
    }
    views.sort();
    Ok(views)
}

fn parse_pin_name(name: &str) -> Option<(&'static str, u32)> {
    let (program, ifindex) = name.rsplit_once('-')?;
    let hook = (0..hook::COUNT).map(hook::name).find(|h| *h == program)?;
    Some((hook, ifindex.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_named_by_hook_and_interface() {
        assert_eq!(parse_pin_name("from_endpoint-12"), Some(("from_endpoint", 12)));
        assert_eq!(parse_pin_name("bridge_guard_out-7"), Some(("bridge_guard_out", 7)));
        for other in ["from_endpoint", "from_endpoint-x", "xdp-7", ""] {
            assert_eq!(parse_pin_name(other), None, "{other}");
        }
    }
}
