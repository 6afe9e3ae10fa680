//! `stillpoint slurm-mpirun`: keeps the run of one mpirun inside a job. Rank 0's process starts it before it becomes a rank. It
//! finds out which run this is and claims the start, holds the run's lock as long as rank 0 lives, and writes down how it
//! ended, so that a requeued job does not run it again.
//!
//! What a reader would get wrong: it is no supervisor. mpirun is not its child, and it starts nothing again; when a rank is lost,
//! mpirun ends, and the job's script with it or not. Until it has answered it speaks on rank 0's standard error; then in
//! `RUN/keeper.log`, as mpirun waits for the end of those. Runs *next door*.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, setsid};
use stillpoint_coord::message::{JobOutcome, JobStatus, Presence};
use stillpoint_storage::run::RunDir;

use crate::drain;
use crate::error::{Error, chain};
use crate::home::{Description, Home, Job, Lock, bytes, private_file};
use crate::launch::{Watch, spool_stdin};
use crate::run::say;
use crate::slurm::after::{Around, is_saved};
use crate::slurm::choose::{Ended, From, RESULT, choose, run_info};
use crate::slurm::identity::{Index, Life};
use crate::slurm::job::{self, Ask, Whereabouts};
use crate::slurm::mpirun::{Answer, Member};
use crate::slurm::occasion::TimeLimit;
use crate::slurm::start::{Options, StartFile, Stdin};
use crate::talk;

/// Arguments of `slurm-mpirun`: the options that the plugin has left, and what rank 0 knows.
#[derive(Debug, Args)]
pub(crate) struct KeepArgs {
    #[command(flatten)]
    options: Options,
    /// Where node-local directories are made.
    #[arg(long)]
    local: Option<PathBuf>,
    /// The process that becomes rank 0.
    #[arg(long)]
    rank_zero: i32,
    /// This process is the keeper, not its starter.
    #[arg(long)]
    foreground: bool,
    /// The program and its arguments, as rank 0 has them.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

pub(crate) fn keep(home: &Home, given: &KeepArgs, json: bool) -> Result<u8, Error> {
    if !given.foreground {
        return start();
    }
    // Fails where this process leads a group already, which is enough.
    let _ = setsid();
    let member = Member::of(|n| std::env::var_os(n)).ok_or(Error::NoTask("OMPI_COMM_WORLD_RANK"))?;
    let index = Index::usual()?;
    let pid = Pid::from_raw(given.rank_zero).ok_or(Error::NoTask("--rank-zero"))?;
    let rank_zero = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(fd) => fd,
        Err(e) => {
            let _ = kill_process(pid, Signal::TERM);
            return Err(Error::io("watch the process", Path::new("of rank 0"))(e.into()));
        }
    };
    let (answer, kept) = match claim(home, given, &member, &index, json) {
        Ok(Ok((kept, start))) => (start, Some(kept)),
        Ok(Err(status)) => (Answer::Ended(status), None),
        Err(e) => (Answer::Refused(chain(&e)), None),
    };
    let text = serde_json::to_vec(&answer).unwrap_or_default();
    if let Err(e) = index.put(&member.life.name, &member.answer(), &text) {
        // Nobody hears the answer: all would wait for it.
        let _ = kill_process(pid, Signal::TERM);
        return Err(e);
    }
    let Some(kept) = kept else { return Ok(0) };
    kept.leave_streams()?;
    let watched = kept.watch(&rank_zero, json);
    if let Err(e) = &watched {
        say(json, "mpirun", &kept.job, &chain(e));
    }
    watched
}

/// Starts the keeper as nobody's child, and returns.
fn start() -> Result<u8, Error> {
    let me = std::env::current_exe().map_err(Error::io("find", Path::new("stillpoint")))?;
    let words = std::env::args_os().skip(2);
    let started =
        Command::new(&me).arg("slurm-mpirun").arg("--foreground").args(words).stdout(Stdio::null()).spawn();
    let failed = |source| Error::Start { what: me.to_string_lossy().into_owned(), source };
    started.map(|_| 0).map_err(failed)
}

/// A run that is being kept.
struct Kept {
    job: Job,
    incarnation: u32,
    life: Life,
    index: Index,
    on_time_limit: bool,
    _lock: Option<Lock>,
}

