//! From a row of the table to an exported function, for the regular ones: translate handles, cross, raise errors.
//! Upper half.
//!
//! What a reader would get wrong: only rows whose handles all go in by value are regular. What makes, frees or tells
//! a handle is written by hand in the file of its chapter.
#![allow(unsafe_code, reason = "exports functions")]

use core::ffi::{c_int, c_void};

use crate::handles::{Comm, Datatype, File, Head, Op, Status, Win, real};

macro_rules! ty {
    (int) => { c_int };
    (aint) => { isize };
    (double) => { f64 };
    (ptr) => { *mut c_void };
    (intP) => { *mut c_int };
    (aintP) => { *mut isize };
    (StatusP) => { *mut Status };
    (Comm) => { *mut Comm };
    (Datatype) => { *mut Datatype };
    (Op) => { *mut Op };
    (Group) => { *mut Group };
    (Win) => { *mut Win };
    (File) => { *mut File };
    (Info) => { *mut Info };
    (Errhandler) => { *mut Errhandler };
    (Request) => { *mut Head };
    (Message) => { *mut Head };
    ($pointer:ident) => { *mut *mut Head };
}
macro_rules! low {
    (int) => { c_int };
    (aint) => { isize };
    (double) => { f64 };
    (ptr) => { *mut c_void };
    (intP) => { *mut c_int };
    (aintP) => { *mut isize };
    (StatusP) => { *mut Status };
    ($handle:ident) => { usize };
}
macro_rules! value {
    (int $v:ident) => {
        $v
    };
    (aint $v:ident) => {
        $v
    };
    (double $v:ident) => {
        $v
    };
    (ptr $v:ident) => {
        $v
    };
    (intP $v:ident) => {
        $v
    };
    (aintP $v:ident) => {
        $v
    };
    (StatusP $v:ident) => {
        $v
    };
    ($handle:ident $v:ident) => {
        real($v)
    };
}
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
                let code = $crate::down!($name($($a: low!($k) = value!($k $a)),*) -> c_int);
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
                $crate::env::load();
                $crate::down!($name($($a: low!($k) = value!($k $a)),*) -> c_int)
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
