//! Virtual machines with the kernel's own verbs (`labs/rdma-vm`): soft-RoCE, of which this machine has none. Runs *next door*.
//!
//! What a reader would get wrong: the guests see this machine's files, but what they write is gone with them, but for what
//! they write to `/shared`. They run without KVM, thirty times slower than this machine.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::process::{Ended, Running};
use crate::{built, skipped, sources};

/// Two guests, which run cases one after another: they take a while to begin.
#[derive(Debug)]
pub struct Guests {
    folder: PathBuf,
    /// Those that run, and what they share. None: they begin with the next case.
    serving: Option<(Running, PathBuf)>,
    begun: u32,
}

/// How one guest ended.
#[derive(Debug, Clone)]
pub struct Guest {
    /// Exit status of what it ran.
    pub status: i32,
    /// What that printed.
    pub said: String,
}

/// How long a guest lives at most.
const LIFE: Duration = Duration::from_secs(3600);

impl Guests {
    /// `None`, said by name, where there can be none.
    #[must_use]
    pub fn new(name: &str) -> Option<Guests> {
        let built_before = Command::new(lab()).arg("is-built").status().is_ok_and(|s| s.success());
        if !built_before {
            skipped(
                "the machines of labs/rdma-vm are not built; root's `cargo xtask test --only rdma` does it",
            );
            return None;
        }
        let folder = built().join("test-work").join(format!("guests-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        Some(Guests { folder, serving: None, begun: 0 })
    }

    /// The folder of guests that wait for a case.
    fn serve(&mut self) -> PathBuf {
        if let Some((lab, shared)) = &mut self.serving
            && lab.is_running()
        {
            return shared.clone();
        }
        let shared = self.folder.join(self.begun.to_string());
        self.begun += 1;
        fs::create_dir_all(&shared).expect("the build folder can be written to");
        let mut command = Command::new(lab());
        command.args(["serve", "-n", "2", "-t", &LIFE.as_secs().to_string(), "-s"]).arg(&shared);
        let mut lab = Running::start(command.current_dir(&shared));
        while !shared.join(".rvm/nodes").exists() && lab.is_running() {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.serving = Some((lab, shared.clone()));
        shared
    }

    /// Ends them: the next case has others.
    pub fn end(&mut self) {
        self.serving = None;
    }

    /// Runs a case of the lab on both, with this environment; what each said. Where it fails they end.
    pub fn pair(&mut self, case: &str, environment: &[(&str, &str)], limit: Duration) -> [Guest; 2] {
        let shared = self.serve();
        let own = (0..).map(|k| shared.join(format!("case.{k}"))).find(|case| !case.exists());
        let own = own.expect("numbers do not end");
        let seconds = limit.as_secs().to_string();
        let mut command = Command::new(lab());
        command.args(["case", "-t", &seconds, "-s"]).arg(&shared);
        let stillpoint = built().join("stillpoint").display().to_string();
        for (name, value) in environment.iter().chain(&[("STILLPOINT", stillpoint.as_str())]) {
            command.args(["-e", &format!("{name}={value}")]);
        }
        command.arg("--").arg(sources().join("labs/rdma-vm").join(case)).current_dir(&shared);
        let ended: Ended = Running::start(&mut command).wait(limit + Duration::from_secs(30));
        let guests = [0, 1].map(|node| {
            let of = |what: &str| fs::read_to_string(own.join(format!(".rvm/node{node}.{what}")));
            let status = of("rc").ok().and_then(|rc| rc.trim().parse().ok()).unwrap_or(-1);
            let said = of("out").unwrap_or_default();
            if status != 0 {
                let console = fs::read_to_string(shared.join(format!(".rvm/node{node}.console")));
                eprintln!("node{node}: {status}\n{said}\n{}\n{ended:#?}", console.unwrap_or_default());
            }
            Guest { status, said }
        });
        if guests.iter().any(|guest| guest.status != 0) {
            self.end();
        }
        guests
    }
}

impl Drop for Guests {
    fn drop(&mut self) {
        self.end();
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

fn lab() -> PathBuf {
    sources().join("labs/rdma-vm/rdma-vm")
}
