//! Where the application's names lead after a restart. Pure.
//!
//! ```text
//!   the application's   (address, number)  ─▶ this one now, if the peer has told of it
//!                        address           ─▶ where those are that had it: one port, or several, and then nobody can tell
//!   a port of now       ─▶ all of its names; one of them leads to it alone
//! ```
//!
//! What a reader would get wrong: two ports of different hosts may be one now, and one may be two. So every port of the job has a
//! name that leads to it alone, and all ranks come to the same one without asking each other: from what all have heard.

use std::collections::{BTreeMap, BTreeSet};

use crate::address::{Address, Moved, Raw};
use crate::keys::Owner;

/// A real port. By its LID alone if that is all that was told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct There {
    pub(crate) gid: Raw,
    pub(crate) lid: u16,
}

/// Who had an address.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    /// By queue pair, where it was told; and of the address.
    pub(crate) by_number: BTreeMap<u32, BTreeSet<Owner>>,
    pub(crate) all: BTreeSet<Owner>,
}

/// All of it.
#[derive(Debug, Default)]
pub(crate) struct Places {
    /// By name.
    pub(crate) places: BTreeMap<Address, BTreeSet<There>>,
    /// `None`: there are two.
    pub(crate) pairs: BTreeMap<(Address, u32), Option<(There, u32)>>,
    pub(crate) owners: BTreeMap<Address, Owners>,
    /// By real address: the names of a queue pair, of a port, the one that leads there alone, and that of our own.
    back: BTreeMap<(Address, u32), Vec<(Address, u32)>>,
    pub(crate) names: BTreeMap<Address, BTreeSet<Address>>,
    pub(crate) alone: BTreeMap<Address, Address>,
    pub(crate) own: BTreeMap<Address, Address>,
    /// Numbers that no new queue pair may have.
    pub(crate) taken: BTreeSet<u32>,
}

/// A name that nobody has, in the place of `of`: of the same kind, and from where no port has its own: interface numbers by chance,
/// 240.0.0.0/4, the last LIDs.
fn invented(of: Address, is_free: impl Fn(&Address) -> bool) -> Address {
    let hash = |raw: &Raw, turn: u64| {
        let fnv = |h: u64, b: &u8| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3);
        raw.iter().chain(&turn.to_le_bytes()).fold(0xcbf2_9ce4_8422_2325, fnv).to_be_bytes()
    };
    let nth = |turn: u64| match of {
        Address::Lid(_) => Address::Lid(0xbfff_u16.wrapping_sub(turn as u16)),
        Address::Gid(mut raw) if raw[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff] => {
            let new = hash(&raw, turn);
            raw[12..].copy_from_slice(&new[..4]);
            raw[12] |= 0xf0;
            Address::Gid(raw)
        }
        Address::Gid(mut raw) => {
            let new = hash(&raw, turn);
            raw[8..].copy_from_slice(&new);
            Address::Gid(raw)
        }
    };
    (0..).map(nth).find(is_free).unwrap_or(of)
}

impl Places {
    /// All that has moved, as all ranks have told; `rank` is this one.
    pub(crate) fn of(all: &[(u32, Moved)], rank: u32) -> Places {
        let mut known = Places::default();
        known.places.insert(Address::Gid([0; 16]), BTreeSet::new());
        let mut ports = BTreeMap::new();
        for (from, port) in all {
            let lid = port
                .addresses
                .iter()
                .find_map(|(_, is)| if let Address::Lid(l) = is { Some(*l) } else { None });
            for (was, is) in &port.addresses {
                let there = match *is {
                    Address::Gid(gid) => There { gid, lid: lid.unwrap_or(0) },
                    Address::Lid(lid) => There { lid, ..There::default() },
                };
                known.tell((*from, port.device), (*was, there), port);
                for (number, now) in &port.numbers {
                    let names = known.back.entry((*is, *now)).or_default();
                    names.insert(if port.besides { names.len() } else { 0 }, (*was, *number));
                }
                if port.besides {
                    continue;
                }
                ports.insert(*is, there);
                known.names.entry(*is).or_default().insert(*was);
                if *from == rank {
                    known.own.entry(*is).or_insert(*was);
                }
            }
        }
        for (is, there) in ports {
            known.name(is, there);
        }
        for (from, port) in all {
            for (_, is) in &port.addresses {
                known.at(*is, (*from, port.device));
            }
        }
        known
    }

