//! Ids and connections anew, after a restart, on the main thread, before any other runs. *Upper half*.
//!
//! ```text
//!   round 0   channels; ids, bound and listening; an own listener, which no application knows of; publish: where it is, for each
//!             connection that was accepted
//!         1   looks for addresses and routes; who has asked for a connection asks for it again, there
//!         2   until all of them stand: the kernel's events of these are nobody's
//! ```
//!
//! What a reader would get wrong: such a connection carries nothing. By it the kernel knows again whom to tell that one end has left. One
//! that was being ended when the image was taken, or whose other end has gone, is not made again: the application gets the events that are due.

use std::collections::BTreeMap;
use std::ffi::c_int;

use stillpoint_sys::raw::monotonic_ns;

use super::state::{Id, Stage};
use super::wire::{self, Command, at, came, event, half, kind, long, param, put, word};
use super::{MANAGER, address, command};
use crate::descriptor as channels;
use crate::front::{Heard, Out};
use crate::lock::Lock;

/// What the kernel gets for an answer of its own; how long until it is tried again, how often what is no connection is, and for how long at all.
const TIMEOUT_MS: u32 = 4000;
const TRIES: u32 = 5;
const PAUSE: u64 = 200_000_000;
const PATIENCE: u64 = 90_000_000_000;

/// How far an id is.
#[derive(Clone, Debug)]
enum Step {
    /// A look for the address, then for the route; both at this one's expense; and for a connection with these words.
    Address,
    Route,
    Reply,
    /// The other end will ask.
    Request,
    Last,
}

#[derive(Clone, Debug)]
struct Work {
    step: Step,
    /// Where to, and whether a connection is to be made.
    to: Vec<u8>,
    connects: bool,
    routes: bool,
    tries: u32,
    not_before: u64,
}

#[derive(Default)]
struct Hidden {
    /// By family: descriptor and port.
    listeners: BTreeMap<u16, (c_int, u16)>,
    work: BTreeMap<u32, Work>,
}

static HIDDEN: Lock<Hidden> = Lock::new(Hidden { listeners: BTreeMap::new(), work: BTreeMap::new() });

fn because(what: &str, e: i32) -> String {
    format!("librdmacm: {what}: {}", std::io::Error::from_raw_os_error(e))
}

