//! Multicast groups: which queue pairs are attached, and how a datagram reaches them all.
//!
//! As the InfiniBand specification has them (volume 1, chapter 10): attached are queue pairs of unreliable datagrams, once or
//! more often makes no difference, and each gets a copy, the sender's own as well (Linux knows a flag that blocks this,
//! IBV_QP_CREATE_BLOCK_SELF_MCAST_LB, since it is not so without). What counts as such an address is what the kernel takes for one
//! (`rdma_is_multicast_addr` in `include/rdma/ib_addr.h`). There is no subnet manager, so nobody need join a group.
//!
//! What a reader would get wrong: a directory of the fabric stands for a group, with a name for each device in it; which queue pairs these are the
//! device knows.

use std::ffi::c_int;

use rdma_sys::{ibv_gid, ibv_qp, ibv_qp_type as kind};

use crate::abi::device_of;
use crate::engine::{Hca, World, hca, name, world};
use crate::wire::{Packet, Place};

/// The number that datagrams to a group are sent to.
pub(crate) const ALL: u32 = 0x00ff_ffff;

fn is_group(gid: &[u8; 16]) -> bool {
    gid[0] == 0xff || gid[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff] && gid[12] & 0xf0 == 0xe0
}

fn folder(hca: &Hca, gid: &[u8; 16]) -> std::path::PathBuf {
    hca.dir.join(format!("group.{:x}", u128::from_be_bytes(*gid)))
}

fn halves(gid: &[u8; 16]) -> [u64; 2] {
    let all = u128::from_be_bytes(*gid);
    [(all >> 64) as u64, all as u64]
}

fn whole(words: &[u64; 3]) -> [u8; 16] {
    (u128::from(words[0]) << 64 | u128::from(words[1])).to_be_bytes()
}

/// The group that a datagram goes to, if it goes to one.
pub(crate) fn of(to: &Place) -> Option<[u8; 16]> {
    to.gid.filter(is_group).filter(|_| to.number == ALL)
}

/// To every device of the group.
pub(crate) fn send(hca: &Hca, gid: &[u8; 16], mut packet: Packet, to: impl Fn(&std::path::Path, &Packet)) {
    [packet.words[0], packet.words[1]] = halves(gid);
    for device in std::fs::read_dir(folder(hca, gid)).into_iter().flatten().flatten() {
        to(&device.path(), &packet);
    }
}

impl World {
    /// Queue pairs of this device that a datagram is for, and the address of their group.
    pub(crate) fn attached(&self, p: &Packet) -> Vec<u32> {
        self.groups.get(&whole(&p.words)).into_iter().flatten().copied().collect()
    }

    /// It is in no group any more.
    pub(crate) fn detach_all(&mut self, number: u32) {
        let all: Vec<[u8; 16]> = self.groups.keys().copied().collect();
        all.iter().for_each(|gid| _ = self.detach(gid, number));
    }

    fn detach(&mut self, gid: &[u8; 16], number: u32) -> bool {
        let Some(of) = self.groups.get_mut(gid) else { return false };
        let was = of.remove(&number);
        if of.is_empty() {
            self.groups.remove(gid);
            let _ = std::fs::remove_file(
                folder(hca(self.device), gid).join(name(self.device).file_name().unwrap_or_default()),
            );
        }
        was
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_attach_mcast(qp: *mut ibv_qp, gid: *const ibv_gid, _lid: u16) -> c_int {
    // SAFETY: what libibverbs asks of its callers.
    let (number, of, gid) = unsafe { ((*qp).qp_num, (*qp).qp_type, (*gid).raw) };
    if of != kind::IBV_QPT_UD || !is_group(&gid) {
        return libc::EINVAL;
    }
    let device = device_of!(qp.context);
    let folder = folder(hca(device), &gid);
    let _ = std::fs::create_dir_all(&folder);
    let _ =
        std::os::unix::fs::symlink(name(device), folder.join(name(device).file_name().unwrap_or_default()));
    world(device).groups.entry(gid).or_default().insert(number);
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_detach_mcast(qp: *mut ibv_qp, gid: *const ibv_gid, _lid: u16) -> c_int {
    // SAFETY: as above.
    let (number, gid) = unsafe { ((*qp).qp_num, (*gid).raw) };
    if world(device_of!(qp.context)).detach(&gid, number) { 0 } else { libc::EINVAL }
}
