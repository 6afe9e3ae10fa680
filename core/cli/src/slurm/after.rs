//! What follows when Slurm ends a job and not only a step: the requeue after a checkpoint before the time limit, and the wait for
//! the end of a job that has no right to go on in its script.
//!
//! What a reader would get wrong: several steps and mpiruns of a job may run under Stillpoint at once, and a requeue ends them
//! all. Whoever has its checkpoint waits for the others to have theirs, but not until the job's time is over: then Slurm ends it
//! for good, and requeues nothing. A step ends with its checkpoint; the ranks of a mpirun run on, and so that is written down.
//! Runs *next door*.

use std::time::{Duration, Instant};

use stillpoint_storage::run::RunDir;

use crate::error::Error;
use crate::home::Job;
use crate::run::say;
use crate::signals::Heard;
use crate::slurm::identity::{Index, Life};
use crate::slurm::job::{self, Ask, View, Whereabouts};
use crate::slurm::scancel::Mark;

/// The time that a requeue needs before the time limit.
const LAST: Duration = Duration::from_secs(10);
/// The end of a job, once it has been ordered.
const END: Duration = Duration::from_secs(30);

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// In a run directory: the start of this number has its checkpoint before the time limit, and runs on.
const SAVED: &str = "saved.json";

/// Writes it down.
pub(crate) fn is_saved(run: &Job, incarnation: u32) -> Result<(), Error> {
    Ok(RunDir::open(&run.dir)?.write_json(SAVED, &incarnation)?)
}

/// The job around a step that has ended, or around a mpirun.
pub(crate) struct Around<'a> {
    pub(crate) life: &'a Life,
    /// Our own run.
    pub(crate) job: &'a Job,
    pub(crate) index: Option<Index>,
    pub(crate) ask: Ask<'a>,
    pub(crate) json: bool,
}

impl Around<'_> {
    fn look(&self) -> Option<View> {
        job::look(self.ask, &self.life.job)
    }

    /// Has the batch job begin another life, and waits for the end of this one: what follows in the script is not to be run
    /// now.
    pub(crate) fn requeue(&self, heard: &mut Heard) {
        let until = Instant::now() + END;
        let mut view = self.look();
        // Slurm may have no answer for a moment.
        while view.is_none() && Instant::now() < until && heard.pause(LOOK).is_none() {
            view = self.look();
        }
        if !view.is_some_and(|v| v.batch && v.requeue) || !self.others(heard) {
            return;
        }
        let until = Instant::now() + END;
        while !self.order() && Instant::now() < until {
            if heard.pause(LOOK).is_some() {
                return let_the_script_end();
            }
        }
        if heard.pause(END).is_some() {
            let_the_script_end();
        }
    }

    /// The same of a mpirun that runs on, and whose end its keeper waits for: true once there is nothing left to do here.
    pub(crate) fn requeue_in_time(&self) -> bool {
        match self.look() {
            None => false,
            Some(v) if !(v.batch && v.requeue) => true,
            Some(_) => self.waits_for().is_empty() && self.order(),
        }
    }

    /// Unless somebody else was faster. False: it failed.
    fn order(&self) -> bool {
        let runs = || self.look().is_none_or(|v| v.state == "RUNNING");
        if !runs() {
            return true;
        }
        match (self.ask)("scontrol", &["requeue", &self.life.job]) {
            Err(e) if runs() => {
                let text = format!("job {} is not requeued: {e}", self.life.job);
                say(self.json, "timelimit", self.job, &text);
                false
            }
            _ => true,
        }
    }

    /// Waits for the end of a preempted job, for the same reason. A status: a signal has ended us.
    pub(crate) fn sit_out(&self, heard: &mut Heard) -> Option<u8> {
        while self.look().is_some_and(|v| v.preempted && v.batch && v.requeue) {
            let ended = heard.pause(Duration::from_secs(2));
            if ended.is_some() {
                let_the_script_end();
                return ended;
            }
        }
        None
    }

    /// The same of a job that is vacated: once all of its steps are saved, who has asked for that ends it.
    pub(crate) fn sit_out_vacate(&self, incarnation: u32, heard: &mut Heard) -> Option<u8> {
        while Mark::Vacated.stands(self.job, incarnation) {
            let ended = heard.pause(LOOK);
            if ended.is_some() {
                let_the_script_end();
                return ended;
            }
        }
        None
    }

    /// Who is still to have its checkpoint; nobody any more when the time is all but over.
    fn waits_for(&self) -> Vec<String> {
        let known = self.index.as_ref().map(|i| i.announced(&self.life.job)).unwrap_or_default();
        let steps = job::steps(self.ask, &self.life.job).ok();
        let others = others(&known, self.life.number, self.job, &|w| goes_on(w, steps.as_deref()));
        let time = others.is_empty() || job::left(self.ask, &self.life.job).is_none_or(|t| t > LAST);
        if time { others } else { vec![] }
    }

    /// Waits for all others. False: we are to end ourselves.
    fn others(&self, heard: &mut Heard) -> bool {
        let mut said = false;
        loop {
            let others = self.waits_for();
            if others.is_empty() {
                return true;
            }
            if !said {
                let text =
                    format!("run {}: waits for the checkpoint of step {}", self.job.name, others.join(", "));
                say(self.json, "timelimit", self.job, &text);
                said = true;
            }
            if heard.pause(LOOK).is_some() {
                return false;
            }
        }
    }
}

/// Slurm ends the script by the signal that has ended us, in the same moment: its shell must not see us gone before, and come to
/// its next line.
fn let_the_script_end() {
    std::thread::sleep(Duration::from_secs(1));
}

/// Whether what was announced is there, and not saved. `steps`: those that run, if that is known.
fn goes_on(w: &Whereabouts, steps: Option<&[String]>) -> bool {
    if w.mpirun.is_none() {
        return steps.is_none_or(|all| all.contains(&w.step));
    }
    // Its ranks need not be in a step with a number, and its keeper holds the lock.
    let saved = RunDir::open(&w.run).and_then(|d| d.read_json::<u32>(SAVED)).ok();
    Job::at(&w.run).is_running() && saved != Some(w.incarnation)
}

/// Of those that go on: those of other runs in this life of the job.
fn others(
    known: &[Whereabouts],
    life: u32,
    own: &Job,
    goes_on: &dyn Fn(&Whereabouts) -> bool,
) -> Vec<String> {
    let other = |w: &&Whereabouts| w.restart_count == life && w.run != own.dir && goes_on(w);
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
            others(&known, 1, &own, &|w| goes_on(w, Some(&steps))),
            ["1"],
            "2 has ended, 3 was in an earlier life, 4 is not ours"
        );
        assert_eq!(others(&known, 1, &own, &|w| goes_on(w, None)), ["1", "2"], "Slurm has not answered");
    }

    #[test]
    fn a_mpirun_goes_on_until_it_ends_or_is_saved() {
        let dir = std::env::temp_dir().join(format!("stillpoint-cli-after-{}", std::process::id()));
        RunDir::create(&dir).unwrap();
        let run = Job { name: "1".into(), dir: dir.clone() };
        let beside = Whereabouts {
            step: "batch".into(),
            run: dir.clone(),
            mpirun: Some("x".into()),
            incarnation: 2,
            ..Whereabouts::default()
        };
        assert!(!goes_on(&beside, None), "nobody keeps it");
        let lock = run.lock().unwrap();
        assert!(goes_on(&beside, None));
        is_saved(&run, 1).unwrap();
        assert!(goes_on(&beside, None), "that was an earlier start");
        is_saved(&run, 2).unwrap();
        assert!(!goes_on(&beside, None));
        drop(lock);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
