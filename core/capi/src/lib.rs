//! What a program may say about its own checkpoints: ask for one, forbid them for a while, be called around them, leave
//! memory out. *Upper half*; in a program that does not run under Stillpoint everything here is a harmless no-op.
//!
//! The same library is `libstillpoint.so` with `stillpoint.h` (module `c`), and this Rust crate, which a Rust program links
//! statically:
//!
//! ```
//! let kept = stillpoint::forbid(); // no checkpoint while this lives
//! drop(kept);
//! match stillpoint::checkpoint() {
//!     Ok(stillpoint::Checkpointed::Durable) => {}   // the checkpoint exists
//!     Ok(stillpoint::Checkpointed::Restarted) => {} // and this process has been restarted from it
//!     Ok(stillpoint::Checkpointed::Asked) => {}     // other ranks are in a collective call: it follows soon
//!     Err(stillpoint::Error::NotActive) => {}       // an ordinary run
//!     Err(e) => eprintln!("no checkpoint: {e}"),    // the program runs on; the last good one stands
//! }
//! ```
//!
//! - [`ask`]: is Stillpoint there, ask for a checkpoint, forbid and allow, counters.
//! - [`callbacks`]: what is called before a checkpoint, after it, and after a restart.
//! - [`exclude`]: memory that is not saved. `ranges` is its arithmetic.
//! - [`plugin`]: take part in checkpoints with something that lives below.
//!
//! What a reader would get wrong: a restart does not begin the program again. It goes on inside the call that it was in.

pub mod ask;
mod c;
pub mod callbacks;
pub mod exclude;
pub mod plugin;
mod ranges;

pub use ask::{Checkpointed, Error, Forbidden, active, checkpoint, checkpoints, forbid, restarts};
pub use callbacks::{Callbacks, on_checkpoint};
pub use exclude::{exclude, include};
