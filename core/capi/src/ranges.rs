//! A sorted list of disjoint ranges in a fixed table: add, subtract. Pure, allocates nothing: it is used at depth 1, where a
//! stopped thread may hold the lock of the application's malloc.

use crate::ask::Error;

/// Ranges `[start, end)`, the first `len` of them, sorted, apart from each other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ranges<const N: usize> {
    at: [(u64, u64); N],
    len: usize,
}

impl<const N: usize> Ranges<N> {
    pub(crate) const fn new() -> Self {
        Ranges { at: [(0, 0); N], len: 0 }
    }

    pub(crate) fn as_slice(&self) -> &[(u64, u64)] {
        &self.at[..self.len]
    }

    fn push(&mut self, start: u64, end: u64) -> Result<(), Error> {
        if start >= end {
            return Ok(());
        }
        *self.at.get_mut(self.len).ok_or(Error::Full)? = (start, end);
        self.len += 1;
        Ok(())
    }

    /// With `[from, to)`; what it touches becomes one.
    pub(crate) fn with(&self, from: u64, to: u64) -> Result<Self, Error> {
        let (mut start, mut end, mut new) = (from, to, Self::new());
        for &(s, e) in self.as_slice() {
            if e < from {
                new.push(s, e)?;
            } else if s <= to {
                (start, end) = (start.min(s), end.max(e));
            }
        }
        new.push(start, end)?;
        for &(s, e) in self.as_slice().iter().filter(|r| r.0 > to) {
            new.push(s, e)?;
        }
        Ok(new)
    }

    /// Without `[start, end)`; a range may be cut in two.
    pub(crate) fn without(&self, start: u64, end: u64) -> Result<Self, Error> {
        let mut new = Self::new();
        for &(s, e) in self.as_slice() {
            new.push(s, e.min(start))?;
            new.push(s.max(end), e)?;
        }
        Ok(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_in_or_out_as_a_set_of_bytes_says() {
        let (mut r, mut set) = (Ranges::<32>::new(), [false; 64]);
        let mut x = 9u64;
        for _ in 0..2000 {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let (a, n, add) = ((x >> 33) % 60, (x >> 45) % 4 + 1, x >> 60 < 8);
            let end = (a + n).min(64);
            r = if add { r.with(a, end) } else { r.without(a, end) }.unwrap();
            (a..end).for_each(|k| set[usize::try_from(k).unwrap()] = add);
            let seen: Vec<bool> =
                (0..64u64).map(|k| r.as_slice().iter().any(|r| r.0 <= k && k < r.1)).collect();
            assert_eq!(seen, set);
            assert!(r.as_slice().windows(2).all(|w| w[0].1 < w[1].0), "{r:?}");
        }
    }

    #[test]
    fn a_full_table_says_so_and_stays_as_it_was() {
        let mut r = Ranges::<2>::new();
        for k in 0..2 {
            r = r.with(10 * k, 10 * k + 5).unwrap();
        }
        assert_eq!(r.with(100, 101).err(), Some(Error::Full));
        assert_eq!(r.without(1, 2).err(), Some(Error::Full));
        assert_eq!(r.with(5, 10).unwrap().as_slice(), [(0, 15)]);
    }
}
