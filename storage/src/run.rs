//! The run directory and the small files in it. Runs *next door*.
//!
//! What a reader would get wrong: small files are replaced by rename, so that a reader sees the old or the new, never
//! a half; claims are made by O_EXCL, so that of two that try only one succeeds. And who looks for claims changes the
//! directory first ([`list_now`]): a network file system shows an old list for a while to one who has not.

use crate::{At, Result, StoreError};
use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

/// Longest small file that is read.
const SMALL: u64 = 256 << 20;

/// While this file is there, no checkpoint is taken on the interval: an agent looks for it when it begins.
pub const PAUSED: &str = "disabled";

/// What was started (`run.json`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunInfo {
    /// The application and its arguments.
    pub command: Vec<String>,
    /// Ranks.
    pub size: u32,
    /// Directory in which it was started.
    pub cwd: String,
    /// What started it (mpirun and its options).
    #[serde(default)]
    pub launcher: Vec<String>,
    /// Seconds since 1970.
    #[serde(default)]
    pub time: u64,
}

/// A run directory.
#[derive(Clone, Debug)]
pub struct RunDir {
    pub(crate) path: PathBuf,
}

impl RunDir {
    /// Makes it if it is not there.
    pub fn create(path: &Path) -> Result<RunDir> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).at("make", path)?;
        Self::open(path)
    }

    /// Opens one that is there; it must be ours and closed to others' writes.
    pub fn open(path: &Path) -> Result<RunDir> {
        let path = std::path::absolute(path).at("find", path)?;
        let meta = std::fs::symlink_metadata(&path).at("open", &path)?;
        if !meta.is_dir() || meta.uid() != rustix::process::geteuid().as_raw() || meta.mode() & 0o022 != 0 {
            return Err(StoreError::Untrusted { path });
        }
        Ok(RunDir { path })
    }

    /// Absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The agent's socket.
    pub fn socket(&self) -> PathBuf {
        self.path.join("agent.sock")
    }

    /// Connects to the agent. Goes through the directory's descriptor: a socket's path may have 107 bytes, ours more.
    pub fn connect(&self) -> std::io::Result<UnixStream> {
        let dir = File::open(&self.path)?;
        UnixStream::connect(format!("/proc/self/fd/{}/agent.sock", dir.as_raw_fd()))
    }

    /// Takes the agent's lock, held until the result is dropped. `None`: another has it.
    pub fn lock(&self) -> Result<Option<OwnedFd>> {
        let path = self.path.join("agent.lock");
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600)).at("open", &path)?;
        match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(fd)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(StoreError::Io { what: "lock", path, source: e.into() }),
        }
    }

    /// Writes `run.json`.
    pub fn write_info(&self, info: &RunInfo) -> Result<()> {
        self.write_json("run.json", info)
    }

    /// Reads `run.json`.
    pub fn info(&self) -> Result<RunInfo> {
        self.read_json("run.json")
    }

    /// Replaces a small json file, durably.
    pub fn write_json<T: Serialize>(&self, name: &str, value: &T) -> Result<()> {
        self.put_json(name, value, true)
    }

    /// Replaces a small json file that need not outlive a power failure.
    pub fn note_json<T: Serialize>(&self, name: &str, value: &T) -> Result<()> {
        self.put_json(name, value, false)
    }

    /// Adds a line to `history.jsonl`: one json object for each commit and each restart, for whoever wants to know what
    /// they cost. Nothing depends on it.
    pub fn add_history<T: Serialize>(&self, line: &T) -> Result<()> {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        let path = self.path.join("history.jsonl");
        let mut text =
            serde_json::to_vec(line).map_err(|source| StoreError::Json { path: path.clone(), source })?;
        text.push(b'\n');
        let file = std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
        file.and_then(|mut f| f.write_all(&text)).map_err(|source| StoreError::Io {
            what: "add to",
            path,
            source,
        })
    }

    fn put_json<T: Serialize>(&self, name: &str, value: &T, durable: bool) -> Result<()> {
        let path = self.path.join(name);
        let mut text = serde_json::to_vec_pretty(value)
            .map_err(|source| StoreError::Json { path: path.clone(), source })?;
        text.push(b'\n');
        self.replace(name, &text, durable)
    }

    /// Reads a small json file.
    pub fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        let path = self.path.join(name);
        serde_json::from_slice(&read_small(&path)?).map_err(|source| StoreError::Json { path, source })
    }

    pub(crate) fn replace(&self, name: &str, bytes: &[u8], durable: bool) -> Result<()> {
        let path = self.path.join(name);
        // Two nodes may have the same number for a process.
        let new = self.path.join(format!(".{name}.{}.{}", host(), std::process::id()));
        let _ = std::fs::remove_file(&new);
        create_new(&new, bytes, durable)?;
        std::fs::rename(&new, &path).at("replace", &path)?;
        if durable { sync_dir(&self.path) } else { Ok(()) }
    }

    /// Claims the next start of the job; at most one caller gets each number. The first start is 0 and needs no claim.
    pub fn claim_incarnation(&self) -> Result<u32> {
        loop {
            let next = self.incarnation()? + 1;
            if self.claim(next)? {
                return Ok(next);
            }
        }
    }

    /// Claims this start. `false`: another one has it.
    pub fn claim(&self, start: u32) -> Result<bool> {
        let dir = self.path.join("restarts");
        match create_new(&dir.join(format!("{start:06}")), b"", true) {
            Ok(()) => sync_dir(&dir).map(|()| true),
            Err(StoreError::Claimed { .. }) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The latest start that was claimed; as it is now, also on a network file system.
    pub fn incarnation(&self) -> Result<u32> {
        let names = list_now(&self.path.join("restarts"))?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).max().unwrap_or(0))
    }
}

