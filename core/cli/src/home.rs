//! Where jobs live: one directory a job, named by a number, and in it `run.json`, which says how to start the job
//! again.
//!
//! ```text
//!  <home>/12/run.json        written once by `run`
//!           lock             held (flock) as long as a `run` or `restart` works on the job
//!           agent.sock       the agent's, while it lives
//!           outcome.json     the agent's: how the ranks ended
//!           stdin            standard input, spooled
//!           agent.log        the agent's; history.jsonl: a line a commit and a restart, for people
//!           ckpt-NNNNNN/ …   and what else the store keeps there
//!           starts/NNNNNN.json  where a start began, and what the tasks of srun are told of it
//!  of srun: begin.json       where the next start is to begin (ImageDir=); of a mpirun in a job: keeper.log, saved.json
//!           slurm.json       in which step it is, told by task 0
//!           result.json      how the step has ended: a requeued job does not run it again
//!           disabled         `scontrol checkpoint disable`; cancelled: `scancel JOB.STEP` was here
//!  <home>/NAME/              a job of ranks that are started by hand (`byhand`), with ranks/ and turn besides
//!  <home>/slurm/             which run belongs to which job
//! ```
//!
//! What a reader would get wrong: whether a job runs is told by the lock, never by a process id in a file. Runs *next door*.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};
use serde::{Deserialize, Serialize};
use stillpoint_storage::run::RunInfo;

use crate::error::Error;

/// The directory that holds the jobs.
#[derive(Debug)]
pub(crate) struct Home(pub(crate) PathBuf);

/// How to start a job: what the store's `RunInfo` holds, and more. Arguments are bytes: they need not be text.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Description {
    #[serde(flatten)]
    pub(crate) info: RunInfo,
    pub(crate) argv: Vec<Vec<u8>>,
    /// What `-n` said; `None`: one process without a launcher, unless one is given.
    pub(crate) ranks: Option<u32>,
    /// What `--launcher` said.
    pub(crate) launch_with: Option<String>,
    /// Seconds.
    pub(crate) interval: Option<f64>,
    /// The interval is found, where a node is lost every so many hours.
    #[serde(default)]
    pub(crate) auto: Option<f64>,
    pub(crate) restarts: u32,
    /// Directory of each node for images on their way to the job's.
    #[serde(default)]
    pub(crate) burst: Option<PathBuf>,
    /// Started by srun under Slurm's care; `argv` is srun's whole command line.
    #[serde(default)]
    pub(crate) slurm: bool,
    /// Its ranks are started by hand, each by an `exec --job`.
    #[serde(default)]
    pub(crate) by_hand: bool,
    /// How many checkpoints are kept.
    #[serde(default)]
    pub(crate) keep: Option<u32>,
}

impl Description {
    pub(crate) fn argv(&self) -> Vec<OsString> {
        self.argv.iter().cloned().map(OsString::from_vec).collect()
    }
    /// The command for people: control characters are escaped.
    pub(crate) fn title(&self) -> String {
        let words: Vec<String> =
            self.argv.iter().map(|w| String::from_utf8_lossy(w).escape_debug().to_string()).collect();
        words.join(" ")
    }
}

/// One job.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) name: String,
    pub(crate) dir: PathBuf,
}

/// Held while a job is being run; let go when it is dropped, also by a kill.
#[derive(Debug)]
pub(crate) struct Lock(#[allow(dead_code, reason = "held for its drop")] File);

pub(crate) fn private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}

/// Opens a file for writing that nobody else can read, never through a link.
pub(crate) fn private_file(path: &Path, fresh: bool) -> io::Result<File> {
    let mut o = OpenOptions::new();
    o.write(true).mode(0o600).custom_flags(OFlags::NOFOLLOW.bits() as i32);
    if fresh {
        o.create_new(true)
    } else {
        o.create(true).truncate(false)
    };
    o.open(path)
}

/// The default home, from the user's.
pub(crate) const BELOW_HOME: &str = ".local/state/stillpoint";

/// What a variable names; `None` if it is not set, or empty.
pub(crate) fn path_in(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|v| !v.is_empty()).map(PathBuf::from)
}

impl Home {
    /// The directory given, or STILLPOINT_DIR, or the default.
    pub(crate) fn find(given: Option<PathBuf>) -> Result<Home, Error> {
        match given.or_else(|| path_in("STILLPOINT_DIR")) {
            Some(dir) => Home::at(&dir),
            None => Home::usual(),
        }
    }

    /// The default, where it is looked for by who knows only the user.
    pub(crate) fn usual() -> Result<Home, Error> {
        let state = path_in("XDG_STATE_HOME").filter(|p| p.is_absolute()).map(|p| p.join("stillpoint"));
        let dir = state.or_else(|| path_in("HOME").map(|h| h.join(BELOW_HOME))).ok_or(Error::NoHome)?;
        Home::at(&dir)
    }

    fn at(dir: &Path) -> Result<Home, Error> {
        // The ranks may change their working directory, so the path must not depend on ours.
        let dir = std::path::absolute(dir).map_err(Error::io("resolve", dir))?;
        Ok(Home(dir))
    }

