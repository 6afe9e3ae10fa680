//! The predefined objects, under the library's names and with its sizes. Upper half.
//!
//! What a reader would get wrong: an executable may hold its own copy of such a symbol, made by the dynamic linker
//! before our first instruction (copy relocation). The copy is then the object: addresses are taken through the GOT,
//! as Rust does for exported symbols of a shared library, and no address is known at compile time.
#![allow(unsafe_code, reason = "exported data symbols")]
#![allow(non_upper_case_globals, reason = "the library's names")]

use crate::handles::{
    Comm, Datatype, ErrAction, Errhandler, File, Group, Head, Info, Kind, Language, Op, Room, Win,
};
use stillpoint_mpi_table::{N_PREDEFINED, Predefined};

const fn object_comm(h: Head) -> Comm {
    Comm::new(h)
}
const fn object_datatype(h: Head) -> Datatype {
    Datatype::new(h)
}
const fn object_group(head: Head) -> Group {
    Group { head, ranks: alloc::vec::Vec::new() }
}
const fn object_info(head: Head) -> Info {
    Info { head, pairs: alloc::vec::Vec::new() }
}
const fn object_errhandler(head: Head) -> Errhandler {
    let action = if head.predefined == Predefined::ompi_mpi_errors_are_fatal as i32 {
        ErrAction::Fatal
    } else {
        ErrAction::Return
    };
    Errhandler {
        head,
        action,
        object: Kind::Comm,
        language: Language::C,
        function: 0,
        interceptor: 0,
        spare: [0; 3],
        vendor: [0; 5],
    }
}

macro_rules! room {
    (Comm) => {
        Comm
    };
    (Datatype) => {
        Datatype
    };
    (Op) => {
        Op
    };
    (Group) => {
        Group
    };
    (Win) => {
        Win
    };
    (File) => {
        File
    };
    (Info) => {
        Info
    };
    (Errhandler) => {
        Errhandler
    };
    ($other:ident) => {
        Head
    };
}
macro_rules! fill {
    (Comm $h:expr) => {
        object_comm($h)
    };
    (Datatype $h:expr) => {
        object_datatype($h)
    };
    (Op $h:expr) => {
        Op::new($h)
    };
    (Group $h:expr) => {
        object_group($h)
    };
    (Win $h:expr) => {
        Win::new($h)
    };
    (File $h:expr) => {
        File::new($h)
    };
    (Info $h:expr) => {
        object_info($h)
    };
    (Errhandler $h:expr) => {
        object_errhandler($h)
    };
    ($other:ident $h:expr) => {
        $h
    };
}

macro_rules! objects {
    ($([$symbol:ident $kind:ident $size:tt $fint:tt $name:literal])*) => {
        $(
            #[doc = concat!("`", $name, "`")]
            #[unsafe(no_mangle)]
            pub static $symbol: Room<room!($kind), $size> =
                Room::new(fill!($kind Head::predefined(Kind::$kind, Predefined::$symbol as i32, $fint)));
        )*

        /// Address of predefined object `index` as everybody sees it.
        pub fn address(index: usize) -> *mut Head {
            let all: [*mut Head; N_PREDEFINED] = [$((&raw const $symbol).cast_mut().cast::<Head>()),*];
            all[index]
        }

        /// The standard's names, in the order of the rows.
        pub const STANDARD_NAMES: [&str; N_PREDEFINED] = [$($name),*];
    };
}
stillpoint_mpi_table::for_each_predefined!(objects);

/// The handle of a predefined object: `predefined!(ompi_mpi_comm_world as Comm)`.
#[macro_export]
macro_rules! predefined {
    ($symbol:ident as $t:ty) => {
        (&raw const $crate::predefined::$symbol).cast_mut().cast::<$t>()
    };
}

/// Writes the library's addresses of the predefined objects into ours: after the back was loaded, at every start.
pub fn connect() {
    for i in 0..N_PREDEFINED {
        let there = stillpoint_sys::half().back[stillpoint_mpi_table::predefined_slot(i)]
            .load(core::sync::atomic::Ordering::Relaxed);
        // SAFETY: each predefined object begins with a head.
        unsafe { (*address(i)).set_real(there) };
    }
}

/// The predefined object of `kind` that stands for the library's object `real`, if there is one.
pub fn of_real(real: usize) -> Option<*mut Head> {
    (0..N_PREDEFINED).map(address).find(|&o| {
        // SAFETY: each predefined object begins with a head.
        real != 0 && unsafe { (*o).real() } == real
    })
}
