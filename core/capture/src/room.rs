//! Is there room for an image (INV-9)? *Lower half*, control thread, before anything is written or forked.
//!
//! Pages that the application changes while a frozen child lives, and files in a tmpfs, are charged to the memory limit of
//! the job: it would be killed by its own checkpoint. What a reader would get wrong: a control group's limit holds for
//! all groups above it as well, and pages of the page cache that nobody uses count as used but give way.
#![allow(unsafe_code, reason = "asks the kernel about file systems")]

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use stillpoint_image::Region;

/// What the decision is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Facts {
    /// Most bytes that the image can have.
    image: u64,
    /// Bytes free where it is to be written.
    store: u64,
    /// The store lies in memory.
    in_memory: bool,
    /// Bytes that may still be charged to the job.
    memory: u64,
}

/// Whether to write directly, though it was asked to fork (or the reverse is never done).
fn decide(f: Facts, direct: bool) -> Result<bool, String> {
    let mib = |b: u64| b.div_ceil(1 << 20);
    if f.store < f.image {
        return Err(format!(
            "the image may need {} MiB and the store has {} MiB; make room or use another --dir",
            mib(f.image),
            mib(f.store)
        ));
    }
    let file = if f.in_memory { f.image } else { 0 };
    if f.memory < file {
        return Err(format!(
            "the store lies in memory (tmpfs); the image may need {} MiB and the job's memory limit leaves {} MiB",
            mib(file),
            mib(f.memory)
        ));
    }
    // The whole of it may be copied on write while a child lives.
    Ok(direct || f.memory - file < f.image)
}

/// Most bytes that an image of these regions can have: what is in memory or swapped out, and private file mappings whole.
fn estimate(regions: &[Region]) -> u64 {
    let status = read(Path::new("/proc/self/status"));
    let kib = |key: &str| entry(&status, key);
    let files: u64 = regions.iter().filter(|r| r.inode != 0).map(|r| r.end - r.start).sum();
    let all: u64 = regions.iter().map(|r| r.end - r.start).sum();
    let used = (kib("RssAnon:") + kib("RssShmem:") + kib("VmSwap:")) * 1024;
    // Headers, checksums and the description.
    let pages = (used + files).min(all);
    pages + pages / 256 + (4 << 20)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn word(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The value of a line `key value`, without its unit.
fn entry(text: &str, key: &str) -> u64 {
    let found =
        text.lines().find_map(|l| l.strip_prefix(key)?.trim().trim_end_matches("kB").trim().parse().ok());
    found.unwrap_or(0)
}

/// What a control group and those above it leave.
fn left_by_group(top: &Path, below: &str, names: [&str; 2], cache: &str) -> u64 {
    let mut at: PathBuf = top.join(below.trim_start_matches('/'));
    let mut left = u64::MAX;
    while at.starts_with(top) {
        // "max" is no number: no limit.
        if let (Some(limit), Some(used)) = (word(&at.join(names[0])), word(&at.join(names[1]))) {
            let idle = entry(&read(&at.join("memory.stat")), cache);
            left = left.min(limit.saturating_sub(used.saturating_sub(idle)));
        }
        if !at.pop() {
            break;
        }
    }
    left
}

/// A control group that this process is in, as far as it can be seen here.
#[derive(Debug, PartialEq, Eq)]
struct Group {
    /// Where its tree is mounted.
    top: PathBuf,
    /// The group, from there.
    below: String,
    /// Of version 2.
    second: bool,
}

/// The groups of /proc/self/cgroup that have to do with memory, where /proc/self/mountinfo says that they are (proc(5)). A
/// container, and a machine of the Slurm lab, sees only a part of the tree, mounted where the whole would be.
fn groups_of(mounts: &str, groups: &str) -> Vec<Group> {
    let mut found = vec![];
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(kind), Some(path)) = (parts.next(), parts.next()) else { continue };
        let second = kind.is_empty();
        if !second && !kind.split(',').any(|k| k == "memory") {
            continue;
        }
        let is_its = |l: &&str| {
            let Some((_, rest)) = l.split_once(" - ") else { return false };
            let mut words = rest.split(' ');
            let (kind, options) = (words.next(), words.nth(1).unwrap_or(""));
            if second {
                kind == Some("cgroup2")
            } else {
                kind == Some("cgroup") && options.split(',').any(|o| o == "memory")
            }
        };
        // The one mounted last hides those before it.
        let Some(mount) = mounts.lines().rfind(is_its) else { continue };
        let mut words = mount.split(' ').skip(3);
        let (Some(root), Some(top)) = (words.next(), words.next()) else { continue };
        let below = path.strip_prefix(root.trim_end_matches('/')).unwrap_or("");
        found.push(Group { top: top.into(), below: below.to_owned(), second });
    }
    found
}

