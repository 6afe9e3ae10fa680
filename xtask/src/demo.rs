//! `cargo xtask demo`: the main job on real input, in front of the user. Runs *next door*.
//!
//! LAMMPS (Debian's binary, unmodified) melts a Lennard-Jones crystal on four ranks, once undisturbed and once under
//! `stillpoint run` with a checkpoint every two seconds; one rank is killed at a random moment after the first commit.
//! The thermodynamic lines of both runs must be the same to the last digit. What a reader would get wrong: the wall
//! clock lines of LAMMPS differ from run to run, so only the table between `Step` and `Loop time` is compared.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::command::{self, run};
use crate::{Outcome, build, demo_slurm, setup};

const RANKS: &str = "4";
const INTERVAL: Duration = Duration::from_secs(2);
const INPUT: &str = include_str!("../demo/in.melt");
/// How long a run may take before it counts as hung.
const LIMIT: Duration = Duration::from_secs(600);

/// Runs the demonstration; a difference between the two runs is an error.
pub(crate) fn demo(words: &[&str]) -> Outcome {
    let (slurm, words) = match words {
        ["--slurm", rest @ ..] => (true, rest),
        all => (false, all),
    };
    let seed = match words {
        [] => fresh_seed(),
        ["--seed", number] => number.parse().map_err(|_| format!("--seed wants a number, not {number:?}"))?,
        _ => return Err("demo knows --slurm and --seed N and nothing else".to_owned()),
    };
    if slurm {
        return demo_slurm::demo(seed);
    }
    setup::setup()?;
    build::build()?;
    let work = command::target().join("demo");
    if work.exists() {
        fs::remove_dir_all(&work).map_err(|error| format!("clear {}: {error}", work.display()))?;
    }

    println!("\n== 1. undisturbed ==");
    let plain = prepare(&work.join("plain"))?;
    let started = Instant::now();
    run(root_may(Command::new("mpirun").args(["--oversubscribe", "-n", RANKS]))
        .args(lammps())
        .current_dir(&plain))?;
    let native = started.elapsed();
    let expected = thermo(&plain.join("log.lammps"))?;

    println!("\n== 2. under stillpoint, one rank killed (seed {seed}) ==");
    let disturbed = prepare(&work.join("disturbed"))?;
    let store = work.join("checkpoints");
    let stillpoint = command::target().join("release").join("stillpoint");
    let started = Instant::now();
    let mut job = root_may(Command::new(&stillpoint).args(["run", "-n", RANKS, "--interval", "2s"]))
        .arg("--dir")
        .arg(&store)
        .arg("--")
        .args(lammps())
        .current_dir(&disturbed)
        .spawn()
        .map_err(|error| format!("start {}: {error}", stillpoint.display()))?;
    let killed = kill_one_rank(&mut job, &store, seed);
    let status = wait(&mut job, LIMIT)?;
    let took = started.elapsed();
    let killed = killed?;
    if !status {
        return Err(format!("the job under stillpoint did not end with success (seed {seed})"));
    }
    let found = thermo(&disturbed.join("log.lammps"))?;

    println!("\n== 3. result ==");
    let killed = format!(
        "{} ({:.1} s after the start of the job), newest checkpoint {}",
        killed.pid,
        killed.after.as_secs_f64(),
        killed.newest
    );
    let restart: Vec<f64> = history(&store).iter().filter_map(|line| number(line, "restart_ns")).collect();
    if restart.is_empty() {
        return Err(format!("nothing was restarted although a rank was killed (seed {seed})"));
    }
    let restart = format!("{} ms", span(&restart, 1e6));
    let first = [("rank process killed", killed), ("restart, first rank to running", restart)];
    let same = Report { expected: &expected, found: &found, store: &store, native, took }.print(&first);
    if same {
        Ok(())
    } else {
        Err(format!("the results differ (seed {seed}); both logs are in {}", work.display()))
    }
}

/// What a demo ends with.
pub(crate) struct Report<'a> {
    /// Thermo lines of the undisturbed run.
    pub(crate) expected: &'a [String],
    /// Those of the other.
    pub(crate) found: &'a [String],
    /// Where its checkpoints are.
    pub(crate) store: &'a Path,
    pub(crate) native: Duration,
    pub(crate) took: Duration,
}

