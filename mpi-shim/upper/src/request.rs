//! The life of a virtual request, and the calls that complete requests. Upper half.
//!
//! ```text
//!            start                 below complete            Wait, Test, …
//!  inactive ───────▶ active ──────────────────────▶ done ───────────────────▶ gone (persistent: inactive)
//!                      │  └─ a drained synchronous send: done only when its receiver has acknowledged it
//!                      └─ Request_free ─▶ orphan ─▶ gone when done
//! ```
//!
//! What a reader would get wrong: `done` is known upstairs before the application asks: the drain completes requests
//! on its own, and their statuses wait here. So every call looks at `done` first and below only afterwards, and a
//! request of the library never outlives its virtual one's `active`. A persistent request has nothing below while it
//! is inactive; MPI_Start issues an ordinary one.
#![allow(unsafe_code, reason = "requests are raw pointers that the application passes in")]

use crate::cross::Inside;
use crate::handles::{self, Comm, Datatype, Head, Kind, Status};
use crate::matching::{Drained, Store, SyncId};
use crate::{down, export, predefined};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicU32, Ordering};
use stillpoint_sys::upper;

pub(crate) const SUCCESS: c_int = 0;
pub(crate) const ERR_BUFFER: c_int = 1;
pub(crate) const ERR_REQUEST: c_int = 7;
pub(crate) const ERR_IN_STATUS: c_int = 18;
pub(crate) const UNDEFINED: c_int = -32766;
const THREAD_MULTIPLE: u32 = 3;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Does {
    /// MPI_Isend, MPI_Irsend.
    Send,
    /// MPI_Issend.
    Ssend,
    /// MPI_Ibsend: complete at once, its bytes are a front buffer's.
    Bsend,
    /// MPI_Irecv.
    Recv,
    /// MPI_Imrecv: counted as received at the matched probe.
    Mrecv,
    /// A non-blocking collective.
    Collective,
    /// MPI_Grequest_start.
    Generalized,
    /// One-sided or IO: passed through.
    Foreign,
}

/// The application's functions of a generalized request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Generalized {
    pub(crate) query: usize,
    pub(crate) free: usize,
    pub(crate) cancel: usize,
    pub(crate) extra: usize,
}

/// A request. `head.real` is the library's; 0: there is none (inactive, or complete).
#[repr(C)]
pub(crate) struct Request {
    pub(crate) head: Head,
    pub(crate) does: Does,
    pub(crate) persistent: bool,
    pub(crate) active: bool,
    pub(crate) done: bool,
    pub(crate) orphan: bool,
    pub(crate) cancelled: bool,
    /// An acknowledgement from the receiver is outstanding.
    pub(crate) unacknowledged: bool,
    /// Number in the order of posting.
    pub(crate) serial: u64,
    /// Place in `P2p::live`.
    at: usize,
    pub(crate) comm: *mut Comm,
    pub(crate) datatype: *mut Datatype,
    pub(crate) buf: usize,
    pub(crate) count: c_int,
    pub(crate) peer: c_int,
    pub(crate) tag: c_int,
    pub(crate) status: Status,
    pub(crate) code: c_int,
    /// Position among the sends of its key, when synchronous.
    pub(crate) position: u64,
    /// Bytes of a buffered send, and what they cost in the attached buffer.
    pub(crate) front: Vec<u8>,
    pub(crate) generalized: Option<Generalized>,
    /// Runs when the request below is complete.
    pub(crate) then: Option<Box<dyn FnOnce()>>,
}

impl core::fmt::Debug for Request {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Request").field("does", &self.does).field("done", &self.done).finish_non_exhaustive()
    }
}

impl Request {
    pub(crate) fn new(does: Does) -> Request {
        Request {
            head: Head::new(Kind::Request, 0),
            does,
            persistent: false,
            active: false,
            done: false,
            orphan: false,
            cancelled: false,
            unacknowledged: false,
            serial: 0,
            at: usize::MAX,
            comm: core::ptr::null_mut(),
            datatype: core::ptr::null_mut(),
            buf: 0,
            count: 0,
            peer: 0,
            tag: 0,
            status: Status::EMPTY,
            code: SUCCESS,
            position: 0,
            front: Vec::new(),
            generalized: None,
            then: None,
        }
    }

