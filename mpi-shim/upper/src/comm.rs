//! Communicators: made below, described above. Upper half.
//!
//! Every new communicator passes through [`adopt`], which asks the library once who its members are and agrees with
//! them on an identity; from then on rank, size and membership are answered here, and a restart needs no more.
//!
//! What a reader would get wrong: the identity is agreed by communication on the *new* communicator, within the
//! collective that makes it, so no clock of its own counts it.
#![allow(unsafe_code, reason = "exports functions")]

use core::ffi::{c_char, c_int};
use core::sync::atomic::Ordering::{Relaxed, Release};

use stillpoint_abi::half::MAX_CLOCKS;

use crate::errhandler::{ERR_COMM, put, raise};
use crate::handles::{
    Comm, Datatype, Group, Head, Info, Kind, Op, Topology, is_live, make, real, release, retain, unmake,
};
use crate::state::lock;
use crate::{down, export, predefined};

/// World rank of a process outside of the job.
pub const STRANGER: u32 = u32::MAX;
const UNDEFINED: c_int = -32766;

/// Real world group, made when needed.
fn world_group() -> usize {
    let mut g = 0usize;
    // SAFETY: the world lives as long as the library.
    let w = unsafe { real(predefined!(ompi_mpi_comm_world as Comm)) };
    down!(MPI_Comm_group(c: usize = w, g: *mut usize = &raw mut g) -> c_int);
    g
}

/// World ranks of the members of the library's group `g`.
pub fn world_ranks(g: usize) -> Vec<u32> {
    let mut n: c_int = 0;
    down!(MPI_Group_size(g: usize = g, n: *mut c_int = &raw mut n) -> c_int);
    let from: Vec<c_int> = (0..n).collect();
    let mut to: Vec<c_int> = from.iter().map(|_| UNDEFINED).collect();
    let mut w = world_group();
    down!(MPI_Group_translate_ranks(
        g: usize = g, n: c_int = n, f: *const c_int = from.as_ptr(), w: usize = w, t: *mut c_int = to.as_mut_ptr(),
    ) -> c_int);
    down!(MPI_Group_free(g: *mut usize = &raw mut w) -> c_int);
    to.into_iter().map(|r| u32::try_from(r).unwrap_or(STRANGER)).collect()
}

fn members(comm: usize, remote: bool) -> Vec<u32> {
    let mut g = 0usize;
    if remote {
        down!(MPI_Comm_remote_group(c: usize = comm, g: *mut usize = &raw mut g) -> c_int);
    } else {
        down!(MPI_Comm_group(c: usize = comm, g: *mut usize = &raw mut g) -> c_int);
    }
    let ranks = world_ranks(g);
    down!(MPI_Group_free(g: *mut usize = &raw mut g) -> c_int);
    ranks
}

/// Describes `c`, whose real handle is set: members, rank, size.
fn describe(c: &mut Comm) {
    let at = c.head.real();
    let mut inter: c_int = 0;
    down!(MPI_Comm_test_inter(c: usize = at, f: *mut c_int = &raw mut inter) -> c_int);
    down!(MPI_Comm_rank(c: usize = at, r: *mut c_int = &raw mut c.rank) -> c_int);
    down!(MPI_Comm_size(c: usize = at, n: *mut c_int = &raw mut c.size) -> c_int);
    c.inter = inter != 0;
    c.local = members(at, false);
    c.remote = if c.inter { members(at, true) } else { Vec::new() };
    c.known = !c.local.contains(&STRANGER) && !c.remote.contains(&STRANGER);
    c.keyhash = &raw mut *c;
}

/// Gives `c` its clock.
fn wind(c: &mut Comm) {
    let clocks = &stillpoint_sys::upper().clocks;
    let Some(i) = (0..MAX_CLOCKS).find(|&i| clocks[i].gid.load(Relaxed) == 0) else {
        c.known = false;
        return;
    };
    let all: Vec<u32> = c.local.iter().chain(&c.remote).copied().collect();
    let n = all.len() as u64;
    let all = Box::leak(all.into_boxed_slice());
    clocks[i].count.store(0, Relaxed);
    clocks[i].target.store(0, Relaxed);
    clocks[i].members.store(all.as_ptr().expose_provenance() as u64, Relaxed);
    clocks[i].n_members.store(n, Relaxed);
    clocks[i].gid.store(c.gid, Release);
    c.clock = u32::try_from(i).unwrap_or(u32::MAX);
}

