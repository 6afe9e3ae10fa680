//! Sends and receives of every mode but the buffered one (`buffered.rs`). Upper half.
//!
//! ```text
//!   receive ─▶ drained store ─ found ─▶ deliver (self-send on a private communicator) ─▶ done
//!                    └ not there ─▶ MPI_Irecv + test loop below ─ −1 ─▶ a Request, stand still, wait on
//! ```
//!
//! What a reader would get wrong: a blocking call has no request object until it is interrupted; only then does the
//! drain have to find it.
#![allow(unsafe_code, reason = "buffers and handles are raw pointers that the application passes in")]

use crate::buffered::{buffered, pack};
use crate::delivery::{acknowledge, take_over};
use crate::handles::{self, Comm, Datatype, Head, Status, real};
use crate::matching::{ANY_SOURCE, ANY_TAG, PROC_NULL};
use crate::request::{Does, ERR_REQUEST, In, P2p, Request, SUCCESS, begin, null, tell, wait_done};
use crate::{down, export, predefined};
use core::ffi::{c_int, c_void};
use core::sync::atomic::AtomicU32;
use stillpoint_mpi_table::Fn;

/// Raises `code` on `comm`.
///
/// # Safety
/// `comm` is null or a communicator.
#[cold]
pub(crate) unsafe fn fail(comm: *mut Comm, code: c_int, function: &str) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { crate::errhandler::raise(comm.cast::<Head>(), code, function) }
}

/// Reports `code` on `comm` unless it is success.
///
/// # Safety
/// `comm` is null or a communicator.
#[inline(always)]
pub(crate) unsafe fn outcome(comm: *mut Comm, code: c_int, function: &str) -> c_int {
    // SAFETY: the caller's promise.
    if code == SUCCESS { code } else { unsafe { fail(comm, code, function) } }
}

/// Where the helpers below say what the calling thread does.
pub(crate) fn mark() -> *const AtomicU32 {
    &raw const crate::cross::thread().doing
}

/// The MPI_Isend that `does` goes down as. A ready send is a plain one: its receive may have been drained away.
fn starter(does: Does) -> usize {
    if does == Does::Ssend { Fn::MPI_Issend as usize } else { Fn::MPI_Isend as usize }
}

/// Starts what the fields of `r` say, below or out of the store. `r` is inactive.
///
/// # Safety
/// `r` and what it names are live.
pub(crate) unsafe fn start(p: &mut P2p, r: *mut Request) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        let (b, n, t, c) = ((*r).buf, (*r).count, real((*r).datatype), real((*r).comm));
        let (peer, tag) = ((*r).peer, (*r).tag);
        let mut q = 0usize;
        match (*r).does {
            Does::Bsend => {
                (*r).active = true;
                let code = buffered(p, b, n, (*r).datatype, peer, tag, (*r).comm);
                if code == SUCCESS {
                    p.enlist(r);
                    (*r).done = true;
                }
                code
            }
            Does::Recv => {
                if !p.store.is_empty()
                    && peer != PROC_NULL
                    && let Some(mut m) = p.store.take((*(*r).comm).gid, peer, tag)
                {
                    let sync = core::mem::take(&mut m.sync);
                    take_over(p, r, m);
                    acknowledge(p, sync);
                    return SUCCESS;
                }
                let code = down!(MPI_Irecv(b: usize = b, n: c_int = n, t: usize = t, s: c_int = peer,
                    g: c_int = tag, c: usize = c, q: *mut usize = &raw mut q) -> c_int);
                if code == SUCCESS {
                    (*r).head.set_real(q);
                    p.enlist(r);
                }
                code
            }
            does => {
                let code = down!(@ starter(does); (b: usize = b, n: c_int = n, t: usize = t, d: c_int = peer,
                    g: c_int = tag, c: usize = c, q: *mut usize = &raw mut q) -> c_int);
                if code == SUCCESS {
                    (*r).head.set_real(q);
                    p.enlist(r);
                    p.note_sent(&*(*r).comm, peer, tag);
                    if does == Does::Ssend {
                        let gid = (*(*r).comm).gid;
                        p.note_sync(&mut *r, gid);
                    }
                }
                code
            }
        }
    }
}

