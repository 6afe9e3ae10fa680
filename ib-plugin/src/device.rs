//! Devices and contexts.
//!
//! What a reader would get wrong: a device of ours lives for ever, as images hold pointers to it, and each list of devices shows the
//! same ones again.

use std::collections::BTreeMap;
use std::ffi::{c_char, c_int, c_void};
use std::sync::Mutex;

use rdma_sys::{
    ibv_context, ibv_device, ibv_device_attr, ibv_device_attr_ex, ibv_gid, ibv_port_attr,
    ibv_query_device_ex_input, verbs_context,
};

use crate::below::{Function, by_pointer, fail, inside, text};
use crate::lock::Lock;
use crate::objects::{Card, Context, Device, Names, real, real_context};
use crate::pass::word;
use crate::world;
use crate::{address, domain, extend, post, window};

pub(crate) static LIST: Function = Function::new(c"ibv_get_device_list");
pub(crate) static OPEN: Function = Function::new(c"ibv_open_device");
pub(crate) static CLOSE: Function = Function::new(c"ibv_close_device");
static GUID: Function = Function::new(c"ibv_get_device_guid");
static INDEX: Function = Function::new(c"ibv_get_device_index");
static QUERY: Function = Function::new(c"ibv_query_device");
pub(crate) static QUERY_PORT: Function = Function::new(c"ibv_query_port");
pub(crate) static QUERY_GID: Function = Function::new(c"ibv_query_gid");
static QUERY_GID_EX: Function = Function::new(c"_ibv_query_gid_ex");
static QUERY_GID_TABLE: Function = Function::new(c"_ibv_query_gid_table");
pub(crate) static QUERY_GID_TYPE: Function = Function::new(c"ibv_query_gid_type");
pub(crate) static QUERY_PKEY: Function = Function::new(c"ibv_query_pkey");
static PKEY_INDEX: Function = Function::new(c"ibv_get_pkey_index");

/// Devices of ours, by name: addresses.
static DEVICES: Mutex<BTreeMap<String, usize>> = Mutex::new(BTreeMap::new());

