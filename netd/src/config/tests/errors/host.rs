//! Errors of `[host]`, `[[uplink]]`, `[limits]` and `[nat]`.

use super::super::super::Config;
use super::one_error;

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
