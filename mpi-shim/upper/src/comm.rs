//! Communicators: made below, described above. Upper half.
//!
//! Every new communicator passes through [`adopt`], which asks the library once who its members are and agrees with
//! them on an identity; from then on rank, size and membership are answered here, and a restart needs no more.
//!
//! What a reader would get wrong: the identity is agreed by communication on the *new* communicator, within the
//! collective that makes it, so no clock of its own counts it.
#![allow(unsafe_code, reason = "exports functions")]

use core::ffi::{c_char, c_int};
use core::sync::atomic::Ordering::Relaxed;

use stillpoint_abi::half::refuse;
use stillpoint_sys::upper;

use crate::errhandler::{ERR_COMM, put, raise};
use crate::handles::{
    Comm, Datatype, FLAG_FREED, FLAG_KEPT, Group, Head, Info, Kind, Op, Room, is_live, make, real, release,
    retain, unmake,
};
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
    c.keyhash = &raw mut *c;
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
        upper().refusals[refuse::STRANGERS].fetch_add(1, Relaxed);
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

/// One holder less; at the last one the communicator ends.
///
/// # Safety
/// `c` is live and held by the caller.
pub unsafe fn let_go(c: *mut Comm) {
    // SAFETY: the caller's promise.
    unsafe {
        if release(c) {
            end(c);
        }
    }
}

/// The real object is freed, and the clock stops.
///
/// # Safety
/// `c` is live, and its last holder has let go of it.
pub(crate) unsafe fn end(c: *mut Comm) {
    // SAFETY: the caller's promise.
    unsafe {
        let _inside = crate::cross::Inside::enter();
        let mut at = (*c).head.real();
        if at != 0 {
            // Local in Open MPI: nobody is waited for.
            down!(MPI_Comm_free(c: *mut usize = &raw mut at) -> c_int);
        }
        crate::clocks::retire((*c).clock);
        crate::request::begin().store.forget((*c).gid);
        put((*c).errhandler);
        lock().comms.retain(|&o| o != c);
        if !(*c).known {
            upper().refusals[refuse::STRANGERS].fetch_sub(1, Relaxed);
        }
        unmake(c);
    }
}