/// Agrees on an identity with the other members, by communication on the new communicator.
fn agree(c: &Comm) -> u64 {
    let mine = {
        let mut s = lock();
        s.gids += 1;
        (u64::from(s.rank) << 32 | s.gids) + (1 << 63)
    };
    let at = c.head.real();
    // SAFETY: predefined objects live for ever.
    let (ty, op) = unsafe {
        (real(predefined!(ompi_mpi_uint64_t as Datatype)), real(predefined!(ompi_mpi_op_max as Op)))
    };
    let round = |v: u64| {
        let mut out = 0u64;
        down!(MPI_Allreduce(
            s: *const u64 = &raw const v, r: *mut u64 = &raw mut out, n: c_int = 1, t: usize = ty, o: usize = op,
            c: usize = at,
        ) -> c_int);
        out
    };
    let theirs = round(if c.rank == 0 { mine } else { 0 });
    // Between groups, each learns the other's proposal first, and its own from the other's answer.
    if c.inter { theirs.min(round(theirs)) } else { theirs }
}

/// Makes the object for the library's communicator `at`, which a call on `parent` has made.
///
/// # Safety
/// `parent` is null or live. All members of `at` call this.
pub unsafe fn adopt(at: usize, parent: *mut Comm) -> *mut Comm {
    // SAFETY: predefined objects live for ever.
    if at == 0 || at == unsafe { real(predefined!(ompi_mpi_comm_null as Comm)) } {
        return predefined!(ompi_mpi_comm_null as Comm);
    }
    let c = make(Comm::new(Head::new(Kind::Comm, at)));
    // SAFETY: just made; nobody else knows it.
    unsafe {
        describe(&mut *c);
        (*c).gid = agree(&*c);
        if !parent.is_null() {
            (*c).errhandler = (*parent).errhandler;
            if !(*c).errhandler.is_null() {
                retain((*c).errhandler);
            }
        }
        wind(&mut *c);
        let mut s = lock();
        s.comms.push(c);
        if !(*c).known {
            s.strangers += 1;
        }
    }
    c
}

/// Describes the world and this process after MPI_Init.
pub fn first() {
    for (c, gid, name) in [
        (predefined!(ompi_mpi_comm_world as Comm), 1u64, "MPI_COMM_WORLD"),
        (predefined!(ompi_mpi_comm_self as Comm), 2, "MPI_COMM_SELF"),
    ] {
        // SAFETY: predefined objects live for ever, and nobody else uses them before MPI_Init returns.
        let c = unsafe { &mut *c };
        describe(c);
        if gid == 1 {
            let mut s = lock();
            s.rank = c.local.get(usize::try_from(c.rank).unwrap_or(0)).copied().unwrap_or(0);
            s.size = u32::try_from(c.size).unwrap_or(0);
        }
        // Every rank's MPI_COMM_SELF is its own.
        c.gid = if gid == 1 { 1 } else { 2 + u64::from(lock().rank) };
        c.name = name.as_bytes().to_vec();
        wind(c);
    }
}

/// One holder less; at the last one the real object is freed.
///
/// # Safety
/// `c` is live and held by the caller.
pub unsafe fn let_go(c: *mut Comm) {
    // SAFETY: the caller's promise.
    unsafe {
        if !release(c) {
            return;
        }
        let mut at = (*c).head.real();
        down!(MPI_Comm_free(c: *mut usize = &raw mut at) -> c_int);
        if let Some(clock) = stillpoint_sys::upper().clocks.get((*c).clock as usize) {
            clock.gid.store(0, Release);
        }
        put((*c).errhandler);
        let mut s = lock();
        s.comms.retain(|&o| o != c);
        if !(*c).known {
            s.strangers = s.strangers.saturating_sub(1);
        }
        drop(s);
        unmake(c);
    }
}

