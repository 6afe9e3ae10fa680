//! The threads that drive the store: one for checkpoints, in the order of the orders, and one that writes down how ranks ended.
//! Runs *next door*.
//!
//! What a reader would get wrong: the loop never waits for a disk; a commit's answer comes back as an event, and the old
//! checkpoints are forgotten after that answer. A goodbye that only this agent has heard is in no other place than outcome.json,
//! so its record does not wait behind a commit: without it the agent that follows takes the rank for lost.

use crate::conn::Input;
use crossbeam::channel::{Sender, unbounded};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};
use stillpoint_abi::ids::{CkptId, Rank};
use stillpoint_coord::message::{JobOutcome, Measures};
use stillpoint_coord::state::{Event, Image, seed};
use stillpoint_net::roots::Roots;
use stillpoint_storage::StoreError;
use stillpoint_storage::commit::image_name;
use stillpoint_storage::manifest::{Entry, Finished, Manifest, VERSION, hex};
use stillpoint_storage::run::RunDir;

/// What the loop wants of the store's first thread.
#[derive(Debug)]
pub(crate) enum Order {
    Prepare,
    Commit {
        ckpt: CkptId,
        incarnation: u32,
        size: u32,
        images: Vec<Image>,
        finished: Vec<(Rank, i32)>,
        measures: Measures,
    },
    Discard(CkptId),
    /// Has a later root been claimed?
    Look,
    Restarted(Restarted),
}

/// A restart, for the history.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Restarted {
    pub(crate) incarnation: u32,
    pub(crate) ranks: u32,
    /// From the agent's start, which is the first rank's, until the ranks run on.
    pub(crate) restart_ns: u64,
}

/// The threads, for those who order.
#[derive(Debug)]
pub(crate) struct Store {
    /// None once they have ended.
    to: Option<(Sender<Order>, Sender<JobOutcome>)>,
    threads: Vec<JoinHandle<()>>,
}

impl Store {
    pub(crate) fn start(run: RunDir, claim: Option<(Roots, u32)>, keep: usize, to: Sender<Input>) -> Store {
        let (order, orders) = unbounded();
        let (outcome, outcomes) = unbounded();
        let (also, its, there) = (run.clone(), claim.clone(), to.clone());
        let checkpoints = std::thread::spawn(move || {
            for order in orders {
                obey(&run, claim.as_ref(), keep, order, &to);
            }
        });
        let ends = std::thread::spawn(move || {
            while let Ok(first) = outcomes.recv() {
                // Each says all that the ones before have said.
                let latest = outcomes.try_iter().last().unwrap_or(first);
                write_down(&also, its.as_ref(), &latest, &there);
            }
        });
        Store { to: Some((order, outcome)), threads: vec![checkpoints, ends] }
    }

    pub(crate) fn order(&self, order: Order) {
        if let Some((orders, _)) = &self.to {
            let _ = orders.send(order);
        }
    }

    /// Writes down how the job has ended, as far as it has.
    pub(crate) fn note(&self, outcome: JobOutcome) {
        if let Some((_, outcomes)) = &self.to {
            let _ = outcomes.send(outcome);
        }
    }

    /// Obeys what was ordered, then ends: nothing is written after this.
    pub(crate) fn finish(&mut self) {
        self.to = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// INV-4: only the newest root of the newest start commits.
fn is_current(run: &RunDir, claim: Option<&(Roots, u32)>, incarnation: u32) -> Result<(), StoreError> {
    let claimed = run.incarnation()?;
    if claimed > incarnation {
        // It has chosen its checkpoint.
        return Err(StoreError::Superseded(format!("incarnation {claimed} was claimed")));
    }
    match claim.map(|(roots, mine)| roots.number().map(|n| (n, *mine))) {
        Some(Ok((newest, mine))) if newest > mine => {
            Err(StoreError::Superseded(format!("agent {newest} is the root")))
        }
        Some(Err(e)) => Err(StoreError::Superseded(format!("cannot see who is the root: {}", chain(&e)))),
        _ => Ok(()),
    }
}

fn obey(run: &RunDir, claim: Option<&(Roots, u32)>, keep: usize, order: Order, to: &Sender<Input>) {
    let answer = |event| {
        let _ = to.send(Input::Event(event));
    };
    match order {
        Order::Prepare => answer(Event::Prepared(run.begin().map_err(|e| chain(&e)))),
        Order::Commit { ckpt, incarnation, size, images, finished, measures } => {
            let manifest = manifest(ckpt, incarnation, size, &images, &finished, &measures);
            let result = run.commit_if(&manifest, || is_current(run, claim, incarnation));
            let result = result.map_err(|e| chain(&e));
            let failed = result.is_err();
            if !failed {
                note(run, &measures);
            }
            answer(Event::Committed(result));
            if failed {
                look(claim, to);
            }
            let forgotten = if failed { run.discard(ckpt).map(|()| vec![]) } else { run.forget(keep, None) };
            if let Err(e) = forgotten {
                tracing::warn!("forget old checkpoints: {}", chain(&e));
            }
        }
        Order::Discard(ckpt) => {
            if let Err(e) = run.discard(ckpt) {
                tracing::warn!("discard checkpoint {ckpt}: {}", chain(&e));
            }
        }
        Order::Look => look(claim, to),
        Order::Restarted(line) => {
            note(run, &line);
            let told = claim.map(|(roots, mine)| roots.began(*mine, line.incarnation));
            if let Some(Err(e)) = told {
                tracing::warn!("tell others which start this is: {}", chain(&e));
            }
        }
    }
}

fn write_down(run: &RunDir, claim: Option<&(Roots, u32)>, outcome: &JobOutcome, to: &Sender<Input>) {
    if is_current(run, claim, outcome.incarnation).is_err() {
        return look(claim, to);
    }
    if let Err(e) = run.note_json("outcome.json", outcome) {
        tracing::warn!("record the outcome: {}", chain(&e));
    }
}

/// Tells the loop if a later root was claimed.
fn look(claim: Option<&(Roots, u32)>, to: &Sender<Input>) {
    if let Some((roots, mine)) = claim
        && roots.number().is_ok_and(|n| n > *mine)
    {
        let _ = to.send(Input::Superseded(*mine));
    }
}

fn note(run: &RunDir, line: &impl serde::Serialize) {
    if let Err(e) = run.add_history(line) {
        tracing::warn!("history: {}", chain(&e));
    }
}

fn manifest(
    ckpt: CkptId,
    incarnation: u32,
    size: u32,
    images: &[Image],
    finished: &[(Rank, i32)],
    m: &Measures,
) -> Manifest {
    let entry = |i: &Image| Entry {
        rank: i.rank.0,
        file: image_name(i.rank.0),
        file_len: i.file_len,
        bytes: i.bytes,
        xxh3: hex(u128::from_le_bytes(i.digest)),
    };
    Manifest {
        format: "stillpoint".into(),
        version: VERSION,
        ckpt: ckpt.0,
        incarnation,
        size,
        time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        mode: if m.direct { "direct" } else { "forked" }.into(),
        held_ns: m.held_ns,
        stopped_ns: m.stopped_ns,
        total_ns: m.total_ns,
        seed: format!("{:016x}", seed(incarnation, ckpt)),
        images: images.iter().map(entry).collect(),
        finished: finished.iter().map(|(r, status)| Finished { rank: r.0, status: *status }).collect(),
        xxh3: String::new(),
    }
}

/// An error with its causes, in one line.
pub(crate) fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut cause = e.source();
    while let Some(c) = cause {
        text.push_str(": ");
        text.push_str(&c.to_string());
        cause = c.source();
    }
    text
}
