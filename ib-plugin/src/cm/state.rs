//! What librdmacm has made: channels, ids, groups; what has become of each, as commands and events tell. *Upper half*.
//!
//! ```text
//!                 CONNECT                CONNECT_RESPONSE, then ACCEPT
//!   Alone ───────────────▶ Connecting ───────────────────────────────┐
//!                                                                     ▼     DISCONNECT, DISCONNECTED
//!   (CONNECT_REQUEST) ───▶ Requested ──ACCEPT──▶ Accepting ─────▶ Established ─────────▶ Leaving ──TIMEWAIT_EXIT──▶ Ended
//!                                                     ESTABLISHED
//! ```
//!
//! What a reader would get wrong: numbers of ids are the application's; the kernel has others after a restart. Neither of the three stages before
//! `Established` can be saved: only the other end can bring them to their end.

use std::collections::{BTreeMap, VecDeque};

use super::wire::{Command, at, came, event, half, kind, long, param, put, word};
use crate::objects::Flags;

/// How far a connection is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Stage {
    #[default]
    Alone,
    Connecting,
    Requested,
    Accepting,
    Established,
    /// `told`: the event that says so has come.
    Leaving {
        told: bool,
    },
    Ended,
}

/// Whom a connection is between; addresses and numbers as they were when it was made, which both ends saw alike.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ends {
    /// This end has asked for it.
    pub(crate) active: bool,
    pub(crate) from: Vec<u8>,
    pub(crate) to: Vec<u8>,
    /// Of the queue pairs: this end's, and the other's.
    pub(crate) own: u32,
    pub(crate) other: u32,
    /// What the application calls its queue pair, and its own address.
    pub(crate) number: u32,
    pub(crate) address: Vec<u8>,
    /// `struct rdma_ucm_conn_param` as it was given.
    pub(crate) param: Vec<u8>,
}

impl Ends {
    /// What both ends call the connection.
    pub(crate) fn name(&self) -> Vec<u8> {
        let numbers = if self.active { [self.own, self.other] } else { [self.other, self.own] };
        [&self.from[..], &self.to, &numbers.map(u32::to_le_bytes).concat()].concat()
    }
}

/// Where to.
#[derive(Clone, Debug)]
pub(crate) struct Way {
    pub(crate) src: Vec<u8>,
    pub(crate) dst: Vec<u8>,
}

/// One id.
#[derive(Clone, Debug, Default)]
pub(crate) struct Id {
    /// What the kernel calls it in this start.
    pub(crate) kernel: u32,
    pub(crate) uid: u64,
    pub(crate) ps: u16,
    pub(crate) qp_type: u8,
    /// Descriptor of its channel.
    pub(crate) channel: i32,
    pub(crate) options: BTreeMap<(u32, u32), Vec<u8>>,
    pub(crate) bound: Option<Vec<u8>>,
    pub(crate) backlog: Option<u32>,
    pub(crate) way: Option<Way>,
    /// The answer to that has come; the same of the route.
    pub(crate) found: bool,
    pub(crate) route: Option<u32>,
    pub(crate) routed: bool,
    pub(crate) stage: Stage,
    pub(crate) ends: Ends,
    /// This end has asked for the end of it; and the event that it is over waits for that.
    pub(crate) left: bool,
    pub(crate) due: bool,
    /// Events that the application has got: librdmacm waits for so many acknowledgements before it ends the id.
    pub(crate) given: u32,
}

/// A group that an id has joined.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) kernel: u32,
    pub(crate) id: u32,
    pub(crate) uid: u64,
    pub(crate) address: Vec<u8>,
    pub(crate) flags: u16,
    pub(crate) joined: bool,
    pub(crate) given: u32,
}

/// An event as the kernel tells it.
pub(crate) type Came = [u8; came::LEN];

/// A channel, by the application's descriptor.
#[derive(Default)]
pub(crate) struct Channel {
    /// The device, in this start.
    pub(crate) real: i32,
    /// Events that were taken from the kernel for an image, in the application's numbers.
    pub(crate) home: VecDeque<Came>,
    /// Makes the descriptor readable while there are some; 0: nothing does.
    pub(crate) wake: i32,
    pub(crate) flags: Flags,
}

/// All of it.
#[derive(Default)]
pub(crate) struct Manager {
    pub(crate) channels: BTreeMap<i32, Channel>,
    pub(crate) ids: BTreeMap<u32, Id>,
    pub(crate) groups: BTreeMap<u32, Group>,
}

impl Manager {
    pub(crate) const fn new() -> Manager {
        Manager { channels: BTreeMap::new(), ids: BTreeMap::new(), groups: BTreeMap::new() }
    }

