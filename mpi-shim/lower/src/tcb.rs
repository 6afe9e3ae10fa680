//! Lends lower thread control blocks to upper threads. *Lower half*; [`acquire`] is called on the upper thread pointer,
//! so it uses futexes and raw calls only.
//!
//! An upper thread borrows that of a parked lower thread, made by the factory thread; it is given back when a new borrower
//! finds the old one dead. Without segments ([`segment`]) the main thread has the one that the kernel's start gave it.
#![allow(unsafe_code, reason = "runs without TLS on the upper thread pointer")]

use crate::segment;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, AtomicUsize};
use stillpoint_abi::half::{LOW_END, LowerSlot, MAX_THREADS, ThreadRec};
use stillpoint_sys::raw::{futex_wait, futex_wake_all, getpid, gettid, nr};
use stillpoint_sys::{arch, half, sys, upper};

static MAIN_TID: AtomicI32 = AtomicI32::new(0);
static MAIN_FS: AtomicU64 = AtomicU64::new(0);
static LOCK: AtomicU32 = AtomicU32::new(0);
static WANT: AtomicU32 = AtomicU32::new(0);
static MADE: AtomicU32 = AtomicU32::new(0);

/// A control block and the upper thread (kernel id) that has it; 0: nobody.
struct Lent {
    fs: AtomicU64,
    tid: AtomicI32,
}

static POOL: [Lent; MAX_THREADS] =
    [const { Lent { fs: AtomicU64::new(0), tid: AtomicI32::new(0) } }; MAX_THREADS];

thread_local! {
    static SLOT: LowerSlot = const { LowerSlot { rec: AtomicUsize::new(0) } };
}

/// Prepares the main thread's block and starts the factory. Call with all signals blocked.
pub(crate) fn start() -> std::io::Result<()> {
    MAIN_TID.store(gettid(), Relaxed);
    MAIN_FS.store(arch::fs(), Relaxed);
    half().segments.store(u32::from(segment::pays()), Relaxed);
    std::thread::Builder::new().name("stillpoint-tcb".into()).stack_size(64 << 10).spawn(factory)?;
    Ok(())
}

/// An executable that is not position independent may be so large that it reaches where lent blocks would lie: then they do
/// without segments, and lie elsewhere. Called when its range is known, before any block is lent.
pub(crate) fn make_way() {
    if upper().exe_end.load(Relaxed) > LOW_END as u64 {
        half().segments.store(0, Relaxed);
    }
}

/// Distance from a lower thread pointer to its [`LowerSlot`]; the same for every thread, as the slot is in static TLS.
pub(crate) fn slot_offset() -> u64 {
    SLOT.with(|s| std::ptr::from_ref(s).expose_provenance() as u64).wrapping_sub(arch::fs())
}

/// Address of the record of the upper thread that runs on this lower thread pointer; 0 if it is the lower half's own.
pub(crate) fn slot() -> usize {
    SLOT.with(|s| s.rec.load(Relaxed))
}

fn factory() {
    let mut done = 0;
    loop {
        while WANT.load(Acquire) == done {
            futex_wait(&WANT, done);
        }
        done = done.wrapping_add(1);
        let low = half().segments.load(Relaxed) != 0 && segment::spawn(lent);
        let ordinary = || {
            let stack = std::thread::Builder::new().stack_size(64 << 10);
            stack.spawn(|| {
                lent(std::ptr::null_mut());
            })
        };
        if !low && ordinary().is_err() {
            MADE.fetch_add(1, Release);
            futex_wake_all(&MADE);
        }
    }
}

/// A thread that does nothing but own its control block.
extern "C" fn lent(_: *mut libc::c_void) -> *mut libc::c_void {
    if let Some(l) = POOL.iter().find(|l| l.fs.load(Relaxed) == 0) {
        l.fs.store(arch::fs(), Release);
    }
    MADE.fetch_add(1, Release);
    futex_wake_all(&MADE);
    let never = AtomicU32::new(0);
    loop {
        futex_wait(&never, 0);
    }
}

fn lend(tid: i32) -> Option<(u64, u32)> {
    (0..).zip(&POOL).filter(|(_, l)| l.fs.load(Acquire) != 0).find_map(|(i, l)| {
        let holder = l.tid.load(Relaxed);
        // SAFETY: signal 0 only asks whether the thread lives.
        let free = holder == 0 || holder == tid || unsafe { sys!(nr::TGKILL, getpid(), holder, 0) } < 0;
        free.then(|| {
            l.tid.store(tid, Relaxed);
            (l.fs.load(Relaxed), i)
        })
    })
}

/// Lends a block to the calling thread, whose record is `rec`, and notes it there.
pub(crate) extern "C" fn acquire(rec: *mut ThreadRec) -> u64 {
    // SAFETY: records lie in the upper page for ever.
    let rec = unsafe { &*rec };
    let tid = gettid();
    let segments = half().segments.load(Relaxed) != 0;
    let (fs, at) = if tid == MAIN_TID.load(Relaxed) && !segments {
        (MAIN_FS.load(Relaxed), 0)
    } else {
        while LOCK.swap(1, AcqRel) != 0 {
            futex_wait(&LOCK, 1);
        }
        let lent = loop {
            if let Some(l) = lend(tid) {
                break l;
            }
            let made = MADE.load(Acquire);
            WANT.fetch_add(1, Release);
            futex_wake_all(&WANT);
            while MADE.load(Acquire) == made {
                futex_wait(&MADE, made);
            }
        };
        LOCK.store(0, Release);
        futex_wake_all(&LOCK);
        lent
    };
    let slot = usize::try_from(fs.wrapping_add(half().slot_offset)).unwrap_or(0);
    // SAFETY: a lower thread's slot lies at this offset from its thread pointer.
    unsafe { &*std::ptr::with_exposed_provenance::<LowerSlot>(slot) }
        .rec
        .store(std::ptr::from_ref(rec).expose_provenance(), Relaxed);
    rec.lower_fs.store(fs, Relaxed);
    let (mut low, mut up) = (0, 0);
    if segments {
        low = segment::describe(2 * at, fs);
        up = segment::describe(2 * at + 1, rec.fs.load(Relaxed));
    }
    rec.lower_selector.store(low, Relaxed);
    rec.upper_selector.store(up, Relaxed);
    rec.epoch.store(half().epoch.load(Relaxed), Release);
    debug_assert!(upper().n_threads.load(Relaxed) > 0);
    fs
}
