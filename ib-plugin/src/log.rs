//! The logs of all queues, and what a completion means to the application.
//!
//! What a reader would get wrong: a completion is found by its token, not by the number of its queue pair; but for one of a shared
//! receive queue, whose token does not say by which queue pair the message has come.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize};

use rdma_sys::{ibv_sge, ibv_wc, ibv_wc_status};

use crate::lock::Lock;
use crate::patience::Oldest;
pub(crate) use crate::requests::{Receives, Sends};
use crate::ring::{Kind, Token};
use crate::{address, known, window};

/// The logs of a queue pair, or of a shared receive queue.
pub(crate) struct Queue {
    /// What the application knows the queue pair by.
    pub(crate) qp_num: AtomicU32,
    pub(crate) sends: Lock<Option<Sends>>,
    pub(crate) receives: Lock<Option<Receives>>,
    /// Messages of the other end that have taken a receive.
    pub(crate) received: AtomicU64,
    /// It has begun anew, or another one had its number before: what the other end has counted may be of then.
    pub(crate) anew: AtomicBool,
    /// A request has failed: no other one will succeed.
    pub(crate) broken: AtomicBool,
    pub(crate) datagram: AtomicBool,
    /// [`crate::device::number`].
    pub(crate) device: AtomicU32,
    /// The request that has been the oldest for a while ([`crate::patience`]); and that it was given up.
    pub(crate) oldest: Lock<Option<Oldest>>,
    pub(crate) gave_up: AtomicBool,
    /// Numbers that no request of this place has had: completions of one that is gone may still lie in a queue.
    pub(crate) next_send: AtomicU64,
    pub(crate) next_receive: AtomicU64,
}

impl Queue {
    fn new() -> Queue {
        Queue {
            qp_num: AtomicU32::new(0),
            sends: Lock::new(None),
            receives: Lock::new(None),
            received: AtomicU64::new(0),
            anew: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            datagram: AtomicBool::new(false),
            device: AtomicU32::new(0),
            oldest: Lock::new(None),
            gave_up: AtomicBool::new(false),
            next_send: AtomicU64::new(0),
            next_receive: AtomicU64::new(0),
        }
    }

    /// The application wants a completion of each send, whatever it says there.
    pub(crate) fn signals_all(&self) -> bool {
        self.sends.with(|s| s.as_ref().is_some_and(Sends::signals_all))
    }

    /// A message, of either end.
    fn has_counted(&self) -> bool {
        let done = self.sends.with(|s| s.as_ref().map_or(0, |s| s.taken().0));
        done != 0 || self.received.load(Relaxed) != 0
    }

    /// A queue pair that begins anew.
    pub(crate) fn reset(&self) {
        if self.has_counted() {
            self.anew.store(true, Relaxed);
        }
        self.sends.with(|s| s.as_mut().map(Sends::reset));
        self.receives.with(|r| r.as_mut().map(Receives::reset));
        self.received.store(0, Relaxed);
        self.broken.store(false, Relaxed);
        self.gave_up.store(false, Relaxed);
    }

    /// Where a datagram has come from, as the application knows it. `at`: the first element of what has received it.
    fn source(&self, wc: &mut ibv_wc, at: Option<ibv_sge>) {
        let well = wc.status == ibv_wc_status::IBV_WC_SUCCESS;
        if well && self.datagram.load(Relaxed) && address::changed() {
            let header = at.filter(|s| s.length >= 40);
            let header = header.map(|s| std::ptr::with_exposed_provenance_mut(s.addr as usize));
            // SAFETY: the application's buffer, which a datagram has just filled, and which the application has not got back yet.
            known::source(wc, header.map(|h| unsafe { &mut *h }));
        }
    }

    /// The outcome of a request, or of a receive.
    fn note(&self, wc: &ibv_wc, receives: bool) {
        if wc.status != ibv_wc_status::IBV_WC_SUCCESS {
            self.broken.store(true, Relaxed);
        } else if receives {
            self.received.fetch_add(1, Relaxed);
        }
    }
}

/// Places of queue pairs by their device and number below: a completion of a shared receive names no other.
static NUMBERS: Lock<BTreeMap<(u32, u32), u32>> = Lock::new(BTreeMap::new());

/// A queue pair has this number below.
pub(crate) fn number(device: u32, number: u32, place: u32) {
    NUMBERS.with(|all| _ = all.insert((device, number), place));
}

/// The one at this place has it no more.
pub(crate) fn forget(device: u32, number: u32, place: u32) {
    NUMBERS.with(|all| {
        if all.get(&(device, number)) == Some(&place) {
            all.remove(&(device, number));
        }
    });
}

/// Numbers by which the application knew queue pairs that are gone and have counted something: by device and its upper bits, a bit each.
static HAD: Lock<BTreeMap<(u32, u32), u64>> = Lock::new(BTreeMap::new());

/// Whether there was one of this number before.
pub(crate) fn had(device: u32, number: u32) -> bool {
    HAD.with(|all| all.get(&(device, number / 64)).is_some_and(|bits| bits >> (number % 64) & 1 == 1))
}

/// After a restart.
pub(crate) fn forget_numbers() {
    NUMBERS.with(BTreeMap::clear);
}

