//! The 40 bytes before the payload of META and INDEX. Their length and checksum stand in the file's header too; both
//! must agree. Runs *anywhere*; no allocation.
//!
//! ```text
//!  0 magic (8)   8 version (4)   12 zero (4)   16 payload length (8)   24 xxh3-128 of the payload (16)   40 payload
//! ```

use crate::cursor::{Reader, Writer};
use crate::{Section, error::Bad};

/// Bytes before a payload.
pub const SECTION_HEAD: u64 = 40;
/// [`SECTION_HEAD`] as a length in memory.
pub(crate) const HEAD: usize = 40;
/// Version of both sections.
pub(crate) const SECTION_VERSION: u32 = 1;

fn magic(s: Section) -> [u8; 8] {
    match s {
        Section::Meta => *b"SPMETA\r\n",
        Section::Index => *b"SPINDX\r\n",
        // The other two parts have no section head.
        Section::Header | Section::Memory => *b"\0\0\0\0\0\0\0\0",
    }
}

/// Writes the head to the first bytes of `out`.
pub(crate) fn encode_head(s: Section, len: u64, sum: u128, out: &mut [u8]) {
    let mut w = Writer::new(&mut out[..HEAD]);
    w.put(&magic(s));
    w.u32(SECTION_VERSION);
    w.u32(0);
    w.u64(len);
    w.u128(sum);
}

/// What a head says.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) version: u32,
    pub(crate) len: u64,
    pub(crate) sum: u128,
}

pub(crate) fn decode_head(s: Section, b: &[u8; HEAD]) -> Result<Head, Bad> {
    let mut r = Reader(b);
    if r.bytes() != Some(magic(s)) {
        return Err("magic number".into());
    }
    let (version, pad, len, sum) = (r.u32(), r.u32(), r.u64(), r.u128());
    match (version, pad, len, sum) {
        (Some(version), Some(0), Some(len), Some(sum)) => Ok(Head { version, len, sum }),
        _ => Err("section head".into()),
    }
}
