//! Files of MPI: passed through. While one is open, a checkpoint is refused by name. Upper half.
//!
//! What a reader would get wrong: the types of a view are held here, since the library hands out its own copies when
//! it is asked for them.
#![allow(unsafe_code, reason = "exports functions")]

use core::ffi::{c_char, c_int, c_void};
use core::sync::atomic::Ordering::Relaxed;

use stillpoint_abi::half::refuse;

use crate::clock::Within;
use crate::comm::check_comm;
use crate::cross::Inside;
use crate::errhandler::raise;
use crate::handles::{Comm, Datatype, File, Group, Head, Info, Kind, is_live, make, real, retain, unmake};
use crate::request::{Request, foreign};
use crate::{down, export, group, info, predefined};

/// MPI_ERR_FILE.
const ERR_FILE: c_int = 30;
/// MPI_ERR_UNSUPPORTED_DATAREP.
const ERR_DATAREP: c_int = 51;

fn null_file() -> *mut File {
    predefined!(ompi_mpi_file_null as File)
}

macro_rules! check {
    ($f:ident, $name:expr) => {
        // SAFETY: what the application passes as a file is a handle.
        if !is_live($f, Kind::File) || $f == null_file() {
            return raise(null_file().cast(), ERR_FILE, $name);
        }
    };
}

/// Holds `new` as the types of the view of `f`, and lets go of those before.
unsafe fn view(f: *mut File, new: [*mut Datatype; 2]) {
    // SAFETY: the file and the types are live.
    unsafe {
        for t in new {
            if !t.is_null() {
                retain(t);
            }
        }
        for t in core::mem::replace(&mut (*f).view, new) {
            if !t.is_null() {
                crate::types::let_go(t);
            }
        }
    }
}

