//! What was posted to one queue, until its completion is seen, and posts it again: the log of a send queue, and of a receive queue.
//!
//! All work is signaled below, so that it is known what has happened (INV-2): a completion that the application did not ask for is
//! swallowed. The `wr_id` below is ours ([`Token`]), the application's stands in the log, with a copy of the request as the
//! application has it: what has not happened at a checkpoint is posted again after a restart.
//!
//! What a reader would get wrong: data that is sent inline is the application's again as soon as it was posted, so it is copied as
//! well; other data is the queue's until the completion.

use std::mem::offset_of;
use std::slice;

use rdma_sys::{
    ibv_qp_cap, ibv_qp_type, ibv_recv_wr, ibv_send_wr, ibv_sge, ibv_wc, ibv_wc_status, ibv_wr_opcode,
};

use crate::ring::{Kind, NUMBER_BITS, Ring, Token};
use crate::{keys, window};

/// IBV_SEND_SIGNALED, IBV_SEND_INLINE.
const SIGNALED: u32 = 2;
const INLINE: u32 = 8;

/// A send request.
pub(crate) struct Sent {
    /// The application's.
    id: u64,
    /// Its flags, with IBV_SEND_SIGNALED where the queue pair tells of all.
    flags: u32,
    /// As the application has it, with its keys and handles; but for `sg_list`, `wr_id` and `next`, which are ours.
    own: ibv_send_wr,
    sges: Elements,
    inline: Box<[u8]>,
    /// For the device.
    wr: ibv_send_wr,
    there: Box<[ibv_sge]>,
}

// SAFETY: pointers of the application's, which are its to use from any thread.
unsafe impl Send for Sent {}

/// Room for elements; a single one lies by the request itself, where no address has to be read before.
struct Elements {
    one: ibv_sge,
    more: Box<[ibv_sge]>,
}

impl Elements {
    fn new(most: u32) -> Elements {
        Elements { one: NO_SGE, more: vec![NO_SGE; most as usize].into() }
    }

    fn most(&self) -> usize {
        self.more.len()
    }

    /// Those of a request of so many.
    fn of(&self, n: usize) -> &[ibv_sge] {
        let all = if n > 1 { &*self.more } else { slice::from_ref(&self.one) };
        all.get(..n).unwrap_or_default()
    }

    fn of_mut(&mut self, n: usize) -> &mut [ibv_sge] {
        let all = if n > 1 { &mut *self.more } else { slice::from_mut(&mut self.one) };
        all.get_mut(..n).unwrap_or_default()
    }
}

const NO_SGE: ibv_sge = ibv_sge { addr: 0, length: 0, lkey: 0 };

/// What a request is that binds no window: all before what a bind has.
type Plain = [u64; offset_of!(ibv_send_wr, bind_mw_tso_union) / size_of::<u64>()];

/// The log of a send queue.
pub(crate) struct Sends {
    queue: u32,
    /// Of a request of number 0.
    token: u64,
    /// IBV_SEND_SIGNALED if it tells of all requests, else 0.
    all: u32,
    datagram: bool,
    /// There are requests that [`Sends::copy_one`] takes.
    plain: bool,
    extended: bool,
    /// As many as the device takes; the ring may have some more places.
    most: usize,
    ring: Ring<Sent>,
    /// Those that have taken a receive of the other end.
    done: u64,
    /// Any request has succeeded since the queue pair began.
    begun: bool,
}

