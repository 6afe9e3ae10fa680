//! The front of scontrol: answers `scontrol checkpoint …`, and hands everything else, as it is, to the real one, the empty
//! command line (scontrol asks for commands then) included.
//!
//! What a reader would get wrong: the owner's run directories are closed to everybody else, so that the permission is the file
//! system's; the question to Slurm is for a message that helps. Root becomes the owner. Runs *next door*.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use rustix::process::geteuid;
use stillpoint_coord::message::JobStatus;
use stillpoint_storage::run::{PAUSED, RunDir};

use crate::catalog;
use crate::checkpoint;
use crate::error::{Error, chain};
use crate::home::{Job, private_file};
use crate::list::age;
use crate::slurm::identity::Index;
use crate::slurm::images;
use crate::slurm::job::{self, Ask, Listed, View, Whereabouts};
use crate::slurm::owner::Owner;
use crate::slurm::request::{Line, Operation, Request, line, parse};
use crate::slurm::scancel::Mark;
use crate::talk;

/// Becomes the real one; comes back only with a failure.
pub(crate) fn pass_on(arg0: &OsStr, name: &str, args: &[OsString]) -> u8 {
    let e = match job::real(OsStr::new(name)) {
        None => Error::NoSlurm(name.into()),
        Some(program) => {
            let source = Command::new(&program).arg0(arg0).args(args).exec();
            Error::Start { what: program.to_string_lossy().into_owned(), source }
        }
    };
    eprintln!("{name}: {}", chain(&e));
    if matches!(e, Error::NoSlurm(_)) { 127 } else { e.code() }
}

/// `scontrol` with these arguments.
pub(crate) fn scontrol(arg0: &OsStr, args: &[OsString]) -> u8 {
    let text: Option<Vec<String>> = args.iter().map(|a| a.to_str().map(str::to_owned)).collect();
    let Some(text) = text else { return pass_on(arg0, "scontrol", args) };
    let Line::Checkpoint { words, cluster, quiet } = line(&text) else {
        return pass_on(arg0, "scontrol", args);
    };
    let ask = |name: &str, args: &[&str]| {
        let front: Vec<&str> =
            cluster.iter().flat_map(|c| ["-M", c.as_str()]).chain(args.iter().copied()).collect();
        job::ask(name, &front)
    };
    let told = match parse(words) {
        Err(why) => Told { out: vec![], err: vec![why], failed: true },
        Ok(request) => Front { request: &request, ask: &ask, cluster: cluster.as_deref(), args }.answer(),
    };
    told.out.iter().for_each(|l| println!("{l}"));
    if !quiet {
        told.err.iter().for_each(|l| eprintln!("scontrol: {l}"));
    }
    u8::from(told.failed)
}

/// What is to be said.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) out: Vec<String>,
    pub(super) err: Vec<String>,
    pub(super) failed: bool,
}

impl Told {
    pub(super) fn fail(&mut self, why: impl Into<String>) {
        self.err.push(why.into());
        self.failed = true;
    }
    pub(super) fn refuse(why: impl Into<String>) -> Told {
        Told { err: vec![why.into()], failed: true, ..Told::default() }
    }
    pub(super) fn add(&mut self, other: Told) {
        self.out.extend(other.out);
        self.err.extend(other.err);
        self.failed |= other.failed;
    }
}

/// What ends with a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// The step.
    Step,
    /// The job: nothing else of it is to be run.
    Job,
}

/// A step that runs under Stillpoint.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// JOB.STEP, as Slurm names it.
    pub(crate) name: String,
    pub(crate) run: Job,
    pub(crate) incarnation: u32,
}

pub(super) struct Front<'a> {
    pub(super) request: &'a Request,
    pub(super) ask: Ask<'a>,
    cluster: Option<&'a str>,
    args: &'a [OsString],
}

