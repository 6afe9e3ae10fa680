//! The runs of one program: native, under Stillpoint, with checkpoints, killed and restarted. Runs *next door*.
//!
//! What a reader would get wrong: how often and how long is measured natively at first, as machines differ; what is over before it was
//! disturbed runs once more, for longer, and never counts as passed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::case::{Case, LIMIT, Scratch, prepared, results, run_native};
use crate::process::{Ended, Running, copies, descendants, is_stopped, kill, signal};
use crate::program::Program;
use crate::store::{being_written, commits, log, newest, size};
use crate::{Random, built, skipped};
use rustix::process::Signal;

/// The name of the program that a rank really is.
const RANK: &str = "stillpoint-rank";

/// Runs natively, with few rounds: the program itself is right.
pub fn native(name: &str) {
    let program = Program::named(name);
    let Some(words) = prepared(&program, program.rounds / 20) else { return };
    let scratch = Scratch::new("native", name);
    let ended = run_native(&program, &words, &scratch, LIMIT);
    results(&ended);
}

/// Runs under Stillpoint without any checkpoint; ends as the native run does.
pub fn through(name: &str) {
    compare(name, "through", 0, None, &mut |_, _| {});
}

/// Like [`through`], behind `sh`, `env` and `numactl`, each of which replaces itself by the next.
pub fn chained(name: &str) {
    if !std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .any(|folder| folder.join("numactl").is_file())
    {
        skipped("no numactl");
        return;
    }
    compare(name, "chained", 0, None, &mut |_, _| {});
}

/// Killed while a script still stands before the program, and started again: what comes in by execve then is a rank of the new
/// start, though the environment of the script is that of the first.
pub fn early(name: &str) {
    let mut random = Random::seeded();
    let Some(case) = Case::new(name, "early", 2) else { return };
    let ended = case.run(Some("200ms"), &[], &mut |job, store| {
        assert!(until(LIMIT, || newest(store) > 0), "{name}: no checkpoint: {}", log(store));
        let ranks = descendants(job.id(), RANK);
        kill_one(job.id(), &mut random);
        let again = || {
            let now = descendants(job.id(), RANK);
            now.len() == ranks.len() && now.iter().all(|pid| !ranks.contains(pid))
        };
        assert!(until(LIMIT, again), "{name}: not started again: {}", log(store));
        fs::write(store.with_file_name("go"), "").expect("cannot write");
        // And the rank of the new start is saved as any other.
        let is_next = |pid: u32| {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            words.split(|c| *c == 0).any(|word| word == b"--mask")
        };
        until(LIMIT, || descendants(job.id(), RANK).into_iter().all(is_next) || !job.is_running());
        let before = newest(store);
        until(LIMIT, || newest(store) > before || !job.is_running());
        assert!(newest(store) > before, "{name}: no checkpoint after the execve: {}", log(store));
        kill_one(job.id(), &mut random);
    });
    assert!(ended.stderr.contains("; restart 2 of"), "{name} was not restarted twice: {}", ended.stderr);
}

/// Runs under Stillpoint with frequent checkpoints; ends as the native run does, and at least one was committed.
pub fn checkpointed(name: &str) {
    long_enough(name, "checkpointed", 4, "300ms", &mut |job, store| {
        until(LIMIT, || !commits(store).is_empty() || !job.is_running());
        !commits(store).is_empty()
    });
}

/// Runs until `disturb` says that it has had what it needs. A machine that has become faster since the program was measured ends it too
/// soon: then once more, for twice and four times as long.
fn long_enough(
    name: &str,
    mode: &'static str,
    seconds: u32,
    interval: &str,
    disturb: &mut dyn FnMut(&mut Running, &Path) -> bool,
) -> Option<Ended> {
    let mut text = String::new();
    for longer in [1, 2, 4] {
        let mut enough = false;
        let ended = compare(name, mode, seconds * longer, Some(interval), &mut |job, store| {
            enough = disturb(job, store);
            text = log(store);
        })?;
        if enough {
            return Some(ended);
        }
    }
    panic!("{name} ended each time before enough of it was seen: {text}");
}

