//! A network namespace that lives as long as its handles.
//!
//! The namespace is bound under /run/netns, so that `ip netns exec` and `nsenter --net=` find it while it lives. It
//! goes away when the last handle is dropped, on a panic, on SIGINT and SIGTERM (see [`super::cleanup`]), and, should
//! the process be killed outright, at the next [`super::sweep_stale`].

use std::fs::{self, File};
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::panic;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::Handle;

use super::cleanup;
use super::error::{LabError, Result};
use super::process::Process;

/// Where bound namespaces are found, as iproute2 has it.
pub const NETNS_DIR: &str = "/run/netns";

/// A handle on a network namespace; clones share it, and the last one dropped removes it.
#[derive(Clone)]
pub struct Namespace {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    role: String,
    file: Arc<OwnedFd>,
    worker: Option<Worker>,
}

/// What the worker thread lends to a job.
pub(super) struct WorkerContext {
    runtime: tokio::runtime::Runtime,
    handle: Handle,
}

type Job = Box<dyn FnOnce(&WorkerContext) + Send>;

struct Worker {
    jobs: mpsc::Sender<Job>,
    thread: JoinHandle<()>,
}

impl Namespace {
    /// Creates a namespace named `nd-<pid>-<start time>-<random>-<role>` with `lo` up.
    ///
    /// Sysctls that a new namespace copies from the machine are set to the kernel's defaults (no forwarding, no
    /// rp_filter, no DAD delay, no br_netfilter, no IGMP reports
    /// of link-local groups), so that a lab is the same on every host.
    pub fn create(role: &str) -> Result<Self> {
        if role.is_empty() || !role.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(LabError::Invalid(format!(
                "{role:?} is no role: use letters, digits and underscores"
            )));
        }
        cleanup::prepare()?;
        let name = cleanup::unique_name(role)?;
        let path = Path::new(NETNS_DIR).join(&name);
        File::create_new(&path)
            .map_err(|e| LabError::io(format!("create {}", path.display()), e))?;
        cleanup::register_namespace(&name);
        let worker = match Worker::start(&name, &path) {
            Ok(worker) => worker,
            Err(error) => {
                cleanup::remove_namespace(&name);
                return Err(error);
            }
        };
        let opened =
            File::open(&path).map_err(|e| LabError::io(format!("open {}", path.display()), e));
        let file = match opened {
            Ok(file) => Arc::new(OwnedFd::from(file)),
            Err(error) => {
                cleanup::remove_namespace(&name);
                return Err(error);
            }
        };
        let namespace = Self {
            inner: Arc::new(Inner {
                name,
                role: role.to_owned(),
                file,
                worker: Some(worker),
            }),
        };
        namespace.set_default_sysctls()?;
        namespace.set_up("lo")?;
        Ok(namespace)
    }

    /// The name under /run/netns.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The role given at creation, for messages.
    pub fn role(&self) -> &str {
        &self.inner.role
    }

    /// The path that other tools can open.
    pub fn path(&self) -> PathBuf {
        Path::new(NETNS_DIR).join(&self.inner.name)
    }

    /// The open namespace file.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.file.as_fd()
    }

    /// Runs `work` on a thread of its own inside the namespace and returns its result. Sockets opened there stay in
    /// the namespace wherever they are used later.
    ///
    /// # Panics
    /// If the thread cannot enter the namespace (no CAP_SYS_ADMIN), and with the panic of `work`.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter();
                    work()
                })
                .join()
        })
        .unwrap_or_else(|payload| panic::resume_unwind(payload))
    }

    /// Starts a named thread inside the namespace.
    pub fn spawn_thread<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<T>> {
        let file = Arc::clone(&self.inner.file);
        let label = format!("{name}@{}", self.inner.role);
        thread::Builder::new()
            .name(label.clone())
            .spawn(move || {
                setns(&*file, CloneFlags::CLONE_NEWNET)
                    .expect("enter the namespace: needs CAP_SYS_ADMIN");
                work()
            })
            .map_err(|e| LabError::io(format!("start thread {label}"), e))
    }

    /// A command whose process runs inside the namespace, with this process's mounts (unlike `ip netns exec`, which
    /// hides /sys/fs/bpf). The child is killed when the thread that starts it ends; for a long-lived one use
    /// [`Namespace::spawn`].
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let file = Arc::clone(&self.inner.file);
        let parent = nix::unistd::getpid();
        // SAFETY: the closure only makes system calls (setns, prctl, getppid), which are async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                setns(&*file, CloneFlags::CLONE_NEWNET)?;
                nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
                // The parent may have died before the line above.
                if nix::unistd::getppid() != parent {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                Ok(())
            });
        }
        command
    }

    /// Starts a command made by [`Namespace::command`] from the namespace's own thread, so that it lives until the
    /// [`Process`], the namespace or this program ends.
    pub fn spawn(&self, mut command: Command) -> Result<Process> {
        let program = command.get_program().to_string_lossy().into_owned();
        let doing = format!("start {program} in {}", self.inner.role);
        let child: io::Result<Child> = self.on_worker(move |_| command.spawn())?;
        Ok(Process::adopt(
            program,
            child.map_err(|e| LabError::io(doing, e))?,
        ))
    }

    /// Writes a sysctl of the namespace, by its path below /proc/sys (`net/ipv4/ip_forward`).
    pub fn set_sysctl(&self, key: &str, value: impl ToString) -> Result<()> {
        let path = Path::new("/proc/sys").join(key);
        let value = value.to_string();
        // /proc/sys/net shows the namespace of the thread that opens it.
        self.run(|| fs::write(&path, &value)).map_err(|e| {
            LabError::io(
                format!("write {value} to {} in {}", path.display(), self.role()),
                e,
            )
        })
    }

    /// Whether bridged frames pass iptables; says whether the kernel has the switch.
    pub fn set_bridge_netfilter(&self, on: bool) -> Result<bool> {
        if !Path::new("/proc/sys/net/bridge").exists() {
            return Ok(false);
        }
        for family in ["iptables", "ip6tables", "arptables"] {
            self.set_sysctl(&format!("net/bridge/bridge-nf-call-{family}"), u8::from(on))?;
        }
        Ok(true)
    }

    /// Reads a sysctl of the namespace, by its path below /proc/sys.
    pub fn sysctl(&self, key: &str) -> Result<String> {
        let path = Path::new("/proc/sys").join(key);
        self.run(|| fs::read_to_string(&path))
            .map(|text| text.trim_end().to_owned())
            .map_err(|e| LabError::io(format!("read {} in {}", path.display(), self.role()), e))
    }

    /// Runs a netlink request on the namespace's worker, which holds a route netlink socket of the namespace.
    pub(super) fn netlink<T, F>(
        &self,
        doing: String,
        request: impl FnOnce(Handle) -> F + Send + 'static,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = std::result::Result<T, rtnetlink::Error>>,
    {
        self.on_worker(move |worker| worker.runtime.block_on(request(worker.handle.clone())))?
            .map_err(|source| LabError::Netlink {
                doing: format!("{doing} in {}", self.role()),
                source: Box::new(source),
            })
    }

    fn on_worker<T: Send + 'static>(
        &self,
        job: impl FnOnce(&WorkerContext) -> T + Send + 'static,
    ) -> Result<T> {
        let gone = || LabError::WorkerGone(self.inner.name.clone());
        let worker = self.inner.worker.as_ref().ok_or_else(gone)?;
        let (reply, answer) = mpsc::channel();
        worker
            .jobs
            .send(Box::new(move |context| {
                let _ = reply.send(job(context));
            }))
            .map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())
    }

    fn enter(&self) {
        setns(&*self.inner.file, CloneFlags::CLONE_NEWNET)
            .expect("enter the namespace: needs CAP_SYS_ADMIN");
    }

    fn set_default_sysctls(&self) -> Result<()> {
        let v4 = [
            ("ip_forward", "0"),
            ("conf/all/rp_filter", "0"),
            ("conf/default/rp_filter", "0"),
            ("conf/all/route_localnet", "0"),
            ("conf/default/route_localnet", "0"),
            ("conf/all/accept_local", "0"),
            ("conf/default/accept_local", "0"),
            // Bridges join 224.0.0.106 and report it when they please, which moves packet counters.
            ("igmp_link_local_mcast_reports", "0"),
        ];
        // Duplicate address detection would keep every link-local address unusable for a second.
        let v6 = [
            ("conf/all/forwarding", "0"),
            ("conf/default/accept_dad", "0"),
            ("conf/default/dad_transmits", "0"),
        ];
        for (key, value) in v4 {
            self.set_sysctl(&format!("net/ipv4/{key}"), value)?;
        }
        if Path::new("/proc/sys/net/ipv6").exists() {
            for (key, value) in v6 {
                self.set_sysctl(&format!("net/ipv6/{key}"), value)?;
            }
        }
        self.set_bridge_netfilter(false)?;
        Ok(())
    }
}

