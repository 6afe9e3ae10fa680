//! The image of one rank: a file that a restart can map.
//!
//! ```text
//!  0       ┌────────────────────────────────────────────────────────────────┐
//!          │ header page: magic, version, who (checkpoint, rank, size,      │  header.rs, readable alone
//!          │ incarnation), seed, place of the sections, xxh3-64 of itself   │
//!  4096    ├────────────────────────────────────────────────────────────────┤
//!          │ pages of memory, run after run, without gaps; each run is cut  │  table.rs, from its own start,
//!          │ into frames of at most 1 MiB                                   │  into frames
//!  meta    ├────────────────────────────────────────────────────────────────┤  page-aligned
//!          │ META: magic, version, length, xxh3-128 · postcard of `Meta`    │  meta.rs, section.rs
//!          │ zeros up to the next page                                      │
//!  index   ├────────────────────────────────────────────────────────────────┤  page-aligned
//!          │ INDEX: magic, version, length, xxh3-128 ·                      │  table.rs, section.rs
//!          │   a count of runs, runs (address, pages, offset in the file),  │
//!          │   one xxh3-128 a frame                                         │
//!  length  └────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Pages that are zero or not present are in no run. All numbers are little endian. Every checksum is seeded with the
//! checkpoint's id, the rank, the section, the frame's number and the image's own seed (INV-6, [`Seal`]), so that a
//! frame of another checkpoint, another rank or another place does not pass. The header holds the checksums of META and
//! INDEX, and INDEX those of all frames: [`Header::identity`] therefore stands for every byte of the file.
//!
//! What a reader would get wrong: the writer is a forked child that may neither allocate nor lock. It uses only
//! [`RunTable`], [`Layout`], [`IndexBuf`], [`Seal`] and [`Header::encode`], all of which work in memory that the
//! caller gives; META is encoded by the parent, before the fork. The header is written last: without it, the file is
//! no image. Writer: *lower half* and frozen child; reader: *lower half* at a restart, and *next door*.
#![forbid(unsafe_code)]

mod cursor;
mod error;
mod file;
mod header;
mod meta;
mod pretty;
mod seal;
mod section;
mod table;

pub use error::{Error, Section};
pub use file::Image;
pub use header::{Header, VERSION};
pub use meta::{
    Cpu, Fd, FdKind, META_MAX, Meta, Mpi, Phase, Process, Region, Signals, Tcp, Thread, decode_meta,
    encode_meta,
};
pub use pretty::Pretty;
pub use seal::{Seal, frame_digest};
pub use section::SECTION_HEAD;
pub use table::{Frame, Index, IndexBuf, Layout, Run, RunTable, frames};

/// Bytes of a page; also the length of the header.
pub const PAGE: u64 = 4096;
/// Pages of the longest frame.
pub const FRAME_PAGES: u64 = 256;
/// First address that user space cannot have (x86-64, four-level tables); no run ends behind it.
pub const ADDR_END: u64 = 1 << 47;