impl Report<'_> {
    /// Prints the last lines of both, and a table that begins with these rows. Whether the lines are the same.
    pub(crate) fn print(&self, first: &[(&str, String)]) -> bool {
        let Self { expected, found, .. } = self;
        for (line, other) in expected.iter().zip(*found).rev().take(3).rev() {
            println!("  undisturbed  {line}\n  restarted    {other}");
        }
        let history = history(self.store);
        let all = |key| history.iter().filter_map(move |line| number(line, key)).collect::<Vec<f64>>();
        let (stopped, bytes) = (all("stopped_ns"), all("bytes"));
        let rows = [
            ("checkpoints taken", stopped.len().to_string()),
            ("application stood still", format!("{} ms a checkpoint", span(&stopped, 1e6))),
            ("image size, all ranks", format!("{} MiB", span(&bytes, f64::from(1 << 20)))),
            ("undisturbed run", format!("{:.1} s", self.native.as_secs_f64())),
            ("with checkpoints and a loss", format!("{:.1} s", self.took.as_secs_f64())),
            ("thermo lines", format!("{} of {} identical", identical(expected, found), expected.len())),
        ];
        println!();
        for (what, value) in first.iter().chain(&rows) {
            println!("  {what:<30} {value}");
        }
        expected == found
    }
}

/// A fresh working directory with the input in it.
pub(crate) fn prepare(directory: &Path) -> Result<PathBuf, String> {
    fs::create_dir_all(directory)
        .and_then(|()| fs::write(directory.join("in.melt"), INPUT))
        .map_err(|error| format!("prepare {}: {error}", directory.display()))?;
    Ok(directory.to_path_buf())
}

pub(crate) fn lammps() -> [&'static str; 5] {
    ["lmp", "-in", "in.melt", "-screen", "none"]
}

/// Open MPI refuses to run as root unless told twice; a demonstration in a container is the case for telling it.
fn root_may(command: &mut Command) -> &mut Command {
    if setup::is_root() {
        command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    }
    command.env("OMPI_MCA_rmaps_base_oversubscribe", "1").stdin(Stdio::null())
}

struct Killed {
    pid: u32,
    after: Duration,
    newest: String,
}

/// Waits for the first commit, then for a random part of two intervals, and kills a random rank.
fn kill_one_rank(job: &mut Child, store: &Path, seed: u64) -> Result<Killed, String> {
    let started = Instant::now();
    while commits(store).is_empty() {
        if let Ok(Some(status)) = job.try_wait() {
            return Err(format!("the job ended before its first checkpoint ({status})"));
        }
        if started.elapsed() > Duration::from_secs(60) {
            let _ = job.kill();
            return Err("no checkpoint was committed within a minute".to_owned());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut random = Random(seed);
    let span = u64::try_from(2 * INTERVAL.as_millis()).unwrap_or(u64::MAX);
    std::thread::sleep(Duration::from_millis(random.below(span)));
    let mut ranks = ranks_below(job.id());
    ranks.sort_unstable();
    if ranks.is_empty() {
        return Err("no rank process was left to kill; the job is too short".to_owned());
    }
    let pick = random.below(u64::try_from(ranks.len()).unwrap_or(1));
    let pid = ranks[usize::try_from(pick).unwrap_or(0)];
    let killed = Killed { pid, after: started.elapsed(), newest: newest(store) };
    println!("kill -9 {pid}");
    run(Command::new("kill").args(["-9", &pid.to_string()]))?;
    Ok(killed)
}

/// Waits for the job; one that outlasts `limit` is ended and counts as hung.
fn wait(job: &mut Child, limit: Duration) -> Result<bool, String> {
    let deadline = Instant::now() + limit;
    loop {
        match job.try_wait() {
            Ok(Some(status)) => return Ok(status.success()),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(50)),
            Ok(None) => {
                let _ = job.kill();
                return Err(format!("the job did not end within {} s", limit.as_secs()));
            }
            Err(error) => return Err(format!("wait for the job: {error}")),
        }
    }
}

/// The committed checkpoints below a store: folders that hold a manifest and are not being written. Old ones are
/// removed as new ones come, so the last name says how many there were, not the length of the list.
fn commits(store: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![store.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let below = fs::read_dir(&folder).into_iter().flatten().flatten();
        folders.extend(
            below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()),
        );
        if folder.join("manifest.json").is_file()
            && folder.extension().is_none_or(|ending| ending != "partial")
        {
            found.push(folder);
        }
    }
    found.sort();
    found
}