impl Sends {
    /// `first`: the number of the first request, which no other one of this place has had.
    pub(crate) fn new(
        queue: u32,
        first: u64,
        cap: &ibv_qp_cap,
        all_signaled: bool,
        of: ibv_qp_type::Type,
    ) -> Sends {
        let (sges, inline) = (cap.max_send_sge, cap.max_inline_data);
        let slot = || Sent {
            id: 0,
            flags: 0,
            // SAFETY: numbers and null pointers.
            own: unsafe { std::mem::zeroed() },
            sges: Elements::new(sges),
            inline: vec![0; inline as usize].into(),
            // SAFETY: as above.
            wr: unsafe { std::mem::zeroed() },
            there: vec![NO_SGE; sges as usize].into(),
        };
        Sends {
            queue,
            token: Token { kind: Kind::Send, queue, number: 0 }.pack(),
            all: if all_signaled { SIGNALED } else { 0 },
            datagram: of == ibv_qp_type::IBV_QPT_UD,
            plain: of != ibv_qp_type::IBV_QPT_UD && sges != 0,
            extended: of == ibv_qp_type::IBV_QPT_XRC_SEND,
            most: cap.max_send_wr as usize,
            ring: Ring::new(cap.max_send_wr as usize, first, slot),
            done: 0,
            begun: false,
        }
    }

    pub(crate) fn signals_all(&self) -> bool {
        self.all != 0
    }

    /// The most common one by itself, with the least that is to be done: one request, one element, nothing inline, nothing to be
    /// translated. `None`: it is another one, or there is no room ([`Sends::copy`]).
    ///
    /// # Safety
    /// As for [`Sends::copy`].
    #[inline(always)]
    pub(crate) unsafe fn copy_one(&mut self, wr: *const ibv_send_wr) -> Option<*mut ibv_send_wr> {
        // SAFETY: the caller's promise.
        let from = unsafe { wr.as_ref() }?;
        let is_plain = from.next.is_null()
            && from.num_sge == 1
            && from.send_flags & INLINE == 0
            && from.opcode != ibv_wr_opcode::IBV_WR_BIND_MW;
        if !is_plain || !self.plain || keys::changed() {
            return None;
        }
        let (token, all) = (self.token, self.all);
        let (number, slot) = self.ring.push()?;
        // SAFETY: as above.
        unsafe {
            slot.sges.one = from.sg_list.read();
            wr.cast::<Plain>().copy_to_nonoverlapping((&raw mut slot.own).cast(), 1);
        }
        slot.own.sg_list = &raw mut slot.sges.one;
        slot.own.wr_id = Token::numbered(token, number);
        slot.own.send_flags = from.send_flags | SIGNALED;
        (slot.id, slot.flags) = (from.wr_id, from.send_flags | all);
        Some(&raw mut slot.own)
    }

    /// Copies a list of requests, each behind the one before, and returns the first copy, with its number. `translate` puts real
    /// things for the application's: 0, or why there are none. `Err`: why there is no copy of all; those before are in the list.
    ///
    /// # Safety
    /// The application's list, as for ibv_post_send(3).
    pub(crate) unsafe fn copy(
        &mut self,
        mut wr: *mut ibv_send_wr,
        mut translate: impl FnMut(&mut ibv_send_wr) -> i32,
    ) -> (*mut ibv_send_wr, u64, Result<(), i32>) {
        let first = self.ring.next();
        let (mut head, mut last): (*mut ibv_send_wr, *mut ibv_send_wr) = Default::default();
        let mut result = Ok(());
        while !wr.is_null() {
            // SAFETY: the caller's promise.
            let from = unsafe { &*wr };
            let n = usize::try_from(from.num_sge).unwrap_or(usize::MAX);
            let (token, all, datagram) = (self.token, self.all, self.datagram);
            let Some((number, slot)) = self.ring.push() else {
                result = Err(libc::ENOMEM);
                break;
            };
            // SAFETY: as many as it says, if the queue takes so many.
            let copied = n <= slot.sges.most() && unsafe { slot.fill(from, n) };
            if !copied {
                self.ring.take_back(number);
                result = Err(libc::EINVAL);
                break;
            }
            slot.flags = from.send_flags | all;
            slot.own.wr_id = Token::numbered(token, number);
            slot.own.send_flags = from.send_flags | SIGNALED;
            let this = match slot.for_device(datagram, from.opcode, &mut translate) {
                Ok(this) => this,
                Err(why) => {
                    self.ring.take_back(number);
                    result = Err(why);
                    break;
                }
            };
            if last.is_null() {
                head = this;
            } else {
                // SAFETY: the slot before, which is open.
                unsafe { (*last).next = this };
            }
            last = this;
            wr = from.next;
        }
        (head, first, result)
    }

