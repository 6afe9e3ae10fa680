//! After a restart: real objects behind the virtual ones, in a new MPI library. Upper half, on the still stack and the
//! main thread's thread pointer, while every thread of the rank stands still.
//!
//! ```text
//!   MPI_Init at the old level ─▶ errors ─▶ types by serial ─▶ operations ─▶ communicators by identity ─▶ receives
//! ```
//!
//! A communicator is made from its recorded members, never by the call that made it once: MPI_Comm_split_type would
//! find other neighbours here, and a reordered topology other ranks.
//!
//! What a reader would get wrong: that nobody waits for ever. Making a communicator waits for its members only, and
//! each rank makes its own in the ascending order of identities that all agree on. Take the smallest identity that is
//! not made yet: each of its members has made all that it has below it, so all of them are at this one.
#![allow(unsafe_code, reason = "works on objects through raw pointers")]

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::c_int;

use stillpoint_abi::half::StillArg;

use crate::comm::hidden;
use crate::handles::{Comm, Errhandler, FLAG_COMMITTED, FLAG_FREED, FLAG_KEPT, Op, Topology, real};
use crate::state::lock;
use crate::{down, predefined};

/// The first of the predefined keys.
const TAG_UB: c_int = 0;

/// Has the library of this start loaded, and learns where its predefined objects are.
pub(crate) fn connect() {
    crate::env::load();
    crate::predefined::connect();
}

/// What has to be made for a communicator, in ascending order of identity.
fn order(mut all: Vec<(u64, *mut Comm)>) -> Vec<*mut Comm> {
    all.sort_by_key(|c| c.0);
    all.into_iter().map(|c| c.1).collect()
}

/// A tag that the members of a communicator agree on without talking.
fn tag(gid: u64) -> c_int {
    ((gid ^ (gid >> 32)) & 0x7fff) as c_int
}

fn ok(code: c_int, what: &str) -> Result<(), String> {
    if code == 0 {
        return Ok(());
    }
    let (mut text, mut len) = ([0u8; 256], 0);
    down!(MPI_Error_string(c: c_int = code, t: *mut u8 = text.as_mut_ptr(), l: *mut c_int = &raw mut len) -> c_int);
    let len = usize::try_from(len).unwrap_or(0).min(text.len());
    Err(format!("{what}: {}", String::from_utf8_lossy(&text[..len])))
}

fn world() -> usize {
    // SAFETY: predefined objects live for ever.
    unsafe { real(predefined!(ompi_mpi_comm_world as Comm)) }
}

fn parent() -> usize {
    // SAFETY: lives for ever.
    unsafe { real(hidden()) }
}

fn init() -> Result<(), String> {
    let (required, provided, rank, size, tag_ub) = {
        let s = lock();
        (s.required, s.provided, s.rank, s.size, s.builtin[0])
    };
    let (code, got) = crate::env::start(required);
    ok(code, "MPI_Init_thread")?;
    if got < provided {
        return Err(format!("this MPI library offers thread level {got}, the program was given {provided}"));
    }
    let (mut r, mut n): (c_int, c_int) = (0, 0);
    let w = world();
    ok(down!(MPI_Comm_rank(c: usize = w, r: *mut c_int = &raw mut r) -> c_int), "MPI_Comm_rank")?;
    ok(down!(MPI_Comm_size(c: usize = w, n: *mut c_int = &raw mut n) -> c_int), "MPI_Comm_size")?;
    if (i64::from(r), i64::from(n)) != (i64::from(rank), i64::from(size)) {
        return Err(format!("this is rank {r} of {n}, the image is of rank {rank} of {size}"));
    }
    let (code, now) = crate::attr::builtin(TAG_UB);
    ok(code, "MPI_Comm_get_attr")?;
    let now = now.unwrap_or(0);
    if now < tag_ub {
        return Err(format!("this MPI library allows tags up to {now}, the program was told {tag_ub}"));
    }
    Ok(())
}

fn tools() -> Result<(), String> {
    let (calls, required) = lock().tools;
    if calls != 0 {
        ok(crate::tool::start(required).0, "MPI_T_init_thread")?;
    }
    Ok(())
}

fn errors() -> Result<(), String> {
    let calls = lock().errors.clone();
    for (kind, value, text) in calls {
        let mut out: c_int = 0;
        let code = match kind {
            0 => down!(MPI_Add_error_class(k: *mut c_int = &raw mut out) -> c_int),
            1 => down!(MPI_Add_error_code(k: c_int = value, c: *mut c_int = &raw mut out) -> c_int),
            _ => down!(MPI_Add_error_string(c: c_int = value, t: *const u8 = text.as_ptr()) -> c_int),
        };
        ok(code, "the program's error codes")?;
        if kind == 0 && out != value {
            return Err(format!("error class {value} of the program is {out} in this MPI library"));
        }
    }
    Ok(())
}

