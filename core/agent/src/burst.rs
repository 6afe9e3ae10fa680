//! Images on this node's own disk: its ranks are told to write there, and what they have written is copied to the run
//! directory in the background. Runs *next door*, in the root agent and in relays alike.
//!
//! ```text
//!  Snapshot(path in RUN/ckpt-N.partial) ─▶ [snapshot] ─▶ Snapshot(path in BASE/…/ckpt-N.partial) ─▶ rank
//!  rank ─▶ Written ─▶ [written] ─▶ Kept ─▶ coordinator           a worker copies ─▶ Copying … Copied ─▶ coordinator
//!  coordinator ─▶ Over(N) ─▶ [over]: what is being copied is not any more, the node's files are removed
//! ```
//!
//! What a reader would get wrong: a copy belongs to no connection. It goes on when its rank is gone, and ends only with the
//! checkpoint, or with this agent's role.

use crate::conn::Input;
use crate::store::chain;
use crossbeam::channel::{Receiver, Sender, unbounded};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::{Duration, Instant};
use stillpoint_abi::ids::{CkptId, Rank};
use stillpoint_coord::state::{Conn, Event, OWN};
use stillpoint_storage::commit::{image_at, image_name};
use stillpoint_storage::copy::{Said, copy};
use stillpoint_storage::node::NodeDir;
use stillpoint_storage::run::{RunDir, host};
use stillpoint_storage::{Result, StoreError};

/// Images copied at a time.
const WORKERS: u32 = 2;
/// Time between two reports on one image.
const REPORT: Duration = Duration::from_secs(1);

/// Where a rank writes, and where that is to go.
#[derive(Clone, Debug)]
struct Order {
    ckpt: CkptId,
    rank: Rank,
    here: PathBuf,
    there: PathBuf,
}

/// What a worker is to do.
enum Task {
    Copy { order: Order, said: Said, over: Arc<AtomicBool> },
    Forget(CkptId),
}

/// What the workers share.
struct Shop {
    node: NodeDir,
    /// Bytes a second for each of them.
    rate: Option<u64>,
    /// Copies that have not been reported.
    open: AtomicUsize,
    to: Sender<Input>,
}

/// The checkpoint in progress, as far as this node has to do with it.
struct Current {
    ckpt: CkptId,
    over: Arc<AtomicBool>,
    /// Where its images are written; none: straight to the run directory.
    dir: Option<PathBuf>,
}

/// The node's disk.
pub(crate) struct Burst {
    shop: Arc<Shop>,
    tasks: Sender<Task>,
    orders: BTreeMap<Conn, Order>,
    current: Option<Current>,
    /// Nobody else's agent copies from here.
    _lock: Option<OwnedFd>,
}

impl Burst {
    /// Opens the directory below `base` for a run, and removes what a former agent has left there. `local`: a directory that
    /// this agent has locked already.
    pub(crate) fn open(
        base: &Path,
        rate: Option<u64>,
        run: &RunDir,
        local: &RunDir,
        to: Sender<Input>,
    ) -> Result<Burst> {
        let node = NodeDir::open(base, run.path())?;
        let lock = if node.path() == local.path() {
            None
        } else {
            // As it would be if the directory were not the node's own.
            let taken = || StoreError::Claimed { path: node.path().into() };
            Some(RunDir::open(node.path())?.lock()?.ok_or_else(taken)?)
        };
        node.clear()?;
        let rate = rate.map(|r| (r / u64::from(WORKERS)).max(1));
        let shop = Arc::new(Shop { node, rate, open: AtomicUsize::new(0), to });
        let (tasks, queue) = unbounded();
        for _ in 0..WORKERS {
            let (shop, queue) = (Arc::clone(&shop), queue.clone());
            let worker = crate::conn::builder("copy").spawn(move || work(&shop, &queue));
            worker.map_err(|source| StoreError::Io {
                what: "start a thread for",
                path: base.into(),
                source,
            })?;
        }
        Ok(Burst { shop, tasks, orders: BTreeMap::new(), current: None, _lock: lock })
    }

