//! The real srun, as the child of a supervisor ([`super::step`]).
//!
//! What a reader would get wrong: between the two there is a program of ours for a moment, `slurm-child`. The death signal must be
//! asked for by the child itself, and stays over an exec; without this way through it would have to be set between fork and exec, in
//! unsafe code. Runs *next door*.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::process::{Signal, getppid, set_parent_process_death_signal};

use crate::error::Error;
use crate::home::Job;

/// The command line of one start of a run: ourselves, who become `srun` with these arguments once bound to our parent's life.
pub(super) fn command(srun: &Path, job: &Job, incarnation: u32, args: &[OsString]) -> Result<Command, Error> {
    let me = std::env::current_exe().map_err(Error::io("find", Path::new("stillpoint")))?;
    let mut run = OsString::from("--ckpt-run=");
    run.push(&job.dir);
    run.push(format!("@{incarnation}"));
    let mut c = Command::new(me);
    c.arg("slurm-child").arg("--parent").arg(std::process::id().to_string()).arg("--");
    c.arg(srun).arg(run).args(args);
    Ok(c)
}

/// An allocation that has lost a node is still described with it in our environment, and srun believes that: it would want as
/// many nodes as there were. The number of tasks, which srun may have taken from it, is that of the checkpoint.
pub(super) fn forget_nodes(c: &mut Command, ranks: Option<u32>, told: bool) {
    for name in [
        "SLURM_NNODES",
        "SLURM_JOB_NUM_NODES",
        "SLURM_NODELIST",
        "SLURM_JOB_NODELIST",
        "SLURM_TASKS_PER_NODE",
    ] {
        c.env_remove(name);
    }
    if let Some(n) = ranks.filter(|_| !told) {
        c.env("SLURM_NTASKS", n.to_string());
    }
}

/// `slurm-child`: becomes srun, and dies with its parent.
pub(crate) fn child(parent: i32, command: &[OsString]) -> Error {
    // As srun itself takes a SIGTERM: it ends its step and gives back its job.
    let _ = set_parent_process_death_signal(Some(Signal::TERM));
    let what = command.first().cloned().unwrap_or_default();
    if getppid().map(|p| p.as_raw_nonzero().get()) != Some(parent) {
        return Error::Start { what: "srun".into(), source: std::io::Error::other("its parent has died") };
    }
    let source = Command::new(&what).arg0("srun").args(command.get(1..).unwrap_or_default()).exec();
    Error::Start { what: what.to_string_lossy().into_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_of_an_allocation_that_shrank_are_forgotten() {
        let of =
            |c: &Command, n: &str| c.get_envs().find(|(k, _)| *k == n).map(|(_, v)| v.map(|v| v.to_owned()));
        let mut c = Command::new("srun");
        forget_nodes(&mut c, Some(4), false);
        assert_eq!((of(&c, "SLURM_NNODES"), of(&c, "SLURM_NTASKS")), (Some(None), Some(Some("4".into()))));
        let mut c = Command::new("srun");
        forget_nodes(&mut c, Some(4), true);
        assert_eq!(of(&c, "SLURM_NTASKS"), None);
    }
}
