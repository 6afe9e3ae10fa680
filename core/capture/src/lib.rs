//! Capture and restore of one process. *Lower half*: the control thread captures, the main thread of a fresh
//! `stillpoint-rank` restores; the memory itself is written by the frozen child or, directly, by the control thread.
//!
//! In the order of a checkpoint: [`pause`] brings every upper thread to stand still, [`gather`] describes the process
//! (threads, signals, descriptors, regions) and says what cannot be saved, [`write`] writes the image. [`restart`] undoes
//! all three. `pending` is about signals that wait, `room` about memory and disk space for the image.

mod excluded;
pub mod gather;
pub mod pause;
mod pending;
pub mod restart;
mod room;
pub mod tcp;
pub mod write;
