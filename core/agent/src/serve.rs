//! The agent's life as root or relay, and the root's loop: inputs to the coordinator, its actions to sockets and store.
//! Runs *next door*.
//!
//! What a reader would get wrong: an agent outlives its job by a while (`--linger`), because the next start of the job
//! may come; a hello that reaches an agent just ending sees its connection closed without a welcome, and tries again.

use crate::AgentError;
use crate::args::Args;
use crate::burst::Burst;
use crate::conn::{Input, Link, accept};
use crate::elect::{Claim, Role, elect};
use crate::relay::{Beating, End, ToRelay, relay};
use crate::relays;
use crate::store::{Order, Restarted, Store, chain};
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use std::collections::BTreeMap;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant, SystemTime};
use stillpoint_abi::ids::{CkptId, Rank};
use stillpoint_coord::message::{Command, FromAgent, FromRank, JobOutcome, Outcome, Reply, ToAgent, ToRank};
use stillpoint_coord::state::{Action, Conn, Coordinator, Event, Image, OWN};
use stillpoint_net::roots::Roots;
use stillpoint_storage::commit::image_name;
use stillpoint_storage::run::{PAUSED, RunDir};

/// Time between two looks for a later root, while a rank is missing.
const LOOK: Duration = Duration::from_secs(1);

/// For so long a look at the latest start is good.
const GOOD: Duration = Duration::from_secs(1);

struct Agent<'a> {
    run: &'a RunDir,
    /// The latest start that was seen, when, and when the directory that tells had changed last.
    latest: (u32, Instant, Option<SystemTime>),
    claim: Option<(Roots, u32)>,
    coord: Coordinator,
    links: BTreeMap<Conn, Link>,
    /// Agents of other nodes.
    relays: BTreeMap<u64, Beating<ToRelay>>,
    burst: &'a mut Option<Burst>,
    store: Store,
    zero: Instant,
    idle_since: Instant,
    /// Ranks from an image have come, and were not told to run on yet.
    restored: std::cell::Cell<bool>,
}

/// Why a role ends.
#[derive(Debug, PartialEq, Eq)]
enum Over {
    /// Nobody needs it any more.
    Idle,
    /// Told to end, by this connection.
    Told(Conn),
    /// A later root was claimed.
    Superseded,
}

/// Serves, as root or relay, until the job has ended and some time has passed, or until told to end.
pub(crate) fn serve(run: &RunDir, local: &RunDir, args: &Args) -> Result<(), AgentError> {
    let io = |what| move |source| AgentError::Io { what, source };
    let Some(_lock) = local.lock()? else { return Ok(()) };
    // The socket's path may be longer than the kernel takes; its name is not.
    std::env::set_current_dir(local.path()).map_err(io("enter the node's directory"))?;
    match std::fs::remove_file("agent.sock") {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io("remove the old socket")(e)),
        _ => {}
    }
    let listener = UnixListener::bind("agent.sock").map_err(io("listen"))?;
    let (to, inputs) = unbounded();
    accept(listener, to.clone());
    let mut burst = args.burst.as_ref().and_then(|base| {
        let opened = Burst::open(base, args.burst_rate, run, local, to.clone());
        // The ranks were started where it could be used; a checkpoint without it is better than none.
        let why =
            |e| tracing::warn!("burst directory: {}; images go straight to the run directory", chain(&e));
        opened.map_err(why).ok()
    });
    if args.local.is_none() {
        // One node: nobody else can be the root.
        root(run, args, None, &to, &inputs, &mut burst)?;
    } else {
        let roots = Roots::of(run);
        loop {
            let goes_on = match elect(run, &roots)? {
                Role::Root(claim) => {
                    root(run, args, Some(claim), &to, &inputs, &mut burst)? == Over::Superseded
                }
                Role::Relay(stream) => {
                    let end = relay(args, stream, &to, &inputs, &mut burst);
                    end.map_err(io("talk to the root"))? == End::RootGone
                }
            };
            if !goes_on {
                break;
            }
        }
    }
    let _ = std::fs::remove_file("agent.sock");
    tracing::info!("ended");
    Ok(())
}

