//! Checksums that belong to one place (INV-6): the seed is made of the image's own seed, the checkpoint's id, the
//! rank, the section and the frame's number. A reader might think that a plain checksum would do: it would pass a
//! whole frame of the checkpoint before. Runs *anywhere*, also in the frozen child; no allocation.

use stillpoint_abi::ids::{CkptId, Rank};
use twox_hash::xxhash3_128::{DEFAULT_SECRET_LENGTH, RawHasher, SecretBuffer};
use twox_hash::{XxHash3_64, XxHash3_128};

use crate::Section;

/// What every checksum of one image is seeded with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// The checkpoint.
    pub ckpt: CkptId,
    /// The rank.
    pub rank: Rank,
    /// Any number, drawn for this image; stands in the header.
    pub seed: u64,
}

impl Seal {
    fn seed_for(&self, section: Section, no: u64) -> u64 {
        let mut b = [0u8; 32];
        b[0..8].copy_from_slice(&self.seed.to_le_bytes());
        b[8..16].copy_from_slice(&self.ckpt.0.to_le_bytes());
        b[16..20].copy_from_slice(&self.rank.0.to_le_bytes());
        b[20..24].copy_from_slice(
            &match section {
                Section::Header => 1u32,
                Section::Memory => 2,
                Section::Meta => 3,
                Section::Index => 4,
            }
            .to_le_bytes(),
        );
        b[24..32].copy_from_slice(&no.to_le_bytes());
        XxHash3_64::oneshot(&b)
    }

    /// Checksum of a section's payload, or of frame `no` of the memory.
    pub fn digest(&self, section: Section, no: u64, bytes: &[u8]) -> u128 {
        XxHash3_128::oneshot_with_seed(self.seed_for(section, no), bytes)
    }

    /// The same checksum, for bytes that come in pieces.
    pub(crate) fn summer(&self, section: Section, no: u64) -> Summer {
        Summer::new(self.seed_for(section, no))
    }

    /// [`Seal::frame`], for bytes that come in pieces. Allocates nothing.
    pub fn frame_summer(&self, no: u64) -> Summer {
        self.summer(Section::Memory, no)
    }

    /// Checksum of frame `no` of the memory.
    pub fn frame(&self, no: u64, bytes: &[u8]) -> u128 {
        self.digest(Section::Memory, no, bytes)
    }
}

/// Sums up bytes that come in pieces. Allocates nothing.
pub struct Summer(RawHasher<[u8; DEFAULT_SECRET_LENGTH]>);

impl Summer {
    fn new(seed: u64) -> Summer {
        match SecretBuffer::with_seed(seed, [0; DEFAULT_SECRET_LENGTH]) {
            Ok(buffer) => Summer(RawHasher::new(buffer)),
            Err(_) => unreachable!("a secret of {DEFAULT_SECRET_LENGTH} bytes is what it wants"),
        }
    }

    /// The next piece.
    pub fn add(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    /// Of all that were added.
    pub fn sum(&self) -> u128 {
        self.0.finish_128()
    }
}

impl std::fmt::Debug for Summer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Summer").field(&self.sum()).finish()
    }
}

/// Checksum of frame `no`, from the header's fields. Allocates nothing, so the frozen child may call it.
pub fn frame_digest(seal: Seal, frame_no: u64, bytes: &[u8]) -> u128 {
    seal.frame(frame_no, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_the_place_counts() {
        let s = Seal { ckpt: CkptId(5), rank: Rank(3), seed: 9 };
        let d = s.frame(7, b"abc");
        assert_eq!(d, frame_digest(s, 7, b"abc"));
        assert_ne!(d, s.frame(8, b"abc"));
        assert_ne!(d, s.digest(Section::Meta, 7, b"abc"));
        assert_ne!(d, Seal { ckpt: CkptId(6), ..s }.frame(7, b"abc"));
        assert_ne!(d, Seal { rank: Rank(4), ..s }.frame(7, b"abc"));
        assert_ne!(d, Seal { seed: 10, ..s }.frame(7, b"abc"));
    }

    #[test]
    fn pieces_give_the_same_sum() {
        let s = Seal { ckpt: CkptId(1), rank: Rank(0), seed: 1 };
        let bytes: Vec<u8> = (0..5000u32).map(|i| (i * 7) as u8).collect();
        let mut h = s.summer(Section::Index, 0);
        bytes.chunks(333).for_each(|c| h.add(c));
        assert_eq!(h.sum(), s.digest(Section::Index, 0, &bytes));
        let mut h = s.frame_summer(4);
        bytes.chunks(333).for_each(|c| h.add(c));
        assert_eq!(h.sum(), s.frame(4, &bytes));
    }
}
