//! Groups: lists of world ranks, computed here without the library. Upper half.
//!
//! What a reader would get wrong: a group has no real object; one is made for the length of a call that needs it.
#![allow(unsafe_code, reason = "exports functions")]

use core::ffi::c_int;

use crate::errhandler::raise;
use crate::handles::{Comm, Group, Head, Kind, is_live, make, real, unmake};
use crate::{down, export, predefined};

const ERR_GROUP: c_int = 9;
const ERR_RANK: c_int = 6;
const UNDEFINED: c_int = -32766;

/// A group of these world ranks; the empty one is the predefined one.
pub fn of(ranks: Vec<u32>) -> *mut Group {
    if ranks.is_empty() {
        return predefined!(ompi_mpi_group_empty as Group);
    }
    let group = make(Group { head: Head::new(Kind::Group, 0), ranks });
    // Open MPI's Fortran library reads the integer without asking for it.
    // SAFETY: made here.
    unsafe { crate::fortran::index(group.cast()) };
    group
}

/// MPI_IDENT 0, MPI_SIMILAR 2 or MPI_UNEQUAL 3.
pub fn compare(a: &[u32], b: &[u32]) -> c_int {
    if a == b {
        return 0;
    }
    let (mut a, mut b) = (a.to_vec(), b.to_vec());
    a.sort_unstable();
    b.sort_unstable();
    if a == b { 2 } else { 3 }
}

/// A real group for one call; [`lower_free`] ends it.
///
/// # Safety
/// `g` is a handle.
pub unsafe fn lower(g: *mut Group) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        if (*g).head.predefined >= 0 {
            return real(g);
        }
        lower_of(&(*g).ranks)
    }
}

/// A real group of these world ranks; [`lower_free`] ends it.
pub fn lower_of(ranks: &[u32]) -> usize {
    let ranks: Vec<c_int> = ranks.iter().map(|&r| c_int::try_from(r).unwrap_or(UNDEFINED)).collect();
    let (mut world, mut out) = (0usize, 0usize);
    // SAFETY: the predefined object lives for ever.
    let w = unsafe { real(predefined!(ompi_mpi_comm_world as Comm)) };
    down!(MPI_Comm_group(c: usize = w, g: *mut usize = &raw mut world) -> c_int);
    down!(MPI_Group_incl(
        g: usize = world, n: c_int = c_int::try_from(ranks.len()).unwrap_or(0), r: *const c_int = ranks.as_ptr(),
        o: *mut usize = &raw mut out) -> c_int);
    down!(MPI_Group_free(g: *mut usize = &raw mut world) -> c_int);
    out
}

/// Ends what [`lower`] made.
pub fn lower_free(g: &mut usize) {
    if crate::predefined::of_real(*g).is_none() && *g != 0 {
        down!(MPI_Group_free(g: *mut usize = core::ptr::from_mut(g)) -> c_int);
    }
}

/// World ranks of a group.
///
/// # Safety
/// `g` is live while the result is used.
unsafe fn ranks_of<'a>(g: *const Group) -> &'a [u32] {
    // SAFETY: the caller's promise.
    unsafe { &(*g).ranks }
}

fn mine() -> u32 {
    crate::state::lock().rank
}

fn position(ranks: &[u32], world: u32) -> c_int {
    ranks.iter().position(|&r| r == world).and_then(|i| c_int::try_from(i).ok()).unwrap_or(UNDEFINED)
}

unsafe fn list<'a>(at: *const c_int, n: c_int) -> &'a [c_int] {
    match usize::try_from(n) {
        Ok(n) if n > 0 && !at.is_null() => {
            // SAFETY: the application passes `n` integers.
            unsafe { core::slice::from_raw_parts(at, n) }
        }
        _ => &[],
    }
}

/// Ranks named by triplets (first, last, stride); `None` if one is wrong.
fn ranges(triplets: &[c_int], size: usize) -> Option<Vec<usize>> {
    let mut out = Vec::new();
    for t in triplets.chunks_exact(3) {
        let (mut at, last, stride) = (t[0], t[1], t[2]);
        if stride == 0 {
            return None;
        }
        while (stride > 0 && at <= last) || (stride < 0 && at >= last) {
            out.push(usize::try_from(at).ok().filter(|&i| i < size)?);
            at += stride;
        }
    }
    Some(out)
}

fn indices(list: &[c_int], size: usize) -> Option<Vec<usize>> {
    list.iter().map(|&r| usize::try_from(r).ok().filter(|&i| i < size)).collect()
}

macro_rules! check {
    ($g:ident, $name:literal) => {
        if !is_live($g, Kind::Group) || $g == predefined!(ompi_mpi_group_null as Group) {
            return raise(core::ptr::null_mut(), ERR_GROUP, $name);
        }
    };
}

