//! The rank's own execve. *Lower half*.
//!
//! What a reader would get wrong: the environment of a restarted program is that of its first start. What launchers put into it, for a
//! library that the next program begins with (PMIx, the run directory), is that of this start from then on.
#![allow(unsafe_code, reason = "strings of the application, and system calls")]

use crate::launch::{self, USER_PRELOAD, setting, settings};
use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use stillpoint_abi::half::goodbye;
use stillpoint_loader::place;
use stillpoint_sys::raw::nr;
use stillpoint_sys::sys;

/// This process began from an image.
static RESTORED: AtomicBool = AtomicBool::new(false);

/// Settings that are for the beginning of a rank only.
const BEGUN: [&str; 2] = ["STILLPOINT_RESTART", "STILLPOINT_STDIN"];

/// Beginnings of what launchers, the agent and our own command line set for each start anew: Open MPI 4.1's and PRRTE's mpirun, PMIx, PMI,
/// Slurm. The settings of a user begin otherwise, or as in [`OF_USER`].
const OF_LAUNCH: [&str; 36] = [
    "OMPI_APP_CTX_",
    "OMPI_COMM_WORLD_",
    "OMPI_FILE_LOCATION",
    "OMPI_FIRST_RANKS",
    "OMPI_MCA_ess",
    "OMPI_MCA_orte_app_num",
    "OMPI_MCA_orte_bound_at_launch",
    "OMPI_MCA_orte_ess_",
    "OMPI_MCA_orte_hnp_uri",
    "OMPI_MCA_orte_jobfam_session_dir",
    "OMPI_MCA_orte_launch",
    "OMPI_MCA_orte_local_daemon_uri",
    "OMPI_MCA_orte_num_nodes",
    "OMPI_MCA_orte_precondition_transports",
    "OMPI_MCA_orte_tmpdir_base",
    "OMPI_MCA_orte_top_session_dir",
    "OMPI_MCA_pmix",
    "OMPI_NUM_APP_CTX",
    "OMPI_UNIVERSE_SIZE",
    "PMIX_",
    "PMI_",
    "PRTE_",
    "SLURMD_",
    "SLURM_",
    "STILLPOINT_BURST",
    "STILLPOINT_INCARNATION",
    "STILLPOINT_INTERVAL",
    "STILLPOINT_KEEP",
    "STILLPOINT_LIBEXEC",
    "STILLPOINT_LOCAL",
    "STILLPOINT_MTBF",
    "STILLPOINT_RANK",
    "STILLPOINT_RUN",
    "STILLPOINT_SIGNAL",
    "STILLPOINT_SIZE",
    "STILLPOINT_STEP",
];

/// Parameters of PMIx and PRRTE.
const OF_USER: [&str; 2] = ["PMIX_MCA_", "PRTE_MCA_"];

pub(crate) fn restored() {
    RESTORED.store(true, Relaxed);
}

fn is_of_launch(name: &[u8]) -> bool {
    let begins = |all: &[&str]| all.iter().any(|o| name.starts_with(o.as_bytes()));
    begins(&OF_LAUNCH) && !begins(&OF_USER)
}

/// The name of a setting, with its `=`.
fn key(setting: &[u8]) -> &[u8] {
    setting.split_inclusive(|c| *c == b'=').next().unwrap_or_default()
}

/// An entry of the application's environment as it is for the next program: that of this launch, or none where this launcher has
/// no such setting.
fn of_this_launch(entry: *const libc::c_char, launch: &[CString]) -> Option<*const libc::c_char> {
    // SAFETY: a terminated string from the application.
    let name = key(unsafe { CStr::from_ptr(entry) }.to_bytes());
    if !is_of_launch(name) {
        return Some(entry);
    }
    launch.iter().find(|l| key(l.as_bytes()) == name).map(|l| l.as_ptr())
}

