//! Rule sets of IPv4, said of IPv6.

use super::firewall::RuleSet;

/// What a word of iptables becomes for ip6tables: other names of the same, and the addresses of the standard host's
/// network with IPv6.
const WORDS: [(&str, &str); 9] = [
    ("icmp", "ipv6-icmp"),
    ("--icmp-type", "--icmpv6-type"),
    ("8", "128"),
    ("icmp-port-unreachable", "icmp6-port-unreachable"),
    ("icmp-host-prohibited", "icmp6-adm-prohibited"),
    ("127.0.0.0/8", "::1/128"),
    ("10.201.2.0/24", "fd00:201:2::/64"),
    ("10.201.2.2/32", "fd00:201:2::2/128"),
    ("10.201.2.3/32", "fd00:201:2::3/128"),
];

impl RuleSet {
    /// The same rules for ip6tables, in its words. Rules with an address that has no counterpart on the standard host
    /// are left out. Neighbour discovery is let in, as every program does that programs ip6tables.
    pub fn ipv6_twin(&self) -> Self {
        let mut text = String::new();
        let mut filter = false;
        for line in self.text().lines().filter(|line| !line.starts_with('#')) {
            let line: Vec<&str> = line.split(' ').map(word).collect();
            if line.iter().any(|word| has_ipv4(word)) {
                continue;
            }
            let line = line.join(" ");
            filter = if line.starts_with('*') {
                line == "*filter"
            } else if filter && line.starts_with('-') {
                text += "-A INPUT -p ipv6-icmp -j ACCEPT\n";
                false
            } else {
                filter
            };
            text += &line;
            text.push('\n');
        }
        Self::new(self.name(), &text).ipv6()
    }
}

fn word(word: &str) -> &str {
    let twin = WORDS.iter().find(|(ipv4, _)| *ipv4 == word);
    twin.map_or(word, |(_, ipv6)| ipv6)
}

/// Whether a word is an IPv4 address, with or without a prefix length or a port.
fn has_ipv4(word: &str) -> bool {
    let address = word.split(['/', ':']).next().unwrap_or_default();
    address.parse::<std::net::Ipv4Addr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_without_a_counterpart_are_left_out() {
        let rules = RuleSet::new(
            "x",
            "*raw\n-A PREROUTING -d 10.200.0.2/32 ! -i docker0 -j DROP\n-A PREROUTING -d 10.201.2.2/32 ! -i br-n2 -j DROP\nCOMMIT\n\
             *filter\n:INPUT DROP [0:0]\n-A INPUT -p icmp --icmp-type 8 -j ACCEPT\n-A INPUT -j REJECT --reject-with icmp-port-unreachable\nCOMMIT\n",
        );
        assert_eq!(
            rules.ipv6_twin().text(),
            "*raw\n-A PREROUTING -d fd00:201:2::2/128 ! -i br-n2 -j DROP\nCOMMIT\n\
             *filter\n:INPUT DROP [0:0]\n-A INPUT -p ipv6-icmp -j ACCEPT\n-A INPUT -p ipv6-icmp --icmpv6-type 128 -j ACCEPT\n\
             -A INPUT -j REJECT --reject-with icmp6-port-unreachable\nCOMMIT\n"
        );
    }
}
