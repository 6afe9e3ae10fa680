//! What every part of Stillpoint agrees on: names of things, the layout of the pages through which the two halves
//! of a rank talk, the stages of a checkpoint. No code runs here that touches memory; see `stillpoint-sys` for that.
//!
//! - [`half`]: the two shared pages, [`half::Half`] (lower half's, made anew at each start) and [`half::Upper`]
//!   (upper half's, saved in the image).
//! - [`ids`]: [`ids::Rank`], [`ids::CkptId`], [`ids::Incarnation`].
//! - [`plugin`]: who takes part in checkpoints with something below.
//! - [`records`]: lists of messages to and from peers, as the halves hand them to each other.
//! - [`stage`]: the stages of a checkpoint, in order.
#![no_std]
#![forbid(unsafe_code)]

pub mod half;
pub mod ids;
pub mod plugin;
pub mod records;
pub mod stage;
