//! x86-64: the FS base, XSAVE facts. `fsgsbase` instructions where the kernel allows them (AT_HWCAP2 bit 1), else
//! arch_prctl(2), which costs a hundred times as much.
#![allow(unsafe_code, reason = "register access")]

use crate::raw::nr;
use crate::{half, sys};
use core::arch::asm;

/// The calling thread's FS base.
#[inline(always)]
pub fn fs() -> u64 {
    let v: u64;
    if half().fsgsbase != 0 {
        // SAFETY: reads a register; `fsgsbase` says that the instruction is allowed.
        unsafe { asm!("rdfsbase {}", out(reg) v, options(nomem, nostack, preserves_flags)) };
        v
    } else {
        let mut v = 0u64;
        // SAFETY: ARCH_GET_FS (0x1003) writes one word to `v`.
        unsafe { sys!(nr::ARCH_PRCTL, 0x1003, &raw mut v) };
        v
    }
}

/// Sets the calling thread's FS base.
///
/// # Safety
/// - `v` is the thread pointer of a thread control block that no other running thread uses;
/// - until it is put back, nothing runs that relies on the TLS of the other half.
#[inline(always)]
pub unsafe fn set_fs(v: u64) {
    if half().fsgsbase != 0 {
        // SAFETY: the caller answers for `v`.
        unsafe { asm!("wrfsbase {}", in(reg) v, options(nostack, preserves_flags)) };
    } else {
        // SAFETY: ARCH_SET_FS (0x1002); the caller answers for `v`.
        unsafe { sys!(nr::ARCH_PRCTL, 0x1002, v) };
    }
}

/// Sets the calling thread's FS base to that of a descriptor in the LDT.
///
/// # Safety
/// As for [`set_fs`], of the descriptor's base.
#[inline(always)]
pub unsafe fn load_fs(selector: u32) {
    // SAFETY: the caller answers for the descriptor.
    unsafe { asm!("mov fs, {0:e}", in(reg) selector, options(nostack, preserves_flags)) };
}

/// `%fs:0x10`, which holds the thread pointer itself in every glibc thread (x86-64 psABI TLS variant II, TCB.self).
#[inline(always)]
pub fn thread_self() -> u64 {
    let v: u64;
    // SAFETY: glibc's TCB has its own address at offset 16 in both halves.
    unsafe { asm!("mov {}, fs:[0x10]", out(reg) v, options(nostack, preserves_flags, readonly)) };
    v
}

/// XCR0: the state components that XSAVE saves here.
pub fn xcr0() -> u64 {
    let (lo, hi): (u32, u32);
    // SAFETY: XGETBV 0 is allowed wherever OSXSAVE is set, which 64-bit Linux with AVX has; checked by the caller.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") lo, out("edx") hi, options(nomem, nostack)) };
    u64::from(hi) << 32 | u64::from(lo)
}
