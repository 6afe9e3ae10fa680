//! Has everything happened that was asked for? Both ends of each connection compare what they have counted.
//!
//! ```text
//!   COUNTS    forgets the last time
//!   DRAIN     completions are brought home; when none is awaited, or none comes: publish, for each connected queue pair, under its
//!             names: sends that were done, receives that were, receives that wait; and ask for the other end's
//!             ─▶ the other end's: settled, or once more
//! ```
//!
//! What a reader would get wrong: both ends judge by the same two answers of the same round, so they come to the same end, and who has
//! settled all of its connections need not speak any more. Nobody posts meanwhile: what waits for a receive that is not there
//! has not happened, and is posted again after a restart.

use std::collections::{BTreeMap, BTreeSet};

use rdma_sys::{ibv_comp_channel, ibv_context, ibv_cq, ibv_qp, ibv_qp_state, ibv_qp_type};
use std::sync::atomic::Ordering::Relaxed;
use stillpoint_abi::half::{StillArg, still};
use stillpoint_sys::raw::monotonic_ns;

use crate::cm::event as cm;
use crate::front::{Heard, Out, found};
use crate::lock::Lock;
use crate::log;
use crate::objects::{Channel, Context, Qp, Srq};
use crate::queue::is_extended;
use crate::world::{self, Kind};
use crate::{descriptor, device, domain, event, known, lone, memory, names, patience, post, queue, rebind};

/// Without a completion, a change of a count: how long until others are told, until unreliable ones count as lost, and until the
/// checkpoint is given up.
const QUIET: u64 = 100_000_000;
const GRACE: u64 = 10_000_000;
const PATIENCE: u64 = 5_000_000_000;
/// And more for each byte of a request that is under way: 50 MB/s.
const SLOW: u64 = 20;
/// How long for answers of the kernel's to librdmacm.
const HALF_MADE: u64 = 1_000_000_000;
/// Rounds in which counts that differ have not changed.
const SAME: u32 = 3;

/// What one end has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Sends that have taken a receive of the other end.
    pub(crate) done: u64,
    pub(crate) received: u64,
    /// Requests without a completion.
    pub(crate) open: u32,
    /// Receives without one.
    pub(crate) posted: u32,
    /// The oldest of those open takes a receive.
    pub(crate) takes: bool,
    /// A request has failed: the queue pair does no more.
    pub(crate) broken: bool,
    /// Of extended connections: the shared queue that the oldest of those open names, and at the other end the one that `posted` is of.
    pub(crate) queue: u32,
    /// It is not connected, or not any more: nothing arrives there.
    pub(crate) young: bool,
    /// A request has succeeded since it began.
    pub(crate) begun: bool,
    /// It has begun anew since it was made, or another one had its number before.
    pub(crate) anew: bool,
}

/// Bytes of [`Counts`]; behind them is the name of the other end, if there is one.
const COUNTS: usize = 32;

impl Counts {
    fn pack(self) -> Vec<u8> {
        let bit = |at: u32, is: bool| u32::from(is) << at;
        let flags = bit(0, self.takes)
            | bit(1, self.broken)
            | bit(2, self.young)
            | bit(3, self.begun)
            | bit(4, self.anew);
        let words = [self.open, self.posted, flags, self.queue].map(u32::to_le_bytes).concat();
        [&self.done.to_le_bytes()[..], &self.received.to_le_bytes(), &words].concat()
    }

    fn of(bytes: &[u8]) -> Option<Counts> {
        let long = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let flags = word(24)?;
        Some(Counts {
            done: long(0)?,
            received: long(8)?,
            open: word(16)?,
            posted: word(20)?,
            takes: flags & 1 != 0,
            broken: flags & 2 != 0,
            young: flags & 4 != 0,
            begun: flags & 8 != 0,
            anew: flags & 16 != 0,
            queue: word(28)?,
        })
    }

    /// Whether what this end has sent has arrived at `other`, or cannot: it waits for a receive, of which there is none.
    fn has_reached(&self, other: &Counts) -> bool {
        self.done == other.received
            && (self.open == 0 || self.takes && other.posted == 0 && self.queue == other.queue)
    }

