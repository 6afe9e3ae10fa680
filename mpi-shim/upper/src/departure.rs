//! The end of a communicator. Upper half.
//!
//! ```text
//!   MPI_Comm_free ─▶ depart: all members count it ─▶ last holder lets go ─▶ end: freed below, its clock stops
//! ```
//!
//! What a reader would get wrong: a communicator that the application has freed lives on while requests hold it, and for
//! ever (FLAG_KEPT) if some member has persistent requests on it.
#![allow(unsafe_code, reason = "exports functions")]

use core::ffi::c_int;
use core::sync::atomic::Ordering::Relaxed;

use alloc::boxed::Box;

use stillpoint_abi::half::refuse;

use crate::clock::Within;
use crate::comm::check_comm;
use crate::cross::Inside;
use crate::errhandler::{ERR_COMM, put, raise};
use crate::handles::{Comm, Datatype, FLAG_FREED, FLAG_KEPT, Op, real, release, retain, unmake};
use crate::request::Does;
use crate::state::lock;
use crate::{down, export, predefined};

/// The real object is freed, and the clock stops.
///
/// # Safety
/// `c` is live, and its last holder has let go of it.
pub(crate) unsafe fn end(c: *mut Comm) {
    // SAFETY: the caller's promise.
    unsafe {
        let _inside = Inside::enter();
        let mut at = (*c).head.real();
        if at != 0 {
            // Local in Open MPI: nobody is waited for.
            down!(MPI_Comm_free(c: *mut usize = &raw mut at) -> c_int);
        }
        crate::clocks::retire((*c).clock);
        crate::request::begin().store.forget((*c).gid);
        put((*c).errhandler);
        lock().comms.retain(|&o| o != c);
        if !(*c).known {
            crate::front::refused(refuse::STRANGERS).fetch_sub(1, Relaxed);
        }
        unmake(c);
    }
}

/// The application has freed its handle: what remains to be done by all members.
///
/// Freeing is counted like a non-blocking collective, and one that nobody waits for tells when all members have
/// counted it. Until then the clock stands, so that no checkpoint finds the communicator here and not there. The same
/// collective agrees on whether some member has persistent requests on it: they can be started again for ever, so all
/// members keep it.
unsafe fn depart(c: *mut Comm) {
    // SAFETY: a live communicator of the application, not a predefined one.
    unsafe {
        if (*c).inter && (*c).persistent != 0 {
            // The members cannot agree by one collective: each side hears of the other only.
            crate::front::refused(refuse::FREED).fetch_add(1, Relaxed);
        }
        if (*c).known && (*c).head.real() != 0 && (*c).local.len() + (*c).remote.len() > 1 {
            let _clock = Within::enter(c);
            let _inside = Inside::enter();
            let mut q = 0usize;
            (*c).head.set(FLAG_FREED);
            let wanted = Box::into_raw(Box::new([c_int::from((*c).persistent != 0), 0]));
            let (from, to) = (wanted.cast::<c_int>().cast_const(), wanted.cast::<c_int>().add(1));
            let (ty, op) =
                (real(predefined!(ompi_mpi_int as Datatype)), real(predefined!(ompi_mpi_op_max as Op)));
            let code = if (*c).inter {
                down!(MPI_Ibarrier(c: usize = real(c), q: *mut usize = &raw mut q) -> c_int)
            } else {
                down!(MPI_Iallreduce(s: *const c_int = from, r: *mut c_int = to, n: c_int = 1, t: usize = ty,
                    o: usize = op, c: usize = real(c), q: *mut usize = &raw mut q) -> c_int)
            };
            if code == 0 {
                let at = c.expose_provenance();
                let then: Box<dyn FnOnce()> = Box::new(move || {
                    if Box::from_raw(wanted)[1] != 0 {
                        let c = core::ptr::with_exposed_provenance_mut::<Comm>(at);
                        (*c).head.set(FLAG_KEPT);
                        retain(c);
                    }
                });
                crate::request::adopt_orphan(q, Does::Collective, c, then);
            }
        } else {
            (*c).head.set(FLAG_FREED);
            if (*c).persistent != 0 {
                (*c).head.set(FLAG_KEPT);
                retain(c);
            }
        }
        if release(c) {
            end(c);
        }
    }
}

export! {
    fn MPI_Comm_free(comm: *mut *mut Comm) -> c_int {
        let c = *comm;
        check_comm!(c, "MPI_Comm_free");
        if (*c).head.predefined >= 0 {
            return raise(c.cast(), ERR_COMM, "MPI_Comm_free");
        }
        let code = crate::attr::delete_all(c.cast());
        if code != 0 {
            return raise(c.cast(), code, "MPI_Comm_free");
        }
        depart(c);
        *comm = predefined!(ompi_mpi_comm_null as Comm);
        0
    }
    fn MPI_Comm_disconnect(comm: *mut *mut Comm) -> c_int {
        let c = *comm;
        check_comm!(c, "MPI_Comm_disconnect");
        if (*c).head.predefined >= 0 {
            return raise(c.cast(), ERR_COMM, "MPI_Comm_disconnect");
        }
        crate::completion::wait_for_comm(c);
        if (*c).known {
            // All members come here, as in the library's own; a barrier that can be interrupted.
            let mut q = crate::request::null();
            let code = crate::collective::MPI_Ibarrier(c, &raw mut q);
            if code != 0 {
                return code;
            }
            crate::request::MPI_Wait(&raw mut q, core::ptr::null_mut());
            return MPI_Comm_free(comm);
        }
        let code = crate::attr::delete_all(c.cast());
        if code != 0 {
            return raise(c.cast(), code, "MPI_Comm_disconnect");
        }
        let mut at = real(c);
        let code = down!(MPI_Comm_disconnect(c: *mut usize = &raw mut at) -> c_int);
        (*c).head.set_real(0);
        depart(c);
        *comm = predefined!(ompi_mpi_comm_null as Comm);
        raise(core::ptr::null_mut(), code, "MPI_Comm_disconnect")
    }
}
