//! `RUN/starts/NNNNNN.json`: what the supervisor tells the tasks of one start, by the number of the start (the incarnation).
//!
//! What a reader would get wrong: the same files tell the store which checkpoints lie on the way that the run has taken
//! (`stillpoint_storage::way`). Runs *next door*.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Deserialize, Serialize};
use stillpoint_storage::run::RunDir;
use stillpoint_storage::way::STARTS;

use crate::catalog::Checkpoint;
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
    /// Which start has taken that one.
    #[serde(default)]
    pub(crate) of: u32,
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

impl StartFile {
    /// The same, of a start at this checkpoint.
    pub(crate) fn at(self, from: Option<&Checkpoint>) -> Self {
        let restart = from.map(|c| c.dir.clone());
        StartFile { restart, of: from.map_or(0, |c| c.manifest.incarnation), ..self }
    }

    /// Writes it, durably: the tasks are on other nodes.
    pub(crate) fn write(&self, job: &Job) -> Result<(), Error> {
        RunDir::create(&job.path(STARTS))?.write_json(&format!("{:06}.json", self.incarnation), self)?;
        Ok(())
    }

    /// A start is over. One that never was does not say which checkpoints lie on the run's way; one that was has begun where it was
    /// told to, and the next one is told nothing.
    pub(crate) fn over(job: &Job, incarnation: u32, was: bool) {
        if !was {
            let _ = fs::remove_file(job.path(STARTS).join(format!("{incarnation:06}.json")));
        } else if let Ok(run) = RunDir::open(&job.dir) {
            run.begin_anywhere();
        }
    }

    pub(crate) fn read(run: &Path, incarnation: u32) -> Result<StartFile, Error> {
        Ok(RunDir::open(&run.join(STARTS))?.read_json(&format!("{incarnation:06}.json"))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stillpoint_abi::ids::CkptId;

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
        RunDir::open(&dir).unwrap().begin_at(CkptId(3)).unwrap();
        StartFile::over(&job, 2, false);
        assert!(dir.join("begin.json").exists(), "the next one is to begin there");
        StartFile::over(&job, 1, true);
        assert!(!dir.join("begin.json").exists());
        let left = |n| StartFile::read(&dir, n).is_ok();
        assert!(left(1) && !left(2));
        fs::remove_dir_all(dir).unwrap();
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
        let text = fs::read_to_string(dir.join("starts/000000.json")).unwrap();
        let plain: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert!(plain["restart"].is_null() && plain["local"].is_null());
        fs::remove_dir_all(&dir).unwrap();
    }
}
