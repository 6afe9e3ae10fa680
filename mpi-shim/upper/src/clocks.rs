//! The table of collective clocks in `Upper`: who has which, and when a place may be used again. Upper half.
//!
//! What a reader would get wrong: the control thread of the lower half reads the table at any moment of a settle stage,
//! members included. So a place is emptied, and its list of members freed, only when no such stage stands: first the
//! identity goes, then the flag is looked at once more. A reader that still saw the identity had raised the flag before.
#![allow(unsafe_code, reason = "members are lent to the control thread by address")]

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::{Relaxed, Release, SeqCst};
use core::sync::atomic::fence;

use stillpoint_abi::half::{Clock, FLAG_SETTLE, MAX_CLOCKS};
use stillpoint_sys::{half, upper};

use crate::state::{State, lock};

/// No clock.
pub(crate) const NONE: u32 = u32::MAX;

/// A number that all derive alike from the same words (FNV-1a), in the upper `kind` of the space of identities: agreed
/// ones have the top bit, these have not.
fn derived(kind: u64, words: impl Iterator<Item = u64>) -> u64 {
    let mut h = 0xcbf2_9ce4_8422_2325u64;
    for byte in words.flat_map(u64::to_le_bytes) {
        h = (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    h >> 3 | kind << 61
}

/// Identity of the `n`th communicator that is made from `parent` without talking.
pub(crate) fn gid_of_child(parent: u64, n: u64) -> u64 {
    derived(2, [parent, n].into_iter())
}

/// Identity of a group that is used like a communicator; its members in ascending order.
fn gid_of_group(members: &[u32]) -> u64 {
    derived(3, members.iter().map(|&m| u64::from(m)))
}

/// Begins a clock at 0; [`NONE`] if there is no room.
pub(crate) fn wind(gid: u64, members: Vec<u32>) -> u32 {
    let mut s = lock();
    sweep(&mut s);
    place(gid, members)
}

// The lock of the state is held.
fn place(gid: u64, members: Vec<u32>) -> u32 {
    let u = upper();
    let empty = |c: &Clock| c.gid.load(Relaxed) == 0 && c.members.load(Relaxed) == 0;
    let Some(i) = (0..MAX_CLOCKS).find(|&i| empty(&u.clocks[i])) else { return NONE };
    let c = &u.clocks[i];
    let n = members.len() as u64;
    let at = Box::into_raw(members.into_boxed_slice()).cast::<u32>();
    c.count.store(0, Relaxed);
    c.target.store(0, Relaxed);
    c.members.store(at.expose_provenance() as u64, Relaxed);
    c.n_members.store(n, Relaxed);
    c.gid.store(gid, Release);
    let i = u32::try_from(i).unwrap_or(NONE);
    u.n_clocks.fetch_max(i.saturating_add(1), Release);
    i
}

/// The clock of a group whose members (ascending world ranks) make a communicator among themselves. It stays.
pub(crate) fn of_group(members: &[u32]) -> u32 {
    let gid = gid_of_group(members);
    let _s = lock();
    let n = upper().n_clocks.load(Relaxed) as usize;
    let known = upper().clocks.iter().take(n).position(|c| c.gid.load(Relaxed) == gid);
    known.and_then(|i| u32::try_from(i).ok()).unwrap_or_else(|| place(gid, members.to_vec()))
}

/// The clock ends: all members have passed the last collective that it counts.
pub(crate) fn retire(index: u32) {
    if index != NONE {
        let mut s = lock();
        s.retired.push(index);
        sweep(&mut s);
    }
}

fn settling() -> bool {
    half().flags.load(SeqCst) & FLAG_SETTLE != 0
}

fn sweep(s: &mut State) {
    if s.retired.is_empty() || settling() {
        return;
    }
    s.retired.retain(|&i| {
        let Some(c) = upper().clocks.get(i as usize) else { return false };
        c.gid.store(0, SeqCst);
        fence(SeqCst);
        if settling() {
            return true;
        }
        let at = core::ptr::with_exposed_provenance_mut::<u32>(c.members.load(Relaxed) as usize);
        let n = c.n_members.load(Relaxed) as usize;
        // SAFETY: from `Box::into_raw` in `place`; no settle stage stands, so nobody reads it.
        drop(unsafe { Box::from_raw(core::ptr::slice_from_raw_parts_mut(at, n)) });
        c.members.store(0, Relaxed);
        false
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_identities_are_alike_for_all_and_apart_by_kind() {
        assert_eq!(gid_of_child(1 << 63 | 5, 1), gid_of_child(1 << 63 | 5, 1));
        assert_ne!(gid_of_child(1 << 63 | 5, 1), gid_of_child(1 << 63 | 5, 2));
        assert_eq!(gid_of_child(7, 1) >> 61, 2);
        assert_eq!(gid_of_group(&[0, 3]) >> 61, 3);
        assert_ne!(gid_of_group(&[0, 3]), gid_of_group(&[3, 0]));
    }
}
