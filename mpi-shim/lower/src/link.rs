//! The line to the node agent: a socket read by one thread, and the rank's state machine driven by another. *Lower
//! half*; all threads have every signal blocked.
//!
//! The line is made in [`crate::agent`], the clocks are read in [`crate::clocks`]. What a reader would get wrong: when
//! the line breaks, the job runs on without checkpoints.
#![allow(unsafe_code, reason = "orders memory, ends the process")]

use crate::clocks::{self, Settle};
use crate::{agent, still};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;
use stillpoint_abi::half::{self as abi, FLAG_SETTLE, FLAG_STOP, refuse, still as command};
use stillpoint_abi::ids::{CkptId, Incarnation, Rank};
use stillpoint_abi::stage::Stage;
use stillpoint_capture::gather::{self, Streams};
use stillpoint_capture::pause;
use stillpoint_capture::write::{self, Snapshot};
use stillpoint_coord::client::{Client, ClientAction, Local};
use stillpoint_coord::message::{self, FromAgent, FromRank, Leaving, ToAgent, ToRank};
use stillpoint_image::Seal;
use stillpoint_sys::raw::{monotonic_ns, nr};
use stillpoint_sys::{half, sys, upper};

/// The socket, for the one message that a dying thread sends itself.
static LINE: OnceLock<Mutex<UnixStream>> = OnceLock::new();

/// 1 once a thread has said goodbye for the whole process: nothing is sent after that.
static LEFT: AtomicU32 = AtomicU32::new(0);

/// Such a goodbye has been said.
pub(crate) fn has_left() -> bool {
    LEFT.load(SeqCst) != 0
}

#[derive(Debug)]
pub(crate) enum Event {
    Message(ToRank),
    Broken,
    Local(Local),
}

/// What the control thread knows of this start.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) run: PathBuf,
    pub(crate) incarnation: u32,
    pub(crate) restored: bool,
    pub(crate) streams: Streams,
    /// Made before the application runs ([`agent::socket`]).
    pub(crate) socket: std::os::fd::OwnedFd,
}

/// What the control thread remembers between events.
#[derive(Debug, Default)]
struct Work {
    left: crate::mail::Left,
    /// The drain's input, from the exchange until threads run on or are frozen; and whether the agent knows that all is home.
    drain: Option<(Vec<u8>, bool)>,
    settle: Settle,
}

/// Called on the lower thread pointer of a thread that ends the process: tells the agent, in order, before it happens.
pub(crate) extern "C" fn goodbye(kind: u32, status: i32) {
    let leaving = Leaving::from_kind(kind, status);
    let _starting = agent::STARTING.lock();
    let last = matches!(leaving, Leaving::Exit(_) | Leaving::Exec);
    if last {
        // Before the line is looked at: whoever opens it later sees this, and sends no hello.
        LEFT.store(1, SeqCst);
    }
    let Some(line) = LINE.get() else { return };
    let Ok(mut s) = line.lock() else { return };
    let _ = message::write(&mut *s, &ToAgent::Rank(FromRank::Goodbye(leaving)));
    let _ = s.flush();
}

