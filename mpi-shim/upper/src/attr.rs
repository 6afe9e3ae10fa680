//! Attributes and their keys: kept and copied here, with the application's callbacks; the library knows none of them.
//! Upper half.
//!
//! What a reader would get wrong: how a value reads depends on the language in which it was set and in which it is
//! asked for (MPI 3.1, 17.2.7). C gets a pointer *to* what Fortran set; Fortran gets the pointer that C set, as a
//! number.
#![allow(unsafe_code, reason = "calls the application's functions")]

use core::ffi::{c_int, c_void};

use crate::errhandler::{ERR_KEYVAL, raise};
use crate::handles::{Attr, AttrForm, Comm, Datatype, Head, Kind, Win, real};
use crate::state::{Keyval, lock};
use crate::{down, export, predefined};

/// Keys below this one are predefined.
const FIRST_KEY: usize = 16;
/// MPI_LASTUSEDCODE.
const LAST_USED_CODE: usize = 5;

/// Asks the library for what stands behind MPI_TAG_UB and its like: its code, and the value if there is one.
pub(crate) fn builtin(key: c_int) -> (c_int, Option<c_int>) {
    let mut at: *mut c_int = core::ptr::null_mut();
    let mut flag: c_int = 0;
    // SAFETY: the world lives; the library hands out a pointer to an integer of its own, read at once.
    unsafe {
        let code = down!(MPI_Comm_get_attr(
            c: usize = real(predefined!(ompi_mpi_comm_world as Comm)), k: c_int = key,
            v: *mut *mut c_int = &raw mut at, f: *mut c_int = &raw mut flag) -> c_int);
        (code, (flag != 0 && !at.is_null()).then(|| *at))
    }
}

/// Learns the values of the predefined keys, after MPI_Init.
pub fn first() {
    for (k, key) in (0..7usize).zip(0..) {
        if let (_, Some(v)) = builtin(key) {
            let mut s = lock();
            s.builtin[k] = v;
            s.present |= 1 << k;
        }
    }
}

/// A new error class or code was made.
pub fn last_used_code(code: c_int) {
    lock().builtin[LAST_USED_CODE] = code;
}

unsafe fn list<'a>(object: *mut Head) -> &'a mut Vec<Attr> {
    // SAFETY: the kind says what the object is.
    unsafe {
        match (*object).kind {
            Kind::Datatype => &mut (*object.cast::<Datatype>()).attrs,
            Kind::Win => &mut (*object.cast::<Win>()).attrs,
            _ => &mut (*object.cast::<Comm>()).attrs,
        }
    }
}

fn keyval(key: c_int) -> Option<Keyval> {
    let s = lock();
    usize::try_from(key).ok().and_then(|k| s.keyvals.get(k).copied().flatten())
}

/// Makes a key.
pub fn create(object: u32, copy: usize, delete: usize, extra: usize, form: AttrForm) -> c_int {
    let mut s = lock();
    while s.keyvals.len() < FIRST_KEY {
        s.keyvals.push(None);
    }
    let new = Some(Keyval { object, copy, delete, extra, form, holders: 1, freed: false });
    let free = (FIRST_KEY..s.keyvals.len()).find(|&k| s.keyvals[k].is_none());
    let key = match free {
        Some(k) => {
            s.keyvals[k] = new;
            k
        }
        None => {
            s.keyvals.push(new);
            s.keyvals.len() - 1
        }
    };
    c_int::try_from(key).unwrap_or(-1)
}

fn hold(key: c_int, by: i32) {
    let mut s = lock();
    let Some(slot) = usize::try_from(key).ok().and_then(|k| s.keyvals.get_mut(k)) else { return };
    if let Some(k) = slot {
        k.holders = k.holders.saturating_add_signed(by);
        if k.holders == 0 {
            *slot = None;
        }
    }
}

/// How C sees the value: what Fortran set is pointed to.
fn as_c(a: &Attr) -> usize {
    if a.form == AttrForm::C { a.value } else { (&raw const a.value).expose_provenance() }
}

