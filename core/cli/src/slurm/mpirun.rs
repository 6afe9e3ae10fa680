//! `stillpoint-mpirun-task`: what Open MPI's mpirun and orted start in a rank's place, inside a job that asks for checkpoints.
//! Waits for the run and its start that the keeper ([`super::keeper`], started here by rank 0) writes down for this mpirun,
//! and becomes `stillpoint-rank`.
//!
//! ```text
//!  batch script ── mpirun ─┬─ stillpoint-mpirun-task (rank 0) ──▶ stillpoint-rank
//!                          │     └ stillpoint slurm-mpirun, nobody's child: claims, writes INDEX/JOB/mpirun-TOKEN
//!                          └─ srun orted ── stillpoint-mpirun-task (rank 2) reads it ──▶ stillpoint-rank
//! ```
//!
//! What a reader would get wrong: there is no supervisor in front of mpirun, so nothing is started over within the allocation;
//! a requeued job runs the same line again, and that goes on. And the program is executed as it is where it is no rank of a job's own
//! mpirun: a child of MPI_Comm_spawn, or a mpirun outside of Slurm. Runs *next door* until the exec.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::{Error, chain};
use crate::exec::{self, which};
use crate::slurm::identity::{Index, Life, short_hash};
use crate::slurm::job::Whereabouts;
use crate::slurm::start::StartFile;
use crate::slurm::task::{environment, local, spooled_input};

/// The name under which this program is a rank of mpirun.
pub(crate) const NAME: &str = "stillpoint-mpirun-task";
/// Open MPI's variable that names us.
pub(crate) const AGENT: &str = "OMPI_MCA_orte_fork_agent";
/// The plugin's: options, with [`BETWEEN`] between the words.
pub(crate) const OPTIONS: &str = "STILLPOINT_MPIRUN";
const BETWEEN: u8 = 0x1f;
/// What a process has that MPI_Comm_spawn has made.
const SPAWNED: &str = "OMPI_PARENT_PORT";
/// How long the claim of the run may take: every byte of a checkpoint is read before it is used.
const CLAIM: Duration = Duration::from_secs(1800);

/// Whether Open MPI's variable names us, and not somebody else's agent.
pub(crate) fn is_agent() -> bool {
    std::env::var_os(AGENT).is_some_and(|v| Path::new(&v).file_name().is_some_and(|n| n == NAME))
}

/// The value of one of the options that the plugin has left for this job.
pub(crate) fn option(name: &str) -> Option<OsString> {
    let words = words(&std::env::var_os(OPTIONS)?);
    let at = words.iter().position(|w| w == name)?;
    words.get(at + 1).cloned()
}

/// What the keeper has found out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Answer {
    /// This start of this run.
    Start { run: PathBuf, incarnation: u32 },
    /// It has ended in an earlier life of the job, with this status.
    Ended(u8),
    /// It cannot be started; why.
    Refused(String),
}

/// One rank of one mpirun in a job.
#[derive(Debug, PartialEq)]
pub(crate) struct Member {
    pub(crate) life: Life,
    /// The same for all ranks of this mpirun, and for no other.
    pub(crate) token: String,
    pub(crate) rank: u32,
    pub(crate) size: u32,
    nodes: u32,
    /// The first of this mpirun on its node.
    first_here: bool,
}

impl Member {
    /// From a rank's environment; `None`: not one that we care for.
    pub(crate) fn of(var: impl Fn(&str) -> Option<OsString>) -> Option<Member> {
        let text = |n: &str| var(n).and_then(|v| v.into_string().ok()).filter(|v| !v.is_empty());
        let number = |n: &str| text(n).and_then(|v| v.parse::<u32>().ok());
        let life = Life::around(&var)?;
        // Made by MPI_Comm_spawn: it belongs to those who made it.
        if var(SPAWNED).is_some() {
            return None;
        }
        // The name of the job is made of mpirun's process id, which comes again; the keys of its transports are random.
        let name = [
            text("PMIX_NAMESPACE")?,
            text("OMPI_MCA_orte_precondition_transports")?,
            life.number.to_string(),
        ];
        Some(Member {
            token: short_hash(name.join("\n").as_bytes()),
            life,
            rank: number("OMPI_COMM_WORLD_RANK")?,
            size: number("OMPI_COMM_WORLD_SIZE")?,
            nodes: number("OMPI_MCA_orte_num_nodes").unwrap_or(1),
            first_here: number("OMPI_COMM_WORLD_LOCAL_RANK") == Some(0),
        })
    }

