//! Datatypes: real ones below, their recipes and sizes above. Upper half.
//!
//! What a reader would get wrong: a recipe holds the types in it. A type that the application has freed is still made
//! again at a restart if another one needs it; `Datatype::serial` gives the order in which that works.
#![allow(unsafe_code, reason = "exports functions")]

use core::ffi::{c_int, c_void};

use crate::cross::Inside;
use crate::errhandler::raise;
use crate::handles::{
    Datatype, FLAG_COMMITTED, Head, Kind, Recipe, is_live, make, real, release, retain, unmake,
};
use crate::state::lock;
use crate::{down, export, predefined};

pub(crate) const ERR_TYPE: c_int = 3;
const ERR_ARG: c_int = 13;

/// Combiners, as Open MPI numbers them.
pub(crate) mod combiner {
    use core::ffi::c_int;
    pub(super) const DUP: c_int = 1;
    pub(super) const CONTIGUOUS: c_int = 2;
    pub(super) const VECTOR: c_int = 3;
    pub(super) const HVECTOR: c_int = 5;
    pub(super) const INDEXED: c_int = 6;
    pub(super) const HINDEXED: c_int = 8;
    pub(super) const INDEXED_BLOCK: c_int = 9;
    pub(super) const STRUCT: c_int = 11;
    pub(super) const SUBARRAY: c_int = 12;
    pub(super) const DARRAY: c_int = 13;
    pub(crate) const F90_REAL: c_int = 14;
    pub(crate) const F90_COMPLEX: c_int = 15;
    pub(crate) const F90_INTEGER: c_int = 16;
    pub(super) const RESIZED: c_int = 17;
    pub(super) const HINDEXED_BLOCK: c_int = 18;
}

/// Asks the library for the sizes of `t`.
fn measure(t: &mut Datatype) {
    let at = t.head.real();
    down!(MPI_Type_size_x(t: usize = at, s: *mut i64 = &raw mut t.size) -> c_int);
    down!(MPI_Type_get_extent_x(t: usize = at, l: *mut i64 = &raw mut t.lb, e: *mut i64 = &raw mut t.extent) -> c_int);
    down!(MPI_Type_get_true_extent_x(
        t: usize = at, l: *mut i64 = &raw mut t.true_lb, e: *mut i64 = &raw mut t.true_extent) -> c_int);
    t.keyhash = &raw mut *t;
}

/// Describes the predefined types after MPI_Init.
pub fn first() {
    use stillpoint_mpi_table::{N_PREDEFINED, Predefined};
    for i in 0..N_PREDEFINED {
        let o = crate::predefined::address(i);
        // SAFETY: predefined objects live for ever; before MPI_Init returns nobody else uses them.
        unsafe {
            let null =
                [Predefined::ompi_mpi_datatype_null as usize, Predefined::ompi_mpi_unavailable as usize];
            if (*o).kind == Kind::Datatype && (*o).real() != 0 && !null.contains(&i) {
                let t = &mut *o.cast::<Datatype>();
                measure(t);
                t.head.set(FLAG_COMMITTED);
                t.name = crate::predefined::STANDARD_NAMES[i].as_bytes().to_vec();
            }
        }
    }
}

