//! Which run a step is, and where it begins: a new one, one that an earlier life of the job has made, or the one that
//! `--ckpt-restart` names.
//!
//! What a reader would get wrong: `none` keeps away from what earlier lives have left; losses within this one are restarted all
//! the same. Runs *next door*.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use stillpoint_storage::run::{RunDir, RunInfo};

use crate::catalog::{self, Checkpoint};
use crate::drain;
use crate::error::Error;
use crate::home::{Description, Home, Job, Lock, bytes, path_in, split};
use crate::run::say;
use crate::slurm::args::understand;
use crate::slurm::identity::{Index, Life, digest, streams};
use crate::slurm::job::{self, Ask};

/// How a step has ended (`result.json`): a requeued job does not run it again.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) status: u8,
    pub(crate) incarnation: u32,
}
pub(crate) const RESULT: &str = "result.json";

/// Where a start begins.
#[derive(Debug)]
pub(crate) enum From {
    /// A run that was just made.
    New,
    /// The beginning, in a run that has been started before.
    Beginning,
    Checkpoint(Box<Checkpoint>),
}

impl From {
    pub(crate) fn checkpoint(&self) -> Option<&Checkpoint> {
        match self {
            From::Checkpoint(c) => Some(c),
            _ => None,
        }
    }
}

/// A run that was found or made, and where it begins.
#[derive(Debug)]
pub(crate) struct Chosen {
    pub(crate) job: Job,
    pub(crate) from: From,
    /// Which start it will be.
    pub(crate) incarnation: u32,
    pub(crate) lock: Option<Lock>,
}

/// What is known of a run here and now; `size`: how many ranks, or 0.
pub(crate) fn run_info(words: &[OsString], size: u32, launcher: &[String]) -> Result<RunInfo, Error> {
    let cwd = std::env::current_dir().map_err(Error::io("find", Path::new(".")))?;
    Ok(RunInfo {
        command: words.iter().map(|w| w.to_string_lossy().into_owned()).collect(),
        size,
        // Of a directory whose name is no text, the name changes here; `restart` then says that it is not there.
        cwd: cwd.to_string_lossy().into_owned(),
        launcher: launcher.to_vec(),
        time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
    })
}

/// Of a srun with these arguments.
pub(crate) fn description(args: &[OsString]) -> Result<Description, Error> {
    let words: Vec<OsString> = ["srun".into()].into_iter().chain(args.iter().cloned()).collect();
    Ok(Description {
        info: run_info(&words, 0, &["srun".into()])?,
        argv: bytes(&words),
        slurm: true,
        ..Description::default()
    })
}

/// Finds out which run this is; `around`: the job, and whose standard streams tell twins in it apart. `Err`: one that has ended in an earlier life of the job, with this status.
pub(crate) fn choose(
    home: &Home,
    what: &Description,
    restart: Option<&str>,
    around: Option<(&Index, &Life, u32)>,
    ask: Ask<'_>,
    json: bool,
) -> Result<Result<Chosen, u8>, Error> {
    let place = match around {
        Some((index, life, pid)) => {
            if let Some(view) = job::look(ask, &life.job).filter(|v| v.state != "CONFIGURING") {
                index.begin(life, &view.start)?;
            }
            if let Some(home) = path_in("HOME") {
                index.make_known(&home);
            }
            let mut words = what.argv();
            // The command line of an mpirun is its program's alone: two of them may differ in this only.
            words.extend(what.ranks.map(|n| OsString::from(format!("-n{n}"))));
            let hash = digest(Path::new(&what.info.cwd), &words);
            Some(index.claim(life, &hash, &streams(pid))?)
        }
        None => None,
    };
    let found = place.as_ref().and_then(|p| p.run.as_ref()).filter(|_| restart != Some("none"));
    if let Some(job) = found.and_then(|dir| found_job(home, dir)) {
        if let Ok(ended) = RunDir::open(&job.dir)?.read_json::<Ended>(RESULT) {
            let s = ended.status;
            let text = format!(
                "run {}: this step has ended before the job was requeued; its status was {s}",
                job.name
            );
            say(json, "ended", &job, &text);
            return Ok(Err(s));
        }
        // The one who held it is gone with its node, and the file server may not have noticed; a later start shuts out an
        // earlier one (INV-4).
        let lock = lock_in(&job, Duration::from_secs(5));
        let incarnation = drain::claim(&job, json)?;
        let from = match newest(&job, json) {
            Ok(c) => From::Checkpoint(c.into()),
            Err(Error::NoCheckpoint(..)) => From::Beginning,
            // There are some, and they cannot be read now: to begin anew would be to give them up for good.
            Err(e) => return Err(e),
        };
        let text = match &from {
            From::Checkpoint(c) => format!("run {}: goes on from checkpoint {}", job.name, c.id),
            _ => format!("run {}: there is no checkpoint to go on from; starts from the beginning", job.name),
        };
        say(json, "restart", &job, &text);
        return Ok(Ok(Chosen { job, from, incarnation, lock }));
    }
    let chosen = match restart.filter(|r| *r != "none") {
        Some(name) => {
            let (name, id) = split(name);
            let job = home.job(name)?;
            same_program(&job, what)?;
            // Who has stopped it by a checkpoint a moment ago is still there.
            let lock = lock_in(&job, Duration::from_secs(5)).map_or_else(|| job.lock(), Ok)?;
            let incarnation = drain::claim(&job, json)?;
            let c = match id {
                Some(_) => {
                    let c = catalog::find(&job, id)?;
                    c.verify(&job, &mut catalog::meter(!json))?;
                    c
                }
                None => newest(&job, json)?,
            };
            let _ = std::fs::remove_file(job.path(RESULT));
            say(json, "restart", &job, &format!("run {}: restart from checkpoint {}", job.name, c.id));
            Chosen { job, from: From::Checkpoint(c.into()), incarnation, lock: Some(lock) }
        }
        None => {
            let job = home.create(what)?;
            let lock = job.lock()?;
            if let Some(text) = around.and_then(|(index, life, _)| unlike(index, life)) {
                say(json, "new", &job, &format!("run {}: starts from the beginning: {text}", job.name));
            }
            Chosen { job, from: From::New, incarnation: 0, lock: Some(lock) }
        }
    };
    if let Some(p) = place {
        p.remember(&chosen.job.dir)?;
    }
    Ok(Ok(chosen))
}

