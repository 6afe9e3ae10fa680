//! The stop handler, and the wrapper around every handler of the application. *Upper half, in a handler*.
//!
//! ```text
//!  stop signal ─▶ fs upstairs? ip upstairs? depth 0? no id translated? ──no──▶ return; signalled again, or parks on the way up
//!                         │ yes
//!                 note ucontext and alternate stack, parked = 1, wait on `command`
//!                         │ GO
//!                 parked = 0, return (or, after a restart, rt_sigreturn from the saved ucontext)
//! ```
//! What a reader would get wrong: the wrapper may run on top of lower frames (INV-3); `above_lower` says so and the
//! stop handler declines.
#![allow(unsafe_code, reason = "signal frames of the kernel")]

use crate::ids::{TRANSLATED, is_other_process, me};
use crate::space::is_upper;
use crate::transfer::has_limit;
use core::arch::global_asm;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use stillpoint_abi::half::{FLAG_STOP, LowerSlot, STILL_ADDR, STILL_LEN, ThreadRec, ending, parked};
use stillpoint_sys::raw::{errno, futex_wait, futex_wait_for, futex_wake_all, nr};
use stillpoint_sys::{arch, half, sys, thread_by_fs, upper};

/// Offset of rip in the kernel's `ucontext_t` (asm/sigcontext.h: uc_flags, uc_link, uc_stack, then r8 … rip).
const UC_RIP: usize = 40 + 16 * 8;
const UC_RAX: usize = 40 + 13 * 8;
const UC_RDI: usize = 40 + 8 * 8;

unsafe extern "C" {
    fn stillpoint_restorer();
    fn stillpoint_on_stack(f: usize, cmd: u32, arg: usize, top: usize) -> isize;
}

global_asm!(
    ".pushsection .text",
    ".globl stillpoint_restorer",
    ".hidden stillpoint_restorer",
    ".type stillpoint_restorer,@function",
    "nop", // gdb and libgcc look at the byte before the restorer
    "stillpoint_restorer: mov $15, %rax",
    "syscall",
    // Calls f(cmd, arg) with the stack pointer at `top`.
    ".globl stillpoint_on_stack",
    ".hidden stillpoint_on_stack",
    ".type stillpoint_on_stack,@function",
    "stillpoint_on_stack:",
    "push %rbp; mov %rsp, %rbp; mov %rcx, %rsp; and $-16, %rsp",
    "mov %rdi, %rax; mov %esi, %edi; mov %rdx, %rsi",
    "call *%rax",
    "mov %rbp, %rsp; pop %rbp; ret",
    ".popsection",
    options(att_syntax),
);

/// Stop handler, wrapper, restorer.
pub(crate) fn addresses() -> (usize, usize, usize) {
    (
        (stop_handler as *const ()).expose_provenance(),
        (wrapper as *const ()).expose_provenance(),
        (stillpoint_restorer as *const ()).expose_provenance(),
    )
}

fn upstairs(fs: u64) -> bool {
    usize::try_from(fs).is_ok_and(is_upper)
}

/// A read(2) on a socket with a time limit that this signal has ended without a byte is made again. The application's handlers
/// have lower numbers: where one of them interrupted it, that frame is below this one.
fn again_if_read(uc: usize) {
    const SO_RCVTIMEO: usize = 20;
    const READ_SITE: [u8; 4] = [0x31, 0xc0, 0x0f, 0x05]; // xor %eax,%eax; syscall
    let word = |at| core::ptr::with_exposed_provenance_mut::<usize>(uc + at);
    // SAFETY: the kernel's ucontext_t. After a system call rip is behind its instruction, whose page is mapped.
    unsafe {
        let ip = word(UC_RIP).read();
        if word(UC_RAX).read() == errno::EINTR as usize
            && is_upper(ip)
            && core::ptr::with_exposed_provenance::<[u8; 4]>(ip - READ_SITE.len()).read() == READ_SITE
            && has_limit(word(UC_RDI).read(), SO_RCVTIMEO)
        {
            word(UC_RIP).write(ip - READ_SITE.len());
        }
    }
}

/// Calls that the kernel makes again by itself (SA_RESTART), and that would have ended with EINTR for a handler without that:
/// read, write, readv, writev, connect, accept, sendto, recvfrom, sendmsg, recvmsg, wait4, flock, futex, waitid, accept4.
const RESTARTED: [usize; 15] = [0, 1, 19, 20, 42, 43, 44, 45, 46, 47, 61, 73, 202, 247, 288];

