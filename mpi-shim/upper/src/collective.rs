//! Collectives: each within its communicator's clock, so that no checkpoint cuts one in two. Upper half.
//!
//! What a reader would get wrong: a non-blocking collective is counted where it is *started*. Clocks that agree thus
//! mean that every member has started it, and the drain can complete it without the application.
#![allow(unsafe_code, reason = "exports functions")]

use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicU32, Ordering};

use alloc::boxed::Box;
use alloc::vec::Vec;
use stillpoint_abi::half::{Clock, ThreadRec};
use stillpoint_sys::{half, raw, upper};

use crate::clock;
use crate::cross::Inside;
use crate::handles::{Comm, Datatype, Head, Kind, Topology, is_live, real, retain};
use crate::kinds::{Lower, ty};
use crate::request::{self, Does, Request};

struct Here;

impl clock::Hold for Here {
    fn flags(&self) -> &AtomicU32 {
        &half().flags
    }
    fn release(&self) -> &AtomicU32 {
        &half().release
    }
    fn thread(&self) -> &ThreadRec {
        crate::cross::thread()
    }
    fn wait(&self, seen: u32) {
        // Depth is 0 here: the stop handler may park the thread, and the image holds this very system call.
        if upper().user_operations.load(Ordering::SeqCst) == 0 {
            raw::futex_wait(&half().release, seen);
            return;
        }
        // Other reductions finish meanwhile: whoever begins a call in a settle stage tests them.
        drop(request::begin());
        raw::futex_wait_for(&half().release, seen, 1_000_000);
    }
}

/// A collective of a communicator goes on while it lives.
#[derive(Debug)]
pub(crate) struct Within(Option<&'static Clock>);

/// Counts a collective of `comm` (blocking, or the start of a non-blocking one). Not to be called inside the front:
/// the thread may be held and stopped here.
///
/// # Safety
/// `comm` is null or a handle that begins with a head.
#[inline(always)]
unsafe fn within(comm: *const Comm) -> Within {
    // SAFETY: the caller's promise; all handles of communicators, also MPI_COMM_NULL, are `Comm` objects.
    Within::at(if comm.is_null() { u32::MAX } else { unsafe { (*comm).clock } })
}

#[inline(always)]
fn within_clock(index: u32) -> Within {
    let clock = upper().clocks.get(index as usize);
    if let Some(c) = clock {
        clock::enter(c, &Here);
    }
    Within(clock)
}

impl Within {
    /// [`within`], by the place of the clock; nothing for [`crate::clocks::NONE`].
    #[inline(always)]
    pub(crate) fn at(index: u32) -> Within {
        within_clock(index)
    }

    /// [`within`], for what makes communicators.
    ///
    /// # Safety
    /// `comm` is null or a communicator.
    #[inline(always)]
    pub(crate) unsafe fn enter(comm: *const Comm) -> Within {
        // SAFETY: the caller's promise.
        unsafe { within(comm) }
    }
}

impl Drop for Within {
    #[inline(always)]
    fn drop(&mut self) {
        if let Some(c) = self.0 {
            clock::leave(c, &Here);
        }
    }
}

/// An operation or datatype that a non-blocking collective works with.
#[derive(Debug)]
struct Held(*mut Head);

impl Held {
    /// # Safety
    /// `o` is null or a handle.
    unsafe fn new(o: *mut Head) -> Held {
        // SAFETY: the caller's promise.
        unsafe {
            if !is_live(o, Kind::Op) && !is_live(o, Kind::Datatype) {
                return Held(core::ptr::null_mut());
            }
            retain(o);
            if Held::is_user_operation(o) {
                upper().user_operations.fetch_add(1, Ordering::SeqCst);
            }
        }
        Held(o)
    }

    /// # Safety
    /// `o` is a live handle.
    unsafe fn is_user_operation(o: *mut Head) -> bool {
        // SAFETY: the caller's promise.
        unsafe { (*o).kind == Kind::Op && (*o).predefined < 0 }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: held since `new`.
            unsafe {
                if Held::is_user_operation(self.0) {
                    upper().user_operations.fetch_sub(1, Ordering::SeqCst);
                }
                match (*self.0).kind {
                    Kind::Op => crate::op::let_go(self.0.cast()),
                    _ => crate::types::let_go(self.0.cast()),
                }
            }
        }
    }
}

