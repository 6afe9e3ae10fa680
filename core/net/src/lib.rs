//! Which agent of a run is the root, and how the agents of other nodes and the command line reach it. Runs *next door*.
//!
//! ```text
//!  RUN/roots/000001.json ◀─ link(2) ─ whole file     claimed once; the highest number is the root
//!            000001.ended                            it ended in order: the next may claim at once
//! ```
//!
//! - [`roots`]: the files of the drawing.
//! - [`dial`]: from a root's file to a connection with it, or to the certainty that it is gone.
//! - [`handshake`]: both ends prove that they can read the file, before anything else is said.
//!
//! What a reader would get wrong: who may read the run directory may talk to its agents, and nobody else; the port is open
//! to the world. After the handshake the bytes are plain: whoever can change packets between two nodes can change them too.
#![forbid(unsafe_code)]

pub mod dial;
pub mod handshake;
pub mod roots;

use std::path::PathBuf;

/// What failed.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// A socket.
    #[error("{what}")]
    Io {
        /// The step.
        what: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A file of [`roots`].
    #[error("{what} {}", path.display())]
    File {
        /// The step.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The run directory.
    #[error("use the run directory")]
    Store(#[from] stillpoint_storage::StoreError),
    /// The other end does not know the token, or speaks another protocol.
    #[error("the other end of the connection is not of this run")]
    Stranger,
    /// No root agent has been claimed.
    #[error("no agent has listened for this run yet")]
    NoRoot,
    /// The root ended, or all its addresses refuse.
    #[error("the root agent of this run is gone")]
    Gone,
}

impl NetError {
    pub(crate) fn io(what: &'static str) -> impl Fn(std::io::Error) -> NetError {
        move |source| NetError::Io { what, source }
    }
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, NetError>;
