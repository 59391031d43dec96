//! Builds the BPF object and tells the crate where it is: `NETD_BPF_OBJECT`, a path for
//! `aya::include_bytes_aligned!`.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use xtask::bpf::{Build, Verb};
use xtask::system::Machine;
use xtask::toolchain::Inventory;

fn main() -> ExitCode {
    match build() {
        Ok(object) => {
            println!("cargo::rustc-env=NETD_BPF_OBJECT={}", object.display());
            ExitCode::SUCCESS
        }
        Err(message) => {
            println!("cargo::error={message}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<PathBuf, String> {
    let workspace = xtask::workspace();
    for input in [
        "Cargo.lock",
        "Cargo.toml",
        "netd-common/Cargo.toml",
        "netd-common/src",
        "netd-ebpf/Cargo.toml",
        "netd-ebpf/src",
    ] {
        println!(
            "cargo::rerun-if-changed={}",
            workspace.join(input).display()
        );
    }
    println!("cargo::rerun-if-env-changed=CARGO_TARGET_DIR");

    let target = xtask::target_dir();
    let toolchain = Inventory::take(&Machine, &target.join("tools"))
        .choose()
        .map_err(|missing| format!("cannot build netd's BPF programs: {missing}"))?;
    for tool in [&toolchain.linker.path, &toolchain.compiler.rustc] {
        println!("cargo::rerun-if-changed={}", tool.display());
    }

    let features = [
        ("CARGO_FEATURE_BPF_LOG", "log"),
        ("CARGO_FEATURE_SABOTAGE", "sabotage"),
    ]
    .into_iter()
    .filter(|(variable, _)| env::var_os(variable).is_some())
    .map(|(_, feature)| feature);
    let arch =
        env::var("CARGO_CFG_TARGET_ARCH").map_err(|e| format!("CARGO_CFG_TARGET_ARCH: {e}"))?;
    let build = Build::new(features, &arch);

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

    // A copy of its own: another profile's build must not change the file under this one.
    let object = build.object(&target);
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo gave no OUT_DIR")?);
    let copy = out.join("netd.bpf.o");
    fs::copy(&object, &copy).map_err(|e| format!("cannot copy {}: {e}", object.display()))?;
    Ok(copy)
}
