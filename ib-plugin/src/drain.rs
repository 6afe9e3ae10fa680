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

use std::collections::BTreeMap;

use rdma_sys::{ibv_comp_channel, ibv_context, ibv_cq, ibv_qp, ibv_qp_state, ibv_qp_type};
use std::sync::atomic::Ordering::Relaxed;
use stillpoint_abi::half::{StillArg, still};
use stillpoint_sys::raw::monotonic_ns;

use crate::front::{Heard, Out, found};
use crate::log::{self, Lock};
use crate::objects::{Channel, Context, Qp, Srq};
use crate::world::{self, Kind};
use crate::{event, names, post};

/// Without a completion, a change of a count: how long until others are told, until unreliable ones count as lost, and until the
/// checkpoint is given up.
const QUIET: u64 = 100_000_000;
const GRACE: u64 = 10_000_000;
const PATIENCE: u64 = 5_000_000_000;
/// Rounds in which the counts of an unreliable connection have not changed.
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
}

impl Counts {
    fn pack(self) -> Vec<u8> {
        let flags = u32::from(self.takes) | u32::from(self.broken) << 1;
        let words = [self.open, self.posted, flags].map(u32::to_le_bytes).concat();
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
        })
    }

    /// Whether what this end has sent has arrived at `other`, or cannot: it waits for a receive, of which there is none.
    fn has_reached(&self, other: &Counts) -> bool {
        self.done == other.received && (self.open == 0 || self.takes && other.posted == 0)
    }

    /// Whether nothing is under way between the two ends of a reliable connection.
    pub(crate) fn settled(&self, other: &Counts) -> bool {
        if self.broken || other.broken {
            return self.open == 0 && other.open == 0;
        }
        self.has_reached(other) && other.has_reached(self)
    }
}

/// One end, as it was published.
#[derive(Debug, Default)]
struct End {
    own: Counts,
    other: Counts,
    /// Rounds in which neither has changed.
    same: u32,
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
            event::keep((*context).async_fd, &Context::of(Context::whole(context)).own.flags);
        }
        for channel in world::all(Kind::Channel) {
            let channel = std::ptr::with_exposed_provenance_mut::<ibv_comp_channel>(channel);
            event::keep((*channel).fd, &Channel::of(channel).own.flags);
        }
    }
    STATE.with(|s| *s = State::new(monotonic_ns()));
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
        let Some(logs) = log::queue(own.place) else { return Counts::default() };
        let (open, (done, takes)) =
            logs.sends.with(|s| s.as_ref().map_or((0, (0, false)), |s| (s.open(), s.taken())));
        let open_receives = |place: u32| {
            let logs = log::queue(place);
            logs.map_or(0, |l| l.receives.with(|r| r.as_ref().map_or(0, log::Receives::open)))
        };
        let srq = (*qp).srq;
        let posted = open_receives(if srq.is_null() { own.place } else { Srq::of(srq).own.place });
        Counts {
            done,
            received: logs.received.load(Relaxed),
            open: u32::try_from(open).unwrap_or(u32::MAX),
            posted: u32::try_from(posted).unwrap_or(u32::MAX),
            takes,
            broken: logs.broken.load(Relaxed) || (*qp).state == ibv_qp_state::IBV_QPS_ERR,
        }
    }
}

/// Queue pairs that have, or have had, another end.
pub(crate) unsafe fn is_connected(qp: *mut ibv_qp) -> bool {
    // SAFETY: the caller's promise.
    let (kind, state) = unsafe { ((*qp).qp_type, (*qp).state) };
    matches!(kind, ibv_qp_type::IBV_QPT_RC | ibv_qp_type::IBV_QPT_UC)
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
                let (now, seen) = (monotonic_ns(), pairs().map(|qp| count(qp)).collect::<Vec<_>>());
                if seen != s.seen {
                    (s.seen, s.quiet) = (seen, now);
                }
                match s.next(arg.round, &heard, now) {
                    Next::Wait if now > arg.deadline => return still::AGAIN,
                    Next::Wait => std::thread::yield_now(),
                    Next::Done => return still::DONE,
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
                // Unreliable ones are given their time by the round.
                let speaks = pairs().next().is_some();
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
            match (first, now > self.quiet + PATIENCE) {
                (None, _) if !datagrams || self.rounds >= 2 => self.ends_well(),
                (Some(qp), true) => Next::GiveUp(self.why(qp)),
                _ if now < self.quiet.max(self.spoke) + GRACE => Next::Wait,
                _ => Next::Speak,
            }
        }
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
            let oldest = log::queue(Qp::of(qp).own.place)
                .and_then(|l| l.sends.with(|s| s.as_ref().map(log::Sends::oldest)))
                .unwrap_or("a request");
            let other = self.ends.get(&qp.expose_provenance()).is_some_and(|end| end.same == u32::MAX);
            if other {
                format!("queue pair {number:#x}: its other end is no queue pair of this job")
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
        // SAFETY: the caller's promise.
        unsafe {
            for qp in pairs() {
                let counts = count(qp);
                // Also of one that is not connected yet: its other end may be already.
                Qp::of(qp).own.told.with(|told| {
                    for (_, name) in names::own(qp, told) {
                        out.publish(&name, &counts.pack());
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
                    }
                });
            }
        }
        out
    }

    unsafe fn judge(&mut self, heard: &Heard) {
        for (at, end) in self.ends.iter_mut().filter(|(_, end)| !end.settled) {
            let qp = std::ptr::with_exposed_provenance_mut::<ibv_qp>(*at);
            // SAFETY: the caller's promise.
            let (name, kind) = unsafe { (Qp::of(qp).own.told.with(|t| names::peer(t)), (*qp).qp_type) };
            let Some(other) = heard.one(&name).and_then(|(_, value)| Counts::of(value)) else {
                end.same = u32::MAX;
                end.settled = end.own.broken && end.own.open == 0;
                continue;
            };
            if end.other != other {
                (end.other, end.same) = (other, 0);
            }
            end.settled = end.own.settled(&other)
                || kind == ibv_qp_type::IBV_QPT_UC
                    && end.own.open == 0
                    && other.open == 0
                    && end.same >= SAME;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(done: u64, received: u64, open: u32, posted: u32, takes: bool) -> Counts {
        Counts { done, received, open, posted, takes, broken: false }
    }

    #[test]
    fn there_and_back() {
        for broken in [false, true] {
            let c = Counts { broken, ..counts(1 << 40, 7, 3, 9, !broken) };
            assert_eq!(Counts::of(&c.pack()), Some(c));
        }
        assert_eq!(Counts::of(&[0; 27]), None);
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
        let broken = |open| Counts { broken: true, ..counts(5, 2, open, 0, false) };
        assert!(
            broken(0).settled(&counts(9, 9, 0, 1, false)) && !broken(1).settled(&counts(9, 9, 0, 1, false))
        );
    }
}
