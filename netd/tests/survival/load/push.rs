//! Data that a container sends and a client only takes, so that nothing which the client does keeps a flow alive.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use netd::lab::{Connection, HOST, Namespace, ProbeOptions};

use super::Stop;

/// What is under way is not counted.
const GRACE: Duration = Duration::from_millis(100);
/// For this long data must come, or must not.
const WINDOW: Duration = Duration::from_millis(600);
/// Between two datagrams, and between two reads of a stream.
const PAUSE: Duration = Duration::from_millis(1);
/// Where a container sends datagrams from.
const PORT: u16 = 7000;

/// Data under way to a client; it ends when this is dropped.
pub struct Push {
    pub name: &'static str,
    received: Arc<AtomicU64>,
    stop: Stop,
    // Kept open: the far end would see it closed.
    stream: Option<TcpStream>,
}

impl Push {
    /// Datagrams from port 7000 of `container`, which `port` of the host leads to.
    pub fn udp(client: &Namespace, port: u16, container: &Namespace) -> Self {
        let bind = |namespace: &Namespace, port| {
            let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
            let socket = namespace.run(|| UdpSocket::bind(any)).expect("bind");
            socket
                .set_read_timeout(Some(Duration::from_secs(5)))
                .expect("a timeout");
            socket
        };
        let push = Self::new("UDP", None);
        let (server, socket) = (bind(container, PORT), bind(client, 0));
        client
            .run(|| socket.connect((HOST, port)))
            .expect("connect");
        socket.send(b"go").expect("send");
        let stop = push.stop.clone();
        let send = move || {
            let (_, to) = server.recv_from(&mut [0; 16]).expect("the client's word");
            while !stop.told() {
                // Refused where the client or the container has gone.
                let _ = server.send_to(&[0; 100], to);
                std::thread::sleep(PAUSE);
            }
        };
        container.spawn_thread("push", send).expect("a thread");
        push.take(client, move |buffer| socket.recv(buffer));
        push
    }

    /// A stream of the [`netd::lab::Server`] behind `port` of the host.
    pub fn tcp(client: &Namespace, port: u16) -> Self {
        let options = ProbeOptions::default().timeout(Duration::from_secs(5));
        let mut connection = Connection::open(client, (HOST, port).into(), &options)
            .unwrap_or_else(|outcome| panic!("to port {port}: {outcome}"));
        let stream = connection.stream();
        // More than anybody waits for.
        stream.write_all(b"source 1000000000000 1\n").expect("send");
        let mut reader = stream.try_clone().expect("a second handle");
        reader.set_read_timeout(Some(WINDOW)).expect("a timeout");
        let push = Self::new("TCP", Some(stream.try_clone().expect("a third handle")));
        push.take(client, move |buffer| {
            std::thread::sleep(PAUSE);
            reader.read(buffer)
        });
        push
    }

    fn new(name: &'static str, stream: Option<TcpStream>) -> Self {
        Self {
            name,
            received: Arc::default(),
            stop: Stop::default(),
            stream,
        }
    }

    fn take(
        &self,
        client: &Namespace,
        mut receive: impl FnMut(&mut [u8]) -> std::io::Result<usize> + Send + 'static,
    ) {
        let (received, stop) = (Arc::clone(&self.received), self.stop.clone());
        let work = move || {
            let mut buffer = vec![0; 64 << 10];
            while !stop.told() {
                if let Ok(length) = receive(&mut buffer) {
                    received.fetch_add(length as u64, Ordering::Relaxed);
                }
            }
        };
        client.spawn_thread("take", work).expect("a thread");
    }

    /// Whether data come now.
    pub fn flows(&self) -> bool {
        std::thread::sleep(GRACE);
        let before = self.received();
        std::thread::sleep(WINDOW);
        self.received() != before
    }

    /// Bytes that came to the client's kernel.
    fn received(&self) -> u64 {
        match &self.stream {
            Some(stream) => super::transfer::tcp_info(stream).tcpi_bytes_received,
            None => self.received.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Push {
    fn drop(&mut self) {
        self.stop.now();
        if let Some(stream) = &self.stream {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}