    /// The number that the application gets for one of the kernel's: the same, if it is free.
    fn free<T>(of: &BTreeMap<u32, T>, kernel: u32) -> u32 {
        (kernel..u32::MAX).chain(0..kernel).find(|n| !of.contains_key(n)).unwrap_or(kernel)
    }

    /// An id that was made just now; its number.
    pub(crate) fn enter(&mut self, id: Id) -> u32 {
        let number = Manager::free(&self.ids, id.kernel);
        self.ids.insert(number, id);
        number
    }

    /// A group that an id will join.
    pub(crate) fn join(&mut self, group: Group) -> u32 {
        let number = Manager::free(&self.groups, 0);
        self.groups.insert(number, group);
        number
    }

    /// The application's number of one of the kernel's, of which the kernel may have another one by now: the words of the
    /// application's that were given to it tell.
    pub(crate) fn number(&self, kernel: u32, uid: u64) -> Option<u32> {
        self.ids.iter().find(|(_, id)| id.kernel == kernel && id.uid == uid).map(|(n, _)| *n)
    }

    /// Events at home that are about an id, or a group of it, taken out of its channel.
    pub(crate) fn take_out(&mut self, number: u32) -> Vec<Came> {
        let Some(id) = self.ids.get(&number) else { return Vec::new() };
        let groups: Vec<u64> = self.groups.values().filter(|g| g.id == number).map(|g| g.uid).collect();
        let about = |came: &Came| match word(came, came::EVENT) {
            event::CONNECT_REQUEST => long(came, came::UID) == id.uid,
            event::MULTICAST_JOIN | event::MULTICAST_ERROR => groups.contains(&long(came, came::UID)),
            _ => word(came, came::ID) == number,
        };
        let Some(channel) = self.channels.get_mut(&id.channel) else { return Vec::new() };
        let (out, home): (VecDeque<Came>, _) = std::mem::take(&mut channel.home).into_iter().partition(about);
        channel.home = home;
        out.into()
    }

    /// An id is gone, with events that nobody has got. Those among them that have an id of their own: the kernel's numbers of these.
    pub(crate) fn leave(&mut self, number: u32) -> Vec<u32> {
        let out = self.take_out(number);
        self.ids.remove(&number);
        self.groups.retain(|_, g| g.id != number);
        let requests = out.iter().filter(|came| word(&came[..], came::EVENT) == event::CONNECT_REQUEST);
        let orphans: Vec<u32> = requests.map(|came| word(came, came::ID)).collect();
        orphans.iter().filter_map(|n| self.ids.remove(n)).map(|id| id.kernel).collect()
    }

    /// A channel is closed, and all that is in it.
    pub(crate) fn close(&mut self, channel: i32) -> Option<Channel> {
        let gone: Vec<u32> =
            self.ids.iter().filter(|(_, id)| id.channel == channel).map(|(n, _)| *n).collect();
        for n in gone {
            self.ids.remove(&n);
            self.groups.retain(|_, g| g.id != n);
        }
        self.channels.remove(&channel)
    }

    /// An event has come from the kernel: notes what it says, and puts the application's numbers for the kernel's. False: it is of an id that
    /// is gone.
    pub(crate) fn hear(&mut self, channel: i32, came: &mut Came) -> bool {
        let (what, kernel, uid) = (word(came, came::EVENT), word(came, came::ID), long(came, came::UID));
        match what {
            event::CONNECT_REQUEST => {
                let Some(listener) = self.ids.values().find(|id| id.uid == uid && id.channel == channel)
                else {
                    return false;
                };
                let mut id = Id {
                    kernel,
                    ps: listener.ps,
                    qp_type: listener.qp_type,
                    channel,
                    stage: Stage::Requested,
                    ..Id::default()
                };
                id.ends.other = word(came, came::PARAM + param::QP_NUM);
                let number = self.enter(id);
                put(came, came::ID, &number.to_ne_bytes());
                true
            }
            event::MULTICAST_JOIN | event::MULTICAST_ERROR => {
                let Some((number, group)) = self.groups.iter_mut().find(|(_, g)| g.uid == uid) else {
                    return false;
                };
                group.joined = what == event::MULTICAST_JOIN;
                put(came, came::ID, &number.to_ne_bytes());
                true
            }
            _ => {
                let Some(number) = self.number(kernel, uid) else { return false };
                put(came, came::ID, &number.to_ne_bytes());
                if let Some(id) = self.ids.get_mut(&number) {
                    id.hear(what, word(came, came::PARAM + param::QP_NUM));
                }
                true
            }
        }
    }

