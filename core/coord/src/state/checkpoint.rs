//! A checkpoint from the request to its end: from stage to stage, time limits, commit or giving up. *Next door*, without
//! IO.
//!
//! INV-1: `Resume` is sent in one place, when every rank of the checkpoint has snapped (direct: has written).
//! INV-4: `Commit` is asked for in one place, when every image is durable where a commit looks.
//!
//! When all images are complete, the checkpoint needs no rank any more; until they are durable it is in the stage copy
//! ([`super::copy`]), which may last longer than the job.
//!
//! What a reader would get wrong: while storage prepares or commits there is no time limit and nothing can be given up; its
//! answer ends that.

use super::{Action, Asker, Coordinator, Image, Insists, MS, Mode, Nanos, SEC, seed};
use crate::interval::optimum;
use crate::message::{Doing, Measures, Outcome, Presence, ToRank};
use std::collections::BTreeMap;
use stillpoint_abi::ids::{CkptId, Rank};
use stillpoint_abi::stage::Stage;

impl Coordinator {
    pub(super) fn request(&mut self, asker: Asker, stop: bool) {
        let why = self.unready();
        let waits = asker.is_warning() && self.gathers();
        if let Some(insists) = self.insists.as_mut().filter(|_| asker.is_warning()) {
            insists.since = self.now;
        }
        if !why.is_empty() && !waits {
            self.answer(asker, Err(why));
        } else if !self.preparing && matches!(self.stage, Stage::Intend | Stage::Settle) && stop == self.stop
        {
            // Not a single thread stands still yet: this checkpoint is as good as a new one.
            self.asked.push(asker);
        } else {
            self.queue.push_back((asker, stop));
        }
    }

    pub(super) fn answer(&mut self, asker: Asker, result: Outcome) {
        match asker {
            Asker::Token(token) => self.out.push(Action::Answer(token, result)),
            Asker::Rank(rank, id) => {
                if (rank as usize) < self.ranks.len() {
                    self.send(rank, ToRank::Answer { id, result });
                }
            }
        }
    }

    fn answer_all(&mut self, result: &Outcome) {
        for asker in std::mem::take(&mut self.asked) {
            self.answer(asker, result.clone());
        }
    }

    /// Answers all who wait for a checkpoint to begin; `but_warnings`: not a scheduler's.
    fn refuse_queue(&mut self, why: &[String], but_warnings: bool) {
        for (asker, stop) in std::mem::take(&mut self.queue) {
            if but_warnings && asker.is_warning() {
                self.queue.push_back((asker, stop));
            } else {
                self.answer(asker, Err(why.to_vec()));
            }
        }
    }

    /// Until when nothing but warnings waits, whose last checkpoint has failed.
    pub(super) fn holds_warnings(&self) -> Option<Nanos> {
        let next = self.insists.filter(|i| self.now < i.next)?.next;
        (!self.queue.is_empty() && self.queue.iter().all(|(asker, _)| asker.is_warning())).then_some(next)
    }

    /// A warning comes once, and what is in the way may be gone in a moment (a child process, a rank that is becoming another
    /// program): it is queued again.
    fn insist(&mut self) {
        let before = self.insists.unwrap_or(Insists { since: self.now, next: 0, pause: SEC / 2 });
        let pause = (2 * before.pause).min(16 * SEC);
        let again = Insists { since: before.since, next: self.now + pause, pause };
        self.insists = (self.now.saturating_sub(before.since) < self.config.insist).then_some(again);
        if self.insists.is_some() {
            self.queue_warnings_again();
        }
    }

    fn queue_warnings_again(&mut self) {
        let (again, asked) = std::mem::take(&mut self.asked).into_iter().partition(|a| a.is_warning());
        self.asked = asked;
        let again: Vec<Asker> = again;
        self.queue.extend(again.into_iter().map(|asker| (asker, false)));
    }

    pub(super) fn begin(&mut self) {
        let why = self.unready();
        if !why.is_empty() {
            let gathers = self.gathers();
            if !gathers {
                self.insists = None;
            }
            return self.refuse_queue(&why, gathers);
        }
        if self.is_cut() {
            // Who asks need not wait for one that does not move.
            if self.now.saturating_sub(self.last_end) > self.config.drain {
                let owing = self.live().filter(|(_, r)| r.owes).map(|(n, _)| {
                    format!("rank {n} has not said yet how far the drain reached it that was given up")
                });
                let owing: Vec<String> = owing.collect();
                self.refuse_queue(&owing, true);
            }
            return;
        }
        let due = self.interval().is_some_and(|i| self.now >= self.last_end.saturating_add(i));
        if (self.queue.is_empty() || self.holds_warnings().is_some()) && !due {
            return;
        }
        self.stop = self.queue.iter().any(|(_, stop)| *stop);
        self.asked = self.queue.drain(..).map(|(asker, _)| asker).collect();
        self.begun = self.now;
        self.preparing = true;
        self.out.push(Action::Prepare);
    }

