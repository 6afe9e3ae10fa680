//! The two pages at fixed addresses through which the halves of a rank know each other.
//!
//! ```text
//!  0x0000_8000_0000  low     thread stacks and first mappings of the upper half (see `LOW_START`)
//!  0x0000_e000_0000          control blocks that the lower half lends, never in an image
//!  0x0fff_ff00_0000  Half    lower half's page: made anew at every start, never in an image
//!  0x1000_0000_0000  Upper   upper half's page: the first bytes of the window, saved like all of it
//!  0x1000_0010_0000  space   free intervals of the window (stillpoint-window)
//!  0x1000_0200_0000  hooks   the hook library, which runs upstairs without TLS and without libc
//!  0x1000_0400_0000  still   the stack on which the upper half works at the still point
//!  0x1010_0000_0000  brk     the upper half's emulated program break
//!  0x1100_0000_0000  maps    everything else that the upper half maps
//!  0x5000_0000_0000  end of the window
//! ```
//!
//! What a reader would get wrong: no pointer stored in [`Upper`] may lead out of the window (INV-3), and code of the
//! upper half must read pointers from [`Half`] at each use, because a restart changes them.

use crate::plugin::Plugins;
use core::ffi::CStr;
use core::sync::atomic::{AtomicI32, AtomicI64, AtomicU32, AtomicU64, AtomicUsize};

/// Mappings of the upper half that may hold a thread control block: below 4 GiB, so that a segment descriptor can hold the
/// address, and above what a program that is not position independent reaches.
pub const LOW_START: usize = 0x8000_0000;
/// End of them.
pub const LOW_END: usize = 0xe000_0000;
/// The control blocks that the lower half lends lie from [`LOW_END`] to here.
pub const LENT_END: usize = 0xff00_0000;
/// Address of the lower half's page.
pub const HALF_ADDR: usize = 0x0fff_ff00_0000;
/// Bytes reserved for [`Half`].
pub const HALF_LEN: usize = 0x1_0000;
/// First address of the window; [`Upper`] lies here.
pub const WINDOW_START: usize = 0x1000_0000_0000;
/// End of the window.
pub const WINDOW_END: usize = 0x5000_0000_0000;
/// Address of the upper half's page.
pub const UPPER_ADDR: usize = WINDOW_START;
/// Bytes reserved for [`Upper`].
pub const UPPER_LEN: usize = 0x10_0000;
/// The table of free intervals.
pub const SPACE_ADDR: usize = 0x1000_0010_0000;
/// Bytes reserved for the table of free intervals (without commit).
pub const SPACE_LEN: usize = 0x100_0000;
/// Where the hook library is mapped.
pub const HOOKS_ADDR: usize = 0x1000_0200_0000;
/// Where the stack of the still point begins.
pub const STILL_ADDR: usize = 0x1000_0400_0000;
/// Size of the stack of the still point.
pub const STILL_LEN: usize = 0x10_0000;
/// Start of the emulated program break.
pub const BRK_START: usize = 0x1010_0000_0000;
/// End of the emulated program break.
pub const BRK_END: usize = 0x1100_0000_0000;
/// First address handed out to mappings.
pub const MAPS_START: usize = 0x1100_0000_0000;

/// First bytes of both pages; the version changes with their layout.
pub const MAGIC: u64 = u64::from_le_bytes(*b"stillpt\x04");

/// Threads of the upper half that a rank can have.
pub const MAX_THREADS: usize = 1024;
/// Slots for functions of a back (the MPI library's, say); their meaning is the table's of that back.
pub const BACK_SLOTS: usize = 2048;
/// Functions of libraries below that plugins can call.
pub const MAX_BELOW: usize = 1024;
/// Signal that stops a thread. Applications do not see it: the hooks take it out of masks and handlers.
pub const STOP_SIGNAL: i32 = 64;

/// [`Half::flags`]: a thread that comes up from below must stop before it runs on.
pub const FLAG_STOP: u32 = 1;
/// [`Half::flags`]: collectives look at their targets before they start (settle stage).
pub const FLAG_SETTLE: u32 = 2;

