//! `cargo xtask demo --slurm`: the main job under Slurm, on three nodes of this machine. Runs *next door*, as root.
//!
//! `sbatch` with LAMMPS on four ranks and two nodes; `scontrol checkpoint create` is answered; the node of the batch script
//! loses its power; Slurm notices, requeues the job on the nodes that are left, and it goes on from its last checkpoint. The
//! jobs are those of an unprivileged user. What a reader would get wrong: most of the time from the kill to the
//! restart is Slurm's own, which waits for the node to answer (SlurmdTimeout) before it gives it up.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::command::{root, run};
use crate::demo::{Random, Report, history, lammps, newest, number, prepare, thermo};
use crate::{Outcome, install, setup};

const SHAPE: [&str; 3] = ["-N2", "--ntasks-per-node=2", "--mpi=pmix"];
/// How long the job may take before it counts as hung.
const LIMIT: Duration = Duration::from_secs(600);
const USER: &str = "labuser";

/// The cluster; it goes down with this value, whatever happens.
struct Lab {
    state: PathBuf,
}

impl Lab {
    fn base(&self) -> Command {
        let mut command = Command::new(root().join("tests/labs/slurm-lab/slurm-lab"));
        command.env("SLURM_LAB_DIR", &self.state);
        command
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.base();
        let prefix = self.state.join("prefix");
        let path = format!("PATH={0}/libexec/stillpoint/slurm:{0}/bin:/usr/bin:/bin", prefix.display());
        let state = format!("XDG_STATE_HOME={}", self.work().join("state").display());
        command
            .args(["exec", "-u", USER, "env", &path, &state, "OMPI_MCA_mpi_yield_when_idle=1"])
            .args(words);
        command.current_dir(self.work());
        command
    }

    /// What a command of the user on the login node says.
    fn says(&self, words: &[&str]) -> Result<String, String> {
        let shown = words.join(" ");
        let output = self.command(words).output().map_err(|e| format!("{shown}: {e}"))?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        } else {
            Err(format!("{shown}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
        }
    }

    fn work(&self) -> PathBuf {
        self.state.join("work")
    }

    fn store(&self) -> PathBuf {
        self.work().join("state/stillpoint")
    }

    fn job(&self, job: &str, key: &str) -> String {
        let said = self.says(&["scontrol", "show", "job", "-o", job]).unwrap_or_default();
        let mut words = said.split_whitespace();
        words.find_map(|w| w.strip_prefix(key)?.strip_prefix('=').map(str::to_owned)).unwrap_or_default()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = run(self.base().arg("down"));
    }
}

fn wait(what: &str, mut done: impl FnMut() -> Result<bool, String>) -> Outcome {
    let begun = Instant::now();
    while !done()? {
        if begun.elapsed() > LIMIT {
            return Err(format!("{what}: not within {} s", LIMIT.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn give_to_user(path: &Path) -> Outcome {
    run(Command::new("chown").arg("-R").arg(USER).arg(path))
}

/// Runs the demonstration; a difference between the two runs is an error.
pub(crate) fn demo(seed: u64) -> Outcome {
    if !setup::is_root() {
        return Err("demo --slurm makes a cluster of namespaces, and wants root for that".to_owned());
    }
    setup::setup()?;
    setup::lab()?;
    let lab = Lab { state: std::env::temp_dir().join("stillpoint-demo-slurm") };
    let _ = lab.base().arg("down").output();
    if lab.state.exists() {
        fs::remove_dir_all(&lab.state).map_err(|e| format!("clear {}: {e}", lab.state.display()))?;
    }
    let prefix = lab.state.join("prefix");
    install::install(&["--prefix", &prefix.to_string_lossy()])?;
    install::plugstack(&prefix, &lab.state.join("etc/plugstack.conf.d"))?;

    println!("\n== 1. three nodes ==");
    run(lab.base().args(["up", "-n", "3"]))?;
    fs::create_dir_all(lab.work()).map_err(|e| e.to_string())?;

    println!("\n== 2. undisturbed ==");
    let plain = prepare(&lab.work().join("plain"))?;
    give_to_user(&lab.work())?;
    let started = Instant::now();
    run(lab.command(&[&["srun"], &SHAPE[..], &lammps()].concat()).current_dir(&plain))?;
    let native = started.elapsed();
    let expected = thermo(&plain.join("log.lammps"))?;

    println!("\n== 3. sbatch --requeue --ckpt-interval=2, one node killed (seed {seed}) ==");
    let disturbed = prepare(&lab.work().join("disturbed"))?;
    let script = disturbed.join("job.sh");
    let line = [&["srun"], &SHAPE[..], &lammps()].concat().join(" ");
    fs::write(&script, format!("#!/bin/bash\n{line}\n")).map_err(|e| e.to_string())?;
    give_to_user(&lab.work())?;
    let started = Instant::now();
    let chdir = format!("--chdir={}", disturbed.display());
    let script = script.display().to_string();
    let words = [&["sbatch", "--parsable", "--requeue", "--open-mode=append", "--output=out"], &SHAPE[..2]];
    let words = [&words.concat()[..], &["--ckpt-interval=2", &chdir, &script]].concat();
    println!("$ {}", words.join(" "));
    let job = lab.says(&words)?;
    wait("the first checkpoint", || match lab.job(&job, "JobState").as_str() {
        "COMPLETED" | "FAILED" => {
            Err(format!("job {job} ended before its first checkpoint: {}", out(&disturbed)))
        }
        _ => Ok(newest(&lab.store()) != "none"),
    })?;
    println!(
        "$ scontrol checkpoint create {job}\n{}",
        lab.says(&["scontrol", "checkpoint", "create", &job])?
    );
    std::thread::sleep(Duration::from_millis(Random(seed).below(4000)));
    let node = lab.job(&job, "BatchHost");
    let (before, killed) = (newest(&lab.store()), Instant::now());
    run(lab.base().args(["kill-node", &node]))?;
    wait("the requeue", || Ok(lab.job(&job, "Restarts") == "1"))?;
    let noticed = killed.elapsed();
    wait("the restart", || Ok(history(&lab.store()).iter().any(|l| number(l, "restart_ns").is_some())))?;
    let running = killed.elapsed();
    println!("job {job} runs again on {}", lab.job(&job, "NodeList"));
    wait("the end of the job", || match lab.job(&job, "JobState").as_str() {
        "COMPLETED" => Ok(true),
        "FAILED" | "NODE_FAIL" | "CANCELLED" | "TIMEOUT" => {
            Err(format!("job {job} failed: {}", out(&disturbed)))
        }
        _ => Ok(false),
    })?;
    let took = started.elapsed();
    let found = thermo(&disturbed.join("log.lammps"))?;

    println!("\n== 4. result ==");
    print!("{}", out(&disturbed));
    let first = [
        ("node killed", format!("{node}, newest checkpoint {before}")),
        ("Slurm requeued after", format!("{:.1} s", noticed.as_secs_f64())),
        ("solver running again after", format!("{:.1} s", running.as_secs_f64())),
    ];
    let store = lab.store();
    if (Report { expected: &expected, found: &found, store: &store, native, took }).print(&first) {
        Ok(())
    } else {
        Err(format!("the results differ (seed {seed}); both logs are in {}", lab.work().display()))
    }
}

fn out(folder: &Path) -> String {
    fs::read_to_string(folder.join("out")).unwrap_or_default()
}