/// The name of the newest committed checkpoint.
pub(crate) fn newest(store: &Path) -> String {
    let last = commits(store).pop();
    last.and_then(|folder| Some(folder.file_name()?.to_str()?.to_owned()))
        .unwrap_or_else(|| "none".to_owned())
}

/// The job's own account of what its checkpoints and restarts cost: a json object a line.
pub(crate) fn history(store: &Path) -> Vec<String> {
    let jobs = fs::read_dir(store).into_iter().flatten().flatten();
    let texts = jobs.filter_map(|job| fs::read_to_string(job.path().join("history.jsonl")).ok());
    texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// The number behind `key` in a flat json object.
pub(crate) fn number(line: &str, key: &str) -> Option<f64> {
    let (_, rest) = line.split_once(&format!("\"{key}\":"))?;
    rest.split([',', '}']).next()?.trim().parse().ok()
}

/// Smallest, middle and largest of some numbers.
fn span(numbers: &[f64], unit: f64) -> String {
    let mut sorted: Vec<f64> = numbers.iter().map(|number| number / unit).collect();
    sorted.sort_unstable_by(f64::total_cmp);
    match (sorted.first(), sorted.get(sorted.len() / 2), sorted.last()) {
        (Some(least), Some(middle), Some(most)) => format!("{middle:.1} (from {least:.1} to {most:.1})"),
        _ => "none".to_owned(),
    }
}

/// The processes below `ancestor` whose program is `stillpoint-rank`.
fn ranks_below(ancestor: u32) -> Vec<u32> {
    let processes: Vec<(u32, u32)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid: u32| Some((pid, parent(pid)?)))
        .collect();
    let mut family = vec![ancestor];
    let mut next = 0;
    while next < family.len() {
        let head = family[next];
        family.extend(processes.iter().filter(|(_, parent)| *parent == head).map(|(pid, _)| *pid));
        next += 1;
    }
    let is_rank = |pid: u32| {
        fs::read_link(format!("/proc/{pid}/exe"))
            .is_ok_and(|exe| exe.file_name().is_some_and(|name| name == "stillpoint-rank"))
    };
    // A rank's child is one that is frozen and writes an image: its death is no loss.
    family.retain(|pid| is_rank(*pid) && !parent(*pid).is_some_and(is_rank));
    family
}

/// The parent of a process: the second field after the last `)` of its stat line (proc(5)).
fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// The lines of the thermodynamic table of a LAMMPS log.
pub(crate) fn thermo(log: &Path) -> Result<Vec<String>, String> {
    let text = fs::read_to_string(log).map_err(|error| format!("read {}: {error}", log.display()))?;
    let lines = table(&text);
    if lines.is_empty() { Err(format!("{} holds no thermo table", log.display())) } else { Ok(lines) }
}

fn table(text: &str) -> Vec<String> {
    text.lines()
        .skip_while(|line| !line.trim_start().starts_with("Step "))
        .skip(1)
        .take_while(|line| !line.starts_with("Loop time"))
        .map(|line| line.trim().to_owned())
        .collect()
}

fn identical(one: &[String], other: &[String]) -> usize {
    one.iter().zip(other).filter(|(left, right)| left == right).count()
}

fn fresh_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::from(now.subsec_nanos()) ^ now.as_secs()
}

/// SplitMix64: enough to choose a moment and a rank, and repeatable from the seed that was printed.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)) % bound.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_what_stands_between_step_and_loop_time() {
        let log = "units lj\n   Step          Temp\n         0   3.0\n        50   1.6\nLoop time of 3.1 on 4 procs\n";
        assert_eq!(table(log), ["0   3.0", "50   1.6"]);
        assert!(table("no table here\n").is_empty());
    }

    #[test]
    fn numbers_are_found_in_the_history() {
        let line = r#"{"ckpt":3,"stopped_ns":1500000,"direct":true}"#;
        assert_eq!(number(line, "stopped_ns"), Some(1.5e6));
        assert_eq!(number(line, "restart_ns"), None);
        assert_eq!(span(&[3e6, 1e6, 2e6], 1e6), "2.0 (from 1.0 to 3.0)");
    }

    #[test]
    fn a_seed_repeats_its_choice() {
        assert_eq!(Random(7).below(1000), Random(7).below(1000));
        assert_eq!(Random(7).below(1), 0);
    }

    #[test]
    fn we_are_a_child_of_our_parent() {
        assert_eq!(parent(std::process::id()), Some(std::os::unix::process::parent_id()));
    }
}
