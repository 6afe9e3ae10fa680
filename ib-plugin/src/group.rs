//! Multicast groups: queue pairs are attached to them again after a restart.
//!
//! What a reader would get wrong: the address of a group is nobody's, so neither it nor the number 0xffffff that a datagram to it is sent
//! to is translated; the queue pair that is attached has another number, of which nobody else knows.

use std::collections::BTreeSet;
use std::ffi::c_int;

use rdma_sys::{ibv_gid, ibv_qp};

use crate::address::Raw;
use crate::below::{Function, errno, inside};
use crate::lock::Lock;
use crate::objects::{Qp, real};
use crate::pass::word;

static ATTACH: Function = Function::new(c"ibv_attach_mcast");
static DETACH: Function = Function::new(c"ibv_detach_mcast");

/// Those that a queue pair is attached to: address, and LID, which InfiniBand has.
#[derive(Default)]
pub(crate) struct Groups(Lock<BTreeSet<(Raw, u16)>>);

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_attach_mcast(qp: *mut ibv_qp, gid: *const ibv_gid, lid: u16) -> c_int {
    let _front = inside();
    // SAFETY: a queue pair of ours, and the application's address.
    unsafe {
        let r = ATTACH.int(&[real(qp), word(gid), word(lid)]);
        if r == 0 {
            Qp::of(qp).own.groups.0.with(|all| all.insert(((*gid).raw, lid)));
        }
        r
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_detach_mcast(qp: *mut ibv_qp, gid: *const ibv_gid, lid: u16) -> c_int {
    let _front = inside();
    // SAFETY: as above.
    unsafe {
        let r = DETACH.int(&[real(qp), word(gid), word(lid)]);
        if r == 0 {
            Qp::of(qp).own.groups.0.with(|all| all.remove(&((*gid).raw, lid)));
        }
        r
    }
}

/// Attaches a queue pair that was made again as it was.
///
/// # Safety
/// A queue pair of ours, with its real one.
pub(crate) unsafe fn attach_again(qp: *mut ibv_qp) -> Result<(), String> {
    // SAFETY: the caller's promise.
    unsafe {
        for (raw, lid) in Qp::of(qp).own.groups.0.with(|all| all.clone()) {
            let r = ATTACH.int(&[real(qp), word(&raw const raw), word(lid)]);
            if r != 0 {
                let why = std::io::Error::from_raw_os_error(if r == -1 { errno() } else { r });
                let (number, group) = ((*qp).qp_num, std::net::Ipv6Addr::from(raw));
                return Err(format!(
                    "queue pair {number:#x} is not in the multicast group {group} again: {why}"
                ));
            }
        }
        Ok(())
    }
}
