//! The real library, below: its functions by name, and those that it has put into its structures.
//!
//! What a reader would get wrong: where a function fails, the number of its error is in the lower half's errno, which is
//! another variable than the application's.

use std::ffi::{CStr, c_char};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::{Acquire, Release};

use stillpoint::plugin::{MAX_ARGS, Slot, below};
use stillpoint_loader::switch::Front;

/// A function of a library below.
pub(crate) struct Function {
    library: &'static CStr,
    name: &'static CStr,
    /// Its slot's number and one; 0: it has none yet.
    slot: AtomicUsize,
}

const VERBS: &CStr = c"libibverbs.so.1";
static ERRNO: Function = Function::of(c"libc.so.6", c"__errno_location");

impl Function {
    /// Of the verbs.
    pub(crate) const fn new(name: &'static CStr) -> Function {
        Function::of(VERBS, name)
    }

    /// Of any library that is there.
    pub(crate) const fn of(library: &'static CStr, name: &'static CStr) -> Function {
        Function { library, name, slot: AtomicUsize::new(0) }
    }

    fn slot(&self) -> Option<Slot> {
        let known = self.slot.load(Acquire);
        if known != 0 {
            return Slot::of(known - 1).ok();
        }
        // Two threads at once may take two slots: one is forgotten.
        let slot = below(self.library, self.name).ok()?;
        self.slot.store(slot.number() + 1, Release);
        Some(slot)
    }

    /// Calls it with integers or pointers. None: there is no such function.
    pub(crate) fn call(&self, args: &[u64]) -> Option<u64> {
        let mut all = [0; MAX_ARGS];
        all.iter_mut().zip(args).for_each(|(to, from)| *to = *from);
        // SAFETY: the function of that name, with the arguments of its prototype in verbs.h; none of them waits.
        unsafe { self.slot()?.call(&all) }.ok()
    }

    /// Of one that returns a number: 0, or the number of an error, or -1 with the number in errno.
    pub(crate) fn int(&self, args: &[u64]) -> i32 {
        match self.call(args) {
            Some(r) => {
                if r as i32 == -1 {
                    set_errno(errno());
                }
                r as i32
            }
            None => libc::EOPNOTSUPP,
        }
    }

    /// Of one that returns an object. Null: errno says why.
    pub(crate) fn object(&self, args: &[u64]) -> usize {
        match self.call(args) {
            Some(0) => {
                set_errno(errno());
                0
            }
            Some(p) => p as usize,
            None => {
                set_errno(libc::EOPNOTSUPP);
                0
            }
        }
    }
}

/// Of the last function below that this thread has called.
pub(crate) fn errno() -> i32 {
    match ERRNO.call(&[]) {
        Some(at) if at != 0 => {
            // SAFETY: the calling thread's errno of the lower half's libc.
            unsafe { std::ptr::with_exposed_provenance::<i32>(at as usize).read() }
        }
        _ => libc::EIO,
    }
}

/// The application's.
pub(crate) fn set_errno(number: i32) {
    // SAFETY: the calling thread's variable.
    unsafe { *libc::__errno_location() = number };
}

/// Says why in errno, and returns nothing.
pub(crate) fn fail<T>(number: i32) -> *mut T {
    set_errno(number);
    std::ptr::null_mut()
}

/// Calls a function that stands in a structure of the real library. `read` is called where the thread cannot be stopped, since what it
/// reads is another start's after a restart; then the arguments, the result.
macro_rules! by_pointer {
    (|$front:ident| $f:expr; ($($a:expr),*)) => {{
        let $front = stillpoint_loader::switch::Front::enter();
        match $f {
            Some(f) => {
                let _down = $front.down();
                Some(f($($a),*))
            }
            None => None,
        }
    }};
}
pub(crate) use by_pointer;

/// As C sees it.
pub(crate) fn text(of: *const c_char) -> Option<String> {
    // SAFETY: a terminated text of the real library's, or null.
    (!of.is_null()).then(|| unsafe { CStr::from_ptr(of) }.to_string_lossy().into_owned())
}

/// While this lives, the calling thread is not stopped: it holds a lock, half an object is written, or it has the address of a real
/// object in its hand, which is another one in the next start.
pub(crate) fn inside() -> Front {
    Front::enter()
}
