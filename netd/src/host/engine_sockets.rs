//! Which host ports the Engine itself holds: by its proxies, or as placeholders.
//!
//! The Engine binds every port that it publishes, so that nobody else takes it: a `docker-proxy`
//! for each, or a socket of `dockerd`. Such a socket is no reason to leave the port to it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::HostError;
use super::listeners::{ListenerProtocol, LocalListener, local_listeners};

/// Programs of the Engine that hold published ports, as `/proc/PID/comm` names them.
const PROGRAMS: [&str; 2] = ["docker-proxy", "dockerd"];

/// Remembers whose sockets are whose: /proc is searched only for sockets not seen before.
#[derive(Debug, Default)]
pub struct EngineSockets {
    /// By inode: is the socket the Engine's?
    known: HashMap<u32, bool>,
}

impl EngineSockets {
    /// Of the ports for which `published` is true: those that some program holds, and no program
    /// but the Engine.
    ///
    /// # Errors
    /// Where the kernel cannot list the host's listeners.
    pub fn ports(
        &mut self,
        published: impl Fn(ListenerProtocol, u16) -> bool,
    ) -> Result<BTreeSet<(ListenerProtocol, u16)>, HostError> {
        let mut listeners = local_listeners()?;
        listeners.retain(|listener| published(listener.protocol, listener.port));
        let unknown = |listener: &LocalListener| !self.known.contains_key(&listener.inode);
        let mut owned = HashSet::new();
        if listeners.iter().any(unknown) {
            owned = sockets_of_engine(Path::new("/proc"));
        }
        let mut known = HashMap::new();
        for listener in &listeners {
            let before = self.known.get(&listener.inode).copied();
            // Anyone may call a program so; only root's is the Engine.
            let is = || listener.uid == 0 && owned.contains(&listener.inode);
            known.insert(listener.inode, before.unwrap_or_else(is));
        }
        self.known = known;
        Ok(only_engine(&listeners, |inode| {
            self.known.get(&inode) == Some(&true)
        }))
    }
}

/// Ports of which every listener is the Engine's.
fn only_engine(
    listeners: &[LocalListener],
    is_engine: impl Fn(u32) -> bool,
) -> BTreeSet<(ListenerProtocol, u16)> {
    let mut ports = BTreeMap::new();
    for listener in listeners {
        let all = ports
            .entry((listener.protocol, listener.port))
            .or_insert(true);
        *all &= is_engine(listener.inode);
    }
    ports.retain(|_, all| *all);
    ports.into_keys().collect()
}

/// Inodes of all sockets that the Engine's processes hold. Processes come and go meanwhile.
fn sockets_of_engine(proc: &Path) -> HashSet<u32> {
    let mut sockets = HashSet::new();
    for process in fs::read_dir(proc).into_iter().flatten().flatten() {
        let name = process.file_name();
        if !name.as_bytes().first().is_some_and(u8::is_ascii_digit) {
            continue;
        }
        let comm = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        if !PROGRAMS.contains(&comm.trim_end()) {
            continue;
        }
        for descriptor in fs::read_dir(process.path().join("fd"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let target = fs::read_link(descriptor.path()).unwrap_or_default();
            sockets.extend(socket_inode(&target.to_string_lossy()));
        }
    }
    sockets
}

/// `socket:[4711]`
fn socket_inode(target: &str) -> Option<u32> {
    target
        .strip_prefix("socket:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_port_is_the_engines_only_if_all_its_listeners_are() {
        let listener = |protocol, port, inode| LocalListener {
            protocol,
            address: Ipv4Addr::UNSPECIFIED.into(),
            port,
            dual_stack: false,
            ifindex: None,
            uid: 0,
            inode,
        };
        use ListenerProtocol::{Tcp, Udp};
        let listeners = [
            listener(Tcp, 80, 1),
            listener(Tcp, 80, 2),
            listener(Tcp, 81, 1),
            listener(Tcp, 81, 9),
            listener(Udp, 81, 2),
            listener(Udp, 82, 9),
        ];
        let found = only_engine(&listeners, |inode| inode < 3);
        assert_eq!(found, BTreeSet::from([(Tcp, 80), (Udp, 81)]));
    }

    #[test]
    fn descriptors_name_their_sockets() {
        assert_eq!(socket_inode("socket:[4711]"), Some(4711));
        assert_eq!(socket_inode("pipe:[4711]"), None);
        assert_eq!(socket_inode("/dev/null"), None);
    }
}
