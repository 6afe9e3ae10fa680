//! Where checkpoints lie, and when one exists. Runs *next door*, in the agent and in the command line.
//!
//! ```text
//!  RUNDIR/                        0700, files 0600
//!   run.json                      what was started: command, ranks, directory
//!   agent.lock  agent.sock        one agent at a time
//!   outcome.json                  how the job ended, as far as it has
//!   last-id                       the last number claimed
//!   restarts/000001 …             one file a start after the first, claimed by O_EXCL (INV-4)
//!   starts/000001.json …          how each start began; begin.json: where the next one is to begin
//!   roots/000001.json …           on several nodes: one file a root agent (core/net)
//!   ckpt-000007.partial/          being written; no reader looks in here
//!   ckpt-000006/ manifest.json rank-00000.img rank-00001.img …
//! ```
//!
//! - [`run`]: the run directory and the small files in it.
//! - [`manifest`]: what is in a checkpoint, and its checksums.
//! - [`commit`]: begin, commit, discard, retention.
//! - [`verify`]: which checkpoint may be used.
//! - [`node`]: a run's directory on the disk of a node.
//! - [`copy`]: a file from there to where a commit looks; `adopt`: a whole checkpoint from one run directory to another.
//! - [`way`]: which checkpoints a run has passed through, and where it is to begin.
//!
//! What a reader would get wrong: a file here is a name and bytes; what an image is, this crate does not know.
#![forbid(unsafe_code)]

mod adopt;
pub mod commit;
pub mod copy;
pub mod manifest;
pub mod node;
pub mod run;
pub mod verify;
pub mod way;

use std::path::PathBuf;

/// What failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A system call.
    #[error("{what} {}", path.display())]
    Io {
        /// The step.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A json file that is none.
    #[error("understand {}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// The manifest is not ours, or contradicts itself.
    #[error("manifest {}: {reason}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// An image is not what the manifest says.
    #[error("{}: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file belongs to somebody else, or others may write it.
    #[error("{} has an owner or a mode that cannot be trusted", path.display())]
    Untrusted {
        /// The file.
        path: PathBuf,
    },
    /// A copy was told to end.
    #[error("the copy was given up")]
    Cancelled,
    /// Somebody else goes on with the run.
    #[error("{0}")]
    Superseded(String),
    /// Somebody else has it.
    #[error("{} is already claimed", path.display())]
    Claimed {
        /// The file.
        path: PathBuf,
    },
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, StoreError>;

pub(crate) trait At<T> {
    fn at(self, what: &'static str, path: &std::path::Path) -> Result<T>;
}

impl<T> At<T> for std::io::Result<T> {
    fn at(self, what: &'static str, path: &std::path::Path) -> Result<T> {
        self.map_err(|source| StoreError::Io { what, path: path.into(), source })
    }
}

impl<T> At<T> for rustix::io::Result<T> {
    fn at(self, what: &'static str, path: &std::path::Path) -> Result<T> {
        self.map_err(|e| StoreError::Io { what, path: path.into(), source: e.into() })
    }
}
