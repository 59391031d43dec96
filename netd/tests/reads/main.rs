//! The verbs that read, against maps of the kernel that a test has filled. Needs root.

mod fixture;

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver},
    time::{Duration, Instant},
};

use aya::{
    EbpfLoader,
    maps::HashMap,
    programs::{LinkOrder, SchedClassifier, TcAttachType, links::FdLink, tc::TcAttachOptions},
};
use fixture::{Dropper, Fixture, fixture};
use netd::{
    cli::flows,
    dataplane::{AttachMode, OBJECT},
    desired::port_prefixes,
    host::monotonic_nanoseconds,
    run_state::{Fallbacks, RunState, SourceAddress},
    state::{State, attachment::attachments, flow},
};
use netd_common::{
    abi::{
        AnyTuple, Backend, Config, DROP_SLOT_SECONDS, DROP_SLOTS, DropCount, DropEvent, DropKey,
        DropSlot, Endpoint, EndpointAddress, Flow, Network, PortPrefix, Subnet, Tuple, V4Addr,
        V6Addr, Verdicts, backend_flag, config_flag, endpoint_flag, flow_flag, flow_kind, hook,
        map, network_flag, port_prefix_base,
    },
    conntrack,
    drop::DropReason,
};
use nix::{
    sched::{CloneFlags, unshare},
    time::{ClockId, clock_gettime},
};
use serde_json::json;

/// What a follower must show within.
const PATIENCE: Duration = Duration::from_secs(10);

const CLIENT: V4Addr = V4Addr([198, 18, 0, 9]);
const HOST: V4Addr = V4Addr([198, 18, 0, 1]);
const CONTAINER: V4Addr = V4Addr([10, 201, 1, 2]);
/// ifindexes that no machine has: names are not the subject.
const VETH: u32 = 1_000_011;
const BRIDGE: u32 = 1_000_001;

fn now() -> u32 {
    (monotonic_nanoseconds() / 1_000_000_000) as u32
}

/// One network, one container with two addresses, publishes, flows and drops.
fn filled() -> Option<Fixture> {
    let f = fixture(&[])?;
    f.set(
        map::CONFIG,
        0,
        Config {
            epoch: 1,
            flags: config_flag::ALLOW_DIRECT_ROUTING,
            nat_first: 16384,
            nat_last: 32767,
            synced_at: now(),
            ..Config::default()
        },
    );
    f.set(
        map::NETWORKS,
        1,
        Network {
            bridge: BRIDGE,
            flags: network_flag::ACTIVE | network_flag::MASQUERADE_V4 | network_flag::INTERNAL,
            gateway_v4: [10, 201, 1, 1],
            ..Network::default()
        },
    );
    f.put_prefix(
        map::SUBNETS_V4,
        24,
        V4Addr([10, 201, 1, 0]),
        Subnet {
            network: 1,
            reserved: 0,
        },
    );
    f.put(
        map::ENDPOINTS,
        [(
            VETH,
            Endpoint {
                mac: [2, 0x42, 10, 201, 1, 2],
                network: 1,
                mtu: 1500,
                flags: endpoint_flag::PEER,
            },
        )],
    );
    let owner = EndpointAddress {
        ifindex: VETH,
        network: 1,
        reserved: 0,
    };
    let mut v6 = [0; 16];
    (v6[0], v6[15]) = (0xfd, 2);
    f.put(map::ADDRS_V4, [(CONTAINER, owner)]);
    f.put(map::ADDRS_V6, [(V6Addr(v6), owner)]);
    publish(&f, 8000, 8099, CONTAINER, 80, 0);
    publish(
        &f,
        9000,
        9000,
        V4Addr([10, 201, 1, 77]),
        90,
        backend_flag::OVERRIDE,
    );
    put_flows(&f);
    put_drops(&f);
    f.put_verdicts(
        hook::FROM_UPLINK,
        Verdicts {
            passed: 1,
            forwarded: 20,
            decided: 3,
            dropped: 4,
        },
    );
    Some(f)
}

fn publish(f: &Fixture, first: u16, last: u16, addr: V4Addr, container: u16, flags: u16) {
    for (port, bits) in port_prefixes(first, last) {
        f.put_prefix(
            map::PUBLISH_V4,
            port_prefix_base::<V4Addr>() + bits,
            PortPrefix {
                proto: 6,
                reserved: [0; 3],
                addr: V4Addr::default(),
                port: port.to_be_bytes(),
                tail: [0; 2],
            },
            Backend {
                addr,
                host_first: first.to_be_bytes(),
                container_first: container.to_be_bytes(),
                network: 1,
                flags,
            },
        );
    }
}

