//! The real data plane: the BPF object in this binary, loaded, pinned and attached.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{
    CgroupSockAddr, LinkOrder, Program, ProgramError, SchedClassifier, TcAttachType,
};
use aya::{Ebpf, EbpfLoader};
use netd_common::abi::{self, NatPressure, config_flag, flow_table, map};

use super::maps::Maps;
use super::shape::{ShapeError, check, is_sized_by_memory, shapes};
use super::sys::tcx_links;
use super::{
    Actual, AttachMode, Attached, Attachment, Dataplane, DataplaneError, Hook, Row, RowKey, Sizes,
    Tables, cgroup, clsact, host_sockets,
};
use super::{flows, kernel_flows};
use crate::collect::{Collected, FlowFilter};
use crate::host::{self, HostFacts, KernelFeatures};
use crate::nat_use::Destination;

/// The BPF object that is built with this binary.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("NETD_BPF_OBJECT"));

/// What the programs are told about the kernel, as the read-only global `FEATURES`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// BPF_FIB_LOOKUP_SRC (6.7).
    pub fib_source: bool,
    /// BPF_FIB_LOOKUP_SKIP_NEIGH (6.3).
    pub fib_skip_neigh: bool,
    /// BPF_F_IPV6 of bpf_l4_csum_replace (6.16 and some stable kernels).
    pub csum_ipv6: bool,
    /// BPF_FIB_LOOKUP_TBID (6.5).
    pub fib_table: bool,
}

impl Features {
    /// The bits of `FEATURES`.
    pub fn bits(self) -> u32 {
        u32::from(self.fib_source)
            | u32::from(self.fib_skip_neigh) << 1
            | u32::from(self.csum_ipv6) << 2
            | u32::from(self.fib_table) << 3
    }
}

impl From<&KernelFeatures> for Features {
    fn from(kernel: &KernelFeatures) -> Self {
        Self {
            fib_source: kernel.fib_source,
            fib_skip_neigh: kernel.fib_skip_neigh,
            csum_ipv6: kernel.csum_ipv6,
            fib_table: kernel.fib_table,
        }
    }
}

/// How to load the data plane.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Directory on a BPF file system.
    pub pin_dir: PathBuf,
    /// Sizes for maps that do not exist yet.
    pub sizes: Sizes,
    /// What the kernel has.
    pub features: Features,
    /// How to attach.
    pub attach: AttachMode,
    /// Checks to switch off, bits of [`netd_common::sabotage::Check`]; only a binary with the
    /// feature `sabotage` has the switch.
    pub sabotage: u32,
}

/// The pinned maps and links of a data plane, without programs to attach: what can be read and
/// undone.
pub struct Pinned {
    root: PathBuf,
    pub(super) maps: Maps,
    attach: AttachMode,
    /// Interfaces that got their clsact qdisc from netd.
    qdiscs: BTreeSet<u32>,
}

/// The data plane with this binary's programs.
pub struct Kernel {
    pub(super) pinned: Pinned,
    ebpf: Ebpf,
    programs: HashMap<Hook, u32>,
    notes: Vec<String>,
}

/// Where the objects of this ABI version are pinned.
pub(crate) fn root(pin_dir: &Path) -> PathBuf {
    pin_dir.join(format!("v{}", abi::VERSION))
}

pub(super) fn pin_error(
    path: &Path,
    action: &'static str,
) -> impl FnOnce(io::Error) -> DataplaneError {
    move |source| DataplaneError::Pin {
        path: path.to_owned(),
        action,
        source,
    }
}

impl Pinned {
    /// Opens what is pinned; `None` when there is nothing.
    ///
    /// # Errors
    /// [`DataplaneError::Shape`] when a map is not what this version would make, or only some of
    /// them are there.
    pub fn open(
        pin_dir: &Path,
        sizes: &Sizes,
        attach: AttachMode,
        qdiscs: BTreeSet<u32>,
    ) -> Result<Option<Self>, DataplaneError> {
        let root = root(pin_dir);
        let maps = root.join("maps");
        let mut missing = None;
        let mut found = false;
        for shape in shapes(sizes) {
            match check(&maps, &shape)? {
                Some(_) => found = true,
                None => missing = Some(shape.name),
            }
        }
        match missing {
            Some(_) if !found => return Ok(None),
            Some(name) => {
                let path = maps.join(name);
                return Err(ShapeError::Missing { path }.into());
            }
            None => {}
        }
        Ok(Some(Self {
            maps: Maps::open(&maps)?,
            root,
            attach,
            qdiscs,
        }))
    }

