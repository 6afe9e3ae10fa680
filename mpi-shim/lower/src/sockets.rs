//! TCP connections between ranks of the job, at the still point and after a restart: the part that the lower half itself plays
//! among the plugins. *Lower half*: the control thread, and after a restart the main thread.
//!
//! ```text
//!   COUNTS   publish (this end, other end), ask (other end, this end)
//!   DRAIN    nobody has published that: refused; else until all that was sent is acknowledged
//!   image    the bytes in each receive queue (`stillpoint-capture::tcp`)
//!   REBUILD  round 0: a barrier: every rank has its own ports again, before sockets take others
//!            round 1: the end with the lesser name listens, and publishes where; each end publishes what waited in it;
//!                     connections without another end are made
//!            round 2: the ends meet (`meeting`); each end writes what waited in the other; then it is as deaf and mute as before
//! ```
//!
//! What a reader would get wrong: the two ends may be in one process. And which connections there are is asked twice, before the
//! drain and in the image: one that has ended in between would be there at one end only.
#![allow(unsafe_code, reason = "moves descriptors")]

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::time::{Duration, Instant};

use stillpoint_abi::records::{ASK, FOUND, PUBLISH, Records};
use stillpoint_capture::gather::{self, Streams};
use stillpoint_capture::tcp;
use stillpoint_image::{FdKind, Meta, Phase, Tcp};
use stillpoint_sys::raw::nr;
use stillpoint_sys::sys;

use crate::meeting::{self, End, Nonce, Post};
use crate::still;

/// How long what was sent may take to be acknowledged by a peer's kernel, and how long nothing of it may be.
const ACKNOWLEDGED: Duration = Duration::from_secs(2);
const STALLED: Duration = Duration::from_millis(500);
/// How long a rebuild may take, and how much longer for each connection.
const ALL: Duration = Duration::from_secs(60);
const ONE: Duration = Duration::from_millis(100);

/// A connection: all numbers that lead to it, and what it is.
#[derive(Debug)]
struct Connection {
    nums: Vec<RawFd>,
    cloexec: Vec<bool>,
    nonblocking: bool,
    tcp: Tcp,
    nonce: Nonce,
}

/// The connections of this rank, in a checkpoint or a rebuild.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    list: Vec<Connection>,
    /// Whose other end is nowhere.
    left: Vec<RawFd>,
    found: bool,
    /// When the drain began; when last something was acknowledged, and what was missing then.
    begun: Option<Instant>,
    moved: Option<(Instant, usize)>,
    /// Those of an image that have no other end.
    alone: Vec<Connection>,
    post: Option<Post>,
}

/// What this part has come to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Done,
    Again,
    Speaks(Vec<u8>),
}

type Out = Vec<(u32, Vec<u8>)>;

fn publish(out: &mut Out, key: &[u8], value: &[u8]) {
    let mut body = u32::try_from(key.len()).unwrap_or(0).to_le_bytes().to_vec();
    body.extend_from_slice(key);
    body.extend_from_slice(value);
    out.push((PUBLISH, body));
}

