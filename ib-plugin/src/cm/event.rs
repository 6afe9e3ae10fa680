//! What the kernel tells of connections: to the application as it asks, or home, for an image. *Upper half*.
//!
//! What a reader would get wrong: the application waits for its own descriptor, up here, where it can be stopped, and the kernel is
//! asked for an event only when there is one.

use std::ffi::c_int;

use rdma_sys::{ibv_qp, ibv_qp_type};

use super::state::{Came, Manager, Stage};
use super::wire::{Command, came, event, kind, word};
use super::{MANAGER, address, answer, command};
use crate::address::Raw;
use crate::below::inside;
use crate::descriptor as channels;
use crate::known::changed;
use crate::objects::Context;

/// GET_EVENT of librdmacm.
pub(super) fn get(own: c_int, asked: &Command) -> Result<(), i32> {
    loop {
        let front = inside();
        if let Some(came) = next(own)? {
            let to = asked.answer().unwrap_or(0);
            let n = asked.room().min(came.len());
            // SAFETY: the library's room for an event, as large as it says; older ones have less than the whole.
            unsafe {
                std::ptr::copy_nonoverlapping(came.as_ptr(), std::ptr::with_exposed_provenance_mut(to), n);
            }
            return Ok(());
        }
        drop(front);
        if !channels::wait(own, -1) {
            // It has said why in errno.
            // SAFETY: the calling thread's variable.
            return Err(unsafe { *libc::__errno_location() });
        }
    }
}

/// The next one for the application, if there is one.
fn next(own: c_int) -> Result<Option<Came>, i32> {
    let at_home = MANAGER.with(|m| {
        let came = m.channels.get_mut(&own)?.home.pop_front()?;
        m.give(&came);
        Some(came)
    });
    if at_home.is_some() {
        readable(own);
        return Ok(at_home);
    }
    take(own, |m, came| m.give(came))
}

/// One from the kernel, in the application's names, and what is to be done with it; all at once, as the kernel does it: who ends an id
/// meanwhile counts the events of it.
fn take(own: c_int, mut then: impl FnMut(&mut Manager, &Came)) -> Result<Option<Came>, i32> {
    MANAGER.with(|m| {
        let real = m.channels.get(&own).map(|c| c.real).ok_or(libc::EBADF)?;
        loop {
            let Some(mut came) = raw(real)? else { return Ok(None) };
            let (kernel, what) = (word(&came, came::ID), word(&came, came::EVENT));
            let connects =
                matches!(what, event::CONNECT_REQUEST | event::CONNECT_RESPONSE | event::ESTABLISHED);
            let ends = if changed() && connects { command::ends(real, kernel) } else { None };
            let from = ends.as_ref().and_then(|e| address::raw(&e.dst));
            // Of one that is gone since: nobody waits for it.
            if m.hear(own, &mut came) {
                let id = m.ids.get(&word(&came, came::ID));
                let groups = matches!(what, event::MULTICAST_JOIN | event::MULTICAST_ERROR);
                let datagram = groups || id.is_some_and(super::state::Id::is_datagram);
                answer::event(&mut came, datagram, from, ends.map(|e| e.guid));
                then(m, &came);
                return Ok(Some(came));
            }
        }
    })
}

