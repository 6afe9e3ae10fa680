//! What a memory window is called and what it is bound to. Pure.
//!
//! ```text
//!             alloc ─▶ free ──bind──▶ bound ──invalidated, here or by the other end──▶ free         (type 2)
//!                      bound to nothing ──bind──▶ bound ──bind──▶ …                                 (type 1)
//! ```
//!
//! What a reader would get wrong: the low 8 bits of a key are the application's (ibv_inc_rkey), the others the device's. So a key is
//! translated by what stands in its upper bits, also one that nobody has ever published.

use crate::keys;

/// Where it is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bound {
    pub(crate) mr: usize,
    /// Place of the queue pair's logs.
    pub(crate) place: u32,
    pub(crate) at: u64,
    pub(crate) length: u64,
    pub(crate) access: u32,
}

/// A window.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// In force: of the last bind that is known to have happened.
    pub(crate) key: u32,
    pub(crate) bound: Option<Bound>,
    /// Upper bits of the device's key, and what is to be added to the low 8 of ours.
    pub(crate) base: u32,
    pub(crate) more: u8,
    /// The device's key of a new window that is free, whose low 8 bits nobody could choose.
    pub(crate) first: Option<u32>,
    /// Keys that the other end has invalidated before the completions of their binds were seen.
    dead: Vec<u32>,
    /// Keys that it must have invalidated, since others were bound after them, without its message being seen. (Of type 1 they are just
    /// not in force any more, and it has no such messages.)
    owed: Vec<u32>,
}

/// So many of these at most: nobody is further ahead of its messages.
const OWED: usize = 16;

impl State {
    pub(crate) fn new(key: u32) -> State {
        State { key, base: keys::base(key), ..State::default() }
    }

    /// There is another real window, with this key.
    pub(crate) fn renew(&mut self, there: u32, chosen: bool) {
        (self.base, self.more) = (keys::base(there), 0);
        // Of type 1 the device chooses the next one, of type 2 the application, as long as it is not the first.
        if chosen {
            self.first = Some(there);
        } else {
            (self.more, self.first) = ((there as u8).wrapping_sub(self.key as u8), None);
        }
    }

    pub(crate) fn there(&self, key: u32) -> u32 {
        self.base | u32::from((key as u8).wrapping_add(self.more))
    }

    pub(crate) fn back(&self, there: u32) -> u32 {
        keys::base(self.key) | u32::from((there as u8).wrapping_sub(self.more))
    }

    /// What the next bind finds, if the application thinks that it is this.
    pub(crate) fn next(&self, key: u32) -> u32 {
        self.first.filter(|_| key == self.key).unwrap_or_else(|| self.there(key))
    }

    pub(crate) fn bind(&mut self, key: u32, to: Option<Bound>) {
        if self.bound.is_some() && self.key != key {
            self.owed.push(self.key);
            self.owed.drain(..self.owed.len().saturating_sub(OWED));
        }
        (self.key, self.bound, self.first) = (key, to, None);
        if let Some(at) = self.dead.iter().position(|k| *k == key) {
            self.dead.swap_remove(at);
            self.bound = None;
        }
    }

    /// `seen`: a bind with another key cannot be under way.
    pub(crate) fn invalidate(&mut self, key: u32, seen: bool) {
        if self.key == key && self.bound.is_some() {
            self.bound = None;
        } else if let Some(at) = self.owed.iter().position(|k| *k == key) {
            self.owed.remove(at);
        } else if !seen {
            self.dead.push(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(place: u32) -> Option<Bound> {
        Some(Bound { mr: 1, place, at: 4096, length: 8, access: 1 })
    }

    #[test]
    fn the_low_bits_of_a_key_are_kept_and_the_others_translated() {
        let mut s = State::new(0x1205);
        assert_eq!((s.there(0x1206), s.back(0x1206), s.next(0x1205)), (0x1206, 0x1206, 0x1205));
        // Type 2: a new one, with a key of the device's, which has an end with the first bind.
        s.renew(0x3407, true);
        assert_eq!((s.next(0x1205), s.next(0x1206), s.there(0x1206)), (0x3407, 0x3406, 0x3406));
        s.bind(0x1206, some(1));
        assert_eq!((s.next(0x1206), s.next(0x1205)), (0x3406, 0x3405));
        // Type 1: what the device counts up goes with what the application knows.
        s.renew(0x5602, false);
        assert_eq!((s.there(0x1206), s.there(0x1207), s.back(0x5603)), (0x5602, 0x5603, 0x1207));
        assert_eq!((s.there(0x12ff), s.back(0x56fb)), (0x56fb, 0x12ff));
    }

    #[test]
    fn what_is_in_force_follows_from_completions() {
        let mut s = State::new(0x1200);
        s.bind(0x1201, some(1));
        assert!(s.bound.is_some());
        s.invalidate(0x1200, true);
        assert!(s.bound.is_some(), "another key");
        s.invalidate(0x1201, true);
        assert!(s.bound.is_none() && s.key == 0x1201);
        // The other end's invalidation is seen before the completion of the bind.
        s.invalidate(0x1202, false);
        s.bind(0x1202, some(1));
        assert!(s.bound.is_none());
        s.bind(0x1202, some(1));
        assert!(s.bound.is_some(), "once");
        // The next bind is seen before the message that had invalidated the one before.
        s.bind(0x1203, some(1));
        s.invalidate(0x1202, false);
        s.bind(0x1202, some(1));
        assert!(s.bound.is_some(), "that was of another time");
    }
}
