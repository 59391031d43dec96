//! A SYN flood from random sources.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use netd::lab::StandardHost;

use super::short::POOL;
use super::wire::{Port, SYN, Segment, Wire};

/// Addresses of the pool.
const SOURCES: u32 = 1 << 15;

/// Sends `count` SYNs from the client to an address and port of the host, evenly over `duration`; from random ports of
/// random addresses of the pool, which nobody has. How long it took.
pub fn syn(host: &StandardHost, to: (Ipv4Addr, u16), count: u64, duration: Duration) -> Duration {
    let uplink = host.host.mac("up0").expect("the uplink's MAC");
    // Nothing has this port: it only sends.
    let wire = Wire::open(&host.client, "eth0", uplink, Port::Source(0));
    let mut wire = wire.expect("a packet socket");
    // xorshift64.
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let began = Instant::now();
    let mut sent = 0;
    while sent < count {
        let due = began.elapsed().as_secs_f64() / duration.as_secs_f64() * count as f64;
        let due = (due as u64).min(count);
        if due == sent {
            std::thread::sleep(Duration::from_millis(1));
        }
        for _ in sent..due {
            let number = random();
            let source = Ipv4Addr::from(u32::from(POOL) + (number as u32) % SOURCES);
            let segment = Segment {
                source: (source, 1024 + (number >> 32) as u16 % 64000),
                destination: to,
                tcp: Some(SYN),
            };
            wire.push(&segment).expect("send");
        }
        wire.flush().expect("send");
        sent = due;
    }
    began.elapsed()
}
