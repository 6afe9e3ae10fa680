//! The line to the node agent: a socket read by one thread, and the rank's state machine driven by another. *Lower
//! half*; all threads have every signal blocked.
//!
//! The agent of the run directory is started by the first rank that finds none. When the line breaks, the job runs on
//! without checkpoints.
#![allow(unsafe_code, reason = "copies descriptors, orders memory")]

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;
use stillpoint_abi::half::{self as abi, FLAG_SETTLE};
use stillpoint_abi::ids::{CkptId, Incarnation, Rank};
use stillpoint_abi::stage::Stage;
use stillpoint_capture::gather::{self, Streams};
use stillpoint_capture::pause;
use stillpoint_capture::write::{self, Snapshot};
use stillpoint_coord::client::{Client, ClientAction, Local};
use stillpoint_coord::message::{self, Clock, Doing, FromAgent, FromRank, Leaving, ToAgent, ToRank};
use stillpoint_image::Seal;
use stillpoint_sys::raw::{futex_wake_all, monotonic_ns};
use stillpoint_sys::{half, upper};

/// The socket, for the one message that a dying thread sends itself.
static LINE: OnceLock<Mutex<UnixStream>> = OnceLock::new();

enum Event {
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
}

/// Takes the descriptor out of the application's numbers, and marks it as the lower half's.
pub(crate) fn hide(fd: std::os::fd::OwnedFd) -> std::os::fd::OwnedFd {
    use std::os::fd::{AsRawFd, FromRawFd};
    // SAFETY: F_DUPFD_CLOEXEC makes a copy with a high number.
    let n = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 700) };
    if n < 0 {
        return fd;
    }
    let k = n.unsigned_abs() as usize;
    if let Some(w) = half().lower_fds.get(k / 64) {
        w.fetch_or(1 << (k % 64), SeqCst);
    }
    // SAFETY: just made.
    unsafe { std::os::fd::OwnedFd::from_raw_fd(n) }
}

