//! Waiting, and clocks. *Upper half*.
//!
//! A wait that only the stop signal ended goes on with the time that remains. CLOCK_MONOTONIC and its kin never go back:
//! after a restart on a machine that booted later, `Upper::clock_shift` is added to what the kernel says and taken from
//! absolute times that it is given. What a reader would get wrong: futex sites come here only while there is a shift
//! (see stillpoint-window), so futexes made through syscall(2) are the common case.
#![allow(unsafe_code, reason = "system calls on behalf of the application")]

use crate::action::without_stop;
use crate::entry::Regs;
use crate::ids::me;
use core::ptr::{with_exposed_provenance, with_exposed_provenance_mut};
use core::sync::atomic::Ordering::{Acquire, Relaxed};
use stillpoint_abi::half::ThreadRec;
use stillpoint_sys::raw::{errno, monotonic_ns, nr};
use stillpoint_sys::{half, sys, upper};

fn shift() -> u64 {
    upper().clock_shift.load(Relaxed)
}

/// CLOCK_MONOTONIC as the application sees it.
fn now() -> u64 {
    monotonic_ns().wrapping_add(shift())
}

/// True for clocks that count from the boot: MONOTONIC, MONOTONIC_RAW, MONOTONIC_COARSE, BOOTTIME.
fn shifted(clock: usize) -> bool {
    matches!(clock, 1 | 4 | 6 | 7)
}

/// The kernel's time for one of the application's; what lies before the kernel's beginning has passed. The shift is a
/// difference of either sign.
fn kernel_time(t: u64) -> u64 {
    u64::try_from((t as i64).saturating_sub(shift() as i64)).unwrap_or(0)
}

/// Calls `f` with the address of an absolute time as the kernel wants it.
fn at_kernel_time(at: usize, f: impl Fn(usize) -> isize) -> isize {
    match read_timespec(at) {
        Some(t) if shift() != 0 => {
            let ts = timespec(kernel_time(t));
            f(ts.as_ptr().expose_provenance())
        }
        _ => f(at),
    }
}

/// clock_gettime(2): by the kernel's vDSO where the lower half has put it aside, with the shift.
pub(crate) fn clock_gettime(clock: usize, ts: usize) -> isize {
    let vdso = half().vdso[5].load(Relaxed);
    let x = if vdso == 0 {
        // SAFETY: the application's own call.
        unsafe { sys!(nr::CLOCK_GETTIME, clock, ts) }
    } else {
        // SAFETY: the kernel's __vdso_clock_gettime, which uses neither TLS nor libc.
        let f: extern "C" fn(usize, usize) -> i32 = unsafe { core::mem::transmute(vdso) };
        f(clock, ts) as isize
    };
    if x == 0
        && shift() != 0
        && shifted(clock)
        && let Some(t) = read_timespec(ts)
    {
        // SAFETY: the kernel has just written there.
        unsafe { with_exposed_provenance_mut::<[u64; 2]>(ts).write(timespec(t.wrapping_add(shift()))) };
    }
    x
}

pub(crate) fn timespec(ns: u64) -> [u64; 2] {
    [ns / 1_000_000_000, ns % 1_000_000_000]
}

pub(crate) fn read_timespec(at: usize) -> Option<u64> {
    if at == 0 {
        return None;
    }
    // SAFETY: the application passes a struct timespec; a bad one is answered by the kernel with the same numbers.
    let ts = unsafe { with_exposed_provenance::<[u64; 2]>(at).read() };
    Some(ts[0].saturating_mul(1_000_000_000).saturating_add(ts[1]))
}

/// Whether the stop signal interrupts the calling thread.
pub(crate) struct Watch {
    rec: &'static ThreadRec,
    signals: u32,
    stops: u32,
}

impl Watch {
    /// From now on. `None`: this thread is never stopped.
    pub(crate) fn new() -> Option<Watch> {
        let rec = me()?;
        Some(Watch { rec, signals: rec.app_signals.load(Relaxed), stops: rec.stops.load(Relaxed) })
    }

    /// It has come since this was asked last, and no signal of the application's in all this time.
    pub(crate) fn only_stopped(&mut self) -> bool {
        let seen = self.rec.stops.load(Acquire);
        seen != core::mem::replace(&mut self.stops, seen)
            && self.rec.app_signals.load(Relaxed) == self.signals
    }
}

/// Makes a waiting call again, with the time that remains, as long as only the stop signal interrupted it.
pub(crate) fn until_app_signal(mut f: impl FnMut(Option<u64>) -> isize, total: Option<u64>) -> isize {
    let Some(mut watch) = Watch::new() else { return f(total) };
    let start = total.map(|_| now());
    let mut left = total;
    loop {
        let x = f(left);
        if x != errno::EINTR || !watch.only_stopped() {
            return x;
        }
        left = total.zip(start).map(|(t, start)| t.saturating_sub(now().saturating_sub(start)));
    }
}

