//! Work requests and completions: the hot path. *Upper half*, and *across the crossing*.
//!
//! What a reader would get wrong: a work request is the application's, and may lie in memory that it only reads; where something in it
//! is to be translated, a copy goes down. The bad one that the real library names is then found by its place in the list.

use std::collections::BTreeMap;
use std::ffi::c_int;
use std::sync::atomic::Ordering::Relaxed;

use rdma_sys::{
    ibv_context_ops, ibv_cq, ibv_mw, ibv_mw_bind, ibv_qp, ibv_qp_type, ibv_recv_wr, ibv_send_wr, ibv_srq,
    ibv_wc, ibv_wr_opcode,
};

use stillpoint_loader::switch::Front;

use crate::log::{self, Queue};
use crate::objects::{Ah, Cq, Qp, Srq, real, real_context};
use crate::{address, keys, memory};

/// What verbs.h calls by the context's table.
pub(crate) fn table(ops: &mut ibv_context_ops) {
    ops.poll_cq = Some(poll_cq);
    ops.req_notify_cq = Some(req_notify_cq);
    ops.post_send = Some(post_send);
    ops.post_recv = Some(post_recv);
    ops.post_srq_recv = Some(post_srq_recv);
    ops.bind_mw = Some(bind_mw);
}

/// The real object, and the table of its context; read where the thread cannot be stopped.
macro_rules! there {
    ($of:expr, $context:expr, $name:ident) => {{
        let at = std::ptr::with_exposed_provenance_mut(real($of) as usize);
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
        home.queue.with(|queue| {
            if home.len.load(Relaxed) != 0 {
                let n = room.len().min(queue.len());
                for (to, from) in room.iter_mut().zip(queue.drain(..n)) {
                    *to = from;
                }
                home.len.store(queue.len(), Relaxed);
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
                    if log::translate(&mut room[k], context) {
                        room.swap(kept, k);
                        kept += 1;
                    }
                }
                // All were swallowed, and there may be more.
                if kept != 0 || came < room.len() || came == 0 {
                    return kept as c_int;
                }
            }
        })
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
        home.queue.with(|queue| {
            loop {
                let mut room: Vec<ibv_wc> = Vec::with_capacity(MANY);
                let n = {
                    let _down = front.down();
                    f(at, MANY as c_int, room.as_mut_ptr())
                };
                let Ok(n) = usize::try_from(n) else { return };
                // SAFETY: so many were written.
                room.set_len(n);
                room.retain_mut(|wc| log::translate(wc, context));
                queue.extend(room);
                home.len.store(queue.len(), Relaxed);
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
            home.queue.with(|queue| {
                queue.retain(|wc| wc.qp_num != (*qp).qp_num);
                home.len.store(queue.len(), Relaxed);
            });
        }
    }
}

/// Wants an event again.
///
/// # Safety
/// A queue of ours.
pub(crate) unsafe fn arm(cq: *mut ibv_cq, solicited_only: c_int) {
    // SAFETY: the caller's promise.
    unsafe {
        Cq::of(cq).own.arms.store(0, Relaxed);
        req_notify_cq(cq, solicited_only);
    }
}

/// Posts the receives of a log again, each by `post`.
pub(crate) fn receive_again(
    place: &u32,
    post: impl Fn(&Front, &mut ibv_recv_wr) -> c_int,
) -> Result<(), std::io::Error> {
    let front = Front::enter();
    let Some(logs) = log::queue(*place) else { return Ok(()) };
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

/// Puts the device's remote keys and handles for the application's.
///
/// # Safety
/// A queue pair of ours, and a request for it.
unsafe fn for_device(qp: *mut ibv_qp, copy: &mut ibv_send_wr) {
    // SAFETY: the caller's promise.
    unsafe {
        if keys::changed() {
            Qp::of(qp).own.remote.with(|keys| remote(copy, keys));
        }
        if copy.opcode == ibv_wr_opcode::IBV_WR_BIND_MW {
            let bind = &mut copy.bind_mw_tso_union.bind_mw;
            bind.mw = std::ptr::with_exposed_provenance_mut(real(bind.mw) as usize);
            bind.bind_info.mr = std::ptr::with_exposed_provenance_mut(real(bind.bind_info.mr) as usize);
        }
        if (*qp).qp_type == ibv_qp_type::IBV_QPT_UD {
            let ah = copy.wr.ud.ah;
            if address::changed()
                && let Some((_, number)) =
                    memory::way((*qp).context, &Ah::of(ah).own.attr, copy.wr.ud.remote_qpn)
            {
                copy.wr.ud.remote_qpn = number;
            }
            copy.wr.ud.ah = std::ptr::with_exposed_provenance_mut(real(ah) as usize);
        }
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
        let Some(logs) = log::queue(Qp::of(qp).own.place) else { return Ok(()) };
        let post = |wr| {
            let mut none = std::ptr::null_mut();
            let _down = front.down();
            f(at, wr, &raw mut none)
        };
        logs.sends.with(|s| s.as_mut().map_or(0, |s| s.again(|copy| for_device(qp, copy), post)))
    };
    if r == 0 { Ok(()) } else { Err(std::io::Error::from_raw_os_error(r)) }
}

/// Puts the device's remote key for the application's.
fn remote(wr: &mut ibv_send_wr, keys: &BTreeMap<u32, u32>) {
    use rdma_sys::ibv_wr_opcode as op;
    let there = |key: u32| keys.get(&key).copied().unwrap_or(key);
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
    let front = Front::enter();
    // SAFETY: as above.
    unsafe {
        let (Some(f), at) = there!(cq, (*cq).context, req_notify_cq) else { return libc::EOPNOTSUPP };
        let home = &Cq::of(cq).own;
        home.armed.store(if solicited_only != 0 { 2 } else { 1 }, Relaxed);
        let _ = home.arms.fetch_update(Relaxed, Relaxed, |n| (n < 2).then_some(n + 1));
        let _down = front.down();
        f(at, solicited_only)
    }
}

/// Posts a list of receive requests, one by one.
unsafe fn receive(
    logs: Option<&Queue>,
    mut wr: *mut ibv_recv_wr,
    bad: *mut *mut ibv_recv_wr,
    mut post: impl FnMut(&mut ibv_recv_wr) -> c_int,
) -> c_int {
    let Some(logs) = logs else { return libc::EINVAL };
    logs.receives.with(|log| {
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
        receive(log::queue(Qp::of(qp).own.place), wr, bad, |copy| {
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
        receive(log::queue(Srq::of(srq).own.place), wr, bad, |copy| {
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
        let (Some(f), at) = there!(qp, (*qp).context, post_send) else { return libc::EOPNOTSUPP };
        let Some(logs) = log::queue(Qp::of(qp).own.place) else { return libc::EINVAL };
        logs.sends.with(|log| {
            let Some(log) = log else { return libc::EINVAL };
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
                    // What stands before the bad one was posted.
                    let number = log.number(there).unwrap_or(first);
                    log.take_back(number);
                    posted = number - first;
                    r = e;
                }
            }
            if r != 0 {
                let mut wr = wr;
                for _ in 0..posted {
                    wr = (*wr).next;
                }
                *bad = wr;
            }
            r
        })
    }
}

unsafe extern "C" fn bind_mw(qp: *mut ibv_qp, mw: *mut ibv_mw, bind: *mut ibv_mw_bind) -> c_int {
    let front = Front::enter();
    // SAFETY: as above; the window's new key stands in the real one.
    unsafe {
        let (Some(f), at) = there!(qp, (*qp).context, bind_mw) else { return libc::EOPNOTSUPP };
        let Some(logs) = log::queue(Qp::of(qp).own.place) else { return libc::EINVAL };
        let mut copy = std::ptr::read(bind);
        copy.bind_info.mr = std::ptr::with_exposed_provenance_mut(real(copy.bind_info.mr) as usize);
        let window = std::ptr::with_exposed_provenance_mut::<ibv_mw>(real(mw) as usize);
        logs.sends.with(|log| {
            let Some(log) = log else { return libc::EINVAL };
            let Some(number) = log.note(&mut copy.wr_id, &mut copy.send_flags) else { return libc::ENOMEM };
            let r = {
                let _down = front.down();
                f(at, window, &raw mut copy)
            };
            if r != 0 {
                log.take_back(number);
            }
            (*mw).rkey = (*window).rkey;
            r
        })
    }
}
