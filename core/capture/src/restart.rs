//! Rebuilds a process from its image. *Lower half*, main thread of a fresh `stillpoint-rank`, all signals blocked.
//!
//! ```text
//!  open, check host ─▶ memory ─▶ descriptors, cwd, umask ─▶ signals, timers ─▶ threads ─▶ [MPI is rebuilt] ─▶ go
//! ```
//! Every frame is verified as it is read (INV-6). Anything that does not fit is refused by name: a wrong restart is worse
//! than none. What a reader would get wrong: after [`memory`], the upper page holds the old process's facts; thread ids
//! and lower control blocks in it are stale until [`threads`] has run.
#![allow(unsafe_code, reason = "maps memory, makes threads, leaves by rt_sigreturn")]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicUsize};
use stillpoint_abi::half::{MAGIC, ThreadRec};
use stillpoint_image::{FdKind, Image, Meta};
use stillpoint_sys::raw::{futex_wait, futex_wake_all, getpid, gettid, monotonic_ns, nr};
use stillpoint_sys::{arch, half, sys, upper};

/// Why a restart is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The image is damaged or cannot be read.
    #[error(transparent)]
    Image(#[from] stillpoint_image::Error),
    /// This machine cannot run what the image holds.
    #[error(
        "the image needs {what} of processor {vendor}, which this host does not have; restart on a host like the one it was taken on"
    )]
    Cpu {
        /// Feature word or state component.
        what: String,
        /// Vendor of the old host.
        vendor: String,
    },
    /// An address of the image is taken.
    #[error("cannot map memory of the image at {addr:#x} ({name}): errno {errno}")]
    Map {
        /// Address.
        addr: u64,
        /// What lay there.
        name: String,
        /// Positive errno.
        errno: isize,
    },
    /// A file is not what it was.
    #[error("descriptor {num} was open on {path}, which {why}")]
    File {
        /// Descriptor.
        num: i32,
        /// Path.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The image was made by another build.
    #[error(
        "the image was taken by another build of Stillpoint (its upper page differs); restart with that build"
    )]
    Build,
    /// Something of the system failed.
    #[error("cannot {what}: {source}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

/// Refuses an image whose program could meet instructions or register state that this host lacks.
///
/// # Errors
/// Names the feature.
pub fn check_host(m: &Meta) -> Result<(), Error> {
    let (old, new) = (&m.process.cpu, crate::gather::cpu());
    let lacks = |what: String| Err(Error::Cpu { what, vendor: old.vendor.clone() });
    // OSXSAVE and the APIC id's neighbours vary; only instruction sets are compared: leaf 1 ecx, edx, leaf 7 ebx, ecx, edx.
    for (k, name) in ["1:ecx", "1:edx", "7:ebx", "7:ecx", "7:edx"].iter().enumerate() {
        let (o, n) = (old.features.get(k).copied().unwrap_or(0), new.features.get(k).copied().unwrap_or(0));
        if o & !n != 0 {
            return lacks(format!("features {:#010x} of CPUID leaf {name}", o & !n));
        }
    }
    if old.xcr0 & !new.xcr0 != 0 {
        return lacks(format!("register state {:#x} (XCR0)", old.xcr0 & !new.xcr0));
    }
    if old.xsave_size != new.xsave_size {
        return lacks(format!("a register save area of {} bytes (here {})", old.xsave_size, new.xsave_size));
    }
    Ok(())
}

/// Maps and reads all memory of the image.
///
/// # Errors
/// Names the region or the damaged frame.
pub fn memory(image: &Image, m: &Meta) -> Result<(), Error> {
    for r in &m.regions {
        // MAP_SHARED or MAP_PRIVATE; ANONYMOUS, NORESERVE, FIXED_NOREPLACE.
        let fixed = if crate::gather::is_shared_anonymous(r) { 1 } else { 2 } | 0x20 | 0x4000 | 0x10_0000;
        // SAFETY: NOREPLACE: nothing of this process is overwritten.
        let x = unsafe { sys!(nr::MMAP, r.start, r.end - r.start, 3, fixed, usize::MAX, 0) };
        if x != r.start as isize {
            return Err(Error::Map { addr: r.start, name: r.name.clone(), errno: -x });
        }
        if r.end - r.start >= 2 << 20 {
            // SAFETY: advice only: huge pages where the kernel gives them (MADV_HUGEPAGE 14).
            unsafe { sys!(nr::MADVISE, r.start, r.end - r.start, 14) };
        }
    }
    read_frames(image, m)?;
    for r in &m.regions {
        if r.prot != 3 {
            // SAFETY: as it was in the old process.
            unsafe { sys!(nr::MPROTECT, r.start, r.end - r.start, r.prot) };
        }
        // MADV_DONTFORK, MADV_WIPEONFORK.
        for (flag, advice) in [(crate::gather::DONT_FORK, 10), (crate::gather::WIPE_ON_FORK, 18)] {
            if r.flags & flag != 0 {
                // SAFETY: what a child will see of it, as in the old process.
                unsafe { sys!(nr::MADVISE, r.start, r.end - r.start, advice) };
            }
        }
    }
    if upper().magic != MAGIC {
        return Err(Error::Build);
    }
    // They stood still when the image was taken; here nobody stands in the handler.
    for t in &upper().threads {
        t.parked.store(0, Relaxed);
        t.command.store(0, Relaxed);
    }
    Ok(())
}

