//! Communicators: made below, described above. Upper half.
//!
//! Every new communicator passes through [`adopt`], which asks the library once who its members are and agrees with
//! them on an identity; from then on rank, size and membership are answered here, and a restart needs no more.
//!
//! What a reader would get wrong: the identity is agreed by communication on the *new* communicator, within the
//! collective that makes it, so no clock of its own counts it.
#![allow(unsafe_code, reason = "exports functions")]

use core::ffi::c_int;
use core::sync::atomic::Ordering::Relaxed;

use stillpoint_abi::half::refuse;

use crate::clock::Within;
use crate::cross::Inside;
use crate::errhandler::raise;
use crate::handles::{
    AttrForm, Comm, Datatype, Group, Head, Info, Kind, Op, Room, is_live, make, real, release, retain, unmake,
};
use crate::request::{Does, Request};
use crate::state::lock;
use crate::{down, export, predefined};

/// World rank of a process outside of the job.
pub const STRANGER: u32 = u32::MAX;
pub(crate) const UNDEFINED: c_int = -32766;

/// Identity of [`hidden`].
const HIDDEN: u64 = 1 << 61;

/// The front's own duplicate of MPI_COMM_WORLD: the parent of all that a restart makes, and the way of the front's own
/// messages, which the drain brings home like any other. Its real object is made with MPI_Init, at every start.
pub fn hidden() -> *mut Comm {
    static OBJECT: Room<Comm, 512> = Room::new(Comm::new(Head::new(Kind::Comm, 0)));
    (&raw const OBJECT).cast_mut().cast()
}

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
    c.show();
}

/// Gives `c` its clock.
fn wind(c: &mut Comm) {
    c.clock = crate::clocks::wind(c.gid, c.local.iter().chain(&c.remote).copied().collect());
    if c.clock == crate::clocks::NONE {
        c.known = false;
    }
}

/// `c` exists from now on: its clock runs, and a restart makes it again.
fn enroll(c: *mut Comm) {
    // SAFETY: just made; nobody else knows it.
    let c = unsafe { &mut *c };
    wind(c);
    if !c.known {
        crate::front::refused(refuse::STRANGERS).fetch_add(1, Relaxed);
    }
    lock().comms.push(c);
}

/// An identity that nobody else knows.
fn alone() -> u64 {
    let mut s = lock();
    s.gids += 1;
    (u64::from(s.rank) << 32 | s.gids) + (3 << 62)
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
        // Processes outside of the job run without us, and would not answer.
        (*c).gid = if (*c).known { agree(&*c) } else { alone() };
        if !parent.is_null() {
            (*c).errhandler = (*parent).errhandler;
            if !(*c).errhandler.is_null() {
                retain((*c).errhandler);
            }
        }
    }
    enroll(c);
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
    // SAFETY: as above.
    let (h, w) = unsafe { (&mut *hidden(), &*predefined!(ompi_mpi_comm_world as Comm)) };
    (h.rank, h.size, h.gid, h.known) = (w.rank, w.size, HIDDEN, true);
    h.local.clone_from(&w.local);
}

pub(crate) fn valid(c: *mut Comm) -> bool {
    // SAFETY: what the application passes as a communicator is a handle.
    unsafe { is_live(c, Kind::Comm) && c != predefined!(ompi_mpi_comm_null as Comm) }
}

/// Counts a collective of a group that has no communicator yet, while the result lives.
pub(crate) fn of_group(members: &[u32]) -> Option<Within> {
    if members.is_empty() || members.contains(&STRANGER) {
        return None;
    }
    Some(Within::at(crate::clocks::of_group(members)))
}

/// Returns with an error unless `$c` is a communicator.
macro_rules! check_comm {
    ($c:expr, $name:expr) => {
        if !$crate::comm::valid($c) {
            return $crate::errhandler::raise(core::ptr::null_mut(), $crate::errhandler::ERR_COMM, $name);
        }
    };
}
pub(crate) use check_comm;