    /// The keeper's answer, in the directory of the job.
    pub(crate) fn answer(&self) -> String {
        format!("mpirun-{}", self.token)
    }
}

/// What this rank becomes.
enum Becomes {
    /// The program, without us.
    Plain,
    Rank(Vec<(&'static str, Option<OsString>)>),
    /// Nothing: this was done in an earlier life of the job.
    Done(u8),
}

pub(crate) fn main(args: &[OsString]) -> ExitCode {
    let e = match begin(args) {
        Ok(Becomes::Plain) => plain(args),
        Ok(Becomes::Rank(environment)) => exec::exec_in(args, &environment),
        Ok(Becomes::Done(status)) => return ExitCode::from(status),
        Err(e) => e,
    };
    // One rank's words are enough, where all have the same to say.
    if !matches!(e, Error::Claim(_)) || std::env::var_os("OMPI_COMM_WORLD_RANK").is_none_or(|r| r == "0") {
        eprintln!("{NAME}: {}", chain(&e));
    }
    ExitCode::from(e.code())
}

fn plain(args: &[OsString]) -> Error {
    let name = args.first().map_or(OsStr::new(""), |n| n);
    let Some(program) = which(name) else { return Error::NotFound(name.to_string_lossy().into_owned()) };
    let mut c = Command::new(program);
    c.arg0(name).args(&args[1..]).env_remove(AGENT).env_remove(OPTIONS);
    Error::Start { what: name.to_string_lossy().into_owned(), source: c.exec() }
}

fn begin(args: &[OsString]) -> Result<Becomes, Error> {
    let var = |n: &str| std::env::var_os(n).filter(|v| !v.is_empty());
    let Some(options) = var(OPTIONS) else { return Ok(Becomes::Plain) };
    let Some(member) = Member::of(var) else {
        if var(SPAWNED).is_none() && var("OMPI_COMM_WORLD_RANK").is_none_or(|r| r == "0") {
            eprintln!(
                "{NAME}: no checkpoints of this mpirun: it does not tell its ranks all that Open MPI 4 does"
            );
        }
        return Ok(Becomes::Plain);
    };
    let index = Index::usual()?;
    if member.rank == 0 {
        start_keeper(&words(&options), &member, args)?;
    } else if Path::new("/proc/self/fd/0").metadata().is_ok_and(|m| m.file_type().is_fifo()) {
        return Err(Error::Claim(format!(
            "rank {} reads standard input (mpirun --stdin): only rank 0 can do that in a run with checkpoints",
            member.rank
        )));
    }
    let (run, incarnation) = match wait(&index.job(&member.life.name).join(member.answer()))? {
        Answer::Start { run, incarnation } => (run, incarnation),
        Answer::Ended(status) => return Ok(Becomes::Done(status)),
        Answer::Refused(why) => return Err(Error::Claim(why)),
    };
    let start = StartFile::read(&run, incarnation)?;
    if member.first_here && member.rank != 0 {
        // The step of orted: which run it is, for `scontrol checkpoint JOB.STEP`.
        if let Some(w) = Whereabouts::of_mpirun(var, &run, incarnation, &member.token)
            && w.step != Whereabouts::BATCH
        {
            // Each node's first rank writes the same; without it only the job's name reaches this run.
            let _ = w.announce(&index, &w.step);
        }
    }
    let local = local(&start, &run)?;
    if start.stdin.is_some() {
        spooled_input(&run, member.rank == 0)?;
    }
    let mut environment = environment(&start, local, member.nodes);
    environment.extend([
        ("STILLPOINT_RUN", Some(run.into())),
        ("STILLPOINT_INCARNATION", Some(incarnation.to_string().into())),
        (AGENT, None),
        (OPTIONS, None),
    ]);
    Ok(Becomes::Rank(environment))
}

fn words(options: &OsStr) -> Vec<OsString> {
    options.as_bytes().split(|b| *b == BETWEEN).map(|w| OsString::from_vec(w.to_vec())).collect()
}

/// Starts the keeper, which is nobody's child: the program counts its own. It has our standard streams until it has answered.
fn start_keeper(options: &[OsString], member: &Member, args: &[OsString]) -> Result<(), Error> {
    let me = std::env::current_exe().map_err(Error::io("find", Path::new("stillpoint")))?;
    let mut c = Command::new(&me);
    c.arg("slurm-mpirun").args(options).arg("--rank-zero").arg(std::process::id().to_string());
    let status = c.arg("--").args(args).env_remove(AGENT).status();
    let failed = |source| Error::Start { what: me.to_string_lossy().into_owned(), source };
    let status = status.map_err(failed)?;
    if status.success() {
        Ok(())
    } else {
        Err(Error::Claim(format!("the keeper of rank {} of {} did not start", member.rank, member.size)))
    }
}

/// The keeper's answer, once it is there.
fn wait(path: &Path) -> Result<Answer, Error> {
    let until = Instant::now() + CLAIM;
    // All ranks look at a directory that all nodes share, and a large checkpoint is long in being verified.
    let mut pause = Duration::from_millis(20);
    loop {
        match std::fs::read(path) {
            Ok(text) => {
                return serde_json::from_slice(&text).map_err(|e| Error::Description(path.to_owned(), e));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound && Instant::now() < until => {
                std::thread::sleep(pause);
                pause = (pause * 5 / 4).min(Duration::from_secs(1));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(Error::Claim("rank 0 has not said which run this mpirun is".into()));
            }
            Err(e) => return Err(Error::io("read", path)(e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENV: [(&str, &str); 6] = [
        ("SLURM_JOB_ID", "5"),
        ("PMIX_NAMESPACE", "619708417"),
        ("OMPI_MCA_orte_precondition_transports", "9167e95f5e2a15ca-bd0ec3fbe777b94b"),
        ("OMPI_COMM_WORLD_RANK", "2"),
        ("OMPI_COMM_WORLD_SIZE", "4"),
        ("OMPI_COMM_WORLD_LOCAL_RANK", "0"),
    ];

    fn member(change: (&str, Option<&str>)) -> Option<Member> {
        Member::of(|n| {
            let given = ENV.iter().find(|(k, _)| *k == n).map(|(_, v)| *v);
            let value = if n == change.0 { change.1 } else { given };
            value.map(OsString::from)
        })
    }

    #[test]
    fn a_rank_is_known_by_its_environment() {
        let m = member(("", None)).unwrap();
        assert_eq!((m.rank, m.size, m.first_here, m.life.job.as_str()), (2, 4, true, "5"));
        let other = member(("OMPI_COMM_WORLD_RANK", Some("0"))).unwrap();
        assert_eq!(other.token, m.token, "all ranks of one mpirun");
        for (name, value) in [
            ("PMIX_NAMESPACE", "619708418"),
            ("OMPI_MCA_orte_precondition_transports", "0-0"),
            ("SLURM_RESTART_COUNT", "1"),
        ] {
            assert_ne!(member((name, Some(value))).unwrap().token, m.token, "{name}");
        }
    }

    #[test]
    fn what_is_no_rank_of_a_jobs_mpirun_is_left_alone() {
        for name in ENV.map(|(n, _)| n) {
            if name != "OMPI_COMM_WORLD_LOCAL_RANK" {
                assert!(member((name, None)).is_none(), "{name}");
            }
        }
        assert!(member((SPAWNED, Some("x"))).is_none(), "made by MPI_Comm_spawn");
    }

    #[test]
    fn options_are_words() {
        assert_eq!(
            words(OsStr::new("--interval\u{1f}2\u{1f}--dir\u{1f}/a b")),
            ["--interval", "2", "--dir", "/a b"]
        );
    }

    #[test]
    fn the_answer_is_waited_for() {
        let path = std::env::temp_dir().join(format!("stillpoint-cli-answer-{}", std::process::id()));
        let answer = Answer::Start { run: "/r/3".into(), incarnation: 2 };
        let text = serde_json::to_vec(&answer).unwrap();
        let writer = std::thread::spawn({
            let path = path.clone();
            move || {
                std::fs::write(path.with_extension("new"), text).unwrap();
                std::fs::rename(path.with_extension("new"), path).unwrap();
            }
        });
        assert_eq!(wait(&path).unwrap(), answer);
        writer.join().unwrap();
        std::fs::write(&path, "?").unwrap();
        assert!(matches!(wait(&path), Err(Error::Description(..))));
        std::fs::remove_file(path).unwrap();
    }
}