fn tuple(src: V4Addr, sport: u16, dst: V4Addr, dport: u16, proto: u8) -> Tuple<V4Addr> {
    Tuple {
        src,
        dst,
        sport: sport.to_be_bytes(),
        dport: dport.to_be_bytes(),
        proto,
        reserved: [0; 3],
    }
}

fn half(
    to: Tuple<V4Addr>,
    flags: u16,
    state: conntrack::State,
    kind: u8,
    packets: u64,
) -> Flow<V4Addr> {
    Flow {
        packets,
        bytes: packets * 1000,
        last_seen: now() - 5,
        generation: 7,
        owner: VETH,
        flags,
        state: state as u8,
        kind,
        src: to.src,
        dst: to.dst,
        sport: to.sport,
        dport: to.dport,
        ..Flow::default()
    }
}

/// An established published connection, and a masqueraded datagram without a reply.
fn put_flows(f: &Fixture) {
    use conntrack::State::{Established, UdpNew};
    let inbound = tuple(CLIENT, 40000, HOST, 8000, 6);
    let inside = tuple(CLIENT, 40000, CONTAINER, 80, 6);
    f.put_flow(
        map::FLOWS_V4,
        (
            inbound,
            half(
                inside,
                flow_flag::REWRITE_DST,
                Established,
                flow_kind::PUBLISH,
                30,
            ),
        ),
        half(
            inbound.reversed(),
            flow_flag::REPLY,
            Established,
            flow_kind::PUBLISH,
            20,
        ),
    );
    let outbound = tuple(CONTAINER, 5353, CLIENT, 53, 17);
    let outside = tuple(HOST, 20000, CLIENT, 53, 17);
    f.put_flow(
        map::EMBRYOS_V4,
        (
            outbound,
            half(
                outside,
                flow_flag::REWRITE_SRC,
                UdpNew,
                flow_kind::MASQUERADE,
                1,
            ),
        ),
        half(
            outbound.reversed(),
            flow_flag::REPLY,
            UdpNew,
            flow_kind::MASQUERADE,
            0,
        ),
    );
}

/// Five isolation drops of the container on two CPUs, two of them in the last minute.
fn put_drops(f: &Fixture) {
    let now = now();
    let drops = |last_seen: u32, count: u32, dport: u16| {
        let mut last = AnyTuple {
            family: 4,
            proto: 6,
            dport: dport.to_be_bytes(),
            ..AnyTuple::default()
        };
        last.src[..4].copy_from_slice(&CONTAINER.0);
        last.dst[..4].copy_from_slice(&[10, 201, 2, 2]);
        let mut slots = [DropSlot::default(); DROP_SLOTS];
        let number = last_seen / DROP_SLOT_SECONDS;
        slots[number as usize % DROP_SLOTS] = DropSlot { number, count };
        DropCount {
            total: count.into(),
            last_seen,
            reserved: 0,
            last,
            slots,
        }
    };
    let key = DropKey {
        reason: DropReason::Isolation as u16,
        hook: hook::FROM_ENDPOINT,
        family: 4,
        ifindex: VETH,
        network: 1,
        reserved: 0,
    };
    f.put_drops(key, drops(now - 300, 3, 81), drops(now - 1, 2, 82));
}

#[test]
fn nothing_loaded_is_exit_3_for_every_verb() {
    let f = Fixture::empty();
    for verb in ["status", "ports", "flows", "drops"] {
        for json in [&[verb][..], &[verb, "--json"]] {
            let (code, stdout, stderr) = f.netd(json);
            assert_eq!((code, stdout.as_str()), (3, ""), "{verb}: {stderr}");
            assert!(stderr.contains("netd run"), "{verb}: {stderr}");
        }
    }
    assert!(!f.pin_dir.exists(), "a read must not make anything");
}

