//! Work requests and completions: the hot path. *Upper half*, and *across the crossing*.
//!
//! What a reader would get wrong: a work request is the application's, and may lie in memory that it only reads; where something in it
//! is to be translated, a copy goes down. The bad one that the real library names is then found by its place in the list.

use std::ffi::c_int;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::{Relaxed, Release};

use rdma_sys::{ibv_context_ops, ibv_cq, ibv_qp, ibv_qp_type, ibv_recv_wr, ibv_send_wr, ibv_srq, ibv_wc};

use stillpoint_loader::switch::Front;

use crate::keys::Remote;
use crate::log::{self, Queue};
use crate::notice::Wants;
use crate::objects::{Came, Channel, Cq, Qp, Srq, real_context, real_one};
use crate::{domain, handle, keys, patience, window};

/// What verbs.h calls by the context's table.
pub(crate) fn table(ops: &mut ibv_context_ops) {
    ops.poll_cq = Some(poll_cq);
    ops.req_notify_cq = Some(req_notify_cq);
    ops.post_send = Some(post_send);
    ops.post_recv = Some(post_recv);
    ops.post_srq_recv = Some(post_srq_recv);
}

/// The real object, and the table of its context; read where the thread cannot be stopped.
macro_rules! there {
    ($of:expr, $context:expr, $name:ident) => {{
        let at = std::ptr::with_exposed_provenance_mut(real_one($of));
        let context =
            std::ptr::with_exposed_provenance::<rdma_sys::ibv_context>(real_context($context) as usize);
        ((*context).ops.$name, at)
    }};
}

/// Completions, at most so many; negative: the number of an error.
pub(crate) unsafe extern "C" fn poll_cq(cq: *mut ibv_cq, most: c_int, wc: *mut ibv_wc) -> c_int {
    let front = Front::enter();
    // SAFETY: a queue of ours, its real one, and the function that the real context has for this; the application's room.
    unsafe {
        let home = &Cq::of(cq).own;
        let room = std::slice::from_raw_parts_mut(wc, usize::try_from(most).unwrap_or(0));
        let n = home.queue.within(&front, |Came { list, notice }| {
            if home.len.load(Relaxed) != 0 {
                let n = room.len().min(list.len());
                for (to, (_, from)) in room.iter_mut().zip(list.drain(..n)) {
                    *to = from;
                }
                home.len.store(list.len(), Relaxed);
                return n as c_int;
            }
            let (Some(f), at) = there!(cq, (*cq).context, poll_cq) else { return -libc::EOPNOTSUPP };
            let context = real_context((*cq).context);
            loop {
                let n = {
                    let _down = front.down();
                    f(at, most, wc)
                };
                let Ok(came) = usize::try_from(n) else { return n };
                let mut kept = 0;
                for k in 0..came {
                    if log::translate(&mut room[k], context).is_some() {
                        room.swap(kept, k);
                        kept += 1;
                    }
                }
                if kept != 0 {
                    notice.saw();
                }
                // All were swallowed, and there may be more.
                if kept != 0 || came < room.len() || came == 0 {
                    return kept as c_int;
                }
            }
        });
        if n == 0 && home.patient.load(Relaxed) {
            patience::look(cq);
        }
        n
    }
}

/// Brings the completions that are below home.
///
/// # Safety
/// A queue of ours.
pub(crate) unsafe fn bring_home(cq: *mut ibv_cq) {
    const MANY: usize = 32;
    let front = Front::enter();
    // SAFETY: as above.
    unsafe {
        let (Some(f), at) = there!(cq, (*cq).context, poll_cq) else { return };
        let context = real_context((*cq).context);
        let home = &Cq::of(cq).own;
        // Behind those that are there, and before any that another thread asks for.
        home.queue.with(|Came { list, notice }| {
            loop {
                let mut room: Vec<ibv_wc> = Vec::with_capacity(MANY);
                let n = {
                    let _down = front.down();
                    f(at, MANY as c_int, room.as_mut_ptr())
                };
                let Ok(n) = usize::try_from(n) else { return };
                // SAFETY: so many were written.
                room.set_len(n);
                let before = list.len();
                list.extend(
                    room.into_iter().filter_map(|mut wc| Some((log::translate(&mut wc, context)?, wc))),
                );
                if list.len() != before {
                    notice.saw();
                }
                home.len.store(list.len(), Relaxed);
                if n < MANY {
                    return;
                }
            }
        });
    }
}

