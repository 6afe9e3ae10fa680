//! How one start under Slurm ended, and what is to be done about it: pure functions of what was seen.
//!
//! | measured on Slurm 22.05 | status of srun | state of the job right after |
//! | --- | --- | --- |
//! | a task killed, or `scancel -s KILL JOB.STEP` | 137 | RUNNING; srun's own job: FAILED |
//! | `scancel JOB.STEP` | 137 | RUNNING; srun's own job: COMPLETING, then FAILED |
//! | `scancel -s USR1 JOB.STEP` | 138 | RUNNING; srun's own job: FAILED |
//! | `scancel JOB` | 143, or 137 if a task does not obey | COMPLETING with reason None, then CANCELLED |
//! | `scontrol requeue JOB` | 143 | COMPLETING, then PENDING |
//! | a node failed | 143, 0 if there was no other | COMPLETING with reason NodeDown, then NODE_FAIL; with `--no-kill` 137 or 0, and RUNNING |
//! | the time of `srun --time` in an allocation is over | 143, or 137 | RUNNING |
//! | preempted, at the end of the grace | 143 | RUNNING with a PreemptTime in the grace, then COMPLETING without it, then PENDING |
//!
//! What a reader would get wrong: nothing that srun or slurmctld say afterwards tells `scancel JOB.STEP` from a crash. The
//! accounting data base does where there is one, and a mark in the run directory that `scancel` leaves when it is ours.
//! Runs *next door*.

use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use stillpoint_coord::message::JobOutcome;

use crate::verdict::{self, Verdict};

/// A ^C longer ago than this did not end the step: srun asks for two within a second.
const INTERRUPT: Duration = Duration::from_secs(10);
/// Restarts in a row without a checkpoint in between.
pub(crate) const IN_A_ROW: u32 = 3;
/// How long Slurm may take to find out that a node is dead, and refuse or lose what is started on it.
const BLIND: Duration = Duration::from_secs(15 * 60);
/// And to clean up behind a step, once it has.
const CLEAN: Duration = Duration::from_secs(60);

/// What is known when srun has ended.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) outcome: Option<JobOutcome>,
    /// srun's exit status.
    pub(crate) status: u8,
    /// Signals that we have heard, and how long ago.
    pub(crate) signals: Vec<(i32, Duration)>,
    /// Somebody else's allocation, in which other steps may follow.
    pub(crate) in_allocation: bool,
    /// State of the job; `None`: Slurm does not tell.
    pub(crate) state: Option<String>,
    /// And why.
    pub(crate) reason: Option<String>,
    /// The grace of a preempted job runs.
    pub(crate) preempted: bool,
    /// It was preempted, and asked for a checkpoint instead of being told to end: the number of the first one since.
    pub(crate) warned: Option<u64>,
    /// The step's own time limit has passed.
    pub(crate) time_over: bool,
    /// A node of the step is down.
    pub(crate) node_gone: bool,
    /// `scancel` has cancelled the step.
    pub(crate) cancelled: bool,
    /// Task 0 has come to life.
    pub(crate) started: bool,
}

/// How a start ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The application's own result.
    Ended(u8),
    /// A checkpoint ended it.
    Stopped(u64),
    /// Somebody ended it, or Slurm on somebody's behalf.
    Interrupted(u8),
    /// Ranks were lost, with a node or without.
    Lost { ranks: Vec<u32>, status: u8, node: bool },
    /// srun could not start it.
    NotStarted(u8),
}

/// Whether somebody has ended the step by a signal: to us, or to the tasks (`scancel -s USR1`), which no failure sends.
fn by_signal(signals: &[(i32, Duration)], status: u8) -> bool {
    let to_us = signals.iter().any(|(s, age)| match *s {
        SIGTERM | SIGHUP | SIGQUIT => true,
        SIGINT => *age <= INTERRUPT,
        s => i32::from(status) == 128 + s,
    });
    to_us || [SIGUSR1, SIGUSR2].iter().any(|s| i32::from(status) == 128 + s)
}