/// The root's life.
fn root(
    run: &RunDir,
    args: &Args,
    claim: Option<Claim>,
    to: &Sender<Input>,
    inputs: &Receiver<Input>,
    burst: &mut Option<Burst>,
) -> Result<Over, AgentError> {
    let io = |what| move |source| AgentError::Io { what, source };
    let ours = claim.as_ref().map(|c| (c.roots.clone(), c.number));
    // First of all: a root that does not answer is taken for dead, and what follows may take long.
    let port = claim.map(|c| relays::accept(c.listener, c.token, to.clone()));
    let port = port.transpose().map_err(io("listen on a port"))?;
    if let Err(e) = run.forget(usize::MAX, None) {
        // A former agent's image that is still being written, on a file system that cannot remove it yet.
        tracing::warn!("remove what was left unfinished: {e}");
    }
    let store = Store::start(run.clone(), ours.clone(), args.keep, to.clone());
    let zero = Instant::now();
    let latest = run.incarnation()?;
    let mut coord = Coordinator::new(args.config.clone(), latest, 0);
    if let Ok(former) = run.read_json::<JobOutcome>("outcome.json") {
        coord.succeed(&former);
    }
    // Said to an agent before this one.
    coord.pause(run.path().join(PAUSED).exists());
    tracing::info!("listening; incarnation {}", coord.incarnation());
    let mut agent = Agent {
        run,
        latest: (latest, zero, None),
        claim: ours,
        coord,
        links: BTreeMap::new(),
        relays: BTreeMap::new(),
        burst,
        store,
        zero,
        idle_since: zero,
        restored: false.into(),
    };
    let over = agent.turn(args, inputs);
    tracing::info!("no root any more: {over:?}");
    drop(port);
    agent.end(&over);
    Ok(over)
}

