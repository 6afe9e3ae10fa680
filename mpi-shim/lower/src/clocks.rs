//! The collective clocks as the agent sees them: read for its reports, and given their targets while ranks settle. *Lower
//! half*, control thread, while the application runs.
//!
//! What a reader would get wrong: a front counts and then looks at the flag, without a fence; the membarrier here is the
//! other half of that. And a held thread sleeps on `Half::release`, so whoever moves a target must call [`wake_held`].
#![allow(unsafe_code, reason = "orders memory, reads the members of a clock")]

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::time::{Duration, Instant};
use stillpoint_abi::half as abi;
use stillpoint_capture::pause;
use stillpoint_coord::client::Local;
use stillpoint_coord::message::{Clock, Doing};
use stillpoint_sys::raw::{futex_wake_all, nr};
use stillpoint_sys::{half, sys, upper};

/// Clocks in use.
fn known() -> impl Iterator<Item = &'static abi::Clock> {
    let n = upper().n_clocks.load(Acquire) as usize;
    upper().clocks.iter().take(n).filter(|c| c.gid.load(Acquire) != 0)
}

/// One settle stage.
#[derive(Debug, Default)]
pub(crate) struct Settle {
    /// Its targets. A clock that begins later takes its own from here.
    targets: BTreeMap<u64, u64>,
    /// A thread that is held while another runs, and since when.
    beside: Option<(u64, Instant)>,
}

/// After this, a thread that is held counts more than one that runs: who computes beside it may never call MPI again.
const BESIDE: Duration = Duration::from_millis(200);

impl Settle {
    /// A new one: no clock has a target.
    pub(crate) fn begin() -> Settle {
        for c in known() {
            c.target.store(0, SeqCst);
        }
        Settle::default()
    }

    /// More targets.
    pub(crate) fn add(&mut self, targets: impl IntoIterator<Item = (u64, u64)>) {
        self.targets.extend(targets);
        self.aim();
    }

    /// The clocks for the agent.
    pub(crate) fn look(&mut self) -> Local {
        let (clocks, doing, held) = clocks();
        self.beside = held.map(|gid| match self.beside {
            Some((of, since)) if of == gid => (gid, since),
            _ => (gid, Instant::now()),
        });
        let doing = match self.beside {
            Some((gid, since)) if since.elapsed() > BESIDE => Doing::Held(gid),
            _ => doing,
        };
        Local::Clocks { clocks, doing }
    }

    /// Writes the targets into the clocks; a held thread looks again if one has moved.
    pub(crate) fn aim(&self) {
        let mut moved = false;
        for c in known() {
            if let Some(t) = self.targets.get(&c.gid.load(Relaxed)) {
                moved |= c.target.swap(*t, SeqCst) != *t;
            }
        }
        if moved {
            wake_held();
        }
    }
}

/// Has every thread that is held look again.
pub(crate) fn wake_held() {
    half().release.fetch_add(1, SeqCst);
    futex_wake_all(&half().release);
}

/// What the threads do, taken together: (identity, doing) of each that may send something.
fn together(threads: impl Iterator<Item = (u64, u32)>) -> (Doing, Option<u64>) {
    let (mut runs, mut held, mut inside) = (false, None, None);
    for (gid, doing) in threads {
        match doing {
            abi::doing::HELD => held = held.or(Some(gid)),
            abi::doing::INSIDE => inside = Some(gid),
            abi::doing::WAITING | abi::doing::POLLING => {}
            _ => runs = true,
        }
    }
    let doing = match (runs, held, inside) {
        (true, ..) => Doing::Running,
        // One that is held must be heard of even beside one that is inside: only that gets it released.
        (_, Some(gid), _) => Doing::Held(gid),
        (_, _, Some(gid)) => Doing::Inside(gid),
        _ => Doing::Waiting,
    };
    (doing, held)
}

/// The collective clocks as they stand: read again until two readings agree, since a communicator may be made meanwhile.
/// A membarrier first: a thread that has not seen the flag is seen here.
fn clocks() -> (Vec<Clock>, Doing, Option<u64>) {
    // SAFETY: MEMBARRIER_CMD_PRIVATE_EXPEDITED (8), or where it is not registered MEMBARRIER_CMD_GLOBAL (1): no memory is
    // touched.
    unsafe {
        if sys!(nr::MEMBARRIER, 8, 0, 0) != 0 {
            sys!(nr::MEMBARRIER, 1, 0, 0);
        }
    }
    let glance =
        || -> Vec<(u64, u64)> { known().map(|c| (c.gid.load(Acquire), c.count.load(Acquire))).collect() };
    let mut seen = glance();
    let mut steady = false;
    for _ in 0..8 {
        let again = glance();
        steady = again == seen;
        if steady {
            break;
        }
        seen = again;
    }
    let calls_up = upper().user_operations.load(SeqCst) != 0;
    let clocks = seen
        .iter()
        .map(|(gid, count)| {
            let of = known().find(|c| c.gid.load(Relaxed) == *gid);
            let members = of.map_or((0, 0), |c| (c.members.load(Relaxed), c.n_members.load(Relaxed)));
            let members = if members.0 == 0 {
                Vec::new()
            } else {
                let at = std::ptr::with_exposed_provenance::<u32>(members.0 as usize);
                // SAFETY: the front keeps as many ranks at this address as long as the process lives.
                unsafe { std::slice::from_raw_parts(at, members.1 as usize) }.to_vec()
            };
            // What was not read in one piece counts as inside: it cannot settle. Nor can a rank whose reductions call the
            // application.
            Clock { gid: *gid, count: count >> 1, inside: count & 1 == 1 || !steady || calls_up, members }
        })
        .collect();
    // A thread that has never been in a front (a worker of OpenMP, say) sends nothing that a peer waits for.
    let front = pause::threads().filter(|t| {
        t.lower_fs.load(Relaxed) != 0
            || matches!(t.doing.load(Acquire), abi::doing::HELD | abi::doing::INSIDE)
    });
    let (doing, held) = together(front.map(|t| {
        let gid = t.doing_gid.load(Relaxed);
        (gid, t.doing.load(Acquire))
    }));
    (clocks, doing, held)
}

#[cfg(test)]
mod tests {
    use super::*;
    use stillpoint_abi::half::doing::{HELD, INSIDE, POLLING, RUNNING, WAITING};

    #[test]
    fn a_held_thread_is_heard_of_beside_one_that_is_inside() {
        let all = |l: &[(u64, u32)]| together(l.iter().copied());
        assert_eq!(all(&[(1, HELD), (2, INSIDE), (0, WAITING)]), (Doing::Held(1), Some(1)));
        assert_eq!(all(&[(2, INSIDE), (1, HELD)]), (Doing::Held(1), Some(1)));
        assert_eq!(all(&[(1, HELD), (0, RUNNING)]), (Doing::Running, Some(1)));
        assert_eq!(all(&[(0, POLLING), (2, INSIDE)]), (Doing::Inside(2), None));
        assert_eq!(all(&[]), (Doing::Waiting, None));
    }
}
