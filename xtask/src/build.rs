//! The release build of everything that a user installs. Runs *next door*.
//!
//! The workspace's default members are exactly that set; tests and bench need MPI headers and are built by name.

use crate::Outcome;
use crate::command::{cargo, run};
use crate::install;

/// Binaries and libraries, into `target/release`.
pub(crate) fn build() -> Outcome {
    install::build()?;
    // The solver of the benchmarks is also killed and restarted by a test.
    run(cargo().args(["build", "--release", "--package", "stillpoint-bench"]))?;
    // The example in Rust over the library is run by a test.
    run(cargo().args(["build", "--release", "--package", "stillpoint-capi", "--examples"]))
}