/// The application has freed its handle: what remains to be done by all members.
///
/// Freeing is counted like a non-blocking collective, and one that nobody waits for tells when all members have
/// counted it. Until then the clock stands, so that no checkpoint finds the communicator here and not there. The same
/// collective agrees on whether some member has persistent requests on it: they can be started again for ever, so all
/// members keep it.
unsafe fn depart(c: *mut Comm) {
    // SAFETY: a live communicator of the application, not a predefined one.
    unsafe {
        if (*c).known && (*c).head.real() != 0 && (*c).local.len() + (*c).remote.len() > 1 {
            let _clock = crate::clock::Within::enter(c);
            let _inside = crate::cross::Inside::enter();
            let mut q = 0usize;
            (*c).head.set(FLAG_FREED);
            let mut wanted = Box::new([c_int::from((*c).persistent != 0), 0]);
            let (from, to) = (wanted.as_ptr(), wanted.as_mut_ptr().add(1));
            let (ty, op) =
                (real(predefined!(ompi_mpi_int as Datatype)), real(predefined!(ompi_mpi_op_max as Op)));
            let code = if (*c).inter {
                down!(MPI_Ibarrier(c: usize = real(c), q: *mut usize = &raw mut q) -> c_int)
            } else {
                down!(MPI_Iallreduce(s: *const c_int = from, r: *mut c_int = to, n: c_int = 1, t: usize = ty,
                    o: usize = op, c: usize = real(c), q: *mut usize = &raw mut q) -> c_int)
            };
            if code == 0 {
                let at = c.expose_provenance();
                let then: Box<dyn FnOnce()> = Box::new(move || {
                    if wanted[1] != 0 {
                        let c = core::ptr::with_exposed_provenance_mut::<Comm>(at);
                        (*c).head.set(FLAG_KEPT);
                        retain(c);
                    }
                });
                crate::request::adopt_orphan(q, crate::request::Does::Collective, c, then);
            }
        } else {
            (*c).head.set(FLAG_FREED);
            if (*c).persistent != 0 {
                (*c).head.set(FLAG_KEPT);
                retain(c);
            }
        }
        let_go(c);
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

pub(crate) fn valid(c: *mut Comm) -> bool {
    // SAFETY: what the application passes as a communicator is a handle.
    unsafe { is_live(c, Kind::Comm) && c != predefined!(ompi_mpi_comm_null as Comm) }
}

/// Counts as one collective on `c`.
macro_rules! within {
    ($c:expr) => {
        let _clock = crate::clock::Within::enter($c);
    };
}

/// Counts a collective of a group that has no communicator yet, while the result lives.
fn of_group(members: &[u32]) -> Option<crate::clock::Within> {
    if members.is_empty() || members.contains(&STRANGER) {
        return None;
    }
    Some(crate::clock::Within::at(crate::clocks::of_group(members)))
}

/// World ranks of the remote side of an intercommunicator that is about to be made. The leaders ask each other, which
/// can be interrupted, and tell their sides in a collective of their own. `None` if that cannot be known: then the
/// library says what is wrong, or the other side is outside of the job.
unsafe fn other_side(
    local: *mut Comm,
    leader: c_int,
    bridge: *mut Comm,
    remote: c_int,
    tag: c_int,
) -> Option<Vec<u32>> {
    // SAFETY: the caller has checked `local`; `bridge` counts at the leader only.
    unsafe {
        let mine: &Vec<u32> = &(*local).local;
        if (*local).inter || usize::try_from(leader).is_ok_and(|l| l >= mine.len()) || leader < 0 {
            return None;
        }
        let mut theirs: Vec<u32> = Vec::new();
        if (*local).rank == leader {
            let world = if valid(bridge) { (*bridge).peer_world(remote) } else { None };
            if let Some(w) =
                world.filter(|&w| w != STRANGER && !mine.contains(&STRANGER) && !mine.contains(&w))
            {
                theirs = leaders(w, mine, 1 << 20 | (tag & 0xf_ffff)).unwrap_or_default();
            }
        }
        let mut n = c_int::try_from(theirs.len()).unwrap_or(0);
        // The library's handles are read within the clock: before it, the thread may stand still through a restart.
        let ty = predefined!(ompi_mpi_uint32_t as Datatype);
        let mut code = {
            within!(local);
            down!(MPI_Bcast(b: *mut c_int = &raw mut n, n: c_int = 1, t: usize = real(ty), r: c_int = leader,
                c: usize = real(local)) -> c_int)
        };
        theirs.resize(usize::try_from(n).unwrap_or(0), 0);
        if code == 0 && n > 0 {
            within!(local);
            code = down!(MPI_Bcast(b: *mut u32 = theirs.as_mut_ptr(), n: c_int = n, t: usize = real(ty),
                r: c_int = leader, c: usize = real(local)) -> c_int);
        }
        (code == 0 && n > 0).then_some(theirs)
    }
}

/// The members of the other leader's side, for those of this one.
fn leaders(other: u32, mine: &[u32], tag: c_int) -> Option<Vec<u32>> {
    let bytes: Vec<u8> = mine.iter().flat_map(|r| r.to_le_bytes()).collect();
    let mut n = [0u8; 4];
    let len = u32::try_from(mine.len()).ok()?;
    if crate::p2p::exchange(other, &len.to_le_bytes(), other, &mut n, tag) != 0 {
        return None;
    }
    let mut theirs = vec![0u8; u32::from_le_bytes(n) as usize * 4];
    if crate::p2p::exchange(other, &bytes, other, &mut theirs, tag) != 0 {
        return None;
    }
    Some(theirs.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
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
                let c = adopt(at, comm);
                // Within the clock: a restart makes the communicator with the topology that it finds here.
                (*c).topology = (*comm).topology.clone();
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
    fn MPI_Comm_idup(comm: *mut Comm, new: *mut *mut Comm, request: *mut *mut crate::request::Request) -> c_int {
        check!(comm, "MPI_Comm_idup");
        *request = crate::request::null();
        let c = make(Comm::new(Head::new(Kind::Comm, 0)));
        let mut place = Box::new(0usize);
        let code = {
            within!(comm);
            let _inside = crate::cross::Inside::enter();
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
                c.keyhash = &raw mut *c;
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
                *request = crate::request::adopt(q, crate::request::Does::Collective, comm, Some(then));
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
        let mut members = if is_live(group, Kind::Group) { (*group).ranks.clone() } else { Vec::new() };
        members.sort_unstable();
        let _clock = of_group(&members);
        let mut at = 0usize;
        let mut g = crate::group::lower(group);
        let code = down!(MPI_Comm_create_group(
            c: usize = real(comm), g: usize = g, t: c_int = tag, n: *mut usize = &raw mut at) -> c_int);
        crate::group::lower_free(&mut g);
        finish!(code, comm, at, new, "MPI_Comm_create_group")
    }
    fn MPI_Intercomm_create(local: *mut Comm, leader: c_int, bridge: *mut Comm, remote: c_int, tag: c_int, new: *mut *mut Comm) -> c_int {
        check!(local, "MPI_Intercomm_create");
        let theirs = other_side(local, leader, bridge, remote, tag);
        let _clock = theirs.map(|mut all| {
            all.extend(&(*local).local);
            all.sort_unstable();
            of_group(&all)
        });
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
        depart(c);
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
        check!(comm, "MPI_Comm_get_attr");
        crate::attr::get(comm.cast(), key, value, flag, crate::handles::AttrForm::C)
    }
    fn MPI_Comm_disconnect(comm: *mut *mut Comm) -> c_int {
        let c = *comm;
        check!(c, "MPI_Comm_disconnect");
        if (*c).head.predefined >= 0 {
            return raise(c.cast(), ERR_COMM, "MPI_Comm_disconnect");
        }
        crate::completion::wait_for_comm(c);
        if (*c).known {
            // All members come here, as in the library's own; a barrier that can be interrupted.
            let mut q = crate::request::null();
            let code = crate::collective::MPI_Ibarrier(c, &raw mut q);
            if code != 0 {
                return code;
            }
            crate::request::MPI_Wait(&raw mut q, core::ptr::null_mut());
            return MPI_Comm_free(comm);
        }
        let code = crate::attr::delete_all(c.cast());
        if code != 0 {
            return raise(c.cast(), code, "MPI_Comm_disconnect");
        }
        let mut at = real(c);
        let code = down!(MPI_Comm_disconnect(c: *mut usize = &raw mut at) -> c_int);
        (*c).head.set_real(0);
        depart(c);
        *comm = predefined!(ompi_mpi_comm_null as Comm);
        raise(core::ptr::null_mut(), code, "MPI_Comm_disconnect")
    }
}
