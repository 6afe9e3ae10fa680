//! Memory windows after a restart: allocated anew, and bound as they were.
//!
//! What a reader would get wrong: binds are requests, so a queue pair must be able to send for them, before anybody else does.

use std::collections::BTreeMap;
use std::ffi::c_int;
use std::sync::atomic::Ordering::Relaxed;

use rdma_sys::{
    ibv_context, ibv_cq, ibv_mr, ibv_mw, ibv_mw_bind_info, ibv_mw_type, ibv_pd, ibv_qp, ibv_qp_state,
    ibv_qp_type, ibv_send_wr, ibv_wc, ibv_wc_status, ibv_wr_opcode,
};
use stillpoint_loader::switch::Front;
use stillpoint_sys::raw::monotonic_ns;

use crate::bound::Bound;
use crate::log;
use crate::objects::{Came, Cq, Mw, Qp, real, real_context};
use crate::window::{forget, is_first, known_as, make, post_first, windows};
use crate::world::{self, Kind};
use crate::{device, keys, post};

/// IBV_SEND_SIGNALED.
const SIGNALED: u32 = 2;
/// The `wr_id` of a bind of ours, which is of no log.
const MARK: u64 = u64::MAX;
/// Until a bind of ours is given up.
const PATIENCE: u64 = 5_000_000_000;

/// Where it is bound.
///
/// # Safety
/// For all of these: a window of ours; every thread of the application stands still.
unsafe fn bound(mw: *mut ibv_mw) -> Option<Bound> {
    // SAFETY: the caller's promise.
    unsafe { Mw::of(mw).own.state.with(|s| s.bound) }.filter(|b| world::is(Kind::Mr, b.mr))
}

/// Whether a window of this domain can be bound by it.
unsafe fn can_bind(qp: *mut ibv_qp, pd: *mut ibv_pd) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let q = &*qp;
        q.pd == pd
            && matches!(q.qp_type, ibv_qp_type::IBV_QPT_RC | ibv_qp_type::IBV_QPT_UC)
            && matches!(q.state, ibv_qp_state::IBV_QPS_RTS | ibv_qp_state::IBV_QPS_SQD)
            && !Qp::of(qp).own.logs.broken.load(Relaxed)
            && !crate::cm::event::is_over(qp)
    }
}

/// Windows that are bound, each with a queue pair by which that can be done again.
///
/// # Errors
/// There is none: it cannot be saved.
pub(crate) fn all_bound() -> Result<Vec<(*mut ibv_mw, *mut ibv_qp)>, String> {
    let mut all = Vec::new();
    if windows().next().is_none() {
        return Ok(all);
    }
    // SAFETY: what the world knows lives.
    unsafe {
        let pairs = || world::all(Kind::Qp).into_iter().map(std::ptr::with_exposed_provenance_mut::<ibv_qp>);
        let by_place: BTreeMap<u32, *mut ibv_qp> = pairs().map(|qp| (Qp::of(qp).own.place, qp)).collect();
        for mw in windows() {
            let Some(to) = bound(mw) else { continue };
            let pd = (*mw).pd;
            // Type 2 is for one queue pair only, type 1 for any of its domain.
            let same = by_place.get(&to.place).copied().filter(|qp| can_bind(*qp, pd));
            let first = (*mw).type_ == ibv_mw_type::IBV_MW_TYPE_1;
            let qp = same.or_else(|| pairs().find(|qp| first && can_bind(*qp, pd)));
            let key = Mw::of(mw).own.state.with(|s| s.key);
            let none = || {
                format!(
                    "memory window {key:#x} is bound, and no queue pair can send by which that could be done again"
                )
            };
            all.push((mw, qp.ok_or_else(none)?));
        }
    }
    Ok(all)
}

/// After a restart: all of them are there again, and bound to nothing yet.
///
/// # Safety
/// Domains are there again.
pub(crate) unsafe fn make_all() -> Result<(), String> {
    forget();
    for mw in windows() {
        // SAFETY: what the world knows lives.
        unsafe {
            let window = make((*mw).pd, (*mw).type_);
            if window.is_null() {
                return Err(format!("a memory window: {}", std::io::Error::last_os_error()));
            }
            Mw::of(mw).renew(window.expose_provenance());
            let chosen = (*mw).type_ == ibv_mw_type::IBV_MW_TYPE_2;
            Mw::of(mw).own.state.with(|s| s.renew((*window).rkey, chosen));
            known_as(mw, (*window).rkey);
        }
    }
    Ok(())
}

