//! The verbs front: a library with the name and the symbol versions of rdma-core's libibverbs.so.1, loaded in its place. *Upper
//! half*.
//!
//! - [`objects`]: what the application sees, and the real object behind it.
//! - [`below`]: functions of the real library. [`device`], [`card`], [`memory`], [`window`], [`handle`], [`queue`], [`cq`], [`group`], [`domain`],
//!   [`event`], [`pass`], [`extend`]: the chapters; `descriptor`, `notice`: what is waited for, and which events are the application's.
//! - [`post`]: work requests and completions, the hot path; `log`, `requests`, `ring`: what of these is open; `keys`: what regions are called;
//!   `patience`: messages that nobody receives.
//! - `cm`: connections by librdmacm.
//! - `world`: all objects; `front`: the commands of the still point; `drain`, `rebuild`: all of it again; `bound`, `rebind`: windows; `guarded`: regions of forbidden memory; `lone`: who has lost its other end; `names`: of queue pairs;
//!   `address`, `known`, `places`, `header`: where they are now; `present`: ports that the application does not know yet.
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
mod bound;
mod card;
mod cm;
mod cq;
mod descriptor;
mod device;
mod domain;
mod drain;
mod driver;
mod event;
mod extend;
mod front;
mod group;
mod guarded;
mod handle;
mod header;
mod keys;
mod known;
mod lock;
mod log;
mod lone;
mod memory;
mod names;
mod notice;
mod objects;
mod pass;
mod patience;
mod places;
mod post;
mod present;
mod queue;
mod rebind;
mod rebuild;
mod requests;
mod ring;
mod window;
mod world;