/// The rank's own execve: the new program is brought in by a fresh `stillpoint-rank`. *Lower half.*
pub(crate) extern "C" fn exec(path: usize, argv: usize, envp: usize) -> isize {
    let strings = |mut at: usize| -> Vec<*const libc::c_char> {
        let mut v = Vec::new();
        while at != 0 {
            // SAFETY: the application passes a null-terminated array of strings, as execve(2) wants it.
            let p = unsafe { std::ptr::with_exposed_provenance::<*const libc::c_char>(at).read() };
            if p.is_null() {
                break;
            }
            v.push(p);
            at += 8;
        }
        v
    };
    let Ok(me) = launch::part("stillpoint-rank") else { return -2 };
    let Ok(me) = CString::new(me.into_os_string().into_vec()) else { return -2 };
    let path: *const libc::c_char = std::ptr::with_exposed_provenance(path);
    // SAFETY: the application's path, as execve(2) wants it.
    let (given, name) = unsafe { (libc::access(path, libc::X_OK), CStr::from_ptr(path)) };
    // SAFETY: terminated strings from the application, or ours.
    let raw = |p, a: &[*const libc::c_char], e: &[*const libc::c_char]| unsafe {
        let r = sys!(nr::EXECVE, p, a.as_ptr(), e.as_ptr());
        if given == 0 {
            crate::line::stayed();
        }
        r
    };
    let mut env = strings(envp);
    let mut old = strings(argv);
    let file = Path::new(OsStr::from_bytes(name.to_bytes()));
    let dynamic = |p: &Path| place::open(p).is_ok_and(|(_, e)| e.interp.is_some());
    let fits = given == 0 && (dynamic(file) || interpreter(file).is_some_and(|(i, _)| dynamic(&i)));
    // What comes from now on waits for the next program: until that has a handler for a scheduler's warning, it would die of it.
    let mask = launch::block_all_signals();
    if given == 0 {
        if fits {
            crate::warn::once_more_if_unheard();
        }
        // The connection ends with this program; the next one takes up the rank again, if it is one of ours.
        crate::line::goodbye(goodbye::EXEC, 0);
        // No thread is stopped here, so there will be no other.
        stillpoint_capture::write::end_all_frozen();
    }
    if !fits {
        // Missing, not executable, a static program: the kernel's own answer.
        old.push(std::ptr::null());
        env.push(std::ptr::null());
        launch::swap_mask(mask);
        return raw(path, &old, &env);
    }
    // What the application wants preloaded is not for the lower half.
    let renamed: Vec<CString> = env
        .iter()
        // SAFETY: terminated strings from the application.
        .filter_map(|e| unsafe { CStr::from_ptr(*e) }.to_bytes().strip_prefix(b"LD_PRELOAD="))
        .filter_map(|v| CString::new(setting(USER_PRELOAD.as_bytes(), v)).ok())
        .collect();
    // SAFETY: as above.
    env.retain(|e| !unsafe { CStr::from_ptr(*e) }.to_bytes().starts_with(b"LD_PRELOAD="));
    env.extend(renamed.iter().map(|e| e.as_ptr()));
    // Entries of the environment point into it from here on.
    let of_launch: Vec<CString> = settings(|k| is_of_launch(k.as_bytes())).collect();
    let was = env.len();
    if RESTORED.load(Relaxed) {
        env = env.into_iter().filter_map(|e| of_this_launch(e, &of_launch)).collect();
    }
    // A program that clears the environment (`env -i`) stays in the job. After a restart by another launcher, what that one sets is
    // missing where settings of the former one were.
    let other_launcher = env.len() < was;
    let is_ours = |k: &OsStr| k.as_bytes().starts_with(b"STILLPOINT_") && !BEGUN.iter().any(|b| k == *b);
    let ours: Vec<CString> =
        settings(|k| is_ours(k) || (other_launcher && is_of_launch(k.as_bytes()))).collect();
    let missing = |o: &&CString| {
        // SAFETY: as above.
        !env.iter().any(|e| unsafe { CStr::from_ptr(*e) }.to_bytes().starts_with(key(o.as_bytes())))
    };
    let missing: Vec<_> = ours.iter().filter(missing).map(|o| o.as_ptr()).collect();
    env.extend(missing);
    env.push(std::ptr::null());
    let argv0 = old.first().copied().unwrap_or(path);
    let hex = CString::new(format!("{mask:x}")).unwrap_or_default();
    let mut new: Vec<_> = [&me, c"--argv0"].map(CStr::as_ptr).to_vec();
    new.extend([argv0, c"--mask".as_ptr(), hex.as_ptr(), c"--".as_ptr(), path]);
    new.extend(old.iter().skip(1));
    new.push(std::ptr::null());
    let failed = raw(me.as_ptr(), &new, &env);
    launch::swap_mask(mask);
    failed
}

/// `#!` scripts: the interpreter line, as execve(2) treats it.
pub(crate) fn interpreter(program: &Path) -> Option<(PathBuf, Option<Vec<u8>>)> {
    let head = std::fs::read(program).ok()?;
    let line = head.strip_prefix(b"#!")?.split(|c| *c == b'\n').next()?;
    let line = String::from_utf8_lossy(line).trim().to_string();
    let mut parts = line.splitn(2, char::is_whitespace);
    let interp = PathBuf::from(parts.next()?);
    Some((interp, parts.next().map(|a| a.trim().as_bytes().to_vec())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_program_sees_this_launch() {
        let now = [c"PMIX_RANK=1".to_owned(), c"OMPI_MCA_orte_hnp_uri=8".to_owned()];
        let of = |entry: &CStr| {
            // SAFETY: terminated strings.
            of_this_launch(entry.as_ptr(), &now).map(|e| unsafe { CStr::from_ptr(e) }.to_owned())
        };
        assert_eq!(of(c"OMPI_MCA_orte_hnp_uri=7").as_deref(), Some(c"OMPI_MCA_orte_hnp_uri=8"));
        assert_eq!(of(c"PMIX_NAMESPACE=7"), None, "another launcher's");
        for same in [
            c"OMPI_MCA_btl=tcp",
            c"OMPI_MCA_orte_base_help_aggregate=0",
            c"PMIX_MCA_gds=hash",
            c"HOME=/",
            c"PMI=",
            c"nothing",
            c"",
        ] {
            assert_eq!(of(same).as_deref(), Some(same));
        }
    }
}
