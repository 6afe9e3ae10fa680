//! Which checkpoints lie on the way that a run has taken. Runs *next door*.
//!
//! ```text
//!  starts/000002.json   { "incarnation": 2, "restart": ".../ckpt-000003", "of": 0, … }   start 2 began at checkpoint 3, of start 0
//!  begin.json           { "ckpt": 2, "after": 2 }                                        the next start is to begin at 2
//! ```
//!
//! What a reader would get wrong: a run may be started again from a checkpoint that is not the newest. Those behind it belong
//! to a past that did not happen: no later restart takes one of them, and they do not count among those that are kept. Such starts
//! may follow one another, so that the way is found backwards, from the last start to the one whose checkpoint it began at.

use crate::run::RunDir;
use crate::{At, Result, StoreError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::ErrorKind::NotFound;
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
    /// Which start has taken that one.
    #[serde(default)]
    of: u32,
}

impl Start {
    /// The checkpoint it began at, and who has taken that.
    fn from(&self) -> Option<(u64, u32)> {
        let name = self.restart.as_ref()?.file_name()?.to_str()?;
        Some((name.strip_prefix("ckpt-")?.parse().ok()?, self.of))
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
    /// By number.
    starts: BTreeMap<u32, Start>,
    begin: Option<Begin>,
}

impl Way {
    /// Whether checkpoint `ckpt`, taken by start `incarnation`, is one that the run has passed through.
    pub fn has(&self, ckpt: CkptId, incarnation: u32) -> bool {
        let Some(last) = self.starts.keys().next_back() else { return true };
        if incarnation > *last {
            return true;
        }
        let (mut link, mut newest) = (*last, u64::MAX);
        loop {
            if link == incarnation {
                return ckpt.0 <= newest;
            }
            match self.starts.get(&link).and_then(Start::from) {
                // What a start begins at is older than itself.
                Some((id, of)) if of < link => (link, newest) = (of, id),
                _ => return false,
            }
        }
    }

    /// Where the next start is to begin, if somebody has said so and nothing was started since.
    pub fn told(&self) -> Option<CkptId> {
        let b = self.begin?;
        self.starts.keys().all(|n| *n <= b.after).then_some(CkptId(b.ckpt))
    }
}

/// A file that need not be there.
fn maybe<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(StoreError::Io { source, .. }) if source.kind() == NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

impl RunDir {
    /// The way so far.
    ///
    /// # Errors
    /// What cannot be read: without it, a checkpoint could be taken that must not be.
    pub fn way(&self) -> Result<Way> {
        let dir = RunDir { path: self.path.join(STARTS) };
        let mut way = Way { begin: maybe(self.read_json(BEGIN))?, ..Way::default() };
        let list = maybe(std::fs::read_dir(dir.path()).at("list", dir.path()))?;
        for entry in list.into_iter().flatten() {
            let name = entry.at("list", dir.path())?.file_name();
            let Some(name) = name.to_str().filter(|n| n.strip_suffix(".json").is_some_and(is_number)) else {
                continue;
            };
            let start: Option<Start> = maybe(dir.read_json(name))?;
            way.starts.extend(start.map(|s| (s.incarnation, s)));
        }
        Ok(way)
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

fn is_number(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commit::tests::{scratch, take_in};

    fn way(starts: &[(u32, Option<(u64, u32)>)]) -> Way {
        let start = |(incarnation, from): &(u32, Option<(u64, u32)>)| Start {
            incarnation: *incarnation,
            restart: from.map(|(f, _)| format!("/h/1/ckpt-{f:06}").into()),
            of: from.map_or(0, |(_, of)| of),
        };
        Way { starts: starts.iter().map(|s| (s.0, start(s))).collect(), begin: None }
    }

    /// Of checkpoints, each with the start that has taken it: those on the way.
    fn on(way: &Way, all: &[(u64, u32)]) -> Vec<u64> {
        all.iter().filter(|(c, i)| way.has(CkptId(*c), *i)).map(|(c, _)| *c).collect()
    }

    #[test]
    fn a_checkpoint_that_was_passed_over_is_not_on_the_way() {
        // Start 0 made 1, 2, 3; start 1 began at 2 and made 4.
        let made = [(1, 0), (2, 0), (3, 0), (4, 1)];
        assert_eq!(on(&way(&[(0, None), (1, Some((2, 0)))]), &made), [1, 2, 4]);
        assert_eq!(on(&way(&[(1, Some((2, 0)))]), &made), [1, 2, 4], "the first start may have no file");
        assert_eq!(on(&way(&[]), &made), [1, 2, 3, 4], "a run that was never restarted has no such files");
        assert_eq!(on(&way(&[(0, None), (1, None)]), &made), [4], "begun anew");
    }

    #[test]
    fn a_way_that_was_left_is_come_back_to() {
        // Start 2 began at 3, which start 1 had passed over, and so passes over 4; it has made nothing, or 5.
        let starts = [(0, None), (1, Some((2, 0))), (2, Some((3, 0)))];
        let made = [(1, 0), (2, 0), (3, 0), (4, 1), (5, 2)];
        assert_eq!(on(&way(&starts), &made), [1, 2, 3, 5]);
        assert_eq!(on(&way(&[&starts[..], &[(3, Some((4, 1)))]].concat()), &made), [1, 2, 4]);
        let circle = way(&[(1, Some((2, 1))), (2, Some((3, 2)))]);
        assert!(!circle.has(CkptId(1), 0), "what no start can say ends the way");
    }

    #[test]
    fn the_next_start_begins_where_it_is_told_and_no_later_one() {
        let t = scratch("way");
        let run = RunDir::create(&t.0).unwrap();
        assert!(run.way().unwrap().told().is_none());
        assert_eq!(run.claim_incarnation().unwrap(), 1);
        run.begin_at(CkptId(3)).unwrap();
        let starts = RunDir::create(&t.0.join(STARTS)).unwrap();
        let text = |n: u32| serde_json::json!({ "incarnation": n, "restart": null, "interval": 5.0 });
        starts.write_json("000001.json", &text(1)).unwrap();
        assert_eq!(run.way().unwrap().told(), Some(CkptId(3)));
        starts.write_json("000002.json", &text(2)).unwrap();
        assert_eq!(run.way().unwrap().told(), None);
        run.begin_anywhere();
        run.begin_anywhere();
        std::fs::write(t.0.join(STARTS).join("000003.json"), "{").unwrap();
        assert!(run.way().is_err(), "nobody knows what it says");
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
        run.begin_at(CkptId(2)).unwrap();
        take_in(&run, 1);
        run.forget(2, None).unwrap();
        assert_eq!(left(), [6, 5], "it was told before that start");
        run.claim_incarnation().unwrap();
        run.begin_at(CkptId(5)).unwrap();
        take_in(&run, 1);
        take_in(&run, 1);
        run.forget(2, None).unwrap();
        assert_eq!(left(), [8, 7, 5], "the next start is to begin there");
    }
}
