//! `netd check`

use std::collections::BTreeSet;
use std::process::ExitCode;

use serde_json::json;

use super::plan::{print_steps, steps};
use super::{Exit, Global, print_json, refuse};
use crate::config::{Config, Protocol};
use crate::daemon::{engine_ports, load_options};
use crate::dataplane::load_unattached;
use crate::desired::is_managed;
use crate::host::{self, EngineSockets, HostReader, ListenerProtocol};

/// Arguments of `netd check`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Also look at this host: load every program into the kernel, attach nothing, and show what
    /// would be done.
    #[arg(long)]
    host: bool,
    /// Print the answer as JSON, with the file's every default filled in.
    #[arg(long)]
    json: bool,
}

/// Validates the file; with `--host`, the host too.
pub fn run(global: &Global, args: &Args) -> anyhow::Result<ExitCode> {
    let loaded = match Config::load(&global.config) {
        Ok(loaded) => loaded,
        Err(error) => {
            if args.json {
                print_json(&json!({
                    "schema": 1,
                    "ok": false,
                    "errors": error.diagnostics(),
                    "message": error.to_string(),
                }));
                return Ok(Exit::BadInput.into());
            }
            return Ok(refuse(&error));
        }
    };
    let config = &loaded.config;
    let warnings = loaded.warnings.to_string();
    let mut answer = json!({
        "schema": 1,
        "ok": true,
        "config": config.to_normalized_json(),
        "warnings": loaded.warnings.diagnostics(),
    });
    if !args.json {
        eprint!("{warnings}");
        println!(
            "{} is valid: {} networks, {} publishes, mode {}",
            global.config.display(),
            config.networks.len(),
            config.publishes.len(),
            config.host.mode
        );
    }
    let mut exit = Exit::Done;
    if args.host {
        let report = on_host(global, config)?;
        if !report.ok {
            exit = Exit::CannotRun;
        }
        if args.json {
            answer["ok"] = json!(report.ok);
            answer["host"] = report.json;
        } else {
            print!("{}", report.text);
            if report.ok {
                print_steps(&report.steps);
            }
        }
    }
    if args.json {
        print_json(&answer);
    }
    Ok(exit.into())
}

struct Report {
    ok: bool,
    text: String,
    json: serde_json::Value,
    steps: Vec<crate::plan::Step>,
}

fn on_host(global: &Global, config: &Config) -> anyhow::Result<Report> {
    let pin_dir = global
        .pin_dir
        .clone()
        .unwrap_or_else(|| config.host.pin_dir.clone());
    let features = host::kernel_features()?;
    let mut text = format!("kernel {}\n", features.release);
    for missing in &features.missing {
        let kind = if missing.required {
            "missing"
        } else {
            "fallback"
        };
        text.push_str(&format!(
            "{kind}: {} (Linux {} brings it): {}\n",
            missing.what, missing.since, missing.hint
        ));
    }
    let mut json = json!({ "kernel": features });
    let mut ok = features.blockers().next().is_none();
    let mut plan = Vec::new();
    if ok {
        let load = load_options(config, &pin_dir, &features, false, 0)?;
        match load_unattached(&load) {
            Ok(()) => text.push_str("every program passes this kernel's verifier\n"),
            Err(error) => {
                ok = false;
                text.push_str(&format!("{error}\n"));
                json["load_error"] = json!(error.to_string());
            }
        }
        text.push_str(&format!(
            "maps: {} IPv4 and {} IPv6 flows, {:.1} MiB\n",
            load.sizes.flows_v4,
            load.sizes.flows_v6,
            load.sizes.preallocated() as f64 / f64::from(1 << 20)
        ));
        json["flows_v4"] = json!(load.sizes.flows_v4);
        json["flows_v6"] = json!(load.sizes.flows_v6);
        json["map_bytes"] = json!(load.sizes.preallocated());
        let mut facts = HostReader::open()?.read(|link| is_managed(config, link))?;
        facts.engine_ports =
            engine_ports(&mut EngineSockets::default(), config).unwrap_or_default();
        let (steps, mut warnings) = steps(config, &pin_dir, &features, &facts, false)?;
        warnings.extend(listeners(config, &facts.engine_ports)?);
        for warning in &warnings {
            text.push_str(&format!("warning: {warning}\n"));
        }
        json["warnings"] = json!(warnings);
        json["steps"] = json!(steps);
        plan = steps;
    }
    Ok(Report {
        ok,
        text,
        json,
        steps: plan,
    })
}

/// Programs of the host that listen on a published port, and therefore keep it.
fn listeners(
    config: &Config,
    engine_ports: &BTreeSet<(ListenerProtocol, u16)>,
) -> anyhow::Result<Vec<String>> {
    let mut listeners = host::local_listeners()?;
    listeners.retain(|found| !engine_ports.contains(&(found.protocol, found.port)));
    let mut warnings = Vec::new();
    for publish in config.publishes.iter().filter(|p| !p.override_listener) {
        for listener in &listeners {
            let same = matches!(
                (publish.protocol, listener.protocol),
                (Protocol::Tcp, ListenerProtocol::Tcp) | (Protocol::Udp, ListenerProtocol::Udp)
            );
            let met = publish
                .host_addresses()
                .iter()
                .any(|host| host.is_unspecified() || listener.takes(*host));
            if same && met && publish.host_ports.contains(listener.port) {
                warnings.push(format!(
                    "a program of the host listens on {}:{}/{}, and keeps that port: the publish \
                     to {} does not get it unless it says `override = true`",
                    listener.address, listener.port, publish.protocol, publish.container
                ));
            }
        }
    }
    warnings.dedup();
    Ok(warnings)
}