    /// A port of that device, and queue pairs of it, have this name.
    fn tell(&mut self, owner: Owner, (was, there): (Address, There), port: &Moved) {
        let owners = self.owners.entry(was).or_default();
        let places = self.places.entry(was).or_default();
        if !port.besides {
            owners.all.insert(owner);
            places.insert(there);
        }
        for (number, now) in &port.numbers {
            owners.by_number.entry(*number).or_default().insert(owner);
            let now = Some((there, *now));
            let one = self.pairs.entry((was, *number)).or_insert(now);
            if *one != now {
                *one = None;
            }
        }
    }

    /// Gives a port the name that leads there alone: one that it has, its own, or one that nobody has.
    pub(crate) fn name(&mut self, is: Address, there: There) {
        if self.alone.contains_key(&is) {
            return;
        }
        let leads = |name: &&Address| self.places.get(*name).is_some_and(|p| p.len() == 1);
        let had = self.names.get(&is).and_then(|all| all.iter().find(leads)).copied();
        let name = had.unwrap_or_else(|| {
            let is_free = |name: &Address| !self.places.contains_key(name);
            let is_nobodys = |name: &Address| is_free(name) && !self.names.contains_key(name);
            if is_free(&is) { is } else { invented(is, is_nobodys) }
        });
        self.places.entry(name).or_default().insert(there);
        self.names.entry(is).or_default().insert(name);
        self.alone.insert(is, name);
    }

    /// This one has such a port: what is made there from now on may be called so.
    pub(crate) fn at(&mut self, is: Address, owner: Owner) {
        if let Some(name) = self.alone.get(&is) {
            self.owners.entry(*name).or_default().all.insert(owner);
        }
    }

    fn only(&self, name: Address) -> Option<Option<There>> {
        match self.places.get(&name) {
            None => Some(None),
            Some(all) if all.len() == 1 => Some(all.first().copied()),
            Some(_) => None,
        }
    }

    fn pair(&self, name: Address, number: u32) -> Option<(Option<There>, u32)> {
        match self.pairs.get(&(name, number)) {
            Some(one) => one.map(|(there, number)| (Some(there), number)),
            None => Some((self.only(name)?, number)),
        }
    }

    pub(crate) fn lead(&self, gid: Option<&mut Raw>, lid: &mut u16, number: u32) -> Option<u32> {
        let Some(gid) = gid else {
            let (there, number) = self.pair(Address::Lid(*lid), number)?;
            *lid = there.map_or(*lid, |t| t.lid);
            return Some(number);
        };
        let (there, now) = self.pair(Address::Gid(*gid), number)?;
        *gid = there.map_or(*gid, |t| t.gid);
        // On InfiniBand it has both; the LID may be a router's.
        let by_lid = self.places.get(&Address::Lid(*lid));
        *lid = match there {
            Some(t) if by_lid.is_some_and(|all| all.iter().any(|p| p.lid == t.lid)) => t.lid,
            _ => self.pair(Address::Lid(*lid), number)?.0.map_or(*lid, |t| t.lid),
        };
        Some(now)
    }

