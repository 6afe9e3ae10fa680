//! Pages that the application leaves out of the image. *Frozen child* or control thread, while every upper thread stands
//! still: reads [`Upper::excluded`](stillpoint_abi::half::Upper), no allocation.
//!
//! What a reader would get wrong: a page is left out only if one range covers all of it; a restart maps it as zeros.

use std::sync::atomic::Ordering::{Acquire, Relaxed};
use stillpoint_image::PAGE;
use stillpoint_sys::upper;

/// The ranges, cut to whole pages; some may be empty.
fn whole() -> impl Iterator<Item = (u64, u64)> + Clone {
    let u = upper();
    let n = u.n_excluded.load(Acquire) as usize;
    u.excluded.iter().take(n).map(|[at, len]| {
        let (start, len) = (at.load(Relaxed), len.load(Relaxed));
        (start.next_multiple_of(PAGE), start.saturating_add(len) & !(PAGE - 1))
    })
}

/// The first piece of `[from, end)` that is to be saved; `None` if nothing of it is.
pub(crate) fn next_saved(from: u64, end: u64) -> Option<(u64, u64)> {
    first_gap(whole(), from, end)
}

fn first_gap(ranges: impl Iterator<Item = (u64, u64)> + Clone, from: u64, end: u64) -> Option<(u64, u64)> {
    let mut at = from;
    while let Some((_, e)) = ranges.clone().find(|(s, e)| (*s..*e).contains(&at)) {
        at = e;
    }
    let until = ranges.filter(|(s, e)| s < e && *s > at).map(|(s, _)| s).fold(end, u64::min);
    (at < until).then_some((at, until))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_are_the_gaps() {
        let ranges = [(10, 20), (20, 30), (7, 7), (40, 30), (50, 60)];
        let gap = |from, end| first_gap(ranges.into_iter(), from, end);
        assert_eq!(gap(0, 100), Some((0, 10)));
        assert_eq!(gap(10, 100), Some((30, 50)));
        assert_eq!(gap(50, 60), None);
        assert_eq!(gap(55, 100), Some((60, 100)));
        assert_eq!(gap(15, 25), None);
    }
}
