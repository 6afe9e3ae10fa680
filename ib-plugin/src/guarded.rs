//! Memory that the application has forbidden itself since it was registered (mprotect(2)). *Upper half*.
//!
//! A device that has a region keeps its pages, whatever their protection is; registered again after a restart they are refused (EFAULT). So
//! they are open for that moment, in which every thread stands still.

use stillpoint_sys::raw::nr;
use stillpoint_sys::{maps, sys};

const READ: u32 = 1;
const WRITE: u32 = 2;
const PAGE: usize = 4096;

/// A stretch of memory, and its protection.
type Shut = (usize, usize, u32);

/// What of this range cannot be read or written, by a listing of /proc/self/maps.
fn shut(listing: &[u8], start: usize, end: usize) -> Vec<Shut> {
    let inside = maps::parse(listing).filter(|m| m.start < end && start < m.end);
    let shut = inside.filter(|m| m.prot & (READ | WRITE) != READ | WRITE);
    shut.map(|m| (m.start.max(start), m.end.min(end), m.prot)).collect()
}

fn protect((start, end, _): Shut, prot: u32) -> bool {
    // SAFETY: the application's memory, which no thread uses now; no content is touched.
    unsafe { sys!(nr::MPROTECT, start, end - start, prot) == 0 }
}

/// Does this while the memory can be read, and written if its file can be.
pub(crate) fn opened<T>(addr: usize, length: usize, act: impl FnOnce() -> T) -> T {
    let start = addr & !(PAGE - 1);
    let end = addr.saturating_add(length).checked_next_multiple_of(PAGE).unwrap_or(usize::MAX & !(PAGE - 1));
    let all = std::fs::read("/proc/self/maps").map_or_else(|_| Vec::new(), |text| shut(&text, start, end));
    for part in &all {
        if !protect(*part, part.2 | READ | WRITE) {
            protect(*part, part.2 | READ);
        }
    }
    let done = act();
    for part in &all {
        protect(*part, part.2);
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &[u8] =
        b"1000-3000 ---p 0 0:0 0 \n3000-5000 rw-p 0 0:0 0 [heap]\n5000-7000 r-xs 0 8:1 7 /lib/a\n";

    #[test]
    fn what_is_not_both_readable_and_writable() {
        assert_eq!(shut(LISTING, 0x2000, 0x6000), [(0x2000, 0x3000, 0), (0x5000, 0x6000, 5)]);
        assert_eq!(shut(LISTING, 0x3000, 0x5000), []);
    }

    #[test]
    fn it_is_as_it_was_behind_that() {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a mapping of its own.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), PAGE, libc::PROT_NONE, flags, -1, 0) };
        let at = at.expose_provenance();
        let now = || shut(&std::fs::read("/proc/self/maps").unwrap_or_default(), at, at + PAGE);
        assert_eq!(opened(at + 5, 7, now), []);
        assert_eq!(now(), [(at, at + PAGE, 0)]);
    }
}