/// By key, what was found.
fn found(input: &[u8]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, String> {
    let one = |(kind, body): (u32, &[u8])| {
        let n = u32::from_le_bytes(body.get(4..8)?.try_into().ok()?) as usize;
        let (key, value) = body.get(8..)?.split_at_checked(n)?;
        (kind == FOUND).then(|| (key.to_vec(), value.to_vec()))
    };
    let mut all = BTreeMap::new();
    for (key, value) in Records::of(input).filter_map(one) {
        let name = String::from_utf8_lossy(key.get(1..).unwrap_or_default()).into_owned();
        if all.insert(key, value).is_some() {
            return Err(format!("two ranks have a TCP connection of one name: {name}"));
        }
    }
    Ok(all)
}

/// The key of one end's word on a connection.
fn key(what: u8, from: &[u8], to: &[u8]) -> Vec<u8> {
    [&[what], from, b">", to].concat()
}

impl Connection {
    fn own(&self, what: u8) -> Vec<u8> {
        key(what, &self.tcp.ends[0], &self.tcp.ends[1])
    }

    fn others(&self, what: u8) -> Vec<u8> {
        key(what, &self.tcp.ends[1], &self.tcp.ends[0])
    }

    fn num(&self) -> RawFd {
        self.nums.first().copied().unwrap_or(-1)
    }

    fn text(&self) -> String {
        let t = &self.tcp;
        format!(
            "descriptor {} is a TCP connection from {} to {}",
            self.num(),
            tcp::text(&t.local),
            tcp::text(&t.peer)
        )
    }

    /// This end waits for the other one to connect.
    fn listens(&self) -> bool {
        self.tcp.ends[0] < self.tcp.ends[1]
    }

    fn is_shut(&self) -> bool {
        matches!(self.tcp.phase, Phase::Connected { shut: true })
    }

    /// Puts the new connection in its places.
    fn place(&self, new: &impl AsRawFd) {
        for (num, cloexec) in self.nums.iter().zip(&self.cloexec) {
            // SAFETY: the application's numbers, which hold a socket that was made for this.
            unsafe { sys!(nr::DUP3, new.as_raw_fd(), *num, if *cloexec { libc::O_CLOEXEC } else { 0 }) };
        }
    }

    /// The socket in its places.
    fn stream(&self) -> std::mem::ManuallyDrop<TcpStream> {
        // SAFETY: the application's number, which is only lent to the stream.
        std::mem::ManuallyDrop::new(unsafe { TcpStream::from_raw_fd(self.num()) })
    }

    /// All is said; now it is as deaf and mute as the former one was.
    fn settle(&self, until: Instant) -> Result<(), String> {
        let new = self.stream();
        // What comes to one that is deaf and mute is answered by a reset (tcp_rcv_state_process).
        while self.tcp.deaf && tcp::come(self.num()) < self.tcp.waiting.len() {
            if Instant::now() >= until {
                return Err("what waited here does not come".into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        if self.is_shut() {
            let _ = new.shutdown(std::net::Shutdown::Write);
        }
        if self.tcp.deaf {
            let _ = new.shutdown(std::net::Shutdown::Read);
        }
        tcp::reuse(self.num());
        tcp::options(self.num(), &self.tcp);
        tcp::unlock(self.num(), &self.tcp);
        new.set_nonblocking(self.nonblocking).map_err(|e| e.to_string())
    }
}

impl Sockets {
    /// Those of this process; what others must know of them.
    pub(crate) fn count(streams: &Streams) -> Result<(Sockets, Vec<u8>), String> {
        let one = |(num, tcp)| Connection {
            nums: vec![num],
            cloexec: Vec::new(),
            nonblocking: false,
            tcp,
            nonce: Nonce::default(),
        };
        let list: Vec<Connection> = gather::connections(streams)?.into_iter().map(one).collect();
        let mut out = Out::new();
        for c in &list {
            if c.tcp.ends[0] == c.tcp.ends[1] {
                return Err(format!("{}, which is itself; it can be saved once that is closed", c.text()));
            }
            publish(&mut out, &c.own(b'c'), &[]);
            out.push((ASK, c.others(b'c')));
        }
        Ok((Sockets { list, ..Sockets::default() }, still::from_items(&out)))
    }

    /// Whether all that was sent has come, and to ranks of the job.
    pub(crate) fn drain(&mut self, input: &[u8]) -> Result<Step, String> {
        if !std::mem::replace(&mut self.found, true) {
            let there = found(input)?;
            let is_there = |c: &Connection| there.contains_key(&c.others(b'c'));
            if let Some(c) = self.list.iter().find(|c| !c.tcp.gone && !is_there(c)) {
                return Err(format!(
                    "{}, which is no rank of this job, or has not accepted it yet; it can be saved once that is closed",
                    c.text()
                ));
            }
            // Nobody at the other end any more: there is nobody to give it back its place.
            let nobody = |c: &&Connection| !is_there(c);
            self.left = self.list.iter().filter(nobody).map(Connection::num).collect();
            self.list.retain(is_there);
        }
        let now = Instant::now();
        let begun = *self.begun.get_or_insert(now);
        let all: usize = self.list.iter().map(|c| tcp::unsent(c.num())).sum();
        let moved = self.moved.filter(|(_, before)| *before == all).map_or(now, |(at, _)| at);
        self.moved = Some((moved, all));
        let goes_on = now < begun + ACKNOWLEDGED && now < moved + STALLED;
        match self.list.iter().map(|c| (c, tcp::unsent(c.num()))).find(|(_, n)| *n > 0) {
            None => Ok(Step::Done),
            Some(_) if goes_on => Ok(Step::Again),
            Some((c, n)) => {
                Err(format!("{}: {n} bytes are on their way for which the other end has no room", c.text()))
            }
        }
    }

    /// Compares with what an image is about to hold, and says there which have nobody at the other end.
    pub(crate) fn settle(&self, meta: &mut Meta) -> Result<(), String> {
        for f in &mut meta.fds {
            let FdKind::Tcp(t) = &mut f.kind else { continue };
            let counted = self.list.iter().find(|c| c.num() == f.same_as);
            match t.phase {
                Phase::Connected { shut } if self.left.contains(&f.same_as) => t.phase = Phase::Left { shut },
                Phase::Connected { .. } if counted.is_some_and(|c| c.tcp.ends == t.ends) => {}
                // Both ends had said that they send no more.
                Phase::Left { .. } if counted.is_none_or(Connection::is_shut) => {}
                Phase::Fresh | Phase::Listening { .. } if counted.is_none() => {}
                _ => return Err(format!("descriptor {} is a TCP connection that has just ended", f.num)),
            }
        }
        Ok(())
    }

    /// Those that the image has.
    pub(crate) fn of(meta: &Meta) -> Sockets {
        let mut list: Vec<Connection> = Vec::new();
        for f in &meta.fds {
            let FdKind::Tcp(t) = &f.kind else { continue };
            if !matches!(t.phase, Phase::Connected { .. } | Phase::Left { .. }) {
                continue;
            }
            match list.iter_mut().find(|c| f.same_as != f.num && c.nums.contains(&f.same_as)) {
                Some(c) => {
                    c.nums.push(f.num);
                    c.cloexec.push(f.cloexec);
                }
                None => list.push(Connection {
                    nums: vec![f.num],
                    cloexec: vec![f.cloexec],
                    nonblocking: f.flags & libc::O_NONBLOCK != 0,
                    tcp: t.clone(),
                    nonce: meeting::nonce(),
                }),
            }
        }
        let is_left = |c: &Connection| matches!(c.tcp.phase, Phase::Left { .. });
        let (alone, list) = list.into_iter().partition(is_left);
        Sockets { list, alone, ..Sockets::default() }
    }

    /// Makes them again.
    pub(crate) fn rebuild(&mut self, round: u32, input: &[u8]) -> Result<Step, String> {
        match round {
            _ if self.list.is_empty() && self.alone.is_empty() => Ok(Step::Done),
            0 => Ok(Step::Speaks(Vec::new())),
            1 => self.announce().map(Step::Speaks),
            _ => self.meet(&found(input)?).map(|()| Step::Done),
        }
    }

    fn announce(&mut self) -> Result<Vec<u8>, String> {
        let mut out = Out::new();
        for c in &self.alone {
            let shut = c.tcp.phase == (Phase::Left { shut: true });
            let new = tcp::left(&c.tcp, shut).map_err(|e| format!("{}: {e}", c.text()))?;
            // SAFETY: made just now, for this.
            let new = unsafe { TcpStream::from_raw_fd(new) };
            c.place(&new);
            new.set_nonblocking(c.nonblocking).map_err(|e| format!("{}: {e}", c.text()))?;
        }
        let families = |v6| self.list.iter().any(|c| c.listens() && c.tcp.v6 == v6);
        let post = Post::new(families(false), families(true)).map_err(|e| format!("listen: {e}"))?;
        for c in &self.list {
            if c.listens() {
                publish(&mut out, &c.own(b'a'), &post.invitation(&c.nonce, c.tcp.v6));
            } else {
                out.push((ASK, c.others(b'a')));
            }
            publish(&mut out, &c.own(b'w'), &c.tcp.waiting);
            out.push((ASK, c.others(b'w')));
        }
        self.post = Some(post);
        Ok(still::from_items(&out))
    }

    fn meet(&mut self, there: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<(), String> {
        let until = Instant::now() + ALL + ONE * u32::try_from(self.list.len()).unwrap_or(u32::MAX);
        let mut ends = Vec::new();
        for c in &self.list {
            let invitation = if c.listens() { None } else { there.get(&c.others(b'a')) };
            if !c.listens() && invitation.is_none() || !there.contains_key(&c.others(b'w')) {
                return Err(format!("{}: the other end is not there after the restart", c.text()));
            }
            ends.push(End { nonce: c.nonce, v6: c.tcp.v6, invitation: invitation.cloned() });
        }
        let post = self.post.take().ok_or("nobody was invited")?;
        let list = &self.list;
        let met = |at: usize, stream: TcpStream| list.iter().skip(at).take(1).for_each(|c| c.place(&stream));
        meeting::meet(&post, &ends, until, met).map_err(|(at, why)| {
            list.get(at).map_or_else(|| why.clone(), |c| format!("{}: {why}", c.text()))
        })?;
        for c in list {
            let bytes = there.get(&c.others(b'w')).map_or(&[][..], Vec::as_slice);
            put(&mut c.stream(), bytes, until).map_err(|e| format!("{}: {e}", c.text()))?;
        }
        // Both ends may be here.
        list.iter().try_for_each(|c| c.settle(until).map_err(|e| format!("{}: {e}", c.text())))
    }
}

/// Writes what waited at the other end; nobody reads there yet.
fn put(to: &mut TcpStream, mut bytes: &[u8], until: Instant) -> Result<(), String> {
    let _ = to.set_nonblocking(true);
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                if Instant::now() >= until {
                    return Err(format!("{} bytes that waited there find no room", bytes.len()));
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(e) => return Err(e.to_string()),
        }
    }
    Ok(())
}
