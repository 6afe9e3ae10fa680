//! Extended reliable connections (XRC): a sender names the shared receive queue that each message is for.
//!
//! As annex A14 of the InfiniBand specification has them, and Linux: `ib_uverbs_open_xrcd` and `qp_state_table` of the kernel, the manual pages
//! ibv_open_xrcd(3) and ibv_create_srq_ex(3) of rdma-core 44. A message comes by a queue pair XRC_RECV, takes a receive of a queue of
//! the same domain and completes in the completion queue of that; remote keys are those of its protection domain.
//!
//! What a reader would get wrong: the domain of a file is shared by all of a host that open it, and queue pairs of it by ibv_open_qp(3). Here it is of
//! one process, and there is no ibv_open_qp.

use std::ffi::c_int;
use std::os::unix::fs::MetadataExt;

use rdma_sys::*;

use crate::abi::{device_of, drop_at, give, make_qp, refuse};
use crate::engine::{Srq, World, hca, world};

/// A domain: how often it is open, and its file.
#[derive(Debug, Default)]
pub(crate) struct Domain {
    open: u32,
    file: Option<(u64, u64)>,
}

/// What a queue has of its domain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Of {
    pub(crate) domain: u32,
    pub(crate) number: u32,
    pub(crate) cq: usize,
    pub(crate) pd: usize,
}

/// What an application has a pointer to; and the domain.
type Xrcd = (ibv_xrcd, u32);

/// IBV_XRCD_INIT_ATTR_FD and IBV_XRCD_INIT_ATTR_OFLAGS; IBV_SRQ_INIT_ATTR_TYPE, _PD, _XRCD, _CQ; IBV_QP_INIT_ATTR_PD, _XRCD.
const XRCD_ALL: u32 = 3;
const SRQ_ALL: u32 = 0xf;
const QP_PD: u32 = 1;
const QP_XRCD: u32 = 2;

/// What verbs.h calls by the context's extended table.
pub(crate) fn table(of: &mut verbs_context) {
    of.open_xrcd = Some(open_xrcd);
    of.close_xrcd = Some(close_xrcd);
    of.create_srq_ex = Some(create_srq_ex);
    of.get_srq_num = Some(get_srq_num);
    of.create_qp_ex = Some(create_qp_ex);
}

/// # Safety
/// For everything below: what libibverbs asks of its callers (verbs.h).
unsafe fn file(fd: c_int) -> Option<(u64, u64)> {
    let meta = std::fs::metadata(format!("/proc/self/fd/{fd}")).ok()?;
    Some((meta.dev(), meta.ino()))
}

unsafe extern "C" fn open_xrcd(context: *mut ibv_context, attr: *mut ibv_xrcd_init_attr) -> *mut ibv_xrcd {
    // SAFETY: as above.
    unsafe {
        let a = &*attr;
        if a.comp_mask != XRCD_ALL {
            return refuse(libc::EINVAL);
        }
        let file = if a.fd == -1 { None } else { file(a.fd) };
        if a.fd != -1 && file.is_none() {
            return refuse(libc::EBADF);
        }
        let mut w = world(device_of!(context));
        let known = w.domains.iter().find(|(_, d)| file.is_some() && d.file == file).map(|(n, _)| *n);
        if known.is_none() && file.is_some() && a.oflags & libc::O_CREAT == 0 {
            return refuse(libc::EAGAIN);
        }
        if known.is_some() && a.oflags & libc::O_EXCL != 0 {
            return refuse(libc::EINVAL);
        }
        let number = known.unwrap_or_else(|| w.domains.keys().last().map_or(1, |n| n + 1));
        let domain = w.domains.entry(number).or_default();
        (domain.open, domain.file) = (domain.open + 1, file);
        give::<Xrcd>((ibv_xrcd { context }, number)).cast()
    }
}

unsafe extern "C" fn close_xrcd(xrcd: *mut ibv_xrcd) -> c_int {
    // SAFETY: as above.
    unsafe {
        let (_, number) = *xrcd.cast::<Xrcd>();
        let mut w = world(device_of!(xrcd.context));
        let Some(domain) = w.domains.get(&number) else { return libc::EINVAL };
        if domain.open == 1 {
            let queues = w.srqs.values().any(|s| s.xrc.is_some_and(|x| x.domain == number));
            if queues || w.qps.values().any(|q| q.domain == number) {
                return libc::EBUSY;
            }
            w.domains.remove(&number);
        } else if let Some(domain) = w.domains.get_mut(&number) {
            domain.open -= 1;
        }
        drop_at(xrcd.cast::<Xrcd>())
    }
}

unsafe extern "C" fn create_srq_ex(
    context: *mut ibv_context,
    attr: *mut ibv_srq_init_attr_ex,
) -> *mut ibv_srq {
    // SAFETY: as above.
    unsafe {
        let a = &*attr;
        if a.srq_type != ibv_srq_type::IBV_SRQT_XRC || a.comp_mask != SRQ_ALL {
            return refuse(libc::EOPNOTSUPP);
        }
        let mut own: ibv_srq = std::mem::zeroed();
        (own.context, own.pd, own.srq_context) = ((*a.pd).context, a.pd, a.srq_context);
        let mut w = world(device_of!(context));
        // From a small range, as those of queue pairs.
        let mut number = 0x30 + (w.random() % 16) as u32;
        while !hca(device_of!(context)).claim("srq", number) {
            number += 1;
        }
        own.handle = number;
        let (_, domain) = *a.xrcd.cast::<Xrcd>();
        let xrc = Of { domain, number, cq: a.cq.expose_provenance(), pd: a.pd.expose_provenance() };
        let own = give(own);
        w.srqs.insert(own.expose_provenance(), Srq { xrc: Some(xrc), ..Srq::default() });
        own
    }
}

unsafe extern "C" fn get_srq_num(srq: *mut ibv_srq, number: *mut u32) -> c_int {
    let Some(xrc) = world(device_of!(srq.context)).srqs.get(&srq.expose_provenance()).and_then(|s| s.xrc)
    else {
        return libc::EINVAL;
    };
    // SAFETY: as above.
    unsafe { *number = xrc.number };
    0
}

unsafe extern "C" fn create_qp_ex(context: *mut ibv_context, attr: *mut ibv_qp_init_attr_ex) -> *mut ibv_qp {
    // SAFETY: as above; the attributes begin as those of the plain call.
    unsafe {
        let a = &*attr;
        let receives = a.qp_type == ibv_qp_type::IBV_QPT_XRC_RECV;
        match (receives, a.comp_mask) {
            (true, QP_XRCD) => {
                let (_, domain) = *a.xrcd.cast::<Xrcd>();
                let none = std::ptr::null_mut();
                let mut plain: ibv_qp_init_attr = std::mem::zeroed();
                (plain.qp_context, plain.qp_type) = (a.qp_context, a.qp_type);
                make_qp(context, none, &mut plain, domain)
            }
            (false, QP_PD) => make_qp(context, a.pd, &mut *attr.cast(), 0),
            _ => refuse(libc::EOPNOTSUPP),
        }
    }
}

impl World {
    /// The queue that a message names, if it is in the domain of the queue pair by which it comes.
    pub(crate) fn named(&self, domain: u32, number: u32) -> Option<(usize, Of)> {
        let own = |x: &Of| x.domain == domain && x.number == number;
        self.srqs.iter().find_map(|(at, s)| Some((*at, s.xrc.filter(own)?)))
    }
}
