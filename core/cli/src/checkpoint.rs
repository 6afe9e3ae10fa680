//! `checkpoint`: asks the agent for one, shows the stages while it is taken (on a terminal), and returns when it is
//! durable. When it was refused, the reasons are printed, a line each. Runs *next door*.
//!
//! What a reader would get wrong: a job whose ranks are only just coming is waited for, so that a script may ask right after
//! it has started one; a job that is short of a rank for any other reason is not.

use std::io::{IsTerminal, stderr};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use stillpoint_coord::message::Outcome;

use crate::error::Error;
use crate::home::{Home, Job};
use crate::talk;

/// How long a job may take to begin.
const BEGINNING: Duration = Duration::from_secs(10);

/// Whether this reason (the coordinator's or a rank's own words) is only that somebody has not come yet.
fn is_early(reason: &str) -> bool {
    [
        "no rank has connected yet",
        " has not connected",
        " is still being restarted",
        ": the program has not begun",
    ]
    .iter()
    .any(|end| reason.ends_with(end))
}

pub(crate) fn ask(job: &Job, stop: bool) -> Result<Outcome, Error> {
    let until = Instant::now() + BEGINNING;
    loop {
        let result = talk::checkpoint(job, stop)?;
        let early = result.as_ref().err().is_some_and(|reasons| reasons.iter().all(|r| is_early(r)));
        if !early || Instant::now() >= until {
            return Ok(result);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub(crate) fn checkpoint(home: &Home, name: &str, stop: bool, json: bool) -> Result<u8, Error> {
    let job = home.job(name)?;
    let show = stderr().is_terminal() && !json;
    let (done, wait) = channel::<()>();
    let shown = job.clone();
    let progress = show.then(|| {
        std::thread::spawn(move || {
            let mut last = String::new();
            while wait.recv_timeout(Duration::from_millis(200)) == Err(RecvTimeoutError::Timeout) {
                let Ok(s) = talk::status(&shown) else { break };
                if s.stage != last {
                    eprintln!("stillpoint: checkpoint {}: {}", s.ckpt, s.stage.escape_debug());
                    last = s.stage;
                }
            }
        })
    });
    let result = ask(&job, stop);
    drop(done);
    if let Some(p) = progress {
        let _ = p.join();
    }
    match result? {
        Ok(id) => {
            if json {
                println!("{}", serde_json::json!({ "job": job.name, "checkpoint": id, "stopped": stop }));
            } else {
                println!("{id}");
            }
            Ok(0)
        }
        Err(reasons) => {
            if json {
                println!("{}", serde_json::json!({ "job": job.name, "refused": reasons }));
            } else {
                eprintln!("stillpoint: no checkpoint was taken; the job runs on");
                for r in reasons {
                    eprintln!("  {}", r.escape_debug());
                }
            }
            Ok(1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_job_that_begins_is_waited_for() {
        assert!(is_early("no rank has connected yet") && is_early("rank 1 has not connected"));
        assert!(is_early("rank 1 is still being restarted") && is_early("rank 0: the program has not begun"));
        assert!(!is_early("rank 1 is lost") && !is_early("every rank has finished"));
    }
}
