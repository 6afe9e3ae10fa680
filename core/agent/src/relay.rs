//! The agent of a node that is not the root's: hands on what its node's connections say, and what the root answers. Runs
//! *next door*.
//!
//! ```text
//!  rank ─▶ own socket ─▶ [relay] ══ one TCP stream: (connection, message) … and a beat a second, both ways ══ [root]
//! ```
//!
//! What a reader would get wrong: of checkpoints it knows only where its ranks write, if that is this node's own disk
//! ([`crate::burst`]). When the stream to the root ends, it drops its own
//! connections, and the ranks say hello again, to whatever this agent has become by then.

use crate::args::Args;
use crate::burst::Burst;
use crate::conn::{Input, Link, builder, number};
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::TcpStream;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use stillpoint_abi::ids::CkptId;
use stillpoint_coord::message::{self, FromAgent, FromRank, ToAgent, ToRank};
use stillpoint_coord::state::{Conn, Event};

/// Time between two beats.
const BEAT: Duration = Duration::from_secs(1);
/// Silence after which the other end counts as gone. A network that is cut for a few seconds heals by itself.
const SILENCE: Duration = Duration::from_secs(20);

/// From a relay to the root. The numbers are the relay's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FromRelay {
    /// A connection has come.
    Opened(u64),
    /// It says this.
    Message(u64, ToAgent),
    /// It ended.
    Closed(u64),
    /// Instead of what its rank has written: that lies on the relay's node.
    Kept { conn: u64, ckpt: u64, bytes: u64, digest: [u8; 16], file_len: u64 },
    /// So far has the copy of a rank's image come.
    Copying { ckpt: u64, rank: u32, done: u64 },
    /// It is durable, or why there is none.
    Copied { ckpt: u64, rank: u32, result: Result<(), String> },
    /// The relay lives.
    Beat,
    /// Not sent: the stream is to end.
    Shut,
}

/// From the root to a relay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToRelay {
    /// Send this on a connection.
    Message(u64, FromAgent),
    /// End a connection after what was sent.
    Close(u64),
    /// A checkpoint exists, or never will.
    Over(u64),
    /// The root lives.
    Beat,
    /// The root ends, and so shall the relays.
    End,
    /// Not sent: the stream is to end.
    Shut,
}

/// One end's messages on the stream.
pub(crate) trait Frame: Serialize + Send + 'static {
    /// Says that this end lives.
    fn beat() -> Self;
    /// Ends the stream.
    fn shut() -> Self;
    /// It is that.
    fn is_shut(&self) -> bool;
}

impl Frame for FromRelay {
    fn beat() -> Self {
        FromRelay::Beat
    }
    fn shut() -> Self {
        FromRelay::Shut
    }
    fn is_shut(&self) -> bool {
        *self == FromRelay::Shut
    }
}

impl Frame for ToRelay {
    fn beat() -> Self {
        ToRelay::Beat
    }
    fn shut() -> Self {
        ToRelay::Shut
    }
    fn is_shut(&self) -> bool {
        *self == ToRelay::Shut
    }
}

/// The sending side of a stream between agents.
#[derive(Debug)]
pub(crate) struct Beating<F> {
    pub(crate) to: Sender<F>,
    writer: JoinHandle<()>,
}

impl<F: Frame> Beating<F> {
    /// Ends the stream when everything has been sent.
    pub(crate) fn finish(self) {
        let _ = self.to.send(F::shut());
        let _ = self.writer.join();
    }
}

/// Starts the sending side: a thread that writes, and beats when there is nothing to write. Reads on the stream
/// fail after [`SILENCE`].
pub(crate) fn beating<F: Frame>(stream: &TcpStream) -> std::io::Result<Beating<F>> {
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    rustix::net::sockopt::set_tcp_user_timeout(stream, SILENCE.as_millis() as u32)?;
    let mut out = stream.try_clone()?;
    let (sender, frames) = unbounded::<F>();
    let writer = builder("agent").spawn(move || {
        loop {
            let frame = match frames.recv_timeout(BEAT) {
                Ok(frame) if frame.is_shut() => break,
                Ok(frame) => frame,
                Err(RecvTimeoutError::Timeout) => F::beat(),
                Err(RecvTimeoutError::Disconnected) => break,
            };
            if let Err(e) = message::write(&mut out, &frame) {
                tracing::debug!("write to another agent: {e}");
                break;
            }
        }
        let _ = out.shutdown(std::net::Shutdown::Both);
    })?;
    Ok(Beating { to: sender, writer })
}

/// How a relay's life ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Told to end, or nobody needs it.
    Done,
    /// The root is gone.
    RootGone,
}

