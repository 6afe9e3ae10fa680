//! `RUN/starts/NNNNNN.json`: what the supervisor tells the tasks of one start, by the number of the start (the incarnation).
//! And by the same files, which checkpoints lie on the way that the run has taken.
//!
//! What a reader would get wrong: a run may be started again from a checkpoint that is not the newest. Those behind it belong to
//! a past that did not happen, and no later restart may take one of them. Runs *next door*.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Deserialize, Serialize};
use stillpoint_storage::run::RunDir;

use crate::catalog;
use crate::error::Error;
use crate::home::Job;
use crate::run::every;

/// What the user has asked for, as the plugin hands it on.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Time between checkpoints.
    #[arg(long)]
    interval: Option<String>,
    /// Hours between two losses of a node, for --interval auto.
    #[arg(long)]
    mtbf: Option<f64>,
    /// How many checkpoints are kept.
    #[arg(long)]
    keep: Option<u32>,
    /// RUN, RUN@ID, or none.
    #[arg(long)]
    pub(crate) restart: Option<String>,
    /// On what occasions besides.
    #[arg(long, value_delimiter = ',')]
    on: Vec<String>,
    /// Copies.
    #[arg(long)]
    redundancy: Option<String>,
}

impl Options {
    /// What of it the tasks of each start are told.
    pub(crate) fn model(&self) -> Result<StartFile, Error> {
        let (interval, auto) = every(self.interval.as_deref(), self.mtbf)?;
        Ok(StartFile {
            interval,
            auto,
            keep: self.keep,
            on: self.on.clone(),
            redundancy: self.redundancy.clone(),
            ..StartFile::default()
        })
    }
}

/// What the tasks of one start are to know.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct StartFile {
    pub(crate) incarnation: u32,
    /// Seconds between checkpoints.
    pub(crate) interval: Option<f64>,
    /// They are found, where a node is lost every so many hours.
    #[serde(default)]
    pub(crate) auto: Option<f64>,
    /// How many checkpoints are kept.
    pub(crate) keep: Option<u32>,
    /// Directory of the checkpoint to start from.
    pub(crate) restart: Option<PathBuf>,
    /// Where node-local directories are made; `null`: where the plugin says.
    pub(crate) local: Option<PathBuf>,
    /// On what occasions a checkpoint is taken besides.
    #[serde(default)]
    pub(crate) on: Vec<String>,
    #[serde(default)]
    pub(crate) redundancy: Option<String>,
    /// Where task 0 makes known which step this is.
    #[serde(default)]
    pub(crate) index: Option<PathBuf>,
    /// Standard input was spooled to RUN/stdin: for all tasks, or for this one.
    #[serde(default)]
    pub(crate) stdin: Option<Stdin>,
}

/// Who reads the spooled standard input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stdin {
    All,
    Task(u32),
}

/// The directory of these files, from the run's.
const DIR: &str = "starts";

impl StartFile {
    /// Writes it, durably: the tasks are on other nodes.
    pub(crate) fn write(&self, job: &Job) -> Result<(), Error> {
        RunDir::create(&job.path(DIR))?.write_json(&format!("{:06}.json", self.incarnation), self)?;
        Ok(())
    }

    /// Takes it back.
    pub(crate) fn forget(job: &Job, incarnation: u32) {
        let _ = fs::remove_file(job.path(DIR).join(format!("{incarnation:06}.json")));
    }

    pub(crate) fn read(run: &Path, incarnation: u32) -> Result<StartFile, Error> {
        Ok(RunDir::open(&run.join(DIR))?.read_json(&format!("{incarnation:06}.json"))?)
    }

    /// All of a run, in their order; a damaged one is left out.
    pub(crate) fn all(job: &Job) -> Vec<StartFile> {
        let names = fs::read_dir(job.path(DIR)).into_iter().flatten().flatten();
        let number = |e: fs::DirEntry| e.file_name().to_str()?.strip_suffix(".json")?.parse::<u32>().ok();
        let mut numbers: Vec<u32> = names.filter_map(number).collect();
        numbers.sort_unstable();
        numbers.into_iter().filter_map(|n| StartFile::read(&job.dir, n).ok()).collect()
    }

    /// Number of the checkpoint that it starts from.
    fn from(&self) -> Option<u64> {
        let name = self.restart.as_ref()?.file_name()?.to_str()?;
        name.strip_prefix("ckpt-")?.parse().ok()
    }
}

/// Whether checkpoint `id` of start `incarnation` is one that the run has passed through. A start from none begins anew.
fn on_the_way(starts: &[StartFile], id: u64, incarnation: u32) -> bool {
    starts.iter().all(|s| incarnation >= s.incarnation || s.from().is_some_and(|from| id <= from))
}

/// The numbers of the checkpoints that a restart must not take.
pub(crate) fn passed_over(job: &Job) -> Vec<u64> {
    let starts = StartFile::all(job);
    let list = catalog::list(job);
    list.iter().filter(|c| !on_the_way(&starts, c.id, c.manifest.incarnation)).map(|c| c.id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(incarnation: u32, from: Option<u64>) -> StartFile {
        let restart = from.map(|f| PathBuf::from(format!("/h/1/ckpt-{f:06}")));
        StartFile { incarnation, restart, ..StartFile::default() }
    }

    #[test]
    fn a_start_that_never_was_says_nothing_of_the_way() {
        let dir = std::env::temp_dir().join(format!("stillpoint-starts-{}", std::process::id()));
        RunDir::create(&dir).unwrap();
        let job = Job { name: "1".into(), dir: dir.clone() };
        start(1, None).write(&job).unwrap();
        start(2, Some(3)).write(&job).unwrap();
        StartFile::forget(&job, 2);
        let left: Vec<u32> = StartFile::all(&job).iter().map(|s| s.incarnation).collect();
        assert_eq!(left, [1]);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_checkpoint_that_was_passed_over_is_not_taken_later() {
        // Start 0 made 1, 2, 3; start 1 began at 2 and made 4.
        let starts = [start(0, None), start(1, Some(2))];
        let taken: Vec<u64> = [(1, 0), (2, 0), (3, 0), (4, 1)]
            .iter()
            .filter(|(c, i)| on_the_way(&starts, *c, *i))
            .map(|(c, _)| *c)
            .collect();
        assert_eq!(taken, [1, 2, 4]);
        assert!(on_the_way(&[], 5, 0), "a run that was not started by srun has no such files");
        let anew = [start(0, None), start(1, None)];
        assert!(!on_the_way(&anew, 1, 0) && on_the_way(&anew, 2, 1));
    }

    #[test]
    fn written_and_read() {
        let dir = std::env::temp_dir().join(format!("stillpoint-cli-start-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let job = Job { name: "1".into(), dir: dir.clone() };
        let s = StartFile { interval: Some(600.0), stdin: Some(Stdin::Task(0)), ..start(3, Some(7)) };
        s.write(&job).unwrap();
        start(0, None).write(&job).unwrap();
        assert_eq!(StartFile::read(&dir, 3).unwrap(), s);
        assert_eq!(StartFile::all(&job).iter().map(|s| s.incarnation).collect::<Vec<_>>(), [0, 3]);
        let text = fs::read_to_string(dir.join("starts/000000.json")).unwrap();
        let plain: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert!(plain["restart"].is_null() && plain["local"].is_null());
        fs::remove_dir_all(&dir).unwrap();
    }
}
