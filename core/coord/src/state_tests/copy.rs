//! The same world with images that are written on nodes and copied by their agents.
//!
//! What a reader would get wrong: the ranks run on while images are copied; what is lost then is lost after the cut.

use super::*;

fn world(seed: u64, ranks: u32, ops: usize) -> World {
    let mut w = World::new(seed, ranks, ops, config());
    w.copy_within = Some(200 * MS);
    w
}

fn at_copy(seed: u64) -> World {
    let mut w = world(seed, 12, 4000);
    assert!(w.run(50 * SEC, |w| w.coord.stage() == Stage::Copy), "seed {seed}");
    w
}

#[test]
#[allow(clippy::print_stderr, reason = "the seed must be seen when a run fails")]
fn the_program_ends_and_only_what_is_copied_is_committed() {
    let (mut commits, mut ran_on) = (0, false);
    for seed in seeds("STILLPOINT_SEED", 30) {
        eprintln!("seed {seed}");
        let mut w = world(seed, 2 + (seed * 7 % 20) as u32, 2000);
        w.fail_one_in = 200 * (seed % 2);
        let ended = w.run(600 * SEC, |w| {
            ran_on |= w.coord.stage() == Stage::Copy && w.ranks.iter().all(|r| !r.stopped);
            w.ranks.iter().all(|r| r.at == At::End)
        });
        assert!(ended, "seed {seed}: the program hangs in stage {}", w.coord.stage());
        assert!(seed % 2 == 1 || w.given_up == 0, "seed {seed}: {:?}", w.coord.last_reasons);
        commits += w.commits;
    }
    assert!(commits > 0 && ran_on);
}

#[test]
fn a_rank_lost_behind_the_cut_does_not_give_the_checkpoint_up() {
    for seed in 1..50 {
        let mut w = at_copy(seed);
        let (ckpt, commits) = (w.coord.ckpt, w.commits);
        let victim = w.rng.below(12) as u32;
        w.at(w.now, Ev::Die(victim));
        assert!(w.run(50 * SEC, |w| w.coord.outcome().restart), "seed {seed}");
        assert!(w.run(50 * SEC, |w| w.coord.stage() == Stage::Idle), "seed {seed}");
        assert_eq!((w.commits, w.given_up), (commits + 1, 0), "seed {seed}: {:?}", w.coord.last_reasons);
        assert_eq!(w.coord.last.map(|m| m.ckpt), Some(ckpt.0));
        assert_eq!(w.coord.outcome().lost, vec![victim], "the outcome is the same as before");
    }
}

#[test]
#[allow(clippy::print_stderr, reason = "the seed must be seen when a run fails")]
fn deaths_at_any_moment() {
    for seed in seeds("STILLPOINT_SEED", 100) {
        eprintln!("seed {seed}");
        let mut w = world(seed, 12, 4000);
        let (victim, at) = (w.rng.below(12) as u32, w.rng.below(500 * MS));
        w.at(at, Ev::Die(victim));
        w.run(100 * SEC, |w| w.coord.outcome().restart && w.coord.stage() == Stage::Idle);
        assert_eq!(
            (w.coord.outcome().lost.clone(), w.coord.stage()),
            (vec![victim], Stage::Idle),
            "seed {seed}"
        );
    }
}

/// With the node go the images that it has not copied; those of others are of no use then.
#[test]
fn a_node_lost_while_it_copies_gives_the_checkpoint_up() {
    let mut found = 0;
    for seed in 1..20 {
        let mut w = at_copy(seed);
        let commits = w.commits;
        // Nobody is heard of it any more, and its ranks have lost their line.
        w.nodes_gone.insert(1);
        for rank in (0..12).filter(|r| node_of(*r) == 1) {
            w.coordinate(Event::Parted(u64::from(rank)));
        }
        assert_eq!((w.coord.stage(), w.given_up), (Stage::Copy, 0), "the ranks are not needed");
        let left: Vec<u32> =
            (0..12).filter(|r| node_of(*r) == 1 && w.coord.ranks[*r as usize].copying.is_some()).collect();
        w.coordinate(Event::NodeGone(1));
        if !left.is_empty() {
            found += 1;
            assert_eq!((w.commits, w.given_up), (commits, 1));
            let ranks: Vec<String> = left.iter().map(u32::to_string).collect();
            assert!(w.coord.last_reasons[0].contains(&ranks.join(" ")), "{:?}", w.coord.last_reasons);
        }
    }
    assert!(found > 5);
}

#[test]
fn a_node_that_has_copied_all_of_its_own_is_not_needed() {
    let mut w = at_copy(5);
    let (ckpt, commits) = (w.coord.ckpt, w.commits);
    for rank in (0..12).filter(|r| node_of(*r) == 1) {
        w.durable.entry(ckpt.0).or_default().insert(rank);
        w.coordinate(Event::Copied { node: 1, ckpt, rank: Rank(rank), result: Ok(()) });
    }
    w.coordinate(Event::NodeGone(1));
    assert!(w.run(50 * SEC, |w| w.commits > commits) && w.given_up == 0);
}