/// The lower half's page. All of it is written by the lower half (except where said) and read by both.
#[repr(C)]
#[derive(Debug)]
pub struct Half {
    /// [`MAGIC`].
    pub magic: u64,
    /// 1: `wrfsbase` may be used; 0: `arch_prctl`.
    pub fsgsbase: u64,
    /// 1: thread pointers below 4 GiB are set by loading a segment register, which is faster here than `wrfsbase`.
    pub segments: AtomicU32,
    /// Targets of the fake vDSO: clock_gettime, gettimeofday, time, getcpu, clock_getres.
    pub vdso: [AtomicUsize; 8],
    /// Changes at every start; a cached lower thread pointer of another epoch is stale. Never 0.
    pub epoch: AtomicU64,
    /// `FLAG_*`. Read by upper code on every way up from below.
    pub flags: AtomicU32,
    /// Counts up whenever a thread held at a collective should look again; a futex.
    pub release: AtomicU32,
    /// Set in a child made by fork: the lower half must not be used there.
    pub child: AtomicU32,
    /// 1 once the back's functions stand in [`Half::back`].
    pub back_loaded: AtomicU32,
    /// Distance from a lower thread pointer to that thread's [`LowerSlot`].
    pub slot_offset: u64,
    /// `extern "C" fn(rec: *mut ThreadRec) -> u64`: lends a lower thread control block. Called on the upper fs.
    pub acquire: AtomicUsize,
    /// `extern "C" fn() -> i32`: loads the back's library and fills [`Half::back`]. Called on the lower fs. 0 is success.
    pub load_back: AtomicUsize,
    /// `extern "C" fn(kind: u32, status: i32)`: says goodbye to the node agent. Called on the lower fs.
    pub goodbye: AtomicUsize,
    /// `extern "C" fn(verb: u32, arg: u64) -> i64`: requests of the application (capi). Called on the lower fs.
    pub request: AtomicUsize,
    /// `extern "C" fn(path, argv, envp) -> i64`: the rank's own execve. Called on the lower fs; returns only on error.
    pub exec: AtomicUsize,
    /// Real process id of this start.
    pub pid: AtomicI32,
    /// World rank and size that the launcher told us, before any MPI_Init.
    pub rank: AtomicU32,
    /// Number of ranks that the launcher told us.
    pub size: AtomicU32,
    /// A signal that asks for a checkpoint, beside what the application has it do; 0: none. Where the application leaves it
    /// at its default, it does not end the process.
    pub warn_signal: AtomicI32,
    /// Counts up when it came. A futex.
    pub warned: AtomicU32,
    /// Bit n: descriptor n belongs to the lower half.
    pub lower_fds: [AtomicU64; 128],
    /// The command that the leader works on while all threads stand still ([`still`]); 0: none. A futex.
    pub still_cmd: AtomicU32,
    /// The place of the plugin that it is for.
    pub still_plugin: AtomicU32,
    /// Counts up when the leader has finished one. A futex.
    pub still_done: AtomicU32,
    /// Address of its [`StillArg`].
    pub still_arg: AtomicUsize,
    /// What it returned.
    pub still_result: AtomicI64,
    /// Real functions of the back and our helpers beside them.
    pub back: [AtomicUsize; BACK_SLOTS],
    /// `extern "C" fn(library: *const c_char, name: *const c_char) -> usize`: the address of a function of a library below,
    /// which is loaded if need be; 0: there is none. Called on the lower fs.
    pub resolve: AtomicUsize,
    /// Addresses of the functions that [`Upper::below`] names; 0: not looked for yet.
    pub below: [AtomicUsize; MAX_BELOW],
    /// A signal that ends the process where the application leaves it at its default, after the node agent was told; 0: none.
    pub end_signal: AtomicI32,
    /// `ending::*`: it has come. A futex.
    pub ending: AtomicU32,
}

/// [`Half::ending`].
pub mod ending {
    /// The node agent is to be told.
    pub const TELL: u32 = 1;
    /// It has been, or cannot be.
    pub const TOLD: u32 = 2;
}

/// What lies in the lower half's TLS for each thread, so that a signal handler can find the way up.
#[repr(C)]
#[derive(Debug)]
pub struct LowerSlot {
    /// The upper thread's record, or null when the thread is the lower half's own.
    pub rec: AtomicUsize,
}