/// Copies bytes into the application's string of `room` bytes, with its closing zero.
///
/// # Safety
/// `to` is writable for `room` bytes.
pub unsafe fn put_text(text: &[u8], to: *mut c_char, room: usize) -> c_int {
    let n = text.len().min(room.saturating_sub(1));
    // SAFETY: `n + 1 <= room`.
    unsafe {
        core::ptr::copy_nonoverlapping(text.as_ptr().cast(), to, n);
        *to.add(n) = 0;
    }
    c_int::try_from(n).unwrap_or(0)
}

fn valid(c: *mut Comm) -> bool {
    // SAFETY: what the application passes as a communicator is a handle.
    unsafe { is_live(c, Kind::Comm) && c != predefined!(ompi_mpi_comm_null as Comm) }
}

macro_rules! check {
    ($c:ident, $name:literal) => {
        if !valid($c) {
            return raise(core::ptr::null_mut(), ERR_COMM, $name);
        }
    };
}
macro_rules! finish {
    ($code:ident, $c:ident, $at:ident, $new:ident, $name:literal) => {{
        if $code != 0 {
            return raise($c.cast(), $code, $name);
        }
        *$new = adopt($at, $c);
        0
    }};
}
/// Counts as one collective on `c`.
macro_rules! within {
    ($c:expr) => {
        let _clock = crate::clock::Within::enter($c);
    };
}