/// In a later life of a job, what its former ones have left undone: a step goes on where it had the same command line in the same directory.
fn unlike(index: &Index, life: &Life) -> Option<String> {
    let undone = |run: &PathBuf| {
        let job = Job::at(run);
        catalog::last(&job).is_some() && !job.path(RESULT).exists() && !job.is_running()
    };
    let left = index.left(life).into_iter().filter(undone);
    let mut runs: Vec<String> = left.map(|run| run.display().to_string()).collect();
    runs.sort();
    (!runs.is_empty()).then(|| {
        format!(
            "no step of the job's former lives had this command line in this directory; undone there: {}, with which 'srun \
             --ckpt-restart=RUN …' goes on",
            runs.join(", ")
        )
    })
}

/// What a user wants to be run: behind srun and its options.
fn program(what: &Description) -> Vec<OsString> {
    let words = what.argv();
    let own = if what.slurm { 1 + understand(words.get(1..).unwrap_or_default(), None).own } else { 0 };
    words.get(own..).unwrap_or_default().to_vec()
}

/// A checkpoint goes on with the program it is of, whatever was asked for: so they must be the same.
fn same_program(job: &Job, what: &Description) -> Result<(), Error> {
    let (have, want) = (program(&job.description()?), program(what));
    if have == want {
        return Ok(());
    }
    let text = |words: &[OsString]| -> String {
        let words: Vec<_> = words.iter().map(|w| w.to_string_lossy().escape_debug().to_string()).collect();
        words.join(" ")
    };
    Err(Error::OtherProgram { run: job.name.clone(), have: text(&have), want: text(&want) })
}

/// A run by its directory; named by its number where that is enough to find it.
fn found_job(home: &Home, dir: &Path) -> Option<Job> {
    let number = dir.file_name().and_then(|n| n.to_str()).filter(|_| dir.parent() == Some(&home.0));
    home.job(number.or_else(|| dir.to_str())?).ok()
}

fn lock_in(job: &Job, patience: Duration) -> Option<Lock> {
    let until = Instant::now() + patience;
    loop {
        match job.lock() {
            Ok(l) => return Some(l),
            Err(_) if Instant::now() >= until => return None,
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// The newest checkpoint that is sound and that the run has passed through.
pub(crate) fn newest(job: &Job, json: bool) -> Result<Checkpoint, Error> {
    let skip =
        &mut |id, why: &str| say(json, "skipped", job, &format!("checkpoint {id} cannot be used: {why}"));
    catalog::newest_sound(job, skip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_of_another_program_is_refused() {
        let home = Home(std::env::temp_dir().join(format!("stillpoint-cli-choose-{}", std::process::id())));
        let words = |t: &str| t.split_whitespace().map(OsString::from).collect::<Vec<_>>();
        let srun = |t: &str| description(&words(t)).unwrap();
        let mpirun = |t: &str| Description { argv: bytes(&words(t)), ..Description::default() };
        let job = home.create(&srun("-N2 -n 4 --mpi=pmix ./a in.dat")).unwrap();
        // Other nodes, another partition: what Slurm makes of it is not the program.
        for same in [srun("-n4 -p other ./a in.dat"), mpirun("./a in.dat")] {
            same_program(&job, &same).unwrap();
        }
        for other in
            [srun("-n 4 ./a"), srun("-n4 ./b in.dat"), mpirun("./a in.data"), mpirun("-n4 ./a in.dat")]
        {
            let e = same_program(&job, &other).unwrap_err().to_string();
            assert!(e.starts_with("run 1 is of ./a in.dat, not of "), "{e}");
        }
        std::fs::remove_dir_all(&home.0).unwrap();
    }
}
