//! Questions to apt, and packages that are fetched and unpacked but not installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::exit::Cannot;
use crate::system::{Machine, System};
use crate::target_dir;

/// The version that would be installed, if the configured sources have the package.
pub fn candidate(system: &dyn System, package: &str) -> Option<String> {
    policy(system, package, "Candidate:")
}

/// The version that is installed.
pub fn installed(system: &dyn System, package: &str) -> Option<String> {
    policy(system, package, "Installed:")
}

fn policy(system: &dyn System, package: &str, field: &str) -> Option<String> {
    let text = system.output(Path::new("apt-cache"), &["policy", package])?;
    let version = text
        .lines()
        .find_map(|line| line.trim().strip_prefix(field))?
        .trim();
    (version != "(none)").then(|| version.to_owned())
}

/// The files of a package, below `target/unpacked/NAME`; fetched if they are not there yet.
///
/// Nothing of the package is run and nothing on the machine changes, so this is how packages
/// come that would start a service (`docker.io`, `containerd`, `ufw`, `firewalld`). Packages it
/// depends on do not come along: ask for each by name. Needs no root.
///
/// # Errors
/// [`Cannot`] where there is no apt; else the command that failed.
pub fn unpack(package: &str) -> anyhow::Result<PathBuf> {
    unpack_into(package, &target_dir().join("unpacked"))
}

/// As [`unpack`], below another directory.
///
/// # Errors
/// As [`unpack`].
pub fn unpack_into(package: &str, parent: &Path) -> anyhow::Result<PathBuf> {
    let files = parent.join(package);
    if files.is_dir() {
        return Ok(files);
    }
    for program in ["apt-get", "dpkg-deb"] {
        if Machine.in_path(program).is_none() {
            return Err(Cannot(format!(
                "the Debian package {package} is needed and {program} is not there: unpack it \
                 into {} by other means",
                files.display()
            ))
            .into());
        }
    }
    // The process id keeps two runs apart; the rename at the end makes the result appear whole.
    let work = parent.join(format!(".{package}.{}", std::process::id()));
    let result = fetch(package, &work).and_then(|unpacked| {
        match fs::rename(&unpacked, &files) {
            // Another run was quicker: its files are the same.
            Err(_) if files.is_dir() => Ok(()),
            other => other.with_context(|| format!("cannot move into {}", files.display())),
        }
    });
    let _ = fs::remove_dir_all(&work);
    result.map(|()| files)
}

fn fetch(package: &str, work: &Path) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(work).with_context(|| format!("cannot create {}", work.display()))?;
    eprintln!("fetching the Debian package {package}, to unpack it without installing");
    let download = || -> anyhow::Result<_> {
        let mut command = Command::new("apt-get");
        // Root's apt would change to the user _apt, who cannot write below target/.
        command.args(["download", "--quiet=2", "-o", "APT::Sandbox::User=root"]);
        command.arg(package).current_dir(work);
        command.status().context("cannot start apt-get")
    };
    if !download()?.success() {
        // Lists that are empty or older than the mirror: only root can do something about it.
        if !Machine.is_root() {
            bail!("cannot fetch {package}: run `sudo apt-get update`, then try again");
        }
        let update = Command::new("apt-get")
            .args(["update", "--quiet=2"])
            .status();
        if !update.is_ok_and(|status| status.success()) || !download()?.success() {
            bail!("cannot fetch the Debian package {package}: see apt's messages above");
        }
    }
    let deb = fs::read_dir(work)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|e| e == "deb"))
        .with_context(|| format!("apt-get download {package} left no file"))?;
    let unpacked = work.join("files");
    let status = Command::new("dpkg-deb")
        .arg("-x")
        .arg(&deb)
        .arg(&unpacked)
        .status()?;
    if !status.success() {
        bail!("cannot unpack {} ({status})", deb.display());
    }
    Ok(unpacked)
}
