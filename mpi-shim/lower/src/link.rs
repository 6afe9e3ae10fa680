//! The line to the node agent: a socket read by one thread, and the rank's state machine driven by another. *Lower
//! half*; all threads have every signal blocked.
//!
//! The agent of the run directory is started by the first rank that finds none. When the line breaks, the job runs on
//! without checkpoints.
#![allow(unsafe_code, reason = "copies descriptors, orders memory")]

use crate::still;
use std::collections::BTreeMap;
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
use stillpoint_coord::message::{self, Clock, Doing, FromAgent, FromRank, Leaving, ToAgent, ToRank};
use stillpoint_image::Seal;
use stillpoint_sys::raw::{futex_wake_all, monotonic_ns, nr};
use stillpoint_sys::{half, sys, upper};

/// The socket, for the one message that a dying thread sends itself.
static LINE: OnceLock<Mutex<UnixStream>> = OnceLock::new();

/// 1 once a thread has said goodbye for the whole process: nothing is sent after that.
static LEFT: AtomicU32 = AtomicU32::new(0);

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
    /// Made before the application runs ([`socket`]).
    pub(crate) socket: std::os::fd::OwnedFd,
}

/// What the control thread remembers between events.
#[derive(Debug, Default)]
struct Work {
    left: crate::mail::Left,
    /// The drain's input, from the exchange until threads run on or are frozen; and whether the agent knows that all is home.
    drain: Option<(Vec<u8>, bool)>,
    /// Targets of this settle stage. A clock that begins later takes its own from here.
    targets: BTreeMap<u64, u64>,
    /// A thread that is held while another runs, and since when.
    beside: Option<(u64, std::time::Instant)>,
}

/// After this, a thread that is held counts more than one that runs: who computes beside it may never call MPI again.
const BESIDE: Duration = Duration::from_millis(200);

/// Takes the descriptor out of the application's numbers.
pub(crate) fn hide(fd: std::os::fd::OwnedFd) -> std::os::fd::OwnedFd {
    use std::os::fd::{AsRawFd, FromRawFd};
    // SAFETY: F_DUPFD_CLOEXEC makes a copy with a high number; our own fcntl notes it.
    let n = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 700) };
    if n < 0 {
        return fd;
    }
    crate::fds::note(n);
    // SAFETY: just made.
    unsafe { std::os::fd::OwnedFd::from_raw_fd(n) }
}

/// A copy with a high number, without a low one in between.
fn hide_copy(fd: &std::os::fd::OwnedFd) -> std::io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::{AsRawFd, FromRawFd};
    // SAFETY: as in `hide`.
    unsafe {
        let n = libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 700);
        if n < 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(std::os::fd::OwnedFd::from_raw_fd(n))
    }
}

/// The socket of the line, with a high number. Made before the application runs, which counts on getting the lowest free
/// number, and must not find one of ours there for a moment.
pub(crate) fn socket() -> std::io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: makes a descriptor, owned by nobody else.
    let s = unsafe {
        let n = libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        if n < 0 {
            return Err(std::io::Error::last_os_error());
        }
        std::os::fd::OwnedFd::from_raw_fd(n)
    };
    Ok(hide(s))
}

