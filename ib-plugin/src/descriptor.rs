//! Descriptors that the application waits for: ours, which are readable when a real one is, or when there is an event of before.
//! *Upper half*.
//!
//! ```text
//!   the application's number: an epoll(7) of ── the real descriptor, which never blocks
//!                                            └─ an eventfd(2), readable while events wait up here
//! ```
//!
//! What a reader would get wrong: the application waits upstairs, where it can be stopped, and asks the real library, which never waits.

use std::collections::VecDeque;
use std::ffi::c_int;
use std::sync::atomic::AtomicI32;
use std::sync::atomic::Ordering::SeqCst;

use stillpoint_sys::raw::nr;
use stillpoint_sys::{sys, upper};

use crate::below::{Function, set_errno};
use crate::lock::Lock;
use crate::objects::Flags;
use crate::pass::word;

static FCNTL: Function = Function::of(c"libc.so.6", c"fcntl");

/// Events that were read from below at a still point, and are given from here; and the eventfd.
#[derive(Debug)]
pub(crate) struct Unread<T> {
    fd: AtomicI32,
    events: Lock<VecDeque<T>>,
}

impl<T> Default for Unread<T> {
    fn default() -> Unread<T> {
        Unread { fd: AtomicI32::new(-1), events: Lock::default() }
    }
}

impl<T> Unread<T> {
    /// Makes this descriptor readable while there are any; also after a restart. False: there are too many descriptors.
    pub(crate) fn begin(&self, own: c_int) -> bool {
        self.events.with(|events| {
            // SAFETY: descriptors by number.
            unsafe {
                let fd = libc::eventfd(u32::from(!events.is_empty()), libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
                let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
                if fd < 0
                    || !has_place(fd)
                    || libc::epoll_ctl(own, libc::EPOLL_CTL_ADD, fd, &raw mut event) != 0
                {
                    if fd >= 0 {
                        libc::close(fd);
                    }
                    return false;
                }
                note(fd, true);
                self.fd.store(fd, SeqCst);
            }
            true
        })
    }

    /// The descriptor is closed.
    pub(crate) fn end(&self) {
        let fd = self.fd.swap(-1, SeqCst);
        if fd >= 0 {
            note(fd, false);
            // SAFETY: made by `begin`.
            unsafe { libc::close(fd) };
        }
    }

    /// One more.
    pub(crate) fn push(&self, event: T) {
        self.events.with(|events| {
            events.push_back(event);
            self.show(true);
        });
    }

    /// The oldest.
    pub(crate) fn pop(&self) -> Option<T> {
        self.events.with(|events| {
            let event = events.pop_front()?;
            if events.is_empty() {
                self.show(false);
            }
            Some(event)
        })
    }

    /// Forgets others.
    pub(crate) fn retain(&self, f: impl FnMut(&T) -> bool) {
        self.events.with(|events| {
            let before = events.len();
            events.retain(f);
            if before != 0 && events.is_empty() {
                self.show(false);
            }
        });
    }

    fn show(&self, readable: bool) {
        let mut count = 1u64;
        let (fd, at) = (self.fd.load(SeqCst), &raw mut count);
        let call = if readable { nr::WRITE } else { nr::READ };
        // SAFETY: eight bytes, for an eventfd that never blocks.
        unsafe { sys!(call, fd, at, 8) };
    }
}

/// Whether it can be noted that a descriptor is one of ours.
fn has_place(fd: c_int) -> bool {
    (fd.unsigned_abs() as usize) < upper().plugin_fds.len() * 64
}

/// Notes that a descriptor is one of ours, or is closed.
pub(crate) fn note(own: c_int, is: bool) {
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

/// A descriptor of the application's own that is readable when the real one is, which becomes one that never waits. Negative: errno says
/// why not.
pub(crate) fn stand_in(real: c_int) -> c_int {
    if !has_place(real) {
        set_errno(libc::EMFILE);
        return -1;
    }
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

/// Makes one of ours readable, whatever the real one is; until what it returns is given to [`end_readable`].
pub(crate) fn make_readable(own: c_int) -> c_int {
    // SAFETY: descriptors by number.
    unsafe {
        let fd = libc::eventfd(1, libc::EFD_CLOEXEC);
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
        libc::epoll_ctl(own, libc::EPOLL_CTL_ADD, fd, &raw mut event);
        note(fd, true);
        fd
    }
}

/// See [`make_readable`].
pub(crate) fn end_readable(fd: c_int) {
    note(fd, false);
    // SAFETY: made by that.
    unsafe { libc::close(fd) };
}

/// A descriptor of ours alone, until it is given to [`end_readable`].
pub(crate) fn hide(fd: c_int) {
    note(fd, true);
    // SAFETY: a descriptor by number.
    unsafe { libc::fcntl(fd, libc::F_SETFL, libc::fcntl(fd, libc::F_GETFL) | libc::O_NONBLOCK) };
}

/// One of ours and the real one, which is not the library's below, are closed; and what has made it readable, if that is not 0.
pub(crate) fn end_stand_in(own: c_int, real: c_int, readable: c_int) {
    if readable != 0 {
        end_readable(readable);
    }
    for fd in [own, real] {
        note(fd, false);
        // SAFETY: made by `stand_in`, or for it.
        unsafe { libc::close(fd) };
    }
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

/// Waits for the descriptor to be readable, or so many milliseconds (-1: without end). False: the application does not want to wait.
pub(crate) fn wait(own: c_int, most: c_int) -> bool {
    // SAFETY: a descriptor by number, and one pollfd.
    unsafe {
        if libc::fcntl(own, libc::F_GETFL) & libc::O_NONBLOCK != 0 {
            set_errno(libc::EAGAIN);
            return false;
        }
        let mut poll = libc::pollfd { fd: own, events: libc::POLLIN, revents: 0 };
        if libc::poll(&raw mut poll, 1, most) < 0 && !restarts() {
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
