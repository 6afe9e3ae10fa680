//! Buffered sends and their buffer. Upper half.
//!
//! What a reader would get wrong: nothing is ever written to the buffer that the application attaches. It is a budget:
//! the bytes wait in memory of the front, with a request that nobody waits for, and cost what they would cost there.
#![allow(unsafe_code, reason = "buffers and handles are raw pointers that the application passes in")]

use crate::handles::{self, Comm, Datatype, real};
use crate::matching::PROC_NULL;
use crate::p2p::{Args, fail, init, initiate, outcome};
use crate::request::{Does, ERR_BUFFER, P2p, Request, SUCCESS, begin, wait_done};
use crate::{down, export, predefined};
use alloc::vec::Vec;
use core::ffi::{c_int, c_void};

/// `MPI_BSEND_OVERHEAD`.
pub(crate) const BSEND_OVERHEAD: usize = 128;

/// Packs into bytes of ours.
///
/// # Safety
/// `buf` and `ty` are the application's, for `count` elements.
pub(crate) unsafe fn pack(buf: usize, count: c_int, ty: usize, comm: usize) -> Result<Vec<u8>, c_int> {
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
///
/// # Safety
/// The application's arguments; `comm` and `ty` are live.
pub(crate) unsafe fn buffered(
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

export! {
    fn MPI_Bsend(buf: *const c_void, count: c_int, ty: *mut Datatype, dest: c_int, tag: c_int, comm: *mut Comm)
        -> c_int {
        let code = {
            let mut p = begin();
            buffered(&mut p, buf.expose_provenance(), count, ty, dest, tag, comm)
        };
        outcome(comm, code, "MPI_Bsend")
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
            (*r).waited = true;
            drop(p);
            wait_done(r);
        }
    }
}
