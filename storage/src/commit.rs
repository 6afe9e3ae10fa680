//! Begin, commit, discard, forget. Runs *next door*.
//!
//! ```text
//!  begin: last-id, mkdir ckpt-N.partial ─▶ ranks write and fsync ─▶ commit: fsync images' directory, manifest,
//!  rename ckpt-N.partial → ckpt-N, fsync RUNDIR ─▶ forget: all but the last two
//! ```
//!
//! What a reader would get wrong: the rename is the commit, and it is one only after fsync of RUNDIR returned; the old
//! checkpoints are forgotten after that, never before. The manifest is durable inside the directory before the rename.

use crate::manifest::{Entry, Manifest};
use crate::run::{RunDir, open_ours, read_small, sync_dir};
use crate::{At, Result, StoreError};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use stillpoint_abi::ids::CkptId;

/// Name of a rank's image.
pub fn image_name(rank: u32) -> String {
    format!("rank-{rank:05}.img")
}

/// Name of the directory of a checkpoint that is being written.
pub(crate) fn partial_name(ckpt: CkptId) -> String {
    format!("ckpt-{:06}.partial", ckpt.0)
}

/// Which image of which unfinished checkpoint this path is of.
pub fn image_at(path: &Path) -> Option<(CkptId, u32)> {
    let dir = path.parent()?.file_name()?.to_str()?;
    let (ckpt, true) = ckpt_name(dir)? else { return None };
    let rank = path.file_name()?.to_str()?.strip_prefix("rank-")?.strip_suffix(".img")?.parse().ok()?;
    Some((ckpt, rank))
}

/// The checkpoint of a directory of this name; true: unfinished.
fn ckpt_name(name: &str) -> Option<(CkptId, bool)> {
    let rest = name.strip_prefix("ckpt-")?;
    let (digits, partial) = match rest.strip_suffix(".partial") {
        Some(digits) => (digits, true),
        None => (rest, false),
    };
    Some((CkptId(digits.parse().ok()?), partial))
}

/// Checkpoints that are kept.
pub const KEEP: usize = 2;

impl RunDir {
    /// Where a committed checkpoint lies.
    pub fn ckpt_path(&self, ckpt: CkptId) -> PathBuf {
        self.path().join(format!("ckpt-{:06}", ckpt.0))
    }

    /// Where one lies that is being written.
    pub fn partial_path(&self, ckpt: CkptId) -> PathBuf {
        self.path().join(partial_name(ckpt))
    }

    /// Claims the next number, and makes the directory for it.
    pub fn begin(&self) -> Result<CkptId> {
        let path = self.path().join("last-id");
        let noted = match read_small(&path) {
            Ok(text) => String::from_utf8_lossy(&text).trim().parse().unwrap_or(0),
            Err(_) => 0,
        };
        let seen = self.scan()?.into_iter().map(|(id, _)| id.0).max().unwrap_or(0);
        let ckpt = CkptId(seen.max(noted) + 1);
        // Not durable: what a power failure forgets are numbers whose writers it has ended too.
        self.replace("last-id", format!("{ckpt}\n").as_bytes(), false)?;
        let dir = self.partial_path(ckpt);
        std::fs::DirBuilder::new().mode(0o700).create(&dir).at("make", &dir)?;
        Ok(ckpt)
    }

    /// Makes the checkpoint exist. Every image must be durable and as long as the manifest says.
    pub fn commit(&self, manifest: &Manifest) -> Result<()> {
        self.commit_if(manifest, || Ok(()))
    }

    /// The same, unless `may` refuses at the last moment.
    pub fn commit_if(&self, manifest: &Manifest, may: impl FnOnce() -> Result<()>) -> Result<()> {
        let ckpt = CkptId(manifest.ckpt);
        let (partial, dir) = (self.partial_path(ckpt), self.ckpt_path(ckpt));
        for Entry { file, file_len, .. } in &manifest.images {
            let path = partial.join(file);
            let image = open_ours(&path)?;
            let len = image.metadata().at("look at", &path)?.len();
            if len != *file_len {
                let reason = format!("{len} bytes long, its writer said {file_len}");
                return Err(StoreError::Damaged { path, reason });
            }
            // The writer has done it; a second time costs nothing, and the commit does not rest on its word.
            image.sync_all().at("make durable", &path)?;
        }
        manifest.write(&partial)?;
        Manifest::read(&partial)?;
        sync_dir(&partial)?;
        may()?;
        std::fs::rename(&partial, &dir).at("commit", &dir)?;
        sync_dir(self.path())
    }

    /// Removes what was written for a checkpoint that was given up.
    pub fn discard(&self, ckpt: CkptId) -> Result<()> {
        remove(&self.partial_path(ckpt))
    }

