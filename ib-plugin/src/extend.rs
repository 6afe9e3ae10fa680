//! The extended interfaces of queue pairs (requests that are built piece by piece) and completion queues (one completion at a time):
//! both upon the plain ones, so that there is one way of a message only.
//!
//! What a reader would get wrong: a thread may be stopped, and a job restarted, between the first piece and the last; so what is built
//! has the application's names, and is translated when it is posted.

use std::ffi::{c_int, c_void};
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use rdma_sys::{
    ibv_ah, ibv_context, ibv_cq, ibv_cq_ex, ibv_cq_init_attr_ex, ibv_data_buf, ibv_mw, ibv_mw_bind_info,
    ibv_poll_cq_attr, ibv_qp, ibv_qp_cap, ibv_qp_ex, ibv_qp_init_attr, ibv_qp_init_attr_ex, ibv_qp_type,
    ibv_send_wr, ibv_sge, ibv_wc, ibv_wc_opcode, ibv_wr_opcode, verbs_context,
};

use crate::below::fail;
use crate::lock::Lock;
use crate::log;
use crate::objects::{Cq, Qp};
use crate::{cq, domain, handle, post, queue};

/// IBV_SEND_INLINE.
const INLINE: u32 = 8;

/// What verbs.h calls by the context's extended table.
pub(crate) fn table(of: &mut verbs_context) {
    of.create_qp_ex = Some(create_qp_ex);
    of.create_cq_ex = Some(create_cq_ex);
}

/// Requests from wr_start to wr_complete.
#[derive(Default)]
pub(crate) struct Batch {
    requests: Vec<Request>,
    sges: Vec<ibv_sge>,
    inline: Vec<u8>,
    /// The number of an error.
    failed: c_int,
}

// SAFETY: pointers of the application's, which are its to use from any thread.
unsafe impl Send for Batch {}

struct Request {
    wr: ibv_send_wr,
    /// Where its elements begin, and how many.
    sges: usize,
    n: usize,
    /// Where its inline data begins.
    inline: Option<usize>,
}

impl Batch {
    fn clear(&mut self) {
        self.requests.clear();
        self.sges.clear();
        self.inline.clear();
        self.failed = 0;
    }

    fn last(&mut self) -> Option<&mut Request> {
        if self.requests.is_empty() {
            self.failed = libc::EINVAL;
        }
        self.requests.last_mut()
    }

    fn elements(&mut self, all: &[ibv_sge]) {
        let (from, n) = (self.sges.len(), all.len());
        if let Some(r) = self.last() {
            (r.sges, r.n) = (from, n);
            self.sges.extend_from_slice(all);
        }
    }

    /// # Safety
    /// Memory of the application's.
    unsafe fn data(&mut self, all: impl Iterator<Item = (*const u8, usize)>) {
        let from = self.inline.len();
        let Some(r) = self.last() else { return };
        r.inline = Some(from);
        for (at, n) in all {
            // SAFETY: the caller's promise.
            self.inline.extend_from_slice(unsafe { std::slice::from_raw_parts(at, n) });
        }
        let length = u32::try_from(self.inline.len() - from).unwrap_or(u32::MAX);
        self.elements(&[ibv_sge { addr: 0, length, lkey: 0 }]);
    }

    /// Whether the queue takes as many elements, and as much inline, as each request has.
    fn fits(&self, cap: &ibv_qp_cap) -> bool {
        let inline = |r: &Request| self.sges.get(r.sges).map_or(0, |s| s.length);
        self.requests.iter().all(|r| {
            r.n <= cap.max_send_sge as usize && (r.inline.is_none() || inline(r) <= cap.max_inline_data)
        })
    }

    /// The list, as ibv_post_send(3) wants it.
    fn list(&mut self) -> *mut ibv_send_wr {
        let (sges, inline) = (self.sges.as_mut_ptr(), self.inline.as_ptr());
        let mut next = std::ptr::null_mut();
        for r in self.requests.iter_mut().rev() {
            // SAFETY: within what was pushed.
            unsafe {
                r.wr.sg_list = sges.add(r.sges);
                if let Some(from) = r.inline {
                    (*r.wr.sg_list).addr = inline.add(from).expose_provenance() as u64;
                    r.wr.send_flags |= INLINE;
                }
            }
            r.wr.num_sge = r.n as c_int;
            r.wr.next = next;
            next = &raw mut r.wr;
        }
        next
    }
}