export! {
    fn MPI_Comm_rank(comm: *mut Comm, rank: *mut c_int) -> c_int {
        check!(comm, "MPI_Comm_rank");
        *rank = (*comm).rank;
        0
    }
    fn MPI_Comm_size(comm: *mut Comm, size: *mut c_int) -> c_int {
        check!(comm, "MPI_Comm_size");
        *size = (*comm).size;
        0
    }
    fn MPI_Comm_remote_size(comm: *mut Comm, size: *mut c_int) -> c_int {
        check!(comm, "MPI_Comm_remote_size");
        if !(*comm).inter {
            return raise(comm.cast(), ERR_COMM, "MPI_Comm_remote_size");
        }
        *size = c_int::try_from((*comm).remote.len()).unwrap_or(0);
        0
    }
    fn MPI_Comm_test_inter(comm: *mut Comm, flag: *mut c_int) -> c_int {
        check!(comm, "MPI_Comm_test_inter");
        *flag = c_int::from((*comm).inter);
        0
    }
    fn MPI_Comm_group(comm: *mut Comm, group: *mut *mut Group) -> c_int {
        check!(comm, "MPI_Comm_group");
        *group = crate::group::of((*comm).local.clone());
        0
    }
    fn MPI_Comm_remote_group(comm: *mut Comm, group: *mut *mut Group) -> c_int {
        check!(comm, "MPI_Comm_remote_group");
        if !(*comm).inter {
            return raise(comm.cast(), ERR_COMM, "MPI_Comm_remote_group");
        }
        *group = crate::group::of((*comm).remote.clone());
        0
    }
    fn MPI_Comm_compare(a: *mut Comm, b: *mut Comm, result: *mut c_int) -> c_int {
        check!(a, "MPI_Comm_compare");
        check!(b, "MPI_Comm_compare");
        *result = if a == b {
            0
        } else if (*a).inter != (*b).inter {
            3
        } else {
            let l = crate::group::compare(&(*a).local, &(*b).local);
            let r = crate::group::compare(&(*a).remote, &(*b).remote);
            l.max(r).max(1)
        };
        0
    }
    fn MPI_Comm_dup(comm: *mut Comm, new: *mut *mut Comm) -> c_int {
        check!(comm, "MPI_Comm_dup");
        let mut at = 0usize;
        let code = {
            within!(comm);
            let code = down!(MPI_Comm_dup(c: usize = real(comm), n: *mut usize = &raw mut at) -> c_int);
            if code == 0 {
                *new = adopt(at, comm);
            }
            code
        };
        if code != 0 {
            return raise(comm.cast(), code, "MPI_Comm_dup");
        }
        (**new).topology = (*comm).topology.clone();
        (**new).info = (*comm).info.clone();
        crate::attr::copy_all(comm.cast(), (*new).cast())
    }
    fn MPI_Comm_dup_with_info(comm: *mut Comm, info: *mut Info, new: *mut *mut Comm) -> c_int {
        let code = MPI_Comm_dup(comm, new);
        if code == 0 && is_live(info, Kind::Info) {
            (**new).info = (*info).pairs.clone();
        }
        code
    }
    fn MPI_Comm_split(comm: *mut Comm, color: c_int, key: c_int, new: *mut *mut Comm) -> c_int {
        check!(comm, "MPI_Comm_split");
        within!(comm);
        let mut at = 0usize;
        let code = down!(MPI_Comm_split(
            c: usize = real(comm), o: c_int = color, k: c_int = key, n: *mut usize = &raw mut at) -> c_int);
        finish!(code, comm, at, new, "MPI_Comm_split")
    }
    fn MPI_Comm_split_type(comm: *mut Comm, kind: c_int, key: c_int, _info: *mut Info, new: *mut *mut Comm) -> c_int {
        check!(comm, "MPI_Comm_split_type");
        within!(comm);
        let mut at = 0usize;
        let none = real(predefined!(ompi_mpi_info_null as Info));
        let code = down!(MPI_Comm_split_type(
            c: usize = real(comm), t: c_int = kind, k: c_int = key, i: usize = none, n: *mut usize = &raw mut at) -> c_int);
        finish!(code, comm, at, new, "MPI_Comm_split_type")
    }
    fn MPI_Comm_create(comm: *mut Comm, group: *mut Group, new: *mut *mut Comm) -> c_int {
        check!(comm, "MPI_Comm_create");
        within!(comm);
        let mut at = 0usize;
        let mut g = crate::group::lower(group);
        let code = down!(MPI_Comm_create(c: usize = real(comm), g: usize = g, n: *mut usize = &raw mut at) -> c_int);
        crate::group::lower_free(&mut g);
        finish!(code, comm, at, new, "MPI_Comm_create")
    }
    fn MPI_Comm_create_group(comm: *mut Comm, group: *mut Group, tag: c_int, new: *mut *mut Comm) -> c_int {
        check!(comm, "MPI_Comm_create_group");
        let mut at = 0usize;
        let mut g = crate::group::lower(group);
        let code = down!(MPI_Comm_create_group(
            c: usize = real(comm), g: usize = g, t: c_int = tag, n: *mut usize = &raw mut at) -> c_int);
        crate::group::lower_free(&mut g);
        finish!(code, comm, at, new, "MPI_Comm_create_group")
    }
    fn MPI_Intercomm_create(local: *mut Comm, leader: c_int, bridge: *mut Comm, remote: c_int, tag: c_int, new: *mut *mut Comm) -> c_int {
        check!(local, "MPI_Intercomm_create");
        let mut at = 0usize;
        let code = down!(MPI_Intercomm_create(
            l: usize = real(local), a: c_int = leader, b: usize = real(bridge), r: c_int = remote, t: c_int = tag,
            n: *mut usize = &raw mut at) -> c_int);
        finish!(code, local, at, new, "MPI_Intercomm_create")
    }
    fn MPI_Intercomm_merge(comm: *mut Comm, high: c_int, new: *mut *mut Comm) -> c_int {
        check!(comm, "MPI_Intercomm_merge");
        within!(comm);
        let mut at = 0usize;
        let code = down!(MPI_Intercomm_merge(c: usize = real(comm), h: c_int = high, n: *mut usize = &raw mut at) -> c_int);
        finish!(code, comm, at, new, "MPI_Intercomm_merge")
    }
    fn MPI_Comm_free(comm: *mut *mut Comm) -> c_int {
        let c = *comm;
        check!(c, "MPI_Comm_free");
        if (*c).head.predefined >= 0 {
            return raise(c.cast(), ERR_COMM, "MPI_Comm_free");
        }
        let code = crate::attr::delete_all(c.cast());
        if code != 0 {
            return raise(c.cast(), code, "MPI_Comm_free");
        }
        let_go(c);
        *comm = predefined!(ompi_mpi_comm_null as Comm);
        0
    }
    fn MPI_Comm_set_name(comm: *mut Comm, name: *const c_char) -> c_int {
        check!(comm, "MPI_Comm_set_name");
        let text = core::ffi::CStr::from_ptr(name).to_bytes();
        (*comm).name = text[..text.len().min(63)].to_vec();
        0
    }
    fn MPI_Comm_get_name(comm: *mut Comm, name: *mut c_char, len: *mut c_int) -> c_int {
        if comm == predefined!(ompi_mpi_comm_null as Comm) {
            *len = put_text(b"MPI_COMM_NULL", name, 64);
            return 0;
        }
        check!(comm, "MPI_Comm_get_name");
        *len = put_text(&(*comm).name, name, 64);
        0
    }
    fn MPI_Comm_set_info(comm: *mut Comm, info: *mut Info) -> c_int {
        check!(comm, "MPI_Comm_set_info");
        if is_live(info, Kind::Info) {
            (*comm).info = (*info).pairs.clone();
        }
        0
    }
    fn MPI_Comm_get_info(comm: *mut Comm, info: *mut *mut Info) -> c_int {
        check!(comm, "MPI_Comm_get_info");
        *info = make(Info { head: Head::new(Kind::Info, 0), pairs: (*comm).info.clone() });
        0
    }
    fn MPI_Topo_test(comm: *mut Comm, status: *mut c_int) -> c_int {
        check!(comm, "MPI_Topo_test");
        *status = match (*comm).topology {
            Topology::None => UNDEFINED,
            Topology::Cart { .. } => 1,
            Topology::Graph { .. } => 2,
            Topology::Dist { .. } => 3,
        };
        0
    }
    fn MPI_Cart_create(comm: *mut Comm, n: c_int, dims: *const c_int, periods: *const c_int, reorder: c_int, new: *mut *mut Comm) -> c_int {
        check!(comm, "MPI_Cart_create");
        within!(comm);
        let mut at = 0usize;
        let code = down!(MPI_Cart_create(
            c: usize = real(comm), n: c_int = n, d: *const c_int = dims, p: *const c_int = periods, r: c_int = reorder,
            new: *mut usize = &raw mut at) -> c_int);
        if code != 0 {
            return raise(comm.cast(), code, "MPI_Cart_create");
        }
        let c = adopt(at, comm);
        if valid(c) {
            (*c).topology = Topology::Cart { dims: copied(dims, n), periods: copied(periods, n) };
        }
        *new = c;
        0
    }
    fn MPI_Cartdim_get(comm: *mut Comm, n: *mut c_int) -> c_int {
        check!(comm, "MPI_Cartdim_get");
        let Topology::Cart { dims, .. } = &(*comm).topology else {
            return raise(comm.cast(), 11, "MPI_Cartdim_get");
        };
        *n = c_int::try_from(dims.len()).unwrap_or(0);
        0
    }
    fn MPI_Cart_sub(comm: *mut Comm, remain: *const c_int, new: *mut *mut Comm) -> c_int {
        check!(comm, "MPI_Cart_sub");
        within!(comm);
        let Topology::Cart { dims, periods } = (*comm).topology.clone() else {
            return raise(comm.cast(), 11, "MPI_Cart_sub");
        };
        let mut at = 0usize;
        let code = down!(MPI_Cart_sub(c: usize = real(comm), r: *const c_int = remain, n: *mut usize = &raw mut at) -> c_int);
        if code != 0 {
            return raise(comm.cast(), code, "MPI_Cart_sub");
        }
        let c = adopt(at, comm);
        if valid(c) {
            let keep = copied(remain, c_int::try_from(dims.len()).unwrap_or(0));
            let pick = |v: &[c_int]| v.iter().zip(&keep).filter(|k| *k.1 != 0).map(|k| *k.0).collect::<Vec<_>>();
            (*c).topology = Topology::Cart { dims: pick(&dims), periods: pick(&periods) };
        }
        *new = c;
        0
    }
}

