//! Checkpoints on an occasion. `--ckpt-on=timelimit` takes one before the time is over that the job has, or the step
//! (`srun --time`), and ends the step with it; a batch job is requeued then, where it goes on. `--ckpt-on=preempt`: the ranks
//! take theirs by themselves, as Slurm warns the tasks alone; here it is only noticed.
//!
//! What a reader would get wrong: the time left is asked for again and again, because it can be changed while the job runs;
//! as a duration, because Slurm prints points in time without their zone. And that a job was preempted can be seen
//! only until its grace is over: Slurm is asked whenever a checkpoint has been begun. Runs *next door*.

use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use stillpoint_coord::message::Outcome;

use crate::checkpoint;
use crate::error::chain;
use crate::home::Job;
use crate::run::say;
use crate::slurm::job::{self, Ask};
use crate::talk;

/// What ends a step, beside the write itself: the agents, srun, and the requeue.
const MARGIN: Duration = Duration::from_secs(20);
/// Before anything is known of how long a checkpoint takes.
const FIRST: Duration = Duration::from_secs(60);
/// After one was refused.
const AGAIN: Duration = Duration::from_secs(5);
/// How well the end of a step's time is known.
const ROUGHLY: Duration = Duration::from_secs(3);
/// Where there is no limit.
const SELDOM: Duration = Duration::from_secs(300);

/// How long before the end a checkpoint is begun: three times what the last one took. Half of the time that there was at
/// first at the most, as a job with little time would do nothing else.
fn lead(last: Option<Duration>, first: Duration) -> Duration {
    (last.map_or(FIRST, |t| t * 3) + MARGIN).min(first / 2)
}

/// When to look again: the limit may be changed, but not every second somebody does.
fn next_look(left: Duration, lead: Duration) -> Duration {
    (left.saturating_sub(lead) / 2).clamp(Duration::from_secs(1), SELDOM)
}

/// Whose time it is that ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    Job,
    Step,
}

/// The shorter of the two times.
fn shorter(job: Option<Duration>, step: Option<Duration>) -> Option<(Duration, Whose)> {
    let both = [job.map(|t| (t, Whose::Job)), step.map(|t| (t, Whose::Step))];
    both.into_iter().flatten().min_by_key(|(t, _)| *t)
}

/// Watches the time limits of one start, its job's and its own.
pub(crate) struct TimeLimit<'a> {
    job: &'a Job,
    ask: Ask<'a>,
    json: bool,
    /// A checkpoint is to be taken.
    wanted: bool,
    look_at: Instant,
    /// The time that was left at first.
    first: Option<Duration>,
    /// When the step's own time is over.
    step_ends: Option<Instant>,
    asked: Option<Receiver<Outcome>>,
    /// Why the last one was refused; it is asked for again.
    refused: Option<String>,
    /// The step ends with the checkpoint.
    pub(crate) stop: bool,
    /// The checkpoint that was taken, once it is durable.
    pub(crate) saved: Option<u64>,
    /// The step was to be ended by its checkpoint.
    pub(crate) due: Option<Whose>,
}

impl<'a> TimeLimit<'a> {
    pub(crate) fn new(job: &'a Job, ask: Ask<'a>, json: bool, wanted: bool) -> Self {
        TimeLimit {
            job,
            ask,
            json,
            wanted,
            look_at: Instant::now(),
            first: None,
            step_ends: None,
            asked: None,
            refused: None,
            stop: true,
            saved: None,
            due: None,
        }
    }

    /// To be called each second; `id` and `step`: Slurm's numbers, once the step runs; without a step: it is alone in its job.
    pub(crate) fn tick(&mut self, id: &str, step: Option<&str>) {
        let answer = self.asked.as_ref().and_then(|a| a.try_recv().ok());
        if let Some(Ok(id)) = answer {
            (self.saved, self.asked, self.refused) = (Some(id), None, None);
        } else if let Some(Err(reasons)) = answer {
            let why = reasons.join("; ");
            if self.refused.as_ref() != Some(&why) {
                // At once: when the time is over, nobody may be left to say it.
                self.missed(&format!("{why}; it is asked for again"));
            }
            (self.asked, self.refused) = (None, Some(why));
            self.look_at = Instant::now() + AGAIN;
        }
        let taken = self.asked.is_some() || (self.due.is_some() && self.refused.is_none());
        if Instant::now() < self.look_at || taken {
            return;
        }
        let of_step = step.and_then(|s| job::step_left(self.ask, id, s));
        self.step_ends = of_step.map(|t| Instant::now() + t);
        let of_job = if self.wanted { job::left(self.ask, id) } else { None };
        let Some((left, whose)) = shorter(of_job, of_step) else {
            self.look_at = Instant::now() + if self.refused.is_some() { AGAIN } else { SELDOM };
            return;
        };
        let first = *self.first.get_or_insert(left);
        let last = talk::status(self.job).ok().and_then(|s| s.last).map(|m| Duration::from_nanos(m.total_ns));
        let lead = lead(last, first);
        if left > lead || !self.wanted {
            self.look_at = Instant::now() + next_look(left, if self.wanted { lead } else { Duration::ZERO });
            return;
        }
        self.due = Some(whose);
        if self.refused.is_none() {
            let left = left.as_secs();
            let text = format!("run {}: {left} s to the time limit; a checkpoint is taken", self.job.name);
            say(self.json, "timelimit", self.job, &text);
        }
        let (to, from) = channel();
        let (job, stop) = (self.job.clone(), self.stop);
        std::thread::spawn(move || {
            to.send(checkpoint::ask(&job, stop).unwrap_or_else(|e| Err(vec![chain(&e)])))
        });
        self.asked = Some(from);
    }

