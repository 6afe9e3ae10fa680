//! The signal that asks for a checkpoint: `STILLPOINT_SIGNAL=USR1`, as a scheduler sends it before it ends a job. *Lower
//! half*, a thread of its own with all signals blocked.
//!
//! What a reader would get wrong: the signal is not taken here. It comes to a thread of the application, whose handler for it,
//! if it has one, runs as ever; the hook library's wrapper counts it, and this thread sends the request. All ranks of a job
//! may do so at once: one checkpoint answers them. When there is no agent at the moment, or it is lost before it has
//! answered, the next one is asked.

#![allow(unsafe_code, reason = "a signal to the calling thread")]

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use stillpoint_sys::raw::{futex_wait, nr};
use stillpoint_sys::{half, sys};

/// The count of warnings that the control thread knows of, and of those for which an agent has been asked for a checkpoint.
static SEEN: AtomicU32 = AtomicU32::new(0);
static HEARD: AtomicU32 = AtomicU32::new(0);

/// An agent was told.
pub(crate) fn passed_on() {
    HEARD.store(SEEN.load(SeqCst), SeqCst);
}

/// Signals that a scheduler may send, by name and number (signal(7), x86).
const NAMES: [(&str, i32); 10] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("USR1", 10),
    ("USR2", 12),
    ("ALRM", 14),
    ("TERM", 15),
    ("URG", 23),
    ("XCPU", 24),
    ("VTALRM", 26),
];

/// The number of the signal that the environment names, 0 if none or one that is not known.
pub(crate) fn signal() -> i32 {
    std::env::var("STILLPOINT_SIGNAL").map_or(0, |text| number(&text))
}

fn number(text: &str) -> i32 {
    let name = text.strip_prefix("SIG").unwrap_or(text);
    let known = NAMES.iter().find(|(n, v)| *n == name || v.to_string() == name);
    known.map_or(0, |(_, v)| *v)
}

/// Begins to listen, if there is a signal to listen for.
pub(crate) fn start() -> std::io::Result<()> {
    if half().warn_signal.load(Relaxed) == 0 {
        return Ok(());
    }
    std::thread::Builder::new().name("stillpoint-warn".into()).stack_size(64 << 10).spawn(|| {
        let mut seen = 0;
        loop {
            let now = half().warned.load(Acquire);
            if now == seen {
                futex_wait(&half().warned, seen);
            } else {
                seen = now;
                SEEN.store(now, SeqCst);
                crate::mail::warned();
            }
        }
    })?;
    Ok(())
}

/// The process is about to become another program, with all signals blocked on the calling thread: a warning that nobody has asked the
/// agent for comes again, and waits for that program.
pub(crate) fn once_more_if_unheard() {
    let h = half();
    if h.child.load(Relaxed) == 0 && h.warned.load(SeqCst) != HEARD.load(SeqCst) {
        // SAFETY: a blocked signal to this thread.
        unsafe { sys!(nr::TGKILL, sys!(nr::GETPID), sys!(nr::GETTID), h.warn_signal.load(Relaxed)) };
    }
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn a_signal_has_a_name_or_a_number() {
        assert_eq!((number("USR1"), number("SIGUSR2"), number("15"), number("TERM")), (10, 12, 15, 15));
        assert_eq!((number(""), number("KILL"), number("9"), number("64"), number("usr1")), (0, 0, 0, 0, 0));
    }
}
