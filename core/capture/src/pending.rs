//! Signals that are pending at the still point. *Lower half*: the control thread captures, the main thread of a restart
//! raises them again.
//!
//! Numbers are read from /proc. Real-time signals of the process are taken out of the queue and put back, so that their
//! order, number and values are kept; of the others only one of each can be pending, and it comes back as from kill(2).
//! What a reader would get wrong: the kernel lets no thread but the main one forge the sender of a signal, so nothing
//! whose sender is the kernel or another process is taken out.
#![allow(unsafe_code, reason = "queues signals")]

use std::sync::atomic::Ordering::Relaxed;
use stillpoint_abi::half::STOP_SIGNAL;
use stillpoint_sys::raw::{getpid, nr};
use stillpoint_sys::{sys, upper};

/// Size of the kernel's `siginfo_t`.
const INFO: usize = 128;
/// First real-time signal that glibc leaves to applications.
const FIRST_RT: i32 = 34;
const SI_TKILL: i32 = -6;
/// Most queued real-time signals that are looked at.
const MOST: usize = 4096;

fn mask(status: &str, key: &str) -> u64 {
    let line = status.lines().find_map(|l| l.strip_prefix(key));
    line.and_then(|v| u64::from_str_radix(v.trim().trim_start_matches(':').trim(), 16).ok()).unwrap_or(0)
}

fn numbers(mask: u64) -> impl Iterator<Item = i32> {
    (1..=64).filter(move |n| mask >> (n - 1) & 1 == 1 && *n != STOP_SIGNAL)
}

fn made_up(sig: i32, code: i32) -> [u8; INFO] {
    let mut info = [0u8; INFO];
    let mut put = |at: usize, v: i32| info[at..at + 4].copy_from_slice(&v.to_le_bytes());
    put(0, sig);
    put(8, code);
    put(16, upper().vpid.load(Relaxed));
    // SAFETY: no arguments.
    put(20, unsafe { libc::getuid() } as i32);
    info
}

fn status(tid: i32) -> String {
    std::fs::read_to_string(format!("/proc/self/task/{tid}/status")).unwrap_or_default()
}

/// Signals pending for one thread.
pub(crate) fn of_thread(tid: i32) -> Vec<u8> {
    numbers(mask(&status(tid), "SigPnd")).flat_map(|n| made_up(n, SI_TKILL)).collect()
}

/// Signals by which somebody ends a process: HUP, INT, QUIT, TERM.
const END: [i32; 4] = [1, 2, 3, 15];

/// What would have ended the process if it had not stood still was meant for this one, not for one that is restarted from its image.
/// `blocked`: by every thread of the application; `default`: the application leaves the signal at that.
fn is_kept(sig: i32, blocked: u64, default: bool) -> bool {
    !(END.contains(&sig) && default && blocked >> (sig - 1) & 1 == 0)
}

/// Signals pending for the process. Every upper thread stands still, and all signals are blocked here.
pub(crate) fn of_process() -> Vec<u8> {
    let blocked =
        crate::pause::threads().map(|t| own_mask(t.ucontext.load(Relaxed))).fold(u64::MAX, |m, b| m & b);
    let default =
        |n: i32| upper().sig.get(n.unsigned_abs() as usize).is_some_and(|s| s.handler.load(Relaxed) == 0);
    let kept = |n: &i32| is_kept(*n, blocked, default(*n));
    let all = numbers(mask(&status(getpid()), "ShdPnd")).filter(kept).fold(0, |m, n| m | 1 << (n - 1));
    let mut out: Vec<u8> = numbers(all).filter(|n| *n < FIRST_RT).flat_map(|n| made_up(n, 0)).collect();
    let real_time = numbers(all).filter(|n| *n >= FIRST_RT).fold(0u64, |m, n| m | 1 << (n - 1));
    let mut taken: Vec<[u8; INFO]> = Vec::new();
    while real_time != 0 && taken.len() < MOST {
        let mut info = [0u8; INFO];
        let none = [0u64; 2];
        // SAFETY: reads the set and the time, writes a siginfo_t.
        let n =
            unsafe { sys!(nr::RT_SIGTIMEDWAIT, &raw const real_time, info.as_mut_ptr(), none.as_ptr(), 8) };
        if n <= 0 {
            break;
        }
        taken.push(info);
    }
    for info in &taken {
        queue(info);
    }
    out.extend(taken.iter().flatten());
    out
}

/// The mask of a thread that stands in the stop handler, whose frame is at this address.
fn own_mask(ucontext: u64) -> u64 {
    // The kernel's ucontext_t (asm/ucontext.h): flags, link, stack, then a sigcontext of 256 bytes.
    const UC_SIGMASK: u64 = 40 + 256;
    let at = usize::try_from(ucontext + UC_SIGMASK).unwrap_or(0);
    // SAFETY: the frame lives as long as the thread stands.
    if ucontext == 0 { 0 } else { unsafe { std::ptr::with_exposed_provenance::<u64>(at).read() } }
}

fn number(info: &[u8; INFO]) -> i32 {
    i32::from_le_bytes([info[0], info[1], info[2], info[3]])
}

fn queue(info: &[u8; INFO]) {
    // SAFETY: a signal to this process, with a siginfo_t of the kernel's own; or the plain one where that is refused.
    unsafe {
        if sys!(nr::RT_SIGQUEUEINFO, getpid(), number(info), info.as_ptr()) < 0 {
            sys!(nr::KILL, getpid(), number(info));
        }
    }
}

fn each(infos: &[u8]) -> impl Iterator<Item = [u8; INFO]> {
    infos.chunks_exact(INFO).filter_map(|c| c.try_into().ok())
}

/// Raises the signals of the process again. Main thread, all signals blocked in every thread.
pub(crate) fn raise_process(infos: &[u8]) {
    each(infos).for_each(|i| queue(&i));
}

/// Raises the signals of a thread again.
pub(crate) fn raise_thread(tid: i32, infos: &[u8]) {
    for i in each(infos) {
        // SAFETY: a signal to a thread of our own, which has it blocked.
        unsafe { sys!(nr::TGKILL, getpid(), tid, number(&i)) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_have_ended_the_process_is_not_kept() {
        let term = 1 << 14;
        assert!(!is_kept(15, 0, true));
        assert!(is_kept(15, term, true), "the application has it blocked");
        assert!(is_kept(15, 0, false), "it has a handler, or ignores it");
        assert!(is_kept(14, 0, true), "its own timer's");
    }

    #[test]
    fn masks_are_read_and_the_stop_signal_left_out() {
        let s = "Name:\tx\nSigPnd:\t8000000000000200\nShdPnd:\t0000000000000800\n";
        assert_eq!(numbers(mask(s, "SigPnd")).collect::<Vec<_>>(), [10]);
        assert_eq!(numbers(mask(s, "ShdPnd")).collect::<Vec<_>>(), [12]);
        assert_eq!(mask(s, "SigBlk"), 0);
    }
}
