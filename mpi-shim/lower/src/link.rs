//! The rank's part in checkpoints: its state machine, driven by what the line brings and what happens here. *Lower half*,
//! control thread; all threads have every signal blocked.
//!
//! The line is kept in [`crate::line`], the clocks are read in [`crate::clocks`]. What a reader would get wrong: when
//! the line breaks, the job runs on, and this rank says hello to another agent. What must outlive the line, mail and the word
//! on an exchange that was cut off, is the [`Client`]'s.
#![allow(unsafe_code, reason = "orders memory, ends the process")]

use crate::clocks::{self, Settle};
use crate::line::{self, Line};
use crate::plugins::{self, Parts, Word};
use crate::still;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Duration;
use stillpoint_abi::half::{self as abi, FLAG_SETTLE, FLAG_STOP, UNTOLD, still as command};
use stillpoint_abi::ids::{CkptId, Incarnation, Rank};
use stillpoint_abi::stage::Stage;
use stillpoint_capture::gather::{self, Streams};
use stillpoint_capture::pause;
use stillpoint_capture::write::{self, Snapshot};
use stillpoint_coord::client::{Client, ClientAction, Local};
use stillpoint_coord::message::{FromRank, ToRank};
use stillpoint_image::Seal;
use stillpoint_sys::raw::{monotonic_ns, nr};
use stillpoint_sys::{half, sys, upper};

#[derive(Debug)]
pub(crate) enum Event {
    /// An agent is there, and does not know this rank yet.
    Up(Line),
    Message(ToRank),
    Broken,
    /// None is to be had.
    NoAgent(std::io::Error),
    Local(Local),
}

/// What the control thread knows of this start.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) run: PathBuf,
    /// Where this node's agent listens.
    pub(crate) local: PathBuf,
    pub(crate) incarnation: u32,
    pub(crate) restored: bool,
    pub(crate) streams: Streams,
}

/// What the control thread remembers between events.
#[derive(Debug, Default)]
struct Work {
    left: crate::mail::Left,
    /// Requests of the application that no agent could be told yet.
    asked: Vec<u64>,
    /// The plugins, from COUNTS until threads run on or are frozen.
    parts: Option<Parts>,
    /// The first round was handed on.
    drains: bool,
    settle: Settle,
    /// The frozen child of the last snapshot.
    frozen: Option<i32>,
}

