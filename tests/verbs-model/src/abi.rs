//! What libibverbs exports, as far as the front and the tests' programs call it.
//!
//! What a reader would get wrong: real objects are what an application has pointers to, here as there; the engine knows them by address.

use std::collections::BTreeMap;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use rdma_sys::*;

use crate::engine::{
    Channel, Cq, Element, MOST, Qp, Receive, Region, Request, Srq, World, devices, hca, world,
};
use crate::windows::{Bind, LOCAL_WRITE, REMOTE_ATOMIC, REMOTE_READ, REMOTE_WRITE, Window, can_bind};
use crate::wire::Place;

fn errno(number: c_int) {
    // SAFETY: the calling thread's variable.
    unsafe { *libc::__errno_location() = number };
}

pub(crate) fn refuse<T>(number: c_int) -> *mut T {
    errno(number);
    std::ptr::null_mut()
}

pub(crate) fn give<T>(of: T) -> *mut T {
    Box::into_raw(Box::new(of))
}

/// # Safety
/// For everything below: what libibverbs asks of its callers (verbs.h).
pub(crate) unsafe fn drop_at<T>(of: *mut T) -> c_int {
    // SAFETY: the caller's promise; `give` has made it.
    drop(unsafe { Box::from_raw(of) });
    0
}

fn text<const N: usize>(of: &str) -> [c_char; N] {
    let mut all = [0; N];
    all.iter_mut().zip(of.bytes()).for_each(|(to, b)| *to = b as c_char);
    all
}

/// Addresses of the devices' objects.
static DEVICES: OnceLock<[usize; MOST]> = OnceLock::new();

/// Which device it is: the last letter of its name says so.
///
/// # Safety
/// One of ours.
pub(crate) unsafe fn which(device: *mut ibv_device) -> usize {
    // SAFETY: the caller's promise.
    usize::from(unsafe { (*device).name[5] } as u8 - b'0')
}

