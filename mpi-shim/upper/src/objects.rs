//! The objects behind the application's handles, chapter by chapter: what is known of each up here. Upper half.
//!
//! What a reader would get wrong: some fields stand where they stand because Open MPI's Fortran and C++ libraries, which
//! know the vendor's objects, read and write there; the `spare` ones only keep them in place. The assertions at the end
//! hold the places.

use core::ffi::c_int;
use core::sync::atomic::AtomicU32;

use alloc::{boxed::Box, vec::Vec};

use crate::handles::{Head, Kind};

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
    /// Error handler; null: MPI_ERRORS_ARE_FATAL.
    pub errhandler: *mut Errhandler,
    /// Size of the remote group, or 0.
    pub remote_size: c_int,
    /// Keeps the others in place.
    pub spare: u32,
    /// What kind it is, as Open MPI's Fortran and C++ libraries read it (offset 232): see [`Comm::show`].
    pub vendor_kind: u32,
    /// As `spare`.
    pub spares: [u32; 3],
    /// Where those libraries read the sizes of the local and the remote group (offsets 248 and 256): 16 bytes before them.
    pub vendor_groups: [usize; 2],
    /// As `spare`.
    pub more: usize,
    /// Where Open MPI's Fortran library reads the attributes' table (offset 272): points to this object.
    pub keyhash: *mut Comm,
    /// Attributes, in the order in which they were set.
    pub attrs: Vec<Attr>,
    /// Hints.
    pub info: Vec<(Vec<u8>, Vec<u8>)>,
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
            errhandler: core::ptr::null_mut(),
            remote_size: 0,
            spare: 0,
            vendor_kind: 0,
            spares: [0; 3],
            vendor_groups: [0; 2],
            more: 0,
            keyhash: core::ptr::null_mut(),
            attrs: Vec::new(),
            info: Vec::new(),
            name: Vec::new(),
            persistent: 0,
        }
    }

    /// Puts what the vendor's libraries read of a communicator where they do (ompi/communicator/communicator.h): after each change of its
    /// kind or its groups, at the place where it stays.
    pub fn show(&mut self) {
        let kind = match self.topology {
            Topology::None => 0,
            Topology::Cart { .. } => 0x100,
            Topology::Graph { .. } => 0x200,
            Topology::Dist { .. } => 0x400,
        };
        self.vendor_kind = u32::from(self.inter) | kind;
        self.remote_size = c_int::try_from(self.remote.len()).unwrap_or(0);
        // ompi_group_t has its size at 16.
        let group = |size: *const c_int| size.expose_provenance().wrapping_sub(16);
        self.vendor_groups = [group(&raw const self.size), group(&raw const self.remote_size)];
        self.keyhash = &raw mut *self;
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

const _: () = {
    assert!(core::mem::offset_of!(Head, fint) == 0x18);
    assert!(core::mem::offset_of!(Comm, vendor_kind) == 0xe8);
    assert!(core::mem::offset_of!(Comm, vendor_groups) == 0xf8);
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
