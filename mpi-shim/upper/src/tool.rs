//! The tool interface (MPI 3.1, chapter 14): its begin and end, what it lends, and what names an object. The other calls are
//! regular rows. Upper half.
//!
//! What a reader would get wrong: these calls may come before MPI_Init and after MPI_Finalize, when a restart makes nothing
//! anew; so each one first sees to it that the library is there and begun ([`ready`]). Handles and sessions are the
//! library's own, and a checkpoint is refused while there are any. Enumerations are not: the application gets the number of
//! the variable that has them, and a type is always a predefined one.
#![allow(unsafe_code, reason = "exports functions")]

use core::ffi::{c_int, c_void};
use core::ptr::null_mut;
use core::sync::atomic::Ordering::Relaxed;

use stillpoint_abi::half::refuse;
use stillpoint_sys::half;

use crate::cross::Inside;
use crate::handles::{Datatype, Head, real};
use crate::state::{Life, lock};
use crate::{down, export, predefined};

/// MPI_T_ERR_INVALID_ITEM.
const ERR_INVALID_ITEM: c_int = 58;

/// MPI_T_init_thread of the library: its code and the level that it gives.
pub(crate) fn start(required: c_int) -> (c_int, c_int) {
    let mut provided: c_int = 0;
    let code = down!(MPI_T_init_thread(r: c_int = required, p: *mut c_int = &raw mut provided) -> c_int);
    if code == 0 {
        lock().tools_epoch = half().epoch.load(Relaxed);
    }
    (code, provided)
}

/// The library is there, and begun if the application has begun it: after a restart perhaps not yet.
pub(crate) fn ready() {
    crate::env::load();
    let ((calls, level), epoch) = {
        let s = lock();
        (s.tools, s.tools_epoch)
    };
    if calls != 0 && epoch != half().epoch.load(Relaxed) {
        start(level);
    }
}

fn counter() -> &'static core::sync::atomic::AtomicU32 {
    crate::front::refused(refuse::TOOLS)
}

/// The library has lent something.
fn lent(code: c_int) -> c_int {
    if code == 0 {
        counter().fetch_add(1, Relaxed);
    }
    code
}

/// It has got something back, if there was something.
fn returned(code: c_int, what: usize) -> c_int {
    if code == 0 && what != 0 {
        let _ = counter().fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1));
    }
    code
}

/// What the library says of a variable.
#[derive(Clone, Copy, Default)]
struct About {
    datatype: usize,
    enumeration: usize,
    bind: c_int,
}

fn about(is_pvar: bool, index: c_int) -> Option<About> {
    let mut a = About::default();
    let (mut none, mut len, mut text_len) = (0 as c_int, 0 as c_int, 0 as c_int);
    let (none, len, text_len) = (&raw mut none, &raw mut len, &raw mut text_len);
    let text = null_mut::<c_void>();
    let (t, e, b) = (&raw mut a.datatype, &raw mut a.enumeration, &raw mut a.bind);
    let code = if is_pvar {
        down!(MPI_T_pvar_get_info(i: c_int = index, n: *mut c_void = text, nl: *mut c_int = len, v: *mut c_int = none,
            c: *mut c_int = none, t: *mut usize = t, e: *mut usize = e, d: *mut c_void = text,
            dl: *mut c_int = text_len, b: *mut c_int = b, r: *mut c_int = none, co: *mut c_int = none,
            a: *mut c_int = none) -> c_int)
    } else {
        down!(MPI_T_cvar_get_info(i: c_int = index, n: *mut c_void = text, nl: *mut c_int = len, v: *mut c_int = none,
            t: *mut usize = t, e: *mut usize = e, d: *mut c_void = text, dl: *mut c_int = text_len,
            b: *mut c_int = b, s: *mut c_int = none) -> c_int)
    };
    (code == 0).then_some(a)
}

