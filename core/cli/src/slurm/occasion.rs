//! Checkpoints on an occasion: `--ckpt-on=timelimit` takes one before the job's time is over, ends the step with it, and has a
//! batch job requeued, where it goes on.
//!
//! What a reader would get wrong: the time left is asked for again and again, because it can be changed while the job runs;
//! as a duration, because Slurm prints points in time without their zone. `preempt` is not heard of here: Slurm tells the tasks
//! alone. Runs *next door*.

use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use stillpoint_coord::message::Outcome;

use crate::checkpoint;
use crate::error::chain;
use crate::home::Job;
use crate::run::say;
use crate::slurm::job::Ask;
use crate::talk;

/// What ends a step, beside the write itself: the agents, srun, and the requeue.
const MARGIN: Duration = Duration::from_secs(20);
/// Before anything is known of how long a checkpoint takes.
const FIRST: Duration = Duration::from_secs(60);

/// `[[D-]HH:]MM:SS`, as `squeue -o %L` has it. `None`: no limit.
fn left(text: &str) -> Option<Duration> {
    let (days, clock) = match text.trim().split_once('-') {
        Some((d, c)) => (d.parse::<u64>().ok()?, c),
        None => (0, text.trim()),
    };
    let parts: Option<Vec<u64>> = clock.split(':').map(|p| p.parse().ok()).collect();
    let seconds = match *parts?.as_slice() {
        [m, s] => m * 60 + s,
        [h, m, s] => (h * 60 + m) * 60 + s,
        _ => return None,
    };
    Some(Duration::from_secs(days * 86400 + seconds))
}

/// How long before the end a checkpoint is begun: three times what the last one took.
fn lead(last: Option<Duration>) -> Duration {
    last.map_or(FIRST, |t| t * 3) + MARGIN
}

/// When to look again: the limit may be changed, but not every second somebody does.
fn next_look(left: Duration, lead: Duration) -> Duration {
    (left.saturating_sub(lead) / 2).clamp(Duration::from_secs(1), Duration::from_secs(300))
}

/// Watches the time limit of one job.
pub(crate) struct TimeLimit<'a> {
    job: &'a Job,
    ask: Ask<'a>,
    json: bool,
    look_at: Instant,
    asked: Option<Receiver<Outcome>>,
    /// The step was to be ended by its checkpoint.
    pub(crate) due: bool,
}

impl<'a> TimeLimit<'a> {
    pub(crate) fn new(job: &'a Job, ask: Ask<'a>, json: bool) -> Self {
        TimeLimit { job, ask, json, look_at: Instant::now(), asked: None, due: false }
    }

    /// To be called each second; `id`: Slurm's number of the job, once it is known.
    pub(crate) fn tick(&mut self, id: Option<&str>) {
        if let Some(Ok(Err(reasons))) = self.asked.as_ref().map(Receiver::try_recv) {
            let text = format!(
                "run {}: no checkpoint before the time limit, the last commit stands: {}",
                self.job.name,
                reasons.join("; ")
            );
            say(self.json, "timelimit", self.job, &text);
            self.asked = None;
        }
        let (Some(id), false) = (id.filter(|_| Instant::now() >= self.look_at), self.due) else { return };
        let Some(left) = (self.ask)("squeue", &["-h", "-j", id, "-o", "%L"]).ok().and_then(|t| left(&t))
        else {
            self.look_at = Instant::now() + Duration::from_secs(300);
            return;
        };
        let last = talk::status(self.job).ok().and_then(|s| s.last).map(|m| Duration::from_nanos(m.total_ns));
        let lead = lead(last);
        if left > lead {
            self.look_at = Instant::now() + next_look(left, lead);
            return;
        }
        self.due = true;
        say(
            self.json,
            "timelimit",
            self.job,
            &format!("run {}: {} s to the time limit; a checkpoint is taken", self.job.name, left.as_secs()),
        );
        let (to, from) = channel();
        let job = self.job.clone();
        std::thread::spawn(move || {
            to.send(checkpoint::ask(&job, true).unwrap_or_else(|e| Err(vec![chain(&e)])))
        });
        self.asked = Some(from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left() {
        let s = Duration::from_secs;
        assert_eq!(
            (left("9:59"), left("1:00:00\n"), left("2-00:00:01")),
            (Some(s(599)), Some(s(3600)), Some(s(172_801)))
        );
        for no in ["UNLIMITED", "INVALID", "", "NOT_SET", "1"] {
            assert_eq!(left(no), None, "{no}");
        }
    }

    #[test]
    fn begun_in_time_and_looked_at_seldom() {
        let s = Duration::from_secs;
        assert_eq!((lead(None), lead(Some(s(10)))), (s(80), s(50)));
        assert_eq!(next_look(s(36000), s(50)), s(300));
        assert_eq!(next_look(s(150), s(50)), s(50));
        assert_eq!(next_look(s(50), s(50)), s(1));
    }
}
