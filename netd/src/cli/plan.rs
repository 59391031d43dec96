//! `netd plan`

use std::path::Path;
use std::process::ExitCode;

use serde_json::json;

use super::{Exit, Global, print_json, refuse};
use crate::config::Config;
use crate::daemon::{engine_ports, load_options, recover_ids};
use crate::dataplane::{Actual, AttachMode, Pinned};
use crate::desired::{current_sysctls, desired, is_managed};
use crate::host::{self, EngineSockets, HostFacts, HostReader, KernelFeatures};
use crate::plan::{Step, diff};
use crate::run_state::{RunFiles, RunState};

/// Arguments of `netd plan`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print the steps as JSON.
    #[arg(long)]
    json: bool,
    /// Exit with 1 when there are steps.
    #[arg(long)]
    exit_code: bool,
}

/// Prints what would be changed; changes nothing.
pub fn run(global: &Global, args: &Args) -> anyhow::Result<ExitCode> {
    let config = match Config::load(&global.config) {
        Ok(loaded) => loaded.config,
        Err(error) => return Ok(refuse(&error)),
    };
    let pin_dir = global
        .pin_dir
        .clone()
        .unwrap_or_else(|| config.host.pin_dir.clone());
    let features = host::kernel_features()?;
    let mut facts = HostReader::open()?.read(|link| is_managed(&config, link))?;
    facts.engine_ports = engine_ports(&mut EngineSockets::default(), &config)?;
    let (steps, warnings) = steps(&config, &pin_dir, &features, &facts, true)?;
    if args.json {
        print_json(&json!({
            "schema": 1,
            "ok": steps.is_empty(),
            "steps": steps,
            "warnings": warnings,
        }));
    } else {
        print_steps(&steps);
        for warning in &warnings {
            eprintln!("warning: {warning}");
        }
    }
    Ok(if args.exit_code && !steps.is_empty() {
        Exit::No
    } else {
        Exit::Done
    }
    .into())
}

/// One line per step.
pub(super) fn print_steps(steps: &[Step]) {
    if steps.is_empty() {
        println!("nothing to do: everything is in force");
        return;
    }
    for step in steps {
        println!("{step}");
    }
    println!("{} steps", steps.len());
}

/// The steps from what is pinned (or, without `pinned`, from nothing) to the file.
pub(super) fn steps(
    config: &Config,
    pin_dir: &Path,
    features: &KernelFeatures,
    facts: &HostFacts,
    pinned: bool,
) -> anyhow::Result<(Vec<Step>, Vec<String>)> {
    let state = RunState::load(&RunFiles::of(pin_dir).state);
    let no_tcx = state
        .as_ref()
        .is_some_and(|state| state.fallbacks.attach == AttachMode::Clsact);
    let load = load_options(config, pin_dir, features, no_tcx, 0)?;
    let state = state.filter(|_| pinned);
    let actual = if pinned {
        let qdiscs = state.as_ref().map(|s| s.qdiscs.clone()).unwrap_or_default();
        match Pinned::open(pin_dir, &load.sizes, load.attach, qdiscs)? {
            Some(pinned) => pinned.read(facts)?,
            None => Actual::default(),
        }
    } else {
        Actual::default()
    };
    let mut ids = state.map(|state| state.networks).unwrap_or_default();
    recover_ids(&mut ids, config, facts, &actual.tables);
    let ids = ids.assign(config.networks.iter().map(|network| network.name.as_str()))?;
    let wanted = desired(config, facts, &ids);
    let steps = diff(&wanted, &actual, &current_sysctls(config, facts));
    Ok((steps, wanted.warnings))
}
