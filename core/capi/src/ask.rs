//! Asks for a checkpoint, forbids and allows, counts. *Upper half*.
//!
//! What a reader would get wrong: the thread that asks must not wait below, or it could not be stopped and the checkpoint
//! would never come. It asks (one crossing), comes up, and asks again every millisecond what became of it. It may not wait
//! for ever either: no rank is saved inside a collective of MPI, and another may be in one that waits for this rank.
#![allow(unsafe_code, reason = "calls the lower half by address")]

use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::time::Duration;
use stillpoint_abi::half::{Clock, FLAG_SETTLE, MAGIC, UPPER_ADDR, callbacks as word, doing, request};
use stillpoint_loader::switch::{Front, me};
use stillpoint_sys::raw::{errno, is_mapped};
use stillpoint_sys::{half, upper};

/// Why there is no checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The process does not run under Stillpoint, or is a child made by fork, or the run has no node agent.
    #[error("the program does not run under Stillpoint")]
    NotActive,
    /// It was given up: something cannot be saved, checkpoints are forbidden, or the job is not ready for one.
    #[error("the checkpoint was given up; 'stillpoint status' names the reason")]
    GivenUp,
    /// A callback may not ask for a checkpoint, or register callbacks.
    #[error("this cannot be done in a callback of a checkpoint")]
    InCallback,
    /// `allow` without `forbid`, or an empty range of memory.
    #[error("the argument is not valid")]
    Invalid,
    /// More ranges of memory, or callbacks, than there is room for.
    #[error("no room for another one")]
    Full,
    /// Another plugin has this name.
    #[error("another plugin has this name")]
    Taken,
    /// A function below, or its library, is not there.
    #[error("there is no such function below")]
    NotThere,
    /// The library's thread for callbacks cannot be made, or another copy of this library has one.
    #[error("the thread for callbacks cannot be made")]
    NoThread,
}

impl Error {
    /// What `stillpoint.h` returns for it: a negative errno.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Error::NotActive => -libc::ENOSYS,
            Error::GivenUp => -libc::EBUSY,
            Error::InCallback => -libc::EDEADLK,
            Error::Invalid => -libc::EINVAL,
            Error::Full => -libc::ENOSPC,
            Error::Taken => -libc::EEXIST,
            Error::NotThere => -libc::ENOENT,
            Error::NoThread => -libc::EAGAIN,
        }
    }
}

/// How a call of [`checkpoint`] has returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checkpointed {
    /// The checkpoint exists, and the program runs on.
    Durable,
    /// The process has been restarted from a checkpoint that was taken during this call.
    Restarted,
    /// Other ranks are in a collective call of MPI that waits for this one, so this call could not wait for the checkpoint. It
    /// is taken (or given up) as soon as the program has gone on so far; a restart then begins behind this call.
    Asked,
}

/// 0 not looked yet, 1 the pages of a rank are there, 2 they are not. The answer holds for the life of the process.
static PAGES: AtomicU8 = AtomicU8::new(0);

/// True in a process that runs under Stillpoint. False in its children made by fork.
#[must_use]
pub fn active() -> bool {
    if PAGES.load(Relaxed) == 0 {
        let there = is_mapped(UPPER_ADDR) && upper().magic == MAGIC;
        PAGES.store(if there { 1 } else { 2 }, Relaxed);
    }
    PAGES.load(Relaxed) == 1 && half().child.load(Relaxed) == 0
}

/// One request to the lower half, and [`restarts`] at that moment: nothing is saved between the two.
fn ask(verb: u32, arg: u64) -> (i64, u32) {
    let front = Front::enter();
    let restarts = upper().restarts.load(Acquire);
    let at = half().request.load(Relaxed);
    if at == 0 {
        return (errno::ENOSYS as i64, restarts);
    }
    // SAFETY: the lower half put this function's address there.
    let f: extern "C" fn(u32, u64) -> i64 = unsafe { std::mem::transmute(at) };
    let down = front.down();
    let answer = f(verb, arg);
    drop(down);
    (answer, restarts)
}

/// What became of request `id` of the process image that had gone through `before` restarts. An id of another image is
/// never asked about: there it may be somebody else's.
fn poll(id: u64, before: u32) -> Option<Result<Checkpointed, Error>> {
    let front = Front::enter();
    if upper().restarts.load(Acquire) != before {
        return Some(Ok(Checkpointed::Restarted));
    }
    let (answer, _) = ask(request::POLL, id);
    drop(front);
    match answer {
        0 => Some(Ok(Checkpointed::Durable)),
        a if a == errno::EAGAIN as i64 => None,
        _ => Some(Err(Error::GivenUp)),
    }
}

