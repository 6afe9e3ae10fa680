//! Who takes part in a checkpoint with something of its own below: the MPI front, the verbs front, anybody's. Upper half's
//! page; runs in both halves.
//!
//! ```text
//!              COUNTS          DRAIN …               snapshot   RESUME
//!   plugin 0 ──── out ─┐  ┌─▶ in ─ 1, 1, 0 ──────┐            ┌──────
//!   plugin 1 ──── out ─┴─▶┴─▶ in ─ 1, 2: out ─┐  └─ … until ──┴──────     in the order in which they have registered
//!                      round 0                └─▶ round 1    all are done
//! ```
//!
//! What a reader would get wrong: plugins of several ranks find each other by name, not by place: one rank may have loaded
//! what another has not. And a plugin that is not [`Plugin::live`] gets no command, but its entry stays for ever: images
//! hold it.

use crate::half::refuse;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicUsize};

/// Plugins that a rank can have.
pub const MAX_PLUGINS: usize = 16;
/// Bytes of a plugin's name.
pub const NAME_LEN: usize = 24;
/// Kinds of things that a plugin can say it cannot save.
pub const MAX_REFUSALS: usize = 8;

/// The name of the MPI front.
pub const MPI: &str = "mpi";

/// Something that a plugin cannot save yet.
#[repr(C)]
#[derive(Debug)]
pub struct Refusal {
    /// Address of what it is called in a message to the user, zero-terminated, in the window.
    pub text: AtomicUsize,
    /// How many of them there are. While there is one, checkpoints are refused.
    pub count: AtomicU32,
}

/// A plugin.
#[repr(C)]
#[derive(Debug)]
pub struct Plugin {
    /// `extern "C" fn(cmd: u32, arg: *mut StillArg) -> i64` ([`crate::half::still`]).
    pub still: AtomicUsize,
    /// Zero-padded.
    name: [AtomicU8; NAME_LEN],
    /// 1: the entry is complete.
    ready: AtomicU32,
    /// 1 while it has anything below: only then it gets commands.
    pub live: AtomicU32,
    /// What it cannot save.
    pub refusals: [Refusal; MAX_REFUSALS],
}

/// All of a rank, in the order in which they have registered.
#[repr(C)]
#[derive(Debug)]
pub struct Plugins {
    taken: AtomicU32,
    list: [Plugin; MAX_PLUGINS],
}

impl Plugin {
    const fn new() -> Plugin {
        Plugin {
            still: AtomicUsize::new(0),
            name: [const { AtomicU8::new(0) }; NAME_LEN],
            ready: AtomicU32::new(0),
            live: AtomicU32::new(0),
            refusals: [const { Refusal { text: AtomicUsize::new(0), count: AtomicU32::new(0) } };
                MAX_REFUSALS],
        }
    }

    /// Writes its name into `room`, and returns it.
    pub fn name<'a>(&self, room: &'a mut [u8; NAME_LEN]) -> &'a str {
        for (to, from) in room.iter_mut().zip(&self.name) {
            *to = from.load(Relaxed);
        }
        let end = room.iter().position(|b| *b == 0).unwrap_or(NAME_LEN);
        core::str::from_utf8(&room[..end]).unwrap_or("")
    }

    /// True if it gets commands.
    pub fn is_live(&self) -> bool {
        self.ready.load(Acquire) != 0 && self.live.load(Acquire) != 0
    }
}

impl Plugins {
    /// None yet; what the page holds when it is mapped.
    pub const fn new() -> Plugins {
        Plugins { taken: AtomicU32::new(0), list: [const { Plugin::new() }; MAX_PLUGINS] }
    }

    /// Registers a plugin. None: the name is taken, empty or too long, or there is no room.
    ///
    /// `texts` are addresses as [`Refusal::text`] says.
    pub fn register(&self, name: &str, still: usize, texts: &[usize]) -> Option<&Plugin> {
        let fits = !name.is_empty() && name.len() <= NAME_LEN && texts.len() <= MAX_REFUSALS;
        if !fits || self.find(name).is_some() {
            return None;
        }
        let at = self.taken.fetch_update(Relaxed, Relaxed, |n| (n < MAX_PLUGINS as u32).then_some(n + 1));
        let p = &self.list[at.ok()? as usize];
        for (to, from) in p.name.iter().zip(name.bytes()) {
            to.store(from, Relaxed);
        }
        for (refusal, text) in p.refusals.iter().zip(texts) {
            refusal.text.store(*text, Relaxed);
        }
        p.still.store(still, Relaxed);
        p.ready.store(1, Release);
        Some(p)
    }

    /// Those that have registered, with their places.
    pub fn all(&self) -> impl Iterator<Item = (usize, &Plugin)> {
        self.list.iter().enumerate().filter(|(_, p)| p.ready.load(Acquire) != 0)
    }

    /// The plugin of this name.
    pub fn find(&self, name: &str) -> Option<&Plugin> {
        self.all().map(|(_, p)| p).find(|p| p.name(&mut [0; NAME_LEN]) == name)
    }

    /// The plugin at this place.
    pub fn get(&self, at: usize) -> Option<&Plugin> {
        self.list.get(at).filter(|p| p.ready.load(Acquire) != 0)
    }
}

impl Default for Plugins {
    fn default() -> Self {
        Plugins::new()
    }
}

const _: () = assert!(refuse::TEXTS.len() <= MAX_REFUSALS);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_taken_once_and_found() {
        let t = Plugins::new();
        assert!(t.find("mpi").is_none() && t.register("", 1, &[]).is_none());
        assert!(t.register("mpi", 7, &[40]).is_some());
        assert!(t.register("mpi", 8, &[]).is_none());
        let long = "a name of 24 bytes, good";
        assert!(
            t.register(long, 9, &[]).is_some() && t.register("a name of 25 bytes, bad!!", 9, &[]).is_none()
        );
        let p = t.find("mpi").unwrap();
        assert_eq!((p.still.load(Relaxed), p.refusals[0].text.load(Relaxed), p.is_live()), (7, 40, false));
        assert_eq!(t.get(1).unwrap().name(&mut [0; NAME_LEN]), long);
        assert!(t.get(2).is_none());
    }

    #[test]
    fn a_full_table_takes_no_more() {
        let t = Plugins::new();
        let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p"];
        assert!(names.iter().all(|n| t.register(n, 1, &[]).is_some()));
        assert!(t.register("q", 1, &[]).is_none());
        assert_eq!(t.all().count(), MAX_PLUGINS);
    }
}
