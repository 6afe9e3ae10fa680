//! The tool interface (MPI 3.1, chapter 14): its begin and end, what it lends, and what tells a datatype. The other calls are
//! regular rows. Upper half.
//!
//! What a reader would get wrong: these calls may come before MPI_Init, so each loads the library first; and a variable's
//! type is always a predefined one. Handles and sessions are the library's own, so a checkpoint is refused while there are
//! any; MPI_T_init_thread is called again after a restart.
#![allow(unsafe_code, reason = "exports functions")]

use core::ffi::{c_int, c_void};

use core::sync::atomic::Ordering::Relaxed;

use stillpoint_abi::half::refuse;
use stillpoint_sys::upper;

use crate::cross::Inside;
use crate::handles::Datatype;
use crate::state::{Life, lock};
use crate::{down, export, predefined};

/// Writes our handle for the library's `real`, where the application wants it.
unsafe fn tell(to: *mut *mut Datatype, real: usize) {
    if !to.is_null() {
        let null = predefined!(ompi_mpi_datatype_null as Datatype);
        // SAFETY: the application's place for a handle.
        unsafe { *to = crate::predefined::of_real(real).map_or(null, |o| o.cast()) };
    }
}

/// MPI_T_init_thread of the library: its code and the level that it gives.
pub(crate) fn start(required: c_int) -> (c_int, c_int) {
    let mut provided: c_int = 0;
    let code = down!(MPI_T_init_thread(r: c_int = required, p: *mut c_int = &raw mut provided) -> c_int);
    (code, provided)
}

/// Counts what the library lends.
fn lent(code: c_int, by: i32) -> c_int {
    if code == 0 {
        let n = &upper().refusals[refuse::TOOLS];
        if by > 0 {
            n.fetch_add(1, Relaxed)
        } else {
            n.fetch_sub(1, Relaxed)
        };
    }
    code
}

export! {
    fn MPI_T_init_thread(required: c_int, provided: *mut c_int) -> c_int {
        let _inside = Inside::enter();
        crate::env::load();
        // Begun once below, however often here: after a restart there is one call as well.
        let (calls, before) = lock().tools;
        let (code, got) = if calls == 0 { start(required) } else { (0, before) };
        if code == 0 {
            *provided = got;
            let mut s = lock();
            s.tools = (calls + 1, got);
            if calls == 0 {
                s.tools_first = s.life == Life::Before;
            }
        }
        code
    }
    fn MPI_T_finalize() -> c_int {
        let _inside = Inside::enter();
        crate::env::load();
        let last = {
            let mut s = lock();
            let calls = s.tools.0;
            s.tools.0 = calls.saturating_sub(1);
            calls <= 1
        };
        if last { down!(MPI_T_finalize() -> c_int) } else { 0 }
    }
    fn MPI_T_cvar_handle_alloc(index: c_int, object: *mut c_void, handle: *mut c_void, count: *mut c_int) -> c_int {
        let _inside = Inside::enter();
        lent(down!(MPI_T_cvar_handle_alloc(i: c_int = index, o: *mut c_void = object, h: *mut c_void = handle,
            c: *mut c_int = count) -> c_int), 1)
    }
    fn MPI_T_cvar_handle_free(handle: *mut c_void) -> c_int {
        let _inside = Inside::enter();
        lent(down!(MPI_T_cvar_handle_free(h: *mut c_void = handle) -> c_int), -1)
    }
    fn MPI_T_pvar_session_create(session: *mut c_void) -> c_int {
        let _inside = Inside::enter();
        lent(down!(MPI_T_pvar_session_create(s: *mut c_void = session) -> c_int), 1)
    }
    fn MPI_T_pvar_session_free(session: *mut c_void) -> c_int {
        let _inside = Inside::enter();
        lent(down!(MPI_T_pvar_session_free(s: *mut c_void = session) -> c_int), -1)
    }
    fn MPI_T_cvar_get_info(index: c_int, name: *mut c_void, name_len: *mut c_int, verbosity: *mut c_int,
                           datatype: *mut *mut Datatype, enumeration: *mut c_void, text: *mut c_void,
                           text_len: *mut c_int, bind: *mut c_int, scope: *mut c_int) -> c_int {
        let _inside = Inside::enter();
        crate::env::load();
        let mut real = 0usize;
        let code = down!(MPI_T_cvar_get_info(i: c_int = index, n: *mut c_void = name, nl: *mut c_int = name_len,
            v: *mut c_int = verbosity, t: *mut usize = &raw mut real, e: *mut c_void = enumeration,
            d: *mut c_void = text, dl: *mut c_int = text_len, b: *mut c_int = bind, s: *mut c_int = scope) -> c_int);
        if code == 0 {
            tell(datatype, real);
        }
        code
    }
    fn MPI_T_pvar_get_info(index: c_int, name: *mut c_void, name_len: *mut c_int, verbosity: *mut c_int,
                           class: *mut c_int, datatype: *mut *mut Datatype, enumeration: *mut c_void,
                           text: *mut c_void, text_len: *mut c_int, bind: *mut c_int, readonly: *mut c_int,
                           continuous: *mut c_int, atomic: *mut c_int) -> c_int {
        let _inside = Inside::enter();
        crate::env::load();
        let mut real = 0usize;
        let code = down!(MPI_T_pvar_get_info(i: c_int = index, n: *mut c_void = name, nl: *mut c_int = name_len,
            v: *mut c_int = verbosity, c: *mut c_int = class, t: *mut usize = &raw mut real,
            e: *mut c_void = enumeration, d: *mut c_void = text, dl: *mut c_int = text_len, b: *mut c_int = bind,
            r: *mut c_int = readonly, co: *mut c_int = continuous, a: *mut c_int = atomic) -> c_int);
        if code == 0 {
            tell(datatype, real);
        }
        code
    }
}
