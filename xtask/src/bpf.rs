//! Building the `netd-ebpf` package into one BPF object.
//!
//! cargo is called directly: `aya_build` overwrites `CARGO_ENCODED_RUSTFLAGS`, and the flags are
//! the point here. The object is always built optimised, whatever the profile of `netd` is,
//! because the verifier sees the instructions, not the intent.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::toolchain::Toolchain;

/// The BPF target of the machines that netd supports: little endian.
pub const TARGET: &str = "bpfel-unknown-none";

/// What to build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Build {
    /// Features of `netd-ebpf`, sorted.
    features: Vec<String>,
    /// The architecture of the kernel that will run the object, as in `CARGO_CFG_TARGET_ARCH`.
    arch: String,
}

/// What cargo is asked to do with the package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Make the object.
    Build,
    /// Lint it; a warning is an error.
    Clippy,
}

impl Build {
    /// A build with the given features of `netd-ebpf`, for kernels on `arch`.
    pub fn new(features: impl IntoIterator<Item = impl Into<String>>, arch: &str) -> Self {
        let mut features: Vec<String> = features.into_iter().map(Into::into).collect();
        features.sort();
        features.dedup();
        Self {
            features,
            arch: arch.to_owned(),
        }
    }

    /// The target directory of this build below `target` (cargo's own).
    ///
    /// Outside cargo's profiles, so that `core` is compiled once for debug and release builds of
    /// netd; one per feature set, so that two of them do not rebuild each other's work.
    pub fn directory(&self, target: &Path) -> PathBuf {
        let mut name = self.arch.clone();
        for feature in &self.features {
            name.push('-');
            name.push_str(feature);
        }
        target.join("bpf").join(name)
    }

    /// The object that [`Verb::Build`] makes.
    pub fn object(&self, target: &Path) -> PathBuf {
        self.directory(target)
            .join(TARGET)
            .join("release/netd-ebpf")
    }

    /// The cargo command that does `verb` in the source tree at `workspace`.
    pub fn command(
        &self,
        verb: Verb,
        toolchain: &Toolchain,
        workspace: &Path,
        target: &Path,
    ) -> Command {
        let compiler = &toolchain.compiler;
        let mut command = Command::new(&compiler.cargo);
        clean_environment(&mut command);
        command
            .current_dir(workspace)
            .env("RUSTC", &compiler.rustc)
            // `-Z build-std` on a stable release; harmless on a nightly.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", self.rustflags(toolchain))
            .env("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "false");
        match verb {
            Verb::Build => command.arg("build"),
            // What cargo-clippy does, without the subcommand: not every cargo package has it.
            Verb::Clippy => {
                if let Some(driver) = &compiler.clippy_driver {
                    command.env("RUSTC_WORKSPACE_WRAPPER", driver);
                }
                command.env("CLIPPY_ARGS", "-Dwarnings__CLIPPY_HACKERY__");
                command.arg("check")
            }
        };
        command.args([
            "--package",
            "netd-ebpf",
            "--release",
            "-Z",
            "build-std=core",
        ]);
        command.args(["--target", TARGET]);
        command.arg("--target-dir").arg(self.directory(target));
        if !self.features.is_empty() {
            command.arg("--features").arg(self.features.join(","));
        }
        command
    }

    fn rustflags(&self, toolchain: &Toolchain) -> String {
        [
            format!("--cfg=bpf_target_arch=\"{}\"", self.arch),
            // Types for BTF, and lines for the verifier's log.
            "-Cdebuginfo=2".to_owned(),
            "-Clink-arg=--btf".to_owned(),
            // v3 has 32-bit jumps and atomics; Linux 5.12 and newer run it.
            "-Ctarget-cpu=v3".to_owned(),
            format!("-Clinker={}", toolchain.linker.path.display()),
        ]
        .join("\u{1f}")
    }
}

/// Takes out what an outer cargo or rustup says to its own children: the inner build has another
/// compiler, another target and other flags.
pub fn clean_environment(command: &mut Command) {
    for (name, _) in env::vars_os() {
        if is_of_outer_build(&name) {
            command.env_remove(name);
        }
    }
}

fn is_of_outer_build(name: &OsStr) -> bool {
    /// Settings about the network, the registry and the job count hold for both builds.
    const KEPT: &[&str] = &[
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_MAKEFLAGS",
        "CARGO_NET_",
        "CARGO_REGISTR",
        "CARGO_SOURCE_",
        "CARGO_TERM_",
    ];
    let Some(name) = name.to_str() else {
        return false;
    };
    if name.starts_with("CARGO") {
        return !KEPT.iter().any(|kept| name.starts_with(kept));
    }
    // RUSTC, RUSTC_WRAPPER, RUSTFLAGS, RUSTDOC, RUSTUP_TOOLCHAIN; not RUSTUP_HOME, RUST_LOG.
    name.starts_with("RUSTC")
        || name.starts_with("RUSTFLAGS")
        || name.starts_with("RUSTDOC")
        || matches!(name, "RUSTUP_TOOLCHAIN" | "CLIPPY_ARGS" | "__CARGO_FIX_PLZ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn feature_sets_and_architectures_do_not_share_a_directory() {
        let target = Path::new("/t");
        let plain = Build::new([] as [&str; 0], "x86_64");
        let both = Build::new(["sabotage", "log"], "x86_64");
        assert_eq!(plain.directory(target), Path::new("/t/bpf/x86_64"));
        assert_eq!(
            both.directory(target),
            Path::new("/t/bpf/x86_64-log-sabotage")
        );
        assert_eq!(both, Build::new(["log", "sabotage", "log"], "x86_64"));
        assert_ne!(
            plain.directory(target),
            Build::new([] as [&str; 0], "aarch64").directory(target)
        );
    }

    #[test]
    fn the_outer_build_does_not_leak_into_the_inner_one() {
        for gone in [
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_PROFILE_RELEASE_DEBUG",
            "CARGO_BUILD_TARGET",
            "CARGO_TARGET_DIR",
            "CARGO",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTFLAGS",
            "RUSTUP_TOOLCHAIN",
        ] {
            assert!(is_of_outer_build(OsStr::new(gone)), "{gone} leaks");
        }
        for kept in [
            "CARGO_HOME",
            "CARGO_MAKEFLAGS",
            "CARGO_NET_OFFLINE",
            "CARGO_REGISTRIES_CRATES_IO_PROTOCOL",
            "RUSTUP_HOME",
            "RUST_LOG",
            "PATH",
        ] {
            assert!(!is_of_outer_build(OsStr::new(kept)), "{kept} is lost");
        }
    }
}
