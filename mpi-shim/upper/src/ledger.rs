//! All that point-to-point knows, and the one lock over it. Upper half; saved with it.
//!
//! What a reader would get wrong: without MPI_THREAD_MULTIPLE nothing is locked, and whoever holds access is inside the
//! front, so the still point finds the books whole. Objects whose last holder was a request are ended only when access
//! ends: their chapters take locks of their own, and may need this one.
#![allow(unsafe_code, reason = "a lock over a static, requests are raw pointers")]

use crate::cross::Inside;
use crate::down;
use crate::drain::Told;
use crate::handles::{self, Comm, FLAG_FREED, Head, Kind, Status};
use crate::matching::{Store, SyncId};
use crate::probe::Message;
use crate::request::{Does, Request, SUCCESS};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::ffi::c_int;
use core::sync::atomic::{AtomicU32, Ordering};
use stillpoint_abi::half::{FLAG_SETTLE, MAIL_ROOM, UNTOLD, refuse};
use stillpoint_sys::{half, upper};

const THREAD_MULTIPLE: u32 = 3;

/// Sends of one (communicator, destination, tag) since a synchronous one of it became outstanding.
#[derive(Debug, Default)]
pub(crate) struct Key {
    pub(crate) sent: u64,
    pub(crate) outstanding: u32,
}

/// All that point-to-point knows.
#[derive(Debug)]
pub(crate) struct P2p {
    pub(crate) sent: Vec<u64>,
    pub(crate) received: Vec<u64>,
    pub(crate) store: Store,
    /// Active requests and orphans, in no order.
    pub(crate) live: Vec<*mut Request>,
    pub(crate) serial: u64,
    pub(crate) orphans: u32,
    pub(crate) messages: Vec<*mut Message>,
    pub(crate) keys: BTreeMap<(u64, c_int, c_int), Key>,
    /// Acknowledgements to send.
    pub(crate) due: Vec<SyncId>,
    /// The attached buffer: address, size, in use.
    pub(crate) buffer: (usize, usize, usize),
    /// The private duplicate of MPI_COMM_SELF, and the epoch in which it was made.
    pub(crate) own: (usize, u64),
    /// Objects that nobody holds any more, to be ended when access ends.
    ended: Vec<*mut Head>,
    /// Where this rank is in a checkpoint.
    pub(crate) round: Round,
}

/// What the commands of the still point leave for each other.
#[derive(Debug)]
pub(crate) struct Round {
    /// Synchronous sends that the last COUNTS has told of for the first time.
    pub(crate) marked: Vec<*mut Request>,
    /// What the peers told, from the first DRAIN on.
    pub(crate) told: Option<Vec<(u32, Told)>>,
    /// It has been worked off.
    pub(crate) worked_off: bool,
}

struct Cell {
    word: AtomicU32,
    p2p: UnsafeCell<P2p>,
}
// SAFETY: reached only through `In`, which locks when more than one thread may be here.
unsafe impl Sync for Cell {}
static CELL: Cell = Cell { word: AtomicU32::new(0), p2p: UnsafeCell::new(P2p::new()) };

/// Access to [`P2p`] while it lives; the thread cannot be stopped meanwhile.
#[derive(Debug)]
pub(crate) struct In {
    locks: bool,
    // Ends after `Drop::drop` has given the lock back.
    _inside: Inside,
}

/// Begins a call.
#[inline(always)]
pub(crate) fn begin() -> In {
    let inside = Inside::enter();
    let locks = upper().mpi_level.load(Ordering::Relaxed) == THREAD_MULTIPLE;
    let mut i = In { locks, _inside: inside };
    i.lock();
    if half().flags.load(Ordering::Relaxed) & FLAG_SETTLE != 0
        && upper().user_operations.load(Ordering::Relaxed) != 0
    {
        i.test_collectives();
    }
    i
}

impl In {
    fn lock(&self) {
        if self.locks {
            while CELL.word.swap(1, Ordering::Acquire) != 0 {
                core::hint::spin_loop();
            }
        }
    }

    fn unlock(&self) {
        if self.locks {
            CELL.word.store(0, Ordering::Release);
        }
    }

    /// True if several threads may be inside MPI.
    pub(crate) fn locks(&self) -> bool {
        self.locks
    }

    /// Runs `f`, which may wait below, without the lock.
    #[inline(always)]
    pub(crate) fn outside<R>(&mut self, f: impl FnOnce() -> R) -> R {
        self.unlock();
        let r = f();
        self.lock();
        r
    }
}

impl Drop for In {
    #[inline(always)]
    fn drop(&mut self) {
        if self.ended.is_empty() {
            self.unlock();
        } else {
            end_all(self);
        }
    }
}

#[cold]
#[inline(never)]
fn end_all(i: &mut In) {
    let all = core::mem::take(&mut i.ended);
    i.unlock();
    for o in all {
        // SAFETY: their last holder has let go of them.
        unsafe {
            match (*o).kind {
                Kind::Comm => crate::departure::end(o.cast()),
                Kind::Datatype => crate::types::end(o.cast()),
                _ => handles::unmake(o),
            }
        }
    }
}