    /// What is in force. Every program that is attached counts as current.
    pub fn read(&self, facts: &HostFacts) -> Result<Actual, DataplaneError> {
        self.read_with(facts, |_, _| true)
    }

    fn read_with(
        &self,
        facts: &HostFacts,
        is_current: impl Fn(Hook, u32) -> bool,
    ) -> Result<Actual, DataplaneError> {
        Ok(Actual {
            tables: self.maps.rows()?,
            config: self.maps.config()?,
            attachments: self.attachments(facts, is_current)?,
        })
    }

    fn attachments(
        &self,
        facts: &HostFacts,
        is_current: impl Fn(Hook, u32) -> bool,
    ) -> Result<BTreeMap<Attachment, Attached>, DataplaneError> {
        let mut found = self.links(&is_current)?;
        if self.attach == AttachMode::Clsact {
            // Links of an earlier daemon to interfaces are removed as a whole.
            found.retain(|attachment, _| attachment.hook.is_cgroup());
            let interfaces: Vec<u32> = facts.links.iter().map(|link| link.ifindex).collect();
            found.extend(clsact::attachments(&interfaces, is_current)?);
        }
        Ok(found)
    }

    fn links(
        &self,
        is_current: impl Fn(Hook, u32) -> bool,
    ) -> Result<BTreeMap<Attachment, Attached>, DataplaneError> {
        let directory = self.root.join("links");
        let mut found = BTreeMap::new();
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            entries => entries.map_err(pin_error(&directory, "list it"))?,
        };
        for entry in entries {
            let entry = entry.map_err(pin_error(&directory, "list it"))?;
            if let Some(attachment) =
                Attachment::from_pin_name(&entry.file_name().to_string_lossy())
            {
                let state = link_state(&entry.path(), attachment, &is_current)?;
                found.insert(attachment, state);
            }
        }
        Ok(found)
    }

    /// Where the maps are pinned.
    pub(super) fn maps_directory(&self) -> PathBuf {
        self.root.join("maps")
    }

    fn link_path(&self, attachment: Attachment) -> PathBuf {
        self.root.join("links").join(attachment.pin_name())
    }

    fn detach(&mut self, attachment: Attachment) -> Result<(), DataplaneError> {
        let mode = match self.attach {
            _ if attachment.hook.is_cgroup() => AttachMode::Tcx,
            mode => mode,
        };
        match mode {
            AttachMode::Tcx => {
                // The last reference to the link: it detaches wherever its device is now.
                let path = self.link_path(attachment);
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        Err(pin_error(&path, "remove it")(error))
                    }
                    _ => Ok(()),
                }
            }
            AttachMode::Clsact => {
                // Gone with its interface, if that is gone.
                let Ok(interface) = interface_name(attachment.ifindex) else {
                    return Ok(());
                };
                let made = self.qdiscs.contains(&attachment.ifindex);
                clsact::detach(attachment, &interface, made)
            }
        }
    }

    /// Removes every entry of the flow tables that the filter matches, and of the kernel's flows.
    fn end_flows(&mut self, filter: &FlowFilter) -> Result<usize, DataplaneError> {
        Ok(flows::end(&mut self.maps, filter)? + kernel_flows::end(&mut self.maps, filter)?)
    }

    /// Removes flows that were idle longer than their state allows, and counts the others.
    ///
    /// # Errors
    /// When a map cannot be walked; what was removed until then stays removed.
    pub fn collect(&mut self) -> Result<Collected, DataplaneError> {
        let now = (host::monotonic_nanoseconds() / 1_000_000_000) as u32;
        flows::collect(&mut self.maps, now)
    }
}

