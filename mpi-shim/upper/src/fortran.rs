//! Fortran: integer handles, and the internals of Open MPI that its own Fortran libraries need from us. Upper half.
//!
//! What a reader would get wrong: integers are given out on the first c2f and taken back when the object ends; the
//! predefined ones are the constants of mpif.h.
#![allow(unsafe_code, reason = "exports functions and data")]
#![allow(non_upper_case_globals, reason = "the library's names")]

use core::ffi::c_int;
use core::sync::atomic::{AtomicI32, Ordering::Relaxed};

use crate::export;
use crate::handles::{Comm, Datatype, Errhandler, File, Group, Head, Info, Kind, N_KINDS, Op, Status, Win};
use crate::predefined::address;
use crate::request::Request;
use crate::state::lock;

/// Open MPI's own word for its life: 2 after MPI_Init, 5 after MPI_Finalize. The Fortran libraries read it.
#[unsafe(no_mangle)]
pub static ompi_mpi_state: AtomicI32 = AtomicI32::new(0);

/// Fixed integers below this one may be predefined; ours begin here.
const FIRST: usize = 128;

/// The integer of `object`, given out now if it has none.
///
/// # Safety
/// `object` begins with a [`Head`].
pub unsafe fn index(object: *mut Head) -> c_int {
    if object.is_null() {
        return -1;
    }
    // SAFETY: the caller's promise.
    let head = unsafe { &*object };
    let have = head.fint.load(Relaxed);
    if have >= 0 {
        return have;
    }
    let mut s = lock();
    let table = &mut s.fortran[head.kind as usize];
    let at = match table.iter().position(|p| p.is_null()) {
        Some(i) => {
            table[i] = object;
            i
        }
        None => {
            table.push(object);
            table.len() - 1
        }
    };
    let i = c_int::try_from(at + FIRST).unwrap_or(-1);
    head.fint.store(i, Relaxed);
    if head.kind == Kind::Request {
        // SAFETY: every request but the predefined one, which has its integer, is one of these.
        unsafe { (*object.cast::<Request>()).fortran.store(i, Relaxed) };
    }
    i
}

/// The object of integer `i`; null if there is none.
pub fn object(kind: Kind, i: c_int) -> *mut Head {
    let Ok(i) = usize::try_from(i) else { return core::ptr::null_mut() };
    if i >= FIRST {
        return lock().fortran[kind as usize].get(i - FIRST).copied().unwrap_or(core::ptr::null_mut());
    }
    (0..stillpoint_mpi_table::N_PREDEFINED)
        .map(address)
        // SAFETY: predefined objects begin with a head.
        .find(|&o| unsafe { (*o).kind == kind && usize::try_from((*o).fint.load(Relaxed)) == Ok(i) })
        .unwrap_or(core::ptr::null_mut())
}

/// Takes the integer of an object that ends back.
pub fn forget(head: &Head) {
    let Ok(i) = usize::try_from(head.fint.load(Relaxed)) else { return };
    debug_assert!((head.kind as usize) < N_KINDS);
    if i >= FIRST
        && let Some(p) = lock().fortran[head.kind as usize].get_mut(i - FIRST)
    {
        *p = core::ptr::null_mut();
    }
}

macro_rules! pair {
    ($($kind:ident $t:ty: $c2f:ident $f2c:ident;)*) => {
        export! { $(
            fn $c2f(handle: *mut $t) -> c_int {
                index(handle.cast())
            }
            fn $f2c(i: c_int) -> *mut $t {
                object(Kind::$kind, i).cast()
            }
        )* }
    };
}
pair! {
    Comm Comm: MPI_Comm_c2f MPI_Comm_f2c;
    Datatype Datatype: MPI_Type_c2f MPI_Type_f2c;
    Group Group: MPI_Group_c2f MPI_Group_f2c;
    Op Op: MPI_Op_c2f MPI_Op_f2c;
    Win Win: MPI_Win_c2f MPI_Win_f2c;
    File File: MPI_File_c2f MPI_File_f2c;
    Info Info: MPI_Info_c2f MPI_Info_f2c;
    Errhandler Errhandler: MPI_Errhandler_c2f MPI_Errhandler_f2c;
}

const _: () = assert!(size_of::<Status>() == 6 * size_of::<c_int>());

export! {
    fn MPI_Request_c2f(handle: *mut Head) -> c_int {
        index(handle)
    }
    fn MPI_Request_f2c(i: c_int) -> *mut Head {
        object(Kind::Request, i)
    }
    fn MPI_Message_c2f(handle: *mut Head) -> c_int {
        index(handle)
    }
    fn MPI_Message_f2c(i: c_int) -> *mut Head {
        object(Kind::Message, i)
    }
    fn MPI_Status_c2f(c: *const Status, f: *mut c_int) -> c_int {
        core::ptr::copy_nonoverlapping(c.cast::<c_int>(), f, 6);
        0
    }
    fn MPI_Status_f2c(f: *const c_int, c: *mut Status) -> c_int {
        core::ptr::copy_nonoverlapping(f, c.cast::<c_int>(), 6);
        0
    }
    fn MPI_Status_set_cancelled(status: *mut Status, flag: c_int) -> c_int {
        (*status).cancelled = flag;
        0
    }
    fn MPI_Test_cancelled(status: *const Status, flag: *mut c_int) -> c_int {
        *flag = c_int::from((*status).cancelled != 0);
        0
    }
}
