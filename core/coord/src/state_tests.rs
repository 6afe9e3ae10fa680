//! The coordinator and the clients against a simulated world: hundreds of ranks that run a program of collectives and
//! messages, a network with random delays, deaths, refusals and failing writes. Every run prints its seed.
//!
//! What a reader would get wrong: the simulated program never deadlocks by itself, so a run that does not end is
//! the protocol's fault; and the invariants are checked in the ranks' world, not in the coordinator's records.

use super::*;
use crate::client::{Client, ClientAction, Local};
use crate::message::{Clock, Leaving, Said};
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }
}

#[derive(Clone, Debug)]
enum Op {
    Collective(u64),
    Send(usize),
    Recv(usize),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum At {
    Ready,
    Held(u64),
    Inside(u64),
    Waiting(usize),
    End,
}

struct Sim {
    client: Client,
    ops: Vec<Op>,
    pc: usize,
    at: At,
    counts: BTreeMap<u64, u64>,
    targets: BTreeMap<u64, u64>,
    settle: bool,
    stopped: bool,
    snapped: u64,
    /// Checkpoint, and rounds of it in which this rank has spoken; rounds that it has heard.
    spoken: (u64, BTreeSet<u32>),
    heard: u32,
    dead: bool,
    down: Nanos,
    up: Nanos,
}

#[derive(Debug)]
enum Ev {
    Up(u32, FromRank),
    Gone(u32),
    Down(u32, ToRank),
    Step(u32),
    Local(u32, Local),
    Die(u32),
    Host(Event),
    /// The agent of a node has copied an image.
    Copied(Node, u64, u32),
    Tick,
}

struct World {
    rng: Rng,
    now: Nanos,
    seq: u64,
    events: BinaryHeap<Reverse<(Nanos, u64)>>,
    bodies: BTreeMap<u64, Ev>,
    ranks: Vec<Sim>,
    members: BTreeMap<u64, Vec<u32>>,
    sent: BTreeMap<(usize, usize), u64>,
    got: BTreeMap<(usize, usize), u64>,
    coord: Coordinator,
    next_id: u64,
    commits: u64,
    given_up: u64,
    refuse_one_in: u64,
    fail_one_in: u64,
    written: BTreeMap<u64, BTreeSet<u32>>,
    /// Images are written on nodes, and copied in this time at most.
    copy_within: Option<Nanos>,
    nodes_gone: BTreeSet<Node>,
    durable: BTreeMap<u64, BTreeSet<u32>>,
}

/// Three nodes, the coordinator's own among them.
fn node_of(rank: u32) -> Node {
    Node::from(rank % 3)
}

fn to(rank: u32, byte: u8) -> Said {
    Said { to: vec![(rank, vec![byte])], ..Said::default() }
}

impl World {
    fn new(seed: u64, n: u32, ops: usize, config: Config) -> Self {
        let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut members = BTreeMap::new();
        members.insert(1, (0..n).collect::<Vec<_>>());
        for gid in 2..12u64 {
            let mut m: Vec<u32> = (0..n).filter(|_| rng.below(3) == 0).collect();
            if m.is_empty() {
                m.push(0);
            }
            members.insert(gid, m);
        }
        let mut programs = vec![Vec::new(); n as usize];
        for _ in 0..ops {
            if rng.below(3) == 0 {
                let gid = 1 + rng.below(11);
                for m in &members[&gid] {
                    programs[*m as usize].push(Op::Collective(gid));
                }
            } else {
                let (a, b) = (rng.below(n.into()) as usize, rng.below(n.into()) as usize);
                if a != b {
                    programs[a].push(Op::Send(b));
                    programs[b].push(Op::Recv(a));
                }
            }
        }
        let ranks = (0..n)
            .zip(programs)
            .map(|(r, ops)| Sim {
                client: Client::new(Rank(r), 0),
                ops,
                pc: 0,
                at: At::Ready,
                counts: BTreeMap::new(),
                targets: BTreeMap::new(),
                settle: false,
                stopped: false,
                snapped: 0,
                spoken: (0, BTreeSet::new()),
                heard: 0,
                dead: false,
                down: 0,
                up: 0,
            })
            .collect();
        let mut w = World {
            rng,
            now: 0,
            seq: 0,
            events: BinaryHeap::new(),
            bodies: BTreeMap::new(),
            ranks,
            members,
            sent: BTreeMap::new(),
            got: BTreeMap::new(),
            coord: Coordinator::new(config, 0, 0),
            next_id: 0,
            commits: 0,
            given_up: 0,
            refuse_one_in: 0,
            fail_one_in: 0,
            written: BTreeMap::new(),
            copy_within: None,
            nodes_gone: BTreeSet::new(),
            durable: BTreeMap::new(),
        };
        for r in 0..n {
            w.local(r, Local::Connected { size: n, pid: r + 100, incarnation: 0, restored: false });
            w.after(1000, Ev::Step(r));
        }
        w
    }