unsafe fn pick(
    g: *mut Group,
    which: Option<Vec<usize>>,
    keep: bool,
    out: *mut *mut Group,
    name: &str,
) -> c_int {
    // SAFETY: the exported functions check `g`.
    unsafe {
        let ranks = &(*g).ranks;
        let Some(which) = which else {
            return raise(core::ptr::null_mut(), ERR_RANK, name);
        };
        *out = of(if keep {
            which.iter().map(|&i| ranks[i]).collect()
        } else {
            (0..ranks.len()).filter(|i| !which.contains(i)).map(|i| ranks[i]).collect()
        });
    }
    0
}

export! {
    fn MPI_Group_size(g: *mut Group, size: *mut c_int) -> c_int {
        check!(g, "MPI_Group_size");
        *size = c_int::try_from(ranks_of(g).len()).unwrap_or(0);
        0
    }
    fn MPI_Group_rank(g: *mut Group, rank: *mut c_int) -> c_int {
        check!(g, "MPI_Group_rank");
        *rank = position(ranks_of(g), mine());
        0
    }
    fn MPI_Group_translate_ranks(a: *mut Group, n: c_int, from: *const c_int, b: *mut Group, to: *mut c_int) -> c_int {
        check!(a, "MPI_Group_translate_ranks");
        check!(b, "MPI_Group_translate_ranks");
        for (i, &r) in list(from, n).iter().enumerate() {
            *to.add(i) = if r == -2 {
                -2
            } else {
                let Some(&w) = usize::try_from(r).ok().and_then(|r| ranks_of(a).get(r)) else {
                    return raise(core::ptr::null_mut(), ERR_RANK, "MPI_Group_translate_ranks");
                };
                position(ranks_of(b), w)
            };
        }
        0
    }
    fn MPI_Group_compare(a: *mut Group, b: *mut Group, result: *mut c_int) -> c_int {
        check!(a, "MPI_Group_compare");
        check!(b, "MPI_Group_compare");
        *result = compare(ranks_of(a), ranks_of(b));
        0
    }
    fn MPI_Group_union(a: *mut Group, b: *mut Group, out: *mut *mut Group) -> c_int {
        check!(a, "MPI_Group_union");
        check!(b, "MPI_Group_union");
        let mut ranks = ranks_of(a).to_vec();
        ranks.extend(ranks_of(b).iter().filter(|r| !ranks_of(a).contains(r)));
        *out = of(ranks);
        0
    }
    fn MPI_Group_intersection(a: *mut Group, b: *mut Group, out: *mut *mut Group) -> c_int {
        check!(a, "MPI_Group_intersection");
        check!(b, "MPI_Group_intersection");
        *out = of(ranks_of(a).iter().filter(|r| ranks_of(b).contains(r)).copied().collect());
        0
    }
    fn MPI_Group_difference(a: *mut Group, b: *mut Group, out: *mut *mut Group) -> c_int {
        check!(a, "MPI_Group_difference");
        check!(b, "MPI_Group_difference");
        *out = of(ranks_of(a).iter().filter(|r| !ranks_of(b).contains(r)).copied().collect());
        0
    }
    fn MPI_Group_incl(g: *mut Group, n: c_int, ranks: *const c_int, out: *mut *mut Group) -> c_int {
        check!(g, "MPI_Group_incl");
        let size = ranks_of(g).len();
        pick(g, indices(list(ranks, n), size), true, out, "MPI_Group_incl")
    }
    fn MPI_Group_excl(g: *mut Group, n: c_int, ranks: *const c_int, out: *mut *mut Group) -> c_int {
        check!(g, "MPI_Group_excl");
        let size = ranks_of(g).len();
        pick(g, indices(list(ranks, n), size), false, out, "MPI_Group_excl")
    }
    fn MPI_Group_range_incl(g: *mut Group, n: c_int, r: *const c_int, out: *mut *mut Group) -> c_int {
        check!(g, "MPI_Group_range_incl");
        let size = ranks_of(g).len();
        pick(g, ranges(list(r, n * 3), size), true, out, "MPI_Group_range_incl")
    }
    fn MPI_Group_range_excl(g: *mut Group, n: c_int, r: *const c_int, out: *mut *mut Group) -> c_int {
        check!(g, "MPI_Group_range_excl");
        let size = ranks_of(g).len();
        pick(g, ranges(list(r, n * 3), size), false, out, "MPI_Group_range_excl")
    }
    fn MPI_Group_free(g: *mut *mut Group) -> c_int {
        let group = *g;
        check!(group, "MPI_Group_free");
        if (*group).head.predefined < 0 {
            unmake(group);
        }
        *g = predefined!(ompi_mpi_group_null as Group);
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_go_both_ways_and_refuse_what_is_outside() {
        assert_eq!(ranges(&[0, 6, 3, 2, 0, -2], 7), Some(vec![0, 3, 6, 2, 0]));
        assert_eq!(ranges(&[0, 7, 7], 7), None);
        assert_eq!(ranges(&[0, 1, 0], 7), None);
    }

    #[test]
    fn comparison_is_of_order_then_of_members() {
        assert_eq!(compare(&[1, 2], &[1, 2]), 0);
        assert_eq!(compare(&[1, 2], &[2, 1]), 2);
        assert_eq!(compare(&[1, 2], &[1, 3]), 3);
    }
}
