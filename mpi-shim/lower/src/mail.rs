//! Requests of the upper half, and mail between ranks. *Lower half*: [`request`] on the lower thread pointer of any upper
//! thread (also of the leader at the still point), the rest in the control thread.
//!
//! What a reader would get wrong: nothing here waits. A thread that waited below could not be stopped, and the checkpoint
//! that it asks for would never come; so it asks, goes up, and polls.
#![allow(unsafe_code, reason = "reads the caller's records")]

use crate::link::Event;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::mpsc::Sender;
use std::sync::{Mutex, OnceLock};
use stillpoint_abi::half::{MAIL_ROOM, StillArg, request as verb, still};
use stillpoint_abi::plugin::MPI;
use stillpoint_coord::client::Local;
use stillpoint_coord::message::Outcome;
use stillpoint_sys::raw::errno;
use stillpoint_sys::upper;

static LINE: OnceLock<Mutex<Sender<Event>>> = OnceLock::new();
static NEXT: AtomicU64 = AtomicU64::new(1);
static ANSWERS: Mutex<BTreeMap<u64, Option<Outcome>>> = Mutex::new(BTreeMap::new());

/// The control thread listens.
pub(crate) fn open(to: &Sender<Event>) {
    let _ = LINE.set(Mutex::new(to.clone()));
}

/// The agent that was asked is gone: whoever waits is told so.
pub(crate) fn closed() {
    if let Ok(mut a) = ANSWERS.lock() {
        for v in a.values_mut().filter(|v| v.is_none()) {
            *v = Some(Err(vec!["the node agent is gone".into()]));
        }
    }
}

/// Tells the control thread. False: it is not there any more.
pub(crate) fn tell(l: Local) -> bool {
    LINE.get().and_then(|s| s.lock().ok()).is_some_and(|s| s.send(Event::Local(l)).is_ok())
}

/// `Half::request`.
pub(crate) extern "C" fn request(what: u32, arg: u64) -> i64 {
    match what {
        verb::CHECKPOINT => {
            let id = NEXT.fetch_add(1, Relaxed);
            if let Ok(mut a) = ANSWERS.lock() {
                a.insert(id, None);
            }
            if tell(Local::Request { id }) {
                return i64::try_from(id).unwrap_or(i64::MAX);
            }
            if let Ok(mut a) = ANSWERS.lock() {
                a.remove(&id);
            }
            errno::ENOSYS as i64
        }
        verb::POLL => {
            let Ok(mut a) = ANSWERS.lock() else { return errno::EINVAL as i64 };
            match a.get(&arg) {
                None => errno::EINVAL as i64,
                Some(None) => errno::EAGAIN as i64,
                Some(Some(_)) => {
                    let ok = a.remove(&arg).flatten().is_some_and(|r| r.is_ok());
                    if ok { 0 } else { errno::EBUSY as i64 }
                }
            }
        }
        verb::MAIL => {
            let at = std::ptr::with_exposed_provenance::<StillArg>(usize::try_from(arg).unwrap_or(0));
            // SAFETY: the front passes a StillArg whose input lives during the call.
            let bytes = unsafe { std::slice::from_raw_parts((*at).input, (*at).input_len) };
            if tell(Local::Mail(crate::still::to_items(bytes))) { 0 } else { errno::ENOSYS as i64 }
        }
        _ => errno::EINVAL as i64,
    }
}

/// The signal that asks for a checkpoint has come; nobody waits for the answer.
pub(crate) fn warned() {
    tell(Local::Request { id: 0 });
}

/// An answer to CHECKPOINT has come.
pub(crate) fn answered(id: u64, result: Outcome) {
    if let Ok(mut a) = ANSWERS.lock()
        && let Some(v) = a.get_mut(&id)
    {
        *v = Some(result);
    }
}

/// Letters that the ring had no room for, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Left(Vec<u64>);

impl Left {
    /// Takes what came from other ranks.
    pub(crate) fn add(&mut self, items: &[(u32, Vec<u8>)]) {
        for (_, body) in items {
            self.0.extend(body.chunks_exact(8).filter_map(|c| c.try_into().ok()).map(u64::from_le_bytes));
        }
        self.flush();
    }

    /// Takes letters of the lower half's own.
    pub(crate) fn put(&mut self, letters: impl Iterator<Item = u64>) {
        self.0.extend(letters);
        self.flush();
    }

    /// Puts as much into the ring as it takes. True: all of it.
    pub(crate) fn flush(&mut self) -> bool {
        let u = upper();
        let (mut end, begin) = (u.mail_in.load(Relaxed), u.mail_out.load(Acquire));
        let room = MAIL_ROOM - (end.wrapping_sub(begin) as usize).min(MAIL_ROOM);
        let n = room.min(self.0.len());
        for id in self.0.drain(..n) {
            u.mail[end as usize % MAIL_ROOM].store(id, Relaxed);
            end = end.wrapping_add(1);
        }
        u.mail_in.store(end, Release);
        self.0.is_empty()
    }

    /// Hands the rest over at the still point: what is not upstairs now would be in no image.
    pub(crate) fn hand_over(&mut self) {
        if self.flush() {
            return;
        }
        let Some(front) = crate::plugins::place(MPI) else { return };
        let bytes: Vec<u8> = self.0.iter().flat_map(|id| id.to_le_bytes()).collect();
        if let Ok((0, _)) = crate::still::command(front, still::MAIL, &bytes, 0, crate::still::soon(10_000)) {
            self.0.clear();
        }
    }
}