impl std::fmt::Debug for Namespace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Namespace").field(&self.inner.name).finish()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(worker) = self.worker.take() {
            drop(worker.jobs);
            let _ = worker.thread.join();
        }
        cleanup::remove_namespace(&self.name);
    }
}

impl Worker {
    /// Starts the thread, makes the new namespace there and binds it to `path`.
    fn start(name: &str, path: &Path) -> Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, started) = mpsc::channel();
        let path = path.to_owned();
        let thread = thread::Builder::new()
            .name(format!("netns {name}"))
            .spawn(move || {
                let context = match WorkerContext::enter_new_namespace(&path) {
                    Ok(context) => context,
                    Err(error) => {
                        let _ = ready.send(Err(error));
                        return;
                    }
                };
                let _ = ready.send(Ok(()));
                for job in queue {
                    job(&context);
                }
            })
            .map_err(|e| LabError::io("start the namespace's thread", e))?;
        started
            .recv()
            .map_err(|_| LabError::WorkerGone(name.to_owned()))??;
        Ok(Self { jobs, thread })
    }
}

impl WorkerContext {
    fn enter_new_namespace(path: &Path) -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET)
            .map_err(|e| LabError::io("create a network namespace (needs CAP_SYS_ADMIN)", e))?;
        let source = "/proc/thread-self/ns/net";
        nix::mount::mount(
            Some(source),
            path,
            None::<&str>,
            nix::mount::MsFlags::MS_BIND,
            None::<&str>,
        )
        .map_err(|e| LabError::io(format!("bind {source} to {}", path.display()), e))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .map_err(|e| LabError::io("start the netlink runtime", e))?;
        let handle = {
            let _entered = runtime.enter();
            let (connection, handle, _) = rtnetlink::new_connection()
                .map_err(|e| LabError::io("open a netlink socket", e))?;
            runtime.spawn(connection);
            handle
        };
        Ok(Self { runtime, handle })
    }
}

/// The namespace file as a raw descriptor, for a netlink attribute that is sent at once.
pub(super) fn raw_fd(namespace: &Namespace) -> i32 {
    namespace.as_fd().as_raw_fd()
}
