//! Two CPUs at once, one source port for many: whatever they do to each other, a tuple belongs to
//! one flow, a flow has both its halves, and what containers hold is counted right.

use std::collections::{BTreeMap, HashMap};
use std::sync::Barrier;

use anyhow::{Context as _, Result, ensure};
use netd_common::abi::{
    Flow, Holding, Seat, Tuple, flow_flag, flow_table, hook, map, network_flag,
};
use netd_common::model::frame::Frame;
use netd_common::model::{EndpointSpec, Model, NetworkSpec};
use netd_common::pipeline::Meta;
use netd_common::room::is_counted_embryo;
use netd_common::wire::{V4, V6};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use super::programs::Programs;
use super::random::Random;
use super::scenario::{LabFamily, Scenario, v6};
use super::test_host::TestHost;

const CONTAINERS: usize = 4;
/// In every other round: few flows, which both CPUs are at all the time.
const NARROW: usize = 2;
/// Room for a few embryos: they evict each other all the time.
const EMBRYO_SEATS: u32 = 3;
const FLOW_SEATS: u32 = 32;
/// What happens at once happens while flows begin: many short rounds, each from empty tables.
const ROUNDS: usize = 2500;
const PACKETS: usize = 40;
const PORT: u16 = 61000;

const FLAGS: [u8; 6] = [2, 2 | 16, 16, 16, 1 | 16, 4];

/// Runs the storm in the namespace of `host`; how many flows there were in all.
pub fn run(host: &TestHost, seed: u64) -> Result<usize> {
    let features = netd::dataplane::Features {
        fib_source: true,
        fib_skip_neigh: true,
        csum_ipv6: true,
        fib_table: true,
    };
    let mut programs = Programs::load(features).context("load the programs")?;
    for (name, rows) in scenario(host).rows() {
        programs.write(name, rows)?;
    }
    let mut seen = 0;
    for round in 0..ROUNDS {
        programs.clear(map::HOLDINGS)?;
        for name in [map::FLOWS_V4, map::EMBRYOS_V4] {
            programs.forget::<V4>(name)?;
        }
        for name in [map::FLOWS_V6, map::EMBRYOS_V6] {
            programs.forget::<V6>(name)?;
        }
        let (barrier, programs) = (Barrier::new(2), &programs);
        let run = |cpu: usize| -> Result<()> {
            pin(cpu)?;
            let mut random = Random::new(seed ^ (round * 2 + cpu) as u64);
            barrier.wait();
            let narrow = round % 2 == 1;
            for _ in 0..PACKETS {
                if random.chance(50) {
                    shoot::<V4>(&mut random, host, programs, narrow)?;
                } else {
                    shoot::<V6>(&mut random, host, programs, narrow)?;
                }
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let run = &run;
            let threads = [0, 1].map(|cpu| scope.spawn(move || run(cpu)));
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().expect("no panic"))
        })?;
        seen += judge::<V4>(programs, [flow_table::EMBRYOS_V4, flow_table::FLOWS_V4])
            .and_then(|v4| {
                let v6 = judge::<V6>(programs, [flow_table::EMBRYOS_V6, flow_table::FLOWS_V6])?;
                Ok(v4 + v6)
            })
            .with_context(|| format!("after round {round}"))?;
    }
    Ok(seen)
}

fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

fn scenario(host: &TestHost) -> Scenario {
    let mut model = Model::default();
    (model.config.nat_first, model.config.nat_last) = (PORT, PORT);
    for (embryos, flows) in [
        (flow_table::EMBRYOS_V4, flow_table::FLOWS_V4),
        (flow_table::EMBRYOS_V6, flow_table::FLOWS_V6),
    ] {
        model.config.seats[embryos] = EMBRYO_SEATS;
        model.config.seats[flows] = FLOW_SEATS;
    }
    let bridge = host.bridges[0];
    let network = model.add_network(&NetworkSpec {
        bridge: bridge.ifindex,
        mac: bridge.mac,
        flags: network_flag::ICC | network_flag::MASQUERADE_V4 | network_flag::MASQUERADE_V6,
        mode: 0,
        v4: Some(([10, 200, 0, 1], [10, 200, 0, 0], 24)),
        v6: Some((v6("fd00:200::1").0, v6("fd00:200::").0, 64)),
    });
    for (number, device) in host.veths[..CONTAINERS].iter().enumerate() {
        model.add_endpoint(&EndpointSpec {
            ifindex: device.ifindex,
            network,
            mac: [2, 0x42, 0xac, 0, 0, number as u8 + 2],
            v4: Some(V4::inside(number).0),
            v6: Some(V6::inside(number).0),
        });
    }
    model.add_uplink(
        host.up0.ifindex,
        netd_common::abi::Uplink {
            mtu: 1500,
            flags: 0,
            mac: host.up0.mac,
            addr_v4: [198, 18, 0, 1],
            addr_v6: v6("fd99::1").0,
        },
    );
    Scenario::of(model)
}

/// Addresses of the storm.
trait Storm: LabFamily {
    fn inside(container: usize) -> Self::Addr;
    fn host_address() -> Self::Addr;
    fn client() -> Self::Addr;
}

