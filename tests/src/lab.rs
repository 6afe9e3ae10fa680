//! A Slurm cluster of namespaces for one test (`labs/slurm-lab`), with Stillpoint installed in it. Runs *next door*.
//!
//! What a reader would get wrong: the nodes share this machine's file system but for /tmp, /var/tmp and /dev/shm, which each
//! has for itself; what they are to see lies below the lab's state directory, also when that is in /tmp. Each test has a lab of
//! its own, which comes up in a second or two. A test that fails leaves nothing behind, nor does one that is killed: a
//! guard, a process of its own, takes the lab down when the test is gone.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::process::{Ended, Running, split_copies};
use crate::program::{Program, path_text};
use crate::{skipped, sources};

/// The unprivileged user of the lab.
pub const USER: &str = "labuser";
/// Another one, who has no business with the jobs of the first.
pub const STRANGER: &str = "labstranger";

/// A cluster under way: `ctl`, where users log in, and `n1`, `n2`, ….
#[derive(Debug)]
pub struct Lab {
    state: PathBuf,
    /// What the lab's own environment says: `SLURM_LAB_CGROUP=1`.
    settings: Vec<(&'static str, &'static str)>,
    guard: Option<Child>,
}

/// What the guard does: it waits for a word. If its standard input ends without one, the test is gone, perhaps in the midst of
/// bringing the lab up.
const GUARD: &str = r#"read -r word && exit
"$0" down; sleep 5; "$0" down; rm -rf "$SLURM_LAB_DIR""#;

impl Lab {
    /// Starts one with this many nodes and `lines` at the end of slurm.conf; `None`, said by name, where that cannot be done.
    #[must_use]
    pub fn up(nodes: u32, lines: &str) -> Option<Self> {
        Self::with(nodes, lines, &[])
    }

    /// One that limits the memory of its jobs by control groups.
    #[must_use]
    pub fn limited(nodes: u32) -> Option<Self> {
        if !Path::new("/sys/fs/cgroup/memory/memory.limit_in_bytes").is_file() {
            skipped("this machine has no memory groups of version 1, which the lab's task/cgroup needs");
            return None;
        }
        Self::with(nodes, "", &[("SLURM_LAB_CGROUP", "1")])
    }

