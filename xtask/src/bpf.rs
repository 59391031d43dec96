//! Building the `netd-ebpf` package into one BPF object.
//!
//! cargo is called directly: `aya_build` overwrites `CARGO_ENCODED_RUSTFLAGS`, and the flags are
//! the point here. The object is always built optimised, whatever the profile of `netd` is,
//! because the verifier sees the instructions, not the intent.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::system::Machine;
use crate::toolchain::{Inventory, Toolchain};

/// The BPF target of the machines that netd supports: little endian.
pub const TARGET: &str = "bpfel-unknown-none";

/// The objects that the package has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Object {
    /// netd's data plane.
    Netd,
    /// The benchmark's generator and sinks.
    Bench,
}

impl Object {
    fn binary(self) -> &'static str {
        match self {
            Self::Netd => "netd-ebpf",
            Self::Bench => "netd-bench-ebpf",
        }
    }
}

/// What to build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Build {
    object: Object,
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
    /// A build of netd's programs with the given features of `netd-ebpf`, for kernels on `arch`.
    pub fn new(features: impl IntoIterator<Item = impl Into<String>>, arch: &str) -> Self {
        Self::of(Object::Netd, features, arch)
    }

    /// A build of the benchmark's programs, for kernels on `arch`.
    pub fn bench(arch: &str) -> Self {
        Self::of(Object::Bench, [] as [&str; 0], arch)
    }

    fn of(
        object: Object,
        features: impl IntoIterator<Item = impl Into<String>>,
        arch: &str,
    ) -> Self {
        let mut features: Vec<String> = features.into_iter().map(Into::into).collect();
        features.sort();
        features.dedup();
        Self {
            object,
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
            .join("release")
            .join(self.object.binary())
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
            Verb::Build => command.args(["build", "--bin", self.object.binary()]),
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

/// Builds the object from a build script: says what it is made of, compiles it, and returns a
/// copy below `OUT_DIR`, so that another profile's build does not change the file under this one.
///
/// `inputs` are paths in the workspace, beside the manifests that every build depends on.
///
/// # Errors
/// A missing compiler or linker, with the way to get it, or a build that fails.
pub fn build_object(build: &Build, inputs: &[&str]) -> Result<PathBuf, String> {
    let workspace = crate::workspace();
    for input in ["Cargo.lock", "Cargo.toml"].iter().chain(inputs) {
        println!(
            "cargo::rerun-if-changed={}",
            workspace.join(input).display()
        );
    }
    println!("cargo::rerun-if-env-changed=CARGO_TARGET_DIR");

    let target = crate::target_dir();
    let toolchain = Inventory::take(&Machine, &target.join("tools"))
        .choose()
        .map_err(|missing| format!("cannot build netd's BPF programs: {missing}"))?;
    for tool in [&toolchain.linker.path, &toolchain.compiler.rustc] {
        println!("cargo::rerun-if-changed={}", tool.display());
    }

    let mut command = build.command(Verb::Build, &toolchain, &workspace, &target);
    let status = command
        .status()
        .map_err(|e| format!("cannot start {}: {e}", toolchain.compiler.cargo.display()))?;
    if !status.success() {
        return Err(format!(
            "netd's BPF programs do not build with {}; the compiler's messages are above",
            toolchain.compiler
        ));
    }

    let object = build.object(&target);
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo gave no OUT_DIR")?);
    let copy = out.join(format!("{}.o", build.object.binary()));
    fs::copy(&object, &copy).map_err(|e| format!("cannot copy {}: {e}", object.display()))?;
    Ok(copy)
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
