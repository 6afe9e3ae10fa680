//! Verbs programs on a model of the verbs (`verbs-model`): natively, with checkpoints, and killed at random moments and restarted elsewhere: other addresses and LIDs, other
//! numbers of queue pairs, other keys, which collide with former ones. What the real library and kernel do is in `rdma.rs`. Runs *next door*.
#![allow(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

use std::collections::BTreeSet;
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
    /// InfiniBand, with LIDs, where all go by addresses as well.
    Global,
    /// Both ends on one host, and each restart there again: only numbers and keys change.
    One,
    /// Three ends, two of which begin on one host, and are on two later, one of them with the third; on RoCE, on InfiniBand.
    Split,
    GlobalSplit,
}

/// The processes of a program, two or three. Of some one listens, and one connects with it, and another; others know their rank.
struct Group {
    size: usize,
    /// They know it.
    ranked: bool,
    /// It is not to be saved before all queue pairs are made.
    makes_first: bool,
    /// Short: sockets lie there.
    fabric: PathBuf,
    folder: PathBuf,
    program: String,
    rounds: String,
    kind: Fabric,
    /// How many queue pairs `verbs_shared` has.
    pairs: Option<u32>,
}

impl Group {
    /// None: the machine lacks something.
    fn new(name: &str, size: usize, rounds: u32, kind: Fabric) -> Option<Group> {
        let words = Program::named(name).command(0, 0).map_err(|lack| skipped(&lack)).ok()?;
        let id = std::process::id();
        let folder = built().join("test-work").join(format!("verbs-{name}-{}-{id}", kind as u8));
        let fabric = std::env::temp_dir().join(format!("fabric-{id}"));
        for dir in [&folder, &fabric] {
            let _ = fs::remove_dir_all(dir);
            fs::create_dir_all(dir).expect("it can be written to");
        }
        Some(Group {
            size,
            ranked: matches!(name, "verbs_names" | "verbs_idle"),
            makes_first: name == "verbs_idle",
            fabric,
            folder,
            program: words[0].clone(),
            rounds: rounds.to_string(),
            kind,
            pairs: None,
        })
    }

    /// One of them, on this host of the model.
    fn one(&self, host: u32, words: &[&str]) -> Running {
        let mut command = Command::new(built().join("stillpoint"));
        command.arg("--dir").arg(self.folder.join("store")).args(words);
        command.env("STILLPOINT_LOCAL_BASE", &self.folder);
        self.start(host, &mut command)
    }

    fn start(&self, host: u32, command: &mut Command) -> Running {
        command.current_dir(&self.folder).env("LD_LIBRARY_PATH", built().join("verbs-model"));
        command.env("MODEL_DIR", &self.fabric).env("MODEL_HOST", host.to_string()).env("DEVICE", "model0");
        if let Some(pairs) = self.pairs {
            command.env("QPS", pairs.to_string());
        }
        if self.program.ends_with("verbs_twins") {
            command.env("MODEL_DEVICES", "2");
        }
        match self.kind {
            Fabric::Late => _ = command.env("MODEL_DELAY", "3000"),
            Fabric::Infiniband => _ = command.env("MODEL_IB", "1"),
            Fabric::Global => _ = command.envs([("MODEL_IB", "1"), ("GLOBAL", "1")]),
            Fabric::Split => _ = command.env("SPLIT", "1"),
            Fabric::GlobalSplit => _ = command.envs([("MODEL_IB", "1"), ("GLOBAL", "1"), ("SPLIT", "1")]),
            Fabric::Roce | Fabric::One => {}
        }
        Running::start(machine(command))
    }

    /// What the program is told: one listens once for each of the others, or each is told its rank.
    fn words(&self, rank: usize) -> Vec<String> {
        let port = self.folder.join("port").display().to_string();
        let port = if self.ranked || rank < 2 { port } else { format!("{port}.{rank}") };
        let number = rank.to_string();
        let role = match rank {
            _ if self.ranked => number.as_str(),
            0 => "listen",
            _ => "connect",
        };
        [&self.program, &self.rounds, "1", role, &port].map(str::to_owned).into()
    }

