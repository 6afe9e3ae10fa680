//! Extended reliable connections (XRC): their domains, and the shared receive queues that senders name by a number.
//!
//! What a reader would get wrong: a domain may have a file, by which processes of a host share it; after a restart that is opened
//! again by its name. What a process of the job receives for another one, in such a domain, cannot be saved: its messages are counted where
//! they are received, and those who judge whether all have arrived ask the owner of the queue pair.

use std::collections::BTreeSet;
use std::ffi::{CString, c_int, c_void};
use std::os::unix::ffi::OsStringExt;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use rdma_sys::{
    ibv_context, ibv_cq, ibv_pd, ibv_qp, ibv_qp_init_attr_ex, ibv_qp_type, ibv_srq, ibv_srq_attr,
    ibv_srq_init_attr_ex, ibv_srq_type, ibv_xrcd, ibv_xrcd_init_attr, verbs_context,
};

use crate::below::{by_pointer, errno, fail, inside};
use crate::lock::Lock;
use crate::log;
use crate::objects::{Object, Srq, Xrcd, real};
use crate::world::{self, Kind};
use crate::{device, queue};

/// IBV_XRCD_INIT_ATTR_FD and IBV_XRCD_INIT_ATTR_OFLAGS; IBV_SRQ_INIT_ATTR_TYPE, _PD, _XRCD and _CQ; IBV_QP_INIT_ATTR_XRCD.
const XRCD_ALL: u32 = 3;
const SRQ_ALL: u32 = 0xf;
pub(crate) const QP_XRCD: u32 = 2;

/// A domain: the name of its file, if it has one.
pub(crate) struct Domain {
    file: Option<CString>,
}

/// What a shared receive queue has of its domain, and its number, as the application knows it and as the device does.
#[derive(Clone, Copy)]
pub(crate) struct Extended {
    xrcd: usize,
    cq: usize,
    number: u32,
    there: u32,
}

impl Extended {
    /// Its queue of completions.
    pub(crate) fn completions(&self) -> usize {
        self.cq
    }
}

/// Numbers of queues that were there at a restart, here and at others of the same address.
static TAKEN: Lock<BTreeSet<u32>> = Lock::new(BTreeSet::new());
static CHANGED: AtomicBool = AtomicBool::new(false);

/// What verbs.h calls by the context's extended table.
pub(crate) fn table(of: &mut verbs_context) {
    of.open_xrcd = Some(open_xrcd);
    of.close_xrcd = Some(close_xrcd);
    of.create_srq_ex = Some(create_srq_ex);
    of.get_srq_num = Some(get_srq_num);
}

/// # Safety
/// For all of these: objects of ours, and the application's attributes.
unsafe fn make(context: *mut ibv_context, fd: c_int, oflags: c_int) -> *mut ibv_xrcd {
    let mut attr = ibv_xrcd_init_attr { comp_mask: XRCD_ALL, fd, oflags };
    // SAFETY: the caller's promise; the function that the real context has for this.
    unsafe {
        let made = by_pointer!(|_front| (*device::table(context)).open_xrcd;
            (&raw mut (*device::table(context)).context, &raw mut attr));
        match made {
            None => fail(libc::EOPNOTSUPP),
            Some(x) if x.is_null() => fail(errno()),
            Some(x) => x,
        }
    }
}

unsafe extern "C" fn open_xrcd(context: *mut ibv_context, attr: *mut ibv_xrcd_init_attr) -> *mut ibv_xrcd {
    let _front = inside();
    // SAFETY: as above.
    unsafe {
        let a = &*attr;
        if a.comp_mask != XRCD_ALL {
            return fail(libc::EINVAL);
        }
        let x = make(context, a.fd, a.oflags);
        if x.is_null() {
            return x;
        }
        let name = || std::fs::read_link(format!("/proc/self/fd/{}", a.fd)).ok();
        let file = (a.fd != -1).then(name).flatten();
        let file = file.and_then(|f| CString::new(f.into_os_string().into_vec()).ok());
        let own = Object::with(ibv_xrcd { context }, x.expose_provenance(), Domain { file }).give();
        world::enter(Kind::Xrcd, own.expose_provenance());
        own
    }
}

unsafe extern "C" fn close_xrcd(xrcd: *mut ibv_xrcd) -> c_int {
    let _front = inside();
    // SAFETY: a domain of ours, which the application gives back.
    unsafe {
        let done = by_pointer!(|_front| (*device::table((*xrcd).context)).close_xrcd;
            (std::ptr::with_exposed_provenance_mut(real(xrcd) as usize)));
        let r = done.unwrap_or(libc::EOPNOTSUPP);
        if r == 0 {
            world::leave(Kind::Xrcd, xrcd.expose_provenance());
            Xrcd::take(xrcd);
        }
        r
    }
}

