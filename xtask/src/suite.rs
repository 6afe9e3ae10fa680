//! `cargo xtask test`: setup, build, then unit tests and integration tests of the area asked for. Runs *next door*.
//!
//! What a reader would get wrong: `stillpoint-hooks` is never tested here. It is a `no_std` library with its own panic
//! handler, and a test build would link a second one; what it does is shown by the integration tests in `tests/`.

use crate::command::{cargo, run, succeeds};
use crate::{Outcome, build, sessions, setup};

/// An area of the project, and the packages and integration tests that prove it.
struct Area {
    name: &'static str,
    packages: &'static [&'static str],
    /// The files `tests/tests/<name>.rs` of the area.
    integration: &'static [&'static str],
}

const AREAS: &[Area] = &[
    Area {
        name: "core",
        packages: &[
            "stillpoint-abi",
            "stillpoint-sys",
            "stillpoint-window",
            "stillpoint-image",
            "stillpoint-loader",
            "stillpoint-capture",
            "stillpoint-coord",
            "stillpoint-net",
            "stillpoint-agent",
            "stillpoint-cli",
            "stillpoint-capi",
            "xtask",
        ],
        integration: &["core", "byhand", "capi", "outcomes", "refusals"],
    },
    Area {
        name: "mpi",
        packages: &["stillpoint-mpi-table", "stillpoint-mpi-upper", "stillpoint-mpi-lower"],
        integration: &["mpi", "mpi4py"],
    },
    Area {
        name: "slurm",
        packages: &["stillpoint-slurm"],
        integration: &[
            "slurm",
            "slurm_burst",
            "slurm_faults",
            "slurm_limits",
            "slurm_mpirun",
            "slurm_options",
        ],
    },
    Area {
        name: "rdma",
        packages: &["stillpoint-ib-plugin", "stillpoint-verbs-model"],
        integration: &["verbs", "rdma"],
    },
    Area { name: "store", packages: &["stillpoint-storage"], integration: &[] },
];

/// What was asked for on the command line.
pub(crate) struct Choice {
    area: Option<&'static Area>,
    full: bool,
}

impl Choice {
    /// Reads `[--only AREA] [--full]`.
    pub(crate) fn parse(words: &[&str]) -> Result<Self, String> {
        let mut choice = Self { area: None, full: false };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match *word {
                "--full" => choice.full = true,
                "--only" => {
                    let name = words.next().copied().unwrap_or_default();
                    let area = AREAS.iter().find(|area| area.name == name);
                    choice.area =
                        Some(area.ok_or_else(|| format!("--only knows {}, not {name:?}", area_names()))?);
                }
                other => return Err(format!("test knows --only and --full, not {other:?}")),
            }
        }
        Ok(choice)
    }

    /// The arguments that select packages: those of one area, else all but the one that cannot be tested.
    fn packages(&self) -> Vec<&'static str> {
        match self.area {
            None => vec!["--workspace", "--exclude", "stillpoint-hooks"],
            Some(area) => area.packages.iter().flat_map(|package| ["--package", *package]).collect(),
        }
    }
}

fn area_names() -> String {
    AREAS.iter().map(|area| area.name).collect::<Vec<_>>().join(", ")
}

/// Runs the tests of `choice`.
pub(crate) fn test(choice: Choice) -> Outcome {
    setup::setup()?;
    if choice.area.is_none_or(|area| area.name == "slurm") {
        setup::lab()?;
    }
    if choice.area.is_none_or(|area| area.name == "rdma") {
        setup::guests()?;
    }
    build::build()?;
    let _sessions = sessions::ungrouped();
    run_tests(&choice.packages(), choice.full, 1)?;
    for file in choice.area.map_or(&[][..], |area| area.integration) {
        // Most of the time they wait, for one another or for an interval to pass.
        let at_once = if *file == "verbs" { 2 } else { 1 };
        run_tests(&["--package", "stillpoint-tests", "--lib", "--test", file], choice.full, at_once)?;
    }
    Ok(())
}

/// Runs some tests, so many at once for each processor.
fn run_tests(selection: &[&str], full: bool, at_once: usize) -> Outcome {
    let mut command = cargo();
    if succeeds(cargo().args(["nextest", "--version"])) {
        command.args(["nextest", "run", "--no-tests=pass", "--no-fail-fast"]);
    } else {
        command.args(["test", "--no-fail-fast"]);
    }
    if at_once > 1 {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        command.env("NEXTEST_TEST_THREADS", (at_once * processors).to_string());
    }
    if full {
        command.env("STILLPOINT_TEST_FULL", "1");
    }
    run(command.arg("--release").args(selection))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_area_selects_its_own_packages() {
        let choice = Choice::parse(&["--only", "store", "--full"]).unwrap();
        assert!(choice.full);
        assert_eq!(choice.packages(), ["--package", "stillpoint-storage"]);
    }

    #[test]
    fn without_an_area_all_but_the_hooks_are_tested() {
        let choice = Choice::parse(&[]).unwrap();
        assert_eq!(choice.packages(), ["--workspace", "--exclude", "stillpoint-hooks"]);
    }

    #[test]
    fn an_unknown_area_is_refused_by_name() {
        let refusal = Choice::parse(&["--only", "moon"]).err().unwrap();
        assert!(
            refusal.contains("\"moon\"") && refusal.contains("core, mpi, slurm, rdma, store"),
            "{refusal}"
        );
    }

    /// Every file of integration tests belongs to an area.
    #[test]
    fn no_integration_test_is_forgotten() {
        for file in std::fs::read_dir(crate::command::root().join("tests/tests")).unwrap() {
            let path = file.unwrap().path();
            let name = path.file_stem().and_then(|n| n.to_str()).unwrap().to_owned();
            let known = AREAS.iter().any(|area| area.integration.contains(&name.as_str()));
            assert!(known, "{name} belongs to no area of `cargo xtask test`");
        }
    }

    /// Every member of the workspace but the hooks, the tests and the bench belongs to an area.
    #[test]
    fn no_package_is_forgotten() {
        let root = crate::command::root();
        for folder in std::fs::read_dir(root.join("core")).unwrap() {
            let manifest = folder.unwrap().path().join("Cargo.toml");
            let Ok(text) = std::fs::read_to_string(manifest) else { continue };
            let name = text
                .lines()
                .find_map(|line| line.strip_prefix("name = "))
                .unwrap()
                .trim_matches('"')
                .to_owned();
            let known =
                name == "stillpoint-hooks" || AREAS.iter().any(|area| area.packages.contains(&name.as_str()));
            assert!(known, "{name} belongs to no area of `cargo xtask test`");
        }
    }
}