/// Reads and verifies every frame, on as many threads as help: one cannot read and sum as fast as memory takes it.
fn read_frames(image: &Image, m: &Meta) -> Result<(), Error> {
    let index = image.index()?;
    let frames: Vec<_> = index.frames().collect();
    for (f, _) in &frames {
        let end = f.addr + f.len as u64;
        if !m.regions.iter().any(|r| r.start <= f.addr && end <= r.end) && !covered(m, f.addr, end) {
            return Err(Error::Map { addr: f.addr, name: "a page in no region".into(), errno: 14 });
        }
    }
    let next = AtomicUsize::new(0);
    let work = || -> Result<(), Error> {
        while let Some((f, sum)) = frames.get(next.fetch_add(1, Relaxed)) {
            // SAFETY: inside regions mapped writable by the caller; frames do not overlap, and each is taken once.
            let to = unsafe {
                std::slice::from_raw_parts_mut(
                    std::ptr::with_exposed_provenance_mut::<u8>(f.addr as usize),
                    f.len,
                )
            };
            std::os::unix::fs::FileExt::read_exact_at(image.file(), to, f.file_offset)
                .map_err(|source| Error::System { what: "read the image", source })?;
            image.check_frame(f, *sum, to)?;
        }
        Ok(())
    };
    // A frame is a MiB at most; fewer than this many are not worth a thread.
    let helpers =
        std::thread::available_parallelism().map_or(1, usize::from).min(frames.len() / 32 + 1).min(8) - 1;
    std::thread::scope(|s| {
        let spawn = |_| std::thread::Builder::new().stack_size(256 << 10).spawn_scoped(s, work).ok();
        let others: Vec<_> = (0..helpers).filter_map(spawn).collect();
        let mine = work();
        others.into_iter().filter_map(|t| t.join().ok()).fold(mine, Result::and)
    })
}

/// The application's clocks that count from the boot go on where they stood: with the time that has passed, on the machine
/// that the image was taken on since the same boot; else from the time of the checkpoint, and what has passed by the clock
/// on the wall.
fn clocks(m: &Meta) {
    let (u, h, p) = (upper(), half(), &m.process);
    if crate::gather::boot_id() == p.boot_id && !p.boot_id.is_empty() {
        let seen = monotonic_ns().wrapping_add(u.clock_shift.load(Relaxed));
        // Never back, even if the boot id lies (a restored virtual machine).
        u.clock_shift.fetch_add(p.monotonic_ns.saturating_sub(seen), Relaxed);
    } else {
        let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let passed = u64::try_from(wall.as_nanos()).unwrap_or(0).saturating_sub(p.realtime_ns);
        let want = p.monotonic_ns.saturating_add(passed);
        u.clock_shift.store(want.wrapping_sub(monotonic_ns()), Relaxed);
    }
    if u.clock_shift.load(Relaxed) != 0 {
        // The fake vDSO goes through the hook, which finds the kernel's function in a slot of its own.
        let fallback = u.vdso_fallback[0].load(Relaxed);
        let real = h.vdso[0].swap(fallback, Relaxed);
        h.vdso[5].store(if real == fallback { 0 } else { real }, Relaxed);
    }
}

/// True if neighbouring regions together cover `[start, end)`; regions are sorted.
fn covered(m: &Meta, start: u64, end: u64) -> bool {
    let mut at = start;
    for r in &m.regions {
        if r.start <= at && at < r.end {
            at = r.end;
        }
    }
    at >= end
}