fn link_state(
    path: &Path,
    attachment: Attachment,
    is_current: impl Fn(Hook, u32) -> bool,
) -> Result<Attached, DataplaneError> {
    if attachment.hook.is_cgroup() {
        return cgroup::state(path, |program| is_current(attachment.hook, program));
    }
    let link = PinnedLink::from_pin(path).map_err(|error| DataplaneError::Pin {
        path: path.to_owned(),
        action: "open it",
        source: io::Error::other(error),
    })?;
    let info = FdLink::from(link)
        .info()
        .map_err(|error| DataplaneError::Pin {
            path: path.to_owned(),
            action: "inspect it",
            source: io::Error::other(error),
        })?;
    // A link outlives its device, and follows it into another namespace: what counts is whether it
    // is at that interface of this namespace.
    let at_interface = tcx_links(attachment.ifindex, attachment.hook.is_egress())
        .map_err(pin_error(path, "query the interface's programs"))?;
    Ok(if !at_interface.contains(&info.id()) {
        Attached::Stale
    } else if is_current(attachment.hook, info.program_id()) {
        Attached::Current
    } else {
        Attached::Outdated
    })
}

fn interface_name(ifindex: u32) -> io::Result<String> {
    let name = nix::net::if_::if_indextoname(ifindex).map_err(io::Error::from)?;
    Ok(name.to_string_lossy().into_owned())
}

impl Kernel {
    /// Would [`Kernel::load`] work? The shapes of what is pinned are compared, and the kernel verifies
    /// every program; nothing is kept.
    ///
    /// # Errors
    /// As [`Kernel::load`].
    pub fn check(options: &LoadOptions) -> Result<(), DataplaneError> {
        let maps = root(&options.pin_dir).join("maps");
        for shape in shapes(&options.sizes) {
            check(&maps, &shape)?;
        }
        load_unattached(options)
    }

