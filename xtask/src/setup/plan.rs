//! What is missing, and the commands that bring it: a pure function of the machine.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::apt;
use crate::system::System;
use crate::toolchain::{
    BPF_LINKER_LLVM, BPF_LINKER_VERSION, Compiler, Inventory, MIN_RUST, Missing, Origin,
};

/// What a verb needs of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A compiler and a linker for the BPF object.
    Build,
    /// A clippy that can check the BPF crate.
    Lint,
    /// The programs that namespace tests, the demo and the benchmark start.
    Network,
    /// An emulator for other kernels.
    KernelVm,
}

impl Need {
    /// Everything.
    pub const ALL: &[Self] = &[Self::Build, Self::Lint, Self::Network, Self::KernelVm];
}

/// A program, the package that has it, and the reason to want it.
struct Program {
    need: Need,
    name: &'static str,
    debian: &'static str,
    fedora: &'static str,
    arch: &'static str,
    why: &'static str,
}

#[rustfmt::skip]
const PROGRAMS: &[Program] = &[
    Program { need: Need::Network, name: "bridge", debian: "iproute2", fedora: "iproute", arch: "iproute2", why: "namespaces, bridges and veth pairs for tests" },
    Program { need: Need::Network, name: "conntrack", debian: "conntrack", fedora: "conntrack-tools", arch: "conntrack-tools", why: "tests show what the kernel's conntrack sees" },
    Program { need: Need::Network, name: "ethtool", debian: "ethtool", fedora: "ethtool", arch: "ethtool", why: "tests run with checksum offload on and off" },
    Program { need: Need::Network, name: "ip", debian: "iproute2", fedora: "iproute", arch: "iproute2", why: "namespaces, bridges and veth pairs for tests" },
    Program { need: Need::Network, name: "ip6tables-legacy", debian: "iptables", fedora: "iptables-legacy", arch: "iptables-legacy", why: "the rules that netd must work beside" },
    Program { need: Need::Network, name: "iptables-legacy", debian: "iptables", fedora: "iptables-legacy", arch: "iptables-legacy", why: "the rules that netd must work beside" },
    Program { need: Need::Network, name: "iptables-nft", debian: "iptables", fedora: "iptables-nft", arch: "iptables", why: "the rules that netd must work beside" },
    Program { need: Need::Network, name: "nft", debian: "nftables", fedora: "nftables", arch: "nftables", why: "the rules that netd must work beside" },
    Program { need: Need::Network, name: "ping", debian: "iputils-ping", fedora: "iputils", arch: "iputils", why: "echo probes" },
    Program { need: Need::Network, name: "tc", debian: "iproute2", fedora: "iproute-tc", arch: "iproute2", why: "clsact, where the kernel has no tcx" },
    Program { need: Need::Network, name: "tcpdump", debian: "tcpdump", fedora: "tcpdump", arch: "tcpdump", why: "captures that prove no container address leaks" },
    Program { need: Need::KernelVm, name: "qemu-system-x86_64", debian: "qemu-system-x86", fedora: "qemu-system-x86-core", arch: "qemu-system-x86", why: "boots kernels 6.1 and 6.12" },
    Program { need: Need::KernelVm, name: "xz", debian: "xz-utils", fedora: "xz", arch: "xz", why: "unpacks the modules of those kernels" },
];

/// The programs that belong to `need`.
pub fn program_names(need: Need) -> impl Iterator<Item = &'static str> {
    PROGRAMS
        .iter()
        .filter(move |program| program.need == need)
        .map(|program| program.name)
}

/// Packages that start a service when they are installed, or that take over the host's firewall:
/// they are only ever unpacked ([`apt::unpack`]).
pub const NEVER_INSTALLED: &[&str] = &[
    "containerd",
    "containerd.io",
    "docker-ce",
    "docker.io",
    "firewalld",
    "nginx-light",
    "ufw",
];

/// The distribution's names of a Rust compiler with its sources, the preferred first: compiler,
/// cargo, sources, clippy.
const DISTRIBUTION_RUST: &[[&str; 4]] = &[
    ["rustc-web", "cargo-web", "rust-web-src", "rust-web-clippy"],
    ["rustc", "cargo", "rust-src", "rust-clippy"],
];

/// One command, with the variables it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The program.
    pub program: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Variables added to the environment.
    pub env: Vec<(String, String)>,
}

impl Run {
    /// A command without variables.
    pub fn new(program: &str, args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            program: program.to_owned(),
            args: args.into_iter().map(Into::into).collect(),
            env: Vec::new(),
        }
    }

    fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.push((name.to_owned(), value.into()));
        self
    }
}

