//! The rank's end of the protocol. Runs in the control thread of the *lower half*, which performs the actions.
//!
//! ```text
//!  Idle ─Intend▶ Intend ─no reasons▶ Settle ─Stop▶ Stop ─stopped▶ Drain ─Snapshot▶ Snapshot ─Resume▶ Write ─▶ Idle
//!   ▲                                                                                             Committed
//!   └───────────────────────────────── Abort, at any stage ──────────────────────────────────────────┘
//! ```
//!
//! What a reader would get wrong: a local event that comes too late, because the checkpoint was given up meanwhile,
//! is dropped here; the driver need not care. And mail may come while the threads stand still: it must be handed to
//! the upper half before the snapshot, or it is in no image (the agent forwards it before the exchange completes).
//!
//! A client outlives its line. What it has mailed is sent again on the next one, until a checkpoint has resumed: every
//! rank had taken all of it before its snapshot. Each mail has its sender's number, and those from one rank come in
//! their order, so whoever hears one again knows it by that, and drops it here.

use crate::message::{Before, Clock, Doing, FromRank, Heard, Items, Leaving, Mails, Outcome, Said, ToRank};
use std::collections::{BTreeMap, BTreeSet};
use stillpoint_abi::ids::Rank;
use stillpoint_abi::stage::Stage;

/// What the driver must do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientAction {
    /// Send to the agent.
    Send(FromRank),
    /// The agent does not want this process; it must not run.
    Denied {
        /// Why.
        reason: String,
    },
    /// Find out what cannot be saved; answer with [`Local::Reasons`]. The first action of a checkpoint.
    ReportReasons {
        /// Checkpoint.
        ckpt: u64,
    },
    /// Begin to watch the collective clocks; answer with [`Local::Clocks`] at once, and again whenever they change.
    ReportClocks,
    /// Raise these targets, hold threads at collectives beyond their targets, wake those held; then read the clocks
    /// after a membarrier and answer with [`Local::Clocks`] at once. A clock never named has target 0.
    SetTargets {
        /// Identity and target.
        targets: Vec<(u64, u64)>,
    },
    /// Bring all threads to stand still; answer with [`Local::Stopped`], then [`Local::Contribute`].
    StopThreads,
    /// What the others contributed to the round; drain with it, then answer with [`Local::Drained`],
    /// [`Local::DrainFailed`], or [`Local::Contribute`] for another round. Comes again, also after [`Local::Drained`], when
    /// another rank has contributed.
    Drain {
        /// Round.
        round: u32,
        /// What there is for this rank.
        heard: Heard,
    },
    /// The same after a restart; to be answered with [`Local::Rebuilt`] or [`Local::Contribute`].
    Rebuild {
        /// Round.
        round: u32,
        /// What there is for this rank.
        heard: Heard,
    },
    /// Freeze the image; answer with [`Local::Snapped`] and, when durable, [`Local::Written`].
    Snapshot {
        /// Checkpoint.
        ckpt: u64,
        /// File.
        path: String,
        /// Write at once instead of forking.
        direct: bool,
        /// Seed of the image's hashes.
        seed: u64,
    },
    /// Run on; collectives are held no more.
    Resume,
    /// Undo what the stage has done, and run on.
    Abort {
        /// Where this rank was: from [`Stage::Settle`] on collectives are held, from [`Stage::Stop`] to
        /// [`Stage::Snapshot`] threads stand still, in [`Stage::Write`] a frozen child may be writing: end it.
        at: Stage,
        /// Nobody knows yet whom the exchange has reached; [`ClientAction::Untold`] will say so.
        cut: bool,
        /// Why.
        reason: String,
    },
    /// The checkpoint exists.
    Committed {
        /// Checkpoint.
        ckpt: u64,
    },
    /// End the process without running on.
    Leave,
    /// After a restart: every rank is rebuilt, run.
    Go,
    /// Of the exchange that was cut off at this checkpoint these ranks were not told.
    Untold {
        /// Checkpoint.
        ckpt: u64,
        /// World ranks.
        ranks: Vec<u32>,
    },
    /// Hand these to the upper half.
    Deliver {
        /// From whom, what.
        items: Items,
    },
    /// Answer to [`Local::Request`].
    Answer {
        /// The request's.
        id: u64,
        /// What came of it.
        result: Outcome,
    },
}

