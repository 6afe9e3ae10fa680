//! What is set for a batch script, or the shell of salloc, so that each `mpirun` in it starts its ranks under Stillpoint. Pure.
//! *In salloc, and in slurmstepd for the batch script.*
//!
//! What a reader would get wrong: mpirun starts the ranks of its own node itself, and those of others by a step of `orted`, so no
//! hook of Slurm sees them. Open MPI up to 4 has a setting of its own for what is put before each rank (`orte_fork_agent`),
//! which orted inherits; it splits the value at blanks.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Open MPI's variable: what is started in each rank's place, with the rank's command line behind it.
pub(crate) const AGENT: &str = "OMPI_MCA_orte_fork_agent";
/// Ours: the options, for the program that [`AGENT`] names.
pub(crate) const OPTIONS: &str = "STILLPOINT_MPIRUN";
/// The program, in `PREFIX/libexec/stillpoint`.
const PROGRAM: &str = "stillpoint-mpirun-task";
/// Between the words of [`OPTIONS`]: no value of an option holds it.
const BETWEEN: &str = "\u{1f}";

/// The daemon whose ranks are reached in this way.
pub(crate) fn is_reached(daemon: Option<&OsStr>) -> bool {
    daemon.map(Path::new).and_then(Path::file_name).is_some_and(|n| n == "orted")
}

/// The variables to set. `Err`: why there are none.
pub(crate) fn variables(
    prefix: &Path,
    mut words: Vec<OsString>,
    local: &OsStr,
) -> Result<[(&'static str, OsString); 2], String> {
    let program = prefix.join("libexec/stillpoint").join(PROGRAM);
    if program.as_os_str().as_bytes().contains(&b' ') {
        return Err(format!(
            "the ranks of mpirun are not checkpointed: there is a blank in {}, and Open MPI would cut there",
            program.display()
        ));
    }
    words.extend([OsString::from("--local"), local.to_owned()]);
    Ok([(AGENT, program.into()), (OPTIONS, words.join(OsStr::new(BETWEEN)))])
}

/// Whether this variable was set here; somebody else's agent is not ours to remove.
pub(crate) fn is_ours(name: &OsStr, value: &OsStr) -> bool {
    name == OPTIONS || (name == AGENT && Path::new(value).file_name().is_some_and(|n| n == PROGRAM))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_options_go_to_the_ranks_of_mpirun() {
        let given = vec!["--interval".into(), "600".into()];
        let [agent, options] = variables(Path::new("/p"), given.clone(), OsStr::new("/tmp")).unwrap();
        assert_eq!(agent, (AGENT, "/p/libexec/stillpoint/stillpoint-mpirun-task".into()));
        assert_eq!(options, (OPTIONS, "--interval\u{1f}600\u{1f}--local\u{1f}/tmp".into()));
        assert!(is_ours(OsStr::new(AGENT), &agent.1) && is_ours(OsStr::new(OPTIONS), &options.1));
        assert!(!is_ours(OsStr::new(AGENT), OsStr::new("/site/agent")));
        let blank = variables(Path::new("/p q"), given, OsStr::new("/tmp")).unwrap_err();
        assert!(blank.contains("blank in /p q"), "{blank}");
    }

    #[test]
    fn of_other_launchers_nothing_is_promised() {
        assert!(is_reached(Some(OsStr::new("/usr/bin/orted"))));
        assert!(!is_reached(Some(OsStr::new("prted"))) && !is_reached(None));
    }
}
