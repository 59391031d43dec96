//! The compiled programs and their maps, run by BPF_PROG_TEST_RUN.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};

use anyhow::{Context as _, Result, bail};
use aya::maps::{Map, MapData};
use aya::programs::SchedClassifier;
use aya::{Ebpf, EbpfLoader};
use aya_obj::generated::{bpf_attr, bpf_cmd};
use netd::dataplane::{Features, OBJECT};
use netd_common::abi::{DropKey, Flow, Tuple, Verdicts, map};
use netd_common::pipeline::Meta;
use netd_common::wire::Family;

/// Keys and values of a map, as bytes.
pub type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// Entries of each flow map: few, so that the map can be read after every packet.
pub const FLOWS: u32 = 64;
/// Entries of each map of embryos: more than the seats of any scenario need.
pub const EMBRYOS: u32 = 4096;

/// Names of the programs, by hook.
const PROGRAMS: [&str; 6] = [
    "from_endpoint",
    "to_endpoint",
    "from_uplink",
    "bridge_guard_in",
    "bridge_guard_out",
    TUNNEL,
];
/// Of the hook of uplinks, where packets have no Ethernet header.
const TUNNEL: &str = "from_tunnel";

/// The loaded object.
pub struct Programs {
    _ebpf: Ebpf,
    programs: Vec<RawFd>,
    maps: HashMap<String, MapData>,
    /// What was written into the maps.
    written: HashMap<&'static str, Rows>,
    cpus: usize,
}

