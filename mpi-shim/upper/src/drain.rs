//! The still point's commands: what peers must know, bringing messages home, and posting receives again. Upper half,
//! on the still stack and the main thread's thread pointer, while every thread of the rank stands still.
//!
//! ```text
//!  COUNTS ──▶ to each peer: u64 messages sent to it · u32 n · n × { u64 gid, u64 id, u64 later, i32 tag, u32 again } (LE)
//!  DRAIN  ──▶ the same from each peer: test all requests, probe all communicators, until received == sent
//!  RESUME ──▶ acknowledge what needs it          REBUILD ──▶ post unmatched receives again, in their order
//! ```
//!
//! What a reader would get wrong: DRAIN may be, and should be, repeated while other ranks still drain: a send that is
//! complete here may still need this rank's progress to leave it. Repeating costs one round of tests. `later` counts
//! the messages of the same communicator, destination and tag behind a synchronous one, by which the receiver finds it;
//! `again` says that it was told at an earlier checkpoint, and asks for an acknowledgement that may have been lost.
//!
//! A checkpoint that is given up before DRAIN has told nobody, so what COUNTS marked is unmarked. After DRAIN the
//! senders wait for their acknowledgements, and each receiver works off what it was told with what it has. When a checkpoint
//! ends between the two, with or without the loss of an agent, nobody knows who has been told: the sends stay marked, in
//! doubt, until the root agent has asked all ranks and says who was not told ([`UNTOLD`](stillpoint_abi::half::UNTOLD)).
#![allow(unsafe_code, reason = "works on requests through raw pointers")]

use crate::down;
use crate::handles::{Comm, Datatype, Status, real};
use crate::ledger::P2p;
use crate::matching::{ANY_SOURCE, ANY_TAG, Drained, SyncId};
use crate::predefined;
use crate::request::{Does, Request, SUCCESS, begin};
use alloc::vec::Vec;
use core::ffi::c_int;
use stillpoint_abi::half::{StillArg, still};
use stillpoint_abi::records::Records;

/// A synchronous send that was incomplete when the ranks stood still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pending {
    pub(crate) gid: u64,
    pub(crate) id: u64,
    pub(crate) later: u64,
    pub(crate) tag: i32,
    pub(crate) again: bool,
}

/// What one peer tells another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) sent: u64,
    pub(crate) pending: Vec<Pending>,
}

/// Bytes of a [`Pending`].
const PENDING: usize = 32;

fn put_record(out: &mut Vec<u8>, rank: u32, t: &Told) {
    let n = 12 + PENDING * t.pending.len();
    out.extend_from_slice(&rank.to_le_bytes());
    out.extend_from_slice(&(n as u32).to_le_bytes());
    out.extend_from_slice(&t.sent.to_le_bytes());
    out.extend_from_slice(&(t.pending.len() as u32).to_le_bytes());
    for p in &t.pending {
        for v in [p.gid, p.id, p.later] {
            out.extend_from_slice(&v.to_le_bytes());
        }
        out.extend_from_slice(&p.tag.to_le_bytes());
        out.extend_from_slice(&u32::from(p.again).to_le_bytes());
    }
}

fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(b.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(b: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(b.get(at..at + 8)?.try_into().ok()?))
}

/// Records of [`StillArg`], unless one is torn.
fn records(b: &[u8]) -> Option<Vec<(u32, &[u8])>> {
    let mut records = Records::of(b);
    let all = records.by_ref().collect();
    records.whole().then_some(all)
}

fn told(b: &[u8]) -> Option<Told> {
    let n = u32_at(b, 8)? as usize;
    let pending = (0..n)
        .map(|i| {
            let at = 12 + PENDING * i;
            Some(Pending {
                gid: u64_at(b, at)?,
                id: u64_at(b, at + 8)?,
                later: u64_at(b, at + 16)?,
                tag: u32_at(b, at + 24)? as i32,
                again: u32_at(b, at + 28)? != 0,
            })
        })
        .collect::<Option<_>>()?;
    Some(Told { sent: u64_at(b, 0)?, pending })
}

fn counts(p: &mut P2p) -> Vec<u8> {
    p.read_mail();
    p.round.marked.clear();
    p.round.told = None;
    p.round.worked_off = false;
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
            let again = (*r).unacknowledged;
            (*r).doubtful = false;
            if !again {
                (*r).unacknowledged = true;
                p.round.marked.push(r);
            }
            t.pending.push(Pending {
                gid: c.gid,
                id: (*r).serial,
                later: key.saturating_sub((*r).position),
                tag: (*r).tag,
                again,
            });
        }
    }
    let mut out = Vec::new();
    for (rank, t) in all.iter().enumerate().filter(|(_, t)| t.sent != 0) {
        put_record(&mut out, rank as u32, t);
    }
    out
}