    /// An event goes to the application.
    pub(crate) fn give(&mut self, came: &Came) {
        let (uid, number) = (long(came, came::UID), word(came, came::ID));
        match word(came, came::EVENT) {
            event::CONNECT_REQUEST => {
                if let Some(listener) = self.ids.values_mut().find(|id| id.uid == uid) {
                    listener.given += 1;
                }
            }
            event::MULTICAST_JOIN | event::MULTICAST_ERROR => {
                if let Some(group) = self.groups.get_mut(&number) {
                    group.given += 1;
                    let id = group.id;
                    if let Some(id) = self.ids.get_mut(&id) {
                        id.given += 1;
                    }
                }
            }
            _ => {
                if let Some(id) = self.ids.get_mut(&number) {
                    id.given += 1;
                }
            }
        }
    }

    /// A connection that is being made, and an answer that is on its way: what cannot be saved.
    pub(crate) fn half_made(&self) -> Option<&Id> {
        self.ids.values().find(|id| {
            matches!(id.stage, Stage::Connecting | Stage::Requested | Stage::Accepting)
                || id.way.is_some() && !id.found
                || id.route.is_some() && !id.routed
        })
    }
}

impl Id {
    pub(crate) fn is_datagram(&self) -> bool {
        self.qp_type == super::wire::UD
    }

    /// A command about it has been done.
    pub(crate) fn told(&mut self, command: &Command) {
        let b = command.body();
        match command.kind() {
            kind::LISTEN => self.backlog = Some(word(b, at::BACKLOG)),
            kind::RESOLVE_ROUTE => (self.route, self.routed) = (Some(word(b, at::ROUTE_TIMEOUT)), false),
            kind::CONNECT => {
                self.stage = Stage::Connecting;
                self.ends.active = true;
                self.ends.param = b[..param::LEN.min(b.len())].to_vec();
            }
            kind::ACCEPT if b.get(at::ACCEPT_PARAM + param::VALID) == Some(&0) => {
                self.stage = Stage::Established;
            }
            kind::ACCEPT => {
                self.uid = long(b, 0);
                self.ends.param = b[at::ACCEPT_PARAM..].iter().copied().take(param::LEN).collect();
                // The answer to a datagram's sender is all that there is.
                self.stage = if self.is_datagram() { Stage::Ended } else { Stage::Accepting };
            }
            kind::REJECT => self.stage = Stage::Ended,
            kind::DISCONNECT => {
                self.left = true;
                if self.stage == Stage::Established {
                    self.stage = Stage::Leaving { told: false };
                }
            }
            _ => {}
        }
    }

    fn hear(&mut self, what: u32, number: u32) {
        match what {
            event::ADDR_RESOLVED => self.found = true,
            event::ADDR_ERROR => self.way = None,
            event::ROUTE_RESOLVED => self.routed = true,
            event::ROUTE_ERROR => self.route = None,
            event::CONNECT_RESPONSE => self.ends.other = number,
            event::ESTABLISHED if self.is_datagram() => self.stage = Stage::Ended,
            event::ESTABLISHED => self.stage = Stage::Established,
            event::CONNECT_ERROR | event::UNREACHABLE | event::REJECTED | event::TIMEWAIT_EXIT => {
                self.stage = Stage::Ended;
            }
            event::DISCONNECTED => self.stage = Stage::Leaving { told: true },
            _ => {}
        }
    }

    /// Events that the kernel would have told yet, and does not after a restart. That all is over comes when this end has left, too.
    pub(crate) fn owed(&mut self) -> Vec<u32> {
        let Stage::Leaving { told } = self.stage else { return Vec::new() };
        self.stage = Stage::Ended;
        self.due = !self.left;
        let first = (!told).then_some(event::DISCONNECTED);
        first.into_iter().chain(self.left.then_some(event::TIMEWAIT_EXIT)).collect()
    }

    /// An event of this id, of our own making.
    pub(crate) fn event(&self, number: u32, what: u32) -> Came {
        let mut came = [0; came::LEN];
        put(&mut came, came::UID, &self.uid.to_ne_bytes());
        put(&mut came, came::ID, &number.to_ne_bytes());
        put(&mut came, came::EVENT, &what.to_ne_bytes());
        came
    }
}

/// A socket address with its length before it, as RESOLVE_ADDR has it.
pub(crate) fn sized(body: &[u8], len: usize, place: usize) -> Vec<u8> {
    let n = usize::from(half(body, len)).min(super::wire::ROOM);
    body.get(place..place + n).unwrap_or_default().to_vec()
}

#[cfg(test)]
mod tests {
    use super::super::wire::{RC, TCP};
    use super::*;

    fn came(uid: u64, kernel: u32, what: u32, number: u32) -> Came {
        let mut came = Id { uid, ..Id::default() }.event(kernel, what);
        put(&mut came, came::PARAM + param::QP_NUM, &number.to_ne_bytes());
        came
    }

