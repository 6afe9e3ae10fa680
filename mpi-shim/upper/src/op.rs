//! User operations: the library calls a trampoline of the lower half, which comes up to [`dispatch`]. Upper half.
//!
//! What a reader would get wrong: the trampoline belongs to a slot, not to a function, so that a new lower half can
//! offer the same slots; and the datatype that arrives is the library's, to be turned back into ours.
#![allow(unsafe_code, reason = "exports functions and is called from below")]

use core::ffi::{c_int, c_void};
use core::sync::atomic::Ordering::Relaxed;

use crate::cross::Inside;
use crate::errhandler::raise;
use crate::handles::{Datatype, Head, Kind, Language, Op, is_live, make, release, unmake};
use crate::state::lock;
use crate::{down, export, predefined};

const ERR_OP: c_int = 10;

/// The library's MPI_User_function for `slot`, made by the lower half.
pub fn lower_op_trampoline(slot: u32) -> usize {
    let up: unsafe extern "C" fn(u32, *mut c_void, *mut c_void, *const c_int, usize) = dispatch;
    down!(helper OpTrampoline(slot: u32 = slot, up: usize = (up as *const c_void).expose_provenance()) -> usize)
}

/// Calls the user's function; the trampoline has set the upper thread pointer.
unsafe extern "C" fn dispatch(
    slot: u32,
    input: *mut c_void,
    inout: *mut c_void,
    len: *const c_int,
    datatype: usize,
) {
    // SAFETY: the library passes what the standard says; the op lives while a reduction with it runs.
    unsafe {
        let (op, mut t) = {
            let s = lock();
            let t = s.types.iter().copied().find(|&t| (*t).head.real() == datatype);
            (s.ops.get(slot as usize).copied().unwrap_or(core::ptr::null_mut()), t)
        };
        if t.is_none() {
            t = crate::predefined::of_real(datatype).map(<*mut Head>::cast::<Datatype>);
        }
        let mut t = t.unwrap_or(predefined!(ompi_mpi_datatype_null as Datatype));
        if op.is_null() {
            return;
        }
        let f = core::ptr::with_exposed_provenance::<c_void>((*op).function);
        let mut n = *len;
        if (*op).vendor_flags.load(Relaxed) & 2 != 0 || (*op).language == Language::Fortran {
            let mut fint = crate::fortran::index(t.cast());
            let f: unsafe extern "C" fn(*mut c_void, *mut c_void, *mut c_int, *mut c_int) =
                core::mem::transmute(f);
            f(input, inout, &raw mut n, &raw mut fint);
        } else if (*op).language == Language::Cxx {
            type Cxx =
                unsafe extern "C" fn(*mut c_void, *mut c_void, *mut c_int, *mut *mut Datatype, *const c_void);
            let at = core::ptr::with_exposed_provenance::<c_void>((*op).interceptor);
            let g: Cxx = core::mem::transmute(at);
            g(input, inout, &raw mut n, &raw mut t, f);
        } else {
            type C = unsafe extern "C" fn(*mut c_void, *mut c_void, *mut c_int, *mut *mut Datatype);
            let f: C = core::mem::transmute(f);
            f(input, inout, &raw mut n, &raw mut t);
        }
    }
}

/// Makes the real operation of `op`: at creation, and again at a restart.
pub fn cook(op: &Op) -> c_int {
    let mut at = 0usize;
    let f = lower_op_trampoline(u32::try_from(op.slot).unwrap_or(0));
    let code =
        down!(MPI_Op_create(f: usize = f, c: c_int = op.commute, o: *mut usize = &raw mut at) -> c_int);
    op.head.set_real(at);
    code
}

export! {
    fn MPI_Op_create(function: usize, commute: c_int, op: *mut *mut Op) -> c_int {
        let o = make(Op { function, commute, ..Op::new(Head::new(Kind::Op, 0)) });
        {
            let mut s = lock();
            let free = s.ops.iter().position(|p| p.is_null());
            let slot = free.unwrap_or(s.ops.len());
            if slot >= stillpoint_mpi_table::MAX_OPS as usize {
                drop(s);
                unmake(o);
                return raise(core::ptr::null_mut(), ERR_OP, "MPI_Op_create");
            }
            if free.is_none() {
                s.ops.push(o);
            } else {
                s.ops[slot] = o;
            }
            (*o).slot = i32::try_from(slot).unwrap_or(-1);
        }
        *op = o;
        let code = {
            let _inside = Inside::enter();
            cook(&*o)
        };
        raise(core::ptr::null_mut(), code, "MPI_Op_create")
    }
    fn MPI_Op_free(op: *mut *mut Op) -> c_int {
        let o = *op;
        if !is_live(o, Kind::Op) || (*o).head.predefined >= 0 {
            return raise(core::ptr::null_mut(), ERR_OP, "MPI_Op_free");
        }
        let_go(o);
        *op = predefined!(ompi_mpi_op_null as Op);
        0
    }
    fn MPI_Op_commutative(op: *mut Op, commute: *mut c_int) -> c_int {
        if !is_live(op, Kind::Op) || op == predefined!(ompi_mpi_op_null as Op) {
            return raise(core::ptr::null_mut(), ERR_OP, "MPI_Op_commutative");
        }
        *commute = (*op).commute;
        0
    }
}

/// One holder less; at the last one the real operation and its slot are freed.
///
/// # Safety
/// `op` is live and held by the caller.
pub unsafe fn let_go(op: *mut Op) {
    // SAFETY: the caller's promise.
    unsafe {
        if !release(op) {
            return;
        }
        let _inside = Inside::enter();
        let mut at = (*op).head.real();
        down!(MPI_Op_free(o: *mut usize = &raw mut at) -> c_int);
        let slot = usize::try_from((*op).slot).unwrap_or(usize::MAX);
        if let Some(p) = lock().ops.get_mut(slot) {
            *p = core::ptr::null_mut();
        }
        unmake(op);
    }
}
