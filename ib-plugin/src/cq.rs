//! Completion queues: made, resized, ended. *Upper half*.
//!
//! What a reader would get wrong: the real queue is larger than the application's, by all requests of the queue pairs that send there:
//! all work is signaled below. It is resized by one thread at a time, or one would make it smaller again than another one needs.

use std::ffi::{c_int, c_void};
use std::sync::atomic::Ordering::SeqCst;

use rdma_sys::{ibv_comp_channel, ibv_context, ibv_cq, ibv_cq_ex};

use crate::below::{Function, inside};
use crate::objects::{Channel, Cq, Home, real, real_context};
use crate::pass::word;
use crate::queue::made;
use crate::{event, extend, world};

static CREATE_CQ: Function = Function::new(c"ibv_create_cq");
static RESIZE_CQ: Function = Function::new(c"ibv_resize_cq");
static DESTROY_CQ: Function = Function::new(c"ibv_destroy_cq");

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ibv_create_cq(
    context: *mut ibv_context,
    cqe: c_int,
    cq_context: *mut c_void,
    channel: *mut ibv_comp_channel,
    vector: c_int,
) -> *mut ibv_cq {
    let _front = inside();
    // SAFETY: objects of ours. A mutex and a condition of zeros are free (glibc).
    unsafe {
        let mut public: ibv_cq_ex = std::mem::zeroed();
        extend::fill_cq(&mut public);
        (public.context, public.channel, public.cq_context) = (context, channel, cq_context);
        let make =
            |own| CREATE_CQ.object(&[real_context(context), word(cqe), own, real(channel), word(vector)]);
        let home = Home { vector, ..Home::default() };
        let Some(own) = made(public, home, make) else { return std::ptr::null_mut() };
        let own = own.cast::<ibv_cq>();
        let there = &*std::ptr::with_exposed_provenance::<ibv_cq>(real(own) as usize);
        ((*own).handle, (*own).cqe) = (there.handle, there.cqe);
        world::enter(world::Kind::Cq, own.expose_provenance());
        own
    }
}

/// How many completions there is room for below.
///
/// # Safety
/// For all of these: a queue of ours.
unsafe fn room(cq: *mut ibv_cq) -> c_int {
    // SAFETY: the caller's promise; the real one shows its size.
    unsafe { (*std::ptr::with_exposed_provenance::<ibv_cq>(real(cq) as usize)).cqe }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_resize_cq(cq: *mut ibv_cq, cqe: c_int) -> c_int {
    let _front = inside();
    // SAFETY: a queue of ours.
    unsafe {
        Cq::of(cq).own.more.with(|more| {
            let r = RESIZE_CQ.int(&[real(cq), word(cqe) + *more as u64]);
            if r == 0 {
                (*cq).cqe = room(cq) - c_int::try_from(*more).unwrap_or(0);
            }
            r
        })
    }
}

/// Makes room for so many more completions. 0, or the number of an error: there is none.
pub(crate) unsafe fn reserve(cq: *mut ibv_cq, by: u32) -> c_int {
    if cq.is_null() {
        return 0;
    }
    // SAFETY: the caller's promise.
    unsafe {
        Cq::of(cq).own.more.with(|more| {
            *more += by as usize;
            let need = usize::try_from((*cq).cqe).unwrap_or(0) + *more;
            if usize::try_from(room(cq)).is_ok_and(|n| n >= need) {
                0
            } else {
                RESIZE_CQ.int(&[real(cq), need as u64])
            }
        })
    }
}

/// Its queue pair is gone, or was not made.
pub(crate) unsafe fn release(cq: *mut ibv_cq, by: u32) {
    if !cq.is_null() {
        // SAFETY: the caller's promise.
        unsafe { Cq::of(cq).own.more.with(|more| *more -= by as usize) };
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_destroy_cq(cq: *mut ibv_cq) -> c_int {
    // SAFETY: a queue of ours, which the application gives back.
    unsafe {
        let own = &Cq::of(cq).own;
        let is_over =
            || own.open.load(SeqCst) == 0 && own.given.load(SeqCst) == 0 && own.asynchronous.is_none();
        loop {
            event::acknowledged(is_over);
            let _front = inside();
            // From here on nobody is given an event of it.
            world::leave(world::Kind::Cq, cq.expose_provenance());
            if !is_over() {
                world::enter(world::Kind::Cq, cq.expose_provenance());
                continue;
            }
            let r = DESTROY_CQ.int(&[real(cq)]);
            if r == 0 {
                event::forget_queue(cq);
                Cq::take(cq);
            } else {
                world::enter(world::Kind::Cq, cq.expose_provenance());
                // It stays, and one that was to be given meanwhile was not.
                let asked = own.queue.with(|came| came.notice.is_asked());
                if !asked && !(*cq).channel.is_null() {
                    Channel::of((*cq).channel).own.unread.push(cq.expose_provenance());
                }
            }
            return r;
        }
    }
}
