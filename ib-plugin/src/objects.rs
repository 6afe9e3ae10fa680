//! What the application sees, and the real object behind it.
//!
//! ```text
//!   ibv_qp as verbs.h has it │ address of the real ibv_qp, in this start │ …
//!   ▲ the application's pointer
//! ```
//!
//! What a reader would get wrong: the context is in the middle of its object, as in rdma-core: `verbs_context`, the extended table,
//! lies before what the application has a pointer to.

use std::collections::VecDeque;
use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicUsize};

use rdma_sys::{
    ibv_ah, ibv_ah_attr, ibv_comp_channel, ibv_context, ibv_cq, ibv_cq_ex, ibv_device, ibv_mr, ibv_mw,
    ibv_pd, ibv_qp, ibv_qp_attr, ibv_qp_cap, ibv_qp_ex, ibv_srq, ibv_srq_attr, ibv_wc, ibv_xrcd,
    verbs_context,
};

use crate::address::{Address, Port, Raw};
use crate::descriptor::Unread;
use crate::domain::{Domain, Extended};
use crate::event::Event;
use crate::extend::{Batch, Poll};
use crate::group::Groups;
use crate::keys::Remote;
use crate::lock::Lock;
use crate::log::Queue;
use crate::lone::Silent;
use crate::notice::Notice;
use crate::patience::Finite;
use crate::post::Posts;
use crate::window::Window;

/// An object: what is public of it, the real one, and what is ours alone.
#[repr(C)]
pub(crate) struct Object<P, X = ()> {
    pub(crate) public: P,
    real: AtomicUsize,
    pub(crate) own: X,
}

/// What has come from below.
#[derive(Default)]
pub(crate) struct Came {
    /// Completions that were brought home, which come before any from below; with the places of their queue pairs.
    pub(crate) list: VecDeque<(u32, ibv_wc)>,
    pub(crate) notice: Notice,
}

/// A queue of completions.
#[derive(Default)]
pub(crate) struct Home {
    pub(crate) queue: Lock<Came>,
    /// How many were brought home.
    pub(crate) len: AtomicUsize,
    /// Entries that the real queue must have besides those that the application knows of: all work is signaled below.
    pub(crate) more: Lock<usize>,
    pub(crate) vector: i32,
    /// Events that were given and not acknowledged: those of the real queue, and those that it knows nothing of.
    pub(crate) open: AtomicU32,
    pub(crate) given: AtomicU32,
    pub(crate) poll: Poll,
    /// Queue pairs that send here and are to give up; whether there are any.
    pub(crate) finite: Lock<Finite>,
    pub(crate) patient: AtomicBool,
    pub(crate) asynchronous: Given,
}

/// Asynchronous events of an object that were given and are not acknowledged: those of its real object, and those that it knows nothing of.
#[derive(Default)]
pub(crate) struct Given(AtomicU32, AtomicU32);

impl Given {
    pub(crate) fn give(&self, from_above: bool) {
        if from_above { &self.1 } else { &self.0 }.fetch_add(1, Relaxed);
    }

    /// Whether the real object is to hear of an acknowledgement.
    pub(crate) fn acknowledge(&self) -> bool {
        let less = |n: &AtomicU32| n.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1)).is_ok();
        !less(&self.1) && less(&self.0)
    }

    /// Another start, and another real object.
    pub(crate) fn forget(&self) {
        self.1.fetch_add(self.0.swap(0, Relaxed), Relaxed);
    }

    /// Whether all were acknowledged.
    pub(crate) fn is_none(&self) -> bool {
        self.0.load(Relaxed) == 0 && self.1.load(Relaxed) == 0
    }
}

/// A channel: queues whose events are unread, and flags of its descriptor.
#[derive(Default)]
pub(crate) struct Wake {
    pub(crate) unread: Unread<usize>,
    /// A queue whose last event was for nothing, as nobody has been told yet; 0: none.
    pub(crate) early: AtomicUsize,
    pub(crate) flags: Flags,
}

/// Of a descriptor of ours: status flags, and FD_CLOEXEC, when the image was taken.
#[derive(Default)]
pub(crate) struct Flags {
    pub(crate) status: AtomicI32,
    pub(crate) own: AtomicI32,
}

/// What a region was made with.
pub(crate) struct Region {
    pub(crate) access: u32,
    /// Where the device sees it, if not at its address.
    pub(crate) iova: Option<u64>,
}

