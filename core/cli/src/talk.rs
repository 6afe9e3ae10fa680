//! A question to the job's agent and its answer. One connection a question, so that a long one (a checkpoint) does not hold up
//! another. Runs *next door*.
//!
//! What a reader would get wrong: a job on several nodes has no `agent.sock` in its directory; its root agent is reached over
//! TCP, and that this user may read the job's directory is what lets the question in.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use stillpoint_coord::message::{
    Command, FromAgent, JobOutcome, JobStatus, Outcome, Reply, ToAgent, WireError, read, write,
};

use stillpoint_net::dial;
use stillpoint_net::handshake::Purpose;
use stillpoint_net::roots::Roots;
use stillpoint_storage::run::RunDir;

use crate::error::Error;
use crate::home::Job;

/// One of the two ways to the agent that coordinates the job.
enum Line {
    Here(UnixStream),
    There(TcpStream),
}

impl Line {
    fn limit(&self, limit: Option<Duration>) -> io::Result<()> {
        match self {
            Line::Here(s) => s.set_read_timeout(limit).and_then(|()| s.set_write_timeout(limit)),
            Line::There(s) => {
                // A node that has vanished does not say so, and a checkpoint may take long.
                rustix::net::sockopt::set_tcp_keepidle(s, Duration::from_secs(5))?;
                rustix::net::sockopt::set_tcp_keepintvl(s, Duration::from_secs(5))?;
                rustix::net::sockopt::set_tcp_keepcnt(s, 4)?;
                rustix::net::sockopt::set_socket_keepalive(s, true)?;
                s.set_read_timeout(limit).and_then(|()| s.set_write_timeout(limit))
            }
        }
    }
}

impl Read for Line {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Line::Here(s) => s.read(bytes),
            Line::There(s) => s.read(bytes),
        }
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Line::Here(s) => s.write(bytes),
            Line::There(s) => s.write(bytes),
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn connect(job: &Job) -> io::Result<Line> {
    let run = RunDir::open(&job.dir).map_err(io::Error::other)?;
    match run.connect() {
        Ok(s) => Ok(Line::Here(s)),
        Err(e) if !job.path("roots").is_dir() => Err(e),
        Err(_) => dial::newest(&Roots::of(&run), Purpose::Command).map(Line::There).map_err(io::Error::other),
    }
}

/// Connects, and gives the agent of a job that has just been started time to come.
fn connect_in(job: &Job, patience: Duration) -> Result<Line, Error> {
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
    s.limit(limit).map_err(Error::io("use", &job.path("agent.sock")))?;
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

/// Has no checkpoints taken on the interval until further notice, or again.
pub(crate) fn pause(job: &Job, paused: bool) -> Result<(), Error> {
    match ask(job, Command::Pause { paused }, SOON)? {
        Reply::Done => Ok(()),
        _ => Err(Error::Answer),
    }
}

/// Ends the agent, if there is one, and waits until it is gone. It answers when it has written all that it will: a commit
/// that is under way may take long.
pub(crate) fn shutdown(job: &Job) {
    if ask(job, Command::Shutdown, Some(Duration::from_secs(120))).is_err() {
        return;
    }
    let until = Instant::now() + Duration::from_secs(5);
    while connect(job).is_ok() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
}
