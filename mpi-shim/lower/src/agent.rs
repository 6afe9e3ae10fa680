//! The way to the node agent of the run directory, and the agent itself, which the first rank that finds none starts. *Lower
//! half*, the thread of [`crate::line`], whose table of descriptors is its own.
//!
//! What a reader would get wrong: children are the application's to count. It may wait for any child, so the agent is nobody's.
#![allow(unsafe_code, reason = "forks")]

use std::ffi::CString;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use stillpoint_sys::raw::nr;
use stillpoint_sys::sys;

/// Connects to the agent of the run directory; starts one if none answers. Ranks that have lost one at the same moment (`again`)
/// do so one after the other.
pub(crate) fn connect(run: &Path, local: &Path, again: bool) -> io::Result<UnixStream> {
    // The agent looks whether it can be trusted.
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(local)?;
    // A socket's path may have 107 bytes, ours more.
    let dir = std::fs::File::open(local)?;
    let name = format!("/proc/thread-self/fd/{}/agent.sock", dir.as_raw_fd());
    let first = if again { 1 + turn() * TURN } else { 0 };
    for tries in 0..500 {
        match UnixStream::connect(&name) {
            Ok(stream) => return Ok(stream),
            Err(_) if tries >= first && (tries - first) % 100 == 0 => start_agent(run, local),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
        if crate::line::is_leaving() {
            break;
        }
    }
    Err(io::Error::from_raw_os_error(libc::ECONNREFUSED))
}

/// Tries between one rank's turn and the next one's.
const TURN: u32 = 10;

/// Whose turn it is among the ranks of a node, as far as the launcher tells.
fn turn() -> u32 {
    let local = ["OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID", "MPI_LOCALRANKID"];
    let local = local.iter().find_map(|v| std::env::var(v).ok()?.parse().ok());
    local.unwrap_or_else(|| stillpoint_sys::half().rank.load(Relaxed)) % 16
}

/// Held while an agent is being started: an execve of the application must not come between that and the reaping.
pub(crate) static STARTING: Mutex<()> = Mutex::new(());

/// Starts an agent for this node; one that finds another at work ends at once.
///
/// By hand, as a child without an exit signal: the application may call wait(2) for any child, and must not find this one.
fn start_agent(run: &Path, local: &Path) {
    let Ok(_starting) = STARTING.lock() else { return };
    if crate::line::is_leaving() {
        return;
    }
    let Ok(exe) = crate::launch::part("stillpoint-agent") else { return };
    let text = |p: &Path| CString::new(p.as_os_str().as_bytes()).unwrap_or_default();
    let (exe, run_dir) = (text(&exe), text(run));
    // STILLPOINT_LOCAL is in the environment, if it is to be somewhere else.
    let args = [exe.as_ptr(), c"--run".as_ptr(), run_dir.as_ptr(), std::ptr::null()];
    let envs: Vec<_> = crate::launch::settings(|_| true).collect();
    let envs: Vec<_> = envs.iter().map(|e| e.as_ptr()).chain([std::ptr::null()]).collect();
    let open =
        |p: &Path| std::fs::OpenOptions::new().read(true).create(true).append(true).mode(0o600).open(p);
    let (Ok(null), Ok(log)) = (open(Path::new("/dev/null")), open(&local.join("agent.log"))) else { return };
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
