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
// Persistent collectives, an extension of Open MPI 4.1 that its Fortran library imports.
refused! {
    MPIX_Allgather_init
    MPIX_Allgatherv_init
    MPIX_Allreduce_init
    MPIX_Alltoall_init
    MPIX_Alltoallv_init
    MPIX_Alltoallw_init
    MPIX_Barrier_init
    MPIX_Bcast_init
    MPIX_Exscan_init
    MPIX_Gather_init
    MPIX_Gatherv_init
    MPIX_Neighbor_allgather_init
    MPIX_Neighbor_allgatherv_init
    MPIX_Neighbor_alltoall_init
    MPIX_Neighbor_alltoallv_init
    MPIX_Neighbor_alltoallw_init
    MPIX_Reduce_init
    MPIX_Reduce_scatter_block_init
    MPIX_Reduce_scatter_init
    MPIX_Scan_init
    MPIX_Scatter_init
    MPIX_Scatterv_init
}
