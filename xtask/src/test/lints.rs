//! The suites that compile but do not run: format, lints, documentation, another architecture.

use std::process::Command;
use std::time::Duration;

use crate::bpf::{self, Build, Verb};
use crate::cargo::cargo;
use crate::suite::Row;
use crate::{process, setup, target_dir, workspace};

/// A cold build of everything on two slow cores.
const LIMIT: Duration = Duration::from_secs(30 * 60);

/// `cargo fmt --check`, all crates.
pub(super) fn fmt(name: &str) -> anyhow::Result<Vec<Row>> {
    one(
        name,
        "no difference",
        cargo().args(["fmt", "--all", "--check"]),
    )
}

/// clippy over user space, tests and benches included.
pub(super) fn clippy(name: &str) -> anyhow::Result<Vec<Row>> {
    let mut command = cargo();
    command.args(["clippy", "--workspace", "--exclude", "netd-ebpf"]);
    command.args(["--all-targets", "--", "-D", "warnings"]);
    one(name, "no warning", &mut command)
}

/// clippy over the BPF crate for the BPF target, without and with its features: code behind a
/// feature is not seen otherwise.
pub(super) fn clippy_bpf(name: &str) -> anyhow::Result<Vec<Row>> {
    let toolchain = setup::toolchain()?;
    let mut rows = Vec::new();
    for features in [&[][..], &["log"], &["sabotage"]] {
        let build = Build::new(features.iter().copied(), std::env::consts::ARCH);
        let mut command = build.command(Verb::Clippy, &toolchain, &workspace(), &target_dir());
        let name = [&[name][..], features].concat().join(" ");
        rows.extend(one(&name, "no warning", &mut command)?);
    }
    Ok(rows)
}

/// The documentation of the public items.
pub(super) fn doc(name: &str) -> anyhow::Result<Vec<Row>> {
    let mut command = cargo();
    command.args(["doc", "--workspace", "--exclude", "netd-ebpf", "--no-deps"]);
    // A module that is documented, and only there with its feature.
    command.args(["--features", "netd-common/model"]);
    command.env("RUSTDOCFLAGS", "-Dwarnings");
    one(name, "no warning", &mut command)
}

/// Type-checks user space for aarch64.
///
/// With the compiler of the BPF object and a `std` from its sources: rustup's prebuilt one is on
/// few machines, and a type check needs no cross linker.
pub(super) fn aarch64(name: &str) -> anyhow::Result<Vec<Row>> {
    let compiler = setup::toolchain()?.compiler;
    let mut command = Command::new(&compiler.cargo);
    bpf::clean_environment(&mut command);
    command
        .current_dir(workspace())
        .env("RUSTC", &compiler.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .args(["check", "--package", "netd", "--package", "netd-common"])
        .args(["--target", "aarch64-unknown-linux-gnu", "-Z", "build-std"])
        .arg("--target-dir")
        .arg(target_dir().join("aarch64"))
        // The build script must find the tools where they are, not in that directory.
        .env("CARGO_TARGET_DIR", target_dir());
    one(name, "no error", &mut command)
}

/// Runs a command whose exit code is the answer; shows its messages if it fails.
fn one(name: &str, expected: &str, command: &mut Command) -> anyhow::Result<Vec<Row>> {
    let outcome = process::run(name, command, LIMIT)?;
    let ok = outcome.success();
    if !ok {
        eprint!("{}{}", outcome.stdout, outcome.stderr());
    }
    let got = if ok {
        expected.to_owned()
    } else {
        outcome.describe()
    };
    Ok(vec![Row::new(name, expected, got, ok)])
}
