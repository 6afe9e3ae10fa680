//! The way to the node agent of the run directory: a socket with a high number, and the agent itself, which the first rank
//! that finds none starts. *Lower half*, control thread; [`socket`] on the main thread, before the application runs.
//!
//! What a reader would get wrong: descriptors and children are the application's to count. It gets the lowest free number
//! and may wait for any child, so what is made here has a high number at once, and the agent is nobody's child.
#![allow(unsafe_code, reason = "copies descriptors, forks")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;
use stillpoint_capture::gather;
use stillpoint_sys::raw::nr;
use stillpoint_sys::sys;

/// A copy of the descriptor out of the application's numbers, without a low one in between. Where the limit of open files
/// is low, the highest numbers are used that there are likely to be.
pub(crate) fn hidden(fd: &OwnedFd) -> io::Result<OwnedFd> {
    // SAFETY: getrlimit fills the structure; F_DUPFD_CLOEXEC makes a copy, owned by nobody else; our own fcntl notes it.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        let from = limit.rlim_cur.saturating_sub(64).min(700);
        let n =
            libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, libc::c_int::try_from(from).unwrap_or(700));
        if n < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(n))
    }
}

/// The socket of the line, with a high number. Made before the application runs, which counts on getting the lowest free
/// number, and must not find one of ours there for a moment.
pub(crate) fn socket() -> io::Result<OwnedFd> {
    // SAFETY: makes a descriptor, owned by nobody else.
    let s = unsafe {
        let n = libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        if n < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(n)
    };
    Ok(hidden(&s).unwrap_or(s))
}

/// Connects to the agent of the run directory; starts one if none answers.
pub(crate) fn connect(socket: OwnedFd, run: &Path) -> io::Result<UnixStream> {
    let at = run.join("agent.sock");
    let name = at.as_os_str().as_bytes();
    // SAFETY: plain numbers.
    let mut addr: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    addr.sun_family = libc::AF_UNIX as libc::sa_family_t;
    // The last byte stays zero.
    if name.len() >= addr.sun_path.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in addr.sun_path.iter_mut().zip(name) {
        *to = *from as libc::c_char;
    }
    let len = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    for tries in 0..500 {
        // SAFETY: reads `addr`; a socket whose connection was refused may try again (unix(7)).
        if unsafe { libc::connect(socket.as_raw_fd(), (&raw const addr).cast(), len) } == 0 {
            return Ok(UnixStream::from(socket));
        }
        if tries % 100 == 0 {
            start_agent_apart(run);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Err(io::Error::from_raw_os_error(libc::ECONNREFUSED))
}

/// As [`start_agent`], on a thread with a table of descriptors of its own.
fn start_agent_apart(run: &Path) {
    std::thread::scope(|s| {
        s.spawn(|| {
            gather::go_apart();
            start_agent(run);
        });
    });
}

/// Held while an agent is being started: an execve of the application must not come between that and the reaping.
pub(crate) static STARTING: Mutex<()> = Mutex::new(());

/// Starts an agent for this node; one that finds another at work ends at once.
///
/// By hand, as a child without an exit signal: the application may call wait(2) for any child, and must not find this one.
fn start_agent(run: &Path) {
    let Ok(_starting) = STARTING.lock() else { return };
    if crate::link::has_left() {
        return;
    }
    let Ok(exe) = crate::launch::part("stillpoint-agent") else { return };
    let text = |p: &Path| CString::new(p.as_os_str().as_bytes()).unwrap_or_default();
    let (exe, run_dir) = (text(&exe), text(run));
    let args = [exe.as_ptr(), c"--run".as_ptr(), run_dir.as_ptr()];
    let args: Vec<_> = args.into_iter().chain([std::ptr::null()]).collect();
    let envs: Vec<_> = crate::launch::settings(|_| true).collect();
    let envs: Vec<_> = envs.iter().map(|e| e.as_ptr()).chain([std::ptr::null()]).collect();
    let open =
        |p: &Path| std::fs::OpenOptions::new().read(true).create(true).append(true).mode(0o600).open(p);
    let (Ok(null), Ok(log)) = (open(Path::new("/dev/null")), open(&run.join("agent.log"))) else { return };
    let (null, log) = (null.as_raw_fd(), log.as_raw_fd());
    let none = 0u64;
    const SETSID: usize = 112;
    // SAFETY: a fork (no exit signal); the child makes raw calls only, on what was made above, and ends. The agent is its
    // child, as an execve would give it an exit signal again.
    let pid = unsafe { sys!(nr::CLONE, 0, 0) };
    if pid == 0 {
        // SAFETY: as above.
        unsafe {
            if sys!(nr::CLONE, 0, 0) == 0 {
                sys!(SETSID);
                sys!(nr::DUP2, null, 0);
                sys!(nr::DUP2, null, 1);
                sys!(nr::DUP2, log, 2);
                sys!(nr::CLOSE_RANGE, 3, u32::MAX, 0);
                sys!(nr::RT_SIGPROCMASK, 2, &raw const none, 0, 8);
                sys!(nr::EXECVE, exe.as_ptr(), args.as_ptr(), envs.as_ptr());
            }
            sys!(nr::EXIT_GROUP, 127);
        }
    }
    if pid > 0 {
        // SAFETY: reaps the child; __WCLONE because it has no exit signal.
        unsafe { libc::waitpid(pid as i32, std::ptr::null_mut(), libc::__WCLONE) };
    }
}
