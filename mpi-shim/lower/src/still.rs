//! Commands to a plugin while all threads of the rank stand still. *Lower half*, control thread; after a restart the
//! main thread, which then calls the front itself.
//!
//! What a reader would get wrong: the leader, the parked thread that does the work, runs upper code on the still stack; what
//! it is given and writes may lie below, since both sides stand still around it.
#![allow(unsafe_code, reason = "calls upper code by address")]

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use stillpoint_abi::half::{StillArg, parked, still};
use stillpoint_abi::records::Records;
use stillpoint_capture::pause;
use stillpoint_sys::raw::{futex_wait_for, futex_wake_all, monotonic_ns};
use stillpoint_sys::{arch, half, upper};

/// What a command may take beyond its own deadline before the leader counts as lost.
const PATIENCE_NS: u64 = 120_000_000_000;

/// Milliseconds from now, on the clock of [`StillArg::deadline`].
pub(crate) fn soon(ms: u64) -> u64 {
    monotonic_ns() + ms * 1_000_000
}

/// Has the leader work on `cmd` of the plugin at this place. The result, and what was written to `out`.
pub(crate) fn command(
    plugin: usize,
    cmd: u32,
    input: &[u8],
    round: u32,
    deadline: u64,
) -> Result<(i64, Vec<u8>), String> {
    with_room(cmd, input, round, deadline, |arg| {
        let h = half();
        let leader = pause::threads().next().ok_or("no thread is left to work at the still point")?;
        let before = h.still_done.load(Acquire);
        h.still_arg.store(std::ptr::from_mut(arg).expose_provenance(), Relaxed);
        h.still_plugin.store(u32::try_from(plugin).unwrap_or(u32::MAX), Relaxed);
        h.still_cmd.store(cmd, SeqCst);
        leader.command.store(parked::LEAD, Release);
        futex_wake_all(&leader.command);
        let limit = deadline.max(monotonic_ns()) + PATIENCE_NS;
        while h.still_done.load(Acquire) == before {
            futex_wait_for(&h.still_done, before, 100_000_000);
            if monotonic_ns() > limit {
                return Err(format!(
                    "plugin {plugin} does not come back from command {cmd} of the still point"
                ));
            }
        }
        Ok(h.still_result.load(Acquire))
    })
}

/// The same on the calling thread, which is the lower half's main thread after a restart, before any upper thread runs.
pub(crate) fn alone(plugin: usize, cmd: u32, input: &[u8], round: u32) -> Result<(i64, Vec<u8>), String> {
    let main = &upper().threads[0];
    with_room(cmd, input, round, soon(600_000), |arg| {
        let f = upper().plugins.get(plugin).ok_or("there is no such plugin")?.still.load(Acquire);
        // SAFETY: the plugin put its function there; this thread borrows the main thread's upper thread pointer, whose
        // owner it is about to become, and puts its own back.
        unsafe {
            let f: extern "C" fn(u32, *mut StillArg) -> i64 = std::mem::transmute(f);
            let low = arch::fs();
            main.depth.store(1, SeqCst);
            arch::set_fs(main.fs.load(Relaxed));
            let r = f(cmd, arg);
            arch::set_fs(low);
            main.depth.store(0, SeqCst);
            Ok(r)
        }
    })
}

fn with_room(
    cmd: u32,
    input: &[u8],
    round: u32,
    deadline: u64,
    mut f: impl FnMut(&mut StillArg) -> Result<i64, String>,
) -> Result<(i64, Vec<u8>), String> {
    let mut out = vec![0u8; if cmd == still::COUNTS { 1 << 16 } else { 1 << 12 }];
    loop {
        let mut arg = StillArg {
            input: input.as_ptr(),
            input_len: input.len(),
            out: out.as_mut_ptr(),
            out_cap: out.len(),
            out_len: 0,
            deadline,
            round,
        };
        let r = f(&mut arg)?;
        if arg.out_len <= out.len() {
            out.truncate(arg.out_len);
            return Ok((r, out));
        }
        out = vec![0u8; arg.out_len];
    }
}

/// Records of a [`StillArg`] as a list, up to one that is torn; and back.
pub(crate) fn to_items(b: &[u8]) -> Vec<(u32, Vec<u8>)> {
    Records::of(b).map(|(rank, body)| (rank, body.to_vec())).collect()
}

/// See [`to_items`].
pub(crate) fn from_items(items: &[(u32, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (rank, body) in items {
        out.extend_from_slice(&rank.to_le_bytes());
        out.extend_from_slice(&u32::try_from(body.len()).unwrap_or(0).to_le_bytes());
        out.extend_from_slice(body);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_survive_the_way_through_records() {
        let items = vec![(3, vec![1, 2, 3]), (9, vec![]), (0, vec![7; 8])];
        assert_eq!(to_items(&from_items(&items)), items);
        assert_eq!(to_items(&[1, 0, 0, 0, 9, 0, 0, 0, 1]), vec![], "a torn record is dropped");
    }
}
