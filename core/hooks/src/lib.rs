//! The hook library. Runs in the *upper half*, inside system calls and signal handlers of the application: no TLS,
//! no libc, no allocation, no panic that prints. The loader maps it at `HOOKS_ADDR` before the dynamic linker runs,
//! applies its relative relocations, and calls `stillpoint_hooks_init`.
//!
//! It lies upstairs so that a thread stopped inside a hook is an ordinary saved thread (INV-3), and so that its state
//! is saved as memory.
//!
//! - [`entry`]: from a patched site to [`calls`]; thread creation.
//! - [`calls`]: which hook a system call goes to; memory, exec, the way below.
//! - [`action`], [`fds`], [`ids`], [`paths`], [`wait`]: signals, descriptors, processes and threads, /proc, waiting and clocks.
//! - [`space`]: addresses inside the window, and patching of newly mapped text.
//! - [`signals`]: the stop handler, the wrapper around the application's handlers.
//! - [`transfer`]: moving bytes to and from streams.
//! - [`mem`]: memcpy and its kin, which the compiler calls.
#![no_std]

mod action;
mod calls;
mod entry;
mod fds;
mod ids;
mod mem;
mod paths;
mod signals;
mod space;
mod transfer;
mod wait;

use core::sync::atomic::Ordering::Release;
use stillpoint_sys::upper;

/// Enters the addresses of the library into [`stillpoint_abi::half::Upper`]. Called once by the loader.
#[allow(unsafe_code, reason = "the loader finds the function by its name")]
#[unsafe(no_mangle)]
pub extern "C" fn stillpoint_hooks_init() {
    let u = upper();
    u.hook_entry.store(entry::address(), Release);
    let (stop, wrapper, restorer) = signals::addresses();
    u.stop_handler.store(stop, Release);
    u.sig_wrapper.store(wrapper, Release);
    u.restorer.store(restorer, Release);
    for (slot, f) in u.vdso_fallback.iter().zip(calls::vdso_fallbacks()) {
        slot.store(f, Release);
    }
}

/// Patches the text that the loader mapped itself (the application, the dynamic linker). Returns the sites patched.
#[allow(unsafe_code, reason = "the loader finds the function by its name")]
#[unsafe(no_mangle)]
pub extern "C" fn stillpoint_hooks_patch(start: usize, len: usize) -> usize {
    space::patch_text(start, len)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    calls::die(b"stillpoint: a hook failed; this is a defect\n")
}