    /// Logs a request without elements that is posted otherwise, and makes it signaled and ours. `Err`: the number of an error.
    pub(crate) fn note(&mut self, wr: &mut ibv_send_wr) -> Result<u64, i32> {
        let (token, all) = (self.token, self.all);
        let (number, slot) = self.ring.push().ok_or(libc::ENOMEM)?;
        (slot.id, slot.flags) = (wr.wr_id, wr.send_flags | all);
        wr.wr_id = Token::numbered(token, number);
        wr.send_flags |= SIGNALED;
        // SAFETY: plain numbers and pointers.
        slot.own = unsafe { std::ptr::read(wr) };
        Ok(number)
    }

    /// A bind has this key, as it turns out.
    pub(crate) fn bound_as(&mut self, number: u64, key: u32) {
        if let Some(slot) = self.ring.at(number) {
            slot.own.bind_mw_tso_union.bind_mw.rkey = key;
        }
    }

    /// The number of the request whose copy this is.
    pub(crate) fn number(&self, copy: *const ibv_send_wr) -> Option<u64> {
        let is = |s: &Sent| std::ptr::eq(&raw const s.wr, copy) || std::ptr::eq(&raw const s.own, copy);
        self.ring.each().find(|(_, s)| is(s)).map(|(n, _)| n)
    }

    /// The number that the next request will have.
    pub(crate) fn next(&self) -> u64 {
        self.ring.next()
    }

    /// This one and those behind it were not posted.
    pub(crate) fn take_back(&mut self, number: u64) {
        self.ring.take_back(number);
    }

    /// The last one was not posted.
    #[cold]
    #[inline(never)]
    pub(crate) fn take_back_last(&mut self) {
        self.ring.take_back(self.ring.next() - 1);
    }

    /// For how many more the device has room.
    pub(crate) fn room(&self) -> usize {
        self.most.saturating_sub(self.ring.open())
    }

    /// Requests that have no completion yet.
    pub(crate) fn open(&self) -> usize {
        self.ring.open()
    }

    /// How many have taken a receive of the other end; whether the oldest that has no completion is to take one.
    pub(crate) fn taken(&self) -> (u64, bool) {
        (self.done, self.ring.each().next().is_some_and(|(_, s)| takes_receive(s.own.opcode)))
    }

    /// Whether any has succeeded since the queue pair began.
    pub(crate) fn has_begun(&self) -> bool {
        self.begun
    }

    /// How long the oldest that has no completion is: bytes.
    pub(crate) fn length(&self) -> u64 {
        self.ring.each().next().map_or(0, |(_, s)| s.length())
    }

    /// The shared queue that the oldest names which has no completion; 0: there is none, or it is not of an extended connection.
    pub(crate) fn names(&self) -> u32 {
        let oldest = self.ring.each().next().filter(|(_, s)| self.extended && takes_receive(s.own.opcode));
        // SAFETY: a request of such a connection.
        oldest.map_or(0, |(_, s)| unsafe { s.own.qp_type.xrc.remote_srqn })
    }

    /// The number of the oldest that has no completion, if it is to take a receive, and its length.
    pub(crate) fn wants_receive(&self) -> Option<(u64, u64)> {
        let oldest = self.ring.each().next().filter(|(_, s)| takes_receive(s.own.opcode));
        oldest.map(|(n, s)| (n, s.length()))
    }

