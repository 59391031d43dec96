//! What is wrong with a file, and how it is said.

mod host;
mod network;
mod publish;
mod unreadable;
mod warnings;

use super::super::*;
use super::WEB;

fn error(text: &str) -> ConfigError {
    match Config::parse(text, "netd.toml") {
        Ok(config) => panic!("accepted:\n{text}\n{config:?}"),
        Err(error) => error,
    }
}

/// A text in which `<` and `>` enclose the place that the only error must mark.
fn one_error(marked: &str, message: &str, help: &str) {
    let start = marked.find('<').expect("a marked place");
    let text = marked.replacen(['<', '>'], "", 2);
    let end = marked.find('>').expect("its end");
    let length = marked[start + 1..end].chars().count();
    let error = error(&text);
    let [found] = error.diagnostics() else {
        panic!("not one error for\n{text}\n{error}")
    };
    assert_eq!(found.message, message, "for\n{text}");
    let got = found.help.as_deref().unwrap_or_default();
    assert!(
        got.contains(help),
        "help is {got:?}, not {help:?}, for\n{text}"
    );
    let before = &text[..start];
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    assert_eq!(
        (found.line, found.column),
        (line, column),
        "for\n{text}\n{error}"
    );
    assert_eq!(
        (found.file.as_str(), found.severity),
        ("netd.toml", Severity::Error)
    );
    let rendered = error.render(false);
    assert!(
        rendered.contains(&format!("--> netd.toml:{line}:{column}\n")),
        "{rendered}"
    );
    let carets = rendered.matches('^').count();
    assert_eq!(
        carets,
        length.max(1),
        "as many marks as characters:\n{rendered}"
    );
}

/// A network `web` with more lines.
fn network(lines: &str) -> String {
    format!("{WEB}{lines}\n")
}

/// A network `web` with more lines, and a publish whose keys are replaced by those of `lines`.
fn publish(network_lines: &str, lines: &str) -> String {
    let mut text = format!("{WEB}{network_lines}\n[[publish]]\n{lines}\n");
    for line in [
        "network = 'web'",
        "container = '10.201.1.2'",
        "host_ports = 8080",
        "container_ports = 8080",
    ] {
        let key = line.split(' ').next().unwrap();
        if !lines
            .lines()
            .any(|other| other.split(' ').next() == Some(key))
        {
            text += &format!("{line}\n");
        }
    }
    text
}

#[test]
fn as_a_compiler_would_say_it() {
    let text = r#"version = 1

[[network]]
name = "web"
bridge = "br-web"
subnets = ["10.201.1.7/24"]
iccc = false

[[network]]
name = "web"
bridge = "br-b"
subnets = ["10.202.0.0/16"]

[[network]]
name = "web"
bridge = "br-c"
subnets = ["10.202.9.0/24"]
spoof = "strikt"
"#;
    let expected = r#"error: 10.201.1.7/24 has bits set beyond its /24 prefix
 --> netd.toml:6:12
  |
6 | subnets = ["10.201.1.7/24"]
  |            ^^^^^^^^^^^^^^^
  |
  = help: write "10.201.1.0/24"

error: unknown key `iccc` in [[network]]
 --> netd.toml:7:1
  |
7 | iccc = false
  | ^^^^
  |
  = help: did you mean `icc`?

error: a second network named "web"
  --> netd.toml:15:8
   |
10 | name = "web"
   |        ----- the first one
...
15 | name = "web"
   |        ^^^^^
   |
   = help: give every network a name of its own

error: 10.202.9.0/24 overlaps 10.202.0.0/16
  --> netd.toml:17:12
   |
12 | subnets = ["10.202.0.0/16"]
   |            --------------- this subnet
...
17 | subnets = ["10.202.9.0/24"]
   |            ^^^^^^^^^^^^^^^
   |
   = help: give every subnet addresses of its own

error: `spoof` cannot be "strikt"
  --> netd.toml:18:9
   |
18 | spoof = "strikt"
   |         ^^^^^^^^
   |
   = help: did you mean "strict"? The values are "nat", "strict" or "off"
"#;
    let error = error(text);
    assert_eq!(error.render(false), expected);
    assert_eq!(error.to_string(), expected.trim_end());
    assert!(error.render(true).contains('\x1b'));
}

#[test]
fn fields_for_json() {
    let error = error("version = 1\nnetworks = 1\n");
    assert_eq!(
        serde_json::to_value(error.diagnostics()).unwrap(),
        serde_json::json!([{
            "severity": "error",
            "message": "unknown key `networks` in the file",
            "file": "netd.toml",
            "line": 2,
            "column": 1,
            "help": "did you mean `network`?",
        }])
    );
}

#[test]
fn the_version_comes_first() {
    one_error("<>", "the file has no `version`", "version = 1");
    one_error(
        "version = <2>\n",
        "this netd reads version 1 of the file, not version 2",
        "install a newer netd",
    );
    one_error(
        "version = <0>\n",
        "this netd reads version 1 of the file, not version 0",
        "write `version = 1`",
    );
    one_error(
        "version = <\"1\">\n",
        "`version` must be a number, not a string",
        "version = 1",
    );
    // Another version may mean anything by its keys: only the version is reported.
    let text = "version = 2\n[host]\nmode = 7\n[[publish]]\n";
    assert_eq!(error(text).diagnostics().len(), 1);
}

