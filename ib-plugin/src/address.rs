//! Addresses after a restart: those that the application knows, and those that its ports, and its peers', have now.
//!
//! ```text
//!   the application's   (GID, number)  ─▶ this one now, if the peer has told of it
//!                        GID           ─▶ where those are that had it: one port, or several, and then nobody can tell
//! ```
//!
//! What a reader would get wrong: a name that was told before the first checkpoint is valid for ever, also where it was only kept, and
//! a queue pair that is made after a restart is called by its port's *former* address and its number of now. So no new
//! number may be one that any queue pair of the same address had before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use rdma_sys::{ibv_ah_attr, ibv_wc};

use crate::log::Lock;

pub(crate) type Raw = [u8; 16];

/// An address of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Gid {
    pub(crate) raw: Raw,
    /// What it is for: one of the same kind takes its place on another port.
    kind: u8,
}

/// What a port is called.
#[derive(Clone, Debug, Default)]
pub(crate) struct Port {
    pub(crate) lid: u16,
    pub(crate) gids: Vec<Gid>,
}

impl Gid {
    /// `sort`: as ibv_query_gid_type says (RoCE of version 1 and 2 have the same addresses twice).
    pub(crate) fn new(raw: Raw, sort: u8) -> Gid {
        let form = match raw {
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, ..] => 1,
            [0xfe, 0x80, ..] => 2,
            _ => 3,
        };
        Gid { raw, kind: if raw == [0; 16] { 0 } else { sort * 4 + form } }
    }

    pub(crate) fn is_set(&self) -> bool {
        self.kind != 0
    }
}

impl Port {
    /// Which entry of `now` stands for this port's entry `at`: the same one if it is of that kind, or the one that is the same among
    /// those of its kind.
    pub(crate) fn place(&self, at: usize, now: &Port) -> Option<usize> {
        let kind = self.gids.get(at)?.kind;
        if now.gids.get(at).is_some_and(|g| g.kind == kind) {
            return Some(at);
        }
        let nth = self.gids[..at].iter().filter(|g| g.kind == kind).count();
        let same = |port: &Port| -> Vec<usize> {
            (0..).zip(&port.gids).filter(|(_, g)| g.kind == kind).map(|(k, _)| k).collect()
        };
        let there = same(now);
        there.get(nth).or(there.last()).copied()
    }
}

/// A port of some rank, then and now; and queue pairs of it, by their numbers then and now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Moved {
    pub(crate) gids: Vec<(Raw, Raw)>,
    pub(crate) lid: (u16, u16),
    pub(crate) numbers: Vec<(u32, u32)>,
}

/// Who had an address, and where.
#[derive(Debug, Default)]
struct Owners {
    /// By queue pair, where it was told; and of the address.
    by_number: BTreeMap<u32, u32>,
    ranks: BTreeSet<u32>,
}

/// By what the application knows.
#[derive(Debug, Default)]
struct Known {
    gids: BTreeMap<Raw, BTreeSet<Raw>>,
    lids: BTreeMap<u16, BTreeSet<u16>>,
    by_gid: BTreeMap<(Raw, u32), (Raw, u32)>,
    by_lid: BTreeMap<(u16, u32), (u16, u32)>,
    /// The other way, for what comes: by real address.
    back: BTreeMap<(Raw, u32), u32>,
    back_lid: BTreeMap<(u16, u32), u32>,
    gids_back: BTreeMap<Raw, Raw>,
    lids_back: BTreeMap<u16, u16>,
    owners: BTreeMap<Raw, Owners>,
    lid_owners: BTreeMap<u16, Owners>,
    /// Numbers that no new queue pair may have.
    taken: BTreeSet<u32>,
}

static CHANGED: AtomicBool = AtomicBool::new(false);
static KNOWN: Lock<Option<Known>> = Lock::new(None);

/// Whether there was a restart.
pub(crate) fn changed() -> bool {
    CHANGED.load(Relaxed)
}