/// Binds a window as it was.
///
/// # Safety
/// Its queue pair can send.
pub(crate) unsafe fn again(mw: *mut ibv_mw, qp: *mut ibv_qp) -> Result<(), String> {
    let front = Front::enter();
    // SAFETY: the caller's promise; what the world knows lives.
    unsafe {
        let Some(to) = bound(mw) else { return Ok(()) };
        let (key, now, chosen) = Mw::of(mw).own.state.with(|s| (s.key, s.next(s.key), s.there(s.key)));
        let window = std::ptr::with_exposed_provenance_mut::<ibv_mw>(real(mw) as usize);
        let mr = std::ptr::with_exposed_provenance_mut::<ibv_mr>(to.mr);
        let mut wr: ibv_send_wr = std::mem::zeroed();
        (wr.wr_id, wr.opcode, wr.send_flags) = (MARK, ibv_wr_opcode::IBV_WR_BIND_MW, SIGNALED);
        let bind = &mut wr.bind_mw_tso_union.bind_mw;
        (bind.mw, bind.rkey) = (window, chosen);
        bind.bind_info = ibv_mw_bind_info {
            mr: std::ptr::with_exposed_provenance_mut(real(mr) as usize),
            addr: to.at,
            length: to.length,
            mw_access_flags: to.access,
        };
        let first = is_first(&wr);
        let e = if first {
            post_first(&front, qp, &wr)
        } else {
            (*window).rkey = now;
            post::one(qp, &front, &mut wr)
        };
        drop(front);
        let failed = |e: c_int| {
            let why = std::io::Error::from_raw_os_error(e);
            format!("memory window {key:#x} is not bound again: {why}")
        };
        if e != 0 {
            return Err(failed(e));
        }
        let status = wait((*qp).send_cq).ok_or_else(|| failed(libc::ETIMEDOUT))?;
        if status != ibv_wc_status::IBV_WC_SUCCESS {
            return Err(format!("memory window {key:#x} is not bound again: completion status {status}"));
        }
        Mw::of(mw).own.state.with(|s| {
            if first {
                s.renew((*window).rkey, false);
            } else {
                s.first = None;
            }
        });
        Ok(())
    }
}

/// The status of the bind of ours; what else completes is brought home.
unsafe fn wait(cq: *mut ibv_cq) -> Option<ibv_wc_status::Type> {
    let deadline = monotonic_ns() + PATIENCE;
    // SAFETY: the caller's promise.
    unsafe {
        let home = &Cq::of(cq).own;
        while monotonic_ns() < deadline {
            let mut wc: ibv_wc = std::mem::zeroed();
            if post::poll_below(cq, &mut wc) != 1 {
                std::thread::yield_now();
            } else if wc.wr_id == MARK {
                return Some(wc.status);
            } else if let Some(place) = log::translate(&mut wc, real_context((*cq).context)) {
                home.queue.with(|Came { list, notice }| {
                    list.push_back((place, wc));
                    notice.saw();
                    home.len.store(list.len(), Relaxed);
                });
            }
        }
        None
    }
}

/// Of all windows the device, the upper bits of the key, as the application knows them and as the device does, and what is to be added to the low 8: for those who use them.
pub(crate) fn told() -> Vec<u8> {
    let one = |mw: *mut ibv_mw| {
        // SAFETY: what the world knows lives.
        let all = unsafe {
            let device = device::number((*mw).context);
            Mw::of(mw).own.state.with(|s| [device, keys::base(s.key), s.base, s.more.into()])
        };
        all.map(u32::to_le_bytes).concat()
    };
    windows().flat_map(one).collect()
}

/// Windows of a context: upper bits of their keys.
pub(crate) fn bases() -> Vec<(*mut ibv_context, u32)> {
    // SAFETY: what the world knows lives.
    windows().map(|mw| unsafe { ((*mw).context, Mw::of(mw).own.state.with(|s| keys::base(s.key))) }).collect()
}
