//! A command with a time limit, and the processes below one of ours. Runs *next door*.
//!
//! What a reader would get wrong: a command gets a process group of its own, so that ending it ends mpirun's helpers as
//! well; nothing outside that group is ever signalled but a rank found below the command.

use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// What a command said, and how it ended.
#[derive(Debug)]
pub struct Ended {
    /// Exit status; `None` when the time limit ended it.
    pub status: Option<ExitStatus>,
    /// All of standard output.
    pub stdout: String,
    /// All of standard error.
    pub stderr: String,
}

impl Ended {
    /// The one `result` line of a program of ours, which has ended well.
    #[must_use]
    pub fn result(&self) -> &str {
        let well = self.status.is_some_and(|status| status.success());
        assert!(well && self.stdout.lines().any(|line| line == "EXIT-SUCCESS"), "{self:#?}");
        self.stdout.lines().find(|line| line.starts_with("result ")).expect("a result was printed")
    }
}

/// A command under way.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdout: Option<JoinHandle<String>>,
    stderr: Option<JoinHandle<String>>,
    shown: String,
}

impl Running {
    /// Starts `command` in a process group of its own, its output collected.
    #[must_use]
    pub fn start(command: &mut Command) -> Self {
        let shown = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("start {shown}: {error}"));
        let stdout = child.stdout.take().map(collect);
        let stderr = child.stderr.take().map(collect);
        Self { child, stdout, stderr, shown }
    }

    /// The process id of the command.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for the end, at most `limit`; then the whole group is killed.
    pub fn wait(mut self, limit: Duration) -> Ended {
        let deadline = Instant::now() + limit;
        let mut status = None;
        while status.is_none() && Instant::now() < deadline {
            status = self.child.try_wait().unwrap_or_else(|error| panic!("wait for {}: {error}", self.shown));
            std::thread::sleep(Duration::from_millis(5));
        }
        if status.is_none() {
            self.end_group();
        }
        let take = |stream: &mut Option<JoinHandle<String>>| {
            stream.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
        };
        Ended { status, stdout: take(&mut self.stdout), stderr: take(&mut self.stderr) }
    }

    fn end_group(&mut self) {
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.is_running() {
            self.end_group();
        }
    }
}

/// What a small machine and a container need: more ranks than cores, root allowed, threads that yield.
pub fn machine(command: &mut Command) -> &mut Command {
    command
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .env("OMPI_MCA_rmaps_base_oversubscribe", "1")
        .env("OMPI_MCA_mpi_yield_when_idle", "1")
        .env("OMP_WAIT_POLICY", "passive")
}

fn collect(mut stream: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Kills one process, as a failing machine would. False: it had gone already.
pub fn kill(pid: u32) -> bool {
    signal(pid, Signal::KILL)
}

/// Sends a signal to one process. False: it had gone already.
pub fn signal(pid: u32, which: Signal) -> bool {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id fits");
    match kill_process(raw, which) {
        Ok(()) => true,
        Err(rustix::io::Errno::SRCH) => false,
        Err(error) => panic!("send {which:?} to {pid}: {error}"),
    }
}

/// The processes below `ancestor` whose program file has this name, in order of their ids. Copies that such a process has
/// made of itself (a frozen child that writes an image) are not counted.
#[must_use]
pub fn descendants(ancestor: u32, program: &str) -> Vec<u32> {
    family(ancestor, program).0
}

/// The copies that the [`descendants`] have made of themselves.
#[must_use]
pub fn copies(ancestor: u32, program: &str) -> Vec<u32> {
    family(ancestor, program).1
}

fn family(ancestor: u32, program: &str) -> (Vec<u32>, Vec<u32>) {
    let processes: Vec<(u32, u32)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid: u32| Some((pid, parent(pid)?)))
        .collect();
    let mut family = vec![ancestor];
    let mut next = 0;
    while let Some(&head) = family.get(next) {
        family.extend(processes.iter().filter(|(_, parent)| *parent == head).map(|(pid, _)| *pid));
        next += 1;
    }
    family.retain(|pid| {
        fs::read_link(format!("/proc/{pid}/exe"))
            .is_ok_and(|exe| exe.file_name().is_some_and(|name| name == program))
    });
    split_copies(family)
}

/// Of processes of one program, in order of their ids: those that none of them has made, and the others.
pub(crate) fn split_copies(mut family: Vec<u32>) -> (Vec<u32>, Vec<u32>) {
    let is_copy = |pid: &&u32| parent(**pid).is_some_and(|above| family.contains(&above));
    let copies: Vec<u32> = family.iter().filter(is_copy).copied().collect();
    family.retain(|pid| !copies.contains(pid));
    family.sort_unstable();
    (family, copies)
}

/// A process has been stopped by a signal.
#[must_use]
pub fn is_stopped(pid: u32) -> bool {
    stat(pid, 0).is_some_and(|state| state == "T")
}

/// The parent of a process.
fn parent(pid: u32) -> Option<u32> {
    stat(pid, 1)?.parse().ok()
}

/// A field after the last `)` of a process's stat line (proc(5)): 0 is its state, 1 its parent.
fn stat(pid: u32, field: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(')')?.1.split_whitespace().nth(field)?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_outlasts_its_limit_is_ended_with_its_children() {
        let begun = Instant::now();
        let ended = Running::start(Command::new("sh").args(["-c", "echo here; sleep 60 & wait"]))
            .wait(Duration::from_millis(300));
        assert!(ended.status.is_none() && ended.stdout == "here\n", "{ended:?}");
        assert!(begun.elapsed() < Duration::from_secs(20)); // the child held the pipe, so it is gone too
    }

    #[test]
    fn a_grandchild_is_found_by_its_program() {
        let running = Running::start(Command::new("sh").args(["-c", "sleep 30 & wait"]));
        std::thread::sleep(Duration::from_millis(300));
        let found = fs::read_dir("/proc").into_iter().flatten().count();
        assert!(found > 0);
        let sleeper = descendants(running.id(), "sleep");
        // Where coreutils is one program for all its names, the file is called otherwise.
        if sleeper.is_empty() {
            crate::skipped("sleep is not a program of its own");
            return;
        }
        assert_eq!(sleeper.len(), 1);
        assert!(kill(sleeper[0]));
        assert!(running.wait(Duration::from_secs(10)).status.is_some());
    }
}