fn wait_ms(ms: usize, call: impl Fn(usize) -> isize) -> isize {
    let given = ms as u32 as i32;
    if given <= 0 {
        return if given == 0 { call(ms) } else { until_app_signal(|_| call(ms), None) };
    }
    let total = given.unsigned_abs() as u64 * 1_000_000;
    until_app_signal(|left| call((left.unwrap_or(0).div_ceil(1_000_000)) as usize), Some(total))
}

/// Waits as long as `at` says, and hands `f` the address of what is left.
fn wait_for(at: usize, f: impl Fn(usize) -> isize) -> isize {
    until_app_signal(
        |left| {
            let ts = left.map(timespec);
            f(ts.as_ref().map_or(0, |t| t.as_ptr().expose_provenance()))
        },
        read_timespec(at),
    )
}

fn futex(r: &Regs, pass: impl Fn(&Regs) -> isize) -> isize {
    const WAIT: usize = 0;
    const WAIT_BITSET: usize = 9;
    const WAIT_REQUEUE_PI: usize = 11;
    const LOCK_PI2: usize = 13;
    const CLOCK_REALTIME: usize = 256;
    match r.rsi & 0x7f {
        WAIT => wait_for(r.r10, |t| pass(&Regs { r10: t, ..*r })),
        WAIT_BITSET if r.rsi & CLOCK_REALTIME != 0 => until_app_signal(|_| pass(r), None),
        WAIT_BITSET => until_app_signal(|_| at_kernel_time(r.r10, |t| pass(&Regs { r10: t, ..*r })), None),
        WAIT_REQUEUE_PI | LOCK_PI2 if r.rsi & CLOCK_REALTIME == 0 => {
            at_kernel_time(r.r10, |t| pass(&Regs { r10: t, ..*r }))
        }
        _ => pass(r),
    }
}

/// Calls that wait, and that tell the time.
pub(crate) fn call(n: usize, r: &Regs, pass: impl Fn(&Regs) -> isize) -> Option<isize> {
    let again = |r: &Regs| until_app_signal(|_| pass(r), None);
    Some(match n {
        nr::RT_SIGTIMEDWAIT => {
            without_stop(r.rdi, |set| wait_for(r.rdx, |t| pass(&Regs { rdi: set, rdx: t, ..*r })))
        }
        nr::RT_SIGSUSPEND => without_stop(r.rdi, |set| again(&Regs { rdi: set, ..*r })),
        nr::NANOSLEEP => wait_for(r.rdi, |t| pass(&Regs { rdi: t, ..*r })),
        // TIMER_ABSTIME is 1.
        nr::CLOCK_NANOSLEEP if r.rsi & 1 == 1 && shifted(r.rdi) => {
            until_app_signal(|_| at_kernel_time(r.rdx, |t| pass(&Regs { rdx: t, ..*r })), None)
        }
        nr::CLOCK_NANOSLEEP if r.rsi & 1 == 1 => again(r),
        nr::CLOCK_NANOSLEEP => wait_for(r.rdx, |t| pass(&Regs { rdx: t, ..*r })),
        nr::POLL => wait_ms(r.rdx, |ms| pass(&Regs { rdx: ms, ..*r })),
        nr::EPOLL_WAIT => wait_ms(r.r10, |ms| pass(&Regs { r10: ms, ..*r })),
        nr::EPOLL_PWAIT => {
            without_stop(r.r8, |set| wait_ms(r.r10, |ms| pass(&Regs { r10: ms, r8: set, ..*r })))
        }
        nr::EPOLL_PWAIT2 => {
            without_stop(r.r8, |set| wait_for(r.r10, |t| pass(&Regs { r10: t, r8: set, ..*r })))
        }
        // The kernel itself writes what is left to the time it is given.
        nr::PPOLL => without_stop(r.r10, |set| again(&Regs { r10: set, ..*r })),
        nr::PSELECT6 if r.r9 != 0 => {
            // SAFETY: a pointer to a set and its size, as the kernel reads them.
            let given = unsafe { with_exposed_provenance::<[usize; 2]>(r.r9).read() };
            without_stop(given[0], |set| {
                let both = [set, given[1]];
                again(&Regs { r9: both.as_ptr().expose_provenance(), ..*r })
            })
        }
        nr::SEMTIMEDOP => wait_for(r.r10, |t| pass(&Regs { r10: t, ..*r })),
        nr::PSELECT6 | nr::SELECT | nr::PAUSE | nr::SEMOP | nr::MSGSND | nr::MSGRCV => again(r),
        nr::FUTEX => futex(r, pass),
        nr::CLOCK_GETTIME => clock_gettime(r.rdi, r.rsi),
        _ => return None,
    })
}
