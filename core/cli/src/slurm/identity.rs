//! Which run a step belongs to: the index of runs by job, in the user's default home.
//!
//! ```text
//!  <default home>/slurm/lab.5/             cluster and job; of an array lab.100_3
//!      life-0                              when this life of the job began, as Slurm tells
//!      0123456789abcdef.0/run              path of the run directory
//!                        /claim-0          in life 0 of the job (SLURM_RESTART_COUNT) a step took this one
//!                        /output           its standard output and input, to tell twins apart
//!      step-2                              which run step 2 is (written by its task 0), for `scontrol checkpoint`
//!      step-mpirun-0123456789abcdef        the same of one mpirun, whose ranks need not be in a step of their own
//!      mpirun-0123456789abcdef             what the keeper of this mpirun has answered its ranks
//!  ~/.local/state/stillpoint/slurm/at-…    leads here, where XDG_STATE_HOME names another home
//! ```
//!
//! The 16 digits are a hash of directory and command line; the number behind them counts steps that have the same. A requeued
//! job runs its script once more: the first step with this hash is the first one of the life before, and so on.
//!
//! What a reader would get wrong: a script whose second life leaves out a step that looks exactly like a later one, with the same
//! files as standard streams, will have the later one taken for it. And job ids come again: what stands here of another job is put aside by the time its life began.
//! Runs *next door*.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use stillpoint_storage::run::host;
use twox_hash::XxHash3_64;

use crate::error::Error;
use crate::home::{BELOW_HOME, Home, private_dir, private_file};
use crate::slurm::choose::RESULT;
use crate::slurm::job::Whereabouts;

/// One life of a job: each requeue begins another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) job: String,
    /// Directory of the job in the index.
    pub(crate) name: String,
    pub(crate) number: u32,
}

impl Life {
    /// The job around us, from the environment; `None` outside of one.
    pub(crate) fn around(var: impl Fn(&str) -> Option<OsString>) -> Option<Life> {
        let text = |n: &str| var(n).and_then(|v| v.into_string().ok()).filter(|v| !v.is_empty());
        let job = text("SLURM_JOB_ID")?;
        let cluster = text("SLURM_CLUSTER_NAME").unwrap_or_else(|| "cluster".into());
        let key = match (text("SLURM_ARRAY_JOB_ID"), text("SLURM_ARRAY_TASK_ID")) {
            (Some(a), Some(t)) => format!("{a}_{t}"),
            _ => job.clone(),
        };
        let number = text("SLURM_RESTART_COUNT").and_then(|v| v.parse().ok()).unwrap_or(0);
        // An array's task by its place in it: the number of one of them is also that of the whole array.
        Some(Life { name: directory(&cluster, &key), job: key, number })
    }
}

/// Name of a job's directory in the index; nothing in it leads elsewhere.
pub(crate) fn directory(cluster: &str, key: &str) -> String {
    let plain = |t: &str| t.replace(|c: char| !(c.is_ascii_alphanumeric() || "-_".contains(c)), "_");
    format!("{}.{}", plain(cluster), plain(key))
}

/// The hash of directory and command line. Each word with its length, so that no two lists look alike.
pub(crate) fn digest(cwd: &Path, words: &[OsString]) -> String {
    let mut bytes = Vec::new();
    for w in [cwd.as_os_str()].into_iter().chain(words.iter().map(OsString::as_os_str)) {
        bytes.extend_from_slice(&(w.len() as u64).to_le_bytes());
        bytes.extend_from_slice(w.as_bytes());
    }
    short_hash(&bytes)
}

/// 16 hexadecimal digits.
pub(crate) fn short_hash(bytes: &[u8]) -> String {
    format!("{:016x}", XxHash3_64::oneshot(bytes))
}

/// A place that an earlier life has left.
struct Left {
    number: u32,
    /// Its standard streams, as [`streams`] has them.
    streams: Option<Vec<u8>>,
    /// Its step has ended.
    ended: bool,
}

/// Of the places with this hash: which to try first. Those whose streams were ours, in their order. Then those that were cut
/// off, as the name of a stream may hold that of a node; never one that has ended with other streams: it was another step,
/// and its result is not ours.
fn order(mut places: Vec<Left>, streams: &[u8]) -> Vec<u32> {
    let same = |p: &Left| p.streams.as_deref() == Some(streams);
    places.retain(|p| same(p) || !p.ended);
    places.sort_unstable_by_key(|p| (!same(p), p.number));
    places.iter().map(|p| p.number).collect()
}

/// How links to other indexes of the same user begin.
const AT: &str = "at-";

