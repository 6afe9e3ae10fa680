//! One start of a job: the launcher's command line, standard input, signals, and the wait for its end.
//!
//! What a reader would get wrong: the launcher ends before all is over. Its ranks' images may still be copied by their agents,
//! and the agent may not have noticed yet how the last rank ended. Runs *next door*.

use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getpgrp, kill_process};
use signal_hook::consts::{SIGINT, SIGQUIT};
use stillpoint_coord::message::JobOutcome;

use crate::drain::Drain;
use crate::error::Error;
use crate::exec::{LOCAL_BASE, which};
use crate::home::{Description, Job, private_file};
use crate::run::rhythm;
use crate::signals::{ENDING, Heard};
use crate::slurm::mpirun;
use crate::talk;
use crate::verdict::{Verdict, code, died_first, judge};

/// Open MPI counts cores, not hardware threads, when it decides whether there are too many ranks.
fn cores() -> usize {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut seen = std::collections::BTreeSet::new();
    let mut package = "";
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        match key.trim() {
            "physical id" => package = value.trim(),
            "core id" => {
                seen.insert((package, value.trim()));
            }
            _ => {}
        }
    }
    match seen.len() {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    }
}

/// How long a signal that has ended the ranks may be on its way to us as well: who ends a job tells all of its processes, a terminal the whole
/// group.
const ALSO_US: Duration = Duration::from_secs(1);

/// True if this launcher is Open MPI's mpirun, which has options of its own.
fn is_open_mpi(program: &Path) -> bool {
    let name = program.file_name().and_then(OsStr::to_str).unwrap_or("");
    if !["mpirun", "mpiexec", "orterun", "prterun"].contains(&name) {
        return false;
    }
    let out = Command::new(program).arg("--version").stdin(Stdio::null()).output();
    out.is_ok_and(|o| {
        let text = String::from_utf8_lossy(&o.stdout);
        text.contains("Open MPI") || text.contains("OpenRTE")
    })
}

fn refuses_root(launcher: &[&str]) -> bool {
    let set = |n| std::env::var_os(n).is_some_and(|v| v == "1");
    rustix::process::geteuid().is_root()
        && !launcher.contains(&"--allow-run-as-root")
        && !(set("OMPI_ALLOW_RUN_AS_ROOT") && set("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"))
}

/// Nodes of the allocation around us; 1 outside of one.
pub(crate) fn nodes(var: impl Fn(&str) -> Option<OsString>) -> u32 {
    let number = |n: &str| var(n).and_then(|v| v.to_str()?.parse().ok());
    number("SLURM_JOB_NUM_NODES").or_else(|| number("SLURM_NNODES")).unwrap_or(1)
}

/// What one start needs to know.
#[derive(Debug)]
pub(crate) struct Start<'a> {
    pub(crate) job: &'a Job,
    pub(crate) what: &'a Description,
    pub(crate) incarnation: u32,
    /// Directory of the checkpoint to start from.
    pub(crate) from: Option<&'a Path>,
    pub(crate) json: bool,
}