/// What a thread of the upper half is doing, as far as the coordinator must know. [`ThreadRec::doing`].
pub mod doing {
    /// Runs in the application, or passes through the front.
    pub const RUNNING: u32 = 0;
    /// Waits below for a peer in an interruptible loop.
    pub const WAITING: u32 = 1;
    /// Held at the entry of a collective beyond its target.
    pub const HELD: u32 = 2;
    /// Inside a collective.
    pub const INSIDE: u32 = 3;
    /// Asks again and again for something that has not come (a loop of MPI_Iprobe or MPI_Test).
    pub const POLLING: u32 = 4;
}

/// One thread of the upper half.
#[repr(C)]
#[derive(Debug)]
pub struct ThreadRec {
    /// Thread pointer upstairs; 0: the record is free.
    pub fs: AtomicU64,
    /// Thread control block lent by the lower half, valid in `epoch`.
    pub lower_fs: AtomicU64,
    /// The [`Half::epoch`] in which `lower_fs` was lent.
    pub epoch: AtomicU64,
    /// Greater than 0 while the thread is inside a front or below: it must not be saved there.
    pub depth: AtomicU32,
    /// Greater than 0 while a signal handler of the application runs on top of frames of the lower half.
    pub above_lower: AtomicU32,
    /// Thread id that the application knows.
    pub vtid: AtomicI32,
    /// Thread id that the kernel knows now.
    pub tid: AtomicI32,
    /// 1 while the thread stands still in the stop handler; a futex.
    pub parked: AtomicU32,
    /// Handlers of the application that have run on this thread.
    pub app_signals: AtomicU32,
    /// Times this thread has been stopped.
    pub stops: AtomicU32,
    /// One of [`doing`].
    pub doing: AtomicU32,
    /// Identity of the collective clock in `doing` HELD or INSIDE.
    pub doing_gid: AtomicU64,
    /// Address of the saved `ucontext_t`, valid while parked.
    pub ucontext: AtomicU64,
    /// What set_robust_list was told.
    pub robust_head: AtomicU64,
    /// What set_robust_list was told.
    pub robust_len: AtomicU64,
    /// What rseq was told: address, length and flags, signature.
    pub rseq_addr: AtomicU64,
    /// Low half length, high half signature.
    pub rseq_len_sig: AtomicU64,
    /// What the kernel clears and wakes at the thread's end (CLONE_CHILD_CLEARTID, set_tid_address).
    pub clear_tid: AtomicU64,
    /// Alternate signal stack as sigaltstack(2) told at the stop: ss_sp.
    pub alt_sp: AtomicU64,
    /// ss_size; the high 32 bits hold ss_flags.
    pub alt_size_flags: AtomicU64,
    /// One of [`parked`], while the thread stands still; a futex.
    pub command: AtomicU32,
    /// Selector whose descriptor has `fs` as its base, in `epoch`; 0: there is none.
    pub upper_selector: AtomicU32,
    /// The same for `lower_fs`.
    pub lower_selector: AtomicU32,
    /// Not used yet.
    pub spare: [AtomicU32; 11],
}

/// [`ThreadRec::command`]: what a parked thread is told. 0: stay.
pub mod parked {
    /// Run on.
    pub const GO: u32 = u32::MAX;
    /// Work on [`super::Half::still_cmd`].
    pub const LEAD: u32 = 1;
}

/// What the application asked for with sigaction(2), in the kernel's layout.
#[repr(C)]
#[derive(Debug)]
pub struct SigAction {
    /// Handler, 0 SIG_DFL, 1 SIG_IGN.
    pub handler: AtomicU64,
    /// SA_ flags.
    pub flags: AtomicU64,
    /// SA_RESTORER's function.
    pub restorer: AtomicU64,
    /// Mask.
    pub mask: AtomicU64,
    /// 1 once the application has called sigaction for this signal.
    pub set: AtomicU64,
}

