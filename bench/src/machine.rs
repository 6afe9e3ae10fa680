//! The machine, the commit and the date that a result belongs to. Runs *next door*.

use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

fn file(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn said(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default()
}

/// Load of the last minute.
pub(crate) fn load() -> f64 {
    file("/proc/loadavg").split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(f64::NAN)
}

/// The commit, with `-dirty` if the tree differs from it in anything but results.
pub(crate) fn commit() -> String {
    let commit = said("git", &["rev-parse", "--short=10", "HEAD"]);
    let changed = said("git", &["status", "--porcelain", "--", ":/", ":(top,exclude)bench/results"]);
    if changed.is_empty() { commit } else { format!("{commit}-dirty") }
}

/// Today, UTC.
pub(crate) fn date() -> String {
    said("date", &["-u", "+%Y-%m-%d"])
}

/// What a reader must know about the machine.
pub(crate) fn describe(pairs: usize, load_before: f64) -> Value {
    let cpu = file("/proc/cpuinfo");
    let field = |name: &str| {
        let line = cpu.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(": ")).map_or("unknown", |(_, value)| value).to_owned()
    };
    let flag = |name: &str| field("flags").split(' ').any(|word| word == name);
    let mpi = said("mpirun", &["--version"]);
    json!({
        "date": date(), "commit": commit(), "pairs": pairs,
        "cpu": format!("{}, family {} model {}", field("model name"), field("cpu family"), field("model\t")),
        "cpus": std::thread::available_parallelism().map_or(0, usize::from),
        "virtual": flag("hypervisor"), "fsgsbase": flag("fsgsbase"),
        "memory": file("/proc/meminfo").lines().next().and_then(|l| l.split_whitespace().nth(1)).and_then(|kib| kib.parse::<u64>().ok()).map(|kib| format!("{} MiB", kib / 1024)),
        "kernel": file("/proc/sys/kernel/osrelease"),
        "huge_pages": file("/sys/kernel/mm/transparent_hugepage/enabled"),
        "mpi": mpi.lines().next().unwrap_or("unknown"),
        "load_before": load_before, "load_after": load(),
    })
}

/// The same as lines.
pub(crate) fn lines(machine: &Value) -> String {
    let object = machine.as_object().into_iter().flatten();
    let shown = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    object.map(|(name, value)| format!("- {}: {}\n", name.replace('_', " "), shown(value))).collect()
}

/// Where results lie.
pub(crate) fn results() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/results"))
}
