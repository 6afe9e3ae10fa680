//! Completion queues, queue pairs, shared receive queues: made, changed, asked, ended.

use std::ffi::{c_int, c_void};
use std::sync::atomic::AtomicI32;
use std::sync::atomic::Ordering::Relaxed;

use rdma_sys::{
    ibv_comp_channel, ibv_context, ibv_cq, ibv_cq_ex, ibv_gid, ibv_pd, ibv_qp, ibv_qp_attr, ibv_qp_ex,
    ibv_qp_init_attr, ibv_qp_state, ibv_qp_type, ibv_srq, ibv_srq_attr, ibv_srq_init_attr,
};

use crate::below::{Function, fail, inside, set_errno};
use crate::log::{self, Lock, Receives, Sends};
use crate::memory::ends;
use crate::objects::{
    Cq, Given, Home, Limits, Object, Pair, Public, Qp, Shared, Srq, Told, real, real_context,
};
use crate::pass::word;
use crate::{address, extend, keys, memory, post, world};

static CREATE_CQ: Function = Function::new(c"ibv_create_cq");
static RESIZE_CQ: Function = Function::new(c"ibv_resize_cq");
static DESTROY_CQ: Function = Function::new(c"ibv_destroy_cq");
static CREATE_SRQ: Function = Function::new(c"ibv_create_srq");
static MODIFY_SRQ: Function = Function::new(c"ibv_modify_srq");
static QUERY_SRQ: Function = Function::new(c"ibv_query_srq");
static DESTROY_SRQ: Function = Function::new(c"ibv_destroy_srq");
static CREATE_QP: Function = Function::new(c"ibv_create_qp");
static MODIFY_QP: Function = Function::new(c"ibv_modify_qp");
static QUERY_QP: Function = Function::new(c"ibv_query_qp");
static DESTROY_QP: Function = Function::new(c"ibv_destroy_qp");
static IN_ORDER: Function = Function::new(c"ibv_query_qp_data_in_order");
static QUERY_ECE: Function = Function::new(c"ibv_query_ece");
static SET_ECE: Function = Function::new(c"ibv_set_ece");
static ATTACH: Function = Function::new(c"ibv_attach_mcast");
static DETACH: Function = Function::new(c"ibv_detach_mcast");

ends! {
    ibv_destroy_cq(ibv_cq, Cq) by DESTROY_CQ;
}

/// Ends a queue with a log.
macro_rules! ends_logged {
    ($($name:ident($p:ty, $kind:ident) by $function:ident;)*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(of: *mut $p) -> c_int {
            let _front = $crate::below::inside();
            // SAFETY: an object of ours, which the application gives back.
            unsafe {
                let r = $function.int(&[real(of)]);
                if r == 0 {
                    $crate::world::leave($crate::world::Kind::$kind, of.expose_provenance());
                    log::leave($kind::of(of).own.place);
                    $kind::take(of);
                }
                r
            }
        }
    )*};
}

