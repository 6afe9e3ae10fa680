//! What each hooked system call does. *Upper half*, in the place of the application's syscall instruction.
//!
//! Everything here returns what the kernel would: a value or `-errno`. Calls that wait are made with the application's
//! own arguments; when only the stop signal ended them, they go on with the time that remains.
#![allow(unsafe_code, reason = "system calls on behalf of the application")]

use crate::entry::Regs;
use crate::space::{Locked, in_maps, patch_text};
use core::ptr::with_exposed_provenance;
use core::ptr::with_exposed_provenance_mut;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use stillpoint_abi::half::{BRK_END, BRK_START, MAX_THREADS, STOP_SIGNAL, ThreadRec, goodbye};
use stillpoint_sys::raw::{errno, getpid, gettid, monotonic_ns, nr};
use stillpoint_sys::{arch, half, sys, thread_by_fs, upper};

const MAP_FIXED: usize = 0x10;
const MAP_32BIT: usize = 0x40;
const MAP_FIXED_NOREPLACE: usize = 0x10_0000;
const MREMAP_MAYMOVE: usize = 1;
const MREMAP_FIXED: usize = 2;
const STOP_BIT: u64 = 1 << (STOP_SIGNAL - 1);

/// Ends the process after a line on standard error.
pub(crate) fn die(text: &[u8]) -> ! {
    loop {
        // SAFETY: writes a constant; exit_group does not return.
        unsafe {
            sys!(nr::WRITE, 2, text.as_ptr(), text.len());
            sys!(nr::EXIT_GROUP, 255);
        }
    }
}

fn pass(n: usize, r: &Regs) -> isize {
    // SAFETY: the application's own call.
    unsafe { stillpoint_sys::raw::syscall(n, [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9]) }
}

/// The record of the calling thread.
fn me() -> Option<&'static ThreadRec> {
    thread_by_fs(arch::thread_self())
}

