//! Where the root of the control groups is, and whether programs can be attached there.

use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::sync::OnceLock;

use aya::programs::ProgramType;
use aya::sys::is_program_supported;
use socket2::{Domain, Socket, Type};

/// Whether the kernel has programs for socket addresses (CONFIG_CGROUP_BPF). Asked once.
pub fn supports_socket_hooks() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        // Where even asking fails, so does loading, and says why.
        is_program_supported(ProgramType::CgroupSockAddr).unwrap_or(true)
    })
}

/// Where the root of the cgroup2 hierarchy is mounted in this mount namespace; `None` if it is
/// not. A process in a cgroup namespace sees its own group as the root: that one is returned, and
/// programs attached there see the sockets of that group only.
pub fn cgroup2_root() -> Option<PathBuf> {
    find_root(&fs::read_to_string("/proc/self/mountinfo").ok()?)
}

/// The first mount of cgroup2's root in a mountinfo file (proc_pid_mountinfo(5)).
fn find_root(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let (root, at) = (mount.next()?, mount.next()?);
        let is_root = root == "/" && file_system.split(' ').next()? == "cgroup2";
        is_root.then(|| PathBuf::from(unescape(at)))
    })
}

/// Spaces and backslashes are written in octal.
fn unescape(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4);
        match code.and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(byte) if byte.is_ascii() => {
                out.push(char::from(byte));
                rest = &rest[at + 4..];
            }
            _ => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out + rest
}

/// The kernel's cookie of the calling thread's network namespace (SO_NETNS_COOKIE, Linux 5.14);
/// the same as `bpf_get_netns_cookie` tells.
pub fn netns_cookie() -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the buffer is valid for its length, which is passed.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(cookie)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_found_among_other_mounts() {
        let hybrid = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
34 31 0:31 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu
40 31 0:38 /a /mnt/part rw,relatime - cgroup2 cgroup2 rw
41 31 0:38 / /sys/fs/cgroup/uni\\040fied rw,relatime shared:10 master:1 - cgroup2 cgroup2 rw";
        assert_eq!(
            find_root(hybrid),
            Some("/sys/fs/cgroup/uni fied".into()),
            "not a part of it, and whatever optional fields there are"
        );
        assert_eq!(find_root(hybrid.lines().next().unwrap()), None);
        assert_eq!(unescape("a\\134b\\9"), "a\\b\\9");
    }
}
