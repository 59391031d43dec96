//! Errors of `[[publish]]`.

use super::super::super::Config;
use super::super::WEB;
use super::{error, one_error, publish};

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
