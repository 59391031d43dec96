//! The same packets over the same tables through the engine natively and through the compiled
//! programs in the kernel (BPF_PROG_TEST_RUN): equal verdicts, bytes and map contents.
//!
//! `NETD_SEED` repeats a run, `NETD_PACKETS` changes its length.

mod fragments;
mod ipsec;
mod mtu;
mod programs;
mod quoted;
mod random;
mod rules;
mod scenario;
mod test_host;
mod traffic;
mod two_cpus;

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use netd::dataplane::Features;
use netd_common::abi::{
    DropKey, Flow, FragmentKey, Fragments, Tuple, Verdicts, flow_flag, flow_table, hook, map,
};
use netd_common::decide::masquerades;
use netd_common::drop::DropReason;
use netd_common::model::{FlowTable, GsoPacket};
use netd_common::packet::SlicePacket;
use netd_common::parse::parse;
use netd_common::pipeline::{Outcome, drop_key};
use netd_common::wire::{ETH_LEN, V4, V6};

use self::programs::{Programs, raw};
use self::random::Random;
use self::scenario::{LabFamily, Scenario};
use self::test_host::{BRIDGES, TestHost};
use self::traffic::Shot;

/// How often each verdict and each reason must have been seen.
const OFTEN: u64 = 50;

/// An ICMP error that went the way of the flow that it is about.
const ERROR_SENT: &str = "ICMP error sent on";

/// Reasons that BPF_PROG_TEST_RUN cannot bring about, and why.
const BEYOND_REACH: &[(DropReason, &str)] = &[
    (
        DropReason::Policy,
        "the programs have no policy yet: the seam returns nothing",
    ),
    (
        DropReason::FlowTableFull,
        "seldom: live connections must fill both tables (netd-common's tests of room see to that)",
    ),
    (
        DropReason::StaleHostSocket,
        "a packet of BPF_PROG_TEST_RUN has no socket (the survival tests see to that)",
    ),
];

#[test]
fn native_and_bpf_agree() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    let number = |name: &str| std::env::var(name).ok()?.parse().ok();
    let seed = number("NETD_SEED").unwrap_or(0x6e65_7464);
    let packets = number("NETD_PACKETS").unwrap_or(80_000);
    let host = TestHost::build().expect("build a host");
    let namespace = host.namespace.clone();
    // Not Sync, and not to leave the thread that is in the namespace.
    let host = std::sync::Mutex::new(host);
    let result = namespace.run(|| {
        let host = host.lock().expect("not poisoned");
        Differential::new(&host, seed).and_then(|mut run| run.packets(packets))
    });
    if let Err(error) = result {
        panic!("seed {seed}: {error:?}");
    }
}

#[test]
fn two_cpus_leave_the_flow_tables_sound() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        println!("skipped: needs two CPUs");
        return;
    }
    let host = TestHost::build().expect("build a host");
    let namespace = host.namespace.clone();
    let seed = std::env::var("NETD_SEED").ok().and_then(|s| s.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    let host = std::sync::Mutex::new(host);
    let result = namespace.run(|| two_cpus::run(&host.lock().expect("not poisoned"), seed));
    match result {
        Ok(flows) => {
            println!("{flows} flows judged");
            assert!(flows > 500, "too few flows for a storm: {flows}");
        }
        Err(error) => panic!("seed {seed}: {error:?}"),
    }
}

struct Differential<'a> {
    host: &'a TestHost,
    random: Random,
    programs: Programs,
    scenario: Scenario,
    /// What the model decided, by hook, and what it dropped, by key.
    verdicts: [Verdicts; hook::COUNT as usize],
    drops: BTreeMap<Vec<u8>, u64>,
    /// The model's generations and the kernel's, which differ but must pair up.
    generations: HashMap<u32, u32>,
    seen: BTreeMap<String, u64>,
    parsed: u64,
}

/// CLOCK_MONOTONIC_COARSE, as the programs read it.
fn seconds() -> Result<u32> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC_COARSE)?;
    Ok(now.tv_sec() as u32)
}