#[test]
fn a_map_of_another_shape_is_not_read() {
    let Some(f) = fixture(&[]) else { return };
    assert_eq!(f.netd(&["ports"]).0, 0, "the control");
    let pin = f.maps().join(map::TRUSTED);
    fs::remove_file(&pin).unwrap();
    let (code, _, stderr) = f.netd(&["ports"]);
    assert_eq!(code, 3, "{stderr}");
    assert!(
        stderr.contains("TRUSTED") && stderr.contains("missing"),
        "{stderr}"
    );

    let other = HashMap::<_, u32, u64>::create(16, 0).unwrap();
    other.pin(&pin).unwrap();
    let (code, stdout, stderr) = f.netd(&["ports"]);
    assert_eq!((code, stdout.as_str()), (3, ""), "{stderr}");
    for part in ["TRUSTED", "4 bytes instead of 8", "netd unload --force"] {
        assert!(stderr.contains(part), "{part}: {stderr}");
    }
}

#[test]
fn ports_are_folded_and_resolved() {
    let Some(f) = filled() else { return };
    let ports = f.json(&["ports"]);
    assert_eq!(ports["schema"], 1);
    assert_eq!(ports["total"], 2);
    assert_eq!(
        ports["ports"][0]["host_ports"],
        json!({ "first": 8000, "last": 8099 })
    );
    assert_eq!(
        ports["ports"][0]["container_ports"],
        json!({ "first": 80, "last": 179 })
    );
    assert_eq!(ports["ports"][0]["container"], "10.201.1.2");
    assert_eq!(ports["ports"][0]["backend_present"], true);
    assert_eq!(
        ports["ports"][1]["host_ports"],
        json!({ "first": 9000, "last": 9000 })
    );
    assert_eq!(ports["ports"][1]["backend_present"], false);
    assert_eq!(ports["ports"][1]["override"], true);
    let (code, table, _) = f.netd(&["ports"]);
    assert_eq!(code, 0);
    assert!(
        table.contains("0.0.0.0:8000-8099") && table.contains("10.201.1.2:80-179"),
        "{table}"
    );
}

#[test]
fn flows_of_both_tables_are_joined_and_filtered() {
    let Some(f) = filled() else { return };
    let all = f.json(&["flows"]);
    assert_eq!((&all["total"], &all["shown"]), (&json!(2), &json!(2)));
    let tcp = &all["flows"][0];
    assert_eq!(tcp["kind"], "publish");
    assert_eq!(tcp["state"], "established");
    assert_eq!(tcp["embryo"], false);
    assert_eq!(tcp["sent"], json!({ "packets": 30, "bytes": 30_000 }));
    assert_eq!(tcp["received"], json!({ "packets": 20, "bytes": 20_000 }));
    assert_eq!(tcp["translated"]["dst"], "10.201.1.2");
    assert_eq!(tcp["translated"]["dst_port"], 80);
    assert_eq!(
        tcp["container"]["addresses"],
        json!(["10.201.1.2", "fd00::2"])
    );
    assert_eq!(tcp["network"]["id"], 1);
    assert_eq!(tcp["missing"], json!(null));
    assert!(tcp["idle_seconds"].as_u64().unwrap() >= 5);
    assert!(tcp["last_seen"].as_str().unwrap().ends_with('Z'));
    assert_eq!(all["flows"][1]["embryo"], true);
    assert_eq!(all["flows"][1]["translated"]["src_port"], 20000);

    for (filter, kinds) in [
        (
            &["--container", "fd00::2"][..],
            &["publish", "masquerade"][..],
        ),
        (&["--protocol", "udp"], &["masquerade"]),
        (&["--state", "embryo"], &["masquerade"]),
        (&["--state", "established", "--port", "80"], &["publish"]),
        (&["--state", "established", "--port", "53"], &[]),
        (
            &["--address", "198.18.0.0/24", "--network", "1"],
            &["publish", "masquerade"],
        ),
        (&["--limit", "1"], &["publish"]),
    ] {
        let args: Vec<&str> = ["flows"]
            .into_iter()
            .chain(filter.iter().copied())
            .collect();
        let found = f.json(&args);
        let found: Vec<&str> = found["flows"]
            .as_array()
            .unwrap()
            .iter()
            .map(|v| v["kind"].as_str().unwrap())
            .collect();
        assert_eq!(found, kinds, "{filter:?}");
    }
    let (_, table, _) = f.netd(&["flows"]);
    assert!(
        table.contains("198.18.0.9:40000 → 198.18.0.1:8000"),
        "{table}"
    );
    assert!(table.contains("30 pkt 29.2 KiB"), "{table}");
}

