//! Windows: passed through. While one exists, a checkpoint is refused by name. Upper half.
//!
//! What a reader would get wrong: memory of MPI_Win_allocate belongs to the library, below; that is only right because
//! nothing is saved while a window lives. The count ends after MPI_Win_free, when nobody waits below any more.
#![allow(unsafe_code, reason = "exports functions")]

use core::ffi::{CStr, c_char, c_int, c_void};
use core::sync::atomic::Ordering::Relaxed;

use stillpoint_abi::half::refuse;
use stillpoint_sys::upper;

use crate::clock::Within;
use crate::comm::{put_text, valid};
use crate::cross::Inside;
use crate::errhandler::{ERR_COMM, raise};
use crate::handles::{
    Comm, Datatype, Errhandler, Group, Head, Info, Kind, Op, Win, is_live, make, real, unmake,
};
use crate::request::{Does, Request, adopt as adopt_request, null};
use crate::{down, export, group, info, predefined};

/// MPI_ERR_WIN.
const ERR_WIN: c_int = 53;
/// The first of the keys MPI_WIN_BASE, SIZE, DISP_UNIT, CREATE_FLAVOR, MODEL.
const FIRST_KEY: c_int = 7;

fn known(w: *mut Win) -> bool {
    // SAFETY: what the application passes as a window is a handle.
    unsafe { is_live(w, Kind::Win) && w != predefined!(ompi_mpi_win_null as Win) }
}

macro_rules! check {
    ($w:ident, $name:expr) => {
        if !known($w) {
            return raise(core::ptr::null_mut(), ERR_WIN, $name);
        }
    };
}

/// Makes the object for the library's window `at` over `comm`.
unsafe fn adopt(at: usize, comm: *mut Comm) -> *mut Win {
    let w = make(Win::new(Head::new(Kind::Win, at)));
    // SAFETY: just made; `comm` is live; the library tells a pointer to an integer for each key but the first.
    unsafe {
        (*w).keyhash = w;
        (*w).members.clone_from(&(*comm).local);
        let silent = real(predefined!(ompi_mpi_errors_return as Errhandler));
        down!(MPI_Win_set_errhandler(w: usize = at, e: usize = silent) -> c_int);
        for (i, key) in (FIRST_KEY..).enumerate().take(5) {
            let mut value: *const c_void = core::ptr::null();
            let mut flag: c_int = 0;
            down!(MPI_Win_get_attr(
                w: usize = at, k: c_int = key, v: *mut *const c_void = &raw mut value, f: *mut c_int = &raw mut flag,
            ) -> c_int);
            (*w).builtin[i] = match i {
                0 => value.expose_provenance() as isize,
                _ if flag == 0 || value.is_null() => 0,
                1 => *value.cast::<isize>(),
                _ => *value.cast::<c_int>() as isize,
            };
        }
    }
    upper().refusals[refuse::WINDOWS].fetch_add(1, Relaxed);
    w
}

/// Makes a window over `comm`: `$call` writes the library's handle to `at`.
macro_rules! made {
    ($comm:ident, $win:ident, $info:ident, $name:ident($($a:ident: $t:ty = $v:expr),*)) => {{
        if !valid($comm) {
            return raise(core::ptr::null_mut(), ERR_COMM, stringify!($name));
        }
        let _clock = Within::enter($comm);
        let _inside = Inside::enter();
        let mut at = 0usize;
        let mut hints = info::lower($info);
        let code = down!($name(
            $($a: $t = $v,)* i: usize = hints, c: usize = real($comm), $win: *mut usize = &raw mut at) -> c_int);
        info::lower_free(&mut hints);
        if code == 0 {
            *$win = adopt(at, $comm);
            return 0;
        }
        code
    }};
}

macro_rules! allocate {
    ($name:ident, $size:ident, $unit:ident, $info:ident, $comm:ident, $base:ident, $win:ident) => {{
        if !valid($comm) {
            return raise(core::ptr::null_mut(), ERR_COMM, stringify!($name));
        }
        let _clock = Within::enter($comm);
        let _inside = Inside::enter();
        let mut at = 0usize;
        let mut hints = info::lower($info);
        let code = down!($name(
            s: isize = $size, u: c_int = $unit, i: usize = hints, c: usize = real($comm), b: *mut c_void = $base,
            w: *mut usize = &raw mut at) -> c_int);
        info::lower_free(&mut hints);
        if code == 0 {
            *$win = adopt(at, $comm);
            return 0;
        }
        code
    }};
}

