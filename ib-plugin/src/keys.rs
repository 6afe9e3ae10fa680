//! Keys of memory regions after a restart, when the application knows others than the device does.
//!
//! What a reader would get wrong: a local key is looked up in this process, a remote one at the peer of the queue pair, and each among those
//! of one device: another one may have the same. And a key that was told to others before a restart stays taken for ever, also when
//! its region is gone: theirs is translated.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use rdma_sys::ibv_sge;

use crate::lock::Lock;
use crate::log;

/// Whether anything is to be translated: not before the first restart.
static CHANGED: AtomicBool = AtomicBool::new(false);
/// By [`crate::device::number`] and the application's local key, the device's.
static LOCAL: Lock<BTreeMap<(u32, u32), u32>> = Lock::new(BTreeMap::new());
/// Keys of regions that were there at a restart.
static TAKEN: Lock<BTreeSet<u32>> = Lock::new(BTreeSet::new());

/// Upper bits of keys of windows that were there at a restart.
static BASES: Lock<BTreeSet<u32>> = Lock::new(BTreeSet::new());

/// The bits of a window's key that are not the application's.
pub(crate) fn base(key: u32) -> u32 {
    key & !0xff
}

/// Remote keys of a rank's device: by those that the application knows, those of its device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Remote {
    /// Of regions.
    pub(crate) keys: BTreeMap<u32, u32>,
    /// Of windows: by upper bits the upper bits there, and what is to be added to the low 8.
    pub(crate) windows: BTreeMap<u32, (u32, u8)>,
    /// Numbers of shared receive queues that senders name.
    pub(crate) queues: BTreeMap<u32, u32>,
}

impl Remote {
    pub(crate) fn there(&self, key: u32) -> u32 {
        let window = || {
            let (there, more) = self.windows.get(&base(key))?;
            Some(there | u32::from((key as u8).wrapping_add(*more)))
        };
        self.keys.get(&key).copied().or_else(window).unwrap_or(key)
    }
}

/// A rank, and which of its devices.
pub(crate) type Owner = (u32, u32);

static OWNERS: Lock<BTreeMap<Owner, Arc<Remote>>> = Lock::new(BTreeMap::new());

/// These are the local keys from now on. `all`: everything that a region is called.
pub(crate) fn renew(keys: BTreeMap<(u32, u32), u32>, all: impl Iterator<Item = u32>) {
    // Also if they are the same ones by chance: those of others may not be.
    CHANGED.store(true, Relaxed);
    TAKEN.with(|taken| taken.extend(all));
    LOCAL.with(|local| *local = keys);
}

/// Keys of others, of the same address as ours: a name with that address leads to any of us.
pub(crate) fn take(keys: impl Iterator<Item = u32>) {
    TAKEN.with(|taken| taken.extend(keys));
}

/// A region of a device that was made since, or is gone.
pub(crate) fn set(device: u32, own: u32, there: Option<u32>) {
    LOCAL.with(|all| match there {
        Some(there) => _ = all.insert((device, own), there),
        None => _ = all.remove(&(device, own)),
    });
}

/// The same of windows.
pub(crate) fn take_bases(keys: impl Iterator<Item = u32>) {
    BASES.with(|bases| bases.extend(keys.map(base)));
}

/// Whether another region of the application's on this device, or a window, has, or had, this key already. Soft-RoCE says 0 where a region
/// has no remote key.
pub(crate) fn is_taken(device: u32, own: u32) -> bool {
    own != 0
        && CHANGED.load(Relaxed)
        && (LOCAL.with(|all| all.contains_key(&(device, own)))
            || TAKEN.with(|t| t.contains(&own))
            || BASES.with(|b| b.contains(&base(own))))
}

/// Whether one of them has, or had, a key that a window with this one could get.
pub(crate) fn is_taken_base(device: u32, own: u32) -> bool {
    let all = base(own).max(1)..=base(own) | 0xff;
    let here = (device, *all.start())..=(device, *all.end());
    CHANGED.load(Relaxed)
        && (LOCAL.with(|local| local.range(here).next().is_some())
            || TAKEN.with(|t| t.range(all).next().is_some())
            || BASES.with(|b| b.contains(&base(own))))
}