export! {
    fn MPI_File_open(comm: *mut Comm, name: *const c_char, mode: c_int, info: *mut Info, file: *mut *mut File) -> c_int {
        check_comm!(comm, "MPI_File_open");
        let code = {
            let _clock = Within::enter(comm);
            let _inside = Inside::enter();
            let mut at = 0usize;
            let mut hints = info::lower(info);
            let code = down!(MPI_File_open(
                c: usize = real(comm), n: *const c_char = name, m: c_int = mode, i: usize = hints,
                f: *mut usize = &raw mut at) -> c_int);
            info::lower_free(&mut hints);
            if code == 0 {
                let f = make(File::new(Head::new(Kind::File, at)));
                (*f).members.clone_from(&(*comm).local);
                let byte = predefined!(ompi_mpi_byte as Datatype);
                (*f).view = [byte; 2];
                (*f).errhandler = (*null_file()).errhandler;
                if !(*f).errhandler.is_null() {
                    retain((*f).errhandler);
                }
                crate::front::refused(refuse::FILES).fetch_add(1, Relaxed);
                *file = f;
            }
            code
        };
        raise(null_file().cast(), code, "MPI_File_open")
    }
    fn MPI_File_close(file: *mut *mut File) -> c_int {
        let f = *file;
        check!(f, "MPI_File_close");
        let mut at = real(f);
        let code = down!(MPI_File_close(f: *mut usize = &raw mut at) -> c_int);
        if code != 0 {
            return raise(f.cast(), code, "MPI_File_close");
        }
        crate::front::refused(refuse::FILES).fetch_sub(1, Relaxed);
        view(f, [core::ptr::null_mut(); 2]);
        crate::errhandler::put((*f).errhandler);
        unmake(f);
        *file = null_file();
        0
    }
    fn MPI_File_delete(name: *const c_char, info: *mut Info) -> c_int {
        let mut hints = info::lower(info);
        let code = down!(MPI_File_delete(n: *const c_char = name, i: usize = hints) -> c_int);
        info::lower_free(&mut hints);
        raise(null_file().cast(), code, "MPI_File_delete")
    }
    fn MPI_File_get_group(file: *mut File, group: *mut *mut Group) -> c_int {
        check!(file, "MPI_File_get_group");
        *group = group::of((*file).members.clone());
        0
    }
    fn MPI_File_get_info(file: *mut File, out: *mut *mut Info) -> c_int {
        check!(file, "MPI_File_get_info");
        let mut at = 0usize;
        let code = down!(MPI_File_get_info(f: usize = real(file), i: *mut usize = &raw mut at) -> c_int);
        if code == 0 {
            *out = info::taken_up(at);
        }
        raise(file.cast(), code, "MPI_File_get_info")
    }
    fn MPI_File_set_info(file: *mut File, info: *mut Info) -> c_int {
        check!(file, "MPI_File_set_info");
        let mut hints = info::lower(info);
        let code = down!(MPI_File_set_info(f: usize = real(file), i: usize = hints) -> c_int);
        info::lower_free(&mut hints);
        raise(file.cast(), code, "MPI_File_set_info")
    }
    fn MPI_File_set_view(file: *mut File, disp: i64, etype: *mut Datatype, filetype: *mut Datatype, rep: *const c_char, info: *mut Info) -> c_int {
        check!(file, "MPI_File_set_view");
        let mut hints = info::lower(info);
        let code = down!(MPI_File_set_view(
            f: usize = real(file), d: i64 = disp, e: usize = real(etype), t: usize = real(filetype),
            r: *const c_char = rep, i: usize = hints) -> c_int);
        info::lower_free(&mut hints);
        if code == 0 {
            view(file, [etype, filetype]);
        }
        raise(file.cast(), code, "MPI_File_set_view")
    }
    fn MPI_File_get_view(file: *mut File, disp: *mut i64, etype: *mut *mut Datatype, filetype: *mut *mut Datatype, rep: *mut c_char) -> c_int {
        check!(file, "MPI_File_get_view");
        let (mut e, mut t) = (0usize, 0usize);
        let code = down!(MPI_File_get_view(
            f: usize = real(file), d: *mut i64 = disp, e: *mut usize = &raw mut e, t: *mut usize = &raw mut t,
            r: *mut c_char = rep) -> c_int);
        if code != 0 {
            return raise(file.cast(), code, "MPI_File_get_view");
        }
        for mut real in [e, t] {
            if real != 0 && crate::predefined::of_real(real).is_none() {
                down!(MPI_Type_free(t: *mut usize = &raw mut real) -> c_int);
            }
        }
        for (to, held) in [(etype, (*file).view[0]), (filetype, (*file).view[1])] {
            // The library hands out a duplicate of a derived type, for the application to free.
            *to = held;
            if (*held).head.predefined < 0 {
                let code = crate::types::MPI_Type_dup(held, to);
                if code != 0 {
                    return code;
                }
            }
        }
        0
    }
    fn MPI_Register_datarep(_name: *const c_char, _read: usize, _write: usize, _extent: usize, _extra: usize) -> c_int {
        // Its functions would be called from below.
        raise(null_file().cast(), ERR_DATAREP, "MPI_Register_datarep")
    }
}

/// Calls that make a request.
macro_rules! requested {
    ($($name:ident($($offset:ident)?);)*) => {
        export! { $(
            fn $name(file: *mut File, $($offset: i64,)? buf: *mut c_void, n: c_int, t: *mut Datatype, request: *mut *mut Request) -> c_int {
                check!(file, stringify!($name));
                let code = {
                    let _inside = Inside::enter();
                    let mut q = 0usize;
                    let code = down!($name(
                        f: usize = real(file), $($offset: i64 = $offset,)? b: *mut c_void = buf, n: c_int = n,
                        t: usize = real(t), q: *mut usize = &raw mut q) -> c_int);
                    foreign(code, q, request)
                };
                raise(file.cast(), code, stringify!($name))
            }
        )* }
    };
}
requested! {
    MPI_File_iread();
    MPI_File_iread_all();
    MPI_File_iread_at(offset);
    MPI_File_iread_at_all(offset);
    MPI_File_iread_shared();
    MPI_File_iwrite();
    MPI_File_iwrite_all();
    MPI_File_iwrite_at(offset);
    MPI_File_iwrite_at_all(offset);
    MPI_File_iwrite_shared();
}