#[test]
fn bad_arguments_are_exit_2() {
    let Some(f) = filled() else { return };
    for (args, part) in [
        (
            &["flows", "--network", "nope"][..],
            "there is no such network",
        ),
        (&["flows", "--container", "nope"], "neither an address"),
        (&["flows", "--address", "10.201"], "prefix"),
        (&["flows", "--protocol", "http"], "tcp, udp"),
        (&["flows", "--state", "open"], "established"),
        (&["flows", "--port", "65536"], "65536"),
        (&["drops", "--last", "11m"], "10 minutes"),
        (&["drops", "--last", "soon"], "30s"),
    ] {
        let (code, stdout, stderr) = f.netd(args);
        assert_eq!((code, stdout.as_str()), (2, ""), "{args:?}: {stderr}");
        assert!(stderr.contains(part), "{args:?}: {stderr}");
    }
    assert_eq!(f.netd(&["drops", "--last", "10m"]).0, 0, "the control");
}

#[test]
fn drops_are_summed_over_cpus_and_windows() {
    let Some(f) = filled() else { return };
    let all = f.json(&["drops"]);
    assert_eq!((&all["schema"], &all["total"]), (&json!(1), &json!(5)));
    let drop = &all["drops"][0];
    assert_eq!(drop["reason"], "isolation");
    assert_eq!(drop["direction"], "from-container");
    assert_eq!(drop["container"]["addresses"][0], "10.201.1.2");
    assert_eq!(
        drop["last"]["dst_port"], 82,
        "the newest packet of all CPUs"
    );
    assert_eq!(f.json(&["drops", "--last", "1m"])["total"], 2);
    assert_eq!(f.json(&["drops", "--last", "10m"])["total"], 5);
    let (code, table, _) = f.netd(&["drops", "--explain"]);
    assert_eq!(code, 0);
    assert!(table.contains(DropReason::Isolation.explain()), "{table}");
}

#[test]
fn status_tells_a_running_daemon_from_a_stopped_one() {
    let Some(f) = filled() else { return };
    let files = f.run_files();
    fs::create_dir_all(files.lock.parent().unwrap()).unwrap();
    let mut run = RunState {
        schema: 1,
        version: "0.1.0".into(),
        pid: std::process::id(),
        started: "2026-11-21T10:00:00Z".parse().unwrap(),
        stopped_at: None,
        mode: "replace".into(),
        config: "/etc/netd/netd.toml".into(),
        last_good: false,
        synced_at: None,
        fallbacks: Fallbacks {
            attach: AttachMode::Tcx,
            source_address: SourceAddress::FibLookup,
            host_access: true,
        },
        alarm: None,
        scarce_ports: Vec::new(),
        warnings: vec![],
        networks: serde_json::from_value(json!({ "web": 1 })).unwrap(),
        sysctls: Default::default(),
        reserved_ports: None,
        qdiscs: Default::default(),
        kernel_nat: Default::default(),
    };
    run.save(&files.state).unwrap();
    fs::write(&files.lock, format!("{}\n", std::process::id())).unwrap();
    let lock = File::open(&files.lock).unwrap();
    lock.lock().unwrap();

    let (code, page, stderr) = f.netd(&["status"]);
    assert_eq!(code, 0, "{page}{stderr}");
    assert!(
        page.contains("running since 2026-11-21T10:00:00Z"),
        "{page}"
    );
    let status = f.json(&["status"]);
    assert_eq!(status["healthy"], true);
    assert_eq!(status["daemon"]["pid"], std::process::id());
    let plane = &status["data_plane"];
    assert_eq!(plane["mode"], "replace");
    assert_eq!(plane["allow_direct_routing"], true);
    assert_eq!(plane["networks"][0]["name"], "web");
    assert_eq!(plane["networks"][0]["internal"], true);
    assert_eq!(plane["networks"][0]["subnets"], json!(["10.201.1.0/24"]));
    assert_eq!(
        (&plane["endpoints"], &plane["publishes"]),
        (&json!(1), &json!(2))
    );
    let nothing = json!({
        "expired": 0, "evicted_embryo": 0, "evicted_closing": 0, "evicted_idle": 0,
        "overflowed": 0, "refused_full": 0, "refused_share": 0, "port_reused": 0,
    });
    assert_eq!(
        plane["flows_v4"],
        json!({ "flows": 1, "limit": 512, "embryos": 1, "embryo_limit": 128, "events": nothing })
    );
    assert_eq!(plane["drops"], 5);
    let uplink = plane["verdicts"]
        .as_array()
        .unwrap()
        .iter()
        .find(|v| v["hook"] == "from_uplink");
    assert_eq!(uplink.unwrap()["forwarded"], 40, "summed over CPUs");

    drop(lock);
    run.stopped_at = Some("2026-11-21T11:00:00Z".parse().unwrap());
    run.save(&files.state).unwrap();
    let (code, page, _) = f.netd(&["status"]);
    assert_eq!(code, 1);
    assert!(
        page.contains("stopped since 2026-11-21T11:00:00Z"),
        "{page}"
    );
    let status = f.json(&["status"]);
    assert_eq!(status["healthy"], false);
    assert_eq!(status["daemon"]["running"], false);
    assert_eq!(
        status["data_plane"]["endpoints"], 1,
        "what is enforced is shown all the same"
    );
}

