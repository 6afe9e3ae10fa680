//! The calls that complete requests: Wait, Test and their kin, and what ends requests. Upper half.
//!
//! What a reader would get wrong: a request can be active with nothing below (a generalized one, a drained synchronous
//! send whose receiver has not matched it yet). Waiting for one means reading the mail and keeping the library going,
//! because other ranks may need this one's progress.
#![allow(unsafe_code, reason = "requests are raw pointers that the application passes in")]

use crate::cross::thread;
use crate::handles::{Comm, Status, real};
use crate::request::{ERR_IN_STATUS, ERR_REQUEST, In, Request, SUCCESS, UNDEFINED, begin, null, tell};
use crate::{down, export, predefined};
use alloc::vec::Vec;
use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use stillpoint_abi::half::doing;

unsafe fn query(r: *mut Request) {
    // SAFETY: a live request; the functions are the application's, called at depth 0 as the library would.
    unsafe {
        if let Some(g) = (*r).generalized {
            ((*r).status, (*r).code) = g.query();
        }
    }
}

/// Tells the application about a done request and ends it or makes it inactive. Returns its code.
unsafe fn finish(at: *mut *mut Request, status: *mut Status, with_error: bool) -> c_int {
    // SAFETY: `*at` is a live, done request.
    unsafe {
        let r = *at;
        query(r);
        let (s, code, g) = ((*r).status, (*r).code, (*r).generalized);
        tell(status, &s);
        if with_error && !status.is_null() {
            (*status).error = code;
        }
        let mut p = begin();
        p.strike(r);
        if (*r).told() {
            p.end(r);
            *at = null();
        }
        drop(p);
        if let Some(g) = g {
            g.free();
        }
        code
    }
}

/// Null or inactive: nothing to wait for.
unsafe fn is_idle(r: *mut Request) -> bool {
    // SAFETY: null is compared first; all others are live requests.
    r == null() || unsafe { !(*r).active }
}

unsafe fn tell_empty(status: *mut Status, with_error: bool) {
    // SAFETY: the application's status, or null.
    unsafe {
        tell(status, &Status::EMPTY);
        if with_error && !status.is_null() {
            (*status).error = SUCCESS;
        }
    }
}

/// Marks the thread as one that waits for others, while it lives.
struct Waiting;

impl Waiting {
    fn begin() -> Waiting {
        thread().doing.store(doing::WAITING, Relaxed);
        Waiting
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        thread().doing.store(doing::RUNNING, Relaxed);
    }
}

/// One look at the mail and at the library, for a request that has nothing below.
fn keep_going(p: &mut In) {
    p.read_mail();
    let mut flag = 0;
    // SAFETY: predefined objects live for ever; nobody sends to oneself with a tag that matters here.
    let c = unsafe { real(predefined!(ompi_mpi_comm_self as Comm)) };
    down!(MPI_Iprobe(s: c_int = -1, g: c_int = -1, c: usize = c, f: *mut c_int = &raw mut flag,
        st: *mut c_void = core::ptr::null_mut()) -> c_int);
}

/// Gives the processor to another thread; not inside the front, so that this one can be stopped here.
fn pause() {
    // SAFETY: no arguments.
    unsafe { stillpoint_sys::sys!(stillpoint_sys::raw::nr::SCHED_YIELD) };
}

/// Waits until `r` is done. Comes up to be stopped, and goes on.
///
/// # Safety
/// `r` is live and active.
pub(crate) unsafe fn wait_done(r: *mut Request) {
    let mut waiting = None;
    // SAFETY: the caller's promise; whoever waits for a request is the only one that may end it.
    unsafe {
        loop {
            let mut p = begin();
            if (*r).done {
                (*r).waited = false;
                return;
            }
            (*r).waited = true;
            let mut real = (*r).head.real();
            if real == 0 {
                waiting.get_or_insert_with(Waiting::begin);
                keep_going(&mut p);
                drop(p);
                pause();
                continue;
            }
            let mut status = Status::EMPTY;
            let code = p.outside(|| {
                down!(helper Wait(q: *mut usize = &raw mut real, s: *mut Status = &raw mut status,
                    d: *const AtomicU32 = &raw const thread().doing) -> c_int)
            });
            if code >= 0 {
                p.complete(r, status, code);
            }
        }
    }
}

/// Waits until no request of `comm` is under way.
///
/// # Safety
/// `comm` is live.
pub(crate) unsafe fn wait_for_comm(comm: *mut Comm) {
    loop {
        // SAFETY: live requests only are in the list; requests that nobody completes meanwhile stay.
        unsafe {
            let mut p = begin();
            p.sweep();
            let Some(r) = p.live.iter().copied().find(|&r| (*r).comm == comm && !(*r).done) else { return };
            // From here on no sweep of another thread ends it.
            (*r).waited = true;
            drop(p);
            wait_done(r);
        }
    }
}

