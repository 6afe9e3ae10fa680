//! The coordinator: events and a clock go in, actions come out, nothing else happens. Runs *next door*, in the root agent.
//!
//! ```text
//!          Request            all answered     settled        all Stopped      all Drained        all Snapped
//!  Idle ─▶ (Prepare) ─▶ Intend ──────────▶ Settle ─────▶ Stop ──────────▶ Drain ──────────▶ Snapshot ─────────▶ Resume
//!   ▲                     │ Refused         │             │                │ exchanges        │                   │
//!   │                     ▼                 ▼             ▼                ▼                  ▼                   ▼
//!   └──── Discard ◀── Abort to all: refusal, time limit, loss, leave, failed write ◀──────────┴──────────────── Write
//!   └──── Committed to all ◀── storage says so ◀── Commit ◀── all Copied ◀── Copy ◀─────── all Written ◀─────────┘
//! ```
//!
//! An image is *complete* when its writer says so, where it was written; *durable* when it lies where a commit looks. The two are
//! one thing, unless a node's agent has the images of its ranks written to a disk of the node: then it says of each that it is
//! [`Event::Kept`], copies it, and says [`Event::Copied`]. From the moment on when all are complete (stage Copy) the
//! checkpoint has no need of the ranks any more, only of the nodes that copy: no departure gives it up.
//!
//! - `ranks`: who is here, comes and goes (INV-4: an older incarnation's hello is denied).
//! - `checkpoint`: the drawing's arrows, time limits, giving up (INV-1, INV-4: the places where `Resume` and `Commit` are).
//! - `copy`: which images are complete, and which of them durable.
//! - `settle`: targets of the collective clocks.
//!
//! Here: what goes in and comes out, what is remembered, and which part an event goes to. What a reader would get wrong:
//! the parts do not wait for one another; every event, whatever it was, is followed by a look at how far one can move on.

mod checkpoint;
mod copy;
mod ranks;
mod rounds;
mod settle;

use self::copy::Copying;
use self::ranks::Hello;
use self::rounds::Rounds;
use crate::message::{
    Before, Doing, FromRank, JobOutcome, JobStatus, Mails, Measures, Outcome, Presence, Said, ToRank,
};
use std::collections::{BTreeMap, VecDeque};
use stillpoint_abi::ids::{CkptId, Rank};
use stillpoint_abi::stage::Stage;

/// A connection, as the agent numbers them.
pub type Conn = u64;
/// A node, by its agent's line; [`OWN`] for that of the coordinator itself.
pub type Node = u64;
/// The coordinator's own node.
pub const OWN: Node = 0;
/// Nanoseconds of a clock that does not go back.
pub type Nanos = u64;

const MS: Nanos = 1_000_000;
const SEC: Nanos = 1000 * MS;

/// How images are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A frozen child writes.
    Forked,
    /// Written before the ranks resume.
    Direct,
    /// Forked; a rank that has no room for a frozen child writes directly. Never direct for being small: a disk that is
    /// busy with others would hold the application up.
    Auto,
}

