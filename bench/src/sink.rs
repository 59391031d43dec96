//! The sink: where packets are counted and checked, and then dropped.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Context as _;
use aya::Ebpf;
use aya::maps::PerCpuArray;
use netd::lab::{Mac, Namespace};
use serde::Serialize;

use crate::bpf;
use crate::bpf::abi::{Expected, Seen};

/// What arrives, if it was forwarded as it should be.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Source address, lowest source port, and number of source ports.
    pub source: (Ipv4Addr, u16, u16),
    /// Destination address, lowest destination port, and number of destination ports.
    pub destination: (Ipv4Addr, u16, u16),
    /// Ethernet destination.
    pub mac: Mac,
    /// Time to live.
    pub ttl: u8,
}

/// An attached sink; it is detached when this is dropped.
pub struct Sink {
    ebpf: Ebpf,
    every: u32,
}

/// What a sink saw.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Tally {
    /// Datagrams.
    pub datagrams: u64,
    /// The CPUs that they came in on.
    pub cpus: Vec<usize>,
    /// How many of them were checked.
    pub checked: u64,
    /// Seconds from the first check to the last.
    pub seconds: f64,
    /// Datagrams that came in that time, but for the first.
    pub counted: u64,
    /// Of those: another address than expected.
    pub wrong_address: u64,
    /// Of those: another port than expected.
    pub wrong_port: u64,
    /// Of those: a header or UDP checksum that does not hold.
    pub wrong_checksum: u64,
    /// Of those: another time to live than expected.
    pub wrong_ttl: u64,
    /// Of those: another length than was sent.
    pub wrong_shape: u64,
}

impl Sink {
    /// Attaches a sink to the ingress of a device, which checks the first and then one of `every`
    /// datagrams on each CPU.
    pub fn attach(
        namespace: &Namespace,
        device: &str,
        arrival: &Arrival,
        every: u32,
    ) -> anyhow::Result<Self> {
        let mut ebpf = bpf::object()?;
        let expected = Expected {
            source: arrival.source.0.octets(),
            destination: arrival.destination.0.octets(),
            mac: arrival.mac,
            source_port: arrival.source.1,
            source_ports: arrival.source.2,
            destination_port: arrival.destination.1,
            destination_ports: arrival.destination.2,
            ttl: arrival.ttl,
            padding: 0,
            every,
        };
        bpf::set(&mut ebpf, "EXPECTED", expected)?;
        bpf::attach(&mut ebpf, "sink", namespace, device)?;
        Ok(Self { ebpf, every })
    }

    /// What was seen since it was attached.
    pub fn tally(&self) -> anyhow::Result<Tally> {
        let map = self.ebpf.map("SEEN").context("no map SEEN")?;
        let per_cpu = PerCpuArray::<_, Seen>::try_from(map)?
            .get(&0, 0)
            .context("cannot read the sink's counters")?;
        Ok(Tally::sum(&per_cpu, self.every))
    }
}

impl Tally {
    fn sum(per_cpu: &[Seen], every: u32) -> Self {
        let mut tally = Self::default();
        let checked = || per_cpu.iter().filter(|seen| seen.checked > 0);
        if let (Some(first), Some(last)) = (
            checked().map(|seen| seen.first).min(),
            checked().map(|seen| seen.last).max(),
        ) {
            tally.seconds = Duration::from_nanos(last - first).as_secs_f64();
            tally.counted = checked()
                .map(|seen| (seen.checked - 1) * u64::from(every))
                .sum();
        }
        for (cpu, seen) in per_cpu.iter().enumerate() {
            if seen.datagrams > 0 {
                tally.cpus.push(cpu);
            }
            tally.datagrams += seen.datagrams;
            tally.checked += seen.checked;
            tally.wrong_address += seen.wrong_address;
            tally.wrong_port += seen.wrong_port;
            tally.wrong_checksum += seen.wrong_checksum;
            tally.wrong_ttl += seen.wrong_ttl;
            tally.wrong_shape += seen.wrong_shape;
        }
        tally
    }

