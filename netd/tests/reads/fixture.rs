//! A data plane without a daemon: the maps of the real object under a throw-away pin directory,
//! filled by the test.

use std::{
    collections::BTreeMap,
    fs, mem,
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    process::{Command, Output},
    ptr,
    sync::atomic::{AtomicU32, Ordering},
};

use aya::{
    EbpfLoader, Pod,
    maps::{
        Array, HashMap, LpmTrie, Map, MapData, PerCpuArray, PerCpuHashMap, PerCpuValues,
        lpm_trie::Key,
    },
};
use aya_obj::generated::{bpf_attr, bpf_cmd};
use netd::{
    dataplane::OBJECT,
    run_state::{DIRECTORY, RunFiles},
};
use netd_common::{
    abi::{self, DropCount, DropEvent, DropKey, Flow, Tuple, V4Addr, Verdicts, map},
    wire::Wire,
};

/// A type of the ABI as aya sees it.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Plain<T>(pub T);

// SAFETY: `Wire` promises plain data without padding, and the wrapper is transparent.
unsafe impl<T: Wire> Pod for Plain<T> {}

/// Pinned maps; removed when dropped, with the run files that belong to them.
pub struct Fixture {
    pub pin_dir: PathBuf,
}

/// `None`, and a word about it, where the maps cannot be made.
pub fn fixture(sizes: &[(&str, u32)]) -> Option<Fixture> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: making BPF maps needs root");
        return None;
    }
    let fixture = Fixture::empty();
    let small: BTreeMap<&str, u32> = [
        (map::FLOWS_V4, 1024),
        (map::FLOWS_V6, 1024),
        (map::EMBRYOS_V4, 256),
        (map::EMBRYOS_V6, 256),
    ]
    .into_iter()
    .chain(sizes.iter().copied())
    .collect();
    let mut loader = EbpfLoader::new();
    for (name, entries) in small {
        loader.map_max_entries(name, entries);
    }
    let ebpf = loader.load(OBJECT).expect("the object loads");
    fs::create_dir_all(fixture.maps()).expect("bpffs is writable");
    for (name, map) in ebpf.maps() {
        if netd::state::shape::shape(name).is_some() {
            map.pin(fixture.maps().join(name))
                .expect("a map can be pinned");
        }
    }
    Some(fixture)
}

impl Fixture {
    /// A pin directory that does not exist.
    pub fn empty() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let unique = NEXT.fetch_add(1, Ordering::Relaxed);
        let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), unique);
        let pid = std::process::id();
        Self {
            pin_dir: format!("/sys/fs/bpf/netd-test-{pid}-{:08x}", random as u32).into(),
        }
    }

    pub fn maps(&self) -> PathBuf {
        self.pin_dir.join(format!("v{}/maps", abi::VERSION))
    }

    pub fn links(&self) -> PathBuf {
        self.pin_dir.join(format!("v{}/links", abi::VERSION))
    }

    pub fn run_files(&self) -> RunFiles {
        RunFiles::of(&self.pin_dir)
    }

    /// The command with this pin directory.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_netd"));
        command.args(args).arg("--pin-dir").arg(&self.pin_dir);
        command
    }

    /// Runs the command; exit code, standard output, standard error.
    pub fn netd(&self, args: &[&str]) -> (i32, String, String) {
        let Output {
            status,
            stdout,
            stderr,
        } = self.command(args).output().expect("netd starts");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        (
            status.code().expect("an exit code"),
            text(stdout),
            text(stderr),
        )
    }

    /// Runs the command with `--json` and parses its answer.
    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
        let (_, stdout, stderr) = self.netd(&args);
        serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{args:?}: {e}: {stdout}{stderr}"))
    }

    fn map(&self, name: &str) -> Map {
        Map::from_map_data(self.data(name)).expect("a map of a known type")
    }

    pub fn data(&self, name: &str) -> MapData {
        MapData::from_pin(self.maps().join(name)).expect("the map is pinned")
    }

    pub fn put<K: Wire, V: Wire>(&self, name: &str, entries: impl IntoIterator<Item = (K, V)>) {
        let mut map: HashMap<_, Plain<K>, Plain<V>> = self.map(name).try_into().expect("a hash");
        for (key, value) in entries {
            map.insert(Plain(key), Plain(value), 0)
                .expect("an entry fits");
        }
    }

    pub fn put_prefix<K: Wire, V: Wire>(&self, name: &str, bits: u32, key: K, value: V) {
        let mut map: LpmTrie<_, Plain<K>, Plain<V>> = self.map(name).try_into().expect("a trie");
        map.insert(&Key::new(bits, Plain(key)), Plain(value), 0)
            .expect("an entry fits");
    }

    pub fn set<V: Wire>(&self, name: &str, index: u32, value: V) {
        let mut map: Array<_, Plain<V>> = self.map(name).try_into().expect("an array");
        map.set(index, Plain(value), 0).expect("an index within");
    }

    /// Two halves of a flow.
    pub fn put_flow(
        &self,
        name: &str,
        original: (Tuple<V4Addr>, Flow<V4Addr>),
        reply: Flow<V4Addr>,
    ) {
        let (key, flow) = original;
        let inside = Tuple {
            src: flow.src,
            dst: flow.dst,
            sport: flow.sport,
            dport: flow.dport,
            ..key
        };
        self.put(name, [(key, flow), (inside.reversed(), reply)]);
    }

    /// One counter per CPU: `on_first` on CPU 0, `on_last` on the last one.
    pub fn put_drops(&self, key: DropKey, on_first: DropCount, on_last: DropCount) {
        let mut map: PerCpuHashMap<_, Plain<DropKey>, Plain<DropCount>> =
            self.map(map::DROPS).try_into().expect("a per-CPU hash");
        let none = DropCount {
            total: 0,
            last_seen: 0,
            ..on_first
        };
        map.insert(Plain(key), per_cpu(on_first, none, on_last), 0)
            .expect("an entry fits");
    }

    pub fn put_verdicts(&self, hook: u8, on_each_end: Verdicts) {
        let mut map: PerCpuArray<_, Plain<Verdicts>> =
            self.map(map::VERDICTS).try_into().expect("a per-CPU array");
        let values = per_cpu(on_each_end, Verdicts::default(), on_each_end);
        map.set(hook.into(), values, 0).expect("an index within");
    }
}

