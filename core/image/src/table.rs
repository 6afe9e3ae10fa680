//! Runs of pages, the frames they are cut into, and the INDEX section.
//!
//! What a reader would get wrong: a frame never crosses the end of a run, so it is contiguous in memory and in the
//! file, and its number counts frames from the first run on. Writing works in the caller's memory only: it runs in
//! the *frozen child*, where nothing may be allocated.

use crate::cursor::{Reader, Writer};
use crate::error::Bad;
use crate::section::{self, HEAD, SECTION_HEAD};
use crate::{ADDR_END, Error, FRAME_PAGES, PAGE, Seal, Section};

/// Pages that follow each other in memory and in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Run {
    /// First address.
    pub addr: u64,
    /// Number of pages.
    pub pages: u64,
    /// Where the first page lies in the file.
    pub file_offset: u64,
}

const RUN_LEN: u64 = 24;
const SUM_LEN: u64 = 16;
/// The count of runs before the runs.
const COUNT_LEN: u64 = 8;

/// Length of INDEX, its head included.
pub(crate) fn index_len(runs: u64, frames: u64) -> Option<u64> {
    let runs = runs.checked_mul(RUN_LEN)?;
    frames.checked_mul(SUM_LEN)?.checked_add(runs)?.checked_add(SECTION_HEAD + COUNT_LEN)
}

/// A piece of a run that has its own checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Number within the image.
    pub no: u64,
    /// First address.
    pub addr: u64,
    /// Bytes.
    pub len: usize,
    /// Where it lies in the file.
    pub file_offset: u64,
}

/// All frames of `runs`, in their order.
pub fn frames(runs: &[Run]) -> impl Iterator<Item = Frame> + '_ {
    let mut no = 0;
    runs.iter().flat_map(|r| (0..r.pages.div_ceil(FRAME_PAGES)).map(move |i| (r, i * FRAME_PAGES))).map(
        move |(r, first)| {
            let pages = (r.pages - first).min(FRAME_PAGES);
            let f = Frame {
                no,
                addr: r.addr + first * PAGE,
                len: (pages * PAGE) as usize,
                file_offset: r.file_offset + first * PAGE,
            };
            no += 1;
            f
        },
    )
}

/// Where everything lies in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Number of runs.
    pub runs: u64,
    /// Number of frames.
    pub frames: u64,
    /// Start of META; also the end of the memory.
    pub meta_off: u64,
    /// Length of META with its head, which is what [`crate::encode_meta`] returns.
    pub meta_len: u64,
    /// Start of INDEX.
    pub index_off: u64,
    /// Length of INDEX with its head.
    pub index_len: u64,
    /// Length of the file.
    pub file_len: u64,
}

/// Runs in the caller's memory, given their places in the file one after the other.
#[derive(Debug)]
pub struct RunTable<'a> {
    buf: &'a mut [Run],
    len: usize,
    pages: u64,
}

impl<'a> RunTable<'a> {
    /// An empty table.
    pub fn new(buf: &'a mut [Run]) -> Self {
        RunTable { buf, len: 0, pages: 0 }
    }

    /// Adds pages; joined to the last run when they follow it. Addresses must go up.
    pub fn push(&mut self, addr: u64, pages: u64) -> Result<(), Error> {
        let bad = Error::BadRun { addr, pages };
        let Some(end) = pages.checked_mul(PAGE).and_then(|b| b.checked_add(addr)) else { return Err(bad) };
        let after = self.runs().last().map_or(0, |r| r.addr + r.pages * PAGE);
        if !addr.is_multiple_of(PAGE) || pages == 0 || addr < after || end > ADDR_END {
            return Err(bad);
        }
        if self.len > 0 && addr == after {
            self.buf[self.len - 1].pages += pages;
        } else {
            let cap = self.buf.len();
            let slot = self.buf.get_mut(self.len).ok_or(Error::Full(cap))?;
            *slot = Run { addr, pages, file_offset: PAGE * (1 + self.pages) };
            self.len += 1;
        }
        self.pages += pages;
        Ok(())
    }

    /// The runs so far.
    pub fn runs(&self) -> &[Run] {
        &self.buf[..self.len]
    }

    /// Pages in all runs.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Number of frames.
    pub fn frames(&self) -> u64 {
        self.runs().iter().map(|r| r.pages.div_ceil(FRAME_PAGES)).sum()
    }

    /// The places of all sections, for a META of `meta_len` bytes (head included).
    pub fn layout(&self, meta_len: u64) -> Layout {
        let (runs, frames) = (self.len as u64, self.frames());
        let meta_off = PAGE * (1 + self.pages);
        let index_off = (meta_off + meta_len).next_multiple_of(PAGE);
        // 24 bytes a run and 16 a frame, each of at least one page below 2^47: no overflow.
        let index_len = SECTION_HEAD + COUNT_LEN + runs * RUN_LEN + frames * SUM_LEN;
        Layout { runs, frames, meta_off, meta_len, index_off, index_len, file_len: index_off + index_len }
    }
}