    /// Loads the programs, makes the maps that are not pinned yet and opens those that are.
    /// Attaches nothing.
    ///
    /// # Errors
    /// [`DataplaneError::Shape`] when a pinned map is not what this version would make; nothing was
    /// changed then. [`DataplaneError::Load`] with what the kernel's verifier said.
    pub fn load(options: &LoadOptions, qdiscs: BTreeSet<u32>) -> Result<Self, DataplaneError> {
        let root = root(&options.pin_dir);
        let maps = root.join("maps");
        // All shapes before anything is made.
        let mut notes = Vec::new();
        let mut entries: Vec<(&'static str, u32)> = Vec::new();
        for shape in shapes(&options.sizes) {
            let found = check(&maps, &shape)?;
            entries.push((shape.name, found.unwrap_or(shape.entries)));
            if let Some(found) = found
                && found != shape.entries
                && is_sized_by_memory(shape.name)
            {
                notes.push(format!(
                    "{} keeps its {found} entries and its content; {} would be made now: \
                     `netd unload`, then `netd run`, changes it",
                    shape.name, shape.entries
                ));
            }
        }
        for directory in [&maps, &root.join("links")] {
            fs::create_dir_all(directory).map_err(pin_error(directory, "make it"))?;
        }

        let mut loader = loader(options);
        for (name, entries) in &entries {
            loader.map_max_entries(name, *entries);
            loader.map_pin_path(name, maps.join(name));
        }
        let mut ebpf = loader.load(OBJECT).map_err(|error| load_error(&error))?;
        let programs = load_programs(&mut ebpf, |hook| !hook.is_rare())?;
        let mut maps = Maps::open(&maps)?;
        let mut config = maps.config()?;
        config.seats = seats(&entries);
        if config.seed == 0 {
            config.seed = random_seed();
            config.epoch = 1;
        }
        maps.set_config(config)?;
        Ok(Self {
            pinned: Pinned {
                root,
                maps,
                attach: options.attach,
                qdiscs,
            },
            ebpf,
            programs,
            notes,
        })
    }

    /// Has the programs' own messages logged from now on; see [`super::bpf_log`].
    ///
    /// # Errors
    /// See [`super::bpf_log::forward`].
    #[cfg(feature = "bpf-log")]
    pub fn forward_log(&mut self) -> anyhow::Result<()> {
        super::bpf_log::forward(&mut self.ebpf)
    }

    /// What the user should know about how it was loaded.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// What is in force.
    pub fn read(&self, facts: &HostFacts) -> Result<Actual, DataplaneError> {
        self.pinned
            .read_with(facts, |hook, id| self.programs.get(&hook) == Some(&id))
    }

    /// What is in force, but for the rows of the maps.
    pub(crate) fn read_without_tables(&self, facts: &HostFacts) -> Result<Actual, DataplaneError> {
        let current = |hook, id| self.programs.get(&hook) == Some(&id);
        Ok(Actual {
            config: self.pinned.maps.config()?,
            attachments: self.pinned.attachments(facts, current)?,
            ..Actual::default()
        })
    }

    /// See [`Pinned::collect`].
    ///
    /// # Errors
    /// As there.
    pub fn collect(&mut self) -> Result<Collected, DataplaneError> {
        self.pinned.collect()
    }

    /// Ends the host's sockets whose container or publish is not in `tables` any more.
    ///
    /// # Errors
    /// When sockets cannot be listed, or one cannot be ended: its packets are dropped until it can.
    pub(crate) fn end_host_sockets(
        &mut self,
        tables: &Tables,
    ) -> Result<host_sockets::Ended, DataplaneError> {
        let now = (host::monotonic_nanoseconds() / 1_000_000_000) as u32;
        host_sockets::end_stale(&mut self.pinned.maps.sockets, tables, now)
    }

    /// Forgets the host's sockets that are closed, where their map fills up.
    ///
    /// # Errors
    /// When sockets cannot be listed.
    pub(crate) fn forget_closed_sockets(&mut self) -> Result<usize, DataplaneError> {
        let now = (host::monotonic_nanoseconds() / 1_000_000_000) as u32;
        host_sockets::forget_closed(&mut self.pinned.maps.sockets, now)
    }

    /// How many source ports are in use towards the destinations that `events` tell of.
    ///
    /// # Errors
    /// When a map cannot be walked.
    pub fn ports_in_use(
        &self,
        events: &[NatPressure],
    ) -> Result<BTreeMap<Destination, u32>, DataplaneError> {
        flows::ports_in_use(&self.pinned.maps, events)
    }

    /// Where its maps are pinned.
    pub fn maps_directory(&self) -> PathBuf {
        self.pinned.root.join("maps")
    }

    /// Where the source port range lies now.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn config(&self) -> Result<abi::Config, DataplaneError> {
        self.pinned.maps.config()
    }

    /// Interfaces that got their clsact qdisc from netd.
    pub fn qdiscs(&self) -> &BTreeSet<u32> {
        &self.pinned.qdiscs
    }

    /// Notes when the data plane last agreed with the file and the host.
    pub fn synchronised(&mut self) -> Result<(), DataplaneError> {
        let mut config = self.pinned.maps.config()?;
        config.synced_at = (host::boottime_nanoseconds() / 1_000_000_000) as u32;
        self.pinned.maps.set_config(config)
    }

    /// Loads a program that no interface needed before.
    fn see_to(&mut self, hook: Hook) -> Result<(), DataplaneError> {
        if hook.is_rare() && !self.programs.contains_key(&hook) {
            let program = self.ebpf.program_mut(hook.program());
            let id = load(hook, program.ok_or_else(|| missing(hook))?)?;
            self.programs.insert(hook, id);
        }
        Ok(())
    }