/// Writes our handle for the library's `real`, where the application wants it.
unsafe fn tell(to: *mut *mut Datatype, real: usize) {
    if !to.is_null() {
        let null = predefined!(ompi_mpi_datatype_null as Datatype);
        // SAFETY: the application's place for a handle.
        unsafe { *to = crate::predefined::of_real(real).map_or(null, |o| o.cast()) };
    }
}

/// What the application knows an enumeration by: the variable's number; 0 is MPI_T_ENUM_NULL.
fn name_enumeration(is_pvar: bool, index: c_int) -> usize {
    usize::try_from(index).map_or(0, |i| (i << 1 | usize::from(is_pvar)) + 1)
}

/// The library's enumeration of that name.
fn enumeration(name: usize) -> Option<usize> {
    let at = name.checked_sub(1)?;
    about(at & 1 == 1, c_int::try_from(at >> 1).ok()?).map(|a| a.enumeration).filter(|e| *e != 0)
}

unsafe fn tell_enumeration(to: *mut usize, is_pvar: bool, index: c_int, real: usize) {
    if !to.is_null() {
        // SAFETY: the application's place for an enumeration.
        unsafe { *to = if real == 0 { 0 } else { name_enumeration(is_pvar, index) } };
    }
}

/// The library's handle of the object that a variable is bound to, by the place of ours.
unsafe fn object(is_pvar: bool, index: c_int, ours: *mut *mut Head) -> usize {
    match about(is_pvar, index) {
        // SAFETY: for a bound variable the application passes the address of a handle.
        Some(a) if a.bind != 0 && !ours.is_null() => unsafe { real(*ours) },
        _ => 0,
    }
}