/// Called by the entry code with the argument registers and the number.
pub(crate) extern "C" fn dispatch(r: &mut Regs, n: u32) -> isize {
    let n = n as usize;
    let main = &upper().threads[0].fs;
    if main.load(Relaxed) == 0 {
        // Only the main thread runs before its record is complete: it is upstairs once its thread pointer is.
        let fs = arch::thread_self();
        if usize::try_from(fs).is_ok_and(in_maps) {
            let _ = main.compare_exchange(0, fs, AcqRel, Relaxed);
        }
    }
    match n {
        nr::MMAP => mmap(r),
        nr::MUNMAP => {
            let mut space = Locked::new();
            let x = pass(n, r);
            if x == 0 {
                space.give(r.rdi, r.rsi);
            }
            x
        }
        nr::MREMAP => mremap(r),
        nr::BRK => brk(r.rdi),
        nr::SHMAT => shmat(r),
        nr::RT_SIGACTION => sigaction(r),
        nr::RT_SIGPROCMASK => {
            without_stop(r.rsi, |set| if r.rdi == 1 { pass(n, r) } else { pass(n, &Regs { rsi: set, ..*r }) })
        }
        nr::RT_SIGTIMEDWAIT => without_stop(r.rdi, |set| {
            until_app_signal(
                |left| {
                    let ts = left.map(timespec);
                    let t = ts.as_ref().map_or(0, |t| t.as_ptr().expose_provenance());
                    pass(n, &Regs { rdi: set, rdx: t, ..*r })
                },
                read_timespec(r.rdx),
            )
        }),
        nr::RT_SIGSUSPEND => {
            without_stop(r.rdi, |set| until_app_signal(|_| pass(n, &Regs { rdi: set, ..*r }), None))
        }
        nr::PAUSE => until_app_signal(|_| pass(n, r), None),
        nr::NANOSLEEP => until_app_signal(
            |left| {
                let ts = timespec(left.unwrap_or(0));
                pass(n, &Regs { rdi: ts.as_ptr().expose_provenance(), ..*r })
            },
            read_timespec(r.rdi),
        ),
        // TIMER_ABSTIME (1) needs no arithmetic.
        nr::CLOCK_NANOSLEEP if r.rsi & 1 == 1 => until_app_signal(|_| pass(n, r), None),
        nr::CLOCK_NANOSLEEP => until_app_signal(
            |left| {
                let ts = timespec(left.unwrap_or(0));
                pass(n, &Regs { rdx: ts.as_ptr().expose_provenance(), ..*r })
            },
            read_timespec(r.rdx),
        ),
        nr::POLL => wait_ms(n, r, r.rdx, |ms| Regs { rdx: ms, ..*r }),
        nr::EPOLL_WAIT => wait_ms(n, r, r.r10, |ms| Regs { r10: ms, ..*r }),
        nr::EPOLL_PWAIT => wait_ms(n, r, r.r10, |ms| Regs { r10: ms, ..*r }),
        nr::PPOLL | nr::PSELECT6 | nr::SELECT => until_app_signal(|_| pass(n, r), None),
        nr::GETPID => own_pid(),
        nr::GETTID => me().map_or_else(|| pass(n, r), |rec| rec.vtid.load(Relaxed) as isize),
        nr::KILL => pass(n, &Regs { rdi: real_pid(r.rdi), ..*r }),
        nr::TGKILL => pass(n, &Regs { rdi: real_pid(r.rdi), rsi: real_tid(r.rsi), ..*r }),
        nr::TKILL | nr::SCHED_SETAFFINITY | nr::SCHED_GETAFFINITY => {
            pass(n, &Regs { rdi: real_tid(r.rdi), ..*r })
        }
        nr::SET_TID_ADDRESS => {
            if let Some(rec) = me() {
                rec.clear_tid.store(r.rdi as u64, Relaxed);
            }
            let x = pass(n, r);
            me().map_or(x, |rec| rec.vtid.load(Relaxed) as isize)
        }
        nr::SET_ROBUST_LIST => {
            if let Some(rec) = me() {
                rec.robust_head.store(r.rdi as u64, Relaxed);
                rec.robust_len.store(r.rsi as u64, Relaxed);
            }
            pass(n, r)
        }
        nr::RSEQ => {
            if let Some(rec) = me() {
                let unregister = r.rdx & 1 == 1;
                rec.rseq_addr.store(if unregister { 0 } else { r.rdi as u64 }, Relaxed);
                rec.rseq_len_sig.store((r.rsi & 0xffff_ffff) as u64 | (r.r10 as u64) << 32, Relaxed);
            }
            pass(n, r)
        }
        nr::READLINK => exe_link(r.rdi, r.rsi, r.rdx).unwrap_or_else(|| pass(n, r)),
        nr::READLINKAT => exe_link(r.rsi, r.rdx, r.r10).unwrap_or_else(|| pass(n, r)),
        nr::EXECVE => execve(r),
        nr::EXIT_GROUP => {
            say_goodbye(r.rdi);
            pass(n, r)
        }
        nr::CLONE3 => errno::ENOSYS,
        nr::CLONE => {
            let x = pass(n, r);
            if x == 0 {
                half().child.store(1, SeqCst);
            }
            x
        }
        _ => pass(n, r),
    }
}

fn mmap(r: &Regs) -> isize {
    if r.rsi == 0 || r.rsi > 1 << 46 {
        return pass(nr::MMAP, r);
    }
    let mut space = Locked::new();
    let flags = r.r10;
    let x = if flags & (MAP_FIXED | MAP_FIXED_NOREPLACE) != 0 {
        let x = pass(nr::MMAP, r);
        if x > 0 {
            space.take(r.rdi, r.rsi);
        }
        x
    } else {
        let hint_end = r.rdi.saturating_add(r.rsi);
        let at = if r.rdi & 4095 == 0 && in_maps(r.rdi) && space.is_free(r.rdi, hint_end) {
            space.take(r.rdi, r.rsi);
            Some(r.rdi)
        } else {
            space.allot(r.rsi)
        };
        let Some(at) = at else { return errno::ENOMEM };
        let x = pass(nr::MMAP, &Regs { rdi: at, r10: (flags & !MAP_32BIT) | MAP_FIXED_NOREPLACE, ..*r });
        if x < 0 && x != errno::EEXIST {
            space.give(at, r.rsi);
        }
        x
    };
    drop(space);
    if x > 0 && r.rdx & 4 != 0 && r.r8 as u32 as i32 >= 0 {
        patch_text(x as usize, r.rsi);
    }
    x
}

