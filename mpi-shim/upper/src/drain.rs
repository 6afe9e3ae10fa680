//! The still point's commands: what peers must know, bringing messages home, and posting receives again. Upper half,
//! on the still stack and the main thread's thread pointer, while every thread of the rank stands still.
//!
//! ```text
//!  COUNTS ──▶ to each peer: u64 messages sent to it · u32 n · n × { u64 gid, u64 id, u64 later, i32 tag }   (LE)
//!  DRAIN  ──▶ the same from each peer: test all requests, probe all communicators, until received == sent
//!  RESUME ──▶ acknowledge what needs it          REBUILD ──▶ post unmatched receives again, in their order
//! ```
//!
//! What a reader would get wrong: DRAIN may be, and should be, repeated while other ranks still drain: a send that is
//! complete here may still need this rank's progress to leave it. Repeating costs one round of tests. `later` counts
//! the messages of the same communicator, destination and tag behind a synchronous one, by which the receiver finds it.
#![allow(unsafe_code, reason = "works on requests through raw pointers")]

use crate::down;
use crate::handles::{Comm, Datatype, Status, real};
use crate::matching::{ANY_SOURCE, ANY_TAG, Drained, SyncId};
use crate::predefined;
use crate::request::{Does, P2p, Request, SUCCESS, begin};
use alloc::vec::Vec;
use core::ffi::c_int;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use stillpoint_abi::half::{StillArg, still};

/// A synchronous send that was incomplete when the ranks stood still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pending {
    pub(crate) gid: u64,
    pub(crate) id: u64,
    pub(crate) later: u64,
    pub(crate) tag: i32,
}

/// What one peer tells another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) sent: u64,
    pub(crate) pending: Vec<Pending>,
}

fn put_record(out: &mut Vec<u8>, rank: u32, t: &Told) {
    let n = 12 + 28 * t.pending.len();
    out.extend_from_slice(&rank.to_le_bytes());
    out.extend_from_slice(&(n as u32).to_le_bytes());
    out.extend_from_slice(&t.sent.to_le_bytes());
    out.extend_from_slice(&(t.pending.len() as u32).to_le_bytes());
    for p in &t.pending {
        for v in [p.gid, p.id, p.later] {
            out.extend_from_slice(&v.to_le_bytes());
        }
        out.extend_from_slice(&p.tag.to_le_bytes());
    }
}

fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(b.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(b: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(b.get(at..at + 8)?.try_into().ok()?))
}

/// Records of [`StillArg`]: rank, length, bytes padded to 4.
fn records(mut b: &[u8]) -> Option<Vec<(u32, &[u8])>> {
    let mut all = Vec::new();
    while !b.is_empty() {
        let (rank, n) = (u32_at(b, 0)?, u32_at(b, 4)? as usize);
        all.push((rank, b.get(8..8 + n)?));
        b = b.get(8 + n.next_multiple_of(4)..)?;
    }
    Some(all)
}

fn told(b: &[u8]) -> Option<Told> {
    let n = u32_at(b, 8)? as usize;
    let pending = (0..n)
        .map(|i| {
            let at = 12 + 28 * i;
            Some(Pending {
                gid: u64_at(b, at)?,
                id: u64_at(b, at + 8)?,
                later: u64_at(b, at + 16)?,
                tag: u32_at(b, at + 24)?.cast_signed(),
            })
        })
        .collect::<Option<_>>()?;
    Some(Told { sent: u64_at(b, 0)?, pending })
}

/// The list of peers' synchronous sends has been worked off in this checkpoint.
static MARKED: AtomicBool = AtomicBool::new(false);

fn counts(p: &mut P2p) -> Vec<u8> {
    MARKED.store(false, Relaxed);
    let mut all: Vec<Told> = p.sent.iter().map(|&sent| Told { sent, pending: Vec::new() }).collect();
    for i in 0..p.live.len() {
        let r = p.live[i];
        // SAFETY: live requests only are in the list, and they hold their communicators.
        unsafe {
            if (*r).does != Does::Ssend || (*r).done || p.test(r) {
                continue;
            }
            let c = &*(*r).comm;
            let Some(t) = c.peer_world((*r).peer).and_then(|w| all.get_mut(w as usize)) else { continue };
            let key = p.keys.get(&(c.gid, (*r).peer, (*r).tag)).map_or(0, |k| k.sent);
            // One drained at an earlier checkpoint is known to its receiver already.
            if !(*r).unacknowledged {
                (*r).unacknowledged = true;
                t.pending.push(Pending {
                    gid: c.gid,
                    id: (*r).serial,
                    later: key - (*r).position,
                    tag: (*r).tag,
                });
            }
        }
    }
    let mut out = Vec::new();
    for (rank, t) in all.iter().enumerate().filter(|(_, t)| t.sent != 0) {
        put_record(&mut out, rank as u32, t);
    }
    out
}