export! {
    fn MPI_T_init_thread(required: c_int, provided: *mut c_int) -> c_int {
        let _inside = Inside::enter();
        ready();
        // Begun once below, however often here: after a restart there is one call as well.
        let (calls, before) = lock().tools;
        let (code, got) = if calls == 0 { start(required) } else { (0, before) };
        if code == 0 {
            *provided = got;
            let mut s = lock();
            s.tools = (s.tools.0 + 1, got);
            if calls == 0 {
                s.tools_first = s.life == Life::Before;
            }
        }
        code
    }
    fn MPI_T_finalize() -> c_int {
        let _inside = Inside::enter();
        ready();
        let calls = lock().tools.0;
        let code = if calls <= 1 { down!(MPI_T_finalize() -> c_int) } else { 0 };
        if code == 0 {
            lock().tools.0 = calls.saturating_sub(1);
            if calls <= 1 {
                counter().store(0, Relaxed);
            }
        }
        code
    }
    fn MPI_T_cvar_handle_alloc(index: c_int, ours: *mut *mut Head, handle: *mut usize, count: *mut c_int) -> c_int {
        let _inside = Inside::enter();
        ready();
        let mut to = object(false, index, ours);
        lent(down!(MPI_T_cvar_handle_alloc(i: c_int = index, o: *mut usize = &raw mut to, h: *mut usize = handle,
            c: *mut c_int = count) -> c_int))
    }
    fn MPI_T_cvar_handle_free(handle: *mut usize) -> c_int {
        let _inside = Inside::enter();
        ready();
        let before = *handle;
        returned(down!(MPI_T_cvar_handle_free(h: *mut usize = handle) -> c_int), before)
    }
    fn MPI_T_pvar_session_create(session: *mut usize) -> c_int {
        let _inside = Inside::enter();
        ready();
        lent(down!(MPI_T_pvar_session_create(s: *mut usize = session) -> c_int))
    }
    fn MPI_T_pvar_session_free(session: *mut usize) -> c_int {
        let _inside = Inside::enter();
        ready();
        let before = *session;
        returned(down!(MPI_T_pvar_session_free(s: *mut usize = session) -> c_int), before)
    }
    fn MPI_T_pvar_handle_alloc(session: usize, index: c_int, ours: *mut *mut Head, handle: *mut usize,
                               count: *mut c_int) -> c_int {
        let _inside = Inside::enter();
        ready();
        let mut to = object(true, index, ours);
        down!(MPI_T_pvar_handle_alloc(s: usize = session, i: c_int = index, o: *mut usize = &raw mut to,
            h: *mut usize = handle, c: *mut c_int = count) -> c_int)
    }
    fn MPI_T_enum_get_info(of: usize, num: *mut c_int, name: *mut c_void, name_len: *mut c_int) -> c_int {
        let _inside = Inside::enter();
        ready();
        match enumeration(of) {
            None => ERR_INVALID_ITEM,
            Some(e) => down!(MPI_T_enum_get_info(e: usize = e, n: *mut c_int = num, t: *mut c_void = name,
                l: *mut c_int = name_len) -> c_int),
        }
    }
    fn MPI_T_enum_get_item(of: usize, index: c_int, value: *mut c_int, name: *mut c_void, name_len: *mut c_int)
        -> c_int {
        let _inside = Inside::enter();
        ready();
        match enumeration(of) {
            None => ERR_INVALID_ITEM,
            Some(e) => down!(MPI_T_enum_get_item(e: usize = e, i: c_int = index, v: *mut c_int = value,
                t: *mut c_void = name, l: *mut c_int = name_len) -> c_int),
        }
    }
    fn MPI_T_cvar_get_info(index: c_int, name: *mut c_void, name_len: *mut c_int, verbosity: *mut c_int,
                           datatype: *mut *mut Datatype, enumeration: *mut usize, text: *mut c_void,
                           text_len: *mut c_int, bind: *mut c_int, scope: *mut c_int) -> c_int {
        let _inside = Inside::enter();
        ready();
        let (mut real, mut e) = (0usize, 0usize);
        let code = down!(MPI_T_cvar_get_info(i: c_int = index, n: *mut c_void = name, nl: *mut c_int = name_len,
            v: *mut c_int = verbosity, t: *mut usize = &raw mut real, e: *mut usize = &raw mut e,
            d: *mut c_void = text, dl: *mut c_int = text_len, b: *mut c_int = bind, s: *mut c_int = scope) -> c_int);
        if code == 0 {
            tell(datatype, real);
            tell_enumeration(enumeration, false, index, e);
        }
        code
    }
    fn MPI_T_pvar_get_info(index: c_int, name: *mut c_void, name_len: *mut c_int, verbosity: *mut c_int,
                           class: *mut c_int, datatype: *mut *mut Datatype, enumeration: *mut usize,
                           text: *mut c_void, text_len: *mut c_int, bind: *mut c_int, readonly: *mut c_int,
                           continuous: *mut c_int, atomic: *mut c_int) -> c_int {
        let _inside = Inside::enter();
        ready();
        let (mut real, mut e) = (0usize, 0usize);
        let code = down!(MPI_T_pvar_get_info(i: c_int = index, n: *mut c_void = name, nl: *mut c_int = name_len,
            v: *mut c_int = verbosity, c: *mut c_int = class, t: *mut usize = &raw mut real,
            e: *mut usize = &raw mut e, d: *mut c_void = text, dl: *mut c_int = text_len, b: *mut c_int = bind,
            r: *mut c_int = readonly, co: *mut c_int = continuous, a: *mut c_int = atomic) -> c_int);
        if code == 0 {
            tell(datatype, real);
            tell_enumeration(enumeration, true, index, e);
        }
        code
    }
}

#[cfg(test)]
mod tests {
    use super::name_enumeration;

    #[test]
    fn enumerations_have_names_of_their_own_and_none_is_null() {
        let all: alloc::vec::Vec<usize> =
            (0..4).flat_map(|i| [name_enumeration(false, i), name_enumeration(true, i)]).collect();
        assert!(all.iter().all(|n| *n != 0) && all.windows(2).all(|w| w[0] != w[1]));
        assert_eq!(name_enumeration(true, -1), 0);
    }
}
