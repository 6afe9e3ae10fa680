//! Descriptors: the application can neither close nor overwrite one of the lower half. *Upper half*.
//!
//! `Half::lower_fds` says which are the lower half's. What a reader would get wrong: a bit can be stale, when a library
//! downstairs closed a descriptor inside libc; the kernel then gives its number to the application, which clears the bit.
#![allow(unsafe_code, reason = "reads the two numbers that pipe(2) wrote")]

use crate::entry::Regs;
use crate::ids::is_other_process;
use crate::wait::until_app_signal;
use core::ptr::with_exposed_provenance;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use stillpoint_sys::half;
use stillpoint_sys::raw::{errno, nr};

fn bit(n: usize) -> Option<(&'static core::sync::atomic::AtomicU64, u64)> {
    Some((half().lower_fds.get(n / 64)?, 1 << (n % 64)))
}

fn marked(n: usize) -> bool {
    bit(n).is_some_and(|(w, b)| w.load(Relaxed) & b != 0)
}

/// In a child of the application nothing is the lower half's any more.
fn is_lower(n: usize) -> bool {
    marked(n as u32 as usize) && !is_other_process()
}

/// The result of a call that has given a descriptor to the application.
pub(crate) fn given(x: isize) -> isize {
    if let Ok(n) = usize::try_from(x)
        && is_lower(n)
        && let Some((w, b)) = bit(n)
    {
        w.fetch_and(!b, SeqCst);
    }
    x
}

/// Closes (or marks) a range but for the lower half's.
fn close_range(r: &Regs, pass: impl Fn(&Regs) -> isize) -> isize {
    let (first, last) = (r.rdi as u32 as usize, r.rsi as u32 as usize);
    if first > last || is_other_process() {
        return pass(r);
    }
    let end = half().lower_fds.len() * 64;
    let mut from = first;
    while from <= last {
        let to = (from..end.min(last + 1)).find(|n| marked(*n));
        let upto = to.map_or(last, |n| n.wrapping_sub(1));
        if to != Some(from) {
            let x = pass(&Regs { rdi: from, rsi: upto, ..*r });
            if x < 0 {
                return x;
            }
        }
        match to {
            Some(n) => from = n + 1,
            None => break,
        }
    }
    0
}

/// Calls that make or end descriptors.
pub(crate) fn call(n: usize, r: &Regs, pass: impl Fn(&Regs) -> isize) -> Option<isize> {
    const F_DUPFD: usize = 0;
    const F_DUPFD_CLOEXEC: usize = 1030;
    Some(match n {
        nr::CLOSE | nr::DUP | nr::DUP2 | nr::DUP3 | nr::FCNTL if is_lower(r.rdi) => errno::EBADF,
        nr::DUP2 | nr::DUP3 if is_lower(r.rsi) => errno::EBUSY,
        nr::CLOSE | nr::DUP2 | nr::DUP3 => pass(r),
        nr::FCNTL if !matches!(r.rsi, F_DUPFD | F_DUPFD_CLOEXEC) => pass(r),
        nr::CLOSE_RANGE => close_range(r, pass),
        nr::ACCEPT | nr::ACCEPT4 => given(until_app_signal(|_| pass(r), None)),
        nr::DUP
        | nr::FCNTL
        | nr::SOCKET
        | nr::EVENTFD2
        | nr::EPOLL_CREATE1
        | nr::MEMFD_CREATE
        | nr::TIMERFD_CREATE
        | nr::SIGNALFD4
        | nr::INOTIFY_INIT1
        | nr::PIDFD_OPEN
        | nr::EVENTFD
        | nr::EPOLL_CREATE
        | nr::SIGNALFD
        | nr::INOTIFY_INIT
        | nr::CREAT => given(pass(r)),
        nr::PIPE | nr::PIPE2 | nr::SOCKETPAIR => {
            let x = pass(r);
            let at = if n == nr::SOCKETPAIR { r.r10 } else { r.rdi };
            if x == 0 {
                // SAFETY: the kernel has just written two numbers there.
                let two = unsafe { with_exposed_provenance::<[i32; 2]>(at).read_unaligned() };
                for n in two {
                    given(n as isize);
                }
            }
            x
        }
        _ => return None,
    })
}
