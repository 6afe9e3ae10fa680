//! Stops every thread of the upper half, and lets them go. *Lower half*, control thread.
//!
//! A thread is signalled again until it stands: the handler declines while the thread is below, in a front, or in the
//! middle of a crossing. What a reader would get wrong: a thread may end, or a new one begin, while we wait.
#![allow(unsafe_code, reason = "sends signals by thread id")]

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use stillpoint_abi::half::{FLAG_STOP, STOP_SIGNAL, ThreadRec, parked};
use stillpoint_sys::raw::{errno, futex_wait_for, futex_wake_all, getpid, monotonic_ns, nr};
use stillpoint_sys::{half, sys, upper};

/// How long a thread that declined is left alone, ns. One that is below for a moment only, as with the clock, is met above soon, and
/// the others stand while we wait; behind [`EARLY`] it may be there for long.
const SOON: u64 = 40_000;
const LATER: u64 = 500_000;
const EARLY: u64 = 2_000_000;

/// Threads of the upper half that live.
pub fn threads() -> impl Iterator<Item = &'static ThreadRec> {
    let n = upper().n_threads.load(Acquire) as usize;
    upper().threads.iter().take(n).filter(|t| t.fs.load(Relaxed) != 0)
}

/// Stops all threads. Names the ones that would not stop before `deadline` (CLOCK_MONOTONIC, ns); then none is stopped.
///
/// # Errors
/// The list of threads that did not come to stand still, with where they were.
pub fn stop(deadline: u64) -> Result<(), String> {
    half().flags.fetch_or(FLAG_STOP, SeqCst);
    let early = monotonic_ns() + EARLY;
    loop {
        let mut waiting = None;
        for t in threads() {
            if t.parked.load(Acquire) != 0 {
                continue;
            }
            let tid = t.tid.load(Acquire);
            if tid > 0 {
                // SAFETY: a signal to a thread of our own process.
                let r = unsafe { sys!(nr::TGKILL, getpid(), tid, STOP_SIGNAL) };
                if r < 0 && r != errno::EAGAIN {
                    t.fs.store(0, Release); // it has ended
                    continue;
                }
            }
            waiting = Some(t);
        }
        let Some(t) = waiting else { return Ok(()) };
        futex_wait_for(&t.parked, 0, if monotonic_ns() < early { SOON } else { LATER });
        if t.parked.load(Acquire) == 0 && monotonic_ns() > deadline {
            let why = if t.above_lower.load(Relaxed) != 0 {
                "runs a signal handler that interrupted a call into MPI"
            } else if t.depth.load(Relaxed) != 0 {
                "is inside a call that does not return"
            } else {
                "cannot be reached by a signal"
            };
            let text = format!("thread {} {why}", t.vtid.load(Relaxed));
            resume();
            return Err(text);
        }
    }
}

/// Lets all threads run on.
pub fn resume() {
    half().flags.fetch_and(!FLAG_STOP, SeqCst);
    for t in threads() {
        if t.parked.load(Acquire) != 0 {
            t.command.store(parked::GO, Release);
            futex_wake_all(&t.command);
        }
    }
    // A thread must have left the handler before it can be stopped again.
    for t in threads() {
        while t.parked.load(Acquire) != 0 {
            futex_wait_for(&t.parked, 1, 1_000_000);
        }
    }
}
