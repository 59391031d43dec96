//! The netd under test, and another build of it with the same ABI.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Ends the test with a word when it cannot run here.
macro_rules! need_root {
    () => {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
    };
}
pub(crate) use need_root;

/// The netd under test.
pub fn netd() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_netd"))
}

/// The same source with the feature `bpf-log`: the same ABI, other programs.
///
/// `cargo xtask test` has built it and says where. Under plain `cargo test` it is built here, below a target directory
/// of its own, because the netd under test must stay what it is; that takes minutes the first time.
pub fn second_build() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| match std::env::var_os("NETD_SECOND_BUILD") {
        Some(path) => path.into(),
        None => build_second(),
    })
}

fn build_second() -> PathBuf {
    let target = target_dir().join("second");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--package", "netd", "--bin", "netd"])
        .args(["--features", "bpf-log", "--target-dir"])
        .arg(&target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .expect("cargo");
    assert!(status.success(), "the second build failed: {status}");
    target.join("debug/netd")
}

/// `target/` of the netd under test, which is `target/debug/netd`.
fn target_dir() -> &'static Path {
    netd()
        .parent()
        .and_then(Path::parent)
        .expect("cargo puts programs two directories below its target directory")
}

#[test]
fn the_two_builds_differ() {
    need_root!();
    let read =
        |path: &Path| std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert!(
        read(netd()) != read(second_build()),
        "the same program twice"
    );
}
