//! Jobs without MPI and without a launcher: ranks that are started by hand, one `exec --job` each, are saved and restarted
//! together. Runs *next door*.
#![allow(clippy::tests_outside_test_module, reason = "an integration test is a test module")]
#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use stillpoint_tests::process::{Ended, Running, kill, machine};
use stillpoint_tests::program::Program;
use stillpoint_tests::{built, skipped};

const LIMIT: Duration = Duration::from_secs(90);

/// A job of two counters with different seeds, and what each finds when nothing disturbs it.
struct Pair {
    folder: PathBuf,
    program: String,
}

impl Pair {
    /// None: the machine lacks something.
    fn new(name: &str) -> Option<Pair> {
        let words = Program::named("count").command(0, 0).map_err(|lack| skipped(&lack)).ok()?;
        let folder = built().join("test-work").join(format!("byhand-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect("the build folder can be written to");
        Some(Pair { folder, program: words.first().expect("a program").clone() })
    }

    fn stillpoint(&self, words: &[&str]) -> Running {
        let mut command = Command::new(built().join("stillpoint"));
        command.arg("--dir").arg(self.folder.join("store")).args(words).current_dir(&self.folder);
        command.env("STILLPOINT_LOCAL_BASE", &self.folder);
        Running::start(machine(&mut command))
    }

    fn says(&self, words: &[&str]) -> Ended {
        self.stillpoint(words).wait(LIMIT)
    }

    fn native(&self, seed: &str) -> String {
        let mut command = Command::new(&self.program);
        Running::start(command.args([ROUNDS, seed])).wait(LIMIT).result().to_owned()
    }

    /// A rank; it counts from this seed.
    fn start(&self, seed: &str, more: &[&str]) -> Running {
        let own = ["exec", "--job", "pair", "--np", "2"];
        self.stillpoint(&[&own[..], more, &["--", &self.program, ROUNDS, seed]].concat())
    }

    /// A rank of the next start.
    fn again(&self, more: &[&str]) -> Running {
        self.stillpoint(&[&["exec", "--job", "pair", "--np", "2", "--restart"][..], more].concat())
    }

    /// A checkpoint, as soon as both are there.
    fn checkpoint(&self) {
        let deadline = Instant::now() + LIMIT;
        loop {
            let asked = self.says(&["checkpoint", "pair"]);
            if asked.status.is_some_and(|s| s.success()) {
                return;
            }
            assert!(Instant::now() < deadline, "{asked:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn is(&self, state: &str) -> bool {
        let ls = self.says(&["ls", "pair"]);
        ls.stdout.contains(state)
    }
}

const ROUNDS: &str = "3000";

impl Drop for Pair {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

#[test]
fn both_are_saved_together_and_go_on_in_another_order() {
    let Some(pair) = Pair::new("order") else { return };
    let expected = [pair.native("1"), pair.native("2")];
    let ranks = [pair.start("1", &[]), pair.start("2", &["--rank", "1"])];
    pair.checkpoint();
    assert!(pair.is("running"), "ls shows that it runs");
    let more = pair.start("3", &[]).wait(LIMIT);
    assert!(more.stderr.contains("job pair has all its ranks already; --restart goes on"), "{more:#?}");
    for rank in &ranks {
        assert!(kill(rank.id()), "it had ended");
    }
    drop(ranks);
    let by_launcher = pair.says(&["restart", "pair"]);
    assert!(
        by_launcher.stderr.contains("exec --job pair --np 2 --restart', once for each"),
        "{by_launcher:#?}"
    );
    // The second comes first, and says so; the first takes what is left.
    let second = pair.again(&["--rank", "1"]);
    let first = pair.again(&[]);
    pair.checkpoint();
    // And once more, in the order in which they come: which process is which rank is of no matter.
    for rank in [&first, &second] {
        assert!(kill(rank.id()), "it had ended");
    }
    drop((first, second));
    let again = [pair.again(&[]), pair.again(&[])];
    let mut found = again.map(|rank| rank.wait(LIMIT).result().to_owned());
    found.sort();
    let mut expected = expected;
    expected.sort();
    assert_eq!(found, expected);
    assert!(pair.is("ended"), "ls shows that it is over");
}

#[test]
fn a_rank_that_still_runs_is_named_and_keeps_the_job() {
    let Some(pair) = Pair::new("half") else { return };
    let expected = pair.native("1");
    let (first, second) = (pair.start("1", &["--rank", "0"]), pair.start("2", &["--rank", "1"]));
    pair.checkpoint();
    assert!(kill(second.id()), "it had ended");
    drop(second);
    let refused = pair.again(&[]).wait(LIMIT);
    assert!(refused.stderr.contains("still runs (rank 0); end what is left of it first"), "{refused:#?}");
    assert_eq!(first.wait(LIMIT).result(), expected, "a lost rank does not disturb the other");
    let again = [pair.again(&["--rank", "0"]), pair.again(&["--rank", "1"])];
    let [found, other] = again.map(|rank| rank.wait(LIMIT).result().to_owned());
    assert_eq!((found, other), (expected, pair.native("2")));
}

#[test]
fn what_is_no_rank_of_it_is_refused() {
    let Some(pair) = Pair::new("refused") else { return };
    let first = pair.start("1", &[]);
    while !pair.folder.join("store/pair/ranks/000000/0").exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let three = pair.says(&["exec", "--job", "pair", "--np", "3", "--", &pair.program]);
    assert!(three.stderr.contains("job pair has 2 ranks, not 3"), "{three:#?}");
    let fifth = pair.start("1", &["--rank", "5"]).wait(LIMIT);
    assert!(fifth.stderr.contains("there is no rank 5 among 2"), "{fifth:#?}");
    let early = pair.again(&[]).wait(LIMIT);
    assert!(early.status.is_some_and(|s| s.code() == Some(125)), "{early:#?}");
    assert!(early.stderr.contains("still runs") || early.stderr.contains("has no checkpoint"), "{early:#?}");
    assert_eq!(first.wait(LIMIT).result(), pair.native("1"), "it runs on without the other");
}

#[test]
fn a_connection_between_them_goes_on_from_other_processes() {
    let Some(pair) = Pair::new("stream") else { return };
    let words = match Program::named("stream").command(0, 0) {
        Ok(words) => words,
        Err(lack) => return skipped(&lack),
    };
    let program = words.first().expect("a program").clone();
    let start = |side: &str, rank: &str| {
        let own = ["exec", "--job", "pair", "--np", "2", "--rank", rank, "--"];
        pair.stillpoint(&[&own[..], &[&program, ROUNDS, "1", side, "port"]].concat())
    };
    let ranks = [start("listen", "0"), start("connect", "1")];
    for _ in 0..3 {
        pair.checkpoint();
    }
    for rank in &ranks {
        assert!(kill(rank.id()), "it had ended");
    }
    drop(ranks);
    let ranks = [pair.again(&["--rank", "1"]), pair.again(&["--rank", "0"])];
    pair.checkpoint();
    for rank in &ranks {
        assert!(kill(rank.id()), "it had ended");
    }
    drop(ranks);
    let ranks = [pair.again(&["--rank", "0"]), pair.again(&["--rank", "1"])];
    let [one, other] = ranks.map(|rank| rank.wait(LIMIT).result().to_owned());
    assert_eq!(one, other, "both have added up the same numbers");
}
