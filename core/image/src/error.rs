//! What can be wrong with an image. A damaged file is told by the section that is damaged, so that the user knows
//! whether anything can be read from the rest; the path is in every message. Runs *next door* and in the *lower half*.

use std::fmt;
use std::path::PathBuf;

/// A part of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// The first page.
    Header,
    /// Frames of memory.
    Memory,
    /// The rank's description.
    Meta,
    /// Runs and checksums.
    Index,
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Section::Header => "header",
            Section::Memory => "memory",
            Section::Meta => "meta",
            Section::Index => "index",
        })
    }
}

/// Why an image cannot be written or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("image {}: cannot {step}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was attempted.
        step: &'static str,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// Not a regular file.
    #[error("image {}: not a regular file", path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// The file does not begin like an image.
    #[error("image {}: not a stillpoint image", path.display())]
    NotAnImage {
        /// The file.
        path: PathBuf,
    },
    /// Made by another version of the format.
    #[error("image {}: {section} has format version {found}, this program reads {known}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Where the version was found.
        section: Section,
        /// Version in the file.
        found: u32,
        /// Version of this program.
        known: u32,
    },
    /// Bytes are not what was written.
    #[error("image {}: {section} damaged: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The damaged part.
        section: Section,
        /// What does not hold.
        what: String,
    },
    /// A good image of something else.
    #[error("image {}: is checkpoint {found_ckpt} rank {found_rank}, wanted checkpoint {ckpt} rank {rank}", path.display())]
    Other {
        /// The file.
        path: PathBuf,
        /// Checkpoint in the header.
        found_ckpt: u64,
        /// Rank in the header.
        found_rank: u32,
        /// Wanted checkpoint.
        ckpt: u64,
        /// Wanted rank.
        rank: u32,
    },
    /// The writer's buffer for runs is used up.
    #[error("run table full: {0} runs")]
    Full(usize),
    /// A run that the format cannot hold: unaligned, empty, out of order or beyond user space.
    #[error("run at {addr:#x}, {pages} pages, does not fit behind the run before it")]
    BadRun {
        /// First address.
        addr: u64,
        /// Number of pages.
        pages: u64,
    },
    /// The writer's buffer for the index is shorter than the layout says.
    #[error("index buffer of {have} bytes, {need} needed")]
    Short {
        /// Length of the buffer.
        have: usize,
        /// Needed length.
        need: u64,
    },
    /// META is too long or could not be encoded.
    #[error("cannot encode the rank's description: {0}")]
    Encode(String),
}

/// Damage found by code that does not know the path.
pub(crate) type Bad = String;
