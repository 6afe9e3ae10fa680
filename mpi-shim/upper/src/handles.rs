//! Virtual handles: what the application sees instead of the library's objects. Upper half.
//!
//! A handle is a pointer to one of the structs here. Each begins with [`Head`], whose `real` is the handle of the
//! library below, valid only in the present start: a restart writes all of them anew (`rebuild.rs`), so nobody keeps
//! a copy of one across a crossing. The predefined handles are data symbols with the library's names and sizes
//! (`predefined.rs`); an executable may hold *its own copy* of such a symbol (copy relocation), so their addresses
//! are only ever taken through [`predefined`](crate::predefined).
//!
//! What a reader would get wrong: `refs` counts holders, not handles. A datatype that was freed by the application
//! lives on as long as another type's recipe or a request holds it, and is then still rebuilt.
#![allow(unsafe_code, reason = "handles are raw pointers that the application passes in")]

use core::cell::UnsafeCell;
use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicUsize, Ordering};

use alloc::{boxed::Box, vec::Vec};

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
    /// Fortran handle; -1: none given yet.
    pub fint: AtomicI32,
    /// `FLAG_*`.
    pub flags: AtomicU32,
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
            fint: AtomicI32::new(-1),
            flags: AtomicU32::new(0),
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

/// An attribute: key value (index into the keyval table), value, and how it was set.
#[derive(Clone, Copy, Debug)]
pub struct Attr {
    /// The key.
    pub keyval: c_int,
    /// What was set, as it was given: a pointer, a Fortran integer or an address integer.
    pub value: usize,
    /// How it was set.
    pub form: AttrForm,
}

/// In which language an attribute was set: the standard defines how the others see it (MPI 3.1, 17.2.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttrForm {
    /// From C: a pointer.
    C,
    /// From Fortran with an INTEGER.
    Fint,
    /// From Fortran with an address integer.
    Aint,
}

/// A topology that hangs on a communicator.
#[derive(Clone, Debug)]
pub enum Topology {
    /// None.
    None,
    /// MPI_Cart_create.
    Cart {
        /// Extent of each dimension.
        dims: Vec<c_int>,
        /// Non-zero: this dimension wraps around.
        periods: Vec<c_int>,
    },
    /// MPI_Graph_create.
    Graph {
        /// End of each rank's neighbours in `edges`.
        index: Vec<c_int>,
        /// Neighbours.
        edges: Vec<c_int>,
    },
    /// MPI_Dist_graph_create and its like: this rank's own neighbours.
    Dist {
        /// Ranks that send to this one.
        sources: Vec<c_int>,
        /// Their weights; empty when unweighted.
        source_weights: Vec<c_int>,
        /// Ranks that this one sends to.
        destinations: Vec<c_int>,
        /// Their weights; empty when unweighted.
        destination_weights: Vec<c_int>,
        /// True if there are weights (which may be none at all).
        weighted: bool,
    },
}

/// A communicator.
#[repr(C)]
#[derive(Debug)]
pub struct Comm {
    /// Common part.
    pub head: Head,
    /// Rank of this process in the local group.
    pub rank: c_int,
    /// Size of the local group.
    pub size: c_int,
    /// True for an intercommunicator.
    pub inter: bool,
    /// True if the identity was agreed and membership recorded: what a restart can rebuild.
    pub known: bool,
    /// Index into `Upper::clocks`, or `u32::MAX`.
    pub clock: u32,
    /// Identity that all members agreed on.
    pub gid: u64,
    /// Idups and other derived identities made from this one so far.
    pub derived: u64,
    /// World ranks of the local group, in its order.
    pub local: Vec<u32>,
    /// World ranks of the remote group; empty without one.
    pub remote: Vec<u32>,
    /// Topology.
    pub topology: Topology,
    /// Attributes, in the order in which they were set.
    pub attrs: Vec<Attr>,
    /// Error handler; null: MPI_ERRORS_ARE_FATAL.
    pub errhandler: *mut Errhandler,
    /// Hints.
    pub info: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where Open MPI's Fortran library reads the attributes' table (offset 272): points to this object.
    pub keyhash: *mut Comm,
    /// Name.
    pub name: Vec<u8>,
    /// Persistent requests that name it.
    pub persistent: u32,
}

impl Comm {
    /// An empty communicator behind `head`.
    pub const fn new(head: Head) -> Comm {
        Comm {
            head,
            rank: 0,
            size: 0,
            inter: false,
            known: false,
            clock: u32::MAX,
            gid: 0,
            derived: 0,
            local: Vec::new(),
            remote: Vec::new(),
            topology: Topology::None,
            attrs: Vec::new(),
            errhandler: core::ptr::null_mut(),
            info: Vec::new(),
            keyhash: core::ptr::null_mut(),
            name: Vec::new(),
            persistent: 0,
        }
    }