fn list(dir: &Path) -> impl Iterator<Item = fs::DirEntry> + use<> {
    fs::read_dir(dir).into_iter().flatten().flatten()
}

fn named(entry: &fs::DirEntry, is: impl Fn(&str) -> bool) -> bool {
    entry.file_name().to_str().is_some_and(is)
}

/// The index.
#[derive(Clone, Debug)]
pub(crate) struct Index(pub(crate) PathBuf);

/// A place in the index that is ours in this life of the job.
#[derive(Debug)]
pub(crate) struct Place {
    dir: PathBuf,
    /// The run that an earlier life has made.
    pub(crate) run: Option<PathBuf>,
}

impl Place {
    /// Remembers the run for later lives.
    pub(crate) fn remember(&self, run: &Path) -> Result<(), Error> {
        write(&self.dir.join("run"), run.as_os_str().as_bytes())
    }
}

/// Writes a file whole, or not at all.
fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    // Nodes of one kind give the same numbers.
    name.push(format!(".{}.{}", host(), std::process::id()));
    let new = path.with_file_name(name);
    let done = private_file(&new, false)
        .and_then(|mut f| {
            f.set_len(0)?;
            f.write_all(bytes)?;
            f.sync_all()
        })
        .and_then(|()| fs::rename(&new, path));
    done.map_err(Error::io("write", path))
}

impl Index {
    pub(crate) fn usual() -> Result<Index, Error> {
        Ok(Index(Home::usual()?.0.join("slurm")))
    }

    pub(crate) fn job(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn make(&self, name: &str) -> Result<PathBuf, Error> {
        let dir = self.job(name);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.map_err(Error::io("make", &dir))?;
        Ok(dir)
    }

    /// Puts aside what another job of the same id has left. `begun`: when this life began, as Slurm tells.
    pub(crate) fn begin(&self, life: &Life, begun: &str) -> Result<(), Error> {
        let dir = self.make(&life.name)?;
        // Of two steps at once one must not put aside what the other has just begun.
        let lock = self.0.join("lock");
        let lock = private_file(&lock, false).map_err(Error::io("open", &lock))?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|e| Error::io("lock", &self.0)(e.into()))?;
        let file = dir.join(format!("life-{}", life.number));
        match fs::read(&file) {
            Ok(before) if before == begun.as_bytes() => return Ok(()),
            Ok(_) => {
                let aside =
                    (0..).map(|n| self.0.join(format!("{}.old-{n}", life.name))).find(|p| !p.exists());
                aside.map_or(Ok(()), |a| fs::rename(&dir, a)).map_err(Error::io("put aside", &dir))?;
                self.make(&life.name)?;
            }
            Err(_) => {}
        }
        write(&file, begun.as_bytes())
    }

    /// Has it be found by those who know no more than the user, as root does and his own cron. They alone miss it when it fails.
    pub(crate) fn make_known(&self, home: &Path) {
        let usual = Index(home.join(BELOW_HOME).join("slurm"));
        if usual.0 != self.0 && usual.make("").is_ok() {
            let name = format!("{AT}{}", short_hash(self.0.as_os_str().as_bytes()));
            let _ = symlink(&self.0, usual.0.join(name));
        }
    }

