//! The verbs front: a library with the name and the symbol versions of rdma-core's libibverbs.so.1, loaded in its place. *Upper
//! half*.
//!
//! - [`objects`]: what the application sees, and the real object behind it.
//! - [`below`]: functions of the real library. [`device`], [`memory`], [`queue`], [`event`], [`pass`], [`extend`]: the
//!   chapters.
//! - [`post`]: work requests and completions, the hot path; `log`, `requests`, `ring`: what of these is open; `keys`: what regions are called.
//! - `world`: all objects; `front`: the commands of the still point; `drain`, `rebuild`: all of it again; `names`: of queue pairs;
//!   `address`: where they are now.
//!
//! What a reader would get wrong: applications call much of the verbs by function pointers in structures (verbs.h does so inline), so an
//! object of ours begins as the public header says, with our functions in its table.
#![allow(unsafe_code, reason = "C structures of the verbs interface, by pointer")]

/// Memory of our own: at the still point a stopped thread may hold the lock of the application's malloc.
#[cfg(not(test))]
#[global_allocator]
static MEMORY: stillpoint_loader::switch::Guarded<dlmalloc::GlobalDlmalloc> =
    stillpoint_loader::switch::Guarded(dlmalloc::GlobalDlmalloc);

mod address;
mod below;
mod device;
mod drain;
mod driver;
mod event;
mod extend;
mod front;
mod keys;
mod log;
mod memory;
mod names;
mod objects;
mod pass;
mod post;
mod queue;
mod rebuild;
mod requests;
mod ring;
mod world;