    fn at(&mut self, at: Nanos, ev: Ev) {
        self.seq += 1;
        self.events.push(Reverse((at.max(self.now), self.seq)));
        self.bodies.insert(self.seq, ev);
    }

    fn after(&mut self, most: Nanos, ev: Ev) {
        let d = self.rng.below(most) + 1;
        self.at(self.now + d, ev);
    }

    /// Handles events until `done` or nothing is left. Ticks are bounded by the coordinator's own wishes.
    fn run(&mut self, limit: Nanos, mut done: impl FnMut(&World) -> bool) -> bool {
        while !done(self) {
            if let Some(t) = self.coord.next_tick()
                && self.events.peek().is_none_or(|Reverse((at, _))| *at > t)
            {
                self.at(t, Ev::Tick);
            }
            let Some(Reverse((at, seq))) = self.events.pop() else { return false };
            if at > limit {
                return false;
            }
            self.now = at;
            let ev = self.bodies.remove(&seq).unwrap();
            self.handle(ev);
        }
        true
    }

    fn handle(&mut self, ev: Ev) {
        match ev {
            Ev::Up(rank, FromRank::Written { ckpt, bytes, digest, file_len })
                if self.copy_within.is_some() =>
            {
                let image = Image { rank: Rank(0), bytes, digest, file_len };
                let (node, within) = (node_of(rank), self.copy_within.unwrap_or(1));
                self.after(
                    within,
                    Ev::Host(Event::Copying { node, ckpt: CkptId(ckpt), rank: Rank(rank), done: 3 }),
                );
                self.after(within, Ev::Copied(node, ckpt, rank));
                self.coordinate(Event::Kept { conn: u64::from(rank), node, ckpt: CkptId(ckpt), image });
            }
            Ev::Copied(node, ckpt, rank) => {
                if !self.nodes_gone.contains(&node) {
                    let failed = self.fail_one_in > 0 && self.rng.below(self.fail_one_in) == 0;
                    let result = if failed { Err("n1: no space".to_owned()) } else { Ok(()) };
                    if !failed {
                        self.durable.entry(ckpt).or_default().insert(rank);
                    }
                    self.coordinate(Event::Copied { node, ckpt: CkptId(ckpt), rank: Rank(rank), result });
                }
            }
            Ev::Up(rank, m) => self.coordinate(Event::Message(u64::from(rank), m)),
            Ev::Gone(rank) => self.coordinate(Event::Closed(u64::from(rank))),
            Ev::Host(event) => self.coordinate(event),
            Ev::Tick => self.coordinate(Event::Tick),
            Ev::Die(rank) => {
                self.ranks[rank as usize].dead = true;
                let at = self.ranks[rank as usize].up.max(self.now) + 1;
                self.at(at, Ev::Gone(rank));
            }
            Ev::Down(rank, m) => {
                if !self.ranks[rank as usize].dead {
                    let actions = self.ranks[rank as usize].client.on_message(m);
                    self.perform(rank, actions);
                }
            }
            Ev::Local(rank, l) => self.local(rank, l),
            Ev::Step(rank) => self.step(rank),
        }
    }

    fn local(&mut self, rank: u32, l: Local) {
        if !self.ranks[rank as usize].dead {
            let actions = self.ranks[rank as usize].client.on_local(l);
            self.perform(rank, actions);
        }
    }

    fn coordinate(&mut self, event: Event) {
        for action in self.coord.handle(self.now, event) {
            match action {
                Action::Send(conn, m) => self.down(conn as u32, m),
                Action::Snapshot { conn, direct, seed, .. } => {
                    self.down(conn as u32, ToRank::Snapshot { path: String::new(), direct, seed });
                }
                Action::Prepare => {
                    self.next_id += 1;
                    self.after(5 * MS, Ev::Host(Event::Prepared(Ok(CkptId(self.next_id)))));
                }
                Action::Commit { ckpt, images, finished, size, .. } => {
                    assert_eq!(images.len() + finished.len(), size as usize, "INV-4: an image is missing");
                    let durable = if self.copy_within.is_some() { &self.durable } else { &self.written };
                    assert_eq!(durable[&ckpt.0].len(), images.len(), "INV-4: not durable");
                    self.commits += 1;
                    self.after(5 * MS, Ev::Host(Event::Committed(Ok(()))));
                }
                Action::Discard(_) => self.given_up += 1,
                Action::Close(_) | Action::Answer(..) | Action::Outcome | Action::Over(_) => {}
            }
        }
    }

