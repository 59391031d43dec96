//! `netd completions` and `netd man`: what a package installs beside the binary.

use std::{io, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::Command;
use clap_complete::Shell;

use super::{Exit, output};

/// Arguments of `netd completions`.
#[derive(Clone, Debug, clap::Args)]
pub struct CompletionsArgs {
    /// Which shell. `netd completions bash > /etc/bash_completion.d/netd`
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Arguments of `netd man`.
#[derive(Clone, Debug, clap::Args)]
pub struct ManArgs {
    /// Where netd.8, netd-status.8 and the others go; it must exist.
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

/// Prints the completion script.
///
/// # Errors
/// Where standard output cannot be written.
pub fn completions(mut command: Command, args: &CompletionsArgs) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "netd", &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Done.into())
}

/// Writes one page per verb that is not hidden, and one for the command.
///
/// # Errors
/// Where a file cannot be written.
pub fn man(command: &Command, args: &ManArgs) -> anyhow::Result<ExitCode> {
    for (name, page) in pages(command)? {
        let path = args.directory.join(name);
        std::fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(Exit::Done.into())
}

fn pages(command: &Command) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut command = command.clone();
    command.build();
    let mut pages = vec![page(command.clone(), "netd".to_owned())?];
    for verb in command
        .get_subcommands()
        .filter(|v| !v.is_hide_set() && v.get_name() != "help")
    {
        let name = format!("netd-{}", verb.get_name());
        pages.push(page(verb.clone(), name)?);
    }
    Ok(pages)
}

fn page(command: Command, name: String) -> io::Result<(String, Vec<u8>)> {
    let file = format!("{name}.8");
    let mut page = Vec::new();
    clap_mangen::Man::new(command)
        .title(name.to_uppercase())
        .section("8")
        .manual("netd")
        .render(&mut page)?;
    Ok((file, page))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn every_visible_verb_has_a_page() {
        let pages = pages(&Cli::command()).unwrap();
        let names: Vec<&str> = pages.iter().map(|(name, _)| name.as_str()).collect();
        for name in [
            "netd.8",
            "netd-status.8",
            "netd-flows.8",
            "netd-drops.8",
            "netd-run.8",
        ] {
            assert!(names.contains(&name), "{name} of {names:?}");
        }
        assert!(!names.contains(&"netd-man.8"));
        let flows = &pages
            .iter()
            .find(|(name, _)| name == "netd-flows.8")
            .unwrap()
            .1;
        let text = String::from_utf8_lossy(flows);
        assert!(
            text.contains("\\-\\-container") && text.contains("NETD-FLOWS"),
            "{text}"
        );
    }

    #[test]
    fn completions_know_the_verbs() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "netd", &mut script);
            let script = String::from_utf8(script).unwrap();
            assert!(
                script.contains("drops") && script.contains("explain"),
                "{shell}"
            );
        }
    }
}
