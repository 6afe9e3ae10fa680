//! sigaction(2) and signal masks: the application's view, less the stop signal. *Upper half*.
//!
//! Every handler of the application is installed behind the wrapper of [`crate::signals`]; what it asked for stands in
//! `Upper::sig`, from where it is told again, and installed again after a restart. What a reader would get wrong: the
//! child of posix_spawn runs in the same memory before its exec, and its sigaction must not reach the table.
#![allow(unsafe_code, reason = "system calls on behalf of the application")]

use crate::entry::Regs;
use crate::ids::{is_child, is_other_process};
use core::ptr::{with_exposed_provenance, with_exposed_provenance_mut};
use core::sync::atomic::AtomicI32;
use core::sync::atomic::Ordering::{Relaxed, Release};
use stillpoint_abi::half::STOP_SIGNAL;
use stillpoint_sys::raw::{errno, nr};
use stillpoint_sys::{half, sys, upper};

const STOP_BIT: u64 = 1 << (STOP_SIGNAL - 1);

/// The kernel's struct sigaction.
#[repr(C)]
#[derive(Clone, Copy)]
struct KernelAction {
    handler: u64,
    flags: u64,
    restorer: u64,
    mask: u64,
}

const SA_SIGINFO: u64 = 4;
const SIGINFO_RESTART_RESTORER: u64 = SA_SIGINFO | 0x1000_0000 | 0x0400_0000;

/// rt_sigaction(2).
pub(crate) fn sigaction(r: &Regs) -> isize {
    let sig = r.rdi;
    let u = upper();
    if sig == STOP_SIGNAL as usize || sig > 64 || sig == 0 || r.r10 != 8 {
        return errno::EINVAL;
    }
    let t = &u.sig[sig];
    let mut old = KernelAction { handler: 0, flags: 0, restorer: 0, mask: 0 };
    let mut new = old;
    if r.rsi != 0 {
        // SAFETY: the application passes a struct sigaction here.
        new = unsafe { with_exposed_provenance::<KernelAction>(r.rsi).read() };
    }
    let given = new;
    let is = |signal: &AtomicI32| usize::try_from(signal.load(Relaxed)) == Ok(sig);
    if new.handler == 0 && (is(&half().warn_signal) || is(&half().end_signal)) {
        // It stays the wrapper's, which has nothing to call.
        new.handler = u.sig_wrapper.load(Relaxed) as u64;
        (new.flags, new.restorer, new.mask) = (SIGINFO_RESTART_RESTORER, u.restorer.load(Relaxed) as u64, 0);
    } else if new.handler > 1 {
        new.handler = u.sig_wrapper.load(Relaxed) as u64;
        new.flags |= SA_SIGINFO;
        new.mask &= !STOP_BIT;
    }
    let new_at = if r.rsi == 0 { 0 } else { (&raw const new).expose_provenance() };
    // SAFETY: both structures live on this stack.
    let x = unsafe { sys!(nr::RT_SIGACTION, sig, new_at, &raw mut old, 8) };
    if x != 0 {
        return x;
    }
    if t.set.load(Relaxed) != 0 {
        old = KernelAction {
            handler: t.handler.load(Relaxed),
            flags: t.flags.load(Relaxed),
            restorer: t.restorer.load(Relaxed),
            mask: t.mask.load(Relaxed),
        };
    }
    if r.rsi != 0 && (is_child() || !is_other_process()) {
        t.handler.store(given.handler, Relaxed);
        t.flags.store(given.flags, Relaxed);
        t.restorer.store(given.restorer, Relaxed);
        t.mask.store(given.mask, Relaxed);
        t.set.store(1, Release);
    }
    if r.rdx != 0 {
        // SAFETY: the application passes room for a struct sigaction here.
        unsafe { with_exposed_provenance_mut::<KernelAction>(r.rdx).write(old) };
    }
    0
}

/// Calls `f` with the address of the application's signal set less the stop signal.
pub(crate) fn without_stop(set: usize, f: impl FnOnce(usize) -> isize) -> isize {
    if set == 0 {
        return f(0);
    }
    // SAFETY: a sigset of 8 bytes, as the kernel reads it.
    let copy = unsafe { with_exposed_provenance::<u64>(set).read() } & !STOP_BIT;
    f((&raw const copy).expose_provenance())
}