/// A shared receive queue: its log and the place of that ([`crate::log::queue`]), and its sizes.
pub(crate) struct Shared {
    pub(crate) place: u32,
    pub(crate) logs: &'static Queue,
    pub(crate) limits: Lock<Limits>,
    /// Of a domain of extended connections.
    pub(crate) extended: Option<Extended>,
    pub(crate) asynchronous: Given,
}

/// Sizes of a shared queue, and the limit that an event is wanted at (0: none).
pub(crate) struct Limits(pub(crate) ibv_srq_attr);

/// A queue pair.
pub(crate) struct Pair {
    /// Its logs, and their place.
    pub(crate) logs: &'static Queue,
    pub(crate) place: u32,
    /// What the real context has for posting in this start ([`crate::post::Posts`]): three loads less on the way of a message.
    pub(crate) post: Posts,
    /// In which start it was made ([`crate::known::starts`]).
    pub(crate) start: u32,
    pub(crate) cap: ibv_qp_cap,
    /// The domain of one that receives in an extended connection; the shared queue that the other end's oldest request has named last.
    pub(crate) xrcd: usize,
    pub(crate) wanted: AtomicU32,
    /// At the last still point its other end was gone ([`crate::lone`]).
    pub(crate) alone: AtomicBool,
    pub(crate) told: Lock<Told>,
    /// By the application's remote key, the device's; after a restart.
    pub(crate) remote: Lock<Arc<Remote>>,
    /// Multicast groups that it is attached to.
    pub(crate) groups: Groups,
    pub(crate) asynchronous: Given,
    /// A kind of asynchronous event that the application had before, and that comes again because the queue pair was made again; 0: none.
    pub(crate) unwanted: AtomicU32,
    /// Made for requests that are built piece by piece; those that are.
    pub(crate) extended: bool,
    pub(crate) batch: Lock<Batch>,
    /// 1: from wr_start to wr_complete or wr_abort, for one thread.
    pub(crate) building: AtomicU32,
}

/// What a queue pair was told last, and which of that.
pub(crate) struct Told {
    pub(crate) attr: ibv_qp_attr,
    pub(crate) mask: u32,
}

/// What the ports of a context are called: as the application knows it, and in this start.
#[derive(Default)]
pub(crate) struct Names {
    /// Of the descriptor of asynchronous events; and those that are unread.
    pub(crate) flags: Flags,
    pub(crate) unread: Unread<Event>,
    pub(crate) ports: Vec<Port>,
    pub(crate) now: Lock<Vec<Port>>,
    pub(crate) silent: Lock<Silent>,
}

impl Names {
    /// The index in this start of an address of a port; the same if there is none of its kind.
    pub(crate) fn index(&self, port: u8, at: u8) -> u8 {
        let port = usize::from(port).wrapping_sub(1);
        let now = self.now.with(|now| self.ports.get(port)?.place(usize::from(at), now.get(port)?));
        now.and_then(|n| u8::try_from(n).ok()).unwrap_or(at)
    }

    /// The same of a partition key. `None`: the port is not in that partition.
    pub(crate) fn partition(&self, port: u8, at: u16) -> Option<u16> {
        let port = usize::from(port).wrapping_sub(1);
        let both = self.now.with(|now| {
            let (was, now) = self.ports.get(port).zip(now.get(port))?;
            Some(was.partition(usize::from(at), now))
        });
        both.map_or(Some(at), |there| there.and_then(|n| u16::try_from(n).ok()))
    }
}

/// An address handle: where the application wants it to lead.
pub(crate) struct Way {
    pub(crate) attr: ibv_ah_attr,
    /// Real ones of this start, by where they lead: of queue pairs that had one address, some may be on another port now.
    pub(crate) made: Lock<Vec<(Destination, usize)>>,
}

/// GID, if there is one, and LID.
pub(crate) type Destination = (Option<Raw>, u16);

/// A device: what its ports are called, once the application has opened it: all of its contexts say the same. And what they are called in
/// this start.
#[derive(Default)]
pub(crate) struct Card {
    /// Which of this process's devices: keys are unique within one of them only.
    pub(crate) number: u32,
    pub(crate) ports: Lock<Option<Vec<Port>>>,
    pub(crate) now: Lock<Vec<Port>>,
    pub(crate) besides: Lock<Vec<Besides>>,
}

/// Another name of a port, for queue pairs that were made in one start: others have seen where their datagrams come from.
#[derive(Clone, Copy)]
pub(crate) struct Besides {
    pub(crate) start: u32,
    /// From 0.
    pub(crate) port: usize,
    /// Of which of the port's addresses ([`Port::addresses`]).
    pub(crate) at: Option<usize>,
    pub(crate) name: Address,
}