fn memory_left() -> u64 {
    let mut left = entry(&read(Path::new("/proc/meminfo")), "MemAvailable:").saturating_mul(1024);
    if left == 0 {
        left = u64::MAX;
    }
    let (mounts, groups) = (read(Path::new("/proc/self/mountinfo")), read(Path::new("/proc/self/cgroup")));
    for g in groups_of(&mounts, &groups) {
        let group = if g.second {
            left_by_group(&g.top, &g.below, ["memory.max", "memory.current"], "inactive_file ")
        } else {
            let names = ["memory.limit_in_bytes", "memory.usage_in_bytes"];
            left_by_group(&g.top, &g.below, names, "total_inactive_file ")
        };
        left = left.min(group);
    }
    left
}

/// Decides how an image of these regions is to be written to `path`: true is directly.
///
/// # Errors
/// Says what there is no room in.
pub(crate) fn check(path: &Path, regions: &[Region], direct: bool) -> Result<bool, String> {
    const TMPFS: i64 = 0x0102_1994;
    const RAMFS: i64 = 0x8584_58f6;
    let dir = path.parent().unwrap_or(Path::new("."));
    let name = CString::new(dir.as_os_str().as_bytes()).unwrap_or_default();
    let mut st = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: a terminated path; fills `st`, which is plain numbers.
    let (r, st) = unsafe { (libc::statfs(name.as_ptr(), st.as_mut_ptr()), st.assume_init()) };
    if r != 0 {
        return Err(format!("cannot look at {}: {}", dir.display(), std::io::Error::last_os_error()));
    }
    let kind = st.f_type;
    let facts = Facts {
        image: estimate(regions),
        // A ramfs has no size.
        store: if kind == RAMFS { u64::MAX } else { st.f_bavail * st.f_bsize.unsigned_abs() },
        in_memory: kind == TMPFS || kind == RAMFS,
        memory: memory_left(),
    };
    // With a disk of the node for images, its user may have thought of another one.
    decide(facts, direct).map_err(|e| format!("{}: {e}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forks_where_all_fits_else_writes_directly_else_refuses() {
        let f = |store, in_memory, memory| Facts { image: 100, store, in_memory, memory };
        assert_eq!(decide(f(100, false, 100), false), Ok(false));
        assert_eq!(decide(f(100, false, 100), true), Ok(true));
        assert_eq!(decide(f(100, false, 99), false), Ok(true), "copies on write might not fit");
        assert_eq!(decide(f(100, true, 200), false), Ok(false));
        assert_eq!(decide(f(100, true, 199), false), Ok(true));
        assert!(decide(f(100, true, 99), true).is_err(), "a file in memory would kill the job");
        assert!(decide(f(99, false, 1000), true).is_err(), "no room in the store");
    }

    #[test]
    fn a_group_is_bound_by_those_above_it() {
        let top = std::env::temp_dir().join(format!("stillpoint-room-{}", std::process::id()));
        let (a, b) = (top.join("a"), top.join("a/b"));
        fs::create_dir_all(&b).unwrap();
        for (d, max, now) in [(&a, "1000", "400"), (&b, "max", "300")] {
            fs::write(d.join("memory.max"), max).unwrap();
            fs::write(d.join("memory.current"), now).unwrap();
        }
        fs::write(a.join("memory.stat"), "anon 5\ninactive_file 100\n").unwrap();
        let left = left_by_group(&top, "/a/b", ["memory.max", "memory.current"], "inactive_file ");
        fs::remove_dir_all(&top).unwrap();
        assert_eq!(left, 700);
    }

    #[test]
    fn a_part_of_the_tree_may_be_mounted_as_the_whole() {
        let mounts = "30 20 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      31 20 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                      40 30 0:26 /lab-n1 /sys/fs/cgroup/memory rw,relatime shared:5 - cgroup cgroup rw,memory\n";
        let groups = "4:memory:/lab-n1/slurm/job_1\n3:cpuset:/\n0::/a\n";
        let group = |top: &str, below: &str, second| Group { top: top.into(), below: below.into(), second };
        assert_eq!(
            groups_of(mounts, groups),
            [
                group("/sys/fs/cgroup/memory", "/slurm/job_1", false),
                group("/sys/fs/cgroup/unified", "/a", true)
            ]
        );
        assert_eq!(groups_of(mounts, "4:memory:/elsewhere\n"), [group("/sys/fs/cgroup/memory", "", false)]);
        assert!(groups_of("", groups).is_empty());
    }

    #[test]
    fn this_machine_has_some() {
        assert!(memory_left() > 1 << 20 && estimate(&[]) >= 4 << 20);
        assert!(check(&std::env::temp_dir().join("x"), &[], false).is_ok());
    }
}
