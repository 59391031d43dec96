//! A child process that does not outlive its handle.

use std::io;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cleanup;
use super::error::{LabError, Result};

/// A running program, made by [`super::Namespace::spawn`]. Dropping it kills the process and waits for it.
#[derive(Debug)]
pub struct Process {
    program: String,
    child: Child,
    ended: bool,
}

impl Process {
    pub(super) fn adopt(program: String, child: Child) -> Self {
        cleanup::register_child(child.id());
        Self {
            program,
            child,
            ended: false,
        }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The child itself: its pipes, for one.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.raw_pid(), signal)
            .map_err(|e| LabError::io(format!("send {signal} to {}", self.program), e))
    }

    /// The exit status, or None if the process still runs after `timeout`.
    pub fn wait_timeout(&mut self, timeout: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + timeout;
        loop {
            let status = self.child.try_wait().map_err(|e| self.failed(e))?;
            if status.is_some() || Instant::now() >= deadline {
                if status.is_some() {
                    self.mark_ended();
                }
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asks the process to end by SIGTERM, kills it after `grace`, and returns its status.
    pub fn stop(&mut self, grace: Duration) -> Result<ExitStatus> {
        if !self.ended {
            self.signal(Signal::SIGTERM)?;
        }
        if let Some(status) = self.wait_timeout(grace)? {
            return Ok(status);
        }
        self.child.kill().map_err(|e| self.failed(e))?;
        let status = self.child.wait().map_err(|e| self.failed(e))?;
        self.mark_ended();
        Ok(status)
    }

    fn raw_pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    fn mark_ended(&mut self) {
        self.ended = true;
        cleanup::forget_child(self.child.id());
    }

    fn failed(&self, error: io::Error) -> LabError {
        LabError::io(
            format!("wait for {} (pid {})", self.program, self.child.id()),
            error,
        )
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
            self.mark_ended();
        }
    }
}
