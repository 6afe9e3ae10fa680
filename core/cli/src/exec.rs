//! `exec`: one rank. Finds the program as the shell would, finds `stillpoint-rank`, and becomes it. The launcher sees one
//! process, with the process id it started. Runs *next door* until the exec.

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{SigSet, SigmaskHow};
use stillpoint_storage::node::NodeDir;

use crate::catalog;
use crate::error::Error;
use crate::slurm::task::local_dir;

/// Where directories of each node are made, for a run on several.
pub(crate) const LOCAL_BASE: &str = "STILLPOINT_LOCAL_BASE";

/// Where launchers tell a process its rank, in the order in which they are believed.
const RANK_VARS: [&str; 4] = ["STILLPOINT_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID"];

/// The first file of this name in PATH that may be executed; a name with a slash is a path already.
pub(crate) fn which(name: &OsStr) -> Option<PathBuf> {
    let executable =
        |p: &Path| p.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    if name.as_encoded_bytes().contains(&b'/') {
        let p = PathBuf::from(name);
        return executable(&p).then_some(p);
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    std::env::split_paths(&path).map(|d| d.join(name)).find(|p| executable(p))
}

/// Directories where the other programs of Stillpoint may lie: STILLPOINT_LIBEXEC, beside this program, and what an
/// installation makes of `<prefix>/bin`.
pub(crate) fn libexec_dirs() -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> =
        std::env::var_os("STILLPOINT_LIBEXEC").into_iter().map(PathBuf::from).collect();
    if let Some(bin) = std::env::current_exe().ok().and_then(|e| Some(e.parent()?.to_owned())) {
        let prefix = bin.parent().map(Path::to_owned);
        dirs.push(bin);
        dirs.extend(prefix.iter().map(|p| p.join("libexec/stillpoint")));
        dirs.extend(prefix.iter().map(|p| p.join("lib/stillpoint")));
    }
    dirs
}

/// One of the other programs of Stillpoint.
pub(crate) fn piece(name: &'static str) -> Result<PathBuf, Error> {
    let dirs = libexec_dirs();
    let found = dirs.iter().map(|d| d.join(name)).find(|p| p.is_file());
    found.ok_or_else(|| Error::NoPiece { name, beside: std::env::current_exe().unwrap_or_default() })
}

fn rank(var: impl Fn(&str) -> Option<String>) -> Result<u32, Error> {
    for name in RANK_VARS {
        if let Some(v) = var(name) {
            return v.parse().map_err(|_| Error::RankVar(name, v));
        }
    }
    Ok(0)
}

/// What execve(2) would refuse. Asked here, because the program is not brought in by the kernel but read by `stillpoint-rank`,
/// which the kernel would let read a file that it would not execute.
fn may_run(name: &OsStr) -> Result<(), Error> {
    let text = || name.to_string_lossy().into_owned();
    let meta = std::fs::metadata(name).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => Error::NotFound(text()),
        _ => Error::Start { what: text(), source },
    })?;
    if meta.is_dir() {
        return Err(Error::NotExecutable(text(), "it is a directory"));
    }
    // For root as well: one of the three bits must be set.
    let bits = meta.permissions().mode() & 0o111 != 0;
    if !bits || rustix::fs::access(Path::new(name), rustix::fs::Access::EXEC_OK).is_err() {
        return Err(Error::NotExecutable(text(), "you have no permission to execute it (chmod +x)"));
    }
    Ok(())
}

/// Becomes `stillpoint-rank`; returns only when that fails. `burst`: as STILLPOINT_BURST.
pub(crate) fn exec(burst: Option<&Path>, command: &[OsString]) -> Error {
    let var = |n: &str| std::env::var_os(n).filter(|v| !v.is_empty() && v != "none");
    let burst = burst.map(|b| b.as_os_str().to_owned());
    let mut given: Vec<_> = burst.map(|b| ("STILLPOINT_BURST", Some(b))).into_iter().collect();
    // One of several nodes: an agent here, and its socket where only this node looks.
    if let (Some(run), Some(base)) = (var("STILLPOINT_RUN"), var(LOCAL_BASE)) {
        match local_dir(Path::new(&base), Path::new(&run)) {
            Ok(dir) => given.extend([("STILLPOINT_LOCAL", Some(dir.into())), (LOCAL_BASE, None)]),
            Err(e) => return e,
        }
    }
    exec_in(command, &given)
}