/// Makes the real type of a recipe: at creation, and again at a restart.
pub fn cook(r: &Recipe) -> (c_int, usize) {
    let mut at = 0usize;
    let new = &raw mut at;
    // SAFETY: the types of a recipe are held by it.
    let types: Vec<usize> = r.types.iter().map(|&t| unsafe { real(t) }).collect();
    let t = types.first().copied().unwrap_or(0);
    let (i, a) = (&r.ints, &r.aints);
    let int = |k: usize| i.get(k).copied().unwrap_or(0);
    let aint = |k: usize| a.get(k).copied().unwrap_or(0);
    let n = usize::try_from(int(0)).unwrap_or(0);
    let part = |from: usize, len: usize| i.get(from..from + len).map_or(core::ptr::null(), <[c_int]>::as_ptr);
    let code = match r.combiner {
        combiner::DUP => down!(MPI_Type_dup(t: usize = t, o: *mut usize = new) -> c_int),
        combiner::CONTIGUOUS => {
            down!(MPI_Type_contiguous(n: c_int = int(0), t: usize = t, o: *mut usize = new) -> c_int)
        }
        combiner::VECTOR => down!(MPI_Type_vector(
            n: c_int = int(0), b: c_int = int(1), s: c_int = int(2), t: usize = t, o: *mut usize = new) -> c_int),
        combiner::HVECTOR => down!(MPI_Type_create_hvector(
            n: c_int = int(0), b: c_int = int(1), s: isize = aint(0), t: usize = t, o: *mut usize = new) -> c_int),
        combiner::INDEXED => down!(MPI_Type_indexed(
            n: c_int = int(0), b: *const c_int = part(1, n), d: *const c_int = part(1 + n, n), t: usize = t,
            o: *mut usize = new) -> c_int),
        combiner::HINDEXED => down!(MPI_Type_create_hindexed(
            n: c_int = int(0), b: *const c_int = part(1, n), d: *const isize = a.as_ptr(), t: usize = t,
            o: *mut usize = new) -> c_int),
        combiner::INDEXED_BLOCK => down!(MPI_Type_create_indexed_block(
            n: c_int = int(0), b: c_int = int(1), d: *const c_int = part(2, n), t: usize = t,
            o: *mut usize = new) -> c_int),
        combiner::HINDEXED_BLOCK => down!(MPI_Type_create_hindexed_block(
            n: c_int = int(0), b: c_int = int(1), d: *const isize = a.as_ptr(), t: usize = t,
            o: *mut usize = new) -> c_int),
        combiner::STRUCT => down!(MPI_Type_create_struct(
            n: c_int = int(0), b: *const c_int = part(1, n), d: *const isize = a.as_ptr(),
            t: *const usize = types.as_ptr(), o: *mut usize = new) -> c_int),
        combiner::SUBARRAY => down!(MPI_Type_create_subarray(
            n: c_int = int(0), s: *const c_int = part(1, n), u: *const c_int = part(1 + n, n),
            f: *const c_int = part(1 + 2 * n, n), order: c_int = int(1 + 3 * n), t: usize = t,
            o: *mut usize = new) -> c_int),
        combiner::DARRAY => {
            let n = usize::try_from(int(2)).unwrap_or(0);
            down!(MPI_Type_create_darray(
                z: c_int = int(0), r: c_int = int(1), n: c_int = int(2), g: *const c_int = part(3, n),
                d: *const c_int = part(3 + n, n), x: *const c_int = part(3 + 2 * n, n),
                p: *const c_int = part(3 + 3 * n, n), order: c_int = int(3 + 4 * n), t: usize = t,
                o: *mut usize = new) -> c_int)
        }
        combiner::RESIZED => down!(MPI_Type_create_resized(
            t: usize = t, l: isize = aint(0), e: isize = aint(1), o: *mut usize = new) -> c_int),
        combiner::F90_REAL => {
            down!(MPI_Type_create_f90_real(p: c_int = int(0), r: c_int = int(1), o: *mut usize = new) -> c_int)
        }
        combiner::F90_COMPLEX => {
            down!(MPI_Type_create_f90_complex(p: c_int = int(0), r: c_int = int(1), o: *mut usize = new) -> c_int)
        }
        combiner::F90_INTEGER => {
            down!(MPI_Type_create_f90_integer(r: c_int = int(0), o: *mut usize = new) -> c_int)
        }
        _ => ERR_TYPE,
    };
    (code, at)
}

/// Makes a type from what MPI_Type_get_contents would tell of it.
pub(crate) unsafe fn create(
    combiner: c_int,
    ints: Vec<c_int>,
    aints: Vec<isize>,
    types: Vec<*mut Datatype>,
    new: *mut *mut Datatype,
    name: &str,
) -> c_int {
    // SAFETY: the application passes handles and a place for the new one.
    unsafe {
        if !types.iter().all(|&t| valid(t)) {
            return raise(core::ptr::null_mut(), ERR_TYPE, name);
        }
        let recipe = Recipe { combiner, ints, aints, types };
        // From the library's handle to the list of types that a restart makes again, the thread is not stopped.
        let inside = Inside::enter();
        let (code, at) = cook(&recipe);
        if code != 0 {
            drop(inside);
            return raise(core::ptr::null_mut(), code, name);
        }
        recipe.types.iter().for_each(|&t| retain(t));
        let t = make(Datatype::new(Head::new(Kind::Datatype, at)));
        measure(&mut *t);
        (*t).recipe = Some(Box::new(recipe));
        let mut s = lock();
        s.type_serial += 1;
        (*t).serial = s.type_serial;
        s.types.push(t);
        *new = t;
    }
    0
}

