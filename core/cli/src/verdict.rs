//! The verdict on how one start ended, from what the agent knows and how the launcher ended. Pure.
//!
//! What a reader would get wrong: the launcher's exit status alone does not tell a lost rank from a result; the agent's
//! outcome does. Only a rank that went away without goodbye is a loss; MPI_Abort and a non-zero exit are results.
//! Runs *next door*.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use stillpoint_coord::message::JobOutcome;

/// How one start ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The application's own result.
    Ended(u8),
    /// Ranks were lost; the launcher ended with this status.
    Lost(Vec<u32>, u8),
    /// A checkpoint ended the job.
    Stopped(u64),
    /// The user ended it.
    Interrupted(u8),
}

/// Exit status as the shell counts it: 128 and the signal's number for a death by signal.
pub(crate) fn code(status: ExitStatus) -> u8 {
    let c = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(c & 0xff).unwrap_or(255)
}

/// Whether the launcher's status is one that a rank has given itself. The launcher ends the other ranks then, and the agent
/// may hear of such an end before the goodbye that was its cause: the two come over different connections.
pub(crate) fn is_result(o: &JobOutcome, status: u8) -> bool {
    let mut given = o.abort.iter().chain(&o.exited).map(|(_, c)| c & 0xff);
    status != 0 && given.any(|c| c == i32::from(status))
}

/// A rank was killed, and what others then gave up with is no result. Of Open MPI's mpirun only: its status is that of the first to
/// end badly, and it ends the others by SIGTERM, of which the agent is told: one that is lost without that word was killed
/// before, as the agent says, or as the status does where the agent has heard of the others first. Where both have, the launcher too, it was
/// lost at nearly the same time.
pub(crate) fn died_first(o: &JobOutcome, status: u8) -> bool {
    let says_status = status > 128 && !o.lost.is_empty() && !is_result(o, status);
    says_status || o.restart && o.is_cut_down() || o.abort.is_none() && !o.silent.is_empty()
}

/// The verdict, from what the agent knows, the launcher's exit status and the signal that we were sent, if any.
pub(crate) fn judge(outcome: Option<&JobOutcome>, status: u8, signal: Option<u8>) -> Verdict {
    if let Some(ckpt) = outcome.and_then(|o| o.stopped_at) {
        return Verdict::Stopped(ckpt);
    }
    if let Some(s) = signal {
        return if status == 0 { Verdict::Ended(0) } else { Verdict::Interrupted(128 + s) };
    }
    match outcome {
        Some(o) if o.restart && !is_result(o, status) => {
            Verdict::Lost(o.lost.clone(), if status == 0 { 1 } else { status })
        }
        // Others were away when it was asked, and the agent had not judged yet.
        Some(o)
            if status != 0
                && !o.ended
                && !o.lost.is_empty()
                && o.abort.is_none()
                && o.exited.iter().all(|(_, c)| c & 0xff == 0) =>
        {
            Verdict::Lost(o.lost.clone(), status)
        }
        // A launcher may end with 0 although a rank did not.
        Some(o) if status == 0 => {
            let failed = o.abort.into_iter().chain(o.exited.iter().copied()).find(|(_, c)| c & 0xff != 0);
            Verdict::Ended(failed.map_or(0, |(_, c)| (c & 0xff) as u8))
        }
        // The agent is gone and cannot tell. A rank that a signal has ended is lost, as it would have said.
        o if status > 128
            && !o.is_some_and(|o| {
                o.ended || o.abort.is_some() || o.exited.iter().any(|(_, c)| c & 0xff != 0)
            }) =>
        {
            Verdict::Lost(vec![], status)
        }
        _ => Verdict::Ended(status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_loss_restarts() {
        let o = JobOutcome::default();
        assert_eq!(judge(None, 3, None), Verdict::Ended(3));
        assert_eq!(judge(Some(&o), 0, None), Verdict::Ended(0));
        let lost = JobOutcome { lost: vec![2], restart: true, ..o.clone() };
        assert_eq!(judge(Some(&lost), 137, None), Verdict::Lost(vec![2], 137));
        assert_eq!(judge(Some(&lost), 0, None), Verdict::Lost(vec![2], 1));
        assert_eq!(judge(Some(&lost), 130, Some(2)), Verdict::Interrupted(130));
        let abort = JobOutcome { abort: Some((1, 9)), lost: vec![0], ..o.clone() };
        assert_eq!(judge(Some(&abort), 9, None), Verdict::Ended(9));
        let late = JobOutcome { abort: Some((1, 7)), ..lost.clone() };
        assert_eq!(judge(Some(&late), 7, None), Verdict::Ended(7), "heard of the abort after what it did");
        assert_eq!(judge(Some(&late), 137, None), Verdict::Lost(vec![2], 137), "an abort because of a loss");
        let failed = JobOutcome { exited: vec![(0, 0), (1, 5)], ..o.clone() };
        assert_eq!(judge(Some(&failed), 0, None), Verdict::Ended(5));
        assert_eq!(judge(None, 137, None), Verdict::Lost(vec![], 137), "agent and rank are gone");
        let result = JobOutcome { ended: true, ..o.clone() };
        assert_eq!(judge(Some(&result), 137, None), Verdict::Ended(137));
        let away = JobOutcome { lost: vec![0], exited: vec![(1, 0)], ..o.clone() };
        assert_eq!(
            judge(Some(&away), 1, None),
            Verdict::Lost(vec![0], 1),
            "not judged yet, as another is away"
        );
        let stopped = JobOutcome { stopped_at: Some(8), ..o };
        assert_eq!(judge(Some(&stopped), 143, None), Verdict::Stopped(8));
    }

    #[test]
    fn a_rank_that_gives_up_because_another_was_killed_has_no_result() {
        let o = JobOutcome { lost: vec![2, 1], exited: vec![(0, 1)], ended: true, ..JobOutcome::default() };
        assert!(died_first(&o, 137));
        assert!(!died_first(&o, 1), "its own status: the others were ended because of it");
        let silent = JobOutcome { silent: vec![2], ..o.clone() };
        assert!(died_first(&silent, 1), "nobody had told one of them");
        assert!(!died_first(&JobOutcome { abort: Some((0, 1)), ..silent }, 1));
        let judged = JobOutcome { restart: true, ..o.clone() };
        assert!(died_first(&judged, 1), "the agent has heard of the loss first");
        assert!(!died_first(&JobOutcome { told: vec![1, 2], ..judged }, 1), "they were ended because of it");
        assert!(!died_first(&JobOutcome { exited: vec![(0, 137)], ..o.clone() }, 137));
        assert!(!died_first(&JobOutcome { lost: vec![], ..o }, 137));
    }

    #[test]
    fn exit_status_as_the_shell_counts() {
        assert_eq!(code(ExitStatus::from_raw(5 << 8)), 5);
        assert_eq!(code(ExitStatus::from_raw(9)), 137);
    }
}
