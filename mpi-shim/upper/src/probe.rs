//! Probes, and messages that a matched probe has taken. Upper half.
//!
//! What a reader would get wrong: a matched probe counts the message as received. If it came from below, the library
//! holds it until its receive, and the drain fetches it from there; if it was drained, the handle holds its bytes.
#![allow(unsafe_code, reason = "buffers and handles are raw pointers that the application passes in")]

use crate::delivery::{acknowledge, take_over};
use crate::handles::{self, Comm, Datatype, Head, Kind, Status, real};
use crate::matching::{Drained, PROC_NULL};
use crate::p2p::{fail, mark, outcome, wait_own};
use crate::request::{Does, ERR_REQUEST, In, Request, SUCCESS, begin, tell};
use crate::{down, export, predefined};
use core::ffi::{c_int, c_void};
use core::sync::atomic::AtomicU32;

/// A message taken by a matched probe.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) head: Head,
    pub(crate) comm: *mut Comm,
    pub(crate) status: Status,
    pub(crate) drained: Option<Drained>,
}

unsafe fn make_message(
    p: &mut In,
    comm: *mut Comm,
    at: usize,
    status: Status,
    d: Option<Drained>,
) -> *mut Message {
    let m = handles::make(Message { head: Head::new(Kind::Message, at), comm, status, drained: d });
    // SAFETY: the application's communicator.
    unsafe { handles::retain(comm) };
    p.messages.push(m);
    m
}

fn drained_status(m: &Drained) -> Status {
    Status { source: m.source, tag: m.tag, error: 0, cancelled: 0, ucount: m.bytes.len() }
}

/// Which message is asked for.
struct Which {
    peer: c_int,
    tag: c_int,
    comm: *mut Comm,
}

unsafe fn probe(wait: bool, a: &Which, flag: *mut c_int, to: *mut Status, name: &str) -> c_int {
    // SAFETY: the application's arguments; the library checks what it can.
    unsafe {
        loop {
            let mut p = begin();
            if !p.store.is_empty()
                && let Some(m) = p.store.peek((*a.comm).gid, a.peer, a.tag)
            {
                tell(to, &drained_status(m));
                *flag = 1;
                return SUCCESS;
            }
            let mut status = Status::EMPTY;
            let c = real(a.comm);
            let code = if wait {
                p.outside(|| {
                    down!(helper Probe(s: c_int = a.peer, g: c_int = a.tag, c: usize = c,
                        st: *mut Status = &raw mut status, d: *const AtomicU32 = mark()) -> c_int)
                })
            } else {
                down!(MPI_Iprobe(s: c_int = a.peer, g: c_int = a.tag, c: usize = c, f: *mut c_int = flag,
                    st: *mut Status = &raw mut status) -> c_int)
            };
            drop(p);
            if code < 0 {
                continue;
            }
            if code != SUCCESS {
                return fail(a.comm, code, name);
            }
            crate::cross::asked(wait || *flag != 0);
            if wait || *flag != 0 {
                tell(to, &status);
            }
            return SUCCESS;
        }
    }
}

unsafe fn mprobe(
    wait: bool,
    a: &Which,
    flag: *mut c_int,
    out: *mut *mut Message,
    to: *mut Status,
    name: &str,
) -> c_int {
    // SAFETY: the application's arguments; the library checks what it can.
    unsafe {
        loop {
            let mut p = begin();
            if a.peer == PROC_NULL {
                *flag = 1;
                *out = predefined!(ompi_message_no_proc as Message);
                tell(to, &Status { source: PROC_NULL, ..Status::EMPTY });
                return SUCCESS;
            }
            if !p.store.is_empty()
                && let Some(mut m) = p.store.take((*a.comm).gid, a.peer, a.tag)
            {
                let (status, sync) = (drained_status(&m), core::mem::take(&mut m.sync));
                *out = make_message(&mut p, a.comm, 0, status, Some(m));
                *flag = 1;
                tell(to, &status);
                acknowledge(&mut p, sync);
                return SUCCESS;
            }
            let (mut status, mut m) = (Status::EMPTY, 0usize);
            let c = real(a.comm);
            let code = if wait {
                p.outside(|| {
                    down!(helper Mprobe(s: c_int = a.peer, g: c_int = a.tag, c: usize = c, m: *mut usize = &raw mut m,
                        st: *mut Status = &raw mut status, d: *const AtomicU32 = mark()) -> c_int)
                })
            } else {
                down!(MPI_Improbe(s: c_int = a.peer, g: c_int = a.tag, c: usize = c, f: *mut c_int = flag,
                    m: *mut usize = &raw mut m, st: *mut Status = &raw mut status) -> c_int)
            };
            if code < 0 {
                continue;
            }
            if code != SUCCESS {
                drop(p);
                return fail(a.comm, code, name);
            }
            if wait || *flag != 0 {
                p.note_received(&*a.comm, status.source);
                *out = make_message(&mut p, a.comm, m, status, None);
                tell(to, &status);
            } else {
                *out = predefined!(ompi_message_null as Message);
            }
            crate::cross::asked(wait || *flag != 0);
            return SUCCESS;
        }
    }
}

