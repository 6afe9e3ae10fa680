//! The back: the site's MPI library, loaded here, and its functions in the slots that the front calls. *Lower half*;
//! [`load`] runs on the lower thread pointer of the first upper thread that needs MPI.
//!
//! What a reader would get wrong: the library starts threads of its own in MPI_Init. They inherit the caller's signal
//! mask, so everything is blocked around it: no signal of the application may be taken on a thread that has no upper
//! half. And an operation's callback arrives here, on the lower thread pointer, and goes up in [`up`].
#![allow(unsafe_code, reason = "loads a library and calls by address")]

use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_void};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use stillpoint_abi::half::ThreadRec;
use stillpoint_mpi_table::{
    Fn, Helper, MAX_OPS, NAMES, PREDEFINED, PREDEFINED_SYMBOLS, PROFILING_NAMES, helper_slot, predefined_slot,
};
use stillpoint_sys::{arch, half, upper};

const LIBRARY: &str = "libmpi.so.40";

pub(crate) fn last_error() -> String {
    // SAFETY: dlerror returns null or a terminated string that lives until the next call on this thread.
    unsafe {
        let e = libc::dlerror();
        if e.is_null() { "no reason given".into() } else { CStr::from_ptr(e).to_string_lossy().into_owned() }
    }
}

/// Where to look for the library: STILLPOINT_LIBMPI, the application's own search path, the system's.
fn candidates() -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> =
        std::env::var_os("STILLPOINT_LIBMPI").into_iter().map(PathBuf::from).collect();
    let exe = Path::new(OsStr::from_bytes(upper().exe()));
    let origin = exe.parent().unwrap_or(Path::new("/"));
    let file = std::fs::read(exe).unwrap_or_default();
    if let Ok(e) = stillpoint_loader::elf::parse(&file) {
        let found = stillpoint_loader::elf::run_path(&file, &e, origin).into_iter().map(|d| d.join(LIBRARY));
        all.extend(found.filter(|p| p.is_file()));
    }
    all.push(PathBuf::from(LIBRARY));
    all
}

fn open() -> Result<*mut c_void, String> {
    let mut why = String::new();
    for p in candidates() {
        let Ok(name) = CString::new(p.clone().into_os_string().into_vec()) else { continue };
        // SAFETY: loads a library; its constructors run on this thread, whose thread pointer is the lower half's.
        let lib = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
        if !lib.is_null() {
            return Ok(lib);
        }
        why = format!("{}: {}", p.display(), last_error());
    }
    Err(why)
}

fn find(lib: *mut c_void, name: &CStr) -> usize {
    // SAFETY: a handle of dlopen and a terminated name.
    unsafe { libc::dlsym(lib, name.as_ptr()) }.expose_provenance()
}

/// All signals are blocked on the calling thread while it lives.
pub(crate) struct Blocked(u64);

impl Blocked {
    pub(crate) fn all() -> Blocked {
        Blocked(crate::launch::block_all_signals())
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        crate::launch::swap_mask(self.0);
    }
}

/// Loads the library and fills the slots. 0 is success.
pub(crate) extern "C" fn load() -> i32 {
    let blocked = Blocked::all();
    let r = fill();
    drop(blocked);
    match r {
        Ok(()) => 0,
        Err(e) => {
            crate::control::log(&format!(
                "the MPI library of this site cannot be used: {e}; set STILLPOINT_LIBMPI to its path if it is elsewhere"
            ));
            1
        }
    }
}

fn fill() -> Result<(), String> {
    let h = half();
    if h.back_loaded.load(Acquire) != 0 {
        return Ok(());
    }
    let lib = open()?;
    for (i, name) in PROFILING_NAMES.iter().enumerate() {
        let mut at = find(lib, name);
        if at == 0 {
            // A few functions have no profiling twin.
            at = CString::new(NAMES[i]).map_or(0, |n| find(lib, &n));
        }
        h.back[i].store(if at == 0 { (absent as *const ()).expose_provenance() } else { at }, Relaxed);
    }
    for (i, name) in PREDEFINED_SYMBOLS.iter().enumerate() {
        let at = find(lib, name);
        if at == 0 {
            return Err(format!("it has no {}; this front is made for Open MPI 4.1", PREDEFINED[i].0));
        }
        h.back[predefined_slot(i)].store(at, Relaxed);
    }
    crate::wait::install(h);
    INIT_THREAD.store(h.back[Fn::MPI_Init_thread as usize].load(Relaxed), Relaxed);
    h.back[Fn::MPI_Init_thread as usize].store((init_thread as *const ()).expose_provenance(), Relaxed);
    h.back[helper_slot(Helper::OpTrampoline)]
        .store((op_trampoline as *const ()).expose_provenance(), Relaxed);
    h.back_loaded.store(1, Release);
    Ok(())
}