    pub(super) fn prepared(&mut self, result: Result<CkptId, String>) {
        if !std::mem::take(&mut self.preparing) {
            return;
        }
        match result {
            Err(reason) => self.end(Err(vec![reason])),
            Ok(ckpt) => {
                self.ckpt = ckpt;
                self.enter(Stage::Intend);
                let why = self.unready();
                if !why.is_empty() {
                    return self.give_up(why);
                }
                for r in &mut self.ranks {
                    r.answered = false;
                    r.clocks.clear();
                    r.doing = Doing::Running;
                    (r.sent_version, r.seen_version) = (0, 0);
                    r.image = None;
                    r.copying = None;
                }
                self.targets.clear();
                self.reasons.clear();
                self.rounds.clear();
                self.exchanged = false;
                self.version = 0;
                self.held_since = None;
                self.measures = Measures { ckpt: ckpt.0, ..Measures::default() };
                self.send_all(&ToRank::Intend { ckpt: ckpt.0 });
            }
        }
    }

    fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        self.entered = self.now;
        for r in &mut self.ranks {
            r.done = false;
        }
    }

    pub(super) fn limit(&self, stage: Stage) -> Nanos {
        match stage {
            Stage::Intend => self.config.intend,
            Stage::Settle => self.config.settle,
            Stage::Stop => self.config.stop,
            Stage::Drain => self.config.drain,
            Stage::Snapshot => self.config.snapshot,
            Stage::Copy => self.config.copy,
            _ => self.config.write,
        }
    }

    pub(super) fn done(&mut self, rank: u32, ckpt: u64, stage: Stage) {
        if self.stage == stage && !self.preparing && ckpt == self.ckpt.0 {
            self.ranks[rank as usize].done = true;
        }
    }

    pub(super) fn step(&mut self) {
        let all_done = self.live().all(|(_, r)| r.done);
        match self.stage {
            Stage::Idle | Stage::Resume | Stage::Commit => return,
            Stage::Intend => {
                if self.live().all(|(_, r)| r.answered) {
                    if !self.reasons.is_empty() {
                        let reasons = std::mem::take(&mut self.reasons);
                        return self.give_up(reasons);
                    }
                    self.enter(Stage::Settle);
                    self.changed = self.now;
                    self.patience = self.config.release_running;
                    self.version += 1;
                    let mut by_rank: BTreeMap<u32, Vec<(u64, u64)>> =
                        self.live().map(|(n, _)| (n, Vec::new())).collect();
                    for (gid, target) in &self.targets {
                        for m in self.members.get(gid).into_iter().flatten() {
                            if let Some(list) = by_rank.get_mut(m) {
                                list.push((*gid, *target));
                            }
                        }
                    }
                    for (rank, targets) in by_rank {
                        self.tell(rank, targets);
                    }
                    return;
                }
            }
            Stage::Settle => {
                if self.settled() {
                    self.stopped_at = self.now;
                    self.enter(Stage::Stop);
                    return self.send_all(&ToRank::Stop);
                }
                self.release();
            }
            Stage::Stop => {
                if all_done {
                    return self.enter(Stage::Drain);
                }
            }
            Stage::Drain => {
                if self.rounds.over(&self.live_ids()) {
                    return self.order_snapshots();
                }
            }
            Stage::Snapshot => {
                if all_done && (!self.direct || self.all_written()) {
                    let now = self.now;
                    self.measures.stopped_ns = now - self.stopped_at;
                    self.measures.held_ns =
                        now - self.held_since.unwrap_or(self.stopped_at).min(self.stopped_at);
                    // Every rank had got it before its snapshot.
                    self.ranks.iter_mut().for_each(|r| r.mail.clear());
                    if !self.stop {
                        self.send_all(&ToRank::Resume);
                    }
                    return self.enter(Stage::Write);
                }
            }
            Stage::Write => {
                if self.all_written() {
                    return self.enter(Stage::Copy);
                }
            }
            Stage::Copy => {
                if self.all_durable() {
                    return self.order_commit();
                }
            }
        }
        if self.now >= self.entered.saturating_add(self.limit(self.stage)) {
            self.time_is_up();
        }
    }

    fn time_is_up(&mut self) {
        let stage = self.stage;
        if stage == Stage::Copy {
            return self.copy_is_stuck(self.config.copy);
        }
        let late: Vec<String> = self
            .live()
            .filter(|(n, r)| match stage {
                Stage::Intend => !r.answered,
                Stage::Settle => {
                    r.seen_version != r.sent_version
                        || r.clocks.iter().any(|(gid, c)| c.1 || self.targets.get(gid) != Some(&c.0))
                }
                Stage::Drain => !self.rounds.answered(*n),
                Stage::Write => r.image.is_none(),
                _ => !r.done,
            })
            .map(|(n, _)| n.to_string())
            .take(16)
            .collect();
        let limit = self.limit(stage) / MS;
        self.give_up(vec![format!(
            "stage {stage} took longer than {limit} ms; waiting for ranks {}",
            late.join(" ")
        )]);
    }

    fn order_snapshots(&mut self) {
        self.direct = self.stop || self.config.mode == Mode::Direct;
        self.measures.direct = self.direct;
        self.enter(Stage::Snapshot);
        let (ckpt, direct) = (self.ckpt, self.direct);
        let seed = seed(self.incarnation, ckpt);
        for rank in self.live_ids() {
            if let Some(conn) = self.ranks[rank as usize].conn {
                self.out.push(Action::Snapshot { conn, rank: Rank(rank), ckpt, direct, seed });
            }
        }
    }

    fn order_commit(&mut self) {
        self.enter(Stage::Commit);
        let images: Vec<Image> = self.ranks.iter().filter_map(|r| r.image.clone()).collect();
        let finished = (0u32..)
            .zip(&self.ranks)
            .filter_map(|(n, r)| match r.presence {
                Presence::Finished(status) if r.image.is_none() => Some((Rank(n), status)),
                _ => None,
            })
            .collect();
        self.measures.bytes = images.iter().map(|i| i.bytes).sum();
        self.measures.total_ns = self.now - self.begun;
        let size = self.ranks.len() as u32;
        self.out.push(Action::Commit { ckpt: self.ckpt, size, images, finished, measures: self.measures });
    }

    pub(super) fn committed(&mut self, result: Result<(), String>) {
        if self.stage != Stage::Commit {
            return;
        }
        match result {
            Ok(()) => {
                let id = self.ckpt.0;
                self.last = Some(self.measures);
                if let Some(mtbf) = self.config.auto {
                    self.config.interval = Some(optimum(self.measures.held_ns, self.measures.total_ns, mtbf));
                }
                self.send_all(&ToRank::Committed { ckpt: id });
                let stop = self.stop;
                self.end(Ok(id));
                if stop {
                    self.outcome.stopped_at = Some(id);
                    self.send_all(&ToRank::Leave);
                    for rank in self.live_ids() {
                        self.depart(rank, Presence::Left, String::new());
                    }
                }
            }
            Err(reason) => {
                self.send_all(&ToRank::Abort { reason: reason.clone(), cut: false });
                self.end(Err(vec![reason]));
            }
        }
    }

    /// Ends the checkpoint in progress; the job runs on and the last commit stands.
    pub(super) fn give_up(&mut self, reasons: Vec<String>) {
        if self.preparing || matches!(self.stage, Stage::Idle | Stage::Commit) {
            return;
        }
        if self.gathers() {
            self.queue_warnings_again();
        }
        let reason = reasons.join("; ");
        // Handed on is not arrived: what was on its way to a rank is lost with the relay that had it. From the snapshot on
        // all ranks have said that they were told.
        let cut = self.exchanged && matches!(self.stage, Stage::Stop | Stage::Drain);
        for r in self.ranks.iter_mut().filter(|r| r.presence == Presence::Here) {
            r.owes |= cut;
        }
        self.send_all(&ToRank::Abort { reason, cut });
        self.out.push(Action::Discard(self.ckpt));
        self.end(Err(reasons));
    }

    fn end(&mut self, result: Outcome) {
        match &result {
            Ok(_) => {
                self.committed += 1;
                self.insists = None;
            }
            Err(reasons) => {
                if self.asked.iter().any(|a| a.is_warning()) {
                    self.insist();
                }
                self.given_up += 1;
                self.last_reasons = reasons.clone();
            }
        }
        if self.stage != Stage::Idle {
            self.out.push(Action::Over(self.ckpt));
        }
        self.answer_all(&result);
        self.rounds.clear();
        self.stop = false;
        self.last_end = self.now;
        self.enter(Stage::Idle);
    }

    /// Hands on what every rank has contributed: at the drain, and when ranks are rebuilt.
    pub(super) fn complete_exchanges(&mut self) {
        let saving = !self.preparing && matches!(self.stage, Stage::Stop | Stage::Drain);
        let among = if saving { self.live_ids() } else { self.rebuilding_ids() };
        let absent = self.ranks.iter().any(|r| r.presence == Presence::Absent);
        if among.is_empty() || absent || (!saving && self.lost_rebuilding()) {
            return;
        }
        while let Some((round, hear)) = self.rounds.complete(&among, !saving) {
            for (rank, heard) in hear {
                if saving {
                    self.exchanged = true;
                    // So it is when the checkpoint gets beyond the drain. If not, the rank itself will say.
                    self.ranks[rank as usize].before.told = self.ckpt.0;
                }
                self.send(rank, ToRank::Exchanged { round, heard });
            }
        }
    }
}
