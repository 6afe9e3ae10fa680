//! Describes the process at the still point, and says what cannot be saved. *Lower half*, control thread, while every
//! upper thread stands still (reasons: also while they run).
#![allow(unsafe_code, reason = "asks the kernel about timers and descriptors")]

use crate::tcp;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use stillpoint_image::{Cpu, Fd, FdKind, Meta, Mpi, Phase, Process, Region, Signals, Tcp, Thread};
use stillpoint_sys::raw::{getpid, monotonic_ns, nr};
use stillpoint_sys::{arch, half, maps, sys, upper};

/// What the launcher gave this process: descriptors with their identity (device, inode); taken once, at the start.
///
/// The first three are the standard streams, connected anew at a restart. Pipes and sockets beyond them are the
/// launcher's own leavings: the program does not know of them, and a restart has others.
#[derive(Clone, Debug, Default)]
pub struct Streams(Vec<(i32, u64, u64)>);

impl Streams {
    /// Looks at all descriptors.
    pub fn look() -> Streams {
        let id = |n: i32| fs::metadata(format!("/proc/self/fd/{n}")).ok().map(|m| (n, m.dev(), m.ino()));
        Streams(numbers().into_iter().flatten().filter_map(id).collect())
    }

    fn has(&self, num: i32, m: &fs::Metadata) -> bool {
        self.0.contains(&(num, m.dev(), m.ino()))
    }

    /// Which standard stream this is, whatever number it has now.
    fn standard(&self, m: &fs::Metadata) -> Option<u8> {
        let at = self.0.iter().find(|(n, d, i)| *n < 3 && (*d, *i) == (m.dev(), m.ino()))?;
        u8::try_from(at.0).ok()
    }
}

/// Numbers in the calling thread's table of descriptors; one of them, which is closed again, was for the listing itself.
fn numbers() -> std::io::Result<Vec<i32>> {
    let dir = fs::read_dir("/proc/thread-self/fd")?;
    Ok(dir.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect())
}

/// Descriptors that the lower half has not noted, in the calling thread's table, and what /proc/PID/fd shows of them.
pub fn unnoted() -> Vec<(i32, PathBuf)> {
    let link = |n: i32| Some((n, fs::read_link(format!("/proc/thread-self/fd/{n}")).ok()?));
    numbers().into_iter().flatten().filter(|n| !is_lower_fd(*n)).filter_map(link).collect()
}

/// Whether the lower half has noted this descriptor.
fn is_lower_fd(n: i32) -> bool {
    let n = n.unsigned_abs() as usize;
    let is =
        |words: &[AtomicU64; 128]| words.get(n / 64).is_some_and(|w| w.load(Relaxed) >> (n % 64) & 1 == 1);
    is(&half().lower_fds) || is(&upper().plugin_fds)
}

/// Mappings of the upper half, from a listing of `/proc/self/maps`.
pub fn regions(listing: &[u8]) -> Vec<Region> {
    maps::parse(listing)
        .filter(|m| upper().holds(m.start))
        .map(|m| Region {
            start: m.start as u64,
            end: m.end as u64,
            prot: m.prot,
            shared: m.shared,
            name: String::from_utf8_lossy(m.name).into_owned(),
            inode: m.inode,
            offset: m.offset,
            flags: 0,
        })
        .collect()
}

/// [`Region::flags`]: the memory is not there in a forked child, or is empty there (MADV_DONTFORK, MADV_WIPEONFORK).
pub(crate) const DONT_FORK: u64 = 1;
pub(crate) const WIPE_ON_FORK: u64 = 2;

/// A frozen child has not found all memory: it is to be looked for from now on.
static MISSED: AtomicBool = AtomicBool::new(false);

/// A library below kept memory of the application's from children when that was looked for.
static KEPT: AtomicBool = AtomicBool::new(false);

/// A frozen child has found memory missing.
pub(crate) fn missed() {
    MISSED.store(true, Relaxed);
}

/// Of what the application has not asked for itself, and a restart does not ask for again.
pub(crate) fn is_kept_from_children() -> bool {
    KEPT.load(Relaxed)
}

/// Libraries below advise too: libibverbs for what it registers, once UCX has called ibv_fork_init(3). (In the place of libc's madvise
/// that cannot be noted: UCX patches the function.) Looked for before anybody stands still, where a verbs device is mapped, as it is
/// where there are queue pairs. What is advised after that, the frozen child finds missing.
fn note_kept(listing: &[u8], mut all: Vec<Region>) {
    let registers = registers(listing);
    let mut advised = || {
        fs::read("/proc/self/smaps").is_ok_and(|smaps| {
            note_advice(&mut all, &smaps);
            all.iter().any(|r| r.flags != 0)
        })
    };
    let kept = registers && !copies_pinned() || (MISSED.load(Relaxed) || registers) && advised();
    KEPT.store(kept, Relaxed);
}

