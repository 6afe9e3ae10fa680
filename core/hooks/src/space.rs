//! Addresses inside the window, and patching of text as it is mapped. *Upper half*.
//!
//! The table of free intervals is guarded by a lock in [`stillpoint_abi::half::Upper`]; signals are blocked while it is
//! held, so that neither a handler of the application nor the stop handler can find it taken on its own thread.
#![allow(unsafe_code, reason = "the table lies at a fixed address; text is patched in place")]

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use stillpoint_abi::half::{
    HOOKS_ADDR, LOW_END, LOW_START, MAPS_START, SPACE_ADDR, SPACE_LEN, UPPER_ADDR, Upper, WINDOW_END,
};
use stillpoint_sys::raw::{futex_wait, futex_wake_all, nr};
use stillpoint_sys::{sys, upper};
use stillpoint_window::interval::{Interval, Space};
use stillpoint_window::patch;

/// The table while it is locked; its drop unlocks and restores the signal mask.
pub(crate) struct Locked {
    mask: u64,
}

impl Locked {
    pub(crate) fn new() -> Locked {
        let all = u64::MAX;
        let mut mask = 0u64;
        // SAFETY: SIG_SETMASK (2) with 8-byte sets reads `all` and writes `mask`.
        unsafe { sys!(nr::RT_SIGPROCMASK, 2, &raw const all, &raw mut mask, 8) };
        let l = &upper().space_lock;
        let mut seen = l.compare_exchange(0, 1, Acquire, Relaxed).err();
        while seen.is_some() {
            if l.swap(2, Acquire) == 0 {
                break;
            }
            futex_wait(l, 2);
            seen = Some(2);
        }
        Locked { mask }
    }

    fn with<R>(&mut self, f: impl FnOnce(&mut Space<'_>) -> R) -> R {
        let n = SPACE_LEN / size_of::<Interval>();
        // SAFETY: the table is mapped at this address for the life of the process, and `self` is the only holder.
        let slots = unsafe {
            core::slice::from_raw_parts_mut(core::ptr::with_exposed_provenance_mut::<Interval>(SPACE_ADDR), n)
        };
        let mut s = Space { slots, len: upper().space_len.load(Relaxed) as usize };
        let r = f(&mut s);
        upper().space_len.store(u32::try_from(s.len).unwrap_or(0), Relaxed);
        r
    }

    /// Addresses for `len` bytes; large ones on a huge page boundary.
    pub(crate) fn allot(&mut self, len: usize) -> Option<usize> {
        let align = if len >= 2 << 20 { 2 << 20 } else { 4096 };
        self.with(|s| s.take_after(MAPS_START, len, align))
    }

    /// The same below 4 GiB, while there is room.
    pub(crate) fn allot_low(&mut self, len: usize) -> Option<usize> {
        self.with(|s| s.take_within(LOW_START, LOW_END, len, 4096))
    }

    fn allot_after(&mut self, from: usize, len: usize) -> Option<usize> {
        self.with(|s| s.take_after(from, len, 4096))
    }

    pub(crate) fn is_free(&mut self, start: usize, end: usize) -> bool {
        self.with(|s| s.is_free(start, end))
    }

    pub(crate) fn take(&mut self, start: usize, len: usize) {
        let end = start.saturating_add(len + 4095) & !4095;
        if in_maps(start) {
            self.with(|s| s.take(start, end));
        }
    }

    pub(crate) fn give(&mut self, start: usize, len: usize) {
        let end =
            (start.saturating_add(len + 4095) & !4095).min(if is_low(start) { LOW_END } else { WINDOW_END });
        if in_maps(start) {
            self.with(|s| s.give(start, end));
        }
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        let l = &upper().space_lock;
        if l.swap(0, Release) == 2 {
            futex_wake_all(l);
        }
        // SAFETY: SIG_SETMASK reads the saved set.
        unsafe { sys!(nr::RT_SIGPROCMASK, 2, &raw const self.mask, 0, 8) };
    }
}

fn is_low(addr: usize) -> bool {
    (LOW_START..LOW_END).contains(&addr)
}

/// True for addresses that the table of intervals rules over.
pub(crate) fn in_maps(addr: usize) -> bool {
    (MAPS_START..WINDOW_END).contains(&addr) || is_low(addr)
}

/// True for any address of the upper half.
pub(crate) fn is_upper(addr: usize) -> bool {
    upper().holds(addr)
}

/// Patches every site of interest in `[start, start + len)`, which is mapped readable and executable. Returns how many.
pub(crate) fn patch_text(start: usize, len: usize) -> usize {
    // SAFETY: the caller has just mapped the range; nobody else writes to it.
    let text = unsafe { core::slice::from_raw_parts(core::ptr::with_exposed_provenance::<u8>(start), len) };
    let mut sites = 0;
    let mut at = 0;
    while let Some(s) = patch::next_site(text, at) {
        sites += 1;
        at = patch::behind(s);
    }
    // The hook library's own calls must reach the kernel.
    if sites == 0 || (HOOKS_ADDR..HOOKS_ADDR + (16 << 20)).contains(&start) {
        return 0;
    }
    let room = (sites * patch::TRAMPOLINE + 4095) & !4095;
    let Some(tramp) = Locked::new().allot_after(if in_maps(start) { start } else { MAPS_START }, room) else {
        return 0;
    };
    // A non-PIE executable lies far below the window: its trampolines must stand beside it.
    let tramp_wanted = if in_maps(start) { tramp } else { (start + len + 0x1000_0000) & !4095 };
    // SAFETY: maps fresh pages where nothing is (MAP_FIXED_NOREPLACE 0x100000).
    let r = unsafe { sys!(nr::MMAP, tramp_wanted, room, 7, 0x10_0022, usize::MAX, 0) };
    if r < 0 {
        return 0;
    }
    // SAFETY: makes the text writable for the time of patching.
    if unsafe { sys!(nr::MPROTECT, start & !4095, len + (start & 4095), 7) } < 0 {
        return 0;
    }
    let slots = patch::Slots {
        hook_entry: UPPER_ADDR + core::mem::offset_of!(Upper, hook_entry),
        clock_shift: UPPER_ADDR + core::mem::offset_of!(Upper, clock_shift),
    };
    let (mut at, mut used, mut done) = (0, 0, 0);
    while let Some(s) = patch::next_site(text, at) {
        at = patch::behind(s);
        let (patch::Site::Numbered { at: off, .. } | patch::Site::Variable { at: off, .. }) = s;
        let mut out = [0u8; patch::TRAMPOLINE];
        if let Some(p) = patch::emit(s, text, start, tramp_wanted + used, slots, &mut out) {
            let p = p.bytes();
            // SAFETY: both ranges are mapped writable above; the text is not being executed yet.
            unsafe {
                crate::mem::memcpy(
                    core::ptr::with_exposed_provenance_mut(tramp_wanted + used),
                    out.as_ptr(),
                    out.len(),
                );
                crate::mem::memcpy(core::ptr::with_exposed_provenance_mut(start + off), p.as_ptr(), p.len());
            }
            used += patch::TRAMPOLINE;
            done += 1;
        }
    }
    // SAFETY: back to read and execute.
    unsafe {
        sys!(nr::MPROTECT, start & !4095, len + (start & 4095), 5);
        sys!(nr::MPROTECT, tramp_wanted, room, 5);
    }
    done
}
