//! What the ports of devices are called, and the devices after a restart.
//!
//! What a reader would get wrong: it is the device that keeps the names, not a context: one that is opened after a restart, or when
//! all were closed, says what former ones have said.

use std::ffi::{c_int, c_uint};

use rdma_sys::{ibv_device, ibv_port_attr};

use crate::address::{Gid, Port};
use crate::device::{CLOSE, LIST, OPEN, QUERY_GID, QUERY_GID_TYPE, QUERY_PKEY, QUERY_PORT, all, ours};
use crate::known;
use crate::objects::{Card, Device, real};
use crate::pass::word;

impl Card {
    /// What the application knows the ports by: what it was told first, since it may have told others; in the first start they are what
    /// they are.
    pub(crate) fn names(&self, now: &[Port]) -> Vec<Port> {
        self.now.with(|n| *n = now.to_vec());
        self.ports.with(|known| match known {
            Some(known) if known::changed() => known.clone(),
            _ => known.insert(now.iter().map(known::first_seen).collect()).clone(),
        })
    }
}

/// What the ports of a device are called now, that is not open. `None`: it cannot be opened.
pub(crate) fn look(device: *mut ibv_device) -> Option<Vec<Port>> {
    let there = open_again(device);
    if there == 0 {
        return None;
    }
    let now = ports(there as u64);
    CLOSE.int(&[there as u64]);
    Some(now)
}

/// Others may have this host's addresses by other means than ours, and ask for a connection there: the ports of devices that the
/// application has not opened have names, too.
pub(crate) fn name_all() {
    find();
    for device in all() {
        // SAFETY: a device of ours.
        let card = unsafe { &Device::of(device).own };
        if card.ports.with(|p| p.is_none())
            && let Some(now) = look(device)
        {
            card.names(&now);
        }
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
        let pkey = |index: u16| {
            let mut key = 0u16;
            let at = &raw mut key;
            let r = QUERY_PKEY.int(&[real, u64::from(port), u64::from(index), word(at)]);
            if r == 0 { key } else { 0 }
        };
        let pkeys = (0..attr.pkey_tbl_len.min(256)).map(pkey).collect();
        ports.push(Port { lid: attr.lid, gids: (0..count).map(gid).collect(), pkeys });
    }
    ports
}

/// Those that are there now, if nobody has looked yet.
pub(crate) fn find() {
    if all().is_empty() {
        find_again();
    }
}

/// After a restart: all devices that are there now have their real ones again. One that is not there, under its name, is another one that
/// is, if there is one alone.
pub(crate) fn find_again() {
    let mut n: c_int = 0;
    let list = LIST.object(&[(&raw mut n).expose_provenance() as u64]);
    let before: Vec<usize> = all().iter().map(|d| d.expose_provenance()).collect();
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

/// After a restart: all devices that the application has seen, and what those are called now that it has opened.
pub(crate) fn restore() {
    if all().is_empty() {
        return;
    }
    find_again();
    for device in all() {
        // SAFETY: a device of ours.
        let card = unsafe { &Device::of(device).own };
        let now = card.ports.with(|p| p.is_some()).then(|| look(device)).flatten();
        card.now.with(|n| *n = now.unwrap_or_default());
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