unsafe fn on_delete(object: *mut Head, attr: Attr) -> c_int {
    let Some(k) = keyval(attr.keyval) else { return 0 };
    if k.delete == 0 {
        return 0;
    }
    let f = core::ptr::with_exposed_provenance::<c_void>(k.delete);
    let mut key = attr.keyval;
    // SAFETY: the application gave the function for this language.
    unsafe {
        match k.form {
            AttrForm::C => {
                let f: unsafe extern "C" fn(*mut Head, c_int, usize, usize) -> c_int =
                    core::mem::transmute(f);
                f(object, key, as_c(&attr), k.extra)
            }
            AttrForm::Fint => {
                let f: unsafe extern "C" fn(*mut c_int, *mut c_int, *mut c_int, *mut c_int, *mut c_int) =
                    core::mem::transmute(f);
                let (mut o, mut v, mut e, mut r) =
                    (crate::fortran::index(object), attr.value as c_int, k.extra as c_int, 0);
                f(&raw mut o, &raw mut key, &raw mut v, &raw mut e, &raw mut r);
                r
            }
            AttrForm::Aint => {
                let f: unsafe extern "C" fn(*mut c_int, *mut c_int, *mut usize, *mut usize, *mut c_int) =
                    core::mem::transmute(f);
                let (mut o, mut v, mut e, mut r) = (crate::fortran::index(object), attr.value, k.extra, 0);
                f(&raw mut o, &raw mut key, &raw mut v, &raw mut e, &raw mut r);
                r
            }
        }
    }
}

/// Deletes all attributes of `object`, the last set first.
///
/// # Safety
/// `object` is a live communicator, datatype or window.
pub unsafe fn delete_all(object: *mut Head) -> c_int {
    // SAFETY: the caller's promise; the list is taken anew after each callback, which may change it.
    unsafe {
        while let Some(a) = list(object).last().copied() {
            let code = on_delete(object, a);
            if code != 0 {
                return code;
            }
            list(object).retain(|o| o.keyval != a.keyval);
            hold(a.keyval, -1);
        }
    }
    0
}

/// Copies the attributes of `from` to `to`, as their copy functions wish.
///
/// # Safety
/// Both are live and of one kind.
pub unsafe fn copy_all(from: *mut Head, to: *mut Head) -> c_int {
    // SAFETY: the caller's promise; the application gave the functions for these languages.
    unsafe {
        for a in list(from).clone() {
            let Some(k) = keyval(a.keyval) else { continue };
            if k.copy == 0 {
                continue;
            }
            let f = core::ptr::with_exposed_provenance::<c_void>(k.copy);
            let mut key = a.keyval;
            let (mut flag, mut out, mut code): (c_int, usize, c_int) = (0, 0, 0);
            match k.form {
                AttrForm::C => {
                    let f: unsafe extern "C" fn(
                        *mut Head,
                        c_int,
                        usize,
                        usize,
                        *mut usize,
                        *mut c_int,
                        *mut Head,
                    ) -> c_int = core::mem::transmute(f);
                    // The last one is for the interceptor of the C++ bindings; others do not look at it.
                    code = f(from, key, k.extra, as_c(&a), &raw mut out, &raw mut flag, to);
                }
                AttrForm::Fint => {
                    type F = unsafe extern "C" fn(
                        *mut c_int,
                        *mut c_int,
                        *mut c_int,
                        *mut c_int,
                        *mut c_int,
                        *mut c_int,
                        *mut c_int,
                    );
                    let f: F = core::mem::transmute(f);
                    let (mut o, mut e, mut v, mut n) =
                        (crate::fortran::index(from), k.extra as c_int, a.value as c_int, 0);
                    f(
                        &raw mut o,
                        &raw mut key,
                        &raw mut e,
                        &raw mut v,
                        &raw mut n,
                        &raw mut flag,
                        &raw mut code,
                    );
                    out = n as isize as usize;
                }
                AttrForm::Aint => {
                    type F = unsafe extern "C" fn(
                        *mut c_int,
                        *mut c_int,
                        *mut usize,
                        *mut usize,
                        *mut usize,
                        *mut c_int,
                        *mut c_int,
                    );
                    let f: F = core::mem::transmute(f);
                    let (mut o, mut e, mut v) = (crate::fortran::index(from), k.extra, a.value);
                    f(
                        &raw mut o,
                        &raw mut key,
                        &raw mut e,
                        &raw mut v,
                        &raw mut out,
                        &raw mut flag,
                        &raw mut code,
                    );
                }
            }
            if code != 0 {
                return code;
            }
            if flag != 0 {
                hold(key, 1);
                list(to).push(Attr { keyval: a.keyval, value: out, form: k.form });
            }
        }
    }
    0
}