impl Programs {
    /// Loads the object that is part of this build. Nothing is pinned or attached.
    pub fn load(features: Features) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        let bits = features.bits();
        loader.override_global("FEATURES", &bits, true);
        for name in [map::FLOWS_V4, map::FLOWS_V6] {
            loader.map_max_entries(name, FLOWS);
        }
        for name in [map::EMBRYOS_V4, map::EMBRYOS_V6] {
            loader.map_max_entries(name, EMBRYOS);
        }
        // No counter may be evicted: they are compared.
        loader.map_max_entries(map::DROPS, 16384);
        let mut ebpf = loader.load(OBJECT)?;
        let mut programs = Vec::new();
        for name in PROGRAMS {
            let program: &mut SchedClassifier = ebpf.program_mut(name).context(name)?.try_into()?;
            program.load().with_context(|| format!("load {name}"))?;
            programs.push(program.fd()?.as_fd().as_raw_fd());
        }
        let names: Vec<String> = ebpf.maps().map(|(name, _)| name.to_owned()).collect();
        let mut maps = HashMap::new();
        for name in names {
            if let Some(data) = ebpf.take_map(&name).and_then(map_data) {
                maps.insert(name, data);
            }
        }
        Ok(Self {
            _ebpf: ebpf,
            programs,
            maps,
            written: HashMap::new(),
            cpus: aya::util::nr_cpus().map_err(|(_, e)| e)?,
        })
    }

    fn fd(&self, name: &str) -> u32 {
        self.maps[name].fd().as_fd().as_raw_fd() as u32
    }

    /// Makes a map's content equal to `rows`, as far as it was written by this function.
    pub fn write(&mut self, name: &'static str, rows: Rows) -> Result<()> {
        let before = self.written.remove(name).unwrap_or_default();
        for (key, value) in &before {
            if !rows.contains_key(key) {
                if self.maps[name].info()?.map_type()? == aya::maps::MapType::Array {
                    self.put(name, key, &vec![0; value.len()])?;
                } else {
                    self.remove(name, key)?;
                }
            }
        }
        for (key, value) in &rows {
            if before.get(key) != Some(value) {
                self.put(name, key, value)?;
            }
        }
        self.written.insert(name, rows);
        Ok(())
    }

    /// Zeroes the first elements of an array.
    pub fn zero(&self, name: &str, elements: u32) -> Result<()> {
        let size = self.maps[name].info()?.value_size() as usize;
        (0..elements).try_for_each(|index| self.put(name, &index.to_ne_bytes(), &vec![0; size]))
    }

    /// Empties a hash map with keys of four bytes.
    pub fn clear(&self, name: &str) -> Result<()> {
        let mut attr = zeroed();
        let mut key = [0u8; 4];
        attr.__bindgen_anon_2.map_fd = self.fd(name);
        attr.__bindgen_anon_2.__bindgen_anon_1.next_key = key.as_mut_ptr() as u64;
        // Without a key before it: the first.
        while bpf(bpf_cmd::BPF_MAP_GET_NEXT_KEY, &mut attr).is_ok() {
            self.remove(name, &key)?;
        }
        Ok(())
    }

    /// Removes all flows from one of their tables.
    pub fn forget<F: Family>(&self, name: &str) -> Result<()> {
        self.forget_rows::<Tuple<F::Addr>, Flow<F::Addr>>(name)
    }

    /// Removes all rows of a hash map.
    pub fn forget_rows<K: Copy, V: Copy>(&self, name: &str) -> Result<()> {
        for (key, _) in self.entries::<K, V>(name)? {
            self.remove(name, &raw(&key))?;
        }
        Ok(())
    }

    /// Writes one entry.
    pub fn put(&self, name: &str, key: &[u8], value: &[u8]) -> Result<()> {
        let mut attr = zeroed();
        attr.__bindgen_anon_2.map_fd = self.fd(name);
        attr.__bindgen_anon_2.key = key.as_ptr() as u64;
        attr.__bindgen_anon_2.__bindgen_anon_1.value = value.as_ptr() as u64;
        bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr)
            .with_context(|| format!("write {key:02x?} into {name}"))
    }

    /// Removes one entry.
    pub fn remove(&self, name: &str, key: &[u8]) -> Result<()> {
        let mut attr = zeroed();
        attr.__bindgen_anon_2.map_fd = self.fd(name);
        attr.__bindgen_anon_2.key = key.as_ptr() as u64;
        bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr)
            .with_context(|| format!("remove {key:02x?} from {name}"))
    }

    /// Reads one entry; of a per-CPU map, one value per CPU. `None`: it is not there.
    fn get(&self, name: &str, key: &[u8], size: usize) -> Result<Option<Vec<u8>>> {
        let mut value = vec![0; size];
        let mut attr = zeroed();
        attr.__bindgen_anon_2.map_fd = self.fd(name);
        attr.__bindgen_anon_2.key = key.as_ptr() as u64;
        attr.__bindgen_anon_2.__bindgen_anon_1.value = value.as_mut_ptr() as u64;
        match bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr) {
            Ok(()) => Ok(Some(value)),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(e) => Err(e).with_context(|| format!("read {name}")),
        }
    }

    /// An element of an array.
    pub fn element<V: Copy>(&self, name: &str, index: u32) -> Result<V> {
        let value = self.get(
            name,
            &index.to_ne_bytes(),
            size_of::<V>().next_multiple_of(8),
        )?;
        let value = value.context("arrays have all their elements")?;
        Ok(from_raw(&value[..size_of::<V>()]))
    }

    /// Drops counted under this key, over all CPUs.
    pub fn drops(&self, key: &DropKey) -> Result<u64> {
        let size = size_of::<netd_common::abi::DropCount>();
        let counts = self.get(map::DROPS, &raw(key), size * self.cpus)?;
        Ok(counts.map_or(0, |counts| {
            let totals = counts
                .chunks(size)
                .map(|count| from_raw::<u64>(&count[..8]));
            totals.sum()
        }))
    }

    /// What a hook decided so far, over all CPUs.
    pub fn verdicts(&self, hook: u8) -> Result<Verdicts> {
        let size = size_of::<Verdicts>();
        let key = u32::from(hook).to_ne_bytes();
        let values = self
            .get(map::VERDICTS, &key, size * self.cpus)?
            .context("VERDICTS has an element per hook")?;
        let mut sum = Verdicts::default();
        for value in values.chunks(size).map(from_raw::<Verdicts>) {
            sum.passed += value.passed;
            sum.forwarded += value.forwarded;
            sum.decided += value.decided;
            sum.dropped += value.dropped;
        }
        Ok(sum)
    }

    /// All entries of a hash map.
    pub fn entries<K: Copy, V: Copy>(&self, name: &str) -> Result<Vec<(K, V)>> {
        let room = EMBRYOS.max(FLOWS) as usize;
        let (mut keys, mut values) = (
            vec![0u8; room * size_of::<K>()],
            vec![0u8; room * size_of::<V>()],
        );
        let mut next = 0u32;
        let mut attr = zeroed();
        attr.batch.out_batch = &raw mut next as u64;
        attr.batch.keys = keys.as_mut_ptr() as u64;
        attr.batch.values = values.as_mut_ptr() as u64;
        attr.batch.count = room as u32;
        attr.batch.map_fd = self.fd(name);
        match bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
            Err(e) => return Err(e).with_context(|| format!("read {name}")),
            Ok(()) => bail!("{name} holds more than {room} entries"),
        }
        // SAFETY: set above, and by the kernel to the number of entries it wrote.
        let count = unsafe { attr.batch.count } as usize;
        let keys = keys.chunks(size_of::<K>()).map(from_raw::<K>);
        let values = values.chunks(size_of::<V>()).map(from_raw::<V>);
        Ok(keys.zip(values).take(count).collect())
    }

    /// Runs a program over a packet, which it may change. Returns the kernel's action.
    pub fn run(
        &self,
        meta: &Meta,
        headerless: bool,
        gso_size: u32,
        packet: &mut Vec<u8>,
    ) -> Result<i32> {
        let program = if headerless {
            PROGRAMS.len() - 1
        } else {
            usize::from(meta.hook)
        };
        // struct __sk_buff, of which only these fields may be set.
        let mut context = [0u32; 48];
        context[36 / 4] = meta.ingress_ifindex;
        context[40 / 4] = meta.ifindex;
        context[176 / 4] = gso_size;
        let mut out = vec![0u8; packet.len() + 256];
        let mut attr = zeroed();
        attr.test.prog_fd = self.programs[program] as u32;
        attr.test.data_in = packet.as_ptr() as u64;
        attr.test.data_size_in = packet.len() as u32;
        attr.test.data_out = out.as_mut_ptr() as u64;
        attr.test.data_size_out = out.len() as u32;
        attr.test.ctx_in = context.as_ptr() as u64;
        attr.test.ctx_size_in = size_of_val(&context) as u32;
        attr.test.repeat = 1;
        bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr).with_context(|| {
            format!(
                "run {} at interface {} over {} bytes",
                PROGRAMS[program],
                meta.ifindex,
                packet.len()
            )
        })?;
        // SAFETY: written by the kernel.
        let (retval, length) = unsafe { (attr.test.retval, attr.test.data_size_out as usize) };
        out.truncate(length);
        *packet = out;
        Ok(retval as i32)
    }
}

fn map_data(map: Map) -> Option<MapData> {
    Some(match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LpmTrie(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::PerCpuLruHashMap(data)
        | Map::RingBuf(data) => data,
        _ => return None,
    })
}

/// The bytes of a type of the ABI.
pub fn raw<T: Copy>(value: &T) -> Vec<u8> {
    let pointer = std::ptr::from_ref(value).cast();
    // SAFETY: only types of the ABI are passed, which have no padding.
    unsafe { std::slice::from_raw_parts(pointer, size_of::<T>()) }.to_vec()
}

fn from_raw<T: Copy>(bytes: &[u8]) -> T {
    assert_eq!(bytes.len(), size_of::<T>());
    // SAFETY: only types of the ABI are asked for, which any bytes are valid for.
    unsafe { bytes.as_ptr().cast::<T>().read_unaligned() }
}

fn zeroed() -> bpf_attr {
    // SAFETY: a union of integers: all zero is valid, and what the kernel wants in unused fields.
    unsafe { std::mem::zeroed() }
}

fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<()> {
    // SAFETY: `attr` is a whole, initialised bpf_attr; the callers' buffers outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_int,
            std::ptr::from_mut(attr),
            size_of::<bpf_attr>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
