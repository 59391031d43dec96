//! WireGuard in user space: a TUN device, and `boringtun-cli` which encrypts what goes through it.
//!
//! The program gets the open device and a socket for its configuration ([the cross-platform
//! interface](https://www.wireguard.com/xplatform/)) as file descriptors: nothing is left below /var/run/wireguard,
//! device names need be unique in their namespace only, and the device outlives the program as long as the lab wants.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Write as _};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use ipnet::IpNet;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::error::{LabError, Result};
use super::namespace::Namespace;
use super::process::Process;
use super::tun::{Tun, TunKind};

/// How long the program may take to take its configuration.
const PATIENCE: Duration = Duration::from_secs(20);

/// The two key pairs of a tunnel: those of RFC 7748 section 6.1, which everybody knows, for labs only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireGuardKey {
    /// Alice's.
    Alice,
    /// Bob's.
    Bob,
}

impl WireGuardKey {
    fn private(self) -> &'static str {
        match self {
            Self::Alice => {
                "77076d0a7318a57d3c16c17251b26645\
                            df4c2f87ebc0992ab177fba51db92c2a"
            }
            Self::Bob => {
                "5dab087e624a8a4b79e17f8b83800ee6\
                          6f3bb1292618b6fd1c2f8b27ff88e0eb"
            }
        }
    }

    fn public(self) -> &'static str {
        match self {
            Self::Alice => {
                "8520f0098930a754748b7ddcb43ef75a\
                            0dbf3a0d26381af4eba4a98eaa9b4e6a"
            }
            Self::Bob => {
                "de9edb7d7b7dc1b4d35b61c2ece43537\
                          3f8343c85b78674dadfc7e146f882b4f"
            }
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Alice => Self::Bob,
            Self::Bob => Self::Alice,
        }
    }
}

/// What one end of a tunnel is to be.
#[derive(Clone, Debug)]
pub struct WireGuardOptions<'a> {
    /// Whose key this end has; the other end has the other.
    pub key: WireGuardKey,
    /// Own UDP port.
    pub port: u16,
    /// The mark of the encrypted packets (`FwMark`), for policy rules.
    pub mark: Option<u32>,
    /// Where the other end listens.
    pub endpoint: SocketAddr,
    /// What goes to, and may come from, the other end.
    pub allowed: &'a [IpNet],
}

/// One end of a tunnel. The process is killed and the device goes away when this is dropped.
#[derive(Debug)]
pub struct WireGuard {
    process: Process,
    control: UnixStream,
    tun: Tun,
}

impl WireGuard {
    /// Makes the device, down, of MTU 1500 and without addresses, and starts `program` for it.
    ///
    /// # Errors
    /// A missing /dev/net/tun as [`Tun::create`] has it; a program that refuses its configuration.
    pub fn start(
        program: &Path,
        namespace: &Namespace,
        device: &str,
        options: &WireGuardOptions<'_>,
    ) -> Result<Self> {
        let doing = || format!("start WireGuard on {device} in {}", namespace.role());
        let tun = Tun::create(namespace, device, TunKind::Tun)?;
        let (control, theirs) = UnixStream::pair().map_err(|e| LabError::io(doing(), e))?;
        control
            .set_read_timeout(Some(PATIENCE))
            .map_err(|e| LabError::io(doing(), e))?;
        let [device_fd, control_fd] = [tun.as_fd().as_raw_fd(), theirs.as_raw_fd()];
        let mut command = namespace.command(program);
        command
            .args(["--foreground", "--disable-drop-privileges"])
            // A connected socket would have its source chosen before it bears its mark.
            .arg("--disable-connected-udp")
            .args(["--disable-multi-queue", "--threads", "2"])
            .args(["--tun-fd", &device_fd.to_string()])
            .args(["--uapi-fd", &control_fd.to_string()])
            .arg(device)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        // SAFETY: the closure only makes system calls (fcntl), which are async-signal-safe, on descriptors that are
        // open until the child has been started.
        unsafe {
            command.pre_exec(move || {
                for fd in [device_fd, control_fd] {
                    let fd = BorrowedFd::borrow_raw(fd);
                    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
                }
                Ok(())
            });
        }
        let process = namespace.spawn(command)?;
        drop(theirs);
        let mut tunnel = Self {
            process,
            control,
            tun,
        };
        tunnel.configure(options)?;
        Ok(tunnel)
    }

    /// The device's name.
    pub fn device(&self) -> &str {
        self.tun.device()
    }

    /// Kills the program. The device stays as it is, and what is sent through it goes nowhere.
    pub fn silence(&mut self) -> Result<()> {
        self.process.stop(Duration::ZERO).map(drop)
    }

    fn configure(&mut self, options: &WireGuardOptions<'_>) -> Result<()> {
        let mut text = format!(
            "set=1\nprivate_key={}\nlisten_port={}\n",
            options.key.private(),
            options.port
        );
        // Writing to a String does not fail.
        if let Some(mark) = options.mark {
            let _ = writeln!(text, "fwmark={mark}");
        }
        let _ = writeln!(
            text,
            "public_key={}\nendpoint={}\nreplace_allowed_ips=true",
            options.key.other().public(),
            options.endpoint
        );
        for net in options.allowed {
            let _ = writeln!(text, "allowed_ip={net}");
        }
        text.push('\n');
        let answer = self.ask(&text).map_err(|e| {
            LabError::io(
                format!("configure the WireGuard device {}", self.device()),
                e,
            )
        })?;
        if answer.trim_end() == "errno=0" {
            return Ok(());
        }
        Err(LabError::Invalid(format!(
            "WireGuard on {} refuses its configuration with {answer:?}:\n{text}",
            self.device()
        )))
    }

    /// The first line of the answer.
    fn ask(&mut self, request: &str) -> io::Result<String> {
        self.control.write_all(request.as_bytes())?;
        let mut answer = BufReader::new(&self.control);
        let (mut line, mut end) = (String::new(), String::new());
        answer.read_line(&mut line)?;
        answer.read_line(&mut end)?;
        Ok(line)
    }
}
