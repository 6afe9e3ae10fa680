//! What librdmacm asks of the kernel: with this start's ids, addresses and numbers for those that the application knows. *Upper half*.
//!
//! What a reader would get wrong: between the look at this start's names and the end of the command the thread is in the front, and
//! cannot be stopped: none of these waits for anybody but the kernel. To wait for an event is the exception: [`super::event`].

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use super::state::{Channel, Group, Id, Stage, Way, sized};
use super::wire::{
    self, Command, QUERY_ADDR, QUERY_GID, QUERY_PATH, at, half, kind, long, param, put, whose, word,
};
use super::{MANAGER, address, answer, event};
use crate::address::Raw;
use crate::below::{inside, set_errno};
use crate::known as ports;
use crate::{descriptor as channels, device};

/// `open` of librdmacm.
pub(super) unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    let _front = inside();
    // SAFETY: the library's arguments.
    unsafe {
        let real = libc::open(path, flags, mode);
        if real < 0 || !is_manager(real, CStr::from_ptr(path).to_bytes()) {
            return real;
        }
        let own = channels::stand_in(real);
        if own < 0 {
            let e = *libc::__errno_location();
            libc::close(real);
            set_errno(e);
            return -1;
        }
        MANAGER.with(|m| _ = m.channels.insert(own, Channel { real, ..Channel::default() }));
        own
    }
}

/// Whether it is the device, by whatever name (/dev/char/… is one): by its number, if the system tells that.
fn is_manager(fd: c_int, path: &[u8]) -> bool {
    // SAFETY: a descriptor by number; room for what is said of it.
    let number = unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        if libc::fstat(fd, &raw mut stat) != 0 || stat.st_mode & libc::S_IFMT != libc::S_IFCHR {
            return false;
        }
        stat.st_rdev
    };
    std::fs::read_to_string("/sys/class/misc/rdma_cm/dev").map_or_else(
        |_| path.ends_with(b"/rdma_cm"),
        |text| text.trim() == format!("{}:{}", libc::major(number), libc::minor(number)),
    )
}

/// The descriptor of the device behind one of the application's, in this start; another one stays what it is.
fn real(own: c_int) -> Option<c_int> {
    MANAGER.with(|m| m.channels.get(&own).map(|c| c.real))
}

/// `fstat`: the library looks whether what it has opened is the device.
pub(super) unsafe extern "C" fn fstat(own: c_int, to: *mut libc::stat) -> c_int {
    let _front = inside();
    // SAFETY: the library's arguments.
    unsafe { libc::fstat(real(own).unwrap_or(own), to) }
}

/// The same before glibc 2.33.
pub(super) unsafe extern "C" fn fxstat(_version: c_int, own: c_int, to: *mut libc::stat) -> c_int {
    // SAFETY: as above; there is one version.
    unsafe { fstat(own, to) }
}

/// `close`.
pub(super) unsafe extern "C" fn close(own: c_int) -> c_int {
    let front = inside();
    let Some(channel) = MANAGER.with(|m| m.close(own)) else {
        drop(front);
        // SAFETY: a descriptor by number.
        return unsafe { libc::close(own) };
    };
    channels::end_stand_in(own, channel.real, channel.wake);
    0
}

/// `write`: a command, if it is to a channel.
pub(super) unsafe extern "C" fn write(own: c_int, from: *const c_void, n: usize) -> isize {
    if real(own).is_none() {
        // SAFETY: the library's arguments.
        return unsafe { libc::write(own, from, n) };
    }
    // SAFETY: so many bytes, says the library.
    let bytes = unsafe { std::slice::from_raw_parts(from.cast::<u8>(), n) };
    let done = match Command::of(bytes) {
        Some(c) if c.kind() == kind::GET_EVENT => event::get(own, &c),
        Some(c) => {
            let _front = inside();
            one(own, c)
        }
        None => Err(libc::EINVAL),
    };
    match done {
        Ok(()) => n as isize,
        Err(e) => {
            set_errno(e);
            -1
        }
    }
}

/// Has the kernel do it. The number of an error else.
pub(super) fn tell(real: c_int, command: &Command) -> Result<(), i32> {
    let bytes = command.bytes();
    // SAFETY: bytes of ours; an answer goes where the command says, which is room of the library's or of the caller's.
    let r = unsafe { libc::write(real, bytes.as_ptr().cast(), bytes.len()) };
    if r == bytes.len() as isize {
        return Ok(());
    }
    // SAFETY: the calling thread's variable.
    Err(if r < 0 { unsafe { *libc::__errno_location() } } else { libc::EIO })
}

/// The same with an answer.
pub(super) fn ask<const N: usize>(real: c_int, mut command: Command) -> Result<[u8; N], i32> {
    let mut room = [0; N];
    command.set_answer(room.as_mut_ptr().expose_provenance());
    tell(real, &command)?;
    Ok(room)
}

