//! Protection domains, memory regions.

use std::ffi::{c_int, c_uint, c_void};

use rdma_sys::{ibv_context, ibv_mr, ibv_pd};
use stillpoint_sys::raw::nr;
use stillpoint_sys::sys;

use crate::below::{Function, errno, inside};
use crate::objects::{Mr, Object, Pd, Region, real, real_context};
use crate::pass::word;
use crate::{device, guarded, keys, world};

/// IBV_ACCESS_ON_DEMAND: the device asks for pages when it wants them.
const ON_DEMAND: u32 = 1 << 6;
/// IBV_REREG_MR_ERR_CMD: the region is no good any more.
const ERR_CMD: c_int = -4;

static ALLOC_PD: Function = Function::new(c"ibv_alloc_pd");
static DEALLOC_PD: Function = Function::new(c"ibv_dealloc_pd");
static REG_MR: Function = Function::new(c"ibv_reg_mr");
static REG_MR_IOVA2: Function = Function::new(c"ibv_reg_mr_iova2");
static REREG_MR: Function = Function::new(c"ibv_rereg_mr");
static DEREG_MR: Function = Function::new(c"ibv_dereg_mr");

/// What the real library's objects show of themselves.
///
/// # Safety
/// `at` is the address of such an object, in this start.
pub(crate) unsafe fn there<'a, P>(at: usize) -> &'a P {
    // SAFETY: the caller's promise.
    unsafe { &*std::ptr::with_exposed_provenance::<P>(at) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_alloc_pd(context: *mut ibv_context) -> *mut ibv_pd {
    let _front = inside();
    // SAFETY: a context of ours.
    let at = ALLOC_PD.object(&[unsafe { real_context(context) }]);
    if at == 0 {
        return std::ptr::null_mut();
    }
    // SAFETY: made just now.
    let handle = unsafe { there::<ibv_pd>(at) }.handle;
    let own = Object::new(ibv_pd { context, handle }, at).give();
    world::enter(world::Kind::Pd, own.expose_provenance());
    own
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_dealloc_pd(pd: *mut ibv_pd) -> c_int {
    let _front = inside();
    // SAFETY: a domain of ours, which the application gives back.
    unsafe {
        let r = DEALLOC_PD.int(&[real(pd)]);
        if r == 0 {
            world::leave(world::Kind::Pd, pd.expose_provenance());
            Pd::take(pd);
        }
        r
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_dereg_mr(mr: *mut ibv_mr) -> c_int {
    let _front = inside();
    // SAFETY: a region of ours, which the application gives back.
    unsafe {
        let r = DEREG_MR.int(&[real(mr)]);
        if r == 0 {
            keys::set(device::number((*mr).context), (*mr).lkey, None);
            world::leave(world::Kind::Mr, mr.expose_provenance());
            Mr::take(mr);
        }
        r
    }
}

/// A key that another region of the application's had before a restart would mean two.
fn is_taken(device: u32, m: &ibv_mr) -> bool {
    keys::is_taken(device, m.lkey) || keys::is_taken(device, m.rkey)
}

/// Makes a real region on this device whose keys no other one has had; 0: errno says why not.
///
/// # Safety
/// `make` returns the address of a real region, or 0.
unsafe fn fresh(device: u32, make: impl Fn() -> usize) -> usize {
    let mut taken = Vec::new();
    let at = loop {
        let at = make();
        // SAFETY: the caller's promise.
        if at == 0 || !is_taken(device, unsafe { there::<ibv_mr>(at) }) {
            break at;
        }
        taken.push(at);
    };
    for t in taken {
        DEREG_MR.int(&[t as u64]);
    }
    at
}

/// A region, by whichever of the three functions.
///
/// # Safety
/// A domain of ours, and memory of the application's.
unsafe fn region(
    pd: *mut ibv_pd,
    (addr, length): (*mut c_void, usize),
    own: Region,
    make: impl Fn(u64) -> usize,
) -> *mut ibv_mr {
    // SAFETY: the caller's promise.
    unsafe {
        let device = device::number((*pd).context);
        let at = fresh(device, || make(real(pd)));
        if at == 0 {
            return std::ptr::null_mut();
        }
        let m = there::<ibv_mr>(at);
        let (lkey, rkey) = (m.lkey, m.rkey);
        let public = ibv_mr { context: (*pd).context, pd, addr, length, handle: m.handle, lkey, rkey };
        keys::set(device, lkey, Some(lkey));
        let own = Mr::with(public, at, own).give();
        world::enter(world::Kind::Mr, own.expose_provenance());
        own
    }
}

/// A region over memory that is not mapped any more: nobody could make it again.
///
/// # Safety
/// The objects of the world live.
pub(crate) unsafe fn unsavable() -> Option<String> {
    for at in world::all(world::Kind::Mr) {
        // SAFETY: the caller's promise.
        let Mr { public: m, own, .. } =
            unsafe { Mr::of(std::ptr::with_exposed_provenance_mut::<ibv_mr>(at)) };
        let (addr, length) = (m.addr.expose_provenance(), m.length);
        if own.access & ON_DEMAND == 0 && !is_mapped(addr, length) {
            return Some(format!(
                "memory region {:#x} of {length} bytes at {addr:#x}: its memory is not mapped any more; ibv_dereg_mr ends the region",
                m.lkey
            ));
        }
    }
    None
}

/// Whether all of it is mapped, by whatever. An implicit region, which has no end, is of all memory that there is.
fn is_mapped(addr: usize, length: usize) -> bool {
    const PAGE: usize = 4096;
    let start = addr & !(PAGE - 1);
    let Some(end) = addr.checked_add(length).filter(|_| length != 0 && length != usize::MAX) else {
        return true;
    };
    // SAFETY: writes nothing: with MS_ASYNC it only looks whether there is memory (msync(2), ENOMEM).
    let r = unsafe { sys!(nr::MSYNC, start, end - start, libc::MS_ASYNC) };
    r != -(libc::ENOMEM as isize)
}

/// Makes the real region of one of ours, in a real domain; 0: errno says why not.
pub(crate) fn make_region(pd: u64, addr: *mut c_void, length: usize, own: &Region) -> usize {
    let (addr, length, access) = (word(addr), word(length), word(own.access));
    match own.iova {
        None => REG_MR.object(&[pd, addr, length, access]),
        Some(iova) => REG_MR_IOVA2.object(&[pd, addr, length, iova, access]),
    }
}

/// The same after a restart, where the memory is what it was at the still point.
pub(crate) fn make_region_again(pd: u64, addr: *mut c_void, length: usize, own: &Region) -> usize {
    match make_region(pd, addr, length, own) {
        0 if errno() == libc::EFAULT => {
            guarded::opened(addr.expose_provenance(), length, || make_region(pd, addr, length, own))
        }
        at => at,
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_reg_mr(
    pd: *mut ibv_pd,
    addr: *mut c_void,
    length: usize,
    access: c_int,
) -> *mut ibv_mr {
    let _front = inside();
    let own = || Region { access: access as u32, iova: None };
    // SAFETY: a domain of ours.
    unsafe { region(pd, (addr, length), own(), |pd| make_region(pd, addr, length, &own())) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_reg_mr_iova(
    pd: *mut ibv_pd,
    addr: *mut c_void,
    length: usize,
    iova: u64,
    access: c_int,
) -> *mut ibv_mr {
    // SAFETY: a domain of ours.
    unsafe { ibv_reg_mr_iova2(pd, addr, length, iova, access as u32) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_reg_mr_iova2(
    pd: *mut ibv_pd,
    addr: *mut c_void,
    length: usize,
    iova: u64,
    access: c_uint,
) -> *mut ibv_mr {
    let _front = inside();
    let own = || Region { access, iova: Some(iova) };
    // SAFETY: a domain of ours.
    unsafe { region(pd, (addr, length), own(), |pd| make_region(pd, addr, length, &own())) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_rereg_mr(
    mr: *mut ibv_mr,
    flags: c_int,
    pd: *mut ibv_pd,
    addr: *mut c_void,
    length: usize,
    access: c_int,
) -> c_int {
    let _front = inside();
    // SAFETY: objects of ours; the real region shows what it is now.
    unsafe {
        let at = real(mr);
        let before = there::<ibv_mr>(at as usize);
        let before = (before.lkey, before.rkey);
        let r = REREG_MR.int(&[at, word(flags), real(pd), word(addr), word(length), word(access)]);
        if r != 0 {
            return r;
        }
        let own = Mr::of(mr);
        // IBV_REREG_MR_CHANGE_TRANSLATION, _PD, _ACCESS.
        if flags & 1 != 0 {
            (own.public.addr, own.public.length, own.own.iova) = (addr, length, None);
        }
        if flags & 2 != 0 {
            own.public.pd = pd;
        }
        if flags & 4 != 0 {
            own.own.access = access as u32;
        }
        let mut now = there::<ibv_mr>(at as usize);
        let device = device::number(own.public.context);
        if (now.lkey, now.rkey) != before && is_taken(device, now) {
            // Another region in its place.
            let (addr, length, pd) = (own.public.addr, own.public.length, real(own.public.pd));
            let new = fresh(device, || make_region(pd, addr, length, &own.own));
            if new == 0 {
                return ERR_CMD;
            }
            DEREG_MR.int(&[at]);
            own.renew(new);
            now = there::<ibv_mr>(new);
        }
        // The application goes on to know it by its former keys, if the real ones are what they were.
        if (now.lkey, now.rkey) != before {
            keys::set(device, own.public.lkey, None);
            keys::set(device, now.lkey, Some(now.lkey));
            (own.public.lkey, own.public.rkey) = (now.lkey, now.rkey);
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_gone_is_missed() {
        let two = 2 * 4096;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a mapping of its own.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), two, libc::PROT_READ, flags, -1, 0) }
            .expose_provenance();
        assert!(
            is_mapped(at, two) && is_mapped(at + 5000, 10) && is_mapped(0, usize::MAX) && is_mapped(7, 0)
        );
        // SAFETY: the second page of it.
        unsafe { libc::munmap(std::ptr::with_exposed_provenance_mut(at + 4096), 4096) };
        assert!(is_mapped(at + 5, 4091) && !is_mapped(at, 4097) && !is_mapped(at + 5000, 10));
    }
}