/// Takes a word for one thread, which may be stopped meanwhile, and the others as well.
fn take(word: &AtomicU32) {
    while word.compare_exchange_weak(0, 1, Acquire, Relaxed).is_err() {
        std::thread::yield_now();
    }
}

/// # Safety
/// For all of these: a queue pair of ours, between wr_start and wr_complete, which one thread calls at a time.
unsafe fn batch<R>(qp: *mut ibv_qp_ex, f: impl FnOnce(&mut Batch) -> R) -> R {
    // SAFETY: the caller's promise.
    unsafe { Qp::of(qp.cast::<ibv_qp>()) }.own.batch.with(f)
}

unsafe fn begin(qp: *mut ibv_qp_ex, opcode: ibv_wr_opcode::Type, fill: impl FnOnce(&mut ibv_send_wr)) {
    // SAFETY: the caller's promise; numbers and null pointers.
    unsafe {
        let mut wr: ibv_send_wr = std::mem::zeroed();
        (wr.wr_id, wr.send_flags, wr.opcode) = ((*qp).wr_id, (*qp).wr_flags, opcode);
        fill(&mut wr);
        batch(qp, |b| b.requests.push(Request { wr, sges: 0, n: 0, inline: None }));
    }
}

/// Other threads wait here until it is complete, or given up (ibv_wr_post(3)).
unsafe extern "C" fn wr_start(qp: *mut ibv_qp_ex) {
    // SAFETY: as above, and below.
    unsafe {
        take(&Qp::of(qp.cast::<ibv_qp>()).own.building);
        batch(qp, Batch::clear);
    }
}

unsafe extern "C" fn wr_complete(qp: *mut ibv_qp_ex) -> c_int {
    // SAFETY: as above.
    unsafe {
        let r = complete(qp);
        Qp::of(qp.cast::<ibv_qp>()).own.building.store(0, Release);
        r
    }
}

unsafe fn complete(qp: *mut ibv_qp_ex) -> c_int {
    // SAFETY: as above; nobody touches the batch meanwhile.
    unsafe {
        let (list, n, failed) = batch(qp, |b| (b.list(), b.requests.len(), b.failed));
        // All of them, or none (ibv_wr_post(3)).
        let logs = Qp::of(qp.cast::<ibv_qp>()).own.logs;
        let room = logs.sends.with(|s| s.as_ref().map_or(0, log::Sends::room));
        let cap = &Qp::of(qp.cast::<ibv_qp>()).own.cap;
        let fits = batch(qp, |b| b.fits(cap));
        let lost = |b: &mut Batch| {
            b.requests.iter().find_map(|r| handle::lead(r.wr.wr.ud.ah, r.wr.wr.ud.remote_qpn).err())
        };
        let lost = if (*qp).qp_base.qp_type == ibv_qp_type::IBV_QPT_UD { batch(qp, lost) } else { None };
        let mut bad = std::ptr::null_mut();
        match (failed, n) {
            (0, 0) => 0,
            (0, n) if n > room => libc::ENOMEM,
            (0, _) if !fits => libc::EINVAL,
            (0, _) if lost.is_some() => lost.unwrap_or(0),
            (0, _) => post::post_send(qp.cast(), list, &raw mut bad),
            _ => failed,
        }
    }
}

unsafe extern "C" fn wr_abort(qp: *mut ibv_qp_ex) {
    // SAFETY: as above.
    unsafe {
        batch(qp, Batch::clear);
        Qp::of(qp.cast::<ibv_qp>()).own.building.store(0, Release);
    }
}

macro_rules! requests {
    ($($name:ident($($a:ident: $t:ty),*) is $opcode:ident, |$wr:ident| $fill:block;)*) => {$(
        unsafe extern "C" fn $name(qp: *mut ibv_qp_ex, $($a: $t),*) {
            // SAFETY: as above.
            unsafe { begin(qp, ibv_wr_opcode::$opcode, |$wr| $fill) };
        }
    )*};
}

