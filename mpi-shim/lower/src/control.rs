//! The control thread: takes part in checkpoints on behalf of this rank. *Lower half*, a thread of its own with all
//! signals blocked, so the application's never reach it.
//!
//! It begins before the upper half does, and acts only once [`running`] or the first upper thread says that there is
//! something to stop. Here: the mode without an agent, one process that writes its own images
//! (`STILLPOINT_ALONE=DIR,MILLISECONDS`): `DIR/rank.img` is replaced by rename, so it is whole at any moment.

use crate::link::Link;
use crate::plugins::Word;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use stillpoint_abi::ids::{CkptId, Incarnation, Rank};
use stillpoint_capture::gather::{self, Streams};
use stillpoint_capture::{pause, write};
use stillpoint_coord::client::Local;
use stillpoint_coord::message::Heard;
use stillpoint_image::{Fd, FdKind, Meta, Phase, Seal};
use stillpoint_sys::raw::{futex_wait, futex_wake_all, monotonic_ns};
use stillpoint_sys::{half, upper};

static RUNNING: AtomicU32 = AtomicU32::new(0);

/// After a restart: all threads are there.
pub(crate) fn running() {
    RUNNING.store(1, Release);
}

static REBUILT: AtomicU32 = AtomicU32::new(0);
/// The round that was handed on last, until the main thread takes it.
static ROUND: Mutex<Option<(u32, Heard)>> = Mutex::new(None);
/// Counts up with each round, and at the end. A futex.
static NEWS: AtomicU32 = AtomicU32::new(0);

/// After a restart: the agent says that all ranks are rebuilt.
pub(crate) fn all_rebuilt() {
    REBUILT.store(1, Release);
    NEWS.fetch_add(1, Release);
    futex_wake_all(&NEWS);
}

/// The agent has said so.
pub(crate) fn is_rebuilt() -> bool {
    REBUILT.load(Acquire) != 0
}

/// A round of the rebuild was handed on.
pub(crate) fn heard(round: u32, heard: Heard) {
    *ROUND.lock().unwrap_or_else(PoisonError::into_inner) = Some((round, heard));
    NEWS.fetch_add(1, Release);
    futex_wake_all(&NEWS);
}

/// Says this rank's word, and waits for the next round; none: all ranks are rebuilt, or there is no agent and nothing to say.
pub(crate) fn next_round(word: Word) -> Result<Option<(u32, Heard)>, String> {
    if std::env::var_os("STILLPOINT_RUN").is_none() {
        return match word {
            Word::Says(_) => Err("a plugin has to speak to other ranks, and there is no node agent".into()),
            Word::Done => Ok(None),
        };
    }
    crate::mail::tell(match word {
        Word::Says(said) => Local::Contribute(said),
        Word::Done => Local::Rebuilt,
    });
    loop {
        let news = NEWS.load(Acquire);
        let round = ROUND.lock().unwrap_or_else(PoisonError::into_inner).take();
        if round.is_some() || is_rebuilt() {
            return Ok(round);
        }
        futex_wait(&NEWS, news);
    }
}

fn alone() -> Option<(PathBuf, Duration)> {
    let v = std::env::var("STILLPOINT_ALONE").ok()?;
    let (dir, ms) = v.rsplit_once(',')?;
    Some((PathBuf::from(dir), Duration::from_millis(ms.parse().ok()?)))
}

/// Starts the control thread if there is anything for it to do.
pub(crate) fn start(restored: bool) -> std::io::Result<()> {
    let streams = Streams::look();
    if let Some(run) = std::env::var_os("STILLPOINT_RUN") {
        let incarnation =
            std::env::var("STILLPOINT_INCARNATION").ok().and_then(|v| v.parse().ok()).unwrap_or(0);
        let run = PathBuf::from(run);
        let local = std::env::var_os("STILLPOINT_LOCAL").filter(|l| !l.is_empty());
        let local = local.map_or_else(|| run.clone(), PathBuf::from);
        let link = Link { run, local, incarnation, restored, streams };
        let (tx, rx) = std::sync::mpsc::channel();
        // What the application asks for before the line stands waits in the channel.
        crate::mail::open(&tx);
        crate::warn::start()?;
        crate::ended::start()?;
        std::thread::Builder::new().name("stillpoint-ctl".into()).spawn(move || {
            while restored && RUNNING.load(Acquire) == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            link.serve(&tx, rx);
        })?;
    } else if let Some((dir, every)) = alone() {
        std::thread::Builder::new().name("stillpoint-ctl".into()).spawn(move || {
            while restored && RUNNING.load(Acquire) == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            loop {
                std::thread::sleep(every);
                if let Err(e) = one(&dir, &streams) {
                    log(&format!("no checkpoint: {e}"));
                }
            }
        })?;
    }
    Ok(())
}

pub(crate) fn log(text: &str) {
    let line = format!("stillpoint[rank {}] {text}\n", half().rank.load(Relaxed));
    let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
}

fn one(dir: &Path, streams: &Streams) -> Result<(), String> {
    if upper().threads[0].fs.load(Acquire) == 0 {
        return Err("the program has not begun".into());
    }
    let reasons = gather::reasons(streams);
    if !reasons.is_empty() {
        return Err(reasons.join("; "));
    }
    let now = monotonic_ns();
    let (path, part) = (dir.join("rank.img"), dir.join("rank.img.partial"));
    let _ = std::fs::remove_file(&part);
    pause::stop(now + 10_000_000_000)?;
    let connected = |f: &Fd| matches!(&f.kind, FdKind::Tcp(t) if matches!(t.phase, Phase::Connected { .. }));
    let alone = |meta: Meta| match meta.fds.iter().any(connected) {
        false => Ok(meta),
        true => Err("there are TCP connections, and no node agent".to_owned()),
    };
    let taken = gather::describe(streams).map_err(|r| r.join("; ")).and_then(alone).and_then(|meta| {
        let order = write::Order {
            path: &part,
            seal: Seal { ckpt: CkptId(now), rank: Rank(0), seed: now },
            size: 1,
            incarnation: Incarnation(0),
        };
        write::snapshot(&order, &meta, false)
    });
    pause::resume();
    taken?.finish()?;
    std::fs::rename(&part, &path).map_err(|e| format!("cannot put {} in place: {e}", path.display()))
}