fn mremap(r: &Regs) -> isize {
    let (old, old_len, new_len, flags) = (r.rdi, r.rsi, r.rdx, r.r10);
    let mut space = Locked::new();
    if flags & MREMAP_FIXED != 0 {
        let x = pass(nr::MREMAP, r);
        if x > 0 {
            space.give(old, old_len);
            space.take(r.r8, new_len);
        }
        return x;
    }
    let (old_end, new_end) = ((old + old_len + 4095) & !4095, (old + new_len + 4095) & !4095);
    // In place only where the table says that the room behind is ours.
    if new_end <= old_end || (in_maps(old) && space.is_free(old_end, new_end)) {
        let x = pass(nr::MREMAP, &Regs { r10: flags & !MREMAP_MAYMOVE, ..*r });
        if x > 0 {
            if new_end < old_end {
                space.give(new_end, old_end - new_end);
            } else {
                space.take(old, new_len);
            }
            return x;
        }
    }
    if flags & MREMAP_MAYMOVE == 0 {
        return errno::ENOMEM;
    }
    let Some(at) = space.allot(new_len) else { return errno::ENOMEM };
    let x = pass(nr::MREMAP, &Regs { r10: flags | MREMAP_FIXED, r8: at, ..*r });
    if x > 0 {
        if old_len != 0 {
            space.give(old, old_len);
        }
    } else {
        space.give(at, new_len);
    }
    x
}

fn brk(want: usize) -> isize {
    let _space = Locked::new();
    let u = upper();
    let now = u.brk.load(Relaxed) as usize;
    if !(BRK_START..=BRK_END).contains(&want) {
        return now as isize;
    }
    let (a, b) = ((now + 4095) & !4095, (want + 4095) & !4095);
    // SAFETY: the range between the two breaks is the emulated heap's alone.
    let x = unsafe {
        if b > a {
            sys!(nr::MMAP, a, b - a, 3, 0x22 | MAP_FIXED_NOREPLACE, usize::MAX, 0)
        } else if b < a {
            sys!(nr::MUNMAP, b, a - b)
        } else {
            0
        }
    };
    if x < 0 {
        return now as isize;
    }
    u.brk.store(want as u64, Relaxed);
    want as isize
}

fn shmat(r: &Regs) -> isize {
    if r.rsi != 0 {
        return pass(nr::SHMAT, r);
    }
    let mut ds = [0u64; 16];
    // SAFETY: IPC_STAT (2) writes a shmid_ds (112 bytes); shm_segsz follows ipc_perm (48 bytes).
    let x = unsafe { sys!(nr::SHMCTL, r.rdi, 2, ds.as_mut_ptr()) };
    if x < 0 {
        return x;
    }
    let mut space = Locked::new();
    let len = ds[6] as usize;
    let Some(at) = space.allot(len) else { return errno::ENOMEM };
    let x = pass(nr::SHMAT, &Regs { rsi: at, ..*r });
    if x < 0 {
        space.give(at, len);
    }
    x
}

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