/// The number below of a queue pair that the application knows by this one, at one of these devices.
pub(crate) fn number_there(devices: &[u32], was: u32) -> Option<u32> {
    let is = |place: u32| queue(place).is_some_and(|q| q.qp_num.load(Relaxed) == was);
    NUMBERS.with(|all| {
        all.iter().find(|((d, _), place)| devices.contains(d) && is(**place)).map(|((_, n), _)| *n)
    })
}

const CHUNK: usize = 1024;
type Chunk = [AtomicPtr<Queue>; CHUNK];
/// All of them, by place: places are in tokens. A chunk stays for ever, and so does what is in it: somebody may just look there.
static CHUNKS: [AtomicPtr<Chunk>; (1 << 24) / CHUNK] =
    [const { AtomicPtr::new(std::ptr::null_mut()) }; (1 << 24) / CHUNK];
static FREE: Lock<Vec<u32>> = Lock::new(Vec::new());
static USED: AtomicUsize = AtomicUsize::new(0);

/// A new one. `None`: there are sixteen million.
pub(crate) fn enter() -> Option<(u32, &'static Queue)> {
    let place = FREE.with(Vec::pop).or_else(|| u32::try_from(USED.fetch_add(1, Relaxed)).ok())?;
    let chunk = CHUNKS.get(place as usize / CHUNK)?;
    if chunk.load(Acquire).is_null() {
        let new: Box<Chunk> = Box::new([const { AtomicPtr::new(std::ptr::null_mut()) }; CHUNK]);
        let new = Box::into_raw(new);
        if chunk.compare_exchange(std::ptr::null_mut(), new, Release, Acquire).is_err() {
            // SAFETY: made here, and nobody has it.
            drop(unsafe { Box::from_raw(new) });
        }
    }
    if let Some(queue) = queue(place) {
        return Some((place, queue));
    }
    let queue = Box::into_raw(Box::new(Queue::new()));
    // SAFETY: both live for ever.
    unsafe {
        (*chunk.load(Acquire)).get(place as usize % CHUNK)?.store(queue, Release);
        Some((place, &*queue))
    }
}

fn at(place: u32) -> Option<&'static AtomicPtr<Queue>> {
    let chunk = CHUNKS.get(place as usize / CHUNK)?.load(Acquire);
    // SAFETY: a chunk lives for ever.
    unsafe { chunk.as_ref() }?.get(place as usize % CHUNK)
}

/// The one at this place.
pub(crate) fn queue(place: u32) -> Option<&'static Queue> {
    // SAFETY: it lives for ever.
    unsafe { at(place)?.load(Acquire).as_ref() }
}

/// Its object is destroyed.
pub(crate) fn leave(place: u32) {
    let Some(q) = queue(place) else { return };
    if q.has_counted() || q.anew.load(Relaxed) {
        let (device, number) = (q.device.load(Relaxed), q.qp_num.load(Relaxed));
        HAD.with(|all| *all.entry((device, number / 64)).or_default() |= 1 << (number % 64));
    }
    if let Some(s) = q.sends.with(Option::take) {
        q.next_send.store(s.next(), Relaxed);
    }
    if let Some(r) = q.receives.with(Option::take) {
        q.next_receive.store(r.next(), Relaxed);
    }
    q.reset();
    q.anew.store(false, Relaxed);
    q.datagram.store(false, Relaxed);
    FREE.with(|f| f.push(place));
}

/// What a completion of this context is to the application, and the place of its queue pair. `None`: nothing.
pub(crate) fn translate(wc: &mut ibv_wc, context: u64) -> Option<u32> {
    let token = Token::of(wc.wr_id);
    let q = queue(token.queue)?;
    match token.kind {
        Kind::Send => {
            if wc.status == ibv_wc_status::IBV_WC_WR_FLUSH_ERR && q.gave_up.swap(false, Relaxed) {
                wc.status = ibv_wc_status::IBV_WC_RNR_RETRY_EXC_ERR;
            }
            let wants = q.sends.with(|s| s.as_mut().and_then(|s| s.complete(wc, token.number)));
            if wants.is_some() {
                wc.qp_num = q.qp_num.load(Relaxed);
                q.note(wc, false);
            }
            wants?.then_some(token.queue)
        }
        Kind::Receive => {
            let at = q.receives.with(|r| r.as_mut().and_then(|r| r.complete(wc, token.number)));
            if at.is_some() {
                wc.qp_num = q.qp_num.load(Relaxed);
                q.note(wc, true);
                q.source(wc, at);
                window::came(wc, context, q.datagram.load(Relaxed));
            }
            at.map(|_| token.queue)
        }
        Kind::Shared => {
            let at = q.receives.with(|r| r.as_mut().and_then(|r| r.complete(wc, token.number)));
            let place = NUMBERS.with(|all| all.get(&(q.device.load(Relaxed), wc.qp_num)).copied());
            if let Some(pair) = place.and_then(queue).filter(|_| at.is_some()) {
                wc.qp_num = pair.qp_num.load(Relaxed);
                pair.note(wc, true);
                pair.source(wc, at);
            }
            if at.is_some() {
                let pair = place.and_then(queue);
                window::came(wc, context, pair.is_none_or(|p| p.datagram.load(Relaxed)));
            }
            at.map(|_| place.unwrap_or(token.queue))
        }
    }
}
