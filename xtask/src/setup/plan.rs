//! What is missing, and the commands that bring it: a pure function of the machine.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::apt;
use super::programs::{CRATES, Crate, NEVER_INSTALLED, PROGRAMS, Program};
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
    /// A WireGuard in user space.
    Tunnel,
    /// An emulator for other kernels.
    KernelVm,
}

impl Need {
    /// Everything.
    pub const ALL: &[Self] = &[
        Self::Build,
        Self::Lint,
        Self::Network,
        Self::Tunnel,
        Self::KernelVm,
    ];
}

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
            match value.split_once(':') {
                Some((first, _)) if name == "PATH" => write!(f, "PATH={first}:$PATH ")?,
                _ => write!(f, "{name}={value} ")?,
            }
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
        for program in CRATES.iter().filter(|p| needs.contains(&p.need)) {
            plan.crate_program(system, tools, program);
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

    fn crate_program(&mut self, system: &dyn System, tools: &Path, program: &Crate) {
        let is_wanted = |path: &PathBuf| {
            let printed = system.output(path, &["--version"]).unwrap_or_default();
            printed.split_whitespace().last() == Some(program.version)
        };
        let own = tools.join("bin").join(program.name);
        let own = system.is_file(&own).then_some(own);
        if let Some(path) = own
            .into_iter()
            .chain(system.in_path(program.name))
            .find(is_wanted)
        {
            self.found.push(format!(
                "{} {} ({})",
                program.name,
                program.version,
                path.display()
            ));
            return;
        }
        let root = tools.display().to_string();
        let args = [
            "install",
            program.name,
            "--version",
            program.version,
            "--locked",
            "--force",
            "--root",
            &root,
        ];
        self.then.push((
            format!(
                "{} {}: {}; built from crates.io into {root}, in about a minute",
                program.name, program.version, program.why
            ),
            Run::new("cargo", args),
        ));
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
mod tests;
