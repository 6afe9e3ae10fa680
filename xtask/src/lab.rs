//! `cargo xtask lab …`: a Slurm of several nodes on this machine, with our plugin in it. Runs *next door*, as root.
//!
//! Everything but `up` goes to `tests/labs/slurm-lab/slurm-lab` as it is. `up` first installs below the lab's state directory,
//! which is the one place under /tmp that the lab's machines see and that its unprivileged user can read wherever the source
//! tree lies.

use std::path::PathBuf;
use std::process::Command;

use crate::command::{root, run};
use crate::{Outcome, install};

/// What the lab script takes from the environment, and its default.
fn state() -> PathBuf {
    std::env::var_os("SLURM_LAB_DIR").map_or_else(|| PathBuf::from("/tmp/slurm-lab"), PathBuf::from)
}

/// The lab, with `words` as its arguments.
pub(crate) fn lab(words: &[&str]) -> Outcome {
    if words.first() == Some(&"up") {
        let state = state();
        let prefix = state.join("prefix");
        install::install(&["--prefix", &prefix.to_string_lossy()])?;
        install::plugstack(&prefix, &state.join("etc/plugstack.conf.d"))?;
    }
    run(Command::new(root().join("tests/labs/slurm-lab/slurm-lab")).args(words))
}