    /// The complaints; one packet can cause several.
    pub fn wrong(&self) -> u64 {
        self.wrong_address
            + self.wrong_port
            + self.wrong_checksum
            + self.wrong_ttl
            + self.wrong_shape
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use netd::lab::{Frame, inject};

    use super::*;
    use crate::topology::{
        CLIENT, CLIENT_DEVICE, CLIENT_PORT, HOST, HOST_PORT, TTL, Topology, UPLINK,
    };

    #[test]
    fn the_cpus_are_those_that_saw_something() {
        let seen = |datagrams, wrong_ttl| Seen {
            datagrams,
            wrong_ttl,
            ..Seen::default()
        };
        let tally = Tally::sum(&[seen(0, 0), seen(7, 1), seen(0, 0), seen(2, 0)], 1);
        assert_eq!(tally.datagrams, 9);
        assert_eq!(tally.cpus, [1, 3]);
        assert_eq!(tally.wrong(), 1);
    }

    #[test]
    fn time_runs_from_the_first_check_to_the_last() {
        let seen = Seen {
            datagrams: 2500,
            checked: 3,
            first: 1_000_000_000,
            last: 3_000_000_000,
            ..Seen::default()
        };
        let tally = Tally::sum(&[Seen::default(), seen], 1000);
        assert_eq!(tally.counted, 2000);
        assert!((tally.seconds - 2.0).abs() < 1e-9);
    }

    /// One datagram as expected, and others that differ from it in one thing each.
    #[test]
    fn every_damage_is_found_and_named() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let topology = Topology::build().unwrap();
        let good = || {
            Frame::ethernet(topology.client_mac, topology.uplink_mac)
                .ip(CLIENT, HOST)
                .ttl(TTL)
                .udp(CLIENT_PORT, HOST_PORT)
                .payload(&[b'x'; 18])
        };
        let arrival = Arrival {
            source: (CLIENT, CLIENT_PORT, 2),
            destination: (HOST, HOST_PORT, 1),
            mac: topology.uplink_mac,
            ttl: TTL,
        };
        let see = |frame: Frame| {
            let sink = Sink::attach(&topology.host, UPLINK, &arrival, 1).unwrap();
            inject(&topology.client, CLIENT_DEVICE, &[frame.build()]).unwrap();
            let deadline = Instant::now() + Duration::from_secs(2);
            loop {
                let tally = sink.tally().unwrap();
                if tally.checked > 0 || Instant::now() > deadline {
                    assert_eq!((tally.datagrams, tally.checked), (1, 1));
                    return [
                        tally.wrong_address,
                        tally.wrong_port,
                        tally.wrong_checksum,
                        tally.wrong_ttl,
                        tally.wrong_shape,
                    ];
                }
            }
        };
        let other = Ipv4Addr::new(198, 18, 0, 3);
        let table = [
            ("as expected", good(), [0, 0, 0, 0, 0]),
            (
                "second flow",
                good().udp(CLIENT_PORT + 1, HOST_PORT),
                [0; 5],
            ),
            ("source", good().ip(other, HOST), [1, 0, 0, 0, 0]),
            ("destination", good().ip(CLIENT, other), [1, 0, 0, 0, 0]),
            (
                "third flow",
                good().udp(CLIENT_PORT + 2, HOST_PORT),
                [0, 1, 0, 0, 0],
            ),
            (
                "port below",
                good().udp(CLIENT_PORT - 1, HOST_PORT),
                [0, 1, 0, 0, 0],
            ),
            (
                "destination port",
                good().udp(CLIENT_PORT, HOST_PORT + 1),
                [0, 1, 0, 0, 0],
            ),
            ("UDP checksum", good().broken_checksum(), [0, 0, 1, 0, 0]),
            ("IP checksum", good().broken_ip_checksum(), [0, 0, 1, 0, 0]),
            ("no checksum", good().zero_udp_checksum(), [0, 0, 1, 0, 0]),
            ("time to live", good().ttl(TTL - 1), [0, 0, 0, 1, 0]),
            ("length", good().payload(&[b'x'; 19]), [0, 0, 0, 0, 1]),
        ];
        for (name, frame, expected) in table {
            assert_eq!(see(frame), expected, "{name}");
        }
    }
}
