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

/// The mark that `scancel JOB.STEP` leaves: nothing else tells the supervisor that it was no failure.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Cancelled {
    incarnation: u32,
    /// Seconds since 1970.
    time: u64,
}

impl Cancelled {
    const FILE: &str = "cancelled";
    /// A step that lives longer after the mark was not ended by it.
    const STANDS: Duration = Duration::from_secs(60);

    fn now() -> u64 {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
    }

    fn mark(f: &Found) {
        let mark = Cancelled { incarnation: f.incarnation, time: Cancelled::now() };
        // If it cannot be written, the step may be restarted; the cancel goes its way all the same.
        let _ = RunDir::open(&f.run.dir).and_then(|r| r.note_json(Cancelled::FILE, &mark));
    }

    pub(crate) fn stands(run: &Job, incarnation: u32) -> bool {
        let mark = RunDir::open(&run.dir).and_then(|r| r.read_json::<Cancelled>(Cancelled::FILE));
        let limit = Cancelled::now().saturating_sub(Cancelled::STANDS.as_secs());
        mark.is_ok_and(|m| m.incarnation == incarnation && m.time >= limit)
    }
}

/// `scancel` with these arguments: marks the steps that are named, and becomes the real one.
pub(crate) fn scancel(arg0: &OsStr, args: &[OsString]) -> u8 {
    if let Some(index) = Index::usual().ok().filter(|_| ends(args)) {
        for (key, step) in args.iter().filter_map(|a| named_step(a.to_str()?)) {
            for w in index.announced(key).iter().filter(|w| w.step == step) {
                if let Some(f) = current(w, key) {
                    Cancelled::mark(&f);
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
        assert!(!Cancelled::stands(&job, 2));
        Cancelled::mark(&Found { name: "5.0".into(), run: job.clone(), incarnation: 2 });
        assert!(Cancelled::stands(&job, 2) && !Cancelled::stands(&job, 3));
        run.note_json(Cancelled::FILE, &Cancelled { incarnation: 2, time: Cancelled::now() - 100 }).unwrap();
        assert!(!Cancelled::stands(&job, 2));
        fs::remove_dir_all(&dir).unwrap();
    }
}