/// A queue pair is about to begin anew, or to end: what has completed is seen by the logs before.
///
/// # Safety
/// A queue pair of ours.
pub(crate) unsafe fn settle(qp: *mut ibv_qp) {
    // SAFETY: the caller's promise.
    unsafe {
        for cq in [(*qp).send_cq, (*qp).recv_cq].into_iter().filter(|cq| !cq.is_null()) {
            bring_home(cq);
        }
        if (*qp).qp_type == ibv_qp_type::IBV_QPT_XRC_RECV {
            for cq in domain::completions() {
                bring_home(std::ptr::with_exposed_provenance_mut(cq));
            }
        }
    }
}

/// It has: nobody polls its completions any more.
///
/// # Safety
/// A queue pair of ours.
pub(crate) unsafe fn purge(qp: *mut ibv_qp) {
    // SAFETY: the caller's promise.
    unsafe {
        for cq in [(*qp).send_cq, (*qp).recv_cq].into_iter().filter(|cq| !cq.is_null()) {
            let home = &Cq::of(cq).own;
            home.queue.with(|Came { list, .. }| {
                list.retain(|(place, _)| *place != Qp::of(qp).own.place);
                home.len.store(list.len(), Relaxed);
            });
        }
    }
}

/// The real queue is to tell of this.
///
/// # Safety
/// A queue of ours.
pub(crate) unsafe fn arm(cq: *mut ibv_cq, wants: Wants) -> c_int {
    let front = Front::enter();
    // SAFETY: the caller's promise.
    unsafe {
        let (Some(f), at) = there!(cq, (*cq).context, req_notify_cq) else { return libc::EOPNOTSUPP };
        let _down = front.down();
        f(at, c_int::from(wants == Wants::Solicited))
    }
}

/// Posts the receives of a log again, each by `post`.
pub(crate) fn receive_again(
    logs: &Queue,
    post: impl Fn(&Front, &mut ibv_recv_wr) -> c_int,
) -> Result<(), std::io::Error> {
    let front = Front::enter();
    let r = logs.receives.with(|r| r.as_mut().map_or(0, |r| r.again(|wr| post(&front, wr))));
    if r == 0 { Ok(()) } else { Err(std::io::Error::from_raw_os_error(r)) }
}

/// Posts one receive of a queue pair.
///
/// # Safety
/// A queue pair of ours.
pub(crate) unsafe fn own(qp: *mut ibv_qp, front: &Front, wr: &mut ibv_recv_wr) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        let (Some(f), at) = there!(qp, (*qp).context, post_recv) else { return libc::EOPNOTSUPP };
        let mut none = std::ptr::null_mut();
        let _down = front.down();
        f(at, wr, &raw mut none)
    }
}

/// Posts one receive of a shared queue.
///
/// # Safety
/// A queue of ours.
pub(crate) unsafe fn shared(srq: *mut ibv_srq, front: &Front, wr: &mut ibv_recv_wr) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        let (Some(f), at) = there!(srq, (*srq).context, post_srq_recv) else { return libc::EOPNOTSUPP };
        let mut none = std::ptr::null_mut();
        let _down = front.down();
        f(at, wr, &raw mut none)
    }
}

/// Posts one request of ours, as the device has it.
///
/// # Safety
/// A queue pair of ours.
pub(crate) unsafe fn one(qp: *mut ibv_qp, front: &Front, wr: &mut ibv_send_wr) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        let (Some(f), at) = there!(qp, (*qp).context, post_send) else { return libc::EOPNOTSUPP };
        let mut none = std::ptr::null_mut();
        let _down = front.down();
        f(at, wr, &raw mut none)
    }
}

/// The next completion of the real queue; how many that are.
///
/// # Safety
/// A queue of ours.
pub(crate) unsafe fn poll_below(cq: *mut ibv_cq, wc: &mut ibv_wc) -> c_int {
    let front = Front::enter();
    // SAFETY: the caller's promise.
    unsafe {
        let (Some(f), at) = there!(cq, (*cq).context, poll_cq) else { return -libc::EOPNOTSUPP };
        let _down = front.down();
        f(at, 1, wc)
    }
}