impl Agent<'_> {
    fn turn(&mut self, args: &Args, inputs: &Receiver<Input>) -> Over {
        let mut looked = self.zero;
        loop {
            let now = self.now();
            let mut wait = Duration::from_secs(1);
            if let Some(tick) = self.coord.next_tick() {
                wait = wait.min(Duration::from_nanos(tick.saturating_sub(now)));
            }
            match inputs.recv_timeout(wait) {
                Ok(input) => {
                    if let Some(over) = self.input(input) {
                        return over;
                    }
                }
                Err(RecvTimeoutError::Timeout) => self.coordinate(Event::Tick),
                Err(RecvTimeoutError::Disconnected) => return Over::Idle,
            }
            if self.coord.awaits() && looked.elapsed() >= LOOK {
                // They may have found another root.
                looked = Instant::now();
                self.order(Order::Look);
            }
            let patience =
                if self.coord.ended() { args.linger } else { args.linger.max(Duration::from_secs(60)) };
            if self.links.is_empty()
                && !self.coord.outlives_the_ranks()
                && self.idle_since.elapsed() > patience
            {
                return Over::Idle;
            }
        }
    }

    /// Takes leave of everybody. Who has asked for it may rely on it that nothing is written any more.
    fn end(mut self, over: &Over) {
        self.coordinate(Event::Shutdown);
        if matches!(over, Over::Told(_)) {
            // Else they would take it for a death, and start another agent.
            for conn in self.coord.rank_conns() {
                self.send(conn, ToRank::Denied { reason: "the agent was told to end".into() });
            }
        }
        self.burst.iter_mut().for_each(Burst::end);
        self.store.finish();
        if let Some((roots, number)) = &self.claim
            && *over != Over::Superseded
        {
            // Of a run directory that has been removed, nobody looks for the root.
            let _ = roots.end(*number);
        }
        if let Over::Told(asker) = over {
            self.reply(*asker, Reply::Done);
        }
        let links = std::mem::take(&mut self.links);
        if *over == Over::Superseded {
            drop(links);
        } else {
            links.into_values().for_each(Link::finish);
            self.relays.values().for_each(|relay| drop(relay.to.send(ToRelay::End)));
        }
        std::mem::take(&mut self.relays).into_values().for_each(Beating::finish);
    }

    fn now(&self) -> u64 {
        self.zero.elapsed().as_nanos() as u64
    }

    /// Takes one input. Whether this role is over with it.
    fn input(&mut self, input: Input) -> Option<Over> {
        match input {
            Input::Opened(conn, link) => {
                self.links.insert(conn, link);
            }
            Input::Closed(conn) => {
                self.burst.iter_mut().for_each(|b| b.closed(conn));
                self.without(conn, Event::Closed(conn));
            }
            Input::Parted(conn) => self.without(conn, Event::Parted(conn)),
            Input::Relay(relay, out) => drop(self.relays.insert(relay, out)),
            Input::RelayGone(relay) => {
                self.relays.remove(&relay);
                self.coordinate(Event::NodeGone(relay));
            }
            Input::Superseded(number) if self.claim.as_ref().is_some_and(|(_, n)| *n == number) => {
                return Some(Over::Superseded);
            }
            // Of a time when this agent was something else.
            Input::Superseded(_)
            | Input::RootGone(..)
            | Input::Hand(..)
            | Input::Drop(_)
            | Input::Over(_) => {}
            Input::Message(conn, _) if !self.links.contains_key(&conn) => {}
            Input::Event(event) => self.coordinate(event),
            Input::Message(conn, ToAgent::Rank(message)) => {
                tracing::trace!("connection {conn}: {message:?}");
                if let FromRank::Hello { incarnation, restored, .. } = message {
                    self.restored.set(restored || self.restored.get());
                    // Claimed by a start whose ranks may not have come yet (INV-4).
                    let claimed = self.claimed();
                    if incarnation < claimed {
                        let reason = format!("incarnation {incarnation} is over, {claimed} was claimed");
                        tracing::warn!("connection {conn}: {reason}");
                        self.send(conn, ToRank::Denied { reason });
                        self.links.remove(&conn);
                        return None;
                    }
                }
                let event = self.said(conn, message);
                self.coordinate(event);
            }
            Input::Message(conn, ToAgent::Command(command)) => match command {
                Command::Status => self.reply(conn, Reply::Status(self.coord.status())),
                Command::Outcome => self.reply(conn, Reply::Outcome(self.coord.outcome().clone())),
                Command::Checkpoint { stop } => self.coordinate(Event::Request { token: conn, stop }),
                Command::Pause { paused } => {
                    self.coord.pause(paused);
                    tracing::info!(
                        "checkpoints on the interval: {}",
                        if paused { "paused" } else { "again" }
                    );
                    self.reply(conn, Reply::Done);
                }
                Command::Shutdown => return Some(Over::Told(conn)),
            },
        }
        None
    }

    /// The latest start, as seen a second ago at the earliest: thousands of ranks may come at once, and each look changes a directory
    /// that all nodes share. When nobody can look now, what was seen last stands; the commit looks again, and refuses then.
    fn claimed(&mut self) -> u32 {
        let (seen, at, then) = self.latest;
        let changed = || std::fs::metadata(self.run.path().join("restarts")).and_then(|m| m.modified()).ok();
        if then.is_some() && at.elapsed() < GOOD && changed() == then {
            return seen;
        }
        let now = self.run.incarnation().unwrap_or_else(|e| {
            tracing::warn!("cannot see which start is the latest, {seen} was: {}", chain(&e));
            seen
        });
        self.latest = (now, Instant::now(), changed());
        now
    }

    /// What a rank says; of an image on this node's disk, that it is there.
    fn said(&mut self, conn: Conn, message: FromRank) -> Event {
        if let (Some(b), FromRank::Written { ckpt, bytes, digest, file_len }) = (&mut *self.burst, &message)
            && b.written(conn, *ckpt, *digest, *file_len)
        {
            let image = Image { rank: Rank(0), bytes: *bytes, digest: *digest, file_len: *file_len };
            return Event::Kept { conn, node: OWN, ckpt: CkptId(*ckpt), image };
        }
        Event::Message(conn, message)
    }

    /// A connection is gone, in the way that `event` says.
    fn without(&mut self, conn: Conn, event: Event) {
        self.links.remove(&conn);
        self.idle_since = Instant::now();
        self.coordinate(event);
    }

    fn send(&self, conn: Conn, message: ToRank) {
        tracing::trace!("connection {conn}: {message:?}");
        if message == ToRank::Go && self.restored.replace(false) {
            self.order(Order::Restarted(Restarted {
                incarnation: self.coord.incarnation(),
                ranks: self.coord.status().size,
                restart_ns: self.now(),
            }));
        }
        if let Some(link) = self.links.get(&conn) {
            link.send(FromAgent::Rank(message));
        }
    }

    fn reply(&self, conn: Conn, reply: Reply) {
        if let Some(link) = self.links.get(&conn) {
            link.send(FromAgent::Reply(reply));
        }
    }

    fn coordinate(&mut self, event: Event) {
        let before = self.coord.status_counts();
        let now = self.now();
        for action in self.coord.handle(now, event) {
            match action {
                Action::Send(conn, message) => self.send(conn, message),
                Action::Snapshot { conn, rank, ckpt, direct, seed } => {
                    let path = self.run.partial_path(ckpt).join(image_name(rank.0)).display().to_string();
                    let path = match (&mut *self.burst, self.links.get(&conn)) {
                        (Some(b), Some(Link::Own { .. })) => b.snapshot(conn, path),
                        // A relay has a disk of its own.
                        _ => path,
                    };
                    self.send(conn, ToRank::Snapshot { path, direct, seed });
                }
                Action::Close(conn) => {
                    self.links.remove(&conn);
                }
                Action::Prepare => self.order(Order::Prepare),
                Action::Commit { ckpt, size, images, finished, measures } => {
                    let incarnation = self.coord.incarnation();
                    self.order(Order::Commit { ckpt, incarnation, size, images, finished, measures });
                }
                Action::Discard(ckpt) => self.order(Order::Discard(ckpt)),
                Action::Over(ckpt) => {
                    self.burst.iter_mut().for_each(|b| b.over(ckpt));
                    self.relays.values().for_each(|r| drop(r.to.send(ToRelay::Over(ckpt.0))));
                }
                Action::Answer(conn, result) => self.answer(conn, result),
                Action::Outcome => self.store.note(self.coord.outcome().clone()),
            }
        }
        self.log(before);
    }

    fn answer(&self, conn: Conn, result: Outcome) {
        self.reply(conn, Reply::Checkpoint(result));
    }

    fn order(&self, order: Order) {
        self.store.order(order);
    }

    fn log(&self, before: (u64, u64)) {
        let after = self.coord.status_counts();
        if after == before {
            return;
        }
        let s = self.coord.status();
        if let (true, Some(m)) = (after.0 > before.0, s.last) {
            tracing::info!(
                "checkpoint {} committed: {} bytes, held {} us, stopped {} us, written after {} ms",
                m.ckpt,
                m.bytes,
                m.held_ns / 1000,
                m.stopped_ns / 1000,
                m.total_ns / 1_000_000
            );
            if let Some(next) = self.coord.found_interval() {
                tracing::info!("the next one in {} ms", next / 1_000_000);
            }
        } else {
            tracing::info!("checkpoint given up: {}", s.last_reasons.join("; "));
        }
    }
}