#[test]
fn what_is_said_of_another_node_or_checkpoint_is_not_heard() {
    let mut w = at_copy(7);
    let ckpt = w.coord.ckpt;
    let before = w.coord.copy_measure();
    for (node, ckpt, rank) in [(2, ckpt, 1), (1, CkptId(ckpt.0 + 1), 1), (1, ckpt, 99)] {
        let (rank, result) = (Rank(rank), Err("x".to_owned()));
        assert!(w.coord.handle(w.now, Event::Copied { node, ckpt, rank, result }).is_empty());
        w.coord.handle(w.now, Event::Copying { node, ckpt, rank, done: 5 });
    }
    assert_eq!(w.coord.copy_measure(), before);
}

#[test]
fn a_failed_copy_is_told_and_one_that_stands_still_is_given_up() {
    let mut w = at_copy(3);
    let rank = Rank(w.coord.ranks.iter().position(|r| r.copying.is_some()).unwrap() as u32);
    let (node, ckpt) = (node_of(rank.0), w.coord.ckpt);
    let result = Err("n2: write /s/ckpt-000001.partial/x: No space left on device".to_owned());
    let actions = w.coord.handle(w.now, Event::Copied { node, ckpt, rank, result });
    assert!(actions.contains(&Action::Discard(ckpt)) && actions.contains(&Action::Over(ckpt)));
    assert!(w.coord.last_reasons[0].contains("No space left"), "{:?}", w.coord.last_reasons);

    let mut w = at_copy(4);
    w.nodes_gone.extend([0, 1, 2]);
    let progress = w.coord.next_tick().unwrap();
    let rank = Rank(w.coord.ranks.iter().position(|r| r.copying.is_some()).unwrap() as u32);
    let (node, ckpt, now) = (node_of(rank.0), w.coord.ckpt, w.now + 300 * SEC);
    w.coord.handle(now, Event::Copying { node, ckpt, rank, done: 1 });
    assert!(w.coord.next_tick().unwrap() >= progress + 299 * SEC, "what moves has time");
    w.coord.handle(now + 600 * SEC, Event::Tick);
    assert!(w.coord.last_reasons[0].contains("no progress for 600 s"), "{:?}", w.coord.last_reasons);
}

/// The job is told to end when the copies elsewhere are durable, and stands still until then.
#[test]
fn a_checkpoint_that_stops_the_job_waits_for_the_copies() {
    let mut w = World::new(3, 5, 500, Config::default());
    w.copy_within = Some(200 * MS);
    w.at(50 * MS, Ev::Host(Event::Request { token: 1, stop: true }));
    assert!(w.run(50 * SEC, |w| w.coord.stage() == Stage::Copy));
    assert!(w.ranks.iter().all(|r| r.stopped) && w.coord.outcome().stopped_at.is_none());
    assert!(w.run(50 * SEC, |w| w.coord.outcome().ended));
    assert_eq!((w.coord.outcome().stopped_at, w.commits), (Some(1), 1));
    // One that is away meanwhile would come back to nobody.
    let mut w = World::new(3, 5, 500, Config::default());
    w.copy_within = Some(200 * MS);
    w.at(50 * MS, Ev::Host(Event::Request { token: 1, stop: true }));
    assert!(w.run(50 * SEC, |w| w.coord.stage() == Stage::Copy));
    w.coordinate(Event::Parted(2));
    assert_eq!((w.given_up, w.coord.stage()), (1, Stage::Idle));
}

#[test]
fn every_way_to_leave_is_one_behind_the_cut() {
    use Leaving::{Abort, Exec, Exit, Finalized};
    for leaving in [Exit(0), Exit(3), Abort(9), Finalized, Exec] {
        let mut w = at_copy(11);
        let commits = w.commits;
        w.coordinate(Event::Message(4, FromRank::Goodbye(leaving)));
        assert!(w.run(50 * SEC, |w| w.commits > commits), "{leaving:?}");
        assert_eq!(w.given_up, 0, "{leaving:?}: {:?}", w.coord.last_reasons);
    }
}

#[test]
fn a_later_start_gives_up_what_is_being_copied() {
    let mut w = at_copy(2);
    let next = FromRank::Hello { rank: 0, size: 12, pid: 7, incarnation: 1, restored: true, before: None };
    let ckpt = w.coord.ckpt;
    let actions = w.coord.handle(w.now, Event::Message(99, next));
    assert!(actions.contains(&Action::Discard(ckpt)) && w.coord.copy_measure().is_none());
}