/// Nobody has been told of the synchronous sends that the last COUNTS marked.
fn unmark(p: &mut P2p) {
    for r in core::mem::take(&mut p.round.marked) {
        // SAFETY: no thread has run since they were marked, so they live.
        unsafe {
            (*r).acknowledged();
            if (*r).done {
                p.forget_sync((*(*r).comm).gid, &*r);
            }
        }
    }
}

fn byte() -> usize {
    // SAFETY: predefined objects live for ever.
    unsafe { real(predefined!(ompi_mpi_byte as Datatype)) }
}

/// Starts to receive the message behind a real handle as bytes.
fn pull(mut message: usize, status: Status) -> Result<Drained, c_int> {
    let mut bytes = alloc::vec![0u8; status.ucount];
    let span = Span::of(status.ucount);
    let (at, mut q, t, n) = (bytes.as_mut_ptr(), 0usize, span.ty, span.count);
    let code = down!(MPI_Imrecv(b: *mut u8 = at, n: c_int = n, t: usize = t, m: *mut usize = &raw mut message,
        q: *mut usize = &raw mut q) -> c_int);
    if code != SUCCESS {
        return Err(code);
    }
    Ok(Drained { source: status.source, tag: status.tag, bytes, sync: Vec::new(), real: q })
}

/// A type and a count for any number of bytes: an int counts no more than 2 GiB.
#[derive(Debug)]
pub(crate) struct Span {
    pub(crate) ty: usize,
    pub(crate) count: c_int,
    own: bool,
}

const CHUNK: usize = 1 << 30;

impl Span {
    pub(crate) fn of(n: usize) -> Span {
        if let Ok(count) = c_int::try_from(n) {
            return Span { ty: byte(), count, own: false };
        }
        let (mut chunk, mut ty) = (0usize, 0usize);
        let lengths = [c_int::try_from(n / CHUNK).unwrap_or(c_int::MAX), (n % CHUNK) as c_int];
        let at = [0isize, (n / CHUNK * CHUNK) as isize];
        down!(MPI_Type_contiguous(n: c_int = CHUNK as c_int, t: usize = byte(), o: *mut usize = &raw mut chunk) -> c_int);
        let types = [chunk, byte()];
        down!(MPI_Type_create_struct(n: c_int = 2, b: *const c_int = lengths.as_ptr(), d: *const isize = at.as_ptr(),
            t: *const usize = types.as_ptr(), o: *mut usize = &raw mut ty) -> c_int);
        down!(MPI_Type_commit(t: *mut usize = &raw mut ty) -> c_int);
        down!(MPI_Type_free(t: *mut usize = &raw mut chunk) -> c_int);
        Span { ty, count: 1, own: true }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if self.own {
            // What was started with it keeps it below.
            down!(MPI_Type_free(t: *mut usize = &raw mut self.ty) -> c_int);
        }
    }
}

/// True once all bytes of `d` are here.
fn arrived(d: &mut Drained) -> bool {
    if d.real != 0 {
        let (mut q, mut flag) = (d.real, 0);
        let code = down!(MPI_Test(q: *mut usize = &raw mut q, f: *mut c_int = &raw mut flag,
            s: *mut Status = core::ptr::null_mut()) -> c_int);
        if flag != 0 || code != SUCCESS {
            d.real = 0;
        }
    }
    d.real == 0
}

/// One round: tests all that is pending and pulls what has arrived. True if something is still pending.
fn round(p: &mut P2p, comms: &[*mut Comm]) -> Result<bool, c_int> {
    let mut pending = false;
    for i in 0..p.live.len() {
        let r = p.live[i];
        // SAFETY: live requests only are in the list.
        unsafe {
            let below = !p.test(r) && (*r).head.real() != 0;
            pending |= below && ((*r).arriving.is_some() || !matches!((*r).does, Does::Recv | Does::Foreign));
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
            // Its place in the order is taken now; its bytes come when they come.
            let d = pull(m, s)?;
            p.note_received(comm, d.source);
            p.store.put(comm.gid, d);
        }
    }
    for d in p.store.each() {
        pending |= !arrived(d);
    }
    for i in 0..p.messages.len() {
        // SAFETY: live messages only are in the list.
        let m = unsafe { &mut *p.messages[i] };
        // Messages that matched probes hold become bytes of ours.
        if m.drained.is_none() {
            m.drained = Some(pull(m.head.real(), m.status)?);
            m.head.set_real(0);
        }
        pending |= m.drained.as_mut().is_some_and(|d| !arrived(d));
    }
    Ok(pending)
}

