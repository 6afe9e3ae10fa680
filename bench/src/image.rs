//! How long a program stands still for a checkpoint, beside a bare fork() and a plain write() of the same memory, and what
//! the node agent weighs meanwhile. Runs *next door*.
//!
//! ```text
//!  bench      mark 2k ──▶ stillpoint checkpoint (durable) ──▶ mark 2k+1
//!  program      └ forgets          longest gap between            └ tells the longest gap
//!               what was           two readings of the clock
//! ```
//!
//! What a reader would get wrong: the figure is the gap that the program itself sees, from its own clock, with everything in
//! it: stop, drain, fork or dump, resume. The coordinator's own measure, from the first rank held to the resume, stands
//! beside it.

use crate::bed::{Bed, figures, finish, log, run, start};
use crate::report::{Figure, Take, Target};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Checkpoints of one run; the first is not counted, on neither side: it wakes what the later ones find awake.
const TIMES: usize = 3;

/// What is compared.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) ranks: u32,
    pub(crate) mib: u32,
    pub(crate) direct: bool,
}

/// What one run under Stillpoint gave.
struct Taken {
    gaps: Vec<f64>,
    stopped: Vec<f64>,
    total: Vec<f64>,
    /// Bytes of one rank's image.
    bytes: u64,
    agent: f64,
}

/// Figures of the case, the agent's weight last.
pub(crate) fn measure(bed: &Bed, case: Case, pairs: usize, native_only: bool) -> Result<Vec<Figure>, String> {
    let median = |name, unit, target| Figure::new(name, unit, Take::Median, target);
    // Without a CPU to spare, the ranks share theirs with those who write the images. The longest gap is then one of
    // the scheduler's, and the coordinator's clock says how long they were held.
    let crowded =
        !case.direct && case.ranks as usize >= std::thread::available_parallelism().map_or(1, usize::from);
    let target = if case.direct { Target::Line(1.25, 0.0) } else { Target::Line(1.5, 5.0) };
    let (seen, held) = if crowded { (Target::None, target) } else { (target, Target::None) };
    let name = match (case.direct, case.ranks) {
        (true, 1) => {
            ["dump of 512 MiB, direct, 1 rank", "— by the coordinator's clock", "— until the commit"]
        }
        (true, _) => {
            ["dump of 2 × 256 MiB, direct, 2 ranks", "— by the coordinator's clock", "— until the commit"]
        }
        (false, 1) => {
            ["stall for 512 MiB, forked, 1 rank", "— by the coordinator's clock", "— until the last image"]
        }
        (false, _) => [
            "longest gap around 2 × 256 MiB, forked, 2 ranks",
            "— held for that, by the coordinator's clock",
            "— until the last image",
        ],
    };
    let mut all = vec![
        median(name[0], "ms", seen),
        median(name[1], "ms", held),
        median(name[2], "ms", Target::None),
        median("— node agent, the most it ever held", "MiB", Target::Most(64.0)),
    ];
    let mut bytes = u64::from(case.mib) << 20;
    for _ in 0..pairs {
        // The memory of each rank, three images or plain files, and the one that is being removed.
        let room = 5 * case.mib * case.ranks;
        bed.warm(room)?;
        if !native_only {
            let taken = ours(bed, case)?;
            bytes = taken.bytes;
            all[0].ours.extend(taken.gaps);
            all[1].ours.extend(taken.stopped);
            all[2].ours.extend(taken.total);
            all[3].ours.push(taken.agent);
        }
        bed.warm(room)?;
        let folder = bed.folder("plain")?;
        let mut command = bed.native(case.ranks, "image");
        command.arg(case.mib.to_string()).arg(&folder);
        let said = if case.direct {
            run(command.args(["write", &TIMES.to_string(), &bytes.to_string()]))?
        } else {
            run(command.args(["fork", &TIMES.to_string()]))?
        };
        let name = if case.direct { "write" } else { "fork" };
        let native: Vec<f64> = said.get(name).into_iter().flatten().skip(1).copied().collect();
        all[0].native.extend(&native);
        all[1].native.extend(&native);
        let _ = std::fs::remove_dir_all(&folder);
    }
    Ok(all)
}

