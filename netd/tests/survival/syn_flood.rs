//! Acceptance 3: a SYN flood against a published port, and a thousand connections that do not notice.

use std::mem::offset_of;
use std::time::{Duration, Instant};

use aya::maps::{HashMap, Map, MapData};
use netd::lab::{CLIENT, HOST, Route, StandardHostOptions, WEB, ip, net};
use netd_common::abi::{Flow, Tuple, V4Addr};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::load::{Connections, Live, Stop, syn_flood};
use crate::programs::need_root;
use crate::world::{World, at};

/// The port that is flooded: c0's.
const FLOODED: u16 = 8081;
/// Another container's.
const OTHER: u16 = 8083;
/// Between two legitimate connections to each port: a thousand new ones per second. No more, because the flood, both ends
/// of everything else and netd share the machine: as many as it can would measure who gets the processors.
const INTERVAL: Duration = Duration::from_millis(2);
const SYNS: u64 = 1_000_000;
const FLOOD: Duration = Duration::from_secs(10);

#[test]
fn a_syn_flood_hits_embryos_only() {
    need_root!();
    // Both ends of a thousand connections.
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(soft.max(8192)), hard).expect("limit");

    let world = World::new(
        StandardHostOptions {
            networks: &["def", "n2"],
            ..StandardHostOptions::default()
        },
        |_| String::new(),
    );
    let host = &world.host;
    let pool = Route::to(net("198.18.128.0/17")).via(ip("198.18.0.2"));
    host.host.add_route(&pool).expect("a route");
    world.daemon.settle().expect("nothing to do");

    // Seconds instead of half a minute until the last of them has gone, at the end.
    let flooded = &world.container("c0").namespace;
    flooded
        .set_sysctl("net/ipv4/tcp_synack_retries", 1)
        .expect("sysctl");

    let stop = Stop::default();
    let (client, c0b) = (&host.client, &world.container("c0b").namespace);
    let live = [
        // In by the flooded port, in by another, and out.
        Live::open(client, at(HOST, FLOODED), 400, stop.clone()),
        Live::open(client, at(HOST, OTHER), 200, stop.clone()),
        Live::open(c0b, at(CLIENT, WEB), 400, stop.clone()),
    ];
    let rate = |during: &dyn Fn()| {
        let stop = Stop::default();
        let ports = [(FLOODED, "c0"), (OTHER, "n2a")];
        let openers = ports.map(|(port, server)| {
            let to = vec![(at(HOST, port), server.to_owned())];
            Connections::start(client, to, INTERVAL, stop.clone())
        });
        during();
        stop.now();
        openers.map(Connections::finish)
    };
    let before = rate(&|| std::thread::sleep(Duration::from_secs(3)));
    let (maps, rss) = (world.map_memory(), world.daemon_memory());
    let during = rate(&|| {
        let took = syn_flood(host, (HOST, FLOODED), SYNS, FLOOD);
        eprintln!("{SYNS} SYNs in {took:?}");
        assert!(took < FLOOD + FLOOD / 5, "the flood was no flood: {took:?}");
    });
    stop.now();

    let mut wrong = Vec::new();
    for live in live.map(Live::finish) {
        eprintln!(
            "{} live connections, {} answers in {} rounds, the slowest {:?}",
            live.connections, live.answers, live.rounds, live.slowest
        );
        if live.rounds < 10 || !live.failed.is_empty() {
            let some = &live.failed[..live.failed.len().min(3)];
            wrong.push(format!("{} live connections: {some:?}", live.failed.len()));
        }
    }
    for ((port, before), during) in [FLOODED, OTHER].iter().zip(&before).zip(&during) {
        eprintln!(
            "new connections to {port}: {:.0} per second before, {:.0} during, {} failed, the slowest {:?}",
            before.rate(),
            during.rate(),
            during.failed.len(),
            during.slowest
        );
        if during.rate() < before.rate() / 2.0 {
            wrong.push(format!("port {port}: {:?}", during.failed.first()));
        }
    }
    // Memory is what it was: no table grows, and the daemon holds no flows.
    assert_eq!(world.map_memory(), maps, "the maps grew");
    let grown = world.daemon_memory().saturating_sub(rss);
    eprintln!(
        "maps {} MiB, daemon {} MiB and {} KiB more",
        maps >> 20,
        rss >> 20,
        grown >> 10
    );
    assert!(grown < 16 << 20, "the daemon grew by {grown} bytes");

    let embryos = || {
        let usage = &world.json(&["status"])["data_plane"]["flows_v4"];
        (usage["embryos"].as_u64(), usage["embryo_limit"].as_u64())
    };
    let (left, limit) = embryos();
    eprintln!("{left:?} embryos of {limit:?}, {:?}", world.drops());
    assert!(left > Some(1000) && left <= limit, "{left:?} of {limit:?}");
    assert!(
        wrong.is_empty(),
        "{}\n{:?}",
        wrong.join("\n"),
        world.drops()
    );

    // They expire. Nobody waits four minutes here: the embryos are made older than that. More than once: the servers still
    // send SYN-ACKs again, and those are packets of their flows.
    let began = Instant::now();
    while embryos().0 > Some(0) {
        let left = embryos().0;
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "{left:?} are left"
        );
        age_embryos(&world, 300);
        std::thread::sleep(Duration::from_secs(2));
    }
    eprintln!("no embryo is left after {:?}", began.elapsed());
    world.end();
}

/// Sets back when the embryos of IPv4 had their last packet.
fn age_embryos(world: &World, seconds: u32) {
    const KEY: usize = size_of::<Tuple<V4Addr>>();
    const VALUE: usize = size_of::<Flow<V4Addr>>();
    const AT: usize = offset_of!(Flow<V4Addr>, last_seen);
    let data = MapData::from_pin(world.pins().join("maps/EMBRYOS_V4")).expect("the map");
    let map = Map::from_map_data(data).expect("a map");
    let mut map: HashMap<_, [u8; KEY], [u8; VALUE]> = map.try_into().expect("a hash map");
    let keys: Vec<_> = map.keys().filter_map(Result::ok).collect();
    for key in keys {
        // It may leave meanwhile.
        let Ok(mut value) = map.get(&key, 0) else {
            continue;
        };
        let seen: &mut [u8] = &mut value[AT..AT + 4];
        let earlier =
            u32::from_ne_bytes([seen[0], seen[1], seen[2], seen[3]]).wrapping_sub(seconds);
        seen.copy_from_slice(&earlier.to_ne_bytes());
        // BPF_EXIST.
        let _ = map.insert(key, value, 2);
    }
}