impl core::ops::Deref for In {
    type Target = P2p;
    fn deref(&self) -> &P2p {
        // SAFETY: one thread, or the lock is held.
        unsafe { &*CELL.p2p.get() }
    }
}

impl core::ops::DerefMut for In {
    fn deref_mut(&mut self) -> &mut P2p {
        // SAFETY: one thread, or the lock is held; `self` is borrowed alone.
        unsafe { &mut *CELL.p2p.get() }
    }
}

impl P2p {
    pub(crate) const fn new() -> P2p {
        P2p {
            sent: Vec::new(),
            received: Vec::new(),
            store: Store::new(),
            live: Vec::new(),
            serial: 0,
            orphans: 0,
            messages: Vec::new(),
            keys: BTreeMap::new(),
            due: Vec::new(),
            buffer: (0, 0, 0),
            own: (0, 0),
            ended: Vec::new(),
            round: Round { marked: Vec::new(), told: None, worked_off: false },
        }
    }

    pub(crate) fn count(list: &mut Vec<u64>, world: u32) {
        let w = world as usize;
        if w >= 1 << 31 {
            return;
        }
        if list.len() <= w {
            list.resize(w + 1, 0);
        }
        list[w] += 1;
    }

    /// A message to `dest` was started.
    pub(crate) fn note_sent(&mut self, comm: &Comm, dest: c_int, tag: c_int) {
        if let Some(w) = comm.peer_world(dest) {
            Self::count(&mut self.sent, w);
            if !self.keys.is_empty()
                && let Some(k) = self.keys.get_mut(&(comm.gid, dest, tag))
            {
                k.sent += 1;
            }
        }
    }

    /// A message from `source` came home.
    pub(crate) fn note_received(&mut self, comm: &Comm, source: c_int) {
        if let Some(w) = comm.peer_world(source) {
            Self::count(&mut self.received, w);
        }
    }

    /// A synchronous send becomes outstanding; called after [`P2p::note_sent`].
    pub(crate) fn note_sync(&mut self, r: &mut Request, gid: u64) {
        let k = self.keys.entry((gid, r.peer, r.tag)).or_default();
        k.outstanding += 1;
        r.position = k.sent;
    }

    pub(crate) fn forget_sync(&mut self, gid: u64, r: &Request) {
        if let Some(k) = self.keys.get_mut(&(gid, r.peer, r.tag)) {
            k.outstanding -= 1;
            if k.outstanding == 0 {
                self.keys.remove(&(gid, r.peer, r.tag));
            }
        }
    }

    /// `r` is active from now on: the drain finds it.
    pub(crate) fn enlist(&mut self, r: *mut Request) {
        self.serial += 1;
        // SAFETY: the caller's live request.
        unsafe {
            (*r).serial = self.serial;
            (*r).at = self.live.len();
            (*r).active = true;
            (*r).done = false;
            for held in [(*r).comm.cast::<Head>(), (*r).datatype.cast::<Head>()] {
                if !held.is_null() {
                    handles::retain(held);
                }
            }
        }
        self.live.push(r);
    }

    pub(crate) fn strike(&mut self, r: *mut Request) {
        // SAFETY: live requests only are in the list.
        unsafe {
            let at = (*r).at;
            if self.live.get(at) == Some(&r) {
                self.live.swap_remove(at);
                if let Some(&moved) = self.live.get(at) {
                    (*moved).at = at;
                }
                (*r).at = usize::MAX;
                self.let_go((*r).comm.cast());
                self.let_go((*r).datatype.cast());
            }
        }
    }

    /// One holder of a communicator or datatype less.
    ///
    /// # Safety
    /// `o` is null or held by the caller.
    pub(crate) unsafe fn let_go(&mut self, o: *mut Head) {
        // SAFETY: the caller's promise.
        if !o.is_null() && unsafe { handles::release(o) } {
            self.ended.push(o);
        }
    }

    /// Reads the acknowledgements that have come.
    pub(crate) fn read_mail(&mut self) {
        let u = upper();
        let mut out = u.mail_out.load(Ordering::Relaxed);
        while out != u.mail_in.load(Ordering::Acquire) {
            let id = u.mail[out as usize % MAIL_ROOM].load(Ordering::Relaxed);
            out = out.wrapping_add(1);
            u.mail_out.store(out, Ordering::Release);
            self.letter(id);
        }
    }

    /// Books the completion of `r` below.
    ///
    /// # Safety
    /// `r` is live and active.
    pub(crate) unsafe fn complete(&mut self, r: *mut Request, status: Status, code: c_int) {
        // SAFETY: the caller's promise; the objects that a request names are held by it.
        unsafe {
            if let Some(d) = (*r).arriving.take() {
                // Counted by the drain that matched it; its bytes are all here now.
                (*r).head.set_real(0);
                let ty = handles::real((*r).datatype);
                ((*r).status, (*r).code) = if code == SUCCESS {
                    crate::delivery::deliver(self, &d, (*r).buf, (*r).count, ty)
                } else {
                    (status, code)
                };
                (*r).done = true;
                return;
            }
            if (*r).completed_below(status, code) {
                self.note_received(&*(*r).comm, status.source);
            }
            if (*r).does == Does::Ssend && !(*r).unacknowledged {
                self.forget_sync((*(*r).comm).gid, &*r);
            }
            if let Some(then) = (*r).then.take() {
                then();
            }
        }
    }

