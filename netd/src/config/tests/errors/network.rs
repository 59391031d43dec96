//! Errors of `[[network]]`.

use super::super::WEB;
use super::{network, one_error};

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