    /// Takes the place of a step with this hash: that of an earlier life, or a new one.
    pub(crate) fn claim(&self, life: &Life, hash: &str, output: &[u8]) -> Result<Place, Error> {
        let job = self.make(&life.name)?;
        let list = fs::read_dir(&job).map_err(Error::io("list", &job))?.flatten();
        let number = |e: fs::DirEntry| {
            e.file_name().to_str()?.strip_prefix(hash)?.strip_prefix('.')?.parse::<u32>().ok()
        };
        let left = |number: u32| {
            let dir = job.join(format!("{hash}.{number}"));
            Left {
                number,
                streams: fs::read(dir.join("output")).ok(),
                ended: run_of(&dir).is_some_and(|r| r.join(RESULT).exists()),
            }
        };
        let places: Vec<Left> = list.filter_map(number).map(left).collect();
        let claim = format!("claim-{}", life.number);
        let taken = |dir: &Path| match private_file(&dir.join(&claim), true) {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(Error::io("claim", dir)(e)),
        };
        let fresh = places.iter().map(|p| p.number + 1).max().unwrap_or(0);
        for n in order(places, output) {
            let dir = job.join(format!("{hash}.{n}"));
            if taken(&dir)? {
                let run = run_of(&dir);
                return Ok(Place { dir, run });
            }
        }
        for n in fresh.. {
            let dir = job.join(format!("{hash}.{n}"));
            match private_dir(&dir) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(Error::io("make", &dir)(e)),
            }
            if taken(&dir)? {
                write(&dir.join("output"), output)?;
                return Ok(Place { dir, run: None });
            }
        }
        Err(Error::NoHome)
    }

    /// Runs of former lives whose places nobody has taken in this one.
    pub(crate) fn left(&self, life: &Life) -> Vec<PathBuf> {
        let claim = format!("claim-{}", life.number);
        let places = list(&self.job(&life.name)).map(|e| e.path()).filter(|p| !p.join(&claim).exists());
        places.filter_map(|p| run_of(&p)).collect()
    }

    /// What the steps of a job have made known, on any cluster.
    pub(crate) fn announced(&self, key: &str) -> Vec<Whereabouts> {
        let end = format!(".{key}");
        let elsewhere = list(&self.0).filter(|e| named(e, |n| n.starts_with(AT))).map(|e| e.path());
        let indexes = std::iter::once(self.0.clone()).chain(elsewhere);
        let jobs = indexes.flat_map(|i| list(&i)).filter(|e| named(e, |n| n.ends_with(&end)));
        let files = jobs.flat_map(|j| list(&j.path()));
        let steps = files.filter(|f| named(f, |n| n.starts_with("step-") && !n.contains('.')));
        steps.filter_map(|f| serde_json::from_slice(&fs::read(f.path()).ok()?).ok()).collect()
    }

    /// Makes known which run a step is.
    pub(crate) fn announce(&self, name: &str, step: &str, text: &[u8]) -> Result<(), Error> {
        self.put(name, &format!("step-{step}"), text)
    }

    /// Leaves a file in the directory of a job.
    pub(crate) fn put(&self, name: &str, file: &str, text: &[u8]) -> Result<(), Error> {
        write(&self.make(name)?.join(file), text)
    }
}

/// The run that a place is for.
fn run_of(place: &Path) -> Option<PathBuf> {
    fs::read(place.join("run")).ok().map(|b| PathBuf::from(OsString::from_vec(b)))
}