impl fmt::Display for Run {
    /// As one would type it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.env {
            write!(f, "{name}={value} ")?;
        }
        f.write_str(&self.program)?;
        self.args.iter().try_for_each(|arg| write!(f, " {arg}"))
    }
}

/// How packages are installed on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packager {
    Apt,
    Dnf,
    Pacman,
    Unknown,
}

/// What there is, and what is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What was found, one line each.
    pub found: Vec<String>,
    /// Whether the commands may be run here: root on a Debian relative.
    pub may_install: bool,
    /// What no command of this plan can bring, in words.
    pub obstacle: Option<String>,
    packager: Packager,
    root: bool,
    /// Package → reason.
    packages: BTreeMap<String, String>,
    /// Commands after the packages, each with its reason.
    then: Vec<(String, Run)>,
}

impl Plan {
    /// Looks at the machine; `tools` is where own tools are installed.
    pub fn make(system: &dyn System, tools: &Path, needs: &[Need]) -> Self {
        let packager = [
            ("apt-get", Packager::Apt),
            ("dnf", Packager::Dnf),
            ("pacman", Packager::Pacman),
        ]
        .into_iter()
        .find_map(|(name, packager)| system.in_path(name).map(|_| packager))
        .unwrap_or(Packager::Unknown);
        let root = system.is_root();
        let mut plan = Self {
            found: Vec::new(),
            may_install: root && packager == Packager::Apt,
            obstacle: None,
            packager,
            root,
            packages: BTreeMap::new(),
            then: Vec::new(),
        };
        if needs.contains(&Need::Build) || needs.contains(&Need::Lint) {
            plan.compiler_and_linker(system, tools, needs.contains(&Need::Lint));
        }
        for program in PROGRAMS.iter().filter(|p| needs.contains(&p.need)) {
            plan.program(system, program);
        }
        plan
    }

    /// Whether nothing is missing.
    pub fn is_done(&self) -> bool {
        self.packages.is_empty() && self.then.is_empty() && self.obstacle.is_none()
    }

    /// The commands, in their order.
    pub fn commands(&self) -> Vec<Run> {
        let mut commands = Vec::new();
        if !self.packages.is_empty() {
            let (program, options): (_, &[&str]) = match self.packager {
                Packager::Apt | Packager::Unknown => {
                    ("apt-get", &["install", "--yes", "--no-install-recommends"])
                }
                Packager::Dnf => ("dnf", &["install", "--assumeyes"]),
                Packager::Pacman => ("pacman", &["-S", "--needed"]),
            };
            let names = self.packages.keys().map(String::as_str);
            let mut run = Run::new(program, options.iter().copied().chain(names));
            if self.packager == Packager::Apt {
                run = run.with("DEBIAN_FRONTEND", "noninteractive");
            }
            if !self.root {
                run.args.insert(0, run.program);
                run.program = "sudo".to_owned();
            }
            commands.push(run);
        }
        commands.extend(self.then.iter().map(|(_, run)| run.clone()));
        commands
    }

    /// What is missing and why, then, if nothing can be installed from here, what to type.
    pub fn describe(&self) -> Vec<String> {
        let mut lines: Vec<String> = self
            .packages
            .iter()
            .map(|(package, why)| format!("missing  {package}: {why}"))
            .collect();
        lines.extend(self.then.iter().map(|(why, _)| format!("missing  {why}")));
        lines.extend(self.obstacle.iter().map(|o| format!("missing  {o}")));
        if !self.may_install || self.obstacle.is_some() {
            let who = match self.packager {
                Packager::Apt if self.root => "This cannot be installed without your decision",
                Packager::Apt => "Installing packages needs root",
                _ => "Packages are only installed on Debian and its relatives",
            };
            lines.push(format!("{who}. To install by hand:"));
            lines.extend(self.commands().iter().map(|run| format!("  {run}")));
        }
        lines
    }

    fn program(&mut self, system: &dyn System, program: &Program) {
        if let Some(path) = system.in_path(program.name) {
            self.found
                .push(format!("{} ({})", program.name, path.display()));
            return;
        }
        let package = match self.packager {
            Packager::Apt | Packager::Unknown => program.debian,
            Packager::Dnf => program.fedora,
            Packager::Pacman => program.arch,
        };
        self.package(package, program.why);
    }

    fn package(&mut self, name: &str, why: &str) {
        debug_assert!(!NEVER_INSTALLED.contains(&name), "{name} starts a service");
        self.packages
            .entry(name.to_owned())
            .or_insert_with(|| why.to_owned());
    }

