//! Lists of messages to and from peers, as a [`crate::half::StillArg`] holds them. Runs in both halves.
//!
//! ```text
//!   u32 rank │ u32 length │ bytes, padded to 4 │ u32 rank │ …        (little endian)
//! ```
//!
//! Beside ranks there are three numbers that no rank has: [`PUBLISH`], [`ASK`] and [`FOUND`].
//!
//! What a reader would get wrong: the records end where one is torn, and only [`Records::whole`] says whether one was.

/// Said: `u32` length of a key, the key, and what stands behind it, for whoever asks for it in the same round.
pub const PUBLISH: u32 = 0xffff_fffd;
/// Said: a key that this rank wants to know.
pub const ASK: u32 = 0xffff_fffe;
/// Heard: `u32` rank, `u32` length of the key, the key, and what stands behind it at that rank.
pub const FOUND: u32 = 0xffff_ffff;

/// The records in some bytes: rank and body of each, in their order.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    /// None: the last one's padding is missing.
    rest: Option<&'a [u8]>,
}

impl<'a> Records<'a> {
    /// Those in `bytes`.
    pub fn of(bytes: &'a [u8]) -> Self {
        Records { rest: Some(bytes) }
    }

    /// After the last one: nothing was left over.
    pub fn whole(&self) -> bool {
        self.rest.is_some_and(<[u8]>::is_empty)
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = (u32, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.rest?;
        let word = |at: usize| Some(u32::from_le_bytes(rest.get(at..at + 4)?.try_into().ok()?));
        let (rank, n) = (word(0)?, word(4)? as usize);
        let body = rest.get(8..8 + n)?;
        self.rest = rest.get(8 + n.next_multiple_of(4)..);
        Some((rank, body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_record_ends_the_list() {
        let bytes = [3, 0, 0, 0, 2, 0, 0, 0, 7, 8, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0];
        let read = |n: usize| {
            let mut r = Records::of(&bytes[..n]);
            (r.by_ref().map(|(rank, body)| (rank, body.len())).last(), r.whole())
        };
        assert_eq!(read(20), (Some((9, 0)), true));
        assert_eq!(read(19), (Some((3, 2)), false));
        assert_eq!(read(12), (Some((3, 2)), true));
        assert_eq!(read(10), (Some((3, 2)), false), "its padding is missing");
        assert_eq!(read(9), (None, false));
        assert_eq!(read(0), (None, true));
    }
}
