//! Addresses of ports: as the application knows them, and as they are in this start; and what ranks tell each other of that. Pure.
//!
//! What a reader would get wrong: a name of a port that was told before the first checkpoint is valid for ever, also where it was only
//! kept, and a queue pair that is made after a restart is called by its port's *former* address and its number of now. Where
//! names lead is in [`crate::places`].

pub(crate) use crate::known::{changed, is_taken, meet, owners, there};

pub(crate) type Raw = [u8; 16];

/// What a port is called: a GID, or its LID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Address {
    Gid(Raw),
    Lid(u16),
}

/// An address of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Gid {
    pub(crate) raw: Raw,
    /// What it is for: one of the same kind takes its place on another port.
    kind: u8,
}

/// What a port is called.
#[derive(Clone, Debug, Default)]
pub(crate) struct Port {
    pub(crate) lid: u16,
    pub(crate) gids: Vec<Gid>,
    /// Partition keys, as the network has them; 0: no such entry.
    pub(crate) pkeys: Vec<u16>,
}

impl Gid {
    /// `sort`: as ibv_query_gid_type says (RoCE of version 1 and 2 have the same addresses twice).
    pub(crate) fn new(raw: Raw, sort: u8) -> Gid {
        let form = match raw {
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, ..] => 1,
            [0xfe, 0x80, ..] => 2,
            _ => 3,
        };
        Gid { raw, kind: if raw == [0; 16] { 0 } else { sort * 4 + form } }
    }

    pub(crate) fn is_set(&self) -> bool {
        self.kind != 0
    }
}

impl Port {
    /// Which entry of `now` stands for this port's entry `at`: the same one if it is of that kind, or the one that is the same among
    /// those of its kind.
    pub(crate) fn place(&self, at: usize, now: &Port) -> Option<usize> {
        let kind = self.gids.get(at)?.kind;
        if now.gids.get(at).is_some_and(|g| g.kind == kind) {
            return Some(at);
        }
        let nth = self.gids[..at].iter().filter(|g| g.kind == kind).count();
        let same = |port: &Port| -> Vec<usize> {
            (0..).zip(&port.gids).filter(|(_, g)| g.kind == kind).map(|(k, _)| k).collect()
        };
        let there = same(now);
        there.get(nth).or(there.last()).copied()
    }

    /// Which entry of `now`'s partition keys stands for this port's entry `at`: one with the same key, else of a full member of the
    /// same partition. `None`: the port is in no such partition.
    pub(crate) fn partition(&self, at: usize, now: &Port) -> Option<usize> {
        let Some(key) = self.pkeys.get(at).copied().filter(|key| *key != 0) else { return Some(at) };
        if now.pkeys.get(at) == Some(&key) {
            return Some(at);
        }
        now.pkeys.iter().position(|k| *k == key).or_else(|| now.pkeys.iter().position(|k| *k == full(key)))
    }

    /// Which entry of this port stands for `now`'s entry `at`, as [`Port::partition`] would have it; an entry that the port never had, if
    /// there is none.
    pub(crate) fn partition_back(&self, at: usize, now: &Port) -> usize {
        let Some(key) = now.pkeys.get(at).copied().filter(|key| *key != 0) else { return at };
        let exact = self.pkeys.iter().position(|k| *k == key);
        let same = || self.pkeys.iter().position(|k| *k != 0 && full(*k) == key);
        exact.or_else(same).unwrap_or(self.pkeys.len().max(now.pkeys.len()))
    }

    /// All of its addresses, with the place of each; `None`: the LID.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = (Option<usize>, Address)> {
        let gids = self.gids.iter().enumerate().filter(|(_, g)| g.is_set());
        let gids = gids.map(|(k, g)| (Some(k), Address::Gid(g.raw)));
        gids.chain((self.lid != 0).then_some((None, Address::Lid(self.lid))))
    }

    /// What stands for this port's address `at` ([`Port::addresses`]) in `now`.
    pub(crate) fn stands_for(&self, at: Option<usize>, now: &Port) -> Option<Address> {
        match at {
            Some(at) => now.gids.get(self.place(at, now)?).map(|g| Address::Gid(g.raw)),
            None => (now.lid != 0).then_some(Address::Lid(now.lid)),
        }
    }

    /// The same port by other names. What has none is not set.
    pub(crate) fn renamed(&self, name: impl Fn(Address) -> Option<Address>) -> Port {
        let gid = |g: &Gid| match name(Address::Gid(g.raw)) {
            Some(Address::Gid(raw)) if g.is_set() => Gid { raw, kind: g.kind },
            _ => Gid::default(),
        };
        let lid = match name(Address::Lid(self.lid)) {
            Some(Address::Lid(lid)) if self.lid != 0 => lid,
            _ => 0,
        };
        Port { lid, gids: self.gids.iter().map(gid).collect(), pkeys: self.pkeys.clone() }
    }
}

/// A port of some rank: each of its addresses then and now; and queue pairs of it, by their numbers then and now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Moved {
    /// Which of the rank's devices.
    pub(crate) device: u32,
    pub(crate) addresses: Vec<(Address, Address)>,
    pub(crate) numbers: Vec<(u32, u32)>,
    /// These are further names of these queue pairs, and of no other of the port's.
    pub(crate) besides: bool,
}

/// The partition key of a full member, as the network has it: the highest bit says so.
fn full(key: u16) -> u16 {
    key | 0x8000u16.to_be()
}

fn count(n: usize) -> [u8; 4] {
    u32::try_from(n).unwrap_or(0).to_le_bytes()
}

/// Takes so many bytes.
fn take<'a>(bytes: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (head, rest) = bytes.split_at_checked(n)?;
    *bytes = rest;
    Some(head)
}