    /// A name of the oldest that has no completion.
    pub(crate) fn oldest(&self) -> &'static str {
        use ibv_wr_opcode as op;
        match self.ring.each().next().map(|(_, s)| s.own.opcode) {
            Some(op::IBV_WR_SEND | op::IBV_WR_SEND_WITH_IMM | op::IBV_WR_SEND_WITH_INV) => "a send",
            Some(op::IBV_WR_RDMA_WRITE | op::IBV_WR_RDMA_WRITE_WITH_IMM) => "a write",
            Some(op::IBV_WR_RDMA_READ) => "a read",
            Some(op::IBV_WR_ATOMIC_CMP_AND_SWP | op::IBV_WR_ATOMIC_FETCH_AND_ADD) => "an atomic",
            Some(op::IBV_WR_BIND_MW) => "a bind of a memory window",
            Some(op::IBV_WR_LOCAL_INV) => "an invalidation",
            _ => "a request",
        }
    }

    /// Posts those that are open again, each by `post`.
    pub(crate) fn again(
        &mut self,
        mut translate: impl FnMut(&mut ibv_send_wr) -> i32,
        mut post: impl FnMut(*mut ibv_send_wr) -> i32,
    ) -> i32 {
        let datagram = self.datagram;
        for (_, slot) in self.ring.each_mut() {
            let opcode = slot.own.opcode;
            let r = slot.for_device(datagram, opcode, &mut translate).map_or_else(|why| why, &mut post);
            if r != 0 {
                return r;
            }
        }
        0
    }

    /// The queue is empty and begins anew.
    pub(crate) fn reset(&mut self) {
        self.ring.clear();
        (self.done, self.begun) = (0, false);
    }

    /// Whether the application is to see this completion, which has its number now. `None`: it is of no request that is open.
    pub(crate) fn complete(&mut self, wc: &mut ibv_wc, number: u64) -> Option<bool> {
        let number = self.ring.whole(number, NUMBER_BITS);
        let slot = self.ring.complete(number)?;
        wc.wr_id = slot.id;
        let well = wc.status == ibv_wc_status::IBV_WC_SUCCESS;
        self.begun |= well;
        if well && takes_receive(slot.own.opcode) {
            self.done += 1;
        } else if well {
            window::done(&slot.own, self.queue);
        }
        Some(slot.flags & SIGNALED != 0 || !well)
    }
}

/// Whether it is done only when the other end has a receive for it.
fn takes_receive(opcode: ibv_wr_opcode::Type) -> bool {
    use ibv_wr_opcode as op;
    matches!(
        opcode,
        op::IBV_WR_SEND
            | op::IBV_WR_SEND_WITH_IMM
            | op::IBV_WR_SEND_WITH_INV
            | op::IBV_WR_RDMA_WRITE_WITH_IMM
    )
}

impl Sent {
    /// Bytes.
    fn length(&self) -> u64 {
        let n = usize::try_from(self.own.num_sge).unwrap_or(0);
        self.sges.of(n).iter().map(|s| u64::from(s.length)).sum()
    }

    /// False: more inline than the queue takes.
    ///
    /// # Safety
    /// A request with so many elements, as the application posts it.
    unsafe fn fill(&mut self, from: &ibv_send_wr, n: usize) -> bool {
        // SAFETY: the caller's promise.
        unsafe {
            // What is looked at is looked at there: of what was stored just now a processor has to wait.
            self.own = std::ptr::read(from);
            self.id = from.wr_id;
            if from.opcode == ibv_wr_opcode::IBV_WR_BIND_MW {
                window::thinks(&mut self.own);
            }
            let list = from.sg_list;
            self.own.sg_list = self.sges.of_mut(n).as_mut_ptr();
            if from.send_flags & INLINE == 0 {
                for (to, k) in self.sges.of_mut(n).iter_mut().zip(0..n) {
                    *to = list.add(k).read();
                }
                return true;
            }
            let mut used = 0;
            for (to, k) in self.sges.of_mut(n).iter_mut().zip(0..n) {
                let from = list.add(k).read();
                let len = from.length as usize;
                let Some(room) = self.inline.get_mut(used..used + len) else { return false };
                let bytes = std::ptr::with_exposed_provenance::<u8>(from.addr as usize);
                std::ptr::copy_nonoverlapping(bytes, room.as_mut_ptr(), len);
                *to = ibv_sge { addr: room.as_ptr().expose_provenance() as u64, ..from };
                used += len;
            }
        }
        true
    }