/// What a send or a receive names.
#[derive(Clone, Copy)]
pub(crate) struct Args {
    pub(crate) buf: *const c_void,
    pub(crate) count: c_int,
    pub(crate) ty: *mut Datatype,
    pub(crate) peer: c_int,
    pub(crate) tag: c_int,
    pub(crate) comm: *mut Comm,
}

impl Args {
    fn object(&self, does: Does) -> Request {
        let mut r = Request::new(does);
        r.buf = self.buf.expose_provenance();
        r.count = self.count;
        r.datatype = self.ty;
        r.peer = self.peer;
        r.tag = self.tag;
        r.comm = self.comm;
        r
    }

    /// As the library takes them, valid until the thread can be stopped.
    unsafe fn lower(&self) -> [usize; 6] {
        // SAFETY: the application's handles.
        let (ty, comm) = unsafe { (real(self.ty), real(self.comm)) };
        [self.buf.expose_provenance(), self.count as usize, ty, self.peer as usize, self.tag as usize, comm]
    }
}

/// A new request object, started.
unsafe fn started(p: &mut P2p, does: Does, a: &Args) -> Result<*mut Request, c_int> {
    // SAFETY: the application's arguments; the library checks what it can.
    unsafe {
        let r = handles::make(a.object(does));
        match start(p, r) {
            SUCCESS => Ok(r),
            code => {
                handles::unmake(r);
                Err(code)
            }
        }
    }
}

/// A non-blocking call of `does`: its request at `out`, or null.
///
/// # Safety
/// The application's arguments; `out` is writable.
pub(crate) unsafe fn initiate(does: Does, a: Args, out: *mut *mut Request, name: &str) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        let mut p = begin();
        match started(&mut p, does, &a) {
            Ok(r) => {
                *out = r;
                SUCCESS
            }
            Err(code) => {
                drop(p);
                *out = null();
                fail(a.comm, code, name)
            }
        }
    }
}

/// A persistent request at `out`.
///
/// # Safety
/// As for [`initiate`]; a persistent request holds what it names from the start.
pub(crate) unsafe fn init(does: Does, a: Args, out: *mut *mut Request) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        let mut r = a.object(does);
        r.persistent = true;
        let _p = begin();
        (*a.comm).persistent += 1;
        handles::retain(a.comm);
        handles::retain(a.ty);
        *out = handles::make(r);
    }
    SUCCESS
}

/// Waits for a request that the application never sees, ends it and returns its status and code.
///
/// # Safety
/// `r` was made by the caller, and is active and known to nobody else.
pub(crate) unsafe fn wait_own(r: *mut Request) -> (Status, c_int) {
    // SAFETY: the caller's promise.
    unsafe {
        wait_done(r);
        let result = ((*r).status, (*r).code);
        let mut p = begin();
        (*r).told();
        p.end(r);
        result
    }
}

/// A blocking call by way of a request object, which the drain can find. `Err`: it could not be started.
unsafe fn by_object(mut p: In, does: Does, a: &Args) -> Result<(Status, c_int), c_int> {
    // SAFETY: the application's arguments; the library checks what it can.
    unsafe {
        let r = started(&mut p, does, a)?;
        drop(p);
        Ok(wait_own(r))
    }
}

/// A blocking call below was interrupted: what it started as `q` goes on as an object, and is waited for.
unsafe fn interrupted(mut p: In, does: Does, a: &Args, q: usize) -> (Status, c_int) {
    // SAFETY: the application's arguments, and the library's request for them.
    unsafe {
        let r = handles::make(a.object(does));
        (*r).head.set_real(q);
        p.enlist(r);
        drop(p);
        wait_own(r)
    }
}

