//! `cargo xtask bench`: what a call costs, under Stillpoint beside native. Runs *next door*.
//!
//! Native and Stillpoint runs alternate, so that a machine that slows down slows both; the least of all runs is
//! shown, since a disturbance only ever adds. What a reader would get wrong: a figure is never compared with one of another
//! day. A run that fails ends the bench: there is no number without a run.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool talks to its user")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Interleaved pairs of runs.
const PAIRS: usize = 11;

fn main() -> ExitCode {
    let native_only = std::env::args().any(|word| word == "--native");
    match measure(native_only) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("bench: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn measure(native_only: bool) -> Result<(), String> {
    let own = std::env::current_exe().map_err(|error| format!("find the own program: {error}"))?;
    let built = own.parent().ok_or("the own program lies nowhere")?;
    let program = compile(built)?;
    let (mut native, mut ours) = (BTreeMap::new(), BTreeMap::new());
    for _ in 0..PAIRS {
        least(&mut native, run(Command::new("mpirun").args(["-n", "2"]).arg(&program))?);
        if !native_only {
            let mut stillpoint = Command::new(built.join("stillpoint"));
            stillpoint
                .args(["run", "-n", "2", "--dir"])
                .arg(built.join("bench-work"))
                .arg("--")
                .arg(&program);
            least(&mut ours, run(&mut stillpoint)?);
        }
    }
    println!("{:<12} {:>12} {:>12} {:>8}", "ns", "native", "stillpoint", "ratio");
    for (name, value) in &native {
        match ours.get(name) {
            Some(other) => println!("{name:<12} {value:>12.2} {other:>12.2} {:>8.3}", other / value),
            None => println!("{name:<12} {value:>12.2} {:>12} {:>8}", "not run", "-"),
        }
    }
    Ok(())
}

fn compile(built: &Path) -> Result<PathBuf, String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/call.c");
    let program = built.join("bench-call");
    let status = Command::new("mpicc").arg("-O2").arg(source).arg("-o").arg(&program).status();
    match status {
        Ok(status) if status.success() => Ok(program),
        Ok(status) => Err(format!("mpicc call.c: {status}")),
        Err(error) => Err(format!("mpicc: {error}")),
    }
}

/// Runs once; what the program printed, by name.
fn run(command: &mut Command) -> Result<BTreeMap<String, f64>, String> {
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr)));
    }
    let numbers = figures(&String::from_utf8_lossy(&output.stdout));
    if numbers.is_empty() { Err(format!("{command:?} printed no figure")) } else { Ok(numbers) }
}

fn figures(text: &str) -> BTreeMap<String, f64> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(name, value)| Some((name.to_owned(), value.trim().parse().ok()?)))
        .collect()
}

fn least(best: &mut BTreeMap<String, f64>, found: BTreeMap<String, f64>) {
    for (name, value) in found {
        best.entry(name).and_modify(|least| *least = least.min(value)).or_insert(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_of_all_runs_stays() {
        let mut best = figures("iprobe 20.5\nnoise\npingpong 300\n");
        least(&mut best, figures("iprobe 19.5\npingpong 310\n"));
        assert_eq!(
            best.into_iter().collect::<Vec<_>>(),
            [("iprobe".to_owned(), 19.5), ("pingpong".to_owned(), 300.0)]
        );
    }
}