    /// With the device's keys, and its handles of addresses, if they are others. `Err`: why there are none.
    fn for_device(
        &mut self,
        datagram: bool,
        opcode: ibv_wr_opcode::Type,
        translate: &mut impl FnMut(&mut ibv_send_wr) -> i32,
    ) -> Result<*mut ibv_send_wr, i32> {
        // The link of a list was of that call only: of the application's, and of ours when it was posted before a restart.
        self.own.next = std::ptr::null_mut();
        if !keys::changed() && !datagram && opcode != ibv_wr_opcode::IBV_WR_BIND_MW {
            return Ok(&raw mut self.own);
        }
        // SAFETY: plain numbers and pointers.
        self.wr = unsafe { std::ptr::read(&raw const self.own) };
        if self.own.send_flags & INLINE == 0 {
            let n = usize::try_from(self.own.num_sge).unwrap_or(0);
            let there = self.there.get_mut(..n).unwrap_or_default();
            there.copy_from_slice(self.sges.of(n));
            keys::translate(Token::of(self.own.wr_id).queue, there);
            self.wr.sg_list = self.there.as_mut_ptr();
        }
        match translate(&mut self.wr) {
            0 => Ok(&raw mut self.wr),
            why => Err(why),
        }
    }
}

/// A receive request.
pub(crate) struct Posted {
    id: u64,
    /// Of a shared queue: how many were posted there before it.
    turn: u64,
    open: bool,
    /// As the application has it, with its keys.
    sges: Box<[ibv_sge]>,
    /// For the device.
    there: Box<[ibv_sge]>,
    n: usize,
}

impl Posted {
    fn new(sges: u32) -> Posted {
        let none = || vec![NO_SGE; sges as usize].into();
        Posted { id: 0, turn: 0, open: false, sges: none(), there: none(), n: 0 }
    }

    /// False: more elements than the queue takes.
    ///
    /// # Safety
    /// A request of the application's.
    unsafe fn fill(&mut self, wr: *const ibv_recv_wr) -> bool {
        // SAFETY: the caller's promise.
        let from = unsafe { &*wr };
        let n = usize::try_from(from.num_sge).unwrap_or(usize::MAX);
        if n > self.sges.len() {
            return false;
        }
        for (to, k) in self.sges.iter_mut().zip(0..n) {
            // SAFETY: as many as it says.
            *to = unsafe { from.sg_list.add(k).read() };
        }
        (self.id, self.n) = (from.wr_id, n);
        true
    }

    /// For the real queue, alone.
    fn request(&mut self, token: Token) -> ibv_recv_wr {
        self.there.copy_from_slice(&self.sges);
        if keys::changed() {
            keys::translate(token.queue, &mut self.there);
        }
        ibv_recv_wr {
            wr_id: token.pack(),
            next: std::ptr::null_mut(),
            sg_list: self.there.as_mut_ptr(),
            num_sge: self.n as i32,
        }
    }
}

/// The log of a receive queue, of a queue pair or shared.
pub(crate) enum Receives {
    /// They complete in order.
    Own { queue: u32, ring: Ring<Posted> },
    /// They do not: slots, which of them are free, and how many were posted.
    Shared { queue: u32, slots: Vec<Posted>, free: Vec<u32>, turn: u64, sges: u32 },
}