    fn attach_tcx(
        &mut self,
        attachment: Attachment,
        interface: &str,
    ) -> Result<(), DataplaneError> {
        let path = self.pinned.link_path(attachment);
        let failed = |reason: &dyn std::fmt::Display| DataplaneError::Attach {
            program: attachment.hook.program(),
            interface: interface.to_owned(),
            reason: reason.to_string(),
        };
        if path.exists() {
            if link_state(&path, attachment, |_, _| true)? == Attached::Current {
                return self.replace_program(&path, attachment, interface);
            }
            fs::remove_file(&path).map_err(pin_error(&path, "remove it"))?;
        }
        let program: &mut SchedClassifier = program(&mut self.ebpf, attachment.hook)?;
        let direction = if attachment.hook.is_egress() {
            TcAttachType::Egress
        } else {
            TcAttachType::Ingress
        };
        let order = TcAttachOptions::TcxOrder(LinkOrder::first());
        let id = program
            .attach_with_options(interface, direction, order)
            .map_err(|error| failed(&chain(&error)))?;
        let link = program.take_link(id).map_err(|error| failed(&error))?;
        let link = FdLink::try_from(link).map_err(|error| failed(&error))?;
        let own = link.info().map_err(|error| failed(&error))?.id();
        // aya attaches by name, and an interface may have been renamed since the host was read.
        let at_interface = tcx_links(attachment.ifindex, attachment.hook.is_egress())
            .map_err(|error| failed(&error))?;
        if !at_interface.contains(&own) {
            return Err(failed(
                &"another interface has that name now; it is read again",
            ));
        }
        link.pin(&path)
            .map(drop)
            .map_err(|error| failed(&chain(&error)))
    }
}

impl Kernel {
    /// Replaces the program in a pinned link, atomically.
    fn replace_program(
        &mut self,
        pin: &Path,
        attachment: Attachment,
        interface: &str,
    ) -> Result<(), DataplaneError> {
        let failed = |reason: &dyn std::fmt::Display| DataplaneError::Attach {
            program: attachment.hook.program(),
            interface: interface.to_owned(),
            reason: reason.to_string(),
        };
        let program: &mut SchedClassifier = program(&mut self.ebpf, attachment.hook)?;
        let link = PinnedLink::from_pin(pin).map_err(|error| failed(&error))?;
        let link =
            SchedClassifierLink::try_from(FdLink::from(link)).map_err(|error| failed(&error))?;
        let id = program
            .attach_to_link(link)
            .map_err(|error| failed(&chain(&error)))?;
        // Closes the descriptor; the pin keeps the link.
        drop(program.take_link(id).map_err(|error| failed(&error))?);
        Ok(())
    }

    /// Replaces the program in a link that another version pinned at `pin`, and moves the pin to
    /// where ours are. False for a link whose interface is gone: it is left where it is.
    ///
    /// # Errors
    /// Then the link is as it was.
    pub(super) fn adopt_link(
        &mut self,
        pin: &Path,
        attachment: Attachment,
    ) -> Result<bool, DataplaneError> {
        self.see_to(attachment.hook)?;
        // No earlier version had programs at the cgroup; what is there anew is attached anew.
        if attachment.hook.is_cgroup()
            || link_state(pin, attachment, |_, _| true)? != Attached::Current
        {
            return Ok(false);
        }
        let interface = interface_name(attachment.ifindex)
            .unwrap_or_else(|_| format!("interface {}", attachment.ifindex));
        self.replace_program(pin, attachment, &interface)?;
        let path = self.pinned.link_path(attachment);
        fs::rename(pin, &path).map_err(pin_error(pin, "move it"))?;
        Ok(true)
    }
}

impl Dataplane for Pinned {
    fn put(&mut self, row: &Row) -> Result<(), DataplaneError> {
        self.maps.put(row)
    }

    fn remove(&mut self, key: &RowKey) -> Result<(), DataplaneError> {
        self.maps.remove(key)
    }

    fn attach(&mut self, attachment: Attachment, interface: &str) -> Result<(), DataplaneError> {
        Err(DataplaneError::Attach {
            program: attachment.hook.program(),
            interface: interface.to_owned(),
            reason: "no programs are loaded".to_owned(),
        })
    }

    fn detach(&mut self, attachment: Attachment) -> Result<(), DataplaneError> {
        Pinned::detach(self, attachment)
    }

