//! Names of communicators, datatypes and windows: kept here, unknown to the library. Upper half.
//!
//! What a reader would get wrong: the null handles of communicators and windows have a name, which can be asked for and not set; that of datatypes has none.
#![allow(unsafe_code, reason = "exports functions")]

use core::ffi::{CStr, c_char, c_int};

use crate::errhandler::{ERR_COMM, raise};
use crate::handles::{Comm, Datatype, Kind, Win, is_live};
use crate::types::ERR_TYPE;
use crate::win::ERR_WIN;
use crate::{export, predefined};

/// MPI_MAX_OBJECT_NAME: room for a name, with its closing zero.
const ROOM: usize = 64;

/// Copies bytes into the application's string of `room` bytes, with its closing zero.
///
/// # Safety
/// `to` is writable for `room` bytes.
pub(crate) unsafe fn put_text(text: &[u8], to: *mut c_char, room: usize) -> c_int {
    let n = text.len().min(room.saturating_sub(1));
    // SAFETY: `n + 1 <= room`.
    unsafe {
        core::ptr::copy_nonoverlapping(text.as_ptr().cast(), to, n);
        *to.add(n) = 0;
    }
    c_int::try_from(n).unwrap_or(0)
}

macro_rules! named {
    ($($set:ident $get:ident: $object:ident, $null:ident $text:expr, $error:ident;)*) => { export! { $(
        fn $set(object: *mut $object, name: *const c_char) -> c_int {
            if !is_live(object, Kind::$object) || object == predefined!($null as $object) {
                return raise(core::ptr::null_mut(), $error, stringify!($set));
            }
            let text = CStr::from_ptr(name).to_bytes();
            (*object).name = text[..text.len().min(ROOM - 1)].to_vec();
            0
        }
        fn $get(object: *mut $object, name: *mut c_char, len: *mut c_int) -> c_int {
            if let (true, Some(text)) = (object == predefined!($null as $object), $text) {
                *len = put_text(text, name, ROOM);
                return 0;
            }
            if object == predefined!($null as $object) || !is_live(object, Kind::$object) {
                return raise(core::ptr::null_mut(), $error, stringify!($get));
            }
            *len = put_text(&(*object).name, name, ROOM);
            0
        }
    )* } };
}
named! {
    MPI_Comm_set_name MPI_Comm_get_name: Comm, ompi_mpi_comm_null Some(b"MPI_COMM_NULL"), ERR_COMM;
    MPI_Type_set_name MPI_Type_get_name: Datatype, ompi_mpi_datatype_null None, ERR_TYPE;
    MPI_Win_set_name MPI_Win_get_name: Win, ompi_mpi_win_null Some(b"MPI_WIN_NULL"), ERR_WIN;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_to_its_room_and_closed() {
        let mut to = [1 as c_char; 8];
        // SAFETY: rooms within `to`.
        unsafe {
            assert_eq!(put_text(b"abcdef", to.as_mut_ptr(), 4), 3);
            assert_eq!(CStr::from_ptr(to.as_ptr()).to_bytes(), b"abc");
            assert_eq!(to[4], 1, "behind the room");
            assert_eq!(put_text(b"", to.as_mut_ptr(), 4), 0);
        }
        assert_eq!(to[0], 0);
    }
}
