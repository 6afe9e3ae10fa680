//! Queue pairs and shared receive queues: made, changed, asked, ended.

use std::ffi::{c_int, c_void};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU32};

use rdma_sys::{
    ibv_context, ibv_pd, ibv_qp, ibv_qp_attr, ibv_qp_ex, ibv_qp_init_attr, ibv_qp_state, ibv_qp_type,
    ibv_srq, ibv_srq_attr, ibv_srq_init_attr, ibv_xrcd,
};

use crate::below::{Function, fail, inside, set_errno};
use crate::drain::is_connected;
use crate::group::Groups;
use crate::lock::Lock;
use crate::log::{self, Receives, Sends};
use crate::objects::{Context, Given, Limits, Object, Pair, Public, Qp, Shared, Srq, Told, real};
use crate::pass::word;
use crate::post::Posts;
use crate::requests::MOST_SHARED;
use crate::{address, cq, device, domain, event, extend, handle, keys, known, patience, post, window, world};

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

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_destroy_srq(srq: *mut ibv_srq) -> c_int {
    // SAFETY: a queue of ours, which the application gives back.
    unsafe {
        event::acknowledged(|| Srq::of(srq).own.asynchronous.is_none());
        let _front = inside();
        // Its messages are counted where they have come.
        let extended = Srq::of(srq).own.extended.as_ref().map(domain::Extended::completions);
        let settle = || {
            extended.into_iter().for_each(|cq| post::bring_home(std::ptr::with_exposed_provenance_mut(cq)));
        };
        settle();
        let r = DESTROY_SRQ.int(&[real(srq)]);
        if r == 0 {
            // Also the last of them.
            settle();
            event::forget((*srq).context, srq.expose_provenance());
            world::leave(world::Kind::Srq, srq.expose_provenance());
            log::leave(Srq::of(srq).own.place);
            Srq::take(srq);
        }
        r
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_destroy_qp(qp: *mut ibv_qp) -> c_int {
    // SAFETY: a queue pair of ours, which the application gives back.
    unsafe {
        event::acknowledged(|| Qp::of(qp).own.asynchronous.is_none());
        let _front = inside();
        let number = (*std::ptr::with_exposed_provenance::<ibv_qp>(real(qp) as usize)).qp_num;
        let (device, own) = (device::number((*qp).context), &Qp::of(qp).own);
        // Before the device forgets them.
        post::settle(qp);
        patience::set(qp, false);
        let r = DESTROY_QP.int(&[real(qp)]);
        if r != 0 {
            patience::set(qp, own.told.with(|told| told.gives_up()));
            return r;
        }
        // What has come until then is seen by the logs; another thread may have made one with this number already.
        post::settle(qp);
        log::forget(device, number, own.place);
        window::left(own.place);
        post::purge(qp);
        log::leave(own.place);
        crate::cm::event::forget(qp);
        event::forget((*qp).context, qp.expose_provenance());
        if !can_be_saved((*qp).qp_type) {
            world::refuse(world::OTHERS, -1);
        }
        own.told.with(Told::forget_alternate);
        cq::release((*qp).send_cq, own.cap.max_send_wr);
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
pub(crate) unsafe fn made<P: Public<Whole = P>, X>(
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

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_create_srq(pd: *mut ibv_pd, attr: *mut ibv_srq_init_attr) -> *mut ibv_srq {
    // SAFETY: a domain of ours, and the application's attributes, which get the sizes that came of it.
    unsafe {
        create_srq(pd, (*attr).srq_context, &mut (*attr).attr, |own, limits| {
            let mut copy = ibv_srq_init_attr {
                srq_context: std::ptr::with_exposed_provenance_mut(own as usize),
                attr: *limits,
            };
            let at = CREATE_SRQ.object(&[real(pd), word(&raw mut copy)]);
            *limits = copy.attr;
            at
        })
    }
}

/// A shared queue, whose real one is made by `make`, with ours for its context.
///
/// # Safety
/// A domain of ours; `make` returns the address of a real queue, or 0.
pub(crate) unsafe fn create_srq(
    pd: *mut ibv_pd,
    srq_context: *mut c_void,
    limits: &mut ibv_srq_attr,
    make: impl FnOnce(u64, &mut ibv_srq_attr) -> usize,
) -> *mut ibv_srq {
    let _front = inside();
    if limits.max_wr > MOST_SHARED {
        return fail(libc::EINVAL);
    }
    // SAFETY: the caller's promise.
    unsafe {
        let mut public: ibv_srq = std::mem::zeroed();
        (public.context, public.pd, public.srq_context) = ((*pd).context, pd, srq_context);
        let Some((place, logs)) = log::enter() else { return fail(libc::ENOMEM) };
        let shared = Shared {
            place,
            logs,
            limits: Lock::new(Limits(*limits)),
            extended: None,
            asynchronous: Given::default(),
        };
        let Some(own) = made(public, shared, |own| make(own, limits)) else {
            log::leave(place);
            return std::ptr::null_mut();
        };
        let limits = *limits;
        Srq::of(own).own.limits.with(|l| *l = Limits(limits));
        world::enter(world::Kind::Srq, own.expose_provenance());
        let turn = logs.next_receive.load(Relaxed);
        logs.receives.with(|r| *r = Some(Receives::shared(place, turn, limits.max_wr, limits.max_sge)));
        logs.device.store(device::number((*pd).context), Relaxed);
        (*own).handle = (*std::ptr::with_exposed_provenance::<ibv_srq>(real(own) as usize)).handle;
        own
    }
}

/// Ends a real one that is nobody's.
pub(crate) fn unmake_srq(at: usize) {
    DESTROY_SRQ.int(&[at as u64]);
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_modify_srq(srq: *mut ibv_srq, attr: *mut ibv_srq_attr, mask: c_int) -> c_int {
    let _front = inside();
    // SAFETY: a queue of ours, and the application's attributes.
    unsafe {
        if mask & SRQ_MAX_WR != 0 && (*attr).max_wr > MOST_SHARED {
            set_errno(libc::EINVAL);
            return libc::EINVAL;
        }
        let r = MODIFY_SRQ.int(&[real(srq), word(attr), word(mask)]);
        if r == 0 {
            let own = &Srq::of(srq).own;
            own.limits.with(|Limits(l)| {
                if mask & SRQ_LIMIT != 0 {
                    l.srq_limit = (*attr).srq_limit;
                }
                if mask & SRQ_MAX_WR != 0 {
                    l.max_wr = l.max_wr.max((*attr).max_wr);
                    own.logs.receives.with(|r| r.as_mut().map(|r| r.grow(l.max_wr)));
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
    unsafe { create_qp((*pd).context, pd, std::ptr::null_mut(), attr, false) }
}

/// A queue pair, of a protection domain or of one of extended connections; for requests that are built piece by piece if it is an extended
/// one.
///
/// # Safety
/// Objects of ours, and the application's attributes, which get the sizes that came of it.
pub(crate) unsafe fn create_qp(
    context: *mut ibv_context,
    pd: *mut ibv_pd,
    xrcd: *mut ibv_xrcd,
    attr: *mut ibv_qp_init_attr,
    extended: bool,
) -> *mut ibv_qp {
    let _front = inside();
    // SAFETY: the caller's promise.
    unsafe {
        let mut whole: ibv_qp_ex = std::mem::zeroed();
        if extended {
            extend::fill(&mut whole);
        }
        let public = &mut whole.qp_base;
        (public.context, public.pd, public.qp_context) = (context, pd, (*attr).qp_context);
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
            let mut make = || {
                if xrcd.is_null() {
                    CREATE_QP.object(&[real(pd), word(&raw mut copy)])
                } else {
                    domain::make_target(context, xrcd, own)
                }
            };
            let (mut at, mut taken) = (make(), Vec::new());
            // A number that another queue pair of this address had before a restart would mean two.
            while at != 0 && address::is_taken((*std::ptr::with_exposed_provenance::<ibv_qp>(at)).qp_num) {
                taken.push(at);
                at = make();
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
            logs,
            place,
            post: Posts::default(),
            start: known::starts(),
            cap: (*attr).cap,
            xrcd: xrcd.expose_provenance(),
            wanted: AtomicU32::new(0),
            alone: AtomicBool::new(false),
            told,
            remote: Lock::default(),
            groups: Groups::default(),
            asynchronous: Given::default(),
            unwanted: AtomicU32::new(0),
            extended,
            batch: Lock::default(),
            building: AtomicU32::new(0),
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
        let sends = Sends::new(place, first, cap, all, (*attr).qp_type);
        logs.sends.with(|s| *s = Some(sends));
        if (*attr).srq.is_null() {
            let first = logs.next_receive.load(Relaxed);
            logs.receives.with(|r| *r = Some(Receives::own(place, first, cap.max_recv_wr, cap.max_recv_sge)));
        }
        let r = cq::reserve((*attr).send_cq, cap.max_send_wr);
        if r != 0 {
            ibv_destroy_qp(own);
            return fail(r);
        }
        let q = &*std::ptr::with_exposed_provenance::<ibv_qp>(there(real(own)));
        ((*own).handle, (*own).qp_num, (*own).state) = (q.handle, q.qp_num, q.state);
        Qp::of(own).own.post.renew(q);
        logs.qp_num.store(q.qp_num, Relaxed);
        let device = device::number(context);
        logs.device.store(device, Relaxed);
        logs.anew.store(log::had(device, q.qp_num), Relaxed);
        logs.datagram.store((*attr).qp_type == ibv_qp_type::IBV_QPT_UD, Relaxed);
        log::number(device, q.qp_num, place);
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
            let Some((way, number)) = handle::way((*qp).context, &now.ah_attr, now.dest_qp_num) else {
                set_errno(libc::EADDRNOTAVAIL);
                return libc::EADDRNOTAVAIL;
            };
            let owners = address::owners(&now.ah_attr, now.dest_qp_num);
            Qp::of(qp).own.remote.with(|r| *r = keys::of(&owners));
            (now.ah_attr, now.dest_qp_num) = (way, number);
        }
        if mask as u32 & mask::PKEY != 0 && address::changed() {
            let port = Qp::of(qp).own.told.with(|told| told.attr.port_num);
            let port = if mask as u32 & mask::PORT != 0 { now.port_num } else { port };
            let names = &Context::of(Context::whole((*qp).context)).own;
            let Some(index) = names.partition(port, now.pkey_index) else {
                set_errno(libc::EINVAL);
                return libc::EINVAL;
            };
            now.pkey_index = index;
        }
        if mask as u32 & mask::RNR_RETRY != 0 {
            now.rnr_retry = patience::FOR_EVER;
        }
        let anew = mask as u32 & mask::STATE != 0 && now.qp_state == ibv_qp_state::IBV_QPS_RESET;
        if anew {
            // Before the device forgets them, and then those that have come meanwhile.
            post::settle(qp);
        }
        let r = MODIFY_QP.int(&[at, word(&raw mut now), word(mask)]);
        if r == 0 {
            Qp::of(qp).own.told.with(|told| {
                if anew {
                    told.forget_alternate();
                } else if mask as u32 & mask::ALTERNATE & !told.mask != 0 {
                    world::refuse(world::ALTERNATES, 1);
                }
                told.hear(&*attr, mask as u32);
            });
            if mask as u32 & mask::RNR_RETRY != 0 || anew {
                patience::set(qp, !anew && (*attr).rnr_retry < patience::FOR_EVER);
            }
            let logs = Qp::of(qp).own.logs;
            if anew {
                Qp::of(qp).own.unwanted.store(0, Relaxed);
                post::settle(qp);
                logs.reset();
                post::purge(qp);
            } else if mask as u32 & mask::STATE != 0 {
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

/// The state that a queue pair is in by itself: where a request or a message has failed, be it one of the other end's alone, of which
/// nothing is to be seen here but this.
///
/// # Safety
/// A queue pair of ours.
pub(crate) unsafe fn see_state(qp: *mut ibv_qp) {
    // SAFETY: the caller's promise; numbers and null pointers.
    unsafe {
        if is_connected(qp) || Qp::of(qp).own.logs.broken.load(Relaxed) {
            let mut attr: ibv_qp_attr = std::mem::zeroed();
            let mut init: ibv_qp_init_attr = std::mem::zeroed();
            let args = [real(qp), word(&raw mut attr), u64::from(mask::STATE), word(&raw mut init)];
            if QUERY_QP.int(&args) == 0 && attr.qp_state == ibv_qp_state::IBV_QPS_ERR {
                (*qp).state = attr.qp_state;
            }
        }
    }
}

/// Puts a queue pair into error: all that is open fails.
///
/// # Safety
/// A queue pair of ours.
pub(crate) unsafe fn break_off(qp: *mut ibv_qp) {
    // SAFETY: the caller's promise; numbers. The real one shows its state.
    unsafe {
        let mut attr: ibv_qp_attr = std::mem::zeroed();
        attr.qp_state = ibv_qp_state::IBV_QPS_ERR;
        MODIFY_QP.int(&[real(qp), word(&raw mut attr), u64::from(mask::STATE)]);
        (*qp).state = (*std::ptr::with_exposed_provenance::<ibv_qp>(real(qp) as usize)).state;
    }
}

/// Those that can be saved.
fn can_be_saved(kind: ibv_qp_type::Type) -> bool {
    use ibv_qp_type as of;
    is_extended(kind) || matches!(kind, of::IBV_QPT_RC | of::IBV_QPT_UC | of::IBV_QPT_UD)
}

/// One end of an extended connection.
pub(crate) fn is_extended(kind: ibv_qp_type::Type) -> bool {
    matches!(kind, ibv_qp_type::IBV_QPT_XRC_SEND | ibv_qp_type::IBV_QPT_XRC_RECV)
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
    pub(crate) const ALTERNATE: u32 = 1 << 14;
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

    /// It has no alternate path any more.
    fn forget_alternate(&mut self) {
        if self.mask & mask::ALTERNATE != 0 {
            self.mask &= !mask::ALTERNATE;
            world::refuse(world::ALTERNATES, -1);
        }
    }

    /// Whether it is not to try for ever when no receive is there.
    fn gives_up(&self) -> bool {
        self.mask & mask::RNR_RETRY != 0 && self.attr.rnr_retry < patience::FOR_EVER
    }

    /// What the application has told, for what the device was told instead.
    fn show(&self, to: &mut ibv_qp_attr) {
        if self.mask & mask::AV != 0 {
            to.ah_attr = self.attr.ah_attr;
        }
        if self.mask & mask::DEST != 0 {
            to.dest_qp_num = self.attr.dest_qp_num;
        }
        if self.mask & mask::PKEY != 0 {
            to.pkey_index = self.attr.pkey_index;
        }
        if self.mask & mask::RNR_RETRY != 0 {
            to.rnr_retry = self.attr.rnr_retry;
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
