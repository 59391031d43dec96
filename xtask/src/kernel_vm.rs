//! Running our programs on another kernel: a virtual machine that boots one of Debian's kernels
//! with an initramfs, runs one command as root, and is gone.
//!
//! Emulated (`-accel tcg`), so it needs no privilege and works inside virtual machines; it starts
//! in seconds, and is several times slower than the machine itself. It has no network device: all
//! traffic stays in its own namespaces.

pub mod cpio;
pub mod kernel;
mod modules;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::exit::Cannot;
use crate::setup::apt;
use crate::setup::plan::Need;
use crate::setup::programs;
use crate::system::{Machine, System as _};
use crate::{process, target_dir};
use cpio::Archive;
use kernel::Kernel;

/// Enough for the maps of a large configuration and the files themselves.
const MEMORY_MIB: u32 = 2048;

/// What `init` writes behind the command's last error message.
const EXIT_MARK: &str = "\u{1}exit ";

/// A machine to be: a kernel and the files it boots with.
#[derive(Debug)]
pub struct KernelVm {
    kernel: Kernel,
    archive: Archive,
    /// Names of the modules in the archive, in the order they are loaded.
    modules: Vec<String>,
}

/// What a command in the guest left.
#[derive(Clone, Debug)]
pub struct Output {
    /// Its exit code.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// From power-on to power-off.
    pub took: Duration,
    /// The file with the kernel's messages.
    pub console: PathBuf,
}

impl KernelVm {
    /// A machine with `kernel`, a shell, the programs that the network tests start, and all
    /// modules for container networking that the kernel has.
    ///
    /// # Errors
    /// [`Cannot`] without busybox or on another architecture; a file that cannot be read.
    pub fn new(kernel: Kernel) -> anyhow::Result<Self> {
        if std::env::consts::ARCH != "x86_64" {
            return Err(Cannot("other kernels are only booted on x86_64".into()).into());
        }
        let mut vm = Self {
            modules: Vec::new(),
            archive: Archive::default(),
            kernel,
        };
        vm.archive.links_of_root()?;
        for module in modules::load_order(&vm.kernel.modules)? {
            vm.archive.bytes(
                &format!("/modules/{}.ko", module.name),
                0o644,
                module.content,
            );
            vm.modules.push(module.name);
        }
        // Static, and its package is unpacked: it would replace the one that may be installed.
        let busybox = apt::unpack("busybox-static")?.join("bin/busybox");
        let busybox = fs::canonicalize(&busybox)
            .with_context(|| format!("cannot find {}", busybox.display()))?;
        vm.archive.file(&busybox, "/init-tools/busybox", 0o755)?;
        // A shell of the host: the one in busybox prefers its own `ip` to that in PATH.
        let others = ["sh", "bash", "nsenter", "sysctl", "unshare"];
        for name in programs::names(Need::Network).chain(others) {
            if let Some(path) = Machine.in_path(name) {
                vm.add_program(&path)?;
            }
        }
        vm.add_tables_family()?;
        // tcpdump drops its privileges to a user of its own.
        let users = "root:x:0:0::/root:/bin/sh\ntcpdump:x:100:100::/:\nnobody:x:65534:65534::/:\n";
        let groups = "root:x:0:\ntcpdump:x:100:\nnogroup:x:65534:\n";
        vm.archive.bytes("/etc/passwd", 0o644, users.into());
        vm.archive.bytes("/etc/group", 0o644, groups.into());
        for family in ["x86_64-linux-gnu/xtables", "xtables"] {
            let dir = Path::new("/usr/lib").join(family);
            for plugin in Machine.entries(&dir) {
                vm.add_program(&plugin)?;
            }
        }
        for table in [
            "protocols",
            "services",
            "nsswitch.conf",
            "ethertypes",
            "iproute2/rt_tables",
        ] {
            let path = Path::new("/etc").join(table);
            if path.is_file() {
                vm.add_file(&path, &path.display().to_string(), 0o644)?;
            }
        }
        Ok(vm)
    }

    /// Everything around iptables: `-save`, `-restore`, both backends, both families.
    fn add_tables_family(&mut self) -> anyhow::Result<()> {
        for path in Machine.entries(Path::new("/usr/sbin")) {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or("");
            let starts = ["iptables", "ip6tables", "xtables"];
            if starts.iter().any(|start| name.starts_with(start)) && path.is_file() {
                self.add_program(&path)?;
            }
        }
        Ok(())
    }

    /// The kernel's release, as `uname -r` will say.
    pub fn release(&self) -> &str {
        &self.kernel.release
    }