/// Sets an attribute.
///
/// # Safety
/// `object` is live.
pub unsafe fn set(object: *mut Head, key: c_int, value: usize, form: AttrForm) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        if keyval(key).is_none() {
            return raise(object, ERR_KEYVAL, "MPI_Comm_set_attr");
        }
        if let Some(old) = list(object).iter().find(|a| a.keyval == key).copied() {
            let code = on_delete(object, old);
            if code != 0 {
                return raise(object, code, "MPI_Comm_set_attr");
            }
            list(object).retain(|a| a.keyval != key);
        } else {
            hold(key, 1);
        }
        list(object).push(Attr { keyval: key, value, form });
    }
    0
}

/// Reads an attribute in the language `form`; the width of `*value` follows from it.
///
/// # Safety
/// `object` is live; `value` is writable for the width; `flag` is writable.
pub unsafe fn get(
    object: *mut Head,
    key: c_int,
    value: *mut c_void,
    flag: *mut c_int,
    form: AttrForm,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        let put = |number: isize, place: usize| match form {
            AttrForm::C => *value.cast::<usize>() = place,
            AttrForm::Fint => *value.cast::<c_int>() = number as c_int,
            AttrForm::Aint => *value.cast::<isize>() = number,
        };
        *flag = 0;
        if let Ok(k) = usize::try_from(key)
            && k < 7
        {
            let s = lock();
            if s.present & (1 << k) != 0 {
                *flag = 1;
                put(s.builtin[k] as isize, (&raw const s.builtin[k]).expose_provenance());
            }
            return 0;
        }
        if (7..12).contains(&key) && (*object).kind == Kind::Win {
            let w = &(*object.cast::<Win>()).builtin;
            let i = usize::try_from(key - 7).unwrap_or(0);
            *flag = 1;
            // MPI_WIN_BASE is the address itself, the others are pointed to.
            let place = if i == 0 { w[0] as usize } else { (&raw const w[i]).expose_provenance() };
            put(w[i], place);
            return 0;
        }
        if keyval(key).is_none() && !(0..16).contains(&key) {
            return raise(object, ERR_KEYVAL, "MPI_Comm_get_attr");
        }
        if let Some(a) = list(object).iter().find(|a| a.keyval == key) {
            *flag = 1;
            let place =
                if a.form == AttrForm::C { a.value } else { (&raw const a.value).expose_provenance() };
            put(a.value as isize, place);
        }
    }
    0
}

/// Deletes one attribute.
///
/// # Safety
/// `object` is live.
pub unsafe fn delete(object: *mut Head, key: c_int) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        let Some(a) = list(object).iter().find(|a| a.keyval == key).copied() else {
            return raise(object, ERR_KEYVAL, "MPI_Comm_delete_attr");
        };
        let code = on_delete(object, a);
        if code != 0 {
            return raise(object, code, "MPI_Comm_delete_attr");
        }
        list(object).retain(|a| a.keyval != key);
        hold(key, -1);
    }
    0
}

fn free(key: *mut c_int) -> c_int {
    // SAFETY: the application passes a place for a key.
    unsafe {
        let k = *key;
        let known = {
            let mut s = lock();
            match usize::try_from(k).ok().and_then(|k| s.keyvals.get_mut(k)) {
                Some(Some(v)) if !v.freed => {
                    v.freed = true;
                    true
                }
                _ => false,
            }
        };
        if !known {
            return raise(core::ptr::null_mut(), ERR_KEYVAL, "MPI_Comm_free_keyval");
        }
        hold(k, -1);
        *key = -1;
    }
    0
}

