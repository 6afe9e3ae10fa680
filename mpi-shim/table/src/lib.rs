//! Every MPI function once: name, policy, result and argument kinds. Both halves are made from these rows, so the slot
//! of a function means the same in both. Nothing runs here.
//!
//! - [`for_each_mpi!`]: the rows, all chapters in one list: `[MPI_Name policy result (argument: kind, …)]`.
//! - [`for_each_predefined!`]: the predefined objects.
//! - [`Fn`]: the number of a function, which is its slot in `Half::back`; behind the functions lie the addresses of the
//!   predefined objects ([`predefined_slot`]), behind those the helpers beside the library ([`Helper`]).
//!
//! ```text
//!   Half::back   0 ………… N_FN │ N_FN ………… + N_PREDEFINED │ helper_slot(…)
//!                PMPI_ functions │ ompi_mpi_comm_world …   │ trampolines, wait loops
//! ```
//!
//! Policies: `plain` (translate handles, cross, translate back), `tool` (the same, errors only returned),
//! `collective` (the same within the communicator's
//! collective clock), `initiates` (a non-blocking collective), `blocks` (waits for a peer), `hand` (irregular).
//! Kinds: `int`, `aint` (any 64-bit integer), `double`, `ptr`, `intP`, `aintP`, `StatusP`, a handle (`Comm`), or a
//! pointer to handles (`CommP`).
//!
//! What a reader would get wrong: the order of rows is the wire between the halves of one start, not of an image. An
//! image keeps no slot, so rows may move between versions.
#![no_std]
#![forbid(unsafe_code)]

mod coll;
mod comm;
mod env;
mod group;
mod io;
mod p2p;
mod predefined;
mod rma;
mod tool;
mod types;

/// Calls `$cb!` with all rows.
#[macro_export]
macro_rules! for_each_mpi {
    ($($cb:ident)::+) => { $crate::__rows_env! { $($cb)::+ { } } };
}

macro_rules! functions {
    ($([$name:ident $policy:ident $ret:ident ($($arg:ident: $kind:ident),*)])*) => {
        /// The functions, in the order of the rows; the value is the slot.
        #[allow(non_camel_case_types, reason = "the standard's names")]
        #[allow(missing_docs, reason = "the standard describes them")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Fn { $($name),* }

        /// Number of functions.
        pub const N_FN: usize = [$(Fn::$name as usize),*].len();
        /// Names, without a closing zero.
        pub const NAMES: [&str; N_FN] = [$(stringify!($name)),*];
        /// What the back looks up for each slot.
        pub const PROFILING_NAMES: [&core::ffi::CStr; N_FN] = [$(
            match core::ffi::CStr::from_bytes_with_nul(concat!("P", stringify!($name), "\0").as_bytes()) {
                Ok(s) => s,
                Err(_) => panic!(),
            }
        ),*];
        /// Policies, for the coverage page.
        pub const POLICIES: [&str; N_FN] = [$(stringify!($policy)),*];
    };
}
for_each_mpi!(functions);

macro_rules! predefined {
    ($([$symbol:ident $kind:ident $size:tt $fint:tt $name:literal])*) => {
        /// The predefined objects, in the order of the rows.
        #[allow(non_camel_case_types, reason = "the library's names")]
        #[allow(missing_docs, reason = "the library's names")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Predefined { $($symbol),* }

        /// Number of predefined objects.
        pub const N_PREDEFINED: usize = [$(Predefined::$symbol as usize),*].len();
        /// Their symbols, as the back looks them up.
        pub const PREDEFINED_SYMBOLS: [&core::ffi::CStr; N_PREDEFINED] = [$(
            match core::ffi::CStr::from_bytes_with_nul(concat!(stringify!($symbol), "\0").as_bytes()) {
                Ok(s) => s,
                Err(_) => panic!(),
            }
        ),*];
        /// Symbol and size of each.
        pub const PREDEFINED: [(&str, usize); N_PREDEFINED] = [$((stringify!($symbol), $size)),*];
    };
}
for_each_predefined!(predefined);

/// Slot of the address of a predefined object of the library.
pub const fn predefined_slot(index: usize) -> usize {
    N_FN + index
}

/// Functions of ours that stand beside the library, below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Helper {
    /// `extern "C" fn(slot: u32, upper: usize) -> usize`: the MPI_User_function for user operation `slot`. When the
    /// library calls it, it goes up and calls `upper(slot, in, inout, len: *const i32, real type: usize)`.
    OpTrampoline,
    /// Makes a test loop over one request: `fn(request: *mut usize, status: *mut Status, flags) -> i32`.
    Wait,
    /// The same until any of several is complete.
    WaitAny,
    /// Probe until there is a message.
    Probe,
    /// Matched probe until there is a message.
    Mprobe,
    /// One call: MPI_Isend and the loop.
    Send,
    /// One call: MPI_Irecv and the loop.
    Recv,
}

/// Number of helpers for which room is kept.
pub const N_HELPERS: usize = 64;
/// User operations that can exist at one time.
pub const MAX_OPS: u32 = 256;

/// Slot of a helper.
pub const fn helper_slot(h: Helper) -> usize {
    N_FN + N_PREDEFINED + h as usize
}

const _: () = assert!(N_FN + N_PREDEFINED + N_HELPERS <= 2048, "no more room in Half::back");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_follow_the_names() {
        assert_eq!(NAMES[Fn::MPI_Send as usize], "MPI_Send");
        assert_eq!(PROFILING_NAMES[Fn::MPI_Send as usize], c"PMPI_Send");
        assert_eq!(PREDEFINED[Predefined::ompi_mpi_comm_world as usize], ("ompi_mpi_comm_world", 512));
    }

    #[test]
    fn no_name_twice() {
        for (i, n) in NAMES.iter().enumerate() {
            assert!(!NAMES[i + 1..].contains(n), "{n}");
        }
    }
}
