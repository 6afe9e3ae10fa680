//! System calls by number, and errors as negative numbers, exactly as the kernel gives them.
#![allow(unsafe_code, reason = "the syscall instruction")]
#![allow(missing_docs, reason = "syscall numbers of asm/unistd_64.h by their kernel names")]

use core::arch::asm;

/// Numbers of `asm/unistd_64.h`.
pub mod nr {
    pub const READ: usize = 0;
    pub const WRITE: usize = 1;
    pub const OPEN: usize = 2;
    pub const CLOSE: usize = 3;
    pub const POLL: usize = 7;
    pub const LSEEK: usize = 8;
    pub const MMAP: usize = 9;
    pub const MPROTECT: usize = 10;
    pub const MUNMAP: usize = 11;
    pub const BRK: usize = 12;
    pub const RT_SIGACTION: usize = 13;
    pub const RT_SIGPROCMASK: usize = 14;
    pub const RT_SIGRETURN: usize = 15;
    pub const IOCTL: usize = 16;
    pub const PREAD64: usize = 17;
    pub const PWRITE64: usize = 18;
    pub const READV: usize = 19;
    pub const WRITEV: usize = 20;
    pub const SELECT: usize = 23;
    pub const SCHED_YIELD: usize = 24;
    pub const MREMAP: usize = 25;
    pub const MSYNC: usize = 26;
    pub const MINCORE: usize = 27;
    pub const MADVISE: usize = 28;
    pub const SHMAT: usize = 30;
    pub const SHMCTL: usize = 31;
    pub const DUP: usize = 32;
    pub const DUP2: usize = 33;
    pub const PAUSE: usize = 34;
    pub const NANOSLEEP: usize = 35;
    pub const GETITIMER: usize = 36;
    pub const SETITIMER: usize = 38;
    pub const GETPID: usize = 39;
    pub const SOCKET: usize = 41;
    pub const CONNECT: usize = 42;
    pub const ACCEPT: usize = 43;
    pub const SENDTO: usize = 44;
    pub const GETSOCKOPT: usize = 55;
    pub const RECVFROM: usize = 45;
    pub const SENDMSG: usize = 46;
    pub const RECVMSG: usize = 47;
    pub const SOCKETPAIR: usize = 53;
    pub const CLONE: usize = 56;
    pub const FORK: usize = 57;
    pub const VFORK: usize = 58;
    pub const EXECVE: usize = 59;
    pub const EXIT: usize = 60;
    pub const WAIT4: usize = 61;
    pub const KILL: usize = 62;
    pub const SHMDT: usize = 67;
    pub const FCNTL: usize = 72;
    pub const FSYNC: usize = 74;
    pub const FTRUNCATE: usize = 77;
    pub const GETCWD: usize = 79;
    pub const CHDIR: usize = 80;
    pub const READLINK: usize = 89;
    pub const GETTIMEOFDAY: usize = 96;
    pub const GETRLIMIT: usize = 97;
    pub const GETPPID: usize = 110;
    pub const SIGALTSTACK: usize = 131;
    pub const RT_SIGPENDING: usize = 127;
    pub const RT_SIGTIMEDWAIT: usize = 128;
    pub const RT_SIGQUEUEINFO: usize = 129;
    pub const RT_SIGSUSPEND: usize = 130;
    pub const SCHED_SETPARAM: usize = 142;
    pub const SCHED_GETPARAM: usize = 143;
    pub const SCHED_SETSCHEDULER: usize = 144;
    pub const SCHED_GETSCHEDULER: usize = 145;
    pub const PRCTL: usize = 157;
    pub const ARCH_PRCTL: usize = 158;
    pub const GETTID: usize = 186;
    pub const TKILL: usize = 200;
    pub const TIME: usize = 201;
    pub const FUTEX: usize = 202;
    pub const SCHED_SETAFFINITY: usize = 203;
    pub const SCHED_GETAFFINITY: usize = 204;
    pub const SET_TID_ADDRESS: usize = 218;
    pub const TIMER_CREATE: usize = 222;
    pub const CLOCK_GETTIME: usize = 228;
    pub const CLOCK_GETRES: usize = 229;
    pub const CLOCK_NANOSLEEP: usize = 230;
    pub const EXIT_GROUP: usize = 231;
    pub const EPOLL_WAIT: usize = 232;
    pub const TGKILL: usize = 234;
    pub const OPENAT: usize = 257;
    pub const READLINKAT: usize = 267;
    pub const PSELECT6: usize = 270;
    pub const PPOLL: usize = 271;
    pub const SET_ROBUST_LIST: usize = 273;
    pub const SYNC_FILE_RANGE: usize = 277;
    pub const EPOLL_PWAIT: usize = 281;
    pub const FALLOCATE: usize = 285;
    pub const ACCEPT4: usize = 288;
    pub const SIGNALFD4: usize = 289;
    pub const CREAT: usize = 85;
    pub const EPOLL_CREATE: usize = 213;
    pub const INOTIFY_INIT: usize = 253;
    pub const SIGNALFD: usize = 282;
    pub const EVENTFD: usize = 284;
    pub const EVENTFD2: usize = 290;
    pub const EPOLL_CREATE1: usize = 291;
    pub const DUP3: usize = 292;
    pub const PIPE2: usize = 293;
    pub const INOTIFY_INIT1: usize = 294;
    pub const RT_TGSIGQUEUEINFO: usize = 297;
    pub const PRLIMIT64: usize = 302;
    pub const GETCPU: usize = 309;
    pub const MEMFD_CREATE: usize = 319;
    pub const EXECVEAT: usize = 322;
    pub const USERFAULTFD: usize = 323;
    pub const MEMBARRIER: usize = 324;
    pub const MODIFY_LDT: usize = 154;
    pub const RSEQ: usize = 334;
    pub const PIDFD_OPEN: usize = 434;
    pub const CLONE3: usize = 435;
    pub const CLOSE_RANGE: usize = 436;
    pub const EPOLL_PWAIT2: usize = 441;
    pub const TIMERFD_CREATE: usize = 283;
    pub const GETDENTS64: usize = 217;
    pub const STAT: usize = 4;
    pub const LSTAT: usize = 6;
    pub const ACCESS: usize = 21;
    pub const PIPE: usize = 22;
    pub const SEMOP: usize = 65;
    pub const MSGSND: usize = 69;
    pub const MSGRCV: usize = 70;
    pub const SETPGID: usize = 109;
    pub const GETPGID: usize = 121;
    pub const GETSID: usize = 124;
    pub const GETPRIORITY: usize = 140;
    pub const SETPRIORITY: usize = 141;
    pub const SCHED_RR_GET_INTERVAL: usize = 148;
    pub const SEMTIMEDOP: usize = 220;
    pub const IOPRIO_SET: usize = 251;
    pub const IOPRIO_GET: usize = 252;
    pub const NEWFSTATAT: usize = 262;
    pub const FACCESSAT: usize = 269;
    pub const GET_ROBUST_LIST: usize = 274;
    pub const PROCESS_VM_READV: usize = 310;
    pub const PROCESS_VM_WRITEV: usize = 311;
    pub const KCMP: usize = 312;
    pub const SCHED_SETATTR: usize = 314;
    pub const SCHED_GETATTR: usize = 315;
    pub const STATX: usize = 332;
    pub const OPENAT2: usize = 437;
    pub const FACCESSAT2: usize = 439;
}

