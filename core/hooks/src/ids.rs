//! Ids of processes and threads: what the application knows, and what the kernel knows now. *Upper half*.
//!
//! After a restart the application goes on with its old ids ("virtual"), because glibc keeps them in locks; the kernel has
//! others. A thread made later keeps the kernel's id unless a living thread is already known by that number.
//!
//! What a reader would get wrong: a child made by vfork shares this memory. It may not write to anything here, and only
//! its pid tells it apart from the rank.
#![allow(unsafe_code, reason = "system calls on behalf of the application, and the id that glibc keeps")]

use crate::entry::Regs;
use core::ptr::{with_exposed_provenance, with_exposed_provenance_mut};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use stillpoint_abi::half::ThreadRec;
use stillpoint_sys::raw::{getpid, gettid, nr};
use stillpoint_sys::{arch, half, sys, thread_by_fs, upper};

/// [`ThreadRec::spare`] 0: 1 once the thread has called exit.
const LEAVING: usize = 0;

/// [`ThreadRec::spare`] 1: 1 while the thread has translated an id and has not made the call with it yet.
pub(crate) const TRANSLATED: usize = 1;

/// Ids given where the kernel's is taken: above every id of a kernel (PID_MAX_LIMIT is 2^22), below the bits that futexes
/// use (FUTEX_TID_MASK).
const INVENTED: i32 = 1 << 24;

/// The record of the calling thread.
pub(crate) fn me() -> Option<&'static ThreadRec> {
    thread_by_fs(arch::thread_self())
}

/// True in a child made by fork: memory of its own, and no lower half.
pub(crate) fn is_child() -> bool {
    half().child.load(Relaxed) != 0
}

/// The kernel's id of this process, and whether it is the rank itself. Both as of one start: the thread may be stopped after
/// the one, and go on in a restarted process with the other.
fn process() -> (i32, bool) {
    loop {
        let epoch = half().epoch.load(SeqCst);
        let real = getpid();
        let is_rank = !is_child() && real == half().pid.load(SeqCst);
        if half().epoch.load(SeqCst) == epoch {
            return (real, is_rank);
        }
    }
}

/// True in any process but the rank itself, also in a child that shares its memory.
pub(crate) fn is_other_process() -> bool {
    !process().1
}

/// getpid(2).
pub(crate) fn own_pid() -> isize {
    let (real, is_rank) = process();
    (if is_rank { upper().vpid.load(Relaxed) } else { real }) as isize
}

/// gettid(2).
pub(crate) fn own_tid() -> isize {
    let rec = if is_child() { None } else { me() };
    rec.map_or_else(gettid, |rec| rec.vtid.load(Relaxed)) as isize
}

fn known(want: i32) -> Option<&'static ThreadRec> {
    let n = upper().n_threads.load(Acquire) as usize;
    upper().threads.iter().take(n).find(|t| t.fs.load(Relaxed) != 0 && t.vtid.load(Relaxed) == want)
}

/// The kernel's id of a thread (or of the process, by the main thread's) that the application names; others as they are.
pub(crate) fn real(id: usize) -> usize {
    let want = id as u32 as i32;
    if want <= 0 || is_child() {
        return id;
    }
    if want == upper().vpid.load(Relaxed) {
        return half().pid.load(Relaxed) as usize;
    }
    known(want).map(|t| t.tid.load(Relaxed)).filter(|t| *t > 0).map_or(id, |t| t as usize)
}

/// System calls whose first argument (or second, where the first says what it is) names a process or thread.
pub(crate) fn with_real_ids(n: usize, r: &Regs) -> Option<Regs> {
    let both = || Regs { rdi: real(r.rdi), rsi: real(r.rsi), ..*r };
    Some(match n {
        nr::KILL
        | nr::TKILL
        | nr::RT_SIGQUEUEINFO
        | nr::SETPGID
        | nr::GETPGID
        | nr::GETSID
        | nr::SCHED_SETPARAM
        | nr::SCHED_GETPARAM
        | nr::SCHED_SETSCHEDULER
        | nr::SCHED_GETSCHEDULER
        | nr::SCHED_RR_GET_INTERVAL
        | nr::SCHED_SETAFFINITY
        | nr::SCHED_GETAFFINITY
        | nr::SCHED_SETATTR
        | nr::SCHED_GETATTR
        | nr::PRLIMIT64
        | nr::PIDFD_OPEN
        | nr::GET_ROBUST_LIST
        | nr::PROCESS_VM_READV
        | nr::PROCESS_VM_WRITEV => Regs { rdi: real(r.rdi), ..*r },
        nr::TGKILL | nr::RT_TGSIGQUEUEINFO | nr::KCMP => both(),
        // PRIO_PROCESS is 0, IOPRIO_WHO_PROCESS 1.
        nr::GETPRIORITY | nr::SETPRIORITY if r.rdi == 0 => Regs { rsi: real(r.rsi), ..*r },
        nr::IOPRIO_GET | nr::IOPRIO_SET if r.rdi == 1 => Regs { rsi: real(r.rsi), ..*r },
        _ => return None,
    })
}

/// Runs `f`, which translates ids and makes the system call with them. The thread is not stopped in between: a restart would
/// give these ids to others. A handler of the application's that runs on top of it is stopped as ever.
pub(crate) fn with_ids(f: impl FnOnce() -> isize) -> isize {
    let Some(rec) = me().filter(|_| !is_other_process()) else { return f() };
    rec.spare[TRANSLATED].store(1, SeqCst);
    let x = f();
    rec.spare[TRANSLATED].store(0, SeqCst);
    x
}