fn types() -> Result<(), String> {
    let mut all = lock().types.clone();
    // SAFETY: the list holds live types.
    unsafe {
        all.sort_by_key(|&t| (*t).serial);
        for t in all {
            let Some(recipe) = &(*t).recipe else { continue };
            let (code, mut at) = crate::types::cook(recipe);
            ok(code, &format!("datatype number {}", (*t).serial))?;
            if (*t).head.has(FLAG_COMMITTED) {
                ok(down!(MPI_Type_commit(t: *mut usize = &raw mut at) -> c_int), "MPI_Type_commit")?;
            }
            (*t).head.set_real(at);
        }
    }
    Ok(())
}

fn operations() -> Result<(), String> {
    let all: Vec<*mut Op> = lock().ops.iter().copied().filter(|o| !o.is_null()).collect();
    for o in all {
        // SAFETY: the list holds live operations.
        ok(crate::op::cook(unsafe { &*o }), "MPI_Op_create")?;
    }
    Ok(())
}

/// An intracommunicator of these world ranks, in their order.
fn intra(ranks: &[u32], gid: u64) -> Result<usize, String> {
    let mut g = crate::group::lower_of(ranks);
    let mut at = 0usize;
    let code = down!(MPI_Comm_create_group(c: usize = parent(), g: usize = g, t: c_int = tag(gid),
        n: *mut usize = &raw mut at) -> c_int);
    crate::group::lower_free(&mut g);
    ok(code, "MPI_Comm_create_group")?;
    Ok(at)
}

/// An intercommunicator: a local group on each side, then the two by their first members.
fn inter(c: &Comm) -> Result<usize, String> {
    let mut local = intra(&c.local, c.gid)?;
    let leader = c.remote.first().map_or(0, |&w| c_int::try_from(w).unwrap_or(0));
    let mut at = 0usize;
    let code = down!(MPI_Intercomm_create(l: usize = local, a: c_int = 0, b: usize = parent(), r: c_int = leader,
        t: c_int = tag(c.gid), n: *mut usize = &raw mut at) -> c_int);
    down!(MPI_Comm_free(c: *mut usize = &raw mut local) -> c_int);
    ok(code, "MPI_Intercomm_create")?;
    Ok(at)
}

fn count(n: usize) -> c_int {
    c_int::try_from(n).unwrap_or(0)
}

/// MPI_UNWEIGHTED and MPI_WEIGHTS_EMPTY of Open MPI, or the weights.
fn weights(list: &[c_int], weighted: bool) -> *const c_int {
    match (weighted, list.is_empty()) {
        (false, _) => core::ptr::without_provenance(2),
        (true, true) => core::ptr::without_provenance(3),
        (true, false) => list.as_ptr(),
    }
}

/// The communicator below with the topology that it had: neighbourhood collectives ask the library for it.
fn shaped(c: &Comm, mut plain: usize) -> Result<usize, String> {
    let mut at = 0usize;
    let new = &raw mut at;
    let (code, what) = match &c.topology {
        Topology::None => return Ok(plain),
        Topology::Cart { dims, periods } => {
            let code = down!(MPI_Cart_create(c: usize = plain, n: c_int = count(dims.len()),
                d: *const c_int = dims.as_ptr(), p: *const c_int = periods.as_ptr(), r: c_int = 0,
                o: *mut usize = new) -> c_int);
            (code, "MPI_Cart_create")
        }
        Topology::Graph { index, edges } => {
            let code = down!(MPI_Graph_create(c: usize = plain, n: c_int = count(index.len()),
                i: *const c_int = index.as_ptr(), e: *const c_int = edges.as_ptr(), r: c_int = 0,
                o: *mut usize = new) -> c_int);
            (code, "MPI_Graph_create")
        }
        Topology::Dist { sources, source_weights, destinations, destination_weights, weighted } => {
            let none = crate::predefined!(ompi_mpi_info_null as crate::handles::Info);
            // SAFETY: predefined objects live for ever.
            let none = unsafe { real(none) };
            let code = down!(MPI_Dist_graph_create_adjacent(c: usize = plain, ni: c_int = count(sources.len()),
                s: *const c_int = sources.as_ptr(), sw: *const c_int = weights(source_weights, *weighted),
                no: c_int = count(destinations.len()), d: *const c_int = destinations.as_ptr(),
                dw: *const c_int = weights(destination_weights, *weighted), i: usize = none, r: c_int = 0,
                o: *mut usize = new) -> c_int);
            (code, "MPI_Dist_graph_create_adjacent")
        }
    };
    down!(MPI_Comm_free(c: *mut usize = &raw mut plain) -> c_int);
    ok(code, what)?;
    Ok(at)
}