    /// World ranks of those that `rank` arguments of point-to-point calls name: the remote group of an
    /// intercommunicator, else the local one.
    pub fn peers(&self) -> &[u32] {
        if self.inter { &self.remote } else { &self.local }
    }

    /// World rank of peer `rank`; `None` for wildcards, MPI_PROC_NULL and what is out of range.
    pub fn peer_world(&self, rank: c_int) -> Option<u32> {
        usize::try_from(rank).ok().and_then(|r| self.peers().get(r).copied())
    }

    /// Rank in [`Comm::peers`] of world rank `world`.
    pub fn peer_rank(&self, world: u32) -> Option<c_int> {
        self.peers().iter().position(|&w| w == world).and_then(|i| c_int::try_from(i).ok())
    }
}

/// A group: a list of world ranks. Has a real object only while a call below needs one.
#[repr(C)]
#[derive(Debug)]
pub struct Group {
    /// Common part; `real` is used for the predefined ones only.
    pub head: Head,
    /// World ranks in the group's order. Ranks of processes outside of the world have the top bit set.
    pub ranks: Vec<u32>,
}

/// How a datatype was made.
#[derive(Debug)]
pub struct Recipe {
    /// MPI_COMBINER_*.
    pub combiner: c_int,
    /// As MPI_Type_get_contents tells them.
    pub ints: Vec<c_int>,
    /// As MPI_Type_get_contents tells them.
    pub aints: Vec<isize>,
    /// Held by this recipe.
    pub types: Vec<*mut Datatype>,
}

/// A datatype.
#[repr(C)]
#[derive(Debug)]
pub struct Datatype {
    /// Common part.
    pub head: Head,
    /// Bytes of data; -1: not known.
    pub size: i64,
    /// Lower bound.
    pub lb: i64,
    /// Extent.
    pub extent: i64,
    /// True lower bound.
    pub true_lb: i64,
    /// True extent.
    pub true_extent: i64,
    /// How it was made; `None` for a named type.
    pub recipe: Option<Box<Recipe>>,
    /// Attributes.
    pub attrs: Vec<Attr>,
    /// Name.
    pub name: Vec<u8>,
    /// Order of creation, for rebuilding.
    pub serial: u64,
    /// Room.
    pub spare: [u64; 9],
    /// As [`Comm::keyhash`], at offset 208.
    pub keyhash: *mut Datatype,
}

impl Datatype {
    /// A type of which nothing is known yet.
    pub const fn new(head: Head) -> Datatype {
        Datatype {
            head,
            size: -1,
            lb: 0,
            extent: 0,
            true_lb: 0,
            true_extent: 0,
            recipe: None,
            attrs: Vec::new(),
            name: Vec::new(),
            serial: 0,
            spare: [0; 9],
            keyhash: core::ptr::null_mut(),
        }
    }

    /// True if the data of one element fills its extent and begins at its address: bytes can be copied as they are.
    pub fn is_contiguous(&self) -> bool {
        self.true_lb == 0 && self.lb == 0 && self.size == self.extent && self.size == self.true_extent
    }
}

/// In which language a user function was given: it decides how handles are passed to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Language {
    /// C: handles are pointers.
    C,
    /// Fortran: handles are integers, passed by reference.
    Fortran,
    /// C++ bindings: an interceptor is called first.
    Cxx,
}

/// A reduction operation.
#[repr(C)]
#[derive(Debug)]
pub struct Op {
    /// Common part.
    pub head: Head,
    /// The user's function; 0 for predefined ones.
    pub function: usize,
    /// Non-zero: commutative.
    pub commute: c_int,
    /// Language of `function`.
    pub language: Language,
    /// The C++ interceptor, or 0.
    pub interceptor: usize,
    /// Slot of the trampoline below, or -1.
    pub slot: i32,
    /// Room.
    pub spare: [u32; 6],
    /// Open MPI's Fortran library sets bit 1 here itself (offset 84) once it has called MPI_Op_create.
    pub vendor_flags: AtomicU32,
}

impl Op {
    /// An operation without a user function.
    pub const fn new(head: Head) -> Op {
        Op {
            head,
            function: 0,
            commute: 1,
            language: Language::C,
            interceptor: 0,
            slot: -1,
            spare: [0; 6],
            vendor_flags: AtomicU32::new(0),
        }
    }
}

