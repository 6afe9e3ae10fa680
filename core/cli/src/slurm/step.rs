//! `stillpoint slurm-step`: what the plugin makes of an `srun --ckpt-interval=…`. Finds out which run this is, starts the real
//! srun as its child, waits, and starts it again when the step was lost. To whoever started it, it is srun: same process id,
//! same standard streams, same exit status.
//!
//! What a reader would get wrong: a batch job that is requeued does not come back here, a new one of us in its next life does,
//! and finds the run in the index. Here a step is restarted only within an allocation that stands, or in a new job of srun's
//! own. Runs *next door*.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use clap::Args;
use stillpoint_storage::run::RunDir;

use crate::catalog::{self, Checkpoint};
use crate::error::{Error, chain};
use crate::home::{Description, Home, Job};
use crate::launch::{Watch, spool_stdin};
use crate::run::{ranks_text, say};
use crate::signals::Heard;
use crate::slurm::after::Around;
use crate::slurm::args::{Input, understand};
use crate::slurm::choose::{Ended, From, RESULT, choose, description, newest};
use crate::slurm::identity::{Index, Life};
use crate::slurm::job::{self, Ask, Whereabouts};
use crate::slurm::judge::{Before, End, Facts, IN_A_ROW, Next, is_sure, judge, next};
use crate::slurm::occasion::{Preemption, TimeLimit, Whose, interrupted};
use crate::slurm::scancel::Mark;
use crate::slurm::srun;
use crate::slurm::start::{Options, StartFile, Stdin};

/// Arguments of `slurm-step`, which the plugin gives.
#[derive(Debug, Args)]
pub(crate) struct StepArgs {
    #[command(flatten)]
    options: Options,
    /// The real srun.
    #[arg(long)]
    srun: PathBuf,
    /// Its arguments.
    #[arg(last = true)]
    args: Vec<OsString>,
}

/// A step under our care.
struct Step<'a> {
    job: &'a Job,
    srun: &'a Path,
    args: &'a [OsString],
    /// The allocation around us.
    life: Option<Life>,
    model: StartFile,
    json: bool,
    ask: Ask<'a>,
}

pub(crate) fn slurm_step(home: &Home, given: StepArgs, json: bool) -> Result<u8, Error> {
    job::are_beside(&given.srun);
    let var = |n: &str| std::env::var_os(n);
    let life = Life::around(var);
    let index = Index::usual().ok();
    let understood = understand(&given.args, var("SLURM_STDINMODE").as_deref());
    let mut model = StartFile { index: index.as_ref().map(|i| i.0.clone()), ..given.options.model()? };
    let what = Description {
        interval: model.interval,
        auto: model.auto,
        keep: model.keep,
        ..description(&given.args)?
    };
    let ask: Ask<'_> = &job::ask;
    let chosen = match choose(
        home,
        &what,
        given.options.restart.as_deref(),
        index.as_ref().zip(life.as_ref()).map(|(index, life)| (index, life, std::process::id())),
        ask,
        json,
    )? {
        Ok(chosen) => chosen,
        Err(status) => return Ok(status),
    };
    // Also where a former life of the job ended while it read: nothing has run on it yet.
    let anew = !matches!(chosen.from, From::Checkpoint(_)) && !chosen.job.path("stdin").is_file();
    if anew && understood.input != Input::None {
        spool_stdin(&chosen.job)?;
    }
    if chosen.job.path("stdin").is_file() {
        model.stdin = match understood.input {
            Input::All => Some(Stdin::All),
            Input::Task(n) => Some(Stdin::Task(n)),
            Input::None => None,
        };
    }
    let step = Step { job: &chosen.job, srun: &given.srun, args: &given.args, life, model, json, ask };
    let result = step.supervise(chosen.from, chosen.incarnation);
    if matches!(result, Err(Error::Start { .. })) && catalog::list(&chosen.job).is_empty() {
        let _ = std::fs::remove_dir_all(&chosen.job.dir);
    }
    result
}

/// Goes on with a run of Slurm's that has ended, for `restart`.
pub(crate) fn again(
    job: &Job,
    what: &Description,
    from: Checkpoint,
    incarnation: u32,
    srun: &Path,
    json: bool,
) -> Result<u8, Error> {
    let words = what.argv();
    let model = StartFile {
        interval: what.interval,
        auto: what.auto,
        keep: what.keep,
        index: Index::usual().ok().map(|i| i.0),
        stdin: job.path("stdin").is_file().then_some(Stdin::All),
        ..StartFile::default()
    };
    let life = Life::around(|n| std::env::var_os(n));
    std::env::set_current_dir(&what.info.cwd).map_err(Error::io("enter", Path::new(&what.info.cwd)))?;
    let args = words.get(1..).unwrap_or_default();
    Step { job, srun, args, life, model, json, ask: &job::ask }
        .supervise(From::Checkpoint(from.into()), incarnation)
}