/// Ends the process without a word: not by SIGABRT, for which Open MPI prints where the process stood and the kernel may
/// write a core file, and not by exit, for which handlers of the application would run.
fn end_at_once() -> ! {
    loop {
        // SAFETY: SIGKILL to ourselves.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    }
}

impl Link {
    /// The control thread's life.
    pub(crate) fn serve(self, tx: &Sender<Event>, rx: Receiver<Event>) {
        // SAFETY: MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED (16): no memory is touched.
        unsafe { sys!(nr::MEMBARRIER, 16, 0, 0) };
        let mut work = Work::default();
        let mut client = Client::new(Rank(half().rank.load(Relaxed)), monotonic_ns());
        let (run, local, to) = (self.run.clone(), self.local.clone(), tx.clone());
        let kept = std::thread::Builder::new().name("stillpoint-line".into()).stack_size(512 << 10);
        let over = match kept.spawn(move || line::keep(&run, &local, &to)) {
            Ok(_) => self.turn(&mut client, &mut work, &rx, tx),
            Err(e) => Some(e),
        };
        line::close(false);
        if let Some(e) = over {
            let run = self.run.display();
            crate::control::log(&format!("no node agent at {run}: {e}; no checkpoints are taken"));
        }
        if self.is_rebuilding() && !line::is_leaving() {
            // The other ranks would wait for ever, and this one for them: the launcher is to see that the start has failed.
            crate::control::log("the job cannot be restarted without a node agent");
            end_at_once();
        }
        // First nobody can ask any more, then who has asked is told.
        drop(rx);
        crate::mail::closed();
    }

    /// From an image, and not told yet that all the others are there.
    fn is_rebuilding(&self) -> bool {
        self.restored && !crate::control::is_rebuilt()
    }

    /// One event after the other, until no line is to be expected any more; then why, if it is not this rank's own doing.
    fn turn(
        &self,
        client: &mut Client,
        work: &mut Work,
        rx: &Receiver<Event>,
        tx: &Sender<Event>,
    ) -> Option<std::io::Error> {
        loop {
            let settles = client.stage() == Stage::Settle;
            let busy = settles || work.drains || !work.left.flush();
            // While settling, the clocks are looked at again every millisecond; a drain goes on in between.
            let event = if busy {
                rx.recv_timeout(Duration::from_millis(1))
            } else {
                rx.recv().map_err(|_| RecvTimeoutError::Disconnected)
            };
            let actions = match event {
                Ok(Event::Up(line)) => {
                    self.introduce(client, work, line, tx);
                    continue;
                }
                Ok(Event::Message(m)) => client.on_message(m),
                Ok(Event::Local(l)) => client.on_local(l),
                Ok(Event::Broken) => {
                    self.part(client, work, tx);
                    if line::is_denied() || line::is_leaving() {
                        return None;
                    }
                    continue;
                }
                Ok(Event::NoAgent(e)) => return Some(e),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) if settles => {
                    work.settle.aim();
                    client.on_local(work.settle.look())
                }
                Err(RecvTimeoutError::Timeout) => drain(work).map_or_else(Vec::new, |l| client.on_local(l)),
            };
            self.perform(client, work, actions, tx);
        }
    }

    /// Says hello, then what a former agent may not have heard or handed on.
    fn introduce(&self, client: &mut Client, work: &mut Work, line: Line, tx: &Sender<Event>) {
        let restored = self.is_rebuilding();
        let mut now: VecDeque<ClientAction> = client
            .on_local(Local::Connected {
                size: half().size.load(Relaxed),
                pid: half().pid.load(Relaxed).unsigned_abs(),
                incarnation: self.incarnation,
                restored,
            })
            .into();
        if let Some(ClientAction::Send(hello)) = now.pop_front() {
            line::open(line, hello);
        }
        for id in std::mem::take(&mut work.asked) {
            now.extend(client.on_local(Local::Request { id }));
        }
        self.perform(client, work, now.into(), tx);
    }

    /// The line broke: whatever was going on is over, and the job runs on.
    fn part(&self, client: &mut Client, work: &mut Work, tx: &Sender<Event>) {
        line::close(!line::is_denied());
        let over = client.on_local(Local::Broken);
        self.perform(client, work, over, tx);
        crate::mail::closed();
        work.asked.clear();
    }

    fn perform(&self, client: &mut Client, work: &mut Work, actions: Vec<ClientAction>, tx: &Sender<Event>) {
        let mut queue: VecDeque<ClientAction> = actions.into();
        while let Some(a) = queue.pop_front() {
            let local = match a {
                ClientAction::Send(m) => {
                    // 0 is asked again by the client.
                    let asked = if let FromRank::Request { id } = &m { Some(*id) } else { None };
                    match (line::send(m), asked) {
                        (true, Some(0)) => crate::warn::passed_on(),
                        (false, Some(id)) if id != 0 => work.asked.push(id),
                        _ => {}
                    }
                    None
                }
                ClientAction::ReportReasons { .. } => {
                    // First: they may put away what could not be saved.
                    let mut r = Vec::from_iter(crate::callbacks::before());
                    crate::fds::prune();
                    r.extend(gather::reasons(&self.streams));
                    r.extend(plugins::refusals());
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
                    Ok(()) => match plugins::refusals().into_iter().next() {
                        None => Local::Stopped,
                        Some(r) => Local::DrainFailed(r),
                    },
                    Err(e) => Local::DrainFailed(e),
                }),
                ClientAction::Drain { round, heard } => {
                    work.parts.iter_mut().for_each(|p| p.hear(round, &heard));
                    work.drains = true;
                    drain(work)
                }
                ClientAction::Rebuild { round, heard } => {
                    crate::control::heard(round, heard);
                    None
                }
                ClientAction::Snapshot { ckpt, path, direct, seed } => {
                    let parts = work.parts.take();
                    work.drains = false;
                    work.left.hand_over();
                    let order = Image { ckpt, path, direct, seed };
                    let (frozen, local) = self.snapshot(&order, parts.as_ref(), tx);
                    work.frozen = frozen;
                    Some(local)
                }
                ClientAction::Go => {
                    crate::control::all_rebuilt();
                    None
                }
                ClientAction::Resume => {
                    run_on(work, Some(command::GOES_ON));
                    None
                }
                ClientAction::Abort { at, cut, .. } => {
                    // Threads stand still between the two.
                    let stood = matches!(at, Stage::Stop | Stage::Drain | Stage::Snapshot);
                    run_on(work, stood.then_some(if cut { command::CUT_OFF } else { command::GIVEN_UP }));
                    // It would write on for nobody, and hold memory and the disk meanwhile.
                    work.frozen.take().into_iter().for_each(write::end_frozen);
                    None
                }
                ClientAction::Untold { ranks, .. } => {
                    work.left.put(ranks.into_iter().map(|r| UNTOLD | u64::from(r)));
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
                    line::goodbye(abi::goodbye::EXIT, 0);
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
                    // Whom a cut exchange did not reach must be known upstairs before the next one is prepared.
                    work.left.hand_over();
                    queue.extend(client.on_local(counts(work, &self.streams)));
                }
            }
        }
    }

    /// The frozen child, if one writes, and what there is to say at once.
    fn snapshot(&self, image: &Image, parts: Option<&Parts>, tx: &Sender<Event>) -> (Option<i32>, Local) {
        let Image { ckpt, ref path, direct, seed } = *image;
        let fail = |reason: String| (None, Local::WriteFailed { ckpt, reason });
        let drained = |mut meta| {
            let parts = parts.ok_or_else(|| vec!["nothing was drained".to_owned()])?;
            parts.settle(&mut meta).map(|()| meta).map_err(|e| vec![e])
        };
        let meta = match gather::describe(&self.streams).and_then(drained) {
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
        let frozen = match &taken {
            Snapshot::Child { pid, .. } => Some(*pid),
            Snapshot::Done(_) => None,
        };
        let (tx, part) = (tx.clone(), PathBuf::from(path));
        // The report is awaited beside this thread, which must go on to resume the application.
        let finish = move |taken: Snapshot| {
            let l = match taken.finish() {
                Ok(w) => Local::Written { ckpt, bytes: w.bytes, digest: w.digest, file_len: w.file_len },
                Err(reason) => {
                    // What there is of it is in nobody's way.
                    let _ = std::fs::remove_file(part);
                    Local::WriteFailed { ckpt, reason }
                }
            };
            let _ = tx.send(Event::Local(l));
        };
        match std::thread::Builder::new().name("stillpoint-out".into()).spawn(move || finish(taken)) {
            Ok(_) => (frozen, Local::Snapped { bytes, direct: frozen.is_none() }),
            Err(e) => fail(format!("cannot wait for the image: {e}")),
        }
    }
}