impl Start<'_> {
    fn environment(&self) -> Vec<(&'static str, OsString)> {
        let mut env: Vec<(&'static str, OsString)> = vec![
            ("STILLPOINT_RUN", self.job.dir.clone().into()),
            ("STILLPOINT_INCARNATION", self.incarnation.to_string().into()),
        ];
        let nodes = nodes(|n| std::env::var_os(n));
        let rhythm = rhythm(self.what.interval, self.what.auto, nodes);
        for (name, value) in ["STILLPOINT_INTERVAL", "STILLPOINT_MTBF"].into_iter().zip(rhythm) {
            env.extend(value.map(|v| (name, v.into())));
        }
        if let Some(dir) = self.from {
            env.push(("STILLPOINT_RESTART", dir.into()));
        }
        if let Some(dir) = &self.what.burst {
            env.push(("STILLPOINT_BURST", dir.into()));
        }
        // Ranks on other nodes do not reach a socket in the job's directory.
        if nodes > 1 {
            let base = std::env::var_os(LOCAL_BASE).or_else(|| mpirun::option("--local"));
            env.push((LOCAL_BASE, base.unwrap_or_else(|| "/tmp".into())));
        }
        let spool = self.job.path("stdin");
        if spool.is_file() {
            env.push(("STILLPOINT_STDIN", spool.into()));
        }
        env
    }

    /// The command line that starts all ranks.
    fn command(&self) -> Result<Command, Error> {
        let me = std::env::current_exe().map_err(Error::io("find", Path::new("stillpoint")))?;
        let env = self.environment();
        let mut c = match (self.what.ranks, &self.what.launch_with) {
            (None, None) => Command::new(&me),
            (ranks, launcher) => {
                let line = launcher.as_deref().unwrap_or("mpirun");
                let words: Vec<&str> = line.split_whitespace().collect();
                let (name, rest) = words.split_first().ok_or_else(|| Error::NoLauncher(line.into()))?;
                let program = which(OsStr::new(name)).ok_or_else(|| Error::NoLauncher((*name).into()))?;
                let mut c = Command::new(&program);
                c.args(rest);
                let open_mpi = is_open_mpi(&program);
                if open_mpi && refuses_root(&words) {
                    return Err(Error::Root);
                }
                if let Some(n) = ranks {
                    c.arg("-n").arg(n.to_string());
                    let slurm = std::env::var_os("SLURM_JOB_ID").is_some();
                    if open_mpi && !slurm && launcher.is_none() && n as usize > cores() {
                        c.arg("--oversubscribe");
                    }
                }
                if open_mpi {
                    // Ranks on other hosts get only what is named.
                    for (name, _) in &env {
                        c.args(["-x", *name]);
                    }
                }
                c.arg(&me);
                c
            }
        };
        c.arg("exec").arg("--").args(self.what.argv()).envs(env);
        let stale = ["RESTART", "INTERVAL", "MTBF", "STDIN", "RANK", "SIZE"];
        for stale in stale.map(|name| format!("STILLPOINT_{name}")) {
            if !c.get_envs().any(|(k, v)| k == stale.as_str() && v.is_some()) {
                c.env_remove(stale);
            }
        }
        // Ranks of a job's mpirun would be a run of their own (slurm/mpirun.rs).
        c.env_remove(mpirun::OPTIONS);
        if mpirun::is_agent() {
            c.env_remove(mpirun::AGENT);
        }
        if self.job.path("stdin").is_file() {
            c.stdin(Stdio::null());
        }
        c.current_dir(&self.what.info.cwd);
        Ok(c)
    }

    /// Starts the ranks, waits, and judges.
    pub(crate) fn run(&self, heard: &mut Heard) -> Result<Verdict, Error> {
        let command = self.command()?;
        let program = PathBuf::from(command.get_program());
        let patience = Duration::from_secs(10);
        let watch = Watch { job: self.job, incarnation: self.incarnation, patience, json: self.json };
        let is_lost = &mut || talk::outcome(self.job).is_ok_and(|o| o.restart);
        let seen = watch.run(command, heard, is_lost, &mut || {})?;
        let told = ENDING.iter().any(|s| i32::from(seen.status) == 128 + s);
        if told && heard.last_of(&ENDING).is_none() {
            heard.pause(ALSO_US);
        }
        let ended = heard.last_of(&ENDING).and_then(|s| u8::try_from(s).ok());
        let outcome = seen.outcome.as_ref();
        let verdict = judge(outcome, seen.status, ended);
        // Open MPI's status is that of the first to end badly.
        Ok(match outcome.filter(|o| died_first(o, seen.status) && is_open_mpi(&program)) {
            Some(o) if matches!(verdict, Verdict::Ended(_)) => Verdict::Lost(o.lost.clone(), seen.status),
            _ => verdict,
        })
    }
}

/// What was seen of one start.
#[derive(Debug)]
pub(crate) struct Seen {
    /// What the agent knows, if it knew this start.
    pub(crate) outcome: Option<JobOutcome>,
    /// Exit status of the launcher.
    pub(crate) status: u8,
    /// When it ended. What came of it may have been waited for much longer.
    pub(crate) ended: Instant,
}

/// One start, whatever the launcher.
#[derive(Debug)]
pub(crate) struct Watch<'a> {
    pub(crate) job: &'a Job,
    pub(crate) incarnation: u32,
    /// How long a launcher may wait on although a rank is lost.
    pub(crate) patience: Duration,
    pub(crate) json: bool,
}