impl Moved {
    pub(crate) fn pack(&self, out: &mut Vec<u8>) {
        let count = |n: usize| u32::try_from(n).unwrap_or(0).to_le_bytes();
        out.extend(count(self.gids.len()));
        self.gids.iter().for_each(|(was, is)| out.extend([*was, *is].concat()));
        out.extend(self.lid.0.to_le_bytes());
        out.extend(self.lid.1.to_le_bytes());
        out.extend(count(self.numbers.len()));
        for (was, is) in &self.numbers {
            out.extend(was.to_le_bytes());
            out.extend(is.to_le_bytes());
        }
    }

    /// All of them in there; what is torn at the end is left out.
    pub(crate) fn all(mut bytes: &[u8]) -> Vec<Moved> {
        let mut all = Vec::new();
        while let Some((one, rest)) = Moved::first(bytes) {
            all.push(one);
            bytes = rest;
        }
        all
    }

    fn first(mut bytes: &[u8]) -> Option<(Moved, &[u8])> {
        let mut take = |n: usize| {
            let (head, rest) = bytes.split_at_checked(n)?;
            bytes = rest;
            Some(head)
        };
        let word = |b: &[u8]| Some(u32::from_le_bytes(b.try_into().ok()?));
        let mut one = Moved::default();
        for _ in 0..word(take(4)?)? {
            one.gids.push((take(16)?.try_into().ok()?, take(16)?.try_into().ok()?));
        }
        let lid = |b: &[u8]| Some(u16::from_le_bytes(b.try_into().ok()?));
        one.lid = (lid(take(2)?)?, lid(take(2)?)?);
        for _ in 0..word(take(4)?)? {
            one.numbers.push((word(take(4)?)?, word(take(4)?)?));
        }
        Some((one, bytes))
    }
}

/// What all ranks have told after a restart, and the numbers that are taken.
pub(crate) fn renew(all: &[(u32, Moved)], taken: BTreeSet<u32>) {
    let mut known = Known { taken, ..Known::default() };
    for (rank, port) in all {
        let own = |owners: &mut Owners| {
            owners.ranks.insert(*rank);
            owners.by_number.extend(port.numbers.iter().map(|(was, _)| (*was, *rank)));
        };
        port.gids.iter().for_each(|(was, _)| own(known.owners.entry(*was).or_default()));
        if port.lid.0 != 0 {
            own(known.lid_owners.entry(port.lid.0).or_default());
        }
        for (was, is) in &port.gids {
            known.gids.entry(*was).or_default().insert(*is);
            known.gids_back.insert(*is, *was);
            for (number, now) in &port.numbers {
                known.by_gid.insert((*was, *number), (*is, *now));
                known.back.insert((*is, *now), *number);
            }
        }
        let (was, is) = port.lid;
        if was != 0 {
            known.lids.entry(was).or_default().insert(is);
            known.lids_back.insert(is, was);
            for (number, now) in &port.numbers {
                known.by_lid.insert((was, *number), (is, *now));
                known.back_lid.insert((is, *now), *number);
            }
        }
    }
    CHANGED.store(true, Relaxed);
    KNOWN.with(|k| *k = Some(known));
}

/// Whether a queue pair that is made now may not have this number.
pub(crate) fn is_taken(number: u32) -> bool {
    changed() && KNOWN.with(|k| k.as_ref().is_some_and(|k| k.taken.contains(&number)))
}

fn only<T: Copy + Ord>(of: Option<&BTreeSet<T>>, else_: T) -> Option<T> {
    match of {
        None => Some(else_),
        Some(set) if set.len() == 1 => set.first().copied(),
        Some(_) => None,
    }
}

/// Where this address is now, and a queue pair there. `None`: nobody can tell.
///
/// # Safety
/// The bytes of the address are written, if there is one.
pub(crate) unsafe fn there(attr: &mut ibv_ah_attr, number: u32) -> Option<u32> {
    if !changed() {
        return Some(number);
    }
    KNOWN.with(|known| {
        let Some(known) = known else { return Some(number) };
        if attr.is_global != 0 {
            // SAFETY: the caller's promise.
            let gid = unsafe { attr.grh.dgid.raw };
            // On InfiniBand it has both.
            attr.dlid = only(known.lids.get(&attr.dlid), attr.dlid)?;
            if let Some((now, there)) = known.by_gid.get(&(gid, number)) {
                attr.grh.dgid.raw = *now;
                return Some(*there);
            }
            attr.grh.dgid.raw = only(known.gids.get(&gid), gid)?;
        } else {
            if let Some((now, there)) = known.by_lid.get(&(attr.dlid, number)) {
                attr.dlid = *now;
                return Some(*there);
            }
            attr.dlid = only(known.lids.get(&attr.dlid), attr.dlid)?;
        }
        Some(number)
    })
}