/// Runs with a checkpoint every 100 ms, at least 100 of them committed with `STILLPOINT_TEST_FULL`, else 15. From half of them on no
/// descriptors or threads are gathered by the ranks and the agent, nor memory, where a program has come to hold what it ever will by then.
pub fn hammered(name: &str) {
    let (seconds, wanted) = if full() { (60, 100) } else { (8, 15) };
    let mut seen = Vec::new();
    let ended = long_enough(name, "hammered", seconds, "100ms", &mut |job, store| {
        seen.clear();
        for share in [wanted / 2, wanted] {
            until(LIMIT, || newest(store) >= share || !job.is_running());
            let all = [descendants(job.id(), RANK), agents_of(store)].concat();
            // What comes and goes with a checkpoint is there at some moments only.
            let least = (0..20).map(|_| {
                std::thread::sleep(Duration::from_millis(7));
                held(&all)
            });
            seen.push(least.reduce(|a, b| [0, 1, 2].map(|k| a[k].min(b[k]))).unwrap_or_default());
        }
        newest(store) >= wanted && job.is_running()
    });
    if ended.is_some() {
        let (first, last) = (seen[0], seen[1]);
        let grows = full() && last[0] > first[0] + (32 << 10);
        assert!(!grows, "{name}: memory grows (KiB, descriptors, threads): {seen:?}");
        assert!(
            last[1] <= first[1] + 2 && last[2] <= first[2] + 2,
            "{name}: more and more is open: {seen:?}"
        );
    }
    let restarted = ended.is_some_and(|e| e.stderr.contains("; restart "));
    assert!(!restarted, "nobody was killed, and yet {name} was restarted");
}

/// Anonymous memory in KiB, open descriptors and threads of these processes.
fn held(all: &[u32]) -> [u64; 3] {
    let of = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let number = |key: &str| -> u64 {
            let line = status.lines().find_map(|l| l.strip_prefix(key)).unwrap_or_default();
            line.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or_default()
        };
        [number("RssAnon:"), descriptors(pid) as u64, number("Threads:")]
    };
    all.iter().map(|pid| of(*pid)).fold([0; 3], |a, b| [0, 1, 2].map(|k| a[k] + b[k]))
}

/// A scheduler's warning (`STILLPOINT_SIGNAL`) to all ranks asks for a checkpoint, before and after a restart; nobody dies of it.
pub fn warned(name: &str) {
    let mut random = Random::seeded();
    let Some(case) = Case::new(name, "warned", 10) else { return };
    let ended = case.run(None, &[("STILLPOINT_SIGNAL", "USR1")], &mut |job, store| {
        // In its first moments, before it has asked the kernel for anything, a process dies of any signal.
        until(LIMIT, || !log(store).is_empty() || !job.is_running());
        for kill_after in [true, false] {
            let before = newest(store);
            let asked = until(LIMIT, || {
                warn_all(job.id());
                // A rank that has only just begun has nobody to tell yet.
                until(Duration::from_secs(1), || newest(store) > before) || !job.is_running()
            });
            assert!(asked && newest(store) > before, "{name}: no checkpoint on a warning: {}", log(store));
            if kill_after {
                let ranks = descendants(job.id(), RANK);
                kill_one(job.id(), &mut random);
                until(LIMIT, || {
                    let now = descendants(job.id(), RANK);
                    now.len() == ranks.len() && now.iter().all(|pid| !ranks.contains(pid))
                });
            }
        }
    });
    assert!(ended.stderr.contains("; restart 1 of"), "{name} was not restarted");
}