/// The library's room for an answer.
///
/// # Safety
/// The command is the library's, and has been done: `at` and `len` are what it says of its answer.
unsafe fn room<'a>(at: Option<usize>, len: usize) -> &'a mut [u8] {
    match at {
        // SAFETY: the caller's promise.
        Some(at) if at != 0 => unsafe {
            std::slice::from_raw_parts_mut(std::ptr::with_exposed_provenance_mut(at), len)
        },
        _ => &mut [],
    }
}

/// What the kernel says of an id: its addresses, and the number of its device.
pub(super) struct Ends {
    pub(super) src: Vec<u8>,
    pub(super) dst: Vec<u8>,
    pub(super) guid: u64,
}

pub(super) fn ends(real: c_int, kernel: u32) -> Option<Ends> {
    let mut query = Command::new(kind::QUERY, 16, whose::LEN).with(at::QUERY_WHAT, &QUERY_ADDR.to_ne_bytes());
    query.set_id(kernel);
    let all: [u8; whose::LEN] = ask(real, query).ok()?;
    let of = |len: usize, place: usize| sized(&all, len, place);
    let (src, dst) = (of(whose::SRC_LEN, whose::SRC), of(whose::DST_LEN, whose::DST));
    Some(Ends { src, dst, guid: long(&all, whose::GUID) })
}

/// An address of the application's own, or of another's, in this start.
pub(super) fn own_there(raw: &Raw) -> Option<Raw> {
    Some(device::own_address_there(raw).unwrap_or(*raw))
}

fn there(raw: &Raw) -> Option<Raw> {
    ports::address_there(raw)
}

/// Puts the addresses of this start into a command, and the number of a queue pair, of the device with this number.
fn lead(c: &mut Command, guid: Option<u64>) -> Result<(), i32> {
    if !ports::changed() {
        return Ok(());
    }
    let unknown = libc::EADDRNOTAVAIL;
    let (kind, b) = (c.kind(), c.body_mut());
    let mut change = |place: usize, len: usize, own: bool| {
        let Some(of) = b.get_mut(place..place + len) else { return Some(()) };
        address::change(of, if own { own_there } else { there })
    };
    match kind {
        kind::BIND_IP => change(at::BIND_IP, wire::IP_ROOM, true),
        kind::BIND => change(at::BIND, wire::ROOM, true),
        kind::RESOLVE_IP => {
            change(0, wire::IP_ROOM, true).and_then(|()| change(at::IP_DST, wire::IP_ROOM, false))
        }
        kind::RESOLVE_ADDR => {
            change(at::SRC, wire::ROOM, true).and_then(|()| change(at::DST, wire::ROOM, false))
        }
        _ => Some(()),
    }
    .ok_or(unknown)?;
    let place = match kind {
        kind::CONNECT => param::QP_NUM,
        kind::ACCEPT => at::ACCEPT_PARAM + param::QP_NUM,
        _ => return Ok(()),
    };
    let now = device::number_there(guid, word(b, place));
    put(b, place, &now.to_ne_bytes());
    Ok(())
}

