//! What the application's names mean in this start: the one table of the process ([`Places`]).
//!
//! What a reader would get wrong: nothing here asks another rank. What there is to know was said in the rounds after the restart.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU32};

use rdma_sys::{ibv_ah_attr, ibv_wc};

use crate::address::{Address, Moved, Port, Raw};
use crate::header::{self, Header};
use crate::keys::Owner;
use crate::lock::Lock;
use crate::places::{Places, There};

static CHANGED: AtomicBool = AtomicBool::new(false);
static STARTS: AtomicU32 = AtomicU32::new(0);
static KNOWN: Lock<Option<Places>> = Lock::new(None);

/// Whether there was a restart.
pub(crate) fn changed() -> bool {
    CHANGED.load(Relaxed)
}

/// How many there were.
pub(crate) fn starts() -> u32 {
    STARTS.load(Relaxed)
}

/// What all ranks have told after a restart; `rank` is this one.
pub(crate) fn renew(all: &[(u32, Moved)], rank: u32) {
    CHANGED.store(true, Relaxed);
    STARTS.fetch_add(1, Relaxed);
    KNOWN.with(|k| *k = Some(Places::of(all, rank)));
}

/// Ports that no application knows yet, of all ranks: they get names as well.
pub(crate) fn adopt(present: &BTreeSet<(Address, u32)>) {
    KNOWN.with(|known| {
        let Some(known) = known else { return };
        for (is, rank) in present {
            let there = match *is {
                // A LID comes behind all GIDs, and is found by them no more: it is a name of its own.
                Address::Gid(gid) => There { gid, lid: 0 },
                Address::Lid(lid) => There { lid, ..There::default() },
            };
            known.name(*is, there);
            // Its device has no keys of before.
            known.at(*is, (*rank, u32::MAX));
        }
    });
}

/// No queue pair that is made from now on may have these.
pub(crate) fn take(numbers: impl Iterator<Item = u32>) {
    KNOWN.with(|known| known.as_mut().map(|k| k.taken.extend(numbers)));
}

/// Whether a queue pair that is made now may not have this number.
pub(crate) fn is_taken(number: u32) -> bool {
    changed() && KNOWN.with(|k| k.as_ref().is_some_and(|k| k.taken.contains(&number)))
}

/// All names of the port that has this address now.
pub(crate) fn names(is: Address) -> BTreeSet<Address> {
    KNOWN.with(|k| k.as_ref().and_then(|k| k.names.get(&is).cloned())).unwrap_or_default()
}

/// The name that leads to this port alone. `None`: it is there since the restart, and its own is another's already.
pub(crate) fn called(is: Address) -> Option<Address> {
    KNOWN.with(|known| {
        let Some(known) = known else { return Some(is) };
        let own = || (!known.places.contains_key(&is)).then_some(is);
        known.alone.get(&is).copied().or_else(own)
    })
}

/// A port that the application sees for the first time.
pub(crate) fn first_seen(port: &Port) -> Port {
    if changed() { port.renamed(called) } else { port.clone() }
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
        // SAFETY: the caller's promise.
        let gid = if attr.is_global != 0 { Some(unsafe { &mut attr.grh.dgid.raw }) } else { None };
        known.lead(gid, &mut attr.dlid, number)
    })
}

/// The name that a queue pair with this address was told by.
///
/// # Safety
/// As for [`there`].
pub(crate) unsafe fn name(attr: &ibv_ah_attr) -> Address {
    if attr.is_global != 0 {
        // SAFETY: the caller's promise.
        Address::Gid(unsafe { attr.grh.dgid.raw })
    } else {
        Address::Lid(attr.dlid)
    }
}

