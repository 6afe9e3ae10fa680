//! Address handles.
//!
//! What a reader would get wrong: queue pairs that had one address may be on several ports after a restart. So there is one real handle for
//! each port that the application's leads to, made when a datagram is first sent there: only then is the number known.

use std::ffi::c_int;

use rdma_sys::{ibv_ah, ibv_ah_attr, ibv_context, ibv_grh, ibv_pd, ibv_wc};

use crate::address::{self, Address};
use crate::below::{Function, errno, inside, set_errno};
use crate::header::{self, Header};
use crate::known::HAS_GRH;
use crate::lock::Lock;
use crate::objects::{Ah, Context, Destination, Names, Way, real, real_context};
use crate::pass::word;
use crate::world;

static CREATE_AH: Function = Function::new(c"ibv_create_ah");
static INIT_AH: Function = Function::new(c"ibv_init_ah_from_wc");
static DESTROY_AH: Function = Function::new(c"ibv_destroy_ah");

/// Where a handle leads in this start. `None`: nobody can tell.
///
/// # Safety
/// A context of ours; the bytes of the address are written, if there is one.
pub(crate) unsafe fn way(
    context: *mut ibv_context,
    attr: &ibv_ah_attr,
    number: u32,
) -> Option<(ibv_ah_attr, u32)> {
    // SAFETY: the caller's promise; plain numbers.
    unsafe {
        let mut now = std::ptr::read(attr);
        let number = address::there(&mut now, number)?;
        if now.is_global != 0 && address::changed() {
            let names = &Context::of(Context::whole(context)).own;
            now.grh.sgid_index = names.index(attr.port_num, attr.grh.sgid_index);
        }
        Some((now, number))
    }
}

/// # Safety
/// As for [`way`].
unsafe fn destination(attr: &ibv_ah_attr) -> Destination {
    // SAFETY: the caller's promise.
    ((attr.is_global != 0).then_some(unsafe { attr.grh.dgid.raw }), attr.dlid)
}

/// The real handle for what one of ours leads to; 0: errno says why there is none.
///
/// # Safety
/// A handle of ours, and where it leads in this start.
unsafe fn real_one(ah: *mut ibv_ah, now: &mut ibv_ah_attr) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        let (own, to) = (Ah::of(ah), destination(now));
        let pd = real(own.public.pd);
        own.own.made.with(|made| {
            if let Some((_, at)) = made.iter().find(|(there, _)| *there == to) {
                return *at;
            }
            let at = CREATE_AH.object(&[pd, word(std::ptr::from_mut(now))]);
            if at != 0 {
                made.push((to, at));
            }
            at
        })
    }
}

/// The real handle for a datagram to this queue pair, and its number now. `Err`: why there is none.
///
/// # Safety
/// A handle of ours, in the front.
pub(crate) unsafe fn lead(ah: *mut ibv_ah, number: u32) -> Result<(usize, u32), c_int> {
    // SAFETY: the caller's promise.
    unsafe {
        if !address::changed() || ah.is_null() {
            return Ok((real(ah) as usize, number));
        }
        let own = Ah::of(ah);
        let Some((mut now, number)) = way(own.public.context, &own.own.attr, number) else {
            return Err(libc::EADDRNOTAVAIL);
        };
        match real_one(ah, &mut now) {
            0 => Err(errno()),
            at => Ok((at, number)),
        }
    }
}

/// Makes the real handle, if it is clear already where it leads. False: errno says why there is none.
///
/// # Safety
/// A handle of ours.
unsafe fn make(ah: *mut ibv_ah) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let own = Ah::of(ah);
        let Some((mut now, _)) = way(own.public.context, &own.own.attr, 0) else { return true };
        let at = real_one(ah, &mut now);
        own.renew(at);
        at != 0
    }
}

