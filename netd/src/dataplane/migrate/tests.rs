//! Carrying over from an ABI that never was, whose keys and values have other sizes than ours.

use aya::maps::HashMap;
use netd_common::abi::{Flow, Tuple, flow_flag};
use netd_common::conntrack::State;

use super::*;
use crate::config::Limits;
use crate::dataplane::pod::Pod;
use crate::dataplane::{AttachMode, LoadOptions, sizes};
use crate::host;

/// Wider in every respect, and in another order.
struct Wide;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct WideTuple<A> {
    proto: u32,
    ports: [[u8; 2]; 2],
    dst: A,
    src: A,
    unused: [u8; 8],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct WideFlow<A> {
    generation: u32,
    owner: u32,
    flags: u16,
    state: u8,
    kind: u8,
    last_seen: u32,
    unused: [u64; 8],
    packets: u64,
    dst: A,
    src: A,
    ports: [[u8; 2]; 2],
    more: [u8; 4],
}

// SAFETY: `repr(C)`, integers and bytes; 24 and 48, 104 and 128 bytes are the sums of the fields.
unsafe impl<A: Address> Wire for WideTuple<A> {}
// SAFETY: as above.
unsafe impl<A: Address> Wire for WideFlow<A> {}
const _: () = assert!(
    size_of::<WideTuple<V4Addr>>() == 24
        && size_of::<WideTuple<V6Addr>>() == 48
        && size_of::<WideFlow<V4Addr>>() == 104
        && size_of::<WideFlow<V6Addr>>() == 128
);

impl Layout for Wide {
    const VERSION: u32 = 0;
    type Config = [u8; 100];
    type Tuple<A: Address> = WideTuple<A>;
    type Flow<A: Address> = WideFlow<A>;

    fn config(old: &[u8; 100]) -> Inherited {
        Inherited {
            epoch: old[0].into(),
            seed: old[1].into(),
            flags: 0,
            synced_at: 0,
        }
    }

    fn tuple<A: Address>(old: &WideTuple<A>) -> Tuple<A> {
        Tuple {
            src: old.src,
            dst: old.dst,
            sport: old.ports[0],
            dport: old.ports[1],
            proto: old.proto as u8,
            reserved: [0; 3],
        }
    }

    fn flow<A: Address>(old: &WideFlow<A>) -> Flow<A> {
        Flow {
            generation: old.generation,
            owner: old.owner,
            flags: old.flags,
            state: old.state,
            kind: old.kind,
            last_seen: old.last_seen,
            created: old.last_seen,
            packets: old.packets,
            src: old.src,
            dst: old.dst,
            sport: old.ports[0],
            dport: old.ports[1],
            ..Flow::default()
        }
    }
}

/// A pin directory of its own, gone when dropped.
struct Pins(PathBuf);

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

type OldMap<A> = HashMap<aya::maps::MapData, Pod<WideTuple<A>>, Pod<WideFlow<A>>>;

fn old_map<A: Address>(directory: &Path, name: &str) -> OldMap<A> {
    let map = OldMap::<A>::create(64, 0).unwrap();
    map.pin(directory.join(name)).unwrap();
    let data = aya::maps::MapData::from_pin(directory.join(name)).unwrap();
    HashMap::try_from(aya::maps::Map::HashMap(data)).unwrap()
}

/// Key and value of one half of the `n`-th flow.
fn half<A: Address>(n: u8, reply: bool, packets: u64) -> (WideTuple<A>, WideFlow<A>) {
    let (inside, outside) = (A::from_padded(&[n; 16]), A::from_padded(&[100; 16]));
    let (src, dst) = if reply {
        (outside, inside)
    } else {
        (inside, outside)
    };
    let tuple = WideTuple {
        proto: 6,
        ports: [[n, 1], [n, 2]],
        src,
        dst,
        unused: [0xaa; 8],
    };
    let flow = WideFlow {
        generation: 1000 + u32::from(n),
        owner: 7,
        flags: if reply { flow_flag::REPLY } else { 0 },
        state: State::Established as u8,
        kind: 1,
        last_seen: 5,
        packets,
        src,
        dst,
        ports: tuple.ports,
        ..WideFlow::default()
    };
    (tuple, flow)
}

fn put<A: Address>(map: &mut OldMap<A>, n: u8, packets: u64) {
    for reply in [false, true] {
        let (tuple, flow) = half::<A>(n, reply, packets);
        map.insert(Pod(tuple), Pod(flow), 0).unwrap();
    }
}

fn remove<A: Address>(map: &mut OldMap<A>, n: u8) {
    for reply in [false, true] {
        map.remove(&Pod(half::<A>(n, reply, 0).0)).unwrap();
    }
}

#[test]
fn flows_of_a_wider_layout_are_carried_over_and_kept_up_to_date() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    host::ensure_bpffs(Path::new(host::BPFFS_PATH)).unwrap();
    let unique = format!("netd-test-migrate-{}", std::process::id());
    let pins = Pins(Path::new(host::BPFFS_PATH).join(unique));
    let limits = Limits {
        flows_v4: Some(3),
        flows_v6: Some(3),
    };
    let features = host::kernel_features().unwrap();
    let options = LoadOptions {
        pin_dir: pins.0.clone(),
        sizes: sizes(1 << 30, 1, &limits),
        features: (&features).into(),
        attach: AttachMode::Tcx,
        sabotage: 0,
    };
    let mut kernel = Kernel::load(&options, Default::default()).unwrap();
    let from = pins.0.join("old");
    fs::create_dir_all(&from).unwrap();
    let mut flows = old_map::<V4Addr>(&from, map::FLOWS_V4);
    let mut embryos = old_map::<V4Addr>(&from, map::EMBRYOS_V4);
    let mut flows6 = old_map::<V6Addr>(&from, map::FLOWS_V6);
    drop(old_map::<V6Addr>(&from, map::EMBRYOS_V6));

