//! Callbacks around a checkpoint. *Upper half*, on a thread of our own that the first registration makes.
//!
//! ```text
//!  Upper::callbacks   ABSENT ── first registration ──▶ IDLE ─▶ BEFORE ─▶ OPEN ─▶ AFTER or RESTARTED ─▶ IDLE
//!  written by                        us                 lower     us       lower                 us
//! ```
//! What a reader would get wrong: nobody stands still while a callback runs, so it may allocate, lock and print like any
//! code. What must not change between `before` and the snapshot it protects as pthread_atfork(3) does: it takes a lock in
//! `before`, last registered first, and gives it back in `after` or `restarted`, first registered first, on the same thread.
#![allow(unsafe_code, reason = "blocks the signals of the thread")]

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::sync::{Arc, Mutex, OnceLock};

use crate::ask::{Error, active};
use stillpoint_abi::half::{callbacks as word, doing};
use stillpoint_loader::switch::me;
use stillpoint_sys::raw::{futex_wait, futex_wake_all};
use stillpoint_sys::upper;

/// What is called around a checkpoint, on a thread of the library, while the program's threads run.
///
/// None of these may use MPI or ask for a checkpoint, or wait for a thread that communicates.
pub trait Callbacks: Send {
    /// A checkpoint is about to be taken. An error (a number for the user, not 0) makes it be given up.
    ///
    /// # Errors
    /// What this one says against the checkpoint.
    fn before(&mut self) -> Result<(), i32> {
        Ok(())
    }
    /// The program runs on after [`Callbacks::before`], whether the checkpoint was taken or given up.
    fn after(&mut self) {}
    /// The program runs on in a new process, after [`Callbacks::before`] in the old one.
    fn restarted(&mut self) {}
}

/// Registered callbacks are never taken out again, so that a checkpoint in progress keeps its count of them.
type Entry = Arc<Mutex<Box<dyn Callbacks>>>;

static ENTRIES: Mutex<Vec<Entry>> = Mutex::new(Vec::new());
static THREAD: OnceLock<bool> = OnceLock::new();
/// Address of the record of our thread.
static OWN: AtomicUsize = AtomicUsize::new(0);
/// How many can be registered.
const ROOM: usize = 1024;

/// True on the thread that runs callbacks.
pub(crate) fn is_own_thread() -> bool {
    OWN.load(Relaxed) == std::ptr::from_ref(me()).addr()
}

/// Registers callbacks for the life of the process. Those registered while a checkpoint is being taken take part from the
/// next one on.
///
/// # Errors
/// In a callback; when there is no room; when the thread cannot be made. None in an ordinary run, where nothing is kept.
pub fn on_checkpoint(callbacks: impl Callbacks + 'static) -> Result<(), Error> {
    if !active() {
        return Ok(());
    }
    if is_own_thread() {
        return Err(Error::InCallback);
    }
    let mut all = ENTRIES.lock().map_err(|_| Error::NoThread)?;
    if all.len() >= ROOM {
        return Err(Error::Full);
    }
    if !*THREAD.get_or_init(begin) {
        return Err(Error::NoThread);
    }
    all.push(Arc::new(Mutex::new(Box::new(callbacks))));
    Ok(())
}

/// Makes the thread, with every signal blocked: none of the application's is to be handled there.
fn begin() -> bool {
    let state = &upper().callbacks;
    if state.compare_exchange(word::ABSENT, word::IDLE, SeqCst, Relaxed).is_err() {
        return false; // another copy of this library was first
    }
    // SAFETY: sets of signals on this stack; the mask is put back below.
    let old = unsafe {
        let (mut all, mut old) = (std::mem::zeroed::<libc::sigset_t>(), std::mem::zeroed());
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut old);
        old
    };
    let made = std::thread::Builder::new().name("stillpoint-call".into()).stack_size(1 << 20).spawn(serve);
    // SAFETY: the mask of before.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const old, std::ptr::null_mut()) };
    if made.is_err() {
        state.store(word::ABSENT, SeqCst);
    }
    made.is_ok()
}

