//! A question to the job's agent and its answer, over `agent.sock`. One connection a question, so that a long one (a
//! checkpoint) does not hold up another. Runs *next door*.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use stillpoint_coord::message::{
    Command, FromAgent, JobOutcome, JobStatus, Outcome, Reply, ToAgent, read, write,
};

use stillpoint_storage::run::RunDir;

use crate::error::Error;
use crate::home::Job;

fn connect(job: &Job) -> io::Result<UnixStream> {
    RunDir::open(&job.dir).map_err(io::Error::other)?.connect()
}

fn ask(job: &Job, command: Command, limit: Option<Duration>) -> Result<Reply, Error> {
    let mut s = connect(job).map_err(|source| Error::NotRunning { job: job.name.clone(), source })?;
    let timeouts = s.set_read_timeout(limit).and_then(|()| s.set_write_timeout(limit));
    timeouts.map_err(Error::io("use", &job.path("agent.sock")))?;
    write(&mut s, &ToAgent::Command(command)).map_err(Error::Talk)?;
    match read(&mut s).map_err(Error::Talk)? {
        FromAgent::Reply(r) => Ok(r),
        FromAgent::Rank(_) => Err(Error::Answer),
    }
}

const SOON: Option<Duration> = Some(Duration::from_secs(5));

pub(crate) fn status(job: &Job) -> Result<JobStatus, Error> {
    match ask(job, Command::Status, SOON)? {
        Reply::Status(s) => Ok(s),
        _ => Err(Error::Answer),
    }
}

/// Waits as long as the checkpoint takes: the agent has the time limits.
pub(crate) fn checkpoint(job: &Job, stop: bool) -> Result<Outcome, Error> {
    match ask(job, Command::Checkpoint { stop }, None)? {
        Reply::Checkpoint(o) => Ok(o),
        _ => Err(Error::Answer),
    }
}

pub(crate) fn outcome(job: &Job) -> Result<JobOutcome, Error> {
    match ask(job, Command::Outcome, SOON)? {
        Reply::Outcome(o) => Ok(o),
        _ => Err(Error::Answer),
    }
}

/// Ends the agent, if there is one, and waits until it is gone.
pub(crate) fn shutdown(job: &Job) {
    if ask(job, Command::Shutdown, SOON).is_err() {
        return;
    }
    let until = Instant::now() + Duration::from_secs(5);
    while connect(job).is_ok() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
}