    /// Where the rank of a connection is to write the image that is to go to `path`.
    pub(crate) fn snapshot(&mut self, conn: Conn, path: String) -> String {
        let there = PathBuf::from(&path);
        let Some((ckpt, rank)) = image_at(&there) else { return path };
        if self.current.as_ref().is_none_or(|c| c.ckpt != ckpt) {
            self.end();
            let made = self.shop.node.checkpoint(ckpt);
            if let Err(e) = &made {
                tracing::warn!("{}; images go straight to the run directory", chain(e));
            }
            self.current = Some(Current { ckpt, over: Arc::default(), dir: made.ok() });
        }
        let dir = self.current.as_ref().and_then(|c| c.dir.as_ref());
        let Some(here) = dir.map(|d| d.join(image_name(rank))) else { return path };
        let Some(text) = here.to_str().map(str::to_owned) else { return path };
        self.orders.insert(conn, Order { ckpt, rank: Rank(rank), here, there });
        text
    }

    /// The rank of a connection has written; true: here, and the copy is under way.
    pub(crate) fn written(&mut self, conn: Conn, ckpt: u64, digest: [u8; 16], len: u64) -> bool {
        // What is ordered is of the current one.
        let Some(current) = self.current.as_ref().filter(|c| c.ckpt.0 == ckpt) else { return false };
        let Some(order) = self.orders.remove(&conn) else { return false };
        self.shop.open.fetch_add(1, SeqCst);
        let task = Task::Copy { order, said: Said { len, digest }, over: Arc::clone(&current.over) };
        self.tasks.send(task).is_ok()
    }

    /// A connection is gone.
    pub(crate) fn closed(&mut self, conn: Conn) {
        self.orders.remove(&conn);
    }

    /// A checkpoint exists, or never will.
    pub(crate) fn over(&mut self, ckpt: CkptId) {
        if self.current.as_ref().is_some_and(|c| c.ckpt == ckpt) {
            self.end();
        }
    }

    /// The same of whatever is in progress.
    pub(crate) fn end(&mut self) {
        self.orders.clear();
        if let Some(Current { ckpt, over, .. }) = self.current.take() {
            over.store(true, SeqCst);
            let _ = self.tasks.send(Task::Forget(ckpt));
        }
    }

    /// Nothing is being copied.
    pub(crate) fn is_idle(&self) -> bool {
        self.shop.open.load(SeqCst) == 0
    }
}

impl Drop for Burst {
    fn drop(&mut self) {
        self.end();
        // The process is about to end: not left to the workers.
        let _ = self.shop.node.clear();
    }
}

fn work(shop: &Shop, queue: &Receiver<Task>) {
    for task in queue {
        match task {
            Task::Forget(ckpt) => {
                if let Err(e) = shop.node.forget(ckpt) {
                    tracing::warn!("{}", chain(&e));
                }
            }
            Task::Copy { order, said, over } => {
                let Order { ckpt, rank, here, there } = &order;
                let begun = Instant::now();
                // Where it is over already, the directory it goes to is being removed.
                let result = match over.load(SeqCst) {
                    true => Err(StoreError::Cancelled),
                    false => copy(here, there, said, &mut pace(shop, &order, &over)),
                };
                tracing::debug!("rank {rank}: {} bytes in {:?}: {result:?}", said.len, begun.elapsed());
                let result = match result {
                    // Nobody waits for it.
                    Err(StoreError::Cancelled) => None,
                    Err(e) => Some(Err(format!("{}: {}", host(), chain(&e)))),
                    Ok(()) => Some(Ok(())),
                };
                if let Some(result) = result {
                    let (ckpt, rank) = (*ckpt, *rank);
                    let _ = shop.to.send(Input::Event(Event::Copied { node: OWN, ckpt, rank, result }));
                }
                shop.open.fetch_sub(1, SeqCst);
            }
        }
    }
}

/// Reports how far one copy is, and holds it back where there is a rate.
fn pace(shop: &Shop, order: &Order, over: &AtomicBool) -> impl FnMut(u64) -> bool {
    let (ckpt, rank) = (order.ckpt, order.rank);
    let begun = Instant::now();
    let mut told = begun;
    move |done| {
        loop {
            if over.load(SeqCst) {
                return false;
            }
            if told.elapsed() >= REPORT {
                told = Instant::now();
                let _ = shop.to.send(Input::Event(Event::Copying { node: OWN, ckpt, rank, done }));
            }
            let due = shop.rate.map_or(0.0, |rate| done as f64 / rate as f64);
            let early = due - begun.elapsed().as_secs_f64();
            if early <= 0.0 {
                return true;
            }
            std::thread::sleep(Duration::from_secs_f64(early.min(0.1)));
        }
    }
}
