//! The root's port: agents of other nodes, and the command line on them. Runs *next door*.
//!
//! What a reader would get wrong: whoever has not proven to know the token yet is a stranger. Of these there may be
//! [`STRANGERS`] at a time, [`FROM_ONE`] of one address, each for a few seconds and a fixed number of bytes. One more is let in, and
//! the oldest is sent away for it: who belongs here is done in a moment, and who fills the places is not.

use crate::conn::{self, Input, Link, builder, number};
use crate::relay::{FromRelay, ToRelay, beating};
use crossbeam::channel::Sender;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::BTreeMap;
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::thread::JoinHandle;
use stillpoint_abi::ids::{CkptId, Rank};
use stillpoint_coord::message;
use stillpoint_coord::state::{Conn, Event, Image, Node};
use stillpoint_net::handshake::{self, Purpose};

/// Connections at a time that have not proven anything.
const STRANGERS: usize = 16;
/// The same, of one address.
const FROM_ONE: usize = 8;

/// A connection that has not proven anything.
struct Stranger {
    from: IpAddr,
    stream: TcpStream,
    /// Set by who is first: it has proven itself, or is sent away.
    decided: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

/// Which of those that have come from these addresses, in this order, has to go before one more from `next` may come in: of
/// the address that has the most, the first.
fn one_too_many(from: &[IpAddr], next: IpAddr) -> Option<usize> {
    let count = |a: IpAddr| from.iter().filter(|f| **f == a).count();
    let crowd = if count(next) >= FROM_ONE {
        Some(next)
    } else if from.len() >= STRANGERS {
        from.iter().copied().max_by_key(|a| count(*a))
    } else {
        None
    };
    from.iter().position(|a| Some(*a) == crowd)
}

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
        let mut strangers: Vec<Stranger> = Vec::new();
        while !ends.load(Relaxed) {
            let beat = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
            let _ = poll(&mut [PollFd::new(&listener, PollFlags::IN)], Some(&beat));
            // With the thread's end its connection is over, unless somebody else has it by now.
            strangers.retain(|s| !s.thread.is_finished());
            let Ok((stream, peer)) = listener.accept() else { continue };
            let from = peer.ip().to_canonical();
            let all: Vec<IpAddr> = strangers.iter().map(|s| s.from).collect();
            if let Some(oldest) = one_too_many(&all, from).map(|i| strangers.remove(i))
                && !oldest.decided.swap(true, SeqCst)
            {
                tracing::warn!("{}: too many connections at a time have proven nothing", oldest.from);
                let _ = oldest.stream.shutdown(Shutdown::Both);
            }
            let (token, to, decided) = (token.clone(), to.clone(), Arc::default());
            let met = Arc::clone(&decided);
            let begun = stream.try_clone().and_then(|mine| {
                let thread = builder("stranger").spawn(move || meet(mine, &token, &met, &to))?;
                Ok(Stranger { from, stream, decided, thread })
            });
            match begun {
                Ok(stranger) => strangers.push(stranger),
                Err(e) => tracing::warn!("{peer}: {e}"),
            }
        }
    })?;
    Ok(Port { over, thread: Some(thread) })
}

/// Has the other end prove itself; then its own threads go on with it.
fn meet(stream: TcpStream, token: &str, decided: &AtomicBool, to: &Sender<Input>) {
    let peer = stream.peer_addr().map_or_else(|_| "somebody".to_owned(), |p| p.to_string());
    let met = stream.set_nonblocking(false).map_err(|e| e.to_string()).and_then(|()| {
        let purpose = handshake::answer(&stream, token).map_err(|e| e.to_string())?;
        if decided.swap(true, SeqCst) {
            return Err("sent away".into());
        }
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
                Input::Event(Event::Kept { conn: *conn, node, ckpt: CkptId(ckpt), image })
            }),
            Ok(FromRelay::Copying { ckpt, rank, done }) => {
                Some(Input::Event(Event::Copying { node, ckpt: CkptId(ckpt), rank: Rank(rank), done }))
            }
            Ok(FromRelay::Copied { ckpt, rank, result }) => {
                Some(Input::Event(Event::Copied { node, ckpt: CkptId(ckpt), rank: Rank(rank), result }))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_the_most_makes_room() {
        let [a, b, c] = [1u8, 2, 3].map(|n| IpAddr::from([10, 0, 0, n]));
        assert_eq!(one_too_many(&[], a), None);
        let eight = [vec![b], vec![a; FROM_ONE]].concat();
        assert_eq!((one_too_many(&eight, a), one_too_many(&eight, c)), (Some(1), None));
        let many: Vec<IpAddr> = (0..5).map(|n| IpAddr::from([10, 1, 0, n])).collect();
        let full = [many, vec![b; 4], vec![a; 7]].concat();
        assert_eq!((full.len(), one_too_many(&full, c)), (STRANGERS, Some(9)));
    }
}