requests! {
    wr_send() is IBV_WR_SEND, |_wr| {};
    wr_send_imm(imm: u32) is IBV_WR_SEND_WITH_IMM, |wr| { wr.imm_data_invalidated_rkey_union.imm_data = imm; };
    wr_send_inv(key: u32) is IBV_WR_SEND_WITH_INV, |wr| { wr.imm_data_invalidated_rkey_union.invalidated_rkey = key; };
    wr_rdma_read(rkey: u32, at: u64) is IBV_WR_RDMA_READ, |wr| { (wr.wr.rdma.rkey, wr.wr.rdma.remote_addr) = (rkey, at); };
    wr_rdma_write(rkey: u32, at: u64) is IBV_WR_RDMA_WRITE, |wr| { (wr.wr.rdma.rkey, wr.wr.rdma.remote_addr) = (rkey, at); };
    wr_rdma_write_imm(rkey: u32, at: u64, imm: u32) is IBV_WR_RDMA_WRITE_WITH_IMM, |wr| {
        (wr.wr.rdma.rkey, wr.wr.rdma.remote_addr) = (rkey, at);
        wr.imm_data_invalidated_rkey_union.imm_data = imm;
    };
    wr_atomic_cmp_swp(rkey: u32, at: u64, compare: u64, swap: u64) is IBV_WR_ATOMIC_CMP_AND_SWP, |wr| {
        (wr.wr.atomic.rkey, wr.wr.atomic.remote_addr) = (rkey, at);
        (wr.wr.atomic.compare_add, wr.wr.atomic.swap) = (compare, swap);
    };
    wr_atomic_fetch_add(rkey: u32, at: u64, add: u64) is IBV_WR_ATOMIC_FETCH_AND_ADD, |wr| {
        (wr.wr.atomic.rkey, wr.wr.atomic.remote_addr, wr.wr.atomic.compare_add) = (rkey, at, add);
    };
    wr_local_inv(key: u32) is IBV_WR_LOCAL_INV, |wr| { wr.imm_data_invalidated_rkey_union.invalidated_rkey = key; };
    wr_bind_mw(mw: *mut ibv_mw, rkey: u32, info: *const ibv_mw_bind_info) is IBV_WR_BIND_MW, |wr| {
        (wr.bind_mw_tso_union.bind_mw.mw, wr.bind_mw_tso_union.bind_mw.rkey) = (mw, rkey);
        wr.bind_mw_tso_union.bind_mw.bind_info = std::ptr::read(info);
    };
}

unsafe extern "C" fn wr_set_ud_addr(qp: *mut ibv_qp_ex, ah: *mut ibv_ah, number: u32, qkey: u32) {
    // SAFETY: as above.
    unsafe {
        batch(qp, |b| {
            if let Some(r) = b.last() {
                (r.wr.wr.ud.ah, r.wr.wr.ud.remote_qpn, r.wr.wr.ud.remote_qkey) = (ah, number, qkey);
            }
        });
    }
}

unsafe extern "C" fn wr_set_xrc_srqn(qp: *mut ibv_qp_ex, number: u32) {
    // SAFETY: as above.
    unsafe {
        batch(qp, |b| {
            if let Some(r) = b.last() {
                r.wr.qp_type.xrc.remote_srqn = number;
            }
        });
    }
}

unsafe extern "C" fn wr_set_sge(qp: *mut ibv_qp_ex, lkey: u32, addr: u64, length: u32) {
    // SAFETY: as above.
    unsafe { batch(qp, |b| b.elements(&[ibv_sge { addr, length, lkey }])) };
}

unsafe extern "C" fn wr_set_sge_list(qp: *mut ibv_qp_ex, n: usize, list: *const ibv_sge) {
    // SAFETY: as above; so many, says the application.
    unsafe {
        let all = if n == 0 { &[] } else { std::slice::from_raw_parts(list, n) };
        batch(qp, |b| b.elements(all));
    }
}

unsafe extern "C" fn wr_set_inline_data(qp: *mut ibv_qp_ex, at: *mut c_void, length: usize) {
    let one = if length == 0 { None } else { Some((at.cast_const().cast(), length)) };
    // SAFETY: as above.
    unsafe { batch(qp, |b| b.data(one.into_iter())) };
}

unsafe extern "C" fn wr_set_inline_data_list(qp: *mut ibv_qp_ex, n: usize, list: *const ibv_data_buf) {
    // SAFETY: as above.
    unsafe {
        let all = (0..n).map(|k| &*list.add(k)).filter(|d| d.length != 0);
        batch(qp, |b| b.data(all.map(|d| (d.addr.cast_const().cast(), d.length))));
    }
}

