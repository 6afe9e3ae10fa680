//! The internals of Open MPI's library that its own Fortran and C++ libraries import. Upper half.
//!
//! What a reader would get wrong: a Fortran program defines the sentinels (`mpi_fortran_bottom_`, …) itself, as common
//! blocks, and then those are the ones; ours only stand in where it does not. Memory that the Fortran library frees
//! comes from the application's malloc.
#![allow(unsafe_code, reason = "exports functions and data")]
#![allow(non_upper_case_globals, non_snake_case, reason = "the library's names")]

use core::cell::UnsafeCell;
use core::ffi::{c_char, c_int, c_void};

use crate::errhandler::raise;
use crate::handles::{AttrForm, Comm, Datatype, Errhandler, Head, Kind, Language, Op, Status, is_live};
use crate::predefined;

/// Memory that others write.
#[repr(transparent)]
#[derive(Debug)]
pub struct Plain<T>(UnsafeCell<T>);
// SAFETY: the front never looks into it; its users order their own accesses.
unsafe impl<T> Sync for Plain<T> {}
impl<T> Plain<T> {
    const fn new(v: T) -> Plain<T> {
        Plain(UnsafeCell::new(v))
    }
}

macro_rules! data {
    ($($(#[$m:meta])* $name:ident: $t:ty = $v:expr;)*) => { $(
        $(#[$m])*
        #[unsafe(no_mangle)]
        pub static $name: Plain<$t> = Plain::new($v);
    )* };
}
data! {
    /// MPI_BOTTOM of Fortran.
    mpi_fortran_bottom_: c_int = 0;
    /// MPI_IN_PLACE of Fortran.
    mpi_fortran_in_place_: c_int = 0;
    /// MPI_ARGV_NULL of Fortran.
    mpi_fortran_argv_null_: u8 = 0;
    /// MPI_ARGVS_NULL of Fortran.
    mpi_fortran_argvs_null_: u8 = 0;
    /// MPI_ERRCODES_IGNORE of Fortran.
    mpi_fortran_errcodes_ignore_: c_int = 0;
    /// MPI_STATUS_IGNORE of Fortran.
    mpi_fortran_status_ignore_: [c_int; 2] = [0; 2];
    /// MPI_STATUSES_IGNORE of Fortran.
    mpi_fortran_statuses_ignore_: [c_int; 2] = [0; 2];
    /// MPI_UNWEIGHTED of Fortran.
    mpi_fortran_unweighted_: c_int = 0;
    /// MPI_WEIGHTS_EMPTY of Fortran.
    mpi_fortran_weights_empty_: c_int = 0;
    /// What a call that completes nothing returns.
    ompi_status_empty: Status = Status::EMPTY;
    /// Arguments are checked.
    ompi_mpi_param_check: u8 = 1;
    /// Internal error codes: there are none here, every function of ours returns those of the standard.
    ompi_errcode_intern_lastused: c_int = 0;
    /// Their array, never looked into as long as there are none.
    ompi_errcodes_intern: [u64; 15] = [0; 15];
}

/// A pointer that may be shared.
#[repr(transparent)]
#[derive(Debug)]
pub struct Pointer(*const c_int);
// SAFETY: an address only.
unsafe impl Sync for Pointer {}

/// C's name for the Fortran sentinel.
#[unsafe(no_mangle)]
pub static MPI_F_STATUS_IGNORE: Pointer = Pointer((&raw const mpi_fortran_status_ignore_).cast());
/// C's name for the Fortran sentinel.
#[unsafe(no_mangle)]
pub static MPI_F_STATUSES_IGNORE: Pointer = Pointer((&raw const mpi_fortran_statuses_ignore_).cast());

/// An empty list of Open MPI, to which the vendor's libraries append: object, then the item that closes the ring.
#[repr(C)]
#[derive(Debug)]
pub struct List([usize; 4], *const List, *const List, [usize; 2]);
// SAFETY: the front never looks into it.
unsafe impl Sync for List {}
const fn closing() -> *const List {
    (&raw const ompi_registered_datareps.0).cast::<u8>().wrapping_add(16).cast()
}
/// Data representations of the Fortran and C++ libraries.
#[unsafe(no_mangle)]
pub static ompi_registered_datareps: Shared =
    Shared(UnsafeCell::new(List([0; 4], closing(), closing(), [0; 2])));
/// A list that others write.
#[repr(transparent)]
#[derive(Debug)]
pub struct Shared(UnsafeCell<List>);
// SAFETY: the front never looks into it.
unsafe impl Sync for Shared {}
const _: () = assert!(size_of::<List>() == 64);

macro_rules! internal {
    ($($(#[$m:meta])* fn $name:ident($($a:ident: $t:ty),* $(,)?) -> $r:ty $body:block)*) => { $(
        $(#[$m])*
        ///
        /// # Safety
        /// Called by the vendor's libraries only.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($a: $t),*) -> $r {
            // SAFETY: they pass what Open MPI's own function asks for.
            #[allow(unused_unsafe, reason = "some bodies are safe")]
            unsafe { $body }
        }
    )* };
}

/// A zero-terminated copy in the application's memory.
unsafe fn copy(text: &[u8]) -> *mut c_char {
    // SAFETY: as much room as is written.
    unsafe {
        let p = libc::malloc(text.len() + 1).cast::<u8>();
        if !p.is_null() {
            core::ptr::copy_nonoverlapping(text.as_ptr(), p, text.len());
            *p.add(text.len()) = 0;
        }
        p.cast()
    }
}

unsafe fn trimmed<'a>(at: *const u8, len: c_int) -> &'a [u8] {
    // SAFETY: Fortran passes the length of each character variable.
    let all = unsafe { core::slice::from_raw_parts(at, usize::try_from(len).unwrap_or(0)) };
    let from = all.iter().position(|&c| c != b' ').unwrap_or(all.len());
    let to = all.iter().rposition(|&c| c != b' ').map_or(from, |i| i + 1);
    &all[from..to]
}

/// Makes an argument vector; null for an empty one, as the library does.
unsafe fn vector(list: &[&[u8]]) -> *mut *mut c_char {
    if list.is_empty() {
        return core::ptr::null_mut();
    }
    // SAFETY: as much room as is written.
    unsafe {
        let v = libc::malloc((list.len() + 1) * size_of::<usize>()).cast::<*mut c_char>();
        for (i, text) in list.iter().enumerate() {
            *v.add(i) = copy(text);
        }
        *v.add(list.len()) = core::ptr::null_mut();
        v
    }
}

unsafe fn blank_ended<'a>(at: *const u8, len: c_int, advance: c_int) -> Vec<&'a [u8]> {
    let step = isize::try_from(advance).unwrap_or(0);
    // SAFETY: the array ends with a blank element.
    (0..).map(|i| unsafe { trimmed(at.offset(i * step), len) }).take_while(|t| !t.is_empty()).collect()
}

internal! {
    /// A Fortran string without the blanks around it.
    fn ompi_fortran_string_f2c(f: *const u8, len: c_int, c: *mut *mut c_char) -> c_int {
        *c = copy(trimmed(f, len));
        0
    }
    /// A C string, filled up with blanks.
    fn ompi_fortran_string_c2f(c: *const c_char, f: *mut u8, len: c_int) -> c_int {
        let text = core::ffi::CStr::from_ptr(c).to_bytes();
        for i in 0..usize::try_from(len).unwrap_or(0) {
            *f.add(i) = text.get(i).copied().unwrap_or(b' ');
        }
        0
    }
    /// An array of strings that ends with a blank one.
    fn ompi_fortran_argv_blank_f2c(array: *const u8, len: c_int, advance: c_int, argv: *mut *mut *mut c_char) -> c_int {
        *argv = vector(&blank_ended(array, len, advance));
        0
    }
    /// An array of `n` strings.
    fn ompi_fortran_argv_count_f2c(array: *const u8, n: c_int, len: c_int, advance: c_int, argv: *mut *mut *mut c_char) -> c_int {
        let step = isize::try_from(advance).unwrap_or(0);
        let list: Vec<&[u8]> = (0..isize::try_from(n).unwrap_or(0)).map(|i| trimmed(array.offset(i * step), len)).collect();
        *argv = vector(&list);
        0
    }
    /// Several argument vectors, the first index of the array being that of the command.
    fn ompi_fortran_multiple_argvs_f2c(n: c_int, array: *const u8, len: c_int, argvs: *mut *mut *mut *mut c_char) -> c_int {
        let count = usize::try_from(n).unwrap_or(0);
        let all = libc::malloc(count.max(1) * size_of::<usize>()).cast::<*mut *mut c_char>();
        for i in 0..count {
            let first = array.add(i * usize::try_from(len).unwrap_or(0));
            *all.add(i) = vector(&blank_ended(first, len, len * n));
        }
        *argvs = all;
        0
    }
    /// A key of the C++ bindings.
    fn ompi_attr_create_keyval(kind: c_int, copy: usize, delete: usize, key: *mut c_int, extra: usize, _flags: c_int, _bindings: usize) -> c_int {
        *key = crate::attr::create(object_of(kind), copy, delete, extra, AttrForm::C);
        0
    }
    /// A key of Fortran with INTEGER values.
    fn ompi_attr_create_keyval_fint(kind: c_int, copy: usize, delete: usize, key: *mut c_int, extra: c_int, _flags: c_int, _bindings: usize) -> c_int {
        *key = crate::attr::create(object_of(kind), copy, delete, extra as isize as usize, AttrForm::Fint);
        0
    }
    /// A key of Fortran with address-sized values.
    fn ompi_attr_create_keyval_aint(kind: c_int, copy: usize, delete: usize, key: *mut c_int, extra: usize, _flags: c_int, _bindings: usize) -> c_int {
        *key = crate::attr::create(object_of(kind), copy, delete, extra, AttrForm::Aint);
        0
    }
    /// MPI_ATTR_PUT.
    fn ompi_attr_set_fint(_kind: c_int, object: *mut Head, _table: usize, key: c_int, value: c_int, _predefined: bool) -> c_int {
        crate::attr::set(object, key, value as isize as usize, AttrForm::Fint)
    }
    /// MPI_COMM_SET_ATTR and its like.
    fn ompi_attr_set_aint(_kind: c_int, object: *mut Head, _table: usize, key: c_int, value: usize, _predefined: bool) -> c_int {
        crate::attr::set(object, key, value, AttrForm::Aint)
    }
    /// MPI_ATTR_GET. The "table" is the object: see `Comm::keyhash`.
    fn ompi_attr_get_fint(object: *mut Head, key: c_int, value: *mut c_void, flag: *mut c_int) -> c_int {
        get(object, key, value, flag, AttrForm::Fint)
    }
    /// MPI_COMM_GET_ATTR and its like.
    fn ompi_attr_get_aint(object: *mut Head, key: c_int, value: *mut c_void, flag: *mut c_int) -> c_int {
        get(object, key, value, flag, AttrForm::Aint)
    }
    /// MPI_TYPE_MATCH_SIZE; `class` is Open MPI's flag: integer, float, complex.
    fn ompi_datatype_match_size(size: c_int, class: u16, _language: u16) -> *mut Datatype {
        let class = match class & 0x3000 {
            0x1000 => 1,
            0x2000 => 2,
            _ => 3,
        };
        let mut at = 0usize;
        let code = crate::down!(MPI_Type_match_size(c: c_int = class, s: c_int = size, t: *mut usize = &raw mut at) -> c_int);
        match crate::predefined::of_real(at) {
            Some(o) if code == 0 => o.cast(),
            _ => predefined!(ompi_mpi_datatype_null as Datatype),
        }
    }
    /// An error handler of Fortran or C++; the latter's library writes the dispatcher into it afterwards.
    fn ompi_errhandler_create(kind: c_int, function: usize, language: c_int) -> *mut Errhandler {
        let kind = match kind {
            2 => Kind::Win,
            3 => Kind::File,
            _ => Kind::Comm,
        };
        let language = match language {
            1 => Language::Cxx,
            2 => Language::Fortran,
            _ => Language::C,
        };
        crate::errhandler::create(kind, language, function, 0)
    }
    /// Raises an error. The handler is looked up again: the vendor's library read it at a place that is not ours.
    fn ompi_errhandler_invoke(_handler: usize, object: *mut Head, _kind: c_int, code: c_int, message: *const c_char) -> c_int {
        let what = if message.is_null() { "MPI" } else { core::ffi::CStr::from_ptr(message).to_str().unwrap_or("MPI") };
        raise(object, code, what)
    }
    /// An error that ends the job, raised by the Fortran library before MPI_Init or after MPI_Finalize.
    fn ompi_mpi_errors_are_fatal_comm_handler(_comm: *mut *mut Comm, code: *const c_int, what: *const c_char) -> () {
        let what = if what.is_null() { "MPI" } else { core::ffi::CStr::from_ptr(what).to_str().unwrap_or("MPI") };
        crate::env::print(&std::format!("*** The {what}() function was called before MPI_INIT or after MPI_FINALIZE, or failed.\n"));
        crate::env::MPI_Abort(predefined!(ompi_mpi_comm_world as Comm), if code.is_null() { 1 } else { *code });
    }
    /// MPI::Op::Init: `op` was made with the interceptor as its function.
    fn ompi_op_set_cxx_callback(op: *mut Op, function: usize) -> () {
        if is_live(op, Kind::Op) {
            (*op).interceptor = (*op).function;
            (*op).function = function;
            (*op).language = Language::Cxx;
        }
    }
    /// An extension of Open MPI: device memory cannot be saved, so it is not offered.
    fn MPIX_Query_cuda_support() -> c_int {
        0
    }
}

/// Open MPI counts the kinds of objects with attributes from 1.
fn object_of(kind: c_int) -> u32 {
    u32::try_from(kind - 1).unwrap_or(0)
}

unsafe fn get(object: *mut Head, key: c_int, value: *mut c_void, flag: *mut c_int, form: AttrForm) -> c_int {
    if object.is_null() {
        // SAFETY: the error is raised on the world.
        return unsafe { raise(object, crate::errhandler::ERR_COMM, "MPI_Comm_get_attr") };
    }
    // SAFETY: the vendor's library passes what `keyhash` holds, which is the object.
    unsafe { crate::attr::get(object, key, value, flag, form) }
}

/// A function under the four names by which Fortran compilers may call it.
macro_rules! four {
    ($($body:ident $args:tt -> $r:ty: $($name:literal)*;)*) => { $( four!(@ $body $args $r: $($name)*); )* };
    (@ $body:ident $args:tt $r:ty: $a:literal $b:literal $c:literal $d:literal) => {
        four!(= $body $args $r: $a);
        four!(= $body $args $r: $b);
        four!(= $body $args $r: $c);
        four!(= $body $args $r: $d);
    };
    (= $body:ident ($($a:ident: $t:ty),*) $r:ty: $name:literal) => {
        const _: () = {
            #[unsafe(export_name = $name)]
            unsafe extern "C" fn exported($($a: $t),*) -> $r {
                // SAFETY: Fortran passes references.
                unsafe { $body($($a),*) }
            }
        };
    };
}
type Fint = *mut c_int;
type Aint = *mut isize;

unsafe fn dup_fint(_o: Fint, _k: Fint, _e: Fint, value: Fint, new: Fint, flag: Fint, code: Fint) {
    // SAFETY: references of Fortran.
    unsafe { (*new, *flag, *code) = (*value, 1, 0) };
}
unsafe fn null_fint(_o: Fint, _k: Fint, _e: Fint, _v: Fint, _n: Fint, flag: Fint, code: Fint) {
    // SAFETY: references of Fortran.
    unsafe { (*flag, *code) = (0, 0) };
}
unsafe fn dup_aint(_o: Fint, _k: Fint, _e: Aint, value: Aint, new: Aint, flag: Fint, code: Fint) {
    // SAFETY: references of Fortran.
    unsafe { (*new, *flag, *code) = (*value, 1, 0) };
}
unsafe fn null_aint(_o: Fint, _k: Fint, _e: Aint, _v: Aint, _n: Aint, flag: Fint, code: Fint) {
    // SAFETY: references of Fortran.
    unsafe { (*flag, *code) = (0, 0) };
}
unsafe fn null_delete(_o: Fint, _k: Fint, _v: Aint, _e: Aint, code: Fint) {
    // SAFETY: a reference of Fortran.
    unsafe { *code = 0 };
}
unsafe fn no_conversion(_user: usize, _t: Fint, _n: Fint, _file: usize, _p: usize, _e: usize, _code: Fint) {}
unsafe fn aint_add(base: Aint, disp: Aint) -> isize {
    // SAFETY: references of Fortran.
    unsafe { (*base).wrapping_add(*disp) }
}
unsafe fn aint_diff(a: Aint, b: Aint) -> isize {
    // SAFETY: references of Fortran.
    unsafe { (*a).wrapping_sub(*b) }
}
unsafe fn wtime() -> f64 {
    // SAFETY: no arguments.
    unsafe { crate::env::MPI_Wtime() }
}
unsafe fn wtick() -> f64 {
    // SAFETY: no arguments.
    unsafe { crate::env::MPI_Wtick() }
}
four! {
    dup_aint(o: Fint, k: Fint, e: Aint, v: Aint, n: Aint, f: Fint, c: Fint) -> (): "MPI_COMM_DUP_FN" "mpi_comm_dup_fn" "mpi_comm_dup_fn_" "mpi_comm_dup_fn__";
    null_aint(o: Fint, k: Fint, e: Aint, v: Aint, n: Aint, f: Fint, c: Fint) -> (): "MPI_COMM_NULL_COPY_FN" "mpi_comm_null_copy_fn" "mpi_comm_null_copy_fn_" "mpi_comm_null_copy_fn__";
    null_delete(o: Fint, k: Fint, v: Aint, e: Aint, c: Fint) -> (): "MPI_COMM_NULL_DELETE_FN" "mpi_comm_null_delete_fn" "mpi_comm_null_delete_fn_" "mpi_comm_null_delete_fn__";
    dup_aint(o: Fint, k: Fint, e: Aint, v: Aint, n: Aint, f: Fint, c: Fint) -> (): "MPI_TYPE_DUP_FN" "mpi_type_dup_fn" "mpi_type_dup_fn_" "mpi_type_dup_fn__";
    null_aint(o: Fint, k: Fint, e: Aint, v: Aint, n: Aint, f: Fint, c: Fint) -> (): "MPI_TYPE_NULL_COPY_FN" "mpi_type_null_copy_fn" "mpi_type_null_copy_fn_" "mpi_type_null_copy_fn__";
    null_delete(o: Fint, k: Fint, v: Aint, e: Aint, c: Fint) -> (): "MPI_TYPE_NULL_DELETE_FN" "mpi_type_null_delete_fn" "mpi_type_null_delete_fn_" "mpi_type_null_delete_fn__";
    dup_aint(o: Fint, k: Fint, e: Aint, v: Aint, n: Aint, f: Fint, c: Fint) -> (): "MPI_WIN_DUP_FN" "mpi_win_dup_fn" "mpi_win_dup_fn_" "mpi_win_dup_fn__";
    null_aint(o: Fint, k: Fint, e: Aint, v: Aint, n: Aint, f: Fint, c: Fint) -> (): "MPI_WIN_NULL_COPY_FN" "mpi_win_null_copy_fn" "mpi_win_null_copy_fn_" "mpi_win_null_copy_fn__";
    null_delete(o: Fint, k: Fint, v: Aint, e: Aint, c: Fint) -> (): "MPI_WIN_NULL_DELETE_FN" "mpi_win_null_delete_fn" "mpi_win_null_delete_fn_" "mpi_win_null_delete_fn__";
    dup_fint(o: Fint, k: Fint, e: Fint, v: Fint, n: Fint, f: Fint, c: Fint) -> (): "MPI_DUP_FN" "mpi_dup_fn" "mpi_dup_fn_" "mpi_dup_fn__";
    null_fint(o: Fint, k: Fint, e: Fint, v: Fint, n: Fint, f: Fint, c: Fint) -> (): "MPI_NULL_COPY_FN" "mpi_null_copy_fn" "mpi_null_copy_fn_" "mpi_null_copy_fn__";
    null_delete(o: Fint, k: Fint, v: Aint, e: Aint, c: Fint) -> (): "MPI_NULL_DELETE_FN" "mpi_null_delete_fn" "mpi_null_delete_fn_" "mpi_null_delete_fn__";
    no_conversion(u: usize, t: Fint, n: Fint, f: usize, p: usize, e: usize, c: Fint) -> (): "MPI_CONVERSION_FN_NULL" "mpi_conversion_fn_null" "mpi_conversion_fn_null_" "mpi_conversion_fn_null__";
    aint_add(a: Aint, b: Aint) -> isize: "MPI_AINT_ADD_F90" "mpi_aint_add_f90" "mpi_aint_add_f90_" "mpi_aint_add_f90__";
    aint_diff(a: Aint, b: Aint) -> isize: "MPI_AINT_DIFF_F90" "mpi_aint_diff_f90" "mpi_aint_diff_f90_" "mpi_aint_diff_f90__";
    wtime() -> f64: "MPI_WTIME_F90" "mpi_wtime_f90" "mpi_wtime_f90_" "mpi_wtime_f90__";
    wtick() -> f64: "MPI_WTICK_F90" "mpi_wtick_f90" "mpi_wtick_f90_" "mpi_wtick_f90__";
}
