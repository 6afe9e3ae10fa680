//! Completion events and asynchronous events. *Upper half*.
//!
//! What a reader would get wrong: an event from below need not be one for the application ([`crate::notice`]). And what is unread at a
//! still point is read there, since the real channel may end with this start: it is given from here, in the order in which it came.

use std::ffi::{c_int, c_uint};
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;

use rdma_sys::{ibv_async_event, ibv_comp_channel, ibv_context, ibv_cq, ibv_qp, ibv_srq};

use crate::below::{Function, errno, fail, inside, set_errno};
use crate::descriptor::{note, stand_in, wait};
use crate::notice::Wants;
use crate::objects::{Channel, Context, Cq, Given, Limits, Qp, Srq, Wake, real, real_context};
use crate::pass::word;
use crate::{patience, post, world};
use stillpoint_sys::raw::monotonic_ns;

/// How long one who waits, when an event from below was for nothing and nobody has been told so, goes on waiting before it gets one all the
/// same. It may have come from poll(2), by which the descriptor was readable, and natively does not wait then. An event without a completion
/// is allowed (ibv_get_cq_event(3)).
const EARLY: u64 = 100_000_000;

static CREATE: Function = Function::new(c"ibv_create_comp_channel");
static DESTROY: Function = Function::new(c"ibv_destroy_comp_channel");
static GET: Function = Function::new(c"ibv_get_cq_event");
static ACK: Function = Function::new(c"ibv_ack_cq_events");
static GET_ASYNC: Function = Function::new(c"ibv_get_async_event");
static ACK_ASYNC: Function = Function::new(c"ibv_ack_async_event");

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_create_comp_channel(context: *mut ibv_context) -> *mut ibv_comp_channel {
    let _front = inside();
    // SAFETY: a context of ours, and the real channel, made just now.
    unsafe {
        let at = CREATE.object(&[real_context(context)]);
        if at == 0 {
            return std::ptr::null_mut();
        }
        let there = std::ptr::with_exposed_provenance::<ibv_comp_channel>(at);
        let (fd, wake) = (stand_in((*there).fd), Wake::default());
        if fd < 0 || !wake.unread.begin(fd) {
            end_fd(fd, (*there).fd);
            DESTROY.int(&[at as u64]);
            return fail(libc::EMFILE);
        }
        let own = Channel::with(ibv_comp_channel { context, fd, refcnt: 0 }, at, wake).give();
        world::enter(world::Kind::Channel, own.expose_provenance());
        own
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_destroy_comp_channel(channel: *mut ibv_comp_channel) -> c_int {
    let _front = inside();
    // SAFETY: a channel of ours, which the application gives back.
    unsafe {
        let there = (*std::ptr::with_exposed_provenance::<ibv_comp_channel>(real(channel) as usize)).fd;
        let r = DESTROY.int(&[real(channel)]);
        if r == 0 {
            Channel::of(channel).own.unread.end();
            end_fd((*channel).fd, there);
            world::leave(world::Kind::Channel, channel.expose_provenance());
            Channel::take(channel);
        }
        r
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_get_cq_event(
    channel: *mut ibv_comp_channel,
    cq: *mut *mut ibv_cq,
    cq_context: *mut *mut std::ffi::c_void,
) -> c_int {
    // When an event is given that nothing has come for.
    let mut due = None;
    // SAFETY: a channel of ours; queues that live.
    unsafe {
        loop {
            let front = inside();
            let wake = &Channel::of(channel).own;
            let unread = wake.unread.pop();
            let found = match unread.map(std::ptr::with_exposed_provenance_mut::<ibv_cq>) {
                Some(own) => gives(own, true),
                None => match next(channel) {
                    Ok((own, true)) => {
                        let found = gives(own, false);
                        if found.is_none() {
                            ACK.call(&[real(own), 1]);
                        }
                        found
                    }
                    Ok((own, false)) => {
                        // What it asked for may have come while the real queue was asked once more.
                        let found = if once_more(own) { gives(own, true) } else { None };
                        if found.is_none() {
                            wake.early.store(own.expose_provenance(), SeqCst);
                        }
                        // Last: until then nobody can end the queue.
                        ACK.call(&[real(own), 1]);
                        found
                    }
                    Err(libc::EAGAIN | libc::EINTR) => {
                        let now = monotonic_ns();
                        if wake.early.load(SeqCst) == 0 {
                            due = None;
                        } else {
                            // Another start's clock may be behind.
                            due = Some(due.unwrap_or(u64::MAX).min(now + EARLY));
                        }
                        if due.is_some_and(|due| due <= now) {
                            comes_early(channel)
                        } else {
                            let looks = patience::look_all(channel).then_some(patience::LOOKS);
                            let left = due.map(|due| ((due - now) / 1_000_000 + 1) as c_int);
                            drop(front);
                            // Says why itself.
                            if !wait((*channel).fd, looks.into_iter().chain(left).min().unwrap_or(-1)) {
                                if std::io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN) {
                                    // It knows now.
                                    wake.early.store(0, SeqCst);
                                }
                                return -1;
                            }
                            continue;
                        }
                    }
                    Err(e) => {
                        set_errno(e);
                        return -1;
                    }
                },
            };
            if let Some(own) = found {
                wake.early.store(0, SeqCst);
                (*cq, *cq_context) = (own, (*own).cq_context);
                return 0;
            }
        }
    }
}

/// # Safety
/// For all of these: objects of ours, and the thread is in the front.
///
/// An event of this queue is given, from above or from below: it is counted, unless somebody is destroying the queue.
unsafe fn gives(own: *mut ibv_cq, from_above: bool) -> Option<*mut ibv_cq> {
    let is = world::hold(world::Kind::Cq, own.expose_provenance(), || {
        // SAFETY: it is there, and stays while it is held.
        let home = unsafe { &Cq::of(own).own };
        if from_above { &home.given } else { &home.open }.fetch_add(1, SeqCst);
    });
    is.then_some(own)
}

/// An event of a queue that has none; unless another one was given meanwhile.
unsafe fn comes_early(channel: *mut ibv_comp_channel) -> Option<*mut ibv_cq> {
    // SAFETY: the caller's promise.
    unsafe {
        let at = Channel::of(channel).own.early.swap(0, SeqCst);
        let own = gives(std::ptr::with_exposed_provenance_mut(at), true)?;
        Cq::of(own).own.queue.with(|came| came.notice.comes_early());
        Some(own)
    }
}

/// The next event from below: its queue, and whether the application is to have it. `Err`: errno.
unsafe fn next(channel: *mut ibv_comp_channel) -> Result<(*mut ibv_cq, bool), c_int> {
    // The real queue, and its context, which is ours.
    let mut came = [0usize; 2];
    let at = word(came.as_mut_ptr());
    // SAFETY: the caller's promise.
    unsafe {
        if GET.int(&[real(channel), at, at + 8]) != 0 {
            return Err(errno());
        }
        let own = std::ptr::with_exposed_provenance_mut::<ibv_cq>(came[1]);
        post::bring_home(own);
        Ok((own, Cq::of(own).own.queue.with(|came| came.notice.comes())))
    }
}

/// An event was for nothing: the real queue is to tell of the next completion as well. Whether what the application wants has come
/// meanwhile.
unsafe fn once_more(cq: *mut ibv_cq) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let home = &Cq::of(cq).own;
        let wants = home.queue.with(|came| came.notice.wants());
        if wants == Wants::Nothing {
            return false;
        }
        post::arm(cq, wants);
        post::bring_home(cq);
        home.queue.with(|came| came.notice.ends())
    }
}

/// After a restart: the real queue is to tell of what the application wants, and of what has come before it could, which is flushed
/// receives.
pub(crate) unsafe fn ask_again(cq: *mut ibv_cq) {
    // SAFETY: the caller's promise.
    unsafe {
        let due = Cq::of(cq).own.queue.with(|came| {
            // Its event was lost with the former queue, if it was not there at the still point.
            let due = came.notice.ends();
            // Of solicited ones nobody can tell.
            came.notice.again() == Wants::Solicited && !came.list.is_empty() || due
        });
        if (due || once_more(cq)) && !(*cq).channel.is_null() {
            Channel::of((*cq).channel).own.unread.push(cq.expose_provenance());
        }
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_ack_cq_events(cq: *mut ibv_cq, n: c_uint) {
    let _front = inside();
    // SAFETY: a queue of ours.
    unsafe {
        let home = &Cq::of(cq).own;
        let take = |from: &AtomicU32, n: u32| {
            from.fetch_update(SeqCst, SeqCst, |all| Some(all - n.min(all))).map_or(0, |all| n.min(all))
        };
        let own = take(&home.given, n);
        let rest = take(&home.open, n - own);
        if rest != 0 {
            ACK.call(&[real(cq), word(rest)]);
        }
    }
}

/// IBV_EVENT_COMM_EST, IBV_EVENT_SRQ_LIMIT_REACHED, IBV_EVENT_QP_LAST_WQE_REACHED.
pub(crate) const ESTABLISHED: u32 = 4;
const SRQ_LIMIT_REACHED: u32 = 15;
pub(crate) const LAST_RECEIVE: u32 = 16;

/// What an event is about.
enum About {
    Cq,
    Qp,
    Srq,
    /// A port, or the whole device.
    Other,
}

/// `enum ibv_event_type` of verbs.h.
fn about(kind: u32) -> About {
    match kind {
        0 => About::Cq,
        1..=7 | 16 => About::Qp,
        14 | 15 => About::Srq,
        _ => About::Other,
    }
}

/// `struct ibv_async_event`: an object, and the kind.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    element: usize,
    kind: u32,
}
const _: () = assert!(size_of::<Event>() == size_of::<ibv_async_event>());

impl Event {
    /// The counts of its object of ours. `None`: it is about none.
    unsafe fn counts<'a>(&self) -> Option<&'a Given> {
        let at = self.element;
        // SAFETY: the caller's promise.
        unsafe {
            Some(match about(self.kind) {
                About::Cq => &Cq::of(std::ptr::with_exposed_provenance_mut::<ibv_cq>(at)).own.asynchronous,
                About::Qp => &Qp::of(std::ptr::with_exposed_provenance_mut::<ibv_qp>(at)).own.asynchronous,
                About::Srq => &Srq::of(std::ptr::with_exposed_provenance_mut::<ibv_srq>(at)).own.asynchronous,
                About::Other => return None,
            })
        }
    }

    /// The same about the real object.
    unsafe fn there(&self) -> Event {
        let at = self.element;
        // SAFETY: the caller's promise.
        let element = unsafe {
            match about(self.kind) {
                About::Cq => real(std::ptr::with_exposed_provenance_mut::<ibv_cq>(at)) as usize,
                About::Qp => real(std::ptr::with_exposed_provenance_mut::<ibv_qp>(at)) as usize,
                About::Srq => real(std::ptr::with_exposed_provenance_mut::<ibv_srq>(at)) as usize,
                About::Other => at,
            }
        };
        Event { element, kind: self.kind }
    }
}

/// The next asynchronous event from below, about an object of ours. `Err`: errno.
unsafe fn next_async(context: *mut ibv_context) -> Result<Event, c_int> {
    loop {
        // SAFETY: the caller's promise.
        unsafe {
            let event = any_async(context)?;
            let unwanted = matches!(about(event.kind), About::Qp) && {
                let qp = std::ptr::with_exposed_provenance_mut::<ibv_qp>(event.element);
                Qp::of(qp).own.unwanted.compare_exchange(event.kind, 0, SeqCst, SeqCst).is_ok()
            };
            if !unwanted {
                return Ok(event);
            }
            let there = event.there();
            ACK_ASYNC.call(&[word(&raw const there)]);
        }
    }
}

/// The same, also of those that it had before.
unsafe fn any_async(context: *mut ibv_context) -> Result<Event, c_int> {
    let mut event = Event { element: 0, kind: 0 };
    // SAFETY: the caller's promise; real objects have ours for their context.
    unsafe {
        if GET_ASYNC.int(&[real_context(context), word(&raw mut event)]) != 0 {
            return Err(errno());
        }
        let there = std::ptr::with_exposed_provenance::<std::ffi::c_void>(event.element);
        event.element = match about(event.kind) {
            About::Cq => (*there.cast::<ibv_cq>()).cq_context.expose_provenance(),
            About::Qp => (*there.cast::<ibv_qp>()).qp_context.expose_provenance(),
            About::Srq => {
                let own = (*there.cast::<ibv_srq>()).srq_context;
                if event.kind == SRQ_LIMIT_REACHED {
                    Srq::of(own.cast::<ibv_srq>()).own.limits.with(|Limits(l)| l.srq_limit = 0);
                }
                own.expose_provenance()
            }
            About::Other => event.element,
        };
        Ok(event)
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_get_async_event(context: *mut ibv_context, event: *mut ibv_async_event) -> c_int {
    // SAFETY: a context of ours, and the application's room.
    unsafe {
        loop {
            let front = inside();
            let unread = Context::of(Context::whole(context)).own.unread.pop();
            let from_above = unread.is_some();
            match unread.map_or_else(|| next_async(context), Ok) {
                Ok(e) => {
                    if let Some(counts) = e.counts() {
                        counts.give(from_above);
                    }
                    *event.cast::<Event>() = e;
                    return 0;
                }
                Err(libc::EAGAIN | libc::EINTR) => {
                    drop(front);
                    if !wait((*context).async_fd, -1) {
                        return -1;
                    }
                }
                Err(e) => {
                    set_errno(e);
                    return -1;
                }
            }
        }
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_ack_async_event(event: *mut ibv_async_event) {
    let _front = inside();
    // SAFETY: as the application got it.
    unsafe {
        let e = &*event.cast::<Event>();
        // Of one that was given from above the real object knows nothing.
        if e.counts().is_none_or(Given::acknowledge) {
            let there = e.there();
            ACK_ASYNC.call(&[word(&raw const there)]);
        }
    }
}

/// At a still point: reads what is unread.
///
/// # Safety
/// Every thread of the application stands still, and the objects of the world live.
pub(crate) unsafe fn bring_home() {
    // SAFETY: the caller's promise.
    unsafe {
        for channel in world::all(world::Kind::Channel) {
            let channel = std::ptr::with_exposed_provenance_mut::<ibv_comp_channel>(channel);
            let Wake { unread, early, .. } = &Channel::of(channel).own;
            while let Ok((cq, well)) = next(channel) {
                ACK.call(&[real(cq), 1]);
                if well || once_more(cq) {
                    unread.push(cq.expose_provenance());
                } else {
                    early.store(cq.expose_provenance(), SeqCst);
                }
            }
        }
        for context in world::all(world::Kind::Context) {
            let context = std::ptr::with_exposed_provenance_mut::<ibv_context>(context);
            while let Ok(event) = next_async(context) {
                let there = event.there();
                ACK_ASYNC.call(&[word(&raw const there)]);
                Context::of(Context::whole(context)).own.unread.push(event);
            }
        }
    }
}

/// An object is about to be destroyed: waits, where the thread can be stopped, until all events of it that were given are
/// acknowledged, as the real library does.
pub(crate) fn acknowledged(is: impl Fn() -> bool) {
    while !is() {
        // SAFETY: sleeps.
        unsafe { libc::usleep(1000) };
    }
}

/// An object is destroyed: nobody reads events of it any more.
///
/// # Safety
/// A context of ours.
pub(crate) unsafe fn forget(context: *mut ibv_context, element: usize) {
    // SAFETY: the caller's promise.
    let names = unsafe { &Context::of(Context::whole(context)).own };
    names.unread.retain(|e| e.element != element || matches!(about(e.kind), About::Other));
}

/// The same for a queue of completions.
///
/// # Safety
/// A queue of ours.
pub(crate) unsafe fn forget_queue(cq: *mut ibv_cq) {
    // SAFETY: the caller's promise; a channel outlives its queues.
    unsafe {
        forget((*cq).context, cq.expose_provenance());
        if !(*cq).channel.is_null() {
            let wake = &Channel::of((*cq).channel).own;
            wake.unread.retain(|at| *at != cq.expose_provenance());
            let _ = wake.early.compare_exchange(cq.expose_provenance(), 0, SeqCst, SeqCst);
        }
    }
}

/// The application's descriptor for the asynchronous events of a real context.
pub(crate) fn async_fd(real: c_int) -> c_int {
    stand_in(real)
}

/// Both are closed.
pub(crate) fn end_fd(own: c_int, real: c_int) {
    note(real, false);
    if own >= 0 {
        note(own, false);
        // SAFETY: made by `stand_in`.
        unsafe { libc::close(own) };
    }
}