/// The end of a call over `parent` that makes a communicator, the library's `at`.
///
/// # Safety
/// `parent` is live; `new` is writable. All members of `at` call this.
pub(crate) unsafe fn made(
    code: c_int,
    at: usize,
    parent: *mut Comm,
    new: *mut *mut Comm,
    name: &str,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        if code != 0 {
            return raise(parent.cast(), code, name);
        }
        *new = adopt(at, parent);
    }
    0
}

export! {
    fn MPI_Comm_rank(comm: *mut Comm, rank: *mut c_int) -> c_int {
        check_comm!(comm, "MPI_Comm_rank");
        *rank = (*comm).rank;
        0
    }
    fn MPI_Comm_size(comm: *mut Comm, size: *mut c_int) -> c_int {
        check_comm!(comm, "MPI_Comm_size");
        *size = (*comm).size;
        0
    }
    fn MPI_Comm_test_inter(comm: *mut Comm, flag: *mut c_int) -> c_int {
        check_comm!(comm, "MPI_Comm_test_inter");
        *flag = c_int::from((*comm).inter);
        0
    }
    fn MPI_Comm_group(comm: *mut Comm, group: *mut *mut Group) -> c_int {
        check_comm!(comm, "MPI_Comm_group");
        *group = crate::group::of((*comm).local.clone());
        0
    }
    fn MPI_Comm_compare(a: *mut Comm, b: *mut Comm, result: *mut c_int) -> c_int {
        check_comm!(a, "MPI_Comm_compare");
        check_comm!(b, "MPI_Comm_compare");
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
        check_comm!(comm, "MPI_Comm_dup");
        let mut at = 0usize;
        let code = {
            let _clock = Within::enter(comm);
            let code = down!(MPI_Comm_dup(c: usize = real(comm), n: *mut usize = &raw mut at) -> c_int);
            if code == 0 {
                let c = adopt(at, comm);
                // Within the clock: a restart makes the communicator with the topology that it finds here.
                (*c).topology = (*comm).topology.clone();
                (*c).show();
                (*c).info = (*comm).info.clone();
                *new = c;
            }
            code
        };
        if code != 0 {
            return raise(comm.cast(), code, "MPI_Comm_dup");
        }
        crate::attr::copy_all(comm.cast(), (*new).cast())
    }
    fn MPI_Comm_idup(comm: *mut Comm, new: *mut *mut Comm, request: *mut *mut Request) -> c_int {
        check_comm!(comm, "MPI_Comm_idup");
        *request = crate::request::null();
        let c = make(Comm::new(Head::new(Kind::Comm, 0)));
        let mut place = Box::new(0usize);
        let code = {
            let _clock = Within::enter(comm);
            let _inside = Inside::enter();
            let (mut q, n) = (0usize, &raw mut *place);
            let code = down!(MPI_Comm_idup(c: usize = real(comm), n: *mut usize = n, q: *mut usize = &raw mut q) -> c_int);
            if code == 0 {
                // Known before it can be used: its members are the parent's, its identity follows from the parent's.
                let (p, c) = (&mut *comm, &mut *c);
                (c.rank, c.size, c.inter, c.known) = (p.rank, p.size, p.inter, p.known);
                c.local.clone_from(&p.local);
                c.remote.clone_from(&p.remote);
                c.topology = p.topology.clone();
                c.info.clone_from(&p.info);
                c.show();
                p.derived += 1;
                c.gid = crate::clocks::gid_of_child(p.gid, p.derived);
                c.errhandler = p.errhandler;
                if !c.errhandler.is_null() {
                    retain(c.errhandler);
                }
                enroll(c);
                // The request holds it until the library has written its handle.
                retain(&raw mut *c);
                let at = core::ptr::from_mut(c).expose_provenance();
                let then: Box<dyn FnOnce()> = Box::new(move || {
                    let c = core::ptr::with_exposed_provenance_mut::<Comm>(at);
                    (*c).head.set_real(*place);
                    // Never the last holder: it cannot be freed before it exists.
                    release(c);
                });
                *request = crate::request::adopt(q, Does::Collective, comm, Some(then));
            }
            code
        };
        if code != 0 {
            unmake(c);
            return raise(comm.cast(), code, "MPI_Comm_idup");
        }
        *new = c;
        crate::attr::copy_all(comm.cast(), c.cast())
    }
    fn MPI_Comm_dup_with_info(comm: *mut Comm, info: *mut Info, new: *mut *mut Comm) -> c_int {
        let code = MPI_Comm_dup(comm, new);
        if code == 0 && is_live(info, Kind::Info) {
            (**new).info = (*info).pairs.clone();
        }
        code
    }
    fn MPI_Comm_split(comm: *mut Comm, color: c_int, key: c_int, new: *mut *mut Comm) -> c_int {
        check_comm!(comm, "MPI_Comm_split");
        let _clock = Within::enter(comm);
        let mut at = 0usize;
        let code = down!(MPI_Comm_split(
            c: usize = real(comm), o: c_int = color, k: c_int = key, n: *mut usize = &raw mut at) -> c_int);
        made(code, at, comm, new, "MPI_Comm_split")
    }
    fn MPI_Comm_split_type(comm: *mut Comm, kind: c_int, key: c_int, _info: *mut Info, new: *mut *mut Comm) -> c_int {
        check_comm!(comm, "MPI_Comm_split_type");
        let _clock = Within::enter(comm);
        let mut at = 0usize;
        let none = real(predefined!(ompi_mpi_info_null as Info));
        let code = down!(MPI_Comm_split_type(
            c: usize = real(comm), t: c_int = kind, k: c_int = key, i: usize = none, n: *mut usize = &raw mut at) -> c_int);
        made(code, at, comm, new, "MPI_Comm_split_type")
    }
    fn MPI_Comm_create(comm: *mut Comm, group: *mut Group, new: *mut *mut Comm) -> c_int {
        check_comm!(comm, "MPI_Comm_create");
        let _clock = Within::enter(comm);
        let mut at = 0usize;
        let mut g = crate::group::lower(group);
        let code = down!(MPI_Comm_create(c: usize = real(comm), g: usize = g, n: *mut usize = &raw mut at) -> c_int);
        crate::group::lower_free(&mut g);
        made(code, at, comm, new, "MPI_Comm_create")
    }
    fn MPI_Comm_create_group(comm: *mut Comm, group: *mut Group, tag: c_int, new: *mut *mut Comm) -> c_int {
        check_comm!(comm, "MPI_Comm_create_group");
        let mut members = if is_live(group, Kind::Group) { (*group).ranks.clone() } else { Vec::new() };
        members.sort_unstable();
        let _clock = of_group(&members);
        let mut at = 0usize;
        let mut g = crate::group::lower(group);
        let code = down!(MPI_Comm_create_group(
            c: usize = real(comm), g: usize = g, t: c_int = tag, n: *mut usize = &raw mut at) -> c_int);
        crate::group::lower_free(&mut g);
        made(code, at, comm, new, "MPI_Comm_create_group")
    }
    fn MPI_Comm_set_info(comm: *mut Comm, info: *mut Info) -> c_int {
        check_comm!(comm, "MPI_Comm_set_info");
        if is_live(info, Kind::Info) {
            (*comm).info = (*info).pairs.clone();
        }
        0
    }
    fn MPI_Comm_get_info(comm: *mut Comm, info: *mut *mut Info) -> c_int {
        check_comm!(comm, "MPI_Comm_get_info");
        *info = make(Info { head: Head::new(Kind::Info, 0), pairs: (*comm).info.clone() });
        0
    }
}

export! {
    fn MPI_Comm_get_parent(parent: *mut *mut Comm) -> c_int {
        // A rank under Stillpoint was started by the launcher, never spawned.
        *parent = predefined!(ompi_mpi_comm_null as Comm);
        0
    }
}

export! {
    fn MPI_Comm_get_attr(comm: *mut Comm, key: c_int, value: *mut core::ffi::c_void, flag: *mut c_int) -> c_int {
        check_comm!(comm, "MPI_Comm_get_attr");
        crate::attr::get(comm.cast(), key, value, flag, AttrForm::C)
    }
}