/// Bits of a token's number that say which slot of a shared queue; the others are of its turn.
const SLOT_BITS: u32 = 24;
/// Receives that a shared queue may have open: more than devices have. One for more is refused when it is made.
pub(crate) const MOST_SHARED: u32 = 1 << SLOT_BITS;

fn shared(queue: u32, at: u32, turn: u64) -> Token {
    Token { kind: Kind::Shared, queue, number: turn << SLOT_BITS & ((1 << NUMBER_BITS) - 1) | u64::from(at) }
}

impl Receives {
    pub(crate) fn own(queue: u32, first: u64, room: u32, sges: u32) -> Receives {
        Receives::Own { queue, ring: Ring::new(room as usize, first, || Posted::new(sges)) }
    }

    /// With room for so many, [`MOST_SHARED`] at most.
    pub(crate) fn shared(queue: u32, turn: u64, room: u32, sges: u32) -> Receives {
        let mut all = Receives::Shared { queue, slots: Vec::new(), free: Vec::new(), turn, sges };
        all.grow(room);
        all
    }

    /// A shared queue has room for so many now; it does not shrink.
    pub(crate) fn grow(&mut self, room: u32) {
        if let Receives::Shared { slots, free, sges, .. } = self {
            let old = u32::try_from(slots.len()).unwrap_or(u32::MAX);
            let room = room.min(MOST_SHARED);
            slots.extend((old..room).map(|_| Posted::new(*sges)));
            free.extend((old..room).rev());
        }
    }

    /// The number that the next one will have.
    pub(crate) fn next(&self) -> u64 {
        match self {
            Receives::Own { ring, .. } => ring.next(),
            Receives::Shared { turn, .. } => *turn,
        }
    }

    /// Logs a request and has it posted.
    ///
    /// # Safety
    /// A request of the application's.
    pub(crate) unsafe fn post(
        &mut self,
        wr: *const ibv_recv_wr,
        post: impl FnOnce(&mut ibv_recv_wr) -> i32,
    ) -> i32 {
        match self {
            Receives::Own { queue, ring } => {
                let Some((number, slot)) = ring.push() else { return libc::ENOMEM };
                // SAFETY: the caller's promise.
                let r = if unsafe { slot.fill(wr) } {
                    post(&mut slot.request(Token { kind: Kind::Receive, queue: *queue, number }))
                } else {
                    libc::EINVAL
                };
                if r != 0 {
                    ring.take_back(number);
                }
                r
            }
            Receives::Shared { queue, slots, free, turn, .. } => {
                let Some(at) = free.pop() else { return libc::ENOMEM };
                let token = shared(*queue, at, *turn);
                // SAFETY: the caller's promise.
                let slot = slots.get_mut(at as usize).and_then(|s| unsafe { s.fill(wr) }.then_some(s));
                let r = slot.map_or(libc::EINVAL, |s| {
                    (s.turn, s.open) = (*turn, true);
                    post(&mut s.request(token))
                });
                if r == 0 {
                    *turn += 1;
                } else {
                    free.push(at);
                }
                r
            }
        }
    }

    /// Posts those that are open again.
    pub(crate) fn again(&mut self, mut post: impl FnMut(&mut ibv_recv_wr) -> i32) -> i32 {
        match self {
            Receives::Own { queue, ring } => {
                for (number, slot) in ring.each_mut() {
                    let r = post(&mut slot.request(Token { kind: Kind::Receive, queue: *queue, number }));
                    if r != 0 {
                        return r;
                    }
                }
            }
            Receives::Shared { queue, slots, free, .. } => {
                let free: std::collections::BTreeSet<u32> = free.iter().copied().collect();
                let open = (0u32..).zip(slots).filter(|(at, _)| !free.contains(at));
                let mut open: Vec<(u32, &mut Posted)> = open.collect();
                open.sort_by_key(|(_, slot)| slot.turn);
                for (at, slot) in open {
                    let token = shared(*queue, at, slot.turn);
                    let r = post(&mut slot.request(token));
                    if r != 0 {
                        return r;
                    }
                }
            }
        }
        0
    }

