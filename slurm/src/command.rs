//! What is done about a command line of srun: left alone, refused, or turned into one of `stillpoint slurm-step`. Pure.
//! *In srun.*
//!
//! What a reader would get wrong: where srun's options end is not found here; only Slurm knows which of them take a
//! value, and getopt tells ([`crate::process::command_at`]).

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What MPI launchers start on the nodes, once a node: it starts the ranks, and is none.
const DAEMONS: [&str; 7] =
    ["orted", "prted", "prte", "hydra_pmi_proxy", "hydra_bstrap_proxy", "pmi_proxy", "mpispawn"];

/// The command line that srun was started with.
#[derive(Debug)]
pub(crate) struct Line {
    /// With srun's own name in front.
    pub(crate) words: Vec<OsString>,
    /// Index of the command, or of --multi-prog's file; none when there is none.
    pub(crate) command: Option<usize>,
}

/// What to do about it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Go on as srun.
    Alone,
    /// The same: it starts the node daemons of an MPI launcher, which are no ranks.
    Daemons,
    /// It cannot be done; why.
    Refused(&'static str),
    /// Become `stillpoint slurm-step`.
    Step,
}

/// Whether `word` is this long option, perhaps cut short as getopt allows, but no shorter than `least`.
fn is_option(word: &OsStr, option: &str, least: usize) -> bool {
    word.len() >= least && option.as_bytes().starts_with(word.as_bytes())
}

impl Line {
    fn options(&self) -> &[OsString] {
        let end = self.command.unwrap_or(self.words.len());
        self.words.get(1..end).unwrap_or_default()
    }

    /// The program, or --multi-prog's file.
    pub(crate) fn program(&self) -> Option<&OsStr> {
        self.command.and_then(|at| self.words.get(at)).map(OsString::as_os_str)
    }

    /// Whether this starts the node daemons of an MPI launcher.
    fn starts_daemons(&self) -> bool {
        let name = self.program().and_then(|p| Path::new(p).file_name());
        name.is_some_and(|n| DAEMONS.iter().any(|d| n == *d))
    }

    /// `het_size`: SLURM_HET_SIZE, which Slurm sets in a heterogeneous allocation.
    pub(crate) fn verdict(&self, het_size: Option<&OsStr>) -> Verdict {
        let has = |option, least| self.options().iter().any(|w| is_option(w, option, least));
        // The interactive step of salloc is a shell of Slurm's making; --test-only starts nothing.
        if has("--interactive", 7) || has("--test-only", 6) {
            return Verdict::Alone;
        }
        if self.starts_daemons() {
            return Verdict::Daemons;
        }
        let rest = self.command.and_then(|at| self.words.get(at..)).unwrap_or_default();
        if rest.iter().any(|w| w == ":") {
            return Verdict::Refused(
                "a heterogeneous step (\" : \") cannot be checkpointed; start it without --ckpt options and STILLPOINT_CKPT_ \
                 variables, or with --ckpt-interval=off",
            );
        }
        if het_size.is_some_and(|n| n != "1" && !n.is_empty()) {
            return Verdict::Refused(
                "steps of a heterogeneous job cannot be checkpointed; start them without --ckpt options and \
                 STILLPOINT_CKPT_ variables, or with --ckpt-interval=off",
            );
        }
        if self.command.is_none() { Verdict::Alone } else { Verdict::Step }
    }

    /// The command line to become. `srun` is the file that srun's process runs.
    pub(crate) fn step(&self, stillpoint: &Path, srun: &Path, given: Vec<OsString>) -> Vec<OsString> {
        let mut words = vec![stillpoint.into(), OsString::from("slurm-step")];
        words.extend(given);
        words.extend(["--srun".into(), srun.into(), OsString::from("--")]);
        words.extend(self.words.iter().skip(1).cloned());
        words
    }
}

/// Whether a variable asks for us, or carries what an option said: after all has been said in arguments, such a variable
/// would only make a srun inside a task start over, and a mpirun inside it start ranks of another run.
pub(crate) fn is_ours(name: &OsStr, value: &OsStr) -> bool {
    if crate::mpirun::is_ours(name, value) {
        return true;
    }
    let name = name.as_bytes();
    let slurms = format!("_SLURM_SPANK_OPTION_{}_", crate::spank::NAME);
    let at = [&b""[..], b"SLURM_SPANK_", b"SPANK_"]
        .iter()
        .find_map(|p| name.strip_prefix(*p)?.strip_prefix(slurms.as_bytes()));
    at.is_some() || name.starts_with(b"STILLPOINT_CKPT_")
}