/// Puts the device's remote keys and handles for the application's. 0, or why there are none.
///
/// # Safety
/// A queue pair of ours, and a request for it.
unsafe fn for_device(qp: *mut ibv_qp, copy: &mut ibv_send_wr) -> i32 {
    // SAFETY: the caller's promise.
    unsafe {
        if keys::changed() {
            Qp::of(qp).own.remote.with(|names| {
                remote(copy, names);
                if (*qp).qp_type == ibv_qp_type::IBV_QPT_XRC_SEND {
                    let number = &mut copy.qp_type.xrc.remote_srqn;
                    *number = names.queues.get(number).copied().unwrap_or(*number);
                }
            });
        }
        window::for_device(copy, (*qp).context);
        if (*qp).qp_type == ibv_qp_type::IBV_QPT_UD {
            let (at, number) = match handle::lead(copy.wr.ud.ah, copy.wr.ud.remote_qpn) {
                Ok(there) => there,
                Err(why) => return why,
            };
            copy.wr.ud.remote_qpn = number;
            copy.wr.ud.ah = std::ptr::with_exposed_provenance_mut(at);
        }
        0
    }
}

/// Posts the sends of a log again: those that have not happened.
///
/// # Safety
/// A queue pair of ours.
pub(crate) unsafe fn send_again(qp: *mut ibv_qp) -> Result<(), std::io::Error> {
    let front = Front::enter();
    // SAFETY: the caller's promise.
    let r = unsafe {
        let (Some(f), at) = there!(qp, (*qp).context, post_send) else { return Ok(()) };
        let logs = Qp::of(qp).own.logs;
        let post = |wr: *mut ibv_send_wr| {
            if window::is_first(&*wr) {
                return window::post_first(&front, qp, &*wr);
            }
            let mut none = std::ptr::null_mut();
            let _down = front.down();
            f(at, wr, &raw mut none)
        };
        logs.sends.with(|s| s.as_mut().map_or(0, |s| s.again(|copy| for_device(qp, copy), post)))
    };
    if r == 0 { Ok(()) } else { Err(std::io::Error::from_raw_os_error(r)) }
}

/// Puts the device's remote key for the application's.
fn remote(wr: &mut ibv_send_wr, keys: &Remote) {
    use rdma_sys::ibv_wr_opcode as op;
    let there = |key: u32| keys.there(key);
    // SAFETY: the opcode says which member it is.
    unsafe {
        match wr.opcode {
            op::IBV_WR_RDMA_WRITE | op::IBV_WR_RDMA_WRITE_WITH_IMM | op::IBV_WR_RDMA_READ => {
                wr.wr.rdma.rkey = there(wr.wr.rdma.rkey);
            }
            op::IBV_WR_ATOMIC_CMP_AND_SWP | op::IBV_WR_ATOMIC_FETCH_AND_ADD => {
                wr.wr.atomic.rkey = there(wr.wr.atomic.rkey);
            }
            op::IBV_WR_SEND_WITH_INV => {
                let key = wr.imm_data_invalidated_rkey_union.invalidated_rkey;
                wr.imm_data_invalidated_rkey_union.invalidated_rkey = there(key);
            }
            _ => {}
        }
    }
}

unsafe extern "C" fn req_notify_cq(cq: *mut ibv_cq, solicited_only: c_int) -> c_int {
    let _front = Front::enter();
    let solicited = solicited_only != 0;
    // SAFETY: as above.
    unsafe {
        let due = Cq::of(cq).own.queue.with(|Came { list, notice }| {
            notice.ask(solicited);
            // Completions that were brought home and are not polled: many devices tell of those at once, ours knows nothing of them.
            !list.is_empty() && notice.meets()
        });
        if due && !(*cq).channel.is_null() {
            Channel::of((*cq).channel).own.unread.push(cq.expose_provenance());
        }
        arm(cq, if solicited { Wants::Solicited } else { Wants::Next })
    }
}

/// Posts a list of receive requests, one by one.
unsafe fn receive(
    front: &Front,
    logs: &Queue,
    mut wr: *mut ibv_recv_wr,
    bad: *mut *mut ibv_recv_wr,
    mut post: impl FnMut(&mut ibv_recv_wr) -> c_int,
) -> c_int {
    logs.receives.within(front, |log| {
        let Some(log) = log else { return libc::EINVAL };
        while !wr.is_null() {
            // SAFETY: the application's list.
            unsafe {
                let r = log.post(wr, &mut post);
                if r != 0 {
                    *bad = wr;
                    return r;
                }
                wr = (*wr).next;
            }
        }
        0
    })
}

unsafe extern "C" fn post_recv(qp: *mut ibv_qp, wr: *mut ibv_recv_wr, bad: *mut *mut ibv_recv_wr) -> c_int {
    let front = Front::enter();
    // SAFETY: as above.
    unsafe {
        let (Some(f), at) = there!(qp, (*qp).context, post_recv) else { return libc::EOPNOTSUPP };
        receive(&front, Qp::of(qp).own.logs, wr, bad, |copy| {
            let mut none = std::ptr::null_mut();
            let _down = front.down();
            f(at, copy, &raw mut none)
        })
    }
}