/// One command, but for GET_EVENT.
fn one(own: c_int, asked: Command) -> Result<(), i32> {
    let real = real(own).ok_or(libc::EBADF)?;
    if wire::places(asked.kind()).is_none() {
        // Of a later version, with names of which nothing is known here.
        return Err(libc::ENOSYS);
    }
    let mut c = asked.clone();
    let number = asked.id();
    let known = number.and_then(|n| MANAGER.with(|m| m.ids.get(&n).map(|id| (id.kernel, id.stage))));
    if let Some((kernel, stage)) = known {
        if asked.kind() == kind::DISCONNECT && stage == Stage::Ended && ports::changed() {
            // What it was is over since; the kernel of this start has never known.
            over(own, number.unwrap_or(0));
            return Ok(());
        }
        c.set_id(kernel);
    }
    let connects = asked.kind() == kind::CONNECT
        || asked.kind() == kind::ACCEPT && asked.body().get(at::ACCEPT_PARAM + param::VALID) == Some(&1);
    let ends = if connects || asked.kind() == kind::INIT_QP_ATTR && ports::changed() {
        ends(real, c.id().unwrap_or(0))
    } else {
        None
    };
    let guid = ends.as_ref().map(|e| e.guid);
    lead(&mut c, guid)?;
    match asked.kind() {
        kind::CREATE_ID => return create(own, real, &c),
        kind::JOIN_IP_MCAST | kind::JOIN_MCAST => return join(real, &asked, &c),
        kind::LEAVE_MCAST => return leave(real, &c),
        kind::MIGRATE_ID => return migrate(own, real, &asked, c),
        _ => {}
    }
    // Before it is done: another thread may get the event that comes of it.
    let before = number.and_then(|n| {
        MANAGER.with(|m| {
            let id = m.ids.get_mut(&n)?;
            let before = intend(id, &asked);
            if let Some(ends) = ends.filter(|_| connects) {
                between(id, &asked, &c, ends);
            }
            Some(before)
        })
    });
    if let Err(e) = tell(real, &c) {
        MANAGER.with(|m| {
            if let Some((id, before)) = number.and_then(|n| m.ids.get_mut(&n)).zip(before) {
                let given = id.given;
                *id = Id { given, ..before };
                if asked.kind() == kind::ACCEPT {
                    // The kernel has refused the other end.
                    id.stage = Stage::Ended;
                }
            }
        });
        return Err(e);
    }
    // SAFETY: the library's command, which has been done.
    let room = unsafe { room(asked.answer(), asked.room()) };
    match asked.kind() {
        kind::QUERY => match word(asked.body(), at::QUERY_WHAT) {
            QUERY_ADDR | QUERY_GID => answer::query(room),
            QUERY_PATH => answer::paths(room),
            _ => {}
        },
        kind::QUERY_ROUTE => answer::all(room),
        kind::INIT_QP_ATTR => answer::attributes(room, guid),
        _ => {}
    }
    let Some(number) = number else { return Ok(()) };
    if asked.kind() == kind::DESTROY_ID {
        let given = MANAGER.with(|m| m.ids.get(&number).map_or(0, |id| id.given));
        put(room, 0, &given.to_ne_bytes());
        let orphans = MANAGER.with(|m| m.leave(number));
        event::readable(own);
        for orphan in orphans {
            let mut end = Command::new(kind::DESTROY_ID, 16, 4);
            end.set_id(orphan);
            let _ = ask::<4>(real, end);
        }
        return Ok(());
    }
    note(real, number, &asked, &c);
    Ok(())
}

/// Notes what a command will make of an id; what it was before.
fn intend(id: &mut Id, asked: &Command) -> Id {
    let before = id.clone();
    id.told(asked);
    let b = asked.body();
    let ip = |place: usize| address::cut(b.get(place..place + wire::IP_ROOM).unwrap_or_default());
    let way = match asked.kind() {
        kind::RESOLVE_ADDR => {
            Way { src: sized(b, at::SRC_LEN, at::SRC), dst: sized(b, at::DST_LEN, at::DST) }
        }
        kind::RESOLVE_IP => Way { src: ip(0), dst: ip(at::IP_DST) },
        // A route is asked for anew after a restart.
        kind::SET_OPTION if option(b) == wire::IB_PATH => {
            (id.route, id.routed) = (Some(ROUTE_TIMEOUT), false);
            return before;
        }
        _ => return before,
    };
    (id.way, id.found) = (Some(way), false);
    before
}

/// Milliseconds, where the application has said nothing.
const ROUTE_TIMEOUT: u32 = 2000;

/// Level and name of SET_OPTION.
fn option(b: &[u8]) -> (u32, u32) {
    (word(b, at::OPTION), word(b, at::OPTION + 4))
}

/// The application's name for an address of this host.
fn own_back(of: &[u8]) -> Vec<u8> {
    let mut own = of.to_vec();
    let _ = address::change(&mut own, |raw| Some(device::own_address_back(raw).unwrap_or(*raw)));
    own
}

/// Whom the connection is between that is asked for, or accepted; `done`: as the kernel gets it.
fn between(id: &mut Id, asked: &Command, done: &Command, ends: Ends) {
    let place = if asked.kind() == kind::CONNECT { 0 } else { at::ACCEPT_PARAM };
    let number = |c: &Command| word(c.body(), place + param::QP_NUM);
    (id.ends.number, id.ends.own) = (number(asked), number(done));
    let (src, dst) = (address::plain(&ends.src), address::plain(&ends.dst));
    (id.ends.from, id.ends.to) = if id.ends.active { (src, dst) } else { (dst, src) };
    id.ends.address = own_back(&ends.src);
}

/// A command has been done. `done`: as the kernel got it.
fn note(real: c_int, number: u32, asked: &Command, done: &Command) {
    let b = asked.body();
    if asked.kind() == kind::LISTEN {
        crate::card::name_all();
    }
    // What the kernel has made of it: it has chosen a port, if it was to.
    let bound = match asked.kind() {
        kind::BIND | kind::BIND_IP | kind::LISTEN => ends(real, done.id().unwrap_or(0)),
        _ => None,
    };
    MANAGER.with(|m| {
        let Some(id) = m.ids.get_mut(&number) else { return };
        if let Some(bound) = bound {
            id.bound = Some(own_back(&bound.src));
        }
        if asked.kind() == kind::SET_OPTION && option(b) != wire::IB_PATH {
            let (place, n) = (long(b, at::OPTION_VALUE) as usize, word(b, at::OPTION_LEN) as usize);
            // SAFETY: the library's value, which the kernel has just read.
            let value =
                unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance::<u8>(place), n) };
            id.options.insert(option(b), value.to_vec());
        }
    });
}