/// One as the kernel has it, if there is one.
pub(super) fn raw(real: c_int) -> Result<Option<Came>, i32> {
    match command::ask(real, Command::new(kind::GET_EVENT, 8, came::LEN)) {
        Ok(came) => Ok(Some(came)),
        Err(libc::EAGAIN) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Makes a channel readable for what is at home, or no more.
pub(super) fn readable(own: c_int) {
    MANAGER.with(|m| {
        if let Some(c) = m.channels.get_mut(&own) {
            match (c.home.is_empty(), c.wake) {
                (false, 0) => c.wake = channels::make_readable(own),
                (true, fd) if fd != 0 => {
                    channels::end_readable(fd);
                    c.wake = 0;
                }
                _ => {}
            }
        }
    });
}

/// Takes home what the kernel has to tell, for an image. At the still point.
pub(crate) fn gather() {
    for own in super::channels() {
        MANAGER.with(|m| {
            if let Some(c) = m.channels.get(&own) {
                channels::keep(own, &c.flags);
            }
        });
        let home = |m: &mut Manager, came: &Came| {
            if let Some(c) = m.channels.get_mut(&own) {
                c.home.push_back(*came);
            }
        };
        while let Ok(Some(_)) = take(own, home) {}
        readable(own);
    }
}

/// Why no image can be taken now: a connection that is being made, which only the other end can bring to its end.
pub(crate) fn half_made() -> Option<String> {
    MANAGER.with(|m| {
        let id = m.half_made()?;
        let whom = match &id.way {
            Some(way) => format!("to {}", address::text(&way.dst)),
            None => format!("at {}", address::text(&id.ends.address)),
        };
        Some(match id.stage {
            Stage::Requested => "librdmacm: a request for a connection has not been answered".into(),
            Stage::Connecting | Stage::Accepting => format!("librdmacm: a connection {whom} is being made"),
            _ => format!("librdmacm: the way {whom} is being looked for"),
        })
    })
}

/// What could not be made again.
pub(crate) fn unsavable() -> Option<String> {
    let all: Vec<_> = MANAGER.with(|m| m.ids.values().cloned().collect());
    all.iter().find_map(|id| {
        let established = id.stage == Stage::Established;
        if established && (id.ps != super::wire::TCP || id.qp_type != super::wire::RC) {
            return Some("librdmacm: a connection that is none of RDMA_PS_TCP with an RC queue pair".into());
        }
        if established && id.ends.other == 0 {
            return Some("librdmacm: a connection over iWARP".into());
        }
        let of = established.then_some(&id.ends.address).or(id.bound.as_ref())?;
        let raw = address::raw(of)?;
        let at = address::text(of);
        if raw.starts_with(&[0xfe, 0x80]) {
            return Some(format!("librdmacm: {at} is an address of its link only"));
        }
        let known = crate::device::own_address_there(&raw).is_some();
        (!known)
            .then(|| format!("librdmacm: {at} is no address (GID) of a device, as with IP over InfiniBand"))
    })
}

/// The addresses of a queue pair's device.
///
/// # Safety
/// A queue pair of ours.
unsafe fn addresses(qp: *mut ibv_qp) -> Vec<Raw> {
    // SAFETY: the caller's promise; its context lives.
    let ports = unsafe { &Context::of(Context::whole((*qp).context)).own.ports };
    ports.iter().flat_map(|port| &port.gids).filter(|gid| gid.is_set()).map(|gid| gid.raw).collect()
}

/// Whether an id's queue pair is this, or was.
fn is_of(id: &super::state::Id, number: u32, addresses: &[Raw]) -> bool {
    !id.ends.name().is_empty()
        && id.ends.number == number
        && !id.is_datagram()
        && address::raw(&id.ends.address).is_none_or(|raw| addresses.contains(&raw))
}

fn over(id: &super::state::Id) -> bool {
    matches!(id.stage, Stage::Leaving { .. } | Stage::Ended)
}

/// Whether the connection of this queue pair is over: the other end is, or may be, gone.
///
/// # Safety
/// A queue pair of ours.
pub(crate) unsafe fn is_over(qp: *mut ibv_qp) -> bool {
    // SAFETY: the caller's promise.
    let (number, kind, at) = unsafe { ((*qp).qp_num, (*qp).qp_type, addresses(qp)) };
    kind != ibv_qp_type::IBV_QPT_UD
        && MANAGER.with(|m| {
            // One of former connections of it is nothing, if there is another.
            let mut all = m.ids.values().filter(|id| is_of(id, number, &at)).peekable();
            all.peek().is_some() && all.all(over)
        })
}

/// A queue pair is gone; another one may get its number.
///
/// # Safety
/// A queue pair of ours.
pub(crate) unsafe fn forget(qp: *mut ibv_qp) {
    // SAFETY: the caller's promise.
    let (number, at) = unsafe { ((*qp).qp_num, addresses(qp)) };
    MANAGER.with(|m| {
        let its = m.ids.values_mut().filter(|id| over(id) && is_of(id, number, &at));
        its.for_each(|id| id.ends.number = 0);
    });
}

/// An event of our own making.
pub(super) fn add(own: c_int, came: Came) {
    MANAGER.with(|m| _ = m.channels.get_mut(&own).map(|c| c.home.push_back(came)));
}
