//! Error handlers. Below, every real object has MPI_ERRORS_RETURN; what the application chose is done here. Upper half.
//!
//! What a reader would get wrong: a call without an object (and one on a null or freed handle) raises its error on
//! MPI_COMM_WORLD, as Open MPI 4.1 does.
#![allow(unsafe_code, reason = "calls the application's functions")]

use core::ffi::{c_char, c_int, c_void};

use crate::handles::{
    Comm, ErrAction, Errhandler, File, Head, Kind, Language, Win, is_live, make, release, retain, unmake,
};
use crate::{export, predefined};

/// MPI_ERR_ARG.
pub const ERR_ARG: c_int = 13;
/// MPI_ERR_COMM.
pub const ERR_COMM: c_int = 5;
/// MPI_ERR_KEYVAL.
pub const ERR_KEYVAL: c_int = 36;
/// MPI_ERR_OTHER.
pub const ERR_OTHER: c_int = 16;
/// MPI_ERR_UNSUPPORTED_OPERATION.
pub const ERR_UNSUPPORTED: c_int = 52;

/// Raises `code` on the first object that is one.
///
/// # Safety
/// Each of `objects` is null or a handle.
#[cold]
#[inline(never)]
pub unsafe fn raise_first(objects: &[*mut Head], code: c_int, function: &str) -> c_int {
    let object = objects.iter().copied().find(|o| !o.is_null()).unwrap_or(core::ptr::null_mut());
    // SAFETY: the caller's promise.
    unsafe { raise(object, code, function) }
}

/// Raises `code` on `object` (null: MPI_COMM_WORLD): calls its handler, and returns the code if that returns.
///
/// # Safety
/// `object` is null or a handle of a communicator, window or file.
#[cold]
#[inline(never)]
pub unsafe fn raise(object: *mut Head, code: c_int, function: &str) -> c_int {
    if code == 0 {
        return 0;
    }
    // SAFETY: `object` is null or a handle.
    unsafe {
        let mut object = object;
        let live = is_live(object, Kind::Comm) || is_live(object, Kind::Win) || is_live(object, Kind::File);
        if !live || object == predefined!(ompi_mpi_comm_null as Head) {
            object = predefined!(ompi_mpi_comm_world as Head);
        }
        let place = holder(object);
        let handler = *place;
        let default = if (*object).kind == Kind::File { ErrAction::Return } else { ErrAction::Fatal };
        let action = if handler.is_null() { default } else { (*handler).action };
        if handler == predefined!(ompi_mpi_errors_throw_exceptions as Errhandler) {
            throw(handler, object, code);
        }
        match action {
            ErrAction::Return => {}
            ErrAction::Fatal => fatal(object, code, function),
            ErrAction::Call => call(handler, object, code),
        }
    }
    code
}

unsafe fn holder(object: *mut Head) -> *mut *mut Errhandler {
    // SAFETY: the kind says what the object is.
    unsafe {
        match (*object).kind {
            Kind::Win => &raw mut (*object.cast::<Win>()).errhandler,
            Kind::File => &raw mut (*object.cast::<File>()).errhandler,
            _ => &raw mut (*object.cast::<Comm>()).errhandler,
        }
    }
}

/// The predefined handler of the C++ bindings: their library has written its functions into it.
unsafe fn throw(handler: *mut Errhandler, object: *mut Head, code: c_int) {
    type C = unsafe extern "C-unwind" fn(*mut *mut Head, *mut c_int, ...);
    let (mut object, mut code) = (object, code);
    // SAFETY: the C++ library wrote a function for each kind of object.
    unsafe {
        let at = (*handler).vendor[match (*object).kind {
            Kind::File => 1,
            Kind::Win => 2,
            _ => 0,
        }];
        if at != 0 {
            let f: C = core::mem::transmute(core::ptr::with_exposed_provenance::<c_void>(at));
            f(&raw mut object, &raw mut code);
        }
    }
}

unsafe fn call(handler: *mut Errhandler, object: *mut Head, code: c_int) {
    type C = unsafe extern "C" fn(*mut *mut Head, *mut c_int, ...);
    type Fortran = unsafe extern "C" fn(*mut c_int, *mut c_int);
    type Cxx = unsafe extern "C" fn(*mut *mut Head, *mut c_int, *const c_char, *mut c_void);
    let (mut object, mut code) = (object, code);
    // SAFETY: the application gave the function for this language and kind of object.
    unsafe {
        let f = core::ptr::with_exposed_provenance_mut::<c_void>((*handler).function);
        match (*handler).language {
            Language::C => {
                let f: C = core::mem::transmute(f);
                f(&raw mut object, &raw mut code, core::ptr::null::<c_char>());
            }
            Language::Fortran => {
                let f: Fortran = core::mem::transmute(f);
                let mut fint = crate::fortran::index(object);
                f(&raw mut fint, &raw mut code);
            }
            Language::Cxx => {
                // Written by Open MPI's C++ library after `ompi_errhandler_create`.
                let at = (*handler).vendor[4];
                if at == 0 {
                    return;
                }
                let g: Cxx = core::mem::transmute(core::ptr::with_exposed_provenance::<c_void>(at));
                g(&raw mut object, &raw mut code, core::ptr::null(), f);
            }
        }
    }
}

