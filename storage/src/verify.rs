//! Which checkpoint may be used. Runs *next door*.
//!
//! What a reader would get wrong: a manifest that reads says that the checkpoint was committed, not that its images are
//! still what they were; only [`RunDir::newest`] and [`RunDir::verify`] read every byte of them (INV-6).

use crate::manifest::HEAD;
use crate::manifest::{Entry, Manifest, hex};
use crate::run::{RunDir, open_ours};
use crate::{At, Result, StoreError};
use std::io::Read;
use std::path::Path;
use stillpoint_abi::ids::CkptId;
use twox_hash::XxHash3_128;

/// A checkpoint that was passed over, and why.
#[derive(Debug)]
pub struct Passed {
    /// Which.
    pub ckpt: CkptId,
    /// What is wrong with it.
    pub why: StoreError,
}

impl RunDir {
    /// Reads the manifest of a committed checkpoint.
    pub fn manifest(&self, ckpt: CkptId) -> Result<Manifest> {
        let dir = self.ckpt_path(ckpt);
        let m = Manifest::read(&dir)?;
        if m.ckpt != ckpt.0 {
            let reason = format!("it belongs to checkpoint {}", m.ckpt);
            return Err(StoreError::Manifest { path: dir, reason });
        }
        Ok(m)
    }

    /// Reads everything of a checkpoint and compares it with the manifest.
    pub fn verify(&self, ckpt: CkptId) -> Result<Manifest> {
        let m = self.manifest(ckpt)?;
        for entry in &m.images {
            check(&self.ckpt_path(ckpt), entry)?;
        }
        Ok(m)
    }

    /// The newest checkpoint that is whole, and those passed over on the way.
    pub fn newest(&self) -> Result<(Option<Manifest>, Vec<Passed>)> {
        let mut passed = Vec::new();
        for (ckpt, partial) in self.scan()? {
            if partial {
                continue;
            }
            match self.verify(ckpt) {
                Ok(m) => return Ok((Some(m), passed)),
                Err(why) => passed.push(Passed { ckpt, why }),
            }
        }
        Ok((None, passed))
    }
}

fn check(dir: &Path, entry: &Entry) -> Result<()> {
    let path = dir.join(&entry.file);
    let file = open_ours(&path)?;
    let damaged = |reason: String| Err(StoreError::Damaged { path: path.clone(), reason });
    let len = file.metadata().at("look at", &path)?.len();
    if len != entry.file_len {
        return damaged(format!("{len} bytes long, should be {}", entry.file_len));
    }
    let mut head = Vec::new();
    file.take(HEAD as u64).read_to_end(&mut head).at("read", &path)?;
    let found = hex(XxHash3_128::oneshot(&head));
    if found == entry.xxh3 { Ok(()) } else { damaged(format!("checksum {found}, should be {}", entry.xxh3)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commit::image_name;
    use crate::commit::tests::{scratch, take};
    use std::fs;

    #[test]
    fn a_damaged_or_half_written_one_is_never_chosen() {
        let t = scratch("damage");
        let run = RunDir::create(&t.0).unwrap();
        assert!(run.newest().unwrap().0.is_none());
        let good = take(&run);
        let harm: [&dyn Fn(&Path); 6] = [
            &|d| {
                let f = d.join(image_name(1));
                let mut b = fs::read(&f).unwrap();
                b[2500] ^= 1;
                fs::write(&f, b).unwrap();
            },
            &|d| fs::OpenOptions::new().write(true).open(d.join(image_name(0))).unwrap().set_len(10).unwrap(),
            &|d| fs::remove_file(d.join(image_name(2))).unwrap(),
            &|d| fs::remove_file(d.join("manifest.json")).unwrap(),
            &|d| {
                let f = d.join("manifest.json");
                let text =
                    fs::read_to_string(&f).unwrap().replace("\"incarnation\": 0", "\"incarnation\": 1");
                fs::write(&f, text).unwrap();
            },
            &|d| {
                fs::remove_file(d.join(image_name(0))).unwrap();
                std::os::unix::fs::symlink(d.join(image_name(1)), d.join(image_name(0))).unwrap();
            },
        ];
        for (n, harm) in harm.iter().enumerate() {
            let bad = take(&run);
            harm(&run.ckpt_path(bad));
            let (found, passed) = run.newest().unwrap();
            assert_eq!(found.unwrap().ckpt, good.0, "harm {n}");
            assert_eq!(passed[0].ckpt, bad);
            assert_eq!(passed.len(), n + 1);
        }
        run.begin().unwrap();
        assert_eq!(run.newest().unwrap().0.unwrap().ckpt, good.0);
    }

    #[test]
    fn retention_counts_only_what_reads() {
        let t = scratch("retention");
        let run = RunDir::create(&t.0).unwrap();
        let (a, b, c) = (take(&run), take(&run), take(&run));
        fs::remove_file(run.ckpt_path(c).join("manifest.json")).unwrap();
        run.forget(2, None).unwrap();
        assert!(run.verify(a).is_ok() && run.verify(b).is_ok());
    }
}