/// Opens again what was open. Standard streams are what the launcher gives this process.
///
/// By plain system calls: what libc's functions open down here counts as the lower half's (`lower_fds`).
///
/// # Errors
/// Names the descriptor and the file.
pub fn descriptors(m: &Meta) -> Result<(), Error> {
    let dup_to = |from: i32, to: i32, cloexec: bool| {
        let flags = if cloexec { libc::O_CLOEXEC } else { 0 };
        if from != to {
            // SAFETY: `to` is one of the application's numbers, which nobody here uses.
            unsafe { sys!(nr::DUP3, from, to, flags) };
        } else {
            // SAFETY: sets or clears FD_CLOEXEC.
            unsafe { libc::fcntl(to, libc::F_SETFD, if cloexec { libc::FD_CLOEXEC } else { 0 }) };
        }
    };
    // Standard streams first are kept aside, so that a descriptor that once was 1 can become 0.
    let mut aside = [0; 3];
    for (k, a) in aside.iter_mut().enumerate() {
        // SAFETY: a copy with a high number.
        *a = unsafe { sys!(nr::FCNTL, k, libc::F_DUPFD_CLOEXEC, 600) as i32 };
    }
    for std in 0..3 {
        if !m.fds.iter().any(|f| f.num == std) {
            // SAFETY: the application had closed it.
            unsafe { sys!(nr::CLOSE, std) };
        }
    }
    for f in &m.fds {
        if f.same_as != f.num && m.fds.iter().any(|o| o.num == f.same_as) {
            dup_to(f.same_as, f.num, f.cloexec);
            continue;
        }
        let path = match &f.kind {
            FdKind::Std(k) => {
                dup_to(aside[usize::from(*k).min(2)], f.num, f.cloexec);
                continue;
            }
            FdKind::Tcp(t) => {
                let bad = |why| Error::File { num: f.num, path: "a TCP socket".into(), why };
                let fd = crate::tcp::again(t).map_err(|why| bad(format!("cannot be made again ({why})")))?;
                // SAFETY: our own descriptor.
                unsafe { libc::fcntl(fd, libc::F_SETFL, f.flags & libc::O_NONBLOCK) };
                let moved = fd != f.num;
                dup_to(fd, f.num, f.cloexec);
                if moved {
                    // SAFETY: the copy has its place.
                    unsafe { sys!(nr::CLOSE, fd) };
                }
                continue;
            }
            FdKind::File { path, .. } | FdKind::Dir { path } | FdKind::Dev { path } => {
                Path::new(OsStr::from_bytes(path))
            }
        };
        let bad = |why: String| Error::File { num: f.num, path: path.to_path_buf(), why };
        if let FdKind::File { len, dev, ino, .. } = &f.kind {
            let now = std::fs::metadata(path).map_err(|e| bad(format!("cannot be found ({e})")))?;
            if !crate::gather::same_file(path, *dev, *ino) {
                return Err(bad("has been replaced by another file since the checkpoint".into()));
            }
            if now.len() < *len {
                return Err(bad(format!(
                    "has been cut to {} bytes since the checkpoint ({len} then)",
                    now.len()
                )));
            }
        }
        let c = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap_or_default();
        let flags =
            f.flags & !(libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_NOCTTY) | libc::O_CLOEXEC;
        // SAFETY: a terminated path.
        let fd = unsafe { sys!(nr::OPEN, c.as_ptr(), flags) as i32 };
        if fd < 0 {
            return Err(bad(format!("cannot be opened ({})", std::io::Error::from_raw_os_error(-fd))));
        }
        // SAFETY: our own descriptor.
        unsafe { libc::lseek(fd, i64::try_from(f.offset).unwrap_or(0), libc::SEEK_SET) };
        let moved = fd != f.num;
        dup_to(fd, f.num, f.cloexec);
        if moved {
            // SAFETY: the copy has its place.
            unsafe { sys!(nr::CLOSE, fd) };
        }
    }
    // Numbers that plugins will fill again; nothing of ours may get one before.
    let plugins = upper().plugin_fds.iter().zip(0i32..).flat_map(|(w, at)| {
        let word = w.load(Relaxed);
        (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| at * 64 + bit)
    });
    for num in plugins {
        // SAFETY: a terminated path; our own descriptor.
        unsafe {
            let fd = sys!(nr::OPEN, c"/dev/null".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) as i32;
            if fd != num {
                sys!(nr::DUP3, fd, num, libc::O_CLOEXEC);
                sys!(nr::CLOSE, fd);
            }
        }
    }
    for a in aside {
        // SAFETY: copies made above.
        unsafe { sys!(nr::CLOSE, a) };
    }
    let cwd = Path::new(OsStr::from_bytes(&m.process.cwd));
    std::env::set_current_dir(cwd).map_err(|source| Error::System {
        what: "return to the working directory of the checkpoint",
        source,
    })?;
    // SAFETY: sets a number.
    unsafe { libc::umask(m.process.umask) };
    Ok(())
}