    fn down(&mut self, rank: u32, m: ToRank) {
        if m == ToRank::Resume {
            let id = self.coord.ckpt.0;
            assert!(self.ranks.iter().all(|r| r.dead || r.snapped == id), "INV-1: resumed too early");
        }
        let at = (self.now + 1 + self.rng.below(2 * MS)).max(self.ranks[rank as usize].down + 1);
        self.ranks[rank as usize].down = at;
        self.at(at, Ev::Down(rank, m));
    }

    fn perform(&mut self, rank: u32, actions: Vec<ClientAction>) {
        let here = rank as usize;
        for action in actions {
            match action {
                ClientAction::Send(m) => {
                    let at = (self.now + 1 + self.rng.below(2 * MS)).max(self.ranks[here].up + 1);
                    self.ranks[here].up = at;
                    self.at(at, Ev::Up(rank, m));
                }
                ClientAction::ReportReasons { .. } => {
                    let no = self.refuse_one_in > 0 && self.rng.below(self.refuse_one_in) == 0;
                    let reasons = if no { vec!["a socket".to_owned()] } else { vec![] };
                    self.after(MS, Ev::Local(rank, Local::Reasons(reasons)));
                }
                ClientAction::ReportClocks => self.report(rank),
                ClientAction::SetTargets { targets } => {
                    let r = &mut self.ranks[here];
                    r.settle = true;
                    for (gid, t) in targets {
                        let known = r.targets.entry(gid).or_insert(0);
                        *known = t.max(*known);
                    }
                    if matches!(r.at, At::Held(_)) {
                        r.at = At::Ready;
                        self.after(MS, Ev::Step(rank));
                    }
                    self.report(rank);
                }
                ClientAction::StopThreads => {
                    let r = &mut self.ranks[here];
                    assert!(!matches!(r.at, At::Inside(_)), "a collective is cut in two");
                    r.stopped = true;
                    r.spoken = (r.client.ckpt(), BTreeSet::from([0]));
                    r.heard = 0;
                    self.after(3 * MS, Ev::Local(rank, Local::Stopped));
                    let (later, next) = (self.now + 3 * MS + 1, (rank + 1) % self.ranks.len() as u32);
                    self.at(later, Ev::Local(rank, Local::Contribute(to(next, 0))));
                }
                ClientAction::Drain { round, heard } => {
                    let given_up = self.coord.ckpt.0 != self.ranks[here].client.ckpt()
                        || self.coord.stage() == Stage::Idle;
                    let still = self.ranks.iter().all(|r| r.dead || r.stopped);
                    assert!(given_up || still, "INV-1: drained too early");
                    let n = self.ranks.len() as u32;
                    let (ckpt, next) = (self.ranks[here].client.ckpt(), (rank + 1) % n);
                    let before = (rank + n - 1) % n;
                    assert_eq!(std::mem::replace(&mut self.ranks[here].heard, round + 1), round);
                    if !given_up {
                        let b = &self.ranks[before as usize];
                        let spoke = b.spoken.0 == ckpt && b.spoken.1.contains(&round);
                        let from = Vec::from_iter(spoke.then(|| (before, vec![round as u8])));
                        assert_eq!(heard.from, from, "rank {rank}, round {round}");
                    }
                    let again = round < 3 && self.rng.below(u64::from(n)) == 0;
                    let said = if again {
                        self.ranks[here].spoken.1.insert(round + 1);
                        Local::Contribute(to(next, round as u8 + 1))
                    } else {
                        Local::Drained
                    };
                    self.after(3 * MS, Ev::Local(rank, said));
                }
                ClientAction::Snapshot { ckpt, direct, .. } => {
                    // An order that crosses an abort may still be obeyed: its image is discarded.
                    let given_up = self.coord.ckpt.0 != ckpt || self.coord.stage() != Stage::Snapshot;
                    assert!(given_up || self.ranks.iter().all(|r| r.dead || r.stopped), "INV-1: one runs");
                    let heard = self.ranks[here].heard;
                    let alike = |r: &Sim| r.dead || r.at == At::End || r.heard == heard;
                    assert!(given_up || self.ranks.iter().all(alike), "rounds are not the same everywhere");
                    for (gid, members) in self.members.iter().filter(|_| !given_up) {
                        let count = |m: &u32| self.ranks[*m as usize].counts.get(gid).copied().unwrap_or(0);
                        let all: BTreeSet<u64> = members.iter().map(count).collect();
                        assert!(all.len() <= 1, "collective {gid} is cut: {all:?}");
                    }
                    self.ranks[here].snapped = ckpt;
                    let failed = self.fail_one_in > 0 && self.rng.below(self.fail_one_in) == 0;
                    self.after(3 * MS, Ev::Local(rank, Local::Snapped { bytes: 7, direct: false }));
                    let end = if failed {
                        Local::WriteFailed { ckpt, reason: "no space".into() }
                    } else {
                        self.written.entry(ckpt).or_default().insert(rank);
                        Local::Written { ckpt, bytes: 7, digest: [0; 16], file_len: 7 }
                    };
                    self.after(if direct { 3 * MS } else { 60 * MS }, Ev::Local(rank, end));
                }
                ClientAction::Resume | ClientAction::Abort { .. } => {
                    let r = &mut self.ranks[here];
                    (r.stopped, r.settle) = (false, false);
                    r.targets.clear();
                    if matches!(r.at, At::Held(_) | At::Ready) {
                        r.at = At::Ready;
                        self.after(MS, Ev::Step(rank));
                    }
                    self.wake_all();
                }
                _ => {}
            }
        }
    }