unsafe fn done_now(r: *mut Request) -> bool {
    // SAFETY: a live request.
    let done = unsafe {
        (*r).done || {
            let mut p = begin();
            let done = p.test(r);
            if !done && (*r).head.real() == 0 {
                // Whoever only asks for this one keeps the library going all the same: others may need it.
                keep_going(&mut p);
            }
            (*r).done
        }
    };
    crate::cross::asked(done);
    done
}

/// Reports `code` of a request to the error handler of its communicator.
pub(crate) unsafe fn raise(comm: *mut Comm, code: c_int) -> c_int {
    // SAFETY: null, or a communicator that the application still has.
    unsafe { crate::p2p::outcome(comm, code, "MPI_Wait") }
}

unsafe fn comm_of(r: *mut Request) -> *mut Comm {
    // SAFETY: null is compared first.
    unsafe { if r == null() { core::ptr::null_mut() } else { (*r).comm } }
}

unsafe fn status_at(all: *mut Status, i: usize) -> *mut Status {
    // SAFETY: the application passes as many statuses as requests, or none.
    if all.is_null() { all } else { unsafe { all.add(i) } }
}

unsafe fn slice<'a>(n: c_int, a: *mut *mut Request) -> &'a mut [*mut Request] {
    match usize::try_from(n) {
        // SAFETY: the application passes `n` requests.
        Ok(n) if n > 0 => unsafe { core::slice::from_raw_parts_mut(a, n) },
        _ => &mut [],
    }
}

/// Finishes all that are done; used by the Some calls.
unsafe fn finish_some(
    all: &mut [*mut Request],
    out: *mut c_int,
    index: *mut c_int,
    st: *mut Status,
) -> c_int {
    let (mut n, mut failed) = (0usize, None);
    for (i, at) in all.iter_mut().enumerate() {
        // SAFETY: live requests; the application's arrays have room for all of them.
        unsafe {
            if is_idle(*at) || !done_now(*at) {
                continue;
            }
            let comm = comm_of(*at);
            if finish(at, status_at(st, n), true) != SUCCESS {
                failed.get_or_insert(comm);
            }
            *index.add(n) = i as c_int;
        }
        n += 1;
    }
    // SAFETY: as above.
    unsafe {
        *out = n as c_int;
        failed.map_or(SUCCESS, |comm| raise(comm, ERR_IN_STATUS))
    }
}

fn mark(all: &[*mut Request], places: &[usize], waited: bool) {
    for &i in places {
        // SAFETY: live requests.
        unsafe { (*all[i]).waited = waited };
    }
}

/// Waits until at least one of the active ones is done; its index, or `None` if all are idle.
unsafe fn wait_for_one(all: &[*mut Request]) -> Option<usize> {
    let mut places = Vec::new();
    let mut reals = Vec::new();
    let mut waiting = None;
    loop {
        let mut p = begin();
        places.clear();
        reals.clear();
        let mut others = false;
        for (i, &r) in all.iter().enumerate() {
            // SAFETY: live requests.
            unsafe {
                if is_idle(r) {
                    continue;
                }
                if (*r).done {
                    return Some(i);
                }
                match (*r).head.real() {
                    0 => others = true,
                    real => {
                        places.push(i);
                        reals.push(real);
                    }
                }
            }
        }
        if places.is_empty() && !others {
            return None;
        }
        let (mut status, mut index, mut flag) = (Status::EMPTY, UNDEFINED, 0);
        let n = reals.len() as c_int;
        let q = reals.as_mut_ptr();
        let code = if others {
            waiting.get_or_insert_with(Waiting::begin);
            keep_going(&mut p);
            if n == 0 {
                -1
            } else {
                down!(MPI_Testany(n: c_int = n, q: *mut usize = q, i: *mut c_int = &raw mut index,
                    f: *mut c_int = &raw mut flag, s: *mut Status = &raw mut status) -> c_int)
            }
        } else {
            mark(all, &places, true);
            let code = p.outside(|| {
                down!(helper WaitAny(n: c_int = n, q: *mut usize = q, i: *mut c_int = &raw mut index,
                    s: *mut Status = &raw mut status,
                    d: *const AtomicU32 = &raw const thread().doing) -> c_int)
            });
            mark(all, &places, false);
            code
        };
        if code >= 0
            && let Some(&at) = usize::try_from(index).ok().and_then(|i| places.get(i))
        {
            // SAFETY: live and active.
            unsafe { p.complete(all[at], status, code) };
            continue;
        }
        drop(p);
        if others {
            pause();
        }
    }
}

