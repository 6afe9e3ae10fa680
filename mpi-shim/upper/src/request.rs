//! The life of a virtual request, and the calls that complete requests. Upper half.
//!
//! ```text
//!            start                 below complete            Wait, Test, …
//!  inactive ───────▶ active ──────────────────────▶ done ───────────────────▶ gone (persistent: inactive)
//!                      │  └─ a drained synchronous send: done only when its receiver has acknowledged it
//!                      └─ Request_free ─▶ orphan ─▶ gone when done
//! ```
//!
//! The lists of requests and their lock are in `ledger.rs`, the calls that wait and test in `completion.rs`, the
//! application's own requests in `generalized.rs`.
//!
//! What a reader would get wrong: `done` is known upstairs before the application asks: the drain completes requests
//! on its own, and their statuses wait here. So every call looks at `done` first and below only afterwards, and a
//! request of the library never outlives its virtual one's `active`. A persistent request has nothing below while it
//! is inactive; MPI_Start issues an ordinary one.
#![allow(unsafe_code, reason = "requests are raw pointers that the application passes in")]

use crate::generalized::Generalized;
use crate::handles::{self, Comm, Datatype, Head, Kind, Status};
use crate::matching::Drained;
use crate::predefined;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ffi::c_int;
use core::sync::atomic::AtomicI32;

pub(crate) use crate::completion::{MPI_Wait, wait_done};
pub(crate) use crate::ledger::{In, P2p, begin};

pub(crate) const SUCCESS: c_int = 0;
pub(crate) const ERR_BUFFER: c_int = 1;
pub(crate) const ERR_REQUEST: c_int = 7;
pub(crate) const ERR_TRUNCATE: c_int = 15;
pub(crate) const ERR_IN_STATUS: c_int = 18;
pub(crate) const UNDEFINED: c_int = -32766;

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
    /// Whether the receiver knows of that is not known here: the last checkpoint was cut off within its exchange.
    pub(crate) doubtful: bool,
    /// A thread waits for it, also without the lock: nobody else may test it below, or end it.
    pub(crate) waited: bool,
    /// Number in the order of posting.
    pub(crate) serial: u64,
    /// Place in `P2p::live`.
    pub(crate) at: usize,
    pub(crate) comm: *mut Comm,
    pub(crate) datatype: *mut Datatype,
    pub(crate) buf: usize,
    pub(crate) count: c_int,
    pub(crate) peer: c_int,
    pub(crate) tag: c_int,
    pub(crate) code: c_int,
    /// The same as `head.fint`, where Open MPI's Fortran library reads it (offset 104) once the request is complete.
    pub(crate) fortran: AtomicI32,
    pub(crate) status: Status,
    /// Position among the sends of its key, when synchronous.
    pub(crate) position: u64,
    /// A receive that has taken a drained message: its bytes, while `head.real` still writes them.
    pub(crate) arriving: Option<Drained>,
    /// Bytes of a buffered send, and what they cost in the attached buffer.
    pub(crate) front: Vec<u8>,
    pub(crate) generalized: Option<Generalized>,
    /// Runs when the request below is complete.
    pub(crate) then: Option<Box<dyn FnOnce()>>,
}

const _: () = assert!(core::mem::offset_of!(Request, fortran) == 0x68);

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
            doubtful: false,
            waited: false,
            serial: 0,
            at: usize::MAX,
            comm: core::ptr::null_mut(),
            datatype: core::ptr::null_mut(),
            buf: 0,
            count: 0,
            peer: 0,
            tag: 0,
            fortran: AtomicI32::new(-1),
            status: Status::EMPTY,
            code: SUCCESS,
            position: 0,
            arriving: None,
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

    /// The receiver of a drained synchronous send has matched it, or nobody has been told of the send after all: what
    /// the library says counts again.
    pub(crate) fn acknowledged(&mut self) {
        self.unacknowledged = false;
        self.doubtful = false;
        self.done = self.active && self.head.real() == 0;
    }

    /// The application has been told: what is left of it. True: nothing, the object can go.
    pub(crate) fn told(&mut self) -> bool {
        self.done = false;
        self.active = false;
        self.cancelled = false;
        self.code = SUCCESS;
        self.status = Status::EMPTY;
        !self.persistent || self.orphan
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

/// The end of a call that is passed through and makes a request: one for the library's `real`, or null.
///
/// # Safety
/// `request` is writable.
pub(crate) unsafe fn foreign(code: c_int, real: usize, request: *mut *mut Request) -> c_int {
    let r = if code == SUCCESS { adopt(real, Does::Foreign, core::ptr::null_mut(), None) } else { null() };
    // SAFETY: the caller's promise.
    unsafe { *request = r };
    code
}

/// As [`adopt`], for a call that the application does not know of: it goes when it is complete.
pub(crate) fn adopt_orphan(real: usize, does: Does, comm: *mut Comm, then: Box<dyn FnOnce()>) {
    let r = adopt(real, does, comm, Some(then));
    // SAFETY: just made, and known to nobody else.
    unsafe { begin().orphan(r) };
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
        r.cancelled = true;
        assert!(!r.told());
        assert!(
            !r.active && !r.done && !r.cancelled,
            "a restart cancels what was cancelled, not what follows it"
        );
        r.orphan = true;
        assert!(r.told());
    }
}
