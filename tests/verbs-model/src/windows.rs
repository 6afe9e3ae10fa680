//! Memory windows, and what a key lets the other end do.
//!
//! As the InfiniBand specification has them (volume 1, chapter 10, of types 1 and 2B, the latter being what Linux
//! offers to user programs), and the kernel's soft-RoCE, whose checks name its sections (`drivers/infiniband/sw/rxe/rxe_mw.c` of Linux 6.1,
//! `providers/rxe/rxe.c` of rdma-core 44).
//!
//! What a reader would get wrong: of a key the upper 24 bits are the device's and the low 8 the application's. Type 1 counts these up with
//! each bind, for type 2 the request says which ones.

use rdma_sys::{
    ibv_mw, ibv_mw_bind_info, ibv_mw_type, ibv_qp_type as kind, ibv_wc_status as status, ibv_wr_opcode as op,
};

use crate::engine::{Region, World};

/// `enum ibv_access_flags`.
pub(crate) const LOCAL_WRITE: u32 = 1;
pub(crate) const REMOTE_WRITE: u32 = 1 << 1;
pub(crate) const REMOTE_READ: u32 = 1 << 2;
pub(crate) const REMOTE_ATOMIC: u32 = 1 << 3;
const MW_BIND: u32 = 1 << 4;
const ZERO_BASED: u32 = 1 << 5;

/// A window, by the upper bits of its key.
#[derive(Debug)]
pub(crate) struct Window {
    pub(crate) kind: u32,
    pub(crate) key: u32,
    pub(crate) pd: usize,
    /// None: free.
    pub(crate) bound: Option<Bound>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound {
    at: u64,
    length: u64,
    access: u32,
    /// Key of its region.
    pub(crate) region: u32,
    qp: u32,
}

/// What a bind asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bind {
    /// The key that the window has, as the caller knows it, and the one that it is to have.
    before: u32,
    key: u32,
    region: u32,
    at: u64,
    length: u64,
    access: u32,
}

impl Bind {
    /// # Safety
    /// What ibv_post_send(3) asks for.
    pub(crate) unsafe fn of(mw: *const ibv_mw, key: u32, info: &ibv_mw_bind_info) -> Bind {
        // SAFETY: the caller's promise.
        unsafe {
            Bind {
                before: (*mw).rkey,
                key,
                region: info.mr.as_ref().map_or(0, |mr| mr.lkey),
                at: info.addr,
                length: info.length,
                access: info.mw_access_flags,
            }
        }
    }
}

impl World {
    /// Executes a request that is for this device alone. None: it is none such.
    pub(crate) fn local(&mut self, number: u32) -> Option<Result<(), u32>> {
        let head = self.qps.get(&number)?.sends.front()?;
        match (head.opcode, head.bind) {
            (op::IBV_WR_BIND_MW, Some(bind)) => {
                Some(self.bind(number, &bind).ok_or(status::IBV_WC_MW_BIND_ERR))
            }
            (op::IBV_WR_LOCAL_INV, _) => {
                let key = head.imm;
                Some(self.invalidate(number, key).ok_or(status::IBV_WC_LOC_QP_OP_ERR))
            }
            _ => None,
        }
    }

    fn bind(&mut self, number: u32, b: &Bind) -> Option<()> {
        let pd = self.qps.get(&number)?.pd;
        let region = self.regions.get(&b.region).filter(|_| b.length != 0);
        let window = self.windows.get(&(b.before >> 8))?;
        let first = window.kind == ibv_mw_type::IBV_MW_TYPE_1;
        // soft-RoCE wants to be told the key that the window has; the upper bits are the device's.
        let known = window.key == b.before && b.key >> 8 == b.before >> 8;
        // o10-37.2.30: type 2 is free. C10-72: one domain. o10-37.2.40: type 2 has a region. o10-36.2.2: type 1 has addresses.
        let free = first || window.bound.is_none();
        let zero = b.access & ZERO_BASED != 0;
        if !known || !free || window.pd != pd || !first && region.is_none() || first && zero {
            return None;
        }
        let mut bound = None;
        if let Some(r) = region {
            // C10-73, C10-74, C10-75.
            let writes = b.access & (REMOTE_WRITE | REMOTE_ATOMIC) != 0;
            let fits = r.at <= b.at && b.at + b.length <= r.at + r.length;
            if r.pd != pd || r.access & MW_BIND == 0 || writes && r.access & LOCAL_WRITE == 0 || !fits {
                return None;
            }
            let (at, length, access) = (b.at, b.length, b.access);
            bound = Some(Bound { at, length, access, region: b.region, qp: number });
        }
        let window = self.windows.get_mut(&(b.before >> 8))?;
        (window.key, window.bound) = (b.key, bound);
        Some(())
    }

    /// A window of type 2 that is bound to this queue pair (o10-37.2.26).
    pub(crate) fn can_invalidate(&self, number: u32, key: u32) -> bool {
        let window = self.windows.get(&(key >> 8)).filter(|w| w.key == key);
        window
            .is_some_and(|w| w.kind == ibv_mw_type::IBV_MW_TYPE_2 && w.bound.is_some_and(|b| b.qp == number))
    }

    /// By a request of its own queue pair, or of the other end's.
    pub(crate) fn invalidate(&mut self, number: u32, key: u32) -> Option<()> {
        let can = self.can_invalidate(number, key);
        self.windows.get_mut(&(key >> 8)).filter(|_| can)?.bound = None;
        Some(())
    }

    /// Where the other end's request may go, by its key. None: nowhere.
    pub(crate) fn remote(&self, pair: (u32, usize), key: u32, at: u64, n: usize, need: u32) -> Option<u64> {
        let (number, pd) = pair;
        let n = n as u64;
        let within =
            |r: &Region| r.pd == pd && r.access & need == need && r.at <= at && at + n <= r.at + r.length;
        if let Some(region) = self.regions.get(&key) {
            return within(region).then_some(at);
        }
        let window = self.windows.get(&(key >> 8)).filter(|w| w.key == key && w.pd == pd)?;
        let b = window.bound?;
        let own = window.kind == ibv_mw_type::IBV_MW_TYPE_1 || b.qp == number;
        let at = if b.access & ZERO_BASED != 0 { b.at.checked_add(at)? } else { at };
        let fits = b.at <= at && at + n <= b.at + b.length;
        (own && fits && b.access & need == need).then_some(at)
    }
}

/// What a queue pair is made for: binds are of connections (`validate_send_wr` of the rxe provider).
pub(crate) fn can_bind(of: u32) -> bool {
    matches!(of, kind::IBV_QPT_RC | kind::IBV_QPT_UC | kind::IBV_QPT_XRC_SEND)
}
