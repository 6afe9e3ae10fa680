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

/// A run of some guests.
#[derive(Debug)]
pub struct Guests {
    shared: PathBuf,
}

/// How one guest ended.
#[derive(Debug, Clone)]
pub struct Guest {
    /// Exit status of what it ran.
    pub status: i32,
    /// What that printed.
    pub said: String,
}

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
        let shared = built().join("test-work").join(format!("guests-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&shared);
        fs::create_dir_all(&shared).expect("the build folder can be written to");
        Some(Guests { shared })
    }

    /// Runs a case of the lab on two guests, with this environment; what each said.
    pub fn pair(&self, case: &str, environment: &[(&str, &str)], limit: Duration) -> [Guest; 2] {
        let seconds = limit.as_secs().to_string();
        let mut command = Command::new(lab());
        command.args(["run", "-n", "2", "-t", &seconds, "-s"]).arg(&self.shared);
        let stillpoint = built().join("stillpoint").display().to_string();
        for (name, value) in environment.iter().chain(&[("STILLPOINT", stillpoint.as_str())]) {
            command.args(["-e", &format!("{name}={value}")]);
        }
        command.arg("--").arg(sources().join("labs/rdma-vm").join(case)).current_dir(&self.shared);
        let ended: Ended = Running::start(&mut command).wait(limit + Duration::from_secs(30));
        [0, 1].map(|node| {
            let of = |what: &str| fs::read_to_string(self.shared.join(format!(".rvm/node{node}.{what}")));
            let status = of("rc").ok().and_then(|rc| rc.trim().parse().ok()).unwrap_or(-1);
            let said = of("out").unwrap_or_default();
            if status != 0 {
                eprintln!("node{node}: {status}\n{said}\n{}\n{ended:#?}", of("console").unwrap_or_default());
            }
            Guest { status, said }
        })
    }
}

impl Drop for Guests {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.shared);
        }
    }
}

fn lab() -> PathBuf {
    sources().join("labs/rdma-vm/rdma-vm")
}