    fn with(nodes: u32, lines: &str, settings: &[(&'static str, &'static str)]) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skipped("the Slurm lab needs root for its namespaces");
            return None;
        }
        if !Command::new("unshare").args(["--net", "--mount", "true"]).status().is_ok_and(|s| s.success()) {
            skipped("this machine lets nobody make network namespaces, which the Slurm lab is made of");
            return None;
        }
        // Several in one process, where there is no nextest.
        static TURNS: AtomicU32 = AtomicU32::new(0);
        let turn = TURNS.fetch_add(1, Ordering::Relaxed);
        let state = std::env::temp_dir().join(format!("stillpoint-lab-{}-{turn}", std::process::id()));
        let mut lab = Self { state, settings: settings.to_vec(), guard: None };
        let _ = fs::remove_dir_all(&lab.state);
        lab.guard();
        lab.install();
        fs::write(lab.state.join("etc/slurm.extra.conf"), lines).expect("write the lab's settings");
        let up = lab.lab(&["up", "-n", &nodes.to_string()], Duration::from_secs(400));
        assert!(ok(&up), "the lab does not come up: {up:#?}");
        let chown = ["-R".to_owned(), USER.to_owned(), path_text(&lab.work())];
        assert!(Command::new("chown").args(&chown).status().is_ok_and(|s| s.success()));
        Some(lab)
    }

    /// Starts the guard, out of reach of what is sent to the test's process group.
    fn guard(&mut self) {
        let mut command = Command::new("sh");
        command.args(["-c", GUARD]).arg(script()).env("SLURM_LAB_DIR", &self.state);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        self.guard = Some(command.spawn().expect("start the guard of the lab"));
    }

    /// Where all of it lies.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Where Stillpoint is installed in the lab.
    #[must_use]
    pub fn prefix(&self) -> PathBuf {
        self.state.join("prefix")
    }

    /// The user's directory, which all nodes share: scripts and output.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.state.join("work")
    }

    /// Where the user's runs are.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.work().join("state/stillpoint")
    }

    fn install(&self) {
        let make = |path: &Path| fs::create_dir_all(path).expect("make a directory of the lab");
        for path in [self.state.join("etc/plugstack.conf.d"), self.work(), self.state.join("programs")] {
            make(&path);
        }
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let installed = Command::new(cargo)
            .args(["run", "--quiet", "--package", "xtask", "--", "install", "--no-build", "--prefix"])
            .arg(self.prefix())
            .current_dir(sources())
            .output()
            .expect("start cargo");
        assert!(installed.status.success(), "install: {}", String::from_utf8_lossy(&installed.stderr));
        let line = self.prefix().join("share/stillpoint/plugstack.conf.d/stillpoint.conf");
        fs::copy(line, self.state.join("etc/plugstack.conf.d/stillpoint.conf")).expect("put the plugin in");
    }

    /// A program of `programs/`, where all nodes see it, with its arguments.
    #[must_use]
    pub fn program(&self, name: &str, rounds: u32) -> Option<Vec<String>> {
        let mut words = Program::named(name).command(rounds, 7).map_err(|lack| skipped(&lack)).ok()?;
        words[0] = self.place(Path::new(&words[0]));
        Some(words)
    }

    /// Any other program, where all nodes see it.
    #[must_use]
    pub fn place(&self, program: &Path) -> String {
        let copy = self.state.join("programs").join(program.file_name().unwrap_or_default());
        fs::copy(program, &copy).expect("copy a program into the lab");
        path_text(&copy)
    }

    /// A file in the user's directory that may be executed.
    #[must_use]
    pub fn script(&self, name: &str, lines: &str) -> String {
        let path = self.work().join(name);
        fs::write(&path, format!("#!/bin/bash\n{lines}\n")).expect("write a script");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("make a script executable");
        path_text(&path)
    }

    /// A command of a user on the login node.
    #[must_use]
    pub fn command(&self, user: &str, words: &[&str]) -> Command {
        let mut command = self.base();
        let path = format!(
            "PATH={0}/libexec/stillpoint/slurm:{0}/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            self.prefix().display()
        );
        let state = format!("XDG_STATE_HOME={}", self.work().join("state").display());
        command.args(["exec", "-u", user, "env", "-i", &format!("HOME=/home/{user}")]);
        command.args([
            &format!("USER={user}"),
            &path,
            &state,
            "LANG=C.UTF-8",
            "OMPI_MCA_mpi_yield_when_idle=1",
        ]);
        command.args(words).current_dir(self.work());
        command
    }

    /// Runs a command of the user on the login node to its end.
    #[must_use]
    pub fn says(&self, words: &[&str]) -> Ended {
        self.says_as(USER, words)
    }

    /// The same as another user.
    #[must_use]
    pub fn says_as(&self, user: &str, words: &[&str]) -> Ended {
        Running::start(&mut self.command(user, words)).wait(Duration::from_secs(120))
    }

    /// Starts a command of the user on the login node.
    #[must_use]
    pub fn start(&self, words: &[&str]) -> Running {
        Running::start(&mut self.command(USER, words))
    }

    /// A power cut; with `told`, slurmctld is told at once instead of finding out after its time limit.
    pub fn kill_node(&self, name: &str, told: bool) {
        assert!(ok(&self.lab(&["kill-node", name], Duration::from_secs(30))));
        if told {
            let node = format!("nodename={name}");
            let words = ["scontrol", "update", &node, "state=down", "reason=killed"];
            assert!(ok(&self.says_as("root", &words)));
        }
    }

    /// Any other command of the lab: `cut-node n1`, `revive-node n1`.
    #[must_use]
    pub fn lab(&self, words: &[&str], limit: Duration) -> Ended {
        Running::start(self.base().args(words)).wait(limit)
    }

    fn base(&self) -> Command {
        let mut command = Command::new(script());
        command.env("SLURM_LAB_DIR", &self.state).envs(self.settings.iter().copied());
        command
    }

    /// What slurmctld says of a job, as `Key=value`; empty when it does not know it.
    #[must_use]
    pub fn job(&self, job: &str, key: &str) -> String {
        let said = self.says(&["/usr/bin/scontrol", "show", "job", "-o", job]).stdout;
        let mut words = said.split_whitespace();
        words.find_map(|w| w.strip_prefix(key)?.strip_prefix('=').map(str::to_owned)).unwrap_or_default()
    }

    /// Waits until a job is in one of these states.
    pub fn wait(&self, job: &str, states: &[&str], limit: Duration) -> String {
        let deadline = Instant::now() + limit;
        loop {
            let state = self.job(job, "JobState");
            if states.contains(&state.as_str()) {
                return state;
            }
            assert!(Instant::now() < deadline, "job {job} is {state:?}, not {states:?}; {}", self.logs());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Submits a script and returns the job's number.
    #[must_use]
    pub fn submit(&self, words: &[&str]) -> String {
        let said = self.says(&[&["sbatch", "--parsable"], words].concat());
        assert!(ok(&said), "{said:#?}");
        said.stdout.trim().to_owned()
    }

    /// The process ids, on this machine, of programs of this name whose command line contains `part`; without the copies that
    /// they have made of themselves.
    #[must_use]
    pub fn processes(&self, name: &str, part: &str) -> Vec<u32> {
        let is = |pid: &u32| {
            let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let env = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            exe == self.prefix().join("libexec/stillpoint").join(name)
                && (String::from_utf8_lossy(&line).contains(part)
                    || String::from_utf8_lossy(&env).contains(part))
        };
        let all = fs::read_dir("/proc").into_iter().flatten().flatten();
        split_copies(all.filter_map(|e| e.file_name().to_str()?.parse().ok()).filter(is).collect()).0
    }

    /// What all logs say that may explain a failure.
    #[must_use]
    pub fn logs(&self) -> String {
        let mut said = String::new();
        let mut folders = vec![self.store(), self.state.join("log")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|e| e == "log" || e == "err") {
                    let text = fs::read_to_string(&path).unwrap_or_default();
                    let lines: Vec<&str> = text.lines().collect();
                    let last = &lines[lines.len().saturating_sub(25)..];
                    said += &format!("== {}\n{}\n", path.display(), last.join("\n"));
                }
            }
        }
        said
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.lab(&["down"], Duration::from_secs(60));
        if !std::thread::panicking() || std::env::var_os("STILLPOINT_KEEP_LAB").is_none() {
            let _ = fs::remove_dir_all(&self.state);
        }
        if let Some(mut guard) = self.guard.take() {
            let told = guard.stdin.take().map(|mut line| line.write_all(b"done\n"));
            if told.is_some_and(|t| t.is_ok()) {
                let _ = guard.wait();
            }
        }
    }
}

fn script() -> PathBuf {
    sources().join("labs/slurm-lab/slurm-lab")
}

/// Whether a command ended well.
#[must_use]
pub fn ok(ended: &Ended) -> bool {
    ended.status.is_some_and(|s| s.success())
}