/// A collective clock: one per communicator (and one per group that is used like one).
///
/// `count` holds twice the number of collectives entered, plus 1 while a thread is inside one. The front writes it,
/// the control thread reads it after a membarrier. `target` is written by the control thread.
#[repr(C)]
#[derive(Debug)]
pub struct Clock {
    /// Agreed identity; 0: the entry is free.
    pub gid: AtomicU64,
    /// 2 × entered + inside.
    pub count: AtomicU64,
    /// Collectives that may be entered while [`FLAG_SETTLE`] stands.
    pub target: AtomicU64,
    /// Address of `u32` world ranks of the members (both groups of an intercommunicator), in the window.
    pub members: AtomicU64,
    /// Number of members.
    pub n_members: AtomicU64,
}

/// Clocks that a rank can have.
pub const MAX_CLOCKS: usize = 8192;

/// Set in a letter that is no acknowledgement: the rank in its lower half was not told of a COUNTS that was cut off.
pub const UNTOLD: u64 = 1 << 63;

/// Letters that [`Upper::mail`] holds.
pub const MAIL_ROOM: usize = 1024;

/// What the MPI front cannot save, by the index of its [`crate::plugin::Refusal`].
pub mod refuse {
    use super::CStr;

    /// MPI windows.
    pub const WINDOWS: usize = 0;
    /// MPI files.
    pub const FILES: usize = 1;
    /// Communicators that lead to processes outside of the job.
    pub const STRANGERS: usize = 2;
    /// Handles and sessions of the tool interface.
    pub const TOOLS: usize = 3;
    /// Intercommunicators that were freed with persistent requests on them.
    pub const FREED: usize = 4;
    /// What each one is called in a message to the user.
    pub const TEXTS: [&CStr; 5] = [
        c"MPI windows (one-sided communication); they can be saved once MPI_Win_free has been called",
        c"open MPI files; they can be saved once MPI_File_close has been called",
        c"communicators to spawned or connected processes; they can be saved once MPI_Comm_disconnect has been called",
        c"handles or sessions of the MPI tool interface (MPI_T); they can be saved once they have been freed",
        c"freed intercommunicators with persistent requests; they can be saved once MPI_Request_free has been called",
    ];
}

/// The upper half's page. Saved and restored as memory.
#[repr(C)]
#[derive(Debug)]
pub struct Upper {
    /// [`MAGIC`].
    pub magic: u64,
    /// Range of a non-PIE executable, outside the window but saved with it; 0 if there is none.
    pub exe_start: AtomicU64,
    /// End of that range.
    pub exe_end: AtomicU64,
    /// Current end of the emulated program break.
    pub brk: AtomicU64,
    /// Lock of the window's table of intervals: 0 free, 1 taken, 2 taken and waited for.
    pub space_lock: AtomicU32,
    /// Number of free intervals.
    pub space_len: AtomicU32,
    /// Process id that the application knows.
    pub vpid: AtomicI32,
    /// Records in use are below this index.
    pub n_threads: AtomicU32,
    /// Who takes part in checkpoints with something below.
    pub plugins: Plugins,
    /// Where the callbacks of the application are ([`callbacks`]); a futex.
    pub callbacks: AtomicU32,
    /// What they said before a checkpoint: 0, or the number by which one objected. Valid in [`callbacks::OPEN`].
    pub callbacks_said: AtomicI32,
    /// Nonzero while the application forbids checkpoints.
    pub forbidden: AtomicU32,
    /// State of MPI: 0 before Init, 1 live, 2 finalized.
    pub mpi_state: AtomicU32,
    /// Thread level that MPI was initialised at.
    pub mpi_level: AtomicU32,
    /// Checkpoints of this process that exist, up to and including the one that it was restarted from.
    pub generation: AtomicU32,
    /// Restarts that this process image has gone through.
    pub restarts: AtomicU32,
    /// Collective clocks in use are below this index.
    pub n_clocks: AtomicU32,
    /// Lock of `exe` strings and other rare things.
    pub lock: AtomicU32,
    /// Functions of libraries below that plugins call: addresses of the names of library and function, zero-terminated, in the
    /// window.
    pub below: [[AtomicUsize; 2]; MAX_BELOW],
    /// Number of those.
    pub n_below: AtomicU32,
    /// Nonzero once the application has advised that memory be kept from forked children, or be empty there (madvise(2)).
    pub fork_advised: AtomicU32,
    /// Mail from other ranks that the MPI front has not read: a ring of identities. The lower half writes at `mail_in`, the
    /// front reads at `mail_out`; both count up for ever.
    pub mail: [AtomicU64; MAIL_ROOM],
    /// Letters written.
    pub mail_in: AtomicU32,
    /// Letters read.
    pub mail_out: AtomicU32,
    /// Non-blocking collectives with an operation of the application that are not complete. Its function may want a lock that
    /// a stopped thread holds, so there is no still point while there are any.
    pub user_operations: AtomicU32,
    /// Addresses of the hook library: entry of patched sites.
    pub hook_entry: AtomicUsize,
    /// Entry of the stop handler, and of the wrapper around the application's handlers.
    pub stop_handler: AtomicUsize,
    /// Wrapper around the application's handlers.
    pub sig_wrapper: AtomicUsize,
    /// Restorer for kernel signal frames (calls rt_sigreturn).
    pub restorer: AtomicUsize,
    /// Fallbacks of the fake vDSO that make the system call.
    pub vdso_fallback: [AtomicUsize; 8],
    /// Added to CLOCK_MONOTONIC and its like, in nanoseconds, so that they never go back.
    pub clock_shift: AtomicU64,
    /// Path of the application's executable (for /proc/self/exe), zero-terminated.
    pub exe_path: [u8; 4096],
    /// What sigaction was told, by signal number.
    pub sig: [SigAction; 65],
    /// Threads; the first is the main thread.
    pub threads: [ThreadRec; MAX_THREADS],
    /// Collective clocks.
    pub clocks: [Clock; MAX_CLOCKS],
    /// Ranges that the application excluded from the image: start, length.
    pub excluded: [[AtomicU64; 2]; 256],
    /// Number of those.
    pub n_excluded: AtomicU32,
    /// Bit n: descriptor n stands for something below, and its plugin makes it again.
    pub plugin_fds: [AtomicU64; 128],
}

