//! Which descriptors are the lower half's. *Lower half*.
//!
//! This program exports the calls below, so that the MPI library and everything it loads call these instead of libc's
//! (the program comes first in the dynamic linker's search order). Each makes the system call and notes the descriptor
//! in `Half::lower_fds`; the image leaves the noted ones out.
//!
//! What a reader would get wrong: a note can outlive its descriptor, because libc closes some inside (fclose, closedir).
//! So each note carries the file's identity, and [`prune`] drops those that do not hold any more. A descriptor that was
//! opened inside libc is not noted and counts as the application's: then it is saved, or refused by name, never lost.
#![allow(unsafe_code, reason = "takes the place of libc's functions")]

use std::ffi::{c_char, c_int, c_void};
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use stillpoint_capture::gather;
use stillpoint_sys::{half, raw, sys};

const ROOM: usize = 128 * 64;

/// Identity (device and inode, mixed) of the noted descriptors.
static IDENTITY: [AtomicU64; ROOM] = [const { AtomicU64::new(0) }; ROOM];

/// Set once the page is mapped: before that nothing can be noted.
static READY: AtomicU64 = AtomicU64::new(0);

/// The lower half's page is there.
pub(crate) fn ready() {
    READY.store(1, SeqCst);
}

fn identity(n: c_int) -> u64 {
    let mut st = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: fstat (5) fills a struct stat, or fails.
    if unsafe { sys!(5, n, st.as_mut_ptr()) } != 0 {
        return 0;
    }
    // SAFETY: filled.
    let st = unsafe { st.assume_init() };
    (st.st_dev.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ st.st_ino.rotate_left(17) ^ u64::from(st.st_mode)) | 1
}

fn set(n: c_int, to: bool) {
    let Ok(k) = usize::try_from(n) else { return };
    // The numbers of a thread with a table of its own mean nothing to the application.
    if k >= ROOM || READY.load(Relaxed) == 0 || gather::is_apart() {
        return;
    }
    let w = &half().lower_fds[k / 64];
    if to {
        IDENTITY[k].store(identity(n), Relaxed);
        w.fetch_or(1 << (k % 64), SeqCst);
    } else {
        w.fetch_and(!(1 << (k % 64)), SeqCst);
    }
}

/// Notes a descriptor of the lower half.
fn note(n: c_int) {
    set(n, true);
}

/// Drops the notes of descriptors that have become something else, and notes what a driver made. Before a checkpoint looks
/// at descriptors.
pub(crate) fn prune() {
    stale();
    events();
}

/// The verbs' channels of events: made by the driver, within an ioctl or a write to the device (`ib_uverbs`). They are the lower
/// half's where the application has no such device open.
fn events() {
    let made = gather::apart(|| {
        let open = gather::unnoted();
        let own_device = open.iter().any(|(_, path)| path.starts_with("/dev/infiniband"));
        let event = |path: &Path| !own_device && path == Path::new("anon_inode:[infinibandevent]");
        open.into_iter().filter(|(_, path)| event(path)).map(|(n, _)| n).collect::<Vec<_>>()
    });
    made.into_iter().flatten().for_each(note);
}

fn stale() {
    for (i, w) in half().lower_fds.iter().enumerate() {
        let mut bits = w.load(Relaxed);
        while bits != 0 {
            let k = i * 64 + bits.trailing_zeros() as usize;
            bits &= bits - 1;
            let n = c_int::try_from(k).unwrap_or(0);
            if identity(n) != IDENTITY[k].load(Relaxed) {
                set(n, false);
            }
        }
    }
}

/// A system call's result as libc gives it.
fn result(r: isize) -> c_int {
    if r < 0 {
        // SAFETY: this thread's errno: the lower half's, as these functions run on its thread pointer.
        unsafe { *libc::__errno_location() = i32::try_from(-r).unwrap_or(libc::EIO) };
        return -1;
    }
    c_int::try_from(r).unwrap_or(-1)
}

fn noted(r: isize) -> c_int {
    let n = result(r);
    if n >= 0 {
        note(n);
    }
    n
}

