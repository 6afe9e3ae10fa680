//! Fortran types by precision and range. Upper half.
//!
//! What a reader would get wrong: each of them is named once and for all. Asking twice gives the same handle, which the
//! application must not free; the library keeps such types of its own, and so do we, with a recipe to ask again.
#![allow(unsafe_code, reason = "exports functions")]

use core::ffi::c_int;

use crate::export;
use crate::handles::{Datatype, FLAG_COMMITTED, retain};
use crate::state::lock;
use crate::types::combiner;

/// The type of `ints`, known or new.
unsafe fn by_precision(combiner: c_int, ints: Vec<c_int>, new: *mut *mut Datatype, name: &str) -> c_int {
    // SAFETY: the application passes a place for a handle; the types in the list are live.
    unsafe {
        let have = {
            let s = lock();
            s.types.iter().copied().find(|&t| {
                let Some(r) = &(*t).recipe else { return false };
                r.combiner == combiner && r.ints == ints
            })
        };
        if let Some(t) = have {
            *new = t;
            return 0;
        }
        let code = crate::types::create(combiner, ints, Vec::new(), Vec::new(), new, name);
        if code == 0 {
            (**new).head.set(FLAG_COMMITTED);
            // It never ends.
            retain(*new);
        }
        code
    }
}

export! {
    fn MPI_Type_create_f90_real(p: c_int, r: c_int, new: *mut *mut Datatype) -> c_int {
        by_precision(combiner::F90_REAL, vec![p, r], new, "MPI_Type_create_f90_real")
    }
    fn MPI_Type_create_f90_complex(p: c_int, r: c_int, new: *mut *mut Datatype) -> c_int {
        by_precision(combiner::F90_COMPLEX, vec![p, r], new, "MPI_Type_create_f90_complex")
    }
    fn MPI_Type_create_f90_integer(r: c_int, new: *mut *mut Datatype) -> c_int {
        by_precision(combiner::F90_INTEGER, vec![r], new, "MPI_Type_create_f90_integer")
    }
}
