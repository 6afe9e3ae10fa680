//! A checkpoint from one run directory into another. Runs *next door*.
//!
//! What a reader would get wrong: all its files are opened before the first is copied, since the run that has made it may go on,
//! and forget it meanwhile.

use crate::commit::remove;
use crate::copy::{Said, pour};
use crate::run::{RunDir, open_ours};
use crate::{At, Result, StoreError};
use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use stillpoint_abi::ids::CkptId;

impl RunDir {
    /// Makes a checkpoint of another run directory one of this, durable and under the same number. True: it was not here, or was
    /// `sound` no more.
    ///
    /// # Errors
    /// Another one has that number, or an agent works here: [`StoreError::Claimed`]. One that is not what its manifest says, a
    /// full disk: nothing is left.
    pub fn adopt(&self, from: &RunDir, ckpt: CkptId, sound: &mut dyn FnMut() -> bool) -> Result<bool> {
        let manifest = from.manifest(ckpt)?;
        let _lock = self.lock()?.ok_or_else(|| StoreError::Claimed { path: self.path.join("agent.lock") })?;
        let here = self.ckpt_path(ckpt);
        let partial = self.partial_path(ckpt);
        if here.exists() {
            match self.manifest(ckpt) {
                Ok(m) if m != manifest => return Err(StoreError::Claimed { path: here }),
                Ok(_) if sound() => return Ok(false),
                _ => {}
            }
            remove(&partial)?;
            std::fs::rename(&here, &partial).at("put aside", &here)?;
        }
        let dir = from.ckpt_path(ckpt);
        let files: Result<Vec<File>> =
            manifest.images.iter().map(|e| open_ours(&dir.join(&e.file))).collect();
        // What is there is damaged, or of one that was ended in this.
        remove(&partial)?;
        std::fs::DirBuilder::new().mode(0o700).create(&partial).at("make", &partial)?;
        let copied = files?.into_iter().zip(&manifest.images).try_for_each(|(file, e)| {
            let path = dir.join(&e.file);
            let digest = u128::from_str_radix(&e.xxh3, 16).map_err(|_| StoreError::Manifest {
                path: dir.clone(),
                reason: format!("{:?} is no checksum", e.xxh3),
            })?;
            let said = Said { len: e.file_len, digest: digest.to_le_bytes() };
            pour(file, &path, &partial.join(&e.file), said, &mut |_| true)
        });
        match copied.and_then(|()| self.commit(&manifest)) {
            Ok(()) => Ok(true),
            Err(e) => {
                let _ = remove(&partial);
                Err(e)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commit::image_name;
    use crate::commit::tests::{scratch, take, take_in};
    use std::fs;

    #[test]
    fn a_checkpoint_goes_to_another_directory_and_back() {
        let (a, b) = (scratch("adopt-a"), scratch("adopt-b"));
        let (one, other) = (RunDir::create(&a.0).unwrap(), RunDir::create(&b.0).unwrap());
        let (first, second) = (take(&one), take(&one));
        // Somebody was killed in this.
        fs::create_dir(other.partial_path(second)).unwrap();
        fs::write(other.partial_path(second).join(image_name(0)), "half").unwrap();
        assert!(other.adopt(&one, second, &mut || true).unwrap());
        assert!(!other.adopt(&one, second, &mut || true).unwrap(), "it is there");
        assert_eq!(other.verify(second).unwrap(), one.verify(second).unwrap());
        assert_eq!(other.scan().unwrap(), [(second, false)]);
        // The run has forgotten it.
        fs::remove_dir_all(one.ckpt_path(second)).unwrap();
        assert!(one.adopt(&other, second, &mut || true).unwrap());
        assert_eq!(one.verify(second).unwrap().images.len(), 3);
        assert!(
            matches!(one.adopt(&other, first, &mut || true), Err(StoreError::Io { .. })),
            "it is not there"
        );
    }

    #[test]
    fn another_one_of_this_number_stays_and_a_damaged_one_is_not_taken() {
        let (a, b) = (scratch("adopt-c"), scratch("adopt-d"));
        let (one, other) = (RunDir::create(&a.0).unwrap(), RunDir::create(&b.0).unwrap());
        let ckpt = take(&one);
        let path = one.ckpt_path(ckpt).join(image_name(1));
        let mut bytes = fs::read(&path).unwrap();
        bytes[0] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert!(matches!(other.adopt(&one, ckpt, &mut || true), Err(StoreError::Damaged { .. })));
        assert!(other.scan().unwrap().is_empty());
        bytes[0] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert!(other.adopt(&one, ckpt, &mut || true).unwrap());
        let copy = other.ckpt_path(ckpt).join(image_name(1));
        fs::write(&copy, "damaged").unwrap();
        assert!(other.adopt(&one, ckpt, &mut || false).unwrap(), "it is put right");
        assert_eq!(fs::read(copy).unwrap(), bytes);
        fs::remove_dir_all(other.ckpt_path(ckpt)).unwrap();
        let held = other.lock().unwrap();
        assert!(
            matches!(other.adopt(&one, ckpt, &mut || true), Err(StoreError::Claimed { .. })),
            "an agent is at work"
        );
        drop(held);
        assert_eq!(take_in(&other, 1), ckpt);
        assert!(matches!(other.adopt(&one, ckpt, &mut || false), Err(StoreError::Claimed { .. })));
        assert_eq!(other.verify(ckpt).unwrap().incarnation, 1);
    }
}
