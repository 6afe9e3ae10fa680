//! `exec --job NAME --np N`: ranks of one job that are started by hand, on whatever nodes, without a launcher. They meet in
//! `<home>/NAME`, which all nodes share, and are numbered in the order in which they come.
//!
//! ```text
//!  <home>/NAME/run.json           written by the first to come
//!              restarts/000002    claimed by the first that goes on from a checkpoint (made new, as all claims here: locks may hold
//!                                 on one node only, Lustre's `localflock`)
//!              starts/000002.json from which; the others wait for it
//!              ranks/000000/1     rank 1 of start 0: where it was started, and what
//!              ranks/000002/0     of the start after the second restart
//! ```
//!
//! What a reader would get wrong: nobody watches these ranks and starts them again. `--restart` begins the next start for
//! the first that says it, and lets the others in; it must be said once for each rank, by hand, as at first.
//! Runs *next door* until the exec.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use stillpoint_coord::message::Presence;
use stillpoint_storage::run::{RunDir, host, list_now};

use crate::error::Error;
use crate::exec::{self, LOCAL_BASE};
use crate::home::{Description, Home, Job, bytes, private_file};
use crate::run::{every, rhythm};
use crate::slurm::choose::{newest, run_info};
use crate::slurm::start::StartFile;
use crate::slurm::task::local_dir;
use crate::{catalog, drain, talk};

/// Which rank of which job this is to be.
#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    /// Name of a job whose ranks are started by hand, each by an exec of its own, on nodes that share the directory of jobs.
    #[arg(long, value_name = "NAME", requires = "np")]
    job: Option<String>,
    /// Number of its ranks.
    #[arg(long, value_name = "N", requires = "job")]
    np: Option<u32>,
    /// Which rank this is [default: the first that nobody is].
    #[arg(long, requires = "job")]
    rank: Option<u32>,
    /// Go on from the job's last checkpoint, as the rank that this is.
    #[arg(long, requires = "job")]
    pub(crate) restart: bool,
    /// Time between checkpoints, or auto; the first rank's counts.
    #[arg(long, value_name = "DUR|auto", requires = "job")]
    interval: Option<String>,
}

impl JobArgs {
    /// A rank is started by hand.
    pub(crate) fn by_hand(&self) -> bool {
        self.job.is_some()
    }
}

/// What is known of a rank that has come.
#[derive(Debug, Serialize)]
struct Come {
    host: String,
    pid: u32,
    command: Vec<String>,
}

/// A start of a job, and this rank's place in it.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    incarnation: u32,
    rank: u32,
}

/// How long a call waits for another one that has begun a start, and chooses its checkpoint.
const BEGINS: Duration = Duration::from_secs(60);

/// Becomes the rank; returns only when that fails.
pub(crate) fn exec(
    home: &Home,
    args: &JobArgs,
    burst: Option<&Path>,
    command: &[OsString],
    json: bool,
) -> Error {
    match begin(home, args, burst, command, json) {
        Ok((environment, claimed)) => {
            let failed = exec::exec_in(command, &environment);
            // Nobody is this rank.
            let _ = std::fs::remove_file(claimed);
            failed
        }
        Err(e) => e,
    }
}

