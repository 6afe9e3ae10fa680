//! Init, Finalize, Abort and what else belongs to the process. Upper half.
//!
//! What a reader would get wrong: the real MPI_Init happens inside the application's own, at the level that it asks
//! for; asking the library for more threads than that costs more than all of our crossings. At a restart the same
//! call is made again by `rebuild.rs`, not by the application.
#![allow(unsafe_code, reason = "exports functions")]

use core::ffi::{c_char, c_int, c_void};
use core::sync::atomic::Ordering::{Acquire, Relaxed};

use stillpoint_abi::half::goodbye;
use stillpoint_sys::{arch, half, upper};

use crate::errhandler::{ERR_OTHER, raise};
use crate::handles::{Comm, Info, real};
use crate::state::{Life, lock};
use crate::{cross, down, export, predefined};

/// Writes `text` to standard error, without a lock of the application's stdio.
pub fn print(text: &str) {
    // SAFETY: the bytes are ours for the length of the call.
    unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
}

/// Ends the process: the front cannot go on.
pub fn die(why: &str) -> ! {
    print("stillpoint: ");
    print(why);
    print("\n");
    std::process::abort()
}

/// Has the back loaded, once a start, and learns where its predefined objects are. What relies on it stays inside the
/// front until it has called: a restart of an image without a live library loads none.
pub fn load() {
    crate::front::register();
    let h = half();
    if h.back_loaded.load(Acquire) == 0 {
        // SAFETY: the lower half stores a function of this type there before the upper half starts.
        let f: extern "C" fn() -> i32 = unsafe {
            core::mem::transmute(core::ptr::with_exposed_provenance::<()>(h.load_back.load(Relaxed)))
        };
        let code = {
            let _down = cross::enter();
            f()
        };
        if code != 0 {
            die("the MPI library of this site could not be loaded");
        }
    }
    // SAFETY: the predefined object lives for ever.
    if unsafe { real(predefined!(ompi_mpi_comm_world as Comm)) }
        != h.back[stillpoint_mpi_table::predefined_slot(0)].load(Relaxed)
    {
        crate::predefined::connect();
    }
}

/// Says goodbye to the node agent.
pub fn goodbye(kind: u32, status: i32) {
    let f = half().goodbye.load(Relaxed);
    if f != 0 {
        // SAFETY: the lower half stores a function of this type there.
        let f: extern "C" fn(u32, i32) =
            unsafe { core::mem::transmute(core::ptr::with_exposed_provenance::<()>(f)) };
        let _down = cross::enter();
        f(kind, status);
    }
}

/// The real initialisation, at the first start and at a restart.
pub fn start(required: c_int) -> (c_int, c_int) {
    load();
    let mut provided = 0;
    let none = core::ptr::null_mut::<c_void>();
    let code = down!(MPI_Init_thread(
        argc: *mut c_void = none,
        argv: *mut c_void = none,
        level: c_int = required,
        got: *mut c_int = &raw mut provided,
    ) -> c_int);
    if code == 0 {
        // Children inherit it, and so every real object returns its errors to us.
        for comm in [predefined!(ompi_mpi_comm_world as Comm), predefined!(ompi_mpi_comm_self as Comm)] {
            // SAFETY: predefined objects live for ever.
            let (c, e) = unsafe {
                (real(comm), real(predefined!(ompi_mpi_errors_return as crate::handles::Errhandler)))
            };
            down!(MPI_Comm_set_errhandler(c: usize = c, e: usize = e) -> c_int);
        }
        // SAFETY: as above.
        let world = unsafe { real(predefined!(ompi_mpi_comm_world as Comm)) };
        let mut at = 0usize;
        let code = down!(MPI_Comm_dup(c: usize = world, n: *mut usize = &raw mut at) -> c_int);
        if code != 0 {
            return (code, provided);
        }
        // SAFETY: lives for ever.
        unsafe { (*crate::comm::hidden()).head.set_real(at) };
    }
    (code, provided)
}

unsafe fn init(required: c_int, function: &str) -> (c_int, c_int) {
    if lock().life != Life::Before {
        // SAFETY: the world is live, or was.
        return (unsafe { raise(core::ptr::null_mut(), ERR_OTHER, function) }, 0);
    }
    // MPI_Init waits for all ranks: a collective of theirs, before there is a communicator to count it.
    let all: Vec<u32> = (0..half().size.load(Relaxed)).collect();
    let _clock = (all.len() > 1).then(|| crate::clock::Within::at(crate::clocks::of_group(&all)));
    let _inside = cross::Inside::enter();
    crate::tool::ready();
    let (code, provided) = start(required);
    if code != 0 {
        return (code, provided);
    }
    crate::comm::first();
    crate::types::first();
    crate::attr::first();
    let mut s = lock();
    s.required = required;
    s.provided = provided;
    s.main_fs = arch::thread_self();
    s.life = Life::Live;
    set_state(2);
    upper().mpi_level.store(u32::try_from(provided).unwrap_or(0), Relaxed);
    upper().mpi_state.store(1, Relaxed);
    crate::front::live(true);
    (0, provided)
}

fn set_state(v: c_int) {
    crate::fortran::ompi_mpi_state.store(v, Relaxed);
}