/// `slurm_bcast_JOB.STEP_NODE`: what slurmstepd puts behind a program's path that ends with a slash, after our hook.
pub(crate) fn broadcast(program: &OsStr, job: u32, step: u32, node: &OsStr) -> Option<OsString> {
    program.as_bytes().ends_with(b"/").then(|| {
        let mut whole = program.to_owned();
        whole.push(format!("slurm_bcast_{job}.{step}_"));
        whole.push(node);
        whole
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{Given, Which};

    fn line(text: &str, command: usize) -> Line {
        let words: Vec<OsString> = text.split_whitespace().map(OsString::from).collect();
        let command = (command < words.len()).then_some(command);
        Line { words, command }
    }

    #[test]
    fn a_plain_command_becomes_a_step() {
        let l = line("srun -N2 -n4 --ckpt-interval=600 ./solver -x --test-only", 4);
        assert_eq!(l.verdict(None), Verdict::Step);
        let mut given = Given::new();
        given.take(Which::Interval, "600".into()).unwrap();
        let step = l.step(Path::new("/p/bin/stillpoint"), Path::new("/usr/bin/srun"), given.arguments());
        let text: Vec<_> = step.iter().map(|w| w.to_str().unwrap()).collect();
        assert_eq!(
            text.join(" "),
            "/p/bin/stillpoint slurm-step --interval 600 --srun /usr/bin/srun -- -N2 -n4 --ckpt-interval=600 ./solver -x --test-only"
        );
    }

    #[test]
    fn what_is_not_a_users_program_is_left_alone() {
        assert_eq!(line("srun --ntasks=2 /usr/bin/orted -mca x", 2).verdict(None), Verdict::Daemons);
        assert_eq!(line("srun -N2 hydra_bstrap_proxy", 2).verdict(None), Verdict::Daemons);
        assert_eq!(line("srun --interactive --pty bash", 3).verdict(None), Verdict::Alone);
        assert_eq!(line("srun --test-only ./a", 2).verdict(None), Verdict::Alone);
        assert_eq!(line("srun --test ./a", 2).verdict(None), Verdict::Alone);
        assert_eq!(line("srun -N1", 9).verdict(None), Verdict::Alone);
    }

    #[test]
    fn heterogeneous_is_refused() {
        let l = line("srun -n1 ./a : -n1 ./b", 2);
        assert!(matches!(l.verdict(None), Verdict::Refused(t) if t.contains("heterogeneous")));
        let l = line("srun -n1 ./a", 2);
        assert!(matches!(l.verdict(Some(OsStr::new("2"))), Verdict::Refused(_)));
        assert_eq!(l.verdict(Some(OsStr::new("1"))), Verdict::Step);
    }

    #[test]
    fn our_variables_are_known() {
        for name in [
            "_SLURM_SPANK_OPTION_stillpoint_ckpt_interval",
            "SLURM_SPANK__SLURM_SPANK_OPTION_stillpoint_ckpt_dir",
            "SPANK__SLURM_SPANK_OPTION_stillpoint_ckpt_run",
            "STILLPOINT_CKPT_INTERVAL",
        ] {
            assert!(is_ours(OsStr::new(name), OsStr::new("")), "{name}");
        }
        for name in [
            "_SLURM_SPANK_OPTION_other_x",
            "SLURM_JOB_ID",
            "STILLPOINT_HOME",
            "X_SLURM_SPANK_OPTION_stillpoint_",
        ] {
            assert!(!is_ours(OsStr::new(name), OsStr::new("")), "{name}");
        }
    }

    #[test]
    fn a_broadcast_program_gets_its_name() {
        let b = |p: &str| broadcast(OsStr::new(p), 7, 1, OsStr::new("n1"));
        assert_eq!(b("/tmp/").unwrap(), "/tmp/slurm_bcast_7.1_n1");
        assert_eq!(b("/tmp/a"), None);
    }
}