#[test]
fn attachments_are_read_from_the_links() {
    let Some(f) = fixture(&[]) else { return };
    // A namespace of this thread alone: names and links are looked up from within it.
    std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        ip("link add ve0 type veth peer name ve1");
        fs::create_dir_all(f.links()).unwrap();
        let mut ebpf = EbpfLoader::new()
            .map_max_entries(map::FLOWS_V4, 64)
            .load(OBJECT)
            .unwrap();
        let program: &mut SchedClassifier =
            ebpf.program_mut("from_uplink").unwrap().try_into().unwrap();
        program.load().unwrap();
        let order = TcAttachOptions::TcxOrder(LinkOrder::default());
        let Ok(id) = program.attach_with_options("ve0", TcAttachType::Ingress, order) else {
            eprintln!("skipped: this kernel has no tcx (6.6)");
            return;
        };
        let link = FdLink::try_from(program.take_link(id).unwrap()).unwrap();
        let ifindex = nix::net::if_::if_nametoindex("ve0").unwrap();
        drop(
            link.pin(f.links().join(format!("from_uplink-{ifindex}")))
                .unwrap(),
        );

        let state = State::open(&f.pin_dir).unwrap();
        let found = attachments(&state, AttachMode::Tcx).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].interface.as_deref(), Some("ve0"));
        assert_eq!((found[0].hook, found[0].attached), ("from_uplink", true));

        ip("link del ve0");
        let state = State::open(&f.pin_dir).unwrap();
        let found = attachments(&state, AttachMode::Tcx).unwrap();
        assert_eq!(
            (found.len(), found[0].attached),
            (1, false),
            "the pin outlives its device"
        );
    })
    .join()
    .unwrap();
}

fn ip(args: &str) {
    let done = Command::new("ip")
        .args(args.split(' '))
        .status()
        .expect("iproute2 is installed");
    assert!(done.success(), "ip {args}");
}

/// A follower, ended with the test.
struct Follower {
    child: Child,
    lines: Receiver<String>,
    notes: Receiver<String>,
}

impl Follower {
    fn start(f: &Fixture) -> Self {
        let mut child = f
            .command(&["drops", "--follow", "--json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = receive(child.stdout.take().unwrap());
        let notes = receive(child.stderr.take().unwrap());
        Self {
            child,
            lines,
            notes,
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn receive(from: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                return;
            }
        }
    });
    receive
}

/// Writes events until the follower shows one.
fn until_shown(follower: &Follower, dropper: &Dropper) -> serde_json::Value {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        dropper.run();
        if let Ok(line) = follower.lines.recv_timeout(Duration::from_millis(100)) {
            return serde_json::from_str(&line).unwrap();
        }
    }
    panic!(
        "nothing shown in {PATIENCE:?}: {:?}",
        follower.notes.try_recv()
    );
}

fn event(reason: DropReason) -> DropEvent {
    let mut tuple = AnyTuple {
        family: 4,
        proto: 6,
        dport: [0, 80],
        ..AnyTuple::default()
    };
    tuple.src[..4].copy_from_slice(&CLIENT.0);
    tuple.dst[..4].copy_from_slice(&CONTAINER.0);
    DropEvent {
        seen: now(),
        length: 74,
        key: DropKey {
            reason: reason as u16,
            hook: hook::FROM_UPLINK,
            family: 4,
            ifindex: 1_000_002,
            network: 1,
            reserved: 0,
        },
        tuple,
    }
}

