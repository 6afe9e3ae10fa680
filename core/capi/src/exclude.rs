//! Memory that is not saved. *Upper half*; read by the writer of the image while every thread stands still.
//!
//! What a reader would get wrong: only whole pages are left out, and after a restart they hold zeros, not what a file or the
//! allocator had put there.
#![allow(unsafe_code, reason = "a promise about memory that will be zero")]

use std::sync::Mutex;
use std::sync::atomic::Ordering::{Relaxed, Release};

use crate::ask::{Error, active};
use crate::ranges::Ranges;
use stillpoint_loader::switch::Front;
use stillpoint_sys::upper;

const ROOM: usize = 256;
static TABLE: Mutex<Ranges<ROOM>> = Mutex::new(Ranges::new());

/// Leaves the whole pages in `[addr, addr + len)` out of every later checkpoint. Idempotent; touching ranges become one, and
/// there is room for 256 that do not touch.
///
/// # Safety
/// - After a restart these pages hold zeros: nothing may read them that needs what was there.
/// - Before the memory is freed or unmapped, it is given back by [`include`].
///
/// # Errors
/// An empty or impossible range, or no room. None in an ordinary run.
pub unsafe fn exclude(addr: *const u8, len: usize) -> Result<(), Error> {
    change(addr, len, |r, start, end| r.with(start, end))
}

/// Takes memory back into the checkpoints; what of it was not excluded stays as it is.
///
/// # Errors
/// An empty or impossible range, or no room for the two parts of one that is cut. None in an ordinary run.
pub fn include(addr: *const u8, len: usize) -> Result<(), Error> {
    change(addr, len, |r, start, end| r.without(start, end))
}

fn change(
    addr: *const u8,
    len: usize,
    how: impl FnOnce(&Ranges<ROOM>, u64, u64) -> Result<Ranges<ROOM>, Error>,
) -> Result<(), Error> {
    if !active() {
        return Ok(());
    }
    let start = addr.addr();
    let end = start.checked_add(len).filter(|end| *end > start && start != 0).ok_or(Error::Invalid)?;
    let mut table = TABLE.lock().map_err(|_| Error::NoThread)?;
    let new = how(&table, start as u64, end as u64)?;
    // Not stopped from here to the end of the guard: no image has half of it.
    let front = Front::enter();
    *table = new;
    let u = upper();
    for ([at, bytes], (start, end)) in u.excluded.iter().zip(new.as_slice()) {
        at.store(*start, Relaxed);
        bytes.store(end - start, Relaxed);
    }
    u.n_excluded.store(u32::try_from(new.as_slice().len()).unwrap_or(0), Release);
    drop(front);
    Ok(())
}
