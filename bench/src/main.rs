//! `cargo xtask bench`: numbers under Stillpoint, each beside a native one of the same run. Runs *next door*.
//!
//! Native and Stillpoint runs alternate, so that a machine that slows down slows both. What a reader would get wrong: a
//! figure is never compared with one of another day. A run that fails ends the bench: there is no number without a run.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool talks to its user")]

mod bed;
mod call;
mod image;
mod machine;
mod report;
mod requeue;

use std::process::ExitCode;

const USAGE: &str = "\
cargo xtask bench [--pairs N] [--native] [--only call|verbs|weight|solver|stall|dump|requeue] [--label TEXT]
N interleaved pairs of runs, 11 if not said; `requeue`, which kills nodes of a Slurm, only if it is named. A whole run, or any with a label, writes bench/results/DATE-COMMIT[-TEXT].md and .json.
$STILLPOINT_BENCH_DIR: the folder for images and plain files, /dev/shm if not set.";

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
struct Wish {
    pairs: usize,
    native: bool,
    only: Option<String>,
    label: Option<String>,
}

impl Wish {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Wish, String> {
        let mut wish = Wish { pairs: 11, native: false, only: None, label: None };
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} wants a value\n{USAGE}"));
            match word.as_str() {
                "--native" => wish.native = true,
                "--pairs" => {
                    let n = value()?.parse().ok().filter(|n| *n > 0);
                    wish.pairs = n.ok_or_else(|| format!("--pairs wants a number\n{USAGE}"))?;
                }
                "--label" => wish.label = Some(value()?),
                "--only" => {
                    let part = value()?;
                    if !PARTS.contains(&part.as_str()) {
                        return Err(format!("no part {part}\n{USAGE}"));
                    }
                    wish.only = Some(part);
                }
                _ => return Err(format!("{word} is not known\n{USAGE}")),
            }
        }
        Ok(wish)
    }
}

const PARTS: [&str; 7] = ["call", "verbs", "weight", "solver", "stall", "dump", "requeue"];

/// Whether a part is wanted; the last one takes as long as all the others together, and wants root.
fn wanted(part: &str, only: Option<&str>) -> bool {
    only.map_or(part != "requeue", |only| only == part)
}

fn main() -> ExitCode {
    match Wish::parse(std::env::args().skip(1)).and_then(|wish| measure(&wish)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("bench: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn measure(wish: &Wish) -> Result<(), String> {
    let (bed, load) = (bed::Bed::make()?, machine::load());
    let mut figures = Vec::new();
    for part in PARTS.into_iter().filter(|part| wanted(part, wish.only.as_deref())) {
        eprintln!("bench: {part}, {} pairs", wish.pairs);
        figures.extend(match part {
            "call" => call::calls(&bed, wish.pairs, wish.native)?,
            "verbs" => call::verbs(&bed, wish.pairs, wish.native)?,
            "weight" => call::weight(&bed, wish.pairs, wish.native)?,
            "solver" => call::solver(&bed, wish.pairs, wish.native)?,
            "requeue" => requeue::measure(&bed, wish.pairs, wish.native)?,
            _ => images(&bed, part == "dump", wish)?,
        });
    }
    let table = report::table(&figures);
    println!("{table}");
    if !wish.native && (wish.only.is_none() || wish.label.is_some()) {
        write(wish, load, &table, &figures)?;
    }
    Ok(())
}

fn images(bed: &bed::Bed, direct: bool, wish: &Wish) -> Result<Vec<report::Figure>, String> {
    let mut figures = Vec::new();
    for (ranks, mib) in [(1, 512), (2, 256)] {
        let case = image::Case { ranks, mib, direct };
        figures.extend(image::measure(bed, case, wish.pairs, wish.native)?);
    }
    Ok(figures)
}

fn write(wish: &Wish, load: f64, table: &str, figures: &[report::Figure]) -> Result<(), String> {
    let machine = machine::describe(wish.pairs, load);
    let label = wish.label.as_ref().map_or(String::new(), |label| format!("-{label}"));
    let folder = machine::results();
    std::fs::create_dir_all(folder).map_err(|error| format!("make {}: {error}", folder.display()))?;
    let base = folder.join(format!("{}-{}{label}", machine::date(), machine::commit()));
    let missed = figures.iter().filter(|f| f.met() == Some(false)).count();
    let text = format!(
        "# Bench of {}\n\n{}\n{table}\n{missed} of {} targets missed. How to read it: ../README.md\n",
        machine::date(),
        machine::lines(&machine),
        figures.iter().filter(|f| f.met().is_some()).count(),
    );
    let json = format!("{:#}\n", report::json(&machine, figures));
    for (ending, bytes) in [("md", text), ("json", json)] {
        // Not with_extension: a name may hold a dot.
        let path = format!("{}.{ending}", base.display());
        std::fs::write(&path, bytes).map_err(|error| format!("write {path}: {error}"))?;
        eprintln!("bench: wrote {path}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes() {
        let parse = |line: &str| Wish::parse(line.split_whitespace().map(str::to_owned));
        assert_eq!(
            parse("--pairs 3 --only dump"),
            Ok(Wish { pairs: 3, native: false, only: Some("dump".to_owned()), label: None })
        );
        for bad in ["--pairs", "--pairs 0", "--only x", "now"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