/// Warnings without a pause from a rank's first moment on, also while it becomes another program and while it is restarted after
/// a kill: nobody dies of them, and a checkpoint that was under way then is in no later one's way.
pub fn stormed(name: &str) {
    let mut random = Random::seeded();
    // A warning cuts a sleep short, so rounds go by faster meanwhile.
    let Some(case) = Case::new(name, "stormed", 10) else { return };
    for time in 0..if full() { 20 } else { 5 } {
        let ended = case.run(None, &[("STILLPOINT_SIGNAL", "USR1")], &mut |job, store| {
            storm(job);
            until(LIMIT, || newest(store) > 0 || !job.is_running());
            assert!(newest(store) > 0, "{name}, time {time}: no checkpoint: {}", log(store));
            if time > 0 {
                kill_one(job.id(), &mut random);
                storm(job);
            }
        });
        let restarts = ended.stderr.matches("; restart ").count();
        assert_eq!(restarts, usize::from(time > 0), "{name}, time {time}: {}", ended.stderr);
    }
}

fn storm(job: &mut Running) {
    let end = Instant::now() + Duration::from_secs(1);
    while Instant::now() < end && job.is_running() {
        warn_all(job.id());
    }
}

fn warn_all(job: u32) {
    for pid in descendants(job, RANK) {
        signal(pid, Signal::USR1);
    }
}

/// A scheduler's warning that comes when the agent has just been killed, and one whose checkpoint dies with the agent: the next
/// one takes it.
pub fn unheard(name: &str) {
    let Some(case) = Case::new(name, "unheard", 12) else { return };
    let ended = case.run(None, &[("STILLPOINT_SIGNAL", "USR1")], &mut |job, store| {
        // The ranks are there when there is a checkpoint of them.
        until(LIMIT, || {
            warn_all(job.id());
            until(Duration::from_secs(1), || newest(store) > 0) || !job.is_running()
        });
        // One that is asked for twice is taken by then.
        std::thread::sleep(Duration::from_secs(1));
        for begun in [false, true] {
            let before = newest(store);
            if begun {
                warn_all(job.id());
                until(LIMIT, || being_written(store) || newest(store) > before || !job.is_running());
            }
            let killed = agents_of(store).into_iter().all(kill);
            assert!(killed, "{name}: the agent has gone by itself: {}", log(store));
            if !begun {
                warn_all(job.id());
            }
            until(LIMIT, || newest(store) > before || !job.is_running());
            assert!(
                newest(store) > before,
                "{name}, begun {begun}: the warning is forgotten: {}",
                log(store)
            );
        }
    });
    assert!(!ended.stderr.contains("; restart "), "{name} was restarted");
}

/// A frozen child that never ends, because it is stopped: its checkpoint is given up at the limit, and the child is ended with it.
/// The next one is committed, and the job ends as the native run does.
pub fn stuck(name: &str) {
    let Some(case) = Case::new(name, "stuck", 10) else { return };
    case.run(Some("300ms"), &[("STILLPOINT_LIMITS", "write=2s")], &mut |job, store| {
        until(LIMIT, || newest(store) > 0 || !job.is_running());
        let mut child = None;
        until(LIMIT, || {
            child =
                copies(job.id(), RANK).into_iter().find(|pid| signal(*pid, Signal::STOP) && is_stopped(*pid));
            child.is_some() || !job.is_running()
        });
        let child = child.unwrap_or_else(|| panic!("no frozen child of {name} was seen: {}", log(store)));
        let last = newest(store);
        until(LIMIT, || !is_stopped(child));
        // It dies with its rank in any case.
        let alone = !is_stopped(child) && !descendants(job.id(), RANK).is_empty();
        assert!(alone, "{name}: the frozen child outlives its checkpoint: {}", log(store));
        until(LIMIT, || newest(store) > last || !job.is_running());
        assert!(newest(store) > last, "{name}: no checkpoint after one that was given up: {}", log(store));
    });
}