unsafe fn fatal(object: *mut Head, code: c_int, function: &str) {
    let mut text = [0u8; 256];
    let mut len: c_int = 0;
    // The library writes at most 256 bytes (MPI_MAX_ERROR_STRING).
    crate::down!(MPI_Error_string(c: c_int = code, t: *mut u8 = text.as_mut_ptr(), l: *mut c_int = &raw mut len) -> c_int);
    let len = usize::try_from(len).unwrap_or(0).min(text.len());
    let what = String::from_utf8_lossy(&text[..len]).into_owned();
    // SAFETY: `object` is live.
    let on = unsafe {
        match (*object).kind {
            Kind::Win => String::from("window"),
            Kind::File => String::from("file"),
            _ => String::from_utf8_lossy(&(*object.cast::<Comm>()).name).into_owned(),
        }
    };
    let rank = crate::state::lock().rank;
    crate::env::print(&std::format!(
        "*** An error occurred in {function}\n*** reported by rank {rank}\n*** on communicator {on}\n*** {what}\n\
         *** MPI_ERRORS_ARE_FATAL (processes in this communicator will now abort)\n"
    ));
    // SAFETY: aborting needs no more than a communicator.
    unsafe { crate::env::MPI_Abort(predefined!(ompi_mpi_comm_world as Comm), code) };
}

/// Makes a handler for objects of `kind`.
pub fn create(kind: Kind, language: Language, function: usize, interceptor: usize) -> *mut Errhandler {
    make(Errhandler {
        head: Head::new(Kind::Errhandler, 0),
        action: ErrAction::Call,
        object: kind,
        language,
        function,
        interceptor,
        spare: [0; 3],
        vendor: [0; 5],
    })
}

/// One holder less.
///
/// # Safety
/// `handler` is null or held by the caller.
pub unsafe fn put(handler: *mut Errhandler) {
    // SAFETY: the caller's promise.
    unsafe {
        if !handler.is_null() && release(handler) {
            unmake(handler);
        }
    }
}

unsafe fn set(object: *mut Head, handler: *mut Errhandler) -> c_int {
    // SAFETY: the exported functions check both.
    unsafe {
        if !is_live(handler, Kind::Errhandler)
            || handler == predefined!(ompi_mpi_errhandler_null as Errhandler)
        {
            return raise(object, ERR_ARG, "MPI_Comm_set_errhandler");
        }
        retain(handler);
        let place = holder(object);
        let old = core::mem::replace(&mut *place, handler);
        put(old);
    }
    0
}

unsafe fn get(object: *mut Head, handler: *mut *mut Errhandler) -> c_int {
    // SAFETY: the exported functions check the object.
    unsafe {
        let mut h = *holder(object);
        if h.is_null() {
            h = if (*object).kind == Kind::File {
                predefined!(ompi_mpi_errors_return as Errhandler)
            } else {
                predefined!(ompi_mpi_errors_are_fatal as Errhandler)
            };
        }
        retain(h);
        *handler = h;
    }
    0
}

// MPI_FILE_NULL has an error handler: that of files which are opened later (MPI 3.1, 13.7).
macro_rules! is_null {
    (none $o:ident) => {
        false
    };
    ($null:ident $o:ident) => {
        $o.cast::<Head>() == predefined!($null as Head)
    };
}

macro_rules! family {
    ($kind:ident $t:ty, $null:ident: $create:ident $set:ident $get:ident $call:ident, $err:expr) => {
        export! {
            fn $create(function: *mut c_void, handler: *mut *mut Errhandler) -> c_int {
                *handler = create(Kind::$kind, Language::C, function.expose_provenance(), 0);
                0
            }
            fn $set(object: *mut $t, handler: *mut Errhandler) -> c_int {
                if !is_live(object, Kind::$kind) || is_null!($null object) {
                    return raise(core::ptr::null_mut(), $err, stringify!($set));
                }
                set(object.cast(), handler)
            }
            fn $get(object: *mut $t, handler: *mut *mut Errhandler) -> c_int {
                if !is_live(object, Kind::$kind) || is_null!($null object) {
                    return raise(core::ptr::null_mut(), $err, stringify!($get));
                }
                get(object.cast(), handler)
            }
            fn $call(object: *mut $t, code: c_int) -> c_int {
                if !is_live(object, Kind::$kind) || is_null!($null object) {
                    return raise(core::ptr::null_mut(), $err, stringify!($call));
                }
                raise(object.cast(), code, stringify!($call));
                0
            }
        }
    };
}
family!(Comm Comm, ompi_mpi_comm_null: MPI_Comm_create_errhandler MPI_Comm_set_errhandler MPI_Comm_get_errhandler MPI_Comm_call_errhandler, ERR_COMM);
family!(Win Win, ompi_mpi_win_null: MPI_Win_create_errhandler MPI_Win_set_errhandler MPI_Win_get_errhandler MPI_Win_call_errhandler, 53);
family!(File File, none: MPI_File_create_errhandler MPI_File_set_errhandler MPI_File_get_errhandler MPI_File_call_errhandler, 30);

export! {
    fn MPI_Errhandler_create(function: *mut c_void, handler: *mut *mut Errhandler) -> c_int {
        MPI_Comm_create_errhandler(function, handler)
    }
    fn MPI_Errhandler_set(comm: *mut Comm, handler: *mut Errhandler) -> c_int {
        MPI_Comm_set_errhandler(comm, handler)
    }
    fn MPI_Errhandler_get(comm: *mut Comm, handler: *mut *mut Errhandler) -> c_int {
        MPI_Comm_get_errhandler(comm, handler)
    }
    fn MPI_Errhandler_free(handler: *mut *mut Errhandler) -> c_int {
        let h = *handler;
        if !is_live(h, Kind::Errhandler) || h == predefined!(ompi_mpi_errhandler_null as Errhandler) {
            return raise(core::ptr::null_mut(), ERR_ARG, "MPI_Errhandler_free");
        }
        put(h);
        *handler = predefined!(ompi_mpi_errhandler_null as Errhandler);
        0
    }
}