/// Another queue pair of the application's is connected with this one.
///
/// # Safety
/// As for [`there`].
pub(crate) unsafe fn meet(was: (&ibv_ah_attr, u32), now: (&ibv_ah_attr, u32), owner: Owner) {
    KNOWN.with(|known| {
        let Some(known) = known else { return };
        // SAFETY: the caller's promise.
        let (name, gid) = unsafe { (name(was.0), now.0.grh.dgid.raw) };
        let there = if now.0.is_global != 0 {
            There { gid, lid: now.0.dlid }
        } else {
            There { lid: now.0.dlid, ..There::default() }
        };
        known.pairs.insert((name, was.1), Some((there, now.1)));
        known.owners.entry(name).or_default().by_number.entry(was.1).or_default().insert(owner);
    });
}

/// The rank and device of a queue pair; or those of which it may be one, if it was made since.
///
/// # Safety
/// As for [`there`].
pub(crate) unsafe fn owners(attr: &ibv_ah_attr, number: u32) -> BTreeSet<Owner> {
    KNOWN.with(|known| {
        let Some(known) = known else { return BTreeSet::new() };
        // SAFETY: the caller's promise.
        let Some(owners) = known.owners.get(&unsafe { name(attr) }) else { return BTreeSet::new() };
        owners.by_number.get(&number).unwrap_or(&owners.all).clone()
    })
}

/// IBV_WC_GRH.
pub(crate) const HAS_GRH: u32 = 1;

/// Puts the application's names for those of this start into the completion of a datagram, and into its global header: what is kept
/// of them holds after the next restart, too.
pub(crate) fn source(wc: &mut ibv_wc, header: Option<&mut Header>) {
    let header = header.filter(|_| wc.wc_flags & HAS_GRH != 0);
    KNOWN.with(|known| {
        let Some(known) = known else { return };
        let (slid, number) = known.sender(Address::Lid(wc.slid), wc.src_qp);
        if let Address::Lid(lid) = slid {
            wc.slid = lid;
        }
        let Some(header) = header else {
            wc.src_qp = number;
            return;
        };
        let [from, to] = header::ends(header);
        let (name, number) = known.sender(Address::Gid(from), wc.src_qp);
        wc.src_qp = number;
        let own = known.own.get(&Address::Gid(to)).or_else(|| known.alone.get(&Address::Gid(to)));
        let raw = |a: Option<&Address>, was: Raw| if let Some(Address::Gid(raw)) = a { *raw } else { was };
        header::put(header, [raw(Some(&name), from), raw(own, to)]);
    });
}

/// The address in this start of one that the application knows. `None`: of which of them, nobody can tell.
pub(crate) fn address_there(was: &Raw) -> Option<Raw> {
    KNOWN.with(|known| {
        let Some(all) = known.as_ref().and_then(|k| k.places.get(&Address::Gid(*was))) else {
            return Some(*was);
        };
        if let (1, Some(there)) = (all.len(), all.first()) { Some(there.gid) } else { None }
    })
}

/// The application's name for an address of this start, if there is another one.
pub(crate) fn address_back(is: &Raw) -> Option<Raw> {
    let name = KNOWN.with(|known| known.as_ref()?.alone.get(&Address::Gid(*is)).copied());
    if let Some(Address::Gid(raw)) = name { Some(raw) } else { None }
}

/// The same of a LID.
pub(crate) fn lid_back(is: u16) -> u16 {
    let name = KNOWN.with(|known| known.as_ref()?.alone.get(&Address::Lid(is)).copied());
    if let Some(Address::Lid(lid)) = name { lid } else { is }
}

/// What the application calls a queue pair at an address of this start.
pub(crate) fn pair_back(at: Address, is: u32) -> (Address, u32) {
    KNOWN.with(|known| known.as_ref().map_or((at, is), |k| k.sender(at, is)))
}

/// What the first name means in this start is known here by other means.
pub(crate) fn lead(was: (Address, u32), is: (Raw, u32)) {
    let there = There { gid: is.0, lid: 0 };
    KNOWN.with(|known| _ = known.as_mut().map(|k| _ = k.pairs.entry(was).or_insert(Some((there, is.1)))));
}
