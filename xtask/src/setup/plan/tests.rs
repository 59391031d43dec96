//! Machines that do not exist here, and what is to be done on them.

use super::*;
use crate::system::fake::Fake;

const TOOLS: &str = "/src/target/tools";

fn policy(fake: Fake, package: &str, version: &str) -> Fake {
    let text = format!("{package}:\n  Installed: (none)\n  Candidate: {version}\n");
    fake.program("apt-cache", &format!("policy {package}"), &text)
}

fn programs(fake: Fake) -> Fake {
    PROGRAMS
        .iter()
        .fold(fake, |fake, p| fake.file(&format!("/usr/bin/{}", p.name)))
}

/// A Debian with apt sources for the compiler and for LLVM, and nothing installed.
fn debian() -> Fake {
    let fake = policy(Fake::root(), "rustc-web", "1.96.0+dfsg1-1~deb12u2");
    policy(fake, "llvm-22-dev", "1:22.1.8-1~deb12u1").file("/usr/bin/apt-get")
}

fn rustup_stable(fake: Fake) -> Fake {
    let root = "/root/.rustup/toolchains/stable-x";
    fake.program(
        &format!("{root}/bin/rustc"),
        "-vV",
        "release: 1.95.0\nLLVM version: 22.1.2\n",
    )
    .file(&format!("{root}/bin/cargo"))
    .file("/usr/bin/rustup")
}

fn distribution_rust(fake: Fake) -> Fake {
    fake.program(
        "/usr/bin/rustc",
        "-vV",
        "release: 1.96.0\nLLVM version: 22.1.8\n",
    )
    .file("/usr/bin/cargo")
    .file("/usr/lib/rustlib/src/rust/library/core/Cargo.toml")
}

fn own_linker(fake: Fake) -> Fake {
    let path = format!("{TOOLS}/bin/bpf-linker");
    fake.program(&path, "--version", "bpf-linker 0.13.0\n")
        .program("ldd", &path, "libLLVM.so.22.1 => /x\n")
}

fn own_tunnel(fake: Fake, version: &str) -> Fake {
    let path = format!("{TOOLS}/bin/boringtun-cli");
    fake.program(&path, "--version", &format!("boringtun {version}\n"))
}

fn plan(fake: &Fake, needs: &[Need]) -> Plan {
    Plan::make(fake, Path::new(TOOLS), needs)
}

fn packages(plan: &Plan) -> Vec<&str> {
    plan.packages.keys().map(String::as_str).collect()
}

#[test]
fn a_complete_machine_has_nothing_to_do() {
    let fake = own_linker(distribution_rust(programs(debian())));
    let fake = own_tunnel(fake, "0.7.0").file("/usr/bin/clippy-driver");
    let plan = plan(&fake, Need::ALL);
    assert!(plan.is_done(), "{:?}", plan.describe());
    assert!(plan.commands().is_empty());
    assert_eq!(plan.found.len(), PROGRAMS.len() + 4);
}

#[test]
fn a_fresh_debian_gets_compiler_llvm_and_linker() {
    let plan = plan(&rustup_stable(debian()), &[Need::Build]);
    assert!(plan.may_install && plan.obstacle.is_none());
    assert_eq!(
        packages(&plan),
        [
            "cargo-web",
            "libpolly-22-dev",
            "libxml2-dev",
            "libzstd-dev",
            "llvm-22-dev",
            "rust-web-clippy",
            "rust-web-src",
            "rustc-web",
            "zlib1g-dev"
        ]
    );
    let commands = plan.commands();
    assert_eq!(commands.len(), 2);
    assert_eq!(commands[0].program, "apt-get");
    let linker = commands[1].to_string();
    assert!(
        linker.contains("LLVM_SYS_221_PREFIX=/usr/lib/llvm-22 "),
        "{linker}"
    );
    assert!(
        linker.contains("cargo install bpf-linker --version 0.13.0 --locked"),
        "{linker}"
    );
    assert!(
        linker.ends_with("--features llvm-22 --root /src/target/tools"),
        "{linker}"
    );
}

#[test]
fn only_the_linker_is_built_when_the_compiler_is_there() {
    let fake = distribution_rust(debian())
        .file("/usr/lib/llvm-22/bin/llvm-config")
        .file("/usr/include/libxml2/libxml/xmlversion.h")
        .file("/usr/include/zstd.h")
        .file("/usr/include/zlib.h");
    let plan = plan(&fake, &[Need::Build]);
    assert!(plan.packages.is_empty());
    assert_eq!(plan.commands().len(), 1);
}