/// Limits and habits.
#[derive(Clone, Debug)]
pub struct Config {
    /// Time between checkpoints; none: only on request.
    pub interval: Option<Nanos>,
    /// The interval is found anew after each checkpoint, for a job that is lost every so often.
    pub auto: Option<Nanos>,
    /// Forked or direct.
    pub mode: Mode,
    /// Limit of the stage intend.
    pub intend: Nanos,
    /// Limit of the stage settle.
    pub settle: Nanos,
    /// Limit of the stage stop.
    pub stop: Nanos,
    /// Limit of the stage drain.
    pub drain: Nanos,
    /// Limit of the stage snapshot.
    pub snapshot: Nanos,
    /// Limit of the stage write.
    pub write: Nanos,
    /// Time without progress after which the stage copy is over.
    pub copy: Nanos,
    /// How long a rank that has lost its line may stay away before it counts as lost.
    pub away: Nanos,
    /// How long after the last warning of a scheduler what it asked for is tried again, a second after a failure, then two, four and so on.
    pub insist: Nanos,
    /// Quiet time after which held collectives are released, when nobody runs.
    pub release: Nanos,
    /// The same when somebody runs but nothing changes (a loop of probes looks like that). Doubles once.
    pub release_running: Nanos,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            interval: None,
            auto: None,
            mode: Mode::Auto,
            intend: 10 * SEC,
            settle: 60 * SEC,
            stop: 20 * SEC,
            drain: 60 * SEC,
            snapshot: 600 * SEC,
            write: 1800 * SEC,
            copy: 600 * SEC,
            away: 30 * SEC,
            insist: 120 * SEC,
            release: 3 * MS,
            release_running: 200 * MS,
        }
    }
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A message on a connection.
    Message(Conn, FromRank),
    /// A connection ended.
    Closed(Conn),
    /// A connection ended because what carried it did: the rank is likely to live, and to come again.
    Parted(Conn),
    /// An image is complete on a disk of its node, whose agent copies it from now on: in place of [`FromRank::Written`].
    Kept {
        /// The rank's.
        conn: Conn,
        /// Which node.
        node: Node,
        /// Checkpoint.
        ckpt: CkptId,
        /// What is known of it; the rank is that of `conn`.
        image: Image,
    },
    /// So many bytes of an image have been copied.
    Copying {
        /// Which node.
        node: Node,
        /// Checkpoint.
        ckpt: CkptId,
        /// Whose image.
        rank: Rank,
        /// Of its bytes.
        done: u64,
    },
    /// An image is durable where a commit looks, or cannot be had there.
    Copied {
        /// Which node.
        node: Node,
        /// Checkpoint.
        ckpt: CkptId,
        /// Whose image.
        rank: Rank,
        /// Or why not.
        result: Result<(), String>,
    },
    /// A node is gone, and with it what it has not copied.
    NodeGone(Node),
    /// Somebody wants a checkpoint; the token comes back in [`Action::Answer`].
    Request {
        /// Who asks.
        token: u64,
        /// The job ends with it.
        stop: bool,
    },
    /// Answer to [`Action::Prepare`].
    Prepared(Result<CkptId, String>),
    /// Answer to [`Action::Commit`].
    Committed(Result<(), String>),
    /// The agent is told to end.
    Shutdown,
    /// Time passed.
    Tick,
}

/// What is known of one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Whose.
    pub rank: Rank,
    /// Bytes of memory.
    pub bytes: u64,
    /// xxh3-128 of the file, little endian.
    pub digest: [u8; 16],
    /// Its length.
    pub file_len: u64,
}

/// What must be done, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send.
    Send(Conn, ToRank),
    /// Send [`ToRank::Snapshot`] with the path that storage gives this rank.
    Snapshot {
        /// To whom.
        conn: Conn,
        /// Whose image.
        rank: Rank,
        /// Which checkpoint.
        ckpt: CkptId,
        /// Direct instead of forked.
        direct: bool,
        /// Seed of the hashes.
        seed: u64,
    },
    /// Close after what was sent.
    Close(Conn),
    /// Claim a number and make the directory; answer with [`Event::Prepared`].
    Prepare,
    /// Make the checkpoint exist; answer with [`Event::Committed`].
    Commit {
        /// Which.
        ckpt: CkptId,
        /// Ranks of the job.
        size: u32,
        /// Its images, by rank.
        images: Vec<Image>,
        /// Ranks that had ended before, and their status.
        finished: Vec<(Rank, i32)>,
        /// Measures so far.
        measures: Measures,
    },
    /// Remove what was written.
    Discard(CkptId),
    /// Nothing more is to be done for this checkpoint, which exists or never will: nodes forget what they have kept.
    Over(CkptId),
    /// To who asked.
    Answer(u64, Outcome),
    /// [`Coordinator::outcome`] has changed.
    Outcome,
}

#[derive(Debug)]
struct RankState {
    presence: Presence,
    conn: Option<Conn>,
    pid: u32,
    /// From an image and not rebuilt yet.
    rebuilding: bool,
    answered: bool,
    done: bool,
    doing: Doing,
    sent_version: u64,
    seen_version: u64,
    clocks: BTreeMap<u64, (u64, bool)>,
    image: Option<Image>,
    /// Where the image is copied from; none: it is durable.
    copying: Option<Copying>,
    /// Mail for it since the last resume, also what was sent: its line may break before that arrives.
    mail: Mails,
    /// Number of the last mail from it.
    mailed: u64,
    /// Away for a while, and until then not lost.
    due: Option<Nanos>,
    /// It has said that it is ended by a signal.
    told: bool,
    before: Before,
    /// It was told that an exchange is cut off, and has not said yet how far that has reached it.
    owes: bool,
}