impl Front<'_> {
    fn answer(&self) -> Told {
        let jobs = match job::jobs(self.ask, &self.request.job) {
            Ok(jobs) => jobs,
            // Slurm forgets; the run is still there.
            Err(e) if self.request.what == Operation::Restart => {
                let mut told = self.tell_how(&self.request.job);
                told.fail(chain(&e));
                return told;
            }
            Err(e) => return Told::refuse(chain(&e)),
        };
        let mut told = Told::default();
        for listed in jobs {
            let me = geteuid();
            if listed.uid != me.as_raw() {
                match Owner::of(listed.uid) {
                    Some(owner) if me.is_root() => return Told::refuse(owner.does("scontrol", self.args)),
                    owner => {
                        let name = owner.map_or(listed.uid.to_string(), |o| o.name);
                        told.fail(format!("access denied: job {} belongs to {name}", listed.key));
                        continue;
                    }
                }
            }
            told.add(self.one(&listed));
        }
        told
    }

    fn one(&self, listed: &Listed) -> Told {
        let key = &listed.key;
        let view = job::look(self.ask, key).unwrap_or_default();
        if self.request.what == Operation::Restart {
            return self.restart(listed, &view);
        }
        if listed.is_over() || listed.state == "PENDING" {
            return Told::refuse(format!("job {key} is not running ({})", listed.state.to_lowercase()));
        }
        let known = self.known(key);
        let (mut found, mut others) = (vec![], vec![]);
        for step in job::steps(self.ask, key).unwrap_or_default() {
            if self.request.step.as_ref().is_some_and(|s| *s != step) {
                continue;
            }
            let name = format!("{key}.{step}");
            let mut here = known.iter().filter(|w| w.step == step && w.restart_count == view.restarts);
            // Of several indexes one may still know another job of this number.
            match here.find_map(|w| current(w, &name)) {
                Some(f) => found.push(f),
                None => others.push(name),
            }
        }
        // Ranks beside mpirun are in no step with a number.
        for w in known.iter().filter(|w| w.mpirun.is_some() && w.restart_count == view.restarts) {
            let beside = self.request.step.is_none() && found.iter().all(|f| f.run.dir != w.run);
            found.extend(current(w, &format!("{key}.{}", w.step)).filter(|_| beside));
        }
        if found.is_empty() {
            return Told::refuse(match (&self.request.step, others.is_empty()) {
                (Some(s), true) => format!("job {key} has no step {s} that runs"),
                (Some(s), false) => {
                    format!("step {key}.{s} does not run under Stillpoint; it was left alone")
                }
                (None, _) => format!("no step of job {key} runs under Stillpoint; nothing was done"),
            });
        }
        let mut told = Told::default();
        for name in &others {
            told.err.push(format!("step {name} does not run under Stillpoint; it was left alone"));
        }
        told.add(self.act(listed, &view, &found, others.is_empty()));
        told
    }

    /// All steps of a job that ever were announced.
    pub(super) fn known(&self, key: &str) -> Vec<Whereabouts> {
        let Ok(index) = Index::usual() else { return vec![] };
        let mut all = index.announced(key);
        let mut clusters: Vec<String> = all.iter().map(|w| w.cluster.clone()).collect();
        clusters.dedup();
        let mine = self.cluster.map(str::to_owned).or_else(|| {
            let config = if clusters.len() > 1 {
                (self.ask)("scontrol", &["show", "config"]).ok()?
            } else {
                return None;
            };
            let line = config.lines().find(|l| l.trim_start().starts_with("ClusterName"))?;
            Some(line.split_once('=')?.1.trim().to_owned())
        });
        if let Some(c) = mine {
            all.retain(|w| w.cluster == c);
        }
        all
    }

    fn act(&self, listed: &Listed, view: &View, found: &[Found], all_ours: bool) -> Told {
        let key = &listed.key;
        let mut told = Told::default();
        match self.request.what {
            Operation::Able => found.iter().for_each(|f| told.out.push(format!("{}: {}", f.name, able(f)))),
            Operation::Error => {
                found.iter().for_each(|f| told.out.push(format!("{}: {}", f.name, last_error(f))))
            }
            Operation::Disable | Operation::Enable => {
                let off = self.request.what == Operation::Disable;
                for f in found {
                    match forbid(&f.run, off) {
                        Ok(()) => told.out.push(format!(
                            "{}: checkpoints by request and on the interval are {}",
                            f.name,
                            if off { "disabled" } else { "enabled" }
                        )),
                        Err(e) => told.fail(format!("{}: {}", f.name, chain(&e))),
                    }
                }
            }
            Operation::Create => told.add(self.checkpoint(key, found, None)),
            Operation::Vacate => {
                // Of a whole job, the job ends; but not with steps in it that nobody has saved.
                let whole = self.request.step.is_none() && all_ours;
                let stop = if whole { Stop::Job } else { Stop::Step };
                told.add(self.checkpoint(key, found, Some(stop)));
                if whole {
                    if !told.failed {
                        self.wait_for_the_end(key, found);
                    }
                    if !told.failed
                        && let Err(e) = (self.ask)("scancel", &[key])
                    {
                        told.fail(format!("the steps have ended, the job has not: {e}"));
                    }
                    if told.failed {
                        found.iter().for_each(|f| Mark::Vacated.take_away(f));
                    }
                }
            }
            Operation::Requeue => {
                if !(view.batch && view.requeue) {
                    return Told::refuse(format!(
                        "job {key} cannot be requeued: it is {}",
                        if view.batch { "submitted with --no-requeue" } else { "no batch job" }
                    ));
                }
                if !all_ours {
                    return Told::refuse(format!(
                        "job {key} has steps that do not run under Stillpoint, and a requeue would end them; 'scontrol requeue \
                         {key}' does it all the same"
                    ));
                }
                told.add(self.checkpoint(key, found, None));
                if !told.failed {
                    match (self.ask)("scontrol", &["requeue", key]) {
                        Ok(_) => told.out.push(format!("{key}: requeued")),
                        Err(e) => told.fail(format!("the checkpoint stands, the job is not requeued: {e}")),
                    }
                }
            }
            Operation::Restart => {}
        }
        told
    }

    /// Steps that were stopped end by themselves, and say so; but not for long.
    fn wait_for_the_end(&self, key: &str, found: &[Found]) {
        let until = Instant::now() + Duration::from_secs(10);
        let is_there = |steps: &[String]| {
            found
                .iter()
                .any(|f| steps.iter().any(|s| f.name.strip_suffix(s).is_some_and(|n| n.ends_with('.'))))
        };
        while Instant::now() < until && job::steps(self.ask, key).is_ok_and(|steps| is_there(&steps)) {
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Takes a checkpoint of each step, all at once, and waits until they are durable.
    fn checkpoint(&self, key: &str, found: &[Found], stop: Option<Stop>) -> Told {
        /// The marks of a job that is vacated wear off, should this process be gone.
        const AGAIN: Duration = Duration::from_secs(10);
        let mut told = Told::default();
        let mark = || {
            if stop == Some(Stop::Job) {
                found.iter().for_each(|f| Mark::Vacated.put(f));
            }
        };
        mark();
        let (to, from) = channel();
        // By number: two mpiruns beside a job's script have one name.
        let mut open: Vec<usize> = vec![];
        for (n, f) in found.iter().enumerate() {
            if f.run.path(PAUSED).exists() {
                told.fail(format!("{}: checkpoints are disabled (scontrol checkpoint enable)", f.name));
                continue;
            }
            open.push(n);
            let (found, to) = (f.clone(), to.clone());
            let dir = self.request.image_dir.clone().map(|d| (d, key.to_owned()));
            std::thread::spawn(move || {
                let _ = to.send((n, checkpoint_of(&found, stop.is_some(), dir)));
            });
        }
        let until = self.request.max_wait.map(|w| Instant::now() + w);
        while !open.is_empty() {
            let left = until.map_or(Duration::MAX / 4, |u| u.saturating_duration_since(Instant::now()));
            let Ok((n, one)) = from.recv_timeout(left.min(AGAIN)) else {
                if left <= AGAIN {
                    break;
                }
                mark();
                continue;
            };
            open.retain(|o| *o != n);
            told.add(one);
        }
        for name in open.into_iter().map(|n| &found[n].name) {
            let but = if self.request.image_dir.is_some() { ", and is not copied to ImageDir" } else { "" };
            told.fail(format!("{name}: not durable within MaxWait; the checkpoint goes on{but}"));
        }
        told
    }
}

/// Takes one of one step, copies it if it is to lie elsewhere too (in a directory, by the job's name), and waits for both.
fn checkpoint_of(f: &Found, stop: bool, elsewhere: Option<(PathBuf, String)>) -> Told {
    let (name, mut told) = (&f.name, Told::default());
    match checkpoint::ask(&f.run, stop) {
        Ok(Ok(id)) => match elsewhere.map(|(dir, key)| images::put(&dir, &key, &f.run, id)) {
            None => told.out.push(format!("{name}: checkpoint {id}")),
            Some(Ok(path)) => told.out.push(format!("{name}: checkpoint {id} in {}", path.display())),
            Some(Err(e)) => {
                told.fail(format!("{name}: checkpoint {id} stands, but not in ImageDir: {}", chain(&e)));
            }
        },
        Ok(Err(reasons)) => {
            let reasons: Vec<String> = reasons.iter().map(|r| r.escape_debug().to_string()).collect();
            told.fail(format!("{name}: no checkpoint was taken, the step runs on: {}", reasons.join("; ")));
        }
        Err(e) => told.fail(format!("{name}: {}", chain(&e))),
    }
    told
}

/// The run of a step, if the step is the one in which the run is now.
pub(crate) fn current(w: &Whereabouts, name: &str) -> Option<Found> {
    let now: Whereabouts = RunDir::open(&w.run).ok()?.read_json("slurm.json").ok()?;
    let run = Job { name: w.run.file_name()?.to_string_lossy().into_owned(), dir: w.run.clone() };
    // The ranks of one mpirun may be in two steps.
    let step = now.step == w.step || (now.mpirun.is_some() && now.mpirun == w.mpirun);
    let same = now.job == w.job && step && now.incarnation == w.incarnation;
    (same && run.is_running()).then(|| Found { name: name.to_owned(), run, incarnation: w.incarnation })
}

/// While the file is there, nobody is given a checkpoint by request, and an agent that begins takes none on the interval; the one
/// that is at work is told. Those that save a job before its end (`--ckpt-on`) are taken all the same.
fn forbid(run: &Job, off: bool) -> Result<(), Error> {
    let path = run.path(PAUSED);
    if off {
        private_file(&path, false).map(drop).map_err(Error::io("make", &path))?;
    } else {
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("remove", &path)(e)),
            _ => {}
        }
    }
    match talk::pause(run, off) {
        // There is none; the next one looks for the file. Of several nodes one may be there, and only not be reached.
        Err(Error::AgentGone { .. } | Error::NotRunning(_)) if !run.path("roots").is_dir() => Ok(()),
        other => other,
    }
}

