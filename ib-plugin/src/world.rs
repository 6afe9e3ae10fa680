//! Every object that there is, by kind, and the plugin's place among others.
//!
//! What a reader would get wrong: addresses are kept, not objects: those are the application's, which destroys them.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use stillpoint::plugin::{Plugin, register};

use crate::lock::Lock;

/// A kind of object, in the order in which they are made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Context,
    Pd,
    Xrcd,
    Mr,
    Channel,
    Cq,
    Srq,
    Qp,
    Ah,
    Mw,
}

/// Kind and address.
static ALL: Lock<BTreeSet<(Kind, usize)>> = Lock::new(BTreeSet::new());
static ENTRY: OnceLock<Option<Plugin>> = OnceLock::new();

/// What cannot be saved yet.
const TEXTS: [&std::ffi::CStr; 2] = [
    c"queue pairs that are neither RC, UC, UD nor XRC; they can be saved once they have been destroyed",
    c"queue pairs with an alternate path (IBV_QP_ALT_PATH); they can be saved once they have been destroyed or reset",
];
/// Indexes of these.
pub(crate) const OTHERS: usize = 0;
pub(crate) const ALTERNATES: usize = 1;

fn entry() -> Option<Plugin> {
    *ENTRY.get_or_init(|| register("verbs", crate::front::still, &TEXTS).ok())
}

/// There is one more, or less, of what cannot be saved.
pub(crate) fn refuse(what: usize, by: i32) {
    if let Some(plugin) = entry() {
        let _ = plugin.refuse(what, by);
    }
}

/// From the start on: also a rank that has not looked at devices yet has a word in what those are called after a restart.
#[cfg(not(test))]
extern "C" fn begin() {
    if let Some(plugin) = entry() {
        plugin.live(true);
    }
}

#[cfg(not(test))]
#[used]
#[unsafe(link_section = ".init_array")]
static BEGIN: extern "C" fn() = begin;

/// An object is there.
pub(crate) fn enter(kind: Kind, at: usize) {
    ALL.with(|all| _ = all.insert((kind, at)));
}

/// It is there no more.
pub(crate) fn leave(kind: Kind, at: usize) {
    ALL.with(|all| _ = all.remove(&(kind, at)));
}

/// A context is closed, and what the application has left in it is nobody's.
pub(crate) fn abandon(mut left: impl FnMut(Kind, usize) -> bool) {
    ALL.with(|all| all.retain(|(kind, at)| !left(*kind, *at)));
}

/// The context of an object: its address.
///
/// # Safety
/// Such an object, which lives.
pub(crate) unsafe fn context(kind: Kind, at: usize) -> usize {
    macro_rules! of {
        ($p:ty) => {
            // SAFETY: the caller's promise.
            unsafe { (*std::ptr::with_exposed_provenance::<$p>(at)).context.expose_provenance() }
        };
    }
    match kind {
        Kind::Context => at,
        Kind::Pd => of!(rdma_sys::ibv_pd),
        Kind::Xrcd => of!(rdma_sys::ibv_xrcd),
        Kind::Mr => of!(rdma_sys::ibv_mr),
        Kind::Channel => of!(rdma_sys::ibv_comp_channel),
        Kind::Cq => of!(rdma_sys::ibv_cq),
        Kind::Srq => of!(rdma_sys::ibv_srq),
        Kind::Qp => of!(rdma_sys::ibv_qp),
        Kind::Ah => of!(rdma_sys::ibv_ah),
        Kind::Mw => of!(rdma_sys::ibv_mw),
    }
}

/// Does something with an object that nobody takes away meanwhile ([`leave`]). False: there is none.
pub(crate) fn hold(kind: Kind, at: usize, f: impl FnOnce()) -> bool {
    ALL.with(|all| {
        let is = all.contains(&(kind, at));
        if is {
            f();
        }
        is
    })
}

/// Whether there is such an object at this address.
pub(crate) fn is(kind: Kind, at: usize) -> bool {
    ALL.with(|all| all.contains(&(kind, at)))
}

/// All of a kind, none of which goes meanwhile: addresses.
pub(crate) fn each(kind: Kind, mut f: impl FnMut(usize)) {
    ALL.with(|all| all.iter().filter(|(k, _)| *k == kind).for_each(|(_, at)| f(*at)));
}

/// All of a kind: addresses.
pub(crate) fn all(kind: Kind) -> Vec<usize> {
    ALL.with(|all| all.iter().filter(|(k, _)| *k == kind).map(|(_, at)| *at).collect())
}
