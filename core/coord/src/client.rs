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

use crate::message::{Before, Clock, Doing, FromRank, Items, Leaving, Outcome, ToRank};
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
    /// [`Local::DrainFailed`], or [`Local::Contribute`] for another round.
    Drain {
        /// Round.
        round: u32,
        /// From whom, what.
        items: Items,
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
    /// The connection stands.
    Connected {
        /// Ranks of the job.
        size: u32,
        /// Process id.
        pid: u32,
        /// Which start.
        incarnation: u32,
        /// From an image.
        restored: bool,
        /// Known from earlier connections.
        before: Option<Before>,
    },
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
    Contribute(Items),
    /// All messages are home.
    Drained,
    /// They are not; also when threads could not be stopped.
    DrainFailed(String),
    /// The image is frozen.
    Snapped {
        /// Bytes.
        bytes: u64,
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
    /// The application asks for a checkpoint.
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
}

impl Client {
    /// A rank that has not said hello.
    pub fn new(rank: Rank) -> Self {
        Client {
            rank,
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
            ToRank::Welcome => vec![],
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
            ToRank::Exchanged { round, items } => {
                self.round = round + 1;
                vec![A::Drain { round, items }]
            }
            ToRank::Snapshot { path, direct, seed } if self.stage == Stage::Drain => {
                self.to(Stage::Snapshot);
                vec![A::Snapshot { ckpt: self.ckpt, path, direct, seed }]
            }
            ToRank::Resume if self.stage == Stage::Snapshot => {
                self.to(Stage::Write);
                vec![A::Resume]
            }
            ToRank::Abort { reason } => {
                let at = self.stage;
                self.to(Stage::Idle);
                self.round = 0;
                if at == Stage::Idle { vec![] } else { vec![A::Abort { at, reason }] }
            }
            ToRank::Committed { ckpt } => {
                if ckpt == self.ckpt {
                    self.to(Stage::Idle);
                }
                vec![A::Committed { ckpt }]
            }
            ToRank::Leave => vec![A::Leave],
            ToRank::Go => {
                self.round = 0;
                vec![A::Go]
            }
            ToRank::Untold { ckpt, ranks } => vec![A::Untold { ckpt, ranks }],
            ToRank::Mail { items } => vec![A::Deliver { items }],
            ToRank::Answer { id, result } => vec![A::Answer { id, result }],
            // Out of turn: the agent and this rank disagree, so nothing is done and the stage's limit decides.
            ToRank::Targets { .. } | ToRank::Stop | ToRank::Snapshot { .. } | ToRank::Resume => vec![],
        }
    }

    /// Something that happened in the rank.
    pub fn on_local(&mut self, event: Local) -> Vec<ClientAction> {
        use ClientAction as A;
        let ckpt = self.ckpt;
        let send = |message| vec![A::Send(message)];
        match event {
            Local::Connected { size, pid, incarnation, restored, before } => {
                send(FromRank::Hello { rank: self.rank.0, size, pid, incarnation, restored, before })
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
            Local::Contribute(items) if matches!(self.stage, Stage::Drain | Stage::Idle) => {
                send(FromRank::Exchange { ckpt, round: self.round, items })
            }
            Local::Drained if self.stage == Stage::Drain => send(FromRank::Drained { ckpt }),
            Local::DrainFailed(reason) if matches!(self.stage, Stage::Stop | Stage::Drain) => {
                send(FromRank::DrainFailed { ckpt, reason })
            }
            Local::Snapped { bytes } if self.stage == Stage::Snapshot => {
                send(FromRank::Snapped { ckpt, bytes })
            }
            Local::Written { ckpt: of, bytes, digest, file_len } if of == ckpt && ckpt != 0 => {
                send(FromRank::Written { ckpt, bytes, digest, file_len })
            }
            Local::WriteFailed { ckpt: of, reason } if of == ckpt && ckpt != 0 => {
                send(FromRank::WriteFailed { ckpt, reason })
            }
            Local::Rebuilt => send(FromRank::Rebuilt),
            Local::Goodbye(leaving) => send(FromRank::Goodbye(leaving)),
            Local::Request { id } => send(FromRank::Request { id }),
            Local::Mail(items) => send(FromRank::Mail { items }),
            _ => vec![],
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(count: u64) -> Clock {
        Clock { gid: 9, count, inside: false, members: vec![0, 1] }
    }

    fn at_settle() -> Client {
        let mut c = Client::new(Rank(1));
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
        let undo = c.on_message(ToRank::Abort { reason: "r".into() });
        assert_eq!(undo, vec![ClientAction::Abort { at: Stage::Stop, reason: "r".into() }]);
        assert!(c.on_local(Local::Stopped).is_empty());
        c.on_message(ToRank::Intend { ckpt: 6 });
        let late = Local::Written { ckpt: 5, bytes: 1, digest: [0; 16], file_len: 1 };
        assert!(c.on_local(late).is_empty());
        assert!(c.on_message(ToRank::Abort { reason: String::new() }).len() == 1);
        assert!(c.on_message(ToRank::Abort { reason: String::new() }).is_empty());
    }
}
