//! Why a program cannot be brought in. *Lower half*.

use std::path::PathBuf;

/// Errors of the loader; each names the file and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be opened or read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Not an ELF file for this machine.
    #[error("{path} is not a 64-bit x86 ELF program ({what})")]
    NotElf {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// No PT_INTERP.
    #[error(
        "{path} is statically linked: Stillpoint needs a dynamically linked program (link it without -static)"
    )]
    Static {
        /// The file.
        path: PathBuf,
    },
    /// set-user-id or set-group-id.
    #[error(
        "{path} is set-user-id or set-group-id: the kernel would not give it its rights under Stillpoint; remove the bit or run it without"
    )]
    SetId {
        /// The file.
        path: PathBuf,
    },
    /// The interpreter named in the program does not exist.
    #[error("{path} asks for the dynamic loader {interp}, which cannot be read")]
    Interp {
        /// The program.
        path: PathBuf,
        /// Its PT_INTERP.
        interp: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Mapping failed.
    #[error("cannot map {what} at {addr:#x}: errno {errno}")]
    Map {
        /// What was to be mapped.
        what: String,
        /// Where.
        addr: usize,
        /// Positive errno.
        errno: isize,
    },
    /// The hook library is damaged or of another build.
    #[error("the hook library {path} cannot be used: {what}; reinstall Stillpoint")]
    Hooks {
        /// The library.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
}