/// Where a process' standard output goes and its standard input comes from, as far as they are files with a name.
pub(crate) fn streams(pid: u32) -> Vec<u8> {
    let name = |fd: u32| {
        let path = PathBuf::from(format!("/proc/{pid}/fd/{fd}"));
        let file = path.metadata().is_ok_and(|m| m.is_file());
        let link = if file { fs::read_link(path).unwrap_or_default() } else { PathBuf::new() };
        link.into_os_string().into_vec()
    };
    [name(1), name(0)].join(&0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> Index {
        let dir = std::env::temp_dir().join(format!("stillpoint-cli-index-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        Index(dir)
    }
    fn life(number: u32) -> Life {
        Life { job: "5".into(), name: "lab.5".into(), number }
    }

    #[test]
    fn the_job_around_us() {
        let of = |set: &'static [(&str, &str)]| {
            Life::around(|n| set.iter().find(|(k, _)| *k == n).map(|(_, v)| OsString::from(v)))
        };
        assert_eq!(of(&[]), None);
        let l = of(&[("SLURM_JOB_ID", "5"), ("SLURM_CLUSTER_NAME", "lab")]).unwrap();
        assert_eq!(l, life(0));
        let array = [
            ("SLURM_JOB_ID", "101"),
            ("SLURM_CLUSTER_NAME", "../x"),
            ("SLURM_ARRAY_JOB_ID", "100"),
            ("SLURM_ARRAY_TASK_ID", "3"),
            ("SLURM_RESTART_COUNT", "2"),
        ];
        let l = Life::around(|n| array.iter().find(|(k, _)| *k == n).map(|(_, v)| v.into())).unwrap();
        assert_eq!((l.name.as_str(), l.number, l.job.as_str()), ("___x.100_3", 2, "100_3"));
    }

    #[test]
    fn words_are_told_apart() {
        let of = |w: &[&str]| digest(Path::new("/w"), &w.iter().map(OsString::from).collect::<Vec<_>>());
        assert_eq!(of(&["a", "b"]), of(&["a", "b"]));
        assert_ne!(of(&["a", "b"]), of(&["ab", ""]));
        assert_ne!(of(&["a"]), digest(Path::new("/v"), &["a".into()]));
        assert_eq!(of(&[]).len(), 16);
    }

    #[test]
    fn a_requeued_job_finds_its_steps_in_their_order() {
        let index = scratch("requeue");
        let (first, second) =
            (index.claim(&life(0), "h", b"o").unwrap(), index.claim(&life(0), "h", b"o").unwrap());
        assert!(first.run.is_none() && second.run.is_none());
        first.remember(Path::new("/r/1")).unwrap();
        second.remember(Path::new("/r/2")).unwrap();
        let found = |l: u32, o: &[u8]| index.claim(&life(l), "h", o).unwrap().run;
        assert_eq!(found(1, b"o"), Some("/r/1".into()));
        assert_eq!(found(1, b"o"), Some("/r/2".into()));
        assert_eq!(found(1, b"o"), None);
        assert_eq!(index.claim(&life(1), "other", b"").unwrap().run, None);
        assert_eq!(found(2, b"o"), Some("/r/1".into()), "each life anew");
        fs::remove_dir_all(&index.0).unwrap();
    }

    #[test]
    fn twins_are_told_apart_by_their_streams() {
        let index = scratch("twins");
        for (o, r) in [(&b"/w/out1"[..], "/r/1"), (b"/w/out2", "/r/2")] {
            index.claim(&life(0), "h", o).unwrap().remember(Path::new(r)).unwrap();
        }
        assert_eq!(index.claim(&life(1), "h", b"/w/out2").unwrap().run, Some("/r/2".into()));
        assert_eq!(index.claim(&life(1), "h", b"/w/new").unwrap().run, Some("/r/1".into()), "it was cut off");
        let left = |number, streams: &str, ended| Left { number, streams: Some(streams.into()), ended };
        let all = || vec![left(1, "x", true), left(0, "x", false), left(4, "y", true), left(2, "y", false)];
        assert_eq!(order(all(), b"y"), [2, 4, 0], "what has ended with other streams is another step");
        let out = index.0.join("out");
        let file = fs::File::create(&out).unwrap();
        let mut other = std::process::Command::new("sleep").arg("60").stdout(file).spawn().unwrap();
        let seen = streams(other.id());
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(seen.starts_with(out.as_os_str().as_bytes()), "of another process");
        fs::remove_dir_all(&index.0).unwrap();
    }

    #[test]
    fn of_many_at_once_each_gets_its_own() {
        let index = scratch("many");
        for n in 0..3 {
            index.claim(&life(0), "h", b"").unwrap().remember(Path::new(&format!("/r/{n}"))).unwrap();
        }
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let index = index.clone();
                std::thread::spawn(move || index.claim(&life(1), "h", b"").unwrap().dir)
            })
            .collect();
        let mut dirs: Vec<PathBuf> = threads.into_iter().map(|t| t.join().unwrap()).collect();
        dirs.sort();
        dirs.dedup();
        assert_eq!(dirs.len(), 8);
        fs::remove_dir_all(&index.0).unwrap();
    }

    #[test]
    fn an_index_elsewhere_is_found_from_home() {
        let home = scratch("home").0;
        let (index, usual) = (Index(home.join("x/slurm")), Index(home.join(BELOW_HOME).join("slurm")));
        let there = Whereabouts { step: "0".into(), run: "/r/1".into(), ..Whereabouts::default() };
        index.announce("lab.5", "0", &serde_json::to_vec(&there).unwrap()).unwrap();
        assert!(usual.announced("5").is_empty());
        for _ in 0..2 {
            index.make_known(&home);
            usual.make_known(&home);
        }
        let runs = |i: &Index, key| i.announced(key).into_iter().map(|w| w.run).collect::<Vec<_>>();
        assert_eq!(runs(&usual, "5"), [Path::new("/r/1")]);
        assert_eq!(runs(&index, "5").len(), 1);
        assert!(runs(&usual, "15").is_empty());
        fs::remove_dir_all(&index.0).unwrap();
        assert!(usual.announced("5").is_empty(), "it leads nowhere now");
        fs::remove_dir_all(home).unwrap();
    }

    #[test]
    fn another_job_of_the_same_id_is_put_aside() {
        let index = scratch("old");
        index.begin(&life(0), "monday").unwrap();
        index.claim(&life(0), "h", b"").unwrap().remember(Path::new("/r/1")).unwrap();
        index.begin(&life(0), "monday").unwrap();
        index.begin(&life(1), "tuesday").unwrap();
        assert_eq!(index.claim(&life(1), "h", b"").unwrap().run, Some("/r/1".into()));
        index.begin(&life(0), "friday").unwrap();
        assert_eq!(index.claim(&life(1), "h", b"").unwrap().run, None);
        assert!(index.job("lab.5.old-0").is_dir());
        fs::remove_dir_all(&index.0).unwrap();
    }
}
