//! Writes the image. *Frozen child* of the control thread (forked), or the control thread itself (direct). In the child
//! nothing may allocate or lock: all memory comes from [`Room`], made before the fork, and every call is a raw one.
#![allow(unsafe_code, reason = "forks, and writes memory that no Rust reference describes")]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::AtomicI32;
use std::sync::atomic::Ordering::Relaxed;
use stillpoint_abi::ids::Incarnation;
use stillpoint_image::{Header, IndexBuf, Meta, PAGE, Region, Run, RunTable, Seal, encode_meta, frames};
use stillpoint_sys::raw::nr;
use stillpoint_sys::sys;

/// Process ids of frozen children that have not been reaped.
static FROZEN: [AtomicI32; 8] = [const { AtomicI32::new(0) }; 8];

/// True for a frozen child of ours.
pub(crate) fn is_frozen(pid: i32) -> bool {
    FROZEN.iter().any(|f| f.load(Relaxed) == pid)
}

/// Held while one is reaped or killed: a process id is another's once it has been reaped.
static REAPING: Mutex<()> = Mutex::new(());

/// Ends a frozen child that is still there: nobody wants its image. [`Snapshot::finish`] reaps it.
pub fn end_frozen(pid: i32) {
    let _reaping = REAPING.lock();
    end(pid);
}

/// With [`REAPING`] held.
fn end(pid: i32) {
    // 0 stands for a free place in the list, and for a whole group in kill(2).
    if pid > 0 && is_frozen(pid) {
        // SAFETY: SIGKILL to a child that has not been reaped.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
}

/// Ends and reaps all frozen children, or gives up after five seconds: who waits for a disk does not end before that has answered.
/// For a process that becomes another program: that one would find them among its children, know nothing of them, and even be sent a
/// SIGCHLD when they end (do_notify_parent in kernel/signal.c).
pub fn end_all_frozen() {
    for frozen in &FROZEN {
        for _ in 0..5000 {
            let reaping = REAPING.lock();
            let pid = frozen.load(Relaxed);
            if pid <= 0 {
                break;
            }
            end(pid);
            // SAFETY: waits for a child of ours; __WCLONE because it has no exit signal.
            if unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG | libc::__WCLONE) } != 0 {
                replace_frozen(pid, 0);
            }
            drop(reaping);
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}

fn reap(pid: i32) {
    // SAFETY: a siginfo_t of zeros is one, and is written to; WNOWAIT leaves the child to be reaped. __WCLONE because it has
    // no exit signal.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let how = libc::WEXITED | libc::WNOWAIT | libc::__WCLONE;
        while libc::waitid(libc::P_PID, pid.unsigned_abs(), &raw mut info, how) < 0
            && std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted
        {}
    }
    let _reaping = REAPING.lock();
    // SAFETY: reaps the child, which has ended; another thread may have been here first.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::__WCLONE) };
    replace_frozen(pid, 0);
}

fn replace_frozen(old: i32, new: i32) {
    let _ = FROZEN.iter().find(|f| f.compare_exchange(old, new, Relaxed, Relaxed).is_ok());
}

/// How an image is to be written.
#[derive(Debug)]
pub struct Order<'a> {
    /// The file, which must not exist.
    pub path: &'a Path,
    /// Checkpoint, rank, seed.
    pub seal: Seal,
    /// Ranks of the job.
    pub size: u32,
    /// Incarnation of the run.
    pub incarnation: Incarnation,
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Written {
    /// 0, or the errno of what failed.
    pub errno: u64,
    /// Which step failed (see [`STEPS`]).
    pub step: u64,
    /// Bytes of memory in the image.
    pub bytes: u64,
    /// Length of the file.
    pub file_len: u64,
    /// [`Header::identity`].
    pub digest: [u8; 16],
}

/// Names of [`Written::step`].
pub const STEPS: [&str; 7] = [
    "list the pages",
    "write memory",
    "write the sections",
    "make the image durable",
    "fork",
    "list more than 4194304 separate stretches of memory",
    "see all memory in the frozen child (a library below keeps some from children, MADV_DONTFORK; the next image is written directly)",
];
const MANY: usize = 5;
const UNSEEN: usize = 6;

