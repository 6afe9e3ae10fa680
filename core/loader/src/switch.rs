//! Crossing from the upper half to the lower one and back. *Upper half* (fronts and libstillpoint.so).
//!
//! [`Crossing::down`] marks the thread as being in a front (`depth`), switches the thread pointer to the control block
//! that the lower half lent, and its drop switches back and stands still if a checkpoint waits for this thread.
//! Between the two, nothing may touch upper TLS: no allocation, no panic, no `thread_local!`.
#![allow(unsafe_code, reason = "changes the thread pointer")]

use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use stillpoint_abi::half::{FLAG_STOP, STOP_SIGNAL, ThreadRec};
use stillpoint_sys::raw::{getpid, gettid, nr};
use stillpoint_sys::{arch, half, sys, thread_by_fs};

std::arch::global_asm!(
    ".pushsection .tbss,\"awT\",@nobits",
    ".balign 8",
    ".hidden stillpoint_rec",
    ".globl stillpoint_rec",
    ".type stillpoint_rec,@object",
    ".size stillpoint_rec,8",
    "stillpoint_rec: .zero 8",
    ".popsection",
);

#[inline(always)]
fn cached() -> *const ThreadRec {
    let p: *const ThreadRec;
    // SAFETY: initial-exec access to the word above, in this thread's upper TLS.
    unsafe {
        std::arch::asm!("mov {t}, qword ptr [rip + stillpoint_rec@GOTTPOFF]", "mov {t}, fs:[{t}]", t = out(reg) p,
                        options(nostack, preserves_flags, readonly));
    }
    p
}

#[cold]
fn find() -> &'static ThreadRec {
    let Some(rec) = thread_by_fs(arch::thread_self()) else {
        // A thread that the hooks did not see being made: nothing that we do for it would be right.
        std::process::abort();
    };
    let p = std::ptr::from_ref(rec);
    // SAFETY: as in `cached`, a store.
    unsafe {
        std::arch::asm!("mov {t}, qword ptr [rip + stillpoint_rec@GOTTPOFF]", "mov fs:[{t}], {p}", t = out(reg) _,
                        p = in(reg) p, options(nostack, preserves_flags));
    }
    rec
}

/// The calling thread's record.
#[inline(always)]
pub fn me() -> &'static ThreadRec {
    let p = cached();
    if p.is_null() {
        return find();
    }
    // SAFETY: records lie in the upper page for ever; `find` put this one there.
    unsafe { &*p }
}

#[cold]
fn acquire(rec: &ThreadRec) {
    let f = half().acquire.load(Relaxed);
    // SAFETY: the lower half put this function's address there.
    let f: extern "C" fn(*const ThreadRec) -> u64 = unsafe { std::mem::transmute(f) };
    f(rec);
}

/// The thread is in a front: it will not be stopped until this is dropped.
#[derive(Debug)]
pub struct Front {
    rec: &'static ThreadRec,
}

impl Front {
    /// Enters.
    #[inline(always)]
    pub fn enter() -> Front {
        let rec = me();
        rec.depth.store(rec.depth.load(Relaxed) + 1, Relaxed);
        std::sync::atomic::compiler_fence(SeqCst);
        Front { rec }
    }

    /// This thread's record.
    #[inline(always)]
    pub fn rec(&self) -> &'static ThreadRec {
        self.rec
    }

    /// Goes down; comes up again when the result is dropped.
    #[inline(always)]
    pub fn down(&self) -> Crossing {
        let h = half();
        if self.rec.epoch.load(Relaxed) != h.epoch.load(Relaxed) {
            acquire(self.rec);
        }
        let up = arch::thread_self();
        // SAFETY: lent to this thread in this epoch; `Crossing`'s drop puts `up` back.
        unsafe { set(self.rec.lower_selector.load(Relaxed), || self.rec.lower_fs.load(Relaxed)) };
        Crossing { up, rec: self.rec }
    }
}

impl Drop for Front {
    #[inline(always)]
    fn drop(&mut self) {
        std::sync::atomic::compiler_fence(SeqCst);
        let d = self.rec.depth.load(Relaxed) - 1;
        self.rec.depth.store(d, Relaxed);
        std::sync::atomic::compiler_fence(SeqCst);
        if half().flags.load(Acquire) & FLAG_STOP != 0 && d == 0 {
            stand_still();
        }
    }
}

/// Memory of a front's own, whose lock no thread holds when it is stopped: the still point's commands allocate, too, and one of them may
/// run on that very thread.
#[derive(Debug)]
pub struct Guarded<A>(pub A);

// SAFETY: what the allocator inside promises.
unsafe impl<A: std::alloc::GlobalAlloc> std::alloc::GlobalAlloc for Guarded<A> {
    #[inline]
    unsafe fn alloc(&self, layout: std::alloc::Layout) -> *mut u8 {
        let _front = Front::enter();
        // SAFETY: the caller's promise; the same for the others.
        unsafe { self.0.alloc(layout) }
    }

    #[inline]
    unsafe fn dealloc(&self, at: *mut u8, layout: std::alloc::Layout) {
        let _front = Front::enter();
        // SAFETY: as above.
        unsafe { self.0.dealloc(at, layout) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: std::alloc::Layout) -> *mut u8 {
        let _front = Front::enter();
        // SAFETY: as above.
        unsafe { self.0.alloc_zeroed(layout) }
    }

    #[inline]
    unsafe fn realloc(&self, at: *mut u8, layout: std::alloc::Layout, size: usize) -> *mut u8 {
        let _front = Front::enter();
        // SAFETY: as above.
        unsafe { self.0.realloc(at, layout, size) }
    }
}

/// The thread pointer is the lower half's while this lives.
#[derive(Debug)]
pub struct Crossing {
    up: u64,
    rec: &'static ThreadRec,
}

/// The faster way that there is. `wrfsbase` takes 12 ns on an AMD EPYC, loading the register from the LDT 1.3 ns.
#[inline(always)]
unsafe fn set(selector: u32, base: impl FnOnce() -> u64) {
    // SAFETY: the caller answers for both.
    unsafe { if selector == 0 { arch::set_fs(base()) } else { arch::load_fs(selector) } }
}

impl Drop for Crossing {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: the thread pointer that `down` found.
        unsafe { set(self.rec.upper_selector.load(Relaxed), || self.up) };
    }
}

/// Stands still here until the checkpoint is over: sends the stop signal to the calling thread, from upper text.
#[cold]
pub fn stand_still() {
    // SAFETY: the stop signal's handler returns when threads may run again; it is harmless when no stop is wanted.
    unsafe { sys!(nr::TGKILL, getpid(), gettid(), STOP_SIGNAL) };
}
