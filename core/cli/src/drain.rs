//! Waits for a checkpoint that outlives its ranks: complete on the nodes, and being copied to the run directory by their agents.
//!
//! What a reader would get wrong: how long a copy may take is nobody's business here, as long as it moves; it is given up when
//! nothing has moved for [`PATIENCE`]. And an agent that does not answer for a moment may only be busy, or its line cut.
//! Runs *next door*.

use std::path::Path;
use std::time::{Duration, Instant};

use stillpoint_abi::stage::Stage;
use stillpoint_coord::message::{JobStatus, Presence};
use stillpoint_storage::run::RunDir;

use crate::error::Error;
use crate::home::Job;
use crate::run::say;
use crate::talk;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);
/// Without progress.
const PATIENCE: Duration = Duration::from_secs(60);
/// Without an answer, of an agent that has said that it copies.
const SILENCE: Duration = Duration::from_secs(10);

/// What was seen last of a checkpoint that needs no rank any more.
#[derive(Debug, PartialEq, Eq)]
struct At {
    ckpt: u64,
    committing: bool,
    bytes: (u64, u64),
}

fn at(s: &JobStatus) -> Option<At> {
    let committing = s.stage == Stage::Commit.to_string();
    let copying = s.stage == Stage::Copy.to_string();
    (copying || committing).then(|| At { ckpt: s.ckpt, committing, bytes: s.copying.unwrap_or_default() })
}

/// A look at a job, again and again.
#[derive(Debug)]
pub(crate) struct Drain {
    last: Option<At>,
    moved: Instant,
    answered: Instant,
    /// As far as it has been seen, of all ranks.
    ended_well: bool,
}

impl Drain {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Drain { last: None, moved: now, answered: now, ended_well: false }
    }

    /// Whether such a checkpoint is under way, and moves.
    pub(crate) fn goes_on(&mut self, job: &Job) -> bool {
        // To ask an agent that is gone with its node takes seconds, and without this there is nothing to ask for.
        let unfinished =
            || RunDir::open(&job.dir).and_then(|run| run.scan()).is_ok_and(|l| l.iter().any(|c| c.1));
        if self.last.is_none() && !unfinished() {
            return false;
        }
        self.look(talk::status(job).ok().as_ref(), Instant::now())
    }

    fn look(&mut self, status: Option<&JobStatus>, now: Instant) -> bool {
        let Some(status) = status else {
            return self.last.is_some() && now.duration_since(self.answered) < SILENCE;
        };
        self.answered = now;
        self.ended_well = status.ranks.iter().all(|(p, _)| *p == Presence::Finished(0));
        let seen = at(status);
        if seen != self.last {
            self.moved = now;
        }
        self.last = seen;
        self.last.is_some() && now.duration_since(self.moved) < PATIENCE
    }

    /// Waits until there is none, or none that moves, or until `pause` says that somebody ends us.
    pub(crate) fn wait(mut self, job: &Job, json: bool, pause: &mut dyn FnMut(Duration) -> bool) {
        /// What is over by then is nobody's concern.
        const WORTH_A_WORD: Duration = Duration::from_secs(3);
        let begun = Instant::now();
        let mut said = false;
        while self.goes_on(job) {
            if let Some(a) = self.last.as_ref().filter(|_| !said && begun.elapsed() > WORTH_A_WORD) {
                said = true;
                let (done, all) = (a.bytes.0 >> 20, a.bytes.1 >> 20);
                let text = format!(
                    "run {}: waits for checkpoint {}, which is being copied from the nodes ({done} of {all} MiB)",
                    job.name, a.ckpt
                );
                say(json, "copying", job, &text);
            }
            if pause(LOOK) {
                return;
            }
        }
    }
}

/// The same for one whom nobody ends but by a signal.
pub(crate) fn wait(job: &Job, json: bool) {
    Drain::new().wait(job, json, &mut |t| {
        std::thread::sleep(t);
        false
    });
}

/// Claims the next start of a run. Agents of the former may still be at a checkpoint, on nodes that are left, and could not commit it
/// any more.
pub(crate) fn claim(job: &Job, json: bool) -> Result<u32, Error> {
    wait(job, json);
    Ok(RunDir::open(&job.dir)?.claim_incarnation()?)
}

/// `slurm-hold`, on a node where no rank is left: waits as long as a checkpoint is under way that somebody may go on from.
/// When all ranks of the job have ended well, nobody will.
pub(crate) fn hold(run: &Path) {
    let job = Job::at(run);
    let mut drain = Drain::new();
    while drain.goes_on(&job) && !drain.ended_well {
        std::thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(stage: Stage, done: u64) -> JobStatus {
        JobStatus {
            size: 1,
            incarnation: 0,
            ranks: vec![],
            stage: stage.to_string(),
            ckpt: 3,
            copying: (stage == Stage::Copy).then_some((done, 9)),
            running: false,
            committed: 0,
            given_up: 0,
            last: None,
            last_reasons: vec![],
        }
    }

    #[test]
    fn what_moves_is_waited_for() {
        let mut d = Drain::new();
        let t = Instant::now();
        let mut look = |s: Option<JobStatus>, seconds| d.look(s.as_ref(), t + Duration::from_secs(seconds));
        assert!(!look(None, 0), "nobody has said that anything is copied");
        assert!(!look(Some(status(Stage::Write, 0)), 0), "the ranks are needed");
        assert!(look(Some(status(Stage::Copy, 0)), 1));
        assert!(look(None, 9) && !look(None, 12), "it may be cut off for a moment");
        assert!(look(Some(status(Stage::Copy, 0)), 60) && !look(Some(status(Stage::Copy, 0)), 61));
        assert!(look(Some(status(Stage::Copy, 1)), 200), "it moves again");
        assert!(look(Some(status(Stage::Commit, 1)), 250));
        assert!(!look(Some(status(Stage::Idle, 0)), 251));
    }
}