/// What happens in the rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Local {
    /// A connection stands: the first one, or another. The hello is the first action.
    Connected {
        /// Ranks of the job.
        size: u32,
        /// Process id.
        pid: u32,
        /// Which start.
        incarnation: u32,
        /// From an image.
        restored: bool,
    },
    /// It has broken: whatever was going on is over.
    Broken,
    /// What cannot be saved; empty: nothing speaks against it.
    Reasons(Vec<String>),
    /// All clocks with their members, and what the rank does.
    Clocks {
        /// All clocks.
        clocks: Vec<Clock>,
        /// What the rank does.
        doing: Doing,
    },
    /// All threads stand still.
    Stopped,
    /// This rank's part of the next exchange.
    Contribute(Said),
    /// All messages are home.
    Drained,
    /// They are not; also when threads could not be stopped.
    DrainFailed(String),
    /// The image is frozen.
    Snapped {
        /// Bytes.
        bytes: u64,
        /// It is written already.
        direct: bool,
    },
    /// The image is durable.
    Written {
        /// Checkpoint, as the snapshot was ordered.
        ckpt: u64,
        /// Bytes of memory.
        bytes: u64,
        /// xxh3-128 of the file, little endian.
        digest: [u8; 16],
        /// Its length.
        file_len: u64,
    },
    /// It could not be written.
    WriteFailed {
        /// Checkpoint, as the snapshot was ordered.
        ckpt: u64,
        /// Why.
        reason: String,
    },
    /// After a restart: everything is made anew.
    Rebuilt,
    /// The rank leaves.
    Goodbye(Leaving),
    /// The application asks for a checkpoint. 0: a scheduler's signal does, whose answer nobody waits for; this one is asked
    /// again on the next line until it is answered.
    Request {
        /// Returned in the answer.
        id: u64,
    },
    /// Bytes for other ranks.
    Mail(Items),
}

/// The rank's end.
#[derive(Debug)]
pub struct Client {
    rank: Rank,
    stage: Stage,
    ckpt: u64,
    version: u64,
    round: u32,
    told: BTreeSet<u64>,
    last: BTreeMap<u64, (u64, bool)>,
    last_doing: Option<Doing>,
    /// None before the first welcome.
    before: Option<Before>,
    /// Number of the last mail.
    number: u64,
    /// What other ranks may not have got.
    mailed: Mails,
    /// Of each rank, the number of the last mail that has come.
    heard: BTreeMap<u32, u64>,
    /// Requests of a scheduler's that have no answer.
    warned: u32,
    /// This rank's last two answers while it is rebuilt; `None`: done. A root agent that is gone may have handed the former on to
    /// others, and not to all.
    rebuilt: Vec<(u32, Option<Said>)>,
}

impl Client {
    /// A rank that has not said hello. Its mail is numbered from `number` on, which must be higher than what a program has
    /// used that this one has replaced by execve: a clock will do.
    pub fn new(rank: Rank, number: u64) -> Self {
        Client {
            rank,
            before: None,
            number,
            mailed: Vec::new(),
            heard: BTreeMap::new(),
            warned: 0,
            rebuilt: Vec::new(),
            stage: Stage::Idle,
            ckpt: 0,
            version: 0,
            round: 0,
            told: BTreeSet::new(),
            last: BTreeMap::new(),
            last_doing: None,
        }
    }

    /// Where this rank is.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// The checkpoint in progress, 0 if none.
    pub fn ckpt(&self) -> u64 {
        self.ckpt
    }

    fn to(&mut self, stage: Stage) {
        self.stage = stage;
        if stage == Stage::Idle {
            self.ckpt = 0;
        }
    }