/// Memory for the writer, made before the fork and given back by its drop.
struct Room {
    at: usize,
}

const RUNS: usize = 1 << 22;
const INDEX: usize = 512 << 20;
const VEC: usize = 4096;
const ROOM: usize = RUNS * size_of::<Run>() + INDEX + VEC * size_of::<PageRegion>();

impl Room {
    fn new() -> std::io::Result<Room> {
        // SAFETY: fresh memory without commit.
        let r = unsafe { sys!(nr::MMAP, 0, ROOM, 3, 0x4022, usize::MAX, 0) };
        if r < 0 {
            Err(std::io::Error::from_raw_os_error(-r as i32))
        } else {
            Ok(Room { at: r.unsigned_abs() })
        }
    }

    fn slice<T>(&self, offset: usize, n: usize) -> &'static mut [T] {
        // SAFETY: three disjoint parts of the mapping, zero-filled, of plain data; used once each, before the drop.
        unsafe {
            std::slice::from_raw_parts_mut(std::ptr::with_exposed_provenance_mut::<T>(self.at + offset), n)
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // SAFETY: unmaps what `new` mapped.
        unsafe { sys!(nr::MUNMAP, self.at, ROOM) };
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// The argument of PAGEMAP_SCAN (include/uapi/linux/fs.h, Linux 6.7).
#[repr(C)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const PAGEMAP_SCAN: usize = 0xc060_6610;
const PRESENT_OR_SWAPPED: u64 = 1 << 3 | 1 << 4;

fn is_zero(page: usize) -> bool {
    // SAFETY: a mapped, readable page of the upper half, which stands still.
    let words = unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance::<u64>(page), 512) };
    words.iter().all(|w| *w == 0)
}

/// So many pages ahead are fetched while others are looked at: each first word is in no cache, nor its page in the TLB.
const AHEAD: u64 = 16 * PAGE;

fn fetch(at: u64) {
    let there = std::ptr::with_exposed_provenance::<i8>(at as usize);
    // SAFETY: a hint, without effect where nothing is mapped (PREFETCHh in the Intel SDM, volume 2).
    unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(there) };
}

type Step<T> = Result<T, (usize, isize)>;

fn list_pages(
    pagemap: i32,
    regions: &[Region],
    vec: &mut [PageRegion],
    table: &mut RunTable<'_>,
) -> Step<()> {
    for r in regions {
        let mut at = r.start;
        while at < r.end {
            let mut arg = ScanArg {
                size: size_of::<ScanArg>() as u64,
                flags: 0,
                start: at,
                end: r.end,
                walk_end: 0,
                vec: vec.as_mut_ptr().expose_provenance() as u64,
                vec_len: vec.len() as u64,
                max_pages: 0,
                category_inverted: 0,
                category_mask: 0,
                category_anyof_mask: PRESENT_OR_SWAPPED,
                return_mask: PRESENT_OR_SWAPPED,
            };
            // SAFETY: fills `vec`, and `walk_end`, which nobody reads.
            let n = unsafe { sys!(nr::IOCTL, pagemap, PAGEMAP_SCAN, &raw mut arg) };
            // File pages may be dropped from memory at any time: private file mappings are written whole.
            let whole = [PageRegion { start: at, end: r.end, categories: 0 }];
            let (found, next) = if n < 0 || r.inode != 0 {
                (&whole[..], r.end)
            } else {
                // `walk_end` is of no use: past 512 stretches the kernel has told more than it says there (Linux 6.18). It
                // has come to the end unless `vec` is full.
                let found = &vec[..n.unsigned_abs()];
                let last = found.last().filter(|_| found.len() == vec.len());
                (found, last.map_or(r.end, |l| l.end))
            };
            let mut keep = |from: u64, pages: u64| -> Step<()> {
                let (mut at, end) = (from, from + pages * PAGE);
                while let Some((start, until)) = crate::excluded::next_saved(at, end) {
                    for p in (start..until).step_by(PAGE as usize) {
                        fetch(p + AHEAD);
                        if !is_zero(p as usize) {
                            table.push(p, 1).map_err(|_| (MANY, 12))?;
                        }
                    }
                    at = until;
                }
                Ok(())
            };
            for f in found {
                if r.inode == 0 {
                    keep(f.start, (f.end - f.start) / PAGE)?;
                    continue;
                }
                let mut p = f.start;
                while p < f.end {
                    let (pages, next) = readable(p, f.end);
                    keep(p, pages)?;
                    p = next;
                }
            }
            at = next;
        }
    }
    Ok(())
}