fn connect(socket: std::os::fd::OwnedFd, run: &Path) -> std::io::Result<UnixStream> {
    use std::os::fd::AsRawFd;
    use std::os::unix::ffi::OsStrExt;
    let at = run.join("agent.sock");
    let name = at.as_os_str().as_bytes();
    // SAFETY: plain numbers.
    let mut addr: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    addr.sun_family = libc::AF_UNIX as libc::sa_family_t;
    // The last byte stays zero.
    if name.len() >= addr.sun_path.len() {
        return Err(std::io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in addr.sun_path.iter_mut().zip(name) {
        *to = *from as libc::c_char;
    }
    let len = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    for tries in 0..500 {
        // SAFETY: reads `addr`; a socket whose connection was refused may try again (unix(7)).
        if unsafe { libc::connect(socket.as_raw_fd(), (&raw const addr).cast(), len) } == 0 {
            return Ok(UnixStream::from(socket));
        }
        if tries % 100 == 0 {
            start_agent_apart(run);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Err(std::io::Error::from_raw_os_error(libc::ECONNREFUSED))
}

/// As [`start_agent`], on a thread with a table of descriptors of its own.
fn start_agent_apart(run: &Path) {
    std::thread::scope(|s| {
        s.spawn(|| {
            gather::go_apart();
            start_agent(run);
        });
    });
}

/// Held while an agent is being started: an execve of the application must not come between that and the reaping.
static STARTING: Mutex<()> = Mutex::new(());

/// Starts an agent for this node; one that finds another at work ends at once.
///
/// By hand, as a child without an exit signal: the application may call wait(2) for any child, and must not find this one.
fn start_agent(run: &Path) {
    use std::os::fd::AsRawFd;
    use std::os::unix::ffi::OsStrExt;
    let Ok(_starting) = STARTING.lock() else { return };
    if LEFT.load(SeqCst) != 0 {
        return;
    }
    let Ok(exe) = crate::launch::part("stillpoint-agent") else { return };
    let text = |p: &Path| std::ffi::CString::new(p.as_os_str().as_bytes()).unwrap_or_default();
    let (exe, run_dir) = (text(&exe), text(run));
    let args = [exe.as_ptr(), c"--run".as_ptr(), run_dir.as_ptr()];
    let args: Vec<_> = args.into_iter().chain([std::ptr::null()]).collect();
    let envs: Vec<_> = std::env::vars_os()
        .filter_map(|(k, v)| std::ffi::CString::new([k.as_bytes(), b"=", v.as_bytes()].concat()).ok())
        .collect();
    let envs: Vec<_> = envs.iter().map(|e| e.as_ptr()).chain([std::ptr::null()]).collect();
    let open = |p: &Path| {
        use std::os::unix::fs::OpenOptionsExt;
        std::fs::OpenOptions::new().read(true).create(true).append(true).mode(0o600).open(p)
    };
    let (Ok(null), Ok(log)) = (open(Path::new("/dev/null")), open(&run.join("agent.log"))) else { return };
    let (null, log) = (null.as_raw_fd(), log.as_raw_fd());
    let none = 0u64;
    const SETSID: usize = 112;
    // SAFETY: a fork (no exit signal); the child makes raw calls only, on what was made above, and ends. The agent is its
    // child, as an execve would give it an exit signal again.
    let pid = unsafe { sys!(nr::CLONE, 0, 0) };
    if pid == 0 {
        // SAFETY: as above.
        unsafe {
            if sys!(nr::CLONE, 0, 0) == 0 {
                sys!(SETSID);
                sys!(nr::DUP2, null, 0);
                sys!(nr::DUP2, null, 1);
                sys!(nr::DUP2, log, 2);
                sys!(nr::CLOSE_RANGE, 3, u32::MAX, 0);
                sys!(nr::RT_SIGPROCMASK, 2, &raw const none, 0, 8);
                sys!(nr::EXECVE, exe.as_ptr(), args.as_ptr(), envs.as_ptr());
            }
            sys!(nr::EXIT_GROUP, 127);
        }
    }
    if pid > 0 {
        // SAFETY: reaps the child; __WCLONE because it has no exit signal.
        unsafe { libc::waitpid(pid as i32, std::ptr::null_mut(), libc::__WCLONE) };
    }
}

/// Called on the lower thread pointer of a thread that ends the process: tells the agent, in order, before it happens.
pub(crate) extern "C" fn goodbye(kind: u32, status: i32) {
    let leaving = Leaving::from_kind(kind, status);
    let _starting = STARTING.lock();
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
        // SAFETY: MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED (16): no memory is touched.
        unsafe { stillpoint_sys::sys!(stillpoint_sys::raw::nr::MEMBARRIER, 16, 0, 0) };
        let rank = half().rank.load(Relaxed);
        let mut client = Client::new(Rank(rank));
        let line = hide_copy(&self.socket);
        let stream = match line.and_then(|s| connect(s, &self.run)) {
            Ok(s) => s,
            Err(e) => {
                drop(rx);
                crate::mail::closed();
                crate::control::log(&format!(
                    "no node agent at {}: {e}; no checkpoints are taken",
                    self.run.display()
                ));
                return;
            }
        };
        if let Ok(read) = hide_copy(&self.socket) {
            let read = UnixStream::from(read);
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
        let mut work = Work::default();
        self.perform(&mut client, &mut work, now, tx);
        self.turn(&mut client, &mut work, &rx, tx);
        crate::mail::closed();
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
                    work.aim();
                    client.on_local(work.look())
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
                        && LEFT.load(SeqCst) == 0
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
                    work.targets.clear();
                    work.beside = None;
                    for c in known() {
                        c.target.store(0, SeqCst);
                    }
                    // What the last settle stage left; a thread that waits below has set its mark itself and keeps it.
                    for t in pause::threads() {
                        for old in [abi::doing::POLLING, abi::doing::INSIDE] {
                            let _ = t.doing.compare_exchange(old, abi::doing::RUNNING, SeqCst, Relaxed);
                        }
                    }
                    half().flags.fetch_or(FLAG_SETTLE, SeqCst);
                    Some(work.look())
                }
                ClientAction::SetTargets { targets } => {
                    work.targets.extend(targets);
                    work.aim();
                    half().release.fetch_add(1, SeqCst);
                    futex_wake_all(&half().release);
                    Some(work.look())
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
    half().release.fetch_add(1, SeqCst);
    futex_wake_all(&half().release);
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

/// Clocks in use.
fn known() -> impl Iterator<Item = &'static abi::Clock> {
    let n = upper().n_clocks.load(Acquire) as usize;
    upper().clocks.iter().take(n).filter(|c| c.gid.load(Acquire) != 0)
}

impl Work {
    /// The clocks for the agent.
    fn look(&mut self) -> Local {
        let (clocks, doing, held) = clocks();
        self.beside = held.map(|gid| match self.beside {
            Some((of, since)) if of == gid => (gid, since),
            _ => (gid, std::time::Instant::now()),
        });
        let doing = match self.beside {
            Some((gid, since)) if since.elapsed() > BESIDE => Doing::Held(gid),
            _ => doing,
        };
        Local::Clocks { clocks, doing }
    }

    /// Writes the targets into the clocks; a held thread looks again if one has moved.
    fn aim(&self) {
        let mut moved = false;
        for c in known() {
            if let Some(t) = self.targets.get(&c.gid.load(Relaxed)) {
                moved |= c.target.swap(*t, SeqCst) != *t;
            }
        }
        if moved {
            half().release.fetch_add(1, SeqCst);
            futex_wake_all(&half().release);
        }
    }
}

/// What the threads do, taken together: (identity, doing) of each that may send something.
fn together(threads: impl Iterator<Item = (u64, u32)>) -> (Doing, Option<u64>) {
    let (mut runs, mut held, mut inside) = (false, None, None);
    for (gid, doing) in threads {
        match doing {
            abi::doing::HELD => held = held.or(Some(gid)),
            abi::doing::INSIDE => inside = Some(gid),
            abi::doing::WAITING | abi::doing::POLLING => {}
            _ => runs = true,
        }
    }
    let doing = match (runs, held, inside) {
        (true, ..) => Doing::Running,
        // One that is held must be heard of even beside one that is inside: only that gets it released.
        (_, Some(gid), _) => Doing::Held(gid),
        (_, _, Some(gid)) => Doing::Inside(gid),
        _ => Doing::Waiting,
    };
    (doing, held)
}

/// The collective clocks as they stand: read again until two readings agree, since a communicator may be made meanwhile.
/// A membarrier first: a thread that has not seen the flag is seen here.
fn clocks() -> (Vec<Clock>, Doing, Option<u64>) {
    // SAFETY: MEMBARRIER_CMD_PRIVATE_EXPEDITED (8), or where it is not registered MEMBARRIER_CMD_GLOBAL (1): no memory is
    // touched.
    unsafe {
        if stillpoint_sys::sys!(stillpoint_sys::raw::nr::MEMBARRIER, 8, 0, 0) != 0 {
            stillpoint_sys::sys!(stillpoint_sys::raw::nr::MEMBARRIER, 1, 0, 0);
        }
    }
    let glance =
        || -> Vec<(u64, u64)> { known().map(|c| (c.gid.load(Acquire), c.count.load(Acquire))).collect() };
    let mut seen = glance();
    let mut steady = false;
    for _ in 0..8 {
        let again = glance();
        steady = again == seen;
        if steady {
            break;
        }
        seen = again;
    }
    let calls_up = upper().user_operations.load(SeqCst) != 0;
    let clocks = seen
        .iter()
        .map(|(gid, count)| {
            let of = known().find(|c| c.gid.load(Relaxed) == *gid);
            let members = of.map_or((0, 0), |c| (c.members.load(Relaxed), c.n_members.load(Relaxed)));
            let members = if members.0 == 0 {
                Vec::new()
            } else {
                let at = std::ptr::with_exposed_provenance::<u32>(members.0 as usize);
                // SAFETY: the front keeps as many ranks at this address as long as the process lives.
                unsafe { std::slice::from_raw_parts(at, members.1 as usize) }.to_vec()
            };
            // What was not read in one piece counts as inside: it cannot settle. Nor can a rank whose reductions call the
            // application.
            Clock { gid: *gid, count: count >> 1, inside: count & 1 == 1 || !steady || calls_up, members }
        })
        .collect();
    // A thread that has never been in a front (a worker of OpenMP, say) sends nothing that a peer waits for.
    let front = pause::threads().filter(|t| {
        t.lower_fs.load(Relaxed) != 0
            || matches!(t.doing.load(Acquire), abi::doing::HELD | abi::doing::INSIDE)
    });
    let (doing, held) = together(front.map(|t| {
        let gid = t.doing_gid.load(Relaxed);
        (gid, t.doing.load(Acquire))
    }));
    (clocks, doing, held)
}

#[cfg(test)]
mod tests {
    use super::*;
    use stillpoint_abi::half::doing::{HELD, INSIDE, POLLING, RUNNING, WAITING};

    #[test]
    fn a_held_thread_is_heard_of_beside_one_that_is_inside() {
        let all = |l: &[(u64, u32)]| together(l.iter().copied());
        assert_eq!(all(&[(1, HELD), (2, INSIDE), (0, WAITING)]), (Doing::Held(1), Some(1)));
        assert_eq!(all(&[(2, INSIDE), (1, HELD)]), (Doing::Held(1), Some(1)));
        assert_eq!(all(&[(1, HELD), (0, RUNNING)]), (Doing::Running, Some(1)));
        assert_eq!(all(&[(0, POLLING), (2, INSIDE)]), (Doing::Inside(2), None));
        assert_eq!(all(&[]), (Doing::Waiting, None));
    }
}
