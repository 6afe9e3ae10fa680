//! A model of the verbs: a library with the public ABI of libibverbs.so.1 whose devices are a thread and a socket. Loaded *downstairs* in the
//! place of the real one, or natively in the place of it.
//!
//! - [`wire`]: what goes from one device to another. [`engine`]: the device, which executes requests; [`windows`]: keys and memory
//!   windows; [`groups`]: multicast; [`xrc`]: extended connections. `abi`: what libibverbs exports.
//!
//! What it shows that soft-RoCE does not: InfiniBand's LIDs; numbers of queue pairs and keys from a small range, so that they
//! collide after a restart; acknowledgements that come late, after the other end has executed the request. The environment says
//! which device it is:
//!
//! | variable | |
//! | --- | --- |
//! | `MODEL_DIR` | where devices find each other: one "fabric" a directory. Its path is short: sockets lie there |
//! | `MODEL_HOST` | 1 to 120: the last byte of the addresses, and the LID |
//! | `MODEL_DEVICES` | 2: there are two devices, with keys and numbers of their own; the second one's addresses are by 128 higher |
//! | `MODEL_IB` | set: InfiniBand with LIDs, else RoCE |
//! | `MODEL_NULL` | set: a library that does nothing, for the bench: what is posted is done |
//! | `MODEL_DELAY` | the longest time, in microseconds, until a completion is seen |
//!
//! What a reader would get wrong: it is a model for tests, so where the real thing is undefined it stops the process with a message: a
//! completion queue that overruns, a key of nobody's in a local request.
#![allow(clippy::print_stderr, reason = "says why it stops the process")]
#![allow(
    unsafe_code,
    reason = "C structures of the verbs interface, by pointer, and the memory of the process"
)]

mod abi;
mod engine;
mod groups;
mod windows;
mod wire;
mod xrc;