#[test]
fn unknown_keys() {
    let cases = [
        (
            "version = 1\n<pin_dir> = '/x'\n",
            "`pin_dir` in the file",
            "key of [host]",
        ),
        (
            "version = 1\n[<hosts>]\n",
            "`hosts` in the file",
            "did you mean `host`?",
        ),
        (
            "version = 1\n[nat]\n<port> = 1\n",
            "`port` in [nat]",
            "did you mean `ports`?",
        ),
        (
            "version = 1\n[log]\n<zzz> = 1\n",
            "`zzz` in [log]",
            "are `level`, `format`",
        ),
        (
            "version = 1\n[log]\n<version> = 1\n",
            "`version` in [log]",
            "belongs to the top level",
        ),
        (
            "version = 1\n[log]\n<\"é\">=1\n",
            "`é` in [log]",
            "are `level`",
        ),
    ];
    for (text, message, help) in cases {
        one_error(text, &format!("unknown key {message}"), help);
    }
    one_error(
        &network("mode = { <v4> = 'nat' }"),
        "unknown key `v4` in `mode`",
        "the keys of `mode` are `ipv4`, `ipv6`",
    );
}

#[test]
fn wrong_types() {
    let cases = [
        (
            "[host]\nuplinks = <1>",
            "`uplinks` must be \"auto\" or a list of names, not a number",
            "\"auto\"",
        ),
        (
            "[host]\nuplinks = <\"eth0\">",
            "`uplinks` must be \"auto\" or a list of names, not a string",
            "[\"eth0\"]",
        ),
        (
            "[host]\ntrust = <\"wg0\">",
            "`trust` must be a list, not a string",
            "[\"wg0\"]",
        ),
        (
            "[host]\nallow_direct_routing = <\"true\">",
            "`allow_direct_routing` must be true or false, not a string",
            "true without quotes",
        ),
        (
            "[host]\nmode = <true>",
            "`mode` must be a string, not true or false",
            "\"replace\" or \"accelerate\"",
        ),
        (
            "[host]\npin_dir = <[]>",
            "`pin_dir` must be a string, not a list",
            "/sys/fs/bpf",
        ),
        (
            "[limits]\nflows_v4 = <1.5>",
            "`flows_v4` must be a number, not a number with a fraction",
            "from 1 to",
        ),
        (
            "[limits]\nflows_v6 = <2026-01-01>",
            "`flows_v6` must be a number, not a date or time",
            "from 1 to",
        ),
        (
            "host = <1>",
            "`host` must be a table, not a number",
            "write `[host]`",
        ),
        (
            "<[[host]]>\nmode = 'replace'",
            "`host` is one table, not a list of tables",
            "`[host]`, once",
        ),
        (
            "<[network]>\nname = 'web'",
            "`network` must be a list of tables, not a table",
            "`[[network]]`",
        ),
        (
            "network = [<1>]",
            "`network` must be a table, not a number",
            "`[[network]]`",
        ),
    ];
    for (lines, message, help) in cases {
        one_error(&format!("version = 1\n{lines}\n"), message, help);
    }
}

#[test]
fn wrong_words() {
    for (lines, message, help) in [
        (
            "[host]\nmode = <\"replcae\">",
            "`mode` cannot be \"replcae\"",
            "did you mean \"replace\"?",
        ),
        (
            "[host]\nmode = <\"docker\">",
            "`mode` cannot be \"docker\"",
            "\"replace\" or \"accelerate\"",
        ),
        (
            "[log]\nlevel = <\"INFO\">",
            "`level` cannot be \"INFO\"",
            "did you mean \"info\"?",
        ),
        (
            "[log]\nlevel = <\"warning\">",
            "`level` cannot be \"warning\"",
            "\"warn\"",
        ),
        (
            "[log]\nformat = <\"\">",
            "`format` cannot be \"\"",
            "\"text\" or \"json\"",
        ),
        (
            "[[uplink]]\nname = 'a'\ncontainers = <\"publish\">",
            "`containers` cannot be \"publish\"",
            "did you mean \"published\"?",
        ),
        (
            "[[uplink]]\nname = 'a'\nreturn_path = <\"asymmetric\">",
            "`return_path` cannot be \"asymmetric\"",
            "did you mean \"symmetric\"?",
        ),
    ] {
        one_error(&format!("version = 1\n{lines}\n"), message, help);
    }
    one_error(
        &network("mode = <\"bridge\">"),
        "`mode` cannot be \"bridge\"",
        "\"nat\", \"nat-unprotected\", \"routed\" or \"isolated\"",
    );
    one_error(
        &network("mode = { ipv6 = <\"route\"> }"),
        "`ipv6` cannot be \"route\"",
        "did you mean \"routed\"?",
    );
    one_error(
        &publish("", "protocol = <\"icmp\">"),
        "`protocol` cannot be \"icmp\"",
        "\"tcp\", \"udp\" or \"sctp\"",
    );
}