/// One holder less; at the last one the type ends.
///
/// # Safety
/// `t` is live and held by the caller.
pub unsafe fn let_go(t: *mut Datatype) {
    // SAFETY: the caller's promise.
    unsafe {
        if release(t) {
            end(t);
        }
    }
}

/// The real type is freed, and what its recipe held is let go.
///
/// # Safety
/// `t` is live, and its last holder has let go of it.
pub(crate) unsafe fn end(t: *mut Datatype) {
    // SAFETY: the caller's promise.
    unsafe {
        let _inside = Inside::enter();
        lock().types.retain(|&o| o != t);
        let mut at = (*t).head.real();
        down!(MPI_Type_free(t: *mut usize = &raw mut at) -> c_int);
        let parts = (*t).recipe.take();
        unmake(t);
        if let Some(r) = parts {
            r.types.iter().for_each(|&p| let_go(p));
        }
    }
}

fn valid(t: *mut Datatype) -> bool {
    // SAFETY: what the application passes as a datatype is a handle.
    unsafe { is_live(t, Kind::Datatype) && t != predefined!(ompi_mpi_datatype_null as Datatype) }
}

unsafe fn some<T: Copy>(at: *const T, n: c_int) -> Vec<T> {
    match usize::try_from(n) {
        Ok(n) if n > 0 && !at.is_null() => {
            // SAFETY: the application passes `n` elements.
            unsafe { core::slice::from_raw_parts(at, n) }.to_vec()
        }
        _ => Vec::new(),
    }
}

macro_rules! check {
    ($t:ident, $name:literal) => {
        if !valid($t) {
            return raise(core::ptr::null_mut(), ERR_TYPE, $name);
        }
    };
}
macro_rules! tells {
    ($($name:ident: $ty:ty, $($out:ident = $field:ident),*;)*) => {
        export! { $(
            fn $name(t: *mut Datatype, $($out: *mut $ty),*) -> c_int {
                if !valid(t) {
                    return raise(core::ptr::null_mut(), ERR_TYPE, stringify!($name));
                }
                $(*$out = <$ty>::try_from((*t).$field).unwrap_or(-32766);)*
                0
            }
        )* }
    };
}
tells! {
    MPI_Type_size: c_int, size = size;
    MPI_Type_size_x: i64, size = size;
    MPI_Type_get_extent: i64, lb = lb, extent = extent;
    MPI_Type_get_extent_x: i64, lb = lb, extent = extent;
    MPI_Type_get_true_extent: i64, lb = true_lb, extent = true_extent;
    MPI_Type_get_true_extent_x: i64, lb = true_lb, extent = true_extent;
    MPI_Type_extent: i64, extent = extent;
    MPI_Type_lb: i64, lb = lb;
}

