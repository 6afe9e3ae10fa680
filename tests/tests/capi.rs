//! The library: its example programs in C, Fortran and Rust run natively, where it does nothing, under Stillpoint, and with a
//! rank killed after the first checkpoint that the program itself asked for.
#![allow(clippy::tests_outside_test_module, reason = "an integration test is a test module")]
#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use stillpoint_tests::process::{Running, descendants, kill, machine};
use stillpoint_tests::{built, skipped, sources};

const LIMIT: Duration = Duration::from_secs(120);
const ROUNDS: &str = "300";

/// An example, as a command line and the number of its ranks.
struct Example {
    program: PathBuf,
    ranks: Option<&'static str>,
}

/// Where the tests of this process work; one folder an example and mode.
fn scratch(name: &str) -> PathBuf {
    let folder = built().join("test-work").join(format!("capi-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("the build folder can be written to");
    folder
}

fn folder() -> PathBuf {
    sources().join("../core/capi")
}

/// Compiles an example in C or Fortran against the library that was built; none if the machine has no compiler.
fn compile(compiler: &str, files: &[&str], into: &Path) -> Option<PathBuf> {
    let (lib, program) = (built(), into.join("example"));
    let mut command = Command::new(compiler);
    command.current_dir(into).args(["-O2", "-Wall", "-Wextra"]).arg("-I").arg(folder().join("include"));
    command.args(files.iter().map(|file| folder().join(file))).arg("-o").arg(&program);
    command.arg("-L").arg(&lib).arg("-lstillpoint").arg(format!("-Wl,-rpath,{}", lib.display()));
    let Ok(output) = command.output() else {
        skipped(&format!("no {compiler}"));
        return None;
    };
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.is_empty(), "{compiler} {files:?}: {text}");
    Some(program)
}

fn heat(into: &Path) -> Option<Example> {
    Some(Example { program: compile("mpicc", &["examples/heat.c"], into)?, ranks: Some("2") })
}

fn plugin(into: &Path) -> Option<Example> {
    Some(Example { program: compile("mpicc", &["examples/plugin.c"], into)?, ranks: Some("3") })
}

fn orbit(into: &Path) -> Option<Example> {
    let files = ["include/stillpoint.f90", "examples/orbit.f90"];
    Some(Example { program: compile("gfortran", &files, into)?, ranks: None })
}

fn primes(_: &Path) -> Option<Example> {
    let program = built().join("examples/primes");
    if !program.is_file() {
        skipped("no examples/primes; run `cargo build --release -p stillpoint-capi --examples`");
        return None;
    }
    Some(Example { program, ranks: None })
}

impl Example {
    fn native(&self) -> Command {
        let Some(ranks) = self.ranks else { return Command::new(&self.program) };
        let mut command = Command::new("mpirun");
        command.args(["-n", ranks]).arg(&self.program);
        command
    }

    fn under(&self, work: &Path) -> Command {
        let mut command = Command::new(built().join("stillpoint"));
        command.arg("run").arg("--dir").arg(work.join("checkpoints"));
        if let Some(ranks) = self.ranks {
            command.args(["-n", ranks]);
        }
        command.arg("--").arg(&self.program);
        command
    }
}

fn start(mut command: Command, work: &Path) -> Running {
    command.arg(ROUNDS).current_dir(work);
    Running::start(machine(&mut command))
}

/// Whether `number` checkpoints have been committed below `folder`.
fn committed(folder: &Path, number: usize) -> bool {
    fn count(folder: &Path) -> usize {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.path().extension().is_none_or(|ending| ending != "partial"))
            .map(|entry| {
                let manifest = entry.file_name() == "manifest.json";
                let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
                usize::from(manifest) + if is_folder { count(&entry.path()) } else { 0 }
            })
            .sum()
    }
    count(folder) >= number
}

/// The three runs of one example.
fn cycle(name: &str, example: fn(&Path) -> Option<Example>) {
    let work = scratch(name);
    let Some(example) = example(&work) else { return };
    let native = start(example.native(), &work).wait(LIMIT);
    let expected = native.result();
    assert!(!native.stdout.contains(": checkpoint"), "{native:#?}");

    let through = start(example.under(&work), &work).wait(LIMIT);
    assert_eq!(through.result(), expected, "{name} with checkpoints");
    for round in ["round 100: checkpoint", "round 200: checkpoint"] {
        assert!(through.stdout.contains(round), "{round}: {through:#?}");
    }

    let again = scratch(&format!("{name}-killed"));
    let mut job = start(example.under(&again), &again);
    let deadline = Instant::now() + LIMIT;
    while !committed(&again, 1) && job.is_running() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    let ranks = descendants(job.id(), "stillpoint-rank");
    let victim = ranks.last().unwrap_or_else(|| panic!("{name} has no rank left to kill"));
    assert!(kill(*victim), "the rank had gone");
    let killed = job.wait(LIMIT);
    assert_eq!(killed.result(), expected, "{name} killed");
    assert!(killed.stdout.contains(": restarted"), "the call did not return 1: {killed:#?}");
    let _ = std::fs::remove_dir_all(work);
    let _ = std::fs::remove_dir_all(again);
}

/// What the header promises, as `promises.c` sees it from inside; the program waits to be killed after its last checkpoint.
#[test]
fn promises() {
    let work = scratch("promises");
    let Some(program) = compile("cc", &["tests/promises.c"], &work) else { return };
    let example = Example { program, ranks: None };
    let native = start(example.native(), &work).wait(LIMIT);
    let mut job = start(example.under(&work), &work);
    let deadline = Instant::now() + LIMIT;
    while !committed(&work, 2) && job.is_running() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    for rank in descendants(job.id(), "stillpoint-rank") {
        kill(rank);
    }
    assert_eq!(job.wait(LIMIT).result(), native.result());
    let _ = std::fs::remove_dir_all(work);
}

#[test]
fn c_with_mpi() {
    cycle("heat", heat);
}

#[test]
fn a_plugin_with_rounds() {
    cycle("plugin", plugin);
}

#[test]
fn fortran() {
    cycle("orbit", orbit);
}

#[test]
fn rust() {
    cycle("primes", primes);
}