/// Neighbours of a topology: those that send to this rank, those that it sends to.
fn degrees(c: &Comm) -> (usize, usize) {
    match &c.topology {
        Topology::None => (0, 0),
        Topology::Cart { dims, .. } => (2 * dims.len(), 2 * dims.len()),
        Topology::Graph { index, .. } => {
            let r = usize::try_from(c.rank).unwrap_or(0);
            let end = |i: usize| index.get(i).copied().unwrap_or(0);
            let n = usize::try_from(end(r) - if r == 0 { 0 } else { end(r - 1) }).unwrap_or(0);
            (n, n)
        }
        Topology::Dist { sources, destinations, .. } => (sources.len(), destinations.len()),
    }
}

/// `MPI_IN_PLACE` of Open MPI.
const IN_PLACE: usize = 1;

/// The library's handles of an array of datatypes of an all-to-all call that sends `from`.
unsafe fn types(
    list: *const *mut Datatype,
    comm: *const Comm,
    from: *const c_void,
    function: &str,
    argument: &str,
) -> Vec<usize> {
    // With MPI_IN_PLACE the library does not look at what is sent, and neither must we: nothing need stand there.
    if list.is_null() || comm.is_null() || (argument == "sendtypes" && from.addr() == IN_PLACE) {
        return Vec::new();
    }
    // SAFETY: the application passes one datatype for each peer or neighbour.
    unsafe {
        let c = &*comm;
        let n = if function.contains("eighbor") {
            let (from, to) = degrees(c);
            if argument == "sendtypes" { to } else { from }
        } else if c.inter {
            c.remote.len()
        } else {
            c.local.len()
        };
        (0..n).map(|i| real(*list.add(i))).collect()
    }
}

macro_rules! upper {
    (DatatypeP) => { *const *mut Datatype };
    (RequestP) => { *mut *mut Request };
    ($k:ident) => { ty!($k) };
}
macro_rules! low {
    (DatatypeP) => { *const usize };
    (RequestP) => { *mut usize };
    ($k:ident) => { <ty!($k) as Lower>::Low };
}
// What must live until the call (or the request) is over.
macro_rules! keep {
    (DatatypeP $v:ident $comm:ident $from:ident $f:ident) => {
        types($v, $comm, $from, stringify!($f), stringify!($v))
    };
    ($other:ident $v:ident $comm:ident $from:ident $f:ident) => {
        ()
    };
}
// The same for a non-blocking one: the application may free these handles once it has started.
macro_rules! keep_longer {
    (DatatypeP $v:ident $comm:ident $from:ident $f:ident) => {
        types($v, $comm, $from, stringify!($f), stringify!($v))
    };
    (Op $v:ident $comm:ident $from:ident $f:ident) => {
        Held::new($v.cast())
    };
    (Datatype $v:ident $comm:ident $from:ident $f:ident) => {
        Held::new($v.cast())
    };
    ($other:ident $v:ident $comm:ident $from:ident $f:ident) => {
        ()
    };
}
macro_rules! value {
    (DatatypeP $v:ident $kept:ident $q:ident) => {
        $kept.as_ptr()
    };
    (RequestP $v:ident $kept:ident $q:ident) => {
        $q
    };
    ($k:ident $v:ident $kept:ident $q:ident) => {
        $v.lower()
    };
}

// The row's own argument `comm` has the row's hygiene, so it is found by its kind.
macro_rules! comm_of {
    ($($a:ident: $k:ident),*) => {{
        #[allow(unused_assignments, reason = "the row has one")]
        let mut found: *mut Comm = core::ptr::null_mut();
        $( comm_of!(@ found $k $a); )*
        found
    }};
    (@ $found:ident Comm $a:ident) => { $found = $a; };
    (@ $found:ident $other:ident $a:ident) => {};
}
// The buffer that is sent: the first one of a row, if it has any.
macro_rules! sends_of {
    ($($a:ident: $k:ident),*) => {{
        #[allow(unused_mut, reason = "the row has one, mostly")]
        let mut found: *const c_void = core::ptr::null();
        $( sends_of!(@ found $k $a); )*
        found
    }};
    (@ $found:ident ptr $a:ident) => { if $found.is_null() { $found = $a; } };
    (@ $found:ident $other:ident $a:ident) => {};
}
macro_rules! request_of {
    ($($a:ident: $k:ident),*) => {{
        #[allow(unused_assignments, reason = "the row has one")]
        let mut found: *mut *mut Request = core::ptr::null_mut();
        $( request_of!(@ found $k $a); )*
        found
    }};
    (@ $found:ident RequestP $a:ident) => { $found = $a; };
    (@ $found:ident $other:ident $a:ident) => {};
}