/// What the agent wants to have written.
struct Image {
    ckpt: u64,
    path: String,
    direct: bool,
    seed: u64,
}

/// What the others must know before the drain. Without a plugin there is nothing to tell, and it is a barrier all the same.
fn counts(work: &mut Work, streams: &Streams) -> Local {
    match Parts::count(streams) {
        Ok((parts, said)) => {
            (work.parts, work.drains) = (Some(parts), false);
            Local::Contribute(said)
        }
        Err(e) => Local::DrainFailed(e),
    }
}

/// One short piece of the drain. It goes on after this rank is done: the others may still need its progress.
fn drain(work: &mut Work) -> Option<Local> {
    match work.parts.as_mut().filter(|_| work.drains)?.drain() {
        Ok(Some(Word::Says(said))) => Some(Local::Contribute(said)),
        Ok(Some(Word::Done)) => Some(Local::Drained),
        Ok(None) => None,
        Err(e) => {
            work.drains = false;
            Some(Local::DrainFailed(e))
        }
    }
}

/// Lets the threads run on, after the plugins have been told how the checkpoint went if they stand still.
fn run_on(work: &mut Work, outcome: Option<u8>) {
    (work.parts, work.drains) = (None, false);
    if let Some(o) = outcome
        && half().flags.load(Acquire) & FLAG_STOP != 0
    {
        let tell = |at, cmd, input: &[u8]| Ok(still::command(at, cmd, input, 0, still::soon(10_000))?.0);
        plugins::resume(o, tell).iter().for_each(|e| crate::control::log(e));
    }
    half().flags.fetch_and(!FLAG_SETTLE, SeqCst);
    clocks::wake_held();
    pause::resume();
    crate::callbacks::behind(false);
}
