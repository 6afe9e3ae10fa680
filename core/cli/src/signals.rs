//! The signals that a launcher's end is to see as if it had been started without us: heard here, handed on, remembered.
//!
//! What a reader would get wrong: from the first [`Heard`] on, none of these signals ends this process any more, not even when
//! the [`Heard`] is gone. SIGCHLD is among them only to wake who waits. Runs *next door*.

use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGALRM, SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::{Handle, Signals};

use crate::error::Error;

/// Those by which somebody ends a job.
pub(crate) const ENDING: [i32; 4] = [SIGINT, SIGTERM, SIGHUP, SIGQUIT];

const ALL: [i32; 8] = [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGALRM, SIGCHLD];

/// Signals as they come.
#[derive(Debug)]
pub(crate) struct Heard {
    from: Receiver<i32>,
    handle: Handle,
    log: Vec<(i32, Instant)>,
}

impl Heard {
    pub(crate) fn new() -> Result<Heard, Error> {
        let mut signals = Signals::new(ALL).map_err(Error::io("hear", Path::new("signals")))?;
        let handle = signals.handle();
        let (to, from) = channel();
        std::thread::spawn(move || signals.forever().all(|s| to.send(s).is_ok()));
        Ok(Heard { from, handle, log: Vec::new() })
    }

    /// The next signal. `None`: none came in this time, or a child has ended.
    pub(crate) fn next(&mut self, within: Duration) -> Option<i32> {
        match self.from.recv_timeout(within) {
            Ok(s) if s != SIGCHLD => {
                self.log.push((s, Instant::now()));
                Some(s)
            }
            _ => None,
        }
    }

    /// Waits this long; a signal that ends a job ends the wait, and is returned as an exit status.
    pub(crate) fn pause(&mut self, time: Duration) -> Option<u8> {
        let until = Instant::now() + time;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.next(left) {
                Some(s) if ENDING.contains(&s) => return Some(128 + u8::try_from(s).unwrap_or(0)),
                None if left.is_zero() => return None,
                _ => {}
            }
        }
    }

    /// The last of these that was heard.
    pub(crate) fn last_of(&self, of: &[i32]) -> Option<i32> {
        self.log.iter().rev().map(|(s, _)| *s).find(|s| of.contains(s))
    }

    /// Signals and how long before `then` each was heard, the newest first; what has come since counts as just now.
    pub(crate) fn ages(&self, then: Instant) -> Vec<(i32, Duration)> {
        self.log.iter().rev().map(|(s, t)| (*s, then.saturating_duration_since(*t))).collect()
    }
}

impl Drop for Heard {
    fn drop(&mut self) {
        self.handle.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_heard_once_and_remembered() {
        let mut heard = Heard::new().unwrap();
        let me = rustix::process::getpid();
        rustix::process::kill_process(me, rustix::process::Signal::USR2).unwrap();
        let until = Instant::now() + Duration::from_secs(5);
        while heard.log.is_empty() && Instant::now() < until {
            heard.next(Duration::from_millis(100));
        }
        assert_eq!(heard.last_of(&[SIGUSR2]), Some(SIGUSR2));
        assert_eq!(heard.last_of(&ENDING), None);
        assert_eq!(heard.next(Duration::from_millis(50)), None);
        let now = Instant::now();
        let heard_at = heard.log[0].1;
        assert_eq!(heard.ages(now), [(SIGUSR2, now - heard_at)]);
        assert_eq!(
            heard.ages(heard_at - Duration::from_secs(1)),
            [(SIGUSR2, Duration::ZERO)],
            "later than that"
        );
    }
}
