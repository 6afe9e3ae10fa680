//! From the store of drained messages to the application's buffers, and the word to their senders. Upper half.
//!
//! What a reader would get wrong: drained bytes are not copied but *sent to oneself* on a private communicator, so that
//! datatypes, truncation and counts are the library's own business.
#![allow(unsafe_code, reason = "buffers and handles are raw pointers that the application passes in")]

use crate::handles::{Comm, Status, real};
use crate::matching::{Drained, SyncId};
use crate::request::{ERR_TRUNCATE, P2p, Request, SUCCESS};
use crate::{down, predefined};
use alloc::vec::Vec;
use core::ffi::c_int;
use core::sync::atomic::Ordering;
use stillpoint_sys::half;

/// The private duplicate of MPI_COMM_SELF in this start.
fn own(p: &mut P2p) -> usize {
    let epoch = half().epoch.load(Ordering::Relaxed);
    if p.own.1 != epoch {
        // SAFETY: predefined objects live for ever.
        let c = unsafe { real(predefined!(ompi_mpi_comm_self as Comm)) };
        let mut new = 0usize;
        down!(MPI_Comm_dup(c: usize = c, n: *mut usize = &raw mut new) -> c_int);
        p.own = (new, epoch);
    }
    p.own.0
}

/// Brings drained bytes into the application's buffer, with the library's own rules for counts and truncation.
pub(crate) fn deliver(p: &mut P2p, m: &Drained, buf: usize, count: c_int, ty: usize) -> (Status, c_int) {
    let c = own(p);
    let (mut q, mut status) = (0usize, Status::EMPTY);
    let code = down!(MPI_Irecv(b: usize = buf, n: c_int = count, t: usize = ty, s: c_int = 0, g: c_int = 0,
        c: usize = c, q: *mut usize = &raw mut q) -> c_int);
    if code != SUCCESS {
        return (status, code);
    }
    let span = crate::drain::Span::of(m.bytes.len());
    let (n, t) = (span.count, span.ty);
    down!(MPI_Send(b: *const u8 = m.bytes.as_ptr(), n: c_int = n, t: usize = t, d: c_int = 0, g: c_int = 0,
        c: usize = c) -> c_int);
    let mut code = down!(MPI_Wait(q: *mut usize = &raw mut q, s: *mut Status = &raw mut status) -> c_int);
    if code == SUCCESS && status.ucount < m.bytes.len() {
        // Open MPI 4.1 cuts a short message to oneself without a word when the receive is posted before it.
        (code, status.ucount) = (ERR_TRUNCATE, m.bytes.len());
    }
    status.source = m.source;
    status.tag = m.tag;
    status.cancelled = 0;
    (status, code)
}

/// Tells the sender of a drained synchronous message that it has been matched.
pub(crate) fn acknowledge(p: &mut P2p, sync: Vec<SyncId>) {
    if !sync.is_empty() {
        p.due.extend(sync);
        flush(p);
    }
}

fn upper_rank() -> u32 {
    // SAFETY: lives for ever; written in MPI_Init.
    u32::try_from(unsafe { (*crate::comm::hidden()).rank }).unwrap_or(0)
}

/// Sends the acknowledgements that are due, one record a peer and send.
pub(crate) fn flush(p: &mut P2p) {
    use stillpoint_abi::half::{StillArg, request};
    let f = half().request.load(Ordering::Relaxed);
    if p.due.is_empty() || f == 0 {
        return;
    }
    let mut bytes = Vec::with_capacity(p.due.len() * 16);
    let me = upper_rank();
    for s in core::mem::take(&mut p.due) {
        if s.world == me {
            p.acknowledge(s.id);
            continue;
        }
        bytes.extend_from_slice(&s.world.to_le_bytes());
        bytes.extend_from_slice(&8u32.to_le_bytes());
        bytes.extend_from_slice(&s.id.to_le_bytes());
    }
    if bytes.is_empty() {
        return;
    }
    let arg = StillArg {
        input: bytes.as_ptr(),
        input_len: bytes.len(),
        out: core::ptr::null_mut(),
        out_cap: 0,
        out_len: 0,
        deadline: 0,
        round: 0,
    };
    // SAFETY: the lower half stores a function of this type there.
    let f: extern "C" fn(u32, u64) -> i64 =
        unsafe { core::mem::transmute(core::ptr::with_exposed_provenance::<()>(f)) };
    let at = (&raw const arg).expose_provenance() as u64;
    let _down = crate::cross::enter();
    f(request::MAIL, at);
}

/// Receive `r` gets the drained message `m`: at once, or when the last of its bytes is here.
///
/// # Safety
/// `r` and what it names are live; `r` is inactive.
pub(crate) unsafe fn take_over(p: &mut P2p, r: *mut Request, m: Drained) {
    // SAFETY: the caller's promise.
    unsafe {
        p.enlist(r);
        if m.real != 0 {
            (*r).head.set_real(m.real);
            (*r).arriving = Some(m);
            return;
        }
        ((*r).status, (*r).code) = deliver(p, &m, (*r).buf, (*r).count, real((*r).datatype));
        (*r).done = true;
    }
}
