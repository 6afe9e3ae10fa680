//! Processes outside of the job: spawned, accepted or connected to. Passed through. While a communicator leads to one, a
//! checkpoint is refused by name. Upper half.
//!
//! What a reader would get wrong: a process that is spawned runs natively, without Stillpoint, so nothing is agreed
//! with it; `comm::adopt` sees the strangers and counts them.
#![allow(unsafe_code, reason = "exports functions")]

use alloc::vec::Vec;
use core::ffi::{c_char, c_int};

use crate::clock::Within;
use crate::comm::{adopt, check_comm};
use crate::errhandler::raise;
use crate::handles::{Comm, Info, real};
use crate::{down, export, info, predefined};

macro_rules! named {
    ($($name:ident($($a:ident),*);)*) => {
        export! { $(
            fn $name($($a: *mut c_char,)* info: *mut Info, port: *mut c_char) -> c_int {
                let mut hints = info::lower(info);
                let code = down!($name($($a: *mut c_char = $a,)* i: usize = hints, p: *mut c_char = port) -> c_int);
                info::lower_free(&mut hints);
                raise(core::ptr::null_mut(), code, stringify!($name))
            }
        )* }
    };
}
named! {
    MPI_Open_port();
    MPI_Publish_name(service);
    MPI_Unpublish_name(service);
    MPI_Lookup_name(service);
}

/// The end of a call over `parent` that meets others: a communicator for the library's `at`, or null.
///
/// # Safety
/// `parent` is null or live; `new` is writable.
unsafe fn met(code: c_int, at: usize, parent: *mut Comm, new: *mut *mut Comm, name: &str) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        *new = if code == 0 { adopt(at, parent) } else { predefined!(ompi_mpi_comm_null as Comm) };
        raise(parent.cast(), code, name)
    }
}

macro_rules! meets {
    ($($name:ident)*) => {
        export! { $(
            fn $name(port: *const c_char, info: *mut Info, root: c_int, comm: *mut Comm, new: *mut *mut Comm) -> c_int {
                check_comm!(comm, stringify!($name));
                let _clock = Within::enter(comm);
                let mut at = 0usize;
                let mut hints = info::lower(info);
                let code = down!($name(
                    p: *const c_char = port, i: usize = hints, r: c_int = root, c: usize = real(comm),
                    n: *mut usize = &raw mut at) -> c_int);
                info::lower_free(&mut hints);
                met(code, at, comm, new, stringify!($name))
            }
        )* }
    };
}
meets! { MPI_Comm_accept MPI_Comm_connect }

export! {
    fn MPI_Close_port(port: *const c_char) -> c_int {
        let code = down!(MPI_Close_port(p: *const c_char = port) -> c_int);
        raise(core::ptr::null_mut(), code, "MPI_Close_port")
    }
    fn MPI_Comm_join(fd: c_int, new: *mut *mut Comm) -> c_int {
        let mut at = 0usize;
        let code = down!(MPI_Comm_join(f: c_int = fd, n: *mut usize = &raw mut at) -> c_int);
        met(code, at, core::ptr::null_mut(), new, "MPI_Comm_join")
    }
    fn MPI_Comm_spawn(command: *const c_char, argv: *mut *mut c_char, n: c_int, info: *mut Info, root: c_int, comm: *mut Comm, new: *mut *mut Comm, codes: *mut c_int) -> c_int {
        check_comm!(comm, "MPI_Comm_spawn");
        let _clock = Within::enter(comm);
        let mut at = 0usize;
        let mut hints = info::lower(info);
        let code = down!(MPI_Comm_spawn(
            x: *const c_char = command, a: *mut *mut c_char = argv, n: c_int = n, i: usize = hints, r: c_int = root,
            c: usize = real(comm), new: *mut usize = &raw mut at, e: *mut c_int = codes) -> c_int);
        info::lower_free(&mut hints);
        met(code, at, comm, new, "MPI_Comm_spawn")
    }
    fn MPI_Comm_spawn_multiple(count: c_int, commands: *mut *mut c_char, argvs: *mut *mut *mut c_char, ns: *const c_int, infos: *const *mut Info, root: c_int, comm: *mut Comm, new: *mut *mut Comm, codes: *mut c_int) -> c_int {
        check_comm!(comm, "MPI_Comm_spawn_multiple");
        let _clock = Within::enter(comm);
        let mut at = 0usize;
        // Only the root's arguments count; the others may pass anything.
        let n = if (*comm).rank == root { usize::try_from(count).unwrap_or(0) } else { 0 };
        let mut hints: Vec<usize> = (0..n).map(|k| info::lower(*infos.add(k))).collect();
        let code = down!(MPI_Comm_spawn_multiple(
            k: c_int = count, x: *mut *mut c_char = commands, a: *mut *mut *mut c_char = argvs, n: *const c_int = ns,
            i: *const usize = hints.as_ptr(), r: c_int = root, c: usize = real(comm), new: *mut usize = &raw mut at,
            e: *mut c_int = codes) -> c_int);
        hints.iter_mut().for_each(info::lower_free);
        met(code, at, comm, new, "MPI_Comm_spawn_multiple")
    }
}
