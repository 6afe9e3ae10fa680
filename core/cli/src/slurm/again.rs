//! `scontrol checkpoint restart`: a job that has ended runs again, and goes on from its last checkpoints or from those of an
//! ImageDir.
//!
//! What a reader would get wrong: this is a requeue by Slurm; the checkpoints are chosen when the job's script starts its steps
//! again ([`crate::slurm::choose`]). What is done here leads them there, and is taken back if the job cannot be requeued.
//! Runs *next door*.

use std::path::{Path, PathBuf};

use stillpoint_storage::run::RunDir;

use crate::catalog;
use crate::error::chain;
use crate::home::{BELOW_HOME, Job, Lock};
use crate::slurm::choose::{Ended, RESULT};
use crate::slurm::images;
use crate::slurm::job::{self, Listed, View, Whereabouts};
use crate::slurm::scontrol::{Front, Told};

impl Front<'_> {
    pub(super) fn restart(&self, listed: &Listed, view: &View) -> Told {
        let key = &listed.key;
        if listed.state == "PENDING" {
            return Told::refuse(format!("job {key} waits to be started already"));
        }
        // In COMPLETING agents may still commit what they copy.
        if !listed.has_ended() {
            return Told::refuse(format!("job {key} is not over ({})", listed.state.to_lowercase()));
        }
        if !(view.batch && view.requeue) || self.request.step.is_some() {
            return self.tell_how(key);
        }
        let known = self.known(key);
        if known.is_empty() {
            return Told::refuse(format!("no step of job {key} ran under Stillpoint"));
        }
        let mut told = Told::default();
        let locks = match lock(&known) {
            Ok(locks) => locks,
            Err(why) => return Told::refuse(why),
        };
        // What was asked for before, and never started.
        begin_anywhere(&known);
        if let Some(dir) = &self.request.image_dir
            && let Err(why) = from_images(dir, key, &known, &mut told.out)
        {
            return Told::refuse(why);
        }
        // To copy takes its time, and somebody else may have started it meanwhile.
        let now = job::jobs(self.ask, &self.request.job).unwrap_or_default();
        if let Some(l) = now.iter().find(|l| l.key == *key && !l.has_ended()) {
            begin_anywhere(&known);
            return Told::refuse(format!("job {key} is not over any more ({})", l.state.to_lowercase()));
        }
        // Else the steps that ended would not run, but answer as they ended.
        let results = forget_results(&known);
        match (self.ask)("scontrol", &["requeue", key]) {
            Ok(_) if told.out.is_empty() => {
                told.out.push(format!("{key}: requeued; its steps go on from their last checkpoints"));
            }
            Ok(_) => told.out.push(format!("{key}: requeued")),
            Err(e) => {
                results.iter().for_each(|(run, ended)| drop(run.write_json(RESULT, ended)));
                begin_anywhere(&known);
                told.out.clear();
                told.add(self.tell_how(key));
                told.fail(e);
                return told;
            }
        }
        drop(locks);
        if self.request.stick {
            let (id, nodes) = (format!("JobId={key}"), format!("ReqNodeList={}", view.nodes));
            if let Err(e) = (self.ask)("scontrol", &["update", &id, &nodes]) {
                told.fail(format!("requeued, but not bound to {}: {e}", view.nodes));
            }
        }
        told
    }

    /// What the user can do himself with a job that has ended.
    pub(super) fn tell_how(&self, key: &str) -> Told {
        let mut told = Told { failed: true, ..Told::default() };
        let mut runs: Vec<PathBuf> = self
            .known(key)
            .into_iter()
            .filter(|w| self.request.step.as_ref().is_none_or(|s| *s == w.step))
            .map(|w| w.run)
            .collect();
        runs.sort();
        runs.dedup();
        for run in &runs {
            let job = Job::at(run);
            match catalog::last(&job) {
                Some(c) => told.err.push(format!(
                    "job {key} is not one that can be requeued; 'srun --ckpt-restart={} …' goes on from checkpoint {}",
                    job.name, c.id
                )),
                None => told.err.push(format!("run {} has no checkpoint", job.name)),
            }
        }
        if runs.is_empty() {
            told.err.push(format!(
                "job {key} is not known here: nothing of it ran under Stillpoint in ~/{BELOW_HOME}"
            ));
        }
        told
    }
}

/// Nobody else starts the runs, or has them begin elsewhere, as long as these are held.
fn lock(known: &[Whereabouts]) -> Result<Vec<Lock>, String> {
    runs(known)
        .into_iter()
        .filter(|run| run.is_dir())
        .map(|run| Job::at(run).lock())
        .collect::<Result<_, _>>()
        .map_err(|e| chain(&e))
}

/// The directories of runs.
fn runs(known: &[Whereabouts]) -> Vec<&Path> {
    let mut runs: Vec<&Path> = known.iter().map(|w| w.run.as_path()).collect();
    runs.sort_unstable();
    runs.dedup();
    runs
}

/// Has the runs begin at their checkpoints in `dir`, all that have one there. What is told of each is added to `told`.
fn from_images(dir: &Path, key: &str, known: &[Whereabouts], told: &mut Vec<String>) -> Result<(), String> {
    for run in runs(known) {
        match images::take(dir, key, run) {
            Ok(None) => {}
            Ok(Some(id)) => told.push(format!("{key}: {} goes on from checkpoint {id}", run.display())),
            Err(e) => {
                begin_anywhere(known);
                return Err(format!("ImageDir={}: {}", dir.display(), chain(&e)));
            }
        }
    }
    if told.is_empty() {
        return Err(format!("ImageDir={}: there is no checkpoint of job {key}", dir.display()));
    }
    Ok(())
}

fn begin_anywhere(known: &[Whereabouts]) {
    known.iter().filter_map(|w| RunDir::open(&w.run).ok()).for_each(|run| run.begin_anywhere());
}

/// Takes away how these runs have ended, and returns it.
fn forget_results(known: &[Whereabouts]) -> Vec<(RunDir, Ended)> {
    let take = |w: &Whereabouts| {
        let run = RunDir::open(&w.run).ok()?;
        let ended = run.read_json(RESULT).ok()?;
        std::fs::remove_file(w.run.join(RESULT)).ok()?;
        Some((run, ended))
    };
    known.iter().filter_map(take).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn results_are_forgotten_and_can_be_put_back() {
        let dir = std::env::temp_dir().join(format!("stillpoint-cli-forget-{}", std::process::id()));
        let run = RunDir::create(&dir).unwrap();
        let known = [Whereabouts { run: dir.clone(), ..Whereabouts::default() }];
        assert!(forget_results(&known).is_empty(), "it has not ended");
        run.write_json(RESULT, &Ended { status: 3, incarnation: 1 }).unwrap();
        let taken = forget_results(&known);
        assert_eq!((taken.len(), taken[0].1.status, dir.join(RESULT).exists()), (1, 3, false));
        fs::remove_dir_all(&dir).unwrap();
    }
}