    /// A message of the agent.
    pub fn on_message(&mut self, message: ToRank) -> Vec<ClientAction> {
        use ClientAction as A;
        match message {
            ToRank::Welcome => {
                self.before.get_or_insert_default();
                vec![]
            }
            ToRank::Denied { reason } => vec![A::Denied { reason }],
            ToRank::Intend { ckpt } => {
                self.to(Stage::Intend);
                (self.ckpt, self.version, self.round) = (ckpt, 0, 0);
                self.last.clear();
                self.last_doing = None;
                vec![A::ReportReasons { ckpt }]
            }
            ToRank::Targets { version, targets } if self.stage == Stage::Settle => {
                self.version = version;
                self.last_doing = None; // a report is due even if nothing changed
                vec![A::SetTargets { targets }]
            }
            ToRank::Stop if self.stage == Stage::Settle => {
                self.to(Stage::Stop);
                vec![A::StopThreads]
            }
            ToRank::Exchanged { round, heard } if round == self.round => {
                self.round = round + 1;
                if self.ckpt == 0 {
                    return vec![A::Rebuild { round, heard }];
                }
                self.before.get_or_insert_default().told = self.ckpt;
                vec![A::Drain { round, heard }]
            }
            ToRank::Snapshot { path, direct, seed } if self.stage == Stage::Drain => {
                self.to(Stage::Snapshot);
                vec![A::Snapshot { ckpt: self.ckpt, path, direct, seed }]
            }
            ToRank::Resume if self.stage == Stage::Snapshot => {
                self.to(Stage::Write);
                // All ranks have frozen their images, and before that they got all that was mailed before.
                self.mailed.clear();
                vec![A::Resume]
            }
            ToRank::Abort { reason, cut } => {
                let mut all = self.abort(reason, cut);
                if cut {
                    all.insert(0, A::Send(FromRank::CutOff(self.before.unwrap_or_default())));
                }
                all
            }
            ToRank::Committed { ckpt } => {
                if ckpt == self.ckpt {
                    self.to(Stage::Idle);
                }
                vec![A::Committed { ckpt }]
            }
            ToRank::Leave => vec![A::Leave],
            ToRank::Go if !self.rebuilt.is_empty() => {
                self.round = 0;
                self.rebuilt.clear();
                vec![A::Go]
            }
            ToRank::Untold { ckpt, ranks } => match &mut self.before {
                Some(before) if before.cut == ckpt => {
                    before.cut = 0;
                    vec![A::Untold { ckpt, ranks }]
                }
                _ => vec![],
            },
            ToRank::Mail { items } => {
                let items = self.fresh(items);
                if items.is_empty() { vec![] } else { vec![A::Deliver { items }] }
            }
            ToRank::Answer { id: 0, .. } => {
                self.warned = self.warned.saturating_sub(1);
                vec![]
            }
            ToRank::Answer { id, result } => vec![A::Answer { id, result }],
            // Out of turn: the agent and this rank disagree, so nothing is done and the stage's limit decides.
            ToRank::Targets { .. } | ToRank::Stop | ToRank::Snapshot { .. } | ToRank::Resume => vec![],
            // Heard before, perhaps from an agent that is gone.
            ToRank::Exchanged { .. } | ToRank::Go => vec![],
        }
    }

    /// Something that happened in the rank.
    pub fn on_local(&mut self, event: Local) -> Vec<ClientAction> {
        use ClientAction as A;
        let ckpt = self.ckpt;
        let send = |message| vec![A::Send(message)];
        match event {
            Local::Connected { size, pid, incarnation, restored } => {
                self.to(Stage::Idle);
                self.version = 0;
                // Another agent knows nothing of the clocks.
                self.told.clear();
                self.last.clear();
                self.last_doing = None;
                let (rank, before) = (self.rank.0, self.before);
                let mut all = send(FromRank::Hello { rank, size, pid, incarnation, restored, before });
                all.extend(
                    self.rebuilt.iter().map(|(round, said)| A::Send(rebuilding(*round, said.clone()))),
                );
                if !self.mailed.is_empty() {
                    all.push(A::Send(FromRank::Mail { items: self.mailed.clone() }));
                }
                if self.warned > 0 {
                    self.warned = 1;
                    all.push(A::Send(FromRank::Request { id: 0 }));
                }
                all
            }
            Local::Broken => {
                // It has contributed, and nobody knows whom the exchange has reached.
                self.abort("the node agent is gone".into(), true)
            }
            Local::Reasons(reasons) if self.stage == Stage::Intend => {
                if reasons.is_empty() {
                    self.to(Stage::Settle);
                    vec![A::ReportClocks]
                } else {
                    send(FromRank::Refused { ckpt, reasons })
                }
            }
            Local::Clocks { clocks, doing } if self.stage == Stage::Settle => self.report(clocks, doing),
            Local::Stopped if self.stage == Stage::Stop => {
                self.to(Stage::Drain);
                send(FromRank::Stopped { ckpt })
            }
            Local::Contribute(said) if self.stage == Stage::Drain => {
                send(FromRank::Exchange { ckpt, round: self.round, said })
            }
            Local::Contribute(said) if self.stage == Stage::Idle => self.rebuild(Some(said)),
            Local::Drained if self.stage == Stage::Drain => {
                send(FromRank::Drained { ckpt, round: self.round })
            }
            Local::DrainFailed(reason) if matches!(self.stage, Stage::Stop | Stage::Drain) => {
                send(FromRank::DrainFailed { ckpt, reason })
            }
            Local::Snapped { bytes, direct } if self.stage == Stage::Snapshot => {
                send(FromRank::Snapped { ckpt, bytes, direct })
            }
            Local::Written { ckpt: of, bytes, digest, file_len } if of == ckpt && ckpt != 0 => {
                send(FromRank::Written { ckpt, bytes, digest, file_len })
            }
            Local::WriteFailed { ckpt: of, reason } if of == ckpt && ckpt != 0 => {
                send(FromRank::WriteFailed { ckpt, reason })
            }
            Local::Rebuilt => self.rebuild(None),
            Local::Goodbye(leaving) => send(FromRank::Goodbye(leaving)),
            Local::Request { id } => {
                self.warned += u32::from(id == 0);
                send(FromRank::Request { id })
            }
            Local::Mail(items) => send(FromRank::Mail { items: self.numbered(items) }),
            _ => vec![],
        }
    }