#[test]
fn without_a_new_enough_package_rustup_gets_the_sources() {
    // An Ubuntu: its rustc is too old, but it has an LLVM of the right major.
    let fake = policy(Fake::root(), "rustc", "1.93.1+dfsg-0ubuntu1");
    let fake = policy(fake, "llvm-22-dev", "1:22.1.0-1").file("/usr/bin/apt-get");
    let plan = plan(&rustup_stable(fake), &[Need::Build]);
    assert!(plan.obstacle.is_none());
    let commands = plan.commands();
    assert_eq!(
        commands[1].to_string(),
        "/usr/bin/rustup component add rust-src --toolchain stable-x"
    );
    assert!(commands[2].to_string().contains("--features llvm-22"));
    assert!(!packages(&plan).contains(&"rustc"));
}

#[test]
fn an_llvm_that_no_source_has_is_an_obstacle_with_commands() {
    let fake = rustup_stable(Fake::root().file("/usr/bin/apt-get"));
    let plan = plan(&fake, &[Need::Build]);
    assert!(plan.obstacle.is_some());
    let text = plan.describe().join("\n");
    assert!(
        text.contains("https://apt.llvm.org/llvm.sh && bash llvm.sh 22"),
        "{text}"
    );
    assert!(text.contains("rustup component add rust-src"), "{text}");
}

#[test]
fn an_old_toolchain_alone_leads_to_a_nightly() {
    let root = "/root/.rustup/toolchains/old";
    let fake = policy(Fake::root(), "llvm-22-dev", "1:22.1.0-1")
        .file("/usr/bin/apt-get")
        .file("/usr/bin/rustup")
        .program(
            &format!("{root}/bin/rustc"),
            "-vV",
            "release: 1.80.0\nLLVM version: 18.1.7\n",
        )
        .file(&format!("{root}/bin/cargo"));
    let commands = plan(&fake, &[Need::Build]).commands();
    assert!(
        commands[1]
            .to_string()
            .contains("toolchain install nightly")
    );
}

#[test]
fn somebody_who_is_not_root_gets_the_commands() {
    let fake = Fake::user().file("/usr/bin/apt-get");
    let plan = plan(&own_linker(distribution_rust(fake)), &[Need::Network]);
    assert!(!plan.may_install && !plan.is_done());
    let last = plan.describe().pop().unwrap();
    assert!(last.contains("sudo apt-get install"), "{last}");
}

#[test]
fn another_distribution_is_never_changed() {
    let plan = plan(&Fake::root().file("/usr/bin/dnf"), &[Need::Network]);
    assert!(!plan.may_install);
    let last = plan.describe().pop().unwrap();
    assert!(last.contains("dnf install --assumeyes"), "{last}");
    assert!(packages(&plan).contains(&"iproute-tc"));
}

#[test]
fn a_missing_clippy_is_a_matter_of_linting_only() {
    let fake = own_linker(distribution_rust(programs(debian())));
    let fake = fake.program(
        "apt-cache",
        "policy rustc-web",
        "rustc-web:\n  Installed: 1.96.0\n  Candidate: 1.96.0\n",
    );
    assert!(plan(&fake, &[Need::Build]).is_done());
    assert_eq!(packages(&plan(&fake, &[Need::Lint])), ["rust-web-clippy"]);
}

#[test]
fn another_version_of_the_tunnel_is_replaced() {
    let fake = own_tunnel(Fake::user(), "0.6.0");
    let commands = plan(&fake, &[Need::Tunnel]).commands();
    assert_eq!(
        commands[0].to_string(),
        "cargo install boringtun-cli --version 0.7.0 --locked --force --root /src/target/tools"
    );
    assert!(plan(&own_tunnel(fake, "0.7.0"), &[Need::Tunnel]).is_done());
}

#[test]
fn no_program_comes_from_a_package_that_starts_a_service() {
    for program in PROGRAMS {
        for name in [program.debian, program.fedora, program.arch] {
            assert!(!NEVER_INSTALLED.contains(&name), "{name}");
        }
    }
}

#[test]
fn versions_of_packages_are_read() {
    assert_eq!(release_of("1.96.0+dfsg1-1~deb12u2"), Some((1, 96)));
    assert_eq!(release_of("1:1.63.0"), Some((1, 63)));
    assert_eq!(release_of("none"), None);
}