/// A verbs device is mapped.
fn registers(listing: &[u8]) -> bool {
    maps::parse(listing).any(|m| m.name.starts_with(b"/dev/infiniband/"))
}

/// Whether the kernel copies pages that a device may write for the child of a fork(2), as it does from 5.12 on (page_needs_cow_for_dma,
/// RDMA_NLDEV_ATTR_SYS_COPY_ON_FORK). Before, the first write after it gives the parent another page than the device has.
fn copies_pinned() -> bool {
    fs::read_to_string("/proc/sys/kernel/osrelease").is_ok_and(|release| version(&release) >= Some((5, 12)))
}

/// Of "6.1.0-13-amd64" the first two numbers.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// Notes what a forked child does not see as it is, from a listing of `/proc/self/smaps`.
fn note_advice(regions: &mut [Region], smaps: &[u8]) {
    let mut at = None;
    for line in smaps.split(|c| *c == b'\n') {
        if let Some(flags) = line.strip_prefix(b"VmFlags:") {
            let has = |flag: &[u8]| flags.split(|c| *c == b' ').any(|f| f == flag);
            let flags = (u64::from(has(b"dc")) * DONT_FORK) | (u64::from(has(b"wf")) * WIPE_ON_FORK);
            let Some((start, end)) = at.take().filter(|_| flags != 0) else { continue };
            for r in regions.iter_mut().filter(|r| r.start < end && start < r.end) {
                r.flags |= flags;
            }
        } else if let Some(m) = maps::parse_line(line) {
            at = Some((m.start as u64, m.end as u64));
        }
    }
}

/// Devices that are the same whoever opens them, and when: opening them again is putting them back.
const PLAIN_DEVICES: [&str; 6] =
    ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"];

/// `copy`: with what waits in sockets.
fn fds(streams: &Streams, copy: bool, reasons: &mut Vec<String>) -> Vec<Fd> {
    let mut out: Vec<Fd> = Vec::new();
    let own_proc = format!("/proc/{}/", getpid());
    let node = tcp::node();
    let Ok(mut numbers) = numbers() else {
        reasons.push("/proc/thread-self/fd cannot be read".into());
        return out;
    };
    numbers.retain(|n| !is_lower_fd(*n));
    numbers.sort_unstable();
    for num in numbers {
        let link = format!("/proc/thread-self/fd/{num}");
        // The descriptor of the listing itself is closed by now.
        let (Ok(path), Ok(meta)) = (fs::read_link(&link), fs::metadata(&link)) else { continue };
        let Some((offset, flags)) = info(num) else { continue };
        let kind = meta.file_type();
        let bytes = path.as_os_str().as_bytes().to_vec();
        // /dev/null as a standard stream stays what it is; a pipe or terminal is the launcher's.
        let std =
            if num < 3 && streams.has(num, &meta) { u8::try_from(num).ok() } else { streams.standard(&meta) };
        let plain = kind.is_file() || kind.is_dir() || path == Path::new("/dev/null");
        let what = if let (Some(k), false) = (std, plain) {
            FdKind::Std(k)
        } else if !plain && streams.has(num, &meta) {
            continue;
        } else if bytes.ends_with(b" (deleted)") {
            reasons.push(format!("descriptor {num} is a file that has been deleted: {}", path.display()));
            continue;
        } else if let Some(rest) = bytes.strip_prefix(own_proc.as_bytes()) {
            if rest.starts_with(b"task/") {
                reasons.push(format!("descriptor {num} is of one thread, below /proc: {}", path.display()));
                continue;
            }
            // The process has another number after a restart.
            FdKind::Dev { path: [b"/proc/self/", rest].concat() }
        } else if kind.is_file() {
            FdKind::File { path: bytes, len: meta.len(), dev: meta.dev(), ino: meta.ino() }
        } else if kind.is_dir() {
            FdKind::Dir { path: bytes }
        } else if kind.is_char_device() && PLAIN_DEVICES.iter().any(|d| path == Path::new(d)) {
            FdKind::Dev { path: bytes }
        } else if let Some(tcp) = kind.is_socket().then(|| tcp::look(num, &node)).flatten() {
            let connected = |t: &Tcp| matches!(t.phase, Phase::Connected { .. } | Phase::Left { .. });
            let whole = tcp.and_then(|t| match copy && connected(&t) {
                true => tcp::waiting(num).map(|waiting| Tcp { waiting, ..t }),
                false => Ok(t),
            });
            match whole {
                Ok(_) if flags & libc::O_ASYNC != 0 => {
                    reasons.push(format!("descriptor {num} is a TCP socket that sends signals (O_ASYNC)"));
                    continue;
                }
                Ok(t) => FdKind::Tcp(t),
                Err(why) => {
                    reasons.push(format!("descriptor {num} is {why}"));
                    continue;
                }
            }
        } else {
            let what = if kind.is_socket() {
                "a socket"
            } else if kind.is_fifo() {
                "a pipe"
            } else if path.starts_with("/dev/pts") || path == Path::new("/dev/ptmx") {
                "a terminal"
            } else if kind.is_char_device() || kind.is_block_device() {
                "a device"
            } else {
                "of a kind"
            };
            reasons.push(format!("descriptor {num} is {what} that cannot be saved yet: {}", path.display()));
            continue;
        };
        out.push(Fd {
            num,
            flags: flags & !libc::O_CLOEXEC,
            cloexec: flags & libc::O_CLOEXEC != 0,
            offset,
            same_as: same_as(num, &out),
            kind: what,
        });
    }
    out
}

