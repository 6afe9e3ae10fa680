//! Memory windows: a part of a region under a key of its own, which requests bind and invalidate.
//!
//! Which bind is in force follows from completions, as the logs see them ([`done`], [`came`]); what has none yet is posted again behind it.
//!
//! What a reader would get wrong: drivers look for the key that a window has in the window, where the application has written it; so the
//! real one is told before each bind what ours says.

use std::collections::BTreeSet;
use std::ffi::c_int;

use rdma_sys::{
    ibv_context, ibv_context_ops, ibv_mw, ibv_mw_bind, ibv_mw_type, ibv_pd, ibv_qp, ibv_send_wr, ibv_wc,
    ibv_wc_status, ibv_wr_opcode,
};
use stillpoint_loader::switch::Front;

use crate::below::{by_pointer, errno, fail, inside};
use crate::bound::{Bound, State};
use crate::lock::Lock;
use crate::memory::there;
use crate::objects::{Mw, Object, Qp, real, real_context};
use crate::world::{self, Kind};
use crate::{device, keys};

/// IBV_WC_WITH_IMM, IBV_WC_WITH_INV.
const WITH_IMM: u32 = 2;
const WITH_INV: u32 = 8;
/// IBV_WC_IP_CSUM_OK: by this soft-RoCE says IBV_WC_WITH_INV, since it gives the kernel's IB_WC_WITH_INVALIDATE to programs as it is
/// (rxe_resp.c of Linux 6.1). Of a connected queue pair it means nothing else.
const SOFTLY: u32 = 4;

/// What is ours of a window.
pub(crate) struct Window {
    pub(crate) state: Lock<State>,
}

/// By the upper bits of their keys, as the application knows them, and as the device does.
#[derive(Default)]
struct Index {
    own: BTreeSet<(u32, usize)>,
    there: BTreeSet<(u32, usize)>,
}

static INDEX: Lock<Index> = Lock::new(Index { own: BTreeSet::new(), there: BTreeSet::new() });

fn among(all: &BTreeSet<(u32, usize)>, key: u32) -> Vec<*mut ibv_mw> {
    let base = keys::base(key);
    let of = all.range((base, 0)..=(base, usize::MAX)).map(|(_, at)| *at);
    of.map(std::ptr::with_exposed_provenance_mut).collect()
}

/// Ours with this key.
fn own(key: u32) -> Vec<*mut ibv_mw> {
    INDEX.with(|index| among(&index.own, key))
}

/// A context is closed, and what was left in it is gone. (Nothing else asks the world with the index in its hand, nor with a log.)
pub(crate) fn sweep() {
    INDEX.with(|index| {
        index.own.retain(|(_, at)| world::is(Kind::Mw, *at));
        index.there.retain(|(_, at)| world::is(Kind::Mw, *at));
    });
}

/// After a restart: devices have other keys.
pub(crate) fn forget() {
    INDEX.with(|index| index.there.clear());
}

/// The device knows a window of ours by this key.
pub(crate) fn known_as(mw: *mut ibv_mw, there: u32) {
    INDEX.with(|index| _ = index.there.insert((keys::base(there), mw.expose_provenance())));
}

/// What verbs.h calls by the context's table.
pub(crate) fn table(ops: &mut ibv_context_ops) {
    ops.alloc_mw = Some(alloc_mw);
    ops.dealloc_mw = Some(dealloc_mw);
    ops.bind_mw = Some(bind_mw);
}

/// A real window in the real domain of one of ours; null, and errno, if there is none.
///
/// # Safety
/// A domain of ours.
pub(crate) unsafe fn make(pd: *mut ibv_pd, kind: ibv_mw_type::Type) -> *mut ibv_mw {
    // SAFETY: the caller's promise, and the function that the real context has for this.
    unsafe {
        let at = real(pd) as usize;
        let made = by_pointer!(|_front| (*there::<ibv_pd>(at).context).ops.alloc_mw;
            (std::ptr::with_exposed_provenance_mut(at), kind));
        match made {
            None => fail(libc::EOPNOTSUPP),
            Some(w) if w.is_null() => fail(errno()),
            Some(w) => w,
        }
    }
}

/// # Safety
/// A real window.
unsafe fn unmake(window: *mut ibv_mw) -> c_int {
    // SAFETY: the caller's promise.
    let done = unsafe { by_pointer!(|_front| (*(*window).context).ops.dealloc_mw; (window)) };
    done.unwrap_or(libc::EOPNOTSUPP)
}

