//! The MPI front: a library with the name and the symbols of Open MPI's libmpi.so.40, loaded in its place. Upper half.
//!
//! - [`handles`]: the objects behind the application's handles; [`predefined`]: those with fixed names.
//! - [`cross`]: the way down; [`export`](crate::export): the way in; [`wrap`]: regular functions, from the table.
//! - [`comm`], [`group`], [`types`], [`op`], [`info`], [`attr`], [`errhandler`], [`env`](mod@env): the chapters.
//! - [`fortran`]: integer handles.
//!
//! What a reader would get wrong: nothing here is meant to work outside of a process with two halves.

extern crate alloc;

/// Memory of our own: at the still point a stopped thread may hold the lock of the application's malloc.
#[cfg(not(test))]
#[global_allocator]
static MEMORY: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

pub mod attr;
mod clock;
mod clocks;
mod collective;
pub mod comm;
mod completion;
pub mod cross;
pub mod cxx;
mod drain;
mod dynamic;
pub mod env;
pub mod errhandler;
mod export;
mod f90;
mod file;
pub mod fortran;
mod front;
pub mod group;
pub mod handles;
pub mod info;
mod ledger;
mod matching;
pub mod op;
mod p2p;
pub mod predefined;
mod rebuild;
mod refused;
mod request;
pub mod state;
pub mod topology;
pub mod types;
mod win;
pub mod wrap;
pub use types as datatype;