unsafe fn send(does: Does, a: Args, name: &str) -> c_int {
    // SAFETY: the application's arguments; the library checks what it can.
    unsafe {
        crate::cross::asked(true);
        let mut p = begin();
        if does == Does::Ssend || p.locks() {
            // A synchronous one must be known to the drain while it waits.
            let (Ok((_, code)) | Err(code)) = by_object(p, does, &a);
            return outcome(a.comm, code, name);
        }
        let args = a.lower();
        let (mut q, mut status) = (0usize, Status::EMPTY);
        let slot = starter(does);
        let code = down!(helper Send(s: usize = slot, a: *const [usize; 6] = &raw const args,
            q: *mut usize = &raw mut q, st: *mut Status = &raw mut status, d: *const AtomicU32 = mark()) -> c_int);
        if code > 0 {
            drop(p);
            return fail(a.comm, code, name);
        }
        p.note_sent(&*a.comm, a.peer, a.tag);
        if code < 0 {
            let (_, code) = interrupted(p, does, &a, q);
            return outcome(a.comm, code, name);
        }
        SUCCESS
    }
}

unsafe fn recv(a: Args, to: *mut Status, name: &str) -> c_int {
    // SAFETY: the application's arguments; the library checks what it can.
    unsafe {
        let mut p = begin();
        if !p.store.is_empty() || p.locks() {
            return match by_object(p, Does::Recv, &a) {
                Ok((status, code)) => {
                    tell(to, &status);
                    outcome(a.comm, code, name)
                }
                Err(code) => fail(a.comm, code, name),
            };
        }
        let args = a.lower();
        let (mut q, mut status) = (0usize, Status { source: UNSET, ..Status::EMPTY });
        let mut code = down!(helper Recv(a: *const [usize; 6] = &raw const args, q: *mut usize = &raw mut q,
            st: *mut Status = &raw mut status, d: *const AtomicU32 = mark()) -> c_int);
        if code < 0 {
            (status, code) = interrupted(p, Does::Recv, &a, q);
        } else {
            if status.source >= 0 {
                p.note_received(&*a.comm, status.source);
            }
            drop(p);
        }
        if status.source != UNSET {
            tell(to, &status);
        }
        outcome(a.comm, code, name)
    }
}

/// A receive and a send at once. `Err`: one of the two could not be started, and has been reported.
unsafe fn both(get: Args, put: Args, name: &str) -> Result<(Status, c_int), c_int> {
    // SAFETY: the application's arguments; the library checks what it can.
    unsafe {
        let mut r = null();
        let code = initiate(Does::Recv, get, &raw mut r, name);
        if code != SUCCESS {
            return Err(code);
        }
        let code = send(Does::Send, put, name);
        if code != SUCCESS {
            return Err(code);
        }
        Ok(wait_own(r))
    }
}

/// A source that no message has: nothing was written to the status.
const UNSET: c_int = c_int::MIN;

macro_rules! sends {
    ($($does:ident $send:ident $isend:ident $init:ident;)*) => { export! { $(
        fn $send(buf: *const c_void, count: c_int, ty: *mut Datatype, dest: c_int, tag: c_int, comm: *mut Comm)
            -> c_int {
            send(Does::$does, Args { buf, count, ty, peer: dest, tag, comm }, stringify!($send))
        }
        fn $isend(buf: *const c_void, count: c_int, ty: *mut Datatype, dest: c_int, tag: c_int, comm: *mut Comm,
                  request: *mut *mut Request) -> c_int {
            initiate(Does::$does, Args { buf, count, ty, peer: dest, tag, comm }, request, stringify!($isend))
        }
        fn $init(buf: *const c_void, count: c_int, ty: *mut Datatype, dest: c_int, tag: c_int, comm: *mut Comm,
                 request: *mut *mut Request) -> c_int {
            init(Does::$does, Args { buf, count, ty, peer: dest, tag, comm }, request)
        }
    )* } };
}
sends! {
    Send MPI_Send MPI_Isend MPI_Send_init;
    Ssend MPI_Ssend MPI_Issend MPI_Ssend_init;
    Send MPI_Rsend MPI_Irsend MPI_Rsend_init;
}

