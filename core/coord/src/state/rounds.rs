//! Rounds between all ranks, with a barrier at each: at the drain, and when a restarted job is rebuilt. *Next door*, without
//! IO.
//!
//! ```text
//!   round 0    every rank answers: it says something, or that it is done
//!                 ├ somebody has said something ─▶ everybody hears what is for him ─▶ round 1, everybody answers again
//!                 └ all are done ─────────────────▶ over
//! ```
//!
//! What a reader would get wrong: a rank that is done is not out of it. What another says in the same round may give it more
//! to do, so it answers anew in the next one. And rounds may be answered here that were handed on before: by a root
//! agent that is gone, to some ranks only. They are handed on again, and who knows them drops them.

use crate::message::{Heard, Said};
use std::collections::BTreeMap;

/// Answers by round and rank; `None`: done.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    open: BTreeMap<u32, BTreeMap<u32, Option<Said>>>,
    /// The last one that was handed on while a job is rebuilt: a line may have broken before that arrived.
    last: Option<(u32, BTreeMap<u32, Heard>)>,
}

impl Rounds {
    pub(super) fn clear(&mut self) {
        *self = Rounds::default();
    }

    pub(super) fn answer(&mut self, round: u32, rank: u32, said: Option<Said>) {
        self.open.entry(round).or_default().insert(rank, said);
    }

    fn full(answers: &BTreeMap<u32, Option<Said>>, among: &[u32]) -> bool {
        among.iter().all(|r| answers.contains_key(r))
    }

    /// Takes the first round that all of `among` have answered, and in which one has said something: its number, and what
    /// each of them hears. `keep`: for [`Rounds::again`].
    pub(super) fn complete(&mut self, among: &[u32], keep: bool) -> Option<(u32, BTreeMap<u32, Heard>)> {
        let speaks = |answers: &BTreeMap<u32, Option<Said>>| answers.values().any(Option::is_some);
        let ready = |(_, a): &(&u32, &BTreeMap<u32, Option<Said>>)| Self::full(a, among) && speaks(a);
        let round = self.open.iter().find(ready).map(|(round, _)| *round)?;
        let answers = self.open.remove(&round)?;
        let mut hear: BTreeMap<u32, Heard> = among.iter().map(|r| (*r, Heard::default())).collect();
        let mut asked: BTreeMap<Vec<u8>, Vec<u32>> = BTreeMap::new();
        let mut published = Vec::new();
        for (from, said) in answers {
            let Some(said) = said else { continue };
            for (to, bytes) in said.to {
                if let Some(heard) = hear.get_mut(&to) {
                    heard.from.push((from, bytes));
                }
            }
            for key in said.ask {
                let who = asked.entry(key).or_default();
                if who.last() != Some(&from) {
                    who.push(from);
                }
            }
            published.extend(said.publish.into_iter().map(|(key, value)| (from, key, value)));
        }
        for (from, key, value) in published {
            for asker in asked.get(&key).into_iter().flatten() {
                if let Some(heard) = hear.get_mut(asker) {
                    heard.found.push((key.clone(), from, value.clone()));
                }
            }
        }
        self.last = keep.then(|| (round, hear.clone()));
        Some((round, hear))
    }

    /// What `rank` hears in `round`, if that is the last one that was handed on.
    pub(super) fn again(&self, round: u32, rank: u32) -> Option<Heard> {
        let (_, hear) = self.last.as_ref().filter(|(last, _)| *last == round)?;
        hear.get(&rank).cloned()
    }

    /// A round before the last one that was handed on while a job is rebuilt.
    pub(super) fn is_past(&self, round: u32) -> bool {
        self.last.as_ref().is_some_and(|(last, _)| round < *last)
    }

    /// All of `among` are done, in one and the same round.
    pub(super) fn over(&self, among: &[u32]) -> bool {
        let done = |answers: &BTreeMap<u32, Option<Said>>| {
            among.iter().all(|r| answers.get(r).is_some_and(Option::is_none))
        };
        self.open.values().any(done)
    }

    /// Whether `rank` has answered in the last round there is.
    pub(super) fn answered(&self, rank: u32) -> bool {
        self.open.last_key_value().is_some_and(|(_, answers)| answers.contains_key(&rank))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(rank: u32, byte: u8) -> Option<Said> {
        Some(Said { to: vec![(rank, vec![byte])], ..Said::default() })
    }

    #[test]
    fn a_round_is_handed_on_when_all_have_answered_and_one_has_spoken() {
        let mut rounds = Rounds::default();
        rounds.answer(0, 0, None);
        rounds.answer(0, 2, to(0, 7));
        assert!(rounds.complete(&[0, 1, 2], true).is_none());
        assert_eq!((rounds.answered(0), rounds.answered(1)), (true, false));
        rounds.answer(0, 1, None);
        assert!(!rounds.over(&[0, 1, 2]), "rank 2 has spoken");
        let (round, heard) = rounds.complete(&[0, 1, 2], true).unwrap();
        assert_eq!((round, &heard[&0].from), (0, &vec![(2, vec![7])]));
        assert_eq!(heard[&1], Heard::default());
        assert!(rounds.complete(&[0, 1, 2], true).is_none());
        assert_eq!((rounds.again(0, 0).as_ref(), rounds.again(1, 0)), (Some(&heard[&0]), None));
        for rank in 0..3 {
            assert!(!rounds.over(&[0, 1, 2]));
            rounds.answer(1, rank, None);
        }
        assert!(rounds.over(&[0, 1, 2]) && rounds.complete(&[0, 1, 2], true).is_none());
    }

    #[test]
    fn done_in_different_rounds_is_not_over() {
        let mut rounds = Rounds::default();
        rounds.answer(1, 0, None);
        rounds.answer(2, 1, None);
        assert!(!rounds.over(&[0, 1]));
        rounds.answer(2, 0, None);
        assert!(rounds.over(&[0, 1]));
    }

    #[test]
    fn who_asks_hears_of_every_owner_and_nobody_else_does() {
        let mut rounds = Rounds::default();
        let key = b"qp 17".to_vec();
        let publish = |value: u8| Said { publish: vec![(key.clone(), vec![value])], ..Said::default() };
        rounds.answer(0, 0, Some(Said { ask: vec![key.clone(), b"qp 18".to_vec()], ..publish(5) }));
        rounds.answer(0, 1, Some(publish(6)));
        rounds.answer(0, 2, None);
        let (_, heard) = rounds.complete(&[0, 1, 2], true).unwrap();
        assert_eq!(heard[&0].found, [(key.clone(), 0, vec![5]), (key.clone(), 1, vec![6])]);
        assert!(heard[&1].found.is_empty() && heard[&2].found.is_empty());
    }

    #[test]
    fn what_a_rank_said_that_is_gone_is_heard_and_what_is_for_it_is_not() {
        let mut rounds = Rounds::default();
        rounds.answer(0, 0, to(1, 3));
        rounds.answer(0, 1, to(0, 4));
        let (_, heard) = rounds.complete(&[0], true).unwrap();
        assert_eq!(heard.len(), 1);
        assert_eq!(heard[&0].from, [(1, vec![4])]);
    }
}
