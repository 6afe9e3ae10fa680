//! How a run ends, and what comes in from outside: results are no losses and restart nothing; a user's end is one, and can be taken up
//! again; standard input goes on where it was. Runs *next door*.
#![allow(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use stillpoint_tests::cycle::until;
use stillpoint_tests::process::{Ended, Running, descendants, kill, machine, signal};
use stillpoint_tests::program::Program;
use stillpoint_tests::store::newest;
use stillpoint_tests::{Random, built, skipped};

const LIMIT: Duration = Duration::from_secs(90);
const RANK: &str = "stillpoint-rank";

/// A folder for one test, gone with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let folder = built().join("test-work").join(format!("outcomes-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect("the build folder can be written to");
        Folder(folder)
    }

    fn store(&self) -> PathBuf {
        self.0.join("store")
    }

    /// A line of a shell, in which `$SP` is Stillpoint.
    fn shell(&self, line: &str) -> Running {
        let stillpoint = format!("{} --dir {}", built().join("stillpoint").display(), self.store().display());
        let mut command = Command::new("bash");
        command.args(["-c", line]).env("SP", stillpoint).current_dir(&self.0);
        Running::start(machine(&mut command))
    }

    /// Waits for a commit newer than this one while that runs.
    fn commit(&self, than: u64, job: &mut Running) -> u64 {
        until(LIMIT, || newest(&self.store()) > than || !job.is_running());
        newest(&self.store())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// The compiled program.
fn program(name: &str) -> Option<String> {
    let words = Program::named(name).command(0, 0).map_err(|lack| skipped(&lack)).ok()?;
    words.into_iter().next()
}

fn code(ended: &Ended) -> Option<i32> {
    ended.status.and_then(|status| status.code())
}

#[test]
fn an_exit_status_is_a_result() {
    let Some(count) = program("count") else { return };
    let folder = Folder::new("status");
    let mut job =
        folder.shell(&format!("$SP run --interval 200ms -- sh -c '{count} 0; {count} 500 | cat; exit 7'"));
    let _ = folder.commit(0, &mut job);
    let ended = job.wait(LIMIT);
    assert_eq!(code(&ended), Some(7), "{ended:#?}");
    assert!(!ended.stderr.contains("; restart "), "{ended:#?}");
}

/// Of three ranks one calls MPI_Abort, after checkpoints: the run has its status, and is not restarted.
#[test]
fn an_abort_is_a_result() {
    let Some(abort) = program("abort") else { return };
    let folder = Folder::new("abort");
    let native = folder.shell(&format!("mpirun -n 3 {abort} 200")).wait(LIMIT);
    assert_eq!(code(&native), Some(7), "{native:#?}");
    let mut job = folder.shell(&format!("exec $SP run -n 3 --interval 200ms -- {abort} 6000"));
    assert!(folder.commit(0, &mut job) > 0, "it ended before its first checkpoint: {:#?}", job.wait(LIMIT));
    let ended = job.wait(LIMIT);
    assert_eq!(code(&ended), Some(7), "{ended:#?}");
    assert!(!ended.stderr.contains("; restart "), "{ended:#?}");
}

/// ^C ends the run, which restarts nothing by itself; `stillpoint restart` goes on from the last checkpoint.
#[test]
fn an_interrupted_run_is_taken_up_again() {
    let Some(count) = program("count") else { return };
    let folder = Folder::new("interrupt");
    let native = folder.shell(&format!("{count} 4000 3")).wait(LIMIT).result().to_owned();
    let mut job = folder.shell(&format!("exec $SP run --interval 200ms -- {count} 4000 3"));
    let taken = folder.commit(0, &mut job);
    assert!(taken > 0, "it ended before its first checkpoint: {:#?}", job.wait(LIMIT));
    // As the terminal does: to all of its foreground group. On a busy machine the last one hears of it when the others have ended.
    for pid in descendants(job.id(), RANK) {
        let _ = signal(pid, Signal::INT);
    }
    std::thread::sleep(Duration::from_millis(100));
    let _ = signal(job.id(), Signal::INT);
    let ended = job.wait(LIMIT);
    assert!(code(&ended) != Some(0) && !ended.stderr.contains("; restart "), "{ended:#?}");
    assert!(ended.stderr.contains("stillpoint restart"), "what to do is said: {ended:#?}");
    let ended = folder.shell("exec $SP restart 1").wait(LIMIT);
    assert_eq!(code(&ended), Some(0), "{ended:#?}");
    assert_eq!(ended.result(), native);
}

/// A program that is fed by a pipe is killed twice: what it had read at its checkpoint it does not read again, and the rest it does.
/// Beside it, `of` the command line, there may be ranks that read nothing.
fn goes_on_reading(name: &str, launch: &str, of: impl Fn(&str) -> String) {
    let Some(lines) = program("lines") else { return };
    let command = of(&lines);
    let mut random = Random::seeded();
    let folder = Folder::new(name);
    let native = folder.shell(&format!("seq 1 5000 | {lines}")).wait(LIMIT).result().to_owned();
    let mut job = folder.shell(&format!("seq 1 5000 | $SP run {launch} --interval 200ms -- {command}"));
    for _ in 0..2 {
        let before = newest(&folder.store());
        assert!(folder.commit(before, &mut job) > before, "it ended too soon: {:#?}", job.wait(LIMIT));
        std::thread::sleep(Duration::from_millis(random.below(300)));
        assert!(descendants(job.id(), RANK).into_iter().any(kill), "{:#?}", job.wait(LIMIT));
    }
    let ended = job.wait(LIMIT);
    assert_eq!(code(&ended), Some(0), "{ended:#?}");
    assert!(ended.stderr.contains("; restart 2 of"), "{ended:#?}");
    assert!(ended.stdout.lines().any(|line| line == native), "{native}: {ended:#?}");
}

#[test]
fn standard_input_goes_on_at_its_offset() {
    goes_on_reading("input", "", str::to_owned);
}

#[test]
fn standard_input_of_rank_0_goes_on_at_its_offset() {
    let Some(count) = program("count") else { return };
    goes_on_reading("input-2", "-n 2", |lines| {
        format!("sh -c 'if [ $OMPI_COMM_WORLD_RANK = 0 ]; then exec {lines}; else exec {count} 5000; fi'")
    });
}
