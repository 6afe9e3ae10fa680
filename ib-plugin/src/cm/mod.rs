//! Connections by librdmacm: the application's own library runs as it is, and what it says to the kernel goes through here. *Upper half*.
//!
//! ```text
//!   librdmacm.so.1 ──open, write, close──▶ [`command`] ──▶ /dev/infiniband/rdma_cm, opened anew in each start
//!        │                                    │
//!        └── ibv_… ──▶ this front             └─ [`state`]: what there is  ─▶ [`again`]: all of it, after a restart
//! ```
//!
//! - `hook`: how its calls come here. `wire`: commands and answers. `state`: ids, and how far each is.
//! - `command`: one command, with the names of this start for those that the application knows; `answer`: the way back.
//! - `event`: what the kernel tells. `again`: ids anew, and connections between those that were connected.
//!
//! What a reader would get wrong: queue pairs are not connected here. librdmacm brings them up by `ibv_modify_qp`, through this front, and after a
//! restart they are connected as all others are; what is made again here is the connection manager's knowledge of them, for the day when
//! one end leaves.

use crate::lock::Lock;

pub(crate) mod address;
pub(crate) mod again;
mod answer;
mod command;
pub(crate) mod event;
pub(crate) mod hook;
mod state;
mod wire;

/// What there is. Its lock is never held over a command that may take long.
static MANAGER: Lock<state::Manager> = Lock::new(state::Manager::new());

/// Descriptors of the application's that are channels.
pub(crate) fn channels() -> Vec<i32> {
    MANAGER.with(|m| m.channels.keys().copied().collect())
}