    /// Whether nothing is under way between the two ends of a reliable connection.
    pub(crate) fn settled(&self, other: &Counts) -> bool {
        // Who has never reached it tries again until it is connected, natively and after a restart. Who has, and is a number ahead
        // of it, fails; as long as it has not, it may have been executed.
        if other.young {
            return self.open == 0 || !self.begun && !self.broken;
        }
        if self.broken || other.broken {
            return self.open == 0 && other.open == 0;
        }
        self.has_reached(other) && other.has_reached(self)
    }

    /// Whether what is complete at both ends, and was not counted at both, stays so: one of them has begun anew, and the other has sent
    /// nothing since. A reliable message that only one end has seen is none of these: its completion is on the way, or lost.
    fn counted_before(&self, other: &Counts, unreliable: bool) -> bool {
        self.open == 0 && other.open == 0 && (unreliable || self.anew || other.anew)
    }
}

/// What there is in the place of another end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    /// It was destroyed, or is connected with another one ([`crate::lone`]).
    Gone,
    /// Nothing of this job, or nobody can tell which.
    Stranger,
}

/// One end, as it was published.
#[derive(Debug, Default)]
struct End {
    own: Counts,
    other: Counts,
    /// Rounds in which neither has changed.
    same: u32,
    lost: Option<Lost>,
    /// The other end, or its port, has been heard of.
    heard: bool,
    settled: bool,
}

/// The drain of one checkpoint.
#[derive(Debug)]
struct State {
    /// By queue pair.
    ends: BTreeMap<usize, End>,
    /// The round in which this rank has spoken.
    spoken: Option<u32>,
    /// How often, and when last.
    rounds: u32,
    spoke: u64,
    /// Since when nothing has changed.
    quiet: u64,
    seen: Vec<Counts>,
    /// Why nothing of this can be saved, however long one waits.
    never: Option<String>,
    done: bool,
}

impl State {
    const fn new(quiet: u64) -> State {
        State {
            ends: BTreeMap::new(),
            spoken: None,
            rounds: 0,
            spoke: 0,
            quiet,
            seen: Vec::new(),
            never: None,
            done: false,
        }
    }
}

static STATE: Lock<State> = Lock::new(State::new(0));

/// Another checkpoint.
pub(crate) fn begin() {
    // SAFETY: objects of the world live, and every thread stands still.
    unsafe {
        for context in world::all(Kind::Context) {
            let context = std::ptr::with_exposed_provenance_mut::<ibv_context>(context);
            descriptor::keep((*context).async_fd, &Context::of(Context::whole(context)).own.flags);
        }
        for channel in world::all(Kind::Channel) {
            let channel = std::ptr::with_exposed_provenance_mut::<ibv_comp_channel>(channel);
            descriptor::keep((*channel).fd, &Channel::of(channel).own.flags);
        }
    }
    cm::gather();
    patience::stand_still();
    // SAFETY: as above.
    let never = unsafe { memory::unsavable() };
    STATE.with(|s| *s = State { never, ..State::new(monotonic_ns()) });
}

fn pairs() -> impl Iterator<Item = *mut ibv_qp> {
    world::all(Kind::Qp).into_iter().map(std::ptr::with_exposed_provenance_mut)
}

/// # Safety
/// For all of these: every thread of the application stands still, and the objects of the world live.
unsafe fn count(qp: *mut ibv_qp) -> Counts {
    // SAFETY: the caller's promise.
    unsafe {
        let own = &Qp::of(qp).own;
        let logs = own.logs;
        let sends = logs.sends.with(|s| s.as_ref().map(|s| (s.open(), s.taken(), s.has_begun())));
        let (open, (done, takes), begun) = sends.unwrap_or_default();
        let open_receives =
            |logs: &log::Queue| logs.receives.with(|r| r.as_ref().map_or(0, log::Receives::open));
        let srq = (*qp).srq;
        let extended = (*qp).qp_type == ibv_qp_type::IBV_QPT_XRC_RECV;
        // Of the queue that the other end has named, once it has; if it is none of ours, nobody can tell.
        let queue = if extended {
            own.wanted.load(Relaxed)
        } else {
            logs.sends.with(|s| s.as_ref().map_or(0, log::Sends::names))
        };
        let named = || domain::posted(device::number((*qp).context), queue).unwrap_or(usize::MAX);
        let own_posted = || open_receives(if srq.is_null() { logs } else { Srq::of(srq).own.logs });
        let posted = if extended { named() } else { own_posted() };
        Counts {
            done,
            received: logs.received.load(Relaxed),
            open: u32::try_from(open).unwrap_or(u32::MAX),
            posted: u32::try_from(posted).unwrap_or(u32::MAX),
            takes,
            broken: logs.broken.load(Relaxed) || (*qp).state == ibv_qp_state::IBV_QPS_ERR || cm::is_over(qp),
            queue,
            begun,
            anew: logs.anew.load(Relaxed),
            young: matches!((*qp).state, ibv_qp_state::IBV_QPS_RESET | ibv_qp_state::IBV_QPS_INIT),
        }
    }
}

