//! `stillpoint-task`: what slurmstepd starts in a task's place. Reads what the supervisor has written for this start, makes
//! the node-local directory, tells where it is (task 0), and becomes `stillpoint-rank`.
//!
//! What a reader would get wrong: it is this program under another name, told by argv[0]; all the way from slurmstepd to the
//! application it is one process, which signals and `scancel` reach as without us. Runs *next door* until the exec.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use stillpoint_abi::ids::CkptId;
use stillpoint_storage::StoreError;
use stillpoint_storage::node::node_dir;
use stillpoint_storage::run::RunDir;

use crate::error::{Error, chain};
use crate::exec;
use crate::run::rhythm;
use crate::slurm::identity::Index;
use crate::slurm::job::Whereabouts;
use crate::slurm::start::{StartFile, Stdin};

/// The name under which this program is a task.
pub(crate) const NAME: &str = "stillpoint-task";

/// The task's program, and what it is to find in its environment.
#[derive(Debug, PartialEq)]
struct Task {
    command: Vec<OsString>,
    environment: Vec<(&'static str, Option<OsString>)>,
}

pub(crate) fn main(args: &[OsString]) -> ExitCode {
    let e = match begin(args) {
        Ok(task) => {
            let command = task.command.clone();
            exec::exec_in(&command, &task.environment)
        }
        Err(e) => e,
    };
    eprintln!("{NAME}: {}", chain(&e));
    ExitCode::from(e.code())
}

fn begin(args: &[OsString]) -> Result<Task, Error> {
    let var = |n: &str| std::env::var_os(n).filter(|v| !v.is_empty());
    let run = PathBuf::from(var("STILLPOINT_RUN").ok_or(Error::NoTask("STILLPOINT_RUN"))?);
    let number = |n: &str| var(n).and_then(|v| v.to_str()?.parse::<u32>().ok());
    let incarnation = number("STILLPOINT_INCARNATION").ok_or(Error::NoTask("STILLPOINT_INCARNATION"))?;
    let start = StartFile::read(&run, incarnation)?;
    let task = number("SLURM_PROCID");
    if let Some(dir) = &start.restart {
        fits(&run, dir, number("SLURM_STEP_NUM_TASKS").or_else(|| number("SLURM_NTASKS")))?;
    }
    let local = local(&start, &run)?;
    if task == Some(0)
        && let Some(w) = Whereabouts::from(|n| std::env::var_os(n), &run, incarnation)
    {
        if let Some(index) = &start.index {
            w.announce(&Index(index.clone()), &w.step)?;
        }
        RunDir::open(&run)?.write_json("slurm.json", &w)?;
    }
    if let Some(wanted) = start.stdin {
        spooled_input(&run, reads(wanted, task))?;
    }
    Ok(Task {
        command: command(args, var("STILLPOINT_TASK_PROGRAM"))?,
        environment: environment(&start, local, number("SLURM_STEP_NUM_NODES").unwrap_or(1)),
    })
}

/// The program and its arguments. The plugin has put us in place of argv[0] and tells what stood there, or, where Slurm lets
/// it, in front of it.
fn command(args: &[OsString], program: Option<OsString>) -> Result<Vec<OsString>, Error> {
    let command: Vec<OsString> = program.into_iter().chain(args.iter().cloned()).collect();
    if command.is_empty() { Err(Error::NoTask("STILLPOINT_TASK_PROGRAM")) } else { Ok(command) }
}

/// `nodes`: how many there are whose loss is the step's.
pub(crate) fn environment(
    start: &StartFile,
    local: Option<PathBuf>,
    nodes: u32,
) -> Vec<(&'static str, Option<OsString>)> {
    let [interval, mtbf] = rhythm(start.interval, start.auto, nodes);
    vec![
        ("STILLPOINT_INTERVAL", interval.map(Into::into)),
        ("STILLPOINT_MTBF", mtbf.map(Into::into)),
        ("STILLPOINT_RESTART", start.restart.clone().map(Into::into)),
        // What sbatch --signal=USR1@… sends, and with preempt_send_user_signal a preemption as well.
        ("STILLPOINT_SIGNAL", start.on.iter().any(|o| o == "preempt").then(|| "USR1".into())),
        ("STILLPOINT_KEEP", start.keep.map(|k| k.to_string().into())),
        ("STILLPOINT_LOCAL", local.map(Into::into)),
        // Ours alone; and what a step around this one may have left.
        ("STILLPOINT_TASK_PROGRAM", None),
        (exec::LOCAL_BASE, None),
        ("STILLPOINT_STDIN", None),
        ("STILLPOINT_RANK", None),
        ("STILLPOINT_SIZE", None),
    ]
}

/// Refuses a checkpoint of another number of ranks, before any rank waits for one that will not come.
fn fits(run: &Path, dir: &Path, ranks: Option<u32>) -> Result<(), Error> {
    let number = dir.file_name().and_then(OsStr::to_str).and_then(|n| n.strip_prefix("ckpt-")?.parse().ok());
    let (Some(ckpt), Some(want)) = (number, ranks) else { return Ok(()) };
    let have = RunDir::open(run)?.manifest(CkptId(ckpt))?.size;
    if have == want { Ok(()) } else { Err(Error::Ranks { ckpt, have, want }) }
}

/// This node's directory for the run; `None`: the run directory is used, as on one node.
pub(crate) fn local(start: &StartFile, run: &Path) -> Result<Option<PathBuf>, Error> {
    let given = std::env::var_os(exec::LOCAL_BASE).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = start.local.clone().or(given).unwrap_or_else(|| "/tmp".into());
    if base.as_os_str() == "none" { Ok(None) } else { local_dir(&base, run).map(Some) }
}

/// `BASE/stillpoint-UID/HASH` on this node.
pub(crate) fn local_dir(base: &Path, run: &Path) -> Result<PathBuf, Error> {
    node_dir(base, run).map_err(|e| match e {
        StoreError::Untrusted { path } => Error::Untrusted(path),
        e => e.into(),
    })
}

fn reads(wanted: Stdin, task: Option<u32>) -> bool {
    match wanted {
        Stdin::All => true,
        Stdin::Task(n) => task == Some(n),
    }
}

/// Standard input from the spool: a file has an offset, at which a restart goes on. Each task has its own, as each would get
/// all of what srun reads.
pub(crate) fn spooled_input(run: &Path, mine: bool) -> Result<(), Error> {
    let path = if mine { run.join("stdin") } else { "/dev/null".into() };
    let file = File::open(&path).map_err(Error::io("open", &path))?;
    rustix::stdio::dup2_stdin(&file).map_err(|e| Error::io("read", &path)(e.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_stands_in_the_environment_or_in_the_arguments() {
        let args: Vec<OsString> = vec!["-x".into()];
        assert_eq!(command(&args, Some("./a".into())).unwrap(), ["./a", "-x"]);
        assert_eq!(command(&["./a".into(), "-x".into()], None).unwrap(), ["./a", "-x"]);
        assert!(command(&[], None).is_err());
    }

    #[test]
    fn what_the_rank_finds_in_its_environment() {
        let start = StartFile {
            interval: Some(600.0),
            restart: Some("/r/ckpt-000003".into()),
            ..StartFile::default()
        };
        let of = |e: &[(&str, Option<OsString>)], n: &str| e.iter().find(|(k, _)| *k == n).unwrap().1.clone();
        let e = environment(&start, Some("/tmp/l".into()), 2);
        assert_eq!(of(&e, "STILLPOINT_INTERVAL"), Some("600".into()));
        assert_eq!(of(&e, "STILLPOINT_RESTART"), Some("/r/ckpt-000003".into()));
        assert_eq!(of(&e, "STILLPOINT_LOCAL"), Some("/tmp/l".into()));
        assert_eq!((of(&e, "STILLPOINT_KEEP"), of(&e, "STILLPOINT_SIGNAL")), (None, None));
        let warned = StartFile { on: vec!["preempt".into()], ..StartFile::default() };
        assert_eq!(of(&environment(&warned, None, 1), "STILLPOINT_SIGNAL"), Some("USR1".into()));
        assert_eq!(of(&e, "STILLPOINT_TASK_PROGRAM"), None);
    }

    #[test]
    fn who_reads_standard_input() {
        assert!(reads(Stdin::All, Some(3)) && reads(Stdin::All, None));
        assert!(reads(Stdin::Task(0), Some(0)) && !reads(Stdin::Task(0), Some(1)));
    }
}
