//! Connections: one thread reads, one writes, so that a slow rank holds up nobody. Runs *next door*.
//!
//! What a reader would get wrong: a connection ends for the loop with exactly one [`Input::Closed`], after everything
//! that was read from it.

use crossbeam::channel::{Receiver, Sender, unbounded};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;
use std::time::Duration;
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
    /// From the store.
    Store(Event),
}

/// The sending side of a connection. Dropping it ends the connection after what was sent.
#[derive(Debug)]
pub(crate) struct Link {
    to: Option<Sender<FromAgent>>,
    writer: Option<JoinHandle<()>>,
}

impl Link {
    pub(crate) fn send(&self, message: FromAgent) {
        if let Some(to) = &self.to {
            // A writer that has failed is gone; the reader reports the end of the connection.
            let _ = to.send(message);
        }
    }

    /// Ends the connection when everything has been sent.
    pub(crate) fn finish(mut self) {
        self.to = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

/// Accepts for ever.
pub(crate) fn accept(listener: UnixListener, to: Sender<Input>) {
    std::thread::spawn(move || {
        for conn in 1.. {
            match listener.accept() {
                Ok((stream, _)) => {
                    if !is_ours(&stream) {
                        tracing::warn!("a connection of another user was refused");
                        continue;
                    }
                    if let Err(e) = open(conn, stream, &to) {
                        tracing::warn!("connection {conn}: {e}");
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

fn is_ours(stream: &UnixStream) -> bool {
    rustix::net::sockopt::socket_peercred(stream).is_ok_and(|c| c.uid == rustix::process::geteuid())
}

fn open(conn: Conn, stream: UnixStream, to: &Sender<Input>) -> std::io::Result<()> {
    let mut reading = stream.try_clone()?;
    stream.set_write_timeout(Some(Duration::from_secs(60)))?;
    let (sender, receiver) = unbounded();
    let writer = builder("write").spawn(move || write_all(stream, &receiver))?;
    let _ = to.send(Input::Opened(conn, Link { to: Some(sender), writer: Some(writer) }));
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
                    let _ = reading.shutdown(std::net::Shutdown::Both);
                    let _ = out.send(Input::Closed(conn));
                    return;
                }
            }
        }
    })?;
    Ok(())
}

fn builder(name: &str) -> std::thread::Builder {
    std::thread::Builder::new().name(name.into()).stack_size(256 << 10)
}

fn write_all(mut stream: UnixStream, from: &Receiver<FromAgent>) {
    for m in from {
        if let Err(e) = message::write(&mut stream, &m) {
            tracing::debug!("write: {e}");
            break;
        }
    }
    let _ = stream.shutdown(std::net::Shutdown::Both);
}