/// Bytes of the oldest request.
unsafe fn length(qp: *mut ibv_qp) -> u64 {
    // SAFETY: the caller's promise.
    let logs = unsafe { Qp::of(qp) }.own.logs;
    logs.sends.with(|s| s.as_ref().map_or(0, log::Sends::length))
}

/// Queue pairs that have, or have had, another end.
pub(crate) unsafe fn is_connected(qp: *mut ibv_qp) -> bool {
    // SAFETY: the caller's promise.
    let (kind, state) = unsafe { ((*qp).qp_type, (*qp).state) };
    (is_extended(kind) || matches!(kind, ibv_qp_type::IBV_QPT_RC | ibv_qp_type::IBV_QPT_UC))
        && !matches!(state, ibv_qp_state::IBV_QPS_RESET | ibv_qp_state::IBV_QPS_INIT)
}

/// One step.
pub(crate) unsafe fn step(arg: &mut StillArg) -> i64 {
    let heard = found(arg);
    STATE.with(|s| {
        // SAFETY: the caller's promise.
        unsafe {
            loop {
                for cq in world::all(Kind::Cq) {
                    post::bring_home(std::ptr::with_exposed_provenance_mut::<ibv_cq>(cq));
                }
                cm::gather();
                let (now, seen) = (monotonic_ns(), pairs().map(|qp| count(qp)).collect::<Vec<_>>());
                if seen != s.seen {
                    (s.seen, s.quiet) = (seen, now);
                }
                // Only the other end, which stands still as well, can bring it to its end.
                let next = match (s.never.take().or_else(cm::unsavable), cm::half_made()) {
                    (Some(why), _) => Next::GiveUp(why),
                    (None, Some(why)) => s.wait(why, now),
                    (None, None) => s.next(arg.round, &heard, now),
                };
                match next {
                    Next::Wait if now > arg.deadline => return still::AGAIN,
                    Next::Wait => std::thread::yield_now(),
                    Next::Done => match rebind::all_bound() {
                        Ok(_) => {
                            event::bring_home();
                            pairs().for_each(|qp| queue::see_state(qp));
                            return still::DONE;
                        }
                        Err(why) => return Out::why(&why).say(arg, -1),
                    },
                    Next::Speak => return s.speak(arg.round).say(arg, still::SPEAKS),
                    Next::GiveUp(why) => return Out::why(&why).say(arg, -1),
                }
            }
        }
    })
}

/// What is to be done.
enum Next {
    Wait,
    Done,
    Speak,
    GiveUp(String),
}

impl State {
    unsafe fn next(&mut self, round: u32, heard: &Heard, now: u64) -> Next {
        if self.done || self.spoken == Some(round) {
            // For the others' sake.
            return if self.done { Next::Done } else { Next::Wait };
        }
        // SAFETY: the caller's promise.
        unsafe {
            let open = pairs().find(|qp| count(*qp).open > 0);
            if self.spoken.is_none() {
                // Unreliable ones are given their time by the round; and others may ask whose a port is.
                let speaks = pairs().next().is_some() || !lone::ports().is_empty();
                return match open {
                    None if !speaks => self.ends_well(),
                    Some(_) if now < self.quiet + QUIET => Next::Wait,
                    _ => Next::Speak,
                };
            }
            if self.spoken.is_some_and(|spoken| spoken < round) {
                // Once in a round.
                self.spoken = Some(u32::MAX);
                self.judge(heard);
            }
            // Of datagrams nobody counts how many were sent to whom: all have sent theirs, and then they have some time.
            let datagrams = pairs().any(|qp| (*qp).qp_type == ibv_qp_type::IBV_QPT_UD);
            let alone = pairs().find(|qp| !is_connected(*qp) && count(*qp).open > 0);
            let first = self.unsettled().next().or(alone);
            // Both ends have said what there is since the last change; the longest may be slow.
            let slow = pairs().map(|qp| length(qp)).max().unwrap_or(0) * SLOW;
            let patient = self.spoke < self.quiet || now < self.quiet + PATIENCE + slow;
            match (first, !patient) {
                (None, _) if !datagrams || self.rounds >= 2 => self.ends_well(),
                (Some(qp), true) => Next::GiveUp(self.why(qp)),
                _ if now < self.quiet.max(self.spoke) + GRACE => Next::Wait,
                _ => Next::Speak,
            }
        }
    }

