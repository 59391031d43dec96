//! Finding a Rust compiler and a `bpf-linker` that can build for the BPF target together.
//!
//! The target has no prebuilt `core`, so the compiler needs its *own* library sources, and
//! bpf-linker must understand the LLVM bitcode which that compiler writes. Two kinds of compiler
//! qualify: a rustup toolchain with the `rust-src` component, and a distribution's rustc with its
//! source package. Either may be a stable release: `RUSTC_BOOTSTRAP=1` permits `-Z build-std`.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::system::System;

/// The oldest rustc that builds the workspace (`rust-version` in Cargo.toml).
pub const MIN_RUST: (u32, u32) = (1, 95);

/// The version of bpf-linker that the project is tested with.
pub const BPF_LINKER_VERSION: &str = "0.13.0";

/// LLVM majors that [`BPF_LINKER_VERSION`] can be built with.
pub const BPF_LINKER_LLVM: &[u32] = &[21, 22, 23];

/// Where a compiler comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A rustup toolchain, by its full name.
    Rustup(String),
    /// The distribution's packages.
    Distribution,
}

/// A Rust compiler with what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiler {
    /// Where it comes from.
    pub origin: Origin,
    /// The compiler itself, never a rustup proxy.
    pub rustc: PathBuf,
    /// The cargo of the same release.
    pub cargo: PathBuf,
    /// `(major, minor)` of its release.
    pub release: (u32, u32),
    /// The LLVM major that writes its bitcode.
    pub llvm: u32,
    /// Whether the sources of its own `core` are installed.
    pub has_sources: bool,
    /// Its clippy, if that is installed.
    pub clippy_driver: Option<PathBuf>,
}

impl Compiler {
    /// Whether it can build for the BPF target, a linker given.
    pub fn is_usable(&self) -> bool {
        self.has_sources && self.release >= MIN_RUST
    }
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.release;
        write!(f, "rustc {major}.{minor}, LLVM {} (", self.llvm)?;
        match &self.origin {
            Origin::Rustup(name) => write!(f, "rustup toolchain {name})"),
            Origin::Distribution => write!(f, "{})", self.rustc.display()),
        }
    }
}

/// An installed bpf-linker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linker {
    /// The program.
    pub path: PathBuf,
    /// The version it prints.
    pub version: String,
    /// The LLVM major it is linked with; `None` for a static build that does not tell.
    pub llvm: Option<u32>,
}

impl Linker {
    /// Whether it can read the bitcode of `compiler`: LLVM reads what is older, never what is newer.
    pub fn reads(&self, compiler: &Compiler) -> bool {
        self.llvm.is_none_or(|llvm| llvm >= compiler.llvm)
    }
}

/// A compiler and a linker that fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolchain {
    /// Compiles the BPF crate and `core`.
    pub compiler: Compiler,
    /// Links their bitcode.
    pub linker: Linker,
}

/// Everything found, usable or not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Compilers, the preferred first.
    pub compilers: Vec<Compiler>,
    /// Linkers, the preferred first.
    pub linkers: Vec<Linker>,
}

/// Why no toolchain could be chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// No compiler that is new enough has its library sources.
    Compiler,
    /// There is a compiler, but no bpf-linker that reads its bitcode.
    Linker {
        /// The compiler that a linker is wanted for.
        wanted_by: Box<Compiler>,
    },
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = MIN_RUST;
        match self {
            Self::Compiler => write!(
                f,
                "no Rust compiler for the BPF target: none of version {major}.{minor} or newer has \
                 its library sources (rust-src)"
            ),
            Self::Linker { wanted_by } => write!(
                f,
                "no bpf-linker {BPF_LINKER_VERSION} built with LLVM {} or newer, which {wanted_by} needs",
                wanted_by.llvm
            ),
        }?;
        f.write_str("; run `cargo xtask setup`")
    }
}

impl std::error::Error for Missing {}

impl Inventory {
    /// Looks for compilers in rustup's home and in `/usr/bin`, for linkers in `tools/bin` and in
    /// `PATH`. Starts each rustc once, so it takes some ten milliseconds.
    pub fn take(system: &dyn System, tools: &Path) -> Self {
        let mut compilers = rustup_compilers(system);
        compilers.extend(distribution_compiler(system));
        // A toolchain that can do the work goes first, then the newest stable, so that two
        // machines with the same toolchains build with the same one.
        compilers.sort_by_key(|c| (!c.is_usable(), is_nightly(c), std::cmp::Reverse(c.release)));

        let own = tools.join("bin/bpf-linker");
        let linkers = [Some(own), system.in_path("bpf-linker")]
            .into_iter()
            .flatten()
            .filter_map(|path| linker_at(system, path))
            .collect();
        Self { compilers, linkers }
    }

