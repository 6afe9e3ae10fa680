//! Completion channels and asynchronous events.
//!
//! What a reader would get wrong: the application waits upstairs, where it can be stopped, and asks the real channel, which never waits.

use std::ffi::{c_int, c_uint, c_void};

use rdma_sys::{ibv_async_event, ibv_comp_channel, ibv_context, ibv_cq, ibv_qp, ibv_srq};

use crate::below::{Function, errno, inside, set_errno};
use crate::objects::{Channel, Cq, Flags, Limits, Qp, Srq, Wake, real, real_context};
use crate::pass::word;
use crate::world;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;
use stillpoint_sys::raw::nr;
use stillpoint_sys::sys;
use stillpoint_sys::upper;

static CREATE: Function = Function::new(c"ibv_create_comp_channel");
static DESTROY: Function = Function::new(c"ibv_destroy_comp_channel");
static GET: Function = Function::new(c"ibv_get_cq_event");
static ACK: Function = Function::new(c"ibv_ack_cq_events");
static GET_ASYNC: Function = Function::new(c"ibv_get_async_event");
static FCNTL: Function = Function::of(c"libc.so.6", c"fcntl");
static ACK_ASYNC: Function = Function::new(c"ibv_ack_async_event");

/// Notes that a descriptor is one of ours, or is closed.
fn note(own: c_int, is: bool) {
    let n = own.unsigned_abs() as usize;
    if let Some(w) = upper().plugin_fds.get(n / 64) {
        let bit = 1 << (n % 64);
        if is {
            w.fetch_or(bit, SeqCst)
        } else {
            w.fetch_and(!bit, SeqCst)
        };
    }
}

/// A descriptor of the application's own that is readable when the real one is, which becomes one that never waits. Negative: why not.
fn stand_in(real: c_int) -> c_int {
    let own = follow(real);
    if own >= 0 {
        note(own, true);
    }
    own
}

/// The same in the place of a former one.
pub(crate) fn stand_in_again(real: c_int, place: c_int) -> bool {
    let own = follow(real);
    if own < 0 {
        return false;
    }
    // SAFETY: the application's number, which is free in a process that was restarted.
    unsafe {
        if own != place {
            libc::dup3(own, place, libc::O_CLOEXEC);
            libc::close(own);
        }
    }
    true
}

/// After a restart: numbers that were the real library's are free again.
///
/// # Safety
/// No other thread runs; `ours` are all that the application has.
pub(crate) unsafe fn let_go(ours: &[c_int]) {
    for n in 0..upper().plugin_fds.len() as c_int * 64 {
        let word = upper().plugin_fds.get(n as usize / 64).map_or(0, |w| w.load(SeqCst));
        if word >> (n % 64) & 1 == 1 && !ours.contains(&n) {
            note(n, false);
            // SAFETY: what holds its place.
            unsafe { sys!(nr::CLOSE, n) };
        }
    }
}

fn follow(real: c_int) -> c_int {
    // The kernel has made it for the real library by ioctl(2), of which the lower half knows nothing.
    note(real, true);
    // Below: up here nobody changes a descriptor of the lower half's.
    let flags = FCNTL.int(&[word(real), word(libc::F_GETFL), 0]);
    FCNTL.int(&[word(real), word(libc::F_SETFL), word(flags | libc::O_NONBLOCK)]);
    // SAFETY: descriptors by number.
    unsafe {
        let own = libc::epoll_create1(libc::EPOLL_CLOEXEC);
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
        if own >= 0 && libc::epoll_ctl(own, libc::EPOLL_CTL_ADD, real, &raw mut event) != 0 {
            libc::close(own);
            return -1;
        }
        own
    }
}

