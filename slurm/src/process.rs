//! The process that we are guests in: how it was started, where our own file lies, and how srun becomes another program.
//! *In Slurm's processes.*
//!
//! What a reader would get wrong: srun blocks its signals before it loads plugins, and a signal mask survives execve.
//! Whatever comes after us would be deaf to Ctrl-C.
#![allow(unsafe_code, reason = "getopt's index, dladdr, the signal mask, the environment and execve")]

use std::ffi::{CStr, CString, OsStr, OsString, c_char, c_int};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

unsafe extern "C" {
    /// getopt(3): index of the first word that is not an option. srun asks getopt to stop there ("+").
    static optind: c_int;
}

/// What srun blocks: `sig_array` and `pty_sigarray` of its `init_srun`.
const BLOCKED: [c_int; 10] = [
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGCONT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGALRM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGPIPE,
    libc::SIGWINCH,
];

/// The words this process was started with.
pub(crate) fn command_line() -> Vec<OsString> {
    let bytes = std::fs::read("/proc/self/cmdline").unwrap_or_default();
    let words = bytes.strip_suffix(b"\0").unwrap_or(&bytes).split(|b| *b == 0);
    words.map(|w| OsString::from_vec(w.to_vec())).collect()
}

/// Index of the command behind Slurm's options, after Slurm has read them.
pub(crate) fn command_at(words: usize) -> Option<usize> {
    // SAFETY: the C library's; read on the thread that called getopt.
    let at = usize::try_from(unsafe { optind }).ok()?;
    (1..words).contains(&at).then_some(at)
}

/// The file this process runs.
pub(crate) fn program() -> std::io::Result<PathBuf> {
    std::fs::read_link("/proc/self/exe")
}

/// The file this code was loaded from.
pub(crate) fn own_file() -> Option<PathBuf> {
    // SAFETY: zeroes are a valid Dl_info.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    let here: fn() -> Option<PathBuf> = own_file;
    // SAFETY: an address within this file, and room for the answer.
    let found = unsafe { libc::dladdr(here as *const _, &raw mut info) } != 0 && !info.dli_fname.is_null();
    // SAFETY: the loader's own terminated string.
    let name = found.then(|| unsafe { CStr::from_ptr(info.dli_fname) })?;
    std::fs::canonicalize(Path::new(OsStr::from_bytes(name.to_bytes()))).ok()
}

/// Whether a file may be executed by us.
pub(crate) fn may_execute(path: &Path) -> Result<(), std::io::Error> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: a terminated path.
    if unsafe { libc::access(path.as_ptr(), libc::X_OK) } == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

fn set_blocked(how: c_int) {
    // SAFETY: sigsets of our own, filled before they are used.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in BLOCKED {
            libc::sigaddset(&raw mut set, signal);
        }
        libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut());
    }
}

/// Sets a variable for what this process starts.
pub(crate) fn set_variable(name: &str, value: &OsStr) {
    // SAFETY: Slurm has no second thread yet where this is called, in `slurm_spank_init_post_opt` of salloc.
    unsafe { std::env::set_var(name, value) };
}

/// Becomes another program, with this process's environment but for the variables that `without` names. Returns only
/// when that fails.
pub(crate) fn become_program(words: &[OsString], without: impl Fn(&OsStr, &OsStr) -> bool) -> std::io::Error {
    let keep = std::env::vars_os().filter(|(k, v)| !without(k, v));
    let joined = keep.map(|(k, v)| [k.as_bytes(), b"=", v.as_bytes()].concat());
    let strings = |all: Vec<Vec<u8>>| -> Result<Vec<CString>, std::ffi::NulError> {
        all.into_iter().map(CString::new).collect()
    };
    let words = words.iter().map(|w| w.as_bytes().to_vec()).collect();
    let (words, variables) = match (strings(words), strings(joined.collect())) {
        (Ok(w), Ok(v)) => (w, v),
        _ => return std::io::ErrorKind::InvalidInput.into(),
    };
    let ends = |all: &[CString]| -> Vec<*const c_char> {
        all.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, envp) = (ends(&words), ends(&variables));
    set_blocked(libc::SIG_UNBLOCK);
    // SAFETY: two null-terminated arrays of strings that live until the call returns, if it does.
    unsafe { libc::execve(argv[0], argv.as_ptr(), envp.as_ptr()) };
    let why = std::io::Error::last_os_error();
    set_blocked(libc::SIG_BLOCK);
    why
}