    /// The application's name for who has sent something, by where that came from.
    pub(crate) fn sender(&self, from: Address, number: u32) -> (Address, u32) {
        // Two that were made when their former port was two may have one number: then one of the further names leads there.
        let is = |there: There| match from {
            Address::Gid(gid) => there.gid == gid,
            Address::Lid(lid) => there.lid == lid,
        };
        let leads = |(name, told): &&(Address, u32)| {
            self.pairs.get(&(*name, *told)).is_some_and(|p| p.is_some_and(|(t, now)| is(t) && now == number))
        };
        if let Some(names) = self.back.get(&(from, number)) {
            return *names.iter().find(leads).unwrap_or(&names[0]);
        }
        let name = self.alone.get(&from).copied();
        // A stranger, which has an address that a port of the job had, leads nowhere.
        let nobody = if let Address::Gid(_) = from { Address::Gid([0; 16]) } else { Address::Lid(0) };
        let else_ = if self.places.contains_key(&from) { nobody } else { from };
        (name.unwrap_or(else_), number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(last: u8) -> Address {
        Address::Gid([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, last])
    }

    fn moved(addresses: &[(Address, Address)], numbers: &[(u32, u32)]) -> Moved {
        Moved { device: 0, addresses: addresses.to_vec(), numbers: numbers.to_vec(), besides: false }
    }

    fn lead(known: &Places, to: Address, number: u32) -> Option<(Address, u32)> {
        match to {
            Address::Gid(mut raw) => {
                known.lead(Some(&mut raw), &mut 0, number).map(|n| (Address::Gid(raw), n))
            }
            Address::Lid(mut lid) => known.lead(None, &mut lid, number).map(|n| (Address::Lid(lid), n)),
        }
    }

    fn ranks(known: &Places, of: Address) -> Vec<u32> {
        known.owners.get(&of).map(|o| o.all.iter().map(|(rank, _)| *rank).collect()).unwrap_or_default()
    }

    #[test]
    fn names_lead_to_where_they_are_now_and_what_is_ambiguous_leads_nowhere() {
        let one = moved(&[(v4(1), v4(9))], &[(17, 40)]);
        let two = moved(&[(v4(2), v4(1))], &[(17, 41), (18, 50)]);
        let three = moved(&[(v4(2), v4(5))], &[(18, 51)]);
        let known = Places::of(&[(0, one), (1, two), (2, three)], 0);
        assert_eq!(lead(&known, v4(1), 17), Some((v4(9), 40)));
        assert_eq!(lead(&known, v4(1), 99), Some((v4(9), 99)), "made since");
        assert_eq!(lead(&known, v4(2), 17), Some((v4(1), 41)));
        assert_eq!(lead(&known, v4(2), 99), None, "of which of the two?");
        assert_eq!(lead(&known, v4(2), 18), None, "there are two of these");
        assert_eq!(lead(&known, v4(7), 99), Some((v4(7), 99)), "a stranger");
        assert_eq!(known.owners[&v4(2)].by_number[&17], [(1, 0)].into());
        assert_eq!(ranks(&known, v4(2)), [1, 2]);
        assert_eq!(known.sender(v4(9), 40), (v4(1), 17));
        assert_eq!(known.sender(v4(9), 99), (v4(1), 99), "made since");
        let (name, _) = known.sender(v4(1), 99);
        assert_eq!(lead(&known, name, 99), Some((v4(1), 99)), "its former address is at two ports");
        assert!(name != v4(1) && name != v4(2));
        assert_eq!(known.sender(v4(2), 3).0, Address::Gid([0; 16]), "a stranger by an address of ours");
        assert_eq!(lead(&known, Address::Gid([0; 16]), 3), None);
    }

    #[test]
    fn on_infiniband_a_handle_may_have_both() {
        let gid = |last: u8| Address::Gid([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        let port = |was: u8, is: u8, numbers: &[(u32, u32)]| {
            let lid = |l: u8| Address::Lid(l.into());
            moved(&[(gid(was), gid(is)), (lid(was), lid(is))], numbers)
        };
        // Two ranks of one host are on two, one of them on that of the third.
        let all = [(0, port(1, 2, &[(17, 30)])), (1, port(1, 3, &[(18, 31)])), (2, port(2, 3, &[(17, 32)]))];
        let known = Places::of(&all, 0);
        let both = |name: u8, lid: u16, number: u32| {
            let Address::Gid(mut raw) = gid(name) else { return None };
            let mut lid = lid;
            known.lead(Some(&mut raw), &mut lid, number).map(|n| (raw[15], lid, n))
        };
        assert_eq!(both(1, 1, 17), Some((2, 2, 30)));
        assert_eq!(both(1, 1, 18), Some((3, 3, 31)));
        assert_eq!(both(2, 2, 17), Some((3, 3, 32)));
        assert_eq!(both(1, 1, 99), None);
        assert_eq!(both(2, 2, 99), Some((3, 3, 99)));
        assert_eq!(both(9, 77, 5), Some((9, 77, 5)), "behind a router");
        assert_eq!(lead(&known, Address::Lid(1), 18), Some((Address::Lid(3), 31)));
        // By further names.
        let addresses = vec![(gid(8), gid(2)), (Address::Lid(80), Address::Lid(2))];
        let further = Moved { device: 0, addresses, numbers: vec![(17, 30)], besides: true };
        let known = Places::of(&[all.as_slice(), &[(0, further)]].concat(), 0);
        let Address::Gid(mut raw) = gid(8) else { return };
        let mut lid = 80;
        assert_eq!(known.lead(Some(&mut raw), &mut lid, 17), Some(30));
        assert_eq!((raw[15], lid), (2, 2));
    }

    #[test]
    fn a_port_that_nobody_knew_has_a_name_that_is_nobodys() {
        let one = moved(&[(v4(1), v4(2)), (Address::Lid(1), Address::Lid(2))], &[]);
        let mut known = Places::of(&[(0, one)], 0);
        for is in [v4(1), v4(2), v4(3), Address::Lid(1), Address::Lid(2), Address::Lid(3)] {
            known.name(is, There::default());
            known.at(is, (4, 0));
        }
        // With rank 0, by that name; of its own; by another one, since its own means rank 0's.
        assert_eq!((known.alone[&v4(2)], known.alone[&v4(3)]), (v4(1), v4(3)));
        assert_eq!(
            (known.alone[&Address::Lid(2)], known.alone[&Address::Lid(3)]),
            (Address::Lid(1), Address::Lid(3))
        );
        let (gid, lid) = (known.alone[&v4(1)], known.alone[&Address::Lid(1)]);
        assert!(matches!(gid, Address::Gid(raw) if raw[12] >= 0xf0 && raw[11] == 0xff));
        assert_eq!(lid, Address::Lid(0xbfff));
        assert_eq!((ranks(&known, v4(1)), ranks(&known, gid)), (vec![0, 4], vec![4]));
        assert!(known.sender(v4(1), 5) == (gid, 5));
    }

    #[test]
    fn further_names_are_of_some_queue_pairs_only() {
        let besides = |addresses: &[(Address, Address)], numbers: &[(u32, u32)]| Moved {
            besides: true,
            ..moved(addresses, numbers)
        };
        let all = [
            (0, moved(&[(v4(1), v4(5))], &[(17, 20)])),
            (1, moved(&[(v4(2), v4(6))], &[(17, 21), (19, 22)])),
            (1, besides(&[(v4(1), v4(6)), (v4(8), v4(6))], &[(19, 22)])),
        ];
        let known = Places::of(&all, 1);
        assert_eq!(lead(&known, v4(1), 17), Some((v4(5), 20)));
        assert_eq!(lead(&known, v4(1), 19), Some((v4(6), 22)));
        assert_eq!(lead(&known, v4(1), 99), Some((v4(5), 99)));
        assert_eq!(lead(&known, v4(8), 19), Some((v4(6), 22)));
        assert_eq!(lead(&known, v4(8), 99), None);
        assert_eq!(known.sender(v4(6), 22), (v4(2), 19));
        let all = [
            (0, moved(&[(v4(1), v4(5))], &[(17, 20)])),
            (1, moved(&[(v4(1), v4(6))], &[(17, 21)])),
            (1, besides(&[(v4(8), v4(6))], &[(17, 21)])),
        ];
        let twins = Places::of(&all, 1);
        assert_eq!((lead(&twins, v4(1), 17), lead(&twins, v4(8), 17)), (None, Some((v4(6), 21))));
        assert_eq!(twins.sender(v4(6), 21), (v4(8), 17));
        assert_eq!((known.alone[&v4(6)], known.own[&v4(6)]), (v4(2), v4(2)));
    }
}