unsafe extern "C" fn alloc_mw(pd: *mut ibv_pd, kind: ibv_mw_type::Type) -> *mut ibv_mw {
    let _front = inside();
    // SAFETY: a domain of ours.
    unsafe {
        let mut taken = Vec::new();
        let window = loop {
            let window = make(pd, kind);
            // Keys that a region or another window had before a restart would mean two.
            if window.is_null() || !keys::is_taken_base(device::number((*pd).context), (*window).rkey) {
                break window;
            }
            taken.push(window);
        };
        taken.into_iter().for_each(|w| _ = unmake(w));
        if window.is_null() {
            return window;
        }
        let (rkey, handle) = ((*window).rkey, (*window).handle);
        let public = ibv_mw { context: (*pd).context, pd, rkey, handle, type_: kind };
        let state = Window { state: Lock::new(State::new(rkey)) };
        let mw = Object::with(public, window.expose_provenance(), state).give();
        let at = mw.expose_provenance();
        world::enter(Kind::Mw, at);
        INDEX.with(|index| {
            index.own.insert((keys::base(rkey), at));
            index.there.insert((keys::base(rkey), at));
        });
        mw
    }
}

unsafe extern "C" fn dealloc_mw(mw: *mut ibv_mw) -> c_int {
    let _front = inside();
    // SAFETY: a window of ours, which the application gives back.
    unsafe {
        let r = unmake(std::ptr::with_exposed_provenance_mut(real(mw) as usize));
        if r == 0 {
            let at = mw.expose_provenance();
            world::leave(Kind::Mw, at);
            INDEX.with(|index| {
                index.own.retain(|(_, of)| *of != at);
                index.there.retain(|(_, of)| *of != at);
            });
            Mw::take(mw);
        }
        r
    }
}

/// Of type 1. The device chooses the new key.
unsafe extern "C" fn bind_mw(qp: *mut ibv_qp, mw: *mut ibv_mw, bind: *mut ibv_mw_bind) -> c_int {
    let front = Front::enter();
    // SAFETY: objects of ours, and the application's request.
    unsafe {
        Qp::of(qp).own.logs.sends.with(|log| {
            let Some(log) = log else { return libc::EINVAL };
            let mut wr = request(&*bind, mw);
            let number = match log.note(&mut wr) {
                Ok(number) => number,
                Err(e) => return e,
            };
            for_device(&mut wr, (*qp).context);
            let r = post_first(&front, qp, &wr);
            if r != 0 {
                log.take_back(number);
                return r;
            }
            let now = (*wr.bind_mw_tso_union.bind_mw.mw).rkey;
            (*mw).rkey = Mw::of(mw).own.state.with(|s| s.back(now));
            log.bound_as(number, (*mw).rkey);
            0
        })
    }
}

/// A bind of type 1 as a request.
fn request(bind: &ibv_mw_bind, mw: *mut ibv_mw) -> ibv_send_wr {
    // SAFETY: numbers and null pointers; a window of ours.
    unsafe {
        let mut wr: ibv_send_wr = std::mem::zeroed();
        (wr.wr_id, wr.opcode, wr.send_flags) = (bind.wr_id, ibv_wr_opcode::IBV_WR_BIND_MW, bind.send_flags);
        let own = &mut wr.bind_mw_tso_union.bind_mw;
        (own.mw, own.rkey, own.bind_info) = (mw, (*mw).rkey, bind.bind_info);
        thinks(&mut wr);
        wr
    }
}

/// Notes in a bind, where nothing else stands in it, which key the application thinks that its window has: drivers look for it in the window.
///
/// # Safety
/// A request to bind a window of ours.
pub(crate) unsafe fn thinks(wr: &mut ibv_send_wr) {
    // SAFETY: the caller's promise.
    unsafe { wr.wr.rdma.rkey = (*wr.bind_mw_tso_union.bind_mw.mw).rkey };
}

/// Posts a bind of type 1 that has been translated.
///
/// # Safety
/// A queue pair of ours, and what [`for_device`] has made.
pub(crate) unsafe fn post_first(front: &Front, qp: *mut ibv_qp, wr: &ibv_send_wr) -> c_int {
    // SAFETY: the caller's promise, and the function that the real context has for this.
    unsafe {
        let own = &wr.bind_mw_tso_union.bind_mw;
        let mut bind = ibv_mw_bind { wr_id: wr.wr_id, send_flags: wr.send_flags, bind_info: own.bind_info };
        let at = std::ptr::with_exposed_provenance_mut::<ibv_qp>(real(qp) as usize);
        let Some(f) = (*(*at).context).ops.bind_mw else { return libc::EOPNOTSUPP };
        let _down = front.down();
        f(at, own.mw, &raw mut bind)
    }
}

/// Whether a request that has been translated is a bind of type 1.
///
/// # Safety
/// As for [`post_first`].
pub(crate) unsafe fn is_first(wr: &ibv_send_wr) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        wr.opcode == ibv_wr_opcode::IBV_WR_BIND_MW
            && (*wr.bind_mw_tso_union.bind_mw.mw).type_ == ibv_mw_type::IBV_MW_TYPE_1
    }
}