impl Upper {
    /// True for any address of the upper half: what is saved.
    pub fn holds(&self, addr: usize) -> bool {
        use core::sync::atomic::Ordering::Relaxed;
        (WINDOW_START..WINDOW_END).contains(&addr)
            || (LOW_START..LOW_END).contains(&addr)
            || (self.exe_start.load(Relaxed)..self.exe_end.load(Relaxed)).contains(&(addr as u64))
    }

    /// Path of the application's executable, without its zero.
    pub fn exe(&self) -> &[u8] {
        self.exe_path.split(|c| *c == 0).next().unwrap_or(&[])
    }
}

/// Commands to a plugin ([`crate::plugin::Plugin::still`]) at the still point. They run on one parked thread's own thread
/// pointer and on the still stack, at depth 1, while every thread of the rank stands still.
pub mod still {
    /// Write into `out` what others must know before the drain: see [`super::StillArg`].
    pub const COUNTS: u32 = 2;
    /// `input` holds what the others said, in COUNTS or in the last round that this plugin has spoken in or was spoken to. Bring
    /// everything home. [`DONE`]: all is; [`AGAIN`]: `deadline` passed, call again; [`SPEAKS`]: `out` holds what others must
    /// know before it goes on, and it is called again when they do; negative: it cannot be done. After [`DONE`] it is
    /// called again with the same input, until all ranks are done: the others may still need this rank's progress; and
    /// with another one if another rank speaks to it.
    pub const DRAIN: u32 = 3;
    /// Threads run on next. `input` is one byte: [`GOES_ON`], [`GIVEN_UP`] or [`CUT_OFF`].
    pub const RESUME: u32 = 4;
    /// The snapshot was taken (also in a process that was restarted from it, after REBUILD of all ranks).
    pub const GOES_ON: u8 = 0;
    /// The checkpoint was given up before it, on the agent's word: either all ranks were told of COUNTS, or none.
    pub const GIVEN_UP: u8 = 1;
    /// The same after COUNTS, or an agent was lost: some ranks may have been told, and others not.
    pub const CUT_OFF: u8 = 2;
    /// After a restart: make real objects behind the virtual ones, post receives again. [`DONE`] is success; [`SPEAKS`] as for
    /// DRAIN: it is called again with what the others said, and `round` counts up from 0; else `out` holds a text that
    /// says why not.
    pub const REBUILD: u32 = 5;
    /// Mail for which the ring [`super::Upper::mail`] had no room, to the MPI front: `input` is `u64` identities.
    pub const MAIL: u32 = 6;

