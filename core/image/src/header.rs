//! The header page. It is written last, and can be read without the rest: `ls` and `inspect` need nothing else.
//! Its checksum covers the whole page, zeros included. Runs *anywhere*; no allocation.
//!
//! ```text
//!    0 magic (8)    8 version (4)   12 header length (4)   16 checkpoint (8)   24 rank (4)   28 size (4)
//!   32 incarnation (4)   36 zero (4)   40 seed (8)   48 runs (8)   56 frames (8)
//!   64 meta offset (8)   72 meta length (8)   80 meta xxh3-128 (16)
//!   96 index offset (8) 104 index length (8) 112 index xxh3-128 (16)
//!  128 file length (8)  136 zeros …  4088 xxh3-64 of bytes 0 to 4087
//! ```

use stillpoint_abi::ids::{CkptId, Incarnation, Rank};
use twox_hash::{XxHash3_64, XxHash3_128};

use crate::cursor::{Reader, Writer};
use crate::error::Bad;
use crate::section::SECTION_HEAD;
use crate::table::index_len;
use crate::{Layout, META_MAX, PAGE, Seal};

/// Version of the format.
pub const VERSION: u32 = 1;
pub(crate) const MAGIC: [u8; 8] = *b"STILLPT\x1a";
const SUM_AT: usize = 4088;

/// The first page of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Which checkpoint and rank, and the seed of all checksums.
    pub seal: Seal,
    /// Number of ranks of the run.
    pub size: u32,
    /// Start of the run under which the image was taken.
    pub incarnation: Incarnation,
    /// Where everything lies.
    pub layout: Layout,
    /// Checksum of META's payload: [`crate::encode_meta`] gives it.
    pub meta_sum: u128,
    /// Checksum of INDEX's payload: [`crate::IndexBuf::finish`] gives it.
    pub index_sum: u128,
}

/// Why a page is no header.
#[derive(Debug)]
pub(crate) enum NoHeader {
    NotAnImage,
    Version(u32),
    Bad(Bad),
}

impl Header {
    /// The checkpoint.
    pub fn ckpt(&self) -> CkptId {
        self.seal.ckpt
    }
    /// The rank.
    pub fn rank(&self) -> Rank {
        self.seal.rank
    }

    /// Fills `out`, which is then the first page of the file.
    pub fn encode(&self, out: &mut [u8; PAGE as usize]) {
        out.fill(0);
        let l = &self.layout;
        let mut w = Writer::new(out);
        w.put(&MAGIC);
        w.u32(VERSION);
        w.u32(PAGE as u32);
        w.u64(self.seal.ckpt.0);
        w.u32(self.seal.rank.0);
        w.u32(self.size);
        w.u32(self.incarnation.0);
        w.u32(0);
        w.u64(self.seal.seed);
        w.u64(l.runs);
        w.u64(l.frames);
        w.u64(l.meta_off);
        w.u64(l.meta_len);
        w.u128(self.meta_sum);
        w.u64(l.index_off);
        w.u64(l.index_len);
        w.u128(self.index_sum);
        w.u64(l.file_len);
        let sum = XxHash3_64::oneshot(&out[..SUM_AT]);
        out[SUM_AT..].copy_from_slice(&sum.to_le_bytes());
    }

    /// A checksum that stands for every byte of the file, because the header holds those of the sections and INDEX
    /// holds those of the frames. A manifest is bound to its images by it.
    pub fn identity(&self) -> u128 {
        let mut page = [0; PAGE as usize];
        self.encode(&mut page);
        XxHash3_128::oneshot(&page)
    }

