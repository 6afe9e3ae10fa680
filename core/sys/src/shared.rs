//! The two shared pages as references. The only place that turns their addresses into types.
#![allow(unsafe_code, reason = "the pages lie at fixed addresses")]

use stillpoint_abi::half::{HALF_ADDR, Half, ThreadRec, UPPER_ADDR, Upper};

/// The lower half's page.
///
/// Only call this in a process that `stillpoint-rank` set up: elsewhere nothing is mapped there. Code that may run
/// outside of such a process asks [`crate::raw::is_mapped`] first, once.
#[inline(always)]
pub fn half() -> &'static Half {
    // SAFETY: stillpoint-rank maps the page before any code that calls this runs; all fields that change are atomics.
    unsafe { &*core::ptr::with_exposed_provenance::<Half>(HALF_ADDR) }
}

/// The upper half's page.
#[inline(always)]
pub fn upper() -> &'static Upper {
    // SAFETY: as for `half`.
    unsafe { &*core::ptr::with_exposed_provenance::<Upper>(UPPER_ADDR) }
}

/// The record of the thread whose upper thread pointer is `fs`.
pub fn thread_by_fs(fs: u64) -> Option<&'static ThreadRec> {
    use core::sync::atomic::Ordering::{Acquire, Relaxed};
    let n = upper().n_threads.load(Acquire) as usize;
    upper().threads.iter().take(n).find(|r| r.fs.load(Relaxed) == fs)
}
