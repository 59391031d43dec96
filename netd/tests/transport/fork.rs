//! A standard host with two uplinks that both lead to one far address: who answers there tells by which uplink a
//! question left. The default route is by the first.

use std::net::IpAddr;

use netd::lab::{
    CLIENT, CLIENT_EXTRA, Connection, Expect, HOST, HOST_EXTRA, IpNet, Namespace, Outcome,
    ProbeOptions, Route, Rule, StandardHost, StandardHostOptions, WEB, ip, net, tcp_probe,
};

use crate::world::{LONG, Toml, World, at};

/// A priority before that of the main table.
pub const PRIORITY: u32 = 100;
/// A table whose default route is by the second uplink; beyond 255, what BPF_FIB_LOOKUP_TBID never had.
pub const SECOND_TABLE: u32 = 51_820;

/// An address family of the host: addresses, and a container that has some.
#[derive(Clone, Copy, Debug)]
pub struct Side {
    pub far: IpAddr,
    pub container: &'static str,
    pub bridge: &'static str,
    pub own: [IpAddr; 2],
    pub gateways: [IpAddr; 2],
    /// A port of the host that leads to the container's [`WEB`].
    pub published: u16,
}

/// Both families.
pub fn sides() -> [Side; 2] {
    [
        Side {
            far: ip("100.70.0.9"),
            container: "c0",
            bridge: "br-def",
            own: [HOST.into(), HOST_EXTRA.into()],
            gateways: [CLIENT.into(), CLIENT_EXTRA.into()],
            published: 8081,
        },
        Side {
            far: ip("fd70::9"),
            container: "n2a",
            bridge: "br-n2",
            own: [ip("fd99::1"), ip("fd98::1")],
            gateways: [ip("fd99::2"), ip("fd98::2")],
            published: 8085,
        },
    ]
}

/// The prefix of one address.
pub fn single(address: IpAddr) -> IpNet {
    let bits = if address.is_ipv4() { 32 } else { 128 };
    IpNet::new(address, bits).expect("a prefix")
}

impl Side {
    /// The default route by one of the uplinks.
    pub fn default_by(&self, uplink: usize) -> Route {
        Route::default_via(self.gateways[uplink])
    }

    /// A rule before the main table's.
    pub fn rule(&self, table: u32) -> Rule {
        self.rule_at(PRIORITY, table)
    }

    /// A rule with this priority.
    pub fn rule_at(&self, priority: u32, table: u32) -> Rule {
        if self.far.is_ipv4() {
            Rule::v4(priority, table)
        } else {
            Rule::v6(priority, table)
        }
    }

    /// The server at the far address saw this client: the container's question left by that uplink, under its address.
    pub fn is_by(&self, uplink: usize, outcome: &Outcome) -> bool {
        outcome.report().is_some_and(|report| {
            report.server == ["client", "extra"][uplink] && report.peer.ip() == self.own[uplink]
        })
    }

    /// The container's namespace.
    pub fn container<'a>(&self, world: &'a World) -> &'a Namespace {
        &world.host.container(self.container).namespace
    }

    /// A question of the container's to the far address.
    pub fn ask(&self, world: &World) -> Outcome {
        let options = ProbeOptions::default().timeout(LONG);
        tcp_probe(self.container(world), at(self.far, WEB), &options)
    }

    /// A connection of the container's to the far address, which goes by this uplink.
    pub fn connect(&self, world: &World, uplink: usize) -> Connection {
        let options = ProbeOptions::default().timeout(LONG);
        let mut flow = Connection::open(self.container(world), at(self.far, WEB), &options)
            .unwrap_or_else(|outcome| panic!("{}: {outcome}", self.far));
        let outcome = flow.exchange(100, LONG);
        assert!(self.is_by(uplink, &outcome), "{outcome}");
        flow
    }

    /// Notes whether a new flow leaves by this uplink.
    pub fn check(&self, world: &World, name: &str, uplink: usize) {
        let outcome = self.ask(world);
        world.check(
            &format!("{name}, {}", self.far),
            format!("by {}", self.own[uplink]),
            &outcome,
            self.is_by(uplink, &outcome),
        );
    }

    /// Notes whether nobody answers a new flow.
    pub fn check_refused(&self, world: &World, name: &str) {
        let options = ProbeOptions::default().timeout(std::time::Duration::from_millis(700));
        let outcome = tcp_probe(self.container(world), at(self.far, WEB), &options);
        world.check(
            &format!("{name}, {}", self.far),
            Expect::NoAnswer,
            &outcome,
            Expect::NoAnswer.matches(&outcome),
        );
    }
}

/// The world with the standard file, or what `toml` makes of it.
pub fn fork(toml: impl FnOnce(Toml) -> Toml, tx_offload: bool) -> World {
    let options = StandardHostOptions {
        extra_uplink: true,
        tx_offload,
        networks: &["def", "n2"],
        ..Default::default()
    };
    World::new(options, far_ends, toml)
}

fn far_ends(host: &StandardHost) {
    for side in sides() {
        for namespace in [&host.client, host.namespace("extra")] {
            namespace
                .add_address("lo", single(side.far))
                .expect("address");
        }
        let main = side.default_by(0);
        host.host.add_route(&main).expect("route");
        let second = side.default_by(1).table(SECOND_TABLE);
        host.host.add_route(&second).expect("route");
    }
    // A prefix of many far addresses, for both.
    for namespace in [&host.client, host.namespace("extra")] {
        let local = Route::to(net("100.71.0.0/24"))
            .device("lo")
            .table(255)
            .kind(netd::lab::RouteType::Local);
        namespace.add_route(&local).expect("route");
    }
}