macro_rules! family {
    ($t:ty, $n:literal: $create:ident $free:ident $set:ident $delete:ident) => {
        export! {
            fn $create(copy: usize, delete: usize, key: *mut c_int, extra: usize) -> c_int {
                *key = create($n, copy, delete, extra, AttrForm::C);
                0
            }
            fn $free(key: *mut c_int) -> c_int {
                free(key)
            }
            fn $set(object: *mut $t, key: c_int, value: usize) -> c_int {
                set(object.cast(), key, value, AttrForm::C)
            }
            fn $delete(object: *mut $t, key: c_int) -> c_int {
                delete(object.cast(), key)
            }
        }
    };
}
family!(Comm, 0: MPI_Comm_create_keyval MPI_Comm_free_keyval MPI_Comm_set_attr MPI_Comm_delete_attr);
family!(Datatype, 1: MPI_Type_create_keyval MPI_Type_free_keyval MPI_Type_set_attr MPI_Type_delete_attr);
family!(Win, 2: MPI_Win_create_keyval MPI_Win_free_keyval MPI_Win_set_attr MPI_Win_delete_attr);
family!(Comm, 0: MPI_Keyval_create MPI_Keyval_free MPI_Attr_put MPI_Attr_delete);

export! {
    fn MPI_Attr_get(comm: *mut Comm, key: c_int, value: *mut c_void, flag: *mut c_int) -> c_int {
        get(comm.cast(), key, value, flag, AttrForm::C)
    }
    fn MPI_Type_get_attr(t: *mut Datatype, key: c_int, value: *mut c_void, flag: *mut c_int) -> c_int {
        get(t.cast(), key, value, flag, AttrForm::C)
    }
    fn MPI_Win_get_attr(w: *mut Win, key: c_int, value: *mut c_void, flag: *mut c_int) -> c_int {
        get(w.cast(), key, value, flag, AttrForm::C)
    }
}

/// Copy and delete functions that the standard names, under the library's symbols.
macro_rules! named {
    ($($null_copy:ident $dup:ident $null_delete:ident;)*) => { $(
        /// Copies nothing.
        ///
        /// # Safety
        /// `flag` is writable.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $null_copy(_o: usize, _k: c_int, _e: usize, _v: usize, _n: *mut usize, flag: *mut c_int) -> c_int {
            // SAFETY: the caller's promise.
            unsafe { *flag = 0 };
            0
        }
        /// Copies the value as it is.
        ///
        /// # Safety
        /// `new` and `flag` are writable.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $dup(_o: usize, _k: c_int, _e: usize, v: usize, new: *mut usize, flag: *mut c_int) -> c_int {
            // SAFETY: the caller's promise.
            unsafe { *new = v };
            // SAFETY: the caller's promise.
            unsafe { *flag = 1 };
            0
        }
        /// Does nothing.
        #[unsafe(no_mangle)]
        pub extern "C" fn $null_delete(_o: usize, _k: c_int, _v: usize, _e: usize) -> c_int {
            0
        }
    )* };
}
/// Functions that the standard names.
#[allow(non_snake_case, reason = "the library's names")]
pub mod names {
    use core::ffi::c_int;
    named! {
        OMPI_C_MPI_COMM_NULL_COPY_FN OMPI_C_MPI_COMM_DUP_FN OMPI_C_MPI_COMM_NULL_DELETE_FN;
        OMPI_C_MPI_TYPE_NULL_COPY_FN OMPI_C_MPI_TYPE_DUP_FN OMPI_C_MPI_TYPE_NULL_DELETE_FN;
        OMPI_C_MPI_WIN_NULL_COPY_FN OMPI_C_MPI_WIN_DUP_FN OMPI_C_MPI_WIN_NULL_DELETE_FN;
        OMPI_C_MPI_NULL_COPY_FN OMPI_C_MPI_DUP_FN OMPI_C_MPI_NULL_DELETE_FN;
    }
}
