//! How the front makes itself known: its constructor, and the commands of the still point. Upper half.
//!
//! What a reader would get wrong: the constructor runs once, in the process image that the dynamic linker brought in.
//! A restart does not run it again; what it wrote into `Upper` is in the image. It also takes the front out of
//! LD_PRELOAD, so that the application and its children see the environment that the user gave them.
#![allow(unsafe_code, reason = "a constructor and a function that the lower half calls by address")]

use core::ffi::c_void;
use core::sync::atomic::Ordering::{Acquire, Release};
use core::sync::atomic::{AtomicPtr, AtomicU32};

use stillpoint_abi::half::{StillArg, refuse, still};
use stillpoint_abi::plugin::{MPI, Plugin};
use stillpoint_sys::upper;

use crate::state::{Life, lock};

/// The front's entry in the table of plugins, which is where it was after a restart.
static ENTRY: AtomicPtr<Plugin> = AtomicPtr::new(core::ptr::null_mut());

/// Tells the lower half where the commands of the still point are worked on.
pub(crate) fn register() {
    let f: unsafe extern "C" fn(u32, *mut StillArg) -> i64 = command;
    let texts = refuse::TEXTS.map(|t| t.as_ptr().expose_provenance());
    if let Some(entry) = upper().plugins.register(MPI, (f as *const c_void).expose_provenance(), &texts) {
        ENTRY.store(core::ptr::from_ref(entry).cast_mut(), Release);
    }
}

fn entry() -> Option<&'static Plugin> {
    // SAFETY: null, or an entry of the table, which lives as long as the page.
    unsafe { ENTRY.load(Acquire).as_ref() }
}

/// There is something below from now on, or nothing any more: commands of the still point come, or do not.
pub(crate) fn live(is: bool) {
    entry().into_iter().for_each(|e| e.live.store(u32::from(is), Release));
}

/// How many there are of something that cannot be saved ([`refuse`]).
pub(crate) fn refused(what: usize) -> &'static AtomicU32 {
    static NOBODY: AtomicU32 = AtomicU32::new(0);
    entry().map_or(&NOBODY, |e| &e.refusals[what].count)
}

/// One command of [`still`], on the still stack, while every thread of the rank stands still.
unsafe extern "C" fn command(cmd: u32, arg: *mut StillArg) -> i64 {
    if lock().life != Life::Live {
        // Nothing lives below, so there is nothing to count, to bring home or to make again.
        if cmd == still::REBUILD {
            crate::rebuild::connect();
        }
        // SAFETY: the lower half passes an argument, or null.
        if let Some(a) = unsafe { arg.as_mut() } {
            a.out_len = 0;
        }
        return 0;
    }
    // SAFETY: what this function promises is promised to it.
    unsafe {
        match cmd {
            still::REBUILD => crate::rebuild::rebuild(arg),
            _ => crate::drain::command(cmd, arg).unwrap_or(-1),
        }
    }
}

#[cfg(not(test))]
mod begin {
    use core::ffi::{CStr, c_char, c_int};
    use stillpoint_abi::half::{MAGIC, UPPER_ADDR};

    const PRELOAD: &CStr = c"LD_PRELOAD";
    const USERS: &CStr = c"STILLPOINT_USER_PRELOAD";

    #[used]
    #[unsafe(link_section = ".init_array")]
    static CONSTRUCTOR: unsafe extern "C" fn(c_int, *const *const c_char, *const *const c_char) = constructor;

    unsafe extern "C" fn constructor(_: c_int, _: *const *const c_char, _: *const *const c_char) {
        let page = core::ptr::with_exposed_provenance_mut(UPPER_ADDR);
        let mut there = 0u8;
        // SAFETY: mincore reads no memory; it fails for a page that is not mapped. The environment is changed before
        // the application has a second thread.
        unsafe {
            if libc::mincore(page, 4096, &raw mut there) != 0 || stillpoint_sys::upper().magic != MAGIC {
                return;
            }
            super::register();
            let users = libc::getenv(USERS.as_ptr());
            if users.is_null() || *users == 0 {
                libc::unsetenv(PRELOAD.as_ptr());
            } else {
                libc::setenv(PRELOAD.as_ptr(), users, 1);
            }
            libc::unsetenv(USERS.as_ptr());
        }
    }
}
