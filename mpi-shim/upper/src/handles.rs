//! Virtual handles: what the application sees instead of the library's objects. Upper half.
//!
//! A handle is a pointer to one of the structs in `objects.rs`. Each begins with [`Head`], whose `real` is the handle of the
//! library below, valid only in the present start: a restart writes all of them anew (`rebuild.rs`), so nobody keeps
//! a copy of one across a crossing. The predefined handles are data symbols with the library's names and sizes
//! (`predefined.rs`); an executable may hold *its own copy* of such a symbol (copy relocation), so their addresses
//! are only ever taken through [`predefined`](crate::predefined).
//!
//! What a reader would get wrong: `refs` counts holders, not handles. A datatype that was freed by the application
//! lives on as long as another type's recipe or a request holds it, and is then still rebuilt.
#![allow(unsafe_code, reason = "handles are raw pointers that the application passes in")]

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicUsize, Ordering};

use alloc::boxed::Box;

pub use crate::objects::*;

/// What a handle is of. Also the index of its Fortran table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// A communicator.
    Comm = 0,
    /// A group.
    Group,
    /// A datatype.
    Datatype,
    /// A reduction operation.
    Op,
    /// A request.
    Request,
    /// A window.
    Win,
    /// A file.
    File,
    /// An info.
    Info,
    /// An error handler.
    Errhandler,
    /// A matched message.
    Message,
}

/// Number of kinds.
pub const N_KINDS: usize = 10;

/// First bytes of every live object.
pub const LIVE: u32 = 0x5350_4f42;

/// What every object begins with.
#[repr(C)]
#[derive(Debug)]
pub struct Head {
    /// [`LIVE`], or 0 once freed.
    pub magic: AtomicU32,
    /// What it is.
    pub kind: Kind,
    /// The library's handle in this start; 0: there is none (yet).
    pub real: AtomicUsize,
    /// Holders.
    pub refs: AtomicU32,
    /// `FLAG_*`.
    pub flags: AtomicU32,
    /// Fortran handle; -1: none given yet. Of a group, Open MPI's Fortran library reads it here (offset 24).
    pub fint: AtomicI32,
    /// Index among the predefined objects, or -1.
    pub predefined: i32,
}

/// The application has freed its handle; others still hold the object.
pub const FLAG_FREED: u32 = 1;
/// All members have freed the communicator, and some have persistent requests that name it: it stays.
pub const FLAG_KEPT: u32 = 4;
/// MPI_Type_commit was called.
pub const FLAG_COMMITTED: u32 = 2;

impl Head {
    /// A head for a new object with one holder.
    pub const fn new(kind: Kind, real: usize) -> Head {
        Head {
            magic: AtomicU32::new(LIVE),
            kind,
            real: AtomicUsize::new(real),
            refs: AtomicU32::new(1),
            flags: AtomicU32::new(0),
            fint: AtomicI32::new(-1),
            predefined: -1,
        }
    }

    /// The head of a predefined object.
    pub const fn predefined(kind: Kind, index: i32, fint: i32) -> Head {
        let mut h = Head::new(kind, 0);
        h.predefined = index;
        h.fint = AtomicI32::new(fint);
        h
    }

    /// The library's handle.
    #[inline(always)]
    pub fn real(&self) -> usize {
        self.real.load(Ordering::Relaxed)
    }

    /// Writes the library's handle (creation and rebuild).
    pub fn set_real(&self, real: usize) {
        self.real.store(real, Ordering::Relaxed);
    }

    /// True if `flag` is set.
    pub fn has(&self, flag: u32) -> bool {
        self.flags.load(Ordering::Relaxed) & flag != 0
    }

    /// Sets `flag`.
    pub fn set(&self, flag: u32) {
        self.flags.fetch_or(flag, Ordering::Relaxed);
    }
}

/// The library's handle behind `handle`; a null pointer stays null.
///
/// # Safety
/// `handle` is null or points to an object that begins with a [`Head`].
#[inline(always)]
pub unsafe fn real<T>(handle: *const T) -> usize {
    if handle.is_null() {
        return 0;
    }
    // SAFETY: the caller's promise.
    unsafe { (*handle.cast::<Head>()).real() }
}

/// True if `handle` points to a live object of `kind`.
///
/// # Safety
/// `handle` is null or readable for a [`Head`].
#[inline]
pub unsafe fn is_live<T>(handle: *const T, kind: Kind) -> bool {
    if handle.is_null() {
        return false;
    }
    // SAFETY: readable by the caller's promise.
    let head = unsafe { &*handle.cast::<Head>() };
    head.magic.load(Ordering::Relaxed) == LIVE && head.kind == kind
}

/// One more holder.
///
/// # Safety
/// `handle` points to a live object.
pub unsafe fn retain<T>(handle: *mut T) {
    // SAFETY: the caller's promise.
    unsafe { (*handle.cast::<Head>()).refs.fetch_add(1, Ordering::Relaxed) };
}

/// One holder less; true if it was the last (predefined objects never end).
///
/// # Safety
/// `handle` points to a live object that the caller holds.
pub unsafe fn release<T>(handle: *mut T) -> bool {
    // SAFETY: the caller's promise.
    let head = unsafe { &*handle.cast::<Head>() };
    head.predefined < 0 && head.refs.fetch_sub(1, Ordering::Relaxed) == 1
}

/// Memory of `N` bytes that begins with a `T`: a predefined object of the library's size.
#[repr(C, align(32))]
pub union Room<T, const N: usize> {
    object: core::mem::ManuallyDrop<UnsafeCell<T>>,
    bytes: [u8; N],
}

// SAFETY: objects are written under `state::lock` or through atomics; the application orders its own calls.
unsafe impl<T, const N: usize> Sync for Room<T, N> {}

impl<T, const N: usize> core::fmt::Debug for Room<T, N> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Room").field("bytes", &N).finish()
    }
}

impl<T, const N: usize> Room<T, N> {
    /// Puts `object` in its room.
    pub const fn new(object: T) -> Self {
        assert!(size_of::<T>() <= N);
        Room { object: core::mem::ManuallyDrop::new(UnsafeCell::new(object)) }
    }
}

/// Makes a heap object and returns its handle.
pub fn make<T>(object: T) -> *mut T {
    Box::into_raw(Box::new(object))
}

/// Ends a heap object: takes it out of the Fortran table and gives its memory back.
///
/// # Safety
/// `handle` came from [`make`] and nobody holds it any more.
pub unsafe fn unmake<T>(handle: *mut T) {
    // SAFETY: live until this moment.
    let head = unsafe { &*handle.cast::<Head>() };
    head.magic.store(0, Ordering::Relaxed);
    crate::fortran::forget(head);
    // SAFETY: came from `Box::into_raw` in `make`.
    drop(unsafe { Box::from_raw(handle) });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_holder_is_told() {
        let t = make(Datatype::new(Head::new(Kind::Datatype, 7)));
        // SAFETY: `t` is live until `unmake`.
        unsafe {
            retain(t);
            assert!(!release(t));
            assert_eq!(real(t), 7);
            assert!(is_live(t, Kind::Datatype));
            assert!(!is_live(t, Kind::Comm));
            assert!(release(t));
            unmake(t);
        }
    }
}
