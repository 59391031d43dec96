//! Policy rules of the test host: by protocol and ports, and by service class. What they match leaves by the second
//! uplink, wherever it goes.

use anyhow::Result;
use netd::lab::{Namespace, Route, Rule, ip};
use netd_common::model::frame::Frame;
use netd_common::tables::RouteQuery;
use netd_common::wire::{Address, proto};

use crate::random::Random;

const TABLE: u32 = 300;
const NAMES: u16 = 53;
/// Of the host: replies leave from it, not from the container's.
const PUBLISHED: u16 = 8085;
/// A class of which Linux 6.1 looks at every bit that is set.
const CLASS: u8 = 0x10;

/// Adds them, and the table that they lead to.
pub fn add(namespace: &Namespace) -> Result<()> {
    for (gateway, source) in [("198.18.1.254", "198.18.1.1"), ("fd99:1::fe", "fd99:1::1")] {
        let gateway = ip(gateway);
        let route = Route::default_via(gateway)
            .device("up1")
            .source(ip(source))
            .table(TABLE);
        namespace.add_route(&route)?;
        let rule = |priority| {
            if gateway.is_ipv4() {
                Rule::v4(priority, TABLE)
            } else {
                Rule::v6(priority, TABLE)
            }
        };
        let udp = rule(100).protocol(proto::UDP).destination_port(NAMES);
        namespace.add_rule(&udp)?;
        let tcp = rule(101).protocol(proto::TCP).source_port(PUBLISHED);
        namespace.add_rule(&tcp)?;
        namespace.add_rule(&rule(102).tos(CLASS))?;
    }
    Ok(())
}

/// Do they match? Of the class IPv4 rules see the old TOS bits only (fib_dscp_masked_match()).
pub fn lead_elsewhere<A>(query: &RouteQuery<A>) -> bool {
    let seen = if size_of::<A>() == 4 { 0x1c } else { 0xfc };
    query.proto == proto::UDP && query.dport == NAMES.to_be_bytes()
        || query.proto == proto::TCP && query.sport == PUBLISHED.to_be_bytes()
        || query.tos & seen == CLASS
}

/// With a service class, now and then; its low two bits are congestion's.
pub fn dress<A: Address>(random: &mut Random, frame: Frame<A>) -> Frame<A> {
    if random.chance(15) {
        let class = *random.pick(&[CLASS, CLASS | 3, 0xb8, 2]);
        return frame.tos(class);
    }
    frame
}