/// Finds or makes the run, and writes down all that its ranks are to know. `Err`: it has ended in an earlier life of the job.
fn claim(
    home: &Home,
    given: &KeepArgs,
    member: &Member,
    index: &Index,
    json: bool,
) -> Result<Result<(Kept, Answer), u8>, Error> {
    let model = given.options.model()?;
    let what = Description {
        info: run_info(&given.command, member.size, &["mpirun".into()])?,
        argv: bytes(&given.command),
        ranks: Some(member.size),
        interval: model.interval,
        auto: model.auto,
        restarts: 3,
        keep: model.keep,
        ..Description::default()
    };
    let ask: Ask<'_> = &job::ask;
    // Rank 0's own are pipes, whatever mpirun's are.
    let streams = mpirun(given.rank_zero).and_then(|p| u32::try_from(p).ok());
    let around = Some((index, &member.life, streams.unwrap_or(std::process::id())));
    let chosen = match choose(home, &what, given.options.restart.as_deref(), around, ask, json)? {
        Ok(chosen) => chosen,
        Err(status) => return Ok(Err(status)),
    };
    let (job, incarnation) = (&chosen.job, chosen.incarnation);
    let from = chosen.from.checkpoint();
    if let Some(c) = from.filter(|c| c.manifest.size != member.size) {
        return Err(Error::Ranks { ckpt: c.id, have: c.manifest.size, want: member.size });
    }
    if from.is_none() && !job.path("stdin").is_file() && is_input(given.rank_zero) {
        spool_stdin(job)?;
    }
    let start = StartFile {
        incarnation,
        local: given.local.clone(),
        on: vec![],
        index: Some(index.0.clone()),
        stdin: job.path("stdin").is_file().then_some(Stdin::Task(0)),
        ..model.clone()
    };
    start.at(from).write(job)?;
    StartFile::over(job, incarnation, true);
    if let Some(w) = Whereabouts::of_mpirun(|n| std::env::var_os(n), &job.dir, incarnation, &member.token) {
        w.announce(index, &member.answer())?;
        RunDir::open(&job.dir)?.write_json("slurm.json", &w)?;
    }
    if matches!(chosen.from, From::New) {
        let text = format!(
            "run {}: checkpoints of the {} ranks of mpirun; if one is lost, mpirun ends, and goes on when the job is requeued \
             ('stillpoint run' also restarts within the allocation)",
            job.name, member.size
        );
        say(json, "mpirun", job, &text);
    }
    let answer = Answer::Start { run: job.dir.clone(), incarnation };
    let kept = Kept {
        job: chosen.job,
        incarnation,
        life: member.life.clone(),
        index: index.clone(),
        on_time_limit: model.on.iter().any(|o| o == "timelimit"),
        _lock: chosen.lock,
    };
    Ok(Ok((kept, answer)))
}

/// Whether rank 0 is given an input that a restart would be given once more: what mpirun reads is a file or a pipe. mpirun may be
/// on another node; then it is what comes soon.
fn is_input(rank_zero: i32) -> bool {
    let own = Path::new("/proc/self/fd/0").metadata();
    if !own.is_ok_and(|m| m.file_type().is_fifo() || m.is_file()) {
        return false;
    }
    match mpirun(rank_zero).and_then(|p| fs::metadata(format!("/proc/{p}/fd/0")).ok()) {
        Some(m) => !m.file_type().is_char_device(),
        None => {
            let stdin = io::stdin();
            let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
            poll(&mut fds, Some(&Timespec { tv_sec: 2, tv_nsec: 0 })).is_ok_and(|n| n > 0)
        }
    }
}

/// The mpirun above rank 0, if it is on this node.
fn mpirun(rank_zero: i32) -> Option<i32> {
    parent(rank_zero).filter(|p| {
        let program = fs::read_link(format!("/proc/{p}/exe")).unwrap_or_default();
        program.file_name().is_some_and(|n| n != "orted")
    })
}

fn parent(pid: i32) -> Option<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, but ends with the last parenthesis.
    text.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

impl Kept {
    fn leave_streams(&self) -> Result<(), Error> {
        let path = self.job.path("keeper.log");
        let log = private_file(&path, false).map_err(Error::io("open", &path))?;
        rustix::fs::fcntl_setfl(&log, OFlags::APPEND).map_err(|e| Error::io("open", &path)(e.into()))?;
        let null = File::open("/dev/null").map_err(Error::io("open", Path::new("/dev/null")))?;
        let dup = |e: rustix::io::Errno| Error::io("leave", Path::new("the standard streams"))(e.into());
        rustix::stdio::dup2_stdin(&null).map_err(dup)?;
        rustix::stdio::dup2_stdout(&log).map_err(dup)?;
        rustix::stdio::dup2_stderr(&log).map_err(dup)
    }