/// MPI_Imrecv: a request for the message at `*message`, which becomes null.
unsafe fn imrecv(
    buf: *mut c_void,
    count: c_int,
    ty: *mut Datatype,
    message: *mut *mut Message,
) -> Result<*mut Request, c_int> {
    // SAFETY: the application's arguments.
    unsafe {
        let m = *message;
        if m == predefined!(ompi_message_null as Message) {
            return Err(ERR_REQUEST);
        }
        let mut p = begin();
        let mut r = Request::new(Does::Mrecv);
        r.datatype = ty;
        if m == predefined!(ompi_message_no_proc as Message) {
            let r = handles::make(r);
            p.enlist(r);
            (*r).done = true;
            (*r).status = Status { source: PROC_NULL, ..Status::EMPTY };
            *message = predefined!(ompi_message_null as Message);
            return Ok(r);
        }
        let b = buf.expose_provenance();
        r.comm = (*m).comm;
        r.buf = b;
        r.count = count;
        let r = match (*m).drained.take() {
            Some(d) => {
                let r = handles::make(r);
                take_over(&mut p, r, d);
                r
            }
            None => {
                let (mut at, mut q) = ((*m).head.real(), 0usize);
                let t = real(ty);
                let code = down!(MPI_Imrecv(b: usize = b, n: c_int = count, t: usize = t, m: *mut usize = &raw mut at,
                    q: *mut usize = &raw mut q) -> c_int);
                if code != SUCCESS {
                    return Err(code);
                }
                r.head.set_real(q);
                let r = handles::make(r);
                p.enlist(r);
                r
            }
        };
        p.messages.retain(|&x| x != m);
        p.let_go((*m).comm.cast());
        handles::unmake(m);
        *message = predefined!(ompi_message_null as Message);
        Ok(r)
    }
}

export! {
    fn MPI_Probe(source: c_int, tag: c_int, comm: *mut Comm, status: *mut Status) -> c_int {
        let mut flag = 0;
        probe(true, &Which { peer: source, tag, comm }, &raw mut flag, status, "MPI_Probe")
    }
    fn MPI_Iprobe(source: c_int, tag: c_int, comm: *mut Comm, flag: *mut c_int, status: *mut Status) -> c_int {
        probe(false, &Which { peer: source, tag, comm }, flag, status, "MPI_Iprobe")
    }
    fn MPI_Mprobe(source: c_int, tag: c_int, comm: *mut Comm, message: *mut *mut Message, status: *mut Status)
        -> c_int {
        let mut flag = 0;
        mprobe(true, &Which { peer: source, tag, comm }, &raw mut flag, message, status, "MPI_Mprobe")
    }
    fn MPI_Improbe(source: c_int, tag: c_int, comm: *mut Comm, flag: *mut c_int, message: *mut *mut Message,
                   status: *mut Status) -> c_int {
        mprobe(false, &Which { peer: source, tag, comm }, flag, message, status, "MPI_Improbe")
    }
    fn MPI_Mrecv(buf: *mut c_void, count: c_int, ty: *mut Datatype, message: *mut *mut Message,
                 status: *mut Status) -> c_int {
        match imrecv(buf, count, ty, message) {
            Err(code) => fail(core::ptr::null_mut(), code, "MPI_Mrecv"),
            Ok(r) => {
                let comm = (*r).comm;
                let (s, code) = wait_own(r);
                tell(status, &s);
                outcome(comm, code, "MPI_Mrecv")
            }
        }
    }
    fn MPI_Imrecv(buf: *mut c_void, count: c_int, ty: *mut Datatype, message: *mut *mut Message,
                  request: *mut *mut Request) -> c_int {
        match imrecv(buf, count, ty, message) {
            Err(code) => fail(core::ptr::null_mut(), code, "MPI_Imrecv"),
            Ok(r) => {
                *request = r;
                SUCCESS
            }
        }
    }
}