/// Cuts files that are open for writing to their length of then: what was written after the checkpoint will be written again. Not before
/// nothing else can fail: a restart that is refused changes no file.
///
/// # Errors
/// Names the descriptor and the file.
pub fn cut(m: &Meta) -> Result<(), Error> {
    for f in m.fds.iter().filter(|f| f.flags & libc::O_ACCMODE != libc::O_RDONLY) {
        let FdKind::File { path, len, .. } = &f.kind else { continue };
        // SAFETY: the application's descriptor, which stands for this file again.
        if unsafe { libc::ftruncate(f.num, i64::try_from(*len).unwrap_or(i64::MAX)) } < 0 {
            let why = format!("cannot be cut to {len} bytes ({})", std::io::Error::last_os_error());
            return Err(Error::File { num: f.num, path: OsStr::from_bytes(path).into(), why });
        }
    }
    Ok(())
}

/// Installs the application's handlers (through the wrapper) and the stop handler. Timers start in [`go`].
pub fn signals() {
    let u = upper();
    for (n, s) in u.sig.iter().enumerate() {
        if s.set.load(Relaxed) == 0 {
            continue;
        }
        let (mut h, mut f) = (s.handler.load(Relaxed), s.flags.load(Relaxed));
        if h > 1 {
            h = u.sig_wrapper.load(Relaxed) as u64;
            f |= 4;
        }
        let action = [h, f, s.restorer.load(Relaxed), s.mask.load(Relaxed) & !(1 << 63)];
        // SAFETY: the kernel's struct sigaction of four words.
        unsafe { sys!(nr::RT_SIGACTION, n, action.as_ptr(), 0, 8) };
    }
}

static GO: AtomicU32 = AtomicU32::new(0);
static READY: AtomicU32 = AtomicU32::new(0);
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// What a thread must do to itself before it can run on: robust list, rseq, name. Runs on its upper thread pointer.
fn adopt(rec: &ThreadRec) {
    rec.tid.store(gettid(), Relaxed);
    let (head, len) = (rec.robust_head.load(Relaxed), rec.robust_len.load(Relaxed));
    let (rseq, sig) = (rec.rseq_addr.load(Relaxed), rec.rseq_len_sig.load(Relaxed));
    // SAFETY: addresses that this thread itself registered in the old process; its memory is back.
    unsafe {
        if head != 0 {
            sys!(nr::SET_ROBUST_LIST, head, len);
        }
        if rseq != 0 {
            // The area must say "no cpu" before it is registered (rseq(2)).
            std::ptr::with_exposed_provenance_mut::<u32>(rseq as usize).write_volatile(0);
            std::ptr::with_exposed_provenance_mut::<u32>(rseq as usize + 4).write_volatile(u32::MAX);
            sys!(nr::RSEQ, rseq, sig & 0xffff_ffff, 0, sig >> 32);
        }
        sys!(nr::SET_TID_ADDRESS, rec.clear_tid.load(Relaxed));
    }
    rec.parked.store(0, Relaxed);
    rec.command.store(0, Relaxed);
    rec.depth.store(0, Relaxed);
    rec.above_lower.store(0, Relaxed);
}

/// Returns into the saved context: rt_sigreturn takes registers, FPU and AVX state, mask and alternate stack from it.
fn resume(rec: &ThreadRec) -> ! {
    // SAFETY: the kernel's own frame, laid out on this thread's upper stack, and the thread pointer that goes with it.
    unsafe {
        arch::set_fs(rec.fs.load(Relaxed));
        std::arch::asm!("mov rsp, {}", "mov eax, 15", "syscall", in(reg) rec.ucontext.load(Relaxed), options(noreturn))
    }
}

extern "C" fn thread_main() -> ! {
    let k = NEXT.fetch_add(1, Relaxed);
    let rec = crate::pause::threads().skip(1).nth(k);
    if let Some(rec) = rec {
        // SAFETY: the upper thread pointer of the record that this thread becomes.
        unsafe { arch::set_fs(rec.fs.load(Relaxed)) };
        adopt(rec);
        READY.fetch_add(1, Release);
        futex_wake_all(&READY);
        while GO.load(Acquire) == 0 {
            futex_wait(&GO, 0);
        }
        resume(rec);
    }
    loop {
        // SAFETY: ends this thread only.
        unsafe { sys!(nr::EXIT, 0) };
    }
}