/// A window: passed through; while one exists no checkpoint is taken.
#[repr(C)]
#[derive(Debug)]
pub struct Win {
    /// Common part.
    pub head: Head,
    /// What MPI_Win_get_group tells: world ranks.
    pub members: Vec<u32>,
    /// Attributes.
    pub attrs: Vec<Attr>,
    /// Error handler; null: MPI_ERRORS_ARE_FATAL.
    pub errhandler: *mut Errhandler,
    /// Name.
    pub name: Vec<u8>,
    /// Values of the predefined attributes: base, size, displacement unit, flavor, model.
    pub builtin: [isize; 5],
    /// Room.
    pub spare: [u64; 11],
    /// As [`Comm::keyhash`], at offset 240.
    pub keyhash: *mut Win,
}

impl Win {
    /// A window behind `head`.
    pub const fn new(head: Head) -> Win {
        Win {
            head,
            members: Vec::new(),
            attrs: Vec::new(),
            errhandler: core::ptr::null_mut(),
            name: Vec::new(),
            builtin: [0; 5],
            spare: [0; 11],
            keyhash: core::ptr::null_mut(),
        }
    }
}

/// A file: passed through; while one is open no checkpoint is taken.
#[repr(C)]
#[derive(Debug)]
pub struct File {
    /// Common part.
    pub head: Head,
    /// World ranks of those who opened it.
    pub members: Vec<u32>,
    /// Error handler; null: MPI_ERRORS_RETURN.
    pub errhandler: *mut Errhandler,
    /// Types given to MPI_File_set_view: held, so that MPI_File_get_view can tell them.
    pub view: [*mut Datatype; 2],
}

impl File {
    /// A file behind `head`.
    pub const fn new(head: Head) -> File {
        File {
            head,
            members: Vec::new(),
            errhandler: core::ptr::null_mut(),
            view: [core::ptr::null_mut(); 2],
        }
    }
}

/// An info: a list of keys and values, in order.
#[repr(C)]
#[derive(Debug)]
pub struct Info {
    /// Common part; there is a real object only while a call below needs one.
    pub head: Head,
    /// Keys and values, without the closing zero.
    pub pairs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// An error handler.
#[repr(C)]
#[derive(Debug)]
pub struct Errhandler {
    /// Common part; there is no real object.
    pub head: Head,
    /// What it does.
    pub action: ErrAction,
    /// Kind of object that it is for.
    pub object: Kind,
    /// Language of the function.
    pub language: Language,
    /// The user's function, or 0.
    pub function: usize,
    /// The C++ interceptor, or 0.
    pub interceptor: usize,
    /// Room.
    pub spare: [u64; 3],
    /// Where Open MPI's C++ library writes functions itself: for communicators, files and windows (offset 88), one for
    /// Fortran, and the dispatcher of a C++ function.
    pub vendor: [usize; 5],
}

/// What an error handler does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrAction {
    /// Prints and aborts.
    Fatal,
    /// Returns the code.
    Return,
    /// Calls the user's function.
    Call,
}

/// MPI_Status as Open MPI 4.1 lays it out.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Rank of the sender.
    pub source: c_int,
    /// Tag.
    pub tag: c_int,
    /// Error code of one call that completes several requests.
    pub error: c_int,
    /// Non-zero: cancelled.
    pub cancelled: c_int,
    /// Bytes received.
    pub ucount: usize,
}

impl Status {
    /// What a call that completes nothing (null and inactive requests) returns.
    pub const EMPTY: Status = Status { source: -1, tag: -1, error: 0, cancelled: 0, ucount: 0 };
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

/// An opaque pointer of the application.
pub type Ptr = *mut c_void;

const _: () = {
    assert!(core::mem::offset_of!(Comm, keyhash) == 0x110);
    assert!(core::mem::offset_of!(Datatype, keyhash) == 0xd0);
    assert!(core::mem::offset_of!(Win, keyhash) == 0xf0);
    assert!(core::mem::offset_of!(Op, vendor_flags) == 0x54);
    assert!(core::mem::offset_of!(Errhandler, vendor) == 88);
    assert!(size_of::<Status>() == 24);
    assert!(size_of::<Comm>() <= 512);
    assert!(size_of::<Datatype>() <= 512);
    assert!(size_of::<Group>() <= 256);
    assert!(size_of::<Info>() <= 256);
    assert!(size_of::<Win>() <= 512);
};

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

    #[test]
    fn peers_are_the_remote_group_of_an_intercommunicator() {
        let mut c = Comm::new(Head::new(Kind::Comm, 0));
        c.local = alloc::vec![0, 2];
        c.remote = alloc::vec![5, 1];
        assert_eq!(c.peer_world(1), Some(2));
        c.inter = true;
        assert_eq!(c.peer_world(1), Some(1));
        assert_eq!(c.peer_world(-2), None);
        assert_eq!(c.peer_rank(5), Some(0));
    }
}
