//! Builds the BPF object and tells the crate where it is: `NETD_BPF_OBJECT`, a path for
//! `aya::include_bytes_aligned!`.

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;

use xtask::bpf::Build;

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
    let features = [
        ("CARGO_FEATURE_BPF_LOG", "log"),
        ("CARGO_FEATURE_SABOTAGE", "sabotage"),
    ]
    .into_iter()
    .filter(|(variable, _)| env::var_os(variable).is_some())
    .map(|(_, feature)| feature);
    let arch =
        env::var("CARGO_CFG_TARGET_ARCH").map_err(|e| format!("CARGO_CFG_TARGET_ARCH: {e}"))?;
    xtask::bpf::build_object(
        &Build::new(features, &arch),
        &[
            "netd-common/Cargo.toml",
            "netd-common/src",
            "netd-ebpf/Cargo.toml",
            "netd-ebpf/src",
        ],
    )
}