    /// Nothing is left to do.
    pub const DONE: i64 = 0;
    /// Call again.
    pub const AGAIN: i64 = 1;
    /// Others must hear what `out` holds first.
    pub const SPEAKS: i64 = 2;
}

/// Argument of a command at the still point.
///
/// What is said and heard is a sequence of [`crate::records`].
#[repr(C)]
#[derive(Debug)]
pub struct StillArg {
    /// What is passed in.
    pub input: *const u8,
    /// Its length.
    pub input_len: usize,
    /// Where the answer goes.
    pub out: *mut u8,
    /// Room there.
    pub out_cap: usize,
    /// Bytes written; if greater than `out_cap`, nothing was written and this much room is needed: the call is made again.
    pub out_len: usize,
    /// CLOCK_MONOTONIC in nanoseconds at which to give up.
    pub deadline: u64,
    /// Rounds that were handed on before this call.
    pub round: u32,
}

/// [`Upper::callbacks`]: whose turn it is. libstillpoint.so runs the application's callbacks on a thread of its own.
pub mod callbacks {
    /// None are registered.
    pub const ABSENT: u32 = 0;
    /// No checkpoint is being taken. Written by libstillpoint.so.
    pub const IDLE: u32 = 1;
    /// A checkpoint is intended: run what comes before it. Written by the lower half.
    pub const BEFORE: u32 = 2;
    /// Done; `callbacks_said` holds the outcome. Written by libstillpoint.so. Every image is taken in this state, or
    /// in ABSENT, or in IDLE if the first callback was registered meanwhile.
    pub const OPEN: u32 = 3;
    /// The checkpoint was taken or given up, threads run. Written by the lower half, then IDLE by libstillpoint.so.
    pub const AFTER: u32 = 4;
    /// As AFTER, in a process that was restarted.
    pub const RESTARTED: u32 = 5;
}

/// `goodbye` kinds.
pub mod goodbye {
    /// The process ends with this exit status.
    pub const EXIT: u32 = 0;
    /// MPI_Abort with this code.
    pub const ABORT: u32 = 1;
    /// MPI_Finalize has completed; the rank takes no further part in checkpoints of MPI state.
    pub const FINALIZED: u32 = 2;
    /// The process is about to become another program, by execve.
    pub const EXEC: u32 = 3;
    /// This signal, which asks politely, ends the process: somebody else has decided so.
    pub const ENDED: u32 = 4;
}

/// `request` verbs (capi).
pub mod request {
    /// Ask for a checkpoint. Returns a positive number to ask [`POLL`] about, or a negative errno.
    pub const CHECKPOINT: u32 = 1;
    /// What became of the request `arg`: -EAGAIN not yet, 0 durable, -EBUSY given up, -EINVAL not known (after a restart,
    /// when `Upper::restarts` has changed too).
    pub const POLL: u32 = 3;
    /// Send the bytes at `arg` (a [`super::StillArg`] with `input` in the peer-record form; each body is one `u64`) to other
    /// ranks, where they arrive in [`super::Upper::mail`]. Never waits.
    pub const MAIL: u32 = 2;
}

const _: () = {
    assert!(size_of::<Half>() <= HALF_LEN);
    assert!(size_of::<Upper>() <= UPPER_LEN);
    assert!(size_of::<ThreadRec>().is_multiple_of(8));
    assert!(LOW_START < LOW_END && LOW_END < LENT_END && LENT_END < 1 << 32);
    assert!(HALF_ADDR + HALF_LEN <= WINDOW_START);
    assert!(UPPER_ADDR + UPPER_LEN <= SPACE_ADDR);
    assert!(SPACE_ADDR + SPACE_LEN <= HOOKS_ADDR);
};