/// The names in a directory, which is made if it is not there; as they are now, also on a network file system: makes and
/// removes a file first.
pub fn list_now(dir: &Path) -> Result<Vec<String>> {
    static LOOKS: AtomicU32 = AtomicU32::new(0);
    match std::fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(e).at("make", dir),
        _ => {}
    }
    let look = format!(".look.{}.{}.{}", host(), std::process::id(), LOOKS.fetch_add(1, Relaxed));
    let look = dir.join(look);
    let _ = std::fs::remove_file(&look);
    create_new(&look, b"", false)?;
    std::fs::remove_file(&look).at("remove", &look)?;
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).at("list", dir)? {
        names.extend(entry.at("list", dir)?.file_name().into_string());
    }
    Ok(names)
}

/// Name of this node.
pub fn host() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let fit = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let name: String = name.chars().filter(|c| fit(*c)).collect();
    if name.is_empty() { "node".into() } else { name }
}

/// Creates a file that must not exist, 0600.
pub(crate) fn create_new(path: &Path, bytes: &[u8], durable: bool) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = match rustix::fs::open(path, flags, Mode::from_raw_mode(0o600)) {
        Err(rustix::io::Errno::EXIST) => return Err(StoreError::Claimed { path: path.into() }),
        other => other.at("create", path)?,
    };
    let mut file = File::from(fd);
    file.write_all(bytes).at("write", path)?;
    if durable { file.sync_all().at("make durable", path) } else { Ok(()) }
}

/// Opens a file of ours for reading, without following a link.
pub(crate) fn open_ours(path: &Path) -> Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).at("open", path)?);
    let meta = file.metadata().at("look at", path)?;
    if !meta.is_file() || meta.uid() != rustix::process::geteuid().as_raw() || meta.mode() & 0o022 != 0 {
        return Err(StoreError::Untrusted { path: path.into() });
    }
    Ok(file)
}

pub(crate) fn read_small(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_ours(path)?.take(SMALL).read_to_end(&mut bytes).at("read", path)?;
    Ok(bytes)
}

pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    File::open(path).and_then(|d| d.sync_all()).at("make durable", path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_given_once() {
        let t = crate::commit::tests::scratch("claims");
        let run = RunDir::create(&t.0).unwrap();
        assert_eq!(run.incarnation().unwrap(), 0);
        let many: Vec<_> = (0..8)
            .map(|_| {
                let run = run.clone();
                std::thread::spawn(move || run.claim_incarnation().unwrap())
            })
            .collect();
        let mut got: Vec<u32> = many.into_iter().map(|t| t.join().unwrap()).collect();
        got.sort_unstable();
        assert_eq!(got, (1..=8).collect::<Vec<_>>());
    }

    #[test]
    fn who_looks_for_claims_changes_the_directory_first() {
        let t = crate::commit::tests::scratch("looks");
        let run = RunDir::create(&t.0).unwrap();
        assert_eq!(run.claim_incarnation().unwrap(), 1);
        let dir = File::open(t.0.join("restarts")).unwrap();
        let long_ago = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        dir.set_modified(long_ago).unwrap();
        assert_eq!(run.incarnation().unwrap(), 1);
        assert_ne!(dir.metadata().unwrap().modified().unwrap(), long_ago);
        assert_eq!(std::fs::read_dir(t.0.join("restarts")).unwrap().count(), 1, "nothing is left of it");
        // What cannot be seen is not taken for none.
        drop(std::fs::remove_dir_all(t.0.join("restarts")));
        std::fs::write(t.0.join("restarts"), "").unwrap();
        assert!(run.incarnation().is_err());
    }

    #[test]
    fn one_lock_and_small_files() {
        let t = crate::commit::tests::scratch("lock");
        let run = RunDir::create(&t.0).unwrap();
        let held = run.lock().unwrap();
        assert!(held.is_some() && run.lock().unwrap().is_none());
        drop(held);
        assert!(run.lock().unwrap().is_some());
        let info = RunInfo { command: vec!["a".into()], size: 2, ..RunInfo::default() };
        run.write_info(&info).unwrap();
        run.write_info(&info).unwrap();
        assert_eq!(run.info().unwrap(), info);
        let mode = std::fs::metadata(run.path().join("run.json")).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