/// A signal of the application's that has come within the stop ends the call that the thread waits in, as it would have natively. The
/// kernel, which has seen the stop signal alone, is about to make that call again, behind the handler.
fn end_call_for_signal(uc: usize) {
    const UC_SIGMASK: usize = 40 + 256;
    const UC_R11: usize = 40 + 3 * 8;
    const UC_RCX: usize = 40 + 14 * 8;
    const UC_EFLAGS: usize = 40 + 17 * 8;
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    const SA_RESTART: u64 = 0x1000_0000;
    let word = |at| core::ptr::with_exposed_provenance_mut::<usize>(uc + at);
    // SAFETY: the kernel's ucontext_t. The instruction at rip is the next one, so its page is mapped.
    unsafe {
        let ip = word(UC_RIP).read();
        // A call that was made has left its return address in rcx and the flags in r11: one that is only to be made is left alone.
        let made = word(UC_RCX).read() == ip + 2 && word(UC_R11).read() == word(UC_EFLAGS).read();
        if !made
            || !RESTARTED.contains(&word(UC_RAX).read())
            || core::ptr::with_exposed_provenance::<[u8; 2]>(ip).read() != SYSCALL
        {
            return;
        }
        let mut pending = 0u64;
        sys!(nr::RT_SIGPENDING, &raw mut pending, 8);
        let come = pending & !(word(UC_SIGMASK).read() as u64);
        let ends = |n: usize| {
            let s = &upper().sig[n];
            come >> (n - 1) & 1 == 1 && s.handler.load(Relaxed) > 1 && s.flags.load(Relaxed) & SA_RESTART == 0
        };
        if come != 0 && (1..=64).any(ends) {
            word(UC_RAX).write(errno::EINTR as usize);
            word(UC_RIP).write(ip + 2);
        }
    }
}

extern "C" fn stop_handler(_sig: i32, _info: usize, uc: usize) {
    let h = half();
    let fs = arch::fs();
    if h.child.load(Relaxed) != 0 || !upstairs(fs) {
        return;
    }
    let Some(rec) = thread_by_fs(fs) else { return };
    // Also when it will not stop: the signal has cut a call short.
    rec.stops.fetch_add(1, Relaxed);
    again_if_read(uc);
    if h.flags.load(Acquire) & FLAG_STOP == 0 {
        return;
    }
    // SAFETY: the kernel passed a ucontext_t here.
    let ip = unsafe { core::ptr::with_exposed_provenance::<usize>(uc + UC_RIP).read() };
    let translated = rec.spare[TRANSLATED].load(Relaxed) != 0;
    if translated || rec.depth.load(Relaxed) != 0 || rec.above_lower.load(Relaxed) != 0 || !is_upper(ip) {
        return;
    }
    let mut alt = [0u64; 3];
    // SAFETY: reads nothing (new is null), writes stack_t (24 bytes) to `alt`.
    unsafe { sys!(nr::SIGALTSTACK, 0, alt.as_mut_ptr()) };
    rec.alt_sp.store(alt[0], Relaxed);
    rec.alt_size_flags.store(alt[2] | alt[1] << 32, Relaxed);
    rec.ucontext.store(uc as u64, Relaxed);
    rec.command.store(0, Relaxed);
    rec.parked.store(1, SeqCst);
    futex_wake_all(&rec.parked);
    loop {
        match rec.command.load(Acquire) {
            parked::GO => break,
            _ if half().flags.load(Acquire) & FLAG_STOP == 0 => break,
            parked::LEAD => lead(rec),
            c => futex_wait(&rec.command, c),
        }
    }
    end_call_for_signal(uc);
    rec.command.store(0, Relaxed);
    rec.parked.store(0, Release);
    futex_wake_all(&rec.parked);
}

/// Works on the command of the still point, on the still stack: this thread's own may be short.
fn lead(rec: &ThreadRec) {
    let h = half();
    let plugin = upper().plugins.get(h.still_plugin.load(Acquire) as usize);
    let f = plugin.map_or(0, |p| p.still.load(Acquire));
    let mut r = -1;
    if f != 0 {
        rec.depth.fetch_add(1, SeqCst);
        // SAFETY: the front put its function there; the stack is this command's alone, as only one is worked on at a time.
        r = unsafe {
            stillpoint_on_stack(
                f,
                h.still_cmd.load(Acquire),
                h.still_arg.load(Acquire),
                STILL_ADDR + STILL_LEN,
            )
        };
        rec.depth.fetch_sub(1, SeqCst);
    }
    let _ = rec.command.compare_exchange(parked::LEAD, 0, SeqCst, Relaxed);
    h.still_result.store(r as i64, SeqCst);
    h.still_done.fetch_add(1, SeqCst);
    futex_wake_all(&h.still_done);
}

/// What a handler is to be told: after a restart the kernel's id of this process is not the one the application knows.
fn correct_sender(info: usize) {
    // SI_USER, SI_QUEUE, SI_TKILL: sent by a process.
    const BY_A_PROCESS: [i32; 3] = [0, -1, -6];
    const SI_PID: usize = 16;
    let word = |at: usize| core::ptr::with_exposed_provenance_mut::<i32>(info + at);
    // SAFETY: the kernel's siginfo_t on this stack: si_code at 8; si_pid where a process is the sender.
    unsafe {
        if info != 0
            && BY_A_PROCESS.contains(&word(8).read())
            && word(SI_PID).read() == half().pid.load(Relaxed)
        {
            word(SI_PID).write(upper().vpid.load(Relaxed));
        }
    }
}