    /// Answers the round, and remembers that.
    fn rebuild(&mut self, said: Option<Said>) -> Vec<ClientAction> {
        self.rebuilt.retain(|(round, _)| *round + 1 == self.round);
        self.rebuilt.push((self.round, said.clone()));
        vec![ClientAction::Send(rebuilding(self.round, said))]
    }

    /// The checkpoint is over, if there is one; `cut` within its exchange, if this rank has contributed to that.
    fn abort(&mut self, reason: String, cut: bool) -> Vec<ClientAction> {
        let (at, ckpt) = (self.stage, self.ckpt);
        let cut = cut && at == Stage::Drain;
        if cut {
            self.before.get_or_insert_default().cut = ckpt;
        }
        if at == Stage::Idle {
            // Rounds of a job that is being rebuilt go on on the next line.
            return vec![];
        }
        self.to(Stage::Idle);
        self.round = 0;
        vec![ClientAction::Abort { at, cut, reason }]
    }

    /// Keeps them until all ranks have them.
    fn numbered(&mut self, items: Items) -> Mails {
        let next = |(to, bytes)| {
            self.number += 1;
            (to, self.number, bytes)
        };
        let items: Mails = items.into_iter().map(next).collect();
        self.mailed.extend_from_slice(&items);
        items
    }

    /// Those that have not come before.
    fn fresh(&mut self, items: Mails) -> Items {
        let mut fresh = Items::new();
        for (from, number, bytes) in items {
            let heard = self.heard.entry(from).or_insert(0);
            if number > *heard {
                *heard = number;
                fresh.push((from, bytes));
            }
        }
        fresh
    }

    /// Sends what changed; members only at first sight.
    fn report(&mut self, clocks: Vec<Clock>, doing: Doing) -> Vec<ClientAction> {
        let mut changed = Vec::new();
        for mut clock in clocks {
            let now = (clock.count, clock.inside);
            if self.last.insert(clock.gid, now) == Some(now) {
                continue;
            }
            if !self.told.insert(clock.gid) {
                clock.members.clear();
            }
            changed.push(clock);
        }
        if changed.is_empty() && self.last_doing == Some(doing) {
            return vec![];
        }
        self.last_doing = Some(doing);
        let report = FromRank::Clocks { ckpt: self.ckpt, version: self.version, clocks: changed, doing };
        vec![ClientAction::Send(report)]
    }
}