fn per_cpu<T: Wire>(first: T, between: T, last: T) -> PerCpuValues<Plain<T>> {
    let cpus = aya::util::nr_cpus().expect("the number of CPUs");
    assert!(
        cpus >= 2,
        "two CPUs are needed to tell a sum from one value"
    );
    let mut values: Vec<Plain<T>> = (0..cpus).map(|_| Plain(between)).collect();
    values[0] = Plain(first);
    values[cpus - 1] = Plain(last);
    values.try_into().expect("one value per CPU")
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.pin_dir);
        let files = self.run_files();
        for file in [files.lock, files.socket, files.state] {
            let _ = fs::remove_file(file);
        }
        // Only if nothing else uses it.
        let _ = fs::remove_dir(Path::new(DIRECTORY));
    }
}

/// A small program that writes one event to the ring buffer, as the
/// data plane does: user space cannot.
pub struct Dropper {
    program: OwnedFd,
    _ring: MapData,
}

impl Dropper {
    pub fn new(ring: MapData, event: &DropEvent) -> Self {
        let program = load(&dropper(ring.fd().as_fd().as_raw_fd(), event));
        Self {
            program,
            _ring: ring,
        }
    }

    /// Writes the event.
    pub fn run(&self) {
        let packet = [0u8; 64];
        let mut attr = zeroed();
        attr.test.prog_fd = self.program.as_raw_fd() as u32;
        attr.test.data_in = packet.as_ptr() as u64;
        attr.test.data_size_in = packet.len() as u32;
        // SAFETY: the packet has the length that is given, and outlives the call.
        unsafe { bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr) };
    }
}

fn dropper(ring: i32, event: &DropEvent) -> Vec<u64> {
    let op = |code: u8, dst: u8, src: u8, offset: i16, immediate: i32| {
        u64::from(code)
            | u64::from(dst | src << 4) << 8
            | u64::from(offset as u16) << 16
            | u64::from(immediate as u32) << 32
    };
    const SIZE: usize = size_of::<DropEvent>();
    // SAFETY: `Wire` types have no padding: every byte is initialised.
    let bytes: [u8; SIZE] = unsafe { mem::transmute(*event) };
    let mut program = Vec::new();
    // *(u32 *)(r10 - 64 + i) = …
    for (i, word) in bytes.chunks_exact(4).enumerate() {
        let word = i32::from_ne_bytes(word.try_into().expect("four bytes"));
        program.push(op(0x62, 10, 0, i as i16 * 4 - 64, word));
    }
    program.extend([
        op(0x18, 1, 1, 0, ring), // r1 = ring
        0,
        op(0xbf, 2, 10, 0, 0),          // r2 = r10
        op(0x07, 2, 0, 0, -64),         // r2 -= 64
        op(0xb7, 3, 0, 0, SIZE as i32), // r3 = size
        op(0xb7, 4, 0, 0, 0),           // r4 = 0
        op(0x85, 0, 0, 0, 130),         // bpf_ringbuf_output
        op(0xb7, 0, 0, 0, 0),           // r0 = 0
        op(0x95, 0, 0, 0, 0),           // exit
    ]);
    program
}

fn load(program: &[u64]) -> OwnedFd {
    let mut log = vec![0u8; 4096];
    let mut attr = zeroed();
    attr.__bindgen_anon_3.prog_type = 1; // BPF_PROG_TYPE_SOCKET_FILTER
    attr.__bindgen_anon_3.insns = program.as_ptr() as u64;
    attr.__bindgen_anon_3.insn_cnt = program.len() as u32;
    attr.__bindgen_anon_3.license = c"GPL".as_ptr() as u64;
    attr.__bindgen_anon_3.log_level = 1;
    attr.__bindgen_anon_3.log_buf = log.as_mut_ptr() as u64;
    attr.__bindgen_anon_3.log_size = log.len() as u32;
    // SAFETY: program and log have the lengths that are given, and outlive the call; what comes
    // back is a new descriptor.
    unsafe { OwnedFd::from_raw_fd(bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr)) }
}

fn zeroed() -> bpf_attr {
    // SAFETY: a union of integers.
    unsafe { mem::zeroed() }
}

/// # Safety
/// What `attr` points to must have the sizes it says, and outlive the call.
unsafe fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> i32 {
    // SAFETY: as the caller promises.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_int,
            ptr::from_mut(attr),
            size_of::<bpf_attr>(),
        )
    };
    assert!(result >= 0, "bpf: {}", std::io::Error::last_os_error());
    result as i32
}