impl RankState {
    fn new() -> Self {
        RankState {
            presence: Presence::Absent,
            conn: None,
            pid: 0,
            rebuilding: false,
            answered: false,
            done: false,
            doing: Doing::Running,
            sent_version: 0,
            seen_version: 0,
            clocks: BTreeMap::new(),
            image: None,
            copying: None,
            mail: Vec::new(),
            mailed: 0,
            due: None,
            told: false,
            before: Before::default(),
            owes: false,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Asker {
    Token(u64),
    Rank(u32, u64),
}

impl Asker {
    /// A scheduler's warning that a rank passes on: it can wait for ranks that are away, and must not be lost with them.
    fn is_warning(self) -> bool {
        matches!(self, Asker::Rank(_, 0))
    }
}

/// How what a warning asked for is tried again.
#[derive(Clone, Copy, Debug)]
struct Insists {
    /// The last warning, or the first failure.
    since: Nanos,
    /// When the next one is tried.
    next: Nanos,
    /// The time from the failure before.
    pause: Nanos,
}

/// The coordinator of one job.
#[derive(Debug)]
pub struct Coordinator {
    config: Config,
    now: Nanos,
    incarnation: u32,
    ranks: Vec<RankState>,
    by_conn: BTreeMap<Conn, u32>,
    members: BTreeMap<u64, Vec<u32>>,
    targets: BTreeMap<u64, u64>,
    version: u64,
    stage: Stage,
    entered: Nanos,
    preparing: bool,
    ckpt: CkptId,
    stop: bool,
    direct: bool,
    reasons: Vec<String>,
    rounds: Rounds,
    /// Of this checkpoint's, at least one round has been handed on.
    exchanged: bool,
    asked: Vec<Asker>,
    queue: VecDeque<(Asker, bool)>,
    /// After a checkpoint that a warning asked for has failed.
    insists: Option<Insists>,
    begun: Nanos,
    held_since: Option<Nanos>,
    stopped_at: Nanos,
    measures: Measures,
    changed: Nanos,
    patience: Nanos,
    last_end: Nanos,
    paused: bool,
    committed: u64,
    given_up: u64,
    last: Option<Measures>,
    last_reasons: Vec<String>,
    outcome: JobOutcome,
    /// Ranks that had exited under an agent before this one, and their status.
    before: Vec<(u32, i32)>,
    judged: bool,
    /// When the first rank failed, where none had been lost before.
    failed: Option<Nanos>,
    /// When ranks that were told to end count as lost even though others run on.
    told_until: Option<Nanos>,
    went: bool,
    out: Vec<Action>,
}

impl Coordinator {
    /// Waits for the ranks of `incarnation` or a later one.
    pub fn new(config: Config, incarnation: u32, now: Nanos) -> Self {
        Coordinator {
            config,
            now,
            incarnation,
            ranks: Vec::new(),
            by_conn: BTreeMap::new(),
            members: BTreeMap::new(),
            targets: BTreeMap::new(),
            version: 0,
            stage: Stage::Idle,
            entered: now,
            preparing: false,
            ckpt: CkptId(0),
            stop: false,
            direct: false,
            reasons: Vec::new(),
            rounds: Rounds::default(),
            exchanged: false,
            asked: Vec::new(),
            queue: VecDeque::new(),
            insists: None,
            begun: now,
            held_since: None,
            stopped_at: now,
            measures: Measures::default(),
            changed: now,
            patience: 0,
            last_end: now,
            paused: false,
            committed: 0,
            given_up: 0,
            last: None,
            last_reasons: Vec::new(),
            outcome: JobOutcome { incarnation, ..JobOutcome::default() },
            before: Vec::new(),
            judged: false,
            failed: None,
            told_until: None,
            went: false,
            out: Vec::new(),
        }
    }

    /// Goes on for an agent that was lost: of the ranks that had exited nobody else will tell.
    pub fn succeed(&mut self, former: &JobOutcome) {
        if former.incarnation == self.incarnation && self.ranks.is_empty() {
            self.before.clone_from(&former.exited);
        }
    }

    /// Some rank has not come yet, or is away and not lost yet.
    pub fn awaits(&self) -> bool {
        self.ranks.is_empty() || self.ranks.iter().any(|r| r.presence == Presence::Absent)
    }

    /// The connections of ranks.
    pub fn rank_conns(&self) -> Vec<Conn> {
        self.by_conn.keys().copied().collect()
    }

    /// The stage of the checkpoint in progress.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Which start of the job this is.
    pub fn incarnation(&self) -> u32 {
        self.incarnation
    }

    /// How the job ended, as far as it has.
    pub fn outcome(&self) -> &JobOutcome {
        &self.outcome
    }

    /// Checkpoints committed, and given up.
    pub fn status_counts(&self) -> (u64, u64) {
        (self.committed, self.given_up)
    }

    /// No checkpoints on the interval until further notice, or again. Those by request are not meant.
    pub fn pause(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// Time between checkpoints; none: only on request.
    pub fn interval(&self) -> Option<Nanos> {
        self.config.interval.filter(|_| !self.paused)
    }

    /// The same where it is found and not given.
    pub fn found_interval(&self) -> Option<Nanos> {
        self.config.auto.and(self.interval())
    }

    /// No rank is connected or awaited.
    pub fn ended(&self) -> bool {
        self.outcome.ended
    }

    /// A checkpoint is in progress that needs no rank any more.
    pub fn outlives_the_ranks(&self) -> bool {
        matches!(self.stage, Stage::Copy | Stage::Commit)
    }

    /// For the command line.
    pub fn status(&self) -> JobStatus {
        JobStatus {
            size: self.ranks.len() as u32,
            incarnation: self.incarnation,
            ranks: self.ranks.iter().map(|r| (r.presence, r.pid)).collect(),
            stage: self.stage.to_string(),
            ckpt: if self.stage == Stage::Idle { 0 } else { self.ckpt.0 },
            copying: self.copy_measure(),
            running: self.unready().is_empty(),
            committed: self.committed,
            given_up: self.given_up,
            last: self.last,
            last_reasons: self.last_reasons.clone(),
        }
    }

    /// When [`Event::Tick`] is due at the latest.
    pub fn next_tick(&self) -> Option<Nanos> {
        let due = self.ranks.iter().filter_map(|r| r.due).min();
        self.stage_tick().into_iter().chain(due).chain(self.told_until).min()
    }

    fn stage_tick(&self) -> Option<Nanos> {
        match self.stage {
            Stage::Idle => {
                let due = self.interval().map(|i| self.last_end.saturating_add(i));
                let at = due.into_iter().chain(self.holds_warnings()).min()?;
                (!self.preparing && self.unready().is_empty() && !self.is_cut()).then_some(at)
            }
            Stage::Commit => None,
            Stage::Settle => {
                let release = if self.someone_runs() { self.patience } else { self.config.release };
                Some((self.changed + release).min(self.entered + self.config.settle))
            }
            stage => Some(self.entered + self.limit(stage)),
        }
    }

    /// Takes one event. The clock never goes back.
    pub fn handle(&mut self, now: Nanos, event: Event) -> Vec<Action> {
        self.now = self.now.max(now);
        match event {
            Event::Message(conn, FromRank::Hello { rank, size, pid, incarnation, restored, before }) => {
                self.hello(conn, Hello { rank, size, pid, incarnation, restored, before });
            }
            Event::Message(conn, message) => {
                if let Some(&rank) = self.by_conn.get(&conn) {
                    self.message(rank, message);
                }
            }
            Event::Closed(conn) => self.closed(conn),
            Event::Parted(conn) => self.parted(conn),
            Event::Kept { conn, node, ckpt, image } => self.kept(conn, node, ckpt, image),
            Event::Copying { node, ckpt, rank, done } => self.copying(node, ckpt, rank, done),
            Event::Copied { node, ckpt, rank, result } => self.copied(node, ckpt, rank, result),
            Event::NodeGone(node) => self.node_gone(node),
            Event::Request { token, stop } => self.request(Asker::Token(token), stop),
            Event::Prepared(result) => self.prepared(result),
            Event::Committed(result) => self.committed(result),
            Event::Shutdown => self.give_up(vec!["the agent was told to end".into()]),
            Event::Tick => {}
        }
        self.advance();
        std::mem::take(&mut self.out)
    }

    fn live(&self) -> impl Iterator<Item = (u32, &RankState)> {
        (0u32..).zip(&self.ranks).filter(|(_, r)| r.presence == Presence::Here)
    }

    fn live_ids(&self) -> Vec<u32> {
        self.live().map(|(n, _)| n).collect()
    }

    fn send(&mut self, rank: u32, message: ToRank) {
        if let Some(conn) = self.ranks[rank as usize].conn {
            self.out.push(Action::Send(conn, message));
        }
    }

    fn send_all(&mut self, message: &ToRank) {
        for rank in self.live_ids() {
            self.send(rank, message.clone());
        }
    }

    fn message(&mut self, rank: u32, message: FromRank) {
        let here = rank as usize;
        let current = |ckpt: u64, me: &Self| me.stage != Stage::Idle && !me.preparing && ckpt == me.ckpt.0;
        match message {
            FromRank::Hello { .. } => {}
            FromRank::Clocks { ckpt, version, clocks, doing } => {
                if current(ckpt, self) && matches!(self.stage, Stage::Intend | Stage::Settle) {
                    self.clocks(rank, version, clocks, doing);
                }
            }
            FromRank::Refused { ckpt, reasons } => {
                if current(ckpt, self) && self.stage == Stage::Intend && !self.ranks[here].answered {
                    self.ranks[here].answered = true;
                    self.reasons.extend(reasons.iter().map(|r| format!("rank {rank}: {r}")));
                    if reasons.is_empty() {
                        self.reasons.push(format!("rank {rank} refused"));
                    }
                }
            }
            FromRank::Stopped { ckpt } => self.done(rank, ckpt, Stage::Stop),
            FromRank::Snapped { ckpt, bytes: _, direct } => {
                self.measures.direct |= direct && current(ckpt, self);
                self.done(rank, ckpt, Stage::Snapshot);
            }
            FromRank::Exchange { ckpt, round, said } => self.answered(rank, ckpt, round, Some(said)),
            FromRank::Drained { ckpt, round } => self.answered(rank, ckpt, round, None),
            FromRank::Rebuilt { round } => self.answered(rank, 0, round, None),
            FromRank::DrainFailed { ckpt, reason } => {
                if current(ckpt, self) && matches!(self.stage, Stage::Stop | Stage::Drain) {
                    self.give_up(vec![format!("rank {rank}: {reason}")]);
                }
            }
            FromRank::Written { ckpt, bytes, digest, file_len } => {
                if current(ckpt, self) && matches!(self.stage, Stage::Snapshot | Stage::Write) {
                    self.ranks[here].image = Some(Image { rank: Rank(rank), bytes, digest, file_len });
                    self.ranks[here].copying = None;
                }
            }
            FromRank::WriteFailed { ckpt, reason } => {
                if current(ckpt, self) && matches!(self.stage, Stage::Snapshot | Stage::Write) {
                    self.give_up(vec![format!("rank {rank}: {reason}")]);
                }
            }
            FromRank::Goodbye(leaving) => self.goodbye(rank, leaving),
            FromRank::Request { id } => self.request(Asker::Rank(rank, id), false),
            FromRank::Mail { items } => self.mail(rank, items),
            FromRank::CutOff(before) => {
                self.ranks[here].before = before;
                self.ranks[here].owes = false;
            }
        }
    }

    /// An answer of a round: of the drain, or, with `ckpt` 0, while the job is rebuilt.
    fn answered(&mut self, rank: u32, ckpt: u64, round: u32, said: Option<Said>) {
        let drains = self.stage != Stage::Idle && !self.preparing && ckpt == self.ckpt.0;
        let drains = drains && matches!(self.stage, Stage::Stop | Stage::Drain);
        if !drains && (ckpt != 0 || !self.ranks[rank as usize].rebuilding) {
            return;
        }
        if self.rounds.is_past(round) {
            // It says its last two answers on a new line, and has heard what came of this one.
            return;
        }
        match self.rounds.again(round, rank) {
            Some(heard) => self.send(rank, ToRank::Exchanged { round, heard }),
            None => self.rounds.answer(round, rank, said),
        }
    }

    fn rebuilding_ids(&self) -> Vec<u32> {
        self.live().filter(|(_, r)| r.rebuilding).map(|(n, _)| n).collect()
    }

    /// One that came from an image is gone before it was rebuilt: the others must not go on without it.
    fn lost_rebuilding(&self) -> bool {
        self.ranks.iter().any(|r| r.rebuilding && r.presence != Presence::Here)
    }

    /// All are here, and those that came from images are done with being rebuilt.
    fn is_rebuilt(&self) -> bool {
        let of_images = self.rebuilding_ids();
        let all_here = self.ranks.iter().all(|r| r.presence != Presence::Absent);
        all_here && !self.lost_rebuilding() && (of_images.is_empty() || self.rounds.over(&of_images))
    }

    /// Moves on as far as what is known allows.
    fn advance(&mut self) {
        self.miss();
        self.settle_cuts();
        self.complete_exchanges();
        if !self.went && self.is_rebuilt() {
            self.went = true;
            self.ranks.iter_mut().for_each(|r| r.rebuilding = false);
            if self.incarnation > 0 {
                self.send_all(&ToRank::Go);
                self.rounds.clear();
                self.last_end = self.now;
            }
        }
        loop {
            let before = self.stage;
            self.step();
            if self.stage == before {
                break;
            }
        }
        if self.stage == Stage::Idle && !self.preparing {
            self.begin();
        }
    }
}

/// Seed of the images' hashes: differs for every checkpoint of every start (splitmix64).
pub fn seed(incarnation: u32, ckpt: CkptId) -> u64 {
    let mut z = (u64::from(incarnation) << 40) ^ ckpt.0 ^ 0x9e37_79b9_7f4a_7c15;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
#[path = "drain_tests.rs"]
mod drain_tests;
#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