/// `-errno` values used here.
pub mod errno {
    pub const EPERM: isize = -1;
    pub const EINTR: isize = -4;
    pub const EBADF: isize = -9;
    pub const EAGAIN: isize = -11;
    pub const ENOMEM: isize = -12;
    pub const EBUSY: isize = -16;
    pub const EEXIST: isize = -17;
    pub const EINVAL: isize = -22;
    pub const ENOSYS: isize = -38;
    pub const ENOTSOCK: isize = -88;
    pub const EISCONN: isize = -106;
}

/// Makes the system call `n`. Returns what the kernel returns: a value, or `-errno`.
///
/// # Safety
/// The arguments must be right for the call; whatever the call does to memory, threads or descriptors is the
/// caller's responsibility.
#[inline(always)]
pub unsafe fn syscall(n: usize, a: [usize; 6]) -> isize {
    let r: isize;
    // SAFETY: the caller answers for the call; the instruction itself clobbers only rcx and r11 (psABI A.2.1).
    unsafe {
        asm!("syscall", inlateout("rax") n => r, in("rdi") a[0], in("rsi") a[1], in("rdx") a[2],
             in("r10") a[3], in("r8") a[4], in("r9") a[5], lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    r
}

/// [`syscall`] with the arguments that are there, the others 0.
#[macro_export]
macro_rules! sys {
    ($n:expr $(, $a:expr)* $(,)?) => {{
        const N: usize = 0 $( + { let _ = stringify!($a); 1 } )*;
        let given: [usize; N] = [$( ($a) as usize ),*];
        let mut args = [0usize; 6];
        args[..N].copy_from_slice(&given);
        $crate::raw::syscall($n, args)
    }};
}

/// True if a page is mapped at `addr` (mincore answers ENOMEM for holes).
pub fn is_mapped(addr: usize) -> bool {
    let mut v = 0u8;
    // SAFETY: mincore writes one byte to `v` and touches nothing else.
    unsafe { sys!(nr::MINCORE, addr & !4095, 4096, &raw mut v) == 0 }
}

/// Waits while `*word == seen`; returns on a wake, a signal or a changed value.
pub fn futex_wait(word: &core::sync::atomic::AtomicU32, seen: u32) {
    // SAFETY: FUTEX_WAIT (0) reads the word, which lives as long as the reference.
    unsafe { sys!(nr::FUTEX, core::ptr::from_ref(word).expose_provenance(), 0, seen, 0) };
}

/// As [`futex_wait`], at most `ns` nanoseconds.
pub fn futex_wait_for(word: &core::sync::atomic::AtomicU32, seen: u32, ns: u64) {
    let ts = [ns / 1_000_000_000, ns % 1_000_000_000];
    // SAFETY: FUTEX_WAIT reads the word and the timespec, which both outlive the call.
    unsafe { sys!(nr::FUTEX, core::ptr::from_ref(word).expose_provenance(), 0, seen, ts.as_ptr()) };
}

/// Wakes all that wait on `word`.
pub fn futex_wake_all(word: &core::sync::atomic::AtomicU32) {
    // SAFETY: FUTEX_WAKE (1) uses the address only as a key.
    unsafe { sys!(nr::FUTEX, core::ptr::from_ref(word).expose_provenance(), 1, i32::MAX) };
}

/// The kernel's id of the calling thread.
pub fn gettid() -> i32 {
    // SAFETY: no arguments.
    unsafe { sys!(nr::GETTID) as i32 }
}

/// The kernel's id of this process.
pub fn getpid() -> i32 {
    // SAFETY: no arguments.
    unsafe { sys!(nr::GETPID) as i32 }
}

/// CLOCK_MONOTONIC in nanoseconds, by system call.
pub fn monotonic_ns() -> u64 {
    let mut ts = [0u64; 2];
    // SAFETY: writes the two words of `ts`.
    unsafe { sys!(nr::CLOCK_GETTIME, 1, ts.as_mut_ptr()) };
    ts[0] * 1_000_000_000 + ts[1]
}
