//! The functions of `stillpoint.h`, which says what they do. *Upper half*. Each translates, calls, translates.
#![allow(unsafe_code, reason = "exported by name; calls functions of the application")]

use std::ffi::{c_int, c_void};

use crate::ask::{self, Checkpointed, Error};
use crate::callbacks::{Callbacks, on_checkpoint};

fn code(r: Result<(), Error>) -> c_int {
    r.map_or_else(Error::code, |()| 0)
}

#[unsafe(no_mangle)]
extern "C" fn stillpoint_active() -> c_int {
    c_int::from(ask::active())
}

#[unsafe(no_mangle)]
extern "C" fn stillpoint_checkpoint() -> c_int {
    match ask::checkpoint() {
        Ok(Checkpointed::Durable) => 0,
        Ok(Checkpointed::Restarted) => 1,
        Ok(Checkpointed::Asked) => 2,
        Err(e) => e.code(),
    }
}

#[unsafe(no_mangle)]
extern "C" fn stillpoint_forbid() -> c_int {
    ask::hold();
    0
}

#[unsafe(no_mangle)]
extern "C" fn stillpoint_allow() -> c_int {
    code(ask::release())
}

#[unsafe(no_mangle)]
extern "C" fn stillpoint_restarts() -> c_int {
    c_int::try_from(ask::restarts()).unwrap_or(c_int::MAX)
}

#[unsafe(no_mangle)]
extern "C" fn stillpoint_checkpoints() -> c_int {
    c_int::try_from(ask::checkpoints()).unwrap_or(c_int::MAX)
}

/// # Safety
/// As [`crate::exclude()`].
#[unsafe(no_mangle)]
unsafe extern "C" fn stillpoint_exclude(addr: *const c_void, len: usize) -> c_int {
    // SAFETY: the caller's promise.
    code(unsafe { crate::exclude(addr.cast(), len) })
}

#[unsafe(no_mangle)]
extern "C" fn stillpoint_include(addr: *const c_void, len: usize) -> c_int {
    code(crate::include(addr.cast(), len))
}

type Before = unsafe extern "C" fn(*mut c_void) -> c_int;
type After = unsafe extern "C" fn(*mut c_void);

struct Functions {
    before: Option<Before>,
    after: Option<After>,
    restarted: Option<After>,
    arg: *mut c_void,
}

// SAFETY: `stillpoint.h` says that the functions are called on a thread of the library's.
unsafe impl Send for Functions {}

impl Callbacks for Functions {
    fn before(&mut self) -> Result<(), i32> {
        // SAFETY: registered by the application with this argument.
        match self.before.map_or(0, |f| unsafe { f(self.arg) }) {
            0 => Ok(()),
            code => Err(code),
        }
    }

    fn after(&mut self) {
        if let Some(f) = self.after {
            // SAFETY: as in `before`.
            unsafe { f(self.arg) };
        }
    }

    fn restarted(&mut self) {
        if let Some(f) = self.restarted {
            // SAFETY: as in `before`.
            unsafe { f(self.arg) };
        }
    }
}

/// # Safety
/// The functions can be called, with `arg`, on another thread, as long as the process lives.
#[unsafe(no_mangle)]
unsafe extern "C" fn stillpoint_on_checkpoint(
    before: Option<Before>,
    after: Option<After>,
    restarted: Option<After>,
    arg: *mut c_void,
) -> c_int {
    code(on_checkpoint(Functions { before, after, restarted, arg }))
}
