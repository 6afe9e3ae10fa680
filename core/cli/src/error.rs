//! What can go wrong in the command line, and the exit status each has. An application's own exit status is never one
//! of these enums: it is a result. Runs *next door*.

use std::io;
use std::path::{Path, PathBuf};

/// Why a verb gave up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot {step} {}", path.display())]
    Io {
        step: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("neither XDG_STATE_HOME nor HOME is set, so there is no place for jobs; give --dir")]
    NoHome,
    #[error("no job {0} in {dir}", dir = .1.display())]
    NoJob(String, PathBuf),
    #[error("{}: cannot read the job's description", .0.display())]
    Description(PathBuf, #[source] serde_json::Error),
    #[error("job {0} is running")]
    Running(String),
    #[error("job {0} is not running")]
    NotRunning(String),
    #[error(
        "the agent of job {job} does not answer: the job runs on, but no checkpoint of it can be taken; its last one stands"
    )]
    AgentGone {
        job: String,
        #[source]
        source: io::Error,
    },
    #[error("talk to the agent of the job")]
    Talk(#[source] stillpoint_coord::message::WireError),
    #[error("the agent gave an answer to another question")]
    Answer,
    #[error("job {0} has no checkpoint{1}")]
    NoCheckpoint(String, String),
    #[error("no checkpoint of job {0} can be used")]
    NoneUsable(String),
    #[error("checkpoint {ckpt} holds {have} ranks, {want} were asked for")]
    Ranks { ckpt: u64, have: u32, want: u32 },
    #[error(
        "run {run} is of {have}, not of {want}; 'stillpoint restart {run}' goes on with it, and without --ckpt-restart a run \
         of its own is made"
    )]
    OtherProgram { run: String, have: String, want: String },
    #[error("{} holds no image of rank {rank}", dir.display())]
    NoImage { dir: PathBuf, rank: u32 },
    #[error("checkpoint in {}: {what}", dir.display())]
    Incomplete { dir: PathBuf, what: String },
    #[error(transparent)]
    Store(#[from] stillpoint_storage::StoreError),
    #[error(transparent)]
    Image(#[from] stillpoint_image::Error),
    #[error("'{0}' is not a time: give seconds, or a number with ms, s, m or h")]
    Duration(String),
    #[error("--mtbf {0}: give the hours between two losses of a node, above 0")]
    Mtbf(f64),
    #[error("{0}: command not found")]
    NotFound(String),
    #[error("{0} cannot be executed: {1}")]
    NotExecutable(String, &'static str),
    #[error("{name} was found neither beside {} nor in STILLPOINT_LIBEXEC", beside.display())]
    NoPiece { name: &'static str, beside: PathBuf },
    #[error("cannot start {what}")]
    Start {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("the launcher {0} was not found; install Open MPI, or name another with --launcher")]
    NoLauncher(String),
    #[error("the number of ranks must be at least 1")]
    NoRanks,
    #[error(
        "Open MPI refuses to run as root. Run as another user, or, if you know that you want this (in a container, \
         say), set OMPI_ALLOW_RUN_AS_ROOT=1 and OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"
    )]
    Root,
    #[error("Slurm: {0}")]
    Slurm(String),
    #[error("Slurm knows no job {0}")]
    NoSlurmJob(String),
    #[error("{0}: command not found in PATH; it is a command of Slurm's")]
    NoSlurm(String),
    #[error(
        "{} on this node: images cannot be kept there; make it a directory that users can write to, or name another with --burst \
         (STILLPOINT_BURST, the site's burst=)", .0.display()
    )]
    Burst(PathBuf, #[source] stillpoint_storage::StoreError),
    #[error("{} is not a directory that only you can enter; remove it, or let the site name another with local=", .0.display())]
    Untrusted(PathBuf),
    #[error("{} holds images of another run; name another ImageDir", .0.display())]
    ImagesOfAnother(PathBuf),
    #[error("{0} is not set: stillpoint-task is started by Slurm with the plugin of Stillpoint, not by hand")]
    NoTask(&'static str),
    #[error("this mpirun cannot be started: {0}")]
    Claim(String),
    #[error("{0}")]
    ByHand(String),
    #[error("{0}={1:?} is not a number")]
    RankVar(&'static str, String),
}

impl Error {
    /// For `map_err`: what was attempted on which path.
    pub(crate) fn io(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { step, path, source }
    }

    /// Exit status, as env(1) and timeout(1) have it: 125 ours, 126 not executable, 127 not found.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Error::NotFound(_) => 127,
            Error::Start { .. } | Error::NotExecutable(..) => 126,
            _ => 125,
        }
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut next = e.source();
    while let Some(e) = next {
        text.push_str(": ");
        text.push_str(&e.to_string());
        next = e.source();
    }
    text
}
