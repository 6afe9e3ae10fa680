//! Who is the root: the claimed files under `RUN/roots/`. Runs *next door*.
//!
//! What a reader would get wrong: numbers never return, so a file is never removed while its number is the highest; and a
//! network file system shows an old list of a directory for a while, unless the one who looks has just changed it
//! ([`list_now`]).

use crate::{NetError, Result};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use stillpoint_storage::run::{RunDir, list_now};

/// Roots whose files are kept.
const KEEP: u32 = 8;

/// What is needed to reach a root, and to prove that one may.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// Name of its node.
    pub host: String,
    /// Which start of which machine: on the same one, loopback reaches it.
    pub boot: String,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// Its port.
    pub port: u16,
    /// 32 random bytes, hexadecimal.
    pub token: String,
    /// Its process, for people.
    pub pid: u32,
    /// The latest start of the job that it knew of when it began, or that it serves since ([`Roots::began`]).
    #[serde(default)]
    pub incarnation: u32,
}

/// The newest claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// Its number.
    pub number: u32,
    /// It ended in order.
    pub ended: bool,
    /// Who claimed it; none if its file cannot be read.
    pub root: Option<Root>,
}

fn at(what: &'static str, path: &Path) -> impl Fn(std::io::Error) -> NetError {
    move |source| NetError::File { what, path: path.into(), source }
}

/// A root's file, whole and durable, under a name that nobody looks for.
fn draft(dir: &Path, root: &Root) -> Result<(PathBuf, File)> {
    let draft = dir.join(format!(".draft.{}.{}", root.host, root.pid));
    let _ = std::fs::remove_file(&draft);
    let text = serde_json::to_vec_pretty(root).map_err(|e| at("write", &draft)(e.into()))?;
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft);
    let mut file = file.map_err(at("make", &draft))?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(at("write", &draft))?;
    Ok((draft, file))
}

fn folder(run: &RunDir) -> PathBuf {
    run.path().join("roots")
}

/// The files of one run.
#[derive(Clone, Debug)]
pub struct Roots {
    run: RunDir,
}

impl Roots {
    /// Of this run.
    pub fn of(run: &RunDir) -> Roots {
        Roots { run: run.clone() }
    }

    /// The highest number, 0 if there is none; as it is now, also on a network file system.
    pub fn number(&self) -> Result<u32> {
        Ok(highest(list_now(&folder(&self.run))?.into_iter()))
    }

    /// The highest number as this node sees it.
    fn seen(&self) -> Result<u32> {
        let dir = folder(&self.run);
        let names = match std::fs::read_dir(&dir) {
            Ok(names) => names,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(0),
            Err(e) => return Err(at("list", &dir)(e)),
        };
        Ok(highest(names.flatten().filter_map(|e| e.file_name().into_string().ok())))
    }

    /// The newest claim, for one who only wants to talk to it.
    pub fn newest(&self) -> Result<Option<Claimed>> {
        self.claimed(self.seen()?)
    }

    /// The newest claim, for one who may claim the next.
    pub fn newest_now(&self) -> Result<Option<Claimed>> {
        self.claimed(self.number()?)
    }

    fn claimed(&self, number: u32) -> Result<Option<Claimed>> {
        if number == 0 {
            return Ok(None);
        }
        let root = self.run.read_json(&format!("roots/{number:06}.json")).ok();
        Ok(Some(Claimed { number, ended: self.ended_path(number).exists(), root }))
    }

    fn ended_path(&self, number: u32) -> PathBuf {
        folder(&self.run).join(format!("{number:06}.ended"))
    }

    /// Claims `number`; false: another was faster.
    pub fn claim(&self, number: u32, root: &Root) -> Result<bool> {
        let dir = folder(&self.run);
        let path = dir.join(format!("{number:06}.json"));
        let (draft, file) = draft(&dir, root)?;
        let linked = std::fs::hard_link(&draft, &path);
        // The answer of a network file system may be lost: what counts is whether the link is there (open(2), O_EXCL).
        let ours = file.metadata().is_ok_and(|m| m.nlink() == 2);
        let _ = std::fs::remove_file(&draft);
        match linked {
            _ if ours => {
                File::open(&dir).and_then(|d| d.sync_all()).map_err(at("make durable", &dir))?;
                self.forget(number);
                Ok(true)
            }
            Ok(()) => Ok(true),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(at("claim", &path)(e)),
        }
    }

    /// Root `number` serves a later start now: who looks for it must not take it for one of an earlier one.
    pub fn began(&self, number: u32, incarnation: u32) -> Result<()> {
        let name = format!("roots/{number:06}.json");
        let root = Root { incarnation, ..self.run.read_json(&name)? };
        let path = self.run.path().join(name);
        let (draft, _) = draft(&folder(&self.run), &root)?;
        std::fs::rename(&draft, &path).map_err(at("replace", &path))
    }

    /// Notes that root `number` ended in order.
    pub fn end(&self, number: u32) -> Result<()> {
        let path = self.ended_path(number);
        File::create(&path).map(drop).map_err(at("make", &path))
    }

    /// Removes the files of roots long gone.
    fn forget(&self, number: u32) {
        for old in (number.saturating_sub(4 * KEEP)..number.saturating_sub(KEEP)).filter(|n| *n > 0) {
            let _ = std::fs::remove_file(folder(&self.run).join(format!("{old:06}.json")));
            let _ = std::fs::remove_file(self.ended_path(old));
        }
    }
}

/// The highest number that a name stands for.
fn highest(names: impl Iterator<Item = String>) -> u32 {
    names.filter_map(|n| n.strip_suffix(".json")?.parse().ok()).max().unwrap_or(0)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use stillpoint_storage::run::host;

    pub(crate) fn root(token: &str) -> Root {
        Root {
            host: host(),
            boot: crate::dial::boot(),
            addresses: vec![],
            port: 1,
            token: token.into(),
            pid: std::process::id(),
            incarnation: 0,
        }
    }

    #[test]
    fn a_number_is_claimed_once_and_whole() {
        let path = std::env::temp_dir().join(format!("stillpoint-roots-{}", std::process::id()));
        let roots = Roots::of(&RunDir::create(&path).unwrap());
        assert_eq!((roots.number().unwrap(), roots.newest().unwrap()), (0, None));
        assert!(roots.claim(1, &root("a")).unwrap());
        assert!(!roots.claim(1, &root("b")).unwrap());
        let newest = roots.newest_now().unwrap().unwrap();
        assert_eq!((newest.number, newest.ended, newest.root.unwrap().token), (1, false, "a".to_owned()));
        roots.began(1, 7).unwrap();
        let newest = roots.newest_now().unwrap().unwrap().root.unwrap();
        assert_eq!((newest.incarnation, newest.token), (7, "a".to_owned()));
        roots.end(1).unwrap();
        assert!(roots.newest().unwrap().unwrap().ended);
        for n in 2..40 {
            assert!(roots.claim(n, &root("c")).unwrap());
        }
        assert_eq!(roots.number().unwrap(), 39);
        assert!(std::fs::read_dir(path.join("roots")).unwrap().count() <= 2 * KEEP as usize);
        std::fs::remove_dir_all(&path).unwrap();
    }
}