/// After a restart.
///
/// # Safety
/// As for [`make`].
pub(crate) unsafe fn again(ah: *mut ibv_ah) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let own = Ah::of(ah);
        own.own.made.with(Vec::clear);
        own.renew(0);
        make(ah)
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_create_ah(pd: *mut ibv_pd, attr: *mut ibv_ah_attr) -> *mut ibv_ah {
    let _front = inside();
    // SAFETY: a domain of ours, and the application's attributes.
    unsafe {
        let way = Way { attr: std::ptr::read(attr), made: Lock::default() };
        let public = ibv_ah { context: (*pd).context, pd, handle: 0 };
        let own = Ah::with(public, 0, way).give();
        if !make(own) {
            let why = *libc::__errno_location();
            Ah::take(own);
            set_errno(why);
            return std::ptr::null_mut();
        }
        if real(own) != 0 {
            (*own).handle = (*std::ptr::with_exposed_provenance::<ibv_ah>(real(own) as usize)).handle;
        }
        world::enter(world::Kind::Ah, own.expose_provenance());
        own
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_destroy_ah(ah: *mut ibv_ah) -> c_int {
    let _front = inside();
    // SAFETY: a handle of ours, which the application gives back.
    unsafe {
        let r = Ah::of(ah).own.made.with(|made| {
            while let Some((_, at)) = made.last() {
                let r = DESTROY_AH.int(&[*at as u64]);
                if r != 0 {
                    return r;
                }
                made.pop();
            }
            0
        });
        if r == 0 {
            world::leave(world::Kind::Ah, ah.expose_provenance());
            Ah::take(ah);
        }
        r
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_create_ah_from_wc(
    pd: *mut ibv_pd,
    wc: *mut ibv_wc,
    grh: *mut ibv_grh,
    port: u8,
) -> *mut ibv_ah {
    // SAFETY: a domain of ours; attributes of zeros, to be filled in.
    unsafe {
        let mut attr: ibv_ah_attr = std::mem::zeroed();
        if ibv_init_ah_from_wc((*pd).context, port, wc, grh, &raw mut attr) != 0 {
            return std::ptr::null_mut();
        }
        ibv_create_ah(pd, &raw mut attr)
    }
}

/// A global header in which the receiver has the address that it has in this start: the real library looks for that among those of the
/// port. The sender keeps its name.
fn for_device(names: &Names, port: u8, header: &Header) -> Header {
    let mut copy = *header;
    let at = usize::from(port).wrapping_sub(1);
    let [from, to] = header::ends(header);
    let real = names.now.with(|now| {
        let (was, now) = (names.ports.get(at)?, now.get(at)?);
        let mut places = was.addresses().filter(|(_, name)| *name == Address::Gid(to));
        places.find_map(|(place, _)| was.stands_for(place, now))
    });
    if let Some(Address::Gid(real)) = real {
        header::put(&mut copy, [from, real]);
    }
    copy
}

/// Completion and header have the application's names, whenever they came; what comes of them has, too.
#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_init_ah_from_wc(
    context: *mut ibv_context,
    port: u8,
    wc: *mut ibv_wc,
    grh: *mut ibv_grh,
    attr: *mut ibv_ah_attr,
) -> c_int {
    let _front = inside();
    // SAFETY: a context of ours, and the application's room.
    unsafe {
        let names = &Context::of(Context::whole(context)).own;
        let header = grh.cast::<Header>();
        let translated = address::changed() && !grh.is_null() && (*wc).wc_flags & HAS_GRH != 0;
        let copy = translated.then(|| for_device(names, port, &*header));
        let header = copy.as_ref().map_or(header.cast_const(), std::ptr::from_ref);
        let r = INIT_AH.int(&[real_context(context), word(port), word(wc), word(header), word(attr)]);
        if r != 0 {
            set_errno(errno());
        } else if address::changed() {
            let a = &mut *attr;
            if let Some(k) = (0..=u8::MAX).find(|k| names.index(a.port_num, *k) == a.grh.sgid_index) {
                a.grh.sgid_index = k;
            }
        }
        r
    }
}
