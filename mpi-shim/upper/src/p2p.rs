//! Sends, receives and probes of every mode. Upper half.
//!
//! ```text
//!   receive ─▶ drained store ─ found ─▶ deliver (self-send on a private communicator) ─▶ done
//!                    └ not there ─▶ MPI_Irecv + test loop below ─ −1 ─▶ a Request, stand still, wait on
//! ```
//!
//! What a reader would get wrong: a blocking call has no request object until it is interrupted; only then does the
//! drain have to find it. Drained bytes are not copied but *sent to oneself*, so that datatypes, truncation and
//! counts are the library's own business.
#![allow(unsafe_code, reason = "buffers and handles are raw pointers that the application passes in")]

use crate::handles::{self, Comm, Datatype, Head, Kind, Status, real};
use crate::matching::{ANY_SOURCE, ANY_TAG, Drained, PROC_NULL, SyncId};
use crate::request::{
    Does, ERR_BUFFER, ERR_REQUEST, ERR_TRUNCATE, In, Message, P2p, Request, SUCCESS, begin, null, tell,
    wait_done,
};
use crate::{down, export, predefined};
use alloc::vec::Vec;
use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicU32, Ordering};
use stillpoint_mpi_table::Fn;
use stillpoint_sys::half;

/// `MPI_BSEND_OVERHEAD`.
pub(crate) const BSEND_OVERHEAD: usize = 128;

/// Raises `code` on `comm`.
///
/// # Safety
/// `comm` is null or a communicator.
#[cold]
pub(crate) unsafe fn fail(comm: *mut Comm, code: c_int, function: &str) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { crate::errhandler::raise(comm.cast::<Head>(), code, function) }
}

fn mark() -> *const AtomicU32 {
    &raw const crate::cross::thread().doing
}

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
    };
    // SAFETY: the lower half stores a function of this type there.
    let f: extern "C" fn(u32, u64) -> i64 =
        unsafe { core::mem::transmute(core::ptr::with_exposed_provenance::<()>(f)) };
    let at = (&raw const arg).expose_provenance() as u64;
    let _down = crate::cross::enter();
    f(request::MAIL, at);
}

/// The MPI_Isend that `does` goes down as. A ready send is a plain one: its receive may have been drained away.
fn starter(does: Does) -> usize {
    if does == Does::Ssend { Fn::MPI_Issend as usize } else { Fn::MPI_Isend as usize }
}

