//! Brings the upper half in: maps the hook library, the application and a second dynamic loader into the window, makes
//! a fake vDSO and an initial stack, and jumps. Runs in the *lower half*, before the application exists.
//!
//! - [`elf`]: a parser of what a loader needs; pure, checks every length.
//! - [`place`]: reserves the window, maps segments, applies the hook library's relocations.
//! - [`vdso`]: makes the fake vDSO, one PT_LOAD; pure.
//! - [`stack`]: argv, envp, auxv; pure.
//! - [`switch`]: crossing to the other half and back, a guard.

pub mod elf;
pub mod error;
pub mod place;
pub mod stack;
pub mod switch;
pub mod vdso;

pub use error::Error;
