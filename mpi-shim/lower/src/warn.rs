//! The signal that asks for a checkpoint: `STILLPOINT_SIGNAL=USR1`, as a scheduler sends it before it ends a job. *Lower
//! half*, a thread of its own with all signals blocked.
//!
//! What a reader would get wrong: the signal is not taken here. It comes to a thread of the application, whose handler for it,
//! if it has one, runs as ever; the hook library's wrapper counts it, and this thread sends the request. All ranks of a job
//! may do so at once: one checkpoint answers them. When there is no agent at the moment, or it is lost before it has
//! answered, the next one is asked.

use std::sync::atomic::Ordering::{Acquire, Relaxed};
use stillpoint_sys::half;
use stillpoint_sys::raw::futex_wait;

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
                crate::mail::warned();
            }
        }
    })?;
    Ok(())
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
