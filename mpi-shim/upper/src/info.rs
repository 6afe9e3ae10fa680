//! Infos: lists of keys and values, kept here. Upper half.
//!
//! What a reader would get wrong: the hints of a communicator do not reach the library; they are the application's
//! wishes, and it may ask for them back. Calls that are passed through take a real info, made for the call alone.
#![allow(unsafe_code, reason = "exports functions")]

use core::ffi::{CStr, c_char, c_int};

use crate::errhandler::raise;
use crate::handles::{Head, Info, Kind, is_live, make, unmake};
use crate::names::put_text;
use crate::{down, export, predefined};

const ERR_INFO_KEY: c_int = 31;
const ERR_INFO_NOKEY: c_int = 32;
const ERR_INFO_VALUE: c_int = 33;
const ERR_INFO: c_int = 34;
const MAX_KEY: usize = 36;
const MAX_VALUE: usize = 256;

/// A real info for one call; [`lower_free`] ends it.
///
/// # Safety
/// `info` is null or a handle.
pub unsafe fn lower(info: *mut Info) -> usize {
    // SAFETY: the caller's promise; predefined objects live for ever.
    unsafe {
        if !is_live(info, Kind::Info) {
            return crate::handles::real(predefined!(ompi_mpi_info_null as Info));
        }
        if (*info).head.predefined >= 0 {
            return (*info).head.real();
        }
        let mut at = 0usize;
        down!(MPI_Info_create(i: *mut usize = &raw mut at) -> c_int);
        for (k, v) in &(*info).pairs {
            let (mut k, mut v) = (k.clone(), v.clone());
            k.push(0);
            v.push(0);
            down!(MPI_Info_set(i: usize = at, k: *const u8 = k.as_ptr(), v: *const u8 = v.as_ptr()) -> c_int);
        }
        at
    }
}

/// Ends what [`lower`] made.
pub fn lower_free(at: &mut usize) {
    if *at != 0 && crate::predefined::of_real(*at).is_none() {
        down!(MPI_Info_free(i: *mut usize = core::ptr::from_mut(at)) -> c_int);
    }
}

/// Makes an info of ours from the library's, which ends.
pub fn taken_up(mut at: usize) -> *mut Info {
    let mut pairs = Vec::new();
    let mut n: c_int = 0;
    if at != 0 {
        down!(MPI_Info_get_nkeys(i: usize = at, n: *mut c_int = &raw mut n) -> c_int);
    }
    for k in 0..n {
        let (mut key, mut value) = ([0u8; MAX_KEY + 1], [0u8; MAX_VALUE + 1]);
        let mut flag: c_int = 0;
        down!(MPI_Info_get_nthkey(i: usize = at, n: c_int = k, k: *mut u8 = key.as_mut_ptr()) -> c_int);
        down!(MPI_Info_get(
            i: usize = at, k: *const u8 = key.as_ptr(), l: c_int = 255, v: *mut u8 = value.as_mut_ptr(),
            f: *mut c_int = &raw mut flag) -> c_int);
        let text = |b: &[u8]| b.split(|&c| c == 0).next().unwrap_or(&[]).to_vec();
        pairs.push((text(&key), text(&value)));
    }
    lower_free(&mut at);
    make(Info { head: Head::new(Kind::Info, 0), pairs })
}

macro_rules! check {
    ($i:ident, $name:literal) => {
        if !is_live($i, Kind::Info) || $i == predefined!(ompi_mpi_info_null as Info) {
            return raise(core::ptr::null_mut(), ERR_INFO, $name);
        }
    };
}

export! {
    fn MPI_Info_create(info: *mut *mut Info) -> c_int {
        *info = make(Info { head: Head::new(Kind::Info, 0), pairs: Vec::new() });
        0
    }
    fn MPI_Info_dup(info: *mut Info, new: *mut *mut Info) -> c_int {
        check!(info, "MPI_Info_dup");
        *new = make(Info { head: Head::new(Kind::Info, 0), pairs: (*info).pairs.clone() });
        0
    }
    fn MPI_Info_free(info: *mut *mut Info) -> c_int {
        let i = *info;
        check!(i, "MPI_Info_free");
        if (*i).head.predefined >= 0 {
            return raise(core::ptr::null_mut(), ERR_INFO, "MPI_Info_free");
        }
        unmake(i);
        *info = predefined!(ompi_mpi_info_null as Info);
        0
    }
    fn MPI_Info_set(info: *mut Info, key: *const c_char, value: *const c_char) -> c_int {
        check!(info, "MPI_Info_set");
        let (k, v) = (CStr::from_ptr(key).to_bytes(), CStr::from_ptr(value).to_bytes());
        if k.is_empty() || k.len() >= MAX_KEY {
            return raise(core::ptr::null_mut(), ERR_INFO_KEY, "MPI_Info_set");
        }
        if v.is_empty() || v.len() >= MAX_VALUE {
            return raise(core::ptr::null_mut(), ERR_INFO_VALUE, "MPI_Info_set");
        }
        let pairs = &mut (*info).pairs;
        match pairs.iter_mut().find(|p| p.0 == k) {
            Some(p) => p.1 = v.to_vec(),
            None => pairs.push((k.to_vec(), v.to_vec())),
        }
        0
    }
    fn MPI_Info_delete(info: *mut Info, key: *const c_char) -> c_int {
        check!(info, "MPI_Info_delete");
        let k = CStr::from_ptr(key).to_bytes();
        let pairs = &mut (*info).pairs;
        let before = pairs.len();
        pairs.retain(|p| p.0 != k);
        if pairs.len() == before {
            return raise(core::ptr::null_mut(), ERR_INFO_NOKEY, "MPI_Info_delete");
        }
        0
    }
    fn MPI_Info_get(info: *mut Info, key: *const c_char, len: c_int, value: *mut c_char, flag: *mut c_int) -> c_int {
        check!(info, "MPI_Info_get");
        let k = CStr::from_ptr(key).to_bytes();
        *flag = 0;
        let pairs = &(*info).pairs;
        if let Some(p) = pairs.iter().find(|p| p.0 == k) {
            *flag = 1;
            put_text(&p.1, value, usize::try_from(len).unwrap_or(0) + 1);
        }
        0
    }
    fn MPI_Info_get_valuelen(info: *mut Info, key: *const c_char, len: *mut c_int, flag: *mut c_int) -> c_int {
        check!(info, "MPI_Info_get_valuelen");
        let k = CStr::from_ptr(key).to_bytes();
        *flag = 0;
        let pairs = &(*info).pairs;
        if let Some(p) = pairs.iter().find(|p| p.0 == k) {
            *flag = 1;
            *len = c_int::try_from(p.1.len()).unwrap_or(0);
        }
        0
    }
    fn MPI_Info_get_nkeys(info: *mut Info, n: *mut c_int) -> c_int {
        check!(info, "MPI_Info_get_nkeys");
        let pairs = &(*info).pairs;
        *n = c_int::try_from(pairs.len()).unwrap_or(0);
        0
    }
    fn MPI_Info_get_nthkey(info: *mut Info, n: c_int, key: *mut c_char) -> c_int {
        check!(info, "MPI_Info_get_nthkey");
        let pairs = &(*info).pairs;
        let Some(p) = usize::try_from(n).ok().and_then(|n| pairs.get(n)) else {
            return raise(core::ptr::null_mut(), ERR_INFO_KEY, "MPI_Info_get_nthkey");
        };
        put_text(&p.0, key, MAX_KEY);
        0
    }
}