export! {
    fn MPI_Type_ub(t: *mut Datatype, ub: *mut i64) -> c_int {
        check!(t, "MPI_Type_ub");
        *ub = (*t).lb + (*t).extent;
        0
    }
    fn MPI_Type_contiguous(n: c_int, t: *mut Datatype, new: *mut *mut Datatype) -> c_int {
        create(combiner::CONTIGUOUS, vec![n], vec![], vec![t], new, "MPI_Type_contiguous")
    }
    fn MPI_Type_vector(n: c_int, b: c_int, s: c_int, t: *mut Datatype, new: *mut *mut Datatype) -> c_int {
        create(combiner::VECTOR, vec![n, b, s], vec![], vec![t], new, "MPI_Type_vector")
    }
    fn MPI_Type_create_hvector(n: c_int, b: c_int, s: isize, t: *mut Datatype, new: *mut *mut Datatype) -> c_int {
        create(combiner::HVECTOR, vec![n, b], vec![s], vec![t], new, "MPI_Type_create_hvector")
    }
    fn MPI_Type_hvector(n: c_int, b: c_int, s: isize, t: *mut Datatype, new: *mut *mut Datatype) -> c_int {
        MPI_Type_create_hvector(n, b, s, t, new)
    }
    fn MPI_Type_indexed(n: c_int, b: *const c_int, d: *const c_int, t: *mut Datatype, new: *mut *mut Datatype) -> c_int {
        let mut i = vec![n];
        i.extend(some(b, n));
        i.extend(some(d, n));
        create(combiner::INDEXED, i, vec![], vec![t], new, "MPI_Type_indexed")
    }
    fn MPI_Type_create_hindexed(n: c_int, b: *const c_int, d: *const isize, t: *mut Datatype, new: *mut *mut Datatype) -> c_int {
        let mut i = vec![n];
        i.extend(some(b, n));
        create(combiner::HINDEXED, i, some(d, n), vec![t], new, "MPI_Type_create_hindexed")
    }
    fn MPI_Type_hindexed(n: c_int, b: *const c_int, d: *const isize, t: *mut Datatype, new: *mut *mut Datatype) -> c_int {
        MPI_Type_create_hindexed(n, b, d, t, new)
    }
    fn MPI_Type_create_indexed_block(n: c_int, b: c_int, d: *const c_int, t: *mut Datatype, new: *mut *mut Datatype) -> c_int {
        let mut i = vec![n, b];
        i.extend(some(d, n));
        create(combiner::INDEXED_BLOCK, i, vec![], vec![t], new, "MPI_Type_create_indexed_block")
    }
    fn MPI_Type_create_hindexed_block(n: c_int, b: c_int, d: *const isize, t: *mut Datatype, new: *mut *mut Datatype) -> c_int {
        create(combiner::HINDEXED_BLOCK, vec![n, b], some(d, n), vec![t], new, "MPI_Type_create_hindexed_block")
    }
    fn MPI_Type_create_struct(n: c_int, b: *const c_int, d: *const isize, t: *const *mut Datatype, new: *mut *mut Datatype) -> c_int {
        let mut i = vec![n];
        i.extend(some(b, n));
        create(combiner::STRUCT, i, some(d, n), some(t, n), new, "MPI_Type_create_struct")
    }
    fn MPI_Type_struct(n: c_int, b: *const c_int, d: *const isize, t: *const *mut Datatype, new: *mut *mut Datatype) -> c_int {
        MPI_Type_create_struct(n, b, d, t, new)
    }
    fn MPI_Type_create_subarray(n: c_int, s: *const c_int, u: *const c_int, f: *const c_int, order: c_int, t: *mut Datatype, new: *mut *mut Datatype) -> c_int {
        let mut i = vec![n];
        i.extend(some(s, n));
        i.extend(some(u, n));
        i.extend(some(f, n));
        i.push(order);
        create(combiner::SUBARRAY, i, vec![], vec![t], new, "MPI_Type_create_subarray")
    }
    fn MPI_Type_create_darray(z: c_int, r: c_int, n: c_int, g: *const c_int, d: *const c_int, a: *const c_int, p: *const c_int, order: c_int, t: *mut Datatype, new: *mut *mut Datatype) -> c_int {
        let mut i = vec![z, r, n];
        for list in [g, d, a, p] {
            i.extend(some(list, n));
        }
        i.push(order);
        create(combiner::DARRAY, i, vec![], vec![t], new, "MPI_Type_create_darray")
    }
    fn MPI_Type_create_resized(t: *mut Datatype, lb: isize, extent: isize, new: *mut *mut Datatype) -> c_int {
        create(combiner::RESIZED, vec![], vec![lb, extent], vec![t], new, "MPI_Type_create_resized")
    }
    fn MPI_Type_dup(t: *mut Datatype, new: *mut *mut Datatype) -> c_int {
        let code = create(combiner::DUP, vec![], vec![], vec![t], new, "MPI_Type_dup");
        if code != 0 {
            return code;
        }
        if (*t).head.has(FLAG_COMMITTED) {
            (**new).head.set(FLAG_COMMITTED);
        }
        crate::attr::copy_all(t.cast(), (*new).cast())
    }
    fn MPI_Type_commit(t: *mut *mut Datatype) -> c_int {
        let ty = *t;
        check!(ty, "MPI_Type_commit");
        if (*ty).head.has(FLAG_COMMITTED) {
            return 0;
        }
        let code = {
            let _inside = Inside::enter();
            let mut at = real(ty);
            let code = down!(MPI_Type_commit(t: *mut usize = &raw mut at) -> c_int);
            (*ty).head.set(FLAG_COMMITTED);
            code
        };
        raise(core::ptr::null_mut(), code, "MPI_Type_commit")
    }
    fn MPI_Type_free(t: *mut *mut Datatype) -> c_int {
        let ty = *t;
        check!(ty, "MPI_Type_free");
        if (*ty).head.predefined >= 0 {
            return raise(core::ptr::null_mut(), ERR_TYPE, "MPI_Type_free");
        }
        let code = crate::attr::delete_all(ty.cast());
        if code != 0 {
            return raise(core::ptr::null_mut(), code, "MPI_Type_free");
        }
        let_go(ty);
        *t = predefined!(ompi_mpi_datatype_null as Datatype);
        0
    }
    fn MPI_Type_get_envelope(t: *mut Datatype, ni: *mut c_int, na: *mut c_int, nd: *mut c_int, c: *mut c_int) -> c_int {
        check!(t, "MPI_Type_get_envelope");
        let count = |n: usize| c_int::try_from(n).unwrap_or(0);
        match &(*t).recipe {
            Some(r) => {
                (*ni, *na, *nd, *c) = (count(r.ints.len()), count(r.aints.len()), count(r.types.len()), r.combiner);
            }
            None => (*ni, *na, *nd, *c) = (0, 0, 0, 0),
        }
        0
    }
    fn MPI_Type_get_contents(t: *mut Datatype, ni: c_int, na: c_int, nd: c_int, i: *mut c_int, a: *mut isize, d: *mut *mut Datatype) -> c_int {
        check!(t, "MPI_Type_get_contents");
        let Some(r) = &(*t).recipe else {
            return raise(core::ptr::null_mut(), ERR_TYPE, "MPI_Type_get_contents");
        };
        let room = |n: c_int, have: usize| usize::try_from(n).is_ok_and(|n| n >= have);
        if !room(ni, r.ints.len()) || !room(na, r.aints.len()) || !room(nd, r.types.len()) {
            return raise(core::ptr::null_mut(), ERR_ARG, "MPI_Type_get_contents");
        }
        core::ptr::copy_nonoverlapping(r.ints.as_ptr(), i, r.ints.len());
        core::ptr::copy_nonoverlapping(r.aints.as_ptr(), a, r.aints.len());
        for (k, &p) in r.types.iter().enumerate() {
            if (*p).head.predefined < 0 {
                retain(p);
            }
            *d.add(k) = p;
        }
        0
    }
    fn MPI_Get_address(location: *const c_void, address: *mut isize) -> c_int {
        *address = location.expose_provenance() as isize;
        0
    }
    fn MPI_Address(location: *mut c_void, address: *mut isize) -> c_int {
        *address = location.expose_provenance() as isize;
        0
    }
    fn MPI_Type_match_size(class: c_int, size: c_int, t: *mut *mut Datatype) -> c_int {
        let mut at = 0usize;
        let code = down!(MPI_Type_match_size(c: c_int = class, s: c_int = size, t: *mut usize = &raw mut at) -> c_int);
        named(code, at, t, "MPI_Type_match_size")
    }
}

unsafe fn named(code: c_int, at: usize, t: *mut *mut Datatype, name: &str) -> c_int {
    // SAFETY: the application passes a place for a handle.
    unsafe {
        match crate::predefined::of_real(at) {
            Some(o) if code == 0 => {
                *t = o.cast();
                0
            }
            _ => raise(core::ptr::null_mut(), if code == 0 { ERR_ARG } else { code }, name),
        }
    }
}