    /// Posted, without a completion.
    pub(crate) fn open(&self) -> usize {
        match self {
            Receives::Own { ring, .. } => ring.open(),
            Receives::Shared { slots, free, .. } => slots.len() - free.len(),
        }
    }

    /// The queue is empty and begins anew; not one that is shared.
    pub(crate) fn reset(&mut self) {
        if let Receives::Own { ring, .. } = self {
            ring.clear();
        }
    }

    /// The first element of the receive that this completion is of, which has its number now.
    pub(crate) fn complete(&mut self, wc: &mut ibv_wc, number: u64) -> Option<ibv_sge> {
        let slot = match self {
            Receives::Own { ring, .. } => {
                let number = ring.whole(number, NUMBER_BITS);
                ring.complete(number)
            }
            Receives::Shared { slots, free, .. } => {
                let at = number as u32 & ((1 << SLOT_BITS) - 1);
                let slot = slots.get_mut(at as usize)?;
                // One of a queue that is gone, or of a receive that has completed already.
                if shared(0, at, slot.turn).number != number || !slot.open {
                    return None;
                }
                slot.open = false;
                free.push(at);
                Some(slot)
            }
        };
        let slot = slot?;
        wc.wr_id = slot.id;
        Some(slot.sges.first().copied().unwrap_or(NO_SGE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_queue_may_be_long() {
        const MANY: u32 = 100_000;
        let mut log = Receives::shared(5, 0, MANY, 1);
        let mut tokens = Vec::new();
        for k in 0..MANY {
            let wr = ibv_recv_wr {
                wr_id: k.into(),
                next: std::ptr::null_mut(),
                sg_list: std::ptr::null_mut(),
                num_sge: 0,
            };
            let post = |wr: &mut ibv_recv_wr| {
                tokens.push(Token::of(wr.wr_id));
                0
            };
            // SAFETY: a request without elements.
            assert_eq!(unsafe { log.post(&raw const wr, post) }, 0);
        }
        assert_eq!(log.open(), MANY as usize);
        for (token, k) in tokens.iter().rev().zip((0..u64::from(MANY)).rev()) {
            // SAFETY: numbers.
            let mut wc: ibv_wc = unsafe { std::mem::zeroed() };
            assert!(log.complete(&mut wc, token.number).is_some() && wc.wr_id == k);
            assert!(log.complete(&mut wc, token.number).is_none(), "not twice");
        }
        assert_eq!(log.open(), 0);
    }

    #[test]
    fn a_list_is_posted_again_one_by_one() {
        let cap = ibv_qp_cap {
            max_send_wr: 4,
            max_recv_wr: 0,
            max_send_sge: 1,
            max_recv_sge: 0,
            max_inline_data: 0,
        };
        let mut log = Sends::new(0, 0, &cap, true, ibv_qp_type::IBV_QPT_RC);
        // SAFETY: numbers and null pointers.
        let mut list: [ibv_send_wr; 3] = unsafe { std::mem::zeroed() };
        for k in 0..2 {
            list[k].next = &raw mut list[k + 1];
        }
        // SAFETY: a list of three without elements.
        let (first, _, result) = unsafe { log.copy(list.as_mut_ptr(), |_| 0) };
        // SAFETY: copies in the log.
        let links = std::iter::successors(Some(first), |wr| (!wr.is_null()).then(|| unsafe { (**wr).next }));
        assert_eq!((links.take_while(|wr| !wr.is_null()).count(), result), (3, Ok(())), "in one call");
        let mut posted = 0;
        let r = log.again(
            |_| 0,
            |wr| {
                posted += 1;
                // SAFETY: as above.
                i32::from(unsafe { !(*wr).next.is_null() })
            },
        );
        assert_eq!((r, posted), (0, 3), "each alone");
    }
}
