//! What libibverbs exports, as far as the front and the tests' programs call it.
//!
//! What a reader would get wrong: real objects are what an application has pointers to, here as there; the engine knows them by address.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use rdma_sys::*;

use crate::engine::{Channel, Cq, Element, Qp, Receive, Region, Request, hca, world};
use crate::wire::Place;

fn errno(number: c_int) {
    // SAFETY: the calling thread's variable.
    unsafe { *libc::__errno_location() = number };
}

fn refuse<T>(number: c_int) -> *mut T {
    errno(number);
    std::ptr::null_mut()
}

fn give<T>(of: T) -> *mut T {
    Box::into_raw(Box::new(of))
}

/// # Safety
/// For everything below: what libibverbs asks of its callers (verbs.h).
unsafe fn drop_at<T>(of: *mut T) -> c_int {
    // SAFETY: the caller's promise; `give` has made it.
    drop(unsafe { Box::from_raw(of) });
    0
}

fn text<const N: usize>(of: &str) -> [c_char; N] {
    let mut all = [0; N];
    all.iter_mut().zip(of.bytes()).for_each(|(to, b)| *to = b as c_char);
    all
}

static DEVICE: OnceLock<usize> = OnceLock::new();

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_get_device_list(num: *mut c_int) -> *mut *mut ibv_device {
    let at = *DEVICE.get_or_init(|| {
        // SAFETY: numbers and texts.
        let mut d: ibv_device = unsafe { std::mem::zeroed() };
        (d.name, d.dev_name) = (text("model0"), text("uverbs0"));
        (d.node_type, d.transport_type) = (ibv_node_type::IBV_NODE_CA, ibv_transport_type::IBV_TRANSPORT_IB);
        give(d).expose_provenance()
    });
    if !num.is_null() {
        // SAFETY: the caller's.
        unsafe { *num = 1 };
    }
    give([std::ptr::with_exposed_provenance_mut::<ibv_device>(at), std::ptr::null_mut()]).cast()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_free_device_list(list: *mut *mut ibv_device) {
    // SAFETY: as above.
    unsafe { drop_at(list.cast::<[*mut ibv_device; 2]>()) };
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_get_device_name(device: *mut ibv_device) -> *const c_char {
    // SAFETY: as above.
    unsafe { (*device).name.as_ptr() }
}

#[unsafe(no_mangle)]
extern "C" fn ibv_get_device_guid(_device: *mut ibv_device) -> u64 {
    u64::from(hca().gids[1][15]).to_be()
}

#[unsafe(no_mangle)]
extern "C" fn ibv_get_device_index(_device: *mut ibv_device) -> c_int {
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_open_device(device: *mut ibv_device) -> *mut ibv_context {
    hca();
    // SAFETY: pointers that may be null, numbers, and a mutex that is free when it is zero (glibc).
    unsafe {
        let mut v: verbs_context = std::mem::zeroed();
        v.sz = size_of::<verbs_context>();
        v.query_port = Some(query_port);
        let c = &mut v.context;
        let mut two = [0; 2];
        libc::pipe2(two.as_mut_ptr(), libc::O_CLOEXEC);
        (c.device, c.async_fd, c.cmd_fd, c.num_comp_vectors) = (device, two[0], two[1], 1);
        c.abi_compat = std::ptr::without_provenance_mut(usize::MAX);
        c.ops.poll_cq = Some(poll_cq);
        if std::env::var_os("MODEL_NULL").is_some() {
            c.ops.poll_cq = Some(null_poll);
            c.ops.post_send = Some(null_post);
            return &raw mut (*give(v)).context;
        }
        c.ops.req_notify_cq = Some(req_notify_cq);
        c.ops.post_send = Some(post_send);
        c.ops.post_recv = Some(post_recv);
        c.ops.post_srq_recv = Some(post_srq_recv);
        &raw mut (*give(v)).context
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_close_device(context: *mut ibv_context) -> c_int {
    // SAFETY: as above.
    unsafe {
        libc::close((*context).async_fd);
        libc::close((*context).cmd_fd);
        drop_at(context.byte_sub(std::mem::offset_of!(verbs_context, context)).cast::<verbs_context>())
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_query_device(_: *mut ibv_context, attr: *mut ibv_device_attr) -> c_int {
    // SAFETY: as above.
    unsafe {
        let mut a: ibv_device_attr = std::mem::zeroed();
        (a.max_qp, a.max_qp_wr, a.max_sge, a.max_cq, a.max_cqe) = (4096, 1024, 16, 4096, 1 << 20);
        (a.max_mr, a.max_pd, a.max_srq, a.max_srq_wr, a.max_ah, a.phys_port_cnt) =
            (4096, 4096, 256, 1024, 4096, 1);
        (a.max_qp_rd_atom, a.max_qp_init_rd_atom, a.max_mr_size) = (16, 16, 1 << 40);
        *attr = a;
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_query_port(_: *mut ibv_context, port: u8, attr: *mut ibv_port_attr) -> c_int {
    if port != 1 {
        return libc::EINVAL;
    }
    // SAFETY: as above.
    let a = unsafe { &mut *attr };
    a.state = ibv_port_state::IBV_PORT_ACTIVE;
    (a.max_mtu, a.active_mtu) = (ibv_mtu::IBV_MTU_1024, ibv_mtu::IBV_MTU_1024);
    (a.gid_tbl_len, a.max_msg_sz, a.pkey_tbl_len) = (2, 1 << 16, 1);
    a.lid = hca().lid;
    a.link_layer = if a.lid == 0 { 2 } else { 1 };
    0
}

unsafe extern "C" fn query_port(c: *mut ibv_context, port: u8, attr: *mut ibv_port_attr, _: usize) -> c_int {
    // SAFETY: as above.
    unsafe { ibv_query_port(c, port, attr) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_query_gid(_: *mut ibv_context, port: u8, index: c_int, gid: *mut ibv_gid) -> c_int {
    let known = usize::try_from(index).ok().and_then(|k| hca().gids.get(k)).filter(|_| port == 1);
    match known {
        Some(raw) => {
            // SAFETY: as above.
            unsafe { (*gid).raw = *raw };
            0
        }
        None => -1,
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_query_gid_type(_: *mut ibv_context, _: u8, _: c_uint, sort: *mut c_uint) -> c_int {
    // SAFETY: as above.
    unsafe { *sort = c_uint::from(hca().lid == 0) };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_query_pkey(_: *mut ibv_context, _: u8, _: c_int, pkey: *mut u16) -> c_int {
    // SAFETY: as above.
    unsafe { *pkey = 0xffff };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_alloc_pd(context: *mut ibv_context) -> *mut ibv_pd {
    give(ibv_pd { context, handle: 1 })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_dealloc_pd(pd: *mut ibv_pd) -> c_int {
    // SAFETY: as above.
    unsafe { drop_at(pd) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_reg_mr(pd: *mut ibv_pd, addr: *mut c_void, length: usize, _: c_int) -> *mut ibv_mr {
    let mut w = world();
    // From a small range: they collide after a restart. One of all processes of a host has each.
    let hca = hca();
    let mut key = 0x100 + (w.random() % 64) as u32;
    while !hca.claim("key", key) {
        key += 1;
    }
    w.regions.insert(key, Region { at: addr.expose_provenance() as u64, length: length as u64 });
    // SAFETY: as above.
    let context = unsafe { (*pd).context };
    give(ibv_mr { context, pd, addr, length, handle: key, lkey: key, rkey: key })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_dereg_mr(mr: *mut ibv_mr) -> c_int {
    // SAFETY: as above.
    unsafe {
        world().regions.remove(&(*mr).lkey);
        hca().free("key", (*mr).lkey);
        drop_at(mr)
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_create_comp_channel(context: *mut ibv_context) -> *mut ibv_comp_channel {
    let mut two = [0; 2];
    // SAFETY: room for two.
    unsafe { libc::pipe2(two.as_mut_ptr(), libc::O_CLOEXEC) };
    let own = give(ibv_comp_channel { context, fd: two[0], refcnt: 0 });
    let channel = Channel { events: Default::default(), write: two[1] };
    world().channels.insert(own.expose_provenance(), channel);
    own
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_destroy_comp_channel(channel: *mut ibv_comp_channel) -> c_int {
    // SAFETY: as above.
    unsafe {
        if let Some(c) = world().channels.remove(&channel.expose_provenance()) {
            libc::close(c.write);
        }
        libc::close((*channel).fd);
        drop_at(channel)
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_get_cq_event(
    channel: *mut ibv_comp_channel,
    cq: *mut *mut ibv_cq,
    context: *mut *mut c_void,
) -> c_int {
    // SAFETY: as above.
    unsafe {
        let mut byte = 0u8;
        if libc::read((*channel).fd, (&raw mut byte).cast(), 1) != 1 {
            return -1;
        }
        let event = world().channels.get_mut(&channel.expose_provenance()).and_then(|c| c.events.pop_front());
        let own = std::ptr::with_exposed_provenance_mut::<ibv_cq>(event.unwrap_or(0));
        (*cq, *context) = (own, (*own).cq_context);
    }
    0
}

#[unsafe(no_mangle)]
extern "C" fn ibv_ack_cq_events(_cq: *mut ibv_cq, _n: c_uint) {}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_get_async_event(context: *mut ibv_context, _event: *mut ibv_async_event) -> c_int {
    let mut byte = 0u8;
    // SAFETY: as above. Nothing is ever written there.
    unsafe { libc::read((*context).async_fd, (&raw mut byte).cast(), 1) };
    -1
}

#[unsafe(no_mangle)]
extern "C" fn ibv_ack_async_event(_event: *mut ibv_async_event) {}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_create_cq(
    context: *mut ibv_context,
    cqe: c_int,
    cq_context: *mut c_void,
    channel: *mut ibv_comp_channel,
    _vector: c_int,
) -> *mut ibv_cq {
    // SAFETY: as above. A mutex of zeros is free.
    let mut own: ibv_cq = unsafe { std::mem::zeroed() };
    (own.context, own.channel, own.cq_context, own.cqe) = (context, channel, cq_context, cqe);
    let own = give(own);
    let room = usize::try_from(cqe).unwrap_or(0);
    world()
        .cqs
        .insert(own.expose_provenance(), Cq { room, channel: channel.expose_provenance(), ..Cq::default() });
    own
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_resize_cq(cq: *mut ibv_cq, cqe: c_int) -> c_int {
    let mut w = world();
    let room = usize::try_from(cqe).unwrap_or(0);
    match w.cqs.get_mut(&cq.expose_provenance()) {
        Some(q) if q.entries.len() <= room => q.room = room,
        _ => return libc::EINVAL,
    }
    // SAFETY: as above.
    unsafe { (*cq).cqe = cqe };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_destroy_cq(cq: *mut ibv_cq) -> c_int {
    let mut w = world();
    let at = cq.expose_provenance();
    if w.qps.values().any(|q| q.send_cq == at || q.recv_cq == at) {
        return libc::EBUSY;
    }
    w.cqs.remove(&at);
    // SAFETY: as above.
    unsafe { drop_at(cq) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_create_srq(pd: *mut ibv_pd, attr: *mut ibv_srq_init_attr) -> *mut ibv_srq {
    // SAFETY: as above.
    unsafe {
        let mut own: ibv_srq = std::mem::zeroed();
        (own.context, own.pd, own.srq_context) = ((*pd).context, pd, (*attr).srq_context);
        let own = give(own);
        world().srqs.insert(own.expose_provenance(), Default::default());
        own
    }
}

#[unsafe(no_mangle)]
extern "C" fn ibv_modify_srq(_: *mut ibv_srq, _: *mut ibv_srq_attr, _: c_int) -> c_int {
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_destroy_srq(srq: *mut ibv_srq) -> c_int {
    world().srqs.remove(&srq.expose_provenance());
    // SAFETY: as above.
    unsafe { drop_at(srq) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_create_ah(pd: *mut ibv_pd, attr: *mut ibv_ah_attr) -> *mut ibv_ah {
    // SAFETY: as above. Where it leads stands behind it.
    unsafe {
        let public = ibv_ah { context: (*pd).context, pd, handle: 0 };
        give((public, place(&*attr, 0))).cast()
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_destroy_ah(ah: *mut ibv_ah) -> c_int {
    // SAFETY: as above.
    unsafe { drop_at(ah.cast::<(ibv_ah, Place)>()) }
}

unsafe fn place(attr: &ibv_ah_attr, number: u32) -> Place {
    // SAFETY: sixteen bytes, whatever they mean.
    let gid = unsafe { attr.grh.dgid.raw };
    Place { gid: (attr.is_global != 0).then_some(gid), lid: attr.dlid, number }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_create_qp(pd: *mut ibv_pd, attr: *mut ibv_qp_init_attr) -> *mut ibv_qp {
    let (hca, mut w) = (hca(), world());
    // SAFETY: as above.
    unsafe {
        let a = &mut *attr;
        let mut number = 0x11 + (w.random() % 24) as u32;
        let by = |gid: Option<[u8; 16]>, number: u32| Place { gid, lid: hca.lid, number };
        // One of all processes of a host has each.
        while !hca.claim("number", number) {
            number += 1;
        }
        let name = crate::engine::name();
        for place in [by(Some(hca.gids[0]), number), by(Some(hca.gids[1]), number), by(None, number)] {
            let path = place.path(&hca.dir);
            let _ = std::fs::remove_file(&path);
            let _ = std::os::unix::fs::symlink(&name, &path);
        }
        let mut own: ibv_qp = std::mem::zeroed();
        (own.context, own.qp_context, own.pd) = ((*pd).context, a.qp_context, pd);
        (own.send_cq, own.recv_cq, own.srq) = (a.send_cq, a.recv_cq, a.srq);
        (own.qp_num, own.qp_type, own.state) = (number, a.qp_type, ibv_qp_state::IBV_QPS_RESET);
        let queues =
            [a.send_cq.expose_provenance(), a.recv_cq.expose_provenance(), a.srq.expose_provenance()];
        let global = hca.lid == 0;
        let own_place = by(global.then_some(hca.gids[1]), number);
        w.qps.insert(number, Qp::new(a.qp_type, queues, own_place));
        give(own)
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_destroy_qp(qp: *mut ibv_qp) -> c_int {
    // SAFETY: as above.
    unsafe {
        let number = (*qp).qp_num;
        world().qps.remove(&number);
        hca().free("number", number);
        drop_at(qp)
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_modify_qp(qp: *mut ibv_qp, attr: *mut ibv_qp_attr, mask: c_int) -> c_int {
    let mut w = world();
    // SAFETY: as above.
    unsafe {
        let (a, number) = (&*attr, (*qp).qp_num);
        let Some(q) = w.qps.get_mut(&number) else { return libc::EINVAL };
        // IBV_QP_AV, RNR_RETRY, RQ_PSN, SQ_PSN, DEST_QPN, STATE.
        if mask & 1 << 7 != 0 {
            q.peer = Place { number: q.peer.number, ..place(&a.ah_attr, 0) };
        }
        if mask & 1 << 20 != 0 {
            q.peer.number = a.dest_qp_num;
        }
        if mask & 1 << 11 != 0 {
            q.rnr_retry = u32::from(a.rnr_retry);
        }
        if mask & 1 << 12 != 0 {
            q.expected = a.rq_psn;
        }
        if mask & 1 << 16 != 0 {
            q.psn = a.sq_psn;
        }
        if mask & 1 != 0 {
            let legal = matches!(
                (q.state, a.qp_state),
                (_, ibv_qp_state::IBV_QPS_RESET | ibv_qp_state::IBV_QPS_ERR)
                    | (ibv_qp_state::IBV_QPS_RESET | ibv_qp_state::IBV_QPS_INIT, ibv_qp_state::IBV_QPS_INIT)
                    | (ibv_qp_state::IBV_QPS_INIT, ibv_qp_state::IBV_QPS_RTR)
                    | (ibv_qp_state::IBV_QPS_RTR | ibv_qp_state::IBV_QPS_RTS, ibv_qp_state::IBV_QPS_RTS)
            );
            if !legal {
                return libc::EINVAL;
            }
            match a.qp_state {
                ibv_qp_state::IBV_QPS_RESET => q.reset(),
                ibv_qp_state::IBV_QPS_ERR => w.flush(number),
                state => q.state = state,
            }
            (*qp).state = a.qp_state;
        }
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_query_qp(
    qp: *mut ibv_qp,
    attr: *mut ibv_qp_attr,
    _mask: c_int,
    _init: *mut ibv_qp_init_attr,
) -> c_int {
    let w = world();
    // SAFETY: as above.
    unsafe {
        let Some(q) = w.qps.get(&(*qp).qp_num) else { return libc::EINVAL };
        ((*attr).qp_state, (*attr).cur_qp_state) = (q.state, q.state);
        (*qp).state = q.state;
    }
    0
}

unsafe fn elements(list: *const ibv_sge, n: c_int) -> Vec<Element> {
    // SAFETY: as above.
    (0..usize::try_from(n).unwrap_or(0))
        .map(|k| unsafe { *list.add(k) })
        .map(|s| (s.addr, s.length, s.lkey))
        .collect()
}

unsafe extern "C" fn post_send(
    qp: *mut ibv_qp,
    mut wr: *mut ibv_send_wr,
    bad: *mut *mut ibv_send_wr,
) -> c_int {
    let mut w = world();
    // SAFETY: as above.
    unsafe {
        let Some(q) = w.qps.get_mut(&(*qp).qp_num) else { return libc::EINVAL };
        if !matches!(
            q.state,
            ibv_qp_state::IBV_QPS_RTS | ibv_qp_state::IBV_QPS_ERR | ibv_qp_state::IBV_QPS_SQD
        ) {
            *bad = wr;
            return libc::EINVAL;
        }
        while let Some(r) = wr.as_ref() {
            use ibv_wr_opcode as op;
            let (mut key, mut words, mut to) = (0, [0; 3], None);
            match r.opcode {
                op::IBV_WR_RDMA_WRITE | op::IBV_WR_RDMA_WRITE_WITH_IMM | op::IBV_WR_RDMA_READ => {
                    (key, words[0]) = (r.wr.rdma.rkey, r.wr.rdma.remote_addr);
                }
                op::IBV_WR_ATOMIC_CMP_AND_SWP | op::IBV_WR_ATOMIC_FETCH_AND_ADD => {
                    key = r.wr.atomic.rkey;
                    words = [r.wr.atomic.remote_addr, r.wr.atomic.compare_add, r.wr.atomic.swap];
                }
                _ if q.kind == ibv_qp_type::IBV_QPT_UD => {
                    let (_, place) = &*r.wr.ud.ah.cast::<(ibv_ah, Place)>();
                    to = Some(Place { number: r.wr.ud.remote_qpn, ..*place });
                }
                _ => {}
            }
            let elements = elements(r.sg_list, r.num_sge);
            // IBV_SEND_INLINE.
            let data = (r.send_flags & 8 != 0).then(|| crate::engine::copy(&elements));
            q.sends.push_back(Request {
                id: r.wr_id,
                opcode: r.opcode,
                signaled: r.send_flags & 2 != 0,
                solicited: r.send_flags & 4 != 0,
                imm: r.imm_data_invalidated_rkey_union.imm_data,
                key,
                words,
                elements,
                data,
                to,
            });
            wr = r.next;
        }
    }
    0
}

unsafe fn receives(mut wr: *mut ibv_recv_wr, mut push: impl FnMut(Receive)) {
    // SAFETY: as above.
    unsafe {
        while let Some(r) = wr.as_ref() {
            push(Receive { id: r.wr_id, elements: elements(r.sg_list, r.num_sge) });
            wr = r.next;
        }
    }
}

unsafe extern "C" fn post_recv(qp: *mut ibv_qp, wr: *mut ibv_recv_wr, _bad: *mut *mut ibv_recv_wr) -> c_int {
    let mut w = world();
    // SAFETY: as above.
    unsafe {
        let Some(q) = w.qps.get_mut(&(*qp).qp_num) else { return libc::EINVAL };
        if q.state == ibv_qp_state::IBV_QPS_RESET {
            return libc::EINVAL;
        }
        receives(wr, |r| q.receives.push_back(r));
    }
    0
}

unsafe extern "C" fn post_srq_recv(
    srq: *mut ibv_srq,
    wr: *mut ibv_recv_wr,
    _: *mut *mut ibv_recv_wr,
) -> c_int {
    let mut w = world();
    let Some(q) = w.srqs.get_mut(&srq.expose_provenance()) else { return libc::EINVAL };
    // SAFETY: as above.
    unsafe { receives(wr, |r| q.push_back(r)) };
    0
}

unsafe extern "C" fn poll_cq(cq: *mut ibv_cq, most: c_int, wc: *mut ibv_wc) -> c_int {
    let mut w = world();
    let Some(q) = w.cqs.get_mut(&cq.expose_provenance()) else { return -1 };
    let n = q.entries.len().min(usize::try_from(most).unwrap_or(0));
    for (k, one) in q.entries.drain(..n).enumerate() {
        // SAFETY: room for so many.
        unsafe { wc.add(k).write(one.0) };
    }
    n as c_int
}

/// Of a library that does nothing: what is posted is done. How much that is stands in the queue, and the last `wr_id` too.
unsafe extern "C" fn null_post(qp: *mut ibv_qp, mut wr: *mut ibv_send_wr, _: *mut *mut ibv_send_wr) -> c_int {
    // SAFETY: as above; one thread a queue.
    unsafe {
        let cq = &mut *(*qp).send_cq;
        while let Some(r) = wr.as_ref() {
            cq.comp_events_completed += 1;
            cq.cq_context = std::ptr::without_provenance_mut(r.wr_id as usize);
            wr = r.next;
        }
    }
    0
}

/// Completions in order: numbers of requests go up by one.
unsafe extern "C" fn null_poll(cq: *mut ibv_cq, most: c_int, wc: *mut ibv_wc) -> c_int {
    // SAFETY: as above.
    unsafe {
        let (cq, mut n) = (&mut *cq, 0);
        while cq.comp_events_completed > 0 && n < most {
            cq.comp_events_completed -= 1;
            let w = &mut *wc.add(n as usize);
            w.wr_id = cq.cq_context.addr() as u64 - u64::from(cq.comp_events_completed);
            (w.status, w.opcode) = (0, 0);
            n += 1;
        }
        n
    }
}

unsafe extern "C" fn req_notify_cq(cq: *mut ibv_cq, solicited: c_int) -> c_int {
    if let Some(q) = world().cqs.get_mut(&cq.expose_provenance()) {
        q.armed = if solicited != 0 { 2 } else { 1 };
    }
    0
}

#[unsafe(no_mangle)]
extern "C" fn ibv_wc_status_str(status: c_uint) -> *const c_char {
    let text = match status {
        0 => c"success",
        5 => c"Work Request Flushed Error",
        12 => c"transport retry counter exceeded",
        13 => c"RNR retry counter exceeded",
        _ => c"another error",
    };
    text.as_ptr()
}

#[unsafe(no_mangle)]
extern "C" fn ibv_fork_init() -> c_int {
    0
}

#[unsafe(no_mangle)]
extern "C" fn ibv_rereg_mr(_: *mut ibv_mr) -> c_int {
    libc::EOPNOTSUPP
}

#[unsafe(no_mangle)]
extern "C" fn ibv_query_srq(_: *mut ibv_srq, _: *mut ibv_srq_attr) -> c_int {
    libc::EOPNOTSUPP
}

#[unsafe(no_mangle)]
extern "C" fn ibv_reg_mr_iova2(_: *mut ibv_pd) -> *mut ibv_mr {
    refuse(libc::EOPNOTSUPP)
}