/// Another queue pair of the application's is connected with this one.
///
/// # Safety
/// As for [`there`].
pub(crate) unsafe fn meet(was: (&ibv_ah_attr, u32), now: (&ibv_ah_attr, u32), rank: u32) {
    KNOWN.with(|known| {
        let Some(known) = known else { return };
        // SAFETY: the caller's promise.
        let gids = unsafe { (was.0.grh.dgid.raw, now.0.grh.dgid.raw) };
        if was.0.is_global != 0 {
            known.by_gid.insert((gids.0, was.1), (gids.1, now.1));
            known.owners.entry(gids.0).or_default().by_number.insert(was.1, rank);
        } else {
            known.by_lid.insert((was.0.dlid, was.1), (now.0.dlid, now.1));
            known.lid_owners.entry(was.0.dlid).or_default().by_number.insert(was.1, rank);
        }
    });
}

/// The rank of a queue pair; or those of which it may be one, if it was made since.
///
/// # Safety
/// As for [`there`].
pub(crate) unsafe fn owners(attr: &ibv_ah_attr, number: u32) -> BTreeSet<u32> {
    KNOWN.with(|known| {
        let Some(known) = known else { return BTreeSet::new() };
        let owners = if attr.is_global != 0 {
            // SAFETY: the caller's promise.
            known.owners.get(&unsafe { attr.grh.dgid.raw })
        } else {
            known.lid_owners.get(&attr.dlid)
        };
        let Some(owners) = owners else { return BTreeSet::new() };
        owners.by_number.get(&number).map_or_else(|| owners.ranks.clone(), |rank| BTreeSet::from([*rank]))
    })
}

/// The application's name for an address that came from below.
///
/// # Safety
/// As for [`there`].
pub(crate) unsafe fn back(attr: &mut ibv_ah_attr) {
    KNOWN.with(|known| {
        let Some(known) = known else { return };
        if attr.is_global != 0 {
            // SAFETY: the caller's promise.
            let gid = unsafe { attr.grh.dgid.raw };
            attr.grh.dgid.raw = known.gids_back.get(&gid).copied().unwrap_or(gid);
        }
        attr.dlid = known.lids_back.get(&attr.dlid).copied().unwrap_or(attr.dlid);
    });
}

/// IBV_WC_GRH.
const HAS_GRH: u32 = 1;

/// The sender's number in the completion of a datagram, whose first 40 bytes are its global header, if it has one.
pub(crate) fn source(wc: &mut ibv_wc, header: Option<&[u8; 40]>) {
    let has = wc.wc_flags & HAS_GRH != 0;
    KNOWN.with(|known| {
        let Some(known) = known else { return };
        let number = match header.filter(|_| has) {
            Some(header) => known.back.get(&(sender(header), wc.src_qp)),
            None => known.back_lid.get(&(wc.slid, wc.src_qp)),
        };
        wc.src_qp = number.copied().unwrap_or(wc.src_qp);
        wc.slid = known.lids_back.get(&wc.slid).copied().unwrap_or(wc.slid);
    });
}