    /// Reads a header and checks that what it says can be true of a file of `file_len` bytes.
    pub(crate) fn decode(page: &[u8; PAGE as usize], file_len: u64) -> Result<Header, NoHeader> {
        let mut r = Reader(&page[..SUM_AT]);
        if r.bytes() != Some(MAGIC) {
            return Err(NoHeader::NotAnImage);
        }
        let sum = Reader(&page[SUM_AT..]).u64();
        let sound = sum == Some(XxHash3_64::oneshot(&page[..SUM_AT]));
        match r.u32() {
            Some(VERSION) => {}
            // A version that we do not know may have another checksum; a damaged one is called damage.
            Some(v) if sound => return Err(NoHeader::Version(v)),
            _ => return Err(NoHeader::Bad("checksum".into())),
        }
        if !sound {
            return Err(NoHeader::Bad("checksum".into()));
        }
        let h = Self::fields(&mut r).ok_or_else(|| NoHeader::Bad("field out of range".into()))?;
        if !r.rest_is_zero() {
            return Err(NoHeader::Bad("unknown field".into()));
        }
        h.layout.check(file_len).map_err(NoHeader::Bad)?;
        Ok(h)
    }

    fn fields(r: &mut Reader<'_>) -> Option<Header> {
        if r.u32()? != PAGE as u32 {
            return None;
        }
        let (ckpt, rank, size, incarnation, pad, seed) =
            (r.u64()?, r.u32()?, r.u32()?, r.u32()?, r.u32()?, r.u64()?);
        let (runs, frames, meta_off, meta_len, meta_sum) =
            (r.u64()?, r.u64()?, r.u64()?, r.u64()?, r.u128()?);
        let (index_off, index_len, index_sum, file_len) = (r.u64()?, r.u64()?, r.u128()?, r.u64()?);
        if pad != 0 || rank >= size {
            return None;
        }
        Some(Header {
            seal: Seal { ckpt: CkptId(ckpt), rank: Rank(rank), seed },
            size,
            incarnation: Incarnation(incarnation),
            layout: Layout { runs, frames, meta_off, meta_len, index_off, index_len, file_len },
            meta_sum,
            index_sum,
        })
    }
}

impl Layout {
    /// Every length that a reader will trust, checked against each other and against the file.
    fn check(&self, file_len: u64) -> Result<(), Bad> {
        let pages = (self.meta_off.checked_sub(PAGE).ok_or("meta before the memory")?) / PAGE;
        let meta_end = self.meta_off.checked_add(self.meta_len).ok_or("meta length")?;
        let fits = self.meta_off.is_multiple_of(PAGE)
            && (SECTION_HEAD..=META_MAX).contains(&self.meta_len)
            && Some(self.index_off) == meta_end.checked_next_multiple_of(PAGE)
            && self.runs <= self.frames
            && self.frames <= pages
            && self.frames >= pages.div_ceil(crate::FRAME_PAGES)
            && Some(self.index_len) == index_len(self.runs, self.frames)
            && Some(self.file_len) == self.index_off.checked_add(self.index_len);
        if !fits {
            return Err("sections do not fit together".into());
        }
        if self.file_len != file_len {
            return Err(format!("the file has {file_len} bytes instead of {}", self.file_len));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RunTable;

    #[test]
    fn round_trip_and_every_bit_counts() {
        let mut buf = [crate::Run::default(); 4];
        let mut t = RunTable::new(&mut buf);
        t.push(0x1000_0000_0000, 600).unwrap();
        let layout = t.layout(777);
        let h = Header {
            seal: Seal { ckpt: CkptId(u64::MAX), rank: Rank(3), seed: 77 },
            size: 4,
            incarnation: Incarnation(2),
            layout,
            meta_sum: 1,
            index_sum: 2,
        };
        let mut page = [0; PAGE as usize];
        h.encode(&mut page);
        assert_eq!(Header::decode(&page, layout.file_len).unwrap(), h);
        assert!(Header::decode(&page, layout.file_len - 1).is_err());
        for bit in 0..PAGE as usize * 8 {
            page[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&page, layout.file_len).is_err(), "bit {bit}");
            page[bit / 8] ^= 1 << (bit % 8);
        }
        let other = Header { index_sum: 3, ..h };
        assert_ne!(other.identity(), h.identity());
    }

    #[test]
    fn a_newer_version_is_named() {
        let mut page = [0u8; PAGE as usize];
        page[..8].copy_from_slice(&MAGIC);
        page[8] = 9;
        let sum = XxHash3_64::oneshot(&page[..SUM_AT]);
        page[SUM_AT..].copy_from_slice(&sum.to_le_bytes());
        assert!(matches!(Header::decode(&page, 4096), Err(NoHeader::Version(9))));
    }
}