    /// Puts a program or library at its own path, with the links that lead to it and every shared
    /// library that it names.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn add_program(&mut self, path: &Path) -> anyhow::Result<()> {
        self.archive.with_links(path)?;
        // Static programs are an error to ldd, and have nothing to add.
        let path = path.to_str().context("a path that is not UTF-8")?;
        let libraries = Machine
            .output(Path::new("ldd"), &[path])
            .unwrap_or_default();
        for library in libraries_of_ldd(&libraries) {
            self.archive.with_links(library)?;
        }
        Ok(())
    }

    /// Puts the file `host` at the absolute path `guest`.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn add_file(&mut self, host: &Path, guest: &str, mode: u32) -> anyhow::Result<()> {
        self.archive.file(host, guest, mode)
    }

    /// Boots, runs `argv` as root, powers off; all within `limit`.
    ///
    /// # Errors
    /// A machine that does not start, does not end in time, or does not reach the command: the
    /// error has the end of the kernel's messages.
    pub fn run(mut self, name: &str, argv: &[&str], limit: Duration) -> anyhow::Result<Output> {
        let init = init_script(&self.modules);
        self.archive.bytes("/init", 0o755, init.into_bytes());
        let command = command_script(argv);
        self.archive.bytes("/command", 0o644, command.into_bytes());

        let name = format!("vm {} {name}", self.kernel.release);
        let dir = target_dir()
            .join("xtask")
            .join(name.replace([' ', '/'], "-"));
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let file = |name: &str| dir.join(name);
        fs::write(file("initramfs"), self.archive.finish())
            .with_context(|| format!("cannot write {}", file("initramfs").display()))?;

        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-accel", "tcg", "-cpu", "max", "-smp", "2", "-m"]);
        qemu.arg(MEMORY_MIB.to_string());
        qemu.args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ]);
        qemu.arg("-kernel").arg(&self.kernel.image);
        qemu.arg("-initrd").arg(file("initramfs"));
        // A panic restarts at once, and a restart ends the emulator.
        qemu.args(["-append", "console=ttyS0 panic=-1 loglevel=5 net.ifnames=0"]);
        for port in ["console", "stdout", "stderr"] {
            qemu.arg("-serial")
                .arg(format!("file:{}", file(port).display()));
        }
        let outcome = process::run(&name, &mut qemu, limit)?;
        // Some ten megabytes, and of no use to anybody now.
        let _ = fs::remove_file(file("initramfs"));

        let read = |name: &str| {
            let bytes = fs::read(file(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let stderr = read("stderr");
        let end = stderr.rsplit_once(EXIT_MARK).and_then(|(text, code)| {
            let code: i32 = code.trim().parse().ok()?;
            Some((text.to_owned(), code))
        });
        let Some((stderr, code)) = end else {
            let messages = read("console");
            let lines: Vec<_> = messages.lines().collect();
            let tail = lines[lines.len().saturating_sub(20)..].join("\n");
            bail!(
                "the machine with kernel {} did not finish its command ({}{}); its last messages:\n{tail}\n{stderr}",
                self.kernel.release,
                outcome.describe(),
                if outcome.late { ", the limit" } else { "" },
            );
        };
        Ok(Output {
            code,
            stdout: read("stdout"),
            stderr,
            took: outcome.took,
            console: file("console"),
        })
    }
}

/// The paths that `ldd` prints: `NAME => PATH (0x…)` and `PATH (0x…)`.
fn libraries_of_ldd(text: &str) -> BTreeSet<&Path> {
    text.lines()
        .filter_map(|line| {
            let path = line.split_once(" => ").map_or(line, |(_, path)| path);
            path.trim().strip_suffix(')')?.rsplit_once(" (0x")
        })
        .map(|(path, _)| Path::new(path))
        .filter(|path| path.is_absolute())
        .collect()
}

/// The first process of the guest.
fn init_script(modules: &[String]) -> String {
    let mut script = String::from(
        "#!/init-tools/busybox sh
bb=/init-tools/busybox
$bb mkdir -p /proc /sys /dev /run /tmp /etc /var/lib /var/log /root /bin /sbin /usr/bin /usr/sbin
$bb mount -t proc proc /proc
$bb mount -t sysfs sysfs /sys
$bb mount -t devtmpfs devtmpfs /dev
$bb mkdir -p /dev/net
# Commands that no program of the host brought; those come first in PATH.
$bb mkdir -p /init-tools/bin && $bb --install -s /init-tools/bin
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/init-tools/bin
export HOME=/root TERM=dumb
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null
stty -F /dev/ttyS1 raw -echo
stty -F /dev/ttyS2 raw -echo
",
    );
    for module in modules {
        let _ = writeln!(script, "insmod /modules/{module}.ko");
    }
    // Forty megabytes that the command may want.
    script.push_str("rm -rf /modules\nip link set lo up\ncd /root\n");
    script.push_str("/bin/sh /command </dev/null >/dev/ttyS1 2>/dev/ttyS2\ncode=$?\n");
    // Closing a port waits until it is empty.
    script.push_str("printf '\\001exit %d\\n' $code >/dev/ttyS2\nreboot -f\n");
    script
}

/// A script for the host's shell: busybox's would look at its own commands before PATH.
fn command_script(argv: &[&str]) -> String {
    let words: Vec<_> = argv.iter().map(|arg| quote(arg)).collect();
    format!("exec {}\n", words.join(" "))
}

fn quote(arg: &str) -> String {
    format!("'{}'", arg.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_taken_from_both_forms_of_line() {
        let text = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x00007f13)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f13)\n\tlibgone.so => not found\n";
        let found: Vec<_> = libraries_of_ldd(text).into_iter().collect();
        assert_eq!(
            found,
            [
                Path::new("/lib/x/libc.so.6"),
                Path::new("/lib64/ld-linux-x86-64.so.2")
            ]
        );
    }

    #[test]
    fn arguments_reach_the_guest_unchanged() {
        let script = command_script(&["netd", "it's", "$HOME"]);
        assert_eq!(script, "exec 'netd' 'it'\\''s' '$HOME'\n");
    }
}