/// Pages that are looked at with one call.
const LOOK: usize = 512;

/// How many pages from `start` on can be read, and where to go on: file mappings fault beyond the end of their file. (Guard
/// pages of MADV_GUARD_INSTALL in anonymous memory are not present, so the scan leaves them out.) Asks the kernel to read a
/// word of each page for us.
fn readable(start: u64, end: u64) -> (u64, u64) {
    let mut words = [0u64; LOOK];
    let n = usize::try_from((end - start) / PAGE).unwrap_or(LOOK).min(LOOK);
    let mut remote = [[0u64; 2]; LOOK];
    for (k, r) in remote.iter_mut().enumerate().take(n) {
        *r = [start + k as u64 * PAGE, 8];
    }
    let local = [words.as_mut_ptr().expose_provenance() as u64, 8 * n as u64];
    let me = stillpoint_sys::raw::getpid();
    // SAFETY: copies at most 8 bytes a page to `words`; stops at the first page that it cannot read.
    let got = unsafe { sys!(nr::PROCESS_VM_READV, me, local.as_ptr(), 1, remote.as_ptr(), n, 0) };
    let pages = got.max(0).unsigned_abs() as u64 / 8;
    let next = if pages == n as u64 { pages } else { pages + 1 };
    (pages, start + next * PAGE)
}

fn put(fd: i32, mut at: usize, mut len: usize, mut off: u64) -> Result<(), isize> {
    while len > 0 {
        // SAFETY: the kernel reads our memory and answers EFAULT where it cannot.
        let n = unsafe { sys!(nr::PWRITE64, fd, at, len.min(64 << 20), off) };
        match n {
            -4 => {}
            n if n <= 0 => return Err(if n == 0 { 5 } else { -n }),
            n => {
                at += n.unsigned_abs();
                len -= n.unsigned_abs();
                off += n.unsigned_abs() as u64;
            }
        }
    }
    Ok(())
}

struct Job<'a> {
    fd: i32,
    pagemap: i32,
    order: &'a Order<'a>,
    regions: &'a [Region],
    meta: &'a [u8],
    meta_sum: u128,
    room: &'a Room,
}

/// In this process, which goes on: memory that cannot be read is so again afterwards, also where that fails.
fn write_directly(j: &Job<'_>) -> Step<Written> {
    let result = write_all(j);
    for r in j.regions.iter().filter(|r| r.prot & 1 == 0) {
        // SAFETY: as it was.
        unsafe { sys!(nr::MPROTECT, r.start, r.end - r.start, r.prot) };
    }
    result
}

/// In a forked child: it must have all regions.
fn sees_all(regions: &[Region]) -> Step<()> {
    const MS_ASYNC: usize = 1;
    for r in regions {
        // SAFETY: does nothing but look whether all of it is mapped (msync(2), ENOMEM).
        let n = unsafe { sys!(nr::MSYNC, r.start, r.end - r.start, MS_ASYNC) };
        if n < 0 {
            return Err((UNSEEN, -n));
        }
    }
    Ok(())
}

/// What is written at a time, and summed up behind that: then it lies in the cache, where the write has brought it.
const PIECE: usize = 128 << 10;