/// # Safety
/// `at` is readable for `n` integers, or `n` is not positive.
unsafe fn copied(at: *const c_int, n: c_int) -> Vec<c_int> {
    let n = usize::try_from(n).unwrap_or(0);
    if n == 0 || at.is_null() {
        return Vec::new();
    }
    // SAFETY: the caller's promise.
    unsafe { core::slice::from_raw_parts(at, n) }.to_vec()
}

/// Queries on a communicator that the library answers without talking to anybody.
macro_rules! asked {
    ($($name:ident($($a:ident: $t:ty),*);)*) => {
        export! { $(
            fn $name(comm: *mut Comm, $($a: $t),*) -> c_int {
                if !valid(comm) {
                    return raise(core::ptr::null_mut(), ERR_COMM, stringify!($name));
                }
                let code = down!($name(c: usize = real(comm), $($a: $t = $a),*) -> c_int);
                raise(comm.cast(), code, stringify!($name))
            }
        )* }
    };
}
asked! {
    MPI_Cart_coords(rank: c_int, n: c_int, coords: *mut c_int);
    MPI_Cart_get(n: c_int, dims: *mut c_int, periods: *mut c_int, coords: *mut c_int);
    MPI_Cart_map(n: c_int, dims: *const c_int, periods: *const c_int, rank: *mut c_int);
    MPI_Cart_rank(coords: *const c_int, rank: *mut c_int);
    MPI_Cart_shift(direction: c_int, disp: c_int, source: *mut c_int, dest: *mut c_int);
    MPI_Graph_get(ni: c_int, ne: c_int, index: *mut c_int, edges: *mut c_int);
    MPI_Graph_map(n: c_int, index: *const c_int, edges: *const c_int, rank: *mut c_int);
    MPI_Graph_neighbors(rank: c_int, n: c_int, neighbors: *mut c_int);
    MPI_Graph_neighbors_count(rank: c_int, n: *mut c_int);
    MPI_Graphdims_get(ni: *mut c_int, ne: *mut c_int);
    MPI_Dist_graph_neighbors(ni: c_int, s: *mut c_int, sw: *mut c_int, no: c_int, d: *mut c_int, dw: *mut c_int);
    MPI_Dist_graph_neighbors_count(ni: *mut c_int, no: *mut c_int, weighted: *mut c_int);
}
export! {
    fn MPI_Dims_create(nodes: c_int, n: c_int, dims: *mut c_int) -> c_int {
        let code = down!(MPI_Dims_create(nodes: c_int = nodes, n: c_int = n, d: *mut c_int = dims) -> c_int);
        raise(core::ptr::null_mut(), code, "MPI_Dims_create")
    }
    fn MPI_Comm_get_parent(parent: *mut *mut Comm) -> c_int {
        // A rank under Stillpoint was started by the launcher, never spawned.
        *parent = predefined!(ompi_mpi_comm_null as Comm);
        0
    }
}

