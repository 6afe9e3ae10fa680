//! `stillpoint-agent --run DIR`: the node agent, sockets and clock around the coordinator. Runs *next door*.
//!
//! What a reader would get wrong: the process that is started returns as soon as an agent listens (its own child, or one
//! that was there before), and so may be waited for. The agent itself is that child, in a session of its own, its
//! standard streams in the log: a launcher that waits for the end of a rank's output must not wait for the agent.
//!
//! - [`args`]: flags and environment.
//! - [`burst`]: images on the node's own disk, and their copies.
//! - [`conn`]: connections, two threads each.
//! - [`store`]: the threads that drive the store.
//! - [`elect`]: which of the run's agents is the root.
//! - [`relay`], [`relays`]: the two ends of the stream between a relay and the root.
//! - [`serve`]: the loop.
#![forbid(unsafe_code)]

mod args;
mod burst;
mod conn;
mod elect;
mod relay;
mod relays;
mod serve;
mod store;

use args::Args;
use rustix::fs::{Mode, OFlags};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use stillpoint_storage::StoreError;
use stillpoint_storage::run::{RunDir, host};
use tracing_appender::non_blocking::WorkerGuard;

/// Why the agent could not do its work.
#[derive(Debug, thiserror::Error)]
enum AgentError {
    /// The flags.
    #[error("{0}")]
    Args(String),
    /// The run directory.
    #[error("use the run directory")]
    Store(#[from] StoreError),
    /// The other agents.
    #[error("find the root among the agents of the run")]
    Net(#[from] stillpoint_net::NetError),
    /// A system call.
    #[error("{what}")]
    Io {
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
    /// The child did not come up.
    #[error("the agent did not begin to listen; its log is {0}")]
    Silent(String),
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let mut text = format!("stillpoint-agent: {e}");
            let mut cause = std::error::Error::source(&e);
            while let Some(c) = cause {
                text.push_str(&format!(": {c}"));
                cause = c.source();
            }
            text.push('\n');
            let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), AgentError> {
    let args =
        Args::parse(std::env::args().skip(1), |name| std::env::var(name).ok()).map_err(AgentError::Args)?;
    rustix::process::umask(Mode::from_raw_mode(0o077));
    let run = RunDir::create(&args.run)?;
    let local = args.local.as_deref().map(RunDir::create).transpose()?.unwrap_or_else(|| run.clone());
    let log =
        run.path().join(args.local.as_ref().map_or("agent.log".into(), |_| format!("agent-{}.log", host())));
    if args.foreground {
        settle_down(&log).and_then(|_log| serve::serve(&run, &local, &args))
    } else {
        start(&local, &log)
    }
}

/// Starts the agent unless one listens, and returns when it does.
fn start(local: &RunDir, log: &Path) -> Result<(), AgentError> {
    let io = |what| move |source| AgentError::Io { what, source };
    let mut child = None;
    let end = Instant::now() + Duration::from_secs(20);
    while Instant::now() < end {
        if local.connect().is_ok() {
            return Ok(());
        }
        // An agent that is just ending holds the lock for a moment; the child that finds it taken ends at once.
        let gone = match &mut child {
            None => true,
            Some(c) => std::process::Child::try_wait(c).map_err(io("wait for the agent"))?.is_some(),
        };
        if gone {
            let exe = std::env::current_exe().map_err(io("find the agent's own program"))?;
            let spawned = Command::new(exe)
                .arg("--foreground")
                .args(std::env::args_os().skip(1))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn();
            child = Some(spawned.map_err(io("start the agent"))?);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Err(AgentError::Silent(log.display().to_string()))
}

/// Leaves the starter's session, and makes the log the standard streams.
///
/// The log is written by a thread of its own until the guard is dropped: a write to a file system that is busy committing
/// can take seconds, and the loop must not wait for it.
fn settle_down(log: &Path) -> Result<WorkerGuard, AgentError> {
    let io = |what| move |e: rustix::io::Errno| AgentError::Io { what, source: e.into() };
    // Fails when the process leads a group already, as from a shell: then it has one of its own, which is enough.
    let _ = rustix::process::setsid();
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let log = rustix::fs::open(log, flags, Mode::from_raw_mode(0o600)).map_err(io("open the log"))?;
    rustix::stdio::dup2_stdout(&log).map_err(io("redirect to the log"))?;
    rustix::stdio::dup2_stderr(&log).map_err(io("redirect to the log"))?;
    let filter = tracing_subscriber::EnvFilter::try_from_env("STILLPOINT_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let (writer, guard) = tracing_appender::non_blocking(std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(false).init();
    Ok(guard)
}
