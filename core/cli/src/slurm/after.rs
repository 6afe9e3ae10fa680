//! What follows when Slurm ends a job and not only a step: the requeue after a checkpoint before the time limit, and the wait for
//! the end of a job that has no right to go on in its script.
//!
//! What a reader would get wrong: several steps of a job may run under Stillpoint at once, and a requeue ends them all. Whoever
//! has its checkpoint waits for the others to have theirs, but not until the job's time is over: then Slurm ends it
//! for good, and requeues nothing. Runs *next door*.

use std::time::Duration;

use crate::home::Job;
use crate::run::say;
use crate::signals::Heard;
use crate::slurm::identity::{Index, Life};
use crate::slurm::job::{self, Ask, Whereabouts};

/// The time that a requeue needs before the time limit.
const LAST: Duration = Duration::from_secs(10);
/// The end of a job, once it has been ordered.
const END: Duration = Duration::from_secs(30);

/// The job around a step that has ended.
pub(crate) struct Around<'a> {
    pub(crate) life: &'a Life,
    /// Our own run.
    pub(crate) job: &'a Job,
    pub(crate) index: Option<Index>,
    pub(crate) ask: Ask<'a>,
    pub(crate) json: bool,
}

impl Around<'_> {
    /// Whether there will be another life of the job.
    fn is_requeued(&self) -> bool {
        job::look(self.ask, &self.life.job).is_some_and(|v| v.batch && v.requeue)
    }

    /// Has the batch job begin another life, and waits for the end of this one: what follows in the script is not to be run
    /// now.
    pub(crate) fn requeue(&self, heard: &mut Heard) {
        if !self.is_requeued() || !self.others(heard) {
            return;
        }
        // Unless another step's supervisor was faster.
        if self.is_running() {
            match (self.ask)("scontrol", &["requeue", &self.life.job]) {
                Err(e) if self.is_running() => {
                    let text = format!("job {} is not requeued: {e}", self.life.job);
                    return say(self.json, "timelimit", self.job, &text);
                }
                _ => {}
            }
        }
        let _ = heard.pause(END);
    }

    /// Waits for the end of a preempted job, for the same reason. A status: a signal has ended us.
    pub(crate) fn sit_out(&self, heard: &mut Heard) -> Option<u8> {
        let look = || job::look(self.ask, &self.life.job);
        while look().is_some_and(|v| v.preempted && v.batch && v.requeue) {
            let ended = heard.pause(Duration::from_secs(2));
            if ended.is_some() {
                return ended;
            }
        }
        None
    }

    fn is_running(&self) -> bool {
        job::look(self.ask, &self.life.job).is_some_and(|v| v.state == "RUNNING")
    }

    /// Waits until no other step of the job runs under Stillpoint. False: we are to end ourselves.
    fn others(&self, heard: &mut Heard) -> bool {
        let mut said = false;
        loop {
            let known = self.index.as_ref().map(|i| i.announced(&self.life.job)).unwrap_or_default();
            let steps = job::steps(self.ask, &self.life.job);
            let others = others(&known, &steps, self.life.number, self.job);
            let time = job::left(self.ask, &self.life.job).is_none_or(|t| t > LAST);
            if others.is_empty() || !time {
                return true;
            }
            if !said {
                let text =
                    format!("run {}: waits for the checkpoint of step {}", self.job.name, others.join(", "));
                say(self.json, "timelimit", self.job, &text);
                said = true;
            }
            if heard.pause(Duration::from_secs(1)).is_some() {
                return false;
            }
        }
    }
}

/// Of the steps that run: those of other runs in this life of the job.
fn others(known: &[Whereabouts], steps: &[String], life: u32, own: &Job) -> Vec<String> {
    let other = |w: &&Whereabouts| w.restart_count == life && w.run != own.dir && steps.contains(&w.step);
    let mut found: Vec<String> = known.iter().filter(other).map(|w| w.step.clone()).collect();
    found.sort();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_to_wait_for() {
        let step = |step: &str, life, run: &str| Whereabouts {
            step: step.into(),
            restart_count: life,
            run: run.into(),
            ..Whereabouts::default()
        };
        let own = Job { name: "1".into(), dir: "/h/1".into() };
        let known = [step("0", 1, "/h/1"), step("1", 1, "/h/2"), step("2", 1, "/h/3"), step("3", 0, "/h/4")];
        let steps = ["0", "1", "3", "4"].map(str::to_owned);
        assert_eq!(
            others(&known, &steps, 1, &own),
            ["1"],
            "2 has ended, 3 was in an earlier life, 4 is not ours"
        );
    }
}
