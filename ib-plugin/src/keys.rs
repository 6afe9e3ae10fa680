//! Keys of memory regions after a restart, when the application knows others than the device does.
//!
//! What a reader would get wrong: a local key is looked up in this process, a remote one at the peer of the queue pair. And a key that
//! was told to others before a restart stays taken for ever, also when its region is gone: theirs is translated.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use rdma_sys::ibv_sge;

use crate::log::Lock;

/// Whether anything is to be translated: not before the first restart.
static CHANGED: AtomicBool = AtomicBool::new(false);
/// By the application's local key, the device's.
static LOCAL: Lock<BTreeMap<u32, u32>> = Lock::new(BTreeMap::new());
/// Keys of regions that were there at a restart.
static TAKEN: Lock<BTreeSet<u32>> = Lock::new(BTreeSet::new());

/// By a rank's remote keys, as the application knows them, those of its device.
pub(crate) type Remote = BTreeMap<u32, u32>;
static RANKS: Lock<BTreeMap<u32, Arc<Remote>>> = Lock::new(BTreeMap::new());

/// These are the local keys from now on. `all`: everything that a region is called.
pub(crate) fn renew(keys: BTreeMap<u32, u32>, all: impl Iterator<Item = u32>) {
    // Also if they are the same ones by chance: those of others may not be.
    CHANGED.store(true, Relaxed);
    TAKEN.with(|taken| taken.extend(all));
    LOCAL.with(|local| *local = keys);
}

/// Keys of others, of the same address as ours: a name with that address leads to any of us.
pub(crate) fn take(keys: impl Iterator<Item = u32>) {
    TAKEN.with(|taken| taken.extend(keys));
}

/// A region that was made since, or is gone.
pub(crate) fn set(own: u32, there: Option<u32>) {
    LOCAL.with(|all| match there {
        Some(there) => _ = all.insert(own, there),
        None => _ = all.remove(&own),
    });
}

/// Whether another region of the application's has, or had, this key already. Soft-RoCE says 0 where a region has no remote key.
pub(crate) fn is_taken(own: u32) -> bool {
    own != 0
        && CHANGED.load(Relaxed)
        && (LOCAL.with(|all| all.contains_key(&own)) || TAKEN.with(|t| t.contains(&own)))
}

/// Whether anything is to be translated.
#[inline]
pub(crate) fn changed() -> bool {
    CHANGED.load(Relaxed)
}

/// Puts the device's keys for the application's.
pub(crate) fn translate(sges: &mut [ibv_sge]) {
    LOCAL.with(|all| {
        for s in sges {
            s.lkey = all.get(&s.lkey).copied().unwrap_or(s.lkey);
        }
    });
}

/// What all ranks have told after a restart.
pub(crate) fn learn(ranks: BTreeMap<u32, Remote>) {
    RANKS.with(|all| *all = ranks.into_iter().map(|(rank, keys)| (rank, Arc::new(keys))).collect());
}

/// The remote keys of a queue pair whose other end is at one of these ranks. A key that two of them have is left out: nobody can tell.
pub(crate) fn of(ranks: &BTreeSet<u32>) -> Arc<Remote> {
    RANKS.with(|all| {
        let mut known = ranks.iter().filter_map(|r| all.get(r));
        let (first, rest) = (known.next().cloned().unwrap_or_default(), known.collect::<Vec<_>>());
        if rest.is_empty() {
            return first;
        }
        let mut merged = (*first).clone();
        let mut twice = BTreeSet::new();
        for (key, there) in rest.iter().flat_map(|keys| keys.iter()) {
            if merged.insert(*key, *there).is_some_and(|before| before != *there) {
                twice.insert(*key);
            }
        }
        merged.retain(|key, _| !twice.contains(key));
        Arc::new(merged)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_two_ranks_is_nobodys_where_either_may_be_meant() {
        learn(BTreeMap::from([(1, [(7, 70), (8, 80)].into()), (2, [(7, 71), (9, 90)].into())]));
        assert_eq!(*of(&[1].into()), Remote::from([(7, 70), (8, 80)]));
        assert_eq!(*of(&[1, 2].into()), Remote::from([(8, 80), (9, 90)]));
        assert!(of(&[3].into()).is_empty());
    }

    #[test]
    fn a_key_of_before_stays_taken() {
        renew([(5, 6)].into(), [5].into_iter());
        assert!(changed() && is_taken(5) && !is_taken(6) && !is_taken(0));
        set(5, None);
        assert!(is_taken(5));
    }
}
