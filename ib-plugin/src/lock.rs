//! A lock whose holder cannot be stopped: what it guards is wanted at the still point. *Upper half*.
//!
//! Who takes it alone pays two stores for it, and no locked instruction (5 ns, a third of what a post may cost). So it belongs to the first
//! thread that takes it, which says by a plain store that it is inside. Another thread takes that away, once and for all: it says so, has
//! every processor that runs a thread of this process pass a barrier (membarrier(2)), and waits until the first one is outside; from then on
//! all of them spin for one word.
//!
//! What a reader would get wrong: a processor may see the other's word before others see its own (store, then load). The
//! barrier of the one that takes away stands for both.

use std::cell::UnsafeCell;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, compiler_fence};

#[cfg(not(test))]
use stillpoint_loader::switch::Front;
use stillpoint_sys::raw::nr;
use stillpoint_sys::sys;

/// Whose a lock is: nobody's yet, or that of all. Else the address of a thread's record.
const NOBODYS: usize = 0;
const OF_ALL: usize = 1;

/// The lock.
#[derive(Debug, Default)]
pub(crate) struct Lock<T> {
    owner: AtomicUsize,
    /// The owner is inside.
    inside: AtomicBool,
    /// Somebody else is.
    taken: AtomicU32,
    of: UnsafeCell<T>,
}

// SAFETY: `with` gives it to one thread at a time.
unsafe impl<T: Send> Sync for Lock<T> {}
// SAFETY: it owns what it holds.
unsafe impl<T: Send> Send for Lock<T> {}

/// The calling thread is in a front.
#[cfg(not(test))]
#[inline(always)]
fn enter() -> Front {
    Front::enter()
}

#[cfg(test)]
thread_local!(static ME: u64 = const { 0 });
#[cfg(test)]
struct Nowhere;
#[cfg(test)]
fn enter() -> Nowhere {
    Nowhere
}

/// What the calling thread is known by.
#[cfg(not(test))]
#[inline(always)]
fn me(front: &Front) -> usize {
    std::ptr::from_ref(front.rec()).addr()
}

#[cfg(test)]
fn me(_: &Nowhere) -> usize {
    ME.with(|me| std::ptr::from_ref(me).addr())
}

/// Every processor that runs a thread of this process passes a barrier.
#[cold]
fn barrier() {
    const EXPEDITED: usize = 1 << 3;
    const REGISTER: usize = 1 << 4;
    // SAFETY: no memory of ours is written to.
    unsafe {
        let passes = || sys!(nr::MEMBARRIER, EXPEDITED, 0, 0) == 0;
        // A process must say once that it will ask for it: after a restart, once more.
        if passes() || sys!(nr::MEMBARRIER, REGISTER, 0, 0) == 0 && passes() {
            return;
        }
    }
    // Where that is forbidden: what a processor has stored is seen long before.
    std::thread::sleep(std::time::Duration::from_millis(1));
}

fn spin(until: impl Fn() -> bool) {
    let mut tries = 0u32;
    while !until() {
        tries += 1;
        if tries.is_multiple_of(64) {
            std::thread::yield_now();
        }
        std::hint::spin_loop();
    }
}

impl<T> Lock<T> {
    pub(crate) const fn new(of: T) -> Lock<T> {
        Lock {
            owner: AtomicUsize::new(NOBODYS),
            inside: AtomicBool::new(false),
            taken: AtomicU32::new(0),
            of: UnsafeCell::new(of),
        }
    }

    /// Alone with it.
    #[inline]
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        let front = enter();
        self.by(me(&front), f)
    }

    /// The same for a thread that is in a front already.
    #[cfg(not(test))]
    #[inline(always)]
    pub(crate) fn within<R>(&self, front: &Front, f: impl FnOnce(&mut T) -> R) -> R {
        self.by(me(front), f)
    }

    #[cfg(test)]
    pub(crate) fn within<R>(&self, _: &stillpoint_loader::switch::Front, f: impl FnOnce(&mut T) -> R) -> R {
        self.with(f)
    }

    #[inline(always)]
    fn by<R>(&self, me: usize, f: impl FnOnce(&mut T) -> R) -> R {
        let own = self.begin(me);
        // SAFETY: this thread has taken it; or whoever else wants it has made it everybody's before, and waits until this one is outside.
        let r = f(unsafe { &mut *self.of.get() });
        if own {
            self.inside.store(false, Release);
        } else {
            self.taken.store(0, Release);
        }
        r
    }

    /// Whether it is this thread's own.
    #[inline(always)]
    fn begin(&self, me: usize) -> bool {
        if self.owner.load(Relaxed) == me {
            self.inside.store(true, Relaxed);
            compiler_fence(SeqCst);
            if self.owner.load(Acquire) == me {
                return true;
            }
            self.inside.store(false, Release);
        }
        self.take(me);
        false
    }

    #[cold]
    #[inline(never)]
    fn take(&self, me: usize) {
        spin(|| self.taken.compare_exchange_weak(0, 1, Acquire, Relaxed).is_ok());
        match self.owner.load(Relaxed) {
            OF_ALL => {}
            // From the next time on.
            NOBODYS => self.owner.store(me, Release),
            _ => {
                self.owner.store(OF_ALL, SeqCst);
                barrier();
                spin(|| !self.inside.load(Acquire));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Some by themselves for a while, all at once, and by turns.
    #[test]
    fn one_at_a_time() {
        for round in 0..300u64 {
            let lock = Lock::new((0u64, 0u64));
            let add = |n: u64| {
                for _ in 0..n {
                    lock.with(|(a, b)| {
                        assert_eq!(a, b);
                        *a += 1;
                        std::hint::black_box(&mut *a);
                        *b += 1;
                    });
                }
            };
            add(round % 7);
            std::thread::scope(|s| {
                for k in 0..4 {
                    s.spawn(move || add(1000 + 100 * k));
                }
                add(500);
            });
            assert_eq!(lock.with(|(a, _)| *a), round % 7 + 4 * 1000 + 600 + 500);
        }
    }

    #[test]
    fn it_belongs_to_who_takes_it_first_until_another_does() {
        let lock = Lock::new(());
        lock.with(|()| {});
        let owner = lock.owner.load(Relaxed);
        assert!(owner != NOBODYS);
        lock.with(|()| assert!(lock.inside.load(Relaxed) || owner == OF_ALL));
        std::thread::scope(|s| _ = s.spawn(|| lock.with(|()| assert!(!lock.inside.load(Relaxed)))));
        assert_eq!(lock.owner.load(Relaxed), OF_ALL);
    }
}