/// The same with some variables set, or taken out, first.
pub(crate) fn exec_in(command: &[OsString], environment: &[(&'static str, Option<OsString>)]) -> Error {
    // As it will be for the rank.
    let var = |name: &str| match environment.iter().find(|(n, _)| *n == name) {
        Some((_, value)) => value.clone(),
        None => std::env::var_os(name),
    };
    let restart = var("STILLPOINT_RESTART");
    if let Err(e) = keeps_images(var("STILLPOINT_BURST"), var("STILLPOINT_RUN")) {
        return e;
    }
    let own = rank(|n| var(n).and_then(|v| v.into_string().ok()));
    become_rank(prepare(command, restart, own).map(|mut c| {
        for (name, value) in environment {
            match value {
                // Taken out already: what the application runs later is a start.
                Some(_) if *name == "STILLPOINT_RESTART" => {}
                Some(v) => {
                    c.env(name, v);
                }
                None => {
                    c.env_remove(name);
                }
            }
        }
        c
    }))
}

/// The node's agent falls back on the run directory when it cannot write to its own disk; the user is told here, before
/// anything runs.
fn keeps_images(burst: Option<OsString>, run: Option<OsString>) -> Result<(), Error> {
    let (Some(burst), Some(run)) = (burst, run) else { return Ok(()) };
    if burst.is_empty() || burst == "none" || run.is_empty() {
        return Ok(());
    }
    let made = NodeDir::open(Path::new(&burst), Path::new(&run));
    made.map(drop).map_err(|e| Error::Burst(burst.into(), e))
}

/// Comes back only if that fails. The mask that the application gets stands in the arguments already.
fn become_rank(prepared: Result<Command, Error>) -> Error {
    match prepared {
        Ok(mut c) => {
            // Until there is a handler for a scheduler's warning, the rank would die of it: what comes waits.
            let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK);
            let source = c.exec();
            let _ = before.map(|mask| mask.thread_set_mask());
            Error::Start { what: c.get_program().to_string_lossy().into_owned(), source }
        }
        Err(e) => e,
    }
}

/// The calling thread's signal mask, as the rank is told it (`SigBlk` of proc_pid_status(5)).
fn mask() -> Option<String> {
    let text = std::fs::read_to_string("/proc/thread-self/status").ok()?;
    text.lines().find_map(|line| Some(line.strip_prefix("SigBlk:")?.trim().to_owned()))
}

fn prepare(
    command: &[OsString],
    restart: Option<OsString>,
    rank: Result<u32, Error>,
) -> Result<Command, Error> {
    let mut c = Command::new(piece("stillpoint-rank")?);
    // What the user wants preloaded is for the application, not for the program that brings it in.
    if let Some(v) = std::env::var_os("LD_PRELOAD") {
        c.env_remove("LD_PRELOAD").env("STILLPOINT_USER_PRELOAD", v);
    }
    if let Some(dir) = restart.filter(|v| !v.is_empty()) {
        c.arg("--restart").arg(catalog::image_of(Path::new(&dir), rank?)?);
        // What the application runs with execve later is a start, not a restart.
        c.env_remove("STILLPOINT_RESTART");
        return Ok(c);
    }
    c.args(mask().into_iter().flat_map(|hex| ["--mask".to_owned(), hex]));
    let name = command.first().map_or(OsStr::new(""), |n| n);
    if name.as_encoded_bytes().contains(&b'/') {
        may_run(name)?;
        c.arg("--").args(command);
    } else {
        let path = which(name).ok_or_else(|| Error::NotFound(name.to_string_lossy().into_owned()))?;
        c.arg("--").arg(path).args(&command[1..]);
    }
    Ok(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_launcher_tells_the_rank() {
        let of = |set: &'static [(&str, &str)]| {
            rank(move |n| set.iter().find(|(k, _)| *k == n).map(|(_, v)| (*v).to_owned()))
        };
        assert_eq!(of(&[]).unwrap(), 0);
        assert_eq!(of(&[("SLURM_PROCID", "7")]).unwrap(), 7);
        assert_eq!(of(&[("SLURM_PROCID", "0"), ("OMPI_COMM_WORLD_RANK", "3")]).unwrap(), 3);
        assert!(matches!(of(&[("PMIX_RANK", "x")]), Err(Error::RankVar("PMIX_RANK", _))));
    }

    #[test]
    fn a_burst_directory_that_cannot_be_used_is_refused_by_name() {
        let of = |b: &str| keeps_images(Some(b.into()), Some("/r".into()));
        assert!(of("").is_ok() && of("none").is_ok() && keeps_images(None, Some("/r".into())).is_ok());
        let text = crate::error::chain(&of("/no/such").unwrap_err());
        assert!(text.contains("/no/such on this node") && text.contains("No such file"), "{text}");
    }

    #[test]
    fn programs_are_found_as_the_shell_does() {
        assert!(which(OsStr::new("sh")).is_some_and(|p| p.is_absolute()));
        assert!(which(OsStr::new("/")).is_none());
        assert!(which(OsStr::new("no-such-program-here")).is_none());
        assert!(may_run(OsStr::new("/bin/sh")).is_ok());
        assert!(matches!(may_run(OsStr::new("/etc/passwd")), Err(Error::NotExecutable(..))));
        assert!(matches!(may_run(OsStr::new("/")), Err(Error::NotExecutable(..))));
        assert!(matches!(may_run(OsStr::new("/no/such")), Err(Error::NotFound(_))));
    }
}