fn write_all(j: &Job<'_>) -> Step<Written> {
    for r in j.regions.iter().filter(|r| r.prot & 1 == 0) {
        // SAFETY: readable for the time of writing.
        unsafe { sys!(nr::MPROTECT, r.start, r.end - r.start, r.prot | 1) };
    }
    let runs = j.room.slice::<Run>(0, RUNS);
    let index = j.room.slice::<u8>(RUNS * size_of::<Run>(), INDEX);
    let vec = j.room.slice::<PageRegion>(RUNS * size_of::<Run>() + INDEX, VEC);
    let mut table = RunTable::new(runs);
    list_pages(j.pagemap, j.regions, vec, &mut table)?;
    let layout = table.layout(j.meta.len() as u64);
    let mut sums = IndexBuf::new(index, &table).map_err(|_| (MANY, 12))?;
    for f in frames(table.runs()) {
        // SAFETY: pages found readable above, in memory that stands still.
        let bytes = unsafe {
            std::slice::from_raw_parts(std::ptr::with_exposed_provenance::<u8>(f.addr as usize), f.len)
        };
        let (mut sum, mut off) = (j.order.seal.frame_summer(f.no), f.file_offset);
        for piece in bytes.chunks(PIECE) {
            put(j.fd, piece.as_ptr().expose_provenance(), piece.len(), off).map_err(|e| (1, e))?;
            off += piece.len() as u64;
            sum.add(piece);
        }
        sums.set(f.no, sum.sum());
    }
    let (index, index_sum) = sums.finish(&j.order.seal);
    let section = |b: &[u8], off| put(j.fd, b.as_ptr().expose_provenance(), b.len(), off).map_err(|e| (2, e));
    section(j.meta, layout.meta_off)?;
    section(index, layout.index_off)?;
    let sync = || {
        // SAFETY: flushes our own file.
        let r = unsafe { sys!(nr::FSYNC, j.fd) };
        if r < 0 { Err((3, -r)) } else { Ok(()) }
    };
    sync()?;
    let header = Header {
        seal: j.order.seal,
        size: j.order.size,
        incarnation: j.order.incarnation,
        layout,
        meta_sum: j.meta_sum,
        index_sum,
    };
    let mut page = [0u8; PAGE as usize];
    header.encode(&mut page);
    section(&page, 0)?;
    sync()?;
    Ok(Written {
        errno: 0,
        step: 0,
        bytes: table.pages() * PAGE,
        file_len: layout.file_len,
        digest: header.identity().to_le_bytes(),
    })
}

fn outcome(s: Step<Written>) -> Written {
    s.unwrap_or_else(|(step, e)| Written {
        errno: e.unsigned_abs() as u64,
        step: step as u64,
        ..Written::default()
    })
}

/// A snapshot that has been taken; its image is being written or is written.
#[derive(Debug)]
pub enum Snapshot {
    /// A frozen child writes; the report comes on this pipe.
    Child {
        /// Its process id.
        pid: i32,
        /// Where it reports.
        report: OwnedFd,
    },
    /// Written already, directly.
    Done(Written),
}

