//! `cargo xtask setup`: finds what building and testing need, installs what is missing.
//!
//! Decisions are made by [`plan`], purely, from a description of the machine; this file only
//! shows and runs them. Only Debian and its relatives are changed, and only by root: everywhere
//! else the exact commands are printed and the exit code is 3.

pub mod apt;
pub mod plan;
pub mod programs;

use std::process::{Command, ExitCode};

use anyhow::bail;

use crate::system::Machine;
use crate::toolchain::{Inventory, Toolchain};
use crate::{bpf, exit, target_dir};
use plan::{Need, Plan};

/// The verb: everything that any other verb needs.
///
/// # Errors
/// An installation that fails, with the command that did.
pub fn run() -> anyhow::Result<ExitCode> {
    let plan = match bring_about(Need::ALL)? {
        Outcome::Ready(plan) => plan,
        Outcome::CannotInstall => return Ok(exit::cannot_run()),
    };
    for found in &plan.found {
        println!("found    {found}");
    }
    println!("Everything is there: `cargo xtask demo` shows netd, `cargo xtask test` proves it.");
    Ok(ExitCode::SUCCESS)
}

/// What the other verbs call first: silent and quick if nothing is missing.
///
/// # Errors
/// [`exit::Cannot`] if something is missing that cannot be installed here; the commands were printed.
pub fn ensure(needs: &[Need]) -> anyhow::Result<()> {
    match bring_about(needs)? {
        Outcome::Ready(_) => Ok(()),
        Outcome::CannotInstall => Err(exit::Cannot(
            "something is missing; the commands that install it are above".into(),
        )
        .into()),
    }
}

/// The compiler and linker for the BPF object, installed if need be.
///
/// # Errors
/// As [`ensure`].
pub fn toolchain() -> anyhow::Result<Toolchain> {
    ensure(&[Need::Build])?;
    Ok(Inventory::take(&Machine, &target_dir().join("tools")).choose()?)
}

enum Outcome {
    Ready(Plan),
    CannotInstall,
}

fn bring_about(needs: &[Need]) -> anyhow::Result<Outcome> {
    let tools = target_dir().join("tools");
    let mut plan = Plan::make(&Machine, &tools, needs);
    if plan.is_done() {
        return Ok(Outcome::Ready(plan));
    }
    if plan.may_install {
        // A fresh machine knows no package yet, and the plan depends on what there is.
        // One source that does not answer is no reason to stop: others may have the packages.
        if let Err(error) = execute(&plan::Run::new("apt-get", ["update", "--quiet=2"])) {
            eprintln!("warning: {error}");
        }
        plan = Plan::make(&Machine, &tools, needs);
    }
    // Twice, because the LLVM that a linker needs is only certain once its compiler is there.
    for _ in 0..2 {
        if plan.is_done() {
            return Ok(Outcome::Ready(plan));
        }
        for line in plan.describe() {
            eprintln!("{line}");
        }
        if !plan.may_install || plan.obstacle.is_some() {
            return Ok(Outcome::CannotInstall);
        }
        for command in plan.commands() {
            execute(&command)?;
        }
        plan = Plan::make(&Machine, &tools, needs);
    }
    if !plan.is_done() {
        bail!(
            "still missing after the installation:\n{}",
            plan.describe().join("\n")
        );
    }
    Ok(Outcome::Ready(plan))
}

/// # Errors
/// [`exit::Cannot`]: what a verb needs cannot be brought here.
fn execute(run: &plan::Run) -> anyhow::Result<()> {
    eprintln!("running  {run}");
    let mut command = Command::new(&run.program);
    // `cargo install` must not inherit the flags and the toolchain of the cargo that runs us.
    bpf::clean_environment(&mut command);
    let status = command
        .args(&run.args)
        .envs(run.env.iter().map(|(name, value)| (name, value)))
        // Away from the workspace, whose .cargo/config.toml is not meant for other programs.
        .current_dir("/")
        .status();
    let how = match status {
        Ok(status) if status.success() => return Ok(()),
        Ok(status) => status.to_string(),
        Err(e) => e.to_string(),
    };
    Err(exit::Cannot(format!(
        "`{run}` failed ({how}): see its messages above, then run `cargo xtask setup` again"
    ))
    .into())
}
