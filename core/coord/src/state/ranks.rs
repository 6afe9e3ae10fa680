//! Who belongs to the job: ranks that come, go, and come again as another incarnation. *Next door*, without IO.
//!
//! A rank whose line broke with the agent, or with what carried it, is not lost: it is away, and comes again. Only when it stays
//! away too long is it lost. Until then nobody is judged: one that is away may have ended the job.
//!
//! What a reader would get wrong: a rank that leaves ends the checkpoint in progress, unless all images are complete already, or
//! its own is and it has ended well; and a rank that replaces itself by execve is absent in between, not lost.

use super::{Action, Conn, Coordinator, Nanos, RankState};
use crate::message::{Before, JobOutcome, Leaving, Mails, Presence, ToRank};
use std::collections::BTreeMap;
use stillpoint_abi::stage::Stage;

/// What a rank says first ([`crate::message::FromRank::Hello`]).
#[derive(Clone, Copy, Debug)]
pub(super) struct Hello {
    pub(super) rank: u32,
    pub(super) size: u32,
    pub(super) pid: u32,
    pub(super) incarnation: u32,
    pub(super) restored: bool,
    pub(super) before: Option<Before>,
}

/// How long ranks that were told to end are believed to be so because of another one, which the launcher knows of and we do not.
const TOLD: Nanos = 250_000_000;
/// How soon after a failure a loss of which nobody has said anything is one of before: sockets of a killed process are closed one after
/// the other, ours not first. Open MPI's mpirun kills who does not obey a second after it has told them (odls_base_sigkill_timeout).
const SILENT: Nanos = 500_000_000;

impl Coordinator {
    /// Why no checkpoint can begin now.
    pub(super) fn unready(&self) -> Vec<String> {
        let mut why = Vec::new();
        if self.ranks.is_empty() {
            why.push("no rank has connected yet".into());
        }
        for (n, r) in (0u32..).zip(&self.ranks) {
            match r.presence {
                Presence::Absent => why.push(format!("rank {n} has not connected")),
                Presence::Lost => why.push(format!("rank {n} is lost")),
                Presence::Aborted(code) => why.push(format!("rank {n} called MPI_Abort with code {code}")),
                Presence::Here if r.rebuilding => why.push(format!("rank {n} is still being restarted")),
                Presence::Left => why.push(format!("rank {n} has ended with a checkpoint")),
                Presence::Here | Presence::Finished(_) => {}
            }
        }
        if !self.ranks.is_empty() && self.live().next().is_none() && why.is_empty() {
            why.push("every rank has finished".into());
        }
        why
    }

    /// What keeps a checkpoint from beginning will pass: ranks that are away, or being restarted.
    pub(super) fn gathers(&self) -> bool {
        let over = |p| matches!(p, Presence::Lost | Presence::Aborted(_) | Presence::Left);
        self.ranks.iter().any(|r| r.presence == Presence::Absent || r.rebuilding)
            && !self.ranks.iter().any(|r| over(r.presence))
    }

    pub(super) fn hello(&mut self, conn: Conn, hello: Hello) {
        let Hello { rank, size, pid, incarnation, restored, before } = hello;
        let denied = if incarnation < self.incarnation {
            Some(format!("incarnation {incarnation} is over, {} runs", self.incarnation))
        } else if size == 0 || rank >= size || size > 1 << 20 {
            Some(format!("rank {rank} of {size} is none"))
        } else {
            if incarnation > self.incarnation {
                self.begin_incarnation(incarnation);
            }
            if self.ranks.is_empty() {
                self.ranks = (0..size).map(|_| RankState::new()).collect();
                for (n, status) in std::mem::take(&mut self.before) {
                    if let Some(r) = self.ranks.get_mut(n as usize) {
                        r.presence = Presence::Finished(status);
                        self.outcome.exited.push((n, status));
                        self.judged |= status != 0;
                    }
                }
            }
            if self.ranks.len() != size as usize {
                Some(format!("the job has {} ranks, not {size}", self.ranks.len()))
            } else {
                let there = &self.ranks[rank as usize];
                match there.presence {
                    Presence::Absent => None,
                    Presence::Here if there.pid == pid => None,
                    _ => Some(format!("rank {rank} was already here as process {}", there.pid)),
                }
            }
        };
        if let Some(reason) = denied {
            self.out.push(Action::Send(conn, ToRank::Denied { reason }));
            self.out.push(Action::Close(conn));
            return;
        }
        if let Some(old) = self.ranks[rank as usize].conn.take() {
            // The same process again: it has replaced itself by execve, or has found another way to us.
            self.by_conn.remove(&old);
            self.out.push(Action::Close(old));
            let reason = if before.is_some() { "lost its line" } else { "started another program" };
            // For a moment.
            self.ranks[rank as usize].presence = Presence::Absent;
            if !self.needs_no_rank(Presence::Absent) {
                self.give_up(vec![format!("rank {rank} {reason}")]);
            }
        }
        let RankState { mail, mailed, image, copying, .. } =
            std::mem::replace(&mut self.ranks[rank as usize], RankState::new());
        self.ranks[rank as usize] = RankState {
            presence: Presence::Here,
            conn: Some(conn),
            pid,
            rebuilding: restored,
            before: before.unwrap_or_default(),
            mail: mail.clone(),
            mailed,
            // Of a checkpoint that is not given up when a rank goes for a while.
            image,
            copying,
            ..RankState::new()
        };
        if before.is_some() {
            self.await_the_others();
        }
        self.judge();
        self.by_conn.insert(conn, rank);
        self.send(rank, ToRank::Welcome);
        if !mail.is_empty() {
            self.send(rank, ToRank::Mail { items: mail });
        }
        if restored {
            self.went = false;
        }
        if self.unready().is_empty() {
            self.last_end = self.now;
        }
    }

