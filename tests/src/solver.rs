//! The solver `jacobi` in a Slurm lab, and what it must end with. Runs *next door*.
//!
//! What a reader would get wrong: the checksum of `jacobi` does not depend on how many ranks there are, nor on where they run,
//! so one native run beside the cluster tells what each of them must end with.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::cycle::until;
use crate::lab::{Lab, ok};
use crate::process::{Running, machine};
use crate::store::newest;

/// How long anything may take before it counts as hung.
pub const LIMIT: Duration = Duration::from_secs(180);
/// Four ranks on two nodes.
pub const RANKS: [&str; 4] = ["-N2", "-n4", "--ntasks-per-node=2", "--mpi=pmix"];
/// Rounds of about 25 s.
pub const ROUNDS: u32 = 12_000;

/// A lab and the solver in it; the native run goes on beside it.
#[derive(Debug)]
pub struct Case {
    native: Running,
    /// The solver's command line.
    pub words: Vec<String>,
    /// The cluster.
    pub lab: Lab,
}

impl Case {
    /// With this many nodes; `None`, said by name, where there can be no lab.
    #[must_use]
    pub fn new(nodes: u32, rounds: u32) -> Option<Self> {
        Self::with(nodes, rounds, "")
    }

    /// The same with `lines` at the end of slurm.conf.
    #[must_use]
    pub fn with(nodes: u32, rounds: u32, lines: &str) -> Option<Self> {
        let lab = Lab::up(nodes, lines)?;
        let words = lab.program("jacobi", rounds)?;
        let mut native = Command::new("mpirun");
        native.args(["-n", "1"]).args(&words).current_dir(std::env::temp_dir());
        Some(Self { native: Running::start(machine(&mut native)), words, lab })
    }

    /// `srun OPTIONS solver` as one line of a shell.
    #[must_use]
    pub fn srun(&self, options: &str) -> String {
        format!("srun {} {options} {}", RANKS.join(" "), self.words.join(" "))
    }

    /// `scontrol checkpoint create OF`, again and again for 20 s until one succeeds, since a step comes to life in its own time.
    /// Its number in `store`: not always the next one, as one that was begun too early has had a number.
    #[must_use]
    pub fn create(&self, of: &str, store: &Path) -> u64 {
        let before = newest(store);
        let words = ["scontrol", "checkpoint", "create", of];
        let mut said = self.lab.says(&words);
        until(Duration::from_secs(20), || {
            ok(&said) || {
                eprintln!("{of}: {said:?}");
                said = self.lab.says(&words);
                false
            }
        });
        let made = newest(store);
        let told = said.stdout.contains(&format!("checkpoint {made}")) && !said.stderr.contains("left alone");
        assert!(ok(&said) && told && made > before, "{said:#?}\n{}", self.lab.logs());
        made
    }

    /// Waits for a commit newer than `than`, and returns its number.
    pub fn commit(&self, than: u64) -> u64 {
        let store = self.lab.store();
        assert!(until(LIMIT, || newest(&store) > than), "no checkpoint after {than}: {}", self.lab.logs());
        newest(&store)
    }

    /// The same while a command of ours runs, whose words explain it when none comes.
    #[must_use]
    pub fn commit_of(&self, job: Running, than: u64) -> Running {
        let store = self.lab.store();
        let mut job = job;
        let came = until(LIMIT, || newest(&store) > than || !job.is_running()) && newest(&store) > than;
        if came {
            return job;
        }
        panic!("no checkpoint after {than}: {:#?}\n{}", job.wait(Duration::ZERO), self.lab.logs());
    }

    /// A text with the results must hold the native one, and no other.
    pub fn ends_right(self, said: &str) {
        let Self { native, lab, .. } = self;
        let native = native.wait(LIMIT);
        assert!(ok(&native), "{native:#?}");
        let found = |text: &str| -> Vec<String> {
            let mut lines: Vec<String> =
                text.lines().filter(|l| l.starts_with("result ")).map(str::to_owned).collect();
            lines.dedup();
            lines
        };
        assert_eq!(found(said), found(&native.stdout), "{said}\n{}", lab.logs());
    }

    /// The output of a batch job, all its lives.
    #[must_use]
    pub fn output(&self) -> String {
        fs::read_to_string(self.lab.work().join("out")).unwrap_or_default()
    }

    /// Submits `line` as a job on two nodes with two tasks each.
    #[must_use]
    pub fn submit(&self, line: &str, options: &[&str]) -> String {
        let script = self.lab.script("job.sh", line);
        let words = [&["-N2", "--ntasks-per-node=2", "--output=out", "--open-mode=append"], options];
        self.lab.submit(&[&words.concat()[..], &[&script]].concat())
    }

    /// The nodes of a job, the one of the batch script and of rank 0 first.
    #[must_use]
    pub fn nodes(&self, job: &str) -> Vec<String> {
        let list = self.lab.job(job, "NodeList");
        let said = self.lab.says(&["scontrol", "show", "hostnames", &list]);
        said.stdout.lines().map(str::to_owned).collect()
    }
}
