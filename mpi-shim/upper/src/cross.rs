//! The way down and up again. Upper half, *across the crossing* between [`enter`] and the guard's end.
//!
//! ```text
//!   let r = down!(MPI_Barrier(c: usize = real(comm)) -> c_int);
//!           └ depth 1 ─ real(comm) ─ fs = lower ─ call ─ fs = upper, depth 0 ─ stop here if FLAG_STOP stands
//! ```
//!
//! What a reader would get wrong: while the guard lives the thread pointer is the lower half's: no allocation, no
//! thread-local, no lock, no panic. Everything the call needs is made before `enter`.
#![allow(unsafe_code, reason = "calls functions by address")]

use core::sync::atomic::Ordering::Relaxed;
use stillpoint_abi::half::{FLAG_SETTLE, ThreadRec, doing};
use stillpoint_loader::switch::{self, Front};
use stillpoint_sys::half;

/// The address that the back wrote into `slot`; null if it has none.
#[inline(always)]
pub fn real(slot: usize) -> *const () {
    core::ptr::with_exposed_provenance(half().back[slot].load(Relaxed))
}

/// The calling thread's record.
#[inline(always)]
pub fn thread() -> &'static ThreadRec {
    switch::me()
}

/// Notes, while a checkpoint settles, whether the calling thread asked for something that has not come. Such a loop must not
/// look like work to the coordinator, which releases held collectives only when nobody can move.
#[inline(always)]
pub(crate) fn asked(came: bool) {
    if half().flags.load(Relaxed) & FLAG_SETTLE != 0 {
        thread().doing.store(if came { doing::RUNNING } else { doing::POLLING }, Relaxed);
    }
}

/// The thread is below while this lives.
#[derive(Debug)]
pub struct Crossing {
    // In this order: up first, then stand still if that is asked for.
    _down: switch::Crossing,
    _front: Front,
}

/// Goes down: from here until the guard ends, the lower half's thread pointer is set.
#[inline(always)]
pub fn enter() -> Crossing {
    let front = Front::enter();
    let down = front.down();
    Crossing { _down: down, _front: front }
}

/// The first half of [`enter`]: the thread cannot be stopped, and is still up.
#[inline(always)]
pub fn front() -> Front {
    Front::enter()
}

/// The thread is inside the front and must not be saved there: it holds a lock, or half an object is written.
#[derive(Debug)]
pub struct Inside {
    _front: Front,
}

impl Inside {
    /// From here until it ends, the calling thread is not stopped.
    #[inline(always)]
    pub fn enter() -> Inside {
        Inside { _front: Front::enter() }
    }
}

/// Crosses and calls a function of the back: `down!(MPI_Name(a: type = value, …) -> result)`, or
/// `down!(helper Name(…) -> result)`. The values are computed upstairs, before the crossing, and where the thread is
/// not stopped: a handle of the library that was read before a stop would be stale after a restart.
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
        // Before anything is read that a restart changes: from here on the thread is not stopped.
        let front = $crate::cross::front();
        let ($($a,)*): ($($t,)*) = ($($v,)*);
        let at = $crate::cross::real($slot);
        // SAFETY: the back filled the slot with the function of that name, whose C prototype these types are.
        #[allow(unused_unsafe, reason = "also used within unsafe functions")]
        unsafe {
            let f = core::mem::transmute::<*const (), unsafe extern "C" fn($($t),*) -> $r>(at);
            let _down = front.down();
            f($($a),*)
        }
    }};
}