unsafe extern "C" fn post_srq_recv(
    srq: *mut ibv_srq,
    wr: *mut ibv_recv_wr,
    bad: *mut *mut ibv_recv_wr,
) -> c_int {
    let front = Front::enter();
    // SAFETY: as above.
    unsafe {
        let (Some(f), at) = there!(srq, (*srq).context, post_srq_recv) else { return libc::EOPNOTSUPP };
        receive(&front, Srq::of(srq).own.logs, wr, bad, |copy| {
            let mut none = std::ptr::null_mut();
            let _down = front.down();
            f(at, copy, &raw mut none)
        })
    }
}

/// Posts a list of requests.
pub(crate) unsafe extern "C" fn post_send(
    qp: *mut ibv_qp,
    wr: *mut ibv_send_wr,
    bad: *mut *mut ibv_send_wr,
) -> c_int {
    let front = Front::enter();
    // SAFETY: as above.
    unsafe {
        let Some(f) = Qp::of(qp).own.post.function() else { return libc::EOPNOTSUPP };
        let at = std::ptr::with_exposed_provenance_mut(real_one(qp));
        Qp::of(qp).own.logs.sends.within(&front, |log| {
            let Some(log) = log else { return libc::EINVAL };
            if let Some(copy) = log.copy_one(wr) {
                // Into the application's word, where something else belongs then.
                let e = {
                    let _down = front.down();
                    f(at, copy, bad)
                };
                if e != 0 {
                    log.take_back_last();
                    *bad = wr;
                }
                return e;
            }
            post_list(&front, qp, (f, at), (wr, bad), log)
        })
    }
}

/// What a real context has for posting.
type PostSend = unsafe extern "C" fn(*mut ibv_qp, *mut ibv_send_wr, *mut *mut ibv_send_wr) -> c_int;
/// The same, and the real queue pair.
type Post = (PostSend, *mut ibv_qp);

/// The function of a real queue pair's context; another one in each start.
#[derive(Default)]
pub(crate) struct Posts(AtomicUsize);

impl Posts {
    /// This is the real queue pair now.
    ///
    /// # Safety
    /// It is one.
    pub(crate) unsafe fn renew(&self, real: &ibv_qp) {
        // SAFETY: the caller's promise.
        let f = unsafe { (*real.context).ops.post_send };
        self.0.store(f.map_or(0, |f| f as usize), Release);
    }

    /// To be asked where the thread cannot be stopped.
    #[inline(always)]
    fn function(&self) -> Option<PostSend> {
        // SAFETY: 0, or what `renew` has stored.
        unsafe { std::mem::transmute(self.0.load(Relaxed)) }
    }
}

/// Posts a list of requests of whatever kind.
///
/// # Safety
/// As for ibv_post_send(3), of a queue pair of ours.
#[inline(never)]
unsafe fn post_list(
    front: &Front,
    qp: *mut ibv_qp,
    (f, at): Post,
    (wr, bad): (*mut ibv_send_wr, *mut *mut ibv_send_wr),
    log: &mut log::Sends,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        let (copy, first, result) = log.copy(wr, |copy| for_device(qp, copy));
        let mut posted = 0;
        let mut r = result.err().unwrap_or(0);
        if !copy.is_null() {
            let mut there = std::ptr::null_mut();
            let e = {
                let _down = front.down();
                f(at, copy, &raw mut there)
            };
            if e == 0 {
                posted = log.next() - first;
            } else {
                posted = forget_from(log, there, first);
                r = e;
            }
        }
        if r != 0 {
            *bad = behind(wr, posted);
        }
        r
    }
}

/// The real queue has not taken this one, nor those behind it: how many before it from `first` on it has taken.
#[cold]
#[inline(never)]
fn forget_from(log: &mut log::Sends, there: *const ibv_send_wr, first: u64) -> u64 {
    let number = log.number(there).unwrap_or(first);
    log.take_back(number);
    number - first
}

/// The request that stands so many places behind another one.
#[cold]
#[inline(never)]
unsafe fn behind(mut wr: *mut ibv_send_wr, places: u64) -> *mut ibv_send_wr {
    for _ in 0..places {
        // SAFETY: the application's list is as long.
        wr = unsafe { (*wr).next };
    }
    wr
}