/// The functions of a queue pair.
pub(crate) fn fill(qp: &mut ibv_qp_ex) {
    qp.wr_atomic_cmp_swp = Some(wr_atomic_cmp_swp);
    qp.wr_atomic_fetch_add = Some(wr_atomic_fetch_add);
    qp.wr_bind_mw = Some(wr_bind_mw);
    qp.wr_local_inv = Some(wr_local_inv);
    qp.wr_rdma_read = Some(wr_rdma_read);
    qp.wr_rdma_write = Some(wr_rdma_write);
    qp.wr_rdma_write_imm = Some(wr_rdma_write_imm);
    qp.wr_send = Some(wr_send);
    qp.wr_send_imm = Some(wr_send_imm);
    qp.wr_send_inv = Some(wr_send_inv);
    qp.wr_set_ud_addr = Some(wr_set_ud_addr);
    qp.wr_set_xrc_srqn = Some(wr_set_xrc_srqn);
    qp.wr_set_inline_data = Some(wr_set_inline_data);
    qp.wr_set_inline_data_list = Some(wr_set_inline_data_list);
    qp.wr_set_sge = Some(wr_set_sge);
    qp.wr_set_sge_list = Some(wr_set_sge_list);
    qp.wr_start = Some(wr_start);
    qp.wr_complete = Some(wr_complete);
    qp.wr_abort = Some(wr_abort);
}

/// IBV_QP_INIT_ATTR_PD, IBV_QP_INIT_ATTR_CREATE_FLAGS, IBV_QP_INIT_ATTR_SEND_OPS_FLAGS.
const DOMAIN: u32 = 1;
const FLAGS: u32 = 1 << 2;
const SEND_OPS: u32 = 1 << 6;
/// All up to IBV_QP_EX_WITH_SEND_WITH_INV.
const KNOWN_OPS: u64 = (1 << 10) - 1;

