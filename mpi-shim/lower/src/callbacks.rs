//! The application's callbacks, which libstillpoint.so runs upstairs while all threads run. *Lower half*, control thread.
//!
//! What a reader would get wrong: the states and who writes them are in [`stillpoint_abi::half::callbacks`]; a program without
//! callbacks stays in ABSENT, and nothing here waits.

use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use stillpoint_abi::half::callbacks::{ABSENT, AFTER, BEFORE, IDLE, OPEN, RESTARTED};
use stillpoint_sys::raw::{futex_wait_for, futex_wake_all, monotonic_ns};
use stillpoint_sys::upper;

/// Shorter than the agent's limit for the stage.
const PATIENCE_NS: u64 = 8_000_000_000;

/// Has them run before a checkpoint. What they say against it.
pub(crate) fn before() -> Option<String> {
    let u = upper();
    // One that will be refused anyway does not trouble them.
    if u.callbacks.load(Acquire) == ABSENT || u.forbidden.load(Acquire) != 0 {
        return None;
    }
    let limit = monotonic_ns() + PATIENCE_NS;
    loop {
        match u.callbacks.load(Acquire) {
            IDLE if u.callbacks.compare_exchange(IDLE, BEFORE, SeqCst, Relaxed).is_ok() => {
                futex_wake_all(&u.callbacks);
            }
            OPEN => {
                let code = u.callbacks_said.load(Acquire);
                return (code != 0).then(|| format!("a callback of the application objects (code {code})"));
            }
            _ if monotonic_ns() > limit => {
                return Some("a callback of the application does not return".into());
            }
            now => futex_wait_for(&u.callbacks, now, 100_000_000),
        }
    }
}

/// Has those run that follow: the checkpoint was taken or given up, or this process has been restarted from it.
pub(crate) fn behind(restarted: bool) {
    let u = upper();
    let next = if restarted { RESTARTED } else { AFTER };
    let follows = |now| matches!(now, BEFORE | OPEN).then_some(next);
    if u.callbacks.fetch_update(SeqCst, SeqCst, follows).is_ok() {
        futex_wake_all(&u.callbacks);
    }
}