/// Whether anything is to be translated.
#[inline]
pub(crate) fn changed() -> bool {
    CHANGED.load(Relaxed)
}

/// Puts the device's keys for the application's, in a request for the queue of this place ([`crate::log::queue`]).
pub(crate) fn translate(place: u32, sges: &mut [ibv_sge]) {
    let device = log::queue(place).map_or(0, |q| q.device.load(Relaxed));
    LOCAL.with(|all| {
        for s in sges {
            s.lkey = all.get(&(device, s.lkey)).copied().unwrap_or(s.lkey);
        }
    });
}

/// What all ranks have told after a restart.
pub(crate) fn learn(owners: BTreeMap<Owner, Remote>) {
    OWNERS.with(|all| *all = owners.into_iter().map(|(owner, keys)| (owner, Arc::new(keys))).collect());
}

/// The remote keys of a queue pair whose other end is at one of these. A key that two of them have is left out: nobody can tell.
pub(crate) fn of(owners: &BTreeSet<Owner>) -> Arc<Remote> {
    OWNERS.with(|all| {
        let mut known = owners.iter().filter_map(|o| all.get(o));
        let (first, rest) = (known.next().cloned().unwrap_or_default(), known.collect::<Vec<_>>());
        if rest.is_empty() {
            return first;
        }
        let all = || std::iter::once(&first).chain(rest.iter().copied());
        Arc::new(Remote {
            keys: once(all().flat_map(|r| &r.keys)),
            windows: once(all().flat_map(|r| &r.windows)),
            queues: once(all().flat_map(|r| &r.queues)),
        })
    })
}

/// What is the same wherever it stands.
fn once<'a, V: Copy + PartialEq + 'a>(all: impl Iterator<Item = (&'a u32, &'a V)>) -> BTreeMap<u32, V> {
    let (mut merged, mut twice) = (BTreeMap::new(), BTreeSet::new());
    for (key, there) in all {
        if merged.insert(*key, *there).is_some_and(|before| before != *there) {
            twice.insert(*key);
        }
    }
    merged.retain(|key, _| !twice.contains(key));
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_two_ranks_is_nobodys_where_either_may_be_meant() {
        let some = |keys: &[(u32, u32)]| Remote { keys: keys.iter().copied().collect(), ..Remote::default() };
        let all = [
            ((1, 0), some(&[(7, 70), (8, 80)])),
            ((2, 0), some(&[(7, 71), (9, 90)])),
            ((1, 1), some(&[(7, 72)])),
        ];
        learn(BTreeMap::from(all));
        assert_eq!(*of(&[(1, 0)].into()), some(&[(7, 70), (8, 80)]));
        assert_eq!(*of(&[(1, 1)].into()), some(&[(7, 72)]), "of another device");
        assert_eq!(*of(&[(1, 0), (2, 0)].into()), some(&[(8, 80), (9, 90)]));
        assert_eq!(*of(&[(3, 0)].into()), some(&[]));
    }

    #[test]
    fn a_key_of_a_window_is_translated_also_if_nobody_has_told_of_it() {
        let windows = [(0x700, (0x900, 2))].into();
        let remote = Remote { keys: [(0x500, 0x600)].into(), windows, ..Remote::default() };
        assert_eq!([0x500, 0x501, 0x700, 0x7ff].map(|k| remote.there(k)), [0x600, 0x501, 0x902, 0x901]);
        take_bases([0x1234].into_iter());
        CHANGED.store(true, Relaxed);
        assert!(is_taken(0, 0x12ff) && is_taken_base(0, 0x1200) && !is_taken(0, 0x1300));
        TAKEN.with(|t| _ = t.insert(0x1377));
        assert!(is_taken_base(0, 0x1300) && !is_taken(0, 0x1300));
    }

    #[test]
    fn a_key_of_before_stays_taken() {
        renew([((0, 5), 6)].into(), [5].into_iter());
        assert!(changed() && is_taken(0, 5) && !is_taken(0, 6) && !is_taken(0, 0));
        set(0, 5, None);
        assert!(is_taken(0, 5));
        set(1, 40, Some(41));
        assert!(is_taken(1, 40) && !is_taken(0, 40), "each device has its own");
    }
}