export! {
    fn MPI_Wait(request: *mut *mut Request, status: *mut Status) -> c_int {
        if is_idle(*request) {
            tell_empty(status, false);
            return SUCCESS;
        }
        wait_done(*request);
        let comm = comm_of(*request);
        let code = finish(request, status, false);
        raise(comm, code)
    }

    fn MPI_Test(request: *mut *mut Request, flag: *mut c_int, status: *mut Status) -> c_int {
        if is_idle(*request) {
            *flag = 1;
            tell_empty(status, false);
            return SUCCESS;
        }
        *flag = c_int::from(done_now(*request));
        if *flag == 0 {
            return SUCCESS;
        }
        let comm = comm_of(*request);
        let code = finish(request, status, false);
        raise(comm, code)
    }

    fn MPI_Waitall(count: c_int, requests: *mut *mut Request, statuses: *mut Status) -> c_int {
        let all = slice(count, requests);
        for &r in all.iter() {
            if !is_idle(r) {
                wait_done(r);
            }
        }
        finish_all(all, statuses)
    }

    fn MPI_Testall(count: c_int, requests: *mut *mut Request, flag: *mut c_int, statuses: *mut Status) -> c_int {
        let all = slice(count, requests);
        *flag = c_int::from(all.iter().all(|&r| is_idle(r) || done_now(r)));
        if *flag == 0 { SUCCESS } else { finish_all(all, statuses) }
    }

    fn MPI_Waitany(count: c_int, requests: *mut *mut Request, index: *mut c_int, status: *mut Status) -> c_int {
        let all = slice(count, requests);
        match wait_for_one(all) {
            None => {
                *index = UNDEFINED;
                tell_empty(status, false);
                SUCCESS
            }
            Some(i) => {
                *index = i as c_int;
                let comm = comm_of(all[i]);
                let code = finish(&raw mut all[i], status, false);
                raise(comm, code)
            }
        }
    }

    fn MPI_Testany(count: c_int, requests: *mut *mut Request, index: *mut c_int, flag: *mut c_int,
                   status: *mut Status) -> c_int {
        let all = slice(count, requests);
        *index = UNDEFINED;
        let mut idle = true;
        for (i, at) in all.iter_mut().enumerate() {
            if is_idle(*at) {
                continue;
            }
            idle = false;
            if done_now(*at) {
                *index = i as c_int;
                *flag = 1;
                let comm = comm_of(*at);
                let code = finish(at, status, false);
                return raise(comm, code);
            }
        }
        *flag = c_int::from(idle);
        if idle {
            tell_empty(status, false);
        }
        SUCCESS
    }

    fn MPI_Waitsome(count: c_int, requests: *mut *mut Request, out: *mut c_int, indices: *mut c_int,
                    statuses: *mut Status) -> c_int {
        let all = slice(count, requests);
        if wait_for_one(all).is_none() {
            *out = UNDEFINED;
            return SUCCESS;
        }
        finish_some(all, out, indices, statuses)
    }

    fn MPI_Testsome(count: c_int, requests: *mut *mut Request, out: *mut c_int, indices: *mut c_int,
                    statuses: *mut Status) -> c_int {
        let all = slice(count, requests);
        if all.iter().all(|&r| is_idle(r)) {
            *out = UNDEFINED;
            return SUCCESS;
        }
        finish_some(all, out, indices, statuses)
    }

    fn MPI_Request_get_status(request: *mut Request, flag: *mut c_int, status: *mut Status) -> c_int {
        if is_idle(request) {
            *flag = 1;
            tell_empty(status, false);
            return SUCCESS;
        }
        *flag = c_int::from(done_now(request));
        if *flag != 0 {
            query(request);
            tell(status, &(*request).status);
        }
        SUCCESS
    }

    fn MPI_Request_free(request: *mut *mut Request) -> c_int {
        let r = *request;
        if r == null() {
            return raise(core::ptr::null_mut(), ERR_REQUEST);
        }
        *request = null();
        let g = (*r).generalized;
        let mut p = begin();
        if let Some(g) = g {
            // The free function runs once the request is both freed and complete.
            (*r).orphan = true;
            if (*r).done {
                p.end(r);
                drop(p);
                g.free();
            }
            return SUCCESS;
        }
        if !(*r).active || (*r).done {
            p.end(r);
        } else {
            p.orphan(r);
        }
        SUCCESS
    }

    fn MPI_Cancel(request: *mut *mut Request) -> c_int {
        let r = *request;
        if r == null() {
            return raise(core::ptr::null_mut(), ERR_REQUEST);
        }
        if let Some(g) = (*r).generalized {
            return g.cancel((*r).done);
        }
        let _p = begin();
        let mut real = (*r).head.real();
        // Complete, or drained: too late, which the standard allows.
        if !(*r).active || (*r).done || real == 0 || (*r).arriving.is_some() {
            return SUCCESS;
        }
        (*r).cancelled = true;
        down!(MPI_Cancel(q: *mut usize = &raw mut real) -> c_int)
    }
}

unsafe fn finish_all(all: &mut [*mut Request], statuses: *mut Status) -> c_int {
    let (mut result, mut comm) = (SUCCESS, core::ptr::null_mut());
    for (i, at) in all.iter_mut().enumerate() {
        // SAFETY: live requests, all done; as many statuses, or none.
        unsafe {
            let st = status_at(statuses, i);
            if is_idle(*at) {
                tell_empty(st, true);
                continue;
            }
            let c = comm_of(*at);
            if finish(at, st, true) != SUCCESS {
                (result, comm) = (ERR_IN_STATUS, c);
            }
        }
    }
    // SAFETY: the application still has the communicator of an erroneous request.
    unsafe { raise(comm, result) }
}