    fn report(&mut self, rank: u32) {
        let r = &self.ranks[rank as usize];
        let clocks = self
            .members
            .iter()
            .filter(|(_, m)| m.contains(&rank))
            .map(|(gid, m)| Clock {
                gid: *gid,
                count: r.counts.get(gid).copied().unwrap_or(0),
                inside: r.at == At::Inside(*gid),
                members: m.clone(),
            })
            .collect();
        let doing = match r.at {
            At::Ready | At::End => Doing::Running,
            At::Held(g) => Doing::Held(g),
            At::Inside(g) => Doing::Inside(g),
            At::Waiting(_) => Doing::Waiting,
        };
        self.local(rank, Local::Clocks { clocks, doing });
    }

    fn wake_all(&mut self) {
        for r in 0..self.ranks.len() as u32 {
            self.wake(r);
        }
    }

    /// Completes what a rank waits for, if it can be.
    fn wake(&mut self, rank: u32) {
        let here = rank as usize;
        let r = &self.ranks[here];
        if r.stopped || r.dead {
            return;
        }
        let complete = match r.at {
            At::Inside(g) => {
                let mine = r.counts[&g];
                self.members[&g]
                    .iter()
                    .all(|m| self.ranks[*m as usize].counts.get(&g).is_some_and(|c| *c >= mine))
            }
            At::Waiting(from) => self.sent.get(&(from, here)) > self.got.get(&(from, here)),
            _ => false,
        };
        if complete {
            if let At::Waiting(from) = r.at {
                *self.got.entry((from, here)).or_insert(0) += 1;
            }
            self.ranks[here].at = At::Ready;
            self.ranks[here].pc += 1;
            self.after(MS, Ev::Step(rank));
            if self.ranks[here].settle {
                self.report(rank);
            }
        }
    }