/// Offset and flags of a descriptor of the process, whatever table of descriptors this thread has (proc_pid_fdinfo(5)).
fn info(num: i32) -> Option<(u64, i32)> {
    let text = fs::read_to_string(format!("/proc/thread-self/fdinfo/{num}")).ok()?;
    let field = |key| text.lines().find_map(|l| l.strip_prefix(key)).map(str::trim);
    Some((field("pos:")?.parse().ok()?, i32::from_str_radix(field("flags:")?, 8).ok()?))
}

/// The lowest earlier descriptor that shares `num`'s open file description: kcmp(2) says so.
fn same_as(num: i32, earlier: &[Fd]) -> i32 {
    const KCMP: libc::c_long = 312;
    let pid = getpid();
    earlier
        .iter()
        // SAFETY: KCMP_FILE (0) only compares.
        .find(|e| unsafe { libc::syscall(KCMP, pid, pid, 0, e.num, num) } == 0)
        .map_or(num, |e| e.num)
}

/// The TCP connections of this process: each with its number, or the lowest of several. While threads stand still.
///
/// # Errors
/// What cannot be saved.
pub fn connections(streams: &Streams) -> Result<Vec<(i32, Tcp)>, String> {
    let mut reasons = Vec::new();
    let all = fds(streams, false, &mut reasons);
    if let Some(why) = reasons.into_iter().next() {
        return Err(why);
    }
    for f in all.iter().filter(|f| matches!(f.kind, FdKind::Tcp(_))) {
        tcp::reuse(f.num);
    }
    let own = all.into_iter().filter(|f| f.same_as == f.num);
    let one = |f: Fd| match f.kind {
        FdKind::Tcp(t) if matches!(t.phase, Phase::Connected { .. }) => Some((f.num, t)),
        _ => None,
    };
    Ok(own.filter_map(one).collect())
}

/// Why this process cannot be saved now; empty if it can. Looks only, so it may run while the application does.
pub fn reasons(streams: &Streams) -> Vec<String> {
    apart(|| look(streams))
        .unwrap_or_else(|| vec!["the process cannot be looked at: no thread can be made".to_string()])
}

/// On a thread with a table of descriptors of its own: the application counts on getting the lowest free number, and must not
/// find one of ours there. It has the descriptors of the moment in which it began. `None`: no thread can be made.
pub fn apart<T: Send>(f: impl FnOnce() -> T + Send) -> Option<T> {
    std::thread::scope(|s| {
        let thread = std::thread::Builder::new().stack_size(256 << 10).spawn_scoped(s, || {
            go_apart();
            f()
        });
        thread.ok()?.join().ok()
    })
}