/// Runs a program as a user, without environment, terminal or open files of this process, and waits for its end.
///
/// In slurmstepd, which has threads: between fork and execve there are system calls only, on what was made before. The child is in
/// the step's container, as slurmstepd is: whoever kills the step ends it, and this wait.
pub(crate) fn run_as(uid: u32, gid: u32, groups: &[u32], words: &[OsString]) -> std::io::Result<()> {
    let words: Result<Vec<CString>, _> = words.iter().map(|w| CString::new(w.as_bytes())).collect();
    let words = words?;
    let argv: Vec<*const c_char> = words.iter().map(|w| w.as_ptr()).chain([std::ptr::null()]).collect();
    let envp: [*const c_char; 1] = [std::ptr::null()];
    let none = 0u64;
    // SAFETY: the child makes system calls only, on memory that was made above, and becomes another program or ends. The calls
    // are raw: those of the C library would want to tell its other threads, which the child does not have.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: see above.
        unsafe {
            let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
            let apart = (0..3).all(|fd| libc::dup2(null, fd) == fd)
                && libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32) == 0;
            let user = libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) == 0
                && libc::syscall(libc::SYS_setresgid, gid, gid, gid) == 0
                && libc::syscall(libc::SYS_setresuid, uid, uid, uid) == 0;
            libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const none, 0usize, 8usize);
            if apart && user {
                libc::execve(argv[0], argv.as_ptr(), envp.as_ptr());
            }
            libc::_exit(127);
        }
    }
    if pid < 0 {
        return Err(std::io::Error::last_os_error());
    }
    let mut status = 0;
    // SAFETY: our own child; interrupted waits begin again.
    while unsafe { libc::waitpid(pid, &raw mut status, 0) } < 0 {
        let e = std::io::Error::last_os_error();
        if e.kind() != std::io::ErrorKind::Interrupted {
            return Err(e);
        }
    }
    if status == 127 << 8 {
        return Err(std::io::Error::other("the program could not be started"));
    }
    Ok(())
}

/// Ends srun, sbatch or salloc as they end themselves on a bad option.
pub(crate) fn leave() -> ! {
    let code = std::env::var("SLURM_EXIT_ERROR").ok().and_then(|v| v.parse().ok()).unwrap_or(1);
    // SAFETY: exit(3), on Slurm's main thread.
    unsafe { libc::exit(code) }
}

/// Ends a task that has not yet become the user's program. Not exit(3): the handlers are those of slurmstepd.
pub(crate) fn leave_task() -> ! {
    // SAFETY: ends this process.
    unsafe { libc::_exit(1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_knows_how_it_was_started() {
        let words = command_line();
        assert_eq!(words.len(), std::env::args_os().count());
        assert_eq!(command_at(0), None);
        assert!(own_file().is_some_and(|f| f.is_file()));
        assert!(program().is_ok());
    }

    #[test]
    fn a_program_is_run_as_somebody_and_waited_for() {
        // SAFETY: takes nothing.
        let (me, mine) = unsafe { (libc::geteuid(), libc::getegid()) };
        if me != 0 {
            return;
        }
        let run = |script: &str| {
            run_as(65534, 65534, &[65534, 4242], &["/bin/sh".into(), "-c".into(), script.into()])
        };
        let out = std::env::temp_dir().join(format!("stillpoint-run-as-{}", std::process::id()));
        std::fs::write(&out, "").unwrap();
        std::fs::set_permissions(&out, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
        run(&format!(
            "id -u > {0}; id -G >> {0}; env | grep -c . >> {0}; sleep 0.1; echo end >> {0}",
            out.display()
        ))
        .unwrap();
        let said = std::fs::read_to_string(&out).unwrap();
        std::fs::remove_file(&out).unwrap();
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!((lines[0], lines[1], lines[lines.len() - 1]), ("65534", "65534 4242", "end"), "{said}");
        assert!(run_as(me, mine, &[mine], &["/no/such".into()]).is_err());
    }

    #[test]
    fn a_program_that_is_not_there_is_told() {
        let none: OsString = "/no/such/program".into();
        assert_eq!(become_program(&[none], |_, _| false).kind(), std::io::ErrorKind::NotFound);
        assert!(may_execute(Path::new("/bin/sh")).is_ok());
        assert!(may_execute(Path::new("/etc/passwd")).is_err());
    }
}