/// This end leaves a connection of another start: what waited for that comes now.
fn over(own: c_int, number: u32) {
    let came = MANAGER.with(|m| {
        let id = m.ids.get_mut(&number)?;
        id.left = true;
        std::mem::take(&mut id.due).then(|| id.event(number, wire::event::TIMEWAIT_EXIT))
    });
    if let Some(came) = came {
        event::add(own, came);
        event::readable(own);
    }
}

fn create(own: c_int, real: c_int, c: &Command) -> Result<(), i32> {
    tell(real, c)?;
    // SAFETY: as above.
    let room = unsafe { room(c.answer(), c.room()) };
    let b = c.body();
    let id = Id {
        kernel: word(room, 0),
        uid: long(b, at::CREATE_UID),
        ps: half(b, at::CREATE_PS),
        qp_type: b.get(at::CREATE_QP_TYPE).copied().unwrap_or(0),
        channel: own,
        ..Id::default()
    };
    let number = MANAGER.with(|m| m.enter(id));
    put(room, 0, &number.to_ne_bytes());
    Ok(())
}

fn join(real: c_int, asked: &Command, c: &Command) -> Result<(), i32> {
    let b = asked.body();
    let address = if asked.kind() == kind::JOIN_IP_MCAST {
        address::cut(b.get(at::JOIN_IP..at::JOIN_IP + wire::IP_ROOM).unwrap_or_default())
    } else {
        sized(b, at::JOIN_LEN, at::JOIN)
    };
    let ip = asked.kind() == kind::JOIN_IP_MCAST;
    let group = Group {
        kernel: u32::MAX,
        id: asked.id().unwrap_or(0),
        uid: long(b, at::JOIN_UID),
        address,
        flags: if ip { 0 } else { half(b, at::JOIN_FLAGS) },
        joined: false,
        given: 0,
    };
    // Before it is done: its event may come at once.
    let number = MANAGER.with(|m| m.join(group));
    if let Err(e) = tell(real, c) {
        MANAGER.with(|m| _ = m.groups.remove(&number));
        return Err(e);
    }
    // SAFETY: as above.
    let room = unsafe { room(asked.answer(), asked.room()) };
    MANAGER.with(|m| _ = m.groups.get_mut(&number).map(|g| g.kernel = word(room, 0)));
    put(room, 0, &number.to_ne_bytes());
    Ok(())
}

fn leave(real: c_int, asked: &Command) -> Result<(), i32> {
    let number = word(asked.body(), at::LEAVE_ID);
    let kernel = MANAGER.with(|m| m.groups.get(&number).map(|g| g.kernel)).unwrap_or(number);
    tell(real, &asked.clone().with(at::LEAVE_ID, &kernel.to_ne_bytes()))?;
    // SAFETY: as above.
    let room = unsafe { room(asked.answer(), asked.room()) };
    MANAGER.with(|m| {
        let Some(group) = m.groups.remove(&number) else { return };
        put(room, 0, &group.given.to_ne_bytes());
        m.channels.values_mut().for_each(|c| {
            c.home.retain(|came| {
                let what = word(came, wire::came::EVENT);
                let groups = matches!(what, wire::event::MULTICAST_JOIN | wire::event::MULTICAST_ERROR);
                !(groups && long(came, wire::came::UID) == group.uid)
            });
        });
    });
    Ok(())
}

/// The command goes to the new channel, and names the descriptor of the former one.
fn migrate(own: c_int, real: c_int, asked: &Command, c: Command) -> Result<(), i32> {
    let (number, from) = (asked.id().unwrap_or(0), word(asked.body(), at::MIGRATE_FD) as c_int);
    let former = MANAGER.with(|m| m.channels.get(&from).map(|c| c.real)).unwrap_or(from);
    tell(real, &c.with(at::MIGRATE_FD, &former.to_ne_bytes()))?;
    // SAFETY: as above.
    let room = unsafe { room(asked.answer(), asked.room()) };
    MANAGER.with(|m| {
        // Its events that are at home, and requests to it.
        let moved = m.take_out(number);
        for came in moved.iter().filter(|c| word(&c[..], wire::came::EVENT) == wire::event::CONNECT_REQUEST) {
            if let Some(id) = m.ids.get_mut(&word(came, wire::came::ID)) {
                id.channel = own;
            }
        }
        if let Some(channel) = m.channels.get_mut(&own) {
            channel.home.extend(moved);
        }
        if let Some(id) = m.ids.get_mut(&number) {
            id.channel = own;
            put(room, 0, &id.given.to_ne_bytes());
        }
    });
    event::readable(own);
    event::readable(from);
    Ok(())
}
