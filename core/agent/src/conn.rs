//! Connections: one thread reads, one writes, so that a slow rank holds up nobody. Runs *next door*.
//!
//! What a reader would get wrong: a connection ends for the loop with exactly one [`Input::Closed`], after everything
//! that was read from it.

use crate::relay::{Beating, ToRelay};
use crossbeam::channel::{Receiver, Sender, unbounded};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::Duration;
use stillpoint_abi::ids::CkptId;
use stillpoint_coord::message::{self, FromAgent, ToAgent, WireError};
use stillpoint_coord::state::{Conn, Event};

/// What reaches the loop.
#[derive(Debug)]
pub(crate) enum Input {
    /// A connection of our own user.
    Opened(Conn, Link),
    /// A message on it.
    Message(Conn, ToAgent),
    /// It ended.
    Closed(Conn),
    /// What carried it ended: the agent of another node, or the way to it.
    Parted(Conn),
    /// From the root: send this on one of the connections here.
    Hand(Conn, FromAgent),
    /// From the root: end one of the connections here.
    Drop(Conn),
    /// This line to the root ended; true: in order.
    RootGone(u64, bool),
    /// Another agent of this number has come, and its line is this.
    Relay(u64, Beating<ToRelay>),
    /// It is gone.
    RelayGone(u64),
    /// The root with this number is none any more: a later one was claimed.
    Superseded(u32),
    /// For the coordinator: from the store, or about the images on a node's own disk. A relay hands on what its own copies
    /// come to.
    Event(Event),
    /// From the root: a checkpoint exists, or never will.
    Over(CkptId),
}

/// The sending side of a connection. Dropping it ends the connection after what was sent.
#[derive(Debug)]
pub(crate) enum Link {
    /// A stream of this process.
    Own {
        /// None once it is to end.
        to: Option<Sender<FromAgent>>,
        /// Writes.
        writer: Option<JoinHandle<()>>,
    },
    /// A stream of another node's agent.
    Relayed {
        /// The other agent's number for it.
        there: u64,
        /// That agent.
        relay: Sender<ToRelay>,
    },
}

impl Link {
    pub(crate) fn send(&self, message: FromAgent) {
        // A writer that has failed is gone; the reader reports the end of the connection.
        match self {
            Link::Own { to: Some(to), .. } => drop(to.send(message)),
            Link::Own { to: None, .. } => {}
            Link::Relayed { there, relay } => drop(relay.send(ToRelay::Message(*there, message))),
        }
    }

    /// Ends the connection when everything has been sent.
    pub(crate) fn finish(mut self) {
        if let Link::Own { to, writer } = &mut self {
            *to = None;
            if let Some(writer) = writer.take() {
                let _ = writer.join();
            }
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Link::Relayed { there, relay } = self {
            let _ = relay.send(ToRelay::Close(*there));
        }
    }
}

/// Gives every connection of this process a number of its own, whatever it is made of.
pub(crate) fn number() -> Conn {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Relaxed)
}

/// Accepts on the node's own socket, for ever.
pub(crate) fn accept(listener: UnixListener, to: Sender<Input>) {
    std::thread::spawn(move || {
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    if !is_ours(&stream) {
                        tracing::warn!("a connection of another user was refused");
                        continue;
                    }
                    if let Err(e) = open(stream, &to) {
                        tracing::warn!("a connection: {e}");
                    }
                }
                Err(e) => {
                    tracing::warn!("accept: {e}");
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }
    });
}

/// A stream that can be read and written by two threads.
pub(crate) trait Stream: Read + Write + Send + Sized + 'static {
    /// The second handle.
    fn again(&self) -> std::io::Result<Self>;
    /// Both directions end, for both handles.
    fn end(&self);
    /// How long a write may take.
    fn write_limit(&self, limit: Duration) -> std::io::Result<()>;
}

macro_rules! stream {
    ($($t:ty),*) => { $(
        impl Stream for $t {
            fn again(&self) -> std::io::Result<Self> {
                self.try_clone()
            }
            fn end(&self) {
                let _ = self.shutdown(std::net::Shutdown::Both);
            }
            fn write_limit(&self, limit: Duration) -> std::io::Result<()> {
                self.set_write_timeout(Some(limit))
            }
        }
    )* };
}
stream!(UnixStream, std::net::TcpStream);

fn is_ours(stream: &UnixStream) -> bool {
    rustix::net::sockopt::socket_peercred(stream).is_ok_and(|c| c.uid == rustix::process::geteuid())
}

/// Makes a connection of a stream.
pub(crate) fn open(stream: impl Stream, to: &Sender<Input>) -> std::io::Result<()> {
    let conn = number();
    let mut reading = stream.again()?;
    stream.write_limit(Duration::from_secs(60))?;
    let (sender, receiver) = unbounded();
    let writer = builder("write").spawn(move || write_all(stream, &receiver))?;
    let _ = to.send(Input::Opened(conn, Link::Own { to: Some(sender), writer: Some(writer) }));
    let out = to.clone();
    builder("read").spawn(move || {
        loop {
            match message::read(&mut reading) {
                Ok(m) => {
                    let _ = out.send(Input::Message(conn, m));
                }
                Err(e) => {
                    if !matches!(e, WireError::Closed | WireError::Io(_)) {
                        tracing::warn!("connection {conn}: {e}");
                    }
                    reading.end();
                    let _ = out.send(Input::Closed(conn));
                    return;
                }
            }
        }
    })?;
    Ok(())
}

pub(crate) fn builder(name: &str) -> std::thread::Builder {
    std::thread::Builder::new().name(name.into()).stack_size(256 << 10)
}

fn write_all(mut stream: impl Stream, from: &Receiver<FromAgent>) {
    for m in from {
        if let Err(e) = message::write(&mut stream, &m) {
            tracing::debug!("write: {e}");
            break;
        }
    }
    stream.end();
}