unsafe extern "C" fn create_qp_ex(context: *mut ibv_context, attr: *mut ibv_qp_init_attr_ex) -> *mut ibv_qp {
    // SAFETY: the application's attributes, which begin as those of the plain call.
    unsafe {
        let a = &*attr;
        if a.qp_type == ibv_qp_type::IBV_QPT_XRC_RECV {
            if a.comp_mask != domain::QP_XRCD {
                return fail(libc::EINVAL);
            }
            let mut plain: ibv_qp_init_attr = std::mem::zeroed();
            (plain.qp_context, plain.qp_type) = (a.qp_context, a.qp_type);
            return queue::create_qp(context, std::ptr::null_mut(), a.xrcd, &raw mut plain, false);
        }
        let other = a.comp_mask & !(DOMAIN | FLAGS | SEND_OPS) != 0
            || a.comp_mask & FLAGS != 0 && a.create_flags != 0
            || a.comp_mask & SEND_OPS != 0 && a.send_ops_flags & !KNOWN_OPS != 0;
        if other {
            return fail(libc::EOPNOTSUPP);
        }
        if a.comp_mask & DOMAIN == 0 {
            return fail(libc::EINVAL);
        }
        let none = std::ptr::null_mut();
        queue::create_qp(context, a.pd, none, attr.cast::<ibv_qp_init_attr>(), a.comp_mask & SEND_OPS != 0)
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_qp_to_qp_ex(qp: *mut ibv_qp) -> *mut ibv_qp_ex {
    // SAFETY: a queue pair of ours.
    if unsafe { Qp::of(qp) }.own.extended { qp.cast() } else { std::ptr::null_mut() }
}

/// The completion that is looked at.
#[derive(Default)]
pub(crate) struct Poll {
    /// 1: from start_poll to end_poll, for one thread.
    taken: AtomicU32,
    wc: Lock<Option<Completion>>,
}

struct Completion(ibv_wc);

// SAFETY: numbers.
unsafe impl Send for Completion {}

/// The seven of IBV_WC_STANDARD_FLAGS.
const STANDARD: u64 = (1 << 7) - 1;

unsafe extern "C" fn create_cq_ex(
    context: *mut ibv_context,
    attr: *mut ibv_cq_init_attr_ex,
) -> *mut ibv_cq_ex {
    // SAFETY: the application's attributes.
    let a = unsafe { &*attr };
    // IBV_CQ_INIT_ATTR_MASK_FLAGS: of those, IBV_CREATE_CQ_ATTR_SINGLE_THREADED (1) and IGNORE_OVERRUN (2).
    if a.wc_flags & !STANDARD != 0 || a.comp_mask & !1 != 0 || a.comp_mask & 1 != 0 && a.flags & !1 != 0 {
        return fail(libc::EOPNOTSUPP);
    }
    let (Ok(cqe), Ok(vector)) = (c_int::try_from(a.cqe), c_int::try_from(a.comp_vector)) else {
        return fail(libc::EINVAL);
    };
    // SAFETY: as in the plain call.
    unsafe { cq::ibv_create_cq(context, cqe, a.cq_context, a.channel, vector).cast() }
}

/// # Safety
/// For all of these: a queue of ours, from start_poll to end_poll.
unsafe fn next(cq: *mut ibv_cq_ex) -> c_int {
    // SAFETY: the caller's promise; numbers.
    unsafe {
        let mut wc: ibv_wc = std::mem::zeroed();
        match post::poll_cq(cq.cast(), 1, &raw mut wc) {
            0 => libc::ENOENT,
            1 => {
                ((*cq).status, (*cq).wr_id) = (wc.status, wc.wr_id);
                Cq::of(cq.cast::<ibv_cq>()).own.poll.wc.with(|now| *now = Some(Completion(wc)));
                0
            }
            n => -n,
        }
    }
}

unsafe extern "C" fn start_poll(cq: *mut ibv_cq_ex, _attr: *mut ibv_poll_cq_attr) -> c_int {
    // SAFETY: as above.
    unsafe {
        let taken = &Cq::of(cq.cast::<ibv_cq>()).own.poll.taken;
        take(taken);
        let r = next(cq);
        if r != 0 {
            taken.store(0, Release);
        }
        r
    }
}

unsafe extern "C" fn next_poll(cq: *mut ibv_cq_ex) -> c_int {
    // SAFETY: as above.
    unsafe { next(cq) }
}

unsafe extern "C" fn end_poll(cq: *mut ibv_cq_ex) {
    // SAFETY: as above.
    unsafe { Cq::of(cq.cast::<ibv_cq>()) }.own.poll.taken.store(0, Release);
}

macro_rules! reads {
    ($($name:ident -> $t:ty, |$wc:ident| $value:expr;)*) => {$(
        unsafe extern "C" fn $name(cq: *mut ibv_cq_ex) -> $t {
            // SAFETY: as above.
            let own = unsafe { &Cq::of(cq.cast::<ibv_cq>()).own };
            own.poll.wc.with(|now| now.as_ref().map_or_else(Default::default, |Completion($wc)| $value))
        }
    )*};
}

reads! {
    read_opcode -> ibv_wc_opcode::Type, |wc| wc.opcode;
    read_vendor_err -> u32, |wc| wc.vendor_err;
    read_byte_len -> u32, |wc| wc.byte_len;
    // SAFETY: four bytes, whatever they mean.
    read_imm_data -> u32, |wc| unsafe { wc.imm_data_invalidated_rkey_union.imm_data };
    read_qp_num -> u32, |wc| wc.qp_num;
    read_src_qp -> u32, |wc| wc.src_qp;
    read_wc_flags -> u32, |wc| wc.wc_flags;
    read_slid -> u32, |wc| u32::from(wc.slid);
    read_sl -> u8, |wc| wc.sl;
    read_dlid_path_bits -> u8, |wc| wc.dlid_path_bits;
}

/// The functions of a completion queue.
pub(crate) fn fill_cq(cq: &mut ibv_cq_ex) {
    cq.start_poll = Some(start_poll);
    cq.next_poll = Some(next_poll);
    cq.end_poll = Some(end_poll);
    cq.read_opcode = Some(read_opcode);
    cq.read_vendor_err = Some(read_vendor_err);
    cq.read_byte_len = Some(read_byte_len);
    cq.read_imm_data = Some(read_imm_data);
    cq.read_qp_num = Some(read_qp_num);
    cq.read_src_qp = Some(read_src_qp);
    cq.read_wc_flags = Some(read_wc_flags);
    cq.read_slid = Some(read_slid);
    cq.read_sl = Some(read_sl);
    cq.read_dlid_path_bits = Some(read_dlid_path_bits);
}