    put(&mut flows, 1, 10);
    put(&mut embryos, 2, 1);
    put(&mut flows6, 3, 10);
    let carried = carry::carry::<Wide>(&from, &mut kernel).unwrap();
    let copied = |copied, renewed| Carried {
        copied,
        renewed,
        left_out: 0,
    };
    assert_eq!(carried, copied(6, 0));
    let key = |n, reply| Wide::tuple(&half::<V4Addr>(n, reply, 0).0);
    let maps = &mut kernel.pinned.maps;
    for (n, reply) in [(1, false), (1, true)] {
        let (_, flow) = half::<V4Addr>(n, reply, 10);
        assert_eq!(maps.flows_v4.get(&key(n, reply)), Some(Wide::flow(&flow)));
    }
    assert!(maps.flows_v4.get(&key(2, false)).is_none());
    assert_eq!(maps.embryos_v4.get(&key(2, false)).unwrap().packets, 1);
    let (tuple, flow) = half::<V6Addr>(3, true, 10);
    assert_eq!(
        maps.flows_v6.get(&Wide::tuple(&tuple)),
        Some(Wide::flow(&flow))
    );

    // One had packets, one was confirmed, one is new; and one had packets here.
    put(&mut flows, 1, 12);
    remove(&mut embryos, 2);
    put(&mut flows, 2, 3);
    put(&mut embryos, 4, 1);
    let (tuple, flow) = half::<V6Addr>(3, false, 50);
    maps.flows_v6
        .replace(&Wide::tuple(&tuple), &Wide::flow(&flow))
        .unwrap();
    let carried = carry::carry::<Wide>(&from, &mut kernel).unwrap();
    assert_eq!(carried, copied(2, 4));
    let maps = &mut kernel.pinned.maps;
    assert_eq!(maps.flows_v4.get(&key(1, true)).unwrap().packets, 12);
    assert_eq!(maps.flows_v4.get(&key(2, false)).unwrap().packets, 3);
    assert_eq!(maps.embryos_v4.get(&key(2, false)), None);
    assert_eq!(maps.flows_v6.get(&Wide::tuple(&tuple)).unwrap().packets, 50);
    assert_eq!(
        carry::carry::<Wide>(&from, &mut kernel).unwrap(),
        copied(0, 0)
    );

    // A tuple that is another flow's here by now stays so, and what does not fit is told.
    let other = Flow {
        generation: 1,
        ..Wide::flow(&half::<V4Addr>(4, false, 0).1)
    };
    let maps = &mut kernel.pinned.maps;
    maps.embryos_v4.replace(&key(4, false), &other).unwrap();
    put(&mut embryos, 4, 9);
    for n in 5..8 {
        put(&mut flows, n, 1);
    }
    let carried = carry::carry::<Wide>(&from, &mut kernel).unwrap();
    assert_eq!((carried.copied, carried.left_out), (2, 4), "{carried:?}");
    let maps = &mut kernel.pinned.maps;
    assert_eq!(maps.embryos_v4.get(&key(4, false)), Some(other));

    // Each original half of a confirmed flow has a seat.
    let mut seated = Vec::new();
    let ring = kernel.pinned.maps_directory().join(map::FLOW_RING_V4);
    carry::walk(
        &ring,
        map::FLOW_RING_V4,
        |_: u32, seat: abi::Seat<V4Addr>| {
            if seat.generation != 0 {
                assert_eq!(seat.owner, 7);
                seated.push(seat.generation);
            }
        },
    )
    .unwrap();
    seated.sort_unstable();
    assert!(seated.starts_with(&[1001, 1002]), "{seated:?}");
}
