//! What the front knows besides its objects, under one lock. Upper half; saved with it.
//!
//! What a reader would get wrong: whoever holds the lock counts as inside the front ([`crate::cross::Inside`]), so no
//! thread is ever stopped while it holds it, and the still point finds the lock free. It is never held across a
//! crossing that may wait.
#![allow(unsafe_code, reason = "a lock over a static")]

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, Ordering};

use alloc::vec::Vec;

use crate::cross::Inside;
use crate::handles::{Comm, Datatype, Head, N_KINDS, Op};

/// Life of the library in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Before MPI_Init.
    Before,
    /// Between MPI_Init and MPI_Finalize.
    Live,
    /// After MPI_Finalize.
    Finalized,
}

/// A key for attributes.
#[derive(Clone, Copy, Debug)]
pub struct Keyval {
    /// Kind of object: 0 communicator, 1 datatype, 2 window.
    pub object: u32,
    /// Copy function as it was given.
    pub copy: usize,
    /// Delete function as it was given.
    pub delete: usize,
    /// Extra state as it was given.
    pub extra: usize,
    /// Who calls: C, or Fortran with INTEGER or address-sized values.
    pub form: crate::handles::AttrForm,
    /// Attributes that use it, plus 1 until MPI_Comm_free_keyval.
    pub holders: u32,
    /// The application has freed it.
    pub freed: bool,
}

/// Everything.
#[derive(Debug)]
pub struct State {
    /// Life of the library.
    pub life: Life,
    /// Asked for in MPI_Init_thread.
    pub required: i32,
    /// Calls of MPI_T_init_thread without their MPI_T_finalize, and the level that the first one got.
    pub tools: (u32, i32),
    /// True if the first one came before MPI_Init: the library numbers its variables as it comes to know them.
    pub tools_first: bool,
    /// The start in which the library was begun for them.
    pub tools_epoch: u64,
    /// Got from it.
    pub provided: i32,
    /// Thread pointer of the thread that called MPI_Init.
    pub main_fs: u64,
    /// Communicators that have (or must get) a real object.
    pub comms: Vec<*mut Comm>,
    /// Datatypes made by the application.
    pub types: Vec<*mut Datatype>,
    /// Types made so far.
    pub type_serial: u64,
    /// User operations by trampoline slot.
    pub ops: Vec<*mut Op>,
    /// Keys; the index is the key. The first sixteen are the predefined ones.
    pub keyvals: Vec<Option<Keyval>>,
    /// Fortran handles by kind.
    pub fortran: [Vec<*mut Head>; N_KINDS],
    /// Identities handed out by this rank.
    pub gids: u64,
    /// Clocks that have ended and whose places are not free yet.
    pub retired: Vec<u32>,
    /// World rank.
    pub rank: u32,
    /// World size.
    pub size: u32,
    /// Values behind MPI_TAG_UB and its like, in the order of the keys.
    pub builtin: [i32; 7],
    /// Bit n: `builtin[n]` is set.
    pub present: u32,
    /// Error classes, codes and strings of the application: calls to say again after a restart.
    pub errors: Vec<(i32, i32, Vec<u8>)>,
}

// SAFETY: raw pointers to objects that any thread may use under the lock.
unsafe impl Send for State {}

impl State {
    const fn new() -> State {
        State {
            life: Life::Before,
            tools: (0, 0),
            tools_first: false,
            tools_epoch: 0,
            required: 0,
            provided: 0,
            main_fs: 0,
            comms: Vec::new(),
            types: Vec::new(),
            type_serial: 0,
            ops: Vec::new(),
            keyvals: Vec::new(),
            fortran: [const { Vec::new() }; N_KINDS],
            gids: 0,
            retired: Vec::new(),
            rank: 0,
            size: 0,
            builtin: [0; 7],
            present: 0,
            errors: Vec::new(),
        }
    }
}

struct Cell {
    word: AtomicU32,
    state: UnsafeCell<State>,
}
// SAFETY: `state` is reached only through a `Guard`.
unsafe impl Sync for Cell {}
static CELL: Cell = Cell { word: AtomicU32::new(0), state: UnsafeCell::new(State::new()) };

/// The lock is held while this lives.
#[derive(Debug)]
pub struct Guard {
    // Ends after `Drop::drop` has given the lock back.
    _inside: Inside,
}

/// Takes the lock.
pub fn lock() -> Guard {
    let inside = Inside::enter();
    while CELL.word.swap(1, Ordering::Acquire) != 0 {
        core::hint::spin_loop();
    }
    Guard { _inside: inside }
}

impl Drop for Guard {
    fn drop(&mut self) {
        CELL.word.store(0, Ordering::Release);
    }
}

impl core::ops::Deref for Guard {
    type Target = State;
    fn deref(&self) -> &State {
        // SAFETY: the lock is held.
        unsafe { &*CELL.state.get() }
    }
}

impl core::ops::DerefMut for Guard {
    fn deref_mut(&mut self) -> &mut State {
        // SAFETY: the lock is held, and `self` is borrowed alone.
        unsafe { &mut *CELL.state.get() }
    }
}