export! {
    fn MPI_Comm_get_attr(comm: *mut Comm, key: c_int, value: *mut core::ffi::c_void, flag: *mut c_int) -> c_int {
        check!(comm, "MPI_Comm_get_attr");
        crate::attr::get(comm.cast(), key, value, flag, crate::handles::AttrForm::C)
    }
    fn MPI_Comm_disconnect(comm: *mut *mut Comm) -> c_int {
        MPI_Comm_free(comm)
    }
    fn MPI_Graph_create(comm: *mut Comm, n: c_int, index: *const c_int, edges: *const c_int, reorder: c_int, new: *mut *mut Comm) -> c_int {
        check!(comm, "MPI_Graph_create");
        within!(comm);
        let mut at = 0usize;
        let code = down!(MPI_Graph_create(
            c: usize = real(comm), n: c_int = n, i: *const c_int = index, e: *const c_int = edges, r: c_int = reorder,
            new: *mut usize = &raw mut at) -> c_int);
        if code != 0 {
            return raise(comm.cast(), code, "MPI_Graph_create");
        }
        let c = adopt(at, comm);
        if valid(c) {
            let index = copied(index, n);
            let edges = copied(edges, index.last().copied().unwrap_or(0));
            (*c).topology = Topology::Graph { index, edges };
        }
        *new = c;
        0
    }
}