/// States of an allocation in which its steps run on.
fn runs_on(state: &str) -> bool {
    ["RUNNING", "SUSPENDED", "STOPPED", "CONFIGURING", "RESIZING"].contains(&state)
}

/// Whether the ranks themselves have said how they ended, all of them, and srun says the same.
pub(crate) fn is_sure(f: &Facts) -> bool {
    f.outcome.as_ref().is_some_and(|o| o.ended && (!o.restart || verdict::is_result(o, f.status)))
}

pub(crate) fn judge(f: &Facts) -> End {
    let o = f.outcome.as_ref();
    if let Some(ckpt) = o.and_then(|o| o.stopped_at) {
        return End::Stopped(ckpt);
    }
    let state = f.state.as_deref();
    // Also with status 0: a program may end well because it was told to, and has to go on after a requeue.
    if f.in_allocation && state.is_some_and(|s| !runs_on(s)) {
        return End::Interrupted(f.status);
    }
    if by_signal(&f.signals, f.status) || f.cancelled {
        return if f.status == 0 { End::Ended(0) } else { End::Interrupted(f.status) };
    }
    // Of a job that srun has made for this step alone, the state tells more.
    let own = state.filter(|_| !f.in_allocation);
    if own.is_some_and(|s| ["CANCELLED", "TIMEOUT", "DEADLINE", "PREEMPTED", "REVOKED"].contains(&s)) {
        return End::Interrupted(f.status);
    }
    // A job that cannot be cleaned up in time hides its state, but not why it has ended.
    let hidden = own == Some("COMPLETING");
    if hidden && f.reason.as_deref() == Some("None") && f.status != 0 && !is_sure(f) {
        return End::Interrupted(f.status);
    }
    // Who was told to end may end well without having reached the end; the requeue goes on with what is lost.
    if f.preempted && (f.warned.is_none() || !is_sure(f)) {
        return End::Interrupted(f.status);
    }
    // With its only node gone, srun has no status of any task, and says 0.
    let node = f.node_gone
        || hidden && f.reason.as_deref() == Some("NodeDown")
        || state.is_some_and(|s| ["NODE_FAIL", "BOOT_FAIL"].contains(&s));
    if node && !is_sure(f) {
        return End::Lost { ranks: o.map_or(vec![], |o| o.lost.clone()), status: f.status.max(1), node };
    }
    // Only what has started can have a result.
    if f.status != 0 && o.is_none() && !f.started {
        return End::NotStarted(f.status);
    }
    match verdict::judge(o, f.status, None) {
        Verdict::Ended(s) => End::Ended(s),
        Verdict::Stopped(ckpt) => End::Stopped(ckpt),
        Verdict::Interrupted(s) => End::Interrupted(s),
        Verdict::Lost(_, status) if f.time_over && !node => End::Interrupted(status),
        Verdict::Lost(ranks, status) => End::Lost { ranks, status, node },
    }
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// From the newest sound checkpoint; with `scratch`, from the beginning if there is none.
    Restart { scratch: bool },
    /// Once more, from where the last start should have begun, after a pause.
    Again,
    /// End with this status.
    End(u8),
}

/// What has been before this start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Before {
    /// Restarts since the last commit.
    pub(crate) in_a_row: u32,
    /// Since ranks were lost last.
    pub(crate) since_loss: Option<Duration>,
    /// Slurm had noticed then that a node was gone.
    pub(crate) noticed: bool,
}

