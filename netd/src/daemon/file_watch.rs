//! Tells when the configuration file may have changed.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;

/// Watches the directory of the file, and where it is a symbolic link, that of its target: editors
/// and configuration tools replace files, and a watch on the file itself would end with the old
/// one.
pub(super) struct FileWatch {
    inotify: AsyncFd<Descriptor>,
    names: BTreeSet<OsString>,
}

/// `Inotify`, as tokio wants it.
struct Descriptor(Inotify);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl FileWatch {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let mut names = BTreeSet::new();
        let mut next: Option<PathBuf> = Some(std::path::absolute(path)?);
        // As the kernel does, give up on a long chain of links.
        for _ in 0..8 {
            let Some(path) = next.take() else { break };
            let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
                break;
            };
            inotify.add_watch(
                directory,
                AddWatchFlags::IN_CLOSE_WRITE
                    | AddWatchFlags::IN_MOVED_TO
                    | AddWatchFlags::IN_CREATE
                    | AddWatchFlags::IN_ONLYDIR,
            )?;
            names.insert(name.to_owned());
            if let Ok(target) = std::fs::read_link(&path) {
                next = Some(directory.join(target));
            }
        }
        // SAFETY: the descriptor is its own, and neither closed nor replaced while it is registered.
        let inotify = unsafe { AsyncFd::register(Descriptor(inotify)) };
        Ok(Self {
            inotify: inotify.map_err(io::Error::from)?,
            names,
        })
    }

    /// Waits until a file of that name was written, made or moved there.
    pub(super) async fn changed(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.inotify.readable().await?;
            let mut ours = false;
            loop {
                match ready.get_inner().0.read_events() {
                    Ok(events) => {
                        ours |= events.iter().any(|event| {
                            // No name: the queue overflowed.
                            event
                                .name
                                .as_ref()
                                .is_none_or(|name| self.names.contains(name))
                        });
                    }
                    Err(Errno::EAGAIN) => break,
                    Err(Errno::EINTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            ready.clear_ready();
            if ours {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::time::Duration;

    async fn wakes(watch: &mut FileWatch) -> bool {
        tokio::time::timeout(Duration::from_millis(500), watch.changed())
            .await
            .is_ok()
    }

    #[tokio::test(flavor = "current_thread")]
    async fn writing_replacing_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let real = tempfile::tempdir().unwrap();
        let target = real.path().join("real.toml");
        fs::write(&target, "a").unwrap();
        let path = directory.path().join("netd.toml");
        std::os::unix::fs::symlink(&target, &path).unwrap();
        let mut watch = FileWatch::open(&path).unwrap();

        fs::write(directory.path().join("other"), "x").unwrap();
        assert!(!wakes(&mut watch).await, "another file");
        fs::write(&target, "b").unwrap();
        assert!(wakes(&mut watch).await, "written through the link");
        let new = directory.path().join("new");
        fs::write(&new, "c").unwrap();
        fs::rename(&new, &path).unwrap();
        assert!(wakes(&mut watch).await, "replaced");
    }
}