    fn configure(&mut self, config: &abi::Config) -> Result<(), DataplaneError> {
        let now = self.maps.config()?;
        self.maps.set_config(abi::Config {
            flags: config.flags & !config_flag::PASSING | now.flags & config_flag::PASSING,
            nat_first: config.nat_first,
            nat_last: config.nat_last,
            netns_cookie: config.netns_cookie,
            ..now
        })
    }

    fn bump_epoch(&mut self) -> Result<(), DataplaneError> {
        let now = self.maps.config()?;
        self.maps.set_config(abi::Config {
            epoch: now.epoch.wrapping_add(1),
            ..now
        })
    }

    fn set_sysctl(&mut self, name: &str, value: &str) -> Result<(), DataplaneError> {
        host::set_sysctl(name, value)?;
        Ok(())
    }

    fn end_flows(&mut self, filter: &FlowFilter) -> Result<usize, DataplaneError> {
        Pinned::end_flows(self, filter)
    }
}

impl Dataplane for Kernel {
    fn put(&mut self, row: &Row) -> Result<(), DataplaneError> {
        self.pinned.put(row)
    }

    fn remove(&mut self, key: &RowKey) -> Result<(), DataplaneError> {
        self.pinned.remove(key)
    }

    fn attach(&mut self, attachment: Attachment, interface: &str) -> Result<(), DataplaneError> {
        self.see_to(attachment.hook)?;
        match self.pinned.attach {
            _ if attachment.hook.is_cgroup() => {
                let path = self.pinned.link_path(attachment);
                let program: &mut CgroupSockAddr = program(&mut self.ebpf, attachment.hook)?;
                cgroup::attach(program, attachment, &path)
            }
            AttachMode::Tcx => self.attach_tcx(attachment, interface),
            AttachMode::Clsact => {
                let program = program(&mut self.ebpf, attachment.hook)?;
                if clsact::attach(program, attachment, interface)? {
                    self.pinned.qdiscs.insert(attachment.ifindex);
                }
                Ok(())
            }
        }
    }

    fn detach(&mut self, attachment: Attachment) -> Result<(), DataplaneError> {
        Pinned::detach(&mut self.pinned, attachment)
    }

    fn configure(&mut self, config: &abi::Config) -> Result<(), DataplaneError> {
        self.pinned.configure(config)
    }

    fn bump_epoch(&mut self) -> Result<(), DataplaneError> {
        self.pinned.bump_epoch()
    }

    fn set_sysctl(&mut self, name: &str, value: &str) -> Result<(), DataplaneError> {
        self.pinned.set_sysctl(name, value)
    }

    fn end_flows(&mut self, filter: &FlowFilter) -> Result<usize, DataplaneError> {
        Pinned::end_flows(&mut self.pinned, filter)
    }
}

/// Flows in the making have their entries before their seat.
const IN_THE_MAKING: u32 = 32;

