//! Entering and leaving a collective: the collective clock of a communicator. Runs in the *upper half*, on the
//! application's stack, just before the call goes below.
//!
//! ```text
//!            count + 3              below the target, or no settle stage
//!   outside ───────────▶ counted ────────────────────────────────────────▶ inside ──▶ count − 1 ──▶ outside
//!      ▲                    │ beyond the target while FLAG_SETTLE stands
//!      └── release moved ── held (count as before, depth 0: the thread may be stopped and saved here)
//! ```
//!
//! What a reader would get wrong: the count is stored *before* the flag is looked at, with no fence of the processor
//! between them. The reader makes up for it with membarrier(2): it raises the flag, then makes every thread pass a
//! barrier, then reads the counts. So either it sees the new count, or the thread sees the flag. `2 × entered +
//! inside` is one word, so "has entered" and "is inside" can never be read apart.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, compiler_fence};
use stillpoint_abi::half::{Clock, FLAG_SETTLE, ThreadRec, doing};

pub(crate) use crate::collective::Within;

/// What a held thread needs from its surroundings, so that the rule can be tested without them.
pub(crate) trait Hold {
    /// [`stillpoint_abi::half::Half::flags`].
    fn flags(&self) -> &AtomicU32;
    /// [`stillpoint_abi::half::Half::release`].
    fn release(&self) -> &AtomicU32;
    /// The calling thread's record.
    fn thread(&self) -> &ThreadRec;
    /// Waits at depth 0 while `release` is `seen`; may return early.
    fn wait(&self, seen: u32);
}

/// How many collectives a count says were entered.
pub(crate) fn entered(count: u64) -> u64 {
    count >> 1
}

/// Counts one collective and returns when it may start; undone by [`leave`].
#[inline(always)]
pub(crate) fn enter(clock: &Clock, h: &impl Hold) {
    let before = clock.count.load(Relaxed);
    clock.count.store(before + 3, Relaxed);
    compiler_fence(core::sync::atomic::Ordering::SeqCst);
    if h.flags().load(Relaxed) & FLAG_SETTLE != 0 {
        settle(clock, before, h);
    }
}

/// The collective is over (or, for a non-blocking one, started).
#[inline(always)]
pub(crate) fn leave(clock: &Clock, h: &impl Hold) {
    let c = clock.count.load(Relaxed);
    debug_assert!(c & 1 == 1, "left a collective that was not entered");
    clock.count.store(c - 1, Release);
    if h.flags().load(Relaxed) & FLAG_SETTLE != 0 {
        h.thread().doing.store(doing::RUNNING, Relaxed);
    }
}

#[cold]
#[inline(never)]
fn settle(clock: &Clock, before: u64, h: &impl Hold) {
    let rec = h.thread();
    let gid = clock.gid.load(Relaxed);
    loop {
        // The word is read before the target: a target raised in between has moved it, and the wait returns at once.
        let seen = h.release().load(Acquire);
        let may = h.flags().load(Acquire) & FLAG_SETTLE == 0 || entered(before) < clock.target.load(Acquire);
        rec.doing_gid.store(gid, Relaxed);
        if may {
            clock.count.store(before + 3, Relaxed);
            compiler_fence(core::sync::atomic::Ordering::SeqCst);
            // A settle stage may have begun between the two looks; then the count must stand under its target too.
            if h.flags().load(Acquire) & FLAG_SETTLE == 0 || entered(before) < clock.target.load(Acquire) {
                rec.doing.store(doing::INSIDE, Release);
                return;
            }
        }
        clock.count.store(before, Relaxed);
        rec.doing.store(doing::HELD, Release);
        h.wait(seen);
    }
}

#[cfg(test)]
#[allow(unsafe_code, reason = "the records are atomics only, and zero is a value of theirs")]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    struct Fake {
        flags: AtomicU32,
        release: AtomicU32,
        rec: ThreadRec,
        waits: AtomicU32,
    }

    impl Hold for Fake {
        fn flags(&self) -> &AtomicU32 {
            &self.flags
        }
        fn release(&self) -> &AtomicU32 {
            &self.release
        }
        fn thread(&self) -> &ThreadRec {
            &self.rec
        }
        fn wait(&self, seen: u32) {
            self.waits.fetch_add(1, Relaxed);
            stillpoint_sys::raw::futex_wait_for(&self.release, seen, 50_000_000);
        }
    }

    fn fake() -> (Arc<Fake>, Arc<Clock>) {
        // SAFETY: both consist of atomics and integers, for which all bits zero is a value.
        let (rec, clock): (ThreadRec, Clock) = unsafe { (core::mem::zeroed(), core::mem::zeroed()) };
        clock.gid.store(77, Relaxed);
        let f = Fake { flags: AtomicU32::new(0), release: AtomicU32::new(0), rec, waits: AtomicU32::new(0) };
        (Arc::new(f), Arc::new(clock))
    }

    #[test]
    fn counts_twice_and_marks_inside() {
        let (f, c) = fake();
        enter(&c, &*f);
        assert_eq!(c.count.load(Relaxed), 3);
        leave(&c, &*f);
        assert_eq!(c.count.load(Relaxed), 2);
        assert_eq!(f.waits.load(Relaxed), 0);
    }

    #[test]
    fn up_to_the_target_nobody_is_held() {
        let (f, c) = fake();
        f.flags.store(FLAG_SETTLE, Relaxed);
        c.target.store(2, Relaxed);
        for _ in 0..2 {
            enter(&c, &*f);
            assert_eq!(f.rec.doing.load(Relaxed), doing::INSIDE);
            leave(&c, &*f);
            assert_eq!(f.rec.doing.load(Relaxed), doing::RUNNING);
        }
        assert_eq!(entered(c.count.load(Relaxed)), 2);
    }

    #[test]
    fn held_beyond_the_target_and_uncounted_until_it_is_raised() {
        let (f, c) = fake();
        f.flags.store(FLAG_SETTLE, Relaxed);
        let (f2, c2) = (f.clone(), c.clone());
        let t = std::thread::spawn(move || enter(&c2, &*f2));
        while f.rec.doing.load(Acquire) != doing::HELD {
            std::thread::yield_now();
        }
        assert_eq!((c.count.load(Relaxed), f.rec.doing_gid.load(Relaxed)), (0, 77));
        std::thread::sleep(Duration::from_millis(5));
        assert!(!t.is_finished());
        c.target.store(1, Release);
        f.release.fetch_add(1, Release);
        stillpoint_sys::raw::futex_wake_all(&f.release);
        t.join().unwrap();
        assert_eq!(c.count.load(Relaxed), 3);
    }

    #[test]
    fn the_end_of_the_stage_lets_everybody_go() {
        let (f, c) = fake();
        f.flags.store(FLAG_SETTLE, Relaxed);
        let (f2, c2) = (f.clone(), c.clone());
        let t = std::thread::spawn(move || {
            enter(&c2, &*f2);
            leave(&c2, &*f2);
        });
        while f.rec.doing.load(Acquire) != doing::HELD {
            std::thread::yield_now();
        }
        f.flags.store(0, Release);
        f.release.fetch_add(1, Release);
        stillpoint_sys::raw::futex_wake_all(&f.release);
        t.join().unwrap();
        assert_eq!(c.count.load(Relaxed), 2);
    }
}