fn sigaction(r: &Regs) -> isize {
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
    if new.handler > 1 {
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
    if r.rsi != 0 {
        t.handler.store(given.handler, Relaxed);
        t.flags.store(given.flags, Relaxed);
        t.restorer.store(given.restorer, Relaxed);
        t.mask.store(given.mask, Relaxed);
        t.set.store(1, Release);
        if given.flags & 0x8000_0000 != 0 && given.handler > 1 {
            // SA_RESETHAND: the kernel resets its own entry; ours is only read by the wrapper.
        }
    }
    if r.rdx != 0 {
        // SAFETY: the application passes room for a struct sigaction here.
        unsafe { with_exposed_provenance_mut::<KernelAction>(r.rdx).write(old) };
    }
    0
}

/// Calls `f` with the address of the application's signal set less the stop signal.
fn without_stop(set: usize, f: impl FnOnce(usize) -> isize) -> isize {
    if set == 0 {
        return f(0);
    }
    // SAFETY: a sigset of 8 bytes, as the kernel reads it.
    let copy = unsafe { with_exposed_provenance::<u64>(set).read() } & !STOP_BIT;
    f((&raw const copy).expose_provenance())
}

fn timespec(ns: u64) -> [u64; 2] {
    [ns / 1_000_000_000, ns % 1_000_000_000]
}

fn read_timespec(at: usize) -> Option<u64> {
    if at == 0 {
        return None;
    }
    // SAFETY: the application passes a struct timespec; a bad one is answered by the kernel with the same numbers.
    let ts = unsafe { with_exposed_provenance::<[u64; 2]>(at).read() };
    Some(ts[0].saturating_mul(1_000_000_000).saturating_add(ts[1]))
}

/// Makes a waiting call again, with the time that remains, as long as only the stop signal interrupted it.
fn until_app_signal(mut f: impl FnMut(Option<u64>) -> isize, total: Option<u64>) -> isize {
    let Some(rec) = me() else { return f(total) };
    let start = monotonic_ns();
    let before = rec.app_signals.load(Relaxed);
    let mut stops = rec.stops.load(Relaxed);
    let mut left = total;
    loop {
        let x = f(left);
        let now = rec.stops.load(Acquire);
        if x != errno::EINTR || rec.app_signals.load(Relaxed) != before || now == stops {
            return x;
        }
        stops = now;
        left = total.map(|t| t.saturating_sub(monotonic_ns().saturating_sub(start)));
    }
}

fn wait_ms(n: usize, r: &Regs, ms: usize, with: impl Fn(usize) -> Regs) -> isize {
    let ms = ms as u32 as i32;
    if ms <= 0 {
        return if ms == 0 { pass(n, r) } else { until_app_signal(|_| pass(n, r), None) };
    }
    let total = ms.unsigned_abs() as u64 * 1_000_000;
    until_app_signal(|left| pass(n, &with((left.unwrap_or(0).div_ceil(1_000_000)) as usize)), Some(total))
}

fn own_pid() -> isize {
    if half().child.load(Relaxed) != 0 || getpid() != half().pid.load(Relaxed) {
        return getpid() as isize;
    }
    upper().vpid.load(Relaxed) as isize
}

fn real_pid(pid: usize) -> usize {
    if pid as u32 as i32 == upper().vpid.load(Relaxed) { getpid() as usize } else { pid }
}

fn real_tid(tid: usize) -> usize {
    let want = tid as u32 as i32;
    let n = upper().n_threads.load(Acquire) as usize;
    upper()
        .threads
        .iter()
        .take(n)
        .find(|t| t.fs.load(Relaxed) != 0 && t.vtid.load(Relaxed) == want)
        .map_or(tid, |t| t.tid.load(Relaxed) as usize)
}

fn exe_link(path: usize, buf: usize, len: usize) -> Option<isize> {
    const WANT: &[u8] = b"/proc/self/exe\0";
    for (k, c) in WANT.iter().enumerate() {
        // SAFETY: a zero-terminated path; reading stops at the first byte that differs.
        if unsafe { with_exposed_provenance::<u8>(path + k).read() } != *c {
            return None;
        }
    }
    let exe = &upper().exe_path;
    let n = exe.iter().position(|c| *c == 0)?.min(len);
    // SAFETY: the application passes `len` bytes of room.
    unsafe { crate::mem::memcpy(with_exposed_provenance_mut(buf), exe.as_ptr(), n) };
    Some(n as isize)
}

/// Runs `f` on the lower thread pointer of the calling thread. `None` if the lower half must not be used.
fn below<R>(f: impl FnOnce() -> R) -> Option<R> {
    let h = half();
    if h.child.load(Relaxed) != 0 || getpid() != h.pid.load(Relaxed) {
        return None;
    }
    let up = arch::thread_self();
    let rec = thread_by_fs(up)?;
    if rec.epoch.load(Relaxed) != h.epoch.load(Relaxed) {
        let acquire = h.acquire.load(Relaxed);
        // SAFETY: the lower half put this function's address there.
        let acquire: extern "C" fn(usize) -> u64 = unsafe { core::mem::transmute(acquire) };
        acquire(core::ptr::from_ref(rec).expose_provenance());
    }
    rec.depth.fetch_add(1, SeqCst);
    // SAFETY: the control block lent to this thread, in this epoch; put back below.
    unsafe { arch::set_fs(rec.lower_fs.load(Relaxed)) };
    let r = f();
    // SAFETY: the thread pointer found at entry.
    unsafe { arch::set_fs(up) };
    rec.depth.fetch_sub(1, SeqCst);
    Some(r)
}

fn say_goodbye(status: usize) {
    let f = half().goodbye.load(Relaxed);
    if f != 0 {
        // SAFETY: the lower half put this function's address there.
        let f: extern "C" fn(u32, i32) = unsafe { core::mem::transmute(f) };
        below(|| f(goodbye::EXIT, (status & 0xff) as i32));
    }
}

fn execve(r: &Regs) -> isize {
    let f = half().exec.load(Relaxed);
    if f == 0 {
        return pass(nr::EXECVE, r);
    }
    // SAFETY: the lower half put this function's address there.
    let f: extern "C" fn(usize, usize, usize) -> isize = unsafe { core::mem::transmute(f) };
    below(|| f(r.rdi, r.rsi, r.rdx)).unwrap_or_else(|| pass(nr::EXECVE, r))
}

const CLONE_THREAD: usize = 0x1_0000;
const CLONE_SETTLS: usize = 0x8_0000;
const CLONE_CHILD_CLEARTID: usize = 0x20_0000;

/// Before a clone with a stack of its own: a record for the new thread, or null for a process.
pub(crate) extern "C" fn clone_prepare(r: &mut Regs) -> *const ThreadRec {
    if r.rdi & CLONE_THREAD == 0 || r.rdi & CLONE_SETTLS == 0 {
        return core::ptr::null();
    }
    let u = upper();
    for (k, t) in u.threads.iter().enumerate().take(MAX_THREADS) {
        let dead = t.fs.load(Relaxed) != 0 && {
            let tid = t.tid.load(Relaxed);
            // SAFETY: signal 0 only asks whether the thread lives.
            tid > 0 && unsafe { sys!(nr::TGKILL, getpid(), tid, 0) } < 0
        };
        if dead {
            t.fs.store(0, Release);
        }
        if t.fs.compare_exchange(0, r.r8 as u64, AcqRel, Relaxed).is_ok() {
            t.tid.store(-1, Relaxed);
            t.vtid.store(-1, Relaxed);
            t.depth.store(0, Relaxed);
            t.above_lower.store(0, Relaxed);
            t.parked.store(0, Relaxed);
            t.app_signals.store(0, Relaxed);
            t.doing.store(0, Relaxed);
            t.rseq_addr.store(0, Relaxed);
            t.robust_head.store(0, Relaxed);
            t.clear_tid.store(if r.rdi & CLONE_CHILD_CLEARTID != 0 { r.r10 as u64 } else { 0 }, Relaxed);
            u.n_threads.fetch_max(u32::try_from(k + 1).unwrap_or(0), AcqRel);
            return t;
        }
    }
    core::ptr::null()
}

/// In the parent, after the clone: `x` is the thread id or `-errno`.
pub(crate) extern "C" fn clone_done(rec: &ThreadRec, x: isize) {
    if x < 0 {
        rec.fs.store(0, Release);
    } else {
        rec.vtid.store(x as i32, Relaxed);
        rec.tid.store(x as i32, Release);
    }
}

/// In the new thread, before it runs.
pub(crate) extern "C" fn clone_started(rec: &ThreadRec) {
    let tid = gettid();
    rec.vtid.store(tid, Relaxed);
    rec.tid.store(tid, Release);
}

extern "C" fn vdso_clock_gettime(clk: usize, ts: usize) -> isize {
    // SAFETY: the application's own call.
    unsafe { sys!(nr::CLOCK_GETTIME, clk, ts) }
}
extern "C" fn vdso_gettimeofday(tv: usize, tz: usize) -> isize {
    // SAFETY: the application's own call.
    unsafe { sys!(nr::GETTIMEOFDAY, tv, tz) }
}
extern "C" fn vdso_time(t: usize) -> isize {
    // SAFETY: the application's own call.
    unsafe { sys!(nr::TIME, t) }
}
extern "C" fn vdso_getcpu(cpu: usize, node: usize) -> isize {
    // SAFETY: the application's own call.
    unsafe { sys!(nr::GETCPU, cpu, node, 0) }
}
extern "C" fn vdso_clock_getres(clk: usize, ts: usize) -> isize {
    // SAFETY: the application's own call.
    unsafe { sys!(nr::CLOCK_GETRES, clk, ts) }
}

/// What the fake vDSO jumps to where the kernel offers no function of its own.
pub(crate) fn vdso_fallbacks() -> [usize; 5] {
    [
        (vdso_clock_gettime as *const ()).expose_provenance(),
        (vdso_gettimeofday as *const ()).expose_provenance(),
        (vdso_time as *const ()).expose_provenance(),
        (vdso_getcpu as *const ()).expose_provenance(),
        (vdso_clock_getres as *const ()).expose_provenance(),
    ]
}