/// Hands on until the root is gone or ends, or nobody is here any more.
pub(crate) fn relay(
    args: &Args,
    stream: TcpStream,
    to: &Sender<Input>,
    inputs: &Receiver<Input>,
    burst: &mut Option<Burst>,
) -> std::io::Result<End> {
    let beating = beating::<FromRelay>(&stream)?;
    let out = &beating.to;
    let (inbox, life) = (to.clone(), number());
    let reader = builder("root").spawn(move || {
        let in_order = hear(stream, &inbox);
        let _ = inbox.send(Input::RootGone(life, in_order));
    })?;
    let mut links: BTreeMap<Conn, Link> = BTreeMap::new();
    let mut idle_since = Instant::now();
    let mut patience = args.linger.max(Duration::from_secs(60));
    let end = loop {
        let sent = match inputs.recv_timeout(BEAT) {
            Ok(Input::Opened(conn, link)) => {
                links.insert(conn, link);
                patience = args.linger;
                out.send(FromRelay::Opened(conn))
            }
            Ok(Input::Message(conn, m)) if links.contains_key(&conn) => out.send(said(burst, conn, m)),
            Ok(Input::Event(Event::Copying { ckpt, rank, done, .. })) => {
                out.send(FromRelay::Copying { ckpt: ckpt.0, rank: rank.0, done })
            }
            Ok(Input::Event(Event::Copied { ckpt, rank, result, .. })) => {
                out.send(FromRelay::Copied { ckpt: ckpt.0, rank: rank.0, result })
            }
            Ok(Input::Over(ckpt)) => {
                burst.iter_mut().for_each(|b| b.over(ckpt));
                Ok(())
            }
            Ok(Input::Closed(conn)) => {
                idle_since = Instant::now();
                burst.iter_mut().for_each(|b| b.closed(conn));
                match links.remove(&conn) {
                    Some(_) => out.send(FromRelay::Closed(conn)),
                    None => Ok(()),
                }
            }
            Ok(Input::Hand(conn, m)) => {
                if let Some(link) = links.get(&conn) {
                    link.send(ordered(burst, conn, m));
                }
                Ok(())
            }
            Ok(Input::Drop(conn)) => {
                links.remove(&conn);
                idle_since = Instant::now();
                Ok(())
            }
            Ok(Input::RootGone(of, true)) if of == life => break End::Done,
            Ok(Input::RootGone(of, false)) if of == life => break End::RootGone,
            // Of a time when this agent was the root.
            Ok(Input::Relay(_, stream)) => {
                stream.finish();
                Ok(())
            }
            Ok(_) | Err(_) => Ok(()),
        };
        // A writer that is gone has ended the stream, which the reader reports.
        drop(sent);
        let copies = burst.as_ref().is_some_and(|b| !b.is_idle());
        // What a copy has come to is in the inputs before it counts as none.
        if links.is_empty() && !copies && inputs.is_empty() && idle_since.elapsed() > patience {
            break End::Done;
        }
    };
    // Whoever is the root next knows nothing of what was in progress.
    burst.iter_mut().for_each(Burst::end);
    beating.finish();
    let _ = reader.join();
    if end == End::Done {
        for (_, link) in links {
            link.finish();
        }
    }
    Ok(end)
}

/// What a connection's rank says, as it is handed on.
fn said(burst: &mut Option<Burst>, conn: Conn, message: ToAgent) -> FromRelay {
    if let (Some(b), ToAgent::Rank(FromRank::Written { ckpt, bytes, digest, file_len })) = (burst, &message)
        && b.written(conn, *ckpt, *digest, *file_len)
    {
        return FromRelay::Kept { conn, ckpt: *ckpt, bytes: *bytes, digest: *digest, file_len: *file_len };
    }
    FromRelay::Message(conn, message)
}

/// What the root wants of it: an image is to be written here.
fn ordered(burst: &mut Option<Burst>, conn: Conn, message: FromAgent) -> FromAgent {
    match (burst, message) {
        (Some(b), FromAgent::Rank(ToRank::Snapshot { path, direct, seed })) => {
            FromAgent::Rank(ToRank::Snapshot { path: b.snapshot(conn, path), direct, seed })
        }
        (_, message) => message,
    }
}

/// Reads what the root says; true: it ended in order.
fn hear(mut stream: TcpStream, to: &Sender<Input>) -> bool {
    loop {
        let input = match message::read::<ToRelay>(&mut stream) {
            Ok(ToRelay::Message(conn, m)) => Input::Hand(conn, m),
            Ok(ToRelay::Close(conn)) => Input::Drop(conn),
            Ok(ToRelay::Over(ckpt)) => Input::Over(CkptId(ckpt)),
            Ok(ToRelay::Beat | ToRelay::Shut) => continue,
            Ok(ToRelay::End) => return true,
            Err(e) => {
                tracing::info!("the line to the root: {e}");
                return false;
            }
        };
        if to.send(input).is_err() {
            return false;
        }
    }
}
