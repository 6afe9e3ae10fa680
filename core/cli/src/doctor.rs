//! `doctor`: whether this machine has what Stillpoint needs, one line a finding. It only looks; what it cannot find
//! out it says so. Exit status 1 if something is missing without which nothing works. Runs *next door*.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;

use crate::exec::{libexec_dirs, piece, which};
use crate::home::Home;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Good,
    Note,
    Missing,
}

type Finding = (Level, &'static str, String);

/// The value of an entry of the auxiliary vector (getauxval(3)), from its bytes.
fn aux(auxv: &[u8], key: u64) -> Option<u64> {
    let word = |b: &[u8]| b.first_chunk::<8>().map(|b| u64::from_ne_bytes(*b));
    auxv.chunks_exact(16).find(|e| word(e) == Some(key)).and_then(|e| word(&e[8..]))
}

fn fsgsbase() -> Finding {
    const AT_HWCAP2: u64 = 26;
    let set = fs::read("/proc/self/auxv").ok().and_then(|a| aux(&a, AT_HWCAP2));
    match set {
        Some(v) if v & 2 != 0 => (Level::Good, "fsgsbase", "the processor switches halves by itself".into()),
        Some(_) => {
            (Level::Note, "fsgsbase", "absent: each call across the halves costs a system call".into())
        }
        None => (Level::Note, "fsgsbase", "cannot be found out".into()),
    }
}

/// Major and minor of a kernel release.
fn release(text: &str) -> Option<(u32, u32)> {
    let mut n = text.trim().split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((n.next()?.ok()?, n.next()?.ok()?))
}

fn kernel() -> Finding {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let text = text.trim();
    match release(text) {
        Some(v) if v >= (5, 12) => (Level::Good, "kernel", text.into()),
        Some(_) => {
            (Level::Note, "kernel", format!("{text}: before 5.12, pinned memory does not survive a fork"))
        }
        None => (Level::Note, "kernel", "release cannot be found out".into()),
    }
}

fn launcher() -> Finding {
    let Some(path) = which(OsStr::new("mpirun")) else {
        return (
            Level::Note,
            "mpirun",
            "not found: only programs of one process can run (install openmpi-bin)".into(),
        );
    };
    let out = Command::new(&path).arg("--version").stdin(Stdio::null()).output();
    let text = out.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    let first = text.lines().next().unwrap_or("says nothing of its version").to_owned();
    let level = if first.contains("Open MPI") { Level::Good } else { Level::Note };
    (level, "mpirun", format!("{}: {first}", path.display()))
}

fn root() -> Option<Finding> {
    let set = |n| std::env::var_os(n).is_some_and(|v| v == "1");
    let allowed = set("OMPI_ALLOW_RUN_AS_ROOT") && set("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM");
    let text = "Open MPI refuses root: set OMPI_ALLOW_RUN_AS_ROOT=1 and OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1";
    (rustix::process::geteuid().is_root() && !allowed).then(|| (Level::Note, "root", text.into()))
}

fn library() -> Finding {
    let given = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let usual =
        ["/usr/lib/x86_64-linux-gnu", "/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib"];
    let dirs = std::env::split_paths(&given).chain(usual.into_iter().map(PathBuf::from));
    match dirs.map(|d| d.join("libmpi.so.40")).find(|p| p.exists()) {
        Some(p) => (Level::Good, "libmpi", p.display().to_string()),
        None => (Level::Note, "libmpi", "libmpi.so.40 not found in the usual places".into()),
    }
}

fn room(home: &Home) -> Finding {
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    let dir = home.0.ancestors().find(|d| d.is_dir()).unwrap_or(Path::new("/"));
    let (Ok(v), Ok(s)) = (rustix::fs::statvfs(dir), rustix::fs::statfs(dir)) else {
        return (Level::Missing, "room", format!("{}: cannot be asked", dir.display()));
    };
    if rustix::fs::access(dir, rustix::fs::Access::WRITE_OK).is_err() {
        return (Level::Missing, "room", format!("{}: not writable", dir.display()));
    }
    let free = v.f_bavail * v.f_frsize;
    let kind = if s.f_type == TMPFS_MAGIC { ", in memory" } else { "" };
    let level = if free < 1 << 30 { Level::Note } else { Level::Good };
    (level, "room", format!("{} MiB free for {}{kind}", free >> 20, home.0.display()))
}

fn pagemap() -> Finding {
    match fs::File::open("/proc/self/pagemap") {
        Ok(_) => (Level::Good, "pagemap", "readable".into()),
        Err(e) => (Level::Note, "pagemap", format!("/proc/self/pagemap: {e}: pages cannot be told apart")),
    }
}

fn pieces() -> Vec<Finding> {
    let mut all: Vec<Finding> = ["stillpoint-rank", "stillpoint-agent"]
        .into_iter()
        .map(|name| match piece(name) {
            Ok(p) => (Level::Good, "piece", p.display().to_string()),
            Err(e) => (Level::Missing, "piece", e.to_string()),
        })
        .collect();
    let is_ours = |n: &str| n.starts_with("libstillpoint") && n.contains(".so");
    let mut libs: Vec<String> = libexec_dirs()
        .iter()
        .flat_map(|d| fs::read_dir(d).into_iter().flatten().flatten())
        .filter(|e| e.file_name().to_str().is_some_and(is_ours))
        .map(|e| e.path().display().to_string())
        .collect();
    libs.sort();
    all.extend(libs.into_iter().map(|l| (Level::Good, "library", l)));
    all
}

pub(crate) fn doctor(home: &Home, as_json: bool) -> u8 {
    let mut all = vec![fsgsbase(), kernel(), pagemap(), launcher()];
    all.extend(root());
    all.extend([library(), room(home)]);
    all.extend(pieces());
    let name = |l| match l {
        Level::Good => "ok",
        Level::Note => "note",
        Level::Missing => "MISSING",
    };
    if as_json {
        let list: Vec<_> = all
            .iter()
            .map(|(l, what, text)| json!({ "level": name(*l), "what": what, "text": text }))
            .collect();
        println!("{}", json!(list));
    } else {
        for (l, what, text) in &all {
            println!("{:<8} {what:<9} {text}", name(*l));
        }
    }
    u8::from(all.iter().any(|(l, ..)| *l == Level::Missing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auxiliary_vector_and_release() {
        let mut v = Vec::new();
        [6u64, 4096, 26, 2, 0, 0].iter().for_each(|w| v.extend(w.to_ne_bytes()));
        assert_eq!((aux(&v, 26), aux(&v, 7)), (Some(2), None));
        assert_eq!(release("6.18.1-cloud"), Some((6, 18)));
        assert_eq!(release("x"), None);
    }
}
