//! Protection domains, memory regions and windows, address handles.

use std::ffi::{c_int, c_uint, c_void};

use rdma_sys::{
    ibv_ah, ibv_ah_attr, ibv_context, ibv_context_ops, ibv_grh, ibv_mr, ibv_mw, ibv_mw_type, ibv_pd, ibv_wc,
};

use crate::below::{Function, by_pointer, errno, fail, inside, set_errno};
use crate::objects::{Ah, Context, Mr, Mw, Object, Pd, Region, Way, real, real_context};
use crate::pass::word;
use crate::{address, keys, world};

static ALLOC_PD: Function = Function::new(c"ibv_alloc_pd");
static DEALLOC_PD: Function = Function::new(c"ibv_dealloc_pd");
static REG_MR: Function = Function::new(c"ibv_reg_mr");
static REG_MR_IOVA2: Function = Function::new(c"ibv_reg_mr_iova2");
static REREG_MR: Function = Function::new(c"ibv_rereg_mr");
static DEREG_MR: Function = Function::new(c"ibv_dereg_mr");
static CREATE_AH: Function = Function::new(c"ibv_create_ah");
static INIT_AH: Function = Function::new(c"ibv_init_ah_from_wc");
static DESTROY_AH: Function = Function::new(c"ibv_destroy_ah");

/// What the real library's objects show of themselves.
///
/// # Safety
/// `at` is the address of such an object, in this start.
unsafe fn there<'a, P>(at: usize) -> &'a P {
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

/// Ends an object of ours with its real one, if that can be.
macro_rules! ends {
    ($($name:ident($p:ty, $kind:ident) by $function:ident;)*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(of: *mut $p) -> c_int {
            let _front = $crate::below::inside();
            // SAFETY: an object of ours, which the application gives back.
            unsafe {
                let r = $function.int(&[real(of)]);
                if r == 0 {
                    $crate::world::leave($crate::world::Kind::$kind, of.expose_provenance());
                    $kind::take(of);
                }
                r
            }
        }
    )*};
}
pub(crate) use ends;

ends! {
    ibv_dealloc_pd(ibv_pd, Pd) by DEALLOC_PD;
    ibv_destroy_ah(ibv_ah, Ah) by DESTROY_AH;
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_dereg_mr(mr: *mut ibv_mr) -> c_int {
    let _front = inside();
    // SAFETY: a region of ours, which the application gives back.
    unsafe {
        let r = DEREG_MR.int(&[real(mr)]);
        if r == 0 {
            keys::set((*mr).lkey, None);
            world::leave(world::Kind::Mr, mr.expose_provenance());
            Mr::take(mr);
        }
        r
    }
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
        let mut taken = Vec::new();
        let at = loop {
            let at = make(real(pd));
            // A key that another region of the application's had before a restart would mean two.
            let is_taken = |m: &ibv_mr| keys::is_taken(m.lkey) || keys::is_taken(m.rkey);
            if at == 0 || !is_taken(there::<ibv_mr>(at)) {
                break at;
            }
            taken.push(at);
        };
        for t in taken {
            DEREG_MR.int(&[t as u64]);
        }
        if at == 0 {
            return std::ptr::null_mut();
        }
        let m = there::<ibv_mr>(at);
        let (lkey, rkey) = (m.lkey, m.rkey);
        let public = ibv_mr { context: (*pd).context, pd, addr, length, handle: m.handle, lkey, rkey };
        keys::set(lkey, Some(lkey));
        let own = Mr::with(public, at, own).give();
        world::enter(world::Kind::Mr, own.expose_provenance());
        own
    }
}