/// INDEX while it is being written, in the caller's memory of [`Layout::index_len`] bytes.
#[derive(Debug)]
pub struct IndexBuf<'a> {
    buf: &'a mut [u8],
    sums: usize,
}

impl<'a> IndexBuf<'a> {
    /// Writes the runs; the frames' checksums follow with [`IndexBuf::set`].
    pub fn new(buf: &'a mut [u8], table: &RunTable<'_>) -> Result<Self, Error> {
        let need = table.layout(0).index_len;
        let have = buf.len();
        let buf =
            usize::try_from(need).ok().and_then(|n| buf.get_mut(..n)).ok_or(Error::Short { have, need })?;
        buf.fill(0);
        let mut w = Writer::new(&mut buf[HEAD..]);
        w.u64(table.runs().len() as u64);
        for r in table.runs() {
            w.u64(r.addr);
            w.u64(r.pages);
            w.u64(r.file_offset);
        }
        let sums = HEAD + COUNT_LEN as usize + table.runs().len() * RUN_LEN as usize;
        Ok(IndexBuf { buf, sums })
    }

    /// Sets the checksum of a frame.
    pub fn set(&mut self, frame_no: u64, digest: u128) {
        let at = self.sums + frame_no as usize * SUM_LEN as usize;
        self.buf[at..at + SUM_LEN as usize].copy_from_slice(&digest.to_le_bytes());
    }

    /// Seals the section: its bytes, to be written at [`Layout::index_off`], and [`crate::Header::index_sum`].
    pub fn finish(self, seal: &Seal) -> (&'a [u8], u128) {
        let sum = seal.digest(Section::Index, 0, &self.buf[HEAD..]);
        let len = (self.buf.len() - HEAD) as u64;
        section::encode_head(Section::Index, len, sum, self.buf);
        (self.buf, sum)
    }
}

/// INDEX as it was read and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// Runs, addresses going up, without gaps in the file.
    pub runs: Vec<Run>,
    /// One checksum a frame.
    pub sums: Vec<u128>,
}

impl Index {
    /// Reads a payload whose checksum is right; what it says must fit `layout`.
    pub(crate) fn decode(payload: &[u8], layout: &Layout) -> Result<Index, Bad> {
        let mut r = Reader(payload);
        if r.u64() != Some(layout.runs) {
            return Err("number of runs".into());
        }
        let short = || Bad::from("too short");
        // Both counts are bounded by the payload's length, which the header's check has tied to them.
        let mut runs = vec![Run::default(); usize::try_from(layout.runs).map_err(|_| short())?];
        {
            let mut table = RunTable::new(&mut runs);
            for i in 0..layout.runs {
                let (Some(addr), Some(pages), Some(off)) = (r.u64(), r.u64(), r.u64()) else {
                    return Err(short());
                };
                table.push(addr, pages).map_err(|e| e.to_string())?;
                if table.len as u64 != i + 1 {
                    return Err(format!("run at {addr:#x} should be part of the run before it"));
                }
                if table.runs().last().map(|r| r.file_offset) != Some(off) {
                    return Err(format!("run at {addr:#x} lies at a wrong place in the file"));
                }
            }
            if table.layout(layout.meta_len) != *layout {
                return Err("runs do not fill the memory part of the file".into());
            }
        }
        let mut sums = Vec::with_capacity(usize::try_from(layout.frames).map_err(|_| short())?);
        for _ in 0..layout.frames {
            sums.push(r.u128().ok_or_else(short)?);
        }
        if r.0.is_empty() { Ok(Index { runs, sums }) } else { Err("too long".into()) }
    }

    /// The frames with their checksums.
    pub fn frames(&self) -> impl Iterator<Item = (Frame, u128)> + '_ {
        frames(&self.runs).zip(self.sums.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_join_and_disorder_is_refused() {
        let mut buf = [Run::default(); 2];
        let mut t = RunTable::new(&mut buf);
        t.push(0x1000, 2).unwrap();
        t.push(0x3000, 300).unwrap();
        assert_eq!(t.runs(), [Run { addr: 0x1000, pages: 302, file_offset: 4096 }]);
        for (a, p) in [(0x1000, 1), (0x20_0001, 1), (0x20_0000, 0), (ADDR_END, 1), (0x20_0000, u64::MAX)] {
            assert!(matches!(t.push(a, p), Err(Error::BadRun { .. })), "{a:#x} {p}");
        }
        t.push(0x100_0000, 1).unwrap();
        assert!(matches!(t.push(0x200_0000, 1), Err(Error::Full(2))));
        let f: Vec<Frame> = frames(t.runs()).collect();
        assert_eq!(f.iter().map(|f| f.len as u64 / PAGE).collect::<Vec<_>>(), [256, 46, 1]);
        assert_eq!(f[2], Frame { no: 2, addr: 0x100_0000, len: 4096, file_offset: PAGE * 303 });
    }

    #[test]
    fn a_short_buffer_is_named() {
        let mut buf = [Run::default(); 2];
        let t = RunTable::new(&mut buf);
        assert!(matches!(IndexBuf::new(&mut [0; 8], &t), Err(Error::Short { have: 8, need: 48 })));
    }
}
