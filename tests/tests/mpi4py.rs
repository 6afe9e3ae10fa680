//! mpi4py's own test suite, from its source package, at 1, 2 and 3 ranks: under Stillpoint it ends as it does natively. Runs
//! *next door*.
//!
//! What a reader would get wrong: the suite is that of the version installed here (`python3-mpi4py`), fetched with pip; only
//! its tests are used, nothing of it is installed. Left out by name: `spawn` and `dynproc`, dynamic processes, which pass
//! through but are not proven.
#![allow(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use stillpoint_tests::process::{Ended, Running, machine};
use stillpoint_tests::{built, skipped};

const PYTHON: &str = "/usr/bin/python3";
const LEFT_OUT: [&str; 2] = ["spawn", "dynproc"];
const LIMIT: Duration = Duration::from_secs(300);

/// The suite, unpacked; none if the machine lacks something.
fn suite() -> Option<&'static PathBuf> {
    static SUITE: OnceLock<Option<PathBuf>> = OnceLock::new();
    SUITE.get_or_init(|| fetch().map_err(|lack| skipped(&lack)).ok()).as_ref()
}

fn run(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn fetch() -> Result<PathBuf, String> {
    let version = run(Command::new(PYTHON).args(["-c", "import mpi4py; print(mpi4py.__version__)"]))
        .ok_or("no mpi4py in the system's python3")?;
    // One for each process: tests run at the same time.
    let folder = built().join("test-work").join(format!("mpi4py-{}", std::process::id()));
    std::fs::create_dir_all(&folder).map_err(|error| format!("create {}: {error}", folder.display()))?;
    let name = format!("mpi4py=={version}");
    let pip = ["-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", &name];
    run(Command::new(PYTHON).args(pip).current_dir(&folder))
        .ok_or_else(|| format!("pip cannot fetch {name}"))?;
    let archive = format!("mpi4py-{version}.tar.gz");
    run(Command::new("tar").args(["xf", &archive]).current_dir(&folder))
        .ok_or_else(|| format!("unpack {archive}"))?;
    Ok(folder.join(format!("mpi4py-{version}")))
}

/// What the suite said of each rank: how many tests it ran, and which did not pass.
fn verdict(ended: &Ended) -> BTreeSet<String> {
    let text = ended.stdout.lines().chain(ended.stderr.lines());
    let found: BTreeSet<String> = text
        .filter(|line| line.starts_with("FAIL:") || line.starts_with("ERROR:") || line.starts_with("Ran "))
        // "Ran 1358 tests in 18.7s"
        .map(|line| line.split(" in ").next().unwrap_or(line).to_owned())
        .collect();
    assert!(found.iter().any(|line| line.starts_with("Ran ")), "the suite did not end: {ended:#?}");
    found
}

fn passes_as_natively(ranks: &str) {
    let Some(suite) = suite() else { return };
    let under = |halves: bool| {
        let mut command = Command::new("mpirun");
        command.args(["-n", ranks]);
        if halves {
            command.arg(built().join("stillpoint")).args(["exec", "--"]);
        }
        command.args([PYTHON, "test/runtests.py", "-q", "--no-builddir"]);
        command.args(LEFT_OUT.iter().flat_map(|name| ["-e", name])).current_dir(suite);
        verdict(&Running::start(machine(&mut command)).wait(LIMIT))
    };
    assert_eq!(
        under(true),
        under(false),
        "at {ranks} ranks: under Stillpoint on the left, natively on the right"
    );
}

#[test]
fn at_1_rank() {
    passes_as_natively("1");
}

#[test]
fn at_2_ranks() {
    passes_as_natively("2");
}

#[test]
fn at_3_ranks() {
    passes_as_natively("3");
}
