//! The way down and up again. Upper half, *across the crossing* between [`enter`] and the guard's end.
//!
//! ```text
//!   let r = down!(MPI_Barrier(c: usize = real(comm)) -> c_int);
//!           └ depth 1, fs = lower ─ call ─ fs = upper, depth 0 ─ stop here if FLAG_STOP stands
//! ```
//!
//! What a reader would get wrong: while the guard lives the thread pointer is the lower half's: no allocation, no
//! thread-local, no lock, no panic. Everything the call needs is made before `enter`.
#![allow(unsafe_code, reason = "switches the thread pointer")]

use core::cell::Cell;
use core::sync::atomic::Ordering::{Relaxed, Release};
use stillpoint_abi::half::{FLAG_STOP, ThreadRec};
use stillpoint_sys::{arch, half, raw};

/// The address that the back wrote into `slot`; null if it has none.
#[inline(always)]
pub fn real(slot: usize) -> *const () {
    core::ptr::with_exposed_provenance(half().back[slot].load(Relaxed))
}

thread_local! {
    /// This thread's record, found once.
    static REC: Cell<Option<&'static ThreadRec>> = const { Cell::new(None) };
}

/// The calling thread's record.
#[inline(always)]
pub fn thread() -> &'static ThreadRec {
    match REC.get() {
        Some(r) => r,
        None => find(),
    }
}

#[cold]
fn find() -> &'static ThreadRec {
    match stillpoint_sys::thread_by_fs(arch::thread_self()) {
        Some(r) => {
            REC.set(Some(r));
            r
        }
        // Every thread of the upper half was made through the hooks, which wrote its record first.
        None => crate::env::die("the calling thread has no record"),
    }
}

/// The thread is below while this lives.
#[derive(Debug)]
pub struct Crossing {
    upper_fs: u64,
    rec: &'static ThreadRec,
}

/// Goes down: from here until the guard ends, the lower half's thread pointer is set.
#[inline(always)]
pub fn enter() -> Crossing {
    let rec = thread();
    rec.depth.store(rec.depth.load(Relaxed) + 1, Relaxed);
    core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst);
    let upper_fs = arch::thread_self();
    let lower = if rec.epoch.load(Relaxed) == half().epoch.load(Relaxed) {
        rec.lower_fs.load(Relaxed)
    } else {
        borrow(rec)
    };
    // SAFETY: the block was lent to this thread by `acquire` in this epoch, and the guard puts ours back.
    unsafe { arch::set_fs(lower) };
    Crossing { upper_fs, rec }
}

#[cold]
#[inline(never)]
fn borrow(rec: &'static ThreadRec) -> u64 {
    let f = half().acquire.load(Relaxed);
    // SAFETY: the lower half stores a function of this type there before the upper half starts.
    let f: extern "C" fn(*const ThreadRec) -> u64 =
        unsafe { core::mem::transmute(core::ptr::with_exposed_provenance::<()>(f)) };
    f(rec)
}

impl Drop for Crossing {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: this thread's own thread pointer from before `enter`.
        unsafe { arch::set_fs(self.upper_fs) };
        rise(self.rec);
    }
}

#[inline(always)]
fn rise(rec: &ThreadRec) {
    core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst);
    let depth = rec.depth.load(Relaxed) - 1;
    rec.depth.store(depth, Release);
    if depth == 0 && half().flags.load(Relaxed) & FLAG_STOP != 0 {
        stop();
    }
}

/// Stands still here if a stop is asked for: the thread sends itself the signal whose handler does the rest.
#[cold]
#[inline(never)]
pub fn stop() {
    // SAFETY: a signal to the calling thread; the hooks' handler expects it at depth 0.
    unsafe {
        stillpoint_sys::sys!(
            raw::nr::TGKILL,
            half().pid.load(Relaxed),
            raw::gettid(),
            stillpoint_abi::half::STOP_SIGNAL
        )
    };
}

/// The thread is inside the front and must not be saved there: it holds a lock, or half an object is written.
#[derive(Debug)]
pub struct Inside(&'static ThreadRec);

impl Inside {
    /// From here until it ends, the calling thread is not stopped.
    #[inline(always)]
    pub fn enter() -> Inside {
        let rec = thread();
        rec.depth.store(rec.depth.load(Relaxed) + 1, Relaxed);
        core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst);
        Inside(rec)
    }
}

impl Drop for Inside {
    #[inline(always)]
    fn drop(&mut self) {
        rise(self.0);
    }
}

/// Crosses and calls a function of the back: `down!(MPI_Name(a: type = value, …) -> result)`, or
/// `down!(helper Name(…) -> result)`. The values are computed upstairs, before the crossing.
#[macro_export]
macro_rules! down {
    (helper $name:ident($($a:ident: $t:ty = $v:expr),* $(,)?) -> $r:ty) => {
        $crate::down!(@ stillpoint_mpi_table::helper_slot(stillpoint_mpi_table::Helper::$name);
            ($($a: $t = $v),*) -> $r)
    };
    ($name:ident($($a:ident: $t:ty = $v:expr),* $(,)?) -> $r:ty) => {
        $crate::down!(@ stillpoint_mpi_table::Fn::$name as usize; ($($a: $t = $v),*) -> $r)
    };
    (@ $slot:expr; ($($a:ident: $t:ty = $v:expr),*) -> $r:ty) => {{
        let ($($a,)*): ($($t,)*) = ($($v,)*);
        let at = $crate::cross::real($slot);
        // SAFETY: the back filled the slot with the function of that name, whose C prototype these types are.
        #[allow(unused_unsafe, reason = "also used within unsafe functions")]
        unsafe {
            let f = core::mem::transmute::<*const (), unsafe extern "C" fn($($t),*) -> $r>(at);
            let _down = $crate::cross::enter();
            f($($a),*)
        }
    }};
}