fn missing(p: &P2p, world: u32, sent: u64) -> u64 {
    sent.saturating_sub(p.received.get(world as usize).copied().unwrap_or(0))
}

/// Works off, once a checkpoint, the synchronous sends that the peers told of.
fn mark(p: &mut P2p, comms: &[*mut Comm]) {
    if core::mem::replace(&mut p.round.worked_off, true) {
        return;
    }
    for (world, t) in p.round.told.take().unwrap_or_default() {
        let missing = missing(p, world, t.sent);
        for s in &t.pending {
            let id = SyncId { world, id: s.id };
            let here = if s.again {
                p.store.owes(id)
            } else {
                comms.iter().any(|&c| {
                    // SAFETY: the list of communicators holds live ones.
                    let c = unsafe { &*c };
                    c.gid == s.gid
                        && c.peer_rank(world)
                            .is_some_and(|r| p.store.mark_sync(s.gid, r, s.tag, s.later, missing, id))
                })
            };
            if !here {
                // A receive has it: the sender may know at once, as soon as threads run again.
                p.due.push(id);
            }
        }
    }
}

fn comms() -> Vec<*mut Comm> {
    let mut all: Vec<*mut Comm> = crate::state::lock().comms.clone();
    all.push(predefined!(ompi_mpi_comm_world as Comm));
    all.push(predefined!(ompi_mpi_comm_self as Comm));
    all.push(crate::comm::hidden());
    // SAFETY: the list holds live communicators, and predefined objects live for ever.
    let null = unsafe { real(predefined!(ompi_mpi_comm_null as Comm)) };
    all.retain(|&c| {
        // SAFETY: as above.
        let at = unsafe { real(c) };
        at != 0 && at != null
    });
    all
}

fn drain(p: &mut P2p, input: &[u8], deadline: u64) -> i64 {
    p.read_mail();
    if p.round.told.is_none() && !p.round.worked_off {
        let told = records(input)
            .and_then(|l| l.into_iter().map(|(w, b)| Some((w, told(b)?))).collect::<Option<Vec<_>>>());
        let Some(told) = told else { return -1 };
        p.round.told = Some(told);
    }
    let comms = comms();
    loop {
        let pending = match round(p, &comms) {
            Ok(pending) => pending,
            Err(code) => return -2 - i64::from(code),
        };
        let told = p.round.told.as_deref().unwrap_or_default();
        let home = told.iter().all(|(w, t)| missing(p, *w, t.sent) == 0);
        if home && !pending {
            mark(p, &comms);
            p.sweep();
            return 0;
        }
        if stillpoint_sys::raw::monotonic_ns() > deadline {
            return 1;
        }
    }
}

/// Which ranks have been told of the synchronous sends that the last COUNTS marked will be known later.
fn doubt(p: &mut P2p) {
    // The sweep of a drain may have ended some of them.
    for &r in p.live.iter().filter(|&r| p.round.marked.contains(r)) {
        // SAFETY: live requests only are in the list.
        unsafe { (*r).doubtful = (*r).unacknowledged };
    }
}

