//! The kinds of arguments that the table's rows have: their C types, and what goes down for them. Upper half.
//!
//! What a reader would get wrong: kinds of regular rows stand here. A pointer to handles means something else in each
//! chapter, so a row that has one does not compile as a regular one unless it is told here how to translate it.
#![allow(unsafe_code, reason = "handles are raw pointers that the application passes in")]

use core::ffi::{c_int, c_void};

use crate::handles::{Comm, Datatype, File, Op, Status, Win, real};

/// The application's type for a kind.
macro_rules! ty {
    (int) => { core::ffi::c_int };
    (aint) => { isize };
    (double) => { f64 };
    (ptr) => { *mut core::ffi::c_void };
    (intP) => { *mut core::ffi::c_int };
    (aintP) => { *mut isize };
    (StatusP) => { *mut $crate::handles::Status };
    (Comm) => { *mut $crate::handles::Comm };
    (Datatype) => { *mut $crate::handles::Datatype };
    (Op) => { *mut $crate::handles::Op };
    (Win) => { *mut $crate::handles::Win };
    (File) => { *mut $crate::handles::File };
}
pub(crate) use ty;

/// An argument of the application, as the library takes it.
pub(crate) trait Lower {
    /// The library's type.
    type Low;

    /// # Safety
    /// A handle is null or one of the application's.
    unsafe fn lower(self) -> Self::Low;
}

macro_rules! as_it_is {
    ($($t:ty),*) => { $(
        impl Lower for $t {
            type Low = $t;
            #[inline(always)]
            unsafe fn lower(self) -> $t {
                self
            }
        }
    )* };
}
as_it_is!(c_int, isize, f64, *mut c_void, *mut c_int, *mut isize, *mut Status);

macro_rules! handles {
    ($($t:ty),*) => { $(
        impl Lower for *mut $t {
            type Low = usize;
            #[inline(always)]
            unsafe fn lower(self) -> usize {
                // SAFETY: the caller's promise.
                unsafe { real(self) }
            }
        }
    )* };
}
handles!(Comm, Datatype, Op, Win, File);
