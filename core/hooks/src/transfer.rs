//! Bytes to and from streams: a call that only the stop signal cut short goes on with the rest. *Upper half*.
//!
//! A call in a program without handlers is never cut short, so such programs need not expect it. What has moved no byte is made again
//! by the kernel itself (SA_RESTART), but not on a socket with a time limit (socket(7), SO_RCVTIMEO): there it is
//! made again here, with the whole limit. sendfile(2), splice(2) and recvmmsg(2) are not gone on with.
//!
//! What a reader would get wrong: an error that has come after the first piece is the next call's, as it would have been natively, and
//! a call takes it out of the socket: so a socket is asked whether it has one before it is called again. And read(2) is not
//! here, since glibc's `xor %eax,%eax` is no site of ours ([`again_if_read`](crate::signals)).
#![allow(unsafe_code, reason = "reads vectors of the application")]

use crate::entry::Regs;
use crate::ids::me;
use crate::wait::{Watch, until_app_signal};
use core::ptr::with_exposed_provenance;
use core::sync::atomic::Ordering::Relaxed;
use stillpoint_sys::raw::{errno, nr};
use stillpoint_sys::sys;

const MSG_PEEK: usize = 0x2;
const MSG_DONTWAIT: usize = 0x40;
const MSG_WAITALL: usize = 0x100;
const MSG_ZEROCOPY: usize = 0x400_0000;
const POLLIN: i16 = 1;
const POLLOUT: i16 = 4;
const POLLERR: i16 = 8;

/// What one call has asked for: on what, how many bytes, with which flags.
struct Whole {
    fd: usize,
    len: usize,
    /// To be readable, or writable.
    events: i16,
}

/// An option of SOL_SOCKET.
fn option(fd: usize, name: usize) -> Result<[u64; 2], isize> {
    let mut value = [0u64; 2];
    let mut len = 16u32;
    // SAFETY: the kernel writes at most 16 bytes, and the length.
    let x = unsafe { sys!(nr::GETSOCKOPT, fd, 1, name, value.as_mut_ptr(), &raw mut len) };
    if x == 0 { Ok(value) } else { Err(x) }
}

/// Whether a socket has a time limit (`SO_RCVTIMEO` or another such name).
pub(crate) fn has_limit(fd: usize, name: usize) -> bool {
    option(fd, name).is_ok_and(|v| v != [0, 0])
}

impl Whole {
    /// Waits until the rest can be moved. False: the call ends here. A file or pipe is simply called again.
    fn goes_on(&self) -> bool {
        const SO_TYPE: usize = 3;
        const SO_RCVTIMEO: usize = 20;
        const SO_SNDTIMEO: usize = 21;
        const SOCK_STREAM: u64 = 1;
        const F_GETFL: usize = 3;
        const O_NONBLOCK: isize = 0x800;
        // SAFETY: reads flags.
        let flags = unsafe { sys!(nr::FCNTL, self.fd, F_GETFL, 0) };
        if flags < 0 || flags & O_NONBLOCK != 0 {
            return false;
        }
        match option(self.fd, SO_TYPE) {
            Err(x) => return x == errno::ENOTSOCK,
            Ok(kind) if kind[0] & 0xffff_ffff != SOCK_STREAM => return false,
            Ok(_) => {}
        }
        let limit = option(self.fd, if self.events == POLLIN { SO_RCVTIMEO } else { SO_SNDTIMEO });
        let ms = match limit {
            Ok([0, 0]) | Err(_) => -1,
            Ok([s, us]) => i32::try_from(s * 1000 + us / 1000).unwrap_or(i32::MAX),
        };
        // struct pollfd: descriptor, what is waited for, what is there.
        let mut poll = [self.fd as u32, u32::from(self.events as u16)];
        // SAFETY: the kernel reads and writes one pollfd.
        let x = until_app_signal(|_| unsafe { sys!(nr::POLL, poll.as_mut_ptr(), 1, ms) }, None);
        let there = (poll[1] >> 16) as i16;
        // Bytes may wait behind a hangup.
        x == 1 && there & self.events != 0 && there & POLLERR == 0
    }

    /// Calls `f` with how many bytes have been moved, and flags to be added, until all have been.
    fn move_all(&self, f: impl Fn(usize, usize) -> isize) -> isize {
        let Some(mut watch) = Watch::new() else { return f(0, 0) };
        let (mut done, mut flags) = (0, 0);
        loop {
            let x = f(done, flags);
            match usize::try_from(x) {
                Ok(n) => {
                    done += n;
                    // Once it is cut short, what is ready decides.
                    let short = n > 0 && done < self.len && (flags != 0 || watch.only_stopped());
                    if !short || !self.goes_on() {
                        return done as isize;
                    }
                    flags = MSG_DONTWAIT;
                }
                Err(_) if x == errno::EINTR && watch.only_stopped() => {}
                Err(_) if x == errno::EAGAIN && flags != 0 && self.goes_on() => {}
                Err(_) => return if done > 0 { done as isize } else { x },
            }
        }
    }
}

