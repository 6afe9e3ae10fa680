//! Where things lie, and the two ways to start a program: natively and under Stillpoint. Runs *next door*.
//!
//! What a reader would get wrong: both ways use the very same line of the launcher, with `--oversubscribe`, because Open MPI
//! waits and binds differently with and without it. Every job gets a folder of its own in [`Bed::tmpfs`], so that images and
//! plain files go to the same file system, and it is gone with the value.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The one line by which all ranks are started.
const LAUNCHER: &str = "mpirun --oversubscribe";
/// How long one run may take before it counts as hung.
const LIMIT: Duration = Duration::from_secs(180);

/// What a program printed: all values by name, in order.
pub(crate) type Said = BTreeMap<String, Vec<f64>>;

/// The programs, compiled, and a scratch folder.
#[derive(Debug)]
pub(crate) struct Bed {
    built: PathBuf,
    scratch: PathBuf,
}

impl Bed {
    /// Finds the own folder and compiles the programs.
    pub(crate) fn make() -> Result<Bed, String> {
        let own = std::env::current_exe().map_err(|error| format!("find the own program: {error}"))?;
        let built = own.parent().ok_or("the own program lies nowhere")?.to_path_buf();
        let tmpfs = std::env::var_os("STILLPOINT_BENCH_DIR").map_or_else(|| "/dev/shm".into(), PathBuf::from);
        let scratch = tmpfs.join(format!("stillpoint-bench-{}", std::process::id()));
        std::fs::create_dir_all(&scratch).map_err(|error| format!("make {}: {error}", scratch.display()))?;
        let bed = Bed { built, scratch };
        for name in ["call", "image", "beat", "verbs"] {
            let source =
                Path::new(env!("CARGO_MANIFEST_DIR")).join("programs").join(name).with_extension("c");
            let mut line = Command::new("mpicc");
            line.arg("-O2").arg(source).arg("-o").arg(bed.program(name));
            if name == "verbs" {
                line.arg("-libverbs");
            }
            let line = line.status();
            match line {
                Ok(status) if status.success() => {}
                Ok(status) => return Err(format!("mpicc {name}.c: {status}")),
                Err(error) => return Err(format!("mpicc: {error}")),
            }
        }
        Ok(bed)
    }

    /// A program of ours by its short name.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.built.join(format!("bench-{name}"))
    }

    /// A new, empty folder in the tmpfs.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf, String> {
        let folder = self.scratch.join(name);
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).map_err(|error| format!("make {}: {error}", folder.display()))?;
        Ok(folder)
    }

    /// Writes as much into a file of the tmpfs as the images of a case will need, and removes it: memory that a virtual
    /// machine has never touched comes from its host first, at several times the price, whoever asks for it.
    pub(crate) fn warm(&self, mib: u32) -> Result<(), String> {
        let path = self.folder("warm")?.join("file");
        let fill = || -> std::io::Result<()> {
            let mut file = std::fs::File::create(&path)?;
            let block = vec![1u8; 1 << 20];
            (0..mib).try_for_each(|_| std::io::Write::write_all(&mut file, &block))
        };
        let filled = fill().map_err(|error| format!("write {}: {error}", path.display()));
        let _ = std::fs::remove_file(&path);
        filled
    }

    /// The native start of a program.
    pub(crate) fn native(&self, ranks: u32, program: &str) -> Command {
        let mut words = LAUNCHER.split(' ');
        let mut command = Command::new(words.next().unwrap_or("mpirun"));
        command.args(words).arg("-n").arg(ranks.to_string()).arg(self.program(program));
        command
    }

    /// Its start under Stillpoint, with the store in `store`.
    pub(crate) fn ours(&self, store: &Path, ranks: u32, program: &str) -> Command {
        self.started(store, ranks, program, &[])
    }

    /// The same with a checkpoint every `interval`.
    pub(crate) fn saved(&self, store: &Path, ranks: u32, program: &str, interval: &str) -> Command {
        self.started(store, ranks, program, &["--interval", interval])
    }

    fn started(&self, store: &Path, ranks: u32, program: &str, options: &[&str]) -> Command {
        let mut command = self.stillpoint(store);
        command.args(["run", "--restarts", "0", "--launcher", LAUNCHER, "-n"]).arg(ranks.to_string());
        command.args(options).arg("--").arg(self.program(program));
        command
    }

    /// A program without MPI, natively.
    pub(crate) fn alone(&self, program: &str) -> Command {
        Command::new(self.program(program))
    }

    /// The same under Stillpoint.
    pub(crate) fn ours_alone(&self, store: &Path, program: &str) -> Command {
        let mut command = self.stillpoint(store);
        command.args(["run", "--restarts", "0", "--"]).arg(self.program(program));
        command
    }

    /// The command line tool itself.
    pub(crate) fn stillpoint(&self, store: &Path) -> Command {
        let mut command = Command::new(self.built.join("stillpoint"));
        command.arg("--dir").arg(store);
        command
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.scratch);
    }
}

/// Starts with nothing on standard input and as root if need be; what it prints can be read.
pub(crate) fn start(command: &mut Command) -> Result<Child, String> {
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().map_err(|error| format!("{command:?}: {error}"))
}

/// Waits for the end, which must be a good one; what was printed.
pub(crate) fn finish(mut child: Child, what: &str) -> Result<String, String> {
    let begun = Instant::now();
    while child.try_wait().map_err(|error| format!("{what}: {error}"))?.is_none() {
        if begun.elapsed() > LIMIT {
            end(&mut child);
            return Err(format!("{what} did not end within {LIMIT:?}"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().map_err(|error| format!("{what}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{what}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Ends what hangs: the launcher and its ranks end with what started them only if that is asked, not killed.
fn end(child: &mut Child) {
    let _ = Command::new("kill").arg(child.id().to_string()).status();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(10) && matches!(child.try_wait(), Ok(None)) {
        std::thread::sleep(Duration::from_millis(50));
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// Runs to the end; the figures that were printed.
pub(crate) fn run(command: &mut Command) -> Result<Said, String> {
    let what = format!("{command:?}");
    let said = figures(&finish(start(command)?, &what)?);
    if said.is_empty() { Err(format!("{what} printed no figure")) } else { Ok(said) }
}

/// What the node agent of the job in `store` said, for a run that failed.
pub(crate) fn log(store: &Path) -> String {
    let jobs = std::fs::read_dir(store).into_iter().flatten().flatten();
    jobs.filter_map(|job| std::fs::read_to_string(job.path().join("agent.log")).ok()).collect()
}

/// The lines `name value`.
pub(crate) fn figures(text: &str) -> Said {
    let mut said = Said::new();
    for (name, value) in text.lines().filter_map(|line| line.split_once(' ')) {
        if let Ok(value) = value.trim().parse() {
            said.entry(name.to_owned()).or_default().push(value);
        }
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_are_no_figures_are_passed_over() {
        let said = figures("iprobe 20.5\nnoise\nresult 5 abc\niprobe 19.5\n");
        assert_eq!(said.into_iter().collect::<Vec<_>>(), [("iprobe".to_owned(), vec![20.5, 19.5])]);
    }
}
