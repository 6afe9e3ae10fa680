//! From a row of the table to an exported function, for the regular ones: translate handles, cross, raise errors.
//! Upper half.
//!
//! What a reader would get wrong: only rows whose handles all go in by value are regular. What makes, frees or tells
//! a handle is written by hand in the file of its chapter.
#![allow(unsafe_code, reason = "exports functions")]

use core::ffi::c_int;

use crate::handles::Head;
use crate::kinds::{Lower, ty};

macro_rules! holder {
    (Comm $v:ident) => {
        $v.cast::<Head>()
    };
    (Win $v:ident) => {
        $v.cast::<Head>()
    };
    (File $v:ident) => {
        $v.cast::<Head>()
    };
    ($other:ident $v:ident) => {
        core::ptr::null_mut::<Head>()
    };
}

macro_rules! row {
    (plain $name:ident int ($($a:ident: $k:ident),*)) => {
        $crate::export! {
            fn $name($($a: ty!($k)),*) -> c_int {
                let code = $crate::down!($name($($a: <ty!($k) as Lower>::Low = $a.lower()),*) -> c_int);
                if code == 0 {
                    return 0;
                }
                $crate::errhandler::raise_first(&[$(holder!($k $a)),*], code, stringify!($name))
            }
        }
    };
    (tool $name:ident int ($($a:ident: $k:ident),*)) => {
        $crate::export! {
            fn $name($($a: ty!($k)),*) -> c_int {
                let _inside = $crate::cross::Inside::enter();
                $crate::tool::ready();
                $crate::down!($name($($a: <ty!($k) as Lower>::Low = $a.lower()),*) -> c_int)
            }
        }
    };
    ($policy:ident $name:ident $ret:ident ($($a:ident: $k:ident),*)) => {};
}
macro_rules! rows {
    ($([$name:ident $policy:ident $ret:ident ($($a:ident: $k:ident),*)])*) => {
        $( row! { $policy $name $ret ($($a: $k),*) } )*
    };
}
stillpoint_mpi_table::for_each_mpi!(rows);