fn connect(run: &Path) -> std::io::Result<UnixStream> {
    let at = run.join("agent.sock");
    let mut tries = 0;
    loop {
        match UnixStream::connect(&at) {
            Ok(s) => return Ok(UnixStream::from(hide(s.into()))),
            Err(e) if tries >= 500 => return Err(e),
            Err(_) => {
                if tries % 100 == 0 {
                    start_agent(run);
                }
                tries += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// Starts an agent for this node; one that finds another at work ends at once.
fn start_agent(run: &Path) {
    use std::os::unix::process::CommandExt;
    let Ok(exe) = crate::launch::part("stillpoint-agent") else { return };
    let mut c = std::process::Command::new("/usr/bin/setsid");
    c.arg("--fork").arg(exe).arg("--run").arg(run);
    c.stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    if let Ok(log) = std::fs::OpenOptions::new().create(true).append(true).open(run.join("agent.log")) {
        c.stderr(log);
    }
    c.process_group(0);
    let _ = c.status();
}

/// Called on the lower thread pointer of a thread that ends the process: tells the agent, in order, before it happens.
pub(crate) extern "C" fn goodbye(kind: u32, status: i32) {
    let Some(line) = LINE.get() else { return };
    let Ok(mut s) = line.lock() else { return };
    let m = ToAgent::Rank(FromRank::Goodbye(Leaving::from_kind(kind, status)));
    let _ = message::write(&mut *s, &m);
    let _ = s.flush();
}

impl Link {
    /// The control thread's life.
    pub(crate) fn serve(self) {
        let rank = half().rank.load(Relaxed);
        let mut client = Client::new(Rank(rank));
        let stream = match connect(&self.run) {
            Ok(s) => s,
            Err(e) => {
                crate::control::log(&format!(
                    "no node agent at {}: {e}; no checkpoints are taken",
                    self.run.display()
                ));
                return;
            }
        };
        let (tx, rx) = channel();
        if let Ok(read) = stream.try_clone() {
            let read = UnixStream::from(hide(read.into()));
            let tx = tx.clone();
            let reader =
                std::thread::Builder::new().name("stillpoint-in".into()).spawn(move || read_all(read, &tx));
            if reader.is_err() {
                return;
            }
        }
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
        self.perform(&mut client, now, &tx);
        self.turn(&mut client, &rx, &tx);
    }

    fn turn(&self, client: &mut Client, rx: &Receiver<Event>, tx: &Sender<Event>) {
        loop {
            // While settling, the clocks are looked at again every millisecond.
            let event = if client.stage() == Stage::Settle {
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
                    self.perform(client, over, tx);
                    return;
                }
                Err(RecvTimeoutError::Timeout) => client.on_local(clocks()),
            };
            self.perform(client, actions, tx);
        }
    }

    fn perform(&self, client: &mut Client, actions: Vec<ClientAction>, tx: &Sender<Event>) {
        let mut queue: std::collections::VecDeque<ClientAction> = actions.into();
        while let Some(a) = queue.pop_front() {
            let local = match a {
                ClientAction::Send(m) => {
                    if let Some(Ok(mut s)) = LINE.get().map(Mutex::lock) {
                        let _ = message::write(&mut *s, &ToAgent::Rank(m));
                    }
                    None
                }
                ClientAction::ReportReasons { .. } => {
                    let mut r = gather::reasons(&self.streams);
                    if upper().threads[0].fs.load(Acquire) == 0 {
                        r.push("the program has not begun".into());
                    }
                    Some(Local::Reasons(r))
                }
                ClientAction::ReportClocks => {
                    half().flags.fetch_or(FLAG_SETTLE, SeqCst);
                    Some(clocks())
                }
                ClientAction::SetTargets { targets } => {
                    for (gid, target) in targets {
                        if let Some(c) = upper().clocks.iter().find(|c| c.gid.load(Relaxed) == gid) {
                            c.target.store(target, SeqCst);
                        }
                    }
                    half().release.fetch_add(1, SeqCst);
                    futex_wake_all(&half().release);
                    Some(clocks())
                }
                ClientAction::StopThreads => Some(match pause::stop(monotonic_ns() + 10_000_000_000) {
                    Ok(()) => Local::Stopped,
                    Err(e) => Local::DrainFailed(e),
                }),
                ClientAction::Drain { .. } => Some(Local::Drained),
                ClientAction::Snapshot { ckpt, path, direct, seed } => {
                    Some(self.snapshot(ckpt, &path, direct, seed, tx))
                }
                ClientAction::Go => {
                    crate::control::all_rebuilt();
                    None
                }
                ClientAction::Resume | ClientAction::Abort { .. } => {
                    half().flags.fetch_and(!FLAG_SETTLE, SeqCst);
                    half().release.fetch_add(1, SeqCst);
                    futex_wake_all(&half().release);
                    pause::resume();
                    None
                }
                ClientAction::Denied { reason } => {
                    crate::control::log(&format!("the node agent refuses this rank: {reason}"));
                    None
                }
                ClientAction::Leave => {
                    goodbye(abi::goodbye::EXIT, 0);
                    std::process::abort();
                }
                ClientAction::Committed { .. }
                | ClientAction::Deliver { .. }
                | ClientAction::Answer { .. } => None,
            };
            if let Some(l) = local {
                let stopped = l == Local::Stopped;
                queue.extend(client.on_local(l));
                if stopped {
                    // Without MPI there is nothing to tell the peers.
                    queue.extend(client.on_local(Local::Contribute(Vec::new())));
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

/// The collective clocks as they stand. A membarrier first: a thread that has not seen the flag is seen here.
fn clocks() -> Local {
    // SAFETY: MEMBARRIER_CMD_GLOBAL (1): no memory is touched.
    unsafe { stillpoint_sys::sys!(stillpoint_sys::raw::nr::MEMBARRIER, 1, 0, 0) };
    let n = upper().n_clocks.load(Acquire) as usize;
    let clocks = upper()
        .clocks
        .iter()
        .take(n)
        .filter(|c| c.gid.load(Relaxed) != 0)
        .map(|c| {
            let count = c.count.load(Acquire);
            let members = c.members.load(Relaxed) as usize;
            let len = c.n_members.load(Relaxed) as usize;
            // SAFETY: the front keeps `n_members` ranks at this address as long as the clock lives.
            let members = if members == 0 {
                Vec::new()
            } else {
                unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance::<u32>(members), len) }
                    .to_vec()
            };
            Clock { gid: c.gid.load(Relaxed), count: count >> 1, inside: count & 1 == 1, members }
        })
        .collect();
    let mut doing = Doing::Waiting;
    for t in pause::threads() {
        let gid = t.doing_gid.load(Relaxed);
        match t.doing.load(Acquire) {
            abi::doing::HELD => doing = Doing::Held(gid),
            abi::doing::INSIDE => doing = Doing::Inside(gid),
            abi::doing::WAITING => {}
            _ => {
                doing = Doing::Running;
                break;
            }
        }
    }
    Local::Clocks { clocks, doing }
}
