//! Functions that the front does not offer yet: exported, so that programs load, and answered with
//! MPI_ERR_UNSUPPORTED_OPERATION through the error handler of MPI_COMM_WORLD. Upper half.
//!
//! What a reader would get wrong: none of them does anything below; a program that calls one is told so by name.
#![allow(unsafe_code, reason = "exports functions")]

use core::ffi::c_int;

use crate::errhandler::{ERR_UNSUPPORTED, raise};
use crate::export;

macro_rules! refused {
    ($($name:ident)*) => {
        export! { $(
            fn $name() -> c_int {
                raise(core::ptr::null_mut(), ERR_UNSUPPORTED, stringify!($name))
            }
        )* }
    };
}
refused! {
    MPI_Close_port MPI_Comm_accept MPI_Comm_connect MPI_Comm_join MPI_Comm_spawn MPI_Comm_spawn_multiple
    MPI_Lookup_name MPI_Open_port MPI_Publish_name MPI_Unpublish_name
    MPI_File_close MPI_File_delete MPI_File_get_group MPI_File_get_info MPI_File_get_view MPI_File_iread
    MPI_File_iread_all MPI_File_iread_at MPI_File_iread_at_all MPI_File_iread_shared MPI_File_iwrite
    MPI_File_iwrite_all MPI_File_iwrite_at MPI_File_iwrite_at_all MPI_File_iwrite_shared MPI_File_open
    MPI_File_set_info MPI_File_set_view MPI_Register_datarep
    MPI_Raccumulate MPI_Rget MPI_Rget_accumulate MPI_Rput MPI_Win_allocate MPI_Win_allocate_shared MPI_Win_create
    MPI_Win_create_dynamic MPI_Win_free MPI_Win_get_group MPI_Win_get_info MPI_Win_get_name MPI_Win_post
    MPI_Win_set_info MPI_Win_set_name MPI_Win_start
    MPI_Type_create_f90_complex MPI_Type_create_f90_integer MPI_Type_create_f90_real
}
