//! Builds the benchmark's BPF object and tells the crate where it is: `NETD_BENCH_BPF_OBJECT`, a
//! path for `aya::include_bytes_aligned!`.

use std::process::ExitCode;

use xtask::bpf::Build;

fn main() -> ExitCode {
    let inputs = ["netd-common/src", "netd-ebpf/Cargo.toml", "netd-ebpf/src"];
    let object = std::env::var("CARGO_CFG_TARGET_ARCH")
        .map_err(|e| format!("CARGO_CFG_TARGET_ARCH: {e}"))
        .and_then(|arch| xtask::bpf::build_object(&Build::bench(&arch), &inputs));
    match object {
        Ok(object) => {
            println!(
                "cargo::rustc-env=NETD_BENCH_BPF_OBJECT={}",
                object.display()
            );
            ExitCode::SUCCESS
        }
        Err(message) => {
            println!("cargo::error={message}");
            ExitCode::FAILURE
        }
    }
}