macro_rules! instead {
    ($($name:ident($($a:ident: $t:ty),*) = $nr:literal($($v:expr),*);)*) => { $(
        #[doc = concat!("libc's ", stringify!($name), ", with a note.")]
        ///
        /// # Safety
        /// As libc's.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($($a: $t),*) -> c_int {
            // SAFETY: the caller's arguments, as the kernel wants them.
            noted(unsafe { sys!($nr, $($v),*) })
        }
    )* };
}
const AT_FDCWD: isize = -100;
instead! {
    socket(domain: c_int, kind: c_int, protocol: c_int) = 41(domain, kind, protocol);
    accept(s: c_int, addr: *mut c_void, len: *mut c_void) = 43(s, addr, len);
    accept4(s: c_int, addr: *mut c_void, len: *mut c_void, flags: c_int) = 288(s, addr, len, flags);
    eventfd(init: u32, flags: c_int) = 290(init, flags);
    epoll_create(_size: c_int) = 291(0);
    epoll_create1(flags: c_int) = 291(flags);
    timerfd_create(clock: c_int, flags: c_int) = 283(clock, flags);
    inotify_init() = 294(0);
    inotify_init1(flags: c_int) = 294(flags);
    memfd_create(name: *const c_char, flags: u32) = 319(name, flags);
    open(path: *const c_char, flags: c_int, mode: u32) = 257(AT_FDCWD, path, flags, mode);
    open64(path: *const c_char, flags: c_int, mode: u32) = 257(AT_FDCWD, path, flags, mode);
    openat(at: c_int, path: *const c_char, flags: c_int, mode: u32) = 257(at, path, flags, mode);
    openat64(at: c_int, path: *const c_char, flags: c_int, mode: u32) = 257(at, path, flags, mode);
    dup(n: c_int) = 32(n);
    dup2(n: c_int, to: c_int) = 33(n, to);
    dup3(n: c_int, to: c_int, flags: c_int) = 292(n, to, flags);
}

macro_rules! pairs {
    ($two:ident: $($name:ident($($a:ident: $t:ty),*) = $nr:literal($($v:expr),*);)*) => { $(
        #[doc = concat!("libc's ", stringify!($name), ", with a note.")]
        ///
        /// # Safety
        /// As libc's.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($($a: $t),*) -> c_int {
            // SAFETY: the caller's arguments, as the kernel wants them; both descriptors are written on success.
            unsafe {
                let r = result(sys!($nr, $($v),*));
                if r == 0 {
                    note(*$two);
                    note(*$two.add(1));
                }
                r
            }
        }
    )* };
}
pairs! {
    two:
    pipe(two: *mut c_int) = 293(two, 0);
    pipe2(two: *mut c_int, flags: c_int) = 293(two, flags);
    socketpair(domain: c_int, kind: c_int, protocol: c_int, two: *mut c_int) = 53(domain, kind, protocol, two);
}

/// libc's close, which ends the note.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn close(n: c_int) -> c_int {
    set(n, false);
    // SAFETY: closes the caller's descriptor.
    result(unsafe { sys!(raw::nr::CLOSE, n) })
}

/// libc's fcntl, with a note for what F_DUPFD makes. The third argument is a word for every command that the kernel knows.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn fcntl(n: c_int, command: c_int, argument: usize) -> c_int {
    // SAFETY: the caller's arguments.
    let r = unsafe { sys!(raw::nr::FCNTL, n, command, argument) };
    if matches!(command, libc::F_DUPFD | libc::F_DUPFD_CLOEXEC) { noted(r) } else { result(r) }
}

/// The same under its other name.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn fcntl64(n: c_int, command: c_int, argument: usize) -> c_int {
    // SAFETY: handed on.
    unsafe { fcntl(n, command, argument) }
}

/// libc's shm_open (which opens inside libc), with a note: a file of that name in /dev/shm (shm_open(3)).
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn shm_open(name: *const c_char, flags: c_int, mode: u32) -> c_int {
    let mut path = [0u8; 280];
    path[..9].copy_from_slice(b"/dev/shm/");
    // SAFETY: the caller passes a terminated name.
    let name = unsafe { std::ffi::CStr::from_ptr(name) }.to_bytes();
    let skipped = name.iter().take_while(|c| **c == b'/').count();
    let name = &name[skipped..];
    if name.is_empty() || name.len() > 255 || name.contains(&b'/') {
        return result(raw::errno::EINVAL);
    }
    path[9..9 + name.len()].copy_from_slice(name);
    // SAFETY: a terminated path.
    noted(unsafe { sys!(257, AT_FDCWD, path.as_ptr(), flags | libc::O_NOFOLLOW | libc::O_CLOEXEC, mode) })
}