/// Makes the application's other threads anew; they wait for [`go`].
///
/// # Errors
/// If a thread cannot be made.
pub fn threads(m: &Meta) -> Result<(), Error> {
    clocks(m);
    let others = crate::pause::threads().count().saturating_sub(1);
    for _ in 0..others {
        const STACK: usize = 64 << 10;
        // SAFETY: a stack for the few calls before the thread returns to its own; never given back (64 KiB a thread).
        let stack = unsafe { sys!(nr::MMAP, 0, STACK, 3, 0x22, usize::MAX, 0) };
        let top = stack.unsigned_abs() + STACK - 16;
        // CLONE_VM | FS | FILES | SIGHAND | THREAD | SYSVSEM
        const FLAGS: usize = 0x100 | 0x200 | 0x400 | 0x800 | 0x1_0000 | 0x4_0000;
        let r: isize;
        // SAFETY: the child runs `thread_main` on the stack above and never returns here.
        unsafe {
            std::arch::asm!("syscall", "test rax, rax", "jnz 2f", "xor ebp, ebp", "call {f}", "ud2", "2:",
                f = in(reg) thread_main as *const (), inlateout("rax") nr::CLONE => r, in("rdi") FLAGS, in("rsi") top,
                in("rdx") 0, in("r10") 0, in("r8") 0, out("rcx") _, out("r11") _);
        }
        if r < 0 {
            return Err(Error::System {
                what: "make a thread",
                source: std::io::Error::from_raw_os_error(-r as i32),
            });
        }
    }
    while READY.load(Acquire) < u32::try_from(others).unwrap_or(0) {
        let seen = READY.load(Acquire);
        if seen < u32::try_from(others).unwrap_or(0) {
            futex_wait(&READY, seen);
        }
    }
    let live: Vec<i32> = crate::pause::threads().map(|t| t.tid.load(Relaxed)).collect();
    for (tid, t) in live.iter().skip(1).zip(m.threads.iter().skip(1)) {
        let _ = std::fs::write(format!("/proc/self/task/{tid}/comm"), &t.name);
        // SAFETY: reads the mask.
        unsafe { sys!(nr::SCHED_SETAFFINITY, *tid, t.affinity.len(), t.affinity.as_ptr()) };
        crate::pending::raise_thread(*tid, &t.pending);
    }
    Ok(())
}

/// The last step: every thread returns to where it stood. Called by the main thread; does not return.
pub fn go(m: &Meta) -> ! {
    let u = upper();
    u.restarts.fetch_add(1, Relaxed);
    for (k, (value, interval)) in m.signals.itimers.iter().enumerate() {
        // A timer whose signal is still pending counts on only when that is delivered (kernel/signal.c, dequeue_signal):
        // it shows no value then.
        let value = if *value == 0 { interval } else { value };
        if *value != 0 {
            let v = [interval / 1_000_000, interval % 1_000_000, value / 1_000_000, value % 1_000_000];
            // SAFETY: reads a struct itimerval.
            unsafe { sys!(nr::SETITIMER, k, v.as_ptr(), 0) };
        }
    }
    half().pid.store(getpid(), Relaxed);
    crate::pending::raise_process(&m.signals.pending);
    if let Some(t) = m.threads.first() {
        crate::pending::raise_thread(gettid(), &t.pending);
    }
    let main = &u.threads[0];
    // SAFETY: the main thread's own upper thread pointer.
    unsafe { arch::set_fs(main.fs.load(Relaxed)) };
    adopt(main);
    GO.store(1, Release);
    futex_wake_all(&GO);
    resume(main)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_of_a_greater_processor_is_refused_by_name() {
        let mut m = Meta::default();
        m.process.cpu = crate::gather::cpu();
        m.process.cpu.vendor = "Elsewhere".into();
        assert!(
            check_host(&m).is_ok(),
            "what this host has is enough; the vendor's name alone refuses nothing"
        );
        let refused = |change: fn(&mut stillpoint_image::Cpu)| {
            let mut m = m.clone();
            change(&mut m.process.cpu);
            check_host(&m).expect_err("a feature that no host has").to_string()
        };
        let text = refused(|c| c.features[3] = u32::MAX);
        assert!(
            text.starts_with("the image needs features 0x") && text.contains("of CPUID leaf 7:ecx"),
            "{text}"
        );
        assert!(text.contains("of processor Elsewhere, which this host does not have"), "{text}");
        let text = refused(|c| c.xcr0 |= 1 << 62);
        assert!(text.contains("register state 0x4000000000000000 (XCR0)"), "{text}");
        assert!(refused(|c| c.xsave_size += 64).contains("a register save area of"));
    }
}
