//! Intercommunicators: made of two groups, and merged into one. Upper half.
//!
//! What a reader would get wrong: the members of both sides must be known *before* the call that makes one, because it
//! counts as a collective of them all; so the leaders talk first, in a way that a checkpoint can interrupt.
#![allow(unsafe_code, reason = "exports functions")]

use core::ffi::c_int;

use alloc::vec;
use alloc::vec::Vec;

use crate::clock::Within;
use crate::comm::{STRANGER, check_comm, made, of_group, valid};
use crate::errhandler::{ERR_COMM, raise};
use crate::handles::{Comm, Datatype, Group, real};
use crate::{down, export, predefined};

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
            let _clock = Within::enter(local);
            down!(MPI_Bcast(b: *mut c_int = &raw mut n, n: c_int = 1, t: usize = real(ty), r: c_int = leader,
                c: usize = real(local)) -> c_int)
        };
        theirs.resize(usize::try_from(n).unwrap_or(0), 0);
        if code == 0 && n > 0 {
            let _clock = Within::enter(local);
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

export! {
    fn MPI_Comm_remote_size(comm: *mut Comm, size: *mut c_int) -> c_int {
        check_comm!(comm, "MPI_Comm_remote_size");
        if !(*comm).inter {
            return raise(comm.cast(), ERR_COMM, "MPI_Comm_remote_size");
        }
        *size = c_int::try_from((*comm).remote.len()).unwrap_or(0);
        0
    }
    fn MPI_Comm_remote_group(comm: *mut Comm, group: *mut *mut Group) -> c_int {
        check_comm!(comm, "MPI_Comm_remote_group");
        if !(*comm).inter {
            return raise(comm.cast(), ERR_COMM, "MPI_Comm_remote_group");
        }
        *group = crate::group::of((*comm).remote.clone());
        0
    }
    fn MPI_Intercomm_create(local: *mut Comm, leader: c_int, bridge: *mut Comm, remote: c_int, tag: c_int, new: *mut *mut Comm) -> c_int {
        check_comm!(local, "MPI_Intercomm_create");
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
        made(code, at, local, new, "MPI_Intercomm_create")
    }
    fn MPI_Intercomm_merge(comm: *mut Comm, high: c_int, new: *mut *mut Comm) -> c_int {
        check_comm!(comm, "MPI_Intercomm_merge");
        let _clock = Within::enter(comm);
        let mut at = 0usize;
        let code = down!(MPI_Intercomm_merge(c: usize = real(comm), h: c_int = high, n: *mut usize = &raw mut at) -> c_int);
        made(code, at, comm, new, "MPI_Intercomm_merge")
    }
}