#[test]
fn a_follower_shows_what_comes_and_a_second_one_counts() {
    let Some(f) = filled() else { return };
    let before = Dropper::new(f.data(map::DROP_EVENTS), &event(DropReason::Malformed));
    before.run();
    let after = Dropper::new(f.data(map::DROP_EVENTS), &event(DropReason::DirectRouting));

    let first = Follower::start(&f);
    let shown = until_shown(&first, &after);
    assert_eq!(shown["schema"], 1);
    assert_eq!(shown["kind"], "packet");
    assert_eq!(
        shown["reason"], "direct-routing",
        "what was dropped before is discarded"
    );
    assert_eq!(shown["direction"], "from-uplink");
    assert_eq!(shown["length"], 74);
    assert_eq!(shown["packet"]["src"], "198.18.0.9");
    assert_eq!(shown["packet"]["dst_port"], 80);
    assert_eq!(shown["container"]["addresses"][0], "10.201.1.2");

    let second = Follower::start(&f);
    let note = second.notes.recv_timeout(PATIENCE).unwrap();
    assert!(note.contains("shows the counters"), "{note}");
    // It has to have read the counters once: what it shows is the difference.
    let begun = Instant::now();
    let mut total = 0;
    let counted = loop {
        total += 7;
        let key = DropKey {
            reason: DropReason::NoRoute as u16,
            ..DropKey::default()
        };
        let count = DropCount {
            total,
            last_seen: now(),
            reserved: 0,
            last: AnyTuple::default(),
            slots: [DropSlot::default(); DROP_SLOTS],
        };
        f.put_drops(key, count, count);
        if let Ok(line) = second.lines.recv_timeout(Duration::from_millis(300)) {
            break serde_json::from_str::<serde_json::Value>(&line).unwrap();
        }
        assert!(begun.elapsed() < PATIENCE, "nothing counted");
    };
    assert_eq!(
        (&counted["schema"], &counted["kind"]),
        (&json!(1), &json!("count"))
    );
    assert_eq!(counted["reason"], "no-route");
    assert_eq!(
        counted["count"].as_u64().unwrap() % 14,
        0,
        "the sum of two CPUs: {counted}"
    );

    // Once the first has gone, another takes its place.
    drop(first);
    let third = Follower::start(&f);
    assert_eq!(until_shown(&third, &after)["kind"], "packet");
}

/// What this thread has computed so far: other work on the machine does not count.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .unwrap()
        .into()
}

/// A full table of the default size.
#[test]
fn a_full_table_is_read_in_half_a_second() {
    const FLOWS: u32 = 131_072;
    let Some(f) = fixture(&[(map::FLOWS_V4, 2 * FLOWS)]) else {
        return;
    };
    f.put(
        map::FLOWS_V4,
        (0..FLOWS).flat_map(|i| {
            let [_, a, b, c] = i.to_be_bytes();
            let out = tuple(V4Addr([10, 201 + a, b, c]), 40000, CLIENT, 443, 6);
            let outside = tuple(HOST, i as u16, V4Addr([198, 19, a, b]), 443, 6);
            let state = conntrack::State::Established;
            let kind = flow_kind::MASQUERADE;
            let outside = Tuple {
                dport: ((i % 251) as u16).to_be_bytes(),
                src: V4Addr([100, 64, b, c]),
                ..outside
            };
            [
                (out, half(outside, flow_flag::REWRITE_SRC, state, kind, 1)),
                (
                    outside.reversed(),
                    half(out.reversed(), flow_flag::REPLY, state, kind, 1),
                ),
            ]
        }),
    );
    let state = State::open(&f.pin_dir).unwrap();
    let topology = state.topology().unwrap();
    let begun = cpu_time();
    let [v4, _] = flow::usage(&state).unwrap();
    let counted = cpu_time() - begun;
    assert_eq!((v4.flows, v4.limit), (FLOWS, FLOWS));
    let begun = cpu_time();
    let flows = flow::flows(&state, &topology).unwrap();
    let joined = cpu_time() - begun;
    assert_eq!(flows.len(), FLOWS as usize);
    assert!(flows.iter().all(|flow| flow.missing.is_none()));
    eprintln!(
        "{} entries counted in {counted:?}, joined in {joined:?}",
        2 * FLOWS
    );
    assert!(counted < Duration::from_millis(500), "{counted:?}");
    // Without optimisation the walk is the kernel's work all the same; what is done with each
    // entry is not.
    if !cfg!(debug_assertions) {
        assert!(joined < Duration::from_millis(500), "{joined:?}");
    }
    let report = flows::Report::read(
        &state,
        &flows::Args {
            limit: Some(1),
            ..Default::default()
        },
    );
    assert_eq!(
        serde_json::to_value(report.unwrap()).unwrap()["total"],
        FLOWS
    );
}
