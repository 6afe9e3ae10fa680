//! `ImageDir=DIR` of `scontrol checkpoint`: a checkpoint's copy outside of its run, and the way back.
//!
//! ```text
//!  DIR/5.run-12/run.json        as the run's
//!              /ckpt-000007/…   the checkpoint, under its number
//! ```
//!
//! What a reader would get wrong: it is laid out as a run directory is, so that `stillpoint verify DIR/5.run-12` and
//! `srun --ckpt-restart=DIR/5.run-12 …` take it as one; a restart of the job itself brings the checkpoint back into the run.
//! Runs *next door*.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::Value;
use stillpoint_abi::ids::CkptId;
use stillpoint_storage::run::RunDir;

use crate::catalog;
use crate::error::Error;
use crate::home::Job;

const INFO: &str = "run.json";

/// Where the checkpoints of a job's run lie in `dir`.
fn place(dir: &Path, job: &str, run: &Path) -> PathBuf {
    dir.join(format!("{job}.run-{}", run.file_name().unwrap_or_default().to_string_lossy()))
}

/// Whether there is anything of a run.
fn there(path: &Path) -> Result<bool, Error> {
    let info = path.join(INFO);
    info.try_exists().map_err(Error::io("look for", &info))
}

/// `images`: the directory of one of them.
fn of_one_run(a: &RunDir, b: &RunDir, images: &Path) -> Result<(), Error> {
    let same = a.read_json::<Value>(INFO)? == b.read_json::<Value>(INFO)?;
    if same { Ok(()) } else { Err(Error::ImagesOfAnother(images.to_owned())) }
}

fn is_sound(job: &Job, id: u64) -> bool {
    catalog::find(job, Some(id)).and_then(|c| c.verify(job, &mut catalog::meter(true))).is_ok()
}

/// One file of each rank is open at once.
fn many_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// Copies a checkpoint of a run of `job`'s to `dir`, and returns when it is durable there; where that is.
pub(crate) fn put(dir: &Path, job: &str, run: &Job, id: u64) -> Result<PathBuf, Error> {
    many_files();
    let from = RunDir::open(&run.dir)?;
    let path = place(dir, job, &run.dir);
    let to = RunDir::create(&path)?;
    if there(&path)? {
        of_one_run(&to, &from, &path)?;
    } else {
        to.write_json(INFO, &from.read_json::<Value>(INFO)?)?;
    }
    to.adopt(&from, CkptId(id), &mut || is_sound(&Job::at(&path), id))?;
    File::open(dir).and_then(|d| d.sync_all()).map_err(Error::io("make durable", dir))?;
    Ok(path)
}

/// Brings the newest sound checkpoint in `dir` back into the run, whose next start begins there. `None`: there is nothing of the
/// run in `dir`.
pub(crate) fn take(dir: &Path, job: &str, run: &Path) -> Result<Option<u64>, Error> {
    let path = place(dir, job, run);
    if !there(&path)? {
        return Ok(None);
    }
    many_files();
    let (to, from) = (RunDir::open(run)?, RunDir::open(&path)?);
    of_one_run(&to, &from, &path)?;
    let copy = Job::at(&path);
    let newest = catalog::newest_sound(&copy, &mut |id, why| {
        eprintln!("scontrol: checkpoint {id} in {} cannot be used: {why}", copy.name);
    })?;
    to.adopt(&from, CkptId(newest.id), &mut || is_sound(&Job::at(run), newest.id))?;
    to.begin_at(CkptId(newest.id))?;
    Ok(Some(newest.id))
}