/// Both sides of a comparison are to read the same second.
fn wait_for_the_middle_of_a_second() -> Result<()> {
    loop {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC_COARSE)?;
        if now.tv_nsec() < 980_000_000 {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

impl<'a> Differential<'a> {
    fn new(host: &'a TestHost, seed: u64) -> Result<Self> {
        let mut random = Random::new(seed);
        let features = Features {
            fib_source: true,
            fib_skip_neigh: true,
            csum_ipv6: true,
            fib_table: true,
        };
        let scenario = Scenario::random(&mut random, host);
        Ok(Self {
            host,
            programs: Programs::load(features).context("load the programs")?,
            scenario,
            random,
            verdicts: Default::default(),
            drops: BTreeMap::new(),
            generations: HashMap::new(),
            seen: BTreeMap::new(),
            parsed: 0,
        })
    }

    fn packets(&mut self, count: u64) -> Result<()> {
        let begun = Instant::now();
        for number in 0..count {
            if number % 400 == 0 {
                self.new_scenario()?;
            } else if number % 25 == 0 {
                self.scenario.change(&mut self.random, self.host);
                self.write_tables()?;
            } else if number % 12 == 0 {
                self.disturb::<V4>()?;
                self.disturb::<V6>()?;
            } else if number % 3 == 1 {
                self.age_fragments::<V4>()?;
                self.age_fragments::<V6>()?;
            }
            self.packet(number)
                .with_context(|| format!("packet {number}"))?;
        }
        println!(
            "{count} packets, {} of them past parsing, in {:.1} s",
            self.parsed,
            begun.elapsed().as_secs_f64()
        );
        for (what, times) in &self.seen {
            println!("{times:>8} {what}");
        }
        for (reason, why) in BEYOND_REACH {
            println!("       - {}: {why}", reason.name());
        }
        self.judge_coverage(count)
    }

    fn judge_coverage(&self, count: u64) -> Result<()> {
        ensure!(self.parsed * 10 >= count * 7, "too few packets parse");
        let mut missing = Vec::new();
        let reasons = DropReason::ALL
            .iter()
            .filter(|reason| BEYOND_REACH.iter().all(|(beyond, _)| beyond != *reason))
            .map(|reason| reason.name().to_owned());
        let others = [
            "pass",
            "answer-peer",
            "answer-back",
            "peer",
            "endpoint",
            "neighbour4",
            "neighbour6",
            "device",
            ERROR_SENT,
        ]
        .map(String::from);
        let often = OFTEN * count.min(50_000) / 50_000;
        for what in reasons.chain(others) {
            let times = self.seen.get(&what).copied().unwrap_or(0);
            if times < often {
                missing.push(format!("{what}: {times}"));
            }
        }
        ensure!(
            missing.is_empty(),
            "seen too rarely: {}",
            missing.join(", ")
        );
        Ok(())
    }

    fn new_scenario(&mut self) -> Result<()> {
        self.scenario = Scenario::random(&mut self.random, self.host);
        self.generations.clear();
        self.forget::<V4>()?;
        self.forget::<V6>()?;
        // Seats are left as they are: nobody's that is still there. The hands and what containers
        // hold begin anew, as in the model.
        self.programs.zero(map::HANDS, flow_table::COUNT as u32)?;
        self.programs.clear(map::HOLDINGS)?;
        self.write_tables()
    }

    fn write_tables(&mut self) -> Result<()> {
        for (name, rows) in self.scenario.rows() {
            self.programs.write(name, rows)?;
        }
        Ok(())
    }

    fn forget<F: LabFamily>(&mut self) -> Result<()> {
        self.programs
            .forget_rows::<FragmentKey<F::Addr>, Fragments<F::Addr>>(F::FRAGMENTS)?;
        self.programs.forget::<F>(F::FLOWS)?;
        self.programs.forget::<F>(F::EMBRYOS)
    }

    /// What time and a daemon that dies do to flows: they or their routes grow old, one is left
    /// with one half.
    fn disturb<F: LabFamily>(&mut self) -> Result<()> {
        let tables = F::tables(&self.scenario.model);
        let evict = self.random.chance(20);
        let name = if evict || self.random.chance(40) {
            F::EMBRYOS
        } else {
            F::FLOWS
        };
        let table = if name == F::FLOWS {
            &tables.flows
        } else {
            &tables.embryos
        };
        let rows: Vec<_> = table.rows().into_iter().collect();
        if rows.is_empty() {
            return Ok(());
        }
        let (key, mut flow) = *self.random.pick(&rows);
        let slot = table.slot(&key).context("an entry the model has too")?;
        if evict {
            table.remove(&key);
            return self.programs.remove(name, &raw(&key));
        }
        if self.random.chance(50) {
            let age = *self.random.pick(&[1, 3, 61, 130, 250, 400]);
            flow.last_seen = seconds()?.wrapping_sub(age);
            slot.set_last_seen(flow.last_seen);
        } else {
            flow.routed_at = seconds()?.wrapping_sub(100);
            slot.set_routed_at(flow.routed_at);
        }
        flow.generation = self.generations[&flow.generation];
        self.programs.put(name, &raw(&key), &raw(&flow))
    }

    fn packet(&mut self, number: u64) -> Result<()> {
        let shot = Shot::random(&mut self.random, &mut self.scenario, self.host);
        self.parsed += u64::from(shot.parses());
        let mut bpf_bytes = shot.bytes.clone();
        wait_for_the_middle_of_a_second()?;
        let action =
            self.programs
                .run(&shot.meta, shot.headerless, shot.gso_size, &mut bpf_bytes)?;
        self.scenario.model.set_now(seconds()?);
        // The model's clock counts seconds; this is far below what the programs allow themselves.
        for pace in &self.scenario.model.pace {
            pace.take();
        }
        let mut bytes = shot.bytes.clone();
        let verdict = self.scenario.model.run(
            &mut GsoPacket {
                gso_size: shot.gso_size,
                ..GsoPacket::new(&mut bytes)
            },
            &shot.meta,
        );
        let outcome = verdict.outcome();
        let said = || {
            format!(
                "{} at interface {} (from {}): natively {outcome:?}\nsent     {}\nnatively {}\nby BPF   {}\nconfig {:?}",
                hook::name(shot.meta.hook),
                shot.meta.ifindex,
                shot.meta.ingress_ifindex,
                hex(&shot.bytes),
                hex(&bytes),
                hex(&bpf_bytes),
                self.scenario.model.config,
            )
        };
        const NEXT: i32 = -1;
        const DROP: i32 = 2;
        const REDIRECT: i32 = 7;
        let counted = &mut self.verdicts[usize::from(shot.meta.hook)];
        let (expected, name) = match outcome {
            Outcome::Pass => {
                counted.passed += 1;
                (NEXT, "pass")
            }
            Outcome::Drop(reason) => {
                counted.dropped += 1;
                (DROP, reason.name())
            }
            Outcome::Peer(_) | Outcome::Neighbour4(_) | Outcome::Neighbour6(_) => {
                if verdict.is_slow() {
                    counted.decided += 1;
                } else {
                    counted.forwarded += 1;
                }
                let name = match outcome {
                    Outcome::Peer(_) => "peer",
                    Outcome::Neighbour4(_) => "neighbour4",
                    _ => "neighbour6",
                };
                (REDIRECT, name)
            }
            Outcome::Endpoint(_) => {
                counted.decided += 1;
                (REDIRECT, "endpoint")
            }
            Outcome::AnswerPeer(reason) | Outcome::AnswerBack(reason) => {
                counted.dropped += 1;
                let kind = if matches!(outcome, Outcome::AnswerPeer(_)) {
                    "answer-peer"
                } else {
                    "answer-back"
                };
                *self.seen.entry(kind.to_owned()).or_default() += 1;
                let action = if shot.headerless { DROP } else { REDIRECT };
                (action, reason.name())
            }
            Outcome::Device(_) => {
                if verdict.is_slow() {
                    counted.decided += 1;
                } else {
                    counted.forwarded += 1;
                }
                (REDIRECT, "device")
            }
        };
        let mut sent_on = bytes.clone();
        if let Outcome::Endpoint(ifindex) = outcome {
            // The entry point sees to it.
            sent_on[..6].copy_from_slice(&self.scenario.model.endpoints[&ifindex].mac);
        }
        let counted = *counted;
        *self.seen.entry(name.to_owned()).or_default() += 1;
        let is_error =
            quoted::key::<V4>(&shot.bytes).is_some() || quoted::key::<V6>(&shot.bytes).is_some();
        if is_error && expected == REDIRECT && sent_on != shot.bytes {
            *self.seen.entry(ERROR_SENT.to_owned()).or_default() += 1;
        }
        ensure!(action == expected, "the action is {action}: {}", said());
        // BPF_PROG_TEST_RUN takes the first bytes for an Ethernet header, whatever the program: where
        // there is none, skb->protocol is not IP, and bpf_skb_adjust_room refuses.
        let unable = shot.headerless && matches!(outcome, Outcome::AnswerBack(_));
        ensure!(
            unable || sent_on == bpf_bytes,
            "the bytes differ: {}",
            said()
        );
        if let Outcome::Drop(reason) | Outcome::AnswerPeer(reason) | Outcome::AnswerBack(reason) =
            outcome
        {
            let key = drop_key(verdict, &shot.meta);
            let times = self.drops.entry(raw(&key)).or_default();
            *times += 1;
            let (native, bpf) = (*times, self.programs.drops(&key)?);
            ensure!(
                native == bpf,
                "dropped as {} natively, and as {:?} by BPF: {}",
                reason.name(),
                self.dropped_otherwise(key)?,
                said()
            );
        }
        let bpf = self.programs.verdicts(shot.meta.hook)?;
        ensure!(
            counted == bpf,
            "counted {counted:?}, BPF {bpf:?}: {}",
            said()
        );
        let context = said();
        if name.starts_with("neighbour") || name == "device" {
            self.leaks_nothing::<V4>(&shot.bytes, &bytes)
                .and_then(|()| self.leaks_nothing::<V6>(&shot.bytes, &bytes))
                .with_context(|| context.clone())?;
        }
        self.compare::<V4>()
            .and_then(|()| self.compare::<V6>())
            .with_context(|| format!("after packet {number}: {context}"))
    }

    /// No packet that opens a flow leaves by an uplink with a source in a masqueraded subnet.
    fn leaks_nothing<F: LabFamily>(&self, sent: &[u8], left: &[u8]) -> Result<()> {
        let tuple = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            let parsed = parse::<F>(&mut SlicePacket(&mut bytes), ETH_LEN);
            parsed.ok().map(|parsed| parsed.tuple)
        };
        let error = quoted::key::<F>(sent);
        let (Some(_), Some(left)) = (tuple(sent), tuple(left)) else {
            return Ok(());
        };
        let model = &self.scenario.model;
        // An error leaves with the flow that it is about, a later fragment with that of its first.
        let sent = error.unwrap_or_else(|| model.tuple::<F>());
        let tables = F::tables(model);
        let entry = tables
            .flows
            .get(&sent)
            .or_else(|| tables.embryos.get(&sent));
        let entry = entry.context("a packet left without a flow")?;
        let subnet = tables.subnets.get(&left.src);
        let network = subnet.map(|subnet| &model.networks[usize::from(subnet.network)]);
        ensure!(
            entry.flags & flow_flag::REPLY != 0 || !network.is_some_and(masquerades::<F>),
            "{:?} left, though its network is masqueraded",
            left.src
        );
        Ok(())
    }

    /// The reasons, and networks, of which the kernel has counted more drops than the model.
    fn dropped_otherwise(&self, key: DropKey) -> Result<Vec<(&'static str, u16)>> {
        let mut found = Vec::new();
        for reason in DropReason::ALL {
            for network in 0..BRIDGES as u16 + 1 {
                let key = DropKey {
                    reason: *reason as u16,
                    network,
                    ..key
                };
                let native = self.drops.get(&raw(&key)).copied().unwrap_or(0);
                if self.programs.drops(&key)? > native {
                    found.push((reason.name(), network));
                }
            }
        }
        Ok(found)
    }

    fn compare<F: LabFamily>(&mut self) -> Result<()> {
        let tables = F::tables(&self.scenario.model);
        for (name, table) in [(F::FLOWS, &tables.flows), (F::EMBRYOS, &tables.embryos)] {
            let rows = self
                .programs
                .entries::<Tuple<F::Addr>, Flow<F::Addr>>(name)?;
            for (key, bpf) in &rows {
                let native = table
                    .get(key)
                    .with_context(|| format!("{name}: only BPF has {key:?} {bpf:?}"))?;
                let generation = self
                    .generations
                    .entry(native.generation)
                    .or_insert(bpf.generation);
                let same = Flow {
                    last_seen: bpf.last_seen,
                    routed_at: bpf.routed_at,
                    generation: bpf.generation,
                    ..native
                };
                ensure!(
                    same == *bpf && *generation == bpf.generation,
                    "{name}: {key:?}\nnatively {native:?}\nby BPF   {bpf:?}"
                );
            }
            ensure!(
                rows.len() == table.len(),
                "{name}: only the model has {:?}",
                missing(table, &rows)
            );
        }
        self.compare_fragments::<F>()
    }
}

fn missing<A>(table: &FlowTable<A>, rows: &[(Tuple<A>, Flow<A>)]) -> Vec<(Tuple<A>, Flow<A>)>
where
    A: netd_common::wire::Address + std::hash::Hash + Ord,
{
    let mut left = table.rows();
    for (key, _) in rows {
        left.remove(key);
    }
    left.into_iter().collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().take(120).map(|b| format!("{b:02x}")).collect()
}