/// Ours for a real device.
pub(crate) fn ours(of: *const ibv_device) -> *mut ibv_device {
    // SAFETY: a device of the real library's, whose list we hold.
    let there = unsafe { &*of };
    let name = text(there.name.as_ptr()).unwrap_or_default();
    let _front = inside();
    let Ok(mut all) = DEVICES.lock() else { return std::ptr::null_mut() };
    let number = all.len() as u32;
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
        Device::with(public, 0, Card { number, ..Card::default() }).give().expose_provenance()
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
    crate::cm::hook::set();
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

/// What devices have said of themselves first: number and index, by our object. librdmacm finds them by these.
static TOLD: Lock<BTreeMap<usize, (u64, u32)>> = Lock::new(BTreeMap::new());

/// Number and index in this start.
unsafe fn called(device: *mut ibv_device) -> (u64, u32) {
    // SAFETY: the caller's promise: a device of ours.
    match unsafe { real(device) } {
        0 => (0, u32::MAX),
        at => (GUID.call(&[at]).unwrap_or(0), INDEX.call(&[at]).map_or(u32::MAX, |n| n as u32)),
    }
}

/// As they were when they were asked for first.
unsafe fn told(device: *mut ibv_device) -> (u64, u32) {
    // SAFETY: the caller's promise.
    let now = unsafe { called(device) };
    TOLD.with(|all| *all.entry(device.expose_provenance()).or_insert(now))
}

/// What the application knows a device by that has this number in this start.
pub(crate) fn former(guid: u64) -> Option<(u64, u32)> {
    let all = TOLD.with(|all| all.clone());
    // SAFETY: devices of ours live for ever.
    let is = |at: usize| unsafe { called(std::ptr::with_exposed_provenance_mut(at)) };
    all.into_iter().find(|(at, _)| is(*at).0 == guid).map(|(_, was)| was)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_get_device_guid(device: *mut ibv_device) -> u64 {
    let _front = inside();
    // SAFETY: a device of ours.
    unsafe { told(device).0 }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_get_device_index(device: *mut ibv_device) -> c_int {
    let _front = inside();
    // SAFETY: a device of ours.
    unsafe { told(device).1 as c_int }
}

/// Looks through the ports of all open contexts, as the application knows them and as they are.
fn any_port<T>(mut f: impl FnMut(&address::Port, &address::Port) -> Option<T>) -> Option<T> {
    world::all(world::Kind::Context).into_iter().find_map(|at| {
        let context = std::ptr::with_exposed_provenance_mut::<ibv_context>(at);
        // SAFETY: contexts of the world live.
        let names = unsafe { &Context::of(Context::whole(context)).own };
        names.now.with(|now| names.ports.iter().zip(now.iter()).find_map(|(was, now)| f(was, now)))
    })
}

/// The address in this start of one of this process's ports.
pub(crate) fn own_address_there(was: &address::Raw) -> Option<address::Raw> {
    any_port(|former, now| {
        let k = former.gids.iter().position(|g| g.raw == *was)?;
        Some(now.gids.get(former.place(k, now)?)?.raw)
    })
}

/// The other way.
pub(crate) fn own_address_back(is: &address::Raw) -> Option<address::Raw> {
    any_port(|former, now| {
        let same =
            |k: &usize| former.place(*k, now).and_then(|n| now.gids.get(n)).is_some_and(|g| g.raw == *is);
        (0..former.gids.len()).find(same).map(|k| former.gids[k].raw)
    })
}

/// Open contexts of the device with this number in this start, or of any.
fn contexts(guid: Option<u64>) -> impl Iterator<Item = *mut ibv_context> {
    let all = world::all(world::Kind::Context).into_iter().map(std::ptr::with_exposed_provenance_mut);
    // SAFETY: contexts of the world live, and so do their devices.
    all.filter(move |c: &*mut ibv_context| unsafe { guid.is_none_or(|g| called((**c).device).0 == g) })
}

/// The index that the application knows for one of this start, at a port of such a device.
pub(crate) fn index_back(guid: Option<u64>, port: u8, index: u8) -> u8 {
    let port = usize::from(port).wrapping_sub(1);
    let found = contexts(guid).find_map(|context| {
        // SAFETY: as above.
        let names = unsafe { &Context::of(Context::whole(context)).own };
        names.now.with(|now| {
            let (was, now) = (names.ports.get(port)?, now.get(port)?);
            (0..was.gids.len())
                .find(|k| was.gids[*k].is_set() && was.place(*k, now) == Some(usize::from(index)))
        })
    });
    found.and_then(|k| u8::try_from(k).ok()).unwrap_or(index)
}

/// The same of a partition key.
pub(crate) fn partition_back(guid: Option<u64>, port: u8, index: u16) -> u16 {
    let found = contexts(guid).find_map(|context| {
        // SAFETY: as above.
        let names = unsafe { &Context::of(Context::whole(context)).own };
        let port = usize::from(port).wrapping_sub(1);
        names.now.with(|now| Some(names.ports.get(port)?.partition_back(index.into(), now.get(port)?)))
    });
    found.and_then(|at| u16::try_from(at).ok()).unwrap_or(index)
}

/// The number in this start of one of the application's queue pairs, at such a device.
pub(crate) fn number_there(guid: Option<u64>, was: u32) -> u32 {
    // SAFETY: contexts of ours.
    let all: Vec<u32> = contexts(guid).map(|c| unsafe { number(c) }).collect();
    crate::log::number_there(&all, was).unwrap_or(was)
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
    window::table(&mut public.context.ops);
    extend::table(&mut public);
    domain::table(&mut public);
    let now = crate::card::ports(there as u64);
    // SAFETY: a device of ours lives for ever.
    let ports = unsafe { &Device::of(device).own }.names(&now);
    let names = Names { now: Lock::new(now), ports, ..Names::default() };
    if public.context.async_fd < 0 || !names.unread.begin(public.context.async_fd) {
        crate::event::end_fd(public.context.async_fd, open.async_fd);
        CLOSE.int(&[there as u64]);
        return fail(libc::EMFILE);
    }
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
        Context::of(Context::whole(context)).own.silent.with(crate::lone::Silent::end);
        let r = CLOSE.int(&[there]);
        if r == 0 {
            // What is left in it is nobody's any more.
            world::abandon(|kind, at| world::context(kind, at) == context.expose_provenance());
            crate::window::sweep();
            Context::of(Context::whole(context)).own.unread.end();
            crate::event::end_fd((*context).async_fd, fd);
            Context::take(Context::whole(context));
        }
        r
    }
}

/// All devices of ours.
pub(crate) fn all() -> Vec<*mut ibv_device> {
    let all = DEVICES.lock().map(|all| all.values().copied().collect::<Vec<_>>()).unwrap_or_default();
    all.into_iter().map(std::ptr::with_exposed_provenance_mut).collect()
}

/// Which of this process's devices a context is of.
///
/// # Safety
/// A context of ours.
pub(crate) unsafe fn number(context: *mut ibv_context) -> u32 {
    // SAFETY: the caller's promise; a device lives for ever.
    unsafe { Device::of((*context).device).own.number }
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
}

/// The partition keys of a port as the application knows them. `None`: they are as they were, or there is no such port.
unsafe fn partitions<'a>(context: *mut ibv_context, port: u8) -> Option<&'a [u16]> {
    // SAFETY: a context of ours.
    let names = unsafe { &Context::of(Context::whole(context)).own };
    let of_port = names.ports.get(usize::from(port).wrapping_sub(1)).filter(|_| address::changed());
    of_port.map(|port| port.pkeys.as_slice())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_query_pkey(
    context: *mut ibv_context,
    port: u8,
    index: c_int,
    pkey: *mut u16,
) -> c_int {
    let _front = inside();
    // SAFETY: a context of ours, and the application's room.
    unsafe {
        let known = partitions(context, port).and_then(|all| all.get(usize::try_from(index).ok()?));
        if let Some(known) = known {
            *pkey = *known;
            return 0;
        }
        QUERY_PKEY.int(&[real_context(context), u64::from(port), word(index), word(pkey)])
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_get_pkey_index(context: *mut ibv_context, port: u8, pkey: u16) -> c_int {
    let _front = inside();
    // SAFETY: a context of ours.
    unsafe {
        match partitions(context, port) {
            Some(all) => all.iter().position(|key| *key == pkey).map_or(-1, |at| at as c_int),
            None => PKEY_INDEX.int(&[real_context(context), u64::from(port), word(pkey)]),
        }
    }
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

/// The LID as the application knows it.
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

/// As the application knows it: peers were told. What it knows no address of has none.
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
            Some(known) if address::changed() => {
                (*gid).raw = known.raw;
                0
            }
            _ => {
                let r = QUERY_GID.int(&[real_context(context), u64::from(port), word(index), word(gid)]);
                if r == 0 && address::changed() {
                    (*gid).raw = [0; 16];
                }
                r
            }
        }
    }
}

/// The extended table of the real context; valid while the calling thread is in the front.
pub(crate) unsafe fn table(context: *mut ibv_context) -> *mut verbs_context {
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