type Environment = Vec<(&'static str, Option<OsString>)>;

fn begin(
    home: &Home,
    args: &JobArgs,
    burst: Option<&Path>,
    command: &[OsString],
    json: bool,
) -> Result<(Environment, PathBuf), Error> {
    let (name, size) = (args.job.as_deref().unwrap_or_default(), args.np.unwrap_or(0));
    if size == 0 {
        return Err(Error::NoRanks);
    }
    if let Some(rank) = args.rank.filter(|r| *r >= size) {
        return Err(Error::ByHand(format!("there is no rank {rank} among {size}: ranks count from 0")));
    }
    let job = if args.restart { home.job(name)? } else { found_or_made(home, name, size, args, command)? };
    let what = job.description()?;
    if !what.by_hand {
        return Err(Error::ByHand(format!(
            "job {name} was not started by hand; 'stillpoint restart {name}'"
        )));
    }
    if what.ranks != Some(size) {
        let have = what.ranks.unwrap_or(1);
        return Err(Error::ByHand(format!("job {name} has {have} ranks, not {size}")));
    }
    // On one node this is not needed, but where the others will be nobody knows yet.
    let base = std::env::var_os(LOCAL_BASE).filter(|v| !v.is_empty()).map_or("/tmp".into(), PathBuf::from);
    let local =
        if base.as_os_str() == "none" { None } else { Some(local_dir(&base, &job.dir)?.into_os_string()) };
    let place = claim(&job, args, size, command, json)?;
    let claimed = folder(&job, place.incarnation).join(place.rank.to_string());
    let start = StartFile::read(&job.dir, place.incarnation)?;
    let [interval, mtbf] = rhythm(start.interval, start.auto, size);
    let environment = vec![
        ("STILLPOINT_RUN", Some(job.dir.clone().into())),
        ("STILLPOINT_INCARNATION", Some(place.incarnation.to_string().into())),
        ("STILLPOINT_RANK", Some(place.rank.to_string().into())),
        ("STILLPOINT_SIZE", Some(size.to_string().into())),
        ("STILLPOINT_INTERVAL", interval.map(Into::into)),
        ("STILLPOINT_MTBF", mtbf.map(Into::into)),
        ("STILLPOINT_RESTART", start.restart.clone().map(Into::into)),
        (
            "STILLPOINT_BURST",
            burst.map(|b| b.as_os_str().to_owned()).or_else(|| std::env::var_os("STILLPOINT_BURST")),
        ),
        ("STILLPOINT_LOCAL", local),
        ("STILLPOINT_STDIN", None),
        (LOCAL_BASE, None),
    ];
    Ok((environment, claimed))
}

fn found_or_made(
    home: &Home,
    name: &str,
    size: u32,
    args: &JobArgs,
    command: &[OsString],
) -> Result<Job, Error> {
    let letter = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let good = name.bytes().all(letter) && name.starts_with(|c: char| c.is_ascii_alphabetic());
    if !good || name.len() > 64 || name == "slurm" {
        return Err(Error::ByHand(format!(
            "{name:?} is no name for a job: a letter, then up to 63 letters, digits, '.', '_' or '-'"
        )));
    }
    let (interval, auto) = every(args.interval.as_deref(), None)?;
    let what = Description {
        info: run_info(command, size, &[])?,
        argv: bytes(command),
        ranks: Some(size),
        interval,
        auto,
        by_hand: true,
        ..Description::default()
    };
    home.named(name, &what)
}

/// Takes a rank, of a start that this call begins if there is none to take one of.
fn claim(job: &Job, args: &JobArgs, size: u32, command: &[OsString], json: bool) -> Result<Place, Error> {
    let come = Come {
        host: host(),
        pid: std::process::id(),
        command: command.iter().map(|w| w.to_string_lossy().into_owned()).collect(),
    };
    let until = Instant::now() + BEGINS;
    loop {
        let incarnation = if args.restart {
            match start_again(job, args, size, Instant::now() < until, json)? {
                Some(begun) => begun,
                None => {
                    std::thread::sleep(Duration::from_millis(100));
                    continue;
                }
            }
        } else {
            first_start(job, args, size)?
        };
        let Some(rank) = free(job, incarnation, size, args.rank)? else { continue };
        let path = folder(job, incarnation).join(rank.to_string());
        let text = serde_json::to_vec(&come).map_err(|e| Error::Description(path.clone(), e))?;
        match private_file(&path, true).and_then(|mut f| f.write_all(&text)) {
            Ok(()) => return Ok(Place { incarnation, rank }),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(Error::io("write", &path)(e)),
        }
    }
}

/// The start without a checkpoint, if there is a rank left in it.
fn first_start(job: &Job, args: &JobArgs, size: u32) -> Result<u32, Error> {
    if RunDir::open(&job.dir)?.incarnation()? != 0 || free(job, 0, size, args.rank)?.is_none() {
        let which = args.rank.map_or_else(|| "all its ranks".into(), |r| format!("its rank {r}"));
        return Err(Error::ByHand(format!(
            "job {} has {which} already; --restart goes on from its last checkpoint, and another job wants another name",
            job.name
        )));
    }
    if !job.path("starts").join("000000.json").exists() {
        let what = job.description()?;
        StartFile { interval: what.interval, auto: what.auto, ..StartFile::default() }.write(job)?;
    }
    Ok(0)
}

/// The start from a checkpoint that waits for ranks, or a new one. `None`: look again; another call is about to begin one.
fn start_again(
    job: &Job,
    args: &JobArgs,
    size: u32,
    patient: bool,
    json: bool,
) -> Result<Option<u32>, Error> {
    let last = RunDir::open(&job.dir)?.incarnation()?;
    // As it is now, also on a network file system.
    list_now(&job.path("starts"))?;
    match StartFile::read(&job.dir, last) {
        Ok(s) => {
            let joins =
                s.restart.is_some() && free(job, last, size, args.rank)?.is_some() && !is_over(job, last);
            if joins { Ok(Some(last)) } else { begin_again(job, last, json) }
        }
        // Claimed, and the checkpoint is being chosen; or that came to nothing.
        Err(_) if patient && last > 0 => Ok(None),
        Err(_) => begin_again(job, last, json),
    }
}

fn folder(job: &Job, incarnation: u32) -> PathBuf {
    job.path("ranks").join(format!("{incarnation:06}"))
}

/// A rank that nobody is in this start: the one that is wanted, or the first.
fn free(job: &Job, incarnation: u32, size: u32, wanted: Option<u32>) -> Result<Option<u32>, Error> {
    let dir = folder(job, incarnation);
    std::fs::create_dir_all(&dir).map_err(Error::io("make", &dir))?;
    let taken: Vec<u32> = list_now(&dir)?.iter().filter_map(|n| n.parse().ok()).collect();
    Ok(match wanted {
        Some(rank) => (!taken.contains(&rank)).then_some(rank),
        None => (0..size).find(|r| !taken.contains(r)),
    })
}

/// Ranks of the newest start that are there, or away for a moment.
fn here(job: &Job, incarnation: u32) -> Vec<u32> {
    let Ok(status) = talk::status(job) else { return Vec::new() };
    let there = |p: Presence, pid: u32| p == Presence::Here || (p == Presence::Absent && pid != 0);
    let here = (0..).zip(&status.ranks).filter(|(_, (presence, pid))| there(*presence, *pid));
    if status.incarnation == incarnation { here.map(|(n, _)| n).collect() } else { Vec::new() }
}

/// Whether any rank is there.
pub(crate) fn runs(job: &Job) -> bool {
    RunDir::open(&job.dir).and_then(|run| run.incarnation()).is_ok_and(|last| !here(job, last).is_empty())
}

/// A start of which ranks have been lost, or have ended.
fn is_over(job: &Job, incarnation: u32) -> bool {
    let live = talk::outcome(job).ok();
    let outcome = live.or_else(|| RunDir::open(&job.dir).ok()?.read_json("outcome.json").ok());
    outcome.is_some_and(|o: stillpoint_coord::message::JobOutcome| {
        o.incarnation == incarnation && (o.ended || !o.lost.is_empty() || !o.exited.is_empty())
    })
}

/// The start after `last`, from the newest checkpoint. `None`: another call has begun it.
fn begin_again(job: &Job, last: u32, json: bool) -> Result<Option<u32>, Error> {
    let mut still = here(job, last);
    // Its agent may be about to notice.
    let until = Instant::now() + Duration::from_secs(3);
    while !still.is_empty() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(100));
        still = here(job, last);
    }
    if !still.is_empty() {
        let all: Vec<String> = still.iter().map(u32::to_string).collect();
        return Err(Error::ByHand(format!(
            "job {} still runs (rank {}); end what is left of it first, or its output would be mixed",
            job.name,
            all.join(", ")
        )));
    }
    if catalog::list(job).is_empty() {
        return Err(Error::NoCheckpoint(job.name.clone(), String::new()));
    }
    // Before the choice: from here on no agent of the former start commits anything (INV-4).
    drain::wait(job, json);
    let incarnation = last + 1;
    if !RunDir::open(&job.dir)?.claim(incarnation)? {
        return Ok(None);
    }
    let from = newest(job, json)?;
    let what = job.description()?;
    let start = StartFile { incarnation, interval: what.interval, auto: what.auto, ..StartFile::default() };
    start.at(Some(&from)).write(job)?;
    Ok(Some(incarnation))
}

