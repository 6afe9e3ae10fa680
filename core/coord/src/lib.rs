//! The checkpoint protocol without any IO: what goes over the socket, and what each end does about it.
//!
//! - [`message`]: the messages and their frames.
//! - [`state`]: the coordinator, a state machine that eats events and a clock and gives back actions. Runs *next door*.
//! - [`interval`]: how often, when nobody has said.
//! - [`client`]: the rank's end, the same in small. Runs in the control thread of the *lower half*.
//!
//! What a reader would get wrong: nothing here reads a clock or a socket. Whoever drives a machine must perform the
//! actions in the order given, and hand in the messages of one connection in the order in which they were sent.
#![forbid(unsafe_code)]

pub mod client;
pub mod interval;
pub mod message;
pub mod state;
