//! Windows: passed through. While one exists, a checkpoint is refused by name. Upper half.
//!
//! What a reader would get wrong: memory of MPI_Win_allocate belongs to the library, below; that is only right because
//! nothing is saved while a window lives. The count ends after MPI_Win_free, when nobody waits below any more.
#![allow(unsafe_code, reason = "exports functions")]

use core::ffi::{c_int, c_void};
use core::sync::atomic::Ordering::Relaxed;

use stillpoint_abi::half::refuse;

use crate::clock::Within;
use crate::comm::check_comm;
use crate::cross::Inside;
use crate::errhandler::raise;
use crate::handles::{
    Comm, Datatype, Errhandler, Group, Head, Info, Kind, Op, Win, is_live, make, real, unmake,
};
use crate::request::{Request, foreign};
use crate::{down, export, group, info, predefined};

/// MPI_ERR_WIN.
pub(crate) const ERR_WIN: c_int = 53;
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
    crate::front::refused(refuse::WINDOWS).fetch_add(1, Relaxed);
    w
}

/// Calls that make a window over a communicator.
macro_rules! made {
    ($($name:ident($($a:ident: $t:ty),*; $($out:ident)?);)*) => {
        export! { $(
            fn $name($($a: $t,)* info: *mut Info, comm: *mut Comm, $($out: *mut c_void,)? win: *mut *mut Win) -> c_int {
                check_comm!(comm, stringify!($name));
                let code = {
                    let _clock = Within::enter(comm);
                    let _inside = Inside::enter();
                    let mut at = 0usize;
                    let mut hints = info::lower(info);
                    let code = down!($name(
                        $($a: $t = $a,)* i: usize = hints, c: usize = real(comm), $($out: *mut c_void = $out,)?
                        w: *mut usize = &raw mut at) -> c_int);
                    info::lower_free(&mut hints);
                    if code == 0 {
                        *win = adopt(at, comm);
                    }
                    code
                };
                raise(comm.cast(), code, stringify!($name))
            }
        )* }
    };
}
made! {
    MPI_Win_create(base: *mut c_void, size: isize, unit: c_int;);
    MPI_Win_create_dynamic(;);
    MPI_Win_allocate(size: isize, unit: c_int; base);
    MPI_Win_allocate_shared(size: isize, unit: c_int; base);
}

/// Calls that begin an epoch with a group.
macro_rules! begins {
    ($($name:ident)*) => {
        export! { $(
            fn $name(group: *mut Group, assert: c_int, win: *mut Win) -> c_int {
                check!(win, stringify!($name));
                let mut g = group::lower(group);
                let code = down!($name(g: usize = g, a: c_int = assert, w: usize = real(win)) -> c_int);
                group::lower_free(&mut g);
                raise(win.cast(), code, stringify!($name))
            }
        )* }
    };
}
begins! { MPI_Win_post MPI_Win_start }

export! {
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
        crate::front::refused(refuse::WINDOWS).fetch_sub(1, Relaxed);
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

/// Calls that make a request: with a result that comes back, and an operation, where there is one.
macro_rules! requested {
    ($($name:ident($origin:ty $(, into $result:ident $rn:ident $rt:ident)? $(, by $op:ident)?);)*) => {
        export! { $(
            fn $name(origin: $origin, n: c_int, t: *mut Datatype, $($result: *mut c_void, $rn: c_int, $rt: *mut Datatype,)?
                     rank: c_int, disp: isize, tn: c_int, tt: *mut Datatype, $($op: *mut Op,)? win: *mut Win,
                     request: *mut *mut Request) -> c_int {
                check!(win, stringify!($name));
                let code = {
                    let _inside = Inside::enter();
                    let mut q = 0usize;
                    let code = down!($name(
                        o: $origin = origin, n: c_int = n, t: usize = real(t),
                        $($result: *mut c_void = $result, $rn: c_int = $rn, $rt: usize = real($rt),)?
                        r: c_int = rank, d: isize = disp, tn: c_int = tn, tt: usize = real(tt),
                        $($op: usize = real($op),)? w: usize = real(win), q: *mut usize = &raw mut q) -> c_int);
                    foreign(code, q, request)
                };
                raise(win.cast(), code, stringify!($name))
            }
        )* }
    };
}
requested! {
    MPI_Rput(*const c_void);
    MPI_Rget(*mut c_void);
    MPI_Raccumulate(*const c_void, by op);
    MPI_Rget_accumulate(*const c_void, into result rn rt, by op);
}
