//! Verbs programs on a model of the verbs (`verbs-model`), killed at random moments and restarted elsewhere: other addresses and LIDs, other
//! numbers of queue pairs, other keys, which collide with former ones. What the real library and kernel do is in `rdma.rs`. Runs *next door*.
#![allow(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use stillpoint_tests::cycle::full;
use stillpoint_tests::process::{Ended, Running, kill, machine};
use stillpoint_tests::program::Program;
use stillpoint_tests::{Random, built, skipped};

const LIMIT: Duration = Duration::from_secs(120);

/// What the devices are like.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fabric {
    Roce,
    /// Completions are seen up to three milliseconds after the other end has executed the request.
    Late,
    /// InfiniBand, with LIDs.
    Infiniband,
    /// Both ends on one host, and each restart there again: only numbers and keys change.
    One,
}

/// Two ends of a program.
struct Pair {
    /// Short: sockets lie there.
    fabric: PathBuf,
    folder: PathBuf,
    program: String,
    rounds: String,
    kind: Fabric,
}

impl Pair {
    /// None: the machine lacks something.
    fn new(name: &str, rounds: u32, kind: Fabric) -> Option<Pair> {
        let words = Program::named(name).command(0, 0).map_err(|lack| skipped(&lack)).ok()?;
        let id = std::process::id();
        let folder = built().join("test-work").join(format!("verbs-{name}-{}-{id}", kind as u8));
        let fabric = std::env::temp_dir().join(format!("fabric-{id}"));
        for dir in [&folder, &fabric] {
            let _ = fs::remove_dir_all(dir);
            fs::create_dir_all(dir).expect("it can be written to");
        }
        Some(Pair { fabric, folder, program: words[0].clone(), rounds: rounds.to_string(), kind })
    }

    /// One end, on this host of the model.
    fn end(&self, host: u32, words: &[&str]) -> Running {
        let mut command = Command::new(built().join("stillpoint"));
        command.arg("--dir").arg(self.folder.join("store")).args(words).current_dir(&self.folder);
        command
            .env("STILLPOINT_LOCAL_BASE", &self.folder)
            .env("LD_LIBRARY_PATH", built().join("verbs-model"));
        command.env("MODEL_DIR", &self.fabric).env("MODEL_HOST", host.to_string()).env("DEVICE", "model0");
        match self.kind {
            Fabric::Late => _ = command.env("MODEL_DELAY", "3000"),
            Fabric::Infiniband => _ = command.env("MODEL_IB", "1"),
            Fabric::Roce | Fabric::One => {}
        }
        Running::start(machine(&mut command))
    }

    fn begin(&self, hosts: [u32; 2]) -> [Running; 2] {
        let port = self.folder.join("port").display().to_string();
        let one = |k: usize, role: &str| {
            let words = ["exec", "--job", "pair", "--np", "2", "--rank", &k.to_string(), "--", &self.program];
            let more = [self.rounds.as_str(), "1", role, &port];
            self.end(hosts[k], &[&words[..], &more].concat())
        };
        [one(0, "listen"), one(1, "connect")]
    }

    fn again(&self, hosts: [u32; 2]) -> [Running; 2] {
        let one = |k: usize| {
            let rank = k.to_string();
            self.end(hosts[k], &["exec", "--job", "pair", "--np", "2", "--restart", "--rank", &rank])
        };
        [one(0), one(1)]
    }

    /// A checkpoint, as soon as there can be one. False: they have ended.
    fn checkpoint(&self, ranks: &mut [Running; 2]) -> bool {
        let deadline = Instant::now() + LIMIT;
        loop {
            let asked = self.end(0, &["checkpoint", "pair"]).wait(LIMIT);
            if asked.status.is_some_and(|s| s.success()) {
                return true;
            }
            if ranks.iter_mut().any(|r| !r.is_running()) {
                return false;
            }
            assert!(Instant::now() < deadline, "{asked:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn hosts(&self, life: u32) -> [u32; 2] {
        match self.kind {
            Fabric::One => [1, 1],
            // On each other's host now and then.
            _ if life % 2 == 1 => [2 * life, 2 * life - 1],
            _ => [2 * life + 1, 2 * life + 2],
        }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.fabric);
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// The one `result` line of a run that ended well.
fn result(ended: &Ended) -> &str {
    let well = ended.status.is_some_and(|status| status.success());
    assert!(well && ended.stdout.lines().any(|line| line == "EXIT-SUCCESS"), "{ended:#?}");
    ended.stdout.lines().find(|line| line.starts_with("result ")).expect("a result was printed")
}

/// Killed at random moments, half of them within a checkpoint or shortly after it, and restarted elsewhere.
fn killed(name: &str, rounds: u32, kind: Fabric) {
    let (kills, rounds) = if full() { (20, 5 * rounds) } else { (4, rounds) };
    let Some(pair) = Pair::new(name, rounds, kind) else { return };
    let mut random = Random::seeded();
    let mut ranks = pair.begin(pair.hosts(0));
    let mut lives = 0;
    for life in 1..=kills {
        std::thread::sleep(Duration::from_millis(random.below(400)));
        if !pair.checkpoint(&mut ranks) {
            break;
        }
        let another = (random.below(2) == 0).then(|| pair.end(0, &["checkpoint", "pair"]));
        std::thread::sleep(Duration::from_millis(random.below(300)));
        for rank in &ranks {
            kill(rank.id());
        }
        drop(another.map(|a| a.wait(LIMIT)));
        ranks = pair.again(pair.hosts(life));
        lives = life;
    }
    let [one, other] = ranks.map(|rank| rank.wait(LIMIT));
    assert_eq!(result(&one), result(&other), "both have added up the same numbers");
    assert!(lives >= 2, "it lives too briefly for this: {lives} restarts");
}

macro_rules! programs {
    ($($module:ident: $name:literal, $rounds:literal, $late:literal;)*) => {$(
        mod $module {
            use super::{Fabric, killed};

            #[test]
            fn elsewhere() {
                killed($name, $rounds, Fabric::Roce);
            }

            #[test]
            fn late() {
                killed($name, $late, Fabric::Late);
            }

            #[test]
            fn infiniband() {
                killed($name, $rounds, Fabric::Infiniband);
            }

            #[test]
            fn here() {
                killed($name, $rounds, Fabric::One);
            }
        }
    )*};
}

programs! {
    atomics: "verbs_atomics", 60_000, 4_000;
    writes: "verbs_writes", 40_000, 4_000;
    messages: "verbs_messages", 20_000, 2_000;
    events: "verbs_events", 3_000, 2_000;
    again: "verbs_again", 5_000, 1_000;
    shared: "verbs_shared", 20_000, 4_000;
}
