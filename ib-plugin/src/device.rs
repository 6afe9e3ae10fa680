//! Devices and contexts.
//!
//! What a reader would get wrong: a device of ours lives for ever, as images hold pointers to it, and each list of devices shows the
//! same ones again.

use std::collections::BTreeMap;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::Mutex;

use rdma_sys::{
    ibv_context, ibv_device, ibv_device_attr, ibv_device_attr_ex, ibv_gid, ibv_port_attr,
    ibv_query_device_ex_input, verbs_context,
};

use crate::address::{Gid, Port};
use crate::below::{Function, by_pointer, fail, inside, text};
use crate::log::Lock;
use crate::objects::{Context, Device, Flags, Names, Object, real, real_context};
use crate::pass::word;
use crate::world;
use crate::{address, extend, memory, post};

static LIST: Function = Function::new(c"ibv_get_device_list");
static OPEN: Function = Function::new(c"ibv_open_device");
static CLOSE: Function = Function::new(c"ibv_close_device");
static GUID: Function = Function::new(c"ibv_get_device_guid");
static INDEX: Function = Function::new(c"ibv_get_device_index");
static QUERY: Function = Function::new(c"ibv_query_device");
static QUERY_PORT: Function = Function::new(c"ibv_query_port");
static QUERY_GID: Function = Function::new(c"ibv_query_gid");
static QUERY_GID_EX: Function = Function::new(c"_ibv_query_gid_ex");
static QUERY_GID_TABLE: Function = Function::new(c"_ibv_query_gid_table");
static QUERY_GID_TYPE: Function = Function::new(c"ibv_query_gid_type");
static QUERY_PKEY: Function = Function::new(c"ibv_query_pkey");
static PKEY_INDEX: Function = Function::new(c"ibv_get_pkey_index");

/// Devices of ours, by name: addresses.
static DEVICES: Mutex<BTreeMap<String, usize>> = Mutex::new(BTreeMap::new());

/// Ours for a real device.
fn ours(of: *const ibv_device) -> *mut ibv_device {
    // SAFETY: a device of the real library's, whose list we hold.
    let there = unsafe { &*of };
    let name = text(there.name.as_ptr()).unwrap_or_default();
    let _front = inside();
    let Ok(mut all) = DEVICES.lock() else { return std::ptr::null_mut() };
    let at = *all.entry(name).or_insert_with(|| {
        let public = ibv_device {
            // SAFETY: two pointers that nobody calls any more.
            _ops: unsafe { std::mem::zeroed() },
            name: there.name,
            dev_name: there.dev_name,
            dev_path: there.dev_path,
            ibdev_path: there.ibdev_path,
            node_type: there.node_type,
            transport_type: there.transport_type,
        };
        Object::new(public, 0).give().expose_provenance()
    });
    let device = std::ptr::with_exposed_provenance_mut(at);
    // SAFETY: made here, for ever.
    unsafe { Device::of(device) }.renew(of.expose_provenance());
    device
}

