//! What each hooked system call does. *Upper half*, in the place of the application's syscall instruction.
//!
//! Everything here returns what the kernel would: a value or `-errno`. Calls that wait are made with the application's
//! own arguments; when only the stop signal ended them, they go on with the time that remains.
#![allow(unsafe_code, reason = "system calls on behalf of the application")]

use crate::action::{sigaction, without_stop};
use crate::entry::Regs;
use crate::ids::{fork, is_other_process, leaving, me, own_pid, own_tid, with_ids, with_real_ids};
use crate::space::{Locked, in_maps, patch_text};
use crate::{fds, paths, transfer, wait};
use core::sync::atomic::Ordering::{AcqRel, Relaxed, SeqCst};
use stillpoint_abi::half::{BRK_END, BRK_START, MAPS_START, goodbye};
use stillpoint_sys::raw::{errno, nr};
use stillpoint_sys::{arch, half, sys, thread_by_fs, upper};

const MAP_FIXED: usize = 0x10;
const MAP_ANONYMOUS: usize = 0x20;
const MAP_32BIT: usize = 0x40;
const MAP_STACK: usize = 0x2_0000;
const MAP_FIXED_NOREPLACE: usize = 0x10_0000;
const MREMAP_MAYMOVE: usize = 1;
const MREMAP_FIXED: usize = 2;

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
        nr::GETPID => own_pid(),
        nr::GETTID => own_tid(),
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
        nr::MADVISE => {
            // MADV_DONTFORK and MADV_WIPEONFORK: a frozen child does not see such memory as it is.
            if matches!(r.rdx, 10 | 18) {
                upper().fork_advised.store(1, Relaxed);
            }
            pass(n, r)
        }
        nr::EXECVE => execve(r),
        nr::EXIT_GROUP => {
            say_goodbye(r.rdi);
            pass(n, r)
        }
        nr::CLONE3 => errno::ENOSYS,
        nr::CLONE | nr::FORK | nr::VFORK => fork(n, r),
        nr::EXIT => {
            leaving();
            pass(n, r)
        }
        _ => {
            let plain = |r: &Regs| pass(n, r);
            if let Some(x) = fds::call(n, r, plain) {
                return x;
            }
            if let Some(x) = paths::call(n, r, plain) {
                return if matches!(n, nr::OPEN | nr::OPENAT | nr::OPENAT2) { fds::given(x) } else { x };
            }
            if let Some(x) = wait::call(n, r, plain).or_else(|| transfer::call(n, r, plain)) {
                return x;
            }
            if with_real_ids(n, r).is_none() {
                return pass(n, r);
            }
            with_ids(|| with_real_ids(n, r).map_or_else(|| pass(n, r), |r| pass(n, &r)))
        }
    }
}

/// A thread's stack, whose end holds its control block, or what ld.so maps before the main thread has one: low addresses can
/// be loaded faster ([`Half::segments`](stillpoint_abi::half::Half)).
fn may_hold_control_block(r: &Regs) -> bool {
    let small = |max| r.rsi <= max && r.r10 & MAP_ANONYMOUS != 0;
    small(64 << 20) && r.r10 & MAP_STACK != 0 || small(1 << 20) && upper().threads[0].fs.load(Relaxed) == 0
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
        } else if may_hold_control_block(r) {
            space.allot_low(r.rsi).or_else(|| space.allot(r.rsi))
        } else {
            space.allot(r.rsi)
        };
        let Some(mut at) = at else { return errno::ENOMEM };
        let there =
            |at| pass(nr::MMAP, &Regs { rdi: at, r10: (flags & !MAP_32BIT) | MAP_FIXED_NOREPLACE, ..*r });
        let mut x = there(at);
        if x == errno::EEXIST && at < MAPS_START {
            // Somebody else's mapping; those addresses stay taken.
            let Some(high) = space.allot(r.rsi) else { return errno::ENOMEM };
            at = high;
            x = there(at);
        }
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

/// Runs `f` on the lower thread pointer of the calling thread. `None` if the lower half must not be used.
fn below<R>(f: impl FnOnce() -> R) -> Option<R> {
    let h = half();
    if is_other_process() {
        return None;
    }
    let up = arch::thread_self();
    let rec = thread_by_fs(up)?;
    // From here on the thread is not stopped, so that what is read of the lower half stays true.
    rec.depth.fetch_add(1, SeqCst);
    if rec.epoch.load(Relaxed) != h.epoch.load(Relaxed) {
        let acquire = h.acquire.load(Relaxed);
        // SAFETY: the lower half put this function's address there.
        let acquire: extern "C" fn(usize) -> u64 = unsafe { core::mem::transmute(acquire) };
        acquire(core::ptr::from_ref(rec).expose_provenance());
    }
    // SAFETY: the control block lent to this thread, in this epoch; put back below.
    unsafe { arch::set_fs(rec.lower_fs.load(Relaxed)) };
    let r = f();
    // SAFETY: the thread pointer found at entry.
    unsafe { arch::set_fs(up) };
    rec.depth.fetch_sub(1, SeqCst);
    Some(r)
}

fn say_goodbye(status: usize) {
    below(|| {
        let f = half().goodbye.load(Relaxed);
        if f != 0 {
            // SAFETY: the lower half put this function's address there.
            let f: extern "C" fn(u32, i32) = unsafe { core::mem::transmute(f) };
            f(goodbye::EXIT, (status & 0xff) as i32);
        }
    });
}

fn execve(r: &Regs) -> isize {
    if half().exec.load(Relaxed) == 0 {
        return pass(nr::EXECVE, r);
    }
    paths::translated(r.rdi, true, |path| {
        let done = below(|| {
            // SAFETY: the lower half put this function's address there.
            let f: extern "C" fn(usize, usize, usize) -> isize =
                unsafe { core::mem::transmute(half().exec.load(Relaxed)) };
            f(path, r.rsi, r.rdx)
        });
        done.unwrap_or_else(|| pass(nr::EXECVE, &Regs { rdi: path, ..*r }))
    })
}

extern "C" fn vdso_clock_gettime(clk: usize, ts: usize) -> isize {
    crate::wait::clock_gettime(clk, ts)
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