/// Checkpoint, kill, restart: ten times in a row with `STILLPOINT_TEST_FULL`, else three. The image and the number of open
/// descriptors do not grow from one generation to the next.
pub fn generations(name: &str) {
    let (seconds, times) = if full() { (40, 10) } else { (12, 3) };
    let mut random = Random::seeded();
    let mut seen = Vec::new();
    let ran = long_enough(name, "generations", seconds, "300ms", &mut |job, store| {
        let mut last = 0;
        seen.clear();
        for time in 0..times {
            // The second commit of a generation: the first one may still be of the one before.
            let fresh = until(LIMIT, || newest(store) >= last + 2 || !job.is_running());
            assert!(fresh, "{name}: no commit in generation {time}: {}", log(store));
            if !job.is_running() {
                return false;
            }
            last = newest(store);
            let ranks = descendants(job.id(), RANK);
            let bytes: u64 = commits(store).last().map_or(0, |folder| size(folder));
            let open = ranks.iter().map(|pid| descriptors(*pid)).max().unwrap_or(0);
            seen.push((bytes, open));
            std::thread::sleep(Duration::from_millis(random.below(200)));
            kill_one(job.id(), &mut random);
            until(LIMIT, || descendants(job.id(), RANK).iter().all(|pid| !ranks.contains(pid)));
        }
        true
    });
    if ran.is_none() {
        return;
    }
    let (first, last) = (seen[1], seen[seen.len() - 1]);
    // Messages on their way at the moment are in the image: programs differ by some of them from one time to the next.
    assert!(last.0 <= first.0 + first.0 / 10 + (48 << 20), "the image grows: {seen:?}");
    assert!(last.1 <= first.1 + 2, "open descriptors grow: {seen:?}");
}

/// Kills the node agent at random moments: the job is not restarted, another agent begins, checkpoints are committed under it,
/// and the job ends as the native run does.
pub fn orphaned(name: &str) {
    agents_killed(name, "orphaned", 1);
}

/// [`orphaned`] with an agent for each two ranks, as if they were on nodes of their own: whichever is killed, the root or not.
pub fn scattered(name: &str) {
    agents_killed(name, "scattered", 2);
}

fn agents_killed(name: &str, mode: &'static str, nodes: usize) {
    let times = if full() { 6 } else { 2 };
    let mut random = Random::seeded();
    let mut text = String::new();
    let ended = long_enough(name, mode, 6 * times, "200ms", &mut |job, store| {
        let mut last = 0;
        for time in 0..times {
            until(LIMIT, || newest(store) > last || !job.is_running());
            std::thread::sleep(Duration::from_millis(random.below(400)));
            // The commit may be of a checkpoint that was under way when the last one was killed.
            let mut agents = Vec::new();
            until(LIMIT, || {
                agents = agents_of(store);
                agents.len() == nodes || !job.is_running()
            });
            if !job.is_running() {
                return false;
            }
            assert!(agents.len() == nodes, "{name}, time {time}: agents {agents:?}: {}", log(store));
            last = newest(store);
            let which = random.below(agents.len() as u64);
            assert!(kill(agents[usize::try_from(which).expect("few agents")]));
        }
        let came = until(LIMIT, || newest(store) > last + 1 || !job.is_running());
        assert!(came, "no commit of {name} after the last kill: {}", log(store));
        text = log(store);
        newest(store) > last + 1
    });
    let restarted = ended.is_some_and(|e| e.stderr.contains("; restart "));
    assert!(!restarted, "{name} was restarted: {text}");
}

/// The agents that work in a store, by their command lines.
pub fn agents_of(store: &Path) -> Vec<u32> {
    let store = store.display().to_string();
    let is_ours = |pid: &u32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).into_owned();
        words.split('\0').next().is_some_and(|name| name.ends_with("stillpoint-agent"))
            && words.contains("--foreground")
            && words.contains(&store)
    };
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_ours).collect()
}

/// Whether all of a campaign is to be run (`cargo xtask test --full`).
#[must_use]
pub fn full() -> bool {
    std::env::var_os("STILLPOINT_TEST_FULL").is_some()
}

