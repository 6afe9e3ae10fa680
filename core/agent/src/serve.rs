//! The loop: inputs to the coordinator, its actions to sockets and store. Runs *next door*.
//!
//! What a reader would get wrong: an agent outlives its job by a while (`--linger`), because the next start of the job
//! may come; a hello that reaches an agent just ending sees its connection closed without a welcome, and tries again.

use crate::AgentError;
use crate::args::Args;
use crate::conn::{Input, Link, accept};
use crate::store::{Order, Restarted, start};
use crossbeam::channel::{RecvTimeoutError, Sender, unbounded};
use std::collections::BTreeMap;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};
use stillpoint_coord::message::{Command, FromAgent, FromRank, JobOutcome, Outcome, Reply, ToAgent, ToRank};
use stillpoint_coord::state::{Action, Conn, Coordinator, Event};
use stillpoint_storage::commit::image_name;
use stillpoint_storage::run::RunDir;

struct Agent<'a> {
    run: &'a RunDir,
    coord: Coordinator,
    links: BTreeMap<Conn, Link>,
    store: Sender<Order>,
    zero: Instant,
    idle_since: Instant,
    /// Ranks from an image have come, and were not told to run on yet.
    restored: std::cell::Cell<bool>,
}

/// Serves until the job has ended and some time has passed, or until told to end.
pub(crate) fn serve(run: &RunDir, args: &Args) -> Result<(), AgentError> {
    let io = |what| move |source| AgentError::Io { what, source };
    let Some(_lock) = run.lock()? else { return Ok(()) };
    // The socket's path may be longer than the kernel takes; its name is not.
    std::env::set_current_dir(run.path()).map_err(io("enter the run directory"))?;
    match std::fs::remove_file("agent.sock") {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io("remove the old socket")(e)),
        _ => {}
    }
    run.forget(usize::MAX, None)?;
    let listener = UnixListener::bind("agent.sock").map_err(io("listen"))?;
    let (to, inputs) = unbounded();
    accept(listener, to.clone());
    let (store, storing) = start(run.clone(), to);
    let zero = Instant::now();
    let mut coord = Coordinator::new(args.config.clone(), run.incarnation()?, 0);
    if let Ok(former) = run.read_json::<JobOutcome>("outcome.json") {
        coord.succeed(&former);
    }
    tracing::info!("listening; incarnation {}", coord.incarnation());
    let mut agent =
        Agent { run, coord, links: BTreeMap::new(), store, zero, idle_since: zero, restored: false.into() };
    loop {
        let now = agent.now();
        let mut wait = Duration::from_secs(1);
        if let Some(tick) = agent.coord.next_tick() {
            wait = wait.min(Duration::from_nanos(tick.saturating_sub(now)));
        }
        match inputs.recv_timeout(wait) {
            Ok(input) => {
                if let Some(asker) = agent.input(input) {
                    agent.coordinate(Event::Shutdown);
                    // Else they would take it for a death, and start another agent.
                    for conn in agent.coord.rank_conns() {
                        agent.send(conn, ToRank::Denied { reason: "the agent was told to end".into() });
                    }
                    if let Some(link) = agent.links.remove(&asker) {
                        link.send(FromAgent::Reply(Reply::Done));
                        link.finish();
                    }
                    break;
                }
            }
            Err(RecvTimeoutError::Timeout) => agent.coordinate(Event::Tick),
            Err(RecvTimeoutError::Disconnected) => break,
        }
        let patience =
            if agent.coord.ended() { args.linger } else { args.linger.max(Duration::from_secs(60)) };
        if agent.links.is_empty() && agent.idle_since.elapsed() > patience {
            break;
        }
    }
    let _ = std::fs::remove_file("agent.sock");
    for (_, link) in std::mem::take(&mut agent.links) {
        link.finish();
    }
    drop(agent);
    let _ = storing.join();
    tracing::info!("ended");
    Ok(())
}

impl Agent<'_> {
    fn now(&self) -> u64 {
        self.zero.elapsed().as_nanos() as u64
    }

    /// Takes one input. The connection that wants the agent to end, if one does.
    fn input(&mut self, input: Input) -> Option<Conn> {
        match input {
            Input::Opened(conn, link) => {
                self.links.insert(conn, link);
            }
            Input::Closed(conn) => {
                self.links.remove(&conn);
                self.idle_since = Instant::now();
                self.coordinate(Event::Closed(conn));
            }
            Input::Store(event) => self.coordinate(event),
            Input::Message(conn, ToAgent::Rank(message)) => {
                tracing::trace!("connection {conn}: {message:?}");
                if let FromRank::Hello { incarnation, restored, .. } = message {
                    self.restored.set(restored || self.restored.get());
                    // Claimed by a start whose ranks may not have come yet (INV-4).
                    let claimed = self.run.incarnation().unwrap_or(0);
                    if incarnation < claimed {
                        let reason = format!("incarnation {incarnation} is over, {claimed} was claimed");
                        self.send(conn, ToRank::Denied { reason });
                        self.links.remove(&conn);
                        return None;
                    }
                }
                self.coordinate(Event::Message(conn, message));
            }
            Input::Message(conn, ToAgent::Command(command)) => match command {
                Command::Status => self.reply(conn, Reply::Status(self.coord.status())),
                Command::Outcome => self.reply(conn, Reply::Outcome(self.coord.outcome().clone())),
                Command::Checkpoint { stop } => self.coordinate(Event::Request { token: conn, stop }),
                Command::Shutdown => return Some(conn),
            },
        }
        None
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
                Action::Answer(conn, result) => self.answer(conn, result),
                Action::Outcome => self.order(Order::Outcome(self.coord.outcome().clone())),
            }
        }
        self.log(before);
    }

    fn answer(&self, conn: Conn, result: Outcome) {
        self.reply(conn, Reply::Checkpoint(result));
    }

    fn order(&self, order: Order) {
        let _ = self.store.send(order);
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
        } else {
            tracing::info!("checkpoint given up: {}", s.last_reasons.join("; "));
        }
    }
}