fn able(f: &Found) -> String {
    let last = match catalog::last(&f.run) {
        Some(c) => format!("last checkpoint {}, {} ago", c.id, age(c.manifest.time)),
        None => "no checkpoint yet".into(),
    };
    if f.run.path(PAUSED).exists() {
        return format!("No: disabled; {last}");
    }
    match talk::status(&f.run) {
        Err(e) => format!("No: {}; {last}", chain(&e)),
        Ok(JobStatus { ckpt, copying: Some((done, all)), .. }) => {
            let (done, all) = (done >> 20, all >> 20);
            format!("Began: checkpoint {ckpt} is being copied from the nodes, {done} of {all} MiB; {last}")
        }
        Ok(s) if s.ckpt != 0 => format!("Began: checkpoint {} is in progress ({}); {last}", s.ckpt, s.stage),
        Ok(s) if !s.running => format!("No: not all ranks run; {last}"),
        Ok(_) => format!("Yes; {last}"),
    }
}

fn last_error(f: &Found) -> String {
    match talk::status(&f.run) {
        Err(e) => format!("error(1): {}", chain(&e)),
        Ok(s) if s.last_reasons.is_empty() => "error(0):".into(),
        Ok(s) => format!("error(1): {}", s.last_reasons.join("; ").escape_debug()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn forbidden_and_allowed() {
        let dir = std::env::temp_dir().join(format!("stillpoint-cli-forbid-{}", std::process::id()));
        RunDir::create(&dir).unwrap();
        let job = Job { name: "1".into(), dir: dir.clone() };
        // There is no agent to be told; the next one will look.
        forbid(&job, true).unwrap();
        assert!(job.path(PAUSED).exists());
        forbid(&job, false).unwrap();
        forbid(&job, false).unwrap();
        fs::create_dir(job.path("roots")).unwrap();
        assert!(forbid(&job, false).is_err(), "one that is not reached would go on");
        assert!(!job.path(PAUSED).exists());
        fs::remove_dir_all(&dir).unwrap();
    }
}
