//! `netd ports`: what is published, and where it leads.

use std::process::ExitCode;

use serde::Serialize;

use super::{Global, output, read};
use crate::state::{
    State, StateError,
    publish::{self, PublishView},
};

/// Show published ports.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Args {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Every published port.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    schema: u32,
    total: usize,
    ports: Vec<PublishView>,
}

impl Report {
    /// Reads them from the maps.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn read(state: &State) -> Result<Self, StateError> {
        let ports = publish::publishes(state, &state.topology()?)?;
        Ok(Self {
            schema: 1,
            total: ports.len(),
            ports,
        })
    }
}

/// Runs the verb.
///
/// # Errors
/// Where standard output cannot be written.
pub fn run(global: &Global, args: &Args) -> anyhow::Result<ExitCode> {
    let report = match read::open(&global.pin_dir()) {
        Ok(state) => Report::read(&state).map_err(read::cannot_read),
        Err(code) => Err(code),
    };
    match report {
        Ok(report) => output::answer(args.json, &report, render),
        Err(code) => Ok(code),
    }
}

/// The answer for people.
pub fn render(report: &Report) -> String {
    if report.ports.is_empty() {
        return "No ports are published.\n".to_owned();
    }
    let headers = [
        "NETWORK",
        "PROTO",
        "HOST",
        "CONTAINER",
        "INTERFACE",
        "NOTES",
    ];
    let mut table = output::table(&headers, &[]);
    for port in &report.ports {
        let mut notes = Vec::new();
        if !port.backend_present {
            notes.push("container not running");
        }
        if port.overrides {
            notes.push("override");
        }
        table.add_row([
            output::or_dash(port.network.as_ref()),
            port.protocol.to_string(),
            with_ports(port.host, port.host_ports.to_string()),
            with_ports(port.container, port.container_ports.to_string()),
            output::or_dash(port.interface.as_ref()),
            notes.join(", "),
        ]);
    }
    output::lines(&table)
}

fn with_ports(address: std::net::IpAddr, ports: String) -> String {
    match address {
        std::net::IpAddr::V4(address) => format!("{address}:{ports}"),
        std::net::IpAddr::V6(address) => format!("[{address}]:{ports}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{network::NetworkRef, publish::Ports};

    fn report() -> Report {
        let web = PublishView {
            network: Some(NetworkRef {
                id: 1,
                name: "web".into(),
            }),
            protocol: "tcp".into(),
            host: "0.0.0.0".parse().unwrap(),
            host_ports: Ports {
                first: 8000,
                last: 8099,
            },
            container: "10.201.1.2".parse().unwrap(),
            container_ports: Ports {
                first: 80,
                last: 179,
            },
            backend_present: true,
            interface: Some("vethA".into()),
            overrides: false,
        };
        let gone = PublishView {
            host: "fd00::1".parse().unwrap(),
            host_ports: Ports {
                first: 53,
                last: 53,
            },
            container: "fd00:201:1::9".parse().unwrap(),
            container_ports: Ports {
                first: 53,
                last: 53,
            },
            protocol: "udp".into(),
            backend_present: false,
            interface: None,
            overrides: true,
            ..web.clone()
        };
        Report {
            schema: 1,
            total: 2,
            ports: vec![web, gone],
        }
    }

    #[test]
    fn people_see_a_table() {
        assert_eq!(
            render(&report()),
            "\
NETWORK  PROTO  HOST               CONTAINER           INTERFACE  NOTES
web      tcp    0.0.0.0:8000-8099  10.201.1.2:80-179   vethA
web      udp    [fd00::1]:53       [fd00:201:1::9]:53  -          container not running, override
"
        );
        assert_eq!(
            render(&Report {
                schema: 1,
                total: 0,
                ports: vec![]
            }),
            "No ports are published.\n"
        );
    }

    #[test]
    fn programs_get_ports_as_numbers() {
        let json = serde_json::to_value(report()).unwrap();
        assert_eq!(json["schema"], 1);
        assert_eq!(json["ports"][0]["host_ports"]["first"], 8000);
        assert_eq!(json["ports"][1]["override"], true);
        assert_eq!(json["ports"][1]["backend_present"], false);
        assert_eq!(json["ports"][0]["network"]["name"], "web");
    }
}