    /// The request below is complete. Returns true if a message was received by it.
    pub(crate) fn completed_below(&mut self, status: Status, code: c_int) -> bool {
        self.head.set_real(0);
        self.code = code;
        self.status = match self.does {
            Does::Send | Does::Ssend | Does::Bsend if status.cancelled == 0 => Status::EMPTY,
            _ => status,
        };
        self.done = !self.unacknowledged;
        self.does == Does::Recv && status.cancelled == 0
    }

    /// The receiver of a drained synchronous send has matched it.
    pub(crate) fn acknowledged(&mut self) {
        self.unacknowledged = false;
        self.done = self.active && self.head.real() == 0;
    }

    /// The application has been told: what is left of it. True: nothing, the object can go.
    pub(crate) fn told(&mut self) -> bool {
        self.done = false;
        self.active = false;
        self.code = SUCCESS;
        self.status = Status::EMPTY;
        !self.persistent || self.orphan
    }
}

/// A message taken by a matched probe.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) head: Head,
    pub(crate) comm: *mut Comm,
    pub(crate) status: Status,
    pub(crate) drained: Option<Drained>,
}

/// Sends of one (communicator, destination, tag) since a synchronous one of it became outstanding.
#[derive(Debug, Default)]
pub(crate) struct Key {
    pub(crate) sent: u64,
    pub(crate) outstanding: u32,
}

/// All that point-to-point knows.
#[derive(Debug)]
pub(crate) struct P2p {
    pub(crate) sent: Vec<u64>,
    pub(crate) received: Vec<u64>,
    pub(crate) store: Store,
    /// Active requests and orphans, in no order.
    pub(crate) live: Vec<*mut Request>,
    pub(crate) serial: u64,
    pub(crate) orphans: u32,
    pub(crate) messages: Vec<*mut Message>,
    pub(crate) keys: BTreeMap<(u64, c_int, c_int), Key>,
    /// Acknowledgements to send.
    pub(crate) due: Vec<SyncId>,
    /// The attached buffer: address, size, in use.
    pub(crate) buffer: (usize, usize, usize),
    /// The private duplicate of MPI_COMM_SELF, and the epoch in which it was made.
    pub(crate) own: (usize, u64),
}

struct Cell {
    word: AtomicU32,
    p2p: UnsafeCell<P2p>,
}
// SAFETY: reached only through `In`, which locks when more than one thread may be here.
unsafe impl Sync for Cell {}
static CELL: Cell = Cell {
    word: AtomicU32::new(0),
    p2p: UnsafeCell::new(P2p {
        sent: Vec::new(),
        received: Vec::new(),
        store: Store::new(),
        live: Vec::new(),
        serial: 0,
        orphans: 0,
        messages: Vec::new(),
        keys: BTreeMap::new(),
        due: Vec::new(),
        buffer: (0, 0, 0),
        own: (0, 0),
    }),
};

/// Access to [`P2p`] while it lives; the thread cannot be stopped meanwhile.
#[derive(Debug)]
pub(crate) struct In {
    locks: bool,
    // Ends after `Drop::drop` has given the lock back.
    _inside: Inside,
}

/// Begins a call.
#[inline(always)]
pub(crate) fn begin() -> In {
    let inside = Inside::enter();
    let locks = upper().mpi_level.load(Ordering::Relaxed) == THREAD_MULTIPLE;
    let i = In { locks, _inside: inside };
    i.lock();
    i
}

impl In {
    fn lock(&self) {
        if self.locks {
            while CELL.word.swap(1, Ordering::Acquire) != 0 {
                core::hint::spin_loop();
            }
        }
    }