    /// A later start of the job: all that is known of the former is over.
    fn begin_incarnation(&mut self, incarnation: u32) {
        self.give_up(vec!["the job was started again".into()]);
        self.insists = None;
        for (conn, _) in std::mem::take(&mut self.by_conn) {
            self.out.push(Action::Close(conn));
        }
        while let Some((asker, _)) = self.queue.pop_front() {
            self.answer(asker, Err(vec!["the job was started again".into()]));
        }
        self.stop = false;
        self.ranks.clear();
        self.before.clear();
        self.members.clear();
        self.rounds.clear();
        self.incarnation = incarnation;
        self.outcome = JobOutcome { incarnation, ..JobOutcome::default() };
        self.judged = false;
        self.failed = None;
        self.told_until = None;
        self.went = false;
        self.last_end = self.now;
        self.out.push(Action::Outcome);
    }

    pub(super) fn closed(&mut self, conn: Conn) {
        let Some(rank) = self.by_conn.remove(&conn) else { return };
        let state = &mut self.ranks[rank as usize];
        state.conn = None;
        if state.presence == Presence::Here {
            self.depart(rank, Presence::Lost, format!("rank {rank} was lost"));
        }
    }

    /// The connection broke, the rank need not have: it has time to come again.
    pub(super) fn parted(&mut self, conn: Conn) {
        let Some(rank) = self.by_conn.remove(&conn) else { return };
        self.ranks[rank as usize].conn = None;
        if self.ranks[rank as usize].presence == Presence::Here {
            self.depart(rank, Presence::Absent, format!("rank {rank} has lost its line"));
            self.ranks[rank as usize].due = Some(self.now + self.config.away);
        }
    }

    /// A rank of a former agent has come: the others will, soon, or they are lost.
    fn await_the_others(&mut self) {
        let due = self.now + self.config.away;
        for r in self.ranks.iter_mut().filter(|r| r.presence == Presence::Absent && r.pid == 0) {
            r.due.get_or_insert(due);
        }
    }

    /// Those who have stayed away too long are lost.
    pub(super) fn miss(&mut self) {
        let now = self.now;
        let late = (0u32..).zip(&self.ranks).filter(|(_, r)| r.due.is_some_and(|due| now >= due));
        for rank in late.map(|(n, _)| n).collect::<Vec<_>>() {
            self.depart(rank, Presence::Lost, format!("rank {rank} did not come back"));
        }
        if self.told_until.is_some_and(|t| now >= t) {
            self.told_until = None;
            self.outcome.told.clear();
            self.judge();
        }
    }

    /// Whether a loss is what ends the job, as soon as nobody is away who could have ended it otherwise. Ranks that were told to end are
    /// so because of another one, unless there is none.
    fn judge(&mut self) {
        let lost = self.outcome.is_cut_down() || self.outcome.ended && !self.outcome.lost.is_empty();
        if !self.judged && lost && self.ranks.iter().all(|r| r.due.is_none()) {
            self.judged = true;
            self.outcome.restart = true;
            self.out.push(Action::Outcome);
        }
    }

    /// A rank has ended the job, unless it did so because of a loss before.
    fn judged_by_itself(&mut self) {
        self.outcome.restart |= !self.judged && self.outcome.is_cut_down();
        self.judged = true;
    }