/// How long another thread of this rank may take to enter a collective that other ranks are in.
const GRACE_MS: u32 = 50;

/// True if the checkpoint waits for this rank to enter a collective that others have entered.
fn is_needed() -> bool {
    let n = upper().n_clocks.load(Acquire) as usize;
    half().flags.load(Acquire) & FLAG_SETTLE != 0 && upper().clocks.iter().take(n).any(is_behind)
}

fn is_behind(c: &Clock) -> bool {
    c.gid.load(Acquire) != 0 && c.count.load(Relaxed) >> 1 < c.target.load(Acquire)
}

/// Asks for a checkpoint of the whole job and waits until it exists. Any rank may ask, also all of them at once: one
/// checkpoint answers all who asked before it began. When it returns well, callbacks have run.
///
/// # Errors
/// [`Error::NotActive`] at once in an ordinary run; [`Error::GivenUp`] if none could be taken, and the program runs on.
pub fn checkpoint() -> Result<Checkpointed, Error> {
    if !active() {
        return Err(Error::NotActive);
    }
    if crate::callbacks::is_own_thread() {
        return Err(Error::InCallback);
    }
    let (answer, before) = ask(request::CHECKPOINT, 0);
    let id = match u64::try_from(answer) {
        Ok(id) => id,
        Err(_) if answer == errno::ENOSYS as i64 => return Err(Error::NotActive),
        Err(_) => return Err(Error::GivenUp),
    };
    let rec = me();
    // The settling of collectives need not wait for this thread to do anything else.
    rec.doing.store(doing::WAITING, Relaxed);
    let mut needed_for = 0;
    let outcome = loop {
        if let Some(outcome) = poll(id, before) {
            break outcome;
        }
        needed_for = if is_needed() { needed_for + 1 } else { 0 };
        if needed_for > GRACE_MS {
            break Ok(Checkpointed::Asked);
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    rec.doing.store(doing::RUNNING, Relaxed);
    while matches!(upper().callbacks.load(Acquire), word::AFTER | word::RESTARTED) {
        std::thread::sleep(Duration::from_millis(1));
    }
    outcome
}

/// No checkpoint is taken while this lives.
#[derive(Debug)]
#[must_use = "checkpoints are allowed again when this is dropped"]
pub struct Forbidden(());

/// Forbids checkpoints until the result is dropped. Nests, and counts for the whole process. A checkpoint that is asked for
/// meanwhile is given up; the next one that is due is tried again.
pub fn forbid() -> Forbidden {
    hold();
    Forbidden(())
}

impl Drop for Forbidden {
    fn drop(&mut self) {
        let _ = release();
    }
}

/// As [`forbid`], undone by [`release`].
pub(crate) fn hold() {
    if active() {
        upper().forbidden.fetch_add(1, SeqCst);
    }
}

/// Takes one [`hold`] back.
pub(crate) fn release() -> Result<(), Error> {
    if !active() {
        return Ok(());
    }
    let less = |n: u32| n.checked_sub(1);
    upper().forbidden.fetch_update(SeqCst, SeqCst, less).map(|_| ()).map_err(|_| Error::Invalid)
}

/// How often this process has been restarted from a checkpoint.
#[must_use]
pub fn restarts() -> u32 {
    if active() { upper().restarts.load(Acquire) } else { 0 }
}

/// Checkpoints of this process that have come to exist since the program began, up to and including the one that it was last
/// restarted from.
#[must_use]
pub fn checkpoints() -> u32 {
    if active() { upper().generation.load(Acquire) } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_is_behind_until_it_has_entered_what_the_target_says() {
        use std::sync::atomic::AtomicU64;
        let clock = |gid, count, target| Clock {
            gid: AtomicU64::new(gid),
            count: AtomicU64::new(count),
            target: AtomicU64::new(target),
            members: AtomicU64::new(0),
            n_members: AtomicU64::new(0),
        };
        assert!(is_behind(&clock(1, 4, 3)));
        assert!(!is_behind(&clock(1, 7, 3)), "inside the third");
        assert!(!is_behind(&clock(0, 0, 3)), "no clock at all");
    }

    #[test]
    fn in_an_ordinary_run_nothing_happens() {
        assert!(!active());
        assert_eq!(checkpoint(), Err(Error::NotActive));
        assert_eq!((restarts(), checkpoints()), (0, 0));
        drop(forbid());
        assert_eq!(release(), Ok(()), "even without a forbid");
    }
}