macro_rules! call {
    ($q:ident; $name:ident($($a:ident: $k:ident),*)) => {
        $crate::down!($name($($a: low!($k) = { let (ref kept, v) = $a; let _ = (kept, v); value!($k v kept $q) }),*)
            -> c_int)
    };
}
macro_rules! row {
    (collective $name:ident int ($($a:ident: $k:ident),*)) => {
        $crate::export! {
            fn $name($($a: upper!($k)),*) -> c_int {
                let on = comm_of!($($a: $k),*);
                #[allow(unused_variables, reason = "only rows with lists of types look at it")]
                let from = sends_of!($($a: $k),*);
                let code = {
                    let _within = within(on);
                    $( let $a = (keep!($k $a on from $name), $a); )*
                    call!(on; $name($($a: $k),*))
                };
                if code == 0 {
                    return 0;
                }
                $crate::errhandler::raise(on.cast::<Head>(), code, stringify!($name))
            }
        }
    };
    (initiates $name:ident int ($($a:ident: $k:ident),*)) => {
        $crate::export! {
            fn $name($($a: upper!($k)),*) -> c_int {
                let on = comm_of!($($a: $k),*);
                #[allow(unused_variables, reason = "only rows with lists of types look at it")]
                let from = sends_of!($($a: $k),*);
                let out = request_of!($($a: $k),*);
                let mut fresh = 0usize;
                let q = &raw mut fresh;
                let code = {
                    let _within = within(on);
                    // From the start below until the drain can find the request, the thread is not stopped.
                    let _inside = Inside::enter();
                    $( let $a = (keep_longer!($k $a on from $name), $a); )*
                    let code = call!(q; $name($($a: $k),*));
                    if code == 0 {
                        let kept = ($($a.0,)*);
                        let then: Box<dyn FnOnce()> = Box::new(move || { let _ended = kept; });
                        *out = request::adopt(fresh, Does::Collective, on, Some(then));
                    }
                    code
                };
                if code == 0 {
                    return 0;
                }
                *out = request::null();
                $crate::errhandler::raise(on.cast::<Head>(), code, stringify!($name))
            }
        }
    };
    ($policy:ident $name:ident $ret:ident ($($a:ident: $k:ident),*)) => {};
}
macro_rules! rows {
    ($([$name:ident $policy:ident $ret:ident ($($a:ident: $k:ident),*)])*) => {
        $( row! { $policy $name $ret ($($a: $k),*) } )*
    };
}
stillpoint_mpi_table::for_each_mpi!(rows);

/// What MPI_Finalize begins with: all ranks have arrived. A dissemination barrier of the front's own messages, so it
/// can be interrupted, and a checkpoint can be taken while some ranks stand in it and others compute for hours.
pub(crate) fn last_barrier() -> c_int {
    // SAFETY: lives for ever; written in MPI_Init.
    let (rank, size) = unsafe { ((*crate::comm::hidden()).rank, (*crate::comm::hidden()).size) };
    let (rank, size) = (u32::try_from(rank).unwrap_or(0), u32::try_from(size).unwrap_or(0));
    let mut step = 1;
    let mut tag = 1;
    while step < size {
        let (to, from) = ((rank + step) % size, (rank + size - step) % size);
        let code = crate::p2p::exchange(to, &[], from, &mut [], tag);
        if code != 0 {
            return code;
        }
        step *= 2;
        tag += 1;
    }
    // What the application has let go of is complete soon, now that everybody is here; a wrong program is not waited for.
    for _ in 0..10_000 {
        let mut p = request::begin();
        p.sweep();
        if p.orphans == 0 {
            break;
        }
    }
    0
}