impl Storm for V4 {
    fn inside(container: usize) -> Self::Addr {
        netd_common::wire::V4Addr([10, 200, 0, container as u8 + 2])
    }
    fn host_address() -> Self::Addr {
        netd_common::wire::V4Addr([198, 18, 0, 1])
    }
    fn client() -> Self::Addr {
        netd_common::wire::V4Addr([198, 18, 0, 2])
    }
}

impl Storm for V6 {
    fn inside(container: usize) -> Self::Addr {
        v6(&format!("fd00:200::{}", container + 2))
    }
    fn host_address() -> Self::Addr {
        v6("fd99::1")
    }
    fn client() -> Self::Addr {
        v6("fd99::2")
    }
}

/// A packet of a container to the client, or the client's to the one port.
fn shoot<F: Storm>(
    random: &mut Random,
    host: &TestHost,
    programs: &Programs,
    narrow: bool,
) -> Result<()> {
    let (containers, ports) = if narrow { (NARROW, 1) } else { (CONTAINERS, 3) };
    let container = random.below(containers as u64) as usize;
    let there = (F::client(), 80 + random.below(ports) as u16);
    let inside = (F::inside(container), 1000 + random.below(ports * 4) as u16);
    let udp = !narrow && random.chance(40);
    let flags = *random.pick(&FLAGS);
    let frame = |from, to| {
        if udp {
            Frame::udp(from, to, b"storm")
        } else {
            Frame::tcp(from, to, flags, b"")
        }
    };
    let mut meta = Meta {
        to_host: 1,
        ..Meta::default()
    };
    let mut bytes = if random.chance(50) {
        meta.hook = hook::FROM_ENDPOINT;
        meta.ifindex = host.veths[container].ifindex;
        let mac = [2, 0x42, 0xac, 0, 0, container as u8 + 2];
        frame(inside, there).macs(host.bridges[0].mac, mac)
    } else {
        meta.hook = hook::FROM_UPLINK;
        meta.ifindex = host.up0.ifindex;
        let to = (F::host_address(), PORT);
        frame(there, to).macs(host.up0.mac, [2, 9, 9, 9, 9, 9])
    }
    .bytes::<F>();
    programs.run(&meta, false, 0, &mut bytes).map(drop)
}

type Entries<A> = HashMap<Tuple<A>, Flow<A>>;

/// Both CPUs are done: what they left must be sound.
fn judge<F: Storm>(programs: &Programs, tables: [usize; 2]) -> Result<usize> {
    let read =
        |name| -> Result<Entries<F::Addr>> { Ok(programs.entries(name)?.into_iter().collect()) };
    let (embryos, flows) = (read(F::EMBRYOS)?, read(F::FLOWS)?);
    for (key, flow) in &flows {
        if let Some(embryo) = embryos.get(key) {
            ensure!(
                embryo.generation == flow.generation,
                "two flows own {key:?}: {flow:?} and {embryo:?}"
            );
        }
    }
    // A flow without a seat would never be found by those who look for room.
    let rings = match F::VERSION {
        4 => [map::EMBRYO_RING_V4, map::FLOW_RING_V4],
        _ => [map::EMBRYO_RING_V6, map::FLOW_RING_V6],
    };
    for ((ring, seats), entries) in rings
        .into_iter()
        .zip([EMBRYO_SEATS, FLOW_SEATS])
        .zip([&embryos, &flows])
    {
        let seated = (0..seats)
            .map(|index| programs.element::<Seat<F::Addr>>(ring, index))
            .collect::<Result<Vec<_>>>()?;
        for (key, flow) in entries {
            let is_its =
                |seat: &Seat<F::Addr>| seat.tuple == *key && seat.generation == flow.generation;
            ensure!(
                flow.flags & flow_flag::REPLY != 0 || seated.iter().any(is_its),
                "{key:?} has no seat in {ring}: {seated:?}"
            );
        }
    }
    let mut held: BTreeMap<u32, Holding> = BTreeMap::new();
    for (table, entries) in tables.into_iter().zip([&embryos, &flows]) {
        for (key, flow) in entries {
            let other = Tuple {
                src: flow.dst,
                dst: flow.src,
                sport: flow.dport,
                dport: flow.sport,
                ..*key
            };
            let half = entries.get(&other);
            ensure!(
                half.is_some_and(|half| half.generation == flow.generation),
                "{key:?} {flow:?} has not its other half, but {half:?}"
            );
            let counted = table == tables[1] || is_counted_embryo(flow.flags);
            if flow.flags & flow_flag::REPLY == 0 && counted {
                held.entry(flow.owner).or_default().flows[table] += 1;
            }
        }
    }
    for (owner, holding) in programs.entries::<u32, Holding>(map::HOLDINGS)? {
        let counted = held.get(&owner).copied().unwrap_or_default();
        for table in tables {
            ensure!(
                holding.flows[table] == counted.flows[table],
                "interface {owner} holds {} flows in table {table}, and {} are counted",
                counted.flows[table],
                holding.flows[table]
            );
        }
    }
    Ok((embryos.len() + flows.len()) / 2)
}