export! {
    fn MPI_Init(_argc: *mut c_int, _argv: *mut c_void) -> c_int {
        init(0, "MPI_Init").0
    }
    fn MPI_Init_thread(_argc: *mut c_int, _argv: *mut c_void, required: c_int, provided: *mut c_int) -> c_int {
        let (code, got) = init(required, "MPI_Init_thread");
        if code == 0 && !provided.is_null() {
            *provided = got;
        }
        code
    }
    fn MPI_Initialized(flag: *mut c_int) -> c_int {
        *flag = c_int::from(lock().life != Life::Before);
        0
    }
    fn MPI_Finalized(flag: *mut c_int) -> c_int {
        *flag = c_int::from(lock().life == Life::Finalized);
        0
    }
    fn MPI_Finalize() -> c_int {
        let life = lock().life;
        if life != Life::Live {
            print("*** MPI_Finalize was called before MPI_Init or after MPI_Finalize\n");
            std::process::abort();
        }
        crate::attr::delete_all(predefined!(ompi_mpi_comm_self as Comm).cast());
        let code = crate::collective::last_barrier();
        if code != 0 {
            return raise(core::ptr::null_mut(), code, "MPI_Finalize");
        }
        let code = {
            // All have arrived; none is stopped before it is through.
            let _within = crate::clock::Within::enter(predefined!(ompi_mpi_comm_world as Comm));
            let _inside = cross::Inside::enter();
            let code = down!(MPI_Finalize() -> c_int);
            lock().life = Life::Finalized;
            set_state(5);
            upper().mpi_state.store(2, Relaxed);
            crate::front::live(false);
            code
        };
        goodbye(goodbye::FINALIZED, code);
        code
    }
    fn MPI_Abort(_comm: *mut Comm, code: c_int) -> c_int {
        goodbye(goodbye::ABORT, code);
        let live = lock().life == Life::Live;
        if live {
            let world = real(predefined!(ompi_mpi_comm_world as Comm));
            down!(MPI_Abort(comm: usize = world, code: c_int = code) -> c_int);
        }
        libc::_exit(code)
    }
    fn MPI_Query_thread(provided: *mut c_int) -> c_int {
        *provided = lock().provided;
        0
    }
    fn MPI_Is_thread_main(flag: *mut c_int) -> c_int {
        *flag = c_int::from(lock().main_fs == arch::thread_self());
        0
    }
    fn MPI_Wtime() -> f64 {
        let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut t);
        t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
    }
    fn MPI_Wtick() -> f64 {
        1e-9
    }
    fn MPI_Pcontrol(_level: c_int) -> c_int {
        0
    }
    fn MPI_Get_version(version: *mut c_int, subversion: *mut c_int) -> c_int {
        *version = 3;
        *subversion = 1;
        0
    }
    fn MPI_Get_library_version(text: *mut c_char, len: *mut c_int) -> c_int {
        let inside = cross::Inside::enter();
        load();
        let r = down!(MPI_Get_library_version(t: *mut c_char = text, l: *mut c_int = len) -> c_int);
        drop(inside);
        r
    }
    fn MPI_Get_processor_name(name: *mut c_char, len: *mut c_int) -> c_int {
        down!(MPI_Get_processor_name(n: *mut c_char = name, l: *mut c_int = len) -> c_int)
    }
    fn MPI_Alloc_mem(size: isize, _info: *mut Info, base: *mut *mut c_void) -> c_int {
        // Memory of the application lives upstairs, whatever the library could offer.
        let p = libc::malloc(usize::try_from(size).unwrap_or(0).max(1));
        if p.is_null() {
            return raise(core::ptr::null_mut(), 39, "MPI_Alloc_mem");
        }
        *base = p;
        0
    }
    fn MPI_Free_mem(base: *mut c_void) -> c_int {
        libc::free(base);
        0
    }
    fn MPI_Error_string(code: c_int, text: *mut c_char, len: *mut c_int) -> c_int {
        let inside = cross::Inside::enter();
        load();
        let r = down!(MPI_Error_string(c: c_int = code, t: *mut c_char = text, l: *mut c_int = len) -> c_int);
        drop(inside);
        raise(core::ptr::null_mut(), r, "MPI_Error_string")
    }
    fn MPI_Error_class(code: c_int, class: *mut c_int) -> c_int {
        let inside = cross::Inside::enter();
        load();
        let r = down!(MPI_Error_class(c: c_int = code, k: *mut c_int = class) -> c_int);
        drop(inside);
        raise(core::ptr::null_mut(), r, "MPI_Error_class")
    }
    fn MPI_Add_error_class(class: *mut c_int) -> c_int {
        let r = down!(MPI_Add_error_class(k: *mut c_int = class) -> c_int);
        if r == 0 {
            crate::attr::last_used_code(*class);
            lock().errors.push((0, *class, Vec::new()));
        }
        raise(core::ptr::null_mut(), r, "MPI_Add_error_class")
    }
    fn MPI_Add_error_code(class: c_int, code: *mut c_int) -> c_int {
        let r = down!(MPI_Add_error_code(k: c_int = class, c: *mut c_int = code) -> c_int);
        if r == 0 {
            crate::attr::last_used_code(*code);
            lock().errors.push((1, class, Vec::new()));
        }
        raise(core::ptr::null_mut(), r, "MPI_Add_error_code")
    }
    fn MPI_Add_error_string(code: c_int, text: *const c_char) -> c_int {
        let r = down!(MPI_Add_error_string(c: c_int = code, t: *const c_char = text) -> c_int);
        if r == 0 {
            let bytes = core::ffi::CStr::from_ptr(text).to_bytes_with_nul().to_vec();
            lock().errors.push((2, code, bytes));
        }
        raise(core::ptr::null_mut(), r, "MPI_Add_error_string")
    }
}
