//! A run's directory on a disk of one node: `BASE/stillpoint-UID/HASH`, where HASH is that of the run directory's path. Runs
//! *next door*.
//!
//! What a reader would get wrong: BASE may be /tmp, where everybody may have put something in our way. Each of the two
//! directories must be ours, closed to all others, and no link; else it is refused, and nothing is done about it. BASE itself is refused
//! where everybody may rename what is ours (writable by all, without the sticky bit).

use crate::commit::partial_name;
use crate::{At, Result, StoreError};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use stillpoint_abi::ids::CkptId;
use twox_hash::XxHash3_64;

/// Makes it if it is not there; `base` must be.
///
/// # Errors
/// It cannot be made, or somebody else could enter it ([`StoreError::Untrusted`]).
pub fn node_dir(base: &Path, run: &Path) -> Result<PathBuf> {
    let uid = rustix::process::geteuid().as_raw();
    let mode = std::fs::metadata(base).at("look at", base)?.mode();
    if mode & 0o1002 == 0o002 {
        return Err(StoreError::Untrusted { path: base.into() });
    }
    let mut dir = base.to_owned();
    for name in
        [format!("stillpoint-{uid}"), format!("{:016x}", XxHash3_64::oneshot(run.as_os_str().as_bytes()))]
    {
        dir.push(name);
        private(&dir)?;
    }
    Ok(dir)
}

/// Makes a directory of ours, or finds one that is as if we had made it.
pub(crate) fn private(dir: &Path) -> Result<()> {
    match std::fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(e).at("make", dir),
        _ => {}
    }
    let meta = std::fs::symlink_metadata(dir).at("look at", dir)?;
    let ours = meta.uid() == rustix::process::geteuid().as_raw();
    if meta.is_dir() && ours && meta.mode() & 0o077 == 0 {
        Ok(())
    } else {
        Err(StoreError::Untrusted { path: dir.into() })
    }
}

/// The checkpoints of a run on its node.
#[derive(Debug)]
pub struct NodeDir {
    path: PathBuf,
}

impl NodeDir {
    /// Below `base`, for the run whose directory is `run`.
    ///
    /// # Errors
    /// As [`node_dir`].
    pub fn open(base: &Path, run: &Path) -> Result<NodeDir> {
        let base = std::path::absolute(base).at("find", base)?;
        Ok(NodeDir { path: node_dir(&base, run)? })
    }

    /// Absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn partial_path(&self, ckpt: CkptId) -> PathBuf {
        self.path.join(partial_name(ckpt))
    }

    /// A directory in it for images of a checkpoint that is being written, made if need be.
    ///
    /// # Errors
    /// As [`node_dir`].
    pub fn checkpoint(&self, ckpt: CkptId) -> Result<PathBuf> {
        let dir = self.partial_path(ckpt);
        private(&dir)?;
        Ok(dir)
    }

    /// Removes what is left of it, if it is there.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn forget(&self, ckpt: CkptId) -> Result<()> {
        crate::commit::remove(&self.partial_path(ckpt))
    }

    /// Removes what an earlier agent has left.
    ///
    /// # Errors
    /// What could not be removed; the rest is.
    pub fn clear(&self) -> Result<()> {
        let mut result = Ok(());
        for entry in std::fs::read_dir(&self.path).at("list", &self.path)? {
            let name = entry.at("list", &self.path)?.file_name();
            if name.to_str().is_some_and(|n| n.starts_with("ckpt-")) {
                result = crate::commit::remove(&self.path.join(&name)).and(result);
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commit::tests::scratch;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn the_directory_is_ours_or_refused() {
        let base = scratch("node");
        fs::create_dir_all(&base.0).unwrap();
        let run = Path::new("/home/x/12");
        let dir = node_dir(&base.0, run).unwrap();
        assert_eq!(dir, node_dir(&base.0, run).unwrap());
        assert_ne!(dir, node_dir(&base.0, Path::new("/home/x/13")).unwrap());
        assert_eq!(dir.file_name().unwrap().len(), 16);
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
        let user = dir.parent().unwrap();
        fs::remove_dir_all(user).unwrap();
        let elsewhere = base.0.join("elsewhere");
        private(&elsewhere).unwrap();
        symlink(&elsewhere, user).unwrap();
        assert!(matches!(node_dir(&base.0, run), Err(StoreError::Untrusted { .. })), "a link");
        fs::remove_file(user).unwrap();
        fs::create_dir(user).unwrap();
        fs::set_permissions(user, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(node_dir(&base.0, run), Err(StoreError::Untrusted { .. })), "open to others");
        assert!(node_dir(&base.0.join("none"), run).is_err(), "the base is the site's to make");
        fs::remove_dir(user).unwrap();
        let open = |mode| fs::set_permissions(&base.0, fs::Permissions::from_mode(mode)).unwrap();
        open(0o777);
        assert!(matches!(node_dir(&base.0, run), Err(StoreError::Untrusted { .. })), "all may rename there");
        open(0o1777);
        node_dir(&base.0, run).unwrap();
    }

    #[test]
    fn only_checkpoints_are_cleared() {
        let base = scratch("clear");
        fs::create_dir_all(&base.0).unwrap();
        let node = NodeDir::open(&base.0, Path::new("/r")).unwrap();
        for n in 1..=3 {
            fs::write(node.checkpoint(CkptId(n)).unwrap().join("f"), "x").unwrap();
        }
        fs::write(node.path().join("else"), "x").unwrap();
        let there = |n: &str| node.path().join(n).exists();
        node.forget(CkptId(1)).unwrap();
        node.forget(CkptId(1)).unwrap();
        assert!(!there("ckpt-000001.partial") && there("ckpt-000002.partial"));
        node.clear().unwrap();
        assert!(!there("ckpt-000002.partial") && !there("ckpt-000003.partial") && there("else"));
    }
}
