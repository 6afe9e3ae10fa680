//! Paths below /proc that name the process itself. *Upper half*.
//!
//! `/proc/self/exe` is stillpoint-rank to the kernel and the application's program to the application; after a restart
//! `/proc/PID` and `/proc/self/task/TID` hold ids that only the application knows. What a reader would get wrong:
//! realpath(3) walks through `/proc/self`, `/proc/PID`, `/proc/PID/exe`, so the kernel's id is taken for our own as well.
#![allow(unsafe_code, reason = "reads paths of the application")]

use crate::entry::Regs;
use crate::ids::{is_other_process, own_pid, real, with_ids};
use core::ptr::{with_exposed_provenance, with_exposed_provenance_mut};
use stillpoint_sys::raw::{getpid, nr};
use stillpoint_sys::upper;

const AT_SYMLINK_NOFOLLOW: usize = 0x100;
const O_NOFOLLOW: usize = 0x2_0000;
const ROOM: usize = 320;

/// What a path below /proc means.
enum Meaning {
    /// The same.
    Same,
    /// The application's program.
    Exe,
    /// The link `/proc/self`.
    Own,
    /// Another path, in the room.
    Other,
}

fn digits(b: &[u8]) -> Option<usize> {
    if b.is_empty() || b.len() > 9 {
        return None;
    }
    b.iter().try_fold(0usize, |v, c| Some(v * 10 + (*c as char).to_digit(10)? as usize))
}

/// The piece up to the next slash, and what follows the slash.
fn piece(b: &[u8]) -> (&[u8], Option<&[u8]>) {
    match b.iter().position(|c| *c == b'/') {
        Some(k) => (b.get(..k).unwrap_or(b), b.get(k + 1..)),
        None => (b, None),
    }
}

struct Room {
    bytes: [u8; ROOM],
    len: usize,
}

impl Room {
    fn put(&mut self, b: &[u8]) {
        for c in b {
            // One byte stays for the terminating zero.
            if self.len < ROOM - 1
                && let Some(at) = self.bytes.get_mut(self.len)
            {
                *at = *c;
                self.len += 1;
            }
        }
    }

    fn number(&mut self, mut n: usize) {
        let mut text = [0u8; 20];
        let mut k = text.len();
        loop {
            k -= 1;
            if let Some(at) = text.get_mut(k) {
                *at = b'0' + (n % 10) as u8;
            }
            n /= 10;
            if n == 0 {
                break;
            }
        }
        self.put(text.get(k..).unwrap_or(&[]));
    }
}

/// The path at `path` if it begins with `/proc/` and is short.
fn below_proc(path: usize, into: &mut [u8; ROOM]) -> Option<usize> {
    const WANT: &[u8] = b"/proc/";
    if path < 0x1_0000 {
        return None;
    }
    let mut len = 0;
    while let Some(at) = into.get_mut(len) {
        // SAFETY: a zero-terminated path; reading stops at the first byte that differs, or at its end.
        let c = unsafe { with_exposed_provenance::<u8>(path + len).read() };
        if c == 0 {
            return (len > WANT.len()).then_some(len);
        }
        if WANT.get(len).is_some_and(|w| *w != c) {
            return None;
        }
        *at = c;
        len += 1;
    }
    None
}

