//! Queue pairs that are to give up when the other end has no receive for a message (`rnr_retry` below 7). *Upper half*.
//!
//! The other end may stand still at a checkpoint, stop earlier than this one or go on later, and not be missing in the application's
//! own time. So below all try for ever (7), and the end of the tries is made up here: when the oldest request of a queue pair
//! wants a receive, and has been the oldest for [`LONGEST`] while this process ran, the queue pair is put into error and the request fails as
//! the device would have it fail. The standard sets no upper bound to that time: each try waits *at least* as long as the other end
//! says.
//!
//! What a reader would get wrong: it is looked for by whoever polls in vain, or waits for an event in `ibv_get_cq_event`; no thread of
//! ours does so.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use rdma_sys::{ibv_comp_channel, ibv_cq, ibv_qp, ibv_qp_state};
use stillpoint_sys::raw::monotonic_ns;

use crate::log::{Queue, Sends};
use crate::objects::{Cq, Qp};
use crate::{queue, world};

/// `rnr_retry`: tries without end.
pub(crate) const FOR_EVER: u8 = 7;
/// Longer than ranks wait for the last one to stand still (`stop` of the coordinator's limits, 20 s), plus as long as it may take to go on.
const LONGEST: u64 = 30_000_000_000;
/// And for each of its bytes: 10 MB/s.
const SLOW: u64 = 100;
/// How often one who polls in vain looks.
const OFTEN: u64 = 200_000_000;
/// The same for one who waits for events: milliseconds.
pub(crate) const LOOKS: i32 = 1000;

/// Queue pairs that are to give up, of one queue of completions.
#[derive(Default)]
pub(crate) struct Finite {
    pairs: Vec<usize>,
    next: u64,
}

/// How long a request has been the oldest one: until the last still point, and since when in this time of running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Oldest {
    number: u64,
    before: u64,
    since: u64,
    run: u64,
}

impl Oldest {
    /// It is the oldest at `now`, in this time of running, of which the one before ended at `ended`.
    fn still(self, run: u64, ended: u64, now: u64) -> Oldest {
        match run.wrapping_sub(self.run) {
            0 => self,
            // Each by the clock of its own start.
            1 => Oldest { before: self.before + ended.saturating_sub(self.since), since: now, run, ..self },
            _ => Oldest { since: now, run, ..self },
        }
    }
}

/// Counts times of running: each ends at a still point. And when the last one did.
static RUN: AtomicU64 = AtomicU64::new(0);
static ENDED: AtomicU64 = AtomicU64::new(0);
/// How many queue pairs are to give up.
static ALL: AtomicU64 = AtomicU64::new(0);

/// Everything stands still: that time is nobody's.
pub(crate) fn stand_still() {
    ENDED.store(monotonic_ns(), Relaxed);
    RUN.fetch_add(1, Relaxed);
}

/// A queue pair is to give up, or no more.
///
/// # Safety
/// For all of these: objects of ours.
pub(crate) unsafe fn set(qp: *mut ibv_qp, gives_up: bool) {
    // SAFETY: the caller's promise; the queue outlives its queue pairs.
    unsafe {
        if (*qp).send_cq.is_null() {
            return;
        }
        let home = &Cq::of((*qp).send_cq).own;
        home.finite.with(|all| {
            let at = qp.expose_provenance();
            let before = all.pairs.len() as u64;
            all.pairs.retain(|p| *p != at);
            if gives_up {
                all.pairs.push(at);
            }
            let now = all.pairs.len() as u64;
            ALL.fetch_add(now.wrapping_sub(before), Relaxed);
            home.patient.store(now != 0, Relaxed);
        });
    }
}

/// Gives up what has waited too long; of a queue that was just found empty.
pub(crate) unsafe fn look(cq: *mut ibv_cq) {
    // SAFETY: the caller's promise.
    unsafe {
        Cq::of(cq).own.finite.with(|all| {
            let now = monotonic_ns();
            // Another start's clock may be behind.
            if now < all.next && all.next <= now + OFTEN {
                return;
            }
            all.next = now + OFTEN;
            for at in &all.pairs {
                let qp = std::ptr::with_exposed_provenance_mut::<ibv_qp>(*at);
                let logs = Qp::of(qp).own.logs;
                if (*qp).state != ibv_qp_state::IBV_QPS_ERR && has_waited(logs, now, RUN.load(Relaxed)) {
                    logs.gave_up.store(true, Relaxed);
                    queue::break_off(qp);
                }
            }
        });
    }
}

/// The same for all queues of a channel, whose events somebody waits for. False: none of them has anything to give up.
pub(crate) unsafe fn look_all(channel: *mut ibv_comp_channel) -> bool {
    if ALL.load(Relaxed) == 0 {
        return false;
    }
    let mut any = false;
    // SAFETY: the caller's promise; a queue with queue pairs is not destroyed.
    world::each(world::Kind::Cq, |at| unsafe {
        let cq = std::ptr::with_exposed_provenance_mut::<ibv_cq>(at);
        if (*cq).channel == channel && Cq::of(cq).own.patient.load(Relaxed) {
            any = true;
            look(cq);
        }
    });
    any
}

/// Whether the oldest request wants a receive and has been the oldest for too long.
fn has_waited(logs: &Queue, now: u64, run: u64) -> bool {
    let oldest = logs.sends.with(|s| s.as_ref().and_then(Sends::wants_receive));
    logs.oldest.with(|known| {
        *known = oldest.map(|(number, _)| match *known {
            Some(k) if k.number == number => k.still(run, ENDED.load(Relaxed), now),
            _ => Oldest { number, before: 0, since: now, run },
        });
        // A long one may just be under way.
        let most = LONGEST + oldest.map_or(0, |(_, bytes)| bytes * SLOW);
        known.is_some_and(|k| k.before + now.saturating_sub(k.since) > most)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_at_still_points_does_not_count() {
        let k = Oldest { number: 7, before: 0, since: 100, run: 1 };
        assert_eq!(k.still(1, 0, 150), k);
        let later = k.still(2, 160, 5000);
        assert_eq!(later, Oldest { before: 60, since: 5000, run: 2, ..k });
        // Another start, whose clock is behind.
        assert_eq!(later.still(3, 5040, 20), Oldest { before: 100, since: 20, run: 3, ..k });
        assert_eq!(later.still(5, 9000, 20).before, 60, "nobody has looked in between");
    }
}
