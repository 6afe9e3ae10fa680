//! The functions of `stillpoint.h`, which says what they do. *Upper half*. Each translates, calls, translates.
#![allow(unsafe_code, reason = "exported by name; calls functions of the application")]

use std::ffi::{CStr, c_char, c_int, c_void};

use crate::ask::{self, Checkpointed, Error};
use crate::callbacks::{Callbacks, on_checkpoint};
use crate::plugin::{self, MAX_ARGS, Plugin, Slot, Still};

/// A place or a number, or the error's code.
fn number(r: Result<usize, Error>) -> c_int {
    r.map_or_else(Error::code, |n| c_int::try_from(n).unwrap_or(c_int::MAX))
}

/// A text that lives as long as the process.
///
/// # Safety
/// `text` is null, or such a text.
unsafe fn text(text: *const c_char) -> Result<&'static CStr, Error> {
    // SAFETY: the caller's promise.
    if text.is_null() { Err(Error::Invalid) } else { Ok(unsafe { CStr::from_ptr(text) }) }
}

fn place(at: c_int) -> Result<usize, Error> {
    usize::try_from(at).map_err(|_| Error::Invalid)
}

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

/// # Safety
/// `texts` are `n` texts that live as long as the process.
unsafe fn texts(texts: *const *const c_char, n: usize) -> Result<Vec<&'static CStr>, Error> {
    if texts.is_null() && n > 0 {
        return Err(Error::Invalid);
    }
    // SAFETY: the caller's promise.
    (0..n).map(|i| unsafe { text(*texts.add(i)) }).collect()
}

/// # Safety
/// `still` can be called as long as the process lives, and the texts live as long.
#[unsafe(no_mangle)]
unsafe extern "C" fn stillpoint_plugin(
    name: *const c_char,
    still: Option<Still>,
    refused: *const *const c_char,
    n: usize,
) -> c_int {
    // SAFETY: the caller's promise.
    let made = unsafe { text(name) }.and_then(|name| {
        let name = name.to_str().map_err(|_| Error::Invalid)?;
        // SAFETY: the caller's promise.
        let refused = unsafe { texts(refused, n) }?;
        plugin::register(name, still.ok_or(Error::Invalid)?, &refused)
    });
    number(made.map(Plugin::place))
}

#[unsafe(no_mangle)]
extern "C" fn stillpoint_plugin_live(plugin: c_int, live: c_int) -> c_int {
    code(place(plugin).and_then(Plugin::at).map(|p| p.live(live != 0)))
}

#[unsafe(no_mangle)]
extern "C" fn stillpoint_plugin_refuse(plugin: c_int, what: usize, by: c_int) -> c_int {
    code(place(plugin).and_then(Plugin::at).and_then(|p| p.refuse(what, by)))
}

/// # Safety
/// Both names live as long as the process.
#[unsafe(no_mangle)]
unsafe extern "C" fn stillpoint_below(library: *const c_char, name: *const c_char) -> c_int {
    // SAFETY: the caller's promise.
    let names = unsafe { text(library).and_then(|library| Ok((library, text(name)?))) };
    number(names.and_then(|(library, name)| plugin::below(library, name)).map(Slot::number))
}

/// # Safety
/// As [`Slot::call`]; `args` are `n` values, and `result` is null or writable.
#[unsafe(no_mangle)]
unsafe extern "C" fn stillpoint_call(slot: c_int, result: *mut u64, args: *const u64, n: usize) -> c_int {
    let mut all = [0; MAX_ARGS];
    if n > MAX_ARGS || (n > 0 && args.is_null()) {
        return Error::Invalid.code();
    }
    for (i, to) in all[..n].iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        *to = unsafe { *args.add(i) };
    }
    // SAFETY: the caller's promise.
    let called = place(slot).and_then(Slot::of).and_then(|slot| unsafe { slot.call(&all) });
    code(called.map(|value| {
        if !result.is_null() {
            // SAFETY: the caller's promise.
            unsafe { *result = value };
        }
    }))
}