thread_local! {
    static APART: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Gives the calling thread a table of descriptors of its own, so that what it opens has no number in the application's.
/// For a thread that lives briefly: its copies keep the application's files open.
pub fn go_apart() {
    // SAFETY: CLONE_FILES: only this thread is concerned.
    if unsafe { libc::unshare(libc::CLONE_FILES) } == 0 {
        APART.set(true);
    }
}

/// The same for a thread that lives long: with an empty table, so that no file of the application's is kept open by it. Numbers
/// 0 to 2 lead nowhere.
pub fn go_apart_bare() {
    const UNSHARE: libc::c_uint = 2;
    // SAFETY: CLOSE_RANGE_UNSHARE: only this thread's table, from now on its own, is concerned.
    if unsafe { libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, UNSHARE) } == 0 {
        APART.set(true);
    } else {
        // Before Linux 5.9.
        go_apart();
        for n in numbers().into_iter().flatten().filter(|_| is_apart()) {
            // SAFETY: as above.
            unsafe { libc::close(n) };
        }
    }
    for _ in 0..3 {
        // SAFETY: a terminated path.
        unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    }
}

/// For a thread that was made by one that is apart: it shares that one's table.
pub fn is_born_apart() {
    APART.set(true);
}

/// True on a thread that has a table of its own.
pub fn is_apart() -> bool {
    APART.get()
}

fn look(streams: &Streams) -> Vec<String> {
    let mut r = Vec::new();
    if upper().forbidden.load(Relaxed) != 0 {
        r.push("the application forbids checkpoints at the moment".into());
    }
    for c in children() {
        let name = text(&format!("/proc/{c}/comm"));
        r.push(format!("child process {c} ({name}) is alive, or has not been waited for"));
    }
    if let Ok(text) = fs::read("/proc/self/maps") {
        let all = regions(&text);
        r.extend(shared(&all));
        note_kept(&text, all);
    }
    if !text("/proc/self/timers").is_empty() {
        r.push("a POSIX timer (timer_create) exists".into());
    }
    fds(streams, false, &mut r);
    r
}

/// Children of the application: those of any thread, but for our own frozen ones.
fn children() -> Vec<i32> {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    tasks
        .filter_map(|t| fs::read_to_string(t.path().join("children")).ok())
        .flat_map(|c| c.split_whitespace().filter_map(|n| n.parse().ok()).collect::<Vec<i32>>())
        .filter(|c| !crate::write::is_frozen(*c))
        .collect()
}

/// Memory that other processes, or other mappings of this one, may see change. Shared anonymous memory that is mapped
/// once is nobody else's: all children are gone.
fn shared(regions: &[Region]) -> Vec<String> {
    let mut r = Vec::new();
    for (k, m) in regions.iter().enumerate().filter(|(_, m)| m.shared) {
        if !is_shared_anonymous(m) {
            if m.prot & 2 != 0 {
                let what = if m.name.starts_with("/SYSV") { "System V segment " } else { "" };
                r.push(format!("memory at {:#x} is shared and writable: {what}{}", m.start, m.name));
            }
            continue;
        }
        let len = |m: &Region| m.end - m.start;
        let twice = regions.iter().skip(k + 1).any(|o| {
            (o.shared, o.inode) == (true, m.inode)
                && o.offset < m.offset + len(m)
                && m.offset < o.offset + len(o)
        });
        if twice {
            r.push(format!("shared memory at {:#x} is mapped twice", m.start));
        }
    }
    r
}

/// MAP_SHARED | MAP_ANONYMOUS, as /proc/self/maps shows it.
pub(crate) fn is_shared_anonymous(m: &Region) -> bool {
    m.shared && m.name == "/dev/zero (deleted)"
}

/// Facts of this processor that an image depends on.
pub fn cpu() -> Cpu {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    let (l0, l1, l7) = (__cpuid(0), __cpuid(1), __cpuid_count(7, 0));
    let vendor = [l0.ebx, l0.edx, l0.ecx].map(u32::to_le_bytes).concat();
    let osxsave = l1.ecx >> 27 & 1 == 1;
    let xsave = __cpuid_count(13, 0).ebx;
    Cpu {
        vendor: String::from_utf8_lossy(&vendor).into_owned(),
        family: l1.eax >> 8 & 0xf,
        features: vec![l1.ecx, l1.edx, l7.ebx, l7.ecx, l7.edx],
        xcr0: if osxsave { arch::xcr0() } else { 3 },
        xsave_size: xsave,
    }
}

/// Changes whenever the machine boots; a time namespace of its own counts as another boot.
pub(crate) fn boot_id() -> String {
    let offset = text("/proc/self/timens_offsets");
    let own =
        offset.lines().any(|l| l.starts_with("monotonic") && l.split_whitespace().skip(1).any(|w| w != "0"));
    let id = text("/proc/sys/kernel/random/boot_id");
    if own { format!("{id} {offset}") } else { id }
}

fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_string()
}