    fn compiler_and_linker(&mut self, system: &dyn System, tools: &Path, lint: bool) {
        let inventory = Inventory::take(system, tools);
        let (llvm, rustup) = match inventory.choose() {
            Ok(chosen) => {
                self.found
                    .push(format!("BPF compiler: {}", chosen.compiler));
                let linker = &chosen.linker;
                self.found.push(format!(
                    "bpf-linker {} ({})",
                    linker.version,
                    linker.path.display()
                ));
                if lint {
                    self.clippy_of(system, &chosen.compiler);
                }
                return;
            }
            Err(Missing::Linker { .. }) => {
                // A compiler whose LLVM can be installed, rather than the first one.
                let usable: Vec<_> = inventory
                    .compilers
                    .iter()
                    .filter(|c| c.is_usable())
                    .collect();
                let compiler = usable
                    .iter()
                    .find(|c| self.has_llvm(system, c.llvm))
                    .unwrap_or(&usable[0]);
                self.found.push(format!("BPF compiler: {compiler}"));
                if lint {
                    self.clippy_of(system, compiler);
                }
                (compiler.llvm, false)
            }
            Err(Missing::Compiler) => self.compiler(system, &inventory),
        };
        self.linker(system, tools, llvm, rustup);
    }

    /// Chooses a compiler to install; returns the LLVM major it will have, and whether it comes
    /// from rustup.
    fn compiler(&mut self, system: &dyn System, inventory: &Inventory) -> (u32, bool) {
        const WHY: &str = "compiles the BPF programs: their target needs the sources of `core`";
        if self.packager == Packager::Apt {
            for names in DISTRIBUTION_RUST {
                let release = apt::candidate(system, names[0]).and_then(|v| release_of(&v));
                let Some(release) = release.filter(|r| *r >= MIN_RUST) else {
                    continue;
                };
                let llvm = llvm_of_release(release);
                if self.has_llvm(system, llvm) {
                    names.iter().for_each(|name| self.package(name, WHY));
                    return (llvm, false);
                }
            }
        }
        // A toolchain that is there and only lacks its sources: the smallest change.
        let rustup = system.in_path("rustup");
        let present = inventory
            .compilers
            .iter()
            .filter(|c| matches!(c.origin, Origin::Rustup(_)) && c.release >= MIN_RUST)
            .find(|c| BPF_LINKER_LLVM.contains(&c.llvm));
        let program = rustup.map_or("rustup".to_owned(), |path| path.display().to_string());
        if let Some(Compiler {
            origin: Origin::Rustup(name),
            llvm,
            ..
        }) = present
        {
            let args = ["component", "add", "rust-src", "--toolchain", name];
            self.then.push((
                format!("rust-src of the toolchain {name}: {WHY}"),
                Run::new(&program, args),
            ));
            return (*llvm, true);
        }
        let (major, minor) = MIN_RUST;
        if system.in_path("rustup").is_none() {
            self.obstacle = Some(format!(
                "a Rust compiler of version {major}.{minor} or newer with its sources: install \
                 rustup (https://rustup.rs), then run `cargo xtask setup` again"
            ));
        }
        let args = "toolchain install nightly --profile minimal --component rust-src,clippy";
        self.then.push((
            format!("a nightly Rust with rust-src: {WHY}"),
            Run::new(&program, args.split(' ')),
        ));
        (llvm_of_release(MIN_RUST), true)
    }

    fn clippy_of(&mut self, system: &dyn System, compiler: &Compiler) {
        const WHY: &str = "checks the BPF crate with the compiler that builds it";
        if let Some(path) = &compiler.clippy_driver {
            self.found
                .push(format!("clippy for BPF ({})", path.display()));
            return;
        }
        match &compiler.origin {
            Origin::Rustup(name) => {
                let program = system
                    .in_path("rustup")
                    .map_or("rustup".to_owned(), |path| path.display().to_string());
                let args = ["component", "add", "clippy", "--toolchain", name];
                self.then
                    .push((format!("clippy: {WHY}"), Run::new(&program, args)));
            }
            Origin::Distribution => {
                // The clippy of the same source package as the compiler.
                let package = DISTRIBUTION_RUST
                    .iter()
                    .find(|names| apt::installed(system, names[0]).is_some())
                    .map_or("rust-clippy", |names| names[3]);
                self.package(package, WHY);
            }
        }
    }

    fn has_llvm(&self, system: &dyn System, major: u32) -> bool {
        BPF_LINKER_LLVM.contains(&major)
            && (llvm_prefix(system, major).is_some()
                || apt::candidate(system, &format!("llvm-{major}-dev")).is_some())
    }

