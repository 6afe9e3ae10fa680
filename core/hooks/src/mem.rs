//! memcpy, memmove, memset, memcmp: the compiler calls them by name, and there is no libc here. *Upper half*.
#![allow(unsafe_code, reason = "raw memory, by the C contracts of these functions")]

use core::arch::asm;

/// C's memcpy.
///
/// # Safety
/// As in C: both ranges valid, not overlapping.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn memcpy(d: *mut u8, s: *const u8, n: usize) -> *mut u8 {
    // SAFETY: the caller keeps C's contract; the direction flag is clear by the psABI.
    unsafe {
        asm!("rep movsb", inout("rcx") n => _, inout("rdi") d => _, inout("rsi") s => _,
             options(nostack, preserves_flags));
    }
    d
}

/// C's memmove.
///
/// # Safety
/// As in C: both ranges valid.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(d: *mut u8, s: *const u8, n: usize) -> *mut u8 {
    if d.addr().wrapping_sub(s.addr()) >= n {
        // SAFETY: forward copy is right when d does not lie inside the source.
        return unsafe { memcpy(d, s, n) };
    }
    // SAFETY: backward copy from the last byte; the flag is cleared again before anything else runs.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") n => _, inout("rdi") d.wrapping_add(n).wrapping_sub(1) => _,
             inout("rsi") s.wrapping_add(n).wrapping_sub(1) => _, options(nostack));
    }
    d
}

/// C's memset.
///
/// # Safety
/// As in C: the range is valid.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(d: *mut u8, c: i32, n: usize) -> *mut u8 {
    // SAFETY: the caller keeps C's contract.
    unsafe {
        asm!("rep stosb", inout("rcx") n => _, inout("rdi") d => _, in("al") c.to_le_bytes()[0],
             options(nostack, preserves_flags));
    }
    d
}

/// C's memcmp.
///
/// # Safety
/// As in C: both ranges valid.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    let mut k = 0;
    while k < n {
        // SAFETY: k < n, and the ranges are valid for n bytes.
        let (x, y) = unsafe { (a.wrapping_add(k).read_volatile(), b.wrapping_add(k).read_volatile()) };
        if x != y {
            return i32::from(x) - i32::from(y);
        }
        k += 1;
    }
    0
}

/// BSD's bcmp.
///
/// # Safety
/// As memcmp.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    // SAFETY: the same contract.
    unsafe { memcmp(a, b, n) }
}
