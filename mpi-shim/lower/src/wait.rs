//! The interruptible loops beside the real library: start (perhaps), then test until complete or until somebody asks
//! the thread to come up. *Lower half*, on the lower thread pointer, called by the front across the crossing.
//!
//! ```text
//!   ┌─▶ MPI_Test ── complete ──▶ its code (≥ 0); *request = 0
//!   │      │ not yet
//!   └── FLAG_STOP? ── yes ─────▶ −1; *request is still the library's
//! ```
//!
//! What a reader would get wrong: −1 is not an error, and what was started stays started. The caller keeps the
//! request where the drain finds it, stands still, and waits again. `doing` says WAITING only after a first test has
//! failed, so a message that is already there costs no store to the page that the control thread reads.
#![allow(unsafe_code, reason = "calls the MPI library through the table of its addresses")]

use core::ffi::{c_int, c_void};
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{Acquire, Relaxed};
use stillpoint_abi::half::{FLAG_SETTLE, FLAG_STOP, Half, doing};
use stillpoint_mpi_table::{Fn, Helper, helper_slot};
use stillpoint_sys::{half, upper};

/// The loop was left although nothing is complete.
const INTERRUPTED: c_int = -1;

type Test = unsafe extern "C" fn(*mut usize, *mut c_int, *mut c_void) -> c_int;
type TestAny = unsafe extern "C" fn(c_int, *mut usize, *mut c_int, *mut c_int, *mut c_void) -> c_int;
type Start = unsafe extern "C" fn(*const c_void, c_int, usize, c_int, c_int, usize, *mut usize) -> c_int;
type Iprobe = unsafe extern "C" fn(c_int, c_int, usize, *mut c_int, *mut c_void) -> c_int;
type Improbe = unsafe extern "C" fn(c_int, c_int, usize, *mut c_int, *mut usize, *mut c_void) -> c_int;

fn address(slot: usize) -> *const () {
    core::ptr::with_exposed_provenance(half().back[slot].load(Relaxed))
}

macro_rules! library {
    ($name:ident as $t:ty) => {
        // SAFETY: the slot holds the library's function of that name, whose C prototype `$t` is.
        unsafe { core::mem::transmute::<*const (), $t>(address(Fn::$name as usize)) }
    };
}

/// Repeats `step` until it is complete or the thread must come up.
#[inline(always)]
fn until(mark: *const AtomicU32, mut step: impl FnMut(&mut c_int) -> c_int) -> c_int {
    // SAFETY: the caller passes its own thread's `doing`, which outlives the call.
    let mark = unsafe { &*mark };
    let mut flag = 0;
    let (mut marked, mut tests) = (false, 0u32);
    let code = loop {
        let code = step(&mut flag);
        if flag != 0 || code != 0 {
            break code;
        }
        let flags = half().flags.load(Acquire);
        if flags & FLAG_STOP != 0 {
            break INTERRUPTED;
        }
        if !marked {
            mark.store(doing::WAITING, Relaxed);
            marked = true;
        }
        if flags & FLAG_SETTLE != 0 {
            // The front has reductions to complete that call the application, but is seen to wait in between.
            tests += 1;
            if tests % 256 == 0 && upper().user_operations.load(Relaxed) != 0 {
                break INTERRUPTED;
            }
        }
    };
    if marked {
        mark.store(doing::RUNNING, Relaxed);
    }
    code
}

/// Waits for one request. `request` is 0 afterwards if it is complete.
unsafe extern "C" fn wait(request: *mut usize, status: *mut c_void, mark: *const AtomicU32) -> c_int {
    let test = library!(MPI_Test as Test);
    // SAFETY: the front passes a request of the library and a status.
    let code = until(mark, |flag| unsafe { test(request, flag, status) });
    if code != INTERRUPTED {
        // SAFETY: as above.
        unsafe { *request = 0 };
    }
    code
}

/// Waits until one of several requests is complete, and says which in `index`.
unsafe extern "C" fn wait_any(
    n: c_int,
    requests: *mut usize,
    index: *mut c_int,
    status: *mut c_void,
    mark: *const AtomicU32,
) -> c_int {
    let test = library!(MPI_Testany as TestAny);
    // SAFETY: the front passes `n` requests of the library, an index and a status.
    until(mark, |flag| unsafe { test(n, requests, index, flag, status) })
}

/// Starts with the function in `slot` (a send in some mode) and waits.
unsafe extern "C" fn send(
    slot: usize,
    args: *const [usize; 6],
    request: *mut usize,
    status: *mut c_void,
    mark: *const AtomicU32,
) -> c_int {
    // SAFETY: `slot` is that of MPI_Isend or MPI_Issend; the front fills `args` in their order.
    unsafe {
        let start = core::mem::transmute::<*const (), Start>(address(slot));
        let a = &*args;
        let code = start(
            core::ptr::with_exposed_provenance(a[0]),
            a[1] as c_int,
            a[2],
            a[3] as c_int,
            a[4] as c_int,
            a[5],
            request,
        );
        if code != 0 {
            *request = 0;
            return code;
        }
        wait(request, status, mark)
    }
}

/// MPI_Irecv and the loop: the arguments of a receive have the same shape as those of a send.
unsafe extern "C" fn recv(
    args: *const [usize; 6],
    request: *mut usize,
    status: *mut c_void,
    mark: *const AtomicU32,
) -> c_int {
    // SAFETY: handed on; MPI_Irecv has the prototype of `Start`, but for `const`.
    unsafe { send(Fn::MPI_Irecv as usize, args, request, status, mark) }
}

/// Until there is a message.
unsafe extern "C" fn probe(
    source: c_int,
    tag: c_int,
    comm: usize,
    status: *mut c_void,
    mark: *const AtomicU32,
) -> c_int {
    let f = library!(MPI_Iprobe as Iprobe);
    // SAFETY: the front passes a communicator of the library and a status.
    until(mark, |flag| unsafe { f(source, tag, comm, flag, status) })
}

/// Until there is a message, which is then taken out of matching.
unsafe extern "C" fn mprobe(
    source: c_int,
    tag: c_int,
    comm: usize,
    message: *mut usize,
    status: *mut c_void,
    mark: *const AtomicU32,
) -> c_int {
    let f = library!(MPI_Improbe as Improbe);
    // SAFETY: as in `probe`.
    until(mark, |flag| unsafe { f(source, tag, comm, flag, message, status) })
}

/// Writes the addresses of the loops into `half`, once the library's own stand there.
pub(crate) fn install(half: &Half) {
    let put = |h: Helper, f: *const ()| half.back[helper_slot(h)].store(f.expose_provenance(), Relaxed);
    put(Helper::Wait, wait as *const ());
    put(Helper::WaitAny, wait_any as *const ());
    put(Helper::Send, send as *const ());
    put(Helper::Recv, recv as *const ());
    put(Helper::Probe, probe as *const ());
    put(Helper::Mprobe, mprobe as *const ());
}