/// The thread's life.
fn serve() {
    let rec = me();
    OWN.store(std::ptr::from_ref(rec).addr(), Relaxed);
    let state = &upper().callbacks;
    let mut open: Vec<Entry> = Vec::new();
    loop {
        // To the settling of collectives this thread is one that no peer waits for.
        rec.doing.store(doing::WAITING, Relaxed);
        match state.load(Acquire) {
            word::BEFORE => {
                let all = ENTRIES.lock().map(|e| e.clone()).unwrap_or_default();
                let said = before(&all, &mut open);
                upper().callbacks_said.store(said, SeqCst);
                // If this fails, the lower half has lost patience: AFTER stands there already.
                let _ = state.compare_exchange(word::BEFORE, word::OPEN, SeqCst, Relaxed);
                futex_wake_all(state);
            }
            now @ (word::AFTER | word::RESTARTED) => {
                behind(now == word::RESTARTED, &mut open);
                let _ = state.compare_exchange(now, word::IDLE, SeqCst, Relaxed);
                futex_wake_all(state);
            }
            now => futex_wait(state, now),
        }
    }
}

/// Calls every `before`, the last registered first, up to one that objects. `open` becomes those that did not, as called.
fn before(all: &[Entry], open: &mut Vec<Entry>) -> i32 {
    open.clear();
    for e in all.iter().rev() {
        let Ok(Err(code)) = e.lock().map(|mut c| c.before()) else {
            open.push(e.clone());
            continue;
        };
        return if code == 0 { -1 } else { code };
    }
    0
}

/// Calls what belongs to the `before`s that were called, in the opposite order.
fn behind(restarted: bool, open: &mut Vec<Entry>) {
    while let Some(e) = open.pop() {
        if let Ok(mut c) = e.lock() {
            if restarted { c.restarted() } else { c.after() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Note(&'static str, Arc<Mutex<String>>, Result<(), i32>);

    impl Note {
        fn say(&self, what: &str) {
            let mut log = self.1.lock().unwrap();
            log.push_str(self.0);
            log.push_str(what);
        }
    }

    impl Callbacks for Note {
        fn before(&mut self) -> Result<(), i32> {
            self.say("? ");
            self.2
        }
        fn after(&mut self) {
            self.say(". ");
        }
        fn restarted(&mut self) {
            self.say("! ");
        }
    }

    fn entries(log: &Arc<Mutex<String>>, said: [Result<(), i32>; 3]) -> Vec<Entry> {
        let note = |(name, said)| {
            Arc::new(Mutex::new(Box::new(Note(name, log.clone(), said)) as Box<dyn Callbacks>))
        };
        ["a", "b", "c"].into_iter().zip(said).map(note).collect()
    }

    #[test]
    fn they_nest_like_locks() {
        let log = Arc::new(Mutex::new(String::new()));
        let (all, mut open) = (entries(&log, [Ok(()); 3]), Vec::new());
        assert_eq!(before(&all, &mut open), 0);
        behind(false, &mut open);
        assert_eq!(before(&all, &mut open), 0);
        behind(true, &mut open);
        assert_eq!(*log.lock().unwrap(), "c? b? a? a. b. c. c? b? a? a! b! c! ");
    }

    #[test]
    fn who_objects_and_who_was_not_asked_is_not_told_either() {
        let log = Arc::new(Mutex::new(String::new()));
        let (all, mut open) = (entries(&log, [Ok(()), Err(7), Ok(())]), Vec::new());
        assert_eq!(before(&all, &mut open), 7);
        behind(false, &mut open);
        assert_eq!(*log.lock().unwrap(), "c? b? c. ");
    }

    #[test]
    fn in_an_ordinary_run_no_thread_is_made() {
        let log = Arc::new(Mutex::new(String::new()));
        assert_eq!(on_checkpoint(Note("a", log, Ok(()))), Ok(()));
        assert!(THREAD.get().is_none());
    }
}