    /// Waits for the end of rank 0, and then of all.
    fn watch(&self, rank_zero: &OwnedFd, json: bool) -> Result<u8, Error> {
        let ask: Ask<'_> = &job::ask;
        let mut limit = TimeLimit::new(&self.job, ask, json, true);
        // The script goes on as soon as mpirun has ended: so the ranks run on, and the requeue ends them.
        limit.stop = false;
        let index = Some(self.index.clone());
        let around = Around { life: &self.life, job: &self.job, index, ask, json };
        let mut waits = false;
        while !is_over(rank_zero, Duration::from_secs(1)) {
            if self.on_time_limit {
                limit.tick(&self.life.job, None);
                if limit.saved.take().is_some() {
                    waits = true;
                    if let Err(e) = is_saved(&self.job, self.incarnation) {
                        say(json, "timelimit", &self.job, &chain(&e));
                    }
                }
                waits = waits && !around.requeue_in_time();
            }
        }
        limit.cut_off();
        let status = self.outcome().as_ref().and_then(result);
        // What Slurm has told to end may end well, and is not done.
        let by_itself =
            || job::look(ask, &self.life.job).is_some_and(|v| v.state == "RUNNING" && !v.preempted);
        match status {
            Some(status) if by_itself() => {
                let ended = Ended { status, incarnation: self.incarnation };
                RunDir::open(&self.job.dir)?.write_json(RESULT, &ended)?;
            }
            // Somebody may go on from it.
            _ => drain::wait(&self.job, json),
        }
        // A later life of the job may have its agent by now.
        if talk::outcome(&self.job).is_ok_and(|o| o.incarnation == self.incarnation) {
            talk::shutdown(&self.job);
        }
        Ok(0)
    }

    /// How the ranks ended, once they all have, or one was lost.
    fn outcome(&self) -> Option<JobOutcome> {
        let watch =
            Watch { job: &self.job, incarnation: self.incarnation, patience: Duration::ZERO, json: false };
        let (mut looks, mut quiet) = (0, 0);
        loop {
            match talk::outcome(&self.job) {
                Ok(o) if o.incarnation > self.incarnation => return None,
                Ok(o) if o.incarnation == self.incarnation && o.ended => return Some(o),
                // mpirun ends the others when one has failed by itself: that one's goodbye may still come.
                Ok(o) if o.restart && looks >= 20 => return Some(o),
                // Some never came: of them nobody knows how they ended.
                Ok(o) if quiet >= 60 => return Some(o),
                Ok(o) => {
                    looks += u32::from(o.restart);
                    let here = |s: JobStatus| s.ranks.iter().any(|(p, _)| *p == Presence::Here);
                    quiet = if talk::status(&self.job).is_ok_and(here) { 0 } else { quiet + 1 };
                }
                Err(_) => return watch.outcome_file(),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// The status to be remembered; `None`: it is not done.
fn result(o: &JobOutcome) -> Option<u8> {
    let failed =
        o.abort.iter().chain(&o.exited).map(|(_, c)| u8::try_from(c & 0xff).unwrap_or(255)).find(|c| *c != 0);
    match failed {
        // What ranks do because others were lost is no result.
        _ if o.stopped_at.is_some() || o.restart => None,
        Some(status) => Some(status),
        None if o.ended && o.lost.is_empty() => Some(0),
        _ => None,
    }
}

/// Whether the process ends within this time.
fn is_over(process: &OwnedFd, within: Duration) -> bool {
    let time = Timespec { tv_sec: i64::try_from(within.as_secs()).unwrap_or(1), tv_nsec: 0 };
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    match poll(&mut fds, Some(&time)) {
        Ok(n) => n > 0,
        Err(rustix::io::Errno::INTR) => false,
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_done_has_a_result() {
        let o = JobOutcome::default();
        assert_eq!(result(&o), None, "it runs");
        let done = JobOutcome { exited: vec![(0, 0), (1, 0)], ended: true, ..o.clone() };
        assert_eq!(result(&done), Some(0));
        let lost = JobOutcome { lost: vec![1], restart: true, ended: true, ..o.clone() };
        assert_eq!(result(&lost), None);
        let because = JobOutcome { exited: vec![(0, 1)], ..lost.clone() };
        assert_eq!(result(&because), None, "it ended because the other was lost");
        let failed = JobOutcome { exited: vec![(1, 3)], lost: vec![0], restart: false, ..lost };
        assert_eq!(result(&failed), Some(3), "mpirun has ended the other");
        let aborted = JobOutcome { abort: Some((0, 7)), ended: true, ..o.clone() };
        assert_eq!(result(&aborted), Some(7));
        let stopped = JobOutcome { stopped_at: Some(4), ended: true, ..o };
        assert_eq!(result(&stopped), None);
    }

    #[test]
    fn a_process_and_its_parent() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id() as i32;
        assert_eq!(parent(pid), Some(std::process::id() as i32));
        let watched = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        assert!(!is_over(&watched, Duration::from_secs(0)));
        child.kill().unwrap();
        assert!(is_over(&watched, Duration::from_secs(10)));
        child.wait().unwrap();
    }
}
