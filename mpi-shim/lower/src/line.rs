//! The line to the node agent: connects, again and again if need be, writes what it is given and reads what comes. *Lower
//! half*, two threads with every signal blocked and a table of descriptors of their own, so that no number of the
//! application's is ever taken; [`goodbye`] on the lower thread pointer of a thread that ends the process.
//!
//! ```text
//!  [line: connect ─▶ Up(sender) ─▶ write … until it fails or the sender is dropped] ─▶ connect …
//!                      │                 ▲
//!                      ▼                 │ OPEN: whoever sends
//!  [reader] ─▶ Message … Broken ─▶ the control thread ([`crate::link`]), which says hello before it opens the line
//! ```
//!
//! What a reader would get wrong: a line that breaks is not the end. Who ends the process meanwhile waits a little for the
//! next line, since the next agent must not take a result for a loss.

use crate::agent;
use crate::link::Event;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant};
use stillpoint_capture::gather;
use stillpoint_coord::message::{self, FromAgent, FromRank, Leaving, ToAgent, ToRank};

/// What is to be written, and who waits for it.
type Letter = (FromRank, Option<SyncSender<()>>);

/// The sending end of one line.
#[derive(Debug)]
pub(crate) struct Line(Sender<Letter>);

impl Line {
    fn send(&self, message: FromRank) {
        // A line that has broken has dropped its receiver; the reader reports the end.
        let _ = self.0.send((message, None));
    }
}

/// Where the line stands, for those who send.
#[derive(Debug)]
enum State {
    /// No line yet, or none any more.
    None,
    /// The rank is known at the other end.
    Open(Line),
    /// Another is being made.
    Between,
}
static STATE: Mutex<State> = Mutex::new(State::None);

/// 1 once a thread has said goodbye for the whole process: nothing is sent after that.
static LEFT: AtomicU32 = AtomicU32::new(0);
/// 1 once no agent may be started any more.
static LEAVING: AtomicU32 = AtomicU32::new(0);
/// 1 once the agent has refused this process.
static DENIED: AtomicU32 = AtomicU32::new(0);

/// How long the end of a process waits for the next line.
const PATIENCE: Duration = Duration::from_secs(5);

/// The process is about to end or to become another.
pub(crate) fn is_leaving() -> bool {
    LEAVING.load(SeqCst) != 0
}

/// The agent has refused this process.
pub(crate) fn is_denied() -> bool {
    DENIED.load(SeqCst) != 0
}

/// Says hello; from then on others may send.
pub(crate) fn open(line: Line, hello: FromRank) {
    if let Ok(mut state) = STATE.lock()
        && LEFT.load(SeqCst) == 0
    {
        line.send(hello);
        *state = State::Open(line);
    }
}

/// The line is broken; `another` will be made.
pub(crate) fn close(another: bool) {
    if let Ok(mut state) = STATE.lock() {
        *state = if another { State::Between } else { State::None };
    }
}

/// Sends, if there is a line. False: there is none.
pub(crate) fn send(message: FromRank) -> bool {
    match STATE.lock().as_deref() {
        Ok(State::Open(line)) if LEFT.load(SeqCst) == 0 => {
            line.send(message);
            true
        }
        _ => false,
    }
}

/// Called on the lower thread pointer of a thread that ends the process: tells the agent, in order, before it happens.
pub(crate) extern "C" fn goodbye(kind: u32, status: i32) {
    let leaving = Leaving::from_kind(kind, status);
    let last = matches!(leaving, Leaving::Exit(_) | Leaving::Exec | Leaving::Ended(_));
    let until = Instant::now() + PATIENCE;
    while !said(leaving, last) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(2));
    }
    if last {
        let _starting = agent::STARTING.lock();
        LEAVING.store(1, SeqCst);
    }
}

/// Says it once. False: another line is being made.
fn said(leaving: Leaving, last: bool) -> bool {
    // Held meanwhile, so that nothing follows a last goodbye.
    let Ok(mut state) = STATE.lock() else { return true };
    let done = match &*state {
        State::None => true,
        State::Between => return false,
        State::Open(line) => {
            let (told, written) = sync_channel(1);
            line.0.send((FromRank::Goodbye(leaving), Some(told))).is_ok()
                && written.recv_timeout(PATIENCE).is_ok()
        }
    };
    if !done {
        *state = State::Between;
    } else if last {
        LEFT.store(1, SeqCst);
    }
    done
}

/// The execve that a goodbye announced has failed: the program runs on, without checkpoints.
pub(crate) fn stayed() {
    if let Ok(mut state) = STATE.lock()
        && matches!(std::mem::replace(&mut *state, State::None), State::Open(_))
    {
        crate::control::log("execve failed after the goodbye; no more checkpoints are taken");
    }
}

/// The thread's life: one line after the other, until the agent refuses, the process ends, or none was ever to be had.
pub(crate) fn keep(run: &Path, local: &Path, to: &Sender<Event>) {
    gather::go_apart_bare();
    let mut met = false;
    let mut wait = Duration::from_millis(500);
    while !is_leaving() && !is_denied() {
        match agent::connect(run, local, met) {
            Ok(stream) => {
                met = true;
                wait = Duration::from_millis(500);
                if let Err(e) = serve(stream, to) {
                    crate::control::log(&format!("the line to the node agent: {e}"));
                }
            }
            // A run directory that is gone is no place for another agent.
            Err(e) if !met || is_gone(run) => {
                let _ = to.send(Event::NoAgent(e));
                return;
            }
            Err(_) => {
                std::thread::sleep(wait);
                wait = (wait * 2).min(Duration::from_secs(10));
            }
        }
    }
}

/// Not there any more; a file system that does not answer is something else.
fn is_gone(run: &Path) -> bool {
    run.metadata().is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
}

/// One line, until it breaks.
fn serve(stream: UnixStream, to: &Sender<Event>) -> std::io::Result<()> {
    let (line, letters) = channel();
    let reading = stream.try_clone()?;
    let inbox = to.clone();
    let reader = std::thread::Builder::new().name("stillpoint-in".into()).stack_size(256 << 10);
    let reader = reader.spawn(move || {
        gather::is_born_apart();
        read_all(reading, Line(line), &inbox);
    })?;
    write_all(&stream, &letters);
    let _ = stream.shutdown(std::net::Shutdown::Both);
    drop(letters);
    let _ = reader.join();
    Ok(())
}

fn write_all(mut stream: &UnixStream, letters: &Receiver<Letter>) {
    for (message, told) in letters {
        if message::write(&mut stream, &ToAgent::Rank(message)).is_err() {
            return;
        }
        if let Some(told) = told {
            let _ = told.send(());
        }
    }
}

fn read_all(mut from: UnixStream, line: Line, to: &Sender<Event>) {
    // The sender is the control thread's now; when it is dropped, the writer ends.
    let mut alive = to.send(Event::Up(line)).is_ok();
    while alive {
        alive = match message::read::<FromAgent>(&mut from) {
            Ok(FromAgent::Rank(m)) => {
                if matches!(m, ToRank::Denied { .. }) {
                    DENIED.store(1, SeqCst);
                }
                to.send(Event::Message(m)).is_ok()
            }
            Ok(FromAgent::Reply(_)) => true,
            Err(_) => false,
        };
    }
    let _ = to.send(Event::Broken);
}