/// Receive `r` gets the drained message `m`: at once, or when the last of its bytes is here.
unsafe fn take_over(p: &mut P2p, r: *mut Request, m: Drained) {
    // SAFETY: the caller's live, inactive request and what it names.
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
                if !p.store.is_empty() && peer != PROC_NULL {
                    if let Some(mut m) = p.store.take((*(*r).comm).gid, peer, tag) {
                        let sync = core::mem::take(&mut m.sync);
                        take_over(p, r, m);
                        acknowledge(p, sync);
                        return SUCCESS;
                    }
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

#[derive(Clone, Copy)]
struct Args {
    buf: *const c_void,
    count: c_int,
    ty: *mut Datatype,
    peer: c_int,
    tag: c_int,
    comm: *mut Comm,
}

unsafe fn object(does: Does, a: &Args) -> Request {
    let mut r = Request::new(does);
    r.buf = a.buf.expose_provenance();
    r.count = a.count;
    r.datatype = a.ty;
    r.peer = a.peer;
    r.tag = a.tag;
    r.comm = a.comm;
    r
}

unsafe fn initiate(does: Does, a: Args, out: *mut *mut Request, name: &str) -> c_int {
    // SAFETY: the application's arguments; the library checks what it can.
    unsafe {
        let mut p = begin();
        let r = handles::make(object(does, &a));
        let code = start(&mut p, r);
        if code == SUCCESS {
            *out = r;
            return SUCCESS;
        }
        handles::unmake(r);
        drop(p);
        *out = null();
        fail(a.comm, code, name)
    }
}

unsafe fn init(does: Does, a: Args, out: *mut *mut Request) -> c_int {
    // SAFETY: as in `initiate`; a persistent request holds what it names from the start.
    unsafe {
        let mut r = object(does, &a);
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
unsafe fn wait_own(r: *mut Request) -> (Status, c_int) {
    // SAFETY: made by the caller, known to nobody else.
    unsafe {
        wait_done(r);
        let result = ((*r).status, (*r).code);
        let mut p = begin();
        (*r).told();
        p.end(r);
        result
    }
}

unsafe fn send(does: Does, a: Args, name: &str) -> c_int {
    // SAFETY: the application's arguments; the library checks what it can.
    unsafe {
        crate::cross::asked(true);
        let mut p = begin();
        if does == Does::Ssend || p.locks() {
            // A synchronous one must be known to the drain while it waits.
            let r = handles::make(object(does, &a));
            let code = start(&mut p, r);
            if code != SUCCESS {
                handles::unmake(r);
                drop(p);
                return fail(a.comm, code, name);
            }
            drop(p);
            let (_, code) = wait_own(r);
            return if code == SUCCESS { code } else { fail(a.comm, code, name) };
        }
        let args = [
            a.buf.expose_provenance(),
            a.count as usize,
            real(a.ty),
            a.peer as usize,
            a.tag as usize,
            real(a.comm),
        ];
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
            let r = handles::make(object(does, &a));
            (*r).head.set_real(q);
            p.enlist(r);
            drop(p);
            let (_, code) = wait_own(r);
            return if code == SUCCESS { code } else { fail(a.comm, code, name) };
        }
        SUCCESS
    }
}

unsafe fn recv(a: Args, to: *mut Status, name: &str) -> c_int {
    // SAFETY: the application's arguments; the library checks what it can.
    unsafe {
        let mut p = begin();
        if !p.store.is_empty() || p.locks() {
            let r = handles::make(object(Does::Recv, &a));
            let code = start(&mut p, r);
            if code != SUCCESS {
                handles::unmake(r);
                drop(p);
                return fail(a.comm, code, name);
            }
            drop(p);
            let (status, code) = wait_own(r);
            tell(to, &status);
            return if code == SUCCESS { code } else { fail(a.comm, code, name) };
        }
        let args = [
            a.buf.expose_provenance(),
            a.count as usize,
            real(a.ty),
            a.peer as usize,
            a.tag as usize,
            real(a.comm),
        ];
        let (mut q, mut status) = (0usize, Status { source: UNSET, ..Status::EMPTY });
        let mut code = down!(helper Recv(a: *const [usize; 6] = &raw const args, q: *mut usize = &raw mut q,
            st: *mut Status = &raw mut status, d: *const AtomicU32 = mark()) -> c_int);
        if code < 0 {
            let r = handles::make(object(Does::Recv, &a));
            (*r).head.set_real(q);
            p.enlist(r);
            drop(p);
            (status, code) = wait_own(r);
        } else {
            if status.source >= 0 {
                p.note_received(&*a.comm, status.source);
            }
            drop(p);
        }
        if status.source != UNSET {
            tell(to, &status);
        }
        if code == SUCCESS { code } else { fail(a.comm, code, name) }
    }
}

/// A source that no message has: nothing was written to the status.
const UNSET: c_int = c_int::MIN;

/// Packs into bytes of ours.
unsafe fn pack(buf: usize, count: c_int, ty: usize, comm: usize) -> Result<Vec<u8>, c_int> {
    let (mut size, mut at) = (0, 0);
    let code = down!(MPI_Pack_size(n: c_int = count, t: usize = ty, c: usize = comm,
        s: *mut c_int = &raw mut size) -> c_int);
    if code != SUCCESS {
        return Err(code);
    }
    let mut bytes = alloc::vec![0u8; usize::try_from(size).unwrap_or(0)];
    let code = down!(MPI_Pack(b: usize = buf, n: c_int = count, t: usize = ty, o: *mut u8 = bytes.as_mut_ptr(),
        s: c_int = size, p: *mut c_int = &raw mut at, c: usize = comm) -> c_int);
    if code != SUCCESS {
        return Err(code);
    }
    bytes.truncate(usize::try_from(at).unwrap_or(0));
    Ok(bytes)
}

/// MPI_Ibsend: the bytes go into a front buffer at once, and an orphan sends them.
unsafe fn buffered(
    p: &mut P2p,
    buf: usize,
    count: c_int,
    ty: *mut Datatype,
    dest: c_int,
    tag: c_int,
    comm: *mut Comm,
) -> c_int {
    // SAFETY: the application's arguments; the library checks what it can.
    unsafe {
        let bytes = match pack(buf, count, real(ty), real(comm)) {
            Ok(b) => b,
            Err(code) => return code,
        };
        if dest == PROC_NULL {
            return SUCCESS;
        }
        let need = bytes.len() + BSEND_OVERHEAD;
        if p.buffer.2 + need > p.buffer.1 {
            p.sweep();
        }
        if p.buffer.2 + need > p.buffer.1 {
            return ERR_BUFFER;
        }
        let n = c_int::try_from(bytes.len()).unwrap_or(c_int::MAX);
        let (at, packed, c) = (bytes.as_ptr(), predefined!(ompi_mpi_packed as Datatype), real(comm));
        let t = real(packed);
        let mut q = 0usize;
        let code = down!(MPI_Isend(b: *const u8 = at, n: c_int = n, t: usize = t, d: c_int = dest, g: c_int = tag,
            c: usize = c, q: *mut usize = &raw mut q) -> c_int);
        if code != SUCCESS {
            return code;
        }
        let mut r = Request::new(Does::Bsend);
        r.front = bytes;
        r.comm = comm;
        r.peer = dest;
        r.tag = tag;
        r.orphan = true;
        r.head.set_real(q);
        let r = handles::make(r);
        p.enlist(r);
        p.orphans += 1;
        p.buffer.2 += need;
        p.note_sent(&*comm, dest, tag);
        SUCCESS
    }
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

unsafe fn probe(wait: bool, a: &Args, flag: *mut c_int, to: *mut Status, name: &str) -> c_int {
    // SAFETY: the application's arguments; the library checks what it can.
    unsafe {
        loop {
            let mut p = begin();
            if !p.store.is_empty() {
                if let Some(m) = p.store.peek((*a.comm).gid, a.peer, a.tag) {
                    tell(to, &drained_status(m));
                    *flag = 1;
                    return SUCCESS;
                }
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
    a: &Args,
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
            if !p.store.is_empty() {
                if let Some(mut m) = p.store.take((*a.comm).gid, a.peer, a.tag) {
                    let (status, sync) = (drained_status(&m), core::mem::take(&mut m.sync));
                    *out = make_message(&mut p, a.comm, 0, status, Some(m));
                    *flag = 1;
                    tell(to, &status);
                    acknowledge(&mut p, sync);
                    return SUCCESS;
                }
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
    fn MPI_Bsend(buf: *const c_void, count: c_int, ty: *mut Datatype, dest: c_int, tag: c_int, comm: *mut Comm)
        -> c_int {
        let code = {
            let mut p = begin();
            buffered(&mut p, buf.expose_provenance(), count, ty, dest, tag, comm)
        };
        if code == SUCCESS { code } else { fail(comm, code, "MPI_Bsend") }
    }
    fn MPI_Ibsend(buf: *const c_void, count: c_int, ty: *mut Datatype, dest: c_int, tag: c_int, comm: *mut Comm,
                  request: *mut *mut Request) -> c_int {
        initiate(Does::Bsend, Args { buf, count, ty, peer: dest, tag, comm }, request, "MPI_Ibsend")
    }
    fn MPI_Bsend_init(buf: *const c_void, count: c_int, ty: *mut Datatype, dest: c_int, tag: c_int,
                      comm: *mut Comm, request: *mut *mut Request) -> c_int {
        init(Does::Bsend, Args { buf, count, ty, peer: dest, tag, comm }, request)
    }
    fn MPI_Buffer_attach(buffer: *mut c_void, size: c_int) -> c_int {
        let mut p = begin();
        if p.buffer.0 != 0 || buffer.is_null() || size < 0 {
            drop(p);
            return fail(core::ptr::null_mut(), ERR_BUFFER, "MPI_Buffer_attach");
        }
        p.buffer = (buffer.expose_provenance(), size as usize, 0);
        SUCCESS
    }
    fn MPI_Buffer_detach(buffer: *mut *mut c_void, size: *mut c_int) -> c_int {
        loop {
            let mut p = begin();
            if p.buffer.0 == 0 {
                drop(p);
                return fail(core::ptr::null_mut(), ERR_BUFFER, "MPI_Buffer_detach");
            }
            p.sweep();
            let first = p.live.iter().copied().find(|&r| (*r).does == Does::Bsend && (*r).orphan && !(*r).done);
            let Some(r) = first else {
                *buffer = core::ptr::with_exposed_provenance_mut(p.buffer.0);
                *size = p.buffer.1 as c_int;
                p.buffer = (0, 0, 0);
                return SUCCESS;
            };
            drop(p);
            wait_done(r);
        }
    }
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
        let a = Args { buf: recvbuf, count: recvcount, ty: recvtype, peer: source, tag: recvtag, comm };
        let mut r = null();
        let code = initiate(Does::Recv, a, &raw mut r, "MPI_Sendrecv");
        if code != SUCCESS {
            return code;
        }
        let a = Args { buf: sendbuf, count: sendcount, ty: sendtype, peer: dest, tag: sendtag, comm };
        let sent = send(Does::Send, a, "MPI_Sendrecv");
        if sent != SUCCESS {
            return sent;
        }
        let (s, code) = wait_own(r);
        tell(status, &s);
        if code == SUCCESS { code } else { fail(comm, code, "MPI_Sendrecv") }
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
    fn MPI_Probe(source: c_int, tag: c_int, comm: *mut Comm, status: *mut Status) -> c_int {
        let a = Args { buf: core::ptr::null(), count: 0, ty: core::ptr::null_mut(), peer: source, tag, comm };
        let mut flag = 0;
        probe(true, &a, &raw mut flag, status, "MPI_Probe")
    }
    fn MPI_Iprobe(source: c_int, tag: c_int, comm: *mut Comm, flag: *mut c_int, status: *mut Status) -> c_int {
        let a = Args { buf: core::ptr::null(), count: 0, ty: core::ptr::null_mut(), peer: source, tag, comm };
        probe(false, &a, flag, status, "MPI_Iprobe")
    }
    fn MPI_Mprobe(source: c_int, tag: c_int, comm: *mut Comm, message: *mut *mut Message, status: *mut Status)
        -> c_int {
        let a = Args { buf: core::ptr::null(), count: 0, ty: core::ptr::null_mut(), peer: source, tag, comm };
        let mut flag = 0;
        mprobe(true, &a, &raw mut flag, message, status, "MPI_Mprobe")
    }
    fn MPI_Improbe(source: c_int, tag: c_int, comm: *mut Comm, flag: *mut c_int, message: *mut *mut Message,
                   status: *mut Status) -> c_int {
        let a = Args { buf: core::ptr::null(), count: 0, ty: core::ptr::null_mut(), peer: source, tag, comm };
        mprobe(false, &a, flag, message, status, "MPI_Improbe")
    }
    fn MPI_Mrecv(buf: *mut c_void, count: c_int, ty: *mut Datatype, message: *mut *mut Message,
                 status: *mut Status) -> c_int {
        match imrecv(buf, count, ty, message) {
            Err(code) => fail(core::ptr::null_mut(), code, "MPI_Mrecv"),
            Ok(r) => {
                let comm = (*r).comm;
                let (s, code) = wait_own(r);
                tell(status, &s);
                if code == SUCCESS { code } else { fail(comm, code, "MPI_Mrecv") }
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
        let mut r = null();
        let get = Args { buf, count: n, ty, peer: rank(from), tag, comm };
        let code = initiate(Does::Recv, get, &raw mut r, "exchange");
        if code != SUCCESS {
            return code;
        }
        let put = Args { buf: out.as_ptr().cast(), count: count(out.len()), ty, peer: rank(to), tag, comm };
        let code = send(Does::Send, put, "exchange");
        if code != SUCCESS {
            return code;
        }
        wait_own(r).1
    }
}

const _: () = assert!(ANY_SOURCE == -1 && ANY_TAG == -1);
