//! An initramfs: a cpio archive in the `newc` format (kernel: Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use anyhow::Context as _;

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// Files to be, by their path in the guest without the leading slash.
#[derive(Debug, Default)]
pub struct Archive {
    /// Path → (type and permissions, content or the target of a link).
    entries: BTreeMap<PathBuf, (u32, Vec<u8>)>,
}

impl Archive {
    /// The links in the root directory that a merged `/usr` has (`/lib` → `usr/lib`).
    ///
    /// # Errors
    /// A link that cannot be read.
    pub fn links_of_root(&mut self) -> anyhow::Result<()> {
        for name in ["bin", "lib", "lib32", "lib64", "sbin"] {
            let path = Path::new("/").join(name);
            if path.is_symlink() {
                let target = fs::read_link(&path)?;
                self.directories_of(&Path::new("/").join(&target).join("x"));
                self.link(&path, &target);
            }
        }
        Ok(())
    }

    /// A file with the content `bytes`; `mode` is the permissions.
    pub fn bytes(&mut self, guest: &str, mode: u32, bytes: Vec<u8>) {
        self.put(Path::new(guest), REGULAR | mode, bytes);
    }

    /// A copy of the file `host`.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn file(&mut self, host: &Path, guest: &str, mode: u32) -> anyhow::Result<()> {
        let bytes = fs::read(host).with_context(|| format!("cannot read {}", host.display()))?;
        self.bytes(guest, mode, bytes);
        Ok(())
    }

    /// The file `path` at the same path; if that is a link, the link and what it leads to.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn with_links(&mut self, path: &Path) -> anyhow::Result<()> {
        let context = || format!("cannot read {}", path.display());
        // Directories that are links (a merged /usr) are resolved: links_of_root has them.
        let parent = path.parent().unwrap_or(Path::new("/"));
        let parent = fs::canonicalize(parent).with_context(context)?;
        let path = parent.join(path.file_name().with_context(context)?);
        if self.entries.contains_key(strip(&path)) {
            return Ok(());
        }
        if path.is_symlink() {
            let target = fs::read_link(&path).with_context(context)?;
            self.link(&path, &target);
            return self.with_links(&parent.join(target));
        }
        let mode = fs::metadata(&path)
            .with_context(context)?
            .permissions()
            .mode()
            & 0o777;
        let bytes = fs::read(&path).with_context(context)?;
        self.put(&path, REGULAR | mode, bytes);
        Ok(())
    }

    fn link(&mut self, path: &Path, target: &Path) {
        let target = target.as_os_str().as_encoded_bytes().to_vec();
        self.put(path, LINK | 0o777, target);
    }

    fn put(&mut self, path: &Path, mode: u32, content: Vec<u8>) {
        self.directories_of(path);
        self.entries
            .insert(strip(path).to_path_buf(), (mode, content));
    }

    /// The kernel makes no directory by itself.
    fn directories_of(&mut self, path: &Path) {
        for parent in strip(path).ancestors().skip(1) {
            if parent != Path::new("") {
                self.entries
                    .entry(parent.to_path_buf())
                    .or_insert((DIRECTORY | 0o755, Vec::new()));
            }
        }
    }

    /// The archive as the kernel reads it.
    pub fn finish(&self) -> Vec<u8> {
        let mut out = Vec::new();
        // A directory sorts before what is in it, so the kernel meets it first.
        for (number, (path, (mode, content))) in self.entries.iter().enumerate() {
            let name = path.as_os_str().as_encoded_bytes();
            append(&mut out, number + 1, name, *mode, content);
        }
        append(&mut out, 0, b"TRAILER!!!", 0, &[]);
        out
    }
}

/// One entry: a header of thirteen 8-digit hexadecimal numbers behind a magic, the name with a
/// NUL, the content; name and content each filled up to a multiple of four.
fn append(out: &mut Vec<u8>, inode: usize, name: &[u8], mode: u32, content: &[u8]) {
    let links = 1;
    out.extend_from_slice(b"070701");
    for field in [
        inode,
        mode as usize,
        0, // user
        0, // group
        links,
        0, // time
        content.len(),
        0, // device
        0,
        0, // device of a device file
        0,
        name.len() + 1,
        0, // checksum, unused in this format
    ] {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(name);
    out.push(0);
    fill(out);
    out.extend_from_slice(content);
    fill(out);
}

fn fill(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

/// Without the leading slash.
fn strip(path: &Path) -> &Path {
    debug_assert!(!path.components().any(|c| c == Component::ParentDir));
    path.strip_prefix("/").unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_come_before_their_files_and_everything_is_aligned() {
        let mut archive = Archive::default();
        archive.bytes("/a/b/file", 0o644, b"hello".to_vec());
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        let place = |needle| {
            text.find(needle)
                .unwrap_or_else(|| panic!("no {needle:?} in {text}"))
        };
        assert!(place("a\0") < place("a/b\0"));
        assert!(place("a/b\0") < place("a/b/file\0"));
        assert!(text.contains("000081a4"), "a regular file with 0644");
        assert!(place("hello") < place("TRAILER!!!"));
        // Headers are 110 bytes, so each starts at a multiple of four only if all was filled up.
        for (at, _) in text.match_indices("070701") {
            assert_eq!(at % 4, 0);
        }
    }
}