    fn unlock(&self) {
        if self.locks {
            CELL.word.store(0, Ordering::Release);
        }
    }

    /// True if several threads may be inside MPI.
    pub(crate) fn locks(&self) -> bool {
        self.locks
    }

    /// Runs `f`, which may wait below, without the lock.
    #[inline(always)]
    pub(crate) fn outside<R>(&mut self, f: impl FnOnce() -> R) -> R {
        self.unlock();
        let r = f();
        self.lock();
        r
    }
}

impl Drop for In {
    #[inline(always)]
    fn drop(&mut self) {
        self.unlock();
    }
}

impl core::ops::Deref for In {
    type Target = P2p;
    fn deref(&self) -> &P2p {
        // SAFETY: one thread, or the lock is held.
        unsafe { &*CELL.p2p.get() }
    }
}

impl core::ops::DerefMut for In {
    fn deref_mut(&mut self) -> &mut P2p {
        // SAFETY: one thread, or the lock is held; `self` is borrowed alone.
        unsafe { &mut *CELL.p2p.get() }
    }
}

impl P2p {
    pub(crate) fn count(list: &mut Vec<u64>, world: u32) {
        let w = world as usize;
        if w >= 1 << 31 {
            return;
        }
        if list.len() <= w {
            list.resize(w + 1, 0);
        }
        list[w] += 1;
    }

    /// A message to `dest` was started.
    pub(crate) fn note_sent(&mut self, comm: &Comm, dest: c_int, tag: c_int) {
        if let Some(w) = comm.peer_world(dest) {
            Self::count(&mut self.sent, w);
            if !self.keys.is_empty() {
                if let Some(k) = self.keys.get_mut(&(comm.gid, dest, tag)) {
                    k.sent += 1;
                }
            }
        }
    }

    /// A message from `source` came home.
    pub(crate) fn note_received(&mut self, comm: &Comm, source: c_int) {
        if let Some(w) = comm.peer_world(source) {
            Self::count(&mut self.received, w);
        }
    }

    /// A synchronous send becomes outstanding; called after [`P2p::note_sent`].
    pub(crate) fn note_sync(&mut self, r: &mut Request, gid: u64) {
        let k = self.keys.entry((gid, r.peer, r.tag)).or_default();
        k.outstanding += 1;
        r.position = k.sent;
    }

    fn forget_sync(&mut self, gid: u64, r: &Request) {
        if let Some(k) = self.keys.get_mut(&(gid, r.peer, r.tag)) {
            k.outstanding -= 1;
            if k.outstanding == 0 {
                self.keys.remove(&(gid, r.peer, r.tag));
            }
        }
    }

    /// `r` is active from now on: the drain finds it.
    pub(crate) fn enlist(&mut self, r: *mut Request) {
        self.serial += 1;
        // SAFETY: the caller's live request.
        unsafe {
            (*r).serial = self.serial;
            (*r).at = self.live.len();
            (*r).active = true;
            (*r).done = false;
            for held in [(*r).comm.cast::<Head>(), (*r).datatype.cast::<Head>()] {
                if !held.is_null() {
                    handles::retain(held);
                }
            }
        }
        self.live.push(r);
    }

    fn strike(&mut self, r: *mut Request) {
        // SAFETY: live requests only are in the list.
        unsafe {
            let at = (*r).at;
            if self.live.get(at) == Some(&r) {
                self.live.swap_remove(at);
                if let Some(&moved) = self.live.get(at) {
                    (*moved).at = at;
                }
                (*r).at = usize::MAX;
                let_go((*r).comm.cast());
                let_go((*r).datatype.cast());
            }
        }
    }

    /// Books the completion of `r` below.
    ///
    /// # Safety
    /// `r` is live and active.
    pub(crate) unsafe fn complete(&mut self, r: *mut Request, status: Status, code: c_int) {
        // SAFETY: the caller's promise; the objects that a request names are held by it.
        unsafe {
            if (*r).completed_below(status, code) {
                self.note_received(&*(*r).comm, status.source);
            }
            if (*r).does == Does::Ssend && !(*r).unacknowledged {
                self.forget_sync((*(*r).comm).gid, &*r);
            }
            if let Some(then) = (*r).then.take() {
                then();
            }
        }
    }