    /// The steps that build bpf-linker with LLVM `major`.
    fn linker(&mut self, system: &dyn System, tools: &Path, major: u32, rustup: bool) {
        const WHY: &str = "bpf-linker is built with the LLVM of the BPF compiler";
        let prefix = llvm_prefix(system, major);
        if prefix.is_none() {
            match self.packager {
                Packager::Apt if self.has_llvm(system, major) => {
                    for name in [format!("llvm-{major}-dev"), format!("libpolly-{major}-dev")] {
                        self.package(&name, WHY);
                    }
                }
                Packager::Apt => {
                    let of = if rustup { "rustup's" } else { "the installed" };
                    self.obstacle.get_or_insert_with(|| {
                        format!(
                            "LLVM {major} for {of} compiler, which is not in the configured package \
                             sources: add those of https://apt.llvm.org with `wget \
                             https://apt.llvm.org/llvm.sh && bash llvm.sh {major}`, then run `cargo \
                             xtask setup` again"
                        )
                    });
                    self.package(&format!("llvm-{major}-dev"), WHY);
                    self.package(&format!("libpolly-{major}-dev"), WHY);
                }
                Packager::Dnf => self.package("llvm-devel", &format!("{WHY} ({major})")),
                Packager::Pacman => self.package("llvm", &format!("{WHY} ({major})")),
                Packager::Unknown => {
                    self.obstacle
                        .get_or_insert_with(|| format!("LLVM {major} with its headers: {WHY}"));
                }
            }
        }
        if self.packager == Packager::Apt {
            for (name, header) in [
                ("libxml2-dev", "libxml2/libxml/xmlversion.h"),
                ("libzstd-dev", "zstd.h"),
                ("zlib1g-dev", "zlib.h"),
            ] {
                if !system.is_file(&Path::new("/usr/include").join(header)) {
                    self.package(name, "LLVM is linked with it");
                }
            }
        }
        let prefix = prefix.unwrap_or_else(|| PathBuf::from(format!("/usr/lib/llvm-{major}")));
        let prefix = prefix.display().to_string();
        let path = system.var("PATH").unwrap_or_default();
        let args = [
            "install",
            "bpf-linker",
            "--version",
            BPF_LINKER_VERSION,
            "--locked",
            "--force",
            "--no-default-features",
            "--features",
            &format!("llvm-{major}"),
            "--root",
            &tools.display().to_string(),
        ];
        // The cargo of the person, not the one of the BPF compiler: the linker is a host program.
        let run = Run::new("cargo", args)
            .with(&format!("LLVM_SYS_{major}1_PREFIX"), &prefix)
            .with("PATH", format!("{prefix}/bin:{}", path.to_string_lossy()))
            .with("LLVM_PREFIX", prefix);
        self.then.push((
            format!(
                "bpf-linker {BPF_LINKER_VERSION} for LLVM {major}: links the BPF programs; built \
                 from crates.io into {}, in one to three minutes",
                tools.display()
            ),
            run,
        ));
    }
}

/// Where LLVM `major` is installed with its development files.
fn llvm_prefix(system: &dyn System, major: u32) -> Option<PathBuf> {
    let debian = PathBuf::from(format!("/usr/lib/llvm-{major}"));
    if system.is_file(&debian.join("bin/llvm-config")) {
        return Some(debian);
    }
    let config = ["llvm-config", &format!("llvm-config-{major}")]
        .into_iter()
        .filter_map(|name| system.in_path(name))
        .find(|path| {
            let version = system.output(path, &["--version"]).unwrap_or_default();
            version.split('.').next() == Some(&major.to_string())
        })?;
    let prefix = system.output(&config, &["--prefix"])?;
    Some(PathBuf::from(prefix.trim()))
}

/// `1.96.0+dfsg1-1` → `(1, 96)`.
fn release_of(version: &str) -> Option<(u32, u32)> {
    let version = version.split_once(':').map_or(version, |(_, tail)| tail);
    let mut numbers = version.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The LLVM that a Rust release is likely to have; what is installed is asked afterwards.
fn llvm_of_release(release: (u32, u32)) -> u32 {
    if release < (1, 98) { 22 } else { 23 }
}

#[cfg(test)]
mod tests {
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

    fn plan(fake: &Fake, needs: &[Need]) -> Plan {
        Plan::make(fake, Path::new(TOOLS), needs)
    }

    fn packages(plan: &Plan) -> Vec<&str> {
        plan.packages.keys().map(String::as_str).collect()
    }

    #[test]
    fn a_complete_machine_has_nothing_to_do() {
        let fake = own_linker(distribution_rust(programs(debian())));
        let plan = plan(&fake.file("/usr/bin/clippy-driver"), Need::ALL);
        assert!(plan.is_done(), "{:?}", plan.describe());
        assert!(plan.commands().is_empty());
        assert_eq!(plan.found.len(), PROGRAMS.len() + 3);
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
}