    /// Natively, on the model.
    fn plain(&self) -> Vec<Running> {
        let hosts = self.hosts(0);
        let one = |k: usize| {
            let words = self.words(k);
            // A machine with other things to do may let a sender wait.
            self.start(hosts[k], Command::new(&words[0]).args(&words[1..]).env("RNR_TIMER", "25"))
        };
        (0..self.size).map(one).collect()
    }

    fn begin(&self) -> Vec<Running> {
        // Of a run before.
        for file in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let _ = fs::remove_file(file.path());
        }
        let (hosts, size) = (self.hosts(0), self.size.to_string());
        let one = |k: usize| {
            let rank = k.to_string();
            let words = ["exec", "--job", "group", "--np", &size, "--rank", &rank, "--"];
            let more = self.words(k);
            let more: Vec<&str> = more.iter().map(String::as_str).collect();
            self.one(hosts[k], &[&words[..], &more].concat())
        };
        (0..self.size).map(one).collect()
    }

    fn again(&self, life: u32) -> Vec<Running> {
        let (hosts, size) = (self.hosts(life), self.size.to_string());
        let one = |k: usize| {
            let rank = k.to_string();
            self.one(hosts[k], &["exec", "--job", "group", "--np", &size, "--restart", "--rank", &rank])
        };
        (0..self.size).map(one).collect()
    }

    /// A checkpoint, as soon as there can be one. False: they have ended.
    fn checkpoint(&self, ranks: &mut [Running]) -> bool {
        let deadline = Instant::now() + LIMIT;
        loop {
            let asked = self.one(0, &["checkpoint", "group"]).wait(LIMIT);
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

    fn hosts(&self, life: u32) -> Vec<u32> {
        match (self.kind, self.size) {
            (Fabric::One, n) => vec![1; n],
            (Fabric::Split | Fabric::GlobalSplit, _) => match life % 4 {
                0 => vec![1, 1, 2],
                1 => vec![1, 2, 2],
                2 => vec![life, life + 1, life],
                _ => vec![2, 1, life],
            },
            // On each other's host now and then.
            (_, 2) if life % 2 == 1 => vec![2 * life, 2 * life - 1],
            (_, 2) => vec![2 * life + 1, 2 * life + 2],
            // The third, which looks late, is where another one was.
            (_, _) if life == 0 => vec![1, 2, 3],
            (_, _) if life % 2 == 1 => vec![2, life + 2, 1],
            _ => vec![life + 2, 1, 2],
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.fabric);
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// The one `result` line of each end; all have ended well. Where one has failed the others would wait for ever.
fn results(mut ranks: Vec<Running>) -> Vec<String> {
    let (deadline, mut first) = (Instant::now() + LIMIT, None);
    loop {
        let running = ranks.iter_mut().filter_map(|rank| rank.is_running().then_some(())).count();
        if running < ranks.len() {
            first = first.or_else(|| Some(Instant::now() + LIMIT / 4));
        }
        if running == 0 || Instant::now() > first.unwrap_or(deadline) {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let ended: Vec<Ended> = ranks.into_iter().map(|rank| rank.wait(Duration::from_secs(1))).collect();
    // One that fails is the cause of others' failures.
    assert!(ended.iter().all(|end| end.status.is_some_and(|s| s.success())), "{ended:#?}");
    ended.iter().map(|end| end.result().to_owned()).collect()
}

/// Three ends by themselves, and the same with a checkpoint every now and then.
fn plain_and_on(name: &str, rounds: u32) {
    let Some(group) = Group::new(name, 3, rounds, Fabric::Roce) else { return };
    let plain = results(group.plain());
    let mut random = Random::seeded();
    let mut ranks = group.begin();
    let mut taken = 0;
    while group.checkpoint(&mut ranks) {
        taken += 1;
        std::thread::sleep(Duration::from_millis(random.below(200)));
    }
    assert_eq!(results(ranks), plain);
    assert!(plain.iter().all(|one| *one == plain[0]) && taken >= 2, "{taken} checkpoints");
}

/// All have added up the same numbers.
fn alike(ranks: Vec<Running>) {
    let all = results(ranks);
    assert!(all.iter().all(|one| *one == all[0]), "{all:?}");
}

/// The program itself is right.
fn plain(name: &str, size: usize, rounds: u32) {
    let Some(group) = Group::new(name, size, rounds / 10, Fabric::Roce) else { return };
    // The model has no extended interfaces: through the front, which has.
    alike(if matches!(name, "verbs_shared" | "verbs_pieces") { group.begin() } else { group.plain() });
}

/// A program that is over before it was disturbed so often runs once more, for so many times as long: machines differ.
const LONGER: [u32; 4] = [1, 3, 9, 27];

/// Runs it until `disturb` has done what it is to do so often, and says that it has; all come to the same end, each time.
fn long_enough(
    (name, size, rounds, kind): (&str, usize, u32, Fabric),
    often: u32,
    mut disturb: impl FnMut(&Group) -> (u32, Vec<Running>),
) {
    for longer in LONGER {
        let Some(group) = Group::new(name, size, longer * rounds, kind) else { return };
        let (times, ranks) = disturb(&group);
        alike(ranks);
        if times >= often {
            return;
        }
    }
    panic!("{name} was over before it was disturbed {often} times, also with {} times its rounds", LONGER[3]);
}

/// Checkpoints at random moments, after each of which it goes on.
fn goes_on(name: &str, size: usize, rounds: u32) {
    let mut random = Random::seeded();
    long_enough((name, size, rounds, Fabric::Late), 2, |group| {
        let mut ranks = group.begin();
        let mut taken = 0;
        while taken < 4 {
            std::thread::sleep(Duration::from_millis(random.below(400)));
            if !group.checkpoint(&mut ranks) {
                break;
            }
            taken += 1;
        }
        (taken, ranks)
    });
}

/// Killed at random moments, half of them within a checkpoint or shortly after it, and restarted elsewhere.
fn killed(name: &str, size: usize, rounds: u32, kind: Fabric) {
    let (kills, rounds) = if full() { (20, 10 * rounds) } else { (2, rounds) };
    let mut random = Random::seeded();
    long_enough((name, size, rounds, kind), kills, |group| survive(group, kills, &mut random));
}

/// [`killed`] on each of these fabrics, without `STILLPOINT_TEST_FULL` on one by chance.
fn somewhere(name: &str, size: usize, rounds: u32, kinds: &[Fabric]) {
    let first = Random::seeded().below(kinds.len() as u64) as usize;
    for kind in kinds.iter().cycle().skip(first).take(if full() { kinds.len() } else { 1 }) {
        killed(name, size, rounds, *kind);
    }
}

/// How often it was, and the ranks of the last start.
fn survive(group: &Group, kills: u32, random: &mut Random) -> (u32, Vec<Running>) {
    let mut ranks = group.begin();
    let (made, deadline) = (group.folder.join("port.made"), Instant::now() + LIMIT);
    while group.makes_first && !made.exists() {
        assert!(Instant::now() < deadline && ranks.iter_mut().all(Running::is_running), "it begins");
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut lives = 0;
    for life in 1..=kills {
        std::thread::sleep(Duration::from_millis(random.below(400)));
        if !group.checkpoint(&mut ranks) {
            break;
        }
        let another = (random.below(2) == 0).then(|| group.one(0, &["checkpoint", "group"]));
        std::thread::sleep(Duration::from_millis(random.below(300)));
        for rank in &ranks {
            kill(rank.id());
        }
        drop(another.map(|a| a.wait(LIMIT)));
        ranks = group.again(life);
        lives = life;
    }
    (lives, ranks)
}

macro_rules! programs {
    ($($module:ident: $name:literal of $size:literal, $rounds:literal, $late:literal;)*) => {$(
        mod $module {
            use super::{Fabric, killed, somewhere};

            #[test]
            fn plain() {
                super::plain($name, $size, $rounds);
            }

            #[test]
            fn goes_on() {
                super::goes_on($name, $size, $late);
            }

            #[test]
            fn late() {
                killed($name, $size, $late, Fabric::Late);
            }

            #[test]
            fn restarted() {
                somewhere($name, $size, $rounds, &[Fabric::Roce, Fabric::Infiniband, Fabric::One]);
            }
        }
    )*};
}

programs! {
    atomics: "verbs_atomics" of 2, 30_000, 2_000;
    writes: "verbs_writes" of 2, 15_000, 1_000;
    messages: "verbs_messages" of 2, 10_000, 1_000;
    events: "verbs_events" of 2, 2_000, 1_000;
    again: "verbs_again" of 2, 3_000, 600;
    shared: "verbs_shared" of 2, 10_000, 2_000;
    windows: "verbs_windows" of 2, 1_000, 300;
    groups: "verbs_groups" of 2, 3_000, 800;
    xrc: "verbs_xrc" of 2, 8_000, 1_500;
    lists: "verbs_lists" of 2, 2_500, 1_000;
    quiet: "verbs_quiet" of 2, 4_000, 700;
    asynchronous: "verbs_async" of 2, 200, 120;
    young: "verbs_young" of 2, 40, 40;
    churn: "verbs_churn" of 2, 250, 100;
    counter: "verbs_counter" of 3, 25_000, 2_000;
    gone: "verbs_gone" of 2, 2_500, 600;
    once: "verbs_once" of 2, 800, 250;
    pieces: "verbs_pieces" of 2, 8_000, 1_000;
    twins: "verbs_twins" of 2, 3_000, 700;
}

/// Three ends that know their rank.
macro_rules! threes {
    ($($module:ident: $name:literal, $rounds:literal;)*) => {$(
        mod $module {
            use super::{Fabric, somewhere};

            #[test]
            fn plain_and_on() {
                super::plain_and_on($name, $rounds);
            }

            #[test]
            fn restarted() {
                let kinds = [Fabric::Roce, Fabric::Infiniband, Fabric::Global, Fabric::Split, Fabric::GlobalSplit];
                somewhere($name, 3, $rounds, &kinds);
            }
        }
    )*};
}

threes! {
    names: "verbs_names", 400;
    idle: "verbs_idle", 1_500;
}

/// A message that nobody ever receives fails in the end, also if there was a checkpoint, and a restart, meanwhile.
#[test]
fn nobody_receives() {
    let Some(group) = Group::new("verbs_deaf", 2, 30, Fabric::Roce) else { return };
    alike(group.plain());
    let _ = fs::remove_file(group.folder.join("port.failed"));
    let mut ranks = group.begin();
    std::thread::sleep(Duration::from_millis(500));
    for life in 1..=2 {
        assert!(group.checkpoint(&mut ranks), "it waits for a good while");
        std::thread::sleep(Duration::from_millis(500));
        for rank in &ranks {
            kill(rank.id());
        }
        ranks = group.again(life);
    }
    // And when it has failed.
    let (failed, deadline) = (group.folder.join("port.failed"), Instant::now() + LIMIT);
    while !failed.exists() {
        assert!(Instant::now() < deadline && ranks.iter_mut().all(Running::is_running), "it fails");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(group.checkpoint(&mut ranks), "it goes on for a while");
    for rank in &ranks {
        kill(rank.id());
    }
    alike(group.again(3));
}

/// An end of which only the other one has seen that it is in error is in error after a restart, too.
#[test]
fn the_other_end_has_broken_it() {
    let Some(group) = Group::new("verbs_broken", 2, 400, Fabric::Roce) else { return };
    alike(group.plain());
    drop(group);
    killed("verbs_broken", 2, 2_500, Fabric::Roce);
}

/// A queue pair that is not connected yet holds up no checkpoint, whatever its other end has sent.
#[test]
fn one_end_is_connected() {
    let Some(group) = Group::new("verbs_young", 2, 100, Fabric::Roce) else { return };
    let mut random = Random::seeded();
    let mut ranks = group.begin();
    assert!(group.checkpoint(&mut ranks), "it begins");
    for _ in 0..8 {
        std::thread::sleep(Duration::from_millis(random.below(150)));
        let asked = group.one(0, &["checkpoint", "group"]).wait(LIMIT);
        let well = asked.status.is_some_and(|s| s.success());
        assert!(well || ranks.iter_mut().any(|r| !r.is_running()), "{asked:#?}");
    }
    alike(ranks);
}

/// Two thousand queue pairs at each end.
#[test]
fn many_queue_pairs() {
    let Some(mut group) = Group::new("verbs_shared", 2, 6_000, Fabric::Roce) else { return };
    group.pairs = Some(2_000);
    let (lives, ranks) = survive(&group, 3, &mut Random::seeded());
    alike(ranks);
    assert!(lives >= 2, "it lives too briefly for this: {lives} restarts");
}

/// What cannot be had says so; what cannot be saved is refused by name, and once that is gone there is a checkpoint.
#[test]
fn what_cannot_be_saved_is_named() {
    let Some(group) = Group::new("verbs_refused", 1, 1, Fabric::Roce) else { return };
    let mut ranks = group.begin();
    let reasons = [
        "its other end is no queue pair of this job",
        "memory window 0x",
        "neither RC, UC, UD nor XRC",
        "its memory is not mapped any more",
        "queue pairs with an alternate path",
        "",
    ];
    for (number, reason) in (1..).zip(reasons) {
        let (there, deadline) = (group.folder.join(format!("port.{number}")), Instant::now() + LIMIT);
        while !there.exists() {
            assert!(Instant::now() < deadline && ranks[0].is_running(), "stage {number}");
            std::thread::sleep(Duration::from_millis(10));
        }
        if reason.is_empty() {
            assert!(group.checkpoint(&mut ranks), "nothing stands in its way");
        } else {
            loop {
                let asked = group.one(0, &["checkpoint", "group"]).wait(LIMIT);
                let said = format!("{}{}", asked.stdout, asked.stderr);
                if asked.status.is_some_and(|s| s.code() == Some(1)) && said.contains(reason) {
                    break;
                }
                // The rank may be there before the job is.
                assert!(Instant::now() < deadline && said.contains("is not running"), "{asked:#?}");
            }
        }
        fs::write(there.with_extension(format!("{number}.go")), "").expect("it can be written to");
    }
    results(ranks);
}

/// Names that a library exports by default, with their versions.
fn exported(library: &str) -> BTreeSet<String> {
    let listing =
        Command::new("nm").args(["-D", "--with-symbol-versions", "--defined-only", library]).output();
    let listing = listing.expect("nm can be started");
    let all = String::from_utf8_lossy(&listing.stdout);
    let names = all.lines().filter_map(|line| line.split_whitespace().last());
    names.filter(|name| name.contains("@@IBVERBS_")).map(str::to_owned).collect()
}

/// What is linked with rdma-core's library finds all of that in the front: the same names by default, under the same versions.
#[test]
fn the_front_exports_what_the_library_does() {
    let found =
        Command::new("cc").arg("-print-file-name=libibverbs.so.1").output().expect("cc can be started");
    let library = String::from_utf8_lossy(&found.stdout).trim().to_owned();
    let (theirs, ours) =
        (exported(&library), exported(&built().join("libstillpoint_ibverbs.so").display().to_string()));
    assert!(theirs.len() > 100, "{library}: {theirs:?}");
    // For drivers that were built with it.
    let missing: Vec<_> = theirs.difference(&ours).filter(|name| !name.contains("IBVERBS_PRIVATE")).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