/// Makes the real region of one of ours, in a real domain; 0: errno says why not.
pub(crate) fn make_region(pd: u64, addr: *mut c_void, length: usize, own: &Region) -> usize {
    let (addr, length, access) = (word(addr), word(length), word(own.access));
    match own.iova {
        None => REG_MR.object(&[pd, addr, length, access]),
        Some(iova) => REG_MR_IOVA2.object(&[pd, addr, length, iova, access]),
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
        let now = there::<ibv_mr>(at as usize);
        let own = Mr::of(mr);
        // The application goes on to know it by its former keys, if the real ones are what they were.
        if (now.lkey, now.rkey) != before {
            keys::set(own.public.lkey, None);
            keys::set(now.lkey, Some(now.lkey));
            (own.public.lkey, own.public.rkey) = (now.lkey, now.rkey);
        }
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
        0
    }
}

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

/// Makes the real handle of one of ours, in its real domain; 0: errno says why not.
///
/// # Safety
/// A domain of ours.
pub(crate) unsafe fn make_handle(pd: *mut ibv_pd, attr: &ibv_ah_attr) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        match way((*pd).context, attr, 0) {
            Some((mut now, _)) => CREATE_AH.object(&[real(pd), word(&raw mut now)]),
            None => {
                set_errno(libc::EADDRNOTAVAIL);
                0
            }
        }
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_create_ah(pd: *mut ibv_pd, attr: *mut ibv_ah_attr) -> *mut ibv_ah {
    let _front = inside();
    // SAFETY: a domain of ours, and the application's attributes.
    unsafe {
        let at = make_handle(pd, &*attr);
        if at == 0 {
            return std::ptr::null_mut();
        }
        let public = ibv_ah { context: (*pd).context, pd, handle: there::<ibv_ah>(at).handle };
        let own = Ah::with(public, at, Way { attr: std::ptr::read(attr) }).give();
        world::enter(world::Kind::Ah, own.expose_provenance());
        own
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
        let r = INIT_AH.int(&[real_context(context), word(port), word(wc), word(grh), word(attr)]);
        if r != 0 {
            set_errno(errno());
        } else if address::changed() {
            let a = &mut *attr;
            address::back(a);
            let names = &Context::of(Context::whole(context)).own;
            if let Some(k) = (0..=u8::MAX).find(|k| names.index(a.port_num, *k) == a.grh.sgid_index) {
                a.grh.sgid_index = k;
            }
        }
        r
    }
}

/// What verbs.h calls by the context's table.
pub(crate) fn table(ops: &mut ibv_context_ops) {
    ops.alloc_mw = Some(alloc_mw);
    ops.dealloc_mw = Some(dealloc_mw);
}

unsafe extern "C" fn alloc_mw(pd: *mut ibv_pd, kind: ibv_mw_type::Type) -> *mut ibv_mw {
    let _front = inside();
    // SAFETY: a domain of ours, and the function that its real context has for this.
    unsafe {
        let at = real(pd) as usize;
        let made = by_pointer!(|_front| (*there::<ibv_pd>(at).context).ops.alloc_mw;
            (std::ptr::with_exposed_provenance_mut(at), kind));
        match made {
            None => fail(libc::EOPNOTSUPP),
            Some(w) if w.is_null() => fail(errno()),
            Some(w) => {
                let public =
                    ibv_mw { context: (*pd).context, pd, rkey: (*w).rkey, handle: (*w).handle, type_: kind };
                world::refuse(world::WINDOWS, 1);
                Object::new(public, w.expose_provenance()).give()
            }
        }
    }
}

unsafe extern "C" fn dealloc_mw(mw: *mut ibv_mw) -> c_int {
    let _front = inside();
    // SAFETY: a window of ours, which the application gives back.
    unsafe {
        let at = real(mw) as usize;
        let done = by_pointer!(|_front| (*there::<ibv_mw>(at).context).ops.dealloc_mw;
            (std::ptr::with_exposed_provenance_mut(at)));
        let r = done.unwrap_or(libc::EOPNOTSUPP);
        if r == 0 {
            world::refuse(world::WINDOWS, -1);
            Mw::take(mw);
        }
        r
    }
}