fn byte() -> usize {
    // SAFETY: predefined objects live for ever.
    unsafe { real(predefined!(ompi_mpi_byte as Datatype)) }
}

/// Receives the message behind a real handle as bytes. It was matched, so its sender is in its own drain or has sent
/// it: the loop ends without the application.
fn pull(mut message: usize, status: Status) -> Option<Drained> {
    let n = c_int::try_from(status.ucount).ok()?;
    let mut bytes = alloc::vec![0u8; status.ucount];
    let (at, mut q, t) = (bytes.as_mut_ptr(), 0usize, byte());
    let code = down!(MPI_Imrecv(b: *mut u8 = at, n: c_int = n, t: usize = t, m: *mut usize = &raw mut message,
        q: *mut usize = &raw mut q) -> c_int);
    if code != SUCCESS {
        return None;
    }
    let mut s = Status::EMPTY;
    let code = down!(MPI_Wait(q: *mut usize = &raw mut q, s: *mut Status = &raw mut s) -> c_int);
    (code == SUCCESS).then_some(Drained { source: status.source, tag: status.tag, bytes, sync: None })
}

/// One round: tests all that is pending and pulls what has arrived.
fn round(p: &mut P2p, comms: &[*mut Comm]) -> bool {
    let mut pending = false;
    for i in 0..p.live.len() {
        let r = p.live[i];
        // SAFETY: live requests only are in the list.
        unsafe {
            let below = !p.test(r) && (*r).head.real() != 0;
            pending |= below
                && matches!(
                    (*r).does,
                    Does::Send | Does::Ssend | Does::Bsend | Does::Collective | Does::Mrecv
                );
        }
    }
    for &c in comms {
        loop {
            let (mut flag, mut m, mut s) = (0, 0usize, Status::EMPTY);
            // SAFETY: the list of communicators holds live ones.
            let at = unsafe { real(c) };
            let code = down!(MPI_Improbe(from: c_int = ANY_SOURCE, g: c_int = ANY_TAG, c: usize = at,
                f: *mut c_int = &raw mut flag, m: *mut usize = &raw mut m, st: *mut Status = &raw mut s) -> c_int);
            if code != SUCCESS || flag == 0 {
                break;
            }
            // SAFETY: as above.
            let comm = unsafe { &*c };
            let Some(d) = pull(m, s) else { return true };
            p.note_received(comm, d.source);
            p.store.put(comm.gid, d);
        }
    }
    pending
}

fn mark(p: &mut P2p, from: &[(u32, Told)], comms: &[*mut Comm]) {
    if MARKED.swap(true, Relaxed) {
        return;
    }
    for (world, t) in from {
        for s in &t.pending {
            let id = SyncId { world: *world, id: s.id };
            let here = comms.iter().any(|&c| {
                // SAFETY: the list of communicators holds live ones.
                let c = unsafe { &*c };
                c.gid == s.gid
                    && c.peer_rank(*world).is_some_and(|r| p.store.mark_sync(s.gid, r, s.tag, s.later, id))
            });
            if !here {
                // A receive has it: the sender may know at once, as soon as threads run again.
                p.due.push(id);
            }
        }
    }
}

fn comms() -> Vec<*mut Comm> {
    let mut all: Vec<*mut Comm> = crate::state::lock().comms.clone();
    for c in [predefined!(ompi_mpi_comm_world as Comm), predefined!(ompi_mpi_comm_self as Comm)] {
        if !all.contains(&c) {
            all.push(c);
        }
    }
    // SAFETY: the list holds live communicators.
    all.retain(|&c| unsafe { real(c) } != 0);
    all
}

