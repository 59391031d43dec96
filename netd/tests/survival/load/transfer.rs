//! A TCP connection over which blocks go back and forth, every byte compared.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::thread::JoinHandle;
use std::time::Duration;

use netd::lab::{Connection, Namespace, Outcome, ProbeOptions};

use super::Stop;

/// Bytes of a block.
const BLOCK: usize = 128 << 10;
/// A block that takes longer is lost: TCP would still wait, users would not.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between blocks, so that several transfers leave the machine room for what it should do meanwhile.
const PAUSE: Duration = Duration::from_millis(8);

/// Transfers that go on until they are stopped.
pub struct Transfers {
    threads: Vec<(String, JoinHandle<Result<Moved, String>>)>,
}

/// What a transfer moved.
#[derive(Clone, Copy, Debug)]
pub struct Moved {
    /// Bytes, there and back each.
    pub bytes: u64,
    /// Segments that TCP sent again, for whatever reason.
    pub retransmitted: u32,
}

impl Transfers {
    /// One connection per route: a name, who opens it, and where a [`netd::lab::Server`] listens.
    pub fn start<'a>(
        routes: impl IntoIterator<Item = (&'a str, &'a Namespace, SocketAddr)>,
        stop: &Stop,
    ) -> Self {
        let threads = routes.into_iter().map(|(name, from, to)| {
            let options = ProbeOptions::default().timeout(PATIENCE);
            let connection = Connection::open(from, to, &options)
                .unwrap_or_else(|outcome| panic!("{name} to {to}: {outcome}"));
            let stop = stop.clone();
            let work = move || exchange(connection, &stop);
            let thread = from.spawn_thread("transfer", work).expect("a thread");
            (name.to_owned(), thread)
        });
        Self {
            threads: threads.collect(),
        }
    }

    /// The transfers by name, once they have stopped; the error is what broke one.
    pub fn finish(self) -> Vec<(String, Result<Moved, String>)> {
        let join = |thread: JoinHandle<_>| thread.join().expect("a transfer");
        let threads = self.threads.into_iter();
        threads.map(|(name, thread)| (name, join(thread))).collect()
    }
}

fn exchange(mut connection: Connection, stop: &Stop) -> Result<Moved, String> {
    let mut bytes = 0;
    while !stop.told() {
        match connection.exchange(BLOCK, PATIENCE) {
            Outcome::Answered(_) => bytes += BLOCK as u64,
            outcome => return Err(format!("{outcome} after {bytes} bytes")),
        }
        std::thread::sleep(PAUSE);
    }
    Ok(Moved {
        bytes,
        retransmitted: tcp_info(connection.stream()).tcpi_total_retrans,
    })
}

/// What the kernel says of a connection (tcp(7), TCP_INFO).
pub(super) fn tcp_info(stream: &TcpStream) -> libc::tcp_info {
    // SAFETY: plain numbers, for which zeros are values.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the buffer is as long as said.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    info
}