/// `outcome`: of [`still::RESUME`].
fn resume(p: &mut P2p, outcome: u8) {
    p.read_mail();
    if p.round.told.is_some() {
        mark(p, &comms());
    }
    match outcome {
        still::CUT_OFF => doubt(p),
        still::GIVEN_UP if p.round.told.is_none() && !p.round.worked_off => unmark(p),
        _ => {}
    }
    p.round.marked.clear();
    p.round.worked_off = false;
    crate::delivery::flush(p);
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
            if c == 0 {
                // All members have freed the communicator: no message for it can come any more.
                (*r).completed_below(Status { cancelled: 1, ..Status::EMPTY }, SUCCESS);
                continue;
            }
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
    // SAFETY: the lower half's argument, or null.
    let arg = unsafe { arg.as_mut() };
    let input: &[u8] = match &arg {
        // SAFETY: the lower half's buffer, alive during the command.
        Some(a) if !a.input.is_null() => unsafe { core::slice::from_raw_parts(a.input, a.input_len) },
        _ => &[],
    };
    Some(match (cmd, arg) {
        (still::COUNTS, Some(a)) => {
            let out = counts(&mut p);
            a.out_len = out.len();
            if out.len() <= a.out_cap {
                // SAFETY: the lower half gives `out_cap` bytes of room.
                unsafe { core::ptr::copy_nonoverlapping(out.as_ptr(), a.out, out.len()) };
            } else {
                // It will be asked again with more room.
                unmark(&mut p);
            }
            0
        }
        (still::DRAIN, Some(a)) => drain(&mut p, input, a.deadline),
        (still::RESUME, _) => {
            resume(&mut p, input.first().copied().unwrap_or(still::GOES_ON));
            0
        }
        (still::REBUILD, _) => rebuild(&mut p),
        (still::MAIL, _) => {
            for id in input.chunks_exact(8) {
                p.letter(u64_at(id, 0).unwrap_or(0));
            }
            0
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_comes_back() {
        let t = Told {
            sent: 7,
            pending: alloc::vec![Pending { gid: 1 << 40, id: 9, later: 2, tag: -5, again: true }],
        };
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

    /// A synchronous send to rank 1 of communicator 9 that a COUNTS has told of, and its book.
    fn marked(p: &mut P2p, comm: &mut Comm, real: usize) -> *mut Request {
        comm.gid = 9;
        comm.local = alloc::vec![0, 1];
        let mut r = Request::new(Does::Ssend);
        r.comm = comm;
        (r.peer, r.tag, r.unacknowledged) = (1, 5, true);
        let r = crate::handles::make(r);
        p.enlist(r);
        p.round.marked.push(r);
        // SAFETY: just made.
        unsafe {
            p.note_sync(&mut *r, 9);
            (*r).head.set_real(real);
        }
        r
    }

    #[test]
    fn given_up_before_the_drain_nobody_has_been_told() {
        use crate::handles::{Head, Kind};
        let mut comm = Comm::new(Head::new(Kind::Comm, 0));
        let mut p = P2p::new();
        let under_way = marked(&mut p, &mut comm, 77);
        let complete_below = marked(&mut p, &mut comm, 0);
        unmark(&mut p);
        // SAFETY: live until `end`; neither leads to the library.
        unsafe {
            assert!(!(*under_way).done && !(*under_way).unacknowledged, "the library will say when");
            assert!((*complete_below).done, "the library has said so");
            assert_eq!(p.keys.len(), 1);
            (*under_way).completed_below(Status::EMPTY, SUCCESS);
            assert!((*under_way).done);
            for r in [under_way, complete_below] {
                p.end(r);
            }
        }
        assert!(p.round.marked.is_empty() && p.live.is_empty());
    }

    #[test]
    fn cut_off_within_the_exchange_the_sends_to_those_who_were_not_told_are_unmarked() {
        use crate::handles::{Head, Kind};
        use stillpoint_abi::half::UNTOLD;
        let mut comm = Comm::new(Head::new(Kind::Comm, 0));
        let mut p = P2p::new();
        let r = marked(&mut p, &mut comm, 0);
        let before = marked(&mut p, &mut comm, 0);
        p.round.marked.pop();
        doubt(&mut p);
        p.letter(UNTOLD);
        // SAFETY: live until `end`; neither leads to the library.
        unsafe {
            assert!((*r).doubtful && !(*r).done, "rank 0 was not told, these are for rank 1");
            p.letter(UNTOLD | 1);
            assert!((*r).done && !(*r).unacknowledged);
            assert!((*before).unacknowledged, "rank 1 was told of this one at an earlier checkpoint");
            for r in [r, before] {
                p.end(r);
            }
        }
    }

    #[test]
    fn given_up_within_the_drain_the_receiver_answers_with_what_it_has() {
        let mut p = P2p::new();
        let sync = |id, again| Pending { gid: 9, id, later: 0, tag: 5, again };
        // Told of three: one that no store has, one told of before and still here, one told of before and taken since.
        let here = SyncId { world: 1, id: 2 };
        p.store.put(4, Drained { source: 1, tag: 5, bytes: Vec::new(), sync: alloc::vec![here], real: 0 });
        p.round.told = Some(alloc::vec![(
            1,
            Told { sent: 0, pending: alloc::vec![sync(1, false), sync(2, true), sync(3, true)] }
        )]);
        mark(&mut p, &[]);
        let owed: Vec<u64> = p.due.iter().map(|s| s.id).collect();
        assert_eq!(owed, [1, 3]);
        mark(&mut p, &[]);
        assert_eq!(p.due.len(), 2, "once a checkpoint");
    }
}
