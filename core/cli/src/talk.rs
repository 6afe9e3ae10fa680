//! A question to the job's agent and its answer, over `agent.sock`. One connection a question, so that a long one (a
//! checkpoint) does not hold up another. Runs *next door*.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use stillpoint_coord::message::{
    Command, FromAgent, JobOutcome, JobStatus, Outcome, Reply, ToAgent, WireError, read, write,
};

use stillpoint_storage::run::RunDir;

use crate::error::Error;
use crate::home::Job;

fn connect(job: &Job) -> io::Result<UnixStream> {
    RunDir::open(&job.dir).map_err(io::Error::other)?.connect()
}

/// Connects, and gives the agent of a job that has just been started time to come.
fn connect_in(job: &Job, patience: Duration) -> Result<UnixStream, Error> {
    let until = Instant::now() + patience;
    loop {
        match connect(job) {
            Ok(s) => return Ok(s),
            Err(_) if !job.is_running() => return Err(Error::NotRunning(job.name.clone())),
            Err(source) if Instant::now() >= until => {
                return Err(Error::AgentGone { job: job.name.clone(), source });
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// The agent ended, or was ended, while it was being asked; or something else is wrong with the conversation.
fn broken(job: &Job, e: WireError) -> Error {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    let source = match e {
        WireError::Closed => UnexpectedEof.into(),
        WireError::Io(e) if [BrokenPipe, ConnectionReset, UnexpectedEof].contains(&e.kind()) => e,
        e => return Error::Talk(e),
    };
    if job.is_running() {
        Error::AgentGone { job: job.name.clone(), source }
    } else {
        Error::NotRunning(job.name.clone())
    }
}

fn ask(job: &Job, command: Command, limit: Option<Duration>) -> Result<Reply, Error> {
    let patience = if limit.is_none() { Duration::from_secs(3) } else { Duration::ZERO };
    let mut s = connect_in(job, patience)?;
    let timeouts = s.set_read_timeout(limit).and_then(|()| s.set_write_timeout(limit));
    timeouts.map_err(Error::io("use", &job.path("agent.sock")))?;
    write(&mut s, &ToAgent::Command(command)).map_err(|e| broken(job, e))?;
    match read(&mut s).map_err(|e| broken(job, e))? {
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