    fn step(&mut self, rank: u32) {
        let here = rank as usize;
        let r = &mut self.ranks[here];
        if r.stopped || r.dead || r.at != At::Ready {
            return;
        }
        match r.ops.get(r.pc).cloned() {
            None => r.at = At::End,
            Some(Op::Send(to)) => {
                r.pc += 1;
                *self.sent.entry((here, to)).or_insert(0) += 1;
                self.wake(to as u32);
                self.after(MS, Ev::Step(rank));
            }
            Some(Op::Recv(from)) => {
                r.at = At::Waiting(from);
                if r.settle {
                    self.report(rank);
                }
                self.wake(rank);
            }
            Some(Op::Collective(gid)) => {
                let count = r.counts.entry(gid).or_insert(0);
                if r.settle && *count >= r.targets.get(&gid).copied().unwrap_or(0) {
                    r.at = At::Held(gid);
                    return self.report(rank);
                }
                *count += 1;
                r.at = At::Inside(gid);
                if r.settle {
                    self.report(rank);
                }
                for m in self.members[&gid].clone() {
                    self.wake(m);
                }
            }
        }
    }
}

fn config() -> Config {
    Config { interval: Some(40 * MS), ..Config::default() }
}

fn seeds(env: &str, n: u64) -> Vec<u64> {
    match std::env::var(env).ok().and_then(|s| s.parse().ok()) {
        Some(seed) => vec![seed],
        None => (1..=n).collect(),
    }
}

#[test]
#[allow(clippy::print_stderr, reason = "the seed must be seen when a run fails")]
fn the_program_ends_and_checkpoints_are_committed() {
    let mut commits = 0;
    for seed in seeds("STILLPOINT_SEED", 30) {
        eprintln!("seed {seed}");
        let n = 2 + (seed * 7 % 40) as u32;
        let mut w = World::new(seed, n, 60 * n as usize, config());
        let ended = w.run(600 * SEC, |w| w.ranks.iter().all(|r| r.at == At::End));
        assert!(ended, "seed {seed}: the program hangs in stage {}", w.coord.stage());
        assert_eq!(w.given_up, 0, "seed {seed}: {:?}", w.coord.last_reasons);
        commits += w.commits;
    }
    assert!(commits > 0);
}

#[test]
fn an_interval_is_paused_and_an_interval_is_found() {
    let run = |config: Config, paused: bool| {
        let mut w = World::new(3, 4, 400, config);
        w.coord.pause(paused);
        assert!(w.run(600 * SEC, |w| w.ranks.iter().all(|r| r.at == At::End)));
        (w.commits, w.coord.interval())
    };
    assert_eq!(run(config(), true), (0, None));
    let (commits, interval) = run(config(), false);
    assert!(commits > 0 && interval == Some(40 * MS));
    // The first one when it was told; then as Daly has it, which is longer than this program lives.
    let (commits, interval) = run(Config { auto: Some(3600 * SEC), ..config() }, false);
    assert!(commits == 1 && interval.is_some_and(|i| (10 * SEC..60 * SEC).contains(&i)), "{interval:?}");
}

#[test]
#[allow(clippy::print_stderr, reason = "the seed must be seen when a run fails")]
fn three_hundred_ranks() {
    for seed in seeds("STILLPOINT_SEED", 1) {
        eprintln!("seed {seed}");
        let mut w = World::new(seed, 300, 1500, config());
        let ended = w.run(600 * SEC, |w| w.ranks.iter().all(|r| r.at == At::End));
        assert!(ended, "seed {seed}: the program hangs in stage {}", w.coord.stage());
        assert!(w.commits > 0 && w.given_up == 0, "seed {seed}: {:?}", w.coord.last_reasons);
    }
}

#[test]
#[allow(clippy::print_stderr, reason = "the seed must be seen when a run fails")]
fn refusals_and_failed_writes_leave_the_job_running() {
    for seed in seeds("STILLPOINT_SEED", 30) {
        eprintln!("seed {seed}");
        let mut w = World::new(seed, 12, 1500, config());
        (w.refuse_one_in, w.fail_one_in) = (60, 60);
        let ended = w.run(600 * SEC, |w| w.ranks.iter().all(|r| r.at == At::End));
        assert!(ended, "seed {seed}: the program hangs in stage {}", w.coord.stage());
    }
}

#[test]
#[allow(clippy::print_stderr, reason = "the seed must be seen when a run fails")]
fn deaths_at_any_moment_give_the_checkpoint_up() {
    for seed in seeds("STILLPOINT_SEED", 200) {
        eprintln!("seed {seed}");
        let mut w = World::new(seed, 16, 2000, config());
        let (victim, at) = (w.rng.below(16) as u32, w.rng.below(300 * MS));
        w.at(at, Ev::Die(victim));
        w.run(100 * SEC, |w| w.coord.outcome().restart && w.coord.stage() == Stage::Idle);
        assert_eq!(w.coord.outcome().lost, vec![victim], "seed {seed}");
        assert_eq!(w.coord.stage(), Stage::Idle, "seed {seed}: nothing goes on after a loss");
    }
}

#[test]
fn a_silent_rank_runs_into_the_limit_of_every_stage() {
    for stage in [Stage::Intend, Stage::Settle, Stage::Stop, Stage::Drain, Stage::Snapshot, Stage::Write] {
        let mut w = World::new(9, 4, 4000, Config { mode: Mode::Forked, ..config() });
        assert!(w.run(50 * SEC, |w| w.coord.stage() == stage), "{stage}");
        // From here on nothing that rank 2 says is heard.
        let mute = |w: &mut World| {
            let late: Vec<u64> = w
                .bodies
                .iter()
                .filter(|(_, e)| matches!(e, Ev::Up(2, _) | Ev::Local(2, _)))
                .map(|(s, _)| *s)
                .collect();
            for s in late {
                w.bodies.insert(s, Ev::Tick);
            }
        };
        let mut rounds = 0;
        while w.given_up == 0 && rounds < 1_000_000 {
            mute(&mut w);
            let mut once = false;
            w.run(Nanos::MAX, |_| std::mem::replace(&mut once, true));
            rounds += 1;
        }
        assert_eq!(w.given_up, 1, "{stage}");
        assert!(w.coord.last_reasons[0].contains("waiting for ranks"), "{:?}", w.coord.last_reasons);
    }
}

fn hello(rank: u32, incarnation: u32, restored: bool) -> FromRank {
    FromRank::Hello { rank, size: 2, pid: 10 + rank + incarnation, incarnation, restored, before: None }
}

#[test]
fn an_older_incarnation_is_denied_and_a_later_one_takes_over() {
    let mut c = Coordinator::new(Config::default(), 1, 0);
    let denied = c.handle(0, Event::Message(1, hello(0, 0, false)));
    assert!(matches!(denied[..], [Action::Send(1, ToRank::Denied { .. }), Action::Close(1)]), "{denied:?}");
    c.handle(0, Event::Message(2, hello(0, 1, true)));
    c.handle(0, Event::Message(3, hello(1, 1, true)));
    c.handle(0, Event::Message(2, FromRank::Rebuilt { round: 0 }));
    let go = c.handle(0, Event::Message(3, FromRank::Rebuilt { round: 0 }));
    assert_eq!(go, vec![Action::Send(2, ToRank::Go), Action::Send(3, ToRank::Go)]);
    c.handle(0, Event::Closed(3));
    assert!(c.outcome().restart);
    let next = c.handle(0, Event::Message(4, hello(1, 2, true)));
    assert!(next.contains(&Action::Close(2)), "{next:?}");
    assert!(!c.outcome().restart && c.outcome().incarnation == 2);
}

#[test]
fn results_are_not_losses() {
    for (leaving, restart) in
        [(Leaving::Abort(3), false), (Leaving::Exit(1), false), (Leaving::Exit(0), true)]
    {
        let mut c = Coordinator::new(Config::default(), 0, 0);
        c.handle(0, Event::Message(1, hello(0, 0, false)));
        c.handle(0, Event::Message(2, hello(1, 0, false)));
        c.handle(0, Event::Message(1, FromRank::Goodbye(leaving)));
        c.handle(0, Event::Closed(1));
        assert!(!c.ended());
        c.handle(0, Event::Closed(2));
        assert_eq!(c.outcome().restart, restart, "{leaving:?}");
        assert!(c.ended());
    }
}

/// Two ranks of three say what they say and are gone.
fn outcome_of(story: &[(u32, Option<Leaving>)]) -> Coordinator {
    let mut c = Coordinator::new(Config::default(), 0, 0);
    for (conn, rank) in [(1, 0), (2, 1), (3, 2)] {
        c.handle(0, Event::Message(conn, again(rank, 0, 0)));
    }
    for (rank, leaving) in story {
        let conn = Conn::from(rank + 1);
        if let Some(leaving) = leaving {
            c.handle(0, Event::Message(conn, FromRank::Goodbye(*leaving)));
        }
        c.handle(0, Event::Closed(conn));
    }
    c
}

#[test]
fn who_is_lost_just_after_a_failure_may_have_been_killed_before() {
    let told = Some(Leaving::Ended(15));
    let failed = Some(Leaving::Exit(1));
    let c = outcome_of(&[(0, failed), (1, None), (2, failed)]);
    assert!(c.ended() && !c.outcome().restart && c.outcome().silent == [1]);
    assert_eq!(outcome_of(&[(0, failed), (1, told), (2, failed)]).outcome().silent, []);
    assert_eq!(outcome_of(&[(0, Some(Leaving::Abort(1))), (1, None)]).outcome().silent, []);
    assert_eq!(outcome_of(&[(0, Some(Leaving::Exit(0))), (1, None)]).outcome().silent, []);
    assert_eq!(
        outcome_of(&[(1, None), (0, failed), (2, None)]).outcome().silent,
        [],
        "that is known without"
    );
    // Long after it the launcher may have killed it.
    let mut c = outcome_of(&[(0, failed)]);
    c.handle(600_000_000, Event::Closed(2));
    assert!(c.outcome().lost == [1] && c.outcome().silent.is_empty());
}

#[test]
fn who_is_told_to_end_is_not_the_cause() {
    let told = Some(Leaving::Ended(15));
    // The cause is heard of last: a result.
    let c = outcome_of(&[(0, told), (1, told), (2, Some(Leaving::Exit(1)))]);
    assert!(c.ended() && !c.outcome().restart && c.outcome().lost == [0, 1] && c.outcome().told == [0, 1]);
    let c = outcome_of(&[(0, told), (1, Some(Leaving::Abort(7)))]);
    assert!(!c.outcome().restart);
    // A rank was killed, another one has given up because of it, and a third was ended by the launcher.
    let c = outcome_of(&[(0, told), (1, None), (2, Some(Leaving::Exit(1)))]);
    assert!(c.outcome().restart && c.outcome().is_cut_down());
    // Nobody but those: the launcher was ended.
    let c = outcome_of(&[(0, told), (1, told), (2, told)]);
    assert!(c.ended() && c.outcome().restart && !c.outcome().is_cut_down());
    // A user has ended one, and nobody ends the others.
    let mut c = outcome_of(&[(0, told)]);
    assert!(!c.outcome().restart);
    let due = c.next_tick().unwrap();
    c.handle(due, Event::Tick);
    assert!(c.outcome().restart && c.outcome().is_cut_down());
}

#[test]
fn a_checkpoint_that_stops_the_job_never_resumes_it() {
    let mut w = World::new(3, 5, 500, Config::default());
    w.at(50 * MS, Ev::Host(Event::Request { token: 1, stop: true }));
    assert!(w.run(50 * SEC, |w| w.coord.outcome().ended));
    assert_eq!(w.coord.outcome().stopped_at, Some(1));
    assert!(w.ranks.iter().all(|r| r.stopped));
    assert!(!w.coord.outcome().restart);
}

/// A rank that has been welcome under an agent before.
fn again(rank: u32, told: u64, cut: u64) -> FromRank {
    let before = Some(Before { told, cut });
    FromRank::Hello { rank, size: 3, pid: 10 + rank, incarnation: 0, restored: false, before }
}

#[test]
fn who_has_lost_its_line_has_time_to_come_again() {
    let mut c = Coordinator::new(Config::default(), 0, 0);
    for (conn, rank) in [(1, 0), (2, 1), (3, 2)] {
        c.handle(0, Event::Message(conn, again(rank, 0, 0)));
    }
    c.handle(5 * SEC, Event::Parted(1));
    c.handle(5 * SEC, Event::Parted(2));
    assert!(c.outcome().lost.is_empty() && !c.unready().is_empty());
    assert_eq!(c.next_tick(), Some(35 * SEC));
    c.handle(6 * SEC, Event::Message(7, again(0, 0, 0)));
    // One that is lost now may be so because of one that is away.
    c.handle(7 * SEC, Event::Closed(3));
    assert!(c.outcome().lost == [2] && !c.outcome().restart);
    c.handle(34 * SEC, Event::Tick);
    assert!(!c.outcome().restart);
    c.handle(35 * SEC, Event::Tick);
    assert!(c.outcome().restart && c.outcome().lost == [2, 1]);
}

#[test]
fn the_next_agent_waits_for_all_but_not_for_ever() {
    let mut c = Coordinator::new(Config::default(), 0, 0);
    c.succeed(&JobOutcome { exited: vec![(2, 0)], ..JobOutcome::default() });
    c.handle(SEC, Event::Message(1, again(0, 0, 0)));
    c.handle(2 * SEC, Event::Closed(1));
    assert!(!c.outcome().restart && !c.outcome().ended, "rank 1 may have ended the job");
    c.handle(3 * SEC, Event::Message(2, again(1, 0, 0)));
    assert!(c.outcome().restart, "it has not");
    let mut c = Coordinator::new(Config::default(), 0, 0);
    c.handle(SEC, Event::Message(1, again(0, 0, 0)));
    c.handle(31 * SEC, Event::Tick);
    assert_eq!(c.outcome().lost, [1, 2]);
    assert!(c.outcome().restart);
}

#[test]
fn whom_the_exchange_did_not_reach_is_told_when_all_are_back() {
    let mut c = Coordinator::new(Config::default(), 0, 0);
    let untold = |actions: Vec<Action>| -> Vec<(Conn, Vec<u32>)> {
        let of = |a| match a {
            Action::Send(conn, ToRank::Untold { ckpt: 9, ranks }) => Some((conn, ranks)),
            _ => None,
        };
        actions.into_iter().filter_map(of).collect()
    };
    assert!(untold(c.handle(0, Event::Message(1, again(0, 9, 9)))).is_empty());
    assert!(untold(c.handle(0, Event::Message(2, again(1, 8, 9)))).is_empty());
    let all = untold(c.handle(0, Event::Message(3, again(2, 9, 9))));
    assert_eq!(all, [(1, vec![1]), (2, vec![1]), (3, vec![1])]);
    assert!(untold(c.handle(0, Event::Tick)).is_empty(), "once");
}

#[test]
fn a_warning_waits_for_those_who_are_away() {
    let mut c = Coordinator::new(Config::default(), 0, 0);
    let request = |conn, id| Event::Message(conn, FromRank::Request { id });
    c.handle(0, Event::Message(1, again(0, 0, 0)));
    assert_eq!(c.handle(0, request(1, 0)), [], "the others have not come to this agent yet");
    let refused = c.handle(0, request(1, 7));
    assert!(
        matches!(refused[..], [Action::Send(1, ToRank::Answer { id: 7, result: Err(_) })]),
        "{refused:?}"
    );
    c.handle(0, Event::Message(2, again(1, 0, 0)));
    assert!(c.handle(0, Event::Message(3, again(2, 0, 0))).contains(&Action::Prepare));
    // One loses its line meanwhile: the checkpoint is for another try.
    c.handle(SEC, Event::Prepared(Ok(CkptId(1))));
    let given_up = c.handle(SEC, Event::Parted(3));
    let answers = |a: &Action| matches!(a, Action::Send(_, ToRank::Answer { .. }));
    assert!(given_up.contains(&Action::Discard(CkptId(1))) && !given_up.iter().any(answers), "{given_up:?}");
    assert!(c.handle(SEC, Event::Message(4, again(2, 0, 0))).contains(&Action::Prepare));
    // The same while storage prepares.
    c.handle(SEC, Event::Parted(4));
    assert!(!c.handle(SEC, Event::Prepared(Ok(CkptId(2)))).iter().any(answers));
    // Who does not come back at all ends the waiting.
    assert!(c.handle(60 * SEC, Event::Tick).iter().any(answers));
}

#[test]
fn what_a_warning_asked_for_is_tried_again() {
    let (mut c, limit) = (Coordinator::new(Config::default(), 0, 0), Config::default().insist);
    for rank in 0..3 {
        c.handle(0, Event::Message(1 + u64::from(rank), again(rank, 0, 0)));
    }
    let request = |id| Event::Message(1, FromRank::Request { id });
    let answers = |all: &[Action], id| {
        all.iter().any(|a| matches!(a, Action::Send(1, ToRank::Answer { id: to, .. }) if *to == id))
    };
    let refused = |c: &mut Coordinator, now, ckpt| {
        c.handle(now, Event::Prepared(Ok(CkptId(ckpt))));
        let mut all = c.handle(now, request(7));
        for conn in 1..=3 {
            let no = FromRank::Refused { ckpt, reasons: vec!["a child process".into()] };
            all.extend(c.handle(now, Event::Message(conn, no)));
        }
        assert!(all.contains(&Action::Discard(CkptId(ckpt))), "{all:?}");
        all
    };
    assert!(c.handle(0, request(0)).contains(&Action::Prepare));
    let all = refused(&mut c, SEC, 1);
    assert!(answers(&all, 7) && !answers(&all, 0) && !all.contains(&Action::Prepare), "{all:?}");
    assert_eq!(c.next_tick(), Some(2 * SEC));
    let half = SEC + SEC / 2;
    assert_eq!(c.handle(half, request(0)), [], "another warning meanwhile does not hasten it");
    assert!(c.handle(2 * SEC, Event::Tick).contains(&Action::Prepare));
    assert!(!answers(&refused(&mut c, 2 * SEC, 2), 0));
    assert_eq!(c.next_tick(), Some(4 * SEC), "later each time");
    assert!(c.handle(4 * SEC, Event::Tick).contains(&Action::Prepare));
    let all = refused(&mut c, half + limit - 1, 3);
    assert!(!answers(&all, 0), "as long after the last one: {all:?}");
    let next = c.next_tick().unwrap_or_default();
    assert!(c.handle(next, Event::Tick).contains(&Action::Prepare));
    let all = refused(&mut c, next, 4);
    assert!(answers(&all, 0), "not for ever: {all:?}");
    assert_eq!(c.next_tick(), None);
    // The next one is tried as long, and a request of somebody else does not wait for it.
    assert!(c.handle(2 * limit, request(0)).contains(&Action::Prepare));
    assert!(!answers(&refused(&mut c, 2 * limit, 5), 0));
    assert!(c.handle(2 * limit, request(8)).contains(&Action::Prepare));
}

#[path = "state_tests/copy.rs"]
mod copy;
#[path = "state_tests/rebuild.rs"]
mod rebuild;
