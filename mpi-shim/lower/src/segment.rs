//! Thread pointers by segment register: descriptors of the process's LDT whose bases are thread control blocks. *Lower
//! half*; [`describe`] also runs on the upper thread pointer, so it makes a raw call only.
//!
//! In 64-bit mode, loading FS with a selector sets the FS base to the 32-bit base of its descriptor (AMD64 manual, volume 2,
//! 4.5.3). On some processors that is much faster than `wrfsbase`: 1.3 against 12 ns on an AMD EPYC. So control blocks are
//! put below 4 GiB where it pays: those that the lower half lends, and by the hooks those of the upper half.
//!
//! What a reader would get wrong: the kernel saves selector *and* base of a thread that it takes off a processor, and puts
//! both back, so the two ways to set the base may be mixed (arch/x86/kernel/process_64.c, `x86_fsgsbase_load`).
#![allow(unsafe_code, reason = "changes the thread pointer, maps memory")]

use std::arch::asm;
use std::ffi::c_void;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use stillpoint_abi::half::{LENT_END, LOW_END};
use stillpoint_sys::raw::nr;
use stillpoint_sys::{arch, half, sys};

/// Bytes of a lent block's stack; its end holds the static TLS of all lower libraries.
const STACK: usize = 256 << 10;
/// The first one; the gap keeps the kernel from joining it with a mapping of the upper half.
const FIRST: usize = LOW_END + (64 << 10);

/// `struct user_desc` of modify_ldt(2).
#[repr(C)]
struct UserDesc {
    entry: u32,
    base: u32,
    limit: u32,
    flags: u32,
}

/// seg_32bit, limit_in_pages, useable.
const DATA: u32 = 1 | 1 << 4 | 1 << 6;

/// Makes `entry` of the LDT a descriptor of `base` and returns its selector; 0 if there cannot be one.
pub(crate) fn describe(entry: u32, base: u64) -> u32 {
    let Ok(base) = u32::try_from(base) else { return 0 };
    let d = UserDesc { entry, base, limit: 0xf_ffff, flags: DATA };
    // SAFETY: func 0x11 writes one entry of this process's LDT from 16 bytes.
    let r = unsafe { sys!(nr::MODIFY_LDT, 0x11, &raw const d, size_of::<UserDesc>()) };
    // Table indicator LDT (bit 2), privilege level 3.
    if r == 0 && base != 0 { entry << 3 | 7 } else { 0 }
}

fn map(at: usize, len: usize) -> Option<*mut c_void> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE | libc::MAP_NORESERVE;
    let hint = std::ptr::without_provenance_mut(at);
    // SAFETY: fresh memory where nothing is.
    let p = unsafe { libc::mmap(hint, len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if p == hint {
        return Some(p);
    }
    if p != libc::MAP_FAILED {
        // A kernel that does not know the flag took it for a wish.
        // SAFETY: just mapped.
        unsafe { libc::munmap(p, len) };
    }
    None
}

/// True if this machine goes down and up faster with segments. Called by the main thread on its own thread pointer.
pub(crate) fn pays() -> bool {
    if std::env::var_os("STILLPOINT_NO_SEGMENTS").is_some() {
        return false;
    }
    let selector = describe(0, FIRST as u64);
    if selector == 0 {
        return false;
    }
    if half().fsgsbase == 0 {
        return true;
    }
    let own = arch::fs();
    let best = |step: &dyn Fn()| (0..64).map(|_| cycles(step)).min().unwrap_or(u64::MAX);
    // SAFETY: nothing runs between the two that uses TLS; the second puts the thread pointer back.
    let by_segment = best(&|| unsafe {
        asm!("mov fs, {s:e}", "wrfsbase {own}", s = in(reg) selector, own = in(reg) own, options(nostack, preserves_flags));
    });
    // SAFETY: as above.
    let by_base = best(&|| unsafe {
        asm!("wrfsbase {b}", "wrfsbase {own}", b = in(reg) FIRST, own = in(reg) own, options(nostack, preserves_flags));
    });
    by_segment < by_base
}

/// Cycles of 16 steps.
fn cycles(step: &dyn Fn()) -> u64 {
    // SAFETY: reads a counter; the fences keep the steps between the two readings.
    let now = || unsafe {
        std::arch::x86_64::_mm_lfence();
        let t = std::arch::x86_64::_rdtsc();
        std::arch::x86_64::_mm_lfence();
        t
    };
    let from = now();
    for _ in 0..16 {
        step();
    }
    now() - from
}

/// Starts `f` on a thread whose control block lies below 4 GiB. False if it cannot be done.
pub(crate) fn spawn(f: extern "C" fn(*mut c_void) -> *mut c_void) -> bool {
    static NEXT: AtomicUsize = AtomicUsize::new(FIRST);
    let at = NEXT.fetch_add(STACK, Relaxed);
    if at + STACK > LENT_END {
        return false;
    }
    let Some(stack) = map(at, STACK) else { return false };
    // SAFETY: pthread_attr_t is plain memory that init fills; the stack is the new thread's alone, and never unmapped.
    unsafe {
        let mut attr: libc::pthread_attr_t = std::mem::zeroed();
        let mut thread = 0;
        let ok = libc::pthread_attr_init(&raw mut attr) == 0
            && libc::pthread_attr_setstack(&raw mut attr, stack, STACK) == 0
            && libc::pthread_create(&raw mut thread, &raw const attr, f, std::ptr::null_mut()) == 0;
        libc::pthread_attr_destroy(&raw mut attr);
        ok
    }
}