/// A terminated array, which the application gives back to `ibv_free_device_list`.
#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_get_device_list(num: *mut c_int) -> *mut *mut ibv_device {
    let _front = inside();
    world::begin();
    let mut n: c_int = 0;
    let list = LIST.object(&[(&raw mut n).expose_provenance() as u64]);
    if list == 0 {
        if !num.is_null() {
            // SAFETY: the application's variable.
            unsafe { *num = 0 };
        }
        return std::ptr::null_mut();
    }
    let real = std::ptr::with_exposed_provenance::<*const ibv_device>(list);
    let count = usize::try_from(n).unwrap_or(0);
    // The real list is kept: it keeps the devices.
    // SAFETY: so many pointers, says the real library.
    let mut all: Vec<*mut ibv_device> = (0..count).map(|k| ours(unsafe { *real.add(k) })).collect();
    all.push(std::ptr::null_mut());
    if !num.is_null() {
        // SAFETY: the application's variable.
        unsafe { *num = n };
    }
    Box::into_raw(all.into_boxed_slice()).cast()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_free_device_list(list: *mut *mut ibv_device) {
    if list.is_null() {
        return;
    }
    let _front = inside();
    let mut n = 0;
    // SAFETY: made by `ibv_get_device_list`, with a null at its end.
    unsafe {
        while !(*list.add(n)).is_null() {
            n += 1;
        }
        drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(list, n + 1)));
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_get_device_name(device: *mut ibv_device) -> *const c_char {
    // SAFETY: a device of ours.
    unsafe { (*device).name.as_ptr() }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_get_device_guid(device: *mut ibv_device) -> u64 {
    let _front = inside();
    // SAFETY: a device of ours.
    match unsafe { real(device) } {
        0 => 0,
        at => GUID.call(&[at]).unwrap_or(0),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_get_device_index(device: *mut ibv_device) -> c_int {
    let _front = inside();
    // SAFETY: a device of ours.
    match unsafe { real(device) } {
        0 => -1,
        at => INDEX.call(&[at]).map_or(-1, |n| n as c_int),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_open_device(device: *mut ibv_device) -> *mut ibv_context {
    let _front = inside();
    // SAFETY: a device of ours.
    let device_there = unsafe { real(device) };
    if device_there == 0 {
        // It was there before a restart.
        return fail(libc::ENODEV);
    }
    let there = OPEN.object(&[device_there]);
    if there == 0 {
        return std::ptr::null_mut();
    }
    // SAFETY: the real context, which begins as verbs.h says.
    let open = unsafe { &*std::ptr::with_exposed_provenance::<ibv_context>(there) };
    // SAFETY: pointers that may be null, numbers, and a mutex that is free when it is zero (glibc).
    let mut public: verbs_context = unsafe { std::mem::zeroed() };
    public.query_port = Some(query_port);
    public.query_device_ex = Some(query_device_ex);
    public.sz = size_of::<verbs_context>();
    public.context.device = device;
    public.context.cmd_fd = open.cmd_fd;
    public.context.async_fd = crate::event::async_fd(open.async_fd);
    public.context.num_comp_vectors = open.num_comp_vectors;
    // __VERBS_ABI_IS_EXTENDED of verbs.h.
    public.context.abi_compat = std::ptr::without_provenance_mut(usize::MAX);
    post::table(&mut public.context.ops);
    memory::table(&mut public.context.ops);
    extend::table(&mut public);
    let ports = ports(there as u64);
    let names = Names { now: Lock::new(ports.clone()), ports, flags: Flags::default() };
    let own = Context::with(public, there, names).give_context();
    world::enter(world::Kind::Context, own.expose_provenance());
    own
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_close_device(context: *mut ibv_context) -> c_int {
    let _front = inside();
    // SAFETY: a context of ours, which the application gives back.
    unsafe {
        let there = real_context(context);
        let fd = (*std::ptr::with_exposed_provenance::<ibv_context>(there as usize)).async_fd;
        let r = CLOSE.int(&[there]);
        if r == 0 {
            // What is left in it is nobody's any more.
            world::abandon(|kind, at| world::context(kind, at) == context.expose_provenance());
            crate::event::end_async_fd((*context).async_fd, fd);
            Context::take(Context::whole(context));
        }
        r
    }
}

/// What the ports of a real context are called now.
pub(crate) fn ports(real: u64) -> Vec<Port> {
    let mut ports = Vec::new();
    for port in 1..=u8::MAX {
        // SAFETY: numbers. The function fills in what an older header has of it.
        let mut attr: ibv_port_attr = unsafe { std::mem::zeroed() };
        if QUERY_PORT.int(&[real, u64::from(port), word(&raw mut attr)]) != 0 {
            break;
        }
        let count = u64::try_from(attr.gid_tbl_len).unwrap_or(0).min(256);
        let gid = |index: u64| {
            let mut gid = [0u8; 16];
            let r = QUERY_GID.int(&[real, u64::from(port), index, word(gid.as_mut_ptr())]);
            let mut sort: c_uint = 0;
            let at = &raw mut sort;
            QUERY_GID_TYPE.int(&[real, u64::from(port), index, word(at)]);
            if r == 0 { Gid::new(gid, sort.min(3) as u8) } else { Gid::default() }
        };
        ports.push(Port { lid: attr.lid, gids: (0..count).map(gid).collect() });
    }
    ports
}

/// After a restart: all devices that are there now have their real ones again. One that is not there, under its name, is another one that
/// is, if there is one alone.
pub(crate) fn find_again() {
    let mut n: c_int = 0;
    let list = LIST.object(&[(&raw mut n).expose_provenance() as u64]);
    let before: Vec<usize> = DEVICES.lock().map(|all| all.values().copied().collect()).unwrap_or_default();
    // SAFETY: devices of ours live for ever; so many pointers, says the real library.
    unsafe {
        let device = |at: usize| Device::of(std::ptr::with_exposed_provenance_mut::<ibv_device>(at));
        before.iter().for_each(|at| device(*at).renew(0));
        let real_list = std::ptr::with_exposed_provenance::<*const ibv_device>(list);
        let count = if list == 0 { 0 } else { usize::try_from(n).unwrap_or(0) };
        let all: Vec<*const ibv_device> = (0..count).map(|k| *real_list.add(k)).collect();
        all.iter().for_each(|d| _ = ours(*d));
        if let [only] = all[..] {
            let lost = before
                .iter()
                .filter(|at| real(std::ptr::with_exposed_provenance_mut::<ibv_device>(**at)) == 0);
            lost.for_each(|at| device(*at).renew(only.expose_provenance()));
        }
    }
}

/// The real context of a device, opened again; 0: there is none.
pub(crate) fn open_again(device: *mut ibv_device) -> usize {
    // SAFETY: a device of ours lives for ever.
    match unsafe { real(device) } {
        0 => 0,
        at => OPEN.object(&[at]),
    }
}

/// Those of which nothing is to be translated: the real context, and the other arguments as they are.
macro_rules! of_context {
    ($($name:ident($($a:ident: $t:ty),*) by $function:ident;)*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(context: *mut ibv_context, $($a: $t),*) -> c_int {
            let _front = $crate::below::inside();
            // SAFETY: a context of ours.
            $function.int(&[unsafe { real_context(context) }, $(crate::pass::word($a)),*])
        }
    )*};
}
pub(crate) use of_context;

of_context! {
    ibv_query_device(attr: *mut ibv_device_attr) by QUERY;
    ibv_query_gid_type(port: u8, index: u32, kind: *mut c_void) by QUERY_GID_TYPE;
    ibv_query_pkey(port: u8, index: c_int, pkey: *mut u16) by QUERY_PKEY;
    ibv_get_pkey_index(port: u8, pkey: u16) by PKEY_INDEX;
}

/// `struct ibv_gid_entry` of verbs.h.
#[repr(C)]
struct Entry {
    gid: [u8; 16],
    index: u32,
    port: u32,
    kind: u32,
    interface: u32,
}

/// Puts the address and the index that the application knows for those of this start. False: it knows of none.
unsafe fn known(context: *mut ibv_context, entry: &mut Entry) -> bool {
    // SAFETY: the caller's promise: a context of ours.
    let names = unsafe { &Context::of(Context::whole(context)).own };
    let port = usize::try_from(entry.port).unwrap_or(0).wrapping_sub(1);
    let place = names.now.with(|now| {
        let (was, now) = (names.ports.get(port)?, now.get(port)?);
        (0..was.gids.len())
            .filter(|k| was.gids[*k].is_set())
            .find(|k| was.place(*k, now) == usize::try_from(entry.index).ok())
    });
    let Some(place) = place else { return false };
    entry.gid = names.ports[port].gids[place].raw;
    entry.index = u32::try_from(place).unwrap_or(0);
    true
}

#[unsafe(no_mangle)]
unsafe extern "C" fn _ibv_query_gid_ex(
    context: *mut ibv_context,
    port: u32,
    index: u32,
    entry: *mut Entry,
    flags: u32,
    size: usize,
) -> c_int {
    let _front = inside();
    // SAFETY: a context of ours, and the application's room.
    unsafe {
        let names = &Context::of(Context::whole(context)).own;
        let short = (u8::try_from(port).ok(), u8::try_from(index).ok());
        let now = if let (Some(p), Some(k)) = short { u32::from(names.index(p, k)) } else { index };
        let r = QUERY_GID_EX.int(&[
            real_context(context),
            word(port),
            word(now),
            word(entry),
            word(flags),
            size as u64,
        ]);
        if r == 0 && address::changed() && size >= size_of::<Entry>() {
            known(context, &mut *entry);
        }
        r
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn _ibv_query_gid_table(
    context: *mut ibv_context,
    entries: *mut Entry,
    most: usize,
    flags: u32,
    size: usize,
) -> isize {
    let _front = inside();
    // SAFETY: as above.
    unsafe {
        let r = QUERY_GID_TABLE.call(&[
            real_context(context),
            word(entries),
            most as u64,
            word(flags),
            size as u64,
        ]);
        let n = r.map_or(-(libc::EOPNOTSUPP as isize), |r| r as isize);
        let (Ok(came), true) = (usize::try_from(n), address::changed() && size == size_of::<Entry>()) else {
            return n;
        };
        let all = std::slice::from_raw_parts_mut(entries, came);
        let mut kept = 0;
        for k in 0..came {
            if known(context, &mut all[k]) {
                all.swap(kept, k);
                kept += 1;
            }
        }
        kept as isize
    }
}

/// The LID as it was when the context was opened.
unsafe fn former_lid(context: *mut ibv_context, port: u8, attr: *mut ibv_port_attr) {
    // SAFETY: the caller's promise: a context of ours, and attributes that have been filled in as far as the LID.
    unsafe {
        let names = &Context::of(Context::whole(context)).own;
        if let Some(known) = names.ports.get(usize::from(port).wrapping_sub(1)).filter(|_| address::changed())
        {
            (*attr).lid = known.lid;
        }
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_query_port(context: *mut ibv_context, port: u8, attr: *mut ibv_port_attr) -> c_int {
    let _front = inside();
    // SAFETY: a context of ours, and the application's room.
    unsafe {
        let r = QUERY_PORT.int(&[real_context(context), u64::from(port), word(attr)]);
        if r == 0 {
            former_lid(context, port, attr);
        }
        r
    }
}

/// As it was when the context was opened: peers were told.
#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_query_gid(
    context: *mut ibv_context,
    port: u8,
    index: c_int,
    gid: *mut ibv_gid,
) -> c_int {
    let _front = inside();
    // SAFETY: a context of ours, and the application's room.
    unsafe {
        let names = &Context::of(Context::whole(context)).own;
        let of_port = names.ports.get(usize::from(port).wrapping_sub(1));
        let known = of_port.and_then(|p| p.gids.get(usize::try_from(index).ok()?));
        match known {
            Some(known) if address::changed() && known.is_set() => {
                (*gid).raw = known.raw;
                0
            }
            _ => QUERY_GID.int(&[
                real_context(context),
                u64::from(port),
                crate::pass::word(index),
                crate::pass::word(gid),
            ]),
        }
    }
}

/// The extended table of the real context; valid while the calling thread is in the front.
unsafe fn table(context: *mut ibv_context) -> *mut verbs_context {
    // SAFETY: the caller's promise: a context of ours; a real one is always extended (rdma-core 1.1.0 and later).
    unsafe { Context::whole(std::ptr::with_exposed_provenance_mut(real_context(context) as usize)) }
}

unsafe extern "C" fn query_port(
    context: *mut ibv_context,
    port: u8,
    attr: *mut ibv_port_attr,
    length: usize,
) -> c_int {
    let _front = inside();
    // SAFETY: a context of ours; the function that the real one has for this.
    let r = unsafe {
        by_pointer!(|_front| (*table(context)).query_port; (&raw mut (*table(context)).context, port, attr, length))
    };
    if r == Some(0) {
        // SAFETY: as above.
        unsafe { former_lid(context, port, attr) };
    }
    r.unwrap_or(libc::EOPNOTSUPP)
}

unsafe extern "C" fn query_device_ex(
    context: *mut ibv_context,
    input: *const ibv_query_device_ex_input,
    attr: *mut ibv_device_attr_ex,
    size: usize,
) -> c_int {
    let _front = inside();
    // SAFETY: as above.
    let r = unsafe {
        by_pointer!(|_front| (*table(context)).query_device_ex;
            (&raw mut (*table(context)).context, input, attr, size))
    };
    r.unwrap_or(libc::EOPNOTSUPP)
}

/// Of another process's: not here.
#[unsafe(no_mangle)]
extern "C" fn ibv_import_device(_descriptor: c_int) -> *mut ibv_context {
    fail(libc::EOPNOTSUPP)
}