    /// One letter: an acknowledgement, or the word that a rank was never told of this rank's synchronous sends.
    pub(crate) fn letter(&mut self, letter: u64) {
        if letter & UNTOLD == 0 {
            self.acknowledge(letter);
        } else {
            self.untold((letter & !UNTOLD) as u32);
        }
    }

    /// Rank `world` did not hear of the exchange in which a checkpoint was cut off: what the library says of the sends to it
    /// counts again.
    fn untold(&mut self, world: u32) {
        for i in 0..self.live.len() {
            let r = self.live[i];
            // SAFETY: live requests only are in the list, and they hold their communicators.
            unsafe {
                if !(*r).doubtful || (*(*r).comm).peer_world((*r).peer) != Some(world) {
                    continue;
                }
                (*r).acknowledged();
                if (*r).done {
                    self.forget_sync((*(*r).comm).gid, &*r);
                }
            }
        }
    }

    /// The acknowledgement of the synchronous send `id` has come.
    pub(crate) fn acknowledge(&mut self, id: u64) {
        let Some(&r) = self.live.iter().find(|&&r| {
            // SAFETY: live requests only are in the list.
            unsafe { (*r).serial == id && (*r).unacknowledged }
        }) else {
            return;
        };
        // SAFETY: as above.
        unsafe {
            (*r).acknowledged();
            if (*r).done {
                self.forget_sync((*(*r).comm).gid, &*r);
            }
        }
    }

    /// Looks below, once, whether `r` is complete.
    ///
    /// # Safety
    /// `r` is live.
    pub(crate) unsafe fn test(&mut self, r: *mut Request) -> bool {
        // SAFETY: the caller's promise.
        unsafe {
            let mut real = (*r).head.real();
            if (*r).done || real == 0 {
                if (*r).unacknowledged {
                    self.read_mail();
                }
                return (*r).done;
            }
            let mut flag = 0;
            let mut status = Status::EMPTY;
            let code = down!(MPI_Test(q: *mut usize = &raw mut real, f: *mut c_int = &raw mut flag,
                                      s: *mut Status = &raw mut status) -> c_int);
            if flag != 0 || code != SUCCESS {
                self.complete(r, status, code);
            }
            (*r).done
        }
    }

    /// Looks below whether non-blocking collectives are complete. Those with an operation of the application must be so
    /// before threads stop, and the application may be busy with something else.
    #[cold]
    fn test_collectives(&mut self) {
        let mut i = 0;
        while let Some(&r) = self.live.get(i) {
            // SAFETY: live requests only are in the list.
            unsafe {
                if (*r).does == Does::Collective && !(*r).waited {
                    self.test(r);
                }
            }
            i += 1;
        }
    }

    /// Ends a request object.
    ///
    /// # Safety
    /// `r` came from [`handles::make`] and is not active.
    pub(crate) unsafe fn end(&mut self, r: *mut Request) {
        self.strike(r);
        // SAFETY: the caller's promise.
        unsafe {
            // The orphan that sends, not the request that the application knows.
            if (*r).does == Does::Bsend && (*r).orphan && !(*r).persistent {
                self.buffer.2 =
                    self.buffer.2.saturating_sub((*r).front.len() + crate::buffered::BSEND_OVERHEAD);
            }
            if (*r).persistent {
                let c = (*r).comm;
                (*c).persistent -= 1;
                if (*c).persistent == 0 && (*c).inter && (*c).head.has(FLAG_FREED) {
                    crate::front::refused(refuse::FREED).fetch_sub(1, Ordering::Relaxed);
                }
                self.let_go((*r).comm.cast());
                self.let_go((*r).datatype.cast());
            }
            handles::unmake(r);
        }
    }

    /// Nobody waits for `r` any more: it goes when it is complete.
    ///
    /// # Safety
    /// `r` is live and active, and no orphan yet.
    pub(crate) unsafe fn orphan(&mut self, r: *mut Request) {
        // SAFETY: the caller's promise.
        unsafe { (*r).orphan = true };
        self.orphans += 1;
        if self.orphans >= 16 {
            self.sweep();
        }
    }

    /// Ends the orphans that are done.
    pub(crate) fn sweep(&mut self) {
        let mut i = 0;
        while let Some(&r) = self.live.get(i) {
            // SAFETY: live requests only are in the list.
            unsafe {
                if (*r).orphan && !(*r).waited && self.test(r) {
                    self.orphans -= 1;
                    self.end(r);
                } else {
                    i += 1;
                }
            }
        }
    }
}