impl Step<'_> {
    /// Starts srun until the step has ended by itself, was ended, or cannot be restarted.
    fn supervise(&self, mut from: From, mut incarnation: u32) -> Result<u8, Error> {
        let mut heard = Heard::new()?;
        let mut before = Before::default();
        let mut lost_at: Option<Instant> = None;
        let mut shrunk = false;
        loop {
            StartFile { incarnation, ..self.model.clone() }.at(from.checkpoint()).write(self.job)?;
            let patience = Duration::from_secs(4);
            let watch = Watch { job: self.job, incarnation, patience, json: self.json };
            let on = |what: &str| self.model.on.iter().any(|o| o == what);
            let mut limit = TimeLimit::new(self.job, self.ask, self.json, on("timelimit"));
            let mut preemption = on("preempt").then(|| Preemption::new(self.job, self.ask, self.json));
            let mut runs: Option<(String, Option<String>)> = None;
            let is_lost = &mut || {
                runs = runs.take().or_else(|| self.numbers(incarnation));
                if let Some((id, step)) = &runs {
                    limit.tick(id, step.as_deref());
                    preemption.iter_mut().for_each(|p| p.tick(id));
                }
                watch.outcome_file().is_some_and(|o| o.restart)
            };
            let last_resort = &mut || self.cancel(incarnation);
            let mut command = srun::command(self.srun, self.job, incarnation, self.args)?;
            if self.model.stdin.is_some() {
                command.stdin(Stdio::null());
            }
            if shrunk {
                let ranks = match &from {
                    From::Checkpoint(c) => Some(c.manifest.size),
                    _ => None,
                };
                srun::forget_nodes(&mut command, ranks, std::env::var_os("SLURM_NTASKS").is_some());
            }
            let seen = watch.run(command, &mut heard, is_lost, last_resort)?;
            if let (Some(p), Some(id)) = (&mut preemption, self.slurm_job(incarnation)) {
                p.tick(&id);
            }
            let facts = Facts {
                outcome: seen.outcome,
                status: seen.status,
                signals: heard.ages(seen.ended),
                in_allocation: self.life.is_some(),
                time_over: limit.is_over(),
                warned: preemption.and_then(|p| p.first),
                ..Facts::default()
            };
            let (end, facts) = self.ask_slurm(facts, incarnation);
            StartFile::over(self.job, incarnation, facts.started || facts.outcome.is_some());
            if catalog::list(self.job).iter().any(|c| c.manifest.incarnation >= incarnation) {
                before.in_a_row = 0;
            }
            before.since_loss = lost_at.map(|t| t.elapsed());
            let what_next = next(&end, before);
            self.tell(&end, &what_next, &facts, incarnation)?;
            let stopped = matches!(end, End::Stopped(_));
            if !stopped {
                limit.cut_off();
            }
            if let Some(around) = self.around() {
                if stopped && limit.due == Some(Whose::Job) {
                    around.requeue(&mut heard);
                } else if stopped {
                    if let Some(s) = around.sit_out_vacate(incarnation, &mut heard) {
                        return Ok(s);
                    }
                } else if facts.preempted
                    && matches!(end, End::Interrupted(_))
                    && let Some(s) = around.sit_out(&mut heard)
                {
                    return Ok(s);
                }
            }
            match what_next {
                Next::End(status) => {
                    if matches!((&end, &from), (End::NotStarted(_), From::New)) {
                        // Nothing has run: no run is left behind.
                        let _ = std::fs::remove_dir_all(&self.job.dir);
                    }
                    return Ok(status);
                }
                Next::Again => {
                    if let Some(s) = heard.pause(Duration::from_secs(5)) {
                        return Ok(s);
                    }
                    incarnation = RunDir::open(&self.job.dir)?.claim_incarnation()?;
                }
                Next::Restart { scratch } => {
                    // Before the choice: no agent of the former start commits anything behind it (INV-4).
                    incarnation = RunDir::open(&self.job.dir)?.claim_incarnation()?;
                    before.in_a_row += 1;
                    lost_at = Some(Instant::now());
                    before.noticed = scratch;
                    shrunk |= scratch && self.life.is_some();
                    from = match newest(self.job, self.json) {
                        Ok(c) => From::Checkpoint(c.into()),
                        Err(Error::NoCheckpoint(..)) if scratch => From::Beginning,
                        Err(e) => {
                            let text = format!("run {}: no restart: {}", self.job.name, chain(&e));
                            say(self.json, "lost", self.job, &text);
                            return Ok(facts.status.max(1));
                        }
                    };
                    let at = match &from {
                        From::Checkpoint(c) => format!("from checkpoint {}", c.id),
                        _ => "from the beginning: there is no checkpoint".into(),
                    };
                    let text = format!("run {}: restart {at}", self.job.name);
                    say(self.json, "restart", self.job, &text);
                    if let Some(s) = heard.pause(Duration::ZERO) {
                        return Ok(s);
                    }
                }
            }
            if matches!(from, From::New) {
                from = From::Beginning;
            }
        }
    }

    /// What task 0 of this start has told; `None`: it has not come to life.
    fn whereabouts(&self, incarnation: u32) -> Option<Whereabouts> {
        let w: Whereabouts = RunDir::open(&self.job.dir).ok()?.read_json("slurm.json").ok()?;
        (w.incarnation == incarnation).then_some(w)
    }

    /// The verdict; Slurm is asked only where it depends on Slurm.
    fn ask_slurm(&self, mut f: Facts, incarnation: u32) -> (End, Facts) {
        let w = self.whereabouts(incarnation);
        f.started = w.is_some();
        let end = judge(&f);
        let unclear = matches!(end, End::Lost { .. }) || (!is_sure(&f) && matches!(end, End::Ended(_)));
        let id = self.slurm_job(incarnation);
        let (Some(id), true) = (id, self.life.is_some() || unclear) else {
            return (end, f);
        };
        // SIGTERM is how Slurm ends a job; which of its reasons it was shows when the job is complete.
        let patience = Duration::from_secs(if f.status == 143 { 120 } else { 10 });
        let until = Instant::now() + patience;
        loop {
            let view = job::look(self.ask, &id);
            f.preempted = view.as_ref().is_some_and(|v| v.preempted);
            (f.state, f.reason) = view.map(|v| (v.state, v.reason)).unzip();
            let wait = !f.in_allocation && f.state.as_deref() == Some("COMPLETING") && Instant::now() < until;
            if !wait {
                break;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        if let Some(w) = w.as_ref().filter(|_| unclear) {
            f.node_gone = job::is_node_gone(self.ask, &w.nodes);
            // The mark says what a user wanted, whatever has become of the nodes; the data base only how it ended.
            f.cancelled = matches!(judge(&f), End::Lost { .. })
                && (Mark::Cancelled.stands(self.job, incarnation)
                    || !f.node_gone && job::was_cancelled(self.ask, &w.job, &w.step));
        }
        (judge(&f), f)
    }

    /// Slurm's number of the job around us, or of the one that srun has made.
    fn slurm_job(&self, incarnation: u32) -> Option<String> {
        match &self.life {
            Some(l) => Some(l.job.clone()),
            None => self.whereabouts(incarnation).map(|w| w.job),
        }
    }

    /// The same, once the step runs, and the step's if it is one of several in the job.
    fn numbers(&self, incarnation: u32) -> Option<(String, Option<String>)> {
        let step = self.whereabouts(incarnation)?.step;
        Some((self.slurm_job(incarnation)?, self.life.as_ref().map(|_| step)))
    }

    /// The job around us, once the step has ended in it.
    fn around(&self) -> Option<Around<'_>> {
        let index = self.model.index.clone().map(Index);
        self.life.as_ref().map(|life| Around { life, job: self.job, index, ask: self.ask, json: self.json })
    }

    /// Ends a step that srun does not end.
    fn cancel(&self, incarnation: u32) {
        if let Some(w) = self.whereabouts(incarnation) {
            // Never the whole job: it need not be ours alone.
            let _ = (self.ask)("scancel", &[&format!("{}.{}", w.job, w.step)]);
        }
    }

    /// Records and says how a start ended.
    fn tell(&self, end: &End, next: &Next, facts: &Facts, incarnation: u32) -> Result<(), Error> {
        let run = &self.job.name;
        let last = || catalog::last(self.job).map(|c| c.id);
        let (event, text) = match end {
            End::Ended(status) => {
                let ended = Ended { status: *status, incarnation };
                RunDir::open(&self.job.dir)?.write_json(RESULT, &ended)?;
                return Ok(());
            }
            End::Stopped(ckpt) => (
                "stopped",
                format!("run {run} stopped at checkpoint {ckpt}; 'srun --ckpt-restart={run} …' goes on"),
            ),
            End::Interrupted(_) => match interrupted(run, facts.warned, last()) {
                Some(text) => ("interrupted", text),
                None => return Ok(()),
            },
            End::NotStarted(_) if *next == Next::Again => {
                ("again", format!("run {run}: Slurm could not start it; tries again"))
            }
            End::NotStarted(_) => return Ok(()),
            End::Lost { ranks, node, .. } => {
                let with = if *node { " with a node" } else { "" };
                let end = match next {
                    Next::End(_) => format!("; no restart: {IN_A_ROW} without a checkpoint in between"),
                    _ => String::new(),
                };
                let state = facts.state.as_deref().unwrap_or("unknown");
                let text = format!(
                    "run {run}: {} lost{with} (job {}){end}",
                    ranks_text(ranks),
                    state.to_lowercase()
                );
                ("lost", text)
            }
        };
        say(self.json, event, self.job, &text);
        Ok(())
    }
}