    fn id(kernel: u32, uid: u64) -> Id {
        Id { kernel, uid, ps: TCP, qp_type: RC, channel: 5, ..Id::default() }
    }

    fn do_it(m: &mut Manager, number: u32, command: &Command) {
        m.ids.get_mut(&number).expect("it is there").told(command);
    }

    #[test]
    fn both_ends_of_a_connection() {
        let mut m = Manager::new();
        m.channels.insert(5, Channel::default());
        let listens = m.enter(id(0, 100));
        let connects = m.enter(id(1, 200));
        do_it(&mut m, connects, &Command::new(kind::CONNECT, 288, 0));
        assert_eq!(m.half_made().map(|i| i.stage), Some(Stage::Connecting));
        // The kernel's number of the new one is taken by one of another start.
        let mut request = came(100, 1, event::CONNECT_REQUEST, 17);
        assert!(m.hear(5, &mut request));
        let new = word(&request, came::ID);
        assert_eq!(new, 2);
        m.ids.get_mut(&connects).expect("it is there").kernel = 9;
        m.give(&request);
        assert_eq!(m.ids[&listens].given, 1);
        let mut accept = Command::new(kind::ACCEPT, 296, 0).with(0, &300u64.to_ne_bytes());
        accept = accept.with(at::ACCEPT_PARAM + param::VALID, &[1]);
        do_it(&mut m, new, &accept);
        assert_eq!((m.ids[&new].stage, m.ids[&new].uid), (Stage::Accepting, 300));
        assert!(m.hear(5, &mut came(300, 1, event::ESTABLISHED, 0)));
        assert!(m.hear(5, &mut came(200, 9, event::CONNECT_RESPONSE, 18)));
        do_it(&mut m, connects, &Command::new(kind::ACCEPT, 296, 0));
        assert!(m.half_made().is_none());
        let (a, b) = (&mut m.ids.get_mut(&connects).expect("it is there").ends, 17);
        (a.own, a.from, a.to) = (b, vec![1], vec![2]);
        let name = a.name();
        let p = &mut m.ids.get_mut(&new).expect("it is there").ends;
        (p.own, p.from, p.to) = (18, vec![1], vec![2]);
        assert_eq!(p.name(), name, "both call it alike");
        // One end leaves, the other hears of it.
        do_it(&mut m, connects, &Command::new(kind::DISCONNECT, 4, 0));
        assert!(m.hear(5, &mut came(300, 1, event::DISCONNECTED, 0)));
        let owed = |m: &mut Manager, n: u32| m.ids.get_mut(&n).expect("it is there").owed();
        assert_eq!(owed(&mut m, connects), [event::DISCONNECTED, event::TIMEWAIT_EXIT]);
        assert!(owed(&mut m, new).is_empty() && m.ids[&new].due, "it has not left yet");
        assert!(owed(&mut m, new).is_empty() && owed(&mut m, listens).is_empty());
    }

    #[test]
    fn what_is_gone_takes_its_events_with_it() {
        let mut m = Manager::new();
        m.channels.insert(5, Channel::default());
        let listens = m.enter(id(3, 100));
        let other = m.enter(id(4, 200));
        for mut e in [came(100, 7, event::CONNECT_REQUEST, 17), came(200, 4, event::ADDR_RESOLVED, 0)] {
            assert!(m.hear(5, &mut e));
            m.channels.get_mut(&5).expect("it is there").home.push_back(e);
        }
        assert_eq!(m.leave(listens), [7], "the kernel has it still");
        assert_eq!(m.channels[&5].home.len(), 1);
        assert!(!m.hear(5, &mut came(100, 8, event::CONNECT_REQUEST, 1)), "nobody listens");
        assert!(m.leave(other).is_empty() && m.channels[&5].home.is_empty());
        m.enter(id(6, 300));
        assert!(m.close(5).is_some() && m.ids.is_empty() && m.close(5).is_none());
    }

    #[test]
    fn datagrams_are_answered_and_that_is_all() {
        let mut m = Manager::new();
        let n = m.enter(Id { qp_type: super::super::wire::UD, ..id(3, 100) });
        do_it(&mut m, n, &Command::new(kind::CONNECT, 288, 0));
        assert!(m.half_made().is_some());
        assert!(m.hear(5, &mut came(100, 3, event::ESTABLISHED, 9)));
        assert!(m.half_made().is_none() && m.ids[&n].stage == Stage::Ended);
        do_it(&mut m, n, &Command::new(kind::RESOLVE_ROUTE, 8, 0));
        assert!(m.half_made().is_some(), "an answer is on its way");
    }
}
