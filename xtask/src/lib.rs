//! How netd is built: which compiler and linker make the BPF object, and with which flags.
//!
//! `netd/build.rs` and the `cargo xtask` verbs share this library, so that both find the same
//! tools and neither can build the object another way. Without the feature `cli` it depends on
//! `std` alone, because netd waits for it to compile; the modules of the verbs come with `cli`.

#[cfg(feature = "cli")]
pub mod bench;
pub mod bpf;
#[cfg(feature = "cli")]
pub mod cargo;
#[cfg(feature = "cli")]
pub mod demo;
#[cfg(feature = "cli")]
pub mod exit;
#[cfg(feature = "cli")]
pub mod kernel_vm;
#[cfg(feature = "cli")]
pub mod process;
#[cfg(feature = "cli")]
pub mod sabotage;
#[cfg(feature = "cli")]
pub mod setup;
#[cfg(feature = "cli")]
pub mod suite;
pub mod system;
#[cfg(feature = "cli")]
pub mod test;
pub mod toolchain;
#[cfg(feature = "cli")]
pub mod verifier;
#[cfg(feature = "cli")]
pub mod vm;

use std::env;
use std::path::{Path, PathBuf};

/// The top of the source tree.
pub fn workspace() -> PathBuf {
    // Compiled in: cargo builds this library inside the tree that it describes.
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask/ lies in the workspace")
        .to_path_buf()
}

/// Where cargo puts what it builds: `CARGO_TARGET_DIR`, else `target/` of the workspace.
///
/// Own tools, unpacked packages and kernels live below it too, and so does the BPF build.
pub fn target_dir() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => workspace().join(dir),
        None => workspace().join("target"),
    }
}
