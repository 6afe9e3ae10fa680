//! The root's port: agents of other nodes, and the command line on them. Runs *next door*.
//!
//! What a reader would get wrong: whoever has not proven to know the token yet is a stranger. Of these there may be
//! [`STRANGERS`] at a time, each for a few seconds and a fixed number of bytes; more are sent away at once.

use crate::conn::{self, Input, Link, builder, number};
use crate::relay::{FromRelay, ToRelay, beating};
use crossbeam::channel::Sender;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::BTreeMap;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use stillpoint_abi::ids::{CkptId, Rank};
use stillpoint_coord::message;
use stillpoint_coord::state::{Conn, Image, Node};
use stillpoint_net::handshake::{self, Purpose};

/// Connections at a time that have not proven anything.
const STRANGERS: usize = 16;

/// The thread that accepts. Dropping it closes the port.
#[derive(Debug)]
pub(crate) struct Port {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Port {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Accepts until the result is dropped.
pub(crate) fn accept(listener: TcpListener, token: String, to: Sender<Input>) -> std::io::Result<Port> {
    let over = Arc::new(AtomicBool::new(false));
    let ends = Arc::clone(&over);
    // One that is gone between poll and accept must not hold the thread.
    listener.set_nonblocking(true)?;
    let thread = builder("port").spawn(move || {
        let mut strangers: Vec<JoinHandle<()>> = Vec::new();
        while !ends.load(Relaxed) {
            let beat = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
            let _ = poll(&mut [PollFd::new(&listener, PollFlags::IN)], Some(&beat));
            let Ok((stream, peer)) = listener.accept() else { continue };
            strangers.retain(|s| !s.is_finished());
            if strangers.len() >= STRANGERS {
                tracing::warn!("{peer}: too many connections at a time have proven nothing");
                continue;
            }
            let (token, to) = (token.clone(), to.clone());
            match builder("stranger").spawn(move || meet(stream, &token, &to)) {
                Ok(thread) => strangers.push(thread),
                Err(e) => tracing::warn!("{peer}: {e}"),
            }
        }
    })?;
    Ok(Port { over, thread: Some(thread) })
}

/// Has the other end prove itself; then its own threads go on with it.
fn meet(stream: TcpStream, token: &str, to: &Sender<Input>) {
    let peer = stream.peer_addr().map_or_else(|_| "somebody".to_owned(), |p| p.to_string());
    let met = stream.set_nonblocking(false).map_err(|e| e.to_string()).and_then(|()| {
        let purpose = handshake::answer(&stream, token).map_err(|e| e.to_string())?;
        let _ = stream.set_nodelay(true);
        match purpose {
            Purpose::Command => conn::open(stream, to).map_err(|e| e.to_string()),
            Purpose::Relay => serve(stream, to).map_err(|e| e.to_string()),
        }
    });
    if let Err(e) = met {
        tracing::warn!("{peer}: {e}");
    }
}

/// Starts the two threads of a relay's stream.
fn serve(stream: TcpStream, to: &Sender<Input>) -> std::io::Result<()> {
    let relay = number();
    let beating = beating::<ToRelay>(&stream)?;
    let out = beating.to.clone();
    let _ = to.send(Input::Relay(relay, beating));
    let to = to.clone();
    builder("relay").spawn(move || {
        let mut conns: BTreeMap<u64, Conn> = BTreeMap::new();
        hear(stream, relay, &out, &mut conns, &to);
        for (_, conn) in conns {
            let _ = to.send(Input::Parted(conn));
        }
        let _ = to.send(Input::RelayGone(relay));
        let _ = out.send(ToRelay::Shut);
    })?;
    Ok(())
}

/// Reads what a relay hands on, until the stream ends.
fn hear(
    mut stream: TcpStream,
    node: Node,
    out: &Sender<ToRelay>,
    conns: &mut BTreeMap<u64, Conn>,
    to: &Sender<Input>,
) {
    loop {
        let input = match message::read::<FromRelay>(&mut stream) {
            Ok(FromRelay::Opened(there)) => {
                let conn = number();
                conns.insert(there, conn);
                Some(Input::Opened(conn, Link::Relayed { there, relay: out.clone() }))
            }
            Ok(FromRelay::Message(there, m)) => conns.get(&there).map(|conn| Input::Message(*conn, m)),
            Ok(FromRelay::Closed(there)) => conns.remove(&there).map(Input::Closed),
            Ok(FromRelay::Kept { conn, ckpt, bytes, digest, file_len }) => conns.get(&conn).map(|conn| {
                // The coordinator knows whose the connection is.
                let image = Image { rank: Rank(0), bytes, digest, file_len };
                Input::Kept { conn: *conn, node, ckpt: CkptId(ckpt), image }
            }),
            Ok(FromRelay::Copying { ckpt, rank, done }) => {
                Some(Input::Copying { node, ckpt: CkptId(ckpt), rank: Rank(rank), done })
            }
            Ok(FromRelay::Copied { ckpt, rank, result }) => {
                Some(Input::Copied { node, ckpt: CkptId(ckpt), rank: Rank(rank), result })
            }
            Ok(FromRelay::Beat | FromRelay::Shut) => None,
            Err(e) => {
                tracing::info!("the line to a relay: {e}");
                return;
            }
        };
        if let Some(input) = input
            && to.send(input).is_err()
        {
            return;
        }
    }
}
