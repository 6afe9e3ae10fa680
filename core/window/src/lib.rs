//! The window of addresses that the upper half lives in. Used by the loader (*lower half*) and by the hook library
//! (*upper half*, no TLS, no libc, no allocation), on the same memory.
//!
//! - [`interval`]: which addresses are free; pure.
//! - [`patch`]: finds syscall sites in a text segment and writes the jumps; pure.
#![no_std]
#![forbid(unsafe_code)]

pub mod interval;
pub mod patch;