export! {
    fn MPI_Win_create(base: *mut c_void, size: isize, unit: c_int, info: *mut Info, comm: *mut Comm, win: *mut *mut Win) -> c_int {
        let code = made!(comm, win, info, MPI_Win_create(b: *mut c_void = base, s: isize = size, u: c_int = unit));
        raise(comm.cast(), code, "MPI_Win_create")
    }
    fn MPI_Win_create_dynamic(info: *mut Info, comm: *mut Comm, win: *mut *mut Win) -> c_int {
        let code = made!(comm, win, info, MPI_Win_create_dynamic());
        raise(comm.cast(), code, "MPI_Win_create_dynamic")
    }
    fn MPI_Win_allocate(size: isize, unit: c_int, info: *mut Info, comm: *mut Comm, base: *mut c_void, win: *mut *mut Win) -> c_int {
        let code = allocate!(MPI_Win_allocate, size, unit, info, comm, base, win);
        raise(comm.cast(), code, "MPI_Win_allocate")
    }
    fn MPI_Win_allocate_shared(size: isize, unit: c_int, info: *mut Info, comm: *mut Comm, base: *mut c_void, win: *mut *mut Win) -> c_int {
        let code = allocate!(MPI_Win_allocate_shared, size, unit, info, comm, base, win);
        raise(comm.cast(), code, "MPI_Win_allocate_shared")
    }
    fn MPI_Win_free(win: *mut *mut Win) -> c_int {
        let w = *win;
        check!(w, "MPI_Win_free");
        let code = crate::attr::delete_all(w.cast());
        if code != 0 {
            return raise(w.cast(), code, "MPI_Win_free");
        }
        let mut at = real(w);
        let code = down!(MPI_Win_free(w: *mut usize = &raw mut at) -> c_int);
        if code != 0 {
            return raise(w.cast(), code, "MPI_Win_free");
        }
        upper().refusals[refuse::WINDOWS].fetch_sub(1, Relaxed);
        crate::errhandler::put((*w).errhandler);
        unmake(w);
        *win = predefined!(ompi_mpi_win_null as Win);
        0
    }
    fn MPI_Win_get_group(win: *mut Win, group: *mut *mut Group) -> c_int {
        check!(win, "MPI_Win_get_group");
        *group = group::of((*win).members.clone());
        0
    }
    fn MPI_Win_post(group: *mut Group, assert: c_int, win: *mut Win) -> c_int {
        check!(win, "MPI_Win_post");
        let mut g = group::lower(group);
        let code = down!(MPI_Win_post(g: usize = g, a: c_int = assert, w: usize = real(win)) -> c_int);
        group::lower_free(&mut g);
        raise(win.cast(), code, "MPI_Win_post")
    }
    fn MPI_Win_start(group: *mut Group, assert: c_int, win: *mut Win) -> c_int {
        check!(win, "MPI_Win_start");
        let mut g = group::lower(group);
        let code = down!(MPI_Win_start(g: usize = g, a: c_int = assert, w: usize = real(win)) -> c_int);
        group::lower_free(&mut g);
        raise(win.cast(), code, "MPI_Win_start")
    }
    fn MPI_Win_set_name(win: *mut Win, name: *const c_char) -> c_int {
        check!(win, "MPI_Win_set_name");
        let text = CStr::from_ptr(name).to_bytes();
        (*win).name = text[..text.len().min(63)].to_vec();
        0
    }
    fn MPI_Win_get_name(win: *mut Win, name: *mut c_char, len: *mut c_int) -> c_int {
        if win == predefined!(ompi_mpi_win_null as Win) {
            *len = put_text(b"MPI_WIN_NULL", name, 64);
            return 0;
        }
        check!(win, "MPI_Win_get_name");
        *len = put_text(&(*win).name, name, 64);
        0
    }
    fn MPI_Win_get_info(win: *mut Win, out: *mut *mut Info) -> c_int {
        check!(win, "MPI_Win_get_info");
        let mut at = 0usize;
        let code = down!(MPI_Win_get_info(w: usize = real(win), i: *mut usize = &raw mut at) -> c_int);
        if code == 0 {
            *out = info::taken_up(at);
        }
        raise(win.cast(), code, "MPI_Win_get_info")
    }
    fn MPI_Win_set_info(win: *mut Win, info: *mut Info) -> c_int {
        check!(win, "MPI_Win_set_info");
        let mut hints = info::lower(info);
        let code = down!(MPI_Win_set_info(w: usize = real(win), i: usize = hints) -> c_int);
        info::lower_free(&mut hints);
        raise(win.cast(), code, "MPI_Win_set_info")
    }
}