/// The sender's address in a global header; of RoCE over IPv4 the last 20 bytes are the header of that (annex A17 of the InfiniBand
/// specification).
fn sender(header: &[u8; 40]) -> Raw {
    let (v4, mut raw) = (&header[20..], [0u8; 16]);
    let sum: u32 = v4.chunks_exact(2).map(|c| u32::from(c[0]) << 8 | u32::from(c[1])).sum();
    if v4[0] == 0x45 && sum % 0xffff == 0 {
        raw[10..12].fill(0xff);
        raw[12..].copy_from_slice(&v4[12..16]);
    } else {
        raw.copy_from_slice(&header[8..24]);
    }
    raw
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(last: u8) -> Raw {
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, last]
    }

    fn local(last: u8) -> Raw {
        [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]
    }

    #[test]
    fn an_address_of_the_same_kind_takes_the_place() {
        let port = |gids: &[(Raw, u8)]| Port {
            lid: 0,
            gids: gids.iter().map(|(raw, sort)| Gid::new(*raw, *sort)).collect(),
        };
        let was = port(&[(local(1), 0), (local(1), 1), (v4(1), 0), (v4(1), 1)]);
        let same = port(&[(local(2), 0), (local(2), 1), (v4(2), 0), (v4(2), 1)]);
        let other = port(&[(local(3), 1), (v4(3), 1)]);
        assert_eq!([0, 1, 2, 3, 4].map(|k| was.place(k, &same)), [Some(0), Some(1), Some(2), Some(3), None]);
        assert_eq!([0, 1, 2, 3].map(|k| was.place(k, &other)), [None, Some(0), None, Some(1)]);
    }

    #[test]
    fn there_and_back_again() {
        let one = Moved { gids: vec![(v4(1), v4(9))], lid: (3, 4), numbers: vec![(17, 40), (18, 41)] };
        let mut bytes = Vec::new();
        one.pack(&mut bytes);
        Moved::default().pack(&mut bytes);
        assert_eq!(Moved::all(&bytes), [one, Moved::default()]);
        assert_eq!(Moved::all(&bytes[..bytes.len() - 1]).len(), 1);
    }

    #[test]
    fn names_lead_to_where_they_are_now_and_what_is_ambiguous_leads_nowhere() {
        let one = Moved { gids: vec![(v4(1), v4(9))], lid: (0, 0), numbers: vec![(17, 40)] };
        let two = Moved { gids: vec![(v4(2), v4(1))], lid: (0, 0), numbers: vec![(17, 41)] };
        let three = Moved { gids: vec![(v4(2), v4(5))], ..Moved::default() };
        renew(&[(0, one), (1, two), (2, three)], [17].into());
        let lead = |gid: Raw, number: u32| {
            // SAFETY: numbers; the address is written.
            unsafe {
                let mut attr: ibv_ah_attr = std::mem::zeroed();
                attr.is_global = 1;
                attr.grh.dgid.raw = gid;
                there(&mut attr, number).map(|n| (attr.grh.dgid.raw, n))
            }
        };
        assert_eq!(lead(v4(1), 17), Some((v4(9), 40)));
        assert_eq!(lead(v4(1), 99), Some((v4(9), 99)), "made since");
        assert_eq!(lead(v4(2), 17), Some((v4(1), 41)));
        assert_eq!(lead(v4(2), 99), None, "of which of the two?");
        assert_eq!(lead(v4(7), 99), Some((v4(7), 99)), "a stranger");
        assert!(is_taken(17) && !is_taken(18));
        let whose = |gid: Raw, number: u32| {
            // SAFETY: as above.
            unsafe {
                let mut attr: ibv_ah_attr = std::mem::zeroed();
                attr.is_global = 1;
                attr.grh.dgid.raw = gid;
                owners(&attr, number)
            }
        };
        assert_eq!(whose(v4(2), 17), [1].into());
        assert_eq!(whose(v4(2), 99), [1, 2].into(), "one of these");
        assert!(whose(v4(7), 17).is_empty());
        // A datagram from 10.0.0.9: an IPv4 header with its sum.
        let mut header = [0u8; 40];
        header[20..40].copy_from_slice(&[0x45, 0, 0, 60, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 9, 10, 0, 0, 1]);
        let sum: u32 = header[20..].chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(c[1])).sum();
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        header[30..32].copy_from_slice(&sum.to_be_bytes());
        // SAFETY: numbers.
        let mut wc: ibv_wc = unsafe { std::mem::zeroed() };
        (wc.wc_flags, wc.src_qp) = (HAS_GRH, 40);
        source(&mut wc, Some(&header));
        assert_eq!(wc.src_qp, 17);
    }
}