/// Puts the device's window, region and keys for the application's.
///
/// # Safety
/// A request of the application's, by itself, for a queue pair of this context.
pub(crate) unsafe fn for_device(wr: &mut ibv_send_wr, context: *mut ibv_context) {
    // SAFETY: the caller's promise.
    unsafe {
        match wr.opcode {
            ibv_wr_opcode::IBV_WR_BIND_MW => {
                let thinks = wr.wr.rdma.rkey;
                let bind = &mut wr.bind_mw_tso_union.bind_mw;
                let (now, then) = Mw::of(bind.mw).own.state.with(|s| (s.next(thinks), s.there(bind.rkey)));
                bind.mw = std::ptr::with_exposed_provenance_mut(real(bind.mw) as usize);
                bind.bind_info.mr = std::ptr::with_exposed_provenance_mut(real(bind.bind_info.mr) as usize);
                ((*bind.mw).rkey, bind.rkey) = (now, then);
            }
            ibv_wr_opcode::IBV_WR_LOCAL_INV => {
                let key = wr.imm_data_invalidated_rkey_union.invalidated_rkey;
                if let Some(mw) = own(key).iter().find(|mw| (***mw).context == context) {
                    let there = Mw::of(*mw).own.state.with(|s| s.there(key));
                    wr.imm_data_invalidated_rkey_union.invalidated_rkey = there;
                }
            }
            _ => {}
        }
    }
}

/// A request of the queue pair at this place has completed well, as the application has posted it.
#[inline]
pub(crate) fn done(wr: &ibv_send_wr, place: u32) {
    if matches!(wr.opcode, ibv_wr_opcode::IBV_WR_BIND_MW | ibv_wr_opcode::IBV_WR_LOCAL_INV) {
        take_effect(wr, place);
    }
}

#[cold]
fn take_effect(wr: &ibv_send_wr, place: u32) {
    // SAFETY: the opcode says which member it is; what the world knows lives.
    unsafe {
        if wr.opcode == ibv_wr_opcode::IBV_WR_LOCAL_INV {
            let key = wr.imm_data_invalidated_rkey_union.invalidated_rkey;
            for mw in own(key) {
                // By the queue pair that it is bound to: another device may have the same key.
                Mw::of(mw).own.state.with(|s| {
                    if s.bound.is_some_and(|b| b.place == place) {
                        s.invalidate(key, true);
                    }
                });
            }
            return;
        }
        let bind = &wr.bind_mw_tso_union.bind_mw;
        let info = &bind.bind_info;
        // It may have been deallocated meanwhile, and its place taken by another one.
        if !own(bind.rkey).contains(&bind.mw) {
            return;
        }
        let to = Bound {
            mr: info.mr.expose_provenance(),
            place,
            at: info.addr,
            length: info.length,
            access: info.mw_access_flags,
        };
        let to = (!info.mr.is_null() && info.length != 0).then_some(to);
        Mw::of(bind.mw).own.state.with(|s| s.bind(bind.rkey, to));
    }
}

/// A message has come; the key that it has invalidated becomes the application's.
#[inline]
pub(crate) fn came(wc: &mut ibv_wc, context: u64, datagram: bool) {
    if wc.wc_flags & (WITH_INV | SOFTLY) != 0 && wc.status == ibv_wc_status::IBV_WC_SUCCESS {
        let softly = wc.wc_flags & WITH_INV == 0;
        if !softly || !datagram && wc.wc_flags & WITH_IMM == 0 {
            invalidated(wc, context, softly);
        }
    }
}

#[cold]
fn invalidated(wc: &mut ibv_wc, context: u64, softly: bool) {
    // SAFETY: the flag says which member it is; what the world knows lives.
    unsafe {
        let there = wc.imm_data_invalidated_rkey_union.invalidated_rkey;
        let all = INDEX.with(|index| among(&index.there, there));
        // What says it softly may mean something else, if it is not the key that a window has.
        let has =
            |mw: *mut ibv_mw| Mw::of(mw).own.state.with(|s| s.bound.is_some() && s.there(s.key) == there);
        let is = |mw: &*mut ibv_mw| real_context((**mw).context) == context && (!softly || has(*mw));
        if let Some(mw) = all.into_iter().find(is) {
            wc.imm_data_invalidated_rkey_union.invalidated_rkey = Mw::of(mw).own.state.with(|s| {
                let key = s.back(there);
                s.invalidate(key, false);
                key
            });
        }
    }
}

pub(crate) fn windows() -> impl Iterator<Item = *mut ibv_mw> {
    world::all(Kind::Mw).into_iter().map(std::ptr::with_exposed_provenance_mut)
}

/// A queue pair is gone: windows of type 2 that were bound to it are nobody's.
pub(crate) fn left(place: u32) {
    for mw in windows() {
        // SAFETY: what the world knows lives.
        unsafe {
            if (*mw).type_ == ibv_mw_type::IBV_MW_TYPE_2 {
                Mw::of(mw).own.state.with(|s| s.bound = s.bound.filter(|b| b.place != place));
            }
        }
    }
}