/// Waits for the descriptor to be readable. False: the application does not want to wait.
fn wait(own: c_int) -> bool {
    // SAFETY: a descriptor by number, and one pollfd.
    unsafe {
        if libc::fcntl(own, libc::F_GETFL) & libc::O_NONBLOCK != 0 {
            set_errno(libc::EAGAIN);
            return false;
        }
        let mut poll = libc::pollfd { fd: own, events: libc::POLLIN, revents: 0 };
        if libc::poll(&raw mut poll, 1, -1) < 0 && !restarts() {
            set_errno(libc::EINTR);
            return false;
        }
    }
    true
}

/// Whether a handler that has just run leaves read(2), which natively waits here, waiting (SA_RESTART). Which one it was nobody says: all do.
fn restarts() -> bool {
    (1..=64).all(|number| {
        // SAFETY: asks only.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            let handled = libc::sigaction(number, std::ptr::null(), &raw mut action) == 0
                && action.sa_sigaction != libc::SIG_DFL
                && action.sa_sigaction != libc::SIG_IGN;
            !handled || action.sa_flags & libc::SA_RESTART != 0
        }
    })
}

/// Notes flags of a descriptor of ours, for the image; and puts them back.
pub(crate) fn keep(own: c_int, flags: &Flags) {
    // SAFETY: a descriptor by number.
    unsafe {
        flags.status.store(libc::fcntl(own, libc::F_GETFL), SeqCst);
        flags.own.store(libc::fcntl(own, libc::F_GETFD), SeqCst);
    }
}

/// See [`keep`].
pub(crate) fn put_back(own: c_int, flags: &Flags) {
    // SAFETY: as above.
    unsafe {
        libc::fcntl(own, libc::F_SETFL, flags.status.load(SeqCst));
        libc::fcntl(own, libc::F_SETFD, flags.own.load(SeqCst));
    }
}

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
        let fd = stand_in((*there).fd);
        if fd < 0 {
            DESTROY.int(&[at as u64]);
            return std::ptr::null_mut();
        }
        let own = Channel::with(ibv_comp_channel { context, fd, refcnt: 0 }, at, Wake::default()).give();
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
            note(there, false);
            note((*channel).fd, false);
            libc::close((*channel).fd);
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
    cq_context: *mut *mut c_void,
) -> c_int {
    // SAFETY: a channel of ours; real queues have ours for their context.
    unsafe {
        loop {
            let front = inside();
            if let Some(own) = due(channel) {
                *cq = own;
                *cq_context = (*own).cq_context;
                return 0;
            }
            // The real queue, and its context.
            let mut came = [0usize; 2];
            let at = word(came.as_mut_ptr());
            let r = GET.int(&[real(channel), at, at + 8]);
            if r == 0 {
                let own = std::ptr::with_exposed_provenance_mut::<ibv_cq>(came[1]);
                let home = &Cq::of(own).own;
                // Wanted once more since this one was on its way: then it still is.
                let once = home.arms.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok_and(|n| n < 2);
                if once {
                    home.armed.store(0, SeqCst);
                }
                home.open.fetch_add(1, SeqCst);
                *cq = own;
                *cq_context = (*own).cq_context;
                return 0;
            }
            let e = errno();
            drop(front);
            match e {
                libc::EAGAIN | libc::EINTR if wait((*channel).fd) => {}
                // Says why itself.
                libc::EAGAIN | libc::EINTR => return -1,
                e => {
                    set_errno(e);
                    return -1;
                }
            }
        }
    }
}

/// A queue of this channel whose event is due; there is none of it below.
///
/// # Safety
/// A channel of ours.
unsafe fn due(channel: *mut ibv_comp_channel) -> Option<*mut ibv_cq> {
    // SAFETY: the caller's promise; queues that live.
    unsafe {
        let wake = &Channel::of(channel).own.fd;
        if wake.load(SeqCst) == 0 {
            return None;
        }
        let all =
            world::all(world::Kind::Cq).into_iter().map(std::ptr::with_exposed_provenance_mut::<ibv_cq>);
        let found =
            all.filter(|cq| (**cq).channel == channel).find(|cq| Cq::of(*cq).own.due.swap(0, SeqCst) == 1);
        match found {
            Some(cq) => {
                Cq::of(cq).own.given.fetch_add(1, SeqCst);
                Cq::of(cq).own.armed.store(0, SeqCst);
            }
            None => {
                let fd = wake.swap(0, SeqCst);
                if fd != 0 {
                    note(fd, false);
                    libc::close(fd);
                }
            }
        }
        found
    }
}