    /// Removes all committed checkpoints but the last `keep`, and unfinished ones of former agents. A checkpoint whose
    /// manifest does not read, or that the run did not pass through, does not count among those kept. Returns what was removed.
    pub fn forget(&self, keep: usize, current: Option<CkptId>) -> Result<Vec<CkptId>> {
        let mut removed = Vec::new();
        let mut kept = 0;
        let way = self.way()?;
        for (id, partial) in self.scan()? {
            if partial {
                if Some(id) != current {
                    remove(&self.partial_path(id))?;
                }
            } else if kept < keep.max(1) || way.told() == Some(id) {
                let counts = Manifest::read(&self.ckpt_path(id)).is_ok_and(|m| way.has(id, m.incarnation));
                kept += usize::from(counts);
            } else {
                // Out of sight first: a half-removed checkpoint must not look like one.
                let gone = self.partial_path(id);
                std::fs::rename(self.ckpt_path(id), &gone).at("forget", &gone)?;
                remove(&gone)?;
                removed.push(id);
            }
        }
        Ok(removed)
    }

    /// All checkpoints, newest first; true: unfinished.
    pub fn scan(&self) -> Result<Vec<(CkptId, bool)>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(self.path()).at("list", self.path())? {
            let name = entry.at("list", self.path())?.file_name();
            found.extend(name.to_str().and_then(ckpt_name));
        }
        found.sort_unstable_by(|a, b| b.cmp(a));
        Ok(found)
    }
}

pub(crate) fn remove(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).at("remove", dir),
        _ => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::manifest::{Finished, VERSION, hex};
    use std::os::unix::fs::PermissionsExt;

    pub(crate) struct Scratch(pub(crate) PathBuf);

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    pub(crate) fn scratch(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("stillpoint-storage-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Scratch(path)
    }

    pub(crate) fn write_images(dir: &Path, ckpt: CkptId, n: u32) -> Manifest {
        let images = (0..n)
            .map(|rank| {
                let bytes = vec![rank as u8 + ckpt.0 as u8; 5000 + rank as usize];
                crate::run::create_new(&dir.join(image_name(rank)), &bytes, true).unwrap();
                Entry {
                    rank,
                    file: image_name(rank),
                    file_len: bytes.len() as u64,
                    bytes: 1,
                    xxh3: hex(twox_hash::XxHash3_128::oneshot(&bytes[..crate::manifest::HEAD])),
                }
            })
            .collect();
        Manifest {
            format: "stillpoint".into(),
            version: VERSION,
            ckpt: ckpt.0,
            incarnation: 0,
            size: n + 1,
            time: 0,
            mode: "direct".into(),
            held_ns: 0,
            stopped_ns: 0,
            total_ns: 0,
            seed: String::new(),
            images,
            finished: vec![Finished { rank: n, status: 0 }],
            xxh3: String::new(),
        }
    }

    pub(crate) fn take(run: &RunDir) -> CkptId {
        take_in(run, 0)
    }

    pub(crate) fn take_in(run: &RunDir, incarnation: u32) -> CkptId {
        let ckpt = run.begin().unwrap();
        let manifest = Manifest { incarnation, ..write_images(&run.partial_path(ckpt), ckpt, 3) };
        run.commit(&manifest).unwrap();
        ckpt
    }

    #[test]
    fn the_last_two_are_kept_and_numbers_never_return() {
        let t = scratch("keep");
        let run = RunDir::create(&t.0).unwrap();
        for n in 1..=4 {
            assert_eq!(take(&run), CkptId(n));
            run.forget(KEEP, None).unwrap();
        }
        assert_eq!(run.scan().unwrap(), vec![(CkptId(4), false), (CkptId(3), false)]);
        let given_up = run.begin().unwrap();
        run.discard(given_up).unwrap();
        run.discard(given_up).unwrap();
        assert_eq!(take(&run), CkptId(6));
        let mode = std::fs::metadata(run.ckpt_path(CkptId(6))).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn paths_of_images() {
        let run = RunDir { path: "/r".into() };
        let path = run.partial_path(CkptId(7)).join(image_name(3));
        assert_eq!(image_at(&path), Some((CkptId(7), 3)));
        for other in
            ["/r/ckpt-000007/rank-00003.img", "/r/ckpt-x.partial/rank-00003.img", "/r/rank-00003.img"]
        {
            assert_eq!(image_at(Path::new(other)), None, "{other}");
        }
    }

    #[test]
    fn a_short_or_missing_image_is_not_committed() {
        let t = scratch("short");
        let run = RunDir::create(&t.0).unwrap();
        let ckpt = run.begin().unwrap();
        let mut m = write_images(&run.partial_path(ckpt), ckpt, 2);
        m.images[1].file_len += 1;
        assert!(matches!(run.commit(&m), Err(StoreError::Damaged { .. })));
        m.images[1].file_len -= 1;
        m.finished.clear();
        assert!(matches!(run.commit(&m), Err(StoreError::Manifest { .. })), "a rank is missing");
        assert!(run.scan().unwrap()[0].1, "still unfinished");
    }
}
