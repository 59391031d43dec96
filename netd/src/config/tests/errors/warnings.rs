//! Valid files that may not mean what was wanted.

use super::super::super::{Config, Severity};
use super::{network, publish};

#[test]
fn every_warning_and_its_control() {
    let cases = [
        (
            "version = 1\n[host]\nallow_direct_routing = true\n".to_owned(),
            "every host that has a route can reach every published container port",
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