    /// An exchange was cut off, and somebody has not said yet how far it was told. A checkpoint must not begin before that:
    /// what a rank was told of two of them, one word could not say.
    pub(super) fn is_cut(&self) -> bool {
        self.live().any(|(_, r)| r.owes)
    }

    /// All are here and have said how far they were told: each that was cut off within an exchange learns whom that did not
    /// reach.
    pub(super) fn settle_cuts(&mut self) {
        if self.is_cut() || self.ranks.iter().any(|r| r.presence == Presence::Absent) {
            return;
        }
        for rank in self.live_ids() {
            let ckpt = std::mem::take(&mut self.ranks[rank as usize].before.cut);
            if ckpt != 0 {
                let untold = self.live().filter(|(_, r)| r.before.told < ckpt).map(|(n, _)| n).collect();
                self.send(rank, ToRank::Untold { ckpt, ranks: untold });
            }
        }
    }

    pub(super) fn depart(&mut self, rank: u32, presence: Presence, reason: String) {
        self.ranks[rank as usize].presence = presence;
        self.ranks[rank as usize].due = None;
        self.outcome.ended =
            !self.ranks.iter().any(|r| matches!(r.presence, Presence::Here | Presence::Absent));
        match presence {
            Presence::Lost => {
                self.outcome.lost.push(rank);
                if self.ranks[rank as usize].told {
                    self.outcome.told.push(rank);
                    self.told_until.get_or_insert(self.now + TOLD);
                } else if self.failed.is_some_and(|then| self.now <= then + SILENT) {
                    self.outcome.silent.push(rank);
                }
            }
            Presence::Aborted(code) => {
                self.outcome.abort.get_or_insert((rank, code));
                self.judged_by_itself();
            }
            Presence::Finished(status) => {
                self.outcome.exited.push((rank, status));
                if status != 0 {
                    if self.outcome.lost.is_empty() {
                        self.failed.get_or_insert(self.now);
                    }
                    self.judged_by_itself();
                }
            }
            Presence::Left => {
                self.judged = true;
            }
            Presence::Absent | Presence::Here => {}
        }
        self.judge();
        // The cut of a checkpoint being written stands; a rank whose image is complete may leave it in peace, and when all are,
        // all may leave it as they like.
        let written = self.stage == Stage::Commit
            || self.needs_no_rank(presence)
            || (self.stage == Stage::Write
                && self.ranks[rank as usize].image.is_some()
                && matches!(presence, Presence::Finished(0) | Presence::Absent));
        if !written {
            self.give_up(vec![reason]);
        }
        self.out.push(Action::Outcome);
    }

    pub(super) fn goodbye(&mut self, rank: u32, leaving: Leaving) {
        if self.ranks[rank as usize].presence != Presence::Here {
            return;
        }
        match leaving {
            Leaving::Exit(status) => {
                let reason = format!("rank {rank} exited with status {status}");
                self.depart(rank, Presence::Finished(status), reason);
            }
            Leaving::Abort(code) => {
                self.depart(rank, Presence::Aborted(code), format!("rank {rank} called MPI_Abort"));
            }
            Leaving::Exec => {
                self.depart(rank, Presence::Absent, format!("rank {rank} starts another program"));
                // It was for the old one.
                self.ranks[rank as usize].mail.clear();
            }
            // What follows is as if it were killed.
            Leaving::Ended(signal) => {
                self.ranks[rank as usize].told = true;
                if !self.needs_no_rank(Presence::Here) {
                    self.give_up(vec![format!("rank {rank} is ended by signal {signal}")]);
                }
            }
            Leaving::Finalized => {
                let complete = self.stage == Stage::Write && self.ranks[rank as usize].image.is_some();
                if !complete && !self.needs_no_rank(Presence::Here) {
                    self.give_up(vec![format!("rank {rank} left MPI")]);
                }
            }
        }
    }

    /// Forwarded at once, so that it reaches a rank that stands still before the exchange that follows it does; and kept
    /// for those whose line breaks before they have it.
    pub(super) fn mail(&mut self, from: u32, items: Mails) {
        let mut by_rank: BTreeMap<u32, Mails> = BTreeMap::new();
        for (to, number, bytes) in items {
            let last = &mut self.ranks[from as usize].mailed;
            if number > *last {
                *last = number;
                by_rank.entry(to).or_default().push((from, number, bytes));
            }
        }
        for (to, items) in by_rank {
            let Some(r) = self.ranks.get_mut(to as usize) else { continue };
            if matches!(r.presence, Presence::Absent | Presence::Here) {
                r.mail.extend_from_slice(&items);
            }
            if r.presence == Presence::Here {
                self.send(to, ToRank::Mail { items });
            }
        }
    }
}