/// Kills one of the ranks below `job`, if there is one. What `descendants` lists may be a short-lived copy, gone by now: then
/// another.
fn kill_one(job: u32, random: &mut Random) {
    for _ in 0..100 {
        let ranks = descendants(job, RANK);
        let Some(bound) = u64::try_from(ranks.len()).ok().filter(|n| *n > 0) else { return };
        if kill(ranks[usize::try_from(random.below(bound)).expect("few ranks")]) {
            return;
        }
    }
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().count()
}

/// Kills a rank at a random moment after the first commit, every other time within a checkpoint; the job ends as the
/// native run does. Twenty times with `STILLPOINT_TEST_FULL`, else twice.
pub fn killed(name: &str) {
    kills(name, "killed", if full() { 20 } else { 2 }, &[]);
}

/// [`killed`] once for each slower way to change the thread pointer: without segments, and without FSGSBASE as well.
pub fn slower(name: &str) {
    kills(name, "slower", 1, &[("STILLPOINT_NO_SEGMENTS", "1")]);
    kills(name, "slower", 1, &[("STILLPOINT_NO_SEGMENTS", "1"), ("STILLPOINT_NO_FSGSBASE", "1")]);
}

/// [`killed`] with images that the ranks write themselves, before they go on.
pub fn direct(name: &str) {
    kills(name, "direct", if full() { 20 } else { 2 }, &[("STILLPOINT_MODE", "direct")]);
}

/// [`killed`] with images that are written to a directory of the node and copied from there; nothing stays in it.
pub fn burst(name: &str) {
    let node = built().join("test-work").join(format!("node-{name}-{}", std::process::id()));
    fs::create_dir_all(&node).expect("the build folder can be written to");
    let text = node.display().to_string();
    kills(name, "burst", if full() { 20 } else { 2 }, &[("STILLPOINT_BURST", &text)]);
    let below = |folders: Vec<PathBuf>| -> Vec<PathBuf> {
        let all = folders.into_iter().flat_map(|f| fs::read_dir(f).into_iter().flatten().flatten());
        all.map(|e| e.path()).collect()
    };
    let runs = below(below(vec![node.clone()]));
    assert!(!runs.is_empty(), "{name}: no image was on the node");
    let left = |runs: &[PathBuf]| below(runs.to_vec()).into_iter().filter(|p| p.is_dir()).collect::<Vec<_>>();
    assert!(until(LIMIT, || left(&runs).is_empty()), "{name}: {:?}", left(&runs));
    let _ = fs::remove_dir_all(node);
}

fn kills(name: &str, mode: &'static str, times: u32, settings: &[(&str, &str)]) {
    let mut random = Random::seeded();
    let Some(mut case) = Case::new(name, mode, if full() { 7 } else { 4 }) else { return };
    for time in 0..times {
        let mut text = String::new();
        loop {
            let ended = case.run(Some("500ms"), settings, &mut |job, store| {
                until(LIMIT, || !commits(store).is_empty() || !job.is_running());
                std::thread::sleep(Duration::from_millis(random.below(1000)));
                if time % 2 == 1 {
                    until(Duration::from_secs(3), || being_written(store) || !job.is_running());
                }
                if !commits(store).is_empty() && job.is_running() {
                    kill_one(job.id(), &mut random);
                }
                text = log(store);
            });
            if ended.stderr.contains("; restart 1 of") {
                break;
            }
            // Over too soon, because the machine has become faster since the program was measured: longer, then.
            assert!(case.seconds < 28, "{name} was not restarted after a kill: {text}");
            let Some(longer) = Case::new(name, mode, case.seconds * 2) else { return };
            case = longer;
        }
    }
}

/// Runs natively and under Stillpoint, as many rounds as natively last about `seconds` (0: the usual number), `disturb`s the
/// second, and compares what both found.
fn compare(
    name: &str,
    mode: &'static str,
    seconds: u32,
    interval: Option<&str>,
    disturb: &mut dyn FnMut(&mut Running, &Path),
) -> Option<Ended> {
    Some(Case::new(name, mode, seconds)?.run(interval, &[], disturb))
}

/// Waits until something holds. False: it did not within `limit`.
pub fn until(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        if holds() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    false
}
