//! Free intervals of the window, as a sorted array in memory that the caller owns. Runs *anywhere*.
//!
//! A bump cursor is not enough: in-place growth by mremap and unmapping make holes. The array holds the free
//! intervals, `[start, end)`, sorted, never touching each other. Operations are linear in the number of holes, which
//! for real programs is a few hundred.

/// One free interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Interval {
    /// First free address.
    pub start: usize,
    /// First address behind it.
    pub end: usize,
}

/// The sorted array and its length.
#[derive(Debug)]
pub struct Space<'a> {
    /// Storage; only the first `len` entries mean something.
    pub slots: &'a mut [Interval],
    /// Entries in use.
    pub len: usize,
}

const PAGE: usize = 4096;

/// Rounds up to a page; `None` when that overflows.
pub fn page_up(n: usize) -> Option<usize> {
    Some(n.checked_add(PAGE - 1)? & !(PAGE - 1))
}

impl Space<'_> {
    /// Index of the first interval that ends after `at`.
    fn index(&self, at: usize) -> usize {
        self.slots[..self.len].partition_point(|i| i.end <= at)
    }

    fn insert(&mut self, at: usize, i: Interval) {
        // A full table loses the interval: those addresses are never handed out again, which is safe.
        if self.len < self.slots.len() {
            self.slots.copy_within(at..self.len, at + 1);
            self.slots[at] = i;
            self.len += 1;
        }
    }

    fn remove(&mut self, at: usize) {
        self.slots.copy_within(at + 1..self.len, at);
        self.len -= 1;
    }

    /// Marks `[start, end)` as used, whatever it was before.
    pub fn take(&mut self, start: usize, end: usize) {
        let mut k = self.index(start);
        while k < self.len && self.slots[k].start < end {
            let i = self.slots[k];
            match (i.start < start, i.end > end) {
                (true, true) => {
                    self.slots[k].end = start;
                    self.insert(k + 1, Interval { start: end, end: i.end });
                    return;
                }
                (true, false) => {
                    self.slots[k].end = start;
                    k += 1;
                }
                (false, true) => {
                    self.slots[k].start = end;
                    return;
                }
                (false, false) => self.remove(k),
            }
        }
    }

    /// Marks `[start, end)` as free, whatever it was before.
    pub fn give(&mut self, start: usize, end: usize) {
        if start >= end {
            return;
        }
        self.take(start, end);
        let k = self.index(start);
        let joins_before = k > 0 && self.slots[k - 1].end == start;
        let joins_after = k < self.len && self.slots[k].start == end;
        match (joins_before, joins_after) {
            (true, true) => {
                self.slots[k - 1].end = self.slots[k].end;
                self.remove(k);
            }
            (true, false) => self.slots[k - 1].end = end,
            (false, true) => self.slots[k].start = start,
            (false, false) => self.insert(k, Interval { start, end }),
        }
    }

    /// True if all of `[start, end)` is free.
    pub fn is_free(&self, start: usize, end: usize) -> bool {
        let k = self.index(start);
        k < self.len && self.slots[k].start <= start && end <= self.slots[k].end
    }

    /// Takes `len` bytes at a multiple of `align`, at the first place at or after `from` where they fit.
    pub fn take_after(&mut self, from: usize, len: usize, align: usize) -> Option<usize> {
        self.take_within(from, usize::MAX, len, align)
    }

    /// The same, ending at or before `to`.
    pub fn take_within(&mut self, from: usize, to: usize, len: usize, align: usize) -> Option<usize> {
        let len = page_up(len)?;
        let align = align.max(PAGE);
        for k in self.index(from)..self.len {
            let i = self.slots[k];
            let at = i.start.max(from).checked_next_multiple_of(align)?;
            if at.checked_add(len)? <= i.end.min(to) {
                self.take(at, at + len);
                return Some(at);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    extern crate std;
    use std::vec;

    #[test]
    fn behaves_like_a_bitmap() {
        const N: usize = 64;
        let mut slots = vec![Interval { start: 0, end: 0 }; 128];
        let mut s = Space { slots: &mut slots, len: 0 };
        let mut map = [false; N];
        let mut x = 88172645463325252u64;
        for step in 0..20000 {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            let a = (x % N as u64) as usize;
            let b = a + 1 + ((x >> 20) % (N - a) as u64) as usize;
            match (x >> 40) % 3 {
                0 => {
                    s.give(a * PAGE, b * PAGE);
                    map[a..b].fill(true);
                }
                1 => {
                    s.take(a * PAGE, b * PAGE);
                    map[a..b].fill(false);
                }
                _ => {
                    let n = b - a;
                    let got = s.take_after(a * PAGE, n * PAGE, PAGE);
                    let want = (a..=N - n).find(|p| map[*p..p + n].iter().all(|f| *f));
                    assert_eq!(got, want.map(|p| p * PAGE), "step {step}");
                    if let Some(p) = want {
                        map[p..p + n].fill(false);
                    }
                }
            }
            for (p, free) in map.iter().enumerate() {
                assert_eq!(s.is_free(p * PAGE, (p + 1) * PAGE), *free, "step {step} page {p}");
            }
            assert!(s.slots[..s.len].windows(2).all(|w| w[0].end < w[1].start), "sorted and apart");
        }
    }

    #[test]
    fn a_bound_is_kept() {
        let mut slots = vec![Interval { start: 0, end: 0 }; 8];
        let mut s = Space { slots: &mut slots, len: 0 };
        s.give(PAGE, 3 * PAGE);
        s.give(4 * PAGE, 9 * PAGE);
        assert_eq!(s.take_within(PAGE, 6 * PAGE, 3 * PAGE, PAGE), None);
        assert_eq!(s.take_within(PAGE, 6 * PAGE, 2 * PAGE, PAGE), Some(PAGE));
        assert_eq!(s.take_within(PAGE, 6 * PAGE, 2 * PAGE, PAGE), Some(4 * PAGE));
        assert_eq!(s.take_within(PAGE, 6 * PAGE, PAGE, PAGE), None);
    }

    #[test]
    fn alignment_is_kept() {
        let mut slots = vec![Interval { start: 0, end: 0 }; 8];
        let mut s = Space { slots: &mut slots, len: 0 };
        s.give(PAGE, 16 << 20);
        assert_eq!(s.take_after(0, 2 << 20, 2 << 20), Some(2 << 20));
        assert_eq!(s.take_after(0, PAGE, PAGE), Some(PAGE));
        assert_eq!(s.take_after(0, 64 << 20, PAGE), None);
    }
}