/// After a restart. The file of a domain is made if there is none: what matters is that all find the same.
///
/// # Safety
/// Contexts are there again, and no other thread runs.
pub(crate) unsafe fn make_all() -> Result<(), String> {
    for at in world::all(Kind::Xrcd) {
        let xrcd = std::ptr::with_exposed_provenance_mut::<ibv_xrcd>(at);
        // SAFETY: what the world knows lives.
        unsafe {
            let own = Xrcd::of(xrcd);
            let fd = match &own.own.file {
                None => -1,
                Some(name) => {
                    let flags = libc::O_RDONLY | libc::O_CREAT | libc::O_CLOEXEC;
                    let fd = libc::open(name.as_ptr(), flags, 0o600);
                    if fd < 0 {
                        let why = std::io::Error::last_os_error();
                        return Err(format!("the file {} of an XRC domain: {why}", name.to_string_lossy()));
                    }
                    fd
                }
            };
            let x = make((*xrcd).context, fd, libc::O_CREAT);
            let why = std::io::Error::last_os_error();
            if fd >= 0 {
                libc::close(fd);
            }
            if x.is_null() {
                return Err(format!("an XRC domain: {why}"));
            }
            own.renew(x.expose_provenance());
        }
    }
    Ok(())
}

/// The real queue for one of ours, and the number that it has.
unsafe fn make_queue(
    (context, pd): (*mut ibv_context, *mut ibv_pd),
    of: &Extended,
    own: u64,
    limits: &mut ibv_srq_attr,
) -> Result<(usize, u32), c_int> {
    // SAFETY: the caller's promise.
    unsafe {
        let at = |p: u64| p as usize;
        let mut attr: ibv_srq_init_attr_ex = std::mem::zeroed();
        attr.srq_context = std::ptr::with_exposed_provenance_mut(at(own));
        (attr.attr, attr.comp_mask, attr.srq_type) = (*limits, SRQ_ALL, ibv_srq_type::IBV_SRQT_XRC);
        let xrcd = std::ptr::with_exposed_provenance_mut::<ibv_xrcd>(of.xrcd);
        let cq = std::ptr::with_exposed_provenance_mut::<ibv_cq>(of.cq);
        attr.pd = std::ptr::with_exposed_provenance_mut(at(real(pd)));
        attr.xrcd = std::ptr::with_exposed_provenance_mut(at(real(xrcd)));
        attr.cq = std::ptr::with_exposed_provenance_mut(at(real(cq)));
        let made = by_pointer!(|_front| (*device::table(context)).create_srq_ex;
            (&raw mut (*device::table(context)).context, &raw mut attr));
        let srq = made.ok_or(libc::EOPNOTSUPP)?;
        if srq.is_null() {
            return Err(errno());
        }
        let mut number = 0;
        let r = by_pointer!(|_front| (*device::table(context)).get_srq_num; (srq, &raw mut number));
        match r {
            Some(0) => {
                *limits = attr.attr;
                Ok((srq.expose_provenance(), number))
            }
            other => {
                queue::unmake_srq(srq.expose_provenance());
                Err(other.unwrap_or(libc::EOPNOTSUPP))
            }
        }
    }
}

unsafe extern "C" fn create_srq_ex(
    context: *mut ibv_context,
    attr: *mut ibv_srq_init_attr_ex,
) -> *mut ibv_srq {
    let _front = inside();
    // SAFETY: as above.
    unsafe {
        let a = &mut *attr;
        if a.srq_type != ibv_srq_type::IBV_SRQT_XRC {
            return fail(libc::EOPNOTSUPP);
        }
        if a.comp_mask != SRQ_ALL {
            return fail(libc::EINVAL);
        }
        let (xrcd, cq) = (a.xrcd.expose_provenance(), a.cq.expose_provenance());
        let mut of = Extended { xrcd, cq, number: 0, there: 0 };
        let pd = a.pd;
        let make = |own: u64, limits: &mut ibv_srq_attr| {
            let mut taken = Vec::new();
            let made = loop {
                match make_queue((context, pd), &of, own, limits) {
                    // A number that another queue of this address had before a restart would mean two.
                    Ok((at, number)) if is_taken(number) => taken.push(at),
                    made => break made,
                }
            };
            taken.into_iter().for_each(queue::unmake_srq);
            match made {
                Ok((at, number)) => {
                    (of.number, of.there) = (number, number);
                    at
                }
                Err(e) => fail::<c_void>(e).addr(),
            }
        };
        let own = queue::create_srq(pd, a.srq_context, &mut a.attr, make);
        if !own.is_null() {
            Srq::of(own).own.extended = Some(of);
        }
        own
    }
}

