//! Raw access to the kernel and to the pages shared by the halves. Runs *anywhere*, also in a handler and across
//! the crossing: no TLS, no allocation, no libc.
//!
//! - [`raw`]: system calls by number.
//! - [`arch`]: FS base, XSAVE facts, sigreturn.
//! - [`maps`]: a parser of `/proc/self/maps` that allocates nothing.
//! - [`half`], [`upper`]: the shared pages.
#![no_std]

pub mod arch;
pub mod maps;
pub mod raw;
mod shared;

pub use shared::{half, thread_by_fs, upper};