export! {
    fn MPI_Recv(buf: *mut c_void, count: c_int, ty: *mut Datatype, source: c_int, tag: c_int, comm: *mut Comm,
                status: *mut Status) -> c_int {
        recv(Args { buf, count, ty, peer: source, tag, comm }, status, "MPI_Recv")
    }
    fn MPI_Irecv(buf: *mut c_void, count: c_int, ty: *mut Datatype, source: c_int, tag: c_int, comm: *mut Comm,
                 request: *mut *mut Request) -> c_int {
        initiate(Does::Recv, Args { buf, count, ty, peer: source, tag, comm }, request, "MPI_Irecv")
    }
    fn MPI_Recv_init(buf: *mut c_void, count: c_int, ty: *mut Datatype, source: c_int, tag: c_int,
                     comm: *mut Comm, request: *mut *mut Request) -> c_int {
        init(Does::Recv, Args { buf, count, ty, peer: source, tag, comm }, request)
    }
    fn MPI_Start(request: *mut *mut Request) -> c_int {
        let r = *request;
        if r == null() || !(*r).persistent || (*r).active {
            return fail(core::ptr::null_mut(), ERR_REQUEST, "MPI_Start");
        }
        let mut p = begin();
        let code = start(&mut p, r);
        drop(p);
        if code == SUCCESS {
            return code;
        }
        (*r).active = false;
        fail((*r).comm, code, "MPI_Start")
    }
    fn MPI_Startall(count: c_int, requests: *mut *mut Request) -> c_int {
        for i in 0..usize::try_from(count).unwrap_or(0) {
            let code = MPI_Start(requests.add(i));
            if code != SUCCESS {
                return code;
            }
        }
        SUCCESS
    }
    fn MPI_Sendrecv(sendbuf: *const c_void, sendcount: c_int, sendtype: *mut Datatype, dest: c_int, sendtag: c_int,
                    recvbuf: *mut c_void, recvcount: c_int, recvtype: *mut Datatype, source: c_int,
                    recvtag: c_int, comm: *mut Comm, status: *mut Status) -> c_int {
        let get = Args { buf: recvbuf, count: recvcount, ty: recvtype, peer: source, tag: recvtag, comm };
        let put = Args { buf: sendbuf, count: sendcount, ty: sendtype, peer: dest, tag: sendtag, comm };
        match both(get, put, "MPI_Sendrecv") {
            Ok((s, code)) => {
                tell(status, &s);
                outcome(comm, code, "MPI_Sendrecv")
            }
            Err(code) => code,
        }
    }
    fn MPI_Sendrecv_replace(buf: *mut c_void, count: c_int, ty: *mut Datatype, dest: c_int, sendtag: c_int,
                            source: c_int, recvtag: c_int, comm: *mut Comm, status: *mut Status) -> c_int {
        let packed = {
            let _p = begin();
            pack(buf.expose_provenance(), count, real(ty), real(comm))
        };
        match packed {
            Err(code) => fail(comm, code, "MPI_Sendrecv_replace"),
            Ok(bytes) => {
                let n = c_int::try_from(bytes.len()).unwrap_or(c_int::MAX);
                MPI_Sendrecv(bytes.as_ptr().cast(), n, predefined!(ompi_mpi_packed as Datatype), dest, sendtag,
                             buf, count, ty, source, recvtag, comm, status)
            }
        }
    }
}

/// Sends `out` to world rank `to` and fills `into` from world rank `from`, on the front's own communicator; can be
/// interrupted like any message of the application.
pub(crate) fn exchange(to: u32, out: &[u8], from: u32, into: &mut [u8], tag: c_int) -> c_int {
    let ty = predefined!(ompi_mpi_byte as Datatype);
    let count = |n: usize| c_int::try_from(n).unwrap_or(0);
    let rank = |w: u32| c_int::try_from(w).unwrap_or(PROC_NULL);
    let comm = crate::comm::hidden();
    // SAFETY: both buffers outlive the calls; the communicator lives as long as the library.
    unsafe {
        let (buf, n) = (into.as_mut_ptr().cast_const().cast(), count(into.len()));
        let get = Args { buf, count: n, ty, peer: rank(from), tag, comm };
        let put = Args { buf: out.as_ptr().cast(), count: count(out.len()), ty, peer: rank(to), tag, comm };
        let (Ok((_, code)) | Err(code)) = both(get, put, "exchange");
        code
    }
}

const _: () = assert!(ANY_SOURCE == -1 && ANY_TAG == -1);
