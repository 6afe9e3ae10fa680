//! One program with a number of rounds: what it finds natively, and that it finds the same under Stillpoint. Runs *next door*.
//!
//! What a reader would get wrong: a program that is rolled back may say a line twice, so results are compared as the set
//! of its `result` lines, which must be the one line of the native run, not as whole output.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::process::{Ended, Running, machine};
use crate::program::{Program, Start};
use crate::{built, skipped};

/// How long one run may take before it counts as hung.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// The same of a run that is to last this long on a quiet machine.
fn limit(seconds: u32) -> Duration {
    LIMIT + Duration::from_secs(4 * u64::from(seconds))
}

/// A program with a number of rounds, and what it finds natively.
pub(crate) struct Case {
    program: Program,
    mode: &'static str,
    pub(crate) seconds: u32,
    words: Vec<String>,
    expected: BTreeSet<String>,
}

impl Case {
    /// Runs the program natively; `None` if it is skipped.
    pub(crate) fn new(name: &str, mode: &'static str, seconds: u32) -> Option<Case> {
        let program = Program::named(name);
        let scratch = Scratch::new(mode, name);
        let rounds = if seconds == 0 { program.rounds } else { rounds(&program, seconds, &scratch)? };
        let words = prepared(&program, rounds)?;
        let expected = results(&run_native(&program, &words, &scratch, limit(seconds)));
        Some(Case { program, mode, seconds, words, expected })
    }

    /// Runs under Stillpoint with these settings of the environment.
    pub(crate) fn run(
        &self,
        interval: Option<&str>,
        settings: &[(&str, &str)],
        disturb: &mut dyn FnMut(&mut Running, &Path),
    ) -> Ended {
        let name = self.program.name();
        let scratch = Scratch::new(self.mode, name);
        let stillpoint = built().join("stillpoint");
        assert!(stillpoint.is_file(), "{} is not built; run `cargo xtask build`", stillpoint.display());
        let store = scratch.0.join("checkpoints");
        let mut command = Command::new(stillpoint);
        command.arg("run").args(["--restarts", "20"]).arg("--dir").arg(&store);
        match self.program.start {
            Start::Ranks(ranks) if self.mode == "scattered" => {
                command.arg("--launcher").arg(scatter(ranks, &scratch));
            }
            Start::Ranks(ranks) => {
                command.args(["-n", &ranks.to_string()]);
            }
            Start::Alone => {}
        }
        if let Some(interval) = interval {
            command.args(["--interval", interval]);
        }
        command.arg("--");
        if self.mode == "chained" {
            command.args(["sh", "-c", "exec env CHAINED=1 numactl --localalloc \"$@\"", "sh"]);
        }
        if self.mode == "early" {
            command.args(["sh", "-c", "while [ ! -e go ]; do :; done; exec \"$@\"", "sh"]);
        }
        command.args(&self.words).envs(settings.iter().copied()).current_dir(&scratch.0);
        let mut job = Running::start(machine(&mut command));
        disturb(&mut job, &store);
        let ended = job.wait(limit(self.seconds));
        let found = results(&ended);
        assert_eq!(found, self.expected, "{name} {}: another result than the native run", self.mode);
        ended
    }
}

/// The command line of the program; without it the test is skipped, by name.
pub(crate) fn prepared(program: &Program, rounds: u32) -> Option<Vec<String>> {
    program.command(rounds, 7).map_err(|lack| skipped(&lack)).ok()
}

/// Rounds that last about `seconds` natively on this machine, as it is now.
fn rounds(program: &Program, seconds: u32, scratch: &Scratch) -> Option<u32> {
    let time = |rounds| {
        let words = prepared(program, rounds)?;
        let begun = Instant::now();
        results(&run_native(program, &words, scratch, LIMIT));
        Some(begun.elapsed().as_secs_f64())
    };
    let few = (program.rounds / 20).max(1);
    let short = time(few)?;
    let (mut many, mut long) = (few, short);
    // Until the rounds outweigh the start.
    while long < short + 0.7 && many < program.rounds * 50 {
        many *= 4;
        long = time(many)?;
    }
    let each = (long - short).max(0.05) / f64::from((many - few).max(1));
    let wanted = f64::from(seconds) / each;
    Some((wanted as u32).clamp(program.rounds / 2, program.rounds * 100))
}

pub(crate) fn run_native(program: &Program, words: &[String], scratch: &Scratch, limit: Duration) -> Ended {
    let mut command = match program.start {
        Start::Alone => Command::new(&words[0]),
        Start::Ranks(ranks) => {
            let mut launcher = Command::new("mpirun");
            launcher.args(["-n", &ranks.to_string(), &words[0]]);
            launcher
        }
    };
    command.args(&words[1..]).current_dir(&scratch.0);
    Running::start(machine(&mut command)).wait(limit)
}

/// The `result` lines of a run that ended well.
pub(crate) fn results(ended: &Ended) -> BTreeSet<String> {
    let well = ended.status.is_some_and(|status| status.success());
    assert!(well && ended.stdout.lines().any(|line| line == "EXIT-SUCCESS"), "{ended:#?}");
    let found: BTreeSet<String> =
        ended.stdout.lines().filter(|line| line.starts_with("result ")).map(str::to_owned).collect();
    assert_eq!(found.len(), 1, "one result, the same each time it is said: {ended:#?}");
    found
}

/// A launcher that gives each two ranks a node's directory of their own.
fn scatter(ranks: u32, scratch: &Scratch) -> PathBuf {
    let node = "export STILLPOINT_LOCAL=$STILLPOINT_RUN/node-$((OMPI_COMM_WORLD_RANK / 2)); exec \"$@\"";
    let text = format!("#!/bin/sh\nexec mpirun -n {ranks} sh -c '{node}' sh \"$@\"\n");
    let path = scratch.0.join("scatter");
    fs::write(&path, text).expect("a scratch folder can be written to");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    fs::set_permissions(&path, mode).expect("it is ours");
    path
}

/// A working directory that goes away with the test, unless the test failed.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new(mode: &str, name: &str) -> Self {
        let folder = built().join("test-work").join(format!("{mode}-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap_or_else(|error| panic!("create {}: {error}", folder.display()));
        Self(folder)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}