/// Takes the snapshot while every upper thread stands still.
///
/// # Errors
/// What failed before anything was written.
pub fn snapshot(order: &Order<'_>, meta: &Meta, direct: bool) -> Result<Snapshot, String> {
    // Shared memory is not copied on write: a frozen child would see the application go on. And other memory is not there at all
    // (INV-7).
    let unseen = |r: &Region| crate::gather::is_shared_anonymous(r) || r.flags != 0;
    let direct = direct || crate::gather::is_kept_from_children() || meta.regions.iter().any(unseen);
    let direct = crate::room::check(order.path, &meta.regions, direct)?;
    let (bytes, meta_sum) = encode_meta(meta, &order.seal).map_err(|e| e.to_string())?;
    let room = Room::new().map_err(|e| format!("no memory for the writer: {e}"))?;
    let open = |p: &Path, create: bool| -> Result<OwnedFd, String> {
        use std::os::unix::fs::OpenOptionsExt;
        let mut o = std::fs::OpenOptions::new();
        o.read(true).custom_flags(libc::O_CLOEXEC);
        if create {
            o.write(true).create_new(true).mode(0o600).custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW);
        }
        o.open(p).map(OwnedFd::from).map_err(|e| format!("cannot open {}: {e}", p.display()))
    };
    let file = open(order.path, true)?;
    let pagemap = open(Path::new("/proc/self/pagemap"), false)?;
    let job = Job {
        fd: file.as_raw_fd(),
        pagemap: pagemap.as_raw_fd(),
        order,
        regions: &meta.regions,
        meta: &bytes,
        meta_sum,
        room: &room,
    };
    if direct {
        return Ok(Snapshot::Done(outcome(write_directly(&job))));
    }
    let mut pipe = [0i32; 2];
    // SAFETY: makes two descriptors.
    if unsafe { libc::pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC) } < 0 {
        return Err(format!("cannot make a pipe: {}", std::io::Error::last_os_error()));
    }
    // The application runs on while this end is open: its own numbers stay free. Where there is none so high, it stays low.
    // SAFETY: a copy with a high number, and the end of the low one.
    unsafe {
        let high = libc::fcntl(pipe[0], libc::F_DUPFD_CLOEXEC, 700);
        if high >= 0 {
            libc::close(pipe[0]);
            pipe[0] = high;
        }
    }
    // SAFETY: just made, owned by nobody else.
    let (report, tell) = unsafe { (OwnedFd::from_raw_fd(pipe[0]), OwnedFd::from_raw_fd(pipe[1])) };
    let me = stillpoint_sys::raw::getpid();
    // SAFETY: fork without an exit signal, so that the application's wait does not see the child. The child makes raw
    // calls only, in memory made above, and ends by exit_group.
    let pid = unsafe { sys!(nr::CLONE, 0, 0) };
    if pid == 0 {
        // pagemap must be the child's own: /proc/self was resolved in the parent.
        // SAFETY: raw calls on constants and on descriptors of this process.
        unsafe {
            let own = sys!(nr::OPEN, c"/proc/self/pagemap".as_ptr(), 0);
            let adj = sys!(nr::OPEN, c"/proc/self/oom_score_adj".as_ptr(), 1);
            sys!(nr::WRITE, adj, b"1000".as_ptr(), 4);
            // Nothing of the application's may stay open here: a pipe would never see its end, nor a port be free again.
            let mut keep = [job.fd, own as i32, tell.as_raw_fd()];
            keep.sort_unstable();
            let mut from = 0;
            for k in keep {
                if k > from {
                    sys!(nr::CLOSE_RANGE, from, k - 1, 0);
                }
                from = k + 1;
            }
            sys!(nr::CLOSE_RANGE, from, u32::MAX, 0);
            // Where there are not more processors than ranks, the application is let go first: 5 ms.
            let pause = [0u64, 5_000_000];
            sys!(nr::NANOSLEEP, pause.as_ptr(), 0);
            // If the parent dies the image is worthless; PR_SET_PDEATHSIG, SIGKILL.
            sys!(nr::PRCTL, 1, 9);
            let w = if me > 0 {
                outcome(sees_all(job.regions).and_then(|()| write_all(&Job { pagemap: own as i32, ..job })))
            } else {
                Written::default()
            };
            sys!(nr::WRITE, tell.as_raw_fd(), &raw const w, size_of::<Written>());
            sys!(nr::EXIT_GROUP, 0);
        }
        std::process::abort();
    }
    if pid < 0 {
        return Err(format!("cannot fork: {}", std::io::Error::from_raw_os_error(-pid as i32)));
    }
    replace_frozen(0, pid as i32);
    Ok(Snapshot::Child { pid: pid as i32, report })
}

impl Snapshot {
    /// Waits until the image is durable or has failed.
    ///
    /// # Errors
    /// Which step failed, and why.
    pub fn finish(self) -> Result<Written, String> {
        let w = match self {
            Snapshot::Done(w) => w,
            Snapshot::Child { pid, report } => {
                use std::io::Read;
                let mut b = [0u8; size_of::<Written>()];
                let got = std::fs::File::from(report).read_exact(&mut b);
                reap(pid);
                got.map_err(|_| "the frozen child died before the image was written".to_string())?;
                let word = |k: usize| b[k..k + 8].try_into().map_or(0, u64::from_le_bytes);
                let mut digest = [0; 16];
                digest.copy_from_slice(&b[32..48]);
                Written { errno: word(0), step: word(8), bytes: word(16), file_len: word(24), digest }
            }
        };
        if w.errno == 0 {
            return Ok(w);
        }
        if w.step == UNSEEN as u64 {
            // The next image is not made by a child.
            crate::gather::missed();
        }
        let what = STEPS.get(w.step as usize).copied().unwrap_or("write");
        Err(format!("cannot {what}: {}", std::io::Error::from_raw_os_error(w.errno as i32)))
    }
}
