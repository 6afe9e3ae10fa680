//! Libraries of plugins, loaded natively on first use. *Lower half*; [`resolve`] runs on the lower thread pointer of the upper
//! thread that calls, or at the still point.
//!
//! What a reader would get wrong: nothing is ever closed: threads of a library may run in it. A restart is another process,
//! which loads what is called there.
#![allow(unsafe_code, reason = "loads a library, reads names of the upper half")]

use std::ffi::{CStr, c_char};

/// `Half::resolve`: the address of a function, from two terminated strings; 0 if there is none, and why is on standard error.
pub(crate) extern "C" fn resolve(library: *const c_char, name: *const c_char) -> usize {
    let _blocked = crate::back::Blocked::all();
    // SAFETY: the caller's strings. The library's constructors run on this thread, whose thread pointer is the lower half's.
    let (lib, at) = unsafe {
        let lib = libc::dlopen(library, libc::RTLD_NOW);
        (lib, if lib.is_null() { lib } else { libc::dlsym(lib, name) })
    };
    if at.is_null() {
        let what = if lib.is_null() { library } else { name };
        // SAFETY: as above.
        let what = unsafe { CStr::from_ptr(what) }.to_string_lossy();
        crate::control::log(&format!(
            "a plugin calls what is not there: {what}: {}",
            crate::back::last_error()
        ));
    }
    at.expose_provenance()
}