/// Everything about the process except the contents of its memory.
///
/// # Errors
/// The reasons why it cannot be saved.
pub fn describe(streams: &Streams) -> Result<Meta, Vec<String>> {
    let mut reasons = Vec::new();
    if upper().forbidden.load(Relaxed) != 0 {
        // Since it was asked; now it stands still.
        reasons.push("the application forbids checkpoints at the moment".into());
    }
    let fds = fds(streams, true, &mut reasons);
    reasons.extend(children().iter().map(|c| format!("child process {c} has come to life")));
    if !reasons.is_empty() {
        return Err(reasons);
    }
    let u = upper();
    let listing =
        fs::read("/proc/self/maps").map_err(|e| vec![format!("cannot read /proc/self/maps: {e}")])?;
    if registers(&listing) && !copies_pinned() {
        // Also one that was opened since it was looked for.
        KEPT.store(true, Relaxed);
    }
    let threads = crate::pause::threads()
        .map(|t| {
            let tid = t.tid.load(Relaxed);
            let mut affinity = vec![0u8; 128];
            // SAFETY: writes at most the length given.
            let n = unsafe { sys!(nr::SCHED_GETAFFINITY, tid, affinity.len(), affinity.as_mut_ptr()) };
            affinity.truncate(usize::try_from(n).unwrap_or(0));
            Thread {
                fs: t.fs.load(Relaxed),
                vtid: t.vtid.load(Relaxed),
                ucontext: t.ucontext.load(Relaxed),
                robust_head: t.robust_head.load(Relaxed),
                robust_len: t.robust_len.load(Relaxed),
                rseq_addr: t.rseq_addr.load(Relaxed),
                rseq_len_sig: t.rseq_len_sig.load(Relaxed),
                clear_tid: t.clear_tid.load(Relaxed),
                alt_sp: t.alt_sp.load(Relaxed),
                alt_size_flags: t.alt_size_flags.load(Relaxed),
                name: text(&format!("/proc/self/task/{tid}/comm")),
                affinity,
                pending: crate::pending::of_thread(tid),
            }
        })
        .collect();
    let mut itimers = [(0u64, 0u64); 3];
    for (k, t) in itimers.iter_mut().enumerate() {
        let mut v = [0u64; 4];
        // SAFETY: writes a struct itimerval (interval, value).
        unsafe { sys!(nr::GETITIMER, k, v.as_mut_ptr()) };
        *t = (v[2] * 1_000_000 + v[3], v[0] * 1_000_000 + v[1]);
    }
    // SAFETY: umask sets and returns; put back at once, while every thread that could create files stands still.
    let umask = unsafe {
        let m = libc::umask(0o077);
        libc::umask(m);
        m
    };
    let mut regions = regions(&listing);
    if u.fork_advised.load(Relaxed) != 0 {
        let smaps = fs::read("/proc/self/smaps");
        note_advice(&mut regions, &smaps.map_err(|e| vec![format!("/proc/self/smaps cannot be read: {e}")])?);
    }
    let realtime = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Ok(Meta {
        process: Process {
            exe: u.exe().to_vec(),
            argv: Vec::new(),
            envp: Vec::new(),
            cwd: std::env::current_dir().map(|d| d.as_os_str().as_bytes().to_vec()).unwrap_or_default(),
            umask,
            vpid: u.vpid.load(Relaxed),
            host: text("/proc/sys/kernel/hostname"),
            boot_id: boot_id(),
            kernel: text("/proc/sys/kernel/osrelease"),
            monotonic_ns: monotonic_ns().wrapping_add(u.clock_shift.load(Relaxed)),
            realtime_ns: u64::try_from(realtime.as_nanos()).unwrap_or(0),
            cpu: cpu(),
            mpi: Mpi {
                state: u.mpi_state.load(Relaxed),
                level: u.mpi_level.load(Relaxed),
                family: String::new(),
            },
            generation: u.generation.load(Relaxed),
        },
        regions,
        threads,
        signals: Signals { pending: crate::pending::of_process(), itimers },
        fds,
    })
}

/// True if `path` still names the file that was open at the checkpoint.
pub fn same_file(path: &Path, dev: u64, ino: u64) -> bool {
    fs::metadata(path).is_ok_and(|m| (m.dev(), m.ino()) == (dev, ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_told_apart_by_their_first_two_numbers() {
        assert_eq!(version("6.1.0-13-amd64\n"), Some((6, 1)));
        assert_eq!(version("5.4"), Some((5, 4)));
        assert_eq!(version("next"), None);
        assert!(version("4.18.0-553.el8_10.x86_64") < Some((5, 12)) && version("5.12-rc1") >= Some((5, 12)));
    }
}
