//! Names of queue pairs in the job, as the application's processes have told them each other: an address of a port, and a number.

use rdma_sys::{ibv_context, ibv_qp};

use crate::address::{Address, Port};
use crate::known;
use crate::objects::{Besides, Context, Device, Qp, Told};

/// By an address of its port.
pub(crate) fn by(address: Address, number: u32) -> Vec<u8> {
    match address {
        Address::Gid(gid) => by_gid(&gid, number),
        Address::Lid(lid) => by_lid(lid, number),
    }
}

/// By one of the addresses of its port.
pub(crate) fn by_gid(gid: &[u8; 16], number: u32) -> Vec<u8> {
    [b"g", &gid[..], &number.to_le_bytes()].concat()
}

/// By its port's LID.
pub(crate) fn by_lid(lid: u16, number: u32) -> Vec<u8> {
    [b"l", &lid.to_le_bytes()[..], &number.to_le_bytes()].concat()
}

/// Of a rank's remote keys.
pub(crate) fn of_rank(rank: u32) -> Vec<u8> {
    [b"r", &rank.to_le_bytes()[..]].concat()
}

/// Of a rank's memory windows.
pub(crate) fn windows_of(rank: u32) -> Vec<u8> {
    [b"w", &rank.to_le_bytes()[..]].concat()
}

/// Of a rank's shared receive queues that senders name.
pub(crate) fn queues_of(rank: u32) -> Vec<u8> {
    [b"q", &rank.to_le_bytes()[..]].concat()
}

/// All ports that were moved; of every rank.
pub(crate) const ADDRESSES: &[u8] = b"addresses";
/// Ports that no application knows yet.
pub(crate) const PRESENT: &[u8] = b"present";

/// A port of the job has this address; at the still point.
pub(crate) const PORTS: &[u8] = b"p";

/// Numbers of all queue pairs, or keys of all regions, of an address.
pub(crate) const NUMBERS: &[u8] = b"n";
pub(crate) const KEYS: &[u8] = b"k";
/// Upper bits of the keys of all windows.
pub(crate) const BASES: &[u8] = b"b";
/// Numbers of all shared receive queues that senders name.
pub(crate) const QUEUES: &[u8] = b"s";

/// One of these, of an address.
pub(crate) fn of(what: &[u8], address: Address) -> Vec<u8> {
    match address {
        Address::Gid(gid) => [what, &gid].concat(),
        Address::Lid(lid) => [what, &lid.to_le_bytes()].concat(),
    }
}

/// One of these, of all addresses of a port, and its LID.
pub(crate) fn of_port(what: &[u8], port: &Port) -> Vec<Vec<u8>> {
    port.addresses().map(|(_, address)| of(what, address)).collect()
}

/// The name of the other end.
pub(crate) fn peer(told: &Told) -> Vec<u8> {
    // SAFETY: sixteen bytes, whatever they mean.
    by(unsafe { known::name(&told.attr.ah_attr) }, told.attr.dest_qp_num)
}

/// Further names of the queue pairs of this device that were made in one start.
///
/// # Safety
/// A context of ours.
pub(crate) unsafe fn besides(context: *mut ibv_context, start: u32) -> Vec<Besides> {
    // SAFETY: the caller's promise; a device of ours lives for ever.
    let card = unsafe { &Device::of((*context).device).own };
    card.besides.with(|all| all.iter().filter(|b| b.start == start).copied().collect())
}

/// The ports that a queue pair may be on, from 0. One that was never told its port may have been told to others all the same.
pub(crate) fn on(told: &Told, ports: usize) -> impl Iterator<Item = usize> + use<> {
    let at = usize::from(told.attr.port_num);
    (0..ports).filter(move |port| at == 0 || at == port + 1)
}

/// A port, from 0, and the place of an address among those of that; `None`: its LID.
type Place = (usize, Option<usize>);

/// All names of a queue pair, with the place of each.
///
/// # Safety
/// A queue pair of ours.
pub(crate) unsafe fn own(qp: *mut ibv_qp, told: &Told) -> Vec<(Place, Vec<u8>)> {
    // SAFETY: the caller's promise; the context outlives its queue pairs.
    let (ports, number, besides) = unsafe {
        let ports = &Context::of(Context::whole((*qp).context)).own.ports;
        (ports, (*qp).qp_num, besides((*qp).context, Qp::of(qp).own.start))
    };
    let mut all = Vec::new();
    for port in on(told, ports.len()) {
        let besides = besides.iter().filter(|b| b.port == port).map(|b| (b.at, b.name));
        let names = ports[port].addresses().chain(besides);
        all.extend(names.map(|(at, address)| ((port, at), by(address, number))));
    }
    // RoCE has the same address once for each of its versions.
    let mut seen = std::collections::BTreeSet::new();
    all.retain(|(_, name)| seen.insert(name.clone()));
    all
}
