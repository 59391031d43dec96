//! `netd verifier-stats`: what the verifier of the running kernel says about every program.
//!
//! A hidden verb: `cargo xtask verifier` runs it on several kernels and holds the numbers against
//! ceilings. It loads the embedded object, attaches nothing, and leaves nothing behind.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use serde::Serialize;

/// Everything that is printed.
#[derive(Debug, Serialize)]
struct Stats {
    schema: u32,
    /// Whether every program was accepted.
    ok: bool,
    /// The kernel's release, as `uname -r` has it.
    kernel: String,
    programs: Vec<ProgramStats>,
}

/// One program, after the verifier saw it.
#[derive(Debug, Serialize)]
struct ProgramStats {
    name: String,
    /// Instructions that the verifier walked through, over all paths.
    verified_instructions: u32,
    /// Bytes of stack of all functions together: never less than the deepest call chain, which
    /// the kernel limits to 512.
    stack: u32,
    /// Bytes of stack of each function, in the verifier's order.
    frames: Vec<u32>,
    /// Bytes of the program after the kernel rewrote it.
    translated_bytes: u32,
    /// Bytes of machine code; 0 where the JIT is off.
    jited_bytes: u32,
    /// What the verifier had against it.
    error: Option<String>,
}

/// Loads every program and prints what came of it; exit code 1 if one was refused.
///
/// # Errors
/// No privilege, or an object that cannot be read.
pub fn run(json: bool) -> anyhow::Result<ExitCode> {
    let mut ebpf = EbpfLoader::new()
        .verifier_log_level(VerifierLogLevel::STATS)
        .load(crate::dataplane::OBJECT)
        .context("cannot load the maps of the embedded BPF object (root is needed)")?;
    let mut names: Vec<String> = ebpf.programs().map(|(name, _)| name.to_owned()).collect();
    names.sort();
    let mut programs = Vec::new();
    for name in names {
        programs.push(measure(&mut ebpf, &name)?);
    }
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")
        .context("cannot read the kernel's release")?;
    let stats = Stats {
        schema: 1,
        ok: programs.iter().all(|program| program.error.is_none()),
        kernel: kernel.trim().to_owned(),
        programs,
    };
    if json {
        println!("{}", serde_json::to_string_pretty(&stats)?);
    } else {
        print(&stats);
    }
    Ok(if stats.ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

fn print(stats: &Stats) {
    println!("Linux {}", stats.kernel);
    println!(
        "{:<24}{:>12}{:>8}{:>12}{:>8}",
        "program", "verified", "stack", "translated", "JIT"
    );
    for p in &stats.programs {
        match &p.error {
            None => println!(
                "{:<24}{:>12}{:>8}{:>12}{:>8}",
                p.name, p.verified_instructions, p.stack, p.translated_bytes, p.jited_bytes
            ),
            Some(error) => println!("{:<24}refused: {error}", p.name),
        }
    }
}

/// Loads the program twice: once without a file descriptor left, for the verifier's log, and
/// once to keep, for what the kernel tells about a loaded program.
///
/// The stack is only in the log, and aya hands that out only when a load fails. A process that
/// may open no more files fails after the verifier and the JIT are done, with the log complete.
fn measure(ebpf: &mut Ebpf, name: &str) -> anyhow::Result<ProgramStats> {
    let program = ebpf
        .program_mut(name)
        .with_context(|| format!("the BPF object has no program {name}"))?;
    let mut stats = ProgramStats {
        name: name.to_owned(),
        verified_instructions: 0,
        stack: 0,
        frames: Vec::new(),
        translated_bytes: 0,
        jited_bytes: 0,
        error: None,
    };
    let starved = without_descriptors(|| load(program))?;
    match starved {
        Err(ProgramError::LoadError {
            io_error,
            verifier_log,
        }) if io_error.raw_os_error() == Some(libc::EMFILE) => {
            let log = verifier_log.to_string();
            stats.frames = frames(&log)
                .with_context(|| format!("the verifier's log names no stack depth:\n{log}"))?;
            stats.stack = stats.frames.iter().sum();
        }
        Err(refused) => {
            stats.error = Some(reason(&refused));
            return Ok(stats);
        }
        Ok(()) => bail!("{name} was loaded although no file descriptor was left"),
    }
    if let Err(refused) = load(program) {
        stats.error = Some(reason(&refused));
        return Ok(stats);
    }
    let info = program
        .info()
        .context("cannot ask the kernel about a loaded program")?;
    stats.verified_instructions = info
        .verified_instruction_count()
        .context("the kernel does not count verified instructions: 5.16 or newer is needed")?;
    stats.translated_bytes = info.size_translated().unwrap_or(0);
    stats.jited_bytes = info.size_jitted();
    Ok(stats)
}

fn load(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::SchedClassifier(program) => program.load(),
        Program::Xdp(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSkb(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// Calls `f` while every attempt to open a file fails with EMFILE.
fn without_descriptors<T>(f: impl FnOnce() -> T) -> anyhow::Result<T> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // The lowest free number; the limit is one above the highest that may be used.
    let free = File::open("/dev/null")?.as_raw_fd();
    setrlimit(Resource::RLIMIT_NOFILE, rlim_t::try_from(free)?, hard)?;
    let result = f();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
    Ok(result)
}

/// The numbers of the log's line `stack depth 96+0+32`.
fn frames(log: &str) -> Option<Vec<u32>> {
    let list = log
        .lines()
        .find_map(|line| line.strip_prefix("stack depth "))?;
    // Newer kernels add words behind the list.
    let list = list.split_whitespace().next()?;
    list.split('+').map(|depth| depth.parse().ok()).collect()
}

/// The error with the end of the log, which says why.
fn reason(error: &ProgramError) -> String {
    const LINES: usize = 12;
    let text = error.to_string();
    let lines: Vec<_> = text.lines().collect();
    if lines.len() <= LINES + 1 {
        return text;
    }
    let tail = lines[lines.len() - LINES..].join("\n");
    format!("{}\n…\n{tail}", lines[0])
}

#[cfg(test)]
mod tests {
    use super::frames;

    #[test]
    fn the_stack_is_read_from_the_log() {
        let log =
            "verification time 71 usec\nstack depth 96+0+32\nprocessed 268 insns (limit 1000000)\n";
        assert_eq!(frames(log), Some(vec![96, 0, 32]));
        assert_eq!(frames("stack depth 8\n"), Some(vec![8]));
        assert_eq!(frames("processed 2 insns\n"), None);
    }
}
