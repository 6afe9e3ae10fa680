//! The coordinator: events and a clock go in, actions come out, nothing else happens. Runs *next door*, in the root agent.
//!
//! ```text
//!          Request            all answered     settled        all Stopped      all Drained        all Snapped
//!  Idle ─▶ (Prepare) ─▶ Intend ──────────▶ Settle ─────▶ Stop ──────────▶ Drain ──────────▶ Snapshot ─────────▶ Resume
//!   ▲                     │ Refused         │             │                │ exchanges        │                   │
//!   │                     ▼                 ▼             ▼                ▼                  ▼                   ▼
//!   └──── Discard ◀── Abort to all: refusal, time limit, loss, leave, failed write ◀──────────┴──────────────── Write
//!   └──── Committed to all ◀── storage says so ◀── Commit ◀──────────────────────────────── all Written ◀─────────┘
//! ```
//!
//! INV-1: `Resume` is sent in one place, when every rank of the checkpoint has snapped (direct: has written).
//! INV-4: `Commit` is asked for in one place, when every image is durable; an older incarnation's hello is denied.
//!
//! What a reader would get wrong: a report of clocks counts for the settled state only if it was read *after* the
//! latest targets for that rank were in force (`version`). An older one says nothing about what the rank enters next.

use crate::message::{
    Clock, Doing, FromRank, Items, JobOutcome, JobStatus, Leaving, Measures, Outcome, Presence, ToRank,
};
use std::collections::{BTreeMap, VecDeque};
use stillpoint_abi::ids::{CkptId, Rank};
use stillpoint_abi::stage::Stage;

