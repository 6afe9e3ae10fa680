//! The store of drained messages: what the drain pulled out of the network, until a receive of the application takes
//! it. Runs in the *upper half* (it is ordinary memory there, and so is in the image). Pure: no MPI below it.
//!
//! ```text
//!   gid ──▶ [ oldest … newest ]     one queue a communicator, in the order in which the drain matched them
//! ```
//!
//! What a reader would get wrong: a queue is searched from its oldest end also for wildcards, and a message found
//! here always comes before one that is still below, because the drain only stops when nothing of that source is left
//! below. Ranks are ranks in the communicator (of the remote group for an intercommunicator), not world ranks.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

/// `MPI_ANY_SOURCE`.
pub(crate) const ANY_SOURCE: i32 = -1;
/// `MPI_ANY_TAG`.
pub(crate) const ANY_TAG: i32 = -1;
/// `MPI_PROC_NULL`.
pub(crate) const PROC_NULL: i32 = -2;

/// Which synchronous send a drained message came from: its sender waits for an acknowledgement that names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SyncId {
    /// World rank of the sender.
    pub(crate) world: u32,
    /// The sender's own number for the send.
    pub(crate) id: u64,
}

/// One message that was brought home.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Drained {
    /// Rank of the sender in the communicator.
    pub(crate) source: i32,
    /// Its tag.
    pub(crate) tag: i32,
    /// Its packed bytes, as `MPI_BYTE` gave them.
    pub(crate) bytes: Vec<u8>,
    /// Who must be told that it has been matched: its own sender, when that was a synchronous send.
    pub(crate) sync: Vec<SyncId>,
    /// The library's request that still writes `bytes`; 0: all of them are here.
    pub(crate) real: usize,
}

impl Drained {
    fn fits(&self, source: i32, tag: i32) -> bool {
        (source == ANY_SOURCE || source == self.source) && (tag == ANY_TAG || tag == self.tag)
    }
}

/// All drained messages of a rank.
#[derive(Debug, Default)]
pub(crate) struct Store {
    by_comm: BTreeMap<u64, VecDeque<Drained>>,
    len: usize,
}

impl Store {
    pub(crate) const fn new() -> Self {
        Store { by_comm: BTreeMap::new(), len: 0 }
    }

