//! Debian's kernels, fetched and unpacked but not installed.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::exit::Cannot;
use crate::setup::apt;
use crate::system::{Machine, System};
use crate::target_dir;

/// An unpacked kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// As `uname -r` says it.
    pub release: String,
    /// The image to boot.
    pub image: PathBuf,
    /// The directory with its modules.
    pub modules: PathBuf,
}

impl Kernel {
    /// The newest kernel of a series, such as `6.1`, that apt knows; once it is below
    /// `target/kernels`, that one.
    ///
    /// # Errors
    /// [`Cannot`] if the configured package sources have none.
    pub fn fetch(series: &str) -> anyhow::Result<Self> {
        let kernels = target_dir().join("kernels");
        let unpacked = Machine
            .entries(&kernels)
            .into_iter()
            .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()));
        let package = match newest(series, unpacked) {
            Some(package) => package,
            None => newest(series, packages(&Machine, series).into_iter()).ok_or_else(|| {
                Cannot(format!(
                    "no package source has a linux-image-{series}.*-cloud-amd64: add one of Debian's \
                     (bookworm and bookworm-security have 6.1 and 6.12) and run `apt-get update`"
                ))
            })?,
        };
        Self::in_directory(&apt::unpack_into(&package, &kernels)?)
    }

    fn in_directory(root: &Path) -> anyhow::Result<Self> {
        let boot = root.join("boot");
        let image = Machine.entries(&boot).into_iter().find_map(|path| {
            let release = path
                .file_name()?
                .to_str()?
                .strip_prefix("vmlinuz-")?
                .to_owned();
            Some((path, release))
        });
        let (image, release) = image.with_context(|| format!("no kernel in {}", boot.display()))?;
        for lib in ["usr/lib/modules", "lib/modules"] {
            let modules = root.join(lib).join(&release);
            if modules.is_dir() {
                return Ok(Self {
                    release,
                    image,
                    modules,
                });
            }
        }
        bail!("no modules of {release} in {}", root.display())
    }
}

fn packages(system: &dyn System, series: &str) -> Vec<String> {
    let start = format!("linux-image-{series}.");
    let names = system.output(Path::new("apt-cache"), &["pkgnames", &start]);
    names
        .unwrap_or_default()
        .lines()
        .map(str::to_owned)
        .collect()
}

/// The newest of the signed cloud kernels of a series.
fn newest(series: &str, packages: impl Iterator<Item = String>) -> Option<String> {
    packages
        .filter(|name| {
            // Not `-unsigned`, `-dbg`; not 6.12 for 6.1.
            name.strip_suffix("-cloud-amd64")
                .and_then(|name| name.strip_prefix("linux-image-"))
                .and_then(|version| version.strip_prefix(series))
                .is_some_and(|rest| rest.starts_with('.'))
        })
        .max_by_key(|name| numbers(name))
}

/// All numbers of a version, so that 6.12.117 is newer than 6.12.99.
fn numbers(version: &str) -> Vec<u32> {
    version
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_signed_kernel_of_the_very_series_is_taken() {
        let names = [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-57-cloud-amd64-unsigned",
            "linux-image-6.1.0-58-cloud-amd64-dbg",
            "linux-image-6.1.0-59-amd64",
            "linux-image-6.12.99+deb12-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64",
        ];
        let newest = |series| newest(series, names.iter().map(|name| (*name).to_owned()));
        assert_eq!(newest("6.1").as_deref(), Some(names[1]));
        assert_eq!(newest("6.12").as_deref(), Some(names[6]));
        assert_eq!(newest("6.6"), None);
    }
}
