//! The release build of everything that a user installs. Runs *next door*.
//!
//! The workspace's default members are exactly that set; tests and bench need MPI headers and are built by name.

use crate::Outcome;
use crate::command::{cargo, run, target};
use crate::install;

/// Binaries and libraries, into `target/release`.
pub(crate) fn build() -> Outcome {
    install::build()?;
    // The solver of the benchmarks is also killed and restarted by a test.
    run(cargo().args(["build", "--release", "--package", "stillpoint-bench"]))?;
    // The model of the verbs, under the name of what it stands in for.
    run(cargo().args(["build", "--release", "--package", "stillpoint-verbs-model"]))?;
    let folder = target().join("release/verbs-model");
    std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    install::verbs("libstillpoint_verbs_model.a", "verbs-model/libibverbs.so.1")?;
    // The example in Rust over the library is run by a test.
    run(cargo().args(["build", "--release", "--package", "stillpoint-capi", "--examples"]))
}