impl Home {
    /// The job of this name, made if it is not there; of several that make it, one does.
    fn named(&self, name: &str, what: &Description) -> Result<Job, Error> {
        let job = Job { name: name.to_owned(), dir: self.0.join(name) };
        if job.path("run.json").is_file() {
            return Ok(job);
        }
        let new = self.create(what)?;
        match std::fs::rename(&new.dir, &job.dir) {
            Ok(()) => Ok(job),
            Err(e) => {
                let _ = std::fs::remove_dir_all(&new.dir);
                let there =
                    matches!(e.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists);
                if there && job.path("run.json").is_file() {
                    Ok(job)
                } else {
                    Err(Error::io("make", &job.dir)(e))
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home(name: &str) -> Home {
        Home(std::env::temp_dir().join(format!("stillpoint-cli-byhand-{}-{name}", std::process::id())))
    }

    fn args(rank: Option<u32>, restart: bool) -> JobArgs {
        JobArgs { job: Some("pair".into()), np: Some(2), rank, restart, interval: None }
    }

    fn come(home: &Home, args: &JobArgs) -> Result<(String, String), Error> {
        let (e, _) = begin(home, args, None, &["./a".into()], false)?;
        let of = |name: &str| {
            let value = e.iter().find(|(n, _)| *n == name).and_then(|(_, v)| v.clone());
            value.map_or_else(String::new, |v| v.into_string().unwrap())
        };
        Ok((of("STILLPOINT_RANK"), of("STILLPOINT_SIZE")))
    }

    #[test]
    fn ranks_are_numbered_as_they_come_or_as_they_wish() {
        let h = home("come");
        assert_eq!(come(&h, &args(None, false)).unwrap(), ("0".into(), "2".into()));
        assert!(come(&h, &args(Some(0), false)).unwrap_err().to_string().contains("its rank 0 already"));
        assert_eq!(come(&h, &args(Some(1), false)).unwrap().0, "1");
        let e = come(&h, &args(None, false)).unwrap_err().to_string();
        assert!(e.contains("all its ranks already; --restart"), "{e}");
        assert_eq!(h.jobs().unwrap().len(), 0, "no number is used up");
        std::fs::remove_dir_all(&h.0).unwrap();
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let h = home("fit");
        come(&h, &args(None, false)).unwrap();
        let three = JobArgs { np: Some(3), ..args(None, false) };
        assert!(come(&h, &three).unwrap_err().to_string().contains("has 2 ranks, not 3"));
        assert!(come(&h, &args(Some(2), false)).unwrap_err().to_string().contains("no rank 2 among 2"));
        assert!(matches!(come(&h, &args(None, true)), Err(Error::NoCheckpoint(..) | Error::NoneUsable(_))));
        for bad in ["", "7", "slurm", "a/b", ".x", "a b"] {
            let named = JobArgs { job: Some(bad.into()), ..args(None, false) };
            assert!(come(&h, &named).is_err(), "{bad}");
        }
        std::fs::remove_dir_all(&h.0).unwrap();
    }
}