/// How many seats the programs may use of each ring.
fn seats(entries: &[(&'static str, u32)]) -> [u32; flow_table::COUNT] {
    let of = |name| {
        let found = entries.iter().find(|(other, _)| *other == name);
        found.map_or(0, |(_, entries)| *entries)
    };
    let table = |table, ring| of(ring).min(of(table) / 2);
    let mut seats = [0; flow_table::COUNT];
    seats[flow_table::FLOWS_V4] = table(map::FLOWS_V4, map::FLOW_RING_V4);
    seats[flow_table::FLOWS_V6] = table(map::FLOWS_V6, map::FLOW_RING_V6);
    for (number, name, ring) in [
        (flow_table::EMBRYOS_V4, map::EMBRYOS_V4, map::EMBRYO_RING_V4),
        (flow_table::EMBRYOS_V6, map::EMBRYOS_V6, map::EMBRYO_RING_V6),
    ] {
        seats[number] = table(name, ring).saturating_sub(IN_THE_MAKING);
    }
    seats
}

/// Loads every program into the kernel, which verifies it, and lets go of it again: nothing is
/// pinned or attached.
///
/// # Errors
/// [`DataplaneError::Load`] with what the verifier said.
pub fn load_unattached(options: &LoadOptions) -> Result<(), DataplaneError> {
    let mut loader = loader(options);
    for shape in shapes(&options.sizes) {
        loader.map_max_entries(shape.name, shape.entries);
    }
    let mut ebpf = loader.load(OBJECT).map_err(|error| load_error(&error))?;
    load_programs(&mut ebpf, |_| true).map(drop)
}

/// Detaches every filter of netd in this network namespace, and removes the qdiscs that netd made
/// and nobody else uses. Returns what could not be done.
pub fn detach_clsact(facts: &HostFacts, qdiscs: &BTreeSet<u32>) -> Vec<DataplaneError> {
    let mut failures = Vec::new();
    for link in &facts.links {
        match clsact::attachments(&[link.ifindex], |_, _| true) {
            Ok(found) => {
                for attachment in found.into_keys() {
                    let made = qdiscs.contains(&link.ifindex);
                    failures.extend(clsact::detach(attachment, &link.name, made).err());
                }
            }
            Err(error) => failures.push(error.into()),
        }
    }
    failures
}

/// Loads those programs, all at once: the verifier walks through each for a while, on one CPU.
/// Returns their ids.
fn load_programs(
    ebpf: &mut Ebpf,
    wanted: impl Fn(Hook) -> bool,
) -> Result<HashMap<Hook, u32>, DataplaneError> {
    for hook in Hook::ALL {
        if ebpf.program(hook.program()).is_none() {
            return Err(missing(hook));
        }
    }
    let with_cgroups = host::supports_socket_hooks();
    std::thread::scope(|scope| {
        let loading: Vec<_> = ebpf
            .programs_mut()
            .filter_map(|(name, program)| {
                let hook = Hook::ALL.into_iter().find(|hook| hook.program() == name)?;
                Some((hook, program))
            })
            .filter(|(hook, _)| wanted(*hook) && (with_cgroups || !hook.is_cgroup()))
            .map(|(hook, program)| scope.spawn(move || Ok((hook, load(hook, program)?))))
            .collect();
        loading
            .into_iter()
            .map(|thread| {
                let panicked = |_| DataplaneError::Load("a loading thread panicked".to_owned());
                thread.join().map_err(panicked)?
            })
            .collect()
    })
}

/// Loads one program; returns its id.
fn load(hook: Hook, program: &mut Program) -> Result<u32, DataplaneError> {
    let loaded = match &mut *program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        _ => return Err(missing(hook)),
    };
    loaded.map_err(|error| load_error(&error))?;
    let info = program.info().map_err(|error| load_error(&error))?;
    Ok(info.id())
}

fn loader(options: &LoadOptions) -> EbpfLoader<'static> {
    let mut loader = EbpfLoader::new();
    // The programs have no CO-RE relocations; the kernel's BTF would only take memory.
    loader.btf(None);
    loader.override_global("FEATURES", global(options.features.bits()), false);
    loader.override_global("SABOTAGE", global(options.sabotage), false);
    loader
}

/// The loader borrows a global's value. There are two of them per process, of four bytes.
fn global(value: u32) -> &'static u32 {
    Box::leak(Box::new(value))
}

fn program<'e, P>(ebpf: &'e mut Ebpf, hook: Hook) -> Result<&'e mut P, DataplaneError>
where
    &'e mut P: TryFrom<&'e mut Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(hook.program());
    let program = program.ok_or_else(|| missing(hook))?;
    program.try_into().map_err(|error| load_error(&error))
}

fn missing(hook: Hook) -> DataplaneError {
    DataplaneError::Load(format!("the object has no program {}", hook.program()))
}

fn load_error(error: &dyn std::error::Error) -> DataplaneError {
    DataplaneError::Load(chain(error))
}

/// An error with its causes: aya's say little alone.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

fn random_seed() -> u32 {
    let mut bytes = [0u8; 4];
    // SAFETY: the buffer is valid for its length.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    let seed = if got == 4 {
        u32::from_ne_bytes(bytes)
    } else {
        host::monotonic_nanoseconds() as u32
    };
    seed.max(1)
}