impl Watch<'_> {
    /// Starts the launcher and waits for its end. `is_lost` says each second whether a rank is known to be lost, in which case
    /// a launcher that waits on is ended; `last_resort` is called when it has not obeyed.
    pub(crate) fn run(
        &self,
        mut command: Command,
        heard: &mut Heard,
        is_lost: &mut dyn FnMut() -> bool,
        last_resort: &mut dyn FnMut(),
    ) -> Result<Seen, Error> {
        let what = command.get_program().to_string_lossy().into_owned();
        let mut child = command.spawn().map_err(|source| Error::Start { what, source })?;
        let mut drain = Drain::new();
        // To end it would be to end what its agents still copy.
        let is_over = &mut || is_lost() && !drain.goes_on(self.job);
        let status = code(wait(&mut child, self.patience, heard, is_over, last_resort)?);
        let ended = Instant::now();
        let outcome = self.outcome();
        if status != 0 || outcome.as_ref().is_none_or(|o| !o.lost.is_empty()) {
            // Somebody may go on from it.
            drain.wait(self.job, self.json, &mut |t| heard.next(t).is_some_and(|s| ENDING.contains(&s)));
        }
        talk::shutdown(self.job);
        Ok(Seen { outcome, status, ended })
    }

    /// What the agent knows, once it has noticed that all ranks are gone; from its file if it is gone itself.
    fn outcome(&self) -> Option<JobOutcome> {
        let until = Instant::now() + Duration::from_secs(3);
        let mut last = None;
        while Instant::now() < until {
            match talk::outcome(self.job) {
                Ok(o) if o.ended && o.incarnation == self.incarnation => return Some(o),
                Ok(o) => last = Some(o),
                Err(_) => break,
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.outcome_file().or(last).filter(|o| o.incarnation == self.incarnation)
    }

    /// What the agent has written down of this start, and when; no question to it.
    pub(crate) fn outcome_file(&self) -> Option<JobOutcome> {
        let file = std::fs::read(self.job.path("outcome.json")).ok()?;
        let o: JobOutcome = serde_json::from_slice(&file).ok()?;
        (o.incarnation == self.incarnation).then_some(o)
    }
}

/// Waits for the launcher; hands on signals; ends a launcher that waits on although a rank is lost.
fn wait(
    child: &mut Child,
    patience: Duration,
    heard: &mut Heard,
    is_lost: &mut dyn FnMut() -> bool,
    last_resort: &mut dyn FnMut(),
) -> Result<ExitStatus, Error> {
    const LOOK: Duration = Duration::from_secs(1);
    let pid = Pid::from_child(child);
    let mut next_look = Instant::now() + LOOK;
    let mut lost_since: Option<Instant> = None;
    loop {
        if let Some(s) = child.try_wait().map_err(Error::io("wait for", Path::new("the launcher")))? {
            return Ok(s);
        }
        if let Some(s) = heard.next(next_look.saturating_duration_since(Instant::now())) {
            // A ^C or ^\ at the terminal has reached the whole foreground group already.
            if !([SIGINT, SIGQUIT].contains(&s) && in_foreground())
                && let Some(s) = Signal::from_named_raw(s)
            {
                let _ = kill_process(pid, s);
            }
            continue;
        }
        if Instant::now() >= next_look {
            next_look = Instant::now() + LOOK;
            match lost_since {
                None if is_lost() => lost_since = Some(Instant::now()),
                Some(t) if t.elapsed() > 2 * patience => {
                    last_resort();
                    let _ = kill_process(pid, Signal::KILL);
                }
                Some(t) if t.elapsed() > patience => drop(kill_process(pid, Signal::TERM)),
                _ => {}
            }
        }
    }
}

fn in_foreground() -> bool {
    let tty = std::fs::File::open("/dev/tty");
    tty.is_ok_and(|t| rustix::termios::tcgetpgrp(&t).is_ok_and(|g| g == getpgrp()))
}

/// Copies standard input to the job's spool file until it ends, so that a restart can go on at its offset. A terminal
/// is left to the application, and so is a device such as /dev/null.
pub(crate) fn spool_stdin(job: &Job) -> Result<(), Error> {
    let stdin = io::stdin();
    let device = Path::new("/proc/self/fd/0").metadata().map_or(true, |m| m.file_type().is_char_device());
    if stdin.is_terminal() || device {
        return Ok(());
    }
    // It gets its name when it is whole: half an input is not to be taken for the whole.
    let (path, whole) = (job.path("stdin.part"), job.path("stdin"));
    let mut out = private_file(&path, false).map_err(Error::io("make", &path))?;
    out.set_len(0).map_err(Error::io("empty", &path))?;
    let begun = Instant::now();
    let (told, done) = (Duration::from_secs(3), Arc::new(AtomicUsize::new(0)));
    let watch = Arc::clone(&done);
    // Not joined: it ends with the process, and has only this one line to say.
    std::thread::spawn(move || {
        std::thread::sleep(told.saturating_sub(begun.elapsed()));
        if watch.load(Ordering::Relaxed) == 0 {
            eprintln!(
                "stillpoint: reading standard input to its end before the start (give </dev/null for none)"
            );
        }
    });
    let mut buf = vec![0; 1 << 16];
    let mut input = stdin.lock();
    loop {
        let n = match input.read(&mut buf) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Error::io("read", Path::new("standard input"))(e)),
        };
        out.write_all(&buf[..n]).map_err(Error::io("write", &path))?;
    }
    done.store(1, Ordering::Relaxed);
    out.sync_all().and_then(|()| std::fs::rename(&path, &whole)).map_err(Error::io("keep", &whole))
}
