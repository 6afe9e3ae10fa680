//! After a restart: what is taken at the ports that this rank has now, and ports that the application does not know yet. All ranks come
//! to the same names for those, so that a device may be opened later.
//!
//! ```text
//!   round 1   publish numbers and keys, also of windows and of shared queues that senders name, by my names; and my ports without a
//!             name. Ask for those of all that are on my ports now
//!         2   names for all ports; which numbers and keys are taken
//! ```
//!
//! What a reader would get wrong: this goes on in ranks that have never looked at a device, if any other rank has: such a rank may look
//! later, and then the address that it sees first may be what another port is called.

use std::collections::{BTreeMap, BTreeSet};

use rdma_sys::{ibv_context, ibv_device, ibv_mr, ibv_qp};

use crate::address::{Address, Port};
use crate::front::{Heard, Out};
use crate::objects::{Besides, Context, Device, Mr, Qp, real};
use crate::rebuild::each;
use crate::world::Kind;
use crate::{card, device, domain, keys, known, names, rebind};

/// A device's ports as the application knows them, and as they are now.
///
/// # Safety
/// A device of ours.
pub(crate) unsafe fn both(device: *mut ibv_device) -> (Option<Vec<Port>>, Vec<Port>) {
    // SAFETY: the caller's promise; it lives for ever.
    let card = unsafe { &Device::of(device).own };
    (card.ports.with(|p| p.clone()), card.now.with(|n| n.clone()))
}

/// Says which numbers and keys are taken, and which ports there are.
///
/// # Safety
/// No other thread runs, and the objects of the world live.
pub(crate) unsafe fn claim(out: &mut Out) {
    let mut all: BTreeMap<Vec<u8>, BTreeSet<u32>> = BTreeMap::new();
    let mut claim = |what: &[u8], port: &Port, numbers: &[u32]| {
        for key in names::of_port(what, port) {
            all.entry(key).or_default().extend(numbers);
        }
    };
    // SAFETY: the caller's promise.
    unsafe {
        for qp in each::<ibv_qp>(Kind::Qp) {
            let ports = &Context::of(Context::whole((*qp).context)).own.ports;
            for port in Qp::of(qp).own.told.with(|told| names::on(told, ports.len())) {
                // The number of now, too: what comes from there is called by the former one, also when it is gone.
                let now = (*std::ptr::with_exposed_provenance::<ibv_qp>(real(qp) as usize)).qp_num;
                claim(names::NUMBERS, &ports[port], &[(*qp).qp_num, now]);
            }
        }
        for mr in each::<ibv_mr>(Kind::Mr) {
            let m = &Mr::of(mr).public;
            let context: *mut ibv_context = m.context;
            for port in &Context::of(Context::whole(context)).own.ports {
                claim(names::KEYS, port, &[m.lkey, m.rkey]);
            }
        }
        let bases = rebind::bases().into_iter().map(|(context, base)| (names::BASES, context, base));
        let queues = domain::numbers().into_iter().map(|(context, number)| (names::QUEUES, context, number));
        for (what, context, number) in bases.chain(queues) {
            for port in &Context::of(Context::whole(context)).own.ports {
                claim(what, port, &[number]);
            }
        }
        let (mut new, mut mine) = (Vec::new(), BTreeSet::new());
        card::find();
        for device in device::all() {
            let (was, now) = both(device);
            let now = match &was {
                Some(_) => now,
                None => card::look(device).unwrap_or_default(),
            };
            let real = || now.iter().flat_map(Port::addresses).map(|(_, address)| address);
            if was.is_none() {
                real().for_each(|address| address.pack(&mut new));
            }
            mine.extend(was.iter().flatten().flat_map(Port::addresses).map(|(_, address)| address));
            mine.extend(real().flat_map(|is| known::names(is).into_iter().chain([is])));
        }
        for what in [names::NUMBERS, names::KEYS, names::BASES, names::QUEUES] {
            mine.iter().for_each(|name| out.ask(&names::of(what, *name)));
        }
        out.publish(names::PRESENT, &new);
        out.ask(names::PRESENT);
    }
    for (key, value) in all {
        out.publish(&key, &value.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<_>>());
    }
}

/// Takes up what all have said.
///
/// # Safety
/// As for [`claim`].
pub(crate) unsafe fn learn(heard: &Heard) {
    let mut present = BTreeSet::new();
    for (rank, value) in heard.all(names::PRESENT) {
        let mut rest = value.as_slice();
        while let Some(address) = Address::first(&mut rest) {
            present.insert((address, *rank));
        }
    }
    known::adopt(&present);
    let numbers = |(_, v): (u32, &[u8])| -> Vec<u32> {
        v.chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().unwrap_or_default())).collect()
    };
    known::take(heard.beginning(names::NUMBERS).flat_map(numbers));
    keys::take(heard.beginning(names::KEYS).flat_map(numbers));
    keys::take_bases(heard.beginning(names::BASES).flat_map(numbers));
    domain::take(heard.beginning(names::QUEUES).flat_map(numbers));
    for device in device::all() {
        // SAFETY: a device of ours.
        unsafe {
            let (was, now) = both(device);
            let ports = was.iter().flatten().zip(&now).enumerate();
            for (port, (was, now)) in ports {
                for (at, name) in was.addresses() {
                    let other =
                        was.stands_for(at, now).and_then(known::called).filter(|other| *other != name);
                    let besides = other.map(|name| Besides { start: known::starts(), port, at, name });
                    Device::of(device).own.besides.with(|all| all.extend(besides));
                }
            }
        }
    }
}
