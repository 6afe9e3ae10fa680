//! Names of queue pairs in the job, as the application's processes have told them each other: an address of a port, and a number.

use rdma_sys::ibv_qp;

use crate::address::Port;
use crate::objects::{Context, Names, Told};

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

/// All ports that were moved; of every rank.
pub(crate) const ADDRESSES: &[u8] = b"addresses";

/// Numbers of all queue pairs, or keys of all regions, of an address.
pub(crate) const NUMBERS: &[u8] = b"n";
pub(crate) const KEYS: &[u8] = b"k";

/// One of these, of all addresses of a port, and its LID.
pub(crate) fn of_port(what: &[u8], port: &Port) -> Vec<Vec<u8>> {
    let gids = port.gids.iter().filter(|g| g.is_set()).map(|g| [what, &g.raw].concat());
    gids.chain((port.lid != 0).then(|| [what, &port.lid.to_le_bytes()].concat())).collect()
}

/// The name of the other end.
pub(crate) fn peer(told: &Told) -> Vec<u8> {
    let a = &told.attr.ah_attr;
    if a.is_global != 0 {
        // SAFETY: sixteen bytes, whatever they mean.
        by_gid(unsafe { &a.grh.dgid.raw }, told.attr.dest_qp_num)
    } else {
        by_lid(a.dlid, told.attr.dest_qp_num)
    }
}

/// LID and addresses of the port of a queue pair, as the application knows them.
///
/// # Safety
/// A queue pair of ours.
pub(crate) unsafe fn port<'a>(qp: *mut ibv_qp, told: &Told) -> &'a Port {
    static NONE: Port = Port { lid: 0, gids: Vec::new() };
    // SAFETY: the caller's promise; the context outlives its queue pairs.
    let names: &'a Names = unsafe { &Context::of(Context::whole((*qp).context)).own };
    names.ports.get(usize::from(told.attr.port_num).wrapping_sub(1)).unwrap_or(&NONE)
}

/// All names of a queue pair, with the place of each among the addresses of its port; `None`: its LID.
///
/// # Safety
/// A queue pair of ours.
pub(crate) unsafe fn own(qp: *mut ibv_qp, told: &Told) -> Vec<(Option<usize>, Vec<u8>)> {
    // SAFETY: the caller's promise.
    let (port, number) = unsafe { (port(qp, told), (*qp).qp_num) };
    let named = port.gids.iter().enumerate().filter(|(_, gid)| gid.is_set());
    let by_lid = (port.lid != 0).then(|| (None, by_lid(port.lid, number)));
    let mut all: Vec<(Option<usize>, Vec<u8>)> =
        named.map(|(k, gid)| (Some(k), by_gid(&gid.raw, number))).chain(by_lid).collect();
    // RoCE has the same address once for each of its versions.
    let mut seen = std::collections::BTreeSet::new();
    all.retain(|(_, name)| seen.insert(name.clone()));
    all
}
