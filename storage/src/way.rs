//! Which checkpoints lie on the way that a run has taken. Runs *next door*.
//!
//! ```text
//!  starts/000002.json   { "incarnation": 2, "restart": ".../ckpt-000003", … }   start 2 began at checkpoint 3
//!  begin.json           { "ckpt": 2, "after": 2 }                               the start after number 2 is to begin at 2
//! ```
//!
//! What a reader would get wrong: a run may be started again from a checkpoint that is not the newest. Those behind it belong
//! to a past that did not happen: no later restart takes one of them, and they do not count among those that are kept.

use crate::Result;
use crate::run::RunDir;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use stillpoint_abi::ids::CkptId;

/// Directory of the files that say how each start began, in the run's.
pub const STARTS: &str = "starts";
/// The file that says where the next one is to begin.
const BEGIN: &str = "begin.json";

/// What one start says of the way; the rest of its file is the command line's.
#[derive(Clone, Debug, Default, Deserialize)]
struct Start {
    incarnation: u32,
    /// Directory of the checkpoint it began at; none: it began anew.
    restart: Option<PathBuf>,
}

impl Start {
    fn from(&self) -> Option<u64> {
        let name = self.restart.as_ref()?.file_name()?.to_str()?;
        name.strip_prefix("ckpt-")?.parse().ok()
    }
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Begin {
    ckpt: u64,
    after: u32,
}

/// The way of a run, as far as it goes.
#[derive(Clone, Debug, Default)]
pub struct Way {
    starts: Vec<Start>,
    begin: Option<Begin>,
}

impl Way {
    /// Whether checkpoint `ckpt`, taken by start `incarnation`, is one that the run has passed through.
    pub fn has(&self, ckpt: CkptId, incarnation: u32) -> bool {
        self.starts
            .iter()
            .all(|s| incarnation >= s.incarnation || s.from().is_some_and(|from| ckpt.0 <= from))
    }

    /// Where the next start is to begin, if somebody has said so and nothing was started since.
    pub fn told(&self) -> Option<CkptId> {
        let b = self.begin?;
        self.starts.iter().all(|s| s.incarnation <= b.after).then_some(CkptId(b.ckpt))
    }
}

impl RunDir {
    /// The way so far. A start whose file does not read says nothing.
    pub fn way(&self) -> Way {
        let starts = RunDir { path: self.path.join(STARTS) };
        let names = std::fs::read_dir(starts.path()).into_iter().flatten().flatten();
        let names = names.filter_map(|e| e.file_name().into_string().ok());
        let starts =
            names.filter(|n| n.ends_with(".json")).filter_map(|n| starts.read_json(&n).ok()).collect();
        Way { starts, begin: self.read_json(BEGIN).ok() }
    }

    /// Has the next start begin at this checkpoint; later ones begin at their newest, as ever.
    pub fn begin_at(&self, ckpt: CkptId) -> Result<()> {
        self.write_json(BEGIN, &Begin { ckpt: ckpt.0, after: self.incarnation()? })
    }

    /// Takes that back.
    pub fn begin_anywhere(&self) {
        let _ = std::fs::remove_file(self.path.join(BEGIN));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commit::tests::{scratch, take_in};

    fn start(incarnation: u32, from: Option<u64>) -> Start {
        Start { incarnation, restart: from.map(|f| format!("/h/1/ckpt-{f:06}").into()) }
    }

    #[test]
    fn a_checkpoint_that_was_passed_over_is_not_on_the_way() {
        let way = |starts: &[Start]| Way { starts: starts.to_vec(), begin: None };
        // Start 0 made 1, 2, 3; start 1 began at 2 and made 4.
        let w = way(&[start(0, None), start(1, Some(2))]);
        let taken: Vec<u64> = [(1, 0), (2, 0), (3, 0), (4, 1)]
            .iter()
            .filter(|(c, i)| w.has(CkptId(*c), *i))
            .map(|(c, _)| *c)
            .collect();
        assert_eq!(taken, [1, 2, 4]);
        assert!(way(&[]).has(CkptId(5), 0), "a run that was never restarted has no such files");
        let anew = way(&[start(0, None), start(1, None)]);
        assert!(!anew.has(CkptId(1), 0) && anew.has(CkptId(2), 1));
    }

    #[test]
    fn the_next_start_begins_where_it_is_told_and_no_later_one() {
        let t = scratch("way");
        let run = RunDir::create(&t.0).unwrap();
        assert!(run.way().told().is_none());
        assert_eq!(run.claim_incarnation().unwrap(), 1);
        run.begin_at(CkptId(3)).unwrap();
        let starts = RunDir::create(&t.0.join(STARTS)).unwrap();
        let text = |n: u32| serde_json::json!({ "incarnation": n, "restart": null, "interval": 5.0 });
        starts.write_json("000001.json", &text(1)).unwrap();
        std::fs::write(t.0.join(STARTS).join("half.json"), "{").unwrap();
        assert_eq!(run.way().told(), Some(CkptId(3)));
        starts.write_json("000002.json", &text(2)).unwrap();
        assert_eq!(run.way().told(), None);
        run.begin_at(CkptId(4)).unwrap();
        assert_eq!(run.way().told(), None, "start 2 was not claimed here, so that it comes after");
        run.begin_anywhere();
        run.begin_anywhere();
    }

    #[test]
    fn what_was_passed_over_does_not_count_among_the_kept() {
        let t = scratch("kept");
        let run = RunDir::create(&t.0).unwrap();
        for _ in 0..4 {
            take_in(&run, 0);
        }
        let starts = RunDir::create(&t.0.join(STARTS)).unwrap();
        let from = run.ckpt_path(CkptId(2));
        starts.write_json("000001.json", &serde_json::json!({ "incarnation": 1, "restart": from })).unwrap();
        let left = || run.scan().unwrap().into_iter().map(|(c, _)| c.0).collect::<Vec<_>>();
        take_in(&run, 1);
        run.forget(2, None).unwrap();
        assert_eq!(left(), [5, 4, 3, 2], "2 is the one that a restart takes if 5 is damaged");
        take_in(&run, 1);
        run.forget(2, None).unwrap();
        assert_eq!(left(), [6, 5]);
    }
}
