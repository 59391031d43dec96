//! The documentation says what the program does: keys, words, defaults and examples.

use std::collections::BTreeSet;

use super::super::document::Keyword;
use super::super::schema::{self, SECTIONS};
use super::super::*;
use super::WEB;

fn read(path: &str) -> String {
    let path = format!("{}/{path}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// One row of a table of keys.
struct Row {
    key: String,
    kind: String,
    default: String,
    example: String,
}

/// The rows of the table under the heading of a section.
fn rows(document: &str, title: &str) -> Vec<Row> {
    let heading = match title {
        schema::TOP => "## Top level".to_owned(),
        schema::MODE => format!("### {title}"),
        _ => format!("## `{title}`"),
    };
    let start = document
        .find(&format!("{heading}\n"))
        .unwrap_or_else(|| panic!("no {heading}"));
    let part = &document[start + heading.len()..];
    let part = &part[..part.find("\n#").unwrap_or(part.len())];
    let table = part
        .split("| Key | Type | Default | Example | Meaning |")
        .nth(1);
    let table = table.unwrap_or_else(|| panic!("no table under {heading}"));
    table
        .trim_start()
        .lines()
        .skip(1)
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let [key, kind, default, example, meaning] = cells[..] else {
                panic!("{line}")
            };
            assert!(meaning.ends_with('.'), "{line}");
            let code = |cell: &str| cell.trim_matches('`').to_owned();
            Row {
                key: code(key),
                kind: kind.to_owned(),
                default: default.to_owned(),
                example: code(example),
            }
        })
        .collect()
}

/// A valid file in which the section's `key` has the value, or is left out.
fn file_with(title: &str, key: &str, value: Option<&str>) -> String {
    let required: &[(&str, &str)] = match title {
        schema::TOP => &[("version", "1")],
        schema::UPLINK => &[("name", "'eth0'")],
        schema::NETWORK => &[
            ("name", "'web'"),
            ("bridge", "'br-web'"),
            ("subnets", "['10.201.1.0/24']"),
        ],
        schema::PUBLISH => &[
            ("network", "'web'"),
            ("container", "'10.201.1.2'"),
            ("host_ports", "443"),
            ("container_ports", "443"),
        ],
        _ => &[],
    };
    let mut lines: Vec<String> = required
        .iter()
        .filter(|(other, _)| *other != key)
        .map(|(key, value)| format!("{key} = {value}\n"))
        .collect();
    lines.extend(value.map(|value| format!("{key} = {value}\n")));
    match title {
        schema::TOP => lines.concat(),
        schema::PUBLISH => format!("{WEB}{title}\n{}", lines.concat()),
        schema::MODE => format!("{WEB}mode = {{ {} }}\n", lines.concat().trim_end()),
        _ => format!("version = 1\n{title}\n{}", lines.concat()),
    }
}

#[test]
fn every_key_is_documented_and_no_other() {
    let document = read("../docs/configuration.md");
    for section in SECTIONS {
        let documented: Vec<String> = rows(&document, section.title)
            .into_iter()
            .map(|row| row.key)
            .collect();
        assert_eq!(
            documented, section.keys,
            "in the order of {:?}",
            section.title
        );
    }
}

#[test]
fn documented_defaults_are_the_defaults() {
    let document = read("../docs/configuration.md");
    for section in SECTIONS {
        for row in rows(&document, section.title) {
            let without = Config::parse(&file_with(section.title, &row.key, None), "netd.toml");
            if row.default == "required" {
                let error = without.expect_err(&row.key);
                let message = &error.diagnostics()[0].message;
                assert!(
                    message.ends_with(&format!("has no `{}`", row.key)),
                    "{message}"
                );
                continue;
            }
            let mut without = without.unwrap_or_else(|error| panic!("{}: {error}", row.key));
            let Some(default) = row.default.strip_prefix('`') else {
                assert!(
                    ["–", "from RAM"].contains(&row.default.as_str()),
                    "{}",
                    row.default
                );
                continue;
            };
            let default = default.trim_end_matches('`');
            let text = file_with(section.title, &row.key, Some(default));
            let mut with = Config::parse(&text, "netd.toml").unwrap_or_else(|e| panic!("{e}"));
            // What an uplink leaves out another entry may decide, so compare what results.
            if section.title == schema::UPLINK {
                assert_eq!(with.uplink_policy("eth0"), without.uplink_policy("eth0"));
                with.uplinks.clear();
                without.uplinks.clear();
            }
            assert_eq!(with, without, "{default} is not the default of {}", row.key);
        }
    }
}

