//! A file from a node's disk to where a commit looks. Runs *next door*, in a thread of its own.
//!
//! What a reader would get wrong: success means that the copy is durable, not only written; a commit's own fsync, made on
//! another node, would say nothing of it on a network file system. The file's first [`HEAD`] bytes are compared with what its
//! writer has said; they bind the rest (see [`crate::manifest`]), which a restart checks before it uses it.

use crate::manifest::HEAD;
use crate::run::open_ours;
use crate::{At, Result, StoreError};
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use twox_hash::XxHash3_128;

/// Bytes read at a time: the agent's memory is the job's.
const PIECE: usize = 1 << 20;
/// Bytes after which the disk is waited for, so that what is told as progress is progress.
const STRETCH: u64 = 64 << 20;

/// What the writer of a file has said of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said {
    /// Its length.
    pub len: u64,
    /// xxh3-128 of its first [`HEAD`] bytes, little endian.
    pub digest: [u8; 16],
}

/// Copies `from` to `to`, which must not exist. `goes_on` is told how many bytes are copied, before each [`PIECE`]; false ends it.
///
/// # Errors
/// Which step failed; the file is not what its writer said; [`StoreError::Cancelled`]. A part of the copy may be left.
pub fn copy(from: &Path, to: &Path, said: Said, goes_on: &mut dyn FnMut(u64) -> bool) -> Result<()> {
    pour(open_ours(from)?, from, to, said, goes_on)
}

/// The same of a file that is open.
pub(crate) fn pour(
    mut source: File,
    from: &Path,
    to: &Path,
    said: Said,
    goes_on: &mut dyn FnMut(u64) -> bool,
) -> Result<()> {
    let damaged = |reason: String| Err(StoreError::Damaged { path: from.into(), reason });
    let len = source.metadata().at("look at", from)?.len();
    if len != said.len {
        return damaged(format!("{len} bytes long, its writer said {}", said.len));
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut out = File::from(rustix::fs::open(to, flags, Mode::from_raw_mode(0o600)).at("create", to)?);
    let mut piece = vec![0; PIECE.min(usize::try_from(len).unwrap_or(PIECE)).max(HEAD)];
    let (mut done, mut durable) = (0, 0);
    while done < len {
        if !goes_on(done) {
            return Err(StoreError::Cancelled);
        }
        let want = piece.len().min(usize::try_from(len - done).unwrap_or(PIECE));
        source.read_exact(&mut piece[..want]).at("read", from)?;
        if done == 0 && XxHash3_128::oneshot(&piece[..want.min(HEAD)]).to_le_bytes() != said.digest {
            return damaged("its first page is not the one that was written".into());
        }
        out.write_all(&piece[..want]).at("write", to)?;
        done += want as u64;
        if done - durable >= STRETCH {
            out.sync_data().at("write", to)?;
            durable = done;
        }
    }
    out.sync_all().at("make durable", to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commit::tests::scratch;
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    fn said(bytes: &[u8]) -> Said {
        let head = &bytes[..bytes.len().min(HEAD)];
        Said { len: bytes.len() as u64, digest: XxHash3_128::oneshot(head).to_le_bytes() }
    }

    #[test]
    fn every_byte_arrives_and_progress_is_told() {
        let t = scratch("copy");
        fs::create_dir_all(&t.0).unwrap();
        let (a, b) = (t.0.join("a"), t.0.join("b"));
        for len in [0, 1, HEAD, PIECE + 1, STRETCH as usize + 3 * PIECE + 5] {
            let bytes: Vec<u8> = (0..len).map(|i| ((i * 31) >> 3) as u8).collect();
            fs::write(&a, &bytes).unwrap();
            let _ = fs::remove_file(&b);
            let mut told = Vec::new();
            copy(&a, &b, said(&bytes), &mut |done| {
                told.push(done);
                true
            })
            .unwrap();
            assert!(fs::read(&b).unwrap() == bytes, "{len}");
            assert_eq!(fs::metadata(&b).unwrap().mode() & 0o777, 0o600);
            let pieces: Vec<u64> = (0..len as u64).step_by(PIECE).collect();
            assert_eq!(told, pieces);
        }
    }

    #[test]
    fn what_is_not_what_was_written_is_not_copied_and_nothing_is_overwritten() {
        let t = scratch("not-copied");
        fs::create_dir_all(&t.0).unwrap();
        let (a, b) = (t.0.join("a"), t.0.join("b"));
        let bytes = vec![3u8; 3 * PIECE];
        fs::write(&a, &bytes).unwrap();
        let good = said(&bytes);
        let try_it = |said, to: &Path| copy(&a, to, said, &mut |_| true);
        let damaged = |r| matches!(r, Err(StoreError::Damaged { .. }));
        assert!(damaged(try_it(Said { len: good.len - 1, ..good }, &b)));
        assert!(damaged(try_it(Said { digest: [0; 16], ..good }, &b)));
        fs::remove_file(&b).unwrap();
        assert!(matches!(copy(&a, &b, good, &mut |_| false), Err(StoreError::Cancelled)));
        assert!(try_it(good, &b).is_err(), "what is there stays");
        let full = try_it(good, Path::new("/dev/full"));
        assert!(matches!(full, Err(StoreError::Io { what: "create", .. })), "only a file of its own making");
        let link = t.0.join("link");
        std::os::unix::fs::symlink(&a, &link).unwrap();
        assert!(copy(&link, &t.0.join("c"), good, &mut |_| true).is_err(), "a link");
    }
}