/// Makes the channel readable: an event of it is due.
///
/// # Safety
/// A channel of ours, and no other thread runs.
pub(crate) unsafe fn wake(channel: *mut ibv_comp_channel) {
    // SAFETY: the caller's promise.
    unsafe {
        let fd = libc::eventfd(1, libc::EFD_CLOEXEC);
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
        libc::epoll_ctl((*channel).fd, libc::EPOLL_CTL_ADD, fd, &raw mut event);
        note(fd, true);
        Channel::of(channel).own.fd.store(fd, SeqCst);
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

/// IBV_EVENT_SRQ_LIMIT_REACHED.
const SRQ_LIMIT_REACHED: u32 = 15;

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
struct Event {
    element: usize,
    kind: u32,
}
const _: () = assert!(size_of::<Event>() == size_of::<ibv_async_event>());

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_get_async_event(context: *mut ibv_context, event: *mut ibv_async_event) -> c_int {
    let event = event.cast::<Event>();
    // SAFETY: a context of ours; real objects have ours for their context.
    unsafe {
        loop {
            let front = inside();
            let r = GET_ASYNC.int(&[real_context(context), word(event)]);
            if r == 0 {
                let e = &mut *event;
                let there = std::ptr::with_exposed_provenance::<c_void>(e.element);
                match about(e.kind) {
                    About::Cq => {
                        let own = (*there.cast::<ibv_cq>()).cq_context.cast::<ibv_cq>();
                        Cq::of(own).own.asynchronous.give();
                        e.element = own.expose_provenance();
                    }
                    About::Qp => {
                        let own = (*there.cast::<ibv_qp>()).qp_context.cast::<ibv_qp>();
                        Qp::of(own).own.asynchronous.give();
                        e.element = own.expose_provenance();
                    }
                    About::Srq => {
                        let own = (*there.cast::<ibv_srq>()).srq_context.cast::<ibv_srq>();
                        Srq::of(own).own.asynchronous.give();
                        if e.kind == SRQ_LIMIT_REACHED {
                            Srq::of(own).own.limits.with(|Limits(l)| l.srq_limit = 0);
                        }
                        e.element = own.expose_provenance();
                    }
                    About::Other => {}
                }
                return 0;
            }
            let e = errno();
            drop(front);
            match e {
                libc::EAGAIN | libc::EINTR if wait((*context).async_fd) => {}
                libc::EAGAIN | libc::EINTR => return -1,
                e => {
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
        let own = std::ptr::with_exposed_provenance_mut::<c_void>(e.element);
        // One that was given in a former start is known up here only.
        let (element, known) = match about(e.kind) {
            About::Cq => {
                let own = own.cast::<ibv_cq>();
                (real(own) as usize, Cq::of(own).own.asynchronous.acknowledge())
            }
            About::Qp => {
                let own = own.cast::<ibv_qp>();
                (real(own) as usize, Qp::of(own).own.asynchronous.acknowledge())
            }
            About::Srq => {
                let own = own.cast::<ibv_srq>();
                (real(own) as usize, Srq::of(own).own.asynchronous.acknowledge())
            }
            About::Other => (e.element, true),
        };
        if !known {
            return;
        }
        let there = Event { element, kind: e.kind };
        ACK_ASYNC.call(&[word(&raw const there)]);
    }
}

/// The application's descriptor for the asynchronous events of a real context.
pub(crate) fn async_fd(real: c_int) -> c_int {
    stand_in(real)
}

/// Both are closed.
pub(crate) fn end_async_fd(own: c_int, real: c_int) {
    note(real, false);
    note(own, false);
    // SAFETY: made by `async_fd`.
    unsafe { libc::close(own) };
}