/// From the end of a start to what follows. What a program without any checkpoint has done is not done once more, unless it
/// was a node that failed: it would fail again.
pub(crate) fn next(end: &End, before: Before) -> Next {
    match end {
        End::Ended(s) | End::Interrupted(s) => Next::End(*s),
        // 128 + SIGTERM: what stands behind `&&` in a script is for a step that has reached its end.
        End::Stopped(_) => Next::End(143),
        End::NotStarted(s) => match before.since_loss {
            Some(t) if t < if before.noticed { CLEAN } else { BLIND } => Next::Again,
            _ => Next::End(*s),
        },
        End::Lost { status, .. } if before.in_a_row >= IN_A_ROW => Next::End(*status),
        End::Lost { node, .. } => Next::Restart { scratch: *node },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_job(status: u8, state: &str) -> Facts {
        let state = Some(state.to_owned());
        Facts { status, state, in_allocation: true, started: true, ..Facts::default() }
    }
    fn own(status: u8, state: &str) -> Facts {
        Facts { in_allocation: false, ..in_job(status, state) }
    }
    fn lost() -> Option<JobOutcome> {
        Some(JobOutcome { lost: vec![1], restart: true, ended: true, ..JobOutcome::default() })
    }
    fn gone(node: bool, status: u8) -> End {
        End::Lost { ranks: vec![1], status, node }
    }

    #[test]
    fn a_lost_rank_restarts_in_the_allocation() {
        let f = Facts { outcome: lost(), ..in_job(137, "RUNNING") };
        assert_eq!(judge(&f), gone(false, 137));
        assert_eq!(judge(&Facts { node_gone: true, ..f.clone() }), gone(true, 137));
        assert_eq!(judge(&Facts { cancelled: true, ..f.clone() }), End::Interrupted(137));
        assert_eq!(judge(&Facts { status: 138, ..f.clone() }), End::Interrupted(138));
        let usr1 = Facts { signals: vec![(SIGUSR1, Duration::ZERO)], ..f.clone() };
        assert_eq!(judge(&usr1), gone(false, 137), "a signal that the program has taken");
        let long_ago = Facts { signals: vec![(SIGINT, INTERRUPT * 2)], ..f.clone() };
        assert_eq!(judge(&long_ago), gone(false, 137));
        let just_now = Facts { signals: vec![(SIGINT, INTERRUPT / 2)], ..f };
        assert_eq!(judge(&just_now), End::Interrupted(137));
    }

    #[test]
    fn a_job_that_is_over_restarts_nothing_and_has_no_result() {
        for state in ["COMPLETING", "CANCELLED", "PENDING", "NODE_FAIL", "TIMEOUT", "PREEMPTED"] {
            let f = Facts { outcome: lost(), ..in_job(143, state) };
            assert_eq!(judge(&f), End::Interrupted(143), "{state}");
            let told = Facts { signals: vec![(SIGTERM, Duration::ZERO)], ..in_job(0, state) };
            assert_eq!(judge(&told), End::Interrupted(0), "{state}: it ended well because it was told to");
            assert_eq!(judge(&in_job(0, state)), End::Interrupted(0), "{state}");
        }
    }

    #[test]
    fn sruns_own_job() {
        assert_eq!(judge(&Facts { outcome: lost(), ..own(143, "NODE_FAIL") }), gone(true, 143));
        let dead = End::Lost { ranks: vec![], status: 143, node: true };
        assert_eq!(judge(&own(143, "NODE_FAIL")), dead, "agent and node are gone");
        assert_eq!(judge(&Facts { outcome: lost(), ..own(137, "FAILED") }), gone(false, 137));
        assert_eq!(judge(&Facts { outcome: lost(), ..own(143, "CANCELLED") }), End::Interrupted(143));
        assert_eq!(judge(&Facts { outcome: lost(), ..own(143, "TIMEOUT") }), End::Interrupted(143));
        assert_eq!(judge(&own(0, "COMPLETED")), End::Ended(0));
        let dead = End::Lost { ranks: vec![], status: 1, node: true };
        assert_eq!(judge(&own(0, "NODE_FAIL")), dead, "nobody was left to tell a status");
        let good = JobOutcome { exited: vec![(0, 0)], ended: true, ..JobOutcome::default() };
        assert_eq!(judge(&Facts { outcome: Some(good), ..own(0, "NODE_FAIL") }), End::Ended(0));
        let result = JobOutcome { exited: vec![(0, 3)], ended: true, ..JobOutcome::default() };
        assert_eq!(judge(&Facts { outcome: Some(result), ..own(3, "FAILED") }), End::Ended(3));
        let abort = JobOutcome { abort: Some((1, 9)), ended: true, ..JobOutcome::default() };
        assert_eq!(judge(&Facts { outcome: Some(abort), ..own(9, "COMPLETING") }), End::Ended(9));
        let stopped = JobOutcome { stopped_at: Some(4), ..JobOutcome::default() };
        let term = vec![(SIGTERM, Duration::ZERO)];
        let f = Facts { outcome: Some(stopped), signals: term.clone(), ..own(143, "CANCELLED") };
        assert_eq!(judge(&f), End::Stopped(4));
        assert_eq!(judge(&Facts { signals: term, ..own(137, "COMPLETED") }), End::Interrupted(137));
    }

    #[test]
    fn a_job_that_is_long_in_completing() {
        let f = Facts { outcome: lost(), reason: Some("None".into()), ..own(137, "COMPLETING") };
        assert_eq!(judge(&f), End::Interrupted(137), "scancel of tasks that do not obey");
        assert_eq!(judge(&Facts { status: 143, ..f.clone() }), End::Interrupted(143));
        assert_eq!(judge(&Facts { reason: Some("JobLaunchFailure".into()), ..f.clone() }), gone(false, 137));
        assert_eq!(judge(&Facts { reason: Some("NodeDown".into()), ..f.clone() }), gone(true, 137));
        let result = JobOutcome { exited: vec![(0, 3)], ended: true, ..JobOutcome::default() };
        assert_eq!(judge(&Facts { outcome: Some(result), status: 3, ..f }), End::Ended(3));
    }

    #[test]
    fn the_time_of_the_step_is_over() {
        let f = Facts { outcome: lost(), time_over: true, ..in_job(143, "RUNNING") };
        assert_eq!(judge(&f), End::Interrupted(143));
        assert_eq!(judge(&Facts { node_gone: true, ..f.clone() }), gone(true, 143));
        let result = JobOutcome { exited: vec![(0, 3)], ended: true, ..JobOutcome::default() };
        assert_eq!(judge(&Facts { outcome: Some(result), status: 3, ..f }), End::Ended(3));
    }

    #[test]
    fn in_the_grace_of_a_preempted_job() {
        let good = Some(JobOutcome { exited: vec![(0, 0)], ended: true, ..JobOutcome::default() });
        let told = Facts { outcome: good, preempted: true, ..in_job(0, "RUNNING") };
        assert_eq!(judge(&told), End::Interrupted(0), "a SIGTERM may have ended it");
        let warned = Facts { warned: Some(3), ..told };
        assert_eq!(judge(&warned), End::Ended(0), "by itself");
        assert_eq!(judge(&Facts { outcome: None, ..warned.clone() }), End::Interrupted(0), "nobody knows");
        let f = Facts { outcome: lost(), status: 137, ..warned.clone() };
        assert_eq!(judge(&f), End::Interrupted(137), "the requeue goes on");
        let stopped = JobOutcome { stopped_at: Some(4), ..JobOutcome::default() };
        assert_eq!(judge(&Facts { outcome: Some(stopped), ..warned }), End::Stopped(4));
    }

    #[test]
    fn what_follows() {
        let none = Before::default();
        assert_eq!(next(&End::Ended(3), none), Next::End(3));
        assert_eq!(next(&End::Stopped(1), none), Next::End(143));
        assert_eq!(next(&gone(false, 137), none), Next::Restart { scratch: false });
        assert_eq!(next(&gone(true, 137), none), Next::Restart { scratch: true });
        assert_eq!(next(&gone(true, 137), Before { in_a_row: IN_A_ROW, ..none }), Next::End(137));
        let f = Facts { started: false, ..in_job(1, "RUNNING") };
        assert_eq!(judge(&f), End::NotStarted(1));
        assert_eq!(next(&End::NotStarted(1), none), Next::End(1));
        let soon = Before { since_loss: Some(Duration::from_secs(5)), ..none };
        assert_eq!(next(&End::NotStarted(1), soon), Next::Again);
        let noticed = Before { since_loss: Some(CLEAN), noticed: true, ..none };
        assert_eq!(next(&End::NotStarted(1), noticed), Next::End(1), "there are not nodes enough");
        let late = Before { since_loss: Some(BLIND), ..none };
        assert_eq!(next(&End::NotStarted(1), late), Next::End(1));
    }
}
