//! What is wrong with a file, and how it is said.

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
    let length = marked.find('>').expect("its end") - start - 1;
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
            "version = 1\n[log]\n\"<é\">=1\n",
            "`é` in [log]",
            "are `level`",
        ),
    ];
    for (text, message, help) in cases {
        // A quoted key is marked without its first quote only where the marks say so.
        if text.contains("\"<") {
            let error = error(&text.replace(['<', '>'], ""));
            assert!(error.diagnostics()[0].message.ends_with(message));
            continue;
        }
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

#[test]
fn host_values() {
    for (lines, message, help) in [
        (
            "[host]\nuplinks = <[]>",
            "`uplinks` names no interface, so nothing could be reached",
            "\"auto\"",
        ),
        (
            "[host]\nuplinks = [<\"abcdefghijklmnop\">]",
            "`uplinks`: an interface name has at most 15 bytes, this one has 16",
            "wg*",
        ),
        (
            "[host]\nuplinks = ['a', <'a'>]",
            "`uplinks` names a twice",
            "remove one",
        ),
        (
            "[host]\npin_dir = <\"bpf\">",
            "`pin_dir`: \"bpf\" is not an absolute path",
            "/sys/fs/bpf/netd",
        ),
        (
            "[host]\npin_dir = <\"/a/../b\">",
            "`pin_dir`: \"/a/../b\" contains `..`",
            "/sys/fs/bpf/netd",
        ),
        (
            "[host]\npin_dir = <\"/\">",
            "`pin_dir`: \"/\" is the root directory",
            "/sys/fs/bpf/netd",
        ),
        (
            "[[uplink]]\nname = <\"a/b\">",
            "`name`: an interface name cannot contain '/'",
            "tailscale0",
        ),
        (
            "<[[uplink]]>\ncontainers = 'none'",
            "[[uplink]] has no `name`",
            "name = ",
        ),
        (
            "[[uplink]]\nname = 'a'\n[[uplink]]\nname = <'a'>",
            "a second [[uplink]] for a",
            "into one",
        ),
        (
            "[host]\ntrust = [<'a'>]\n[[uplink]]\nname = 'a'\ncontainers = 'none'",
            "`trust` means containers = \"published\" for a, but its [[uplink]] says \"none\"",
            "remove a from `trust`",
        ),
        (
            "[host]\ntrust = [<'a'>]\n[[uplink]]\nname = 'a'\ncontainers = 'all'",
            "`trust` means containers = \"published\" for a, but its [[uplink]] says \"all\"",
            "remove a from `trust`",
        ),
        (
            "[limits]\nflows_v4 = <0>",
            "`flows_v4`: a table cannot hold 0 flows",
            "from 1 to 16777216",
        ),
        (
            "[limits]\nflows_v4 = <-1>",
            "`flows_v4`: a table cannot hold -1 flows",
            "from 1 to",
        ),
        (
            "[limits]\nflows_v6 = <16777217>",
            "`flows_v6`: a table cannot hold 16777217 flows",
            "from 1 to",
        ),
        (
            "[nat]\nports = <\"1023-65535\">",
            "`ports`: 1023-65535 contains privileged ports",
            "1024",
        ),
        (
            "[nat]\nports = <\"61000-61062\">",
            "`ports`: 61000-61062 is too small, NAT needs 64 ports",
            "auto",
        ),
        (
            "[nat]\nports = <\"65535-61000\">",
            "`ports`: the range ends before it begins",
            "auto",
        ),
        (
            "[nat]\nports = <\"61000-65536\">",
            "`ports`: a port is at most 65535",
            "auto",
        ),
        (
            "[nat]\nports = <61000>",
            "`ports` must be a string, not a number",
            "61000-65535",
        ),
    ] {
        one_error(&format!("version = 1\n{lines}\n"), message, help);
    }
    assert!(Config::parse("version = 1\n[nat]\nports = '1024-1087'\n", "").is_ok());
}

#[test]
fn network_values() {
    let with = |name: &str, bridge: &str, subnets: &str| {
        format!("version = 1\n[[network]]\nname = {name}\nbridge = {bridge}\nsubnets = {subnets}\n")
    };
    let subnets = |subnets: &str| with("'a'", "'b'", subnets);
    for (text, message, help) in [
        (
            with("<''>", "'b'", "['10.200.0.0/24']"),
            "a network's name cannot be empty",
            "letters",
        ),
        (
            with("<'a b'>", "'b'", "['10.200.0.0/24']"),
            "a network's name cannot contain ' '",
            "letters",
        ),
        (
            with("<'-a'>", "'b'", "['10.200.0.0/24']"),
            "a network's name begins with a letter or a digit",
            "letters",
        ),
        (
            with("'a'", "<'br-0123456789abc'>", "['10.200.0.0/24']"),
            "`bridge`: an interface name has at most 15 bytes, this one has 16",
            "br-web",
        ),
        (
            with("'a'", "<'br*'>", "['10.200.0.0/24']"),
            "`bridge`: a `*` is not allowed here: one interface is meant",
            "br-web",
        ),
        (
            subnets("<[]>"),
            "a network needs at least one subnet",
            "10.201.1.0/24",
        ),
        (
            subnets("<'10.200.0.0/24'>"),
            "`subnets` must be a list, not a string",
            "[\"10.200.0.0/24\"]",
        ),
        (
            subnets("[<'10.200.0.0'>]"),
            "`subnets`: \"10.200.0.0\" is not an IP prefix",
            "\"10.200.0.0/24\"",
        ),
        (
            subnets("[<'fd00::'>]"),
            "`subnets`: \"fd00::\" is not an IP prefix",
            "\"fd00::/64\"",
        ),
        (
            subnets("[<'10.200.0.0/33'>]"),
            "`subnets`: \"10.200.0.0/33\" is not an IP prefix",
            "10.201.1.0/24",
        ),
        (
            subnets("[<'fd00::1/64'>]"),
            "fd00::1/64 has bits set beyond its /64 prefix",
            "\"fd00::/64\"",
        ),
        (
            subnets("[<'10.200.0.1/32'>]"),
            "10.200.0.1/32 is a single address: there is no room for a container",
            "shorter",
        ),
        (
            subnets("[<'127.0.0.0/24'>]"),
            "127.0.0.0/24 cannot be a container subnet: 127.0.0.0/8 is loopback",
            "private",
        ),
        (
            subnets("[<'0.0.0.0/0'>]"),
            "0.0.0.0/0 cannot be a container subnet: 0.0.0.0/8 is \"this network\" (RFC 1122)",
            "private",
        ),
        (
            subnets("[<'fe80::/64'>]"),
            "fe80::/64 cannot be a container subnet: fe80::/10 is link-local",
            "fd00::/8",
        ),
        (
            subnets("[<'::ffff:10.0.0.0/104'>]"),
            "::ffff:10.0.0.0/104 cannot be a container subnet: ::ffff:0:0/96 is IPv4 in IPv6 form",
            "private",
        ),
        (
            subnets("['10.200.0.0/24', <'10.200.0.0/25'>]"),
            "10.200.0.0/25 overlaps 10.200.0.0/24",
            "of its own",
        ),
        (
            network("mode = <'isolated'>"),
            "mode \"isolated\" is only for internal networks",
            "internal = true",
        ),
        (
            network("mode = <{ ipv6 = 'isolated' }>"),
            "mode \"isolated\" is only for internal networks",
            "internal = true",
        ),
        (
            network("icc = <0>"),
            "`icc` must be true or false, not a number",
            "true or false",
        ),
        (
            network("internal = <'no'>"),
            "`internal` must be true or false, not a string",
            "true or false",
        ),
        (
            network("masquerade_to = <'198.18.0.1'>"),
            "`masquerade_to` must be a list, not a string",
            "[\"198.18.0.1\"]",
        ),
        (
            network("masquerade_to = ['198.18.0.1', <'198.18.0.2'>]"),
            "`masquerade_to` has a second IPv4 address",
            "each family",
        ),
        (
            network("masquerade_to = [<'0.0.0.0'>]"),
            "`masquerade_to`: 0.0.0.0 is no address at all",
            "on an uplink",
        ),
        (
            network("masquerade_to = [<'224.0.0.1'>]"),
            "`masquerade_to`: 224.0.0.1 is a multicast address",
            "on an uplink",
        ),
        (
            network("masquerade_to = [<'255.255.255.255'>]"),
            "`masquerade_to`: 255.255.255.255 is the broadcast address",
            "on an uplink",
        ),
        (
            network("masquerade_to = [<'::1'>]"),
            "`masquerade_to`: ::1 is a loopback address, so no reply would find it",
            "on an uplink",
        ),
        (
            network("masquerade_to = [<'fe80::1'>]"),
            "`masquerade_to`: fe80::1 is link-local, so it names no single host",
            "on an uplink",
        ),
        (
            network("trusted_interfaces = [<'wg*'>]"),
            "`trusted_interfaces`: a `*` is not allowed here: one interface is meant",
            "br-web",
        ),
    ] {
        one_error(&text, message, help);
    }
    for key in ["name", "bridge", "subnets"] {
        let text = subnets("['10.200.0.0/24']").replace("[[network]]", "<[[network]]>");
        let text: String = text
            .lines()
            .filter(|line| !line.starts_with(key))
            .map(|l| format!("{l}\n"))
            .collect();
        one_error(
            &text,
            &format!("[[network]] has no `{key}`"),
            &format!("`{key} = "),
        );
    }
}

#[test]
fn networks_among_each_other() {
    let other = |name: &str, bridge: &str, subnet: &str| {
        format!("{WEB}[[network]]\nname = {name}\nbridge = {bridge}\nsubnets = [{subnet}]\n")
    };
    one_error(
        &other("<'web'>", "'b'", "'10.200.0.0/24'"),
        "a second network named \"web\"",
        "of its own",
    );
    one_error(
        &other("'b'", "<'br-web'>", "'10.200.0.0/24'"),
        "bridge br-web already belongs to another network",
        "one network",
    );
    one_error(
        &other("'b'", "'b'", "<'10.201.0.0/16'>"),
        "10.201.0.0/16 overlaps 10.201.1.0/24",
        "of its own",
    );
    one_error(
        &other("'b'", "'b'", "<'10.201.1.128/25'>"),
        "10.201.1.128/25 overlaps 10.201.1.0/24",
        "of its own",
    );
    one_error(
        &other("'b'", "'b'", "<'fd00:201:1::/64'>"),
        "fd00:201:1::/64 overlaps fd00:201:1::/64",
        "of its own",
    );
}

#[test]
fn publish_values() {
    for (lines, message, help) in [
        (
            "container = <'10.201.1'>",
            "`container`: \"10.201.1\" is not an IP address",
            "names are not looked up",
        ),
        (
            "container = <'10.201.1.2/24'>",
            "`container`: \"10.201.1.2/24\" is not an IP address",
            "\"10.201.1.2\"",
        ),
        (
            "container = <'10.201.1.2:80'>",
            "`container`: \"10.201.1.2:80\" is not an IP address",
            "keys of their own",
        ),
        (
            "container = <'[fd00:201:1::2]'>",
            "`container`: \"[fd00:201:1::2]\" is not an IP address",
            "\"fd00:201:1::2\"",
        ),
        (
            "container = <'::ffff:10.201.1.2'>",
            "::ffff:10.201.1.2 is an IPv4 address in IPv6 form",
            "\"10.201.1.2\"",
        ),
        (
            "container = <'0.0.0.0'>",
            "`container`: 0.0.0.0 is no address at all",
            "in the network",
        ),
        (
            "host = <'fe80::1%eth0'>",
            "`host`: \"fe80::1%eth0\" is not an IP address",
            "zone",
        ),
        (
            "host = <'224.0.0.1'>",
            "`host`: 224.0.0.1 is a multicast address",
            "of this host",
        ),
        (
            "host = <'255.255.255.255'>",
            "`host`: 255.255.255.255 is the broadcast address",
            "of this host",
        ),
        (
            "host = <'0.0.0.1'>",
            "`host`: 0.0.0.1 is in 0.0.0.0/8, which no host has",
            "of this host",
        ),
        (
            "host = <'all'>",
            "`host`: \"all\" is not an IP address",
            "198.18.0.1",
        ),
        (
            "host = <true>",
            "`host` must be a string or a list, not true or false",
            "\"any\"",
        ),
        (
            "host = <[]>",
            "`host` is an empty list, so nothing would be published",
            "\"any\"",
        ),
        (
            "host = ['127.0.0.1', <'any'>]",
            "\"any\" stands for every address, so it cannot be one of a list",
            "without a list",
        ),
        (
            "host = ['127.0.0.1', <'127.0.0.1'>]",
            "`host` names 127.0.0.1 twice",
            "remove one",
        ),
        (
            "host = ['0.0.0.0', <'127.0.0.1'>]",
            "0.0.0.0 already contains 127.0.0.1",
            "remove one",
        ),
        (
            "host = <'fd99::1'>",
            "the host address fd99::1 is IPv6, but the container's address is IPv4",
            "Docker's proxy",
        ),
        (
            "host = <'::'>",
            "the host address :: is IPv6, but the container's address is IPv4",
            "Docker's proxy",
        ),
        (
            "container = 'fd00:201:1::2'\nhost = <'0.0.0.0'>",
            "the host address 0.0.0.0 is IPv4, but the container's address is IPv6",
            "IPv4 address",
        ),
        (
            "host_ports = <0>",
            "`host_ports`: port 0 cannot be used",
            "from 1 to 65535",
        ),
        (
            "host_ports = <-5>",
            "`host_ports`: port 0 cannot be used",
            "from 1 to 65535",
        ),
        (
            "host_ports = <65536>",
            "`host_ports`: a port is at most 65535",
            "from 1 to 65535",
        ),
        (
            "host_ports = <'http'>",
            "`host_ports`: this is neither a port nor a range of ports",
            "8000-8099",
        ),
        (
            "host_ports = <'90-80'>",
            "`host_ports`: the range ends before it begins",
            "\"80-90\"",
        ),
        (
            "host_ports = <[80]>",
            "`host_ports` must be a port or a range of ports, not a list",
            "8000-8099",
        ),
        (
            "host_ports = '80-89'\ncontainer_ports = <80>",
            "1 container port for 10 host ports",
            "\"80-89\"",
        ),
        (
            "host_ports = '80-89'\ncontainer_ports = <'65530-65535'>",
            "6 container ports for 10 host ports",
            "10 ports",
        ),
        (
            "host_ports = 80\ncontainer_ports = <'80-81'>",
            "2 container ports for 1 host port",
            "write 80",
        ),
        (
            "override = <1>",
            "`override` must be true or false, not a number",
            "true or false",
        ),
        (
            "protocol = 'sctp'\ncontainer_ports = <80>",
            "SCTP cannot be published to another port",
            "checksum",
        ),
    ] {
        one_error(&publish("", lines), message, help);
    }
    for key in ["network", "container", "host_ports", "container_ports"] {
        let text: String = publish("", "")
            .replace("[[publish]]", "<[[publish]]>")
            .lines()
            .filter(|line| line.split(' ').next() != Some(key))
            .map(|line| format!("{line}\n"))
            .collect();
        one_error(
            &text,
            &format!("[[publish]] has no `{key}`"),
            &format!("`{key} = "),
        );
    }
}

#[test]
fn a_publish_fits_its_network() {
    for (network_lines, lines, message, help) in [
        (
            "",
            "network = <'wbe'>",
            "there is no network \"wbe\"",
            "did you mean \"web\"?",
        ),
        (
            "",
            "network = <'database'>",
            "there is no network \"database\"",
            "are \"web\"",
        ),
        (
            "",
            "container = <'10.201.2.2'>",
            "10.201.2.2 is in no subnet of network \"web\"",
            "10.201.1.0/24 or fd00:201:1::/64",
        ),
        (
            "",
            "container = <'10.201.1.0'>",
            "10.201.1.0 is the network address of 10.201.1.0/24",
            "that the container has",
        ),
        (
            "",
            "container = <'10.201.1.255'>",
            "10.201.1.255 is the broadcast address of 10.201.1.0/24",
            "that the container has",
        ),
        (
            "",
            "container = <'fd00:201:1::'>",
            "fd00:201:1:: is the network address of fd00:201:1::/64",
            "that the container has",
        ),
        (
            "internal = true",
            "network = <'web'>",
            "network \"web\" is internal: it has no published ports",
            "internal = true",
        ),
        (
            "internal = true\nmode = 'isolated'",
            "network = <'web'>",
            "network \"web\" is internal: it has no published ports",
            "internal = true",
        ),
    ] {
        one_error(&publish(network_lines, lines), message, help);
    }
    assert!(Config::parse(&publish("mode = 'routed'", ""), "").is_ok());
    // The last address of an IPv6 subnet is an address as any other.
    let last = publish("", "container = 'fd00:201:1:0:ffff:ffff:ffff:ffff'");
    assert!(Config::parse(&last, "").is_ok());
}

#[test]
fn a_broken_network_is_not_also_unknown() {
    let text = publish("", "").replace("10.201.1.0/24", "10.201.1.1/24");
    let error = error(&text);
    assert_eq!(error.diagnostics().len(), 1, "{error}");
}

#[test]
fn overlapping_publishes() {
    let second = |protocol: &str, first: [&str; 2], second: [&str; 2], container: &str| {
        let mut text = WEB.to_owned();
        for [host, ports] in [first, second] {
            let plain = ports.replace(['<', '>'], "");
            text += &format!(
                "[[publish]]\nnetwork = 'web'\ncontainer = '{container}'\n\
                 protocol = '{protocol}'\nhost = {host}\nhost_ports = {ports}\n\
                 container_ports = {plain}\n"
            );
        }
        text
    };
    let v4 = "10.201.1.2";
    for (first, other, message) in [
        (
            ["'any'", "80"],
            ["'any'", "<80>"],
            "tcp port 80 of any IPv4 address is already published",
        ),
        (
            ["'any'", "80"],
            ["'127.0.0.1'", "<80>"],
            "tcp port 80 of 127.0.0.1 is already published",
        ),
        (
            ["'127.0.0.1'", "80"],
            ["'any'", "<80>"],
            "tcp port 80 of 127.0.0.1 is already published",
        ),
        (
            ["'127.0.0.1'", "80"],
            ["'0.0.0.0'", "<80>"],
            "tcp port 80 of 127.0.0.1 is already published",
        ),
        (
            ["'any'", "'80-90'"],
            ["'any'", "<'90-99'>"],
            "tcp port 90-99 of any IPv4 address is already published",
        ),
        (
            ["'any'", "85"],
            ["'any'", "<'80-90'>"],
            "tcp port 80-90 of any IPv4 address is already published",
        ),
        (
            ["['127.0.0.1', '127.0.0.2']", "80"],
            ["'127.0.0.2'", "<80>"],
            "tcp port 80 of 127.0.0.2 is already published",
        ),
    ] {
        one_error(
            &second("tcp", first, other, v4),
            message,
            "choose another port",
        );
    }
    one_error(
        &second("udp", ["'any'", "53"], ["'::1'", "<53>"], "fd00:201:1::2"),
        "udp port 53 of ::1 is already published",
        "choose another port",
    );
    // Host ports of a routed network are ignored, so they cannot collide.
    let routed = second("tcp", ["'any'", "80"], ["'any'", "80"], v4).replacen(
        "[[publish]]",
        "mode = 'routed'\n[[publish]]",
        1,
    );
    assert!(Config::parse(&routed, "").is_ok());
}

#[test]
fn syntax_errors_are_reported_alone() {
    let cases: [(&str, &[(usize, &str, &str)]); 7] = [
        (
            "version = 1\n[host]\nmode = replace\npin_dir = /x\nuplinks = 7\n",
            &[
                (3, "string values must be quoted", "write \"replace\""),
                (4, "string values must be quoted", "write \"/x\""),
            ],
        ),
        (
            "version = 1\n[host]\ntrust = ['a', 'b'\n[log]\nlevel = info\nx = y\n",
            &[(
                4,
                "missing comma between array elements",
                "expected `,` here",
            )],
        ),
        (
            "version = 1\n[host\nmode = 'x'\n",
            &[(2, "unclosed table", "expected `]` here")],
        ),
        (
            "version = 1\nversion = 1\n",
            &[(2, "duplicate key", "can appear once")],
        ),
        (
            "version = 1\n[log]\n[log]\n",
            &[(3, "duplicate key", "can appear once")],
        ),
        (
            "{\"version\": 1}",
            &[(1, "invalid key-value pair", "expected key here")],
        ),
        (
            "=\n=\n",
            &[(1, "unquoted keys cannot be empty", "expected letters")],
        ),
    ];
    for (text, expected) in cases {
        let error = error(text);
        let found = error.diagnostics();
        assert_eq!(found.len(), expected.len(), "{error}\nfor\n{text}");
        for (found, (line, message, help)) in found.iter().zip(expected) {
            assert_eq!(
                (found.line, found.message.as_str()),
                (*line, *message),
                "for\n{text}"
            );
            assert!(
                found.help.as_deref().is_some_and(|got| got.contains(help)),
                "{error}"
            );
        }
    }
}

#[test]
fn files_that_cannot_be_read() {
    let root = tempfile::tempdir().unwrap();
    let load = |name: &str, bytes: &[u8]| {
        let path = root.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        Config::load(&path)
    };
    let good = load("good.toml", WEB.as_bytes()).unwrap();
    assert_eq!((good.text.as_str(), good.config.networks.len()), (WEB, 1));

    let error = load("latin1.toml", b"version = 1\n# caf\xe9\n").unwrap_err();
    let [found] = error.diagnostics() else {
        panic!("{error}")
    };
    assert_eq!((found.line, found.column), (2, 6));
    assert_eq!(found.message, "this byte is not UTF-8");

    let error = load("bad.toml", b"version = 3\n").unwrap_err();
    assert!(error.diagnostics()[0].file.ends_with("bad.toml"));

    let missing = Config::load(&root.path().join("missing.toml")).unwrap_err();
    assert!(
        matches!(missing, ConfigError::Unreadable { .. }),
        "{missing}"
    );
    assert!(missing.diagnostics().is_empty());
    let directory = Config::load(root.path()).unwrap_err();
    assert!(
        matches!(directory, ConfigError::Unreadable { .. }),
        "{directory}"
    );
    let endless = Config::load("/dev/zero".as_ref()).unwrap_err();
    assert!(matches!(endless, ConfigError::TooLarge { .. }), "{endless}");
    if !std::path::Path::new(DEFAULT_PATH).exists() {
        let missing = Config::load(DEFAULT_PATH.as_ref()).unwrap_err();
        assert!(
            matches!(missing, ConfigError::DefaultFileMissing { .. }),
            "{missing}"
        );
    }
}

#[test]
fn warnings() {
    let cases = [
        (
            "version = 1\n[host]\nallow_direct_routing = true\n".to_owned(),
            "every host that has a route can reach every container port",
            3,
        ),
        (
            publish("", "host_ports = '1-60000'\ncontainer_ports = '1-60000'"),
            "1-60000 covers port 22: where sshd listens, it keeps it",
            8,
        ),
        (
            publish("", "override = true\nhost_ports = 22"),
            "22 takes port 22 away from the host's own sshd",
            9,
        ),
        (
            network("internal = true\nmasquerade_to = ['198.18.0.1']"),
            "198.18.0.1 has no effect: the network is internal",
            7,
        ),
        (
            network("masquerade = false\nmasquerade_to = ['198.18.0.1']"),
            "198.18.0.1 has no effect: `masquerade` is false",
            7,
        ),
        (
            network("mode = 'routed'\nmasquerade_to = ['198.18.0.1']"),
            "198.18.0.1 has no effect: mode \"routed\" does not masquerade",
            7,
        ),
        (
            network("masquerade_to = ['fd99::1']").replace(", \"fd00:201:1::/64\"", ""),
            "fd99::1 has no effect: the network has no IPv6 subnet",
            6,
        ),
        (
            network("internal = true\ntrusted_interfaces = ['wg0']"),
            "`trusted_interfaces` has no effect: an internal network publishes nothing",
            7,
        ),
        (
            "version = 1\n[host]\nuplinks = ['eth*']\ntrust = ['wg0']\n".to_owned(),
            "wg0 is not one of `uplinks`",
            4,
        ),
        (
            network("[[uplink]]\nname = 'br-web'"),
            "br-web is the bridge of network \"web\", never an uplink",
            7,
        ),
        (
            publish(
                "[nat]\nports = '61000-61999'",
                "host_ports = '60000-61499'\ncontainer_ports = '60000-61499'",
            ),
            "published ports leave 500 of 1000 ports for NAT",
            7,
        ),
    ];
    for (text, message, line) in cases {
        let (_, warnings) = Config::check(&text, "netd.toml").unwrap_or_else(|e| panic!("{e}"));
        let [found] = warnings.diagnostics() else {
            panic!("not one warning for\n{text}\n{warnings}")
        };
        assert_eq!(
            (found.message.as_str(), found.line),
            (message, line),
            "for\n{text}"
        );
        assert_eq!(found.severity, Severity::Warning);
        assert!(warnings.to_string().starts_with("warning: "));
    }
    // The controls: one attribute differs, and there is nothing to say.
    for text in [
        "version = 1\n[host]\nallow_direct_routing = false\n".to_owned(),
        publish("", "host_ports = '23-60000'\ncontainer_ports = '23-60000'"),
        publish("", "protocol = 'udp'\nhost_ports = 22"),
        publish("mode = 'routed'", "host_ports = 22"),
        network("masquerade_to = ['198.18.0.1']"),
        network("trusted_interfaces = ['wg0']"),
        "version = 1\n[host]\nuplinks = ['wg*']\ntrust = ['wg0']\n".to_owned(),
        publish("[nat]\nports = '61000-61999'", "host_ports = 443"),
    ] {
        let (_, warnings) = Config::check(&text, "netd.toml").unwrap();
        assert!(warnings.is_empty(), "{warnings}\nfor\n{text}");
    }
}
