//! The settle stage: targets of the collective clocks, who has reached them, and whom to let go on. *Next door*, without IO.
//!
//! What a reader would get wrong: a report of clocks counts for the settled state only if it was read *after* the
//! latest targets for that rank were in force (`version`). An older one says nothing about what the rank enters next.

use super::Coordinator;
use crate::message::{Clock, Doing, Presence, ToRank};
use std::collections::BTreeMap;
use stillpoint_abi::stage::Stage;

impl Coordinator {
    pub(super) fn clocks(&mut self, rank: u32, version: u64, clocks: Vec<Clock>, doing: Doing) {
        let size = self.ranks.len() as u32;
        let mut raised = Vec::new();
        let r = &mut self.ranks[rank as usize];
        r.answered = true;
        r.doing = doing;
        r.seen_version = version;
        for Clock { gid, count, inside, mut members } in clocks {
            r.clocks.insert(gid, (count, inside));
            members.retain(|m| *m < size);
            if !members.is_empty() {
                self.members.entry(gid).or_insert(members);
            }
            let target = self.targets.entry(gid).or_insert(0);
            if count > *target {
                *target = count;
                raised.push(gid);
            }
        }
        if matches!(doing, Doing::Held(_)) {
            self.held_since.get_or_insert(self.now);
        }
        self.changed = self.now;
        if self.stage == Stage::Settle && !raised.is_empty() {
            self.tell_targets(&raised);
        }
    }

    /// Sends the targets of these clocks to their members.
    fn tell_targets(&mut self, gids: &[u64]) {
        self.version += 1;
        let mut by_rank: BTreeMap<u32, Vec<(u64, u64)>> = BTreeMap::new();
        for gid in gids {
            let target = self.targets.get(gid).copied().unwrap_or(0);
            for &m in self.members.get(gid).into_iter().flatten() {
                by_rank.entry(m).or_default().push((*gid, target));
            }
        }
        for (rank, targets) in by_rank {
            self.tell(rank, targets);
        }
    }

    pub(super) fn tell(&mut self, rank: u32, targets: Vec<(u64, u64)>) {
        let version = self.version;
        let r = &mut self.ranks[rank as usize];
        if r.presence == Presence::Here {
            r.sent_version = version;
            self.send(rank, ToRank::Targets { version, targets });
        }
    }

    pub(super) fn someone_runs(&self) -> bool {
        self.live().any(|(_, r)| r.doing == Doing::Running)
    }

    /// Every live member of every communicator stands at its target, outside, and cannot pass it.
    pub(super) fn settled(&self) -> bool {
        self.live().all(|(_, r)| r.seen_version == r.sent_version && r.clocks.values().all(|c| !c.1))
            && self.targets.iter().all(|(gid, &target)| {
                let Some(members) = self.members.get(gid) else { return target == 0 };
                members.iter().all(|&m| {
                    let r = &self.ranks[m as usize];
                    // A rank that does not have the communicator is not bound by its clock: it has freed it (or has not
                    // made it, and then its parent's clock, where it is inside, says so).
                    r.presence != Presence::Here || r.clocks.get(gid).is_none_or(|c| c.0 == target)
                })
            })
    }

    /// Lets held collectives begin when no one else can move.
    pub(super) fn release(&mut self) {
        let quiet = self.now - self.changed;
        let runs = self.someone_runs();
        if quiet < if runs { self.patience } else { self.config.release } {
            return;
        }
        let mut gids = Vec::new();
        for (_, r) in self.live() {
            if let Doing::Held(gid) = r.doing {
                let target = self.targets.get(&gid).copied().unwrap_or(0);
                if r.clocks.get(&gid).map_or(0, |c| c.0) >= target && !gids.contains(&gid) {
                    gids.push(gid);
                }
            }
        }
        self.changed = self.now;
        if runs {
            self.patience = self.patience.saturating_mul(2).min(2 * self.config.release_running);
        }
        for gid in &gids {
            *self.targets.entry(*gid).or_insert(0) += 1;
        }
        if !gids.is_empty() {
            self.tell_targets(&gids);
        }
    }
}
