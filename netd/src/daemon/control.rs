//! The control socket: one JSON object per line, one answer per command.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};

use crate::host;

/// Longest command, in bytes.
const LONGEST: u64 = 4096;
/// A client that says nothing is not waited for.
const SILENCE: Duration = Duration::from_secs(5);
/// How long a client waits: a reload reads the host and writes the maps.
const ANSWER: Duration = Duration::from_secs(30);

/// What the daemon can be asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Read the file again and put it in force.
    Reload,
    /// Leave, with the data plane as it is.
    Leave,
    /// Take no new flow from now on.
    Drain,
    /// Take new flows again.
    EndDraining,
}

/// A command as it is sent.
#[derive(Debug, Serialize, Deserialize)]
struct Request {
    schema: u32,
    command: Command,
    /// CLOCK_BOOTTIME seconds until which the client waits. A daemon that comes to it later does
    /// nothing: whoever asked has given up, and acts as if it had not been done.
    #[serde(default)]
    until: Option<u64>,
}

/// The daemon's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// 1.
    pub schema: u32,
    /// It was done.
    pub ok: bool,
    /// The daemon's pid.
    pub pid: u32,
    /// The input was refused and nothing changed, as opposed to something that went wrong.
    pub refused: bool,
    /// What was done, or why it was not.
    pub message: String,
}

impl Answer {
    /// It was done.
    pub fn done(message: impl Into<String>) -> Self {
        Self {
            schema: 1,
            ok: true,
            pid: std::process::id(),
            refused: false,
            message: message.into(),
        }
    }

    /// The input was refused; nothing changed.
    pub fn refused(message: impl Into<String>) -> Self {
        Self {
            ok: false,
            refused: true,
            ..Self::done(message)
        }
    }

    /// It went wrong.
    pub fn failed(message: impl Into<String>) -> Self {
        Self {
            ok: false,
            ..Self::done(message)
        }
    }
}

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum AskError {
    /// Nobody listens.
    #[error("no netd runs here (nobody answers at {}): start one with `netd run`", .0.display())]
    NotRunning(PathBuf),
    /// The connection broke.
    #[error("{}: the daemon gave no answer: {source}; its log says more", .path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Sends a command and waits for the answer.
///
/// # Errors
/// [`AskError::NotRunning`] when nobody listens.
pub fn ask(socket: &Path, command: Command) -> Result<Answer, AskError> {
    ask_within(socket, command, ANSWER)
}

/// [`ask`], with a time of one's own to wait for the answer.
///
/// # Errors
/// As there.
pub fn ask_within(socket: &Path, command: Command, patience: Duration) -> Result<Answer, AskError> {
    let failed = |source| AskError::Io {
        path: socket.to_owned(),
        source,
    };
    let mut stream = UnixStream::connect(socket).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            AskError::NotRunning(socket.to_owned())
        }
        _ => failed(error),
    })?;
    stream.set_read_timeout(Some(patience)).map_err(failed)?;
    let request = Request {
        schema: 1,
        command,
        until: Some(boot_seconds() + patience.as_secs()),
    };
    let mut line = serde_json::to_vec(&request).map_err(|error| failed(error.into()))?;
    line.push(b'\n');
    stream.write_all(&line).map_err(failed)?;
    let mut answer = String::new();
    BufReader::new(stream)
        .read_line(&mut answer)
        .map_err(failed)?;
    serde_json::from_str(&answer).map_err(|error| failed(error.into()))
}

fn boot_seconds() -> u64 {
    host::boottime_nanoseconds() / 1_000_000_000
}

/// A command that waits for its answer.
pub(super) type Pending = (Command, oneshot::Sender<Answer>);

/// Listens on the socket; commands arrive at the receiver. An old socket is replaced: the lock
/// says that nobody listens on it.
pub(super) fn listen(socket: &Path) -> io::Result<mpsc::Receiver<Pending>> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    // Commands are root's.
    std::fs::set_permissions(socket, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let (sender, receiver) = mpsc::channel(8);
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    tokio::spawn(serve(stream, sender.clone()));
                }
                // Out of descriptors: later there may be some.
                Err(error) => {
                    tracing::debug!("control socket: {error}");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    });
    Ok(receiver)
}

async fn serve(mut stream: tokio::net::UnixStream, commands: mpsc::Sender<Pending>) {
    let (read, mut write) = stream.split();
    let mut line = String::new();
    let mut reader = tokio::io::BufReader::new(read.take(LONGEST));
    let read = tokio::time::timeout(SILENCE, reader.read_line(&mut line)).await;
    if !matches!(read, Ok(Ok(length)) if length > 0) {
        return;
    }
    let answer = match serde_json::from_str::<Request>(&line) {
        Ok(Request {
            until: Some(until), ..
        }) if boot_seconds() > until => Answer::refused("too late: nobody waits for it any more"),
        Ok(Request {
            schema: 1, command, ..
        }) => {
            let (sender, receiver) = oneshot::channel();
            match commands.send((command, sender)).await {
                Ok(()) => receiver
                    .await
                    .unwrap_or_else(|_| Answer::failed("the daemon is leaving")),
                Err(_) => Answer::failed("the daemon is leaving"),
            }
        }
        Ok(Request { schema, .. }) => Answer::refused(format!("schema {schema} is not known")),
        Err(error) => Answer::refused(format!("not a command: {error}")),
    };
    if let Ok(mut text) = serde_json::to_vec(&answer) {
        text.push(b'\n');
        // The client may have gone.
        let _ = write.write_all(&text).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_command_gets_its_answer() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        assert!(matches!(
            ask(&socket, Command::Reload),
            Err(AskError::NotRunning(_))
        ));
        let mut commands = listen(&socket).unwrap();
        let path = socket.clone();
        let client = tokio::task::spawn_blocking(move || ask(&path, Command::Reload));
        let (command, answer) = commands.recv().await.unwrap();
        assert_eq!(command, Command::Reload);
        answer.send(Answer::refused("no")).unwrap();
        let got = client.await.unwrap().unwrap();
        assert_eq!(got, Answer::refused("no"));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_command_that_nobody_waits_for_is_not_carried_out() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let mut commands = listen(&socket).unwrap();
        for (until, carried_out) in [(1, false), (boot_seconds() + 100, true)] {
            let mut stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
            let line = format!("{{\"schema\":1,\"command\":\"leave\",\"until\":{until}}}\n");
            stream.write_all(line.as_bytes()).await.unwrap();
            let mut text = String::new();
            tokio::select! {
                Some((command, _)) = commands.recv() => {
                    assert!(carried_out && command == Command::Leave);
                }
                _ = stream.read_to_string(&mut text) => {
                    let answer: Answer = serde_json::from_str(&text).unwrap();
                    assert!(!carried_out && answer.refused, "{answer:?}");
                }
            }
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn nonsense_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let _commands = listen(&socket).unwrap();
        let mut stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
        stream
            .write_all(b"{\"schema\":1,\"command\":\"explode\"}\n")
            .await
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let answer: Answer = serde_json::from_str(&text).unwrap();
        assert!(!answer.ok && answer.refused, "{answer:?}");
    }
}
