//! `cargo xtask`: setup, build, install, lab, test, demo, bench. Runs *next door*, on the developer's or the user's machine.
//!
//! It uses the standard library only and nothing of ours, so that it compiles on a machine where nothing else is
//! ready; what is missing is found and installed by [`setup`]. What a reader would get wrong: `demo` and `test` never
//! use binaries of another build, they always run [`build`] first.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool talks to its user")]

mod build;
mod command;
mod demo;
mod demo_slurm;
mod install;
mod lab;
mod sessions;
mod setup;
mod suite;

use std::process::ExitCode;

const USAGE: &str = "\
cargo xtask setup                                          install what is missing (root), or say what to install
cargo xtask build                                          release build of all that a user installs
cargo xtask install --prefix DIR                           build, and install: programs, libraries, Slurm plugin, module file
cargo xtask lab up [-n NODES] | down | exec ... | ...      a Slurm of several nodes on this machine, with the plugin (root)
cargo xtask test [--only core|mpi|slurm|rdma|store] [--full]
cargo xtask demo [--slurm] [--seed N]                      LAMMPS, checkpointed, killed, restarted, compared
cargo xtask bench [ARGS...]                                numbers beside native ones";

/// What a step of the work ends with: nothing, or the sentence to show.
pub(crate) type Outcome = Result<(), String>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["setup"] => setup::setup(),
        ["build"] => setup::setup().and_then(|()| build::build()),
        ["install", rest @ ..] => install::install(rest),
        ["lab", rest @ ..] => lab::lab(rest),
        ["test", rest @ ..] => suite::Choice::parse(rest).and_then(suite::test),
        ["demo", rest @ ..] => demo::demo(rest),
        ["bench", rest @ ..] => bench(rest),
        [] | ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        [word, ..] => Err(format!("no command {word:?}\n{USAGE}")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("xtask: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn bench(rest: &[&str]) -> Outcome {
    setup::setup()?;
    if rest.contains(&"requeue") {
        setup::lab()?;
    }
    build::build()?;
    let mut arguments = vec!["run", "--release", "--package", "stillpoint-bench", "--"];
    arguments.extend(rest);
    command::run(command::cargo().args(&arguments))
}