    /// For a connection that is being made.
    fn wait(&self, why: String, now: u64) -> Next {
        if now > self.quiet + HALF_MADE { Next::GiveUp(why) } else { Next::Wait }
    }

    fn ends_well(&mut self) -> Next {
        self.done = true;
        Next::Done
    }

    fn unsettled(&self) -> impl Iterator<Item = *mut ibv_qp> {
        let all = self.ends.iter().filter(|(_, end)| !end.settled);
        all.map(|(at, _)| std::ptr::with_exposed_provenance_mut(*at))
    }

    unsafe fn why(&self, qp: *mut ibv_qp) -> String {
        // SAFETY: the caller's promise.
        unsafe {
            let (number, own) = ((*qp).qp_num, count(qp));
            let oldest = Qp::of(qp).own.logs.sends.with(|s| s.as_ref().map(log::Sends::oldest));
            let oldest = oldest.unwrap_or("a request");
            let lost = self.ends.get(&qp.expose_provenance()).and_then(|end| end.lost);
            if lost == Some(Lost::Stranger) {
                format!("queue pair {number:#x}: its other end is no queue pair of this job")
            } else if lost == Some(Lost::Gone) {
                format!("queue pair {number:#x}: {oldest} does not complete, and its other end is gone")
            } else if own.open > 0 {
                let there = self.ends.get(&qp.expose_provenance()).map(|end| end.other).unwrap_or_default();
                format!(
                    "queue pair {number:#x}: {oldest} does not complete; {} are open, {} sends were done, of which the other end has received {}, and has {} receives",
                    own.open, own.done, there.received, there.posted
                )
            } else {
                format!("queue pair {number:#x}: what one end has sent has not arrived at the other")
            }
        }
    }

    /// Publishes what is counted now, of all; asks about those that are not settled.
    unsafe fn speak(&mut self, round: u32) -> Out {
        let mut out = Out::default();
        self.spoken = Some(round);
        (self.rounds, self.spoke) = (self.rounds + 1, monotonic_ns());
        let mut ports = BTreeSet::new();
        for name in lone::ports() {
            out.publish(&names::of(names::PORTS, name), &[]);
        }
        // SAFETY: the caller's promise.
        unsafe {
            for qp in pairs() {
                let counts = count(qp);
                // Also of one that is not connected yet: its other end may be already.
                Qp::of(qp).own.told.with(|told| {
                    let peer = if is_connected(qp) { names::peer(told) } else { Vec::new() };
                    for (_, name) in names::own(qp, told) {
                        out.publish(&name, &[counts.pack(), peer.clone()].concat());
                    }
                });
                if !is_connected(qp) {
                    continue;
                }
                let end = self.ends.entry(qp.expose_provenance()).or_default();
                Qp::of(qp).own.told.with(|told| {
                    if !end.settled {
                        end.same = if end.own == counts { end.same.saturating_add(1) } else { 0 };
                        end.own = counts;
                        out.ask(&names::peer(told));
                        ports.insert(names::of(names::PORTS, known::name(&told.attr.ah_attr)));
                    }
                });
            }
        }
        ports.iter().for_each(|port| out.ask(port));
        out
    }

