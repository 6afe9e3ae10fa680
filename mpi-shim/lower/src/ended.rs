//! The end by SIGTERM: the node agent is told before it happens. *Lower half*, a thread of its own with all signals blocked.
//!
//! A launcher ends the ranks that are left by SIGTERM when one has failed or was killed. Without a word of it the agent could not tell
//! them from ranks that were killed first, when it hears of both at about the same time.
//!
//! Only for Open MPI's mpirun: a process manager that ends by SIGKILL tells us nothing, and one that ends ranks by SIGTERM for its own
//! reasons (a preemption, say) means all of them.
//!
//! What a reader would get wrong: the signal is not taken here. It comes to a thread of the application, and the hook library's
//! wrapper, where the application leaves it at its default, waits for this thread and ends the process then, as the
//! kernel would have.

use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use stillpoint_abi::half::{ending, goodbye};
use stillpoint_sys::half;
use stillpoint_sys::raw::{futex_wait, futex_wake_all, getpid};

const SIGTERM: i32 = 15;

/// The signal: 0 where there is nobody to be told, where it asks for a checkpoint, or where the kernel ignores it (process 1).
pub(crate) fn signal() -> i32 {
    let has = |name| std::env::var_os(name).is_some();
    let told = has("STILLPOINT_RUN") && has("OMPI_COMM_WORLD_RANK");
    if told && crate::warn::signal() != SIGTERM && getpid() != 1 { SIGTERM } else { 0 }
}

/// Begins to listen.
pub(crate) fn start() -> std::io::Result<()> {
    let signal = half().end_signal.load(Relaxed);
    if signal == 0 {
        return Ok(());
    }
    std::thread::Builder::new().name("stillpoint-end".into()).stack_size(64 << 10).spawn(move || {
        while half().ending.load(Acquire) != ending::TELL {
            futex_wait(&half().ending, 0);
        }
        crate::line::goodbye(goodbye::ENDED, signal);
        half().ending.store(ending::TOLD, SeqCst);
        futex_wake_all(&half().ending);
    })?;
    Ok(())
}