fn device() -> Result<c_int, String> {
    // SAFETY: a terminated text.
    let fd = unsafe { libc::open(c"/dev/infiniband/rdma_cm".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(format!("/dev/infiniband/rdma_cm: {}", std::io::Error::last_os_error()));
    }
    Ok(fd)
}

/// The device behind every channel.
pub(crate) fn open() -> Result<(), String> {
    // What the kernel calls them is another start's, and may be another one's now.
    MANAGER.with(|m| {
        m.ids.values_mut().for_each(|id| id.kernel = u32::MAX);
        m.groups.values_mut().for_each(|g| g.kernel = u32::MAX);
    });
    for own in super::channels() {
        let real = device()?;
        if !channels::stand_in_again(real, own) {
            return Err(format!("descriptor {own} of a channel of librdmacm"));
        }
        MANAGER.with(|m| {
            if let Some(c) = m.channels.get_mut(&own) {
                (c.real, c.wake) = (real, 0);
                channels::put_back(own, &c.flags);
            }
        });
        super::event::readable(own);
    }
    Ok(())
}

fn ids() -> Vec<(u32, Id)> {
    MANAGER.with(|m| m.ids.iter().map(|(n, id)| (*n, id.clone())).collect())
}

/// What the two ends of a connection publish for each other.
fn names(id: &Id) -> (Vec<u8>, Vec<u8>) {
    let of = |active: bool| [if active { b"ca" } else { b"cp" }, &id.ends.name()[..]].concat();
    (of(id.ends.active), of(!id.ends.active))
}

/// Makes the ids, and says where connections that were accepted can be asked for again.
pub(crate) fn announce(out: &mut Out) -> Result<(), String> {
    let (waits, others): (Vec<_>, Vec<_>) = ids().into_iter().partition(|(_, id)| was_accepted(id));
    // First, for the sake of their ports.
    for (number, _) in &others {
        make(*number)?;
    }
    for (_, id) in waits.iter().chain(&others).filter(|(_, id)| is_established(id)) {
        let (own, other) = names(id);
        if id.ends.active {
            out.publish(&own, &[1]);
        } else {
            let mut place = id.ends.address.clone();
            address::change(&mut place, command::own_there).ok_or("librdmacm: an address of this host")?;
            let port = listener(&place)?;
            out.publish(&own, &[&[1], &address::with_port(&place, port)[..]].concat());
        }
        out.ask(&other);
    }
    Ok(())
}

fn is_established(id: &Id) -> bool {
    id.stage == Stage::Established && !id.is_datagram()
}

/// Such an id is made by the other end's request.
fn was_accepted(id: &Id) -> bool {
    is_established(id) && !id.ends.active
}

/// The port of the listener of this family, which is made at its first use.
fn listener(of: &[u8]) -> Result<u16, String> {
    let family = half(of, 0);
    if let Some((_, port)) = HIDDEN.with(|h| h.listeners.get(&family).copied()) {
        return Ok(port);
    }
    let any = address::any(of).ok_or_else(|| format!("librdmacm: no listener for {}", address::text(of)))?;
    let fd = device()?;
    channels::hide(fd);
    let failed = |e| because("a listener for connections made again", e);
    let id = create(fd, &Id { ps: wire::TCP, qp_type: wire::RC, uid: 1, ..Id::default() }).map_err(failed)?;
    bind(fd, id, &any).map_err(failed)?;
    let mut listen = Command::new(kind::LISTEN, 8, 0).with(at::BACKLOG, &1024u32.to_ne_bytes());
    listen.set_id(id);
    command::tell(fd, &listen).map_err(failed)?;
    let own = command::ends(fd, id).ok_or("librdmacm: the listener's port")?.src;
    HIDDEN.with(|h| h.listeners.insert(family, (fd, address::port(&own))));
    Ok(address::port(&own))
}

fn create(fd: c_int, id: &Id) -> Result<u32, i32> {
    let c = Command::new(kind::CREATE_ID, 24, 4)
        .with(at::CREATE_UID, &id.uid.to_ne_bytes())
        .with(at::CREATE_PS, &id.ps.to_ne_bytes())
        .with(at::CREATE_QP_TYPE, &[id.qp_type]);
    command::ask::<4>(fd, c).map(u32::from_ne_bytes)
}

fn bind(fd: c_int, kernel: u32, to: &[u8]) -> Result<(), i32> {
    let n = u16::try_from(to.len()).unwrap_or(0);
    let mut c = Command::new(kind::BIND, at::BIND + wire::ROOM, 0)
        .with(at::BIND_LEN, &n.to_ne_bytes())
        .with(at::BIND, to);
    c.set_id(kernel);
    command::tell(fd, &c)
}

/// Begins what takes its time.
pub(crate) fn begin(heard: &Heard) -> Result<(), String> {
    for (number, mut id) in ids() {
        let (_, other) = names(&id);
        let there = heard.one(&other).and_then(|(_, v)| v.split_first()).filter(|(is, _)| **is == 1);
        let accepted = was_accepted(&id);
        if is_established(&id) && there.is_none() {
            // Gone, or going: the application hears of it now.
            id.stage = Stage::Leaving { told: false };
        }
        for what in id.owed() {
            super::event::add(id.channel, id.event(number, what));
        }
        super::event::readable(id.channel);
        MANAGER.with(|m| {
            if let Some(known) = m.ids.get_mut(&number) {
                (known.stage, known.due) = (id.stage, id.due);
            }
        });
        if accepted && !is_established(&id) {
            make(number)?;
        }
        let work = |step, to, connects, routes| Work { step, to, connects, routes, tries: 0, not_before: 0 };
        let work = match (&id.way, there) {
            _ if was_accepted(&id) => work(Step::Request, Vec::new(), false, false),
            (_, Some((_, to))) if is_established(&id) => work(Step::Address, to.to_vec(), true, true),
            (Some(way), _) if id.stage == Stage::Alone || id.is_datagram() => {
                let mut to = way.dst.clone();
                if address::change(&mut to, crate::known::address_there).is_none() {
                    // Of which of two nobody can tell: the next command says that it has no way.
                    continue;
                }
                let joins = MANAGER.with(|m| m.groups.values().any(|g| g.id == number));
                work(Step::Address, to, false, id.routed && !joins)
            }
            _ => continue,
        };
        let resolves = matches!(work.step, Step::Address);
        HIDDEN.with(|h| h.work.insert(number, work));
        if resolves {
            resolve(number)?;
        }
    }
    Ok(())
}

fn one(number: u32) -> Result<(c_int, Id), String> {
    let found = MANAGER.with(|m| {
        let id = m.ids.get(&number)?;
        Some((m.channels.get(&id.channel)?.real, id.clone()))
    });
    found.ok_or_else(|| format!("librdmacm: id {number} is in no channel"))
}

/// The id itself, with its options, bound, and listening.
fn make(number: u32) -> Result<(), String> {
    let (fd, id) = one(number)?;
    let kernel = create(fd, &id).map_err(|e| because("an id", e))?;
    MANAGER.with(|m| _ = m.ids.get_mut(&number).map(|id| id.kernel = kernel));
    for ((level, name), value) in &id.options {
        let mut c = Command::new(kind::SET_OPTION, 24, 0)
            .with(at::OPTION_VALUE, &(value.as_ptr().expose_provenance() as u64).to_ne_bytes())
            .with(at::OPTION, &level.to_ne_bytes())
            .with(at::OPTION + 4, &name.to_ne_bytes())
            .with(at::OPTION_LEN, &u32::try_from(value.len()).unwrap_or(0).to_ne_bytes());
        c.set_id(kernel);
        command::tell(fd, &c).map_err(|e| because("an option", e))?;
    }
    let alone = id.stage == Stage::Alone || id.is_datagram();
    if let Some(bound) = id.bound.as_ref().filter(|_| alone) {
        let mut to = bound.clone();
        address::change(&mut to, command::own_there).ok_or("librdmacm: an address of this host")?;
        bind(fd, kernel, &to).map_err(|e| because(&address::text(&to), e))?;
    }
    if let Some(backlog) = id.backlog {
        let mut c = Command::new(kind::LISTEN, 8, 0).with(at::BACKLOG, &backlog.to_ne_bytes());
        c.set_id(kernel);
        command::tell(fd, &c).map_err(|e| because("listen", e))?;
    }
    Ok(())
}

/// Begins the way of an id that has work; what the kernel refuses at once is tried again later.
fn resolve(number: u32) -> Result<(), String> {
    let (fd, id) = one(number)?;
    let Some(to) = HIDDEN.with(|h| h.work.get(&number).map(|w| w.to.clone())) else { return Ok(()) };
    let src = match &id.way {
        // The port is the application's where the id is bound to it, else anybody's.
        Some(way) if !way.src.is_empty() && address::raw(&way.src).is_some() => {
            let mut src = address::with_port(&way.src, 0);
            address::change(&mut src, command::own_there).ok_or("librdmacm: an address of this host")?;
            src
        }
        _ => Vec::new(),
    };
    let len = |of: &[u8]| u16::try_from(of.len()).unwrap_or(0).to_ne_bytes();
    let mut c = Command::new(kind::RESOLVE_ADDR, at::DST + wire::ROOM, 0)
        .with(at::TIMEOUT, &TIMEOUT_MS.to_ne_bytes())
        .with(at::SRC_LEN, &len(&src))
        .with(at::DST_LEN, &len(&to))
        .with(at::SRC, &src)
        .with(at::DST, &to);
    c.set_id(id.kernel);
    if command::tell(fd, &c).is_err() {
        later(number);
    }
    Ok(())
}

/// Something has failed that may not be for ever. Where no connection hangs on it, it is given up in the end: the next command on this id says so.
fn later(number: u32) {
    HIDDEN.with(|h| {
        let Some(work) = h.work.get_mut(&number) else { return };
        work.tries += 1;
        if work.tries > TRIES && !work.connects {
            h.work.remove(&number);
            return;
        }
        (work.step, work.not_before) = (Step::Address, monotonic_ns() + PAUSE);
    });
}

/// Until all stand.
pub(crate) fn finish() -> Result<(), String> {
    let begin = monotonic_ns();
    while HIDDEN.with(|h| !h.work.is_empty()) {
        let mut heard = false;
        for (fd, _) in HIDDEN.with(|h| h.listeners.values().copied().collect::<Vec<_>>()) {
            while let Some(came) = super::event::raw(fd).map_err(|e| because("an event", e))? {
                heard = true;
                if word(&came, came::EVENT) == event::CONNECT_REQUEST {
                    accept(fd, &came)?;
                }
            }
        }
        for own in super::channels() {
            let Some(real) = MANAGER.with(|m| m.channels.get(&own).map(|c| c.real)) else { continue };
            while let Some(came) = super::event::raw(real).map_err(|e| because("an event", e))? {
                heard = true;
                let number = MANAGER.with(|m| m.number(word(&came, came::ID), long(&came, came::UID)));
                let what = word(&came, came::EVENT);
                let of_request = what == event::CONNECT_REQUEST;
                match number.filter(|n| !of_request && HIDDEN.with(|h| h.work.contains_key(n))) {
                    Some(number) => go_on(number, what)?,
                    // Of the application's own: somebody outside the job.
                    None => pass_on(own, came),
                }
            }
        }
        let now = monotonic_ns();
        again(now)?;
        if now > begin + PATIENCE {
            let left = HIDDEN.with(|h| h.work.keys().copied().collect::<Vec<_>>());
            let (_, id) = one(left[0])?;
            let whom = id.way.map_or(id.ends.address, |way| way.dst);
            return Err(format!(
                "librdmacm: {} connections are not made again; one is {}",
                left.len(),
                address::text(&whom)
            ));
        }
        if !heard {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
    for (fd, _) in HIDDEN.with(|h| std::mem::take(&mut h.listeners)).into_values() {
        channels::end_readable(fd);
    }
    groups()
}

/// Those for which the time has come to be tried once more, with another id of the kernel's.
fn again(now: u64) -> Result<(), String> {
    let due: Vec<u32> = HIDDEN.with(|h| {
        let due = h.work.iter_mut().filter(|(_, w)| w.not_before != 0 && now > w.not_before);
        due.map(|(n, w)| {
            w.not_before = 0;
            *n
        })
        .collect()
    });
    for number in due {
        let (fd, id) = one(number)?;
        end(fd, id.kernel);
        make(number)?;
        resolve(number)?;
    }
    Ok(())
}

/// Ends an id of the kernel's.
fn end(fd: c_int, kernel: u32) {
    let mut end = Command::new(kind::DESTROY_ID, 16, 4);
    end.set_id(kernel);
    let _ = command::ask::<4>(fd, end);
}

/// An event of an id that is on its way.
fn go_on(number: u32, what: u32) -> Result<(), String> {
    let (fd, id) = one(number)?;
    let Some(mut work) = HIDDEN.with(|h| h.work.get(&number).cloned()) else { return Ok(()) };
    let mut next = None;
    work.step = match (&work.step, what) {
        (Step::Address, event::ADDR_RESOLVED) if work.routes => {
            next = Some(
                Command::new(kind::RESOLVE_ROUTE, 8, 0).with(at::ROUTE_TIMEOUT, &TIMEOUT_MS.to_ne_bytes()),
            );
            Step::Route
        }
        (Step::Route, event::ROUTE_RESOLVED) if work.connects => {
            next = Some(Command::new(kind::CONNECT, param::LEN + 16, 0).with(0, &words(&id)));
            Step::Reply
        }
        (Step::Reply, event::CONNECT_RESPONSE) => {
            next = Some(Command::new(kind::ACCEPT, at::ACCEPT_PARAM + param::LEN + 16, 0));
            Step::Last
        }
        (Step::Address, event::ADDR_RESOLVED)
        | (Step::Route, event::ROUTE_RESOLVED)
        | (Step::Request, event::ESTABLISHED) => Step::Last,
        // The other end tries again.
        (Step::Request, _) => return Ok(()),
        (
            _,
            event::ADDR_ERROR
            | event::ROUTE_ERROR
            | event::CONNECT_ERROR
            | event::UNREACHABLE
            | event::REJECTED,
        ) => {
            later(number);
            return Ok(());
        }
        (step, _) => step.clone(),
    };
    if let Some(mut next) = next {
        next.set_id(id.kernel);
        if command::tell(fd, &next).is_err() {
            later(number);
            return Ok(());
        }
    }
    HIDDEN.with(|h| {
        if matches!(work.step, Step::Last) {
            h.work.remove(&number);
        } else {
            h.work.insert(number, work);
        }
    });
    Ok(())
}

/// Parameters of a connection that is made again: those that it was made with, and, for private data, which one it is.
fn words(id: &Id) -> Vec<u8> {
    let mut all = id.ends.param.clone();
    all.resize(param::LEN, 0);
    let name = id.ends.name();
    all[param::PRIVATE..param::PRIVATE_LEN].fill(0);
    put(&mut all, param::PRIVATE, &[u8::try_from(name.len()).unwrap_or(0)]);
    put(&mut all, param::PRIVATE + 1, &name);
    put(&mut all, param::PRIVATE_LEN, &[u8::try_from(name.len() + 1).unwrap_or(0)]);
    put(&mut all, param::QP_NUM, &crate::device::number_there(None, id.ends.number).to_ne_bytes());
    put(&mut all, param::RETRIES, &[7]);
    put(&mut all, param::RNR_RETRIES, &[7]);
    put(&mut all, param::VALID, &[1]);
    all
}

/// A request for one of the connections that were accepted once. What the kernel refuses comes again: the other end tries for long.
fn accept(fd: c_int, came: &super::state::Came) -> Result<(), String> {
    let (kernel, private) = (word(came, came::ID), &came[came::PARAM + param::PRIVATE..]);
    let name = private.get(1..1 + usize::from(private[0])).unwrap_or_default();
    let wanted = ids().into_iter().find(|(n, id)| {
        let waits = HIDDEN.with(|h| h.work.get(n).is_some_and(|w| matches!(w.step, Step::Request)));
        waits && id.ends.name() == name
    });
    let Some((number, _)) = wanted else {
        end(fd, kernel);
        return Ok(());
    };
    let (real, id) = one(number)?;
    if id.kernel != u32::MAX {
        // Of a request that the other end has given up.
        end(real, id.kernel);
    }
    let mut to_channel =
        Command::new(kind::MIGRATE_ID, 16, 4).with(at::MIGRATE_FD, &(fd as u32).to_ne_bytes());
    to_channel.set_id(kernel);
    if command::ask::<4>(real, to_channel).is_err() {
        end(fd, kernel);
        MANAGER.with(|m| _ = m.ids.get_mut(&number).map(|id| id.kernel = u32::MAX));
        return Ok(());
    }
    let mut params = words(&id);
    put(&mut params, param::PRIVATE_LEN, &[0]);
    let mut yes = Command::new(kind::ACCEPT, at::ACCEPT_PARAM + param::LEN + 16, 0)
        .with(0, &id.uid.to_ne_bytes())
        .with(at::ACCEPT_PARAM, &params);
    yes.set_id(kernel);
    let accepted = command::tell(real, &yes).is_ok();
    if !accepted {
        end(real, kernel);
    }
    MANAGER.with(|m| {
        if let Some(id) = m.ids.get_mut(&number) {
            id.kernel = if accepted { kernel } else { u32::MAX };
        }
    });
    Ok(())
}

/// Groups are joined again. Their events come later, and are the application's where it has not had them.
fn groups() -> Result<(), String> {
    let all: Vec<_> = MANAGER.with(|m| m.groups.iter().map(|(n, g)| (*n, g.clone())).collect());
    for (number, group) in all {
        let (fd, id) = one(group.id)?;
        let n = u16::try_from(group.address.len()).unwrap_or(0);
        let mut c = Command::new(kind::JOIN_MCAST, at::JOIN + wire::ROOM, 4)
            .with(at::JOIN_UID, &group.uid.to_ne_bytes())
            .with(at::JOIN_LEN, &n.to_ne_bytes())
            .with(at::JOIN_FLAGS, &group.flags.to_ne_bytes())
            .with(at::JOIN, &group.address);
        c.set_id(id.kernel);
        let kernel = command::ask::<4>(fd, c).map_err(|e| because("a multicast group", e))?;
        MANAGER.with(|m| _ = m.groups.get_mut(&number).map(|g| g.kernel = u32::from_ne_bytes(kernel)));
        // The application knows already, or will hear of it.
        let begin = monotonic_ns();
        let mut knows = group.joined;
        while knows {
            let late = monotonic_ns() > begin + PATIENCE;
            match super::event::raw(fd).map_err(|e| because("an event", e))? {
                Some(came) if long(&came, came::UID) != group.uid => pass_on(id.channel, came),
                Some(came) if word(&came, came::EVENT) == event::MULTICAST_JOIN => knows = false,
                None if !late => std::thread::sleep(std::time::Duration::from_millis(1)),
                _ => return Err("librdmacm: a multicast group could not be joined again".into()),
            }
        }
    }
    Ok(())
}

/// An event that is the application's.
fn pass_on(own: c_int, mut came: super::state::Came) {
    if MANAGER.with(|m| m.hear(own, &mut came)) {
        super::event::add(own, came);
        super::event::readable(own);
    }
}