/// Element `k` of a vector of buffers: address and length.
fn buffer(vector: usize, k: usize) -> [usize; 2] {
    // SAFETY: the kernel has just read this vector, or would refuse it.
    unsafe { with_exposed_provenance::<[usize; 2]>(vector).add(k).read_unaligned() }
}

/// The same for several buffers; `one` moves the bytes of a single one.
fn vectored(
    (fd, events): (usize, i16),
    vector: impl Fn() -> (usize, usize),
    all: impl Fn() -> isize,
    one: impl Fn(usize, usize, usize) -> isize,
) -> isize {
    let Some(mut watch) = Watch::new() else { return all() };
    let first = loop {
        let x = all();
        if x != errno::EINTR || !watch.only_stopped() {
            break x;
        }
    };
    let Ok(mut done) = usize::try_from(first) else { return first };
    if done == 0 || !watch.only_stopped() {
        return first;
    }
    let mut skip = done;
    let (vector, count) = vector();
    for k in 0..count {
        let [at, len] = buffer(vector, k);
        if skip >= len {
            skip -= len;
            continue;
        }
        // The first piece of what is left: as if this buffer had been cut short as well.
        let rest = Whole { fd, len: len - skip, events };
        if !rest.goes_on() {
            break;
        }
        let moved = rest.move_all(|done, flags| one(at + skip + done, len - skip - done, flags));
        done += usize::try_from(moved).unwrap_or(0);
        if usize::try_from(moved) != Ok(len - skip) {
            break;
        }
        skip = 0;
    }
    done as isize
}

/// Vector and count of a `struct msghdr`.
fn parts(message: usize) -> (usize, usize) {
    const MSG_IOV: usize = 16;
    let word = |at| with_exposed_provenance::<usize>(message + at);
    // SAFETY: as for `buffer`; read after the kernel has.
    unsafe { (word(MSG_IOV).read_unaligned(), word(MSG_IOV + 8).read_unaligned()) }
}

/// Calls that move bytes.
pub(crate) fn call(n: usize, r: &Regs, pass: impl Fn(&Regs) -> isize) -> Option<isize> {
    let waits_for_all = |flags: usize| flags & (MSG_WAITALL | MSG_PEEK | MSG_DONTWAIT) == MSG_WAITALL;
    let waits = |flags: usize| flags & (MSG_ZEROCOPY | MSG_DONTWAIT) == 0;
    let whole = |events| Whole { fd: r.rdi, len: r.rdx, events };
    let part = |done: usize| Regs { rsi: r.rsi + done, rdx: r.rdx - done, ..*r };
    let flagged = |done: usize, flags: usize| pass(&Regs { r10: r.r10 | flags, ..part(done) });
    // With the flags of the whole call, on the application's own buffers. What was written to a socket goes on as sent.
    // SAFETY: system calls that the application has asked for, in pieces.
    let write = |at: usize, len: usize, flags: usize| unsafe {
        if flags == 0 {
            sys!(nr::WRITE, r.rdi, at, len)
        } else {
            match sys!(nr::SENDTO, r.rdi, at, len, flags, 0, 0) {
                errno::ENOTSOCK => sys!(nr::WRITE, r.rdi, at, len),
                x => x,
            }
        }
    };
    // SAFETY: the same.
    let send = |at: usize, len: usize, flags: usize| unsafe {
        sys!(nr::SENDTO, r.rdi, at, len, r.rdx | flags, 0, 0)
    };
    // SAFETY: the same.
    let receive = |at: usize, len: usize, flags: usize| unsafe {
        sys!(nr::RECVFROM, r.rdi, at, len, r.rdx | flags, 0, 0)
    };
    Some(match n {
        nr::WRITE => whole(POLLOUT).move_all(|done, flags| write(r.rsi + done, r.rdx - done, flags)),
        nr::SENDTO if waits(r.r10) => whole(POLLOUT).move_all(flagged),
        nr::RECVFROM if waits_for_all(r.r10) => whole(POLLIN).move_all(flagged),
        nr::WRITEV => vectored((r.rdi, POLLOUT), || (r.rsi, r.rdx), || pass(r), write),
        nr::SENDMSG if waits(r.rdx) => vectored((r.rdi, POLLOUT), || parts(r.rsi), || pass(r), send),
        nr::RECVMSG if waits_for_all(r.rdx) => {
            vectored((r.rdi, POLLIN), || parts(r.rsi), || pass(r), receive)
        }
        nr::CONNECT => {
            let before = me().map(|rec| rec.stops.load(Relaxed));
            let x = until_app_signal(|_| pass(r), None);
            let stopped = before != me().map(|rec| rec.stops.load(Relaxed));
            // It was connected while it stood still, or is so after a restart: the second call finds that.
            if x == errno::EISCONN && stopped { 0 } else { x }
        }
        nr::RECVFROM | nr::RECVMSG | nr::READV | nr::SENDTO | nr::SENDMSG => {
            until_app_signal(|_| pass(r), None)
        }
        _ => return None,
    })
}