/// The signal that asks for a checkpoint has come. A child of the application has no part in that: it dies as it would.
fn warned(sig: i32) {
    let h = half();
    if h.warn_signal.load(Relaxed) != sig {
        return;
    }
    if h.child.load(Relaxed) == 0 {
        h.warned.fetch_add(1, SeqCst);
        futex_wake_all(&h.warned);
    } else if upper().sig[sig.unsigned_abs() as usize % 65].handler.load(Relaxed) == 0 {
        by_default(sig);
    }
}

/// The default action, and the signal once more.
fn by_default(sig: i32) {
    let (default, only) = ([0u64; 4], 1u64 << (sig - 1));
    // SAFETY: a signal to this thread. The mask to which the handler returns may have it blocked (sigsuspend(2)).
    unsafe {
        sys!(nr::RT_SIGACTION, sig, default.as_ptr(), 0, 8);
        sys!(nr::TGKILL, sys!(nr::GETPID), sys!(nr::GETTID), sig);
        sys!(nr::RT_SIGPROCMASK, 1, &raw const only, 0, 8);
    }
}

/// A signal that ends the process: the node agent hears of it first, so that it is not taken for the cause of what others do.
fn ends(sig: i32) {
    let h = half();
    if h.child.load(Relaxed) == 0 && !is_other_process() {
        // Not to be saved here: a restarted process would end.
        let depth = me().map(|rec| &rec.depth);
        depth.inspect(|d| _ = d.fetch_add(1, SeqCst));
        let _ = h.ending.compare_exchange(0, ending::TELL, SeqCst, Relaxed);
        futex_wake_all(&h.ending);
        // Whoever waits for the end is not kept waiting.
        for _ in 0..10 {
            if h.ending.load(Acquire) == ending::TELL {
                futex_wait_for(&h.ending, ending::TELL, 50_000_000);
            }
        }
    }
    by_default(sig);
}

extern "C" fn wrapper(sig: i32, info: usize, uc: usize) {
    const SA_RESETHAND: u64 = 0x8000_0000;
    let n = usize::try_from(sig).unwrap_or(0).min(64);
    let entry = &upper().sig[n];
    let f = entry.handler.load(Acquire);
    warned(sig);
    if f < 2 {
        if f == 0 && half().end_signal.load(Relaxed) == sig {
            ends(sig);
        }
        return;
    }
    if entry.flags.load(Relaxed) & SA_RESETHAND != 0 {
        // The kernel has reset its own entry; the next call of sigaction must say so, and so must a restart.
        let _ = entry.handler.compare_exchange(f, 0, SeqCst, Relaxed);
    }
    if half().child.load(Relaxed) == 0 {
        correct_sender(info);
    }
    // SAFETY: the application gave this address to sigaction as a handler.
    let f: extern "C" fn(i32, usize, usize) = unsafe { core::mem::transmute(f) };
    let fs = arch::fs();
    if upstairs(fs) {
        let rec = thread_by_fs(fs);
        // It may stand still in the handler, or leave it by longjmp.
        let translated = rec.map_or(0, |rec| rec.spare[TRANSLATED].swap(0, SeqCst));
        rec.into_iter().for_each(|rec| _ = rec.app_signals.fetch_add(1, Relaxed));
        f(sig, info, uc);
        rec.into_iter().for_each(|rec| rec.spare[TRANSLATED].store(translated, SeqCst));
        return;
    }
    let slot = usize::try_from(fs.wrapping_add(half().slot_offset)).unwrap_or(0);
    // SAFETY: every lower thread that upper code runs on has its slot at this offset from its thread pointer; threads of
    // the lower half's own have all signals blocked and never get here.
    let rec = unsafe { (*core::ptr::with_exposed_provenance::<LowerSlot>(slot)).rec.load(Relaxed) };
    if rec == 0 {
        return;
    }
    // SAFETY: records live in the upper page for ever.
    let rec = unsafe { &*core::ptr::with_exposed_provenance::<ThreadRec>(rec) };
    rec.app_signals.fetch_add(1, Relaxed);
    rec.above_lower.fetch_add(1, SeqCst);
    // SAFETY: this thread's own upper thread pointer; put back below.
    unsafe { arch::set_fs(rec.fs.load(Relaxed)) };
    f(sig, info, uc);
    // SAFETY: the thread pointer found at entry.
    unsafe { arch::set_fs(fs) };
    rec.above_lower.fetch_sub(1, SeqCst);
}
