//! Queue pairs whose other end is gone: it was destroyed, or is connected with another one by now. *Upper half*.
//!
//! Such a one stays connected, keeps its receives, and who sends hears after a while that nobody answers. After a restart that is to be so
//! again: it is connected with a queue pair of ours at its own port, which stays in RESET for ever, and so keeps its number from others.
//! What a reader would get wrong: that one has a domain and a queue of its own, so that the application can destroy its own.

use std::sync::atomic::Ordering::Relaxed;

use rdma_sys::{ibv_context, ibv_qp, ibv_qp_attr, ibv_qp_cap, ibv_qp_init_attr, ibv_qp_type};

use crate::below::Function;
use crate::objects::{Context, Device, Qp, real_context};
use crate::pass::word;

static ALLOC_PD: Function = Function::new(c"ibv_alloc_pd");
static DEALLOC_PD: Function = Function::new(c"ibv_dealloc_pd");
static CREATE_CQ: Function = Function::new(c"ibv_create_cq");
static DESTROY_CQ: Function = Function::new(c"ibv_destroy_cq");
static CREATE_QP: Function = Function::new(c"ibv_create_qp");
static DESTROY_QP: Function = Function::new(c"ibv_destroy_qp");

/// The one in RESET: real queue pair, completion queue and domain of this start; 0: not there.
#[derive(Default)]
pub(crate) struct Silent {
    qp: u64,
    cq: u64,
    pd: u64,
}

impl Silent {
    /// Its number; made at the first call.
    fn number(&mut self, context: u64) -> Result<u32, String> {
        let made = |at: usize| match at {
            0 => Err(format!("a queue pair that says nothing: {}", std::io::Error::last_os_error())),
            at => Ok(at as u64),
        };
        if self.qp == 0 {
            self.pd = made(ALLOC_PD.object(&[context]))?;
            self.cq = made(CREATE_CQ.object(&[context, 1, 0, 0, 0]))?;
            let there = |p: u64| std::ptr::with_exposed_provenance_mut(p as usize);
            let cap = ibv_qp_cap {
                max_send_wr: 1,
                max_recv_wr: 1,
                max_send_sge: 1,
                max_recv_sge: 1,
                max_inline_data: 0,
            };
            let mut attr = ibv_qp_init_attr {
                qp_context: std::ptr::null_mut(),
                send_cq: there(self.cq),
                recv_cq: there(self.cq),
                srq: std::ptr::null_mut(),
                cap,
                qp_type: ibv_qp_type::IBV_QPT_RC,
                sq_sig_all: 0,
            };
            self.qp = made(CREATE_QP.object(&[self.pd, word(&raw mut attr)]))?;
        }
        // SAFETY: a queue pair of the real library's.
        Ok(unsafe { (*std::ptr::with_exposed_provenance::<ibv_qp>(self.qp as usize)).qp_num })
    }

    /// The context is closed.
    pub(crate) fn end(&mut self) {
        for (destroy, at) in [(&DESTROY_QP, self.qp), (&DESTROY_CQ, self.cq), (&DEALLOC_PD, self.pd)] {
            if at != 0 {
                destroy.int(&[at]);
            }
        }
        self.forget();
    }

    /// Another start: nothing of it is there.
    pub(crate) fn forget(&mut self) {
        *self = Silent::default();
    }
}

/// Whether the other end was gone at the still point.
///
/// # Safety
/// A queue pair of ours.
pub(crate) unsafe fn is(qp: *mut ibv_qp) -> bool {
    // SAFETY: the caller's promise.
    unsafe { Qp::of(qp).own.alone.load(Relaxed) }
}

/// Has the queue pair led to where nobody answers, whatever it was told.
///
/// # Safety
/// A queue pair of ours, after a restart.
pub(crate) unsafe fn lead(qp: *mut ibv_qp, to: &mut ibv_qp_attr) -> Result<(), String> {
    // SAFETY: the caller's promise; its context lives.
    unsafe {
        let context: *mut ibv_context = (*qp).context;
        let names = &Context::of(Context::whole(context)).own;
        to.dest_qp_num = names.silent.with(|s| s.number(real_context(context)))?;
        let way = &mut to.ah_attr;
        let now = names.now.with(|now| now.get(usize::from(way.port_num).wrapping_sub(1)).cloned());
        let lost = || format!("queue pair {:#x}: its port is not there", (*qp).qp_num);
        let now = now.ok_or_else(lost)?;
        way.dlid = now.lid;
        if way.is_global != 0 {
            way.grh.sgid_index = names.index(way.port_num, way.grh.sgid_index);
            way.grh.dgid.raw = now.gids.get(usize::from(way.grh.sgid_index)).ok_or_else(lost)?.raw;
        }
    }
    Ok(())
}

/// All names of the ports of this process, also of devices that it has closed since.
pub(crate) fn ports() -> Vec<crate::address::Address> {
    let mut all = Vec::new();
    for device in crate::device::all() {
        // SAFETY: a device of ours lives for ever.
        let card = unsafe { &Device::of(device).own };
        card.ports.with(|ports| {
            let ports = ports.iter().flatten();
            all.extend(ports.flat_map(crate::address::Port::addresses).map(|(_, name)| name));
        });
        card.besides.with(|besides| all.extend(besides.iter().map(|b| b.name)));
    }
    all.sort();
    all.dedup();
    all
}