    unsafe fn judge(&mut self, heard: &Heard) {
        for (at, end) in self.ends.iter_mut().filter(|(_, end)| !end.settled) {
            let qp = std::ptr::with_exposed_provenance_mut::<ibv_qp>(*at);
            // SAFETY: the caller's promise.
            let (own, kind) = unsafe { (&Qp::of(qp).own, (*qp).qp_type) };
            // SAFETY: as above.
            let (name, port, mine) = own.told.with(|told| unsafe {
                let port = names::of(names::PORTS, known::name(&told.attr.ah_attr));
                (names::peer(told), port, names::own(qp, told))
            });
            let one = heard.one(&name).and_then(|(_, value)| Some((Counts::of(value)?, &value[COUNTS..])));
            // Unreliable ones may lead anywhere.
            let unreliable = kind == ibv_qp_type::IBV_QPT_UC;
            let is_mine =
                |peer: &[u8]| unreliable || peer.is_empty() || mine.iter().any(|(_, name)| *name == peer);
            let (all, ours) = (heard.all(&name), !heard.all(&port).is_empty());
            let lost = match one {
                Some((_, peer)) if is_mine(peer) => None,
                Some(_) => Some(Lost::Gone),
                // Its rank is done, and says nothing any more: nothing has changed.
                None if all.is_empty() && !ours && end.heard => end.lost,
                None if all.is_empty() && ours => Some(Lost::Gone),
                None => Some(Lost::Stranger),
            };
            (end.lost, end.heard) = (lost, end.heard || ours || one.is_some());
            own.alone.store(lost == Some(Lost::Gone), Relaxed);
            if lost.is_some() {
                end.settled = end.own.open == 0 && (end.own.broken || lost == Some(Lost::Gone));
                continue;
            }
            if let Some((other, _)) = one.filter(|(other, _)| *other != end.other) {
                (end.other, end.same) = (other, 0);
            }
            let other = end.other;
            own.wanted.store(other.queue, Relaxed);
            let before = end.same >= SAME && end.own.counted_before(&other, unreliable);
            end.settled = end.own.settled(&other) || before;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(done: u64, received: u64, open: u32, posted: u32, takes: bool) -> Counts {
        Counts { done, received, open, posted, takes, ..Counts::default() }
    }

    #[test]
    fn there_and_back() {
        for broken in [false, true] {
            let c = Counts {
                broken,
                young: !broken,
                begun: broken,
                anew: !broken,
                ..counts(1 << 40, 7, 3, 9, !broken)
            };
            assert_eq!(Counts::of(&c.pack()), Some(c));
        }
        assert_eq!(Counts::of(&[0; 31]), None);
    }

    #[test]
    fn settled_when_what_was_sent_has_arrived_or_waits_for_a_receive() {
        let one = counts(5, 2, 0, 4, false);
        assert!(one.settled(&counts(2, 5, 0, 0, false)));
        assert!(!one.settled(&counts(2, 4, 0, 0, false)), "one is under way");
        let sends = counts(5, 2, 3, 4, true);
        assert!(sends.settled(&counts(2, 5, 0, 0, false)), "no receive is there for the sixth");
        assert!(!sends.settled(&counts(2, 5, 0, 1, false)), "there is one");
        assert!(!sends.settled(&counts(2, 6, 0, 0, false)), "its acknowledgement is under way");
        assert!(
            !counts(5, 2, 3, 4, false).settled(&counts(2, 5, 0, 0, false)),
            "a write completes by itself"
        );
        let named = |queue| Counts { queue, ..counts(2, 5, 0, 0, false) };
        assert!(Counts { queue: 7, ..sends }.settled(&named(7)));
        assert!(!Counts { queue: 7, ..sends }.settled(&named(0)), "no receive is in another queue");
        let young = Counts { young: true, ..counts(0, 0, 0, 9, false) };
        assert!(counts(5, 2, 3, 4, false).settled(&young), "nobody is there yet");
        let begun = |open| Counts { begun: true, ..counts(5, 2, open, 4, true) };
        assert!(
            begun(0).settled(&young) && !begun(1).settled(&young),
            "it may have been executed there before"
        );
        let (lost, none) = (counts(5, 2, 0, 4, false), counts(2, 4, 0, 0, false));
        assert!(!lost.counted_before(&none, false), "a message that one end has not seen");
        assert!(lost.counted_before(&none, true), "no one says that it will");
        let anew = Counts { anew: true, ..none };
        assert!(lost.counted_before(&anew, false) && anew.counted_before(&lost, false));
        assert!(!Counts { open: 1, ..lost }.counted_before(&anew, false), "it may have been executed");
        let broken = |open| Counts { broken: true, ..counts(5, 2, open, 0, false) };
        assert!(
            broken(0).settled(&counts(9, 9, 0, 1, false)) && !broken(1).settled(&counts(9, 9, 0, 1, false))
        );
    }
}