/// An answer while the job is rebuilt.
fn rebuilding(round: u32, said: Option<Said>) -> FromRank {
    match said {
        Some(said) => FromRank::Exchange { ckpt: 0, round, said },
        None => FromRank::Rebuilt { round },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(count: u64) -> Clock {
        Clock { gid: 9, count, inside: false, members: vec![0, 1] }
    }

    fn at_settle() -> Client {
        let mut c = Client::new(Rank(1), 0);
        c.on_message(ToRank::Intend { ckpt: 5 });
        assert_eq!(c.on_local(Local::Reasons(vec![])), vec![ClientAction::ReportClocks]);
        c
    }

    #[test]
    fn members_are_told_once_and_unchanged_clocks_not_at_all() {
        let mut c = at_settle();
        let report =
            |c: &mut Client, n| c.on_local(Local::Clocks { clocks: vec![clock(n)], doing: Doing::Running });
        let [ClientAction::Send(FromRank::Clocks { clocks, .. })] = &report(&mut c, 1)[..] else { panic!() };
        assert_eq!(clocks[0].members, vec![0, 1]);
        assert!(report(&mut c, 1).is_empty());
        let [ClientAction::Send(FromRank::Clocks { clocks, .. })] = &report(&mut c, 2)[..] else { panic!() };
        assert!(clocks[0].members.is_empty());
        c.on_message(ToRank::Targets { version: 4, targets: vec![] });
        let [ClientAction::Send(FromRank::Clocks { clocks, version: 4, .. })] = &report(&mut c, 2)[..] else {
            panic!("new targets ask for a report")
        };
        assert!(clocks.is_empty());
    }

    #[test]
    fn what_comes_after_an_abort_is_dropped() {
        let mut c = at_settle();
        c.on_message(ToRank::Stop);
        let abort = || ToRank::Abort { reason: "r".into(), cut: false };
        let undo = c.on_message(abort());
        assert_eq!(undo, vec![ClientAction::Abort { at: Stage::Stop, cut: false, reason: "r".into() }]);
        assert!(c.on_local(Local::Stopped).is_empty());
        c.on_message(ToRank::Intend { ckpt: 6 });
        let late = Local::Written { ckpt: 5, bytes: 1, digest: [0; 16], file_len: 1 };
        assert!(c.on_local(late).is_empty());
        assert!(c.on_message(abort()).len() == 1);
        assert!(c.on_message(abort()).is_empty());
    }

    #[test]
    fn mail_is_sent_again_until_all_have_it_and_taken_once() {
        let hello = || Local::Connected { size: 3, pid: 7, incarnation: 0, restored: false };
        let mut c = Client::new(Rank(1), 40);
        let mail = |number| ClientAction::Send(FromRank::Mail { items: vec![(2, number, vec![9])] });
        c.on_local(hello());
        assert_eq!(c.on_local(Local::Mail(vec![(2, vec![9])])), [mail(41)]);
        assert_eq!(c.on_local(hello())[1..], [mail(41)]);
        let came = |number| ToRank::Mail { items: vec![(0, number, vec![number as u8])] };
        let taken = |n: u8| vec![ClientAction::Deliver { items: vec![(0, vec![n])] }];
        assert_eq!(c.on_message(came(5)), taken(5));
        assert_eq!(
            (c.on_message(came(5)), c.on_message(came(4)), c.on_message(came(7))),
            (vec![], vec![], taken(7))
        );
        c.on_message(ToRank::Intend { ckpt: 5 });
        c.on_local(Local::Reasons(vec![]));
        c.on_message(ToRank::Stop);
        c.on_local(Local::Stopped);
        c.on_message(ToRank::Snapshot { path: String::new(), direct: false, seed: 0 });
        c.on_message(ToRank::Resume);
        assert_eq!(c.on_local(hello()).len(), 1, "every rank has it");
    }

    #[test]
    fn a_warning_is_passed_on_until_it_is_answered() {
        let hello = || Local::Connected { size: 1, pid: 7, incarnation: 0, restored: false };
        let mut c = Client::new(Rank(0), 0);
        let request = ClientAction::Send(FromRank::Request { id: 0 });
        c.on_local(Local::Request { id: 0 });
        assert_eq!(c.on_local(hello())[1..], *std::slice::from_ref(&request));
        c.on_local(Local::Broken);
        assert_eq!(c.on_local(hello())[1..], [request]);
        assert!(c.on_message(ToRank::Answer { id: 0, result: Ok(4) }).is_empty());
        assert_eq!(c.on_local(hello()).len(), 1);
    }

    #[test]
    fn who_was_cut_off_says_how_far_it_was_told() {
        let mut c = at_settle();
        c.on_message(ToRank::Welcome);
        c.on_message(ToRank::Stop);
        c.on_local(Local::Stopped);
        let cut = c.on_message(ToRank::Abort { reason: "r".into(), cut: true });
        let said = ClientAction::Send(FromRank::CutOff(Before { told: 0, cut: 5 }));
        assert_eq!(cut, [said, ClientAction::Abort { at: Stage::Drain, cut: true, reason: "r".into() }]);
        let untold = |ckpt| ToRank::Untold { ckpt, ranks: vec![1] };
        assert!(c.on_message(untold(4)).is_empty());
        assert_eq!(c.on_message(untold(5)), [ClientAction::Untold { ckpt: 5, ranks: vec![1] }]);
        assert!(c.on_message(untold(5)).is_empty(), "once");
    }
}
