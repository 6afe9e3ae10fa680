//! Generalized requests: those that the application completes itself, by its own functions. Upper half.
//!
//! What a reader would get wrong: the free function runs once the request is both complete and given up, by whichever
//! of a completing call, MPI_Request_free and MPI_Grequest_complete comes last, and never under the lock of `ledger.rs`:
//! it may call MPI.
#![allow(unsafe_code, reason = "calls the application's functions")]

use crate::completion::raise;
use crate::export;
use crate::handles::{self, Status};
use crate::request::{Does, ERR_REQUEST, Request, SUCCESS, UNDEFINED, begin, null};
use core::ffi::{c_int, c_void};

/// The application's functions of a generalized request, and what they get.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Generalized {
    query: usize,
    free: usize,
    cancel: usize,
    extra: usize,
}

impl Generalized {
    /// Status and code of the complete request.
    ///
    /// # Safety
    /// The application has not been told of the end of the request, and access to the ledger is not held.
    pub(crate) unsafe fn query(self) -> (Status, c_int) {
        let mut s = Status { source: UNDEFINED, tag: UNDEFINED, ..Status::EMPTY };
        // SAFETY: the application gave a function of this type.
        let code = unsafe {
            let f =
                core::mem::transmute::<usize, unsafe extern "C" fn(usize, *mut Status) -> c_int>(self.query);
            f(self.extra, &raw mut s)
        };
        (s, code)
    }

    /// The request is gone.
    ///
    /// # Safety
    /// Called once, and access to the ledger is not held.
    pub(crate) unsafe fn free(self) -> c_int {
        // SAFETY: the application gave a function of this type.
        unsafe {
            let f = core::mem::transmute::<usize, unsafe extern "C" fn(usize) -> c_int>(self.free);
            f(self.extra)
        }
    }

    /// The request is to be cancelled, `complete` or not.
    ///
    /// # Safety
    /// The request is not gone, and access to the ledger is not held.
    pub(crate) unsafe fn cancel(self, complete: bool) -> c_int {
        // SAFETY: the application gave a function of this type.
        unsafe {
            let f = core::mem::transmute::<usize, unsafe extern "C" fn(usize, c_int) -> c_int>(self.cancel);
            f(self.extra, c_int::from(complete))
        }
    }
}

export! {
    fn MPI_Grequest_start(query: *mut c_void, free: *mut c_void, cancel: *mut c_void, extra: *mut c_void,
                          request: *mut *mut Request) -> c_int {
        let mut r = Request::new(Does::Generalized);
        r.generalized = Some(Generalized {
            query: query.expose_provenance(),
            free: free.expose_provenance(),
            cancel: cancel.expose_provenance(),
            extra: extra.expose_provenance(),
        });
        let mut p = begin();
        let r = handles::make(r);
        p.enlist(r);
        *request = r;
        SUCCESS
    }

    fn MPI_Grequest_complete(request: *mut Request) -> c_int {
        if request == null() {
            return raise(core::ptr::null_mut(), ERR_REQUEST);
        }
        let mut p = begin();
        (*request).done = true;
        if (*request).orphan {
            let g = (*request).generalized;
            p.end(request);
            drop(p);
            if let Some(g) = g {
                return g.free();
            }
        }
        SUCCESS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" fn query(extra: usize, status: *mut Status) -> c_int {
        // SAFETY: the status that `Generalized::query` passes.
        unsafe {
            assert_eq!(((*status).source, (*status).tag), (UNDEFINED, UNDEFINED));
            (*status).ucount = extra;
        }
        3
    }
    unsafe extern "C" fn free(extra: usize) -> c_int {
        extra as c_int
    }
    unsafe extern "C" fn cancel(extra: usize, complete: c_int) -> c_int {
        extra as c_int + complete
    }

    #[test]
    fn the_functions_get_what_was_given_for_them() {
        let address = |f: *const ()| f.expose_provenance();
        let g = Generalized {
            query: address(query as *const ()),
            free: address(free as *const ()),
            cancel: address(cancel as *const ()),
            extra: 40,
        };
        // SAFETY: functions of the right types.
        unsafe {
            let (s, code) = g.query();
            assert_eq!((s.ucount, code), (40, 3));
            assert_eq!((g.free(), g.cancel(true), g.cancel(false)), (40, 41, 40));
        }
    }
}
