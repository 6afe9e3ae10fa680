//! The front of scancel: leaves a mark in the runs of the steps that are named, and becomes the real one.
//!
//! What a reader would get wrong: it changes nothing about what scancel does. Only whole jobs can be seen to have been
//! cancelled; of a step that was, nobody could tell the supervisor that it was no failure. Runs *next door*.

use std::ffi::{OsStr, OsString};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use stillpoint_storage::run::RunDir;

use crate::home::Job;
use crate::slurm::identity::Index;
use crate::slurm::scontrol::{Found, current, pass_on};

/// A mark in a run, for its supervisor; the name of its file.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mark {
    /// `scancel JOB.STEP` leaves it: nothing else says that this was no failure.
    Cancelled,
    /// `scontrol checkpoint vacate JOB` leaves it, and says so again and again: the job ends with its steps, and its script is not
    /// to come to its next line.
    Vacated,
}

#[derive(Debug, Serialize, Deserialize)]
struct Marked {
    incarnation: u32,
    /// Seconds since 1970.
    time: u64,
}

impl Mark {
    /// A step that lives longer after the mark was not ended by it.
    const STANDS: Duration = Duration::from_secs(60);

    fn file(self) -> &'static str {
        match self {
            Mark::Cancelled => "cancelled",
            Mark::Vacated => "vacated",
        }
    }

    fn now() -> u64 {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
    }

    pub(crate) fn put(self, f: &Found) {
        let mark = Marked { incarnation: f.incarnation, time: Mark::now() };
        // If it cannot be written, the step may be restarted, or the script go on; what was asked for is done all the same.
        let _ = RunDir::open(&f.run.dir).and_then(|r| r.note_json(self.file(), &mark));
    }

    pub(crate) fn take_away(self, f: &Found) {
        let _ = std::fs::remove_file(f.run.path(self.file()));
    }

    pub(crate) fn stands(self, run: &Job, incarnation: u32) -> bool {
        let mark = RunDir::open(&run.dir).and_then(|r| r.read_json::<Marked>(self.file()));
        let limit = Mark::now().saturating_sub(Mark::STANDS.as_secs());
        mark.is_ok_and(|m| m.incarnation == incarnation && m.time >= limit)
    }
}

/// `scancel` with these arguments: marks the steps that are named, and becomes the real one.
pub(crate) fn scancel(arg0: &OsStr, args: &[OsString]) -> u8 {
    if let Some(index) = Index::usual().ok().filter(|_| ends(args)) {
        for (key, step) in args.iter().filter_map(|a| named_step(a.to_str()?)) {
            for w in index.announced(key).iter().filter(|w| w.step == step) {
                if let Some(f) = current(w, key) {
                    Mark::Cancelled.put(&f);
                }
            }
        }
    }
    pass_on(arg0, "scancel", args)
}

/// Whether these arguments end what they name, rather than send it some signal.
fn ends(args: &[OsString]) -> bool {
    let words: Vec<&str> = args.iter().filter_map(|a| a.to_str()).collect();
    let given = words.iter().enumerate().find_map(|(n, w)| match *w {
        "-s" | "--signal" => words.get(n + 1).copied(),
        w => w.strip_prefix("--signal=").or_else(|| w.strip_prefix("-s")),
    });
    given.is_none_or(|s| {
        let name = s.to_ascii_uppercase();
        ["KILL", "TERM", "9", "15"].contains(&name.trim_start_matches("SIG"))
    })
}

/// N.S or N_T.S.
fn named_step(word: &str) -> Option<(&str, &str)> {
    let (job, step) = word.split_once('.')?;
    let digits = |t: &str, also: char| !t.is_empty() && t.chars().all(|c| c.is_ascii_digit() || c == also);
    (digits(job, '_') && digits(step, '0')).then_some((job, step))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn steps_that_scancel_names() {
        assert_eq!(named_step("5.0"), Some(("5", "0")));
        assert_eq!(named_step("100_3.12"), Some(("100_3", "12")));
        for no in ["5", "-s", "5.batch", "a.b", "5.", ".1"] {
            assert_eq!(named_step(no), None, "{no}");
        }
    }

    #[test]
    fn a_signal_ends_nothing() {
        let of = |line: &str| ends(&line.split_whitespace().map(OsString::from).collect::<Vec<_>>());
        assert!(of("5.0") && of("-s KILL 5.0") && of("--signal=sigterm 5.0") && of("-s9 5.0"));
        assert!(!of("-s USR1 5.0") && !of("--signal USR2 5.0") && !of("--signal=10 5.0"));
    }

    #[test]
    fn a_mark_is_of_one_start_and_wears_off() {
        let dir = std::env::temp_dir().join(format!("stillpoint-cli-mark-{}", std::process::id()));
        let run = RunDir::create(&dir).unwrap();
        let job = Job { name: "1".into(), dir: dir.clone() };
        let found = Found { name: "5.0".into(), run: job.clone(), incarnation: 2 };
        assert!(!Mark::Cancelled.stands(&job, 2));
        Mark::Cancelled.put(&found);
        assert!(Mark::Cancelled.stands(&job, 2) && !Mark::Cancelled.stands(&job, 3));
        assert!(!Mark::Vacated.stands(&job, 2));
        run.note_json("cancelled", &Marked { incarnation: 2, time: Mark::now() - 100 }).unwrap();
        assert!(!Mark::Cancelled.stands(&job, 2));
        Mark::Vacated.put(&found);
        assert!(Mark::Vacated.stands(&job, 2));
        Mark::Vacated.take_away(&found);
        assert!(!Mark::Vacated.stands(&job, 2));
        fs::remove_dir_all(&dir).unwrap();
    }
}
