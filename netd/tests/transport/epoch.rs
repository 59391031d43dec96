//! Flows are told of a changed route, rule, address, link or neighbour within 10 ms, and of a storm of changes not
//! more often than they can bear.

use std::path::Path;
use std::time::{Duration, Instant};

use aya::maps::{Array, MapData};
use netd::lab::{Namespace, Route, Rule, StandardHostOptions, ip, net};
use netd_common::abi::{Config, VERSION, map};

use crate::world::{World, need_root};

/// What the issue demands.
const WITHIN: Duration = Duration::from_millis(10);
/// Of each kind.
const CHANGES: usize = 20;

/// The epoch of the host's data plane, read from the pinned map.
struct Epoch(Array<MapData, [u32; size_of::<Config>() / 4]>);

impl Epoch {
    fn open(pin_dir: &Path) -> Self {
        let path = pin_dir
            .join(format!("v{VERSION}"))
            .join("maps")
            .join(map::CONFIG);
        let data = MapData::from_pin(path).expect("the pinned map");
        let map = aya::maps::Map::from_map_data(data).expect("a map");
        Self(Array::try_from(map).expect("an array"))
    }

    /// Its first field.
    fn now(&self) -> u32 {
        const { assert!(std::mem::offset_of!(Config, epoch) == 0) };
        self.0.get(&0, 0).expect("an element")[0]
    }

    /// Waits until it has not changed for a while, so that there is a token for the next change and nothing of the
    /// last one is still to come.
    fn rest(&self) -> u32 {
        let (mut last, mut since) = (self.now(), Instant::now());
        while since.elapsed() < Duration::from_millis(160) {
            std::thread::sleep(Duration::from_millis(5));
            let now = self.now();
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
        last
    }

    /// How long until it is another.
    fn changed_from(&self, before: u32) -> Option<Duration> {
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(2) {
            if self.now() != before {
                return Some(begin.elapsed());
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        None
    }
}

fn world() -> World {
    World::standard(StandardHostOptions {
        networks: &["def"],
        ..Default::default()
    })
}

#[test]
fn every_kind_of_change_is_told_within_10_ms() {
    need_root!();
    let world = world();
    let host = &world.host.host;
    let epoch = Epoch::open(world.daemon.pin_dir());
    let neighbour = ip("198.18.0.77");
    let mac = |last: usize| [2, 0, 0, 0, 0x77, last as u8];
    host.set_neighbour("up0", neighbour, mac(0)).expect("set");
    host.add_route(&by(0)).expect("route");

    let other = |number: usize| net(&format!("198.18.0.{}/24", 100 + number));
    let other6 = |number: usize| net(&format!("fd99::{}/64", 100 + number));
    type Change<'a> = Box<dyn Fn(usize) + 'a>;
    let kinds: [(&str, Change<'_>); 9] = [
        (
            "ip route replace",
            Box::new(|n| host.replace_route(&by(n + 1)).expect("route")),
        ),
        (
            "ip -6 route add",
            Box::new(|n| {
                let to = net(&format!("fd71:{n}::/64"));
                let route = Route::to(to).via(ip("fd99::2"));
                host.add_route(&route).expect("route");
            }),
        ),
        (
            "ip rule add",
            Box::new(|n| host.add_rule(&rule(n)).expect("rule")),
        ),
        (
            "ip rule delete",
            Box::new(|n| host.delete_rule(&rule(n)).expect("rule")),
        ),
        (
            "ip address add",
            Box::new(|n| host.add_address("up0", other(n)).expect("address")),
        ),
        (
            "ip address delete",
            Box::new(|n| host.delete_address("up0", other(n)).expect("address")),
        ),
        (
            "ip -6 address add",
            Box::new(|n| host.add_address("up0", other6(n)).expect("address")),
        ),
        (
            "ip link set mtu",
            Box::new(|n| host.set_mtu("up0", 1400 + n as u32).expect("MTU")),
        ),
        (
            "ip neighbour replace lladdr",
            Box::new(|n| {
                host.set_neighbour("up0", neighbour, mac(n + 1))
                    .expect("neighbour");
            }),
        ),
    ];
    for (name, change) in kinds {
        let mut took = Vec::new();
        for number in 0..CHANGES {
            let before = epoch.rest();
            change(number);
            // From the kernel's acknowledgement on.
            let Some(told) = epoch.changed_from(before) else {
                panic!("{name} {number}: nobody was told\n{}", world.daemon.log());
            };
            took.push(told);
        }
        took.sort();
        let (median, most) = (took[took.len() / 2], took[took.len() - 1]);
        println!("{name}: median {median:?}, at most {most:?}");
        world.check(
            &format!("{name}: median of {CHANGES}"),
            format!("below {WITHIN:?}"),
            format!("{median:?}, at most {most:?}"),
            median < WITHIN,
        );
    }

    // A neighbour that was merely found, and is not on anyone's way, tells nobody: scans would.
    let before = epoch.rest();
    host.set_neighbour("up0", ip("198.18.0.78"), mac(1))
        .expect("set");
    std::thread::sleep(Duration::from_millis(300));
    world.check(
        "a new neighbour",
        before,
        epoch.now(),
        epoch.now() == before,
    );
    world.end();
}

/// One of two ways to a prefix.
fn by(number: usize) -> Route {
    let gateway = ["198.18.0.2", "198.18.0.3"][number % 2];
    Route::to(net("100.72.0.0/24")).via(ip(gateway))
}

fn rule(number: usize) -> Rule {
    Rule::v4(200 + number as u32, 254).from(net("100.73.0.0/24"))
}

#[test]
fn a_storm_of_routes_is_told_a_bounded_number_of_times() {
    need_root!();
    let world = world();
    let host: &Namespace = &world.host.host;
    let epoch = Epoch::open(world.daemon.pin_dir());
    host.add_route(&by(0)).expect("route");
    let before = epoch.rest();
    // One batch of iproute2 instead of a thousand sockets: a thousand changes in well under a second.
    let batch: String = (1..=1000)
        .map(|number| {
            let gateway = 2 + number % 2;
            format!("route replace 100.72.0.0/24 via 198.18.0.{gateway}\n")
        })
        .collect();
    let file = world.daemon.directory().join("storm");
    std::fs::write(&file, batch).expect("write");
    let begin = Instant::now();
    let status = host
        .command("ip")
        .arg("-batch")
        .arg(&file)
        .status()
        .expect("ip");
    assert!(status.success(), "{status}");
    let storm = begin.elapsed();
    let last = epoch.now();
    host.replace_route(&by(0)).expect("route");
    let told = epoch.changed_from(last);
    let bumps = epoch.rest().wrapping_sub(before);
    println!("{bumps} times in {storm:?}; the last change was told after {told:?}");
    // Ten at once, ten a second, the one for the last change, and what rounding may add.
    let most = 12 + (storm.as_secs_f64() * 10.0).ceil() as u32;
    world.check(
        &format!("1,000 changes in {storm:?}"),
        format!("at least once, at most {most} times"),
        bumps,
        (1..=most).contains(&bumps),
    );
    world.check(
        "the last change",
        "told within 200 ms",
        format!("{told:?}"),
        told.is_some_and(|told| told < Duration::from_millis(200)),
    );
    world.end();
}