/// What stands in the slot of a function that this version of the library does not have.
extern "C" fn absent() -> c_int {
    // MPI_ERR_UNSUPPORTED_OPERATION of Open MPI 4.1.
    52
}

static INIT_THREAD: AtomicUsize = AtomicUsize::new(0);

/// MPI_Init_thread with all signals blocked, so that the library's own threads never take one.
unsafe extern "C" fn init_thread(
    argc: *mut c_int,
    argv: *mut *mut *mut c_char,
    required: c_int,
    provided: *mut c_int,
) -> c_int {
    type F = unsafe extern "C" fn(*mut c_int, *mut *mut *mut c_char, c_int, *mut c_int) -> c_int;
    let _blocked = Blocked::all();
    // SAFETY: the library's function of this prototype, called on the lower thread pointer.
    unsafe {
        let f: F = std::mem::transmute(INIT_THREAD.load(Relaxed));
        f(argc, argv, required, provided)
    }
}

/// Runs `f` on the upper thread pointer of the calling thread, on top of the library's frames.
fn up(f: impl FnOnce()) {
    let slot = crate::tcb::slot();
    let rec = std::ptr::with_exposed_provenance::<ThreadRec>(slot);
    if rec.is_null() {
        crate::control::log(
            "a thread of the MPI library calls a function of the application; it has no place to run",
        );
        std::process::abort();
    }
    // SAFETY: records lie in the upper page for ever; the thread pointer is put back before the library goes on.
    unsafe {
        let rec = &*rec;
        let low = arch::fs();
        rec.above_lower.fetch_add(1, SeqCst);
        arch::set_fs(rec.fs.load(Relaxed));
        f();
        arch::set_fs(low);
        rec.above_lower.fetch_sub(1, SeqCst);
    }
}

type UserFunction = extern "C" fn(*mut c_void, *mut c_void, *mut c_int, *mut usize);
type Dispatch = extern "C" fn(u32, *mut c_void, *mut c_void, *const c_int, usize);

/// The front's dispatcher. The same for all slots and for the whole start.
static DISPATCH: AtomicUsize = AtomicUsize::new(0);

extern "C" fn operation<const SLOT: u32>(
    input: *mut c_void,
    inout: *mut c_void,
    len: *mut c_int,
    datatype: *mut usize,
) {
    let at = DISPATCH.load(Relaxed);
    // SAFETY: the front gave this address for this prototype; the library passes what the standard says.
    let (f, t) = unsafe { (std::mem::transmute::<usize, Dispatch>(at), *datatype) };
    up(|| f(SLOT, input, inout, len, t));
}

macro_rules! sixteen {
    ($($high:literal)*) => { [$(
        operation::<{ $high * 16 }>, operation::<{ $high * 16 + 1 }>, operation::<{ $high * 16 + 2 }>,
        operation::<{ $high * 16 + 3 }>, operation::<{ $high * 16 + 4 }>, operation::<{ $high * 16 + 5 }>,
        operation::<{ $high * 16 + 6 }>, operation::<{ $high * 16 + 7 }>, operation::<{ $high * 16 + 8 }>,
        operation::<{ $high * 16 + 9 }>, operation::<{ $high * 16 + 10 }>, operation::<{ $high * 16 + 11 }>,
        operation::<{ $high * 16 + 12 }>, operation::<{ $high * 16 + 13 }>, operation::<{ $high * 16 + 14 }>,
        operation::<{ $high * 16 + 15 }>,
    )*] };
}
static OPERATIONS: [UserFunction; MAX_OPS as usize] = sixteen!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);

/// The MPI_User_function for `slot`; 0 if there is none.
extern "C" fn op_trampoline(slot: u32, dispatch: usize) -> usize {
    DISPATCH.store(dispatch, Relaxed);
    OPERATIONS.get(slot as usize).map_or(0, |f| (*f as *const ()).expose_provenance())
}