    /// Makes the directory of a new job, numbered behind all others.
    pub(crate) fn create(&self, d: &Description) -> Result<Job, Error> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0).map_err(Error::io("make", &self.0))?;
        let mut n = self.jobs()?.iter().filter_map(|j| j.name.parse::<u64>().ok()).max().unwrap_or(0) + 1;
        let job = loop {
            let dir = self.0.join(n.to_string());
            match private_dir(&dir) {
                Ok(()) => break Job { name: n.to_string(), dir },
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => n += 1,
                Err(e) => return Err(Error::io("make", &dir)(e)),
            }
        };
        job.describe(d)?;
        Ok(job)
    }

    /// All jobs, in the order of their numbers.
    pub(crate) fn jobs(&self) -> Result<Vec<Job>, Error> {
        let entries = match fs::read_dir(&self.0) {
            Ok(e) => e,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
            Err(e) => return Err(Error::io("list", &self.0)(e)),
        };
        let mut jobs: Vec<(u64, Job)> = entries
            .filter_map(|e| {
                let e = e.ok()?;
                let name = e.file_name().into_string().ok()?;
                let n = name.parse().ok()?;
                e.file_type().ok()?.is_dir().then(|| (n, Job { name, dir: e.path() }))
            })
            .collect();
        jobs.sort_by_key(|(n, _)| *n);
        Ok(jobs.into_iter().map(|(_, j)| j).collect())
    }

    /// The job of this name; a path of a job's directory will do too.
    pub(crate) fn job(&self, name: &str) -> Result<Job, Error> {
        let number = !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit());
        let named = !name.is_empty() && !name.contains('/') && self.0.join(name).join("run.json").is_file();
        let dir = if number || named { self.0.join(name) } else { PathBuf::from(name) };
        let dir = std::path::absolute(&dir).unwrap_or(dir);
        if dir.join("run.json").is_file() {
            Ok(Job { name: name.to_owned(), dir })
        } else {
            Err(Error::NoJob(name.to_owned(), self.0.clone()))
        }
    }

    /// The job of this name, or the newest.
    pub(crate) fn job_or_newest(&self, name: Option<&str>) -> Result<Job, Error> {
        match name {
            Some(n) => self.job(n),
            None => self.jobs()?.pop().ok_or_else(|| Error::NoJob("at all".into(), self.0.clone())),
        }
    }
}

/// Splits JOB@ID.
pub(crate) fn split(job: &str) -> (&str, Option<u64>) {
    match job.rsplit_once('@') {
        Some((j, id)) if id.parse::<u64>().is_ok() => (j, id.parse().ok()),
        _ => (job, None),
    }
}

impl Job {
    /// The one in this directory, which is its name too.
    pub(crate) fn at(dir: &Path) -> Job {
        Job { name: dir.to_string_lossy().into_owned(), dir: dir.to_owned() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn describe(&self, d: &Description) -> Result<(), Error> {
        let path = self.path("run.json");
        let mut text = serde_json::to_vec_pretty(d).map_err(|e| Error::Description(path.clone(), e))?;
        text.push(b'\n');
        private_file(&path, true).and_then(|mut f| f.write_all(&text)).map_err(Error::io("write", &path))
    }

    pub(crate) fn description(&self) -> Result<Description, Error> {
        let path = self.path("run.json");
        let text = fs::read(&path).map_err(Error::io("read", &path))?;
        serde_json::from_slice(&text).map_err(|e| Error::Description(path, e))
    }

    /// Takes the job's lock, or says that the job is running.
    pub(crate) fn lock(&self) -> Result<Lock, Error> {
        let path = self.path("lock");
        let file = private_file(&path, false).map_err(Error::io("open", &path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Lock(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::Running(self.name.clone())),
            Err(e) => Err(Error::io("lock", &path)(e.into())),
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        // Only a look: a shared lock fails while the runner holds its own.
        File::open(self.path("lock")).is_ok_and(|f| {
            flock(&f, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
        })
    }
}

/// Bytes of an argument, for [`Description::command`].
pub(crate) fn bytes(words: &[OsString]) -> Vec<Vec<u8>> {
    words.iter().map(|w| w.as_bytes().to_vec()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn temp(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("stillpoint-cli-{}-{name}", std::process::id()))
    }

    #[test]
    fn jobs_are_numbered_private_and_locked() {
        let home = Home(temp("home"));
        let d =
            Description { argv: vec![b"./a\xff".to_vec()], interval: Some(0.5), ..Description::default() };
        let (a, b) = (home.create(&d).unwrap(), home.create(&d).unwrap());
        assert_eq!((a.name.as_str(), b.name.as_str()), ("1", "2"));
        use std::os::unix::fs::PermissionsExt;
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&a.dir), mode(&a.path("run.json"))), (0o700, 0o600));
        assert_eq!(home.job("2").unwrap().description().unwrap().argv, d.argv);
        assert!(matches!(home.job("3"), Err(Error::NoJob(..))));
        assert!(!a.is_running());
        let lock = a.lock().unwrap();
        assert!(a.is_running() && matches!(a.lock(), Err(Error::Running(_))));
        drop(lock);
        assert!(a.lock().is_ok());
        fs::remove_dir_all(&home.0).unwrap();
    }

    #[test]
    fn job_and_id() {
        assert_eq!(split("3@12"), ("3", Some(12)));
        assert_eq!(split("3"), ("3", None));
        assert_eq!(split("/x@y"), ("/x@y", None));
    }
}