/// What the application has a pointer to: the beginning of this.
pub(crate) trait Public {
    type Whole;
}

macro_rules! public {
    ($($p:ty => $whole:ty;)*) => {$(impl Public for $p {
        type Whole = $whole;
    })*};
}
// Of two there is a longer form, which every object has.
public! {
    ibv_device => Self;
    ibv_pd => Self;
    ibv_mr => Self;
    ibv_mw => Self;
    ibv_comp_channel => Self;
    ibv_cq => ibv_cq_ex;
    ibv_cq_ex => Self;
    ibv_srq => Self;
    ibv_qp => ibv_qp_ex;
    ibv_qp_ex => Self;
    ibv_ah => Self;
    ibv_xrcd => Self;
    verbs_context => Self;
}

pub(crate) type Device = Object<ibv_device, Card>;
pub(crate) type Pd = Object<ibv_pd>;
pub(crate) type Xrcd = Object<ibv_xrcd, Domain>;
pub(crate) type Mr = Object<ibv_mr, Region>;
pub(crate) type Mw = Object<ibv_mw, Window>;
pub(crate) type Channel = Object<ibv_comp_channel, Wake>;
pub(crate) type Cq = Object<ibv_cq_ex, Home>;
pub(crate) type Srq = Object<ibv_srq, Shared>;
pub(crate) type Qp = Object<ibv_qp_ex, Pair>;
pub(crate) type Ah = Object<ibv_ah, Way>;
pub(crate) type Context = Object<verbs_context, Names>;

impl<P> Object<P> {
    pub(crate) fn new(public: P, real: usize) -> Box<Object<P>> {
        Object::with(public, real, ())
    }
}

impl<P, X> Object<P, X> {
    pub(crate) fn with(public: P, real: usize, own: X) -> Box<Object<P, X>> {
        Box::new(Object { public, real: AtomicUsize::new(real), own })
    }

    /// The application's pointer; it has the object from now on.
    pub(crate) fn give(self: Box<Self>) -> *mut P {
        Box::into_raw(self).cast()
    }

    /// There is another real one.
    pub(crate) fn renew(&self, real: usize) {
        self.real.store(real, Release);
    }

    /// The object that the application's pointer leads to.
    ///
    /// # Safety
    /// [`Object::give`] has given it, and it has not been destroyed.
    pub(crate) unsafe fn of<'a, Q: Public<Whole = P>>(public: *mut Q) -> &'a mut Object<P, X> {
        // SAFETY: the caller's promise; `public` is the first member.
        unsafe { &mut *public.cast::<Object<P, X>>() }
    }

    /// Ends the object.
    ///
    /// # Safety
    /// As for [`Object::of`]; nobody uses it any more.
    pub(crate) unsafe fn take<Q: Public<Whole = P>>(public: *mut Q) {
        // SAFETY: the caller's promise; the box was given away.
        drop(unsafe { Box::from_raw(public.cast::<Object<P, X>>()) });
    }
}

/// The address of the real object behind the application's pointer, as an argument; null stays null.
///
/// # Safety
/// As for [`Object::of`].
pub(crate) unsafe fn real<P: Public>(public: *mut P) -> u64 {
    // SAFETY: the caller's promise.
    if public.is_null() { 0 } else { unsafe { real_one(public) as u64 } }
}

/// The same of one that is there.
///
/// # Safety
/// As for [`Object::of`].
pub(crate) unsafe fn real_one<P: Public>(public: *mut P) -> usize {
    // SAFETY: the caller's promise; what is ours alone lies behind the two.
    (unsafe { &*public.cast::<Object<P::Whole>>() }).real.load(Relaxed)
}

impl Context {
    /// The application's pointer.
    pub(crate) fn give_context(self: Box<Self>) -> *mut ibv_context {
        let all: *mut verbs_context = self.give();
        // SAFETY: a member of the object.
        unsafe { &raw mut (*all).context }
    }

    /// The object's own pointer.
    ///
    /// # Safety
    /// [`Context::give_context`] has given it.
    pub(crate) unsafe fn whole(context: *mut ibv_context) -> *mut verbs_context {
        // SAFETY: the caller's promise: the context is that member of such an object.
        unsafe { context.byte_sub(offset_of!(verbs_context, context)).cast() }
    }
}

/// The real context behind the application's, as an argument.
///
/// # Safety
/// As for [`Context::whole`].
pub(crate) unsafe fn real_context(context: *mut ibv_context) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { real(Context::whole(context)) }
}
