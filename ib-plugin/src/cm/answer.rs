//! Names in what the kernel answers: those of this start, for which the application gets those that it knows. *Upper half*.
//!
//! What a reader would get wrong: before the first restart these are the same, and nothing is touched.

use super::address;
use super::wire::{came, event, half, put, route, way, whose, word};
use crate::address::{Address, Raw};
use crate::{device, known};

/// The application's name for an address of this start: of a port of this process's, or of any rank's.
fn back(raw: &Raw) -> Raw {
    device::own_address_back(raw).or_else(|| known::address_back(raw)).unwrap_or(*raw)
}

fn gid(bytes: &mut [u8], at: usize) {
    if let Some(Ok(raw)) = bytes.get(at..at + 16).map(Raw::try_from) {
        put(bytes, at, &back(&raw));
    }
}

fn lid(bytes: &mut [u8], at: usize, big: bool) {
    let is = half(bytes, at);
    let was = known::lid_back(if big { u16::from_be(is) } else { is });
    put(bytes, at, &(if big { was.to_be() } else { was }).to_ne_bytes());
}

fn socket(bytes: &mut [u8], at: usize) {
    if let Some(of) = bytes.get_mut(at..) {
        let _ = address::change(of, |raw| Some(back(raw)));
    }
}

/// A device's number and index: those that the application has seen first.
fn device(bytes: &mut [u8], guid: usize, index: usize) {
    let is = super::wire::long(bytes, guid);
    if let Some((was, place)) = device::former(is) {
        put(bytes, guid, &was.to_ne_bytes());
        // Kernels before 5.9 leave it as it was, which is all ones.
        if word(bytes, index) != u32::MAX {
            put(bytes, index, &place.to_ne_bytes());
        }
    }
}

/// Where something is sent to, and the number of the queue pair there, which stands at `number`; of the device with this number.
fn handle(bytes: &mut [u8], at: usize, number: usize, guid: Option<u64>) {
    let (global, port) = (bytes.get(at + way::GLOBAL) == Some(&1), bytes.get(at + way::PORT).copied());
    let (address, place) =
        (bytes.get(at..at + 16).and_then(|b| Raw::try_from(b).ok()), half(bytes, at + way::LID));
    let is = word(bytes, number);
    let from = address.filter(|_| global).map_or(Address::Lid(place), Address::Gid);
    let (name, was) = known::pair_back(from, is);
    if let (Address::Gid(now), Address::Gid(former)) = (from, name) {
        // What it leads to is known here, for once.
        known::lead((name, was), (now, is));
        put(bytes, at + way::GID, &former);
    }
    put(bytes, number, &was.to_ne_bytes());
    if global && let (Some(port), Some(index)) = (port, bytes.get(at + way::INDEX).copied()) {
        put(bytes, at + way::INDEX, &[device::index_back(guid, port, index)]);
    }
    lid(bytes, at + way::LID, false);
}

/// `struct rdma_ucm_query_addr_resp`, of QUERY_ADDR or QUERY_GID.
pub(super) fn query(bytes: &mut [u8]) {
    if known::changed() {
        device(bytes, whose::GUID, whose::INDEX);
        socket(bytes, whose::SRC);
        socket(bytes, whose::DST);
    }
}

/// `struct ib_path_rec_data` behind their number: a flag, and a path as it is sent (IBTA 15.2.5.16): eight bytes, and the two addresses.
pub(super) fn paths(bytes: &mut [u8]) {
    if !known::changed() {
        return;
    }
    for k in 0..word(bytes, 0) as usize {
        let path = 8 + k * 72 + 8;
        gid(bytes, path + 8);
        gid(bytes, path + 24);
        lid(bytes, path + 40, true);
        lid(bytes, path + 42, true);
    }
}

/// `struct rdma_ucm_query_route_resp`.
pub(super) fn all(bytes: &mut [u8]) {
    if !known::changed() {
        return;
    }
    device(bytes, route::GUID, route::INDEX);
    for path in [route::PATHS, route::PATHS + route::PATH_LEN] {
        gid(bytes, path);
        gid(bytes, path + 16);
        lid(bytes, path + 32, true);
        lid(bytes, path + 34, true);
    }
    socket(bytes, route::SRC);
    socket(bytes, route::DST);
}

/// `struct ib_uverbs_qp_attr`.
pub(super) fn attributes(bytes: &mut [u8], guid: Option<u64>) {
    if known::changed() {
        handle(bytes, way::OF_QP, way::NUMBER_OF_QP, guid);
        if let Some(port) = bytes.get(way::PORT_OF_QP).copied() {
            let index = device::partition_back(guid, port, half(bytes, way::PARTITION_OF_QP));
            put(bytes, way::PARTITION_OF_QP, &index.to_ne_bytes());
        }
    }
}

/// `struct rdma_ucm_event_resp`: `from` is the other end's address in this start, `guid` the device's number, if they are known.
pub(super) fn event(bytes: &mut [u8], datagram: bool, from: Option<Raw>, guid: Option<u64>) {
    if !known::changed() {
        return;
    }
    match word(bytes, came::EVENT) {
        event::MULTICAST_JOIN => {
            if let (Some(port), Some(index)) =
                (bytes.get(came::WAY + way::PORT).copied(), bytes.get(came::WAY + way::INDEX).copied())
            {
                put(bytes, came::WAY + way::INDEX, &[device::index_back(guid, port, index)]);
            }
        }
        event::MULTICAST_ERROR => {}
        _ if datagram => handle(bytes, came::WAY, came::PARAM, guid),
        _ => {
            if let Some(from) = from {
                let is = word(bytes, came::PARAM);
                put(bytes, came::PARAM, &known::pair_back(Address::Gid(from), is).1.to_ne_bytes());
            }
        }
    }
}