unsafe extern "C" fn get_srq_num(srq: *mut ibv_srq, number: *mut u32) -> c_int {
    // SAFETY: a queue of ours, and the application's room.
    unsafe {
        match &Srq::of(srq).own.extended {
            None => libc::EINVAL,
            Some(of) => {
                *number = of.number;
                0
            }
        }
    }
}

/// After a restart: the real queue for one of ours that is of a domain. `None`: it is of none.
///
/// # Safety
/// Domains and completion queues are there again, and no other thread runs.
pub(crate) unsafe fn make_again(srq: *mut ibv_srq, limits: &ibv_srq_attr) -> Option<Result<usize, String>> {
    // SAFETY: the caller's promise.
    unsafe {
        let of = Srq::of(srq).own.extended.as_mut()?;
        let own = srq.expose_provenance() as u64;
        let made = make_queue(((*srq).context, (*srq).pd), of, own, &mut { *limits });
        Some(match made {
            Ok((at, number)) => {
                of.there = number;
                Ok(at)
            }
            Err(e) => {
                let (number, why) = (of.number, std::io::Error::from_raw_os_error(e));
                Err(format!("XRC shared receive queue {number:#x}: {why}"))
            }
        })
    }
}

/// A real queue pair XRC_RECV; 0: errno says why not. `own`: what it has for its context.
///
/// # Safety
/// A context and a domain of ours.
pub(crate) unsafe fn make_target(context: *mut ibv_context, xrcd: *mut ibv_xrcd, own: u64) -> usize {
    // SAFETY: the caller's promise; numbers and null pointers.
    unsafe {
        let mut attr: ibv_qp_init_attr_ex = std::mem::zeroed();
        (attr.qp_type, attr.comp_mask) = (ibv_qp_type::IBV_QPT_XRC_RECV, QP_XRCD);
        attr.qp_context = std::ptr::with_exposed_provenance_mut(own as usize);
        attr.xrcd = std::ptr::with_exposed_provenance_mut(real(xrcd) as usize);
        let made = by_pointer!(|_front| (*device::table(context)).create_qp_ex;
            (&raw mut (*device::table(context)).context, &raw mut attr));
        match made {
            None => fail::<ibv_qp>(libc::EOPNOTSUPP).addr(),
            Some(qp) if qp.is_null() => fail::<ibv_qp>(errno()).addr(),
            Some(qp) => qp.expose_provenance(),
        }
    }
}

fn queues() -> impl Iterator<Item = (*mut ibv_srq, Extended)> {
    let all = world::all(Kind::Srq).into_iter().map(std::ptr::with_exposed_provenance_mut);
    // SAFETY: what the world knows lives.
    all.filter_map(|srq| Some((srq, unsafe { Srq::of(srq) }.own.extended?)))
}

/// Where messages of queue pairs XRC_RECV complete.
pub(crate) fn completions() -> BTreeSet<usize> {
    queues().map(|(_, of)| of.cq).collect()
}

/// How many receives wait in the queue of this number. `None`: it is none of ours.
pub(crate) fn posted(device: u32, number: u32) -> Option<usize> {
    // SAFETY: what the world knows lives.
    let on = |srq: *mut ibv_srq| unsafe { device::number((*srq).context) };
    let (srq, _) = queues().find(|(srq, of)| of.number == number && on(*srq) == device)?;
    // SAFETY: as above.
    let logs = unsafe { Srq::of(srq) }.own.logs;
    logs.receives.with(|r| r.as_ref().map(log::Receives::open))
}

/// Numbers of all queues, as the application knows them and as the device does: for those who send.
pub(crate) fn told() -> Vec<u8> {
    let of = |(srq, of): (*mut ibv_srq, Extended)| {
        // SAFETY: what the world knows lives.
        let device = unsafe { device::number((*srq).context) };
        [device, of.number, of.there].map(u32::to_le_bytes).concat()
    };
    queues().flat_map(of).collect()
}

/// Queues of a context: their numbers.
pub(crate) fn numbers() -> Vec<(*mut ibv_context, u32)> {
    // SAFETY: what the world knows lives.
    queues().map(|(srq, of)| (unsafe { (*srq).context }, of.number)).collect()
}

/// No new queue may have these.
pub(crate) fn take(numbers: impl Iterator<Item = u32>) {
    CHANGED.store(true, Relaxed);
    TAKEN.with(|taken| taken.extend(numbers));
}

fn is_taken(number: u32) -> bool {
    CHANGED.load(Relaxed) && TAKEN.with(|taken| taken.contains(&number))
}
