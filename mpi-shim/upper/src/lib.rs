//! The MPI front: a library with the name and the symbols of Open MPI's libmpi.so.40, loaded in its place. Upper half.
//!
//! - [`handles`]: what the application sees; [`objects`]: what is behind; [`predefined`]: those with fixed names.
//! - [`cross`]: the way down; [`export`](crate::export): the way in; [`wrap`]: regular functions, from the table.
//! - [`comm`], `intercomm`, `departure`, [`topology`], [`group`], [`types`], [`op`], [`info`], [`attr`], `names`,
//!   [`errhandler`], [`env`](mod@env): the chapters; `win`, `file`, `dynamic`: those that are passed through.
//! - `p2p`, `buffered`, `probe`, `collective`: messages; `request`, `ledger`, `completion`, `generalized`: requests.
//! - `drain`, `matching`, `delivery`: messages brought home, and given out; `rebuild`: real objects after a restart.
//! - [`fortran`]: integer handles; [`cxx`]: what the vendor's Fortran and C++ libraries import.
//!
//! What a reader would get wrong: nothing here is meant to work outside of a process with two halves.

extern crate alloc;

/// Memory of our own: at the still point a stopped thread may hold the lock of the application's malloc.
#[cfg(not(test))]
#[global_allocator]
static MEMORY: stillpoint_loader::switch::Guarded<dlmalloc::GlobalDlmalloc> =
    stillpoint_loader::switch::Guarded(dlmalloc::GlobalDlmalloc);

pub mod attr;
mod buffered;
mod clock;
mod clocks;
mod collective;
pub mod comm;
mod completion;
pub mod cross;
pub mod cxx;
mod delivery;
mod departure;
mod drain;
mod dynamic;
pub mod env;
pub mod errhandler;
mod export;
mod f90;
mod file;
pub mod fortran;
mod front;
mod generalized;
pub mod group;
pub mod handles;
pub mod info;
mod intercomm;
mod kinds;
mod ledger;
mod matching;
mod names;
pub mod objects;
pub mod op;
mod p2p;
pub mod predefined;
mod probe;
mod rebuild;
mod refused;
mod request;
pub mod state;
mod tool;
pub mod topology;
pub mod types;
mod win;
pub mod wrap;
pub use types as datatype;