/// The end of a call that makes a request.
unsafe fn requested(code: c_int, q: usize, request: *mut *mut Request) -> c_int {
    // SAFETY: the application passes a place for a handle.
    unsafe {
        *request =
            if code == 0 { adopt_request(q, Does::Foreign, core::ptr::null_mut(), None) } else { null() };
    }
    code
}

export! {
    fn MPI_Rput(origin: *const c_void, n: c_int, t: *mut Datatype, rank: c_int, disp: isize, tn: c_int, tt: *mut Datatype, win: *mut Win, request: *mut *mut Request) -> c_int {
        check!(win, "MPI_Rput");
        let code = {
            let _inside = Inside::enter();
            let mut q = 0usize;
            let code = down!(MPI_Rput(
                o: *const c_void = origin, n: c_int = n, t: usize = real(t), r: c_int = rank, d: isize = disp, tn: c_int = tn, tt: usize = real(tt), w: usize = real(win), q: *mut usize = &raw mut q) -> c_int);
            requested(code, q, request)
        };
        raise(win.cast(), code, "MPI_Rput")
    }
    fn MPI_Rget(origin: *mut c_void, n: c_int, t: *mut Datatype, rank: c_int, disp: isize, tn: c_int, tt: *mut Datatype, win: *mut Win, request: *mut *mut Request) -> c_int {
        check!(win, "MPI_Rget");
        let code = {
            let _inside = Inside::enter();
            let mut q = 0usize;
            let code = down!(MPI_Rget(
                o: *mut c_void = origin, n: c_int = n, t: usize = real(t), r: c_int = rank, d: isize = disp, tn: c_int = tn, tt: usize = real(tt), w: usize = real(win), q: *mut usize = &raw mut q) -> c_int);
            requested(code, q, request)
        };
        raise(win.cast(), code, "MPI_Rget")
    }
    fn MPI_Raccumulate(origin: *const c_void, n: c_int, t: *mut Datatype, rank: c_int, disp: isize, tn: c_int, tt: *mut Datatype, op: *mut Op, win: *mut Win, request: *mut *mut Request) -> c_int {
        check!(win, "MPI_Raccumulate");
        let code = {
            let _inside = Inside::enter();
            let mut q = 0usize;
            let code = down!(MPI_Raccumulate(
                o: *const c_void = origin, n: c_int = n, t: usize = real(t), r: c_int = rank, d: isize = disp, tn: c_int = tn, tt: usize = real(tt), op: usize = real(op), w: usize = real(win), q: *mut usize = &raw mut q) -> c_int);
            requested(code, q, request)
        };
        raise(win.cast(), code, "MPI_Raccumulate")
    }
    fn MPI_Rget_accumulate(origin: *const c_void, n: c_int, t: *mut Datatype, result: *mut c_void, rn: c_int, rt: *mut Datatype, rank: c_int, disp: isize, tn: c_int, tt: *mut Datatype, op: *mut Op, win: *mut Win, request: *mut *mut Request) -> c_int {
        check!(win, "MPI_Rget_accumulate");
        let code = {
            let _inside = Inside::enter();
            let mut q = 0usize;
            let code = down!(MPI_Rget_accumulate(
                o: *const c_void = origin, n: c_int = n, t: usize = real(t), e: *mut c_void = result, rn: c_int = rn, rt: usize = real(rt), r: c_int = rank, d: isize = disp, tn: c_int = tn, tt: usize = real(tt), op: usize = real(op), w: usize = real(win), q: *mut usize = &raw mut q) -> c_int);
            requested(code, q, request)
        };
        raise(win.cast(), code, "MPI_Rget_accumulate")
    }
}
