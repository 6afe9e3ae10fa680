//! Plugins: whoever has something below that must be counted, drained and made again takes part in checkpoints here, as the MPI
//! front does. *Upper half*; their commands run at the still point ([`stillpoint_abi::half::still`]).
//!
//! ```text
//!   below("libx.so.1", "x_open") ─▶ slot ─ call ─▶ address known in this start? ─ no ─▶ load it below
//!                                                             └ yes ─▶ cross, call
//! ```
//!
//! What a reader would get wrong: an address of the lower half is never kept up here. A slot holds the *names* of a function;
//! where it is stands in the lower half's page, which every start makes anew, so the first call of each start looks for it.
#![allow(unsafe_code, reason = "calls functions of the lower half by address")]

use std::ffi::CStr;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use stillpoint_abi::half::{MAX_BELOW, StillArg};
use stillpoint_abi::plugin;
use stillpoint_loader::switch::Front;
use stillpoint_sys::{half, upper};

use crate::ask::{Error, active};

/// Works on a command of the still point, while every thread of the rank stands still.
pub type Still = unsafe extern "C" fn(cmd: u32, arg: *mut StillArg) -> i64;

/// Arguments that a function below can have.
pub const MAX_ARGS: usize = 10;

/// A plugin that has registered.
#[derive(Clone, Copy, Debug)]
pub struct Plugin(&'static plugin::Plugin, usize);

/// Registers a plugin, for the life of the process: its name, by which it finds its namesakes in other ranks, what works on its
/// commands, and what it may not be able to save, as it is called in a message to the user.
///
/// # Errors
/// [`Error::NotActive`]; [`Error::Invalid`] for a name that is empty or longer than 24 bytes, or more than 8 texts;
/// [`Error::Taken`]; [`Error::Full`] when there are 16.
pub fn register(name: &str, still: Still, texts: &[&'static CStr]) -> Result<Plugin, Error> {
    if !active() {
        return Err(Error::NotActive);
    }
    if name.is_empty() || name.len() > plugin::NAME_LEN || texts.len() > plugin::MAX_REFUSALS {
        return Err(Error::Invalid);
    }
    let table = &upper().plugins;
    if table.find(name).is_some() {
        return Err(Error::Taken);
    }
    let mut at = [0; plugin::MAX_REFUSALS];
    for (to, text) in at.iter_mut().zip(texts) {
        *to = text.as_ptr().expose_provenance();
    }
    let still = (still as *const ()).expose_provenance();
    table.register(name, still, &at[..texts.len()]).ok_or(Error::Full)?;
    let found = table.all().find(|(_, p)| p.name(&mut [0; plugin::NAME_LEN]) == name);
    found.map(|(place, p)| Plugin(p, place)).ok_or(Error::Full)
}

impl Plugin {
    /// The one at this place, as [`Plugin::place`] told.
    pub(crate) fn at(place: usize) -> Result<Plugin, Error> {
        if !active() {
            return Err(Error::NotActive);
        }
        upper().plugins.get(place).map(|p| Plugin(p, place)).ok_or(Error::Invalid)
    }

    /// Its place among the plugins of this rank.
    #[must_use]
    pub fn place(self) -> usize {
        self.1
    }

    /// It has something below from now on, or nothing any more: commands come, or do not.
    pub fn live(self, is: bool) {
        self.0.live.store(u32::from(is), Release);
    }

    /// There are so many more, or less, of something that cannot be saved: the text at this index. While there is one, checkpoints
    /// are refused.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an index without a text, or fewer than none.
    pub fn refuse(self, what: usize, by: i32) -> Result<(), Error> {
        let refusal =
            self.0.refusals.get(what).filter(|r| r.text.load(Acquire) != 0).ok_or(Error::Invalid)?;
        let counted = refusal.count.fetch_update(Relaxed, Relaxed, |n| n.checked_add_signed(by));
        counted.map_or(Err(Error::Invalid), |_| Ok(()))
    }
}

/// A function of a library that is loaded below.
#[derive(Clone, Copy, Debug)]
pub struct Slot(usize);

/// A slot for a function, by the names of its library and its own. Nothing is loaded yet.
///
/// # Errors
/// [`Error::NotActive`]; [`Error::Full`] when there are 1024.
pub fn below(library: &'static CStr, name: &'static CStr) -> Result<Slot, Error> {
    if !active() {
        return Err(Error::NotActive);
    }
    let u = upper();
    let taken = u.n_below.fetch_update(Relaxed, Relaxed, |n| (n < MAX_BELOW as u32).then_some(n + 1));
    let at = taken.map_err(|_| Error::Full)? as usize;
    u.below[at][0].store(library.as_ptr().expose_provenance(), Relaxed);
    u.below[at][1].store(name.as_ptr().expose_provenance(), Release);
    Ok(Slot(at))
}

impl Slot {
    /// Its number.
    #[must_use]
    pub fn number(self) -> usize {
        self.0
    }

    /// The one with this number.
    ///
    /// # Errors
    /// [`Error::Invalid`]: there is none.
    pub fn of(number: usize) -> Result<Slot, Error> {
        if !active() {
            return Err(Error::NotActive);
        }
        let known = number < upper().n_below.load(Acquire) as usize;
        if known { Ok(Slot(number)) } else { Err(Error::Invalid) }
    }

    /// Calls the function below with integers or pointers; what it returns in the first register.
    ///
    /// # Errors
    /// [`Error::NotThere`]: the library cannot be loaded, or has no such function; the reason is on standard error.
    ///
    /// # Safety
    /// The function takes these arguments, or fewer; it must not call anything up here, and must not wait for long: a thread
    /// that is below cannot be stopped.
    pub unsafe fn call(self, args: &[u64; MAX_ARGS]) -> Result<u64, Error> {
        // The thread is not stopped from here on: the address would be another start's.
        let front = Front::enter();
        let (h, names) = (half(), &upper().below[self.0]);
        let mut at = h.below[self.0].load(Acquire);
        if at == 0 {
            let resolve = h.resolve.load(Relaxed);
            let (library, name) = (names[0].load(Acquire), names[1].load(Acquire));
            if resolve == 0 || library == 0 || name == 0 {
                return Err(Error::NotThere);
            }
            // SAFETY: the lower half put this function there; called on its thread pointer.
            unsafe {
                let resolve: extern "C" fn(usize, usize) -> usize = std::mem::transmute(resolve);
                let _down = front.down();
                at = resolve(library, name);
            }
            h.below[self.0].store(at, Release);
        }
        if at == 0 {
            return Err(Error::NotThere);
        }
        let [a, b, c, d, e, f, g, i, j, k] = *args;
        // SAFETY: the caller's promise; a C function does not look at arguments that it does not have.
        unsafe {
            type F = unsafe extern "C" fn(u64, u64, u64, u64, u64, u64, u64, u64, u64, u64) -> u64;
            let function: F = std::mem::transmute(at);
            let _down = front.down();
            Ok(function(a, b, c, d, e, f, g, i, j, k))
        }
    }
}