/// Ends the process without a word: not by SIGABRT, for which Open MPI prints where the process stood and the kernel may
/// write a core file, and not by exit, for which handlers of the application would run.
fn end_at_once() -> ! {
    loop {
        // SAFETY: SIGKILL to ourselves.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    }
}

/// The execve that a goodbye announced has failed: the program runs on, without checkpoints.
pub(crate) fn stayed() {
    if let Some(Ok(s)) = LINE.get().map(Mutex::lock) {
        let _ = s.shutdown(std::net::Shutdown::Both);
        crate::control::log("execve failed after the goodbye; no more checkpoints are taken");
    }
}

impl Link {
    /// The control thread's life.
    pub(crate) fn serve(self, tx: &Sender<Event>, rx: Receiver<Event>) {
        if let Err(e) = self.listen(tx, &rx) {
            let run = self.run.display();
            crate::control::log(&format!("no node agent at {run}: {e}; no checkpoints are taken"));
        }
        if self.restored && !crate::control::is_rebuilt() && !has_left() {
            // The other ranks would wait for ever, and this one for them: the launcher is to see that the start has failed.
            crate::control::log("the node agent was lost while the job was being restarted");
            end_at_once();
        }
        // First nobody can ask any more, then who has asked is told.
        drop(rx);
        crate::mail::closed();
    }

    fn listen(&self, tx: &Sender<Event>, rx: &Receiver<Event>) -> std::io::Result<()> {
        // SAFETY: MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED (16): no memory is touched.
        unsafe { sys!(nr::MEMBARRIER, 16, 0, 0) };
        let rank = half().rank.load(Relaxed);
        let mut client = Client::new(Rank(rank));
        let stream = agent::connect(agent::hidden(&self.socket)?, &self.run)?;
        let read = UnixStream::from(agent::hidden(&self.socket)?);
        let to = tx.clone();
        std::thread::Builder::new().name("stillpoint-in".into()).spawn(move || read_all(read, &to))?;
        let _ = LINE.set(Mutex::new(stream));
        let hello = Local::Connected {
            size: half().size.load(Relaxed),
            pid: half().pid.load(Relaxed).unsigned_abs(),
            incarnation: self.incarnation,
            restored: self.restored,
        };
        let mut now = client.on_local(hello);
        if self.restored {
            now.extend(client.on_local(Local::Rebuilt));
        }
        let mut work = Work::default();
        self.perform(&mut client, &mut work, now, tx);
        self.turn(&mut client, &mut work, rx, tx);
        Ok(())
    }

    fn turn(&self, client: &mut Client, work: &mut Work, rx: &Receiver<Event>, tx: &Sender<Event>) {
        loop {
            let settles = client.stage() == Stage::Settle;
            let busy = settles || work.drain.is_some() || !work.left.flush();
            // While settling, the clocks are looked at again every millisecond; a drain goes on in between.
            let event = if busy {
                rx.recv_timeout(Duration::from_millis(1))
            } else {
                rx.recv().map_err(|_| RecvTimeoutError::Disconnected)
            };
            let actions = match event {
                Ok(Event::Message(m)) => client.on_message(m),
                Ok(Event::Local(l)) => client.on_local(l),
                Ok(Event::Broken) | Err(RecvTimeoutError::Disconnected) => {
                    // Whatever was going on is over; the job runs on.
                    let over = client.on_message(ToRank::Abort { reason: "the node agent is gone".into() });
                    self.perform(client, work, over, tx);
                    return;
                }
                Err(RecvTimeoutError::Timeout) if settles => {
                    work.settle.aim();
                    client.on_local(work.settle.look())
                }
                Err(RecvTimeoutError::Timeout) => drain(work).map_or_else(Vec::new, |l| client.on_local(l)),
            };
            self.perform(client, work, actions, tx);
        }
    }

    fn perform(&self, client: &mut Client, work: &mut Work, actions: Vec<ClientAction>, tx: &Sender<Event>) {
        let mut queue: std::collections::VecDeque<ClientAction> = actions.into();
        while let Some(a) = queue.pop_front() {
            let local = match a {
                ClientAction::Send(m) => {
                    if let Some(Ok(mut s)) = LINE.get().map(Mutex::lock)
                        && !has_left()
                    {
                        let _ = message::write(&mut *s, &ToAgent::Rank(m));
                    }
                    None
                }
                ClientAction::ReportReasons { .. } => {
                    // First: they may put away what could not be saved.
                    let mut r = Vec::from_iter(crate::callbacks::before());
                    crate::fds::prune();
                    r.extend(gather::reasons(&self.streams));
                    r.extend(refusals());
                    if upper().threads[0].fs.load(Acquire) == 0 {
                        r.push("the program has not begun".into());
                    }
                    Some(Local::Reasons(r))
                }
                ClientAction::ReportClocks => {
                    work.settle = Settle::begin();
                    // What the last settle stage left; a thread that waits below has set its mark itself and keeps it.
                    for t in pause::threads() {
                        for old in [abi::doing::POLLING, abi::doing::INSIDE] {
                            let _ = t.doing.compare_exchange(old, abi::doing::RUNNING, SeqCst, Relaxed);
                        }
                    }
                    half().flags.fetch_or(FLAG_SETTLE, SeqCst);
                    Some(work.settle.look())
                }
                ClientAction::SetTargets { targets } => {
                    work.settle.add(targets);
                    Some(work.settle.look())
                }
                ClientAction::StopThreads => Some(match pause::stop(monotonic_ns() + 10_000_000_000) {
                    Ok(()) => match refusals().into_iter().next() {
                        None => Local::Stopped,
                        Some(r) => Local::DrainFailed(r),
                    },
                    Err(e) => Local::DrainFailed(e),
                }),
                ClientAction::Drain { items, .. } => {
                    work.drain = Some((still::from_items(&items), false));
                    drain(work)
                }
                ClientAction::Snapshot { ckpt, path, direct, seed } => {
                    work.drain = None;
                    work.left.hand_over();
                    Some(self.snapshot(ckpt, &path, direct, seed, tx))
                }
                ClientAction::Go => {
                    crate::control::all_rebuilt();
                    None
                }
                ClientAction::Resume => {
                    run_on(work, Some(0));
                    None
                }
                ClientAction::Abort { at, .. } => {
                    // Threads stand still between the two.
                    let stood = matches!(at, Stage::Stop | Stage::Drain | Stage::Snapshot);
                    run_on(work, stood.then_some(1));
                    None
                }
                ClientAction::Deliver { items } => {
                    work.left.add(&items);
                    None
                }
                ClientAction::Answer { id, result } => {
                    crate::mail::answered(id, result);
                    None
                }
                ClientAction::Denied { reason } => {
                    crate::control::log(&format!("the node agent refuses this rank: {reason}"));
                    None
                }
                ClientAction::Leave => {
                    goodbye(abi::goodbye::EXIT, 0);
                    end_at_once();
                }
                ClientAction::Committed { .. } => {
                    upper().generation.fetch_add(1, SeqCst);
                    None
                }
            };
            if let Some(l) = local {
                let stopped = l == Local::Stopped;
                queue.extend(client.on_local(l));
                if stopped {
                    queue.extend(client.on_local(counts()));
                }
            }
        }
    }

    fn snapshot(&self, ckpt: u64, path: &str, direct: bool, seed: u64, tx: &Sender<Event>) -> Local {
        let fail = |reason: String| Local::WriteFailed { ckpt, reason };
        let meta = match gather::describe(&self.streams) {
            Ok(m) => m,
            Err(r) => return fail(r.join("; ")),
        };
        let order = write::Order {
            path: Path::new(path),
            seal: Seal { ckpt: CkptId(ckpt), rank: Rank(half().rank.load(Relaxed)), seed },
            size: half().size.load(Relaxed),
            incarnation: Incarnation(self.incarnation),
        };
        let taken = match write::snapshot(&order, &meta, direct) {
            Ok(t) => t,
            Err(e) => return fail(e),
        };
        let bytes = meta.regions.iter().map(|r| r.end - r.start).sum();
        let tx = tx.clone();
        // The report is awaited beside this thread, which must go on to resume the application.
        let finish = move |taken: Snapshot| {
            let l = match taken.finish() {
                Ok(w) => Local::Written { ckpt, bytes: w.bytes, digest: w.digest, file_len: w.file_len },
                Err(reason) => Local::WriteFailed { ckpt, reason },
            };
            let _ = tx.send(Event::Local(l));
        };
        match std::thread::Builder::new().name("stillpoint-out".into()).spawn(move || finish(taken)) {
            Ok(_) => Local::Snapped { bytes },
            Err(e) => fail(format!("cannot wait for the image: {e}")),
        }
    }
}

/// What the front says cannot be saved yet.
fn refusals() -> Vec<String> {
    let counted = upper().refusals.iter().zip(refuse::NAMES);
    counted
        .filter_map(|(n, name)| Some(n.load(Acquire)).filter(|n| *n > 0).map(|n| format!("{n} {name}")))
        .collect()
}

/// What the peers must know before the drain. Without MPI there is nothing to tell.
fn counts() -> Local {
    if !still::has_front() {
        return Local::Contribute(Vec::new());
    }
    match still::command(command::COUNTS, &[], still::soon(10_000)) {
        Ok((0, out)) => Local::Contribute(still::to_items(&out)),
        Ok((code, _)) => Local::DrainFailed(format!("messages cannot be counted (code {code})")),
        Err(e) => Local::DrainFailed(e),
    }
}

/// One short piece of the drain. It goes on after this rank is done: the others may still need its progress.
fn drain(work: &mut Work) -> Option<Local> {
    let (input, done) = work.drain.as_mut()?;
    if !still::has_front() {
        work.drain = None;
        return Some(Local::Drained);
    }
    let r = still::command(command::DRAIN, input, still::soon(if *done { 1 } else { 20 }));
    match r {
        Ok((0, _)) if !*done => {
            *done = true;
            Some(Local::Drained)
        }
        Ok((0 | 1, _)) => None,
        Ok((code, _)) => {
            work.drain = None;
            Some(Local::DrainFailed(format!("messages cannot be brought home (code {code})")))
        }
        Err(e) => {
            work.drain = None;
            Some(Local::DrainFailed(e))
        }
    }
}

/// Lets the threads run on, after the front has been told how the checkpoint went if they stand still.
fn run_on(work: &mut Work, outcome: Option<u8>) {
    work.drain = None;
    if let Some(o) = outcome
        && still::has_front()
        && half().flags.load(Acquire) & FLAG_STOP != 0
        && let Err(e) = still::command(command::RESUME, &[o], still::soon(10_000))
    {
        crate::control::log(&e);
    }
    half().flags.fetch_and(!FLAG_SETTLE, SeqCst);
    clocks::wake_held();
    pause::resume();
    crate::callbacks::behind(false);
}

fn read_all(mut from: UnixStream, tx: &Sender<Event>) {
    loop {
        match message::read::<FromAgent>(&mut from) {
            Ok(FromAgent::Rank(m)) => {
                if tx.send(Event::Message(m)).is_err() {
                    return;
                }
            }
            Ok(FromAgent::Reply(_)) => {}
            Err(_) => {
                let _ = tx.send(Event::Broken);
                return;
            }
        }
    }
}