#[test]
fn documented_examples_are_valid() {
    let document = read("../docs/configuration.md");
    for section in SECTIONS {
        for row in rows(&document, section.title) {
            if row.example.is_empty() {
                assert_eq!(row.default, "–", "{} has no example", row.key);
                continue;
            }
            let text = file_with(section.title, &row.key, Some(&row.example));
            Config::parse(&text, "netd.toml").unwrap_or_else(|e| panic!("{}\n{text}{e}", row.key));
        }
    }
    let blocks: Vec<&str> = document.split("```toml\n").skip(1).collect();
    assert!(!blocks.is_empty());
    for block in blocks {
        let text = block.split("```").next().unwrap();
        let (_, warnings) = Config::check(text, "netd.toml").unwrap_or_else(|e| panic!("{e}"));
        assert!(warnings.is_empty(), "{warnings}");
    }
}

#[test]
fn every_word_is_documented() {
    let document = read("../docs/configuration.md");
    let kind = |title: &str, key: &str| {
        rows(&document, title)
            .into_iter()
            .find(|row| row.key == key)
            .unwrap()
            .kind
    };
    for (title, key, words) in [
        (schema::HOST, "mode", Mode::WORDS),
        (schema::UPLINK, "containers", ContainersAccess::WORDS),
        (schema::UPLINK, "return_path", ReturnPath::WORDS),
        (schema::LOG, "level", LogLevel::WORDS),
        (schema::LOG, "format", LogFormat::WORDS),
        (schema::NETWORK, "spoof", Spoof::WORDS),
        (schema::PUBLISH, "protocol", Protocol::WORDS),
    ] {
        let quoted: Vec<String> = words.iter().map(|word| format!("`\"{word}\"`")).collect();
        let (last, rest) = quoted.split_last().unwrap();
        assert_eq!(
            kind(title, key),
            format!("{} or {last}", rest.join(", ")),
            "{key}"
        );
    }
    for word in GatewayMode::WORDS.iter().chain(Spoof::WORDS) {
        assert!(
            document.contains(&format!("\n| `\"{word}\"` | ")),
            "{word} is not explained"
        );
    }
}

#[test]
fn the_schema_has_the_keys_of_the_types() {
    let json = Config::parse(&read("examples/netd.toml"), "netd.toml")
        .unwrap()
        .to_normalized_json();
    let keys = |value: &serde_json::Value| -> BTreeSet<String> {
        value.as_object().unwrap().keys().cloned().collect()
    };
    let section = |title| -> BTreeSet<String> {
        // `trust` is merged into the uplinks.
        schema::keys(title)
            .iter()
            .filter(|key| **key != "trust")
            .map(|key| key.to_string())
            .collect()
    };
    let mut top = keys(&json);
    assert!(top.remove("schema"));
    assert_eq!(top, section(schema::TOP));
    for (title, value) in [
        (schema::HOST, &json["host"]),
        (schema::UPLINK, &json["uplink"][0]),
        (schema::LIMITS, &json["limits"]),
        (schema::NAT, &json["nat"]),
        (schema::LOG, &json["log"]),
        (schema::NETWORK, &json["network"][0]),
        (schema::MODE, &json["network"][0]["mode"]),
        (schema::PUBLISH, &json["publish"][0]),
    ] {
        assert_eq!(keys(value), section(title), "{title}");
    }
}

/// The setting that a line of the example shows without making it.
fn shown_setting(line: &str) -> Option<&str> {
    line.strip_prefix('#')
        .filter(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase()))
}

#[test]
fn the_example_is_valid_and_shows_the_defaults() {
    let text = read("examples/netd.toml");
    let (config, warnings) = Config::check(&text, "netd.toml").unwrap_or_else(|e| panic!("{e}"));
    assert!(warnings.is_empty(), "{warnings}");
    assert_eq!((config.networks.len(), config.publishes.len()), (2, 3));

    let shown: String = text
        .lines()
        .map(|line| format!("{}\n", shown_setting(line).unwrap_or(line)))
        .collect();
    let with = Config::parse(&shown, "netd.toml").unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(with.uplink_policy("wg0"), config.uplink_policy("wg0"));
    assert_eq!(
        Config {
            uplinks: config.uplinks.clone(),
            ..with
        },
        config
    );

    for key in SECTIONS
        .iter()
        .filter(|section| section.title != schema::MODE)
        .flat_map(|s| s.keys)
    {
        let shows = |line: &str| {
            let line = line.trim_start_matches(['#', ' ', '[']);
            line.strip_prefix(key)
                .is_some_and(|rest| rest.starts_with([' ', ']']))
        };
        assert!(text.lines().any(shows), "the example does not show {key}");
    }
}