    /// The first usable compiler that has a fitting linker.
    ///
    /// # Errors
    /// What is missing, in the words to show to a person.
    pub fn choose(&self) -> Result<Toolchain, Missing> {
        let mut usable = self.compilers.iter().filter(|c| c.is_usable()).peekable();
        let Some(first) = usable.peek().copied() else {
            return Err(Missing::Compiler);
        };
        usable
            .find_map(|compiler| {
                let linker = self.linkers.iter().find(|l| l.reads(compiler))?;
                Some(Toolchain {
                    compiler: compiler.clone(),
                    linker: linker.clone(),
                })
            })
            .ok_or_else(|| Missing::Linker {
                wanted_by: Box::new(first.clone()),
            })
    }
}

fn is_nightly(compiler: &Compiler) -> bool {
    matches!(&compiler.origin, Origin::Rustup(name) if name.starts_with("nightly"))
}

fn rustup_compilers(system: &dyn System) -> Vec<Compiler> {
    let home = system
        .var("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(system.var("HOME")?).join(".rustup")));
    // The directories are read, rustup itself is not run: it is slow, and may install things.
    home.map(|home| system.entries(&home.join("toolchains")))
        .unwrap_or_default()
        .into_iter()
        .filter_map(|root| {
            let name = root.file_name()?.to_str()?.to_owned();
            compiler_at(system, &root, Origin::Rustup(name))
        })
        .collect()
}

fn distribution_compiler(system: &dyn System) -> Option<Compiler> {
    compiler_at(system, Path::new("/usr"), Origin::Distribution)
}

/// The compiler installed below `root` (`bin/`, `lib/rustlib/`).
fn compiler_at(system: &dyn System, root: &Path, origin: Origin) -> Option<Compiler> {
    let rustc = root.join("bin/rustc");
    let cargo = root.join("bin/cargo");
    if !system.is_file(&rustc) || !system.is_file(&cargo) {
        return None;
    }
    let version = system.output(&rustc, &["-vV"])?;
    let sources = root.join("lib/rustlib/src/rust/library/core/Cargo.toml");
    let clippy = root.join("bin/clippy-driver");
    Some(Compiler {
        origin,
        release: release_of(&version)?,
        llvm: llvm_major_of(&version)?,
        has_sources: system.is_file(&sources),
        clippy_driver: system.is_file(&clippy).then_some(clippy),
        rustc,
        cargo,
    })
}

/// `release: 1.96.0` → `(1, 96)`.
fn release_of(version: &str) -> Option<(u32, u32)> {
    let release = field(version, "release: ")?;
    let mut numbers = release.split(['.', '-']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// `LLVM version: 22.1.8` → `22`.
fn llvm_major_of(version: &str) -> Option<u32> {
    field(version, "LLVM version: ")?
        .split('.')
        .next()?
        .parse()
        .ok()
}

fn field<'a>(version: &'a str, name: &str) -> Option<&'a str> {
    version.lines().find_map(|line| line.strip_prefix(name))
}

fn linker_at(system: &dyn System, path: PathBuf) -> Option<Linker> {
    if !system.is_file(&path) {
        return None;
    }
    // A linker whose libLLVM was removed does not start: it is as good as absent.
    let version = system.output(&path, &["--version"])?;
    let version = version.trim().strip_prefix("bpf-linker ")?.to_owned();
    if version != BPF_LINKER_VERSION {
        return None;
    }
    // It does not print its LLVM, but the name of the library it is linked with has the major.
    let llvm = system
        .output(Path::new("ldd"), &[path.to_str()?])
        .and_then(|text| llvm_of_ldd(&text));
    Some(Linker {
        path,
        version,
        llvm,
    })
}

/// `libLLVM.so.22.1 => …`, or `libLLVM-19.so.1` of older distributions → the major.
fn llvm_of_ldd(text: &str) -> Option<u32> {
    let (_, tail) = text.split_once("libLLVM")?;
    let tail = tail
        .strip_prefix(".so.")
        .or_else(|| tail.strip_prefix('-'))?;
    let digits = tail.find(|c: char| !c.is_ascii_digit())?;
    tail[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::fake::Fake;

    const TOOLS: &str = "/src/target/tools";

    fn rustc(release: &str, llvm: u32) -> String {
        format!("rustc {release}\nrelease: {release}\nLLVM version: {llvm}.1.2\n")
    }

    fn rustup(fake: Fake, name: &str, release: &str, llvm: u32, sources: bool) -> Fake {
        let root = format!("/root/.rustup/toolchains/{name}");
        let fake = fake
            .program(&format!("{root}/bin/rustc"), "-vV", &rustc(release, llvm))
            .file(&format!("{root}/bin/cargo"));
        if sources {
            fake.file(&format!(
                "{root}/lib/rustlib/src/rust/library/core/Cargo.toml"
            ))
        } else {
            fake
        }
    }

    fn debian(fake: Fake, release: &str, llvm: u32) -> Fake {
        fake.program("/usr/bin/rustc", "-vV", &rustc(release, llvm))
            .file("/usr/bin/cargo")
            .file("/usr/lib/rustlib/src/rust/library/core/Cargo.toml")
    }

    fn linker(fake: Fake, path: &str, version: &str, llvm: u32) -> Fake {
        fake.program(path, "--version", &format!("bpf-linker {version}\n"))
            .program("ldd", path, &format!("\tlibLLVM.so.{llvm}.1 => /x\n"))
    }

    fn own_linker(fake: Fake, llvm: u32) -> Fake {
        linker(
            fake,
            &format!("{TOOLS}/bin/bpf-linker"),
            BPF_LINKER_VERSION,
            llvm,
        )
    }

    fn choose(fake: &Fake) -> Result<Toolchain, Missing> {
        Inventory::take(fake, Path::new(TOOLS)).choose()
    }

    #[test]
    fn a_bare_rustup_stable_lacks_the_sources() {
        let fake = rustup(Fake::root(), "stable-x", "1.95.0", 22, false);
        assert_eq!(choose(&fake), Err(Missing::Compiler));
        assert!(Missing::Compiler.to_string().contains("cargo xtask setup"));
    }

    #[test]
    fn the_distribution_serves_where_rustup_has_no_sources() {
        let fake = rustup(Fake::root(), "stable-x", "1.95.0", 22, false);
        let found = choose(&own_linker(debian(fake, "1.96.0", 22), 22)).unwrap();
        assert_eq!(found.compiler.origin, Origin::Distribution);
        assert_eq!(found.compiler.release, (1, 96));
    }

    #[test]
    fn an_old_distribution_compiler_is_not_used() {
        let fake = own_linker(debian(Fake::root(), "1.85.0", 19), 22);
        assert_eq!(choose(&fake), Err(Missing::Compiler));
    }

    #[test]
    fn a_stable_with_sources_wins_over_a_nightly() {
        let fake = rustup(Fake::root(), "nightly-x", "1.97.0-nightly", 22, true);
        let fake = own_linker(rustup(fake, "stable-x", "1.95.0", 22, true), 22);
        let found = choose(&fake).unwrap();
        assert_eq!(found.compiler.origin, Origin::Rustup("stable-x".into()));
    }

    #[test]
    fn the_compiler_that_a_linker_fits_is_chosen() {
        // Stable moved to LLVM 23; the linker at hand still reads the distribution's 22.
        let fake = rustup(Fake::root(), "stable-x", "1.99.0", 23, true);
        let fake = own_linker(debian(fake, "1.96.0", 22), 22);
        assert_eq!(choose(&fake).unwrap().compiler.llvm, 22);
    }

    #[test]
    fn an_older_llvm_cannot_read_newer_bitcode() {
        let fake = own_linker(debian(Fake::root(), "1.96.0", 22), 21);
        let Err(Missing::Linker { wanted_by }) = choose(&fake) else {
            panic!("LLVM 21 was taken for bitcode of LLVM 22");
        };
        assert_eq!(wanted_by.llvm, 22);
    }

    #[test]
    fn another_version_of_the_linker_is_passed_over() {
        let fake = linker(
            debian(Fake::root(), "1.96.0", 22),
            "/usr/bin/bpf-linker",
            "0.9.1",
            22,
        );
        assert!(matches!(choose(&fake), Err(Missing::Linker { .. })));
        let fake = linker(fake, "/usr/local/bin/bpf-linker", BPF_LINKER_VERSION, 22);
        assert!(choose(&fake.var("PATH", "/usr/local/bin:/usr/bin")).is_ok());
    }

    #[test]
    fn both_spellings_of_the_llvm_library_are_read() {
        assert_eq!(llvm_of_ldd("\tlibLLVM.so.22.1 => /x"), Some(22));
        assert_eq!(llvm_of_ldd("\tlibLLVM-19.so.1 => /x"), Some(19));
        assert_eq!(llvm_of_ldd("\tlibc.so.6 => /x"), None);
    }
}