ends_logged! {
    ibv_destroy_srq(ibv_srq, Srq) by DESTROY_SRQ;
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_destroy_qp(qp: *mut ibv_qp) -> c_int {
    let _front = inside();
    // SAFETY: a queue pair of ours, which the application gives back.
    unsafe {
        let number = (*std::ptr::with_exposed_provenance::<ibv_qp>(real(qp) as usize)).qp_num;
        let (context, own) = (real_context((*qp).context), &Qp::of(qp).own);
        // No other one can have this number until it is gone.
        post::settle(qp);
        log::forget(context, number);
        let r = DESTROY_QP.int(&[real(qp)]);
        if r != 0 {
            log::number(context, number, own.place);
            return r;
        }
        log::leave(own.place);
        post::purge(qp);
        if !can_be_saved((*qp).qp_type) {
            world::refuse(world::OTHERS, -1);
        }
        world::refuse(world::GROUPS, -own.groups.load(Relaxed));
        release((*qp).send_cq, own.cap.max_send_wr);
        world::leave(world::Kind::Qp, qp.expose_provenance());
        Qp::take(qp);
        r
    }
}

/// IBV_SRQ_MAX_WR and IBV_SRQ_LIMIT.
const SRQ_MAX_WR: c_int = 1;
pub(crate) const SRQ_LIMIT: c_int = 2;

/// Our object must be there first: the real one has it for its context, by which events find it. `None`: there is no real one.
///
/// # Safety
/// `make` returns the address of a real object, or 0.
unsafe fn made<P: Public<Whole = P>, X>(
    public: P,
    own: X,
    make: impl FnOnce(u64) -> usize,
) -> Option<*mut P> {
    let object = Object::with(public, 0, own).give();
    let at = make(word(object));
    // SAFETY: made here.
    unsafe {
        if at == 0 {
            Object::<P, X>::take(object);
            return None;
        }
        Object::<P, X>::of(object).renew(at);
    }
    Some(object)
}

/// Makes room for so many more completions: all work is signaled below. 0, or the number of an error: there is none.
unsafe fn reserve(cq: *mut ibv_cq, more: u32) -> c_int {
    if cq.is_null() {
        return 0;
    }
    // SAFETY: a queue of ours.
    unsafe {
        let more = Cq::of(cq).own.more.fetch_add(more as usize, Relaxed) + more as usize;
        let at = real(cq);
        let now = (*std::ptr::with_exposed_provenance::<ibv_cq>(at as usize)).cqe;
        let need = usize::try_from((*cq).cqe).unwrap_or(0) + more;
        if usize::try_from(now).is_ok_and(|n| n >= need) { 0 } else { RESIZE_CQ.int(&[at, need as u64]) }
    }
}

/// Its queue pair is gone.
unsafe fn release(cq: *mut ibv_cq, more: u32) {
    if !cq.is_null() {
        // SAFETY: a queue of ours.
        unsafe { Cq::of(cq).own.more.fetch_sub(more as usize, Relaxed) };
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ibv_create_cq(
    context: *mut ibv_context,
    cqe: c_int,
    cq_context: *mut c_void,
    channel: *mut ibv_comp_channel,
    vector: c_int,
) -> *mut ibv_cq {
    let _front = inside();
    // SAFETY: objects of ours. A mutex and a condition of zeros are free (glibc).
    unsafe {
        let mut public: ibv_cq_ex = std::mem::zeroed();
        extend::fill_cq(&mut public);
        (public.context, public.channel, public.cq_context) = (context, channel, cq_context);
        let make =
            |own| CREATE_CQ.object(&[real_context(context), word(cqe), own, real(channel), word(vector)]);
        let home = Home { vector, ..Home::default() };
        let Some(own) = made(public, home, make) else { return std::ptr::null_mut() };
        let own = own.cast::<ibv_cq>();
        let there = &*std::ptr::with_exposed_provenance::<ibv_cq>(real(own) as usize);
        ((*own).handle, (*own).cqe) = (there.handle, there.cqe);
        world::enter(world::Kind::Cq, own.expose_provenance());
        own
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_resize_cq(cq: *mut ibv_cq, cqe: c_int) -> c_int {
    let _front = inside();
    // SAFETY: a queue of ours; the real one shows its new size.
    unsafe {
        let at = real(cq);
        let more = Cq::of(cq).own.more.load(Relaxed);
        let r = RESIZE_CQ.int(&[at, word(cqe) + more as u64]);
        if r == 0 {
            let now = (*std::ptr::with_exposed_provenance::<ibv_cq>(at as usize)).cqe;
            (*cq).cqe = now - c_int::try_from(more).unwrap_or(0);
        }
        r
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_create_srq(pd: *mut ibv_pd, attr: *mut ibv_srq_init_attr) -> *mut ibv_srq {
    let _front = inside();
    // SAFETY: a domain of ours, and the application's attributes, which get the sizes that came of it.
    unsafe {
        let mut public: ibv_srq = std::mem::zeroed();
        (public.context, public.pd, public.srq_context) = ((*pd).context, pd, (*attr).srq_context);
        let make = |own| {
            let mut copy = ibv_srq_init_attr {
                srq_context: std::ptr::with_exposed_provenance_mut(own as usize),
                attr: (*attr).attr,
            };
            let at = CREATE_SRQ.object(&[real(pd), word(&raw mut copy)]);
            (*attr).attr = copy.attr;
            at
        };
        let Some((place, logs)) = log::enter() else { return fail(libc::ENOMEM) };
        let limits = (*attr).attr;
        let shared = Shared { place, limits: Lock::new(Limits(limits)), asynchronous: Given::default() };
        let Some(own) = made(public, shared, make) else {
            log::leave(place);
            return std::ptr::null_mut();
        };
        let limits = (*attr).attr;
        Srq::of(own).own.limits.with(|l| *l = Limits(limits));
        world::enter(world::Kind::Srq, own.expose_provenance());
        let turn = logs.next_receive.load(Relaxed);
        logs.receives.with(|r| *r = Some(Receives::shared(place, turn, limits.max_wr, limits.max_sge)));
        (*own).handle = (*std::ptr::with_exposed_provenance::<ibv_srq>(real(own) as usize)).handle;
        own
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_modify_srq(srq: *mut ibv_srq, attr: *mut ibv_srq_attr, mask: c_int) -> c_int {
    let _front = inside();
    // SAFETY: a queue of ours, and the application's attributes.
    unsafe {
        let r = MODIFY_SRQ.int(&[real(srq), word(attr), word(mask)]);
        if r == 0 {
            let own = &Srq::of(srq).own;
            own.limits.with(|Limits(l)| {
                if mask & SRQ_LIMIT != 0 {
                    l.srq_limit = (*attr).srq_limit;
                }
                if mask & SRQ_MAX_WR != 0 {
                    l.max_wr = l.max_wr.max((*attr).max_wr);
                    if let Some(logs) = log::queue(own.place) {
                        logs.receives.with(|r| r.as_mut().map(|r| r.grow(l.max_wr)));
                    }
                }
            });
        }
        r
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_query_srq(srq: *mut ibv_srq, attr: *mut ibv_srq_attr) -> c_int {
    let _front = inside();
    // SAFETY: a queue of ours.
    QUERY_SRQ.int(&[unsafe { real(srq) }, word(attr)])
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_create_qp(pd: *mut ibv_pd, attr: *mut ibv_qp_init_attr) -> *mut ibv_qp {
    // SAFETY: the application's.
    unsafe { create_qp(pd, attr, false) }
}

/// A queue pair, for requests that are built piece by piece if it is an extended one.
///
/// # Safety
/// Objects of ours, and the application's attributes, which get the sizes that came of it.
pub(crate) unsafe fn create_qp(pd: *mut ibv_pd, attr: *mut ibv_qp_init_attr, extended: bool) -> *mut ibv_qp {
    let _front = inside();
    // SAFETY: the caller's promise.
    unsafe {
        let mut whole: ibv_qp_ex = std::mem::zeroed();
        if extended {
            extend::fill(&mut whole);
        }
        let public = &mut whole.qp_base;
        (public.context, public.pd, public.qp_context) = ((*pd).context, pd, (*attr).qp_context);
        (public.send_cq, public.recv_cq, public.srq) = ((*attr).send_cq, (*attr).recv_cq, (*attr).srq);
        public.qp_type = (*attr).qp_type;
        let there = |p: u64| p as usize;
        let make = |own| {
            let mut copy = ibv_qp_init_attr {
                qp_context: std::ptr::with_exposed_provenance_mut(there(own)),
                send_cq: std::ptr::with_exposed_provenance_mut(there(real((*attr).send_cq))),
                recv_cq: std::ptr::with_exposed_provenance_mut(there(real((*attr).recv_cq))),
                srq: std::ptr::with_exposed_provenance_mut(there(real((*attr).srq))),
                cap: (*attr).cap,
                qp_type: (*attr).qp_type,
                sq_sig_all: (*attr).sq_sig_all,
            };
            let (mut at, mut taken) = (CREATE_QP.object(&[real(pd), word(&raw mut copy)]), Vec::new());
            // A number that another queue pair of this address had before a restart would mean two.
            while at != 0 && address::is_taken((*std::ptr::with_exposed_provenance::<ibv_qp>(at)).qp_num) {
                taken.push(at);
                at = CREATE_QP.object(&[real(pd), word(&raw mut copy)]);
            }
            for t in taken {
                DESTROY_QP.int(&[t as u64]);
            }
            (*attr).cap = copy.cap;
            at
        };
        let Some((place, logs)) = log::enter() else { return fail(libc::ENOMEM) };
        let told = Lock::new(Told { attr: std::mem::zeroed(), mask: 0 });
        let pair = Pair {
            place,
            cap: (*attr).cap,
            told,
            remote: Lock::default(),
            groups: AtomicI32::new(0),
            asynchronous: Given::default(),
            extended,
            batch: Lock::default(),
        };
        let Some(own) = made(whole, pair, make) else {
            log::leave(place);
            return std::ptr::null_mut();
        };
        let own = own.cast::<ibv_qp>();
        Qp::of(own).own.cap = (*attr).cap;
        world::enter(world::Kind::Qp, own.expose_provenance());
        if !can_be_saved((*attr).qp_type) {
            world::refuse(world::OTHERS, 1);
        }
        let cap = &(*attr).cap;
        let all = (*attr).sq_sig_all != 0;
        let first = logs.next_send.load(Relaxed);
        let sends = Sends::new(place, first, cap, all, (*attr).qp_type == ibv_qp_type::IBV_QPT_UD);
        logs.sends.with(|s| *s = Some(sends));
        if (*attr).srq.is_null() {
            let first = logs.next_receive.load(Relaxed);
            logs.receives.with(|r| *r = Some(Receives::own(place, first, cap.max_recv_wr, cap.max_recv_sge)));
        }
        let r = reserve((*attr).send_cq, cap.max_send_wr);
        if r != 0 {
            ibv_destroy_qp(own);
            return fail(r);
        }
        let q = &*std::ptr::with_exposed_provenance::<ibv_qp>(there(real(own)));
        ((*own).handle, (*own).qp_num, (*own).state) = (q.handle, q.qp_num, q.state);
        logs.qp_num.store(q.qp_num, Relaxed);
        logs.datagram.store((*attr).qp_type == ibv_qp_type::IBV_QPT_UD, Relaxed);
        log::number(real_context((*pd).context), q.qp_num, place);
        own
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_modify_qp(qp: *mut ibv_qp, attr: *mut ibv_qp_attr, mask: c_int) -> c_int {
    let _front = inside();
    // SAFETY: a queue pair of ours; the real one shows its state.
    unsafe {
        let at = real(qp);
        let mut now = std::ptr::read(attr);
        if mask as u32 & mask::AV != 0 && address::changed() {
            let Some((way, number)) = memory::way((*qp).context, &now.ah_attr, now.dest_qp_num) else {
                set_errno(libc::EADDRNOTAVAIL);
                return libc::EADDRNOTAVAIL;
            };
            let ranks = address::owners(&now.ah_attr, now.dest_qp_num);
            Qp::of(qp).own.remote.with(|r| *r = keys::of(&ranks));
            (now.ah_attr, now.dest_qp_num) = (way, number);
        }
        let anew = mask as u32 & mask::STATE != 0 && now.qp_state == ibv_qp_state::IBV_QPS_RESET;
        if anew {
            post::settle(qp);
        }
        let r = MODIFY_QP.int(&[at, word(&raw mut now), word(mask)]);
        if r == 0 {
            Qp::of(qp).own.told.with(|told| told.hear(&*attr, mask as u32));
            let logs = log::queue(Qp::of(qp).own.place);
            if let Some(logs) = logs.filter(|_| anew) {
                logs.reset();
                post::purge(qp);
            } else if let Some(logs) = logs.filter(|_| mask as u32 & mask::STATE != 0) {
                // Also from SQE.
                if (*attr).qp_state == ibv_qp_state::IBV_QPS_RTS {
                    logs.broken.store(false, Relaxed);
                }
            }
        }
        (*qp).state = (*std::ptr::with_exposed_provenance::<ibv_qp>(at as usize)).state;
        r
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_query_qp(
    qp: *mut ibv_qp,
    attr: *mut ibv_qp_attr,
    mask: c_int,
    init: *mut ibv_qp_init_attr,
) -> c_int {
    let _front = inside();
    // SAFETY: a queue pair of ours, and the application's room for the attributes.
    unsafe {
        let at = real(qp);
        let r = QUERY_QP.int(&[at, word(attr), word(mask), word(init)]);
        let own = &mut *qp;
        own.state = (*std::ptr::with_exposed_provenance::<ibv_qp>(at as usize)).state;
        if r == 0 {
            let init = &mut *init;
            Qp::of(qp).own.told.with(|told| told.show(&mut *attr));
            init.qp_context = own.qp_context;
            (init.send_cq, init.recv_cq, init.srq) = (own.send_cq, own.recv_cq, own.srq);
        }
        r
    }
}

/// Those that can be saved.
fn can_be_saved(kind: ibv_qp_type::Type) -> bool {
    matches!(kind, ibv_qp_type::IBV_QPT_RC | ibv_qp_type::IBV_QPT_UC | ibv_qp_type::IBV_QPT_UD)
}

/// Bits of `enum ibv_qp_attr_mask`.
pub(crate) mod mask {
    pub(crate) const STATE: u32 = 1 << 0;
    pub(crate) const ACCESS: u32 = 1 << 3;
    pub(crate) const PKEY: u32 = 1 << 4;
    pub(crate) const PORT: u32 = 1 << 5;
    pub(crate) const QKEY: u32 = 1 << 6;
    pub(crate) const AV: u32 = 1 << 7;
    pub(crate) const MTU: u32 = 1 << 8;
    pub(crate) const TIMEOUT: u32 = 1 << 9;
    pub(crate) const RETRY: u32 = 1 << 10;
    pub(crate) const RNR_RETRY: u32 = 1 << 11;
    pub(crate) const RQ_PSN: u32 = 1 << 12;
    pub(crate) const MAX_READS: u32 = 1 << 13;
    pub(crate) const RNR_TIMER: u32 = 1 << 15;
    pub(crate) const SQ_PSN: u32 = 1 << 16;
    pub(crate) const MAX_DEST_READS: u32 = 1 << 17;
    pub(crate) const DEST: u32 = 1 << 20;
}

impl Told {
    pub(crate) fn copy(&self) -> Told {
        // SAFETY: plain numbers.
        Told { attr: unsafe { std::ptr::read(&raw const self.attr) }, mask: self.mask }
    }

    /// The queue pair was told this.
    fn hear(&mut self, from: &ibv_qp_attr, which: u32) {
        macro_rules! take {
            ($($bit:ident: $($field:ident),+;)*) => {$(
                if which & mask::$bit != 0 {
                    $(self.attr.$field = from.$field;)+
                }
            )*};
        }
        take! {
            STATE: qp_state;
            ACCESS: qp_access_flags;
            PKEY: pkey_index;
            PORT: port_num;
            QKEY: qkey;
            AV: ah_attr;
            MTU: path_mtu;
            TIMEOUT: timeout;
            RETRY: retry_cnt;
            RNR_RETRY: rnr_retry;
            RQ_PSN: rq_psn;
            MAX_READS: max_rd_atomic;
            RNR_TIMER: min_rnr_timer;
            SQ_PSN: sq_psn;
            MAX_DEST_READS: max_dest_rd_atomic;
            DEST: dest_qp_num;
        }
        self.mask |= which;
    }

    /// What the application has told, for what the device was told instead.
    fn show(&self, to: &mut ibv_qp_attr) {
        if self.mask & mask::AV != 0 {
            to.ah_attr = self.attr.ah_attr;
        }
        if self.mask & mask::DEST != 0 {
            to.dest_qp_num = self.attr.dest_qp_num;
        }
    }
}

/// What only wants the real queue pair.
macro_rules! of_pair {
    ($($name:ident($($a:ident: $t:ty),*) by $function:ident;)*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(qp: *mut ibv_qp, $($a: $t),*) -> c_int {
            let _front = $crate::below::inside();
            // SAFETY: a queue pair of ours.
            $function.int(&[unsafe { real(qp) }, $(word($a)),*])
        }
    )*};
}

of_pair! {
    ibv_query_qp_data_in_order(opcode: u32, flags: u32) by IN_ORDER;
    ibv_query_ece(ece: *mut c_void) by QUERY_ECE;
    ibv_set_ece(ece: *mut c_void) by SET_ECE;
}

/// Counts a group that a queue pair is attached to: that cannot be saved yet.
macro_rules! groups {
    ($($name:ident by $function:ident, $one:literal;)*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(qp: *mut ibv_qp, gid: *const ibv_gid, lid: u16) -> c_int {
            let _front = inside();
            // SAFETY: a queue pair of ours.
            unsafe {
                let r = $function.int(&[real(qp), word(gid), word(lid)]);
                if r == 0 {
                    Qp::of(qp).own.groups.fetch_add($one, Relaxed);
                    world::refuse(world::GROUPS, $one);
                }
                r
            }
        }
    )*};
}

groups! {
    ibv_attach_mcast by ATTACH, 1;
    ibv_detach_mcast by DETACH, -1;
}