fn word(bytes: &mut &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(take(bytes, 4)?.try_into().ok()?))
}

impl Address {
    pub(crate) fn pack(&self, out: &mut Vec<u8>) {
        match self {
            Address::Gid(raw) => out.extend([&[0], &raw[..]].concat()),
            Address::Lid(lid) => out.extend([&[1], &lid.to_le_bytes()[..]].concat()),
        }
    }

    pub(crate) fn first(bytes: &mut &[u8]) -> Option<Address> {
        match take(bytes, 1)? {
            [0] => Some(Address::Gid(take(bytes, 16)?.try_into().ok()?)),
            [1] => Some(Address::Lid(u16::from_le_bytes(take(bytes, 2)?.try_into().ok()?))),
            _ => None,
        }
    }
}

impl Moved {
    pub(crate) fn pack(&self, out: &mut Vec<u8>) {
        out.push(u8::from(self.besides));
        out.extend(self.device.to_le_bytes());
        out.extend(count(self.addresses.len()));
        for (was, is) in &self.addresses {
            was.pack(out);
            is.pack(out);
        }
        out.extend(count(self.numbers.len()));
        for (was, is) in &self.numbers {
            out.extend(was.to_le_bytes());
            out.extend(is.to_le_bytes());
        }
    }

    /// All of them in there; what is torn at the end is left out.
    pub(crate) fn all(mut bytes: &[u8]) -> Vec<Moved> {
        std::iter::from_fn(|| Moved::first(&mut bytes)).collect()
    }

    fn first(bytes: &mut &[u8]) -> Option<Moved> {
        let besides = take(bytes, 1)? == [1];
        let mut one = Moved { besides, device: word(bytes)?, ..Moved::default() };
        for _ in 0..word(bytes)? {
            one.addresses.push((Address::first(bytes)?, Address::first(bytes)?));
        }
        for _ in 0..word(bytes)? {
            one.numbers.push((word(bytes)?, word(bytes)?));
        }
        Some(one)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(last: u8) -> Raw {
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, last]
    }

    fn local(last: u8) -> Raw {
        [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]
    }

    #[test]
    fn an_address_of_the_same_kind_takes_the_place() {
        let port = |gids: &[(Raw, u8)]| Port {
            lid: 0,
            gids: gids.iter().map(|(raw, sort)| Gid::new(*raw, *sort)).collect(),
            pkeys: Vec::new(),
        };
        let was = port(&[(local(1), 0), (local(1), 1), (v4(1), 0), (v4(1), 1)]);
        let same = port(&[(local(2), 0), (local(2), 1), (v4(2), 0), (v4(2), 1)]);
        let other = port(&[(local(3), 1), (v4(3), 1)]);
        assert_eq!([0, 1, 2, 3, 4].map(|k| was.place(k, &same)), [Some(0), Some(1), Some(2), Some(3), None]);
        assert_eq!([0, 1, 2, 3].map(|k| was.place(k, &other)), [None, Some(0), None, Some(1)]);
    }

    #[test]
    fn a_partition_has_another_place() {
        let port = |keys: &[u16]| Port { pkeys: keys.iter().map(|k| k.to_be()).collect(), ..Port::default() };
        let (was, now) = (port(&[0xffff, 0x8001, 0x8002, 0, 3]), port(&[0xffff, 0x8002, 0, 0x8001, 0x8003]));
        let there: Vec<_> = (0..6).map(|at| was.partition(at, &now)).collect();
        assert_eq!(there, [Some(0), Some(3), Some(1), Some(3), Some(4), Some(5)]);
        assert_eq!(was.partition(1, &port(&[0xffff])), None);
        assert_eq!(was.partition(1, &port(&[0xffff, 1])), None, "a limited member only");
        let (was, now) = (port(&[0xffff, 0, 0x8001]), port(&[0xffff, 0x8001, 0]));
        assert_eq!([0, 1].map(|at| was.partition_back(at, &now)), [0, 2]);
        let now = port(&[0xffff, 0x8002, 0x8001]);
        assert_eq!(was.partition_back(1, &now), 3, "none that it has had");
    }

    #[test]
    fn there_and_back_again() {
        let addresses = vec![(Address::Gid(v4(1)), Address::Gid(v4(9))), (Address::Lid(3), Address::Lid(4))];
        let one = Moved { device: 3, addresses, numbers: vec![(17, 40), (18, 41)], besides: true };
        let mut bytes = Vec::new();
        one.pack(&mut bytes);
        Moved::default().pack(&mut bytes);
        assert_eq!(Moved::all(&bytes), [one, Moved::default()]);
        assert_eq!(Moved::all(&bytes[..bytes.len() - 1]).len(), 1);
    }

    #[test]
    fn a_port_is_renamed_address_by_address() {
        let gids = vec![Gid::new(local(1), 1), Gid::default(), Gid::new(v4(1), 1)];
        let port = Port { lid: 5, gids, pkeys: vec![7] };
        let name = |a| match a {
            Address::Gid(raw) if raw == v4(1) => Some(Address::Gid(v4(7))),
            Address::Lid(5) => Some(Address::Lid(6)),
            _ => None,
        };
        let other = port.renamed(name);
        assert_eq!((other.lid, other.gids[0].is_set(), other.gids[1].is_set()), (6, false, false));
        assert_eq!(other.gids[2], Gid { raw: v4(7), ..port.gids[2] });
        let named: Vec<_> = other.addresses().collect();
        assert_eq!(named, [(Some(2), Address::Gid(v4(7))), (None, Address::Lid(6))]);
        assert_eq!(other.stands_for(Some(2), &port), Some(Address::Gid(v4(1))));
        assert_eq!(other.stands_for(None, &port), Some(Address::Lid(5)));
    }
}