const CLONE_VM: usize = 0x100;
const CLONE_VFORK: usize = 0x4000;
const CLONE_THREAD: usize = 0x1_0000;
const CLONE_SETTLS: usize = 0x8_0000;
const CLONE_CHILD_CLEARTID: usize = 0x20_0000;

/// clone without a stack of its own, fork, vfork: the child returns through this hook, on this stack, so it must have its
/// own memory; a vfork that is asked for here is a fork.
pub(crate) fn fork(n: usize, r: &Regs) -> isize {
    // SAFETY: the application's own call, on memory that the child gets a copy of.
    let x = unsafe {
        if n == nr::CLONE {
            sys!(nr::CLONE, r.rdi & !(CLONE_VM | CLONE_VFORK), 0, r.rdx, r.r10, r.r8)
        } else {
            sys!(nr::FORK)
        }
    };
    if x == 0 {
        half().child.store(1, SeqCst);
    }
    x
}

/// Before exit(2) of a thread.
pub(crate) fn leaving() {
    if let Some(rec) = me()
        && !is_other_process()
    {
        rec.spare[LEAVING].store(1, Release);
    }
}

fn is_dead(t: &ThreadRec) -> bool {
    let gone = || {
        let tid = t.tid.load(Relaxed);
        // SAFETY: signal 0 only asks whether the thread lives.
        if tid > 0 { unsafe { sys!(nr::TGKILL, getpid(), tid, 0) } } else { 0 }
    };
    t.spare[LEAVING].load(Acquire) != 0 && with_ids(gone) < 0
}

/// Before a clone with a stack of its own: a record for the new thread, or null for a process.
pub(crate) extern "C" fn clone_prepare(r: &mut Regs) -> *const ThreadRec {
    if r.rdi & CLONE_THREAD == 0 || r.rdi & CLONE_SETTLS == 0 {
        return core::ptr::null();
    }
    let u = upper();
    let tls = r.r8 as u64;
    let used = u.n_threads.load(Acquire) as usize;
    // The first record is the main thread's for ever.
    for (k, t) in u.threads.iter().enumerate().skip(1) {
        let fs = t.fs.load(Relaxed);
        // A thread control block is used again only when its thread is dead.
        let free = fs == 0 || k < used && (fs == tls || is_dead(t));
        if free && t.fs.compare_exchange(fs, tls, AcqRel, Relaxed).is_ok() {
            t.tid.store(-1, Relaxed);
            t.vtid.store(-1, Relaxed);
            t.depth.store(0, Relaxed);
            t.above_lower.store(0, Relaxed);
            t.parked.store(0, Relaxed);
            t.app_signals.store(0, Relaxed);
            t.doing.store(0, Relaxed);
            t.rseq_addr.store(0, Relaxed);
            t.robust_head.store(0, Relaxed);
            t.epoch.store(0, Relaxed);
            t.spare[LEAVING].store(0, Relaxed);
            t.clear_tid.store(if r.rdi & CLONE_CHILD_CLEARTID != 0 { r.r10 as u64 } else { 0 }, Relaxed);
            u.n_threads.fetch_max(u32::try_from(k + 1).unwrap_or(0), AcqRel);
            return t;
        }
    }
    core::ptr::null()
}

/// The id by which the application is to know a new thread.
fn choose(rec: &ThreadRec, tid: i32) -> i32 {
    let u = upper();
    let n = u.n_threads.load(Acquire) as usize;
    let taken = u.threads.iter().take(n).any(|t| {
        !core::ptr::eq(t, rec) && t.fs.load(Relaxed) != 0 && t.vtid.load(Relaxed) == tid && !is_dead(t)
    });
    if !taken {
        return tid;
    }
    let k = u.threads.iter().position(|t| core::ptr::eq(t, rec)).unwrap_or(0);
    INVENTED + k as i32
}

/// In the parent, after the clone: `x` is the thread id or `-errno`.
pub(crate) extern "C" fn clone_done(rec: &ThreadRec, x: isize) {
    if x < 0 {
        rec.fs.store(0, Release);
        return;
    }
    // The new thread enters its ids itself. Until it has, the kernel's id stands for it, unless that is taken: then what
    // glibc keeps must be corrected before the creator uses it. (It may have ended by now, and its record be used again.)
    let fs = rec.fs.load(Relaxed);
    if choose(rec, x as i32) == x as i32 {
        return;
    }
    while rec.vtid.load(Acquire) == -1 && rec.fs.load(Relaxed) == fs {
        // SAFETY: gives up the processor.
        unsafe { sys!(nr::SCHED_YIELD) };
    }
}

/// In the new thread, before it runs.
pub(crate) extern "C" fn clone_started(rec: &ThreadRec) {
    let tid = gettid();
    // Whoever had this id before is dead, whatever its record says.
    let n = upper().n_threads.load(Acquire) as usize;
    for t in upper().threads.iter().take(n).skip(1) {
        if !core::ptr::eq(t, rec) && t.tid.load(Relaxed) == tid {
            t.fs.store(0, Release);
            t.tid.store(-1, Relaxed);
        }
    }
    let known = choose(rec, tid);
    let kept = rec.clear_tid.load(Relaxed) as usize;
    if known != tid && kept != 0 {
        // SAFETY: glibc keeps the id where the kernel is to clear it (struct pthread.tid); this thread's own block.
        unsafe {
            if with_exposed_provenance::<i32>(kept).read() == tid {
                with_exposed_provenance_mut::<i32>(kept).write(known);
            }
        }
    }
    rec.tid.store(tid, Release);
    rec.vtid.store(known, Release);
}