    /// The acknowledgement of the synchronous send `id` has come.
    pub(crate) fn acknowledge(&mut self, id: u64) {
        let Some(&r) = self.live.iter().find(|&&r| {
            // SAFETY: live requests only are in the list.
            unsafe { (*r).serial == id && (*r).unacknowledged }
        }) else {
            return;
        };
        // SAFETY: as above.
        unsafe {
            (*r).acknowledged();
            if (*r).done {
                self.forget_sync((*(*r).comm).gid, &*r);
            }
        }
    }

    /// Looks below, once, whether `r` is complete.
    ///
    /// # Safety
    /// `r` is live.
    pub(crate) unsafe fn test(&mut self, r: *mut Request) -> bool {
        // SAFETY: the caller's promise.
        unsafe {
            let mut real = (*r).head.real();
            if (*r).done || real == 0 {
                return (*r).done;
            }
            let mut flag = 0;
            let mut status = Status::EMPTY;
            let code = down!(MPI_Test(q: *mut usize = &raw mut real, f: *mut c_int = &raw mut flag,
                                      s: *mut Status = &raw mut status) -> c_int);
            if flag != 0 || code != SUCCESS {
                self.complete(r, status, code);
            }
            (*r).done
        }
    }

    /// Ends a request object.
    ///
    /// # Safety
    /// `r` came from [`handles::make`] and is not active.
    pub(crate) unsafe fn end(&mut self, r: *mut Request) {
        self.strike(r);
        // SAFETY: the caller's promise.
        unsafe {
            if (*r).does == Does::Bsend {
                self.buffer.2 = self.buffer.2.saturating_sub((*r).front.len() + crate::p2p::BSEND_OVERHEAD);
            }
            handles::unmake(r);
        }
    }

    /// Ends the orphans that are done.
    pub(crate) fn sweep(&mut self) {
        let mut i = 0;
        while let Some(&r) = self.live.get(i) {
            // SAFETY: live requests only are in the list.
            unsafe {
                if (*r).orphan && self.test(r) {
                    self.orphans -= 1;
                    self.end(r);
                } else {
                    i += 1;
                }
            }
        }
    }
}

/// One holder of a communicator or datatype less. The chapter that made it ends it when the application frees it.
///
/// # Safety
/// `o` is null or held by the caller.
pub(crate) unsafe fn let_go(o: *mut Head) {
    if !o.is_null() {
        // SAFETY: the caller's promise.
        unsafe { handles::release(o) };
    }
}

/// `MPI_REQUEST_NULL`.
#[inline(always)]
pub(crate) fn null() -> *mut Request {
    predefined!(ompi_request_null as Request)
}

/// A virtual request for the library's `real`, made by a call that is passed through; `then` runs at its completion.
pub(crate) fn adopt(
    real: usize,
    does: Does,
    comm: *mut Comm,
    then: Option<Box<dyn FnOnce()>>,
) -> *mut Request {
    let mut p = begin();
    let mut r = Request::new(does);
    r.head.set_real(real);
    r.comm = comm;
    r.then = then;
    let r = handles::make(r);
    p.enlist(r);
    r
}

/// What a single completion writes: all but the error field (MPI 3.1, 3.2.5).
pub(crate) unsafe fn tell(to: *mut Status, s: &Status) {
    if !to.is_null() {
        // SAFETY: the application's status.
        unsafe {
            (*to).source = s.source;
            (*to).tag = s.tag;
            (*to).cancelled = s.cancelled;
            (*to).ucount = s.ucount;
        }
    }
}