    /// Whether the step's own time is over: how srun ends then does not tell. Slurm counts in whole seconds.
    pub(crate) fn is_over(&self) -> bool {
        self.step_ends.is_some_and(|end| Instant::now() + ROUGHLY >= end)
    }

    /// To be called when the step has ended, and not by its checkpoint.
    pub(crate) fn cut_off(&mut self) {
        let refused = self.refused.take();
        if self.asked.take().is_some() {
            self.missed("there was not time enough");
        } else if let Some(why) = refused {
            self.missed(&why);
        }
    }

    fn missed(&self, why: &str) {
        let text = format!(
            "run {}: no checkpoint before the time limit, the last commit stands: {why}",
            self.job.name
        );
        say(self.json, "timelimit", self.job, &text);
    }
}

/// Notices that a job was preempted and its ranks have asked for a checkpoint.
pub(crate) struct Preemption<'a> {
    job: &'a Job,
    ask: Ask<'a>,
    json: bool,
    /// The last number given to a checkpoint when Slurm was asked.
    seen: u64,
    /// The first checkpoint that was begun in the grace.
    pub(crate) first: Option<u64>,
}

impl<'a> Preemption<'a> {
    pub(crate) fn new(job: &'a Job, ask: Ask<'a>, json: bool) -> Self {
        Preemption { job, ask, json, seen: begun(job), first: None }
    }

    /// To be called each second, and at the end.
    pub(crate) fn tick(&mut self, id: &str) {
        let last = begun(self.job);
        if self.first.is_some() || last == self.seen {
            return;
        }
        self.seen = last;
        if job::look(self.ask, id).is_some_and(|v| v.preempted) {
            self.first = Some(last);
            let text = format!("run {}: the job is preempted; checkpoint {last} is taken", self.job.name);
            say(self.json, "preempted", self.job, &text);
        }
    }
}

/// The last number given to a checkpoint.
fn begun(job: &Job) -> u64 {
    std::fs::read_to_string(job.path("last-id")).ok().and_then(|t| t.trim().parse().ok()).unwrap_or(0)
}

/// What is said of a run that was ended from outside: with `warned`, by a preemption since whose beginning the checkpoints from
/// that number on were begun.
pub(crate) fn interrupted(run: &str, warned: Option<u64>, last: Option<u64>) -> Option<String> {
    Some(match (warned, last) {
        (Some(first), Some(c)) if c >= first => {
            format!("run {run} was preempted; checkpoint {c} was taken in the grace")
        }
        (Some(_), Some(c)) => {
            format!(
                "run {run} was preempted, and there was not time enough for a checkpoint: the last commit, {c}, stands"
            )
        }
        (Some(_), None) => format!("run {run} was preempted before its first checkpoint was committed"),
        (None, Some(c)) => format!("run {run} was ended from outside; its last checkpoint is {c}"),
        (None, None) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn begun_in_time_and_looked_at_seldom() {
        let s = Duration::from_secs;
        let hour = s(3600);
        assert_eq!((lead(None, hour), lead(Some(s(10)), hour)), (s(80), s(50)));
        assert_eq!(lead(None, s(60)), s(30), "a job of one minute");
        assert_eq!(next_look(s(36000), s(50)), s(300));
        assert_eq!(next_look(s(150), s(50)), s(50));
        assert_eq!(next_look(s(50), s(50)), s(1));
    }

    #[test]
    fn the_shorter_time_counts() {
        let s = Duration::from_secs;
        assert_eq!(shorter(Some(s(9)), Some(s(5))), Some((s(5), Whose::Step)));
        assert_eq!(shorter(Some(s(9)), None), Some((s(9), Whose::Job)));
        assert_eq!(shorter(None, None), None);
    }

    #[test]
    fn a_preemption_is_seen_when_a_checkpoint_begins() {
        let dir = std::env::temp_dir().join(format!("stillpoint-cli-preempted-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let job = Job { name: "1".into(), dir: dir.clone() };
        let (asked, grace) = (std::cell::Cell::new(0), std::cell::Cell::new("None"));
        let fake = |_: &str, _: &[&str]| -> Result<String, String> {
            asked.set(asked.get() + 1);
            Ok(format!("JobId=5 JobState=RUNNING PreemptTime={} Command=x", grace.get()))
        };
        let mut p = Preemption::new(&job, &fake, true);
        p.tick("5");
        assert_eq!((p.first, asked.get()), (None, 0), "Slurm is not asked each second");
        std::fs::write(dir.join("last-id"), "1\n").unwrap();
        p.tick("5");
        p.tick("5");
        assert_eq!((p.first, asked.get()), (None, 1), "the interval's");
        grace.set("2026-11-21T17:15:25");
        std::fs::write(dir.join("last-id"), "2\n").unwrap();
        p.tick("5");
        assert_eq!((p.first, asked.get()), (Some(2), 2));
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_is_said_of_a_preempted_run() {
        let said = |w, l| interrupted("1", w, l).unwrap_or_default();
        assert!(said(Some(3), Some(3)).contains("checkpoint 3 was taken in the grace"));
        assert!(said(Some(3), Some(2)).contains("the last commit, 2, stands"));
        assert!(said(Some(1), None).contains("before its first checkpoint"));
        assert!(said(None, Some(2)).contains("ended from outside") && said(None, None).is_empty());
    }
}