fn ours(bed: &Bed, case: Case) -> Result<Taken, String> {
    let (store, marks) = (bed.folder("store")?, bed.folder("marks")?);
    let mut command = bed.ours(&store, case.ranks, "image");
    command.arg(case.mib.to_string()).arg(&marks).arg("watch");
    command.env("STILLPOINT_MODE", if case.direct { "direct" } else { "forked" });
    let mut child = start(&mut command)?;
    let taken = take(bed, &store, &marks, &mut child);
    let end = mark(&marks, "end");
    let text = finish(child, "image watch").map_err(|why| why + &log(&store))?;
    let (job, agent) = taken?;
    end?;
    // Marks in pairs: before and after each checkpoint.
    let gaps = figures(&text).remove("gap").unwrap_or_default();
    let history = history(&job)?;
    let _ = std::fs::remove_dir_all(&store);
    let ms = |name: &str| {
        history.iter().skip(1).filter_map(|line| line[name].as_f64()).map(|ns| ns / 1e6).collect()
    };
    let bytes = history.last().and_then(|line| line["bytes"].as_u64()).unwrap_or(0) / u64::from(case.ranks);
    if history.len() != TIMES || gaps.len() != 2 * TIMES {
        return Err(format!(
            "{} of {TIMES} checkpoints were committed, {} marks seen",
            history.len(),
            gaps.len()
        ));
    }
    if history.iter().any(|line| line["direct"].as_bool() != Some(case.direct)) {
        return Err("a checkpoint was taken in the other mode".to_owned());
    }
    let gaps = gaps.chunks(2).skip(1).filter_map(|pair| pair.get(1).copied()).collect();
    Ok(Taken { gaps, stopped: ms("held_ns"), total: ms("total_ns"), bytes, agent })
}

/// Takes the checkpoints; the job's folder, and the most that its agent held.
fn take(
    bed: &Bed,
    store: &Path,
    marks: &Path,
    child: &mut std::process::Child,
) -> Result<(PathBuf, f64), String> {
    let begun = Instant::now();
    while !marks.join("ready").is_file() {
        if begun.elapsed() > Duration::from_secs(60) || !matches!(child.try_wait(), Ok(None)) {
            return Err("the program did not fill its memory".to_owned());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let job = std::fs::read_dir(store).into_iter().flatten().flatten().map(|entry| entry.path());
    let job = job.into_iter().find(|path| path.join("run.json").is_file()).ok_or("the job has no folder")?;
    let name = job.file_name().unwrap_or_default().to_owned();
    mark(marks, "mark-0")?;
    std::thread::sleep(Duration::from_millis(100));
    let mut number = 1;
    while number < 2 * TIMES {
        let asked = bed.stillpoint(store).arg("checkpoint").arg(&name).output();
        let asked = asked.map_err(|error| format!("start stillpoint checkpoint: {error}"))?;
        if !asked.status.success() {
            return Err(format!("no checkpoint: {}", String::from_utf8_lossy(&asked.stderr)));
        }
        mark(marks, &format!("mark-{number}"))?;
        std::thread::sleep(Duration::from_millis(100));
        if number + 1 < 2 * TIMES {
            mark(marks, &format!("mark-{}", number + 1))?;
            std::thread::sleep(Duration::from_millis(100));
        }
        number += 2;
    }
    let agent = agent_peak(&job).ok_or("no node agent was found")?;
    Ok((job, agent))
}

fn mark(marks: &Path, name: &str) -> Result<(), String> {
    std::fs::write(marks.join(name), b"").map_err(|error| format!("write {name}: {error}"))
}

/// The lines about checkpoints, oldest first.
fn history(job: &Path) -> Result<Vec<serde_json::Value>, String> {
    let path = job.join("history.jsonl");
    let text = std::fs::read_to_string(&path).map_err(|error| format!("read {}: {error}", path.display()))?;
    let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    Ok(lines.filter(|line| line.get("ckpt").is_some()).collect())
}

/// Most resident memory of the agent of this job, in MiB.
fn agent_peak(job: &Path) -> Option<f64> {
    let pids = Command::new("pgrep").args(["-x", "stillpoint-agen"]).output().ok()?;
    let pids = String::from_utf8_lossy(&pids.stdout).into_owned();
    pids.lines().find_map(|pid| {
        let of = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).ok();
        let job = job.as_os_str().as_encoded_bytes();
        let ours = [of("cmdline"), of("environ")]
            .into_iter()
            .flatten()
            .any(|t| t.windows(job.len()).any(|w| w == job));
        let status = String::from_utf8_lossy(&of("status")?).into_owned();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).filter(|_| ours)?;
        line.split_whitespace().next()?.parse::<f64>().ok().map(|kib| kib / 1024.0)
    })
}