/// A connection, as the agent numbers them.
pub type Conn = u64;
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
    /// Quiet time after which held collectives are released, when nobody runs.
    pub release: Nanos,
    /// The same when somebody runs but nothing changes (a loop of probes looks like that). Doubles once.
    pub release_running: Nanos,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            interval: None,
            mode: Mode::Auto,
            intend: 10 * SEC,
            settle: 60 * SEC,
            stop: 20 * SEC,
            drain: 60 * SEC,
            snapshot: 600 * SEC,
            write: 1800 * SEC,
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
    mail: Items,
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
            mail: Vec::new(),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Asker {
    Token(u64),
    Rank(u32, u64),
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
    exchange: BTreeMap<u32, BTreeMap<u32, Items>>,
    asked: Vec<Asker>,
    queue: VecDeque<(Asker, bool)>,
    begun: Nanos,
    held_since: Option<Nanos>,
    stopped_at: Nanos,
    measures: Measures,
    changed: Nanos,
    patience: Nanos,
    last_end: Nanos,
    committed: u64,
    given_up: u64,
    last: Option<Measures>,
    last_reasons: Vec<String>,
    outcome: JobOutcome,
    judged: bool,
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
            exchange: BTreeMap::new(),
            asked: Vec::new(),
            queue: VecDeque::new(),
            begun: now,
            held_since: None,
            stopped_at: now,
            measures: Measures::default(),
            changed: now,
            patience: 0,
            last_end: now,
            committed: 0,
            given_up: 0,
            last: None,
            last_reasons: Vec::new(),
            outcome: JobOutcome { incarnation, ..JobOutcome::default() },
            judged: false,
            went: false,
            out: Vec::new(),
        }
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

    /// No rank is connected or awaited.
    pub fn ended(&self) -> bool {
        self.outcome.ended
    }

    /// For the command line.
    pub fn status(&self) -> JobStatus {
        JobStatus {
            size: self.ranks.len() as u32,
            incarnation: self.incarnation,
            ranks: self.ranks.iter().map(|r| (r.presence, r.pid)).collect(),
            stage: self.stage.to_string(),
            ckpt: if self.stage == Stage::Idle { 0 } else { self.ckpt.0 },
            running: self.unready().is_empty(),
            committed: self.committed,
            given_up: self.given_up,
            last: self.last,
            last_reasons: self.last_reasons.clone(),
        }
    }

    /// When [`Event::Tick`] is due at the latest.
    pub fn next_tick(&self) -> Option<Nanos> {
        match self.stage {
            Stage::Idle => {
                let at = self.last_end + self.config.interval?;
                (!self.preparing && self.unready().is_empty()).then_some(at)
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
            Event::Message(conn, FromRank::Hello { rank, size, pid, incarnation, restored }) => {
                self.hello(conn, rank, size, pid, incarnation, restored);
            }
            Event::Message(conn, message) => {
                if let Some(&rank) = self.by_conn.get(&conn) {
                    self.message(rank, message);
                }
            }
            Event::Closed(conn) => self.closed(conn),
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

    /// Why no checkpoint can begin now.
    fn unready(&self) -> Vec<String> {
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

    fn hello(&mut self, conn: Conn, rank: u32, size: u32, pid: u32, incarnation: u32, restored: bool) {
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
            // The same process again: it has replaced itself by execve.
            self.by_conn.remove(&old);
            self.out.push(Action::Close(old));
            self.give_up(vec![format!("rank {rank} started another program")]);
        }
        let mail = std::mem::take(&mut self.ranks[rank as usize].mail);
        self.ranks[rank as usize] = RankState {
            presence: Presence::Here,
            conn: Some(conn),
            pid,
            rebuilding: restored,
            ..RankState::new()
        };
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
        for (conn, _) in std::mem::take(&mut self.by_conn) {
            self.out.push(Action::Close(conn));
        }
        while let Some((asker, _)) = self.queue.pop_front() {
            self.answer(asker, Err(vec!["the job was started again".into()]));
        }
        self.stop = false;
        self.ranks.clear();
        self.members.clear();
        self.exchange.clear();
        self.incarnation = incarnation;
        self.outcome = JobOutcome { incarnation, ..JobOutcome::default() };
        self.judged = false;
        self.went = false;
        self.last_end = self.now;
        self.out.push(Action::Outcome);
    }

    fn closed(&mut self, conn: Conn) {
        let Some(rank) = self.by_conn.remove(&conn) else { return };
        let state = &mut self.ranks[rank as usize];
        state.conn = None;
        if state.presence == Presence::Here {
            self.depart(rank, Presence::Lost, format!("rank {rank} was lost"));
        }
    }

    fn depart(&mut self, rank: u32, presence: Presence, reason: String) {
        self.ranks[rank as usize].presence = presence;
        self.ranks[rank as usize].mail.clear();
        match presence {
            Presence::Lost => {
                self.outcome.lost.push(rank);
                self.outcome.restart |= !self.judged;
                self.judged = true;
            }
            Presence::Aborted(code) => {
                self.outcome.abort.get_or_insert((rank, code));
                self.judged = true;
            }
            Presence::Finished(status) => {
                self.outcome.exited.push((rank, status));
                self.judged |= status != 0;
            }
            Presence::Left => {
                self.judged = true;
            }
            Presence::Absent | Presence::Here => {}
        }
        // The cut of a checkpoint being written stands; a rank whose image is durable may leave it in peace.
        let written = self.stage == Stage::Commit
            || (self.stage == Stage::Write
                && self.ranks[rank as usize].image.is_some()
                && matches!(presence, Presence::Finished(0) | Presence::Absent));
        if !written {
            self.give_up(vec![reason]);
        }
        self.outcome.ended =
            !self.ranks.iter().any(|r| matches!(r.presence, Presence::Here | Presence::Absent));
        self.out.push(Action::Outcome);
    }

    fn request(&mut self, asker: Asker, stop: bool) {
        let why = self.unready();
        if !why.is_empty() {
            self.answer(asker, Err(why));
        } else if !self.preparing && matches!(self.stage, Stage::Intend | Stage::Settle) && stop == self.stop
        {
            // Not a single thread stands still yet: this checkpoint is as good as a new one.
            self.asked.push(asker);
        } else {
            self.queue.push_back((asker, stop));
        }
    }

    fn answer(&mut self, asker: Asker, result: Outcome) {
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

    fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        self.entered = self.now;
        for r in &mut self.ranks {
            r.done = false;
        }
    }

    fn limit(&self, stage: Stage) -> Nanos {
        match stage {
            Stage::Intend => self.config.intend,
            Stage::Settle => self.config.settle,
            Stage::Stop => self.config.stop,
            Stage::Drain => self.config.drain,
            Stage::Snapshot => self.config.snapshot,
            _ => self.config.write,
        }
    }

    /// Ends the checkpoint in progress; the job runs on and the last commit stands.
    fn give_up(&mut self, reasons: Vec<String>) {
        if self.preparing || matches!(self.stage, Stage::Idle | Stage::Commit) {
            return;
        }
        let reason = reasons.join("; ");
        self.send_all(&ToRank::Abort { reason });
        self.out.push(Action::Discard(self.ckpt));
        self.end(Err(reasons));
    }

    fn end(&mut self, result: Outcome) {
        match &result {
            Ok(_) => self.committed += 1,
            Err(reasons) => {
                self.given_up += 1;
                self.last_reasons = reasons.clone();
            }
        }
        self.answer_all(&result);
        self.exchange.clear();
        self.stop = false;
        self.last_end = self.now;
        self.enter(Stage::Idle);
    }

    fn prepared(&mut self, result: Result<CkptId, String>) {
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
                }
                self.targets.clear();
                self.reasons.clear();
                self.exchange.clear();
                self.version = 0;
                self.held_since = None;
                self.measures = Measures { ckpt: ckpt.0, ..Measures::default() };
                self.send_all(&ToRank::Intend { ckpt: ckpt.0 });
            }
        }
    }

    fn committed(&mut self, result: Result<(), String>) {
        if self.stage != Stage::Commit {
            return;
        }
        match result {
            Ok(()) => {
                let id = self.ckpt.0;
                self.last = Some(self.measures);
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
                self.send_all(&ToRank::Abort { reason: reason.clone() });
                self.end(Err(vec![reason]));
            }
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
            FromRank::Drained { ckpt } => self.done(rank, ckpt, Stage::Drain),
            FromRank::Snapped { ckpt, bytes: _ } => self.done(rank, ckpt, Stage::Snapshot),
            FromRank::Exchange { ckpt, round, items } => {
                let saving = current(ckpt, self) && matches!(self.stage, Stage::Stop | Stage::Drain);
                if saving || (ckpt == 0 && self.ranks[here].rebuilding) {
                    self.exchange.entry(round).or_default().insert(rank, items);
                }
            }
            FromRank::DrainFailed { ckpt, reason } => {
                if current(ckpt, self) && matches!(self.stage, Stage::Stop | Stage::Drain) {
                    self.give_up(vec![format!("rank {rank}: {reason}")]);
                }
            }
            FromRank::Written { ckpt, bytes, digest, file_len } => {
                if current(ckpt, self) && matches!(self.stage, Stage::Snapshot | Stage::Write) {
                    self.ranks[here].image = Some(Image { rank: Rank(rank), bytes, digest, file_len });
                }
            }
            FromRank::WriteFailed { ckpt, reason } => {
                if current(ckpt, self) && matches!(self.stage, Stage::Snapshot | Stage::Write) {
                    self.give_up(vec![format!("rank {rank}: {reason}")]);
                }
            }
            FromRank::Rebuilt => {
                self.ranks[here].rebuilding = false;
                self.went = false;
            }
            FromRank::Goodbye(leaving) => self.goodbye(rank, leaving),
            FromRank::Request { id } => self.request(Asker::Rank(rank, id), false),
            FromRank::Mail { items } => self.mail(rank, items),
        }
    }

    fn goodbye(&mut self, rank: u32, leaving: Leaving) {
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
                self.depart(rank, Presence::Absent, format!("rank {rank} starts another program"))
            }
            Leaving::Finalized => {
                if !(self.stage == Stage::Write && self.ranks[rank as usize].image.is_some()) {
                    self.give_up(vec![format!("rank {rank} left MPI")]);
                }
            }
        }
    }

    /// Forwarded at once, so that it reaches a rank that stands still before the exchange that follows it does.
    fn mail(&mut self, from: u32, items: Items) {
        let mut by_rank: BTreeMap<u32, Items> = BTreeMap::new();
        for (to, bytes) in items {
            by_rank.entry(to).or_default().push((from, bytes));
        }
        for (to, items) in by_rank {
            match self.ranks.get_mut(to as usize) {
                Some(r) if r.presence == Presence::Absent => r.mail.extend(items),
                Some(r) if r.presence == Presence::Here => self.send(to, ToRank::Mail { items }),
                _ => {}
            }
        }
    }

    fn done(&mut self, rank: u32, ckpt: u64, stage: Stage) {
        if self.stage == stage && !self.preparing && ckpt == self.ckpt.0 {
            self.ranks[rank as usize].done = true;
        }
    }

    fn clocks(&mut self, rank: u32, version: u64, clocks: Vec<Clock>, doing: Doing) {
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

    fn tell(&mut self, rank: u32, targets: Vec<(u64, u64)>) {
        let version = self.version;
        let r = &mut self.ranks[rank as usize];
        if r.presence == Presence::Here {
            r.sent_version = version;
            self.send(rank, ToRank::Targets { version, targets });
        }
    }

    fn someone_runs(&self) -> bool {
        self.live().any(|(_, r)| r.doing == Doing::Running)
    }

    /// Every live member of every communicator stands at its target, outside, and cannot pass it.
    fn settled(&self) -> bool {
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
    fn release(&mut self) {
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

    /// Moves on as far as what is known allows.
    fn advance(&mut self) {
        self.complete_exchanges();
        if !self.went && self.ranks.iter().all(|r| r.presence != Presence::Absent && !r.rebuilding) {
            self.went = true;
            if self.incarnation > 0 {
                self.send_all(&ToRank::Go);
                self.exchange.clear();
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

    fn begin(&mut self) {
        let why = self.unready();
        if !why.is_empty() {
            while let Some((asker, _)) = self.queue.pop_front() {
                self.answer(asker, Err(why.clone()));
            }
            return;
        }
        let due = self.config.interval.is_some_and(|i| self.now >= self.last_end.saturating_add(i));
        if self.queue.is_empty() && !due {
            return;
        }
        self.stop = self.queue.iter().any(|(_, stop)| *stop);
        self.asked = self.queue.drain(..).map(|(asker, _)| asker).collect();
        self.begun = self.now;
        self.preparing = true;
        self.out.push(Action::Prepare);
    }

    fn step(&mut self) {
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
                if all_done {
                    return self.order_snapshots();
                }
            }
            Stage::Snapshot => {
                if all_done && (!self.direct || self.all_written()) {
                    let now = self.now;
                    self.measures.stopped_ns = now - self.stopped_at;
                    self.measures.held_ns =
                        now - self.held_since.unwrap_or(self.stopped_at).min(self.stopped_at);
                    self.measures.direct = self.direct;
                    if !self.stop {
                        self.send_all(&ToRank::Resume);
                    }
                    return self.enter(Stage::Write);
                }
            }
            Stage::Write => {
                if self.all_written() {
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
        let late: Vec<String> = self
            .live()
            .filter(|(_, r)| match stage {
                Stage::Intend => !r.answered,
                Stage::Settle => {
                    r.seen_version != r.sent_version
                        || r.clocks.iter().any(|(gid, c)| c.1 || self.targets.get(gid) != Some(&c.0))
                }
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

    fn all_written(&self) -> bool {
        self.ranks.iter().all(|r| r.image.is_some() || r.presence != Presence::Here)
    }

    fn order_snapshots(&mut self) {
        self.direct = self.stop || self.config.mode == Mode::Direct;
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

    fn complete_exchanges(&mut self) {
        if self.exchange.is_empty() || self.ranks.iter().any(|r| r.presence == Presence::Absent) {
            return;
        }
        loop {
            let live = self.live_ids();
            let full = |(_, from): &(&u32, &BTreeMap<u32, Items>)| live.iter().all(|r| from.contains_key(r));
            let Some(round) = self.exchange.iter().find(full).map(|(round, _)| *round) else { return };
            let Some(from) = self.exchange.remove(&round) else { return };
            if live.is_empty() {
                return;
            }
            let mut to: BTreeMap<u32, Items> = live.iter().map(|r| (*r, Vec::new())).collect();
            for (sender, items) in from {
                for (rank, bytes) in items {
                    if let Some(list) = to.get_mut(&rank) {
                        list.push((sender, bytes));
                    }
                }
            }
            for (rank, items) in to {
                self.send(rank, ToRank::Exchanged { round, items });
            }
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
#[path = "state_tests.rs"]
mod tests;