fn meaning(path: &[u8], to: &mut Room) -> Meaning {
    let (who, rest) = piece(path.get(6..).unwrap_or(&[]));
    let real_pid = getpid() as usize;
    let (own, thread) = match who {
        b"self" => (true, None),
        b"thread-self" => return if rest == Some(b"exe") { Meaning::Exe } else { Meaning::Same },
        _ => match digits(who) {
            Some(n) if n == own_pid() as usize || n == real_pid => (n != real_pid, None),
            Some(n) if !is_other_process() && real(n) != n => (false, Some(real(n))),
            _ => return Meaning::Same,
        },
    };
    let Some(rest) = rest else {
        if who == b"self" {
            return Meaning::Own;
        }
        if thread.is_none() && !own {
            return Meaning::Same;
        }
        to.put(b"/proc/");
        to.number(thread.unwrap_or(real_pid));
        return Meaning::Other;
    };
    if rest == b"exe" {
        return Meaning::Exe;
    }
    to.put(b"/proc/");
    to.number(thread.unwrap_or(real_pid));
    to.put(b"/");
    let mut changed = own && who != b"self" || thread.is_some();
    let (first, behind) = piece(rest);
    if let (b"task", Some(behind)) = (first, behind) {
        let (tid, last) = piece(behind);
        if last == Some(b"exe") {
            return Meaning::Exe;
        }
        if let Some(n) = digits(tid) {
            to.put(b"task/");
            to.number(if is_other_process() { n } else { real(n) });
            changed |= real(n) != n;
            if let Some(last) = last {
                to.put(b"/");
                to.put(last);
            }
            return if changed { Meaning::Other } else { Meaning::Same };
        }
    }
    to.put(rest);
    if changed { Meaning::Other } else { Meaning::Same }
}

/// Calls `f` with the address of the path that the kernel is to see in place of the one at `path`.
pub(crate) fn translated(path: usize, follow: bool, f: impl FnOnce(usize) -> isize) -> isize {
    let mut given = [0u8; ROOM];
    let Some(len) = below_proc(path, &mut given) else { return f(path) };
    let mut to = Room { bytes: [0; ROOM], len: 0 };
    with_ids(|| match meaning(given.get(..len).unwrap_or(&[]), &mut to) {
        Meaning::Exe if follow => f(upper().exe_path.as_ptr().expose_provenance()),
        Meaning::Other => f(to.bytes.as_ptr().expose_provenance()),
        _ => f(path),
    })
}

/// readlink(2) and readlinkat(2), whose path, buffer and room are these.
pub(crate) fn link(path: usize, buf: usize, room: usize, f: impl FnOnce(usize) -> isize) -> isize {
    let mut given = [0u8; ROOM];
    let Some(len) = below_proc(path, &mut given) else { return f(path) };
    let mut to = Room { bytes: [0; ROOM], len: 0 };
    let copy = |text: &[u8]| {
        let n = text.len().min(room);
        // SAFETY: the application passes `room` bytes.
        unsafe { crate::mem::memcpy(with_exposed_provenance_mut(buf), text.as_ptr(), n) };
        n as isize
    };
    with_ids(|| match meaning(given.get(..len).unwrap_or(&[]), &mut to) {
        Meaning::Exe => copy(upper().exe()),
        Meaning::Own => {
            to.len = 0;
            to.number(own_pid() as usize);
            copy(to.bytes.get(..to.len).unwrap_or(&[]))
        }
        Meaning::Other => f(to.bytes.as_ptr().expose_provenance()),
        Meaning::Same => f(path),
    })
}

/// Calls that look at a file by its path.
pub(crate) fn call(n: usize, r: &Regs, pass: impl Fn(&Regs) -> isize) -> Option<isize> {
    let first = |follow| translated(r.rdi, follow, |p| pass(&Regs { rdi: p, ..*r }));
    let second = |follow| translated(r.rsi, follow, |p| pass(&Regs { rsi: p, ..*r }));
    Some(match n {
        nr::OPEN => first(r.rsi & O_NOFOLLOW == 0),
        nr::STAT | nr::ACCESS => first(true),
        nr::LSTAT => first(false),
        nr::OPENAT => second(r.rdx & O_NOFOLLOW == 0),
        nr::NEWFSTATAT => second(r.r10 & AT_SYMLINK_NOFOLLOW == 0),
        nr::STATX => second(r.rdx & AT_SYMLINK_NOFOLLOW == 0),
        nr::FACCESSAT | nr::OPENAT2 => second(true),
        nr::FACCESSAT2 => second(r.r10 & AT_SYMLINK_NOFOLLOW == 0),
        nr::READLINK => link(r.rdi, r.rsi, r.rdx, |p| pass(&Regs { rdi: p, ..*r })),
        nr::READLINKAT => link(r.rsi, r.rdx, r.r10, |p| pass(&Regs { rsi: p, ..*r })),
        _ => return None,
    })
}
