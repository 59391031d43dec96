//! `netd unload`

use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;

use super::drain::{self, Drained};
use super::{Exit, Global, print_json};
use crate::config::Limits;
use crate::daemon::Lock;
use crate::daemon::control::{self, AskError, Command};
use crate::dataplane::{Actual, AttachMode, Pinned, sizes};
use crate::host::HostReader;
use crate::run_state::{RunFiles, RunState};
use crate::teardown::{is_loaded, tear_down, would_be_open};

/// Arguments of `netd unload`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Do it although containers would be open.
    #[arg(long)]
    force: bool,
    /// First take no new flows, and wait at most so long for those that there are (30s, 10m): the
    /// kernel's own rules, which must be in force again, serve new ones. Ctrl-C gives it up.
    #[arg(long, value_name = "TIME", value_parser = drain::time)]
    drain: Option<Duration>,
    /// Print the answer as JSON.
    #[arg(long)]
    json: bool,
}

/// Removes everything, unless that would leave containers open.
pub fn run(global: &Global, args: &Args) -> anyhow::Result<ExitCode> {
    let pin_dir = global.pin_dir();
    let files = RunFiles::of(&pin_dir);
    if !is_loaded(&pin_dir) && !files.state.exists() {
        report(
            args,
            true,
            &format!("nothing of netd is pinned in {}", pin_dir.display()),
            &[],
        );
        return Ok(Exit::Done.into());
    }
    let facts = HostReader::open()?.read(|_| false)?;
    if !args.force {
        let open = match in_force(&pin_dir, &files, &facts) {
            Ok(actual) => would_be_open(&actual),
            // Maps of another version: what they hold cannot be told.
            Err(error) => vec![format!("it cannot be told what is in force: {error}")],
        };
        if !open.is_empty() {
            let message = "without netd, these would be open; `netd unload --force` does it anyway";
            report(args, false, message, &open);
            return Ok(Exit::No.into());
        }
    }
    let mut cut = 0;
    if let Some(limit) = args.drain {
        match drain::drain(&pin_dir, &files, limit)? {
            Drained::Empty => {}
            Drained::Left(flows) => cut = flows,
            Drained::GivenUp { left, resumed } => {
                let now = if resumed {
                    "netd takes new flows again"
                } else {
                    "netd takes no new flows until `netd run`"
                };
                let message =
                    format!("given up with {left} flows left: nothing was removed, and {now}");
                report(args, false, &message, &[]);
                return Ok(Exit::No.into());
            }
        }
    }
    match control::ask(&files.socket, Command::Leave) {
        Ok(_) | Err(AskError::NotRunning(_)) => {}
        Err(error) => eprintln!("warning: {error}"),
    }
    // While this process removes things, no daemon can begin.
    let lock = Lock::take(&files, Duration::from_secs(5))?;
    let failures = tear_down(&pin_dir, &files, &facts);
    drop(lock);
    if failures.is_empty() {
        let message = match cut {
            0 => "everything of netd was removed".to_owned(),
            1 => "everything of netd was removed; 1 flow was cut".to_owned(),
            _ => format!("everything of netd was removed; {cut} flows were cut"),
        };
        report(args, true, &message, &[]);
        return Ok(Exit::Done.into());
    }
    report(args, false, "not everything could be removed", &failures);
    Ok(Exit::InPart.into())
}

fn in_force(
    pin_dir: &std::path::Path,
    files: &RunFiles,
    facts: &crate::host::HostFacts,
) -> anyhow::Result<Actual> {
    let state = RunState::load(&files.state);
    let attach = state.map_or(AttachMode::Tcx, |state| state.fallbacks.attach);
    // Sizes that depend on memory are not compared.
    let sizes = sizes(0, 1, &Limits::default());
    let pinned = Pinned::open(pin_dir, &sizes, attach, Default::default())?;
    Ok(match pinned {
        Some(pinned) => pinned.read(facts)?,
        None if is_loaded(pin_dir) => {
            anyhow::bail!(
                "what is pinned in {} is of another version",
                pin_dir.display()
            )
        }
        None => Actual::default(),
    })
}

fn report(args: &Args, ok: bool, message: &str, list: &[String]) {
    if args.json {
        print_json(&json!({ "schema": 1, "ok": ok, "message": message, "list": list }));
        return;
    }
    println!("{message}{}", if list.is_empty() { "" } else { ":" });
    for item in list {
        println!("- {item}");
    }
}