    /// True when a receive need not look here at all, which is nearly always.
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.len
    }

    /// Adds a message behind all that are there.
    pub(crate) fn put(&mut self, gid: u64, m: Drained) {
        self.by_comm.entry(gid).or_default().push_back(m);
        self.len += 1;
    }

    /// What a probe sees: the oldest message that fits.
    pub(crate) fn peek(&self, gid: u64, source: i32, tag: i32) -> Option<&Drained> {
        self.by_comm.get(&gid)?.iter().find(|m| m.fits(source, tag))
    }

    /// What a receive or a matched probe takes: the oldest message that fits.
    pub(crate) fn take(&mut self, gid: u64, source: i32, tag: i32) -> Option<Drained> {
        let q = self.by_comm.get_mut(&gid)?;
        let at = q.iter().position(|m| m.fits(source, tag))?;
        let m = q.remove(at);
        if q.is_empty() {
            self.by_comm.remove(&gid);
        }
        self.len -= usize::from(m.is_some());
        m
    }

    /// Marks the message of a synchronous send that was still incomplete when `later` messages of the same
    /// communicator, source and tag had been sent behind it. False: it is not here, so a receive below has it.
    ///
    /// Counting from the newest end is right because messages of one source, tag and communicator do not overtake,
    /// so what is here is the tail of what was sent. When the drain was cut short, up to `missing` of the newest are
    /// not here yet; then the newest message that can be the one is marked, which tells the sender late, never early.
    pub(crate) fn mark_sync(
        &mut self,
        gid: u64,
        source: i32,
        tag: i32,
        later: u64,
        missing: u64,
        sync: SyncId,
    ) -> bool {
        let Some(q) = self.by_comm.get_mut(&gid) else { return false };
        let mut same = q.iter_mut().rev().filter(|m| m.source == source && m.tag == tag);
        let from_the_end = usize::try_from(later.saturating_sub(missing)).ok();
        let Some(m) = from_the_end.and_then(|n| same.nth(n)) else { return false };
        m.sync.push(sync);
        true
    }

    /// True if a message here still has to tell `sync`.
    pub(crate) fn owes(&self, sync: SyncId) -> bool {
        self.by_comm.values().flatten().any(|m| m.sync.contains(&sync))
    }

    /// All messages, to ask whether their bytes have arrived.
    pub(crate) fn each(&mut self) -> impl Iterator<Item = &mut Drained> {
        self.by_comm.values_mut().flatten()
    }

    /// Forgets what was drained for a communicator whose last member has freed it.
    pub(crate) fn forget(&mut self, gid: u64) {
        if let Some(q) = self.by_comm.remove(&gid) {
            self.len -= q.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn m(source: i32, tag: i32, text: &[u8]) -> Drained {
        Drained { source, tag, bytes: text.to_vec(), sync: Vec::new(), real: 0 }
    }

    fn got(d: Option<Drained>) -> Vec<u8> {
        d.map(|d| d.bytes).unwrap_or_else(|| b"none".to_vec())
    }

    #[test]
    fn the_oldest_that_fits_comes_first_for_wildcards_too() {
        let mut s = Store::new();
        assert!(s.is_empty());
        s.put(1, m(3, 7, b"a"));
        s.put(1, m(2, 9, b"b"));
        s.put(1, m(3, 9, b"c"));
        s.put(1, m(3, 7, b"d"));
        s.put(2, m(3, 7, b"other"));
        assert_eq!(s.peek(1, ANY_SOURCE, 9).unwrap().bytes, b"b");
        assert_eq!(got(s.take(1, 3, 9)), b"c");
        assert_eq!(got(s.take(1, ANY_SOURCE, 9)), b"b");
        assert_eq!(got(s.take(1, 3, ANY_TAG)), b"a");
        assert_eq!(got(s.take(1, ANY_SOURCE, ANY_TAG)), b"d");
        assert_eq!(got(s.take(1, ANY_SOURCE, ANY_TAG)), b"none");
        assert_eq!((s.len(), s.is_empty()), (1, false));
        s.forget(2);
        assert!(s.is_empty());
    }

    #[test]
    fn proc_null_finds_nothing() {
        let mut s = Store::new();
        s.put(1, m(0, 0, b"x"));
        assert!(s.take(1, PROC_NULL, ANY_TAG).is_none());
        assert!(s.peek(1, PROC_NULL, 0).is_none());
    }

    #[test]
    fn a_zero_byte_message_is_a_message() {
        let mut s = Store::new();
        s.put(5, m(0, 0, b""));
        assert_eq!(s.take(5, 0, 0).unwrap().bytes.len(), 0);
    }

    #[test]
    fn a_synchronous_send_is_found_from_the_newest_end() {
        // Sent: s0 (ssend), x, s1 (ssend), y; a receive below has taken s0, the rest was drained.
        let mut s = Store::new();
        for t in [&b"x"[..], b"s1", b"y"] {
            s.put(1, m(4, 2, t));
        }
        s.put(1, m(4, 3, b"another tag"));
        let id = |id| SyncId { world: 40, id };
        assert!(!s.mark_sync(1, 4, 2, 3, 0, id(100)), "s0 is in a receive below");
        assert!(s.mark_sync(1, 4, 2, 1, 0, id(101)));
        assert!(!s.mark_sync(9, 4, 2, 0, 0, id(102)));
        assert!(s.owes(id(101)) && !s.owes(id(100)));
        assert!(s.take(1, 4, 2).unwrap().sync.is_empty());
        assert_eq!(s.take(1, 4, 2).unwrap().sync, [id(101)]);
        assert!(s.take(1, 4, 2).unwrap().sync.is_empty());
        assert!(!s.owes(id(101)));
    }

    #[test]
    fn of_a_drain_that_was_cut_short_the_sender_learns_late_but_not_early() {
        // Sent: s0, x, y; y has not arrived, and the receiver does not know which of the newest are missing.
        let mut s = Store::new();
        for t in [&b"s0"[..], b"x"] {
            s.put(1, m(4, 2, t));
        }
        let id = SyncId { world: 40, id: 1 };
        assert!(s.mark_sync(1, 4, 2, 2, 1, id));
        assert_eq!(s.take(1, 4, 2).unwrap().sync, [id], "s0 itself, as only one can be missing");
        // The same when two may be missing: the newer one tells.
        let mut s = Store::new();
        s.put(1, m(4, 2, b"s0"));
        s.put(1, m(4, 2, b"x"));
        assert!(s.mark_sync(1, 4, 2, 2, 2, id));
        assert!(s.take(1, 4, 2).unwrap().sync.is_empty());
        assert_eq!(s.take(1, 4, 2).unwrap().sync, [id]);
    }
}