/// The device of a context, or of another object that has one.
macro_rules! device_of {
    ($context:ident) => {{
        #[allow(unused_unsafe, reason = "some callers are in such a block")]
        // SAFETY: what libibverbs asks of its callers.
        let device = unsafe { $crate::abi::which((*$context).device) };
        device
    }};
    ($object:ident.context) => {{
        #[allow(unused_unsafe, reason = "as above")]
        // SAFETY: as above.
        let device = unsafe { $crate::abi::which((*(*$object).context).device) };
        device
    }};
}
pub(crate) use device_of;

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_get_device_list(num: *mut c_int) -> *mut *mut ibv_device {
    let all = DEVICES.get_or_init(|| {
        std::array::from_fn(|k| {
            // SAFETY: numbers and texts.
            let mut d: ibv_device = unsafe { std::mem::zeroed() };
            (d.name, d.dev_name) = (text(&format!("model{k}")), text(&format!("uverbs{k}")));
            d.node_type = ibv_node_type::IBV_NODE_CA;
            d.transport_type = ibv_transport_type::IBV_TRANSPORT_IB;
            give(d).expose_provenance()
        })
    });
    let mut list = [std::ptr::null_mut::<ibv_device>(); MOST + 1];
    for (to, at) in list.iter_mut().zip(all).take(devices()) {
        *to = std::ptr::with_exposed_provenance_mut(*at);
    }
    if !num.is_null() {
        // SAFETY: the caller's.
        unsafe { *num = devices() as c_int };
    }
    give(list).cast()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_free_device_list(list: *mut *mut ibv_device) {
    // SAFETY: as above.
    unsafe { drop_at(list.cast::<[*mut ibv_device; MOST + 1]>()) };
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_get_device_name(device: *mut ibv_device) -> *const c_char {
    // SAFETY: as above.
    unsafe { (*device).name.as_ptr() }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_get_device_guid(device: *mut ibv_device) -> u64 {
    // SAFETY: as above.
    u64::from(hca(unsafe { which(device) }).gids[1][15]).to_be()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_get_device_index(device: *mut ibv_device) -> c_int {
    // SAFETY: as above.
    unsafe { which(device) as c_int }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_open_device(device: *mut ibv_device) -> *mut ibv_context {
    // SAFETY: pointers that may be null, numbers, and a mutex that is free when it is zero (glibc).
    unsafe {
        let mut v: verbs_context = std::mem::zeroed();
        v.sz = size_of::<verbs_context>();
        v.query_port = Some(query_port);
        crate::xrc::table(&mut v);
        let c = &mut v.context;
        let mut two = [0; 2];
        libc::pipe2(two.as_mut_ptr(), libc::O_CLOEXEC);
        world(which(device)).asynchronous_fd = two[1];
        (c.device, c.async_fd, c.cmd_fd, c.num_comp_vectors) = (device, two[0], two[1], 1);
        c.abi_compat = std::ptr::without_provenance_mut(usize::MAX);
        c.ops.poll_cq = Some(poll_cq);
        if std::env::var_os("MODEL_NULL").is_some() {
            c.ops.poll_cq = Some(null_poll);
            c.ops.post_send = Some(null_post);
            return &raw mut (*give(v)).context;
        }
        c.ops.alloc_mw = Some(alloc_mw);
        c.ops.bind_mw = Some(bind_mw);
        c.ops.dealloc_mw = Some(dealloc_mw);
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
        // IBV_DEVICE_MEM_WINDOW, IBV_DEVICE_XRC, IBV_DEVICE_MEM_WINDOW_TYPE_2B.
        (a.device_cap_flags, a.max_mw) = (1 << 17 | 1 << 20 | 1 << 24, 4096);
        (a.max_mcast_grp, a.max_mcast_qp_attach, a.max_total_mcast_qp_attach) = (4096, 4096, 4096);
        *attr = a;
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_query_port(context: *mut ibv_context, port: u8, attr: *mut ibv_port_attr) -> c_int {
    if port != 1 {
        return libc::EINVAL;
    }
    // SAFETY: as above.
    let a = unsafe { &mut *attr };
    a.state = ibv_port_state::IBV_PORT_ACTIVE;
    (a.max_mtu, a.active_mtu) = (ibv_mtu::IBV_MTU_1024, ibv_mtu::IBV_MTU_1024);
    (a.gid_tbl_len, a.max_msg_sz, a.pkey_tbl_len) = (2, 1 << 16, 3);
    a.lid = hca(device_of!(context)).lid;
    a.link_layer = if a.lid == 0 { 2 } else { 1 };
    0
}

unsafe extern "C" fn query_port(c: *mut ibv_context, port: u8, attr: *mut ibv_port_attr, _: usize) -> c_int {
    // SAFETY: as above.
    unsafe { ibv_query_port(c, port, attr) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_query_gid(
    context: *mut ibv_context,
    port: u8,
    index: c_int,
    gid: *mut ibv_gid,
) -> c_int {
    let known =
        usize::try_from(index).ok().and_then(|k| hca(device_of!(context)).gids.get(k)).filter(|_| port == 1);
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
unsafe extern "C" fn ibv_query_gid_type(
    context: *mut ibv_context,
    _: u8,
    _: c_uint,
    sort: *mut c_uint,
) -> c_int {
    // SAFETY: as above.
    unsafe { *sort = c_uint::from(hca(device_of!(context)).lid == 0) };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_query_pkey(context: *mut ibv_context, _: u8, index: c_int, pkey: *mut u16) -> c_int {
    let known = usize::try_from(index).ok().filter(|at| *at < 3);
    // SAFETY: as above.
    unsafe { *pkey = known.map_or(0, |at| hca(device_of!(context)).partition(at)).to_be() };
    if known.is_some() { 0 } else { -1 }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_get_pkey_index(context: *mut ibv_context, _: u8, pkey: u16) -> c_int {
    let hca = hca(device_of!(context));
    (0..3).find(|at| hca.partition(*at) == u16::from_be(pkey)).map_or(-1, |at| at as c_int)
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

/// The upper bits of a key, from a small range: they collide after a restart. One of all processes of a host has each.
fn new_key(w: &mut World) -> u32 {
    let mut key = 1 + (w.random() % 64) as u32;
    while !hca(w.device).claim("key", key) {
        key += 1;
    }
    key
}

/// The two keys of a new region.
fn region(w: &mut World, of: Region) -> (u32, u32) {
    let key = new_key(w) << 8;
    // As soft-RoCE has it (`rxe_mr_init` in rxe_mr.c).
    let rkey = if of.access & (REMOTE_WRITE | REMOTE_READ | REMOTE_ATOMIC) != 0 { key } else { 0 };
    w.regions.insert(key, of);
    (key, rkey)
}

/// As a kernel does that gets hold of the pages: they must be there, readable, and writable if the device is to write them (`ib_umem_get` in
/// drivers/infiniband/core/umem.c).
fn can_pin(addr: usize, length: usize, access: u32) -> bool {
    const POPULATE_READ: i32 = 22;
    const PAGE: usize = 4096;
    static KNOWN: OnceLock<bool> = OnceLock::new();
    // SAFETY: as below; of no memory at all.
    if !*KNOWN.get_or_init(|| unsafe { libc::madvise(std::ptr::null_mut(), 0, POPULATE_READ) } == 0) {
        return true;
    }
    let start = addr & !(PAGE - 1);
    let Some(end) = addr.checked_add(length).filter(|_| length != 0) else { return true };
    let advice = POPULATE_READ + i32::from(access & (LOCAL_WRITE | REMOTE_WRITE | REMOTE_ATOMIC) != 0);
    // SAFETY: no content changes (MADV_POPULATE_READ, _WRITE in madvise(2), Linux 5.14).
    unsafe { libc::madvise(std::ptr::with_exposed_provenance_mut(start), end - start, advice) == 0 }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_reg_mr(
    pd: *mut ibv_pd,
    addr: *mut c_void,
    length: usize,
    access: c_int,
) -> *mut ibv_mr {
    if !can_pin(addr.expose_provenance(), length, access as u32) {
        errno(libc::EFAULT);
        return std::ptr::null_mut();
    }
    let at = addr.expose_provenance() as u64;
    let of = Region { at, length: length as u64, access: access as u32, pd: pd.expose_provenance() };
    let (key, rkey) = region(&mut world(device_of!(pd.context)), of);
    // SAFETY: as above.
    let context = unsafe { (*pd).context };
    give(ibv_mr { context, pd, addr, length, handle: key, lkey: key, rkey })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_dereg_mr(mr: *mut ibv_mr) -> c_int {
    // SAFETY: as above.
    unsafe {
        let (mut w, key) = (world(device_of!(mr.context)), (*mr).lkey);
        if w.windows.values().any(|m| m.bound.is_some_and(|b| b.region == key)) {
            return libc::EBUSY;
        }
        w.regions.remove(&key);
        hca(device_of!(mr.context)).free("key", key >> 8);
        drop_at(mr)
    }
}

unsafe extern "C" fn alloc_mw(pd: *mut ibv_pd, kind: ibv_mw_type::Type) -> *mut ibv_mw {
    let mut w = world(device_of!(pd.context));
    let index = new_key(&mut w);
    // Nobody chooses the low bits of the first one.
    let key = index << 8 | w.random() as u32 & 3;
    w.windows.insert(index, Window { kind, key, pd: pd.expose_provenance(), bound: None });
    // SAFETY: as above.
    let context = unsafe { (*pd).context };
    give(ibv_mw { context, pd, rkey: key, handle: index, type_: kind })
}

unsafe extern "C" fn dealloc_mw(mw: *mut ibv_mw) -> c_int {
    // SAFETY: as above.
    unsafe {
        let index = (*mw).handle;
        world(device_of!(mw.context)).windows.remove(&index);
        hca(device_of!(mw.context)).free("key", index);
        drop_at(mw)
    }
}

/// Of type 1: the next key, which the window has at once.
unsafe extern "C" fn bind_mw(qp: *mut ibv_qp, mw: *mut ibv_mw, bind: *mut ibv_mw_bind) -> c_int {
    // SAFETY: as above.
    unsafe {
        let b = &*bind;
        let mut wr: ibv_send_wr = std::mem::zeroed();
        (wr.wr_id, wr.opcode, wr.send_flags) = (b.wr_id, ibv_wr_opcode::IBV_WR_BIND_MW, b.send_flags);
        let key = (*mw).rkey & !0xff | ((*mw).rkey + 1) & 0xff;
        let own = &mut wr.bind_mw_tso_union.bind_mw;
        (own.mw, own.rkey, own.bind_info) = (mw, key, b.bind_info);
        let mut bad = std::ptr::null_mut();
        let r = post_send(qp, &raw mut wr, &raw mut bad);
        if r == 0 {
            (*mw).rkey = key;
        }
        r
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_create_comp_channel(context: *mut ibv_context) -> *mut ibv_comp_channel {
    let mut two = [0; 2];
    // SAFETY: room for two.
    unsafe { libc::pipe2(two.as_mut_ptr(), libc::O_CLOEXEC) };
    let own = give(ibv_comp_channel { context, fd: two[0], refcnt: 0 });
    let channel = Channel { events: Default::default(), write: two[1] };
    world(device_of!(context)).channels.insert(own.expose_provenance(), channel);
    own
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_destroy_comp_channel(channel: *mut ibv_comp_channel) -> c_int {
    // SAFETY: as above.
    unsafe {
        if let Some(c) = world(device_of!(channel.context)).channels.remove(&channel.expose_provenance()) {
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
        loop {
            if libc::read((*channel).fd, (&raw mut byte).cast(), 1) != 1 {
                return -1;
            }
            let mut w = world(device_of!(channel.context));
            let event = w.channels.get_mut(&channel.expose_provenance()).and_then(|c| c.events.pop_front());
            // None: of a queue that is gone.
            if let Some(at) = event {
                *read().entry(at).or_default() += 1;
                let own = std::ptr::with_exposed_provenance_mut::<ibv_cq>(at);
                (*cq, *context) = (own, (*own).cq_context);
                return 0;
            }
        }
    }
}

/// Events of any kind that were read and are not acknowledged, by the object's address.
fn read() -> MutexGuard<'static, BTreeMap<usize, u32>> {
    static READ: Mutex<BTreeMap<usize, u32>> = Mutex::new(BTreeMap::new());
    READ.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// So many events of an object were acknowledged; no more than were read.
fn acknowledge(at: usize, n: u32) {
    let mut all = read();
    let read = all.get_mut(&at).filter(|read| **read >= n);
    let Some(read) = read else {
        eprintln!("verbs model: {n} events of {at:#x} are acknowledged that were not read");
        std::process::abort();
    };
    *read -= n;
}

/// An object is destroyed: what is unread of it is nobody's, and what was read is to be acknowledged before; else its memory would
/// be used later.
fn unread_no_more(device: usize, at: usize) {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let mut w = world(device);
        w.asynchronous.retain(|(element, _)| *element != at);
        w.channels.values_mut().for_each(|c| c.events.retain(|cq| *cq != at));
        drop(w);
        let mut all = read();
        if all.get(&at).is_none_or(|n| *n == 0) {
            all.remove(&at);
            return;
        }
        drop(all);
        if Instant::now() > until {
            eprintln!("verbs model: {at:#x} is destroyed, and events of it are not acknowledged");
            std::process::abort();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[unsafe(no_mangle)]
extern "C" fn ibv_ack_cq_events(cq: *mut ibv_cq, n: c_uint) {
    acknowledge(cq.expose_provenance(), n);
}

/// `struct ibv_async_event`.
#[repr(C)]
struct Event {
    element: usize,
    kind: u32,
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_get_async_event(context: *mut ibv_context, event: *mut ibv_async_event) -> c_int {
    let mut byte = 0u8;
    loop {
        // SAFETY: as above.
        unsafe {
            if libc::read((*context).async_fd, (&raw mut byte).cast(), 1) != 1 {
                return -1;
            }
            let mut w = world(device_of!(context));
            if let Some((element, kind)) = w.asynchronous.pop_front() {
                *read().entry(element).or_default() += 1;
                event.cast::<Event>().write(Event { element, kind });
                return 0;
            }
        }
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_ack_async_event(event: *mut ibv_async_event) {
    // SAFETY: as above.
    acknowledge(unsafe { (*event.cast::<Event>()).element }, 1);
}

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
    world(device_of!(context))
        .cqs
        .insert(own.expose_provenance(), Cq { room, channel: channel.expose_provenance(), ..Cq::default() });
    own
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_resize_cq(cq: *mut ibv_cq, cqe: c_int) -> c_int {
    // A system call: others come in between.
    std::thread::sleep(Duration::from_micros(200));
    let mut w = world(device_of!(cq.context));
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
    let mut w = world(device_of!(cq.context));
    let at = cq.expose_provenance();
    if w.qps.values().any(|q| q.send_cq == at || q.recv_cq == at) {
        return libc::EBUSY;
    }
    w.cqs.remove(&at);
    drop(w);
    unread_no_more(device_of!(cq.context), at);
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
        world(device_of!(pd.context)).srqs.insert(own.expose_provenance(), Srq::default());
        own
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_modify_srq(srq: *mut ibv_srq, attr: *mut ibv_srq_attr, mask: c_int) -> c_int {
    let mut w = world(device_of!(srq.context));
    let Some(q) = w.srqs.get_mut(&srq.expose_provenance()) else { return libc::EINVAL };
    // IBV_SRQ_LIMIT.
    if mask & 2 != 0 {
        // SAFETY: as above.
        q.limit = unsafe { (*attr).srq_limit } as usize;
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_destroy_srq(srq: *mut ibv_srq) -> c_int {
    let known = world(device_of!(srq.context)).srqs.remove(&srq.expose_provenance());
    if let Some(xrc) = known.and_then(|s| s.xrc) {
        hca(device_of!(srq.context)).free("srq", xrc.number);
    }
    unread_no_more(device_of!(srq.context), srq.expose_provenance());
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

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_init_ah_from_wc(
    context: *mut ibv_context,
    port: u8,
    wc: *mut ibv_wc,
    grh: *mut ibv_grh,
    attr: *mut ibv_ah_attr,
) -> c_int {
    // SAFETY: as above; 40 bytes, if the completion says that there is a header.
    unsafe {
        let (wc, a) = (&*wc, &mut *attr);
        *a = std::mem::zeroed();
        (a.dlid, a.sl, a.src_path_bits, a.port_num) = (wc.slid, wc.sl, wc.dlid_path_bits, port);
        if wc.wc_flags & 1 != 0 {
            let [from, to] = crate::wire::ends(&*grh.cast());
            let Some(index) = hca(device_of!(context)).gids.iter().position(|gid| *gid == to) else {
                errno(libc::EINVAL);
                return -1;
            };
            (a.is_global, a.grh.dgid.raw, a.grh.sgid_index, a.grh.hop_limit) = (1, from, index as u8, 0xff);
        }
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_create_ah_from_wc(
    pd: *mut ibv_pd,
    wc: *mut ibv_wc,
    grh: *mut ibv_grh,
    port: u8,
) -> *mut ibv_ah {
    // SAFETY: as above.
    unsafe {
        let mut attr: ibv_ah_attr = std::mem::zeroed();
        if ibv_init_ah_from_wc((*pd).context, port, wc, grh, &raw mut attr) != 0 {
            return std::ptr::null_mut();
        }
        ibv_create_ah(pd, &raw mut attr)
    }
}

unsafe fn place(attr: &ibv_ah_attr, number: u32) -> Place {
    // SAFETY: sixteen bytes, whatever they mean.
    let gid = unsafe { attr.grh.dgid.raw };
    Place { gid: (attr.is_global != 0).then_some(gid), lid: attr.dlid, number, index: attr.grh.sgid_index }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_create_qp(pd: *mut ibv_pd, attr: *mut ibv_qp_init_attr) -> *mut ibv_qp {
    // SAFETY: as above.
    unsafe { make_qp((*pd).context, pd, &mut *attr, 0) }
}

/// A queue pair, of a protection domain or of one of extended connections.
///
/// # Safety
/// As above.
pub(crate) unsafe fn make_qp(
    context: *mut ibv_context,
    pd: *mut ibv_pd,
    a: &mut ibv_qp_init_attr,
    domain: u32,
) -> *mut ibv_qp {
    let (hca, mut w) = (hca(device_of!(context)), world(device_of!(context)));
    // SAFETY: as above.
    unsafe {
        let mut number = 0x11 + (w.random() % 24) as u32;
        let by = |gid: Option<[u8; 16]>, number: u32| Place { gid, lid: hca.lid, number, index: 1 };
        // One of all processes of a host has each.
        while w.qps.contains_key(&number) || !hca.claim("number", number) {
            number += 1;
        }
        let name = crate::engine::name(device_of!(context));
        for place in [by(Some(hca.gids[0]), number), by(Some(hca.gids[1]), number), by(None, number)] {
            let path = place.path(&hca.dir);
            let _ = std::fs::remove_file(&path);
            let _ = std::os::unix::fs::symlink(&name, &path);
        }
        let mut own: ibv_qp = std::mem::zeroed();
        (own.context, own.qp_context, own.pd) = (context, a.qp_context, pd);
        (own.send_cq, own.recv_cq, own.srq) = (a.send_cq, a.recv_cq, a.srq);
        (own.qp_num, own.qp_type, own.state) = (number, a.qp_type, ibv_qp_state::IBV_QPS_RESET);
        let queues =
            [a.send_cq.expose_provenance(), a.recv_cq.expose_provenance(), a.srq.expose_provenance()];
        let global = hca.lid == 0;
        let own_place = by(global.then_some(hca.gids[1]), number);
        let own = give(own);
        let mut new = Qp::new(own.expose_provenance(), a.qp_type, pd.expose_provenance(), queues, own_place);
        new.domain = domain;
        w.qps.insert(number, new);
        own
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_destroy_qp(qp: *mut ibv_qp) -> c_int {
    // SAFETY: as above.
    unsafe {
        let number = (*qp).qp_num;
        let mut w = world(device_of!(qp.context));
        w.qps.remove(&number);
        w.detach_all(number);
        drop(w);
        unread_no_more(device_of!(qp.context), qp.expose_provenance());
        hca(device_of!(qp.context)).free("number", number);
        drop_at(qp)
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_modify_qp(qp: *mut ibv_qp, attr: *mut ibv_qp_attr, mask: c_int) -> c_int {
    let mut w = world(device_of!(qp.context));
    // SAFETY: as above.
    unsafe {
        let (a, number) = (&*attr, (*qp).qp_num);
        let Some(q) = w.qps.get_mut(&number) else { return libc::EINVAL };
        // IBV_QP_AV, RNR_RETRY, MIN_RNR_TIMER, RQ_PSN, SQ_PSN, DEST_QPN, STATE.
        if mask & 1 << 7 != 0 {
            q.peer = Place { number: q.peer.number, ..place(&a.ah_attr, 0) };
        }
        // IBV_QP_PKEY_INDEX.
        if mask & 1 << 4 != 0 {
            q.partition = hca(device_of!(qp.context)).partition(a.pkey_index.into());
            q.pkey_index = a.pkey_index;
        }
        if mask & 1 << 20 != 0 {
            q.peer.number = a.dest_qp_num;
        }
        if mask & 1 << 11 != 0 {
            q.rnr_retry = u32::from(a.rnr_retry);
        }
        if mask & 1 << 15 != 0 {
            q.rnr_timer = u32::from(a.min_rnr_timer);
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
    let w = world(device_of!(qp.context));
    // SAFETY: as above.
    unsafe {
        let Some(q) = w.qps.get(&(*qp).qp_num) else { return libc::EINVAL };
        ((*attr).qp_state, (*attr).cur_qp_state) = (q.state, q.state);
        ((*attr).rnr_retry, (*attr).pkey_index) = (q.rnr_retry as u8, q.pkey_index);
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
    let mut w = world(device_of!(qp.context));
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
            let (mut key, mut words, mut to, mut bind) = (0, [0; 3], None, None);
            match r.opcode {
                op::IBV_WR_BIND_MW if !can_bind(q.kind) => {
                    *bad = wr;
                    return libc::EINVAL;
                }
                op::IBV_WR_BIND_MW => {
                    let b = &r.bind_mw_tso_union.bind_mw;
                    bind = Some(Bind::of(b.mw, b.rkey, &b.bind_info));
                }
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
                bind,
                srq: if q.kind == ibv_qp_type::IBV_QPT_XRC_SEND { r.qp_type.xrc.remote_srqn } else { 0 },
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
    let mut w = world(device_of!(qp.context));
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
    let mut w = world(device_of!(srq.context));
    let Some(q) = w.srqs.get_mut(&srq.expose_provenance()) else { return libc::EINVAL };
    // SAFETY: as above.
    unsafe { receives(wr, |r| q.receives.push_back(r)) };
    0
}

unsafe extern "C" fn poll_cq(cq: *mut ibv_cq, most: c_int, wc: *mut ibv_wc) -> c_int {
    let mut w = world(device_of!(cq.context));
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
    if let Some(q) = world(device_of!(cq.context)).cqs.get_mut(&cq.expose_provenance()) {
        q.armed = if solicited != 0 { 2 } else { 1 };
    }
    0
}

#[unsafe(no_mangle)]
extern "C" fn ibv_wc_status_str(status: c_uint) -> *const c_char {
    let text = match status {
        0 => c"success",
        5 => c"Work Request Flushed Error",
        6 => c"memory window bind error",
        10 => c"remote access error",
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

/// Always with another key.
#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_rereg_mr(
    mr: *mut ibv_mr,
    flags: c_int,
    pd: *mut ibv_pd,
    addr: *mut c_void,
    length: usize,
    access: c_int,
) -> c_int {
    // SAFETY: as above. IBV_REREG_MR_CHANGE_TRANSLATION, _PD, _ACCESS.
    unsafe {
        let (mut w, m) = (world(device_of!(mr.context)), &mut *mr);
        let before = m.lkey;
        if w.windows.values().any(|m| m.bound.is_some_and(|b| b.region == before)) {
            return libc::EBUSY;
        }
        if flags & 1 != 0 {
            (m.addr, m.length) = (addr, length);
        }
        if flags & 2 != 0 {
            m.pd = pd;
        }
        let Some(was) = w.regions.remove(&before) else { return libc::EINVAL };
        let (at, length) = (m.addr.expose_provenance() as u64, m.length as u64);
        let access = if flags & 4 != 0 { access as u32 } else { was.access };
        (m.lkey, m.rkey) = region(&mut w, Region { at, length, access, pd: m.pd.expose_provenance() });
        hca(device_of!(mr.context)).free("key", before >> 8);
    }
    0
}

#[unsafe(no_mangle)]
extern "C" fn ibv_query_srq(_: *mut ibv_srq, _: *mut ibv_srq_attr) -> c_int {
    libc::EOPNOTSUPP
}

#[unsafe(no_mangle)]
extern "C" fn ibv_reg_mr_iova2(_: *mut ibv_pd) -> *mut ibv_mr {
    refuse(libc::EOPNOTSUPP)
}