fn drain(p: &mut P2p, input: &[u8], deadline: u64) -> i64 {
    let Some(from) = records(input)
        .and_then(|l| l.into_iter().map(|(w, b)| Some((w, told(b)?))).collect::<Option<Vec<_>>>())
    else {
        return -1;
    };
    let comms = comms();
    // Messages that matched probes hold become bytes of ours.
    for i in 0..p.messages.len() {
        let m = p.messages[i];
        // SAFETY: live messages only are in the list.
        unsafe {
            if (*m).drained.is_none() {
                match pull((*m).head.real(), (*m).status) {
                    Some(d) => (*m).drained = Some(d),
                    None => return -2,
                }
                (*m).head.set_real(0);
            }
        }
    }
    loop {
        let pending = round(p, &comms);
        let home = from.iter().all(|(w, t)| p.received.get(*w as usize).copied().unwrap_or(0) >= t.sent);
        if home && !pending {
            mark(p, &from, &comms);
            return 0;
        }
        if stillpoint_sys::raw::monotonic_ns() > deadline {
            return 1;
        }
    }
}

fn rebuild(p: &mut P2p) -> i64 {
    p.own = (0, 0);
    let mut posted: Vec<*mut Request> = p
        .live
        .iter()
        .copied()
        // SAFETY: live requests only are in the list.
        .filter(|&r| unsafe { (*r).does == Does::Recv && !(*r).done })
        .collect();
    // SAFETY: as above.
    posted.sort_by_key(|&r| unsafe { (*r).serial });
    for r in posted {
        // SAFETY: as above; what a request names is held by it and has been rebuilt.
        unsafe {
            let (b, n, t, c) = ((*r).buf, (*r).count, real((*r).datatype), real((*r).comm));
            let (peer, tag) = ((*r).peer, (*r).tag);
            let mut q = 0usize;
            let code = down!(MPI_Irecv(b: usize = b, n: c_int = n, t: usize = t, s: c_int = peer, g: c_int = tag,
                c: usize = c, q: *mut usize = &raw mut q) -> c_int);
            if code != SUCCESS {
                return i64::from(code);
            }
            (*r).head.set_real(q);
            if (*r).cancelled {
                down!(MPI_Cancel(q: *mut usize = &raw mut q) -> c_int);
            }
        }
    }
    0
}

/// Answers a command of the still point, as far as it concerns messages; `None`: it does not.
///
/// # Safety
/// Every thread of the rank stands still, and `arg` is what the lower half passes.
pub(crate) unsafe fn command(cmd: u32, arg: *mut StillArg) -> Option<i64> {
    let mut p = begin();
    let input = |a: &StillArg| -> &[u8] {
        if a.input.is_null() {
            return &[];
        }
        // SAFETY: the lower half's buffer, alive during the command.
        unsafe { core::slice::from_raw_parts(a.input, a.input_len) }
    };
    // SAFETY: as above.
    let arg = unsafe { arg.as_mut() };
    Some(match (cmd, arg) {
        (still::COUNTS, Some(a)) => {
            let out = counts(&mut p);
            a.out_len = out.len();
            if out.len() <= a.out_cap {
                // SAFETY: the lower half gives `out_cap` bytes of room.
                unsafe { core::ptr::copy_nonoverlapping(out.as_ptr(), a.out, out.len()) };
            } else {
                forget_pending(&mut p);
            }
            0
        }
        (still::DRAIN, Some(a)) => drain(&mut p, input(a), a.deadline),
        (still::RESUME, _) => {
            crate::p2p::flush(&mut p);
            0
        }
        (still::REBUILD, _) => rebuild(&mut p),
        (still::MAIL, Some(a)) => {
            for (_, b) in records(input(a)).unwrap_or_default() {
                if let Some(id) = u64_at(b, 0) {
                    p.acknowledge(id);
                }
            }
            0
        }
        _ => return None,
    })
}

/// COUNTS will be asked again with more room: nobody has been told of the synchronous sends yet.
fn forget_pending(p: &mut P2p) {
    for &r in &p.live {
        // SAFETY: live requests only are in the list.
        unsafe {
            if (*r).head.real() != 0 {
                (*r).unacknowledged = false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_comes_back() {
        let t = Told { sent: 7, pending: alloc::vec![Pending { gid: 1 << 40, id: 9, later: 2, tag: -5 }] };
        let mut out = Vec::new();
        put_record(&mut out, 3, &t);
        put_record(&mut out, 4, &Told { sent: 1, pending: Vec::new() });
        let all = records(&out).unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].0, told(all[0].1).unwrap()), (3, t));
        assert_eq!(told(all[1].1).unwrap().sent, 1);
    }

    #[test]
    fn a_torn_record_is_refused() {
        let mut out = Vec::new();
        put_record(&mut out, 3, &Told::default());
        assert!(records(&out[..out.len() - 1]).is_none());
        assert!(told(&out[8..12]).is_none());
    }
}