fn communicators() -> Result<(), String> {
    // SAFETY: the list holds live communicators; one that all members have freed only serves its last requests.
    let all = lock().comms.iter().map(|&c| unsafe { ((*c).gid, c) }).collect();
    for c in order(all) {
        // SAFETY: as above.
        let c = unsafe { &*c };
        if c.head.has(FLAG_FREED) && !c.head.has(FLAG_KEPT) {
            c.head.set_real(0);
            continue;
        }
        if !c.known {
            return Err(String::from("a communicator leads to processes outside of the job"));
        }
        let name = || format!("communicator {:x} ({})", c.gid, String::from_utf8_lossy(&c.name));
        let made = if c.inter { inter(c) } else { intra(&c.local, c.gid).and_then(|at| shaped(c, at)) };
        let at = made.map_err(|e| format!("{}: {e}", name()))?;
        let mut r: c_int = -1;
        ok(down!(MPI_Comm_rank(c: usize = at, r: *mut c_int = &raw mut r) -> c_int), "MPI_Comm_rank")?;
        if r != c.rank {
            return Err(format!("{}: this process is rank {r} in it and was {}", name(), c.rank));
        }
        // SAFETY: predefined objects live for ever.
        let e = unsafe { real(predefined!(ompi_mpi_errors_return as Errhandler)) };
        let code = down!(MPI_Comm_set_errhandler(c: usize = at, e: usize = e) -> c_int);
        ok(code, "MPI_Comm_set_errhandler")?;
        c.head.set_real(at);
    }
    Ok(())
}

fn all() -> Result<(), String> {
    connect();
    let tools_first = lock().tools_first;
    if tools_first {
        tools()?;
        init()?;
    } else {
        init()?;
        tools()?;
    }
    errors()?;
    types()?;
    operations()?;
    communicators()
}

/// Works on [`stillpoint_abi::half::still::REBUILD`].
///
/// # Safety
/// Every thread of the rank stands still, and `arg` is what the lower half passes.
pub(crate) unsafe fn rebuild(arg: *mut StillArg) -> i64 {
    let done = all().and_then(|()| {
        // SAFETY: handed on.
        match unsafe { crate::drain::command(stillpoint_abi::half::still::REBUILD, arg) } {
            Some(0) => Ok(()),
            code => Err(format!("receives could not be posted again ({})", code.unwrap_or(-1))),
        }
    });
    let Err(text) = done else { return 0 };
    // SAFETY: the lower half's argument, with `out_cap` bytes of room.
    unsafe {
        if let Some(a) = arg.as_mut() {
            let n = text.len().min(a.out_cap);
            core::ptr::copy_nonoverlapping(text.as_ptr(), a.out, n);
            a.out_len = n;
        }
    }
    -1
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;

    /// Ranks that each make their communicators in order; one is made when all its members are at it.
    fn all_made(mut todo: Vec<Vec<u64>>, members: &BTreeMap<u64, Vec<usize>>) -> bool {
        todo.iter_mut().for_each(|l| l.reverse());
        loop {
            let ready = members
                .iter()
                .find(|(gid, m)| m.iter().all(|&r| todo.get(r).and_then(|l| l.last()) == Some(gid)));
            let Some((_, m)) = ready else { return todo.iter().all(Vec::is_empty) };
            for &r in m {
                todo[r].pop();
            }
        }
    }

    #[test]
    fn ascending_identities_never_wait_for_each_other() {
        let mut x = 12345u64;
        let mut random = |n: u64| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (x >> 33) % n
        };
        for _ in 0..50 {
            let mut members: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
            let mut lists = alloc::vec![Vec::new(); 6];
            for _ in 0..12 {
                let gid = random(1 << 20) << 32 | random(7);
                let m: Vec<usize> = (0..6).filter(|_| random(2) == 0).collect();
                for &r in &m {
                    // Each rank lists its own in an order of its own.
                    let at = random(lists[r].len() as u64 + 1) as usize;
                    lists[r].insert(at, gid);
                }
                if !m.is_empty() {
                    members.insert(gid, m);
                }
            }
            let sorted = lists
                .iter()
                .map(|l: &Vec<u64>| {
                    let all = l.iter().map(|&g| (g, core::ptr::without_provenance_mut(g as usize))).collect();
                    order(all).into_iter().map(|c| c.addr() as u64).collect()
                })
                .collect();
            assert!(all_made(sorted, &members));
        }
    }

    #[test]
    fn another_order_can_wait_for_ever() {
        let members = BTreeMap::from([(1, alloc::vec![0, 1]), (2, alloc::vec![0, 1])]);
        assert!(!all_made(alloc::vec![alloc::vec![1, 2], alloc::vec![2, 1]], &members));
    }

    #[test]
    fn weights_are_told_apart_from_none() {
        assert_eq!(weights(&[], false).addr(), 2);
        assert_eq!(weights(&[], true).addr(), 3);
        let w = [1];
        assert_eq!(weights(&w, true), w.as_ptr());
    }

    #[test]
    fn tags_are_small_and_agreed() {
        assert!((0..=0x7fff).contains(&tag(u64::MAX)));
        assert_eq!(tag(1 << 63 | 5 << 32 | 7), tag(1 << 63 | 5 << 32 | 7));
    }
}