unsafe fn query(r: *mut Request) {
    // SAFETY: a live request; the functions are the application's, called at depth 0 as the library would.
    unsafe {
        if let Some(g) = (*r).generalized {
            let f = core::mem::transmute::<usize, unsafe extern "C" fn(usize, *mut Status) -> c_int>(g.query);
            let mut s = Status::EMPTY;
            s.source = UNDEFINED;
            s.tag = UNDEFINED;
            let code = f(g.extra, &raw mut s);
            (*r).status = s;
            (*r).code = code;
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
            let f = core::mem::transmute::<usize, unsafe extern "C" fn(usize) -> c_int>(g.free);
            f(g.extra);
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

/// Waits until `r` is done. Comes up to be stopped, and goes on.
///
/// # Safety
/// `r` is live and active.
pub(crate) unsafe fn wait_done(r: *mut Request) {
    // SAFETY: the caller's promise; whoever waits for a request is the only one that may end it.
    unsafe {
        loop {
            let mut p = begin();
            if (*r).done {
                return;
            }
            let mut real = (*r).head.real();
            if real == 0 {
                // Waits for another thread or for mail: progress is made by those, and here nothing is to be asked.
                drop(p);
                stillpoint_sys::sys!(stillpoint_sys::raw::nr::SCHED_YIELD);
                continue;
            }
            let mut status = Status::EMPTY;
            let code = p.outside(|| {
                down!(helper Wait(q: *mut usize = &raw mut real, s: *mut Status = &raw mut status,
                    d: *const AtomicU32 = &raw const crate::cross::thread().doing) -> c_int)
            });
            if code >= 0 {
                p.complete(r, status, code);
            }
        }
    }
}

unsafe fn done_now(r: *mut Request) -> bool {
    // SAFETY: a live request.
    unsafe { (*r).done || begin().test(r) }
}

/// Reports `code` of a request to the error handler of its communicator.
unsafe fn raise(comm: *mut Comm, code: c_int) -> c_int {
    if code == SUCCESS {
        return code;
    }
    // SAFETY: null, or a communicator that the application still has.
    unsafe { crate::p2p::fail(comm, code, "MPI_Wait") }
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
    let (mut n, mut result, mut comm) = (0usize, SUCCESS, core::ptr::null_mut());
    for (i, at) in all.iter_mut().enumerate() {
        // SAFETY: live requests; the application's arrays have room for all of them.
        unsafe {
            if is_idle(*at) || !done_now(*at) {
                continue;
            }
            comm = comm_of(*at);
            if finish(at, status_at(st, n), true) != SUCCESS {
                result = ERR_IN_STATUS;
            }
            *index.add(n) = i as c_int;
        }
        n += 1;
    }
    // SAFETY: as above.
    unsafe {
        *out = n as c_int;
        raise(comm, result)
    }
}

/// Waits until at least one of the active ones is done; its index, or `None` if all are idle.
unsafe fn wait_for_one(all: &[*mut Request]) -> Option<usize> {
    let mut places = Vec::new();
    let mut reals = Vec::new();
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
            if n == 0 {
                -1
            } else {
                down!(MPI_Testany(n: c_int = n, q: *mut usize = q, i: *mut c_int = &raw mut index,
                    f: *mut c_int = &raw mut flag, s: *mut Status = &raw mut status) -> c_int)
            }
        } else {
            p.outside(|| {
                down!(helper WaitAny(n: c_int = n, q: *mut usize = q, i: *mut c_int = &raw mut index,
                    s: *mut Status = &raw mut status,
                    d: *const AtomicU32 = &raw const crate::cross::thread().doing) -> c_int)
            })
        };
        if code >= 0 {
            if let Some(&at) = usize::try_from(index).ok().and_then(|i| places.get(i)) {
                // SAFETY: live and active.
                unsafe { p.complete(all[at], status, code) };
                continue;
            }
        }
        drop(p);
        if others {
            // SAFETY: no arguments.
            unsafe { stillpoint_sys::sys!(stillpoint_sys::raw::nr::SCHED_YIELD) };
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
                let f = core::mem::transmute::<usize, unsafe extern "C" fn(usize) -> c_int>(g.free);
                f(g.extra);
            }
            return SUCCESS;
        }
        if !(*r).active || (*r).done {
            p.end(r);
        } else {
            (*r).orphan = true;
            p.orphans += 1;
            if p.orphans >= 16 {
                p.sweep();
            }
        }
        SUCCESS
    }

    fn MPI_Cancel(request: *mut *mut Request) -> c_int {
        let r = *request;
        if r == null() {
            return raise(core::ptr::null_mut(), ERR_REQUEST);
        }
        if let Some(g) = (*r).generalized {
            let f = core::mem::transmute::<usize, unsafe extern "C" fn(usize, c_int) -> c_int>(g.cancel);
            return f(g.extra, c_int::from((*r).done));
        }
        let _p = begin();
        let mut real = (*r).head.real();
        // Complete, or drained: too late, which the standard allows.
        if !(*r).active || (*r).done || real == 0 {
            return SUCCESS;
        }
        (*r).cancelled = true;
        down!(MPI_Cancel(q: *mut usize = &raw mut real) -> c_int)
    }

    fn MPI_Grequest_start(query: *mut c_void, free: *mut c_void, cancel: *mut c_void, extra: *mut c_void,
                          request: *mut *mut Request) -> c_int {
        let mut r = Request::new(Does::Generalized);
        r.generalized = Some(Generalized {
            query: query.expose_provenance(),
            free: free.expose_provenance(),
            cancel: cancel.expose_provenance(),
            extra: extra.expose_provenance(),
        });
        let mut p = begin();
        let r = handles::make(r);
        p.enlist(r);
        *request = r;
        SUCCESS
    }

    fn MPI_Grequest_complete(request: *mut Request) -> c_int {
        if request == null() {
            return raise(core::ptr::null_mut(), ERR_REQUEST);
        }
        let mut p = begin();
        (*request).done = true;
        if (*request).orphan {
            let g = (*request).generalized;
            p.end(request);
            drop(p);
            if let Some(g) = g {
                let f = core::mem::transmute::<usize, unsafe extern "C" fn(usize) -> c_int>(g.free);
                return f(g.extra);
            }
        }
        SUCCESS
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_send_ends_with_an_empty_status_and_a_receive_counts() {
        let mut s = Request::new(Does::Send);
        s.active = true;
        let st = Status { source: 3, tag: 4, error: 0, cancelled: 0, ucount: 8 };
        assert!(!s.completed_below(st, 0));
        assert_eq!((s.done, s.status), (true, Status::EMPTY));
        let mut r = Request::new(Does::Recv);
        r.active = true;
        assert!(r.completed_below(st, 15), "a truncated message is a received one");
        assert_eq!((r.status.source, r.code), (3, 15));
        let mut c = Request::new(Does::Recv);
        assert!(!c.completed_below(Status { cancelled: 1, ..st }, 0));
        assert!(!Request::new(Does::Mrecv).completed_below(st, 0), "counted at the matched probe");
    }

    #[test]
    fn a_drained_synchronous_send_waits_for_its_receiver() {
        let mut r = Request::new(Does::Ssend);
        r.active = true;
        r.unacknowledged = true;
        r.head.set_real(9);
        r.completed_below(Status::EMPTY, 0);
        assert!(!r.done);
        r.acknowledged();
        assert!(r.done);
        let mut early = Request::new(Does::Ssend);
        early.active = true;
        early.unacknowledged = true;
        early.head.set_real(9);
        early.acknowledged();
        assert!(!early.done, "still in the library's hands");
        early.completed_below(Status::EMPTY, 0);
        assert!(early.done);
    }

    #[test]
    fn a_persistent_request_becomes_inactive_unless_freed() {
        let mut r = Request::new(Does::Recv);
        r.persistent = true;
        r.active = true;
        r.done = true;
        assert!(!r.told());
        assert!(!r.active && !r.done);
        r.orphan = true;
        assert!(r.told());
    }
}
