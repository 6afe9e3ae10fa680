//! The harness of the integration tests. Runs *next door*: it starts programs and looks at what they say.
//!
//! - [`program`]: the programs in `programs/`, how each is built and started.
//! - [`process`]: a command with a time limit; the processes below one of ours.
//! - [`cycle`]: the runs of one program: native, under Stillpoint, with checkpoints, killed and restarted; `case`: one such run.
//! - [`store`]: what lies in a store meanwhile.
//! - [`lab`]: a Slurm cluster of namespaces; [`solver`]: a program in it. [`vm`]: virtual machines with verbs.
//!
//! What a reader would get wrong: the binaries under test are those beside the test itself (`target/release` for a
//! release test), never those found on `PATH`.
#![forbid(unsafe_code)]
#![allow(clippy::print_stderr, reason = "a test says why it is skipped and with which seed it runs")]
#![allow(clippy::missing_panics_doc, clippy::panic, reason = "a test harness fails by panicking")]

mod case;
pub mod cycle;
pub mod lab;
pub mod process;
pub mod program;
pub mod solver;
pub mod store;
pub mod vm;

use std::path::{Path, PathBuf};

/// The folder that holds what was built: two above the test binary, which lies in `deps`.
#[must_use]
pub fn built() -> PathBuf {
    let test = std::env::current_exe().expect("a process can name its own program");
    test.ancestors().nth(2).expect("a test lies in a folder of the target directory").to_path_buf()
}

/// The folder `tests/` of the source tree.
#[must_use]
pub fn sources() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Says that a test is skipped, and why, in the one form that a reader of a log can look for.
pub fn skipped(reason: &str) {
    eprintln!("skipped: {reason}");
}

/// SplitMix64: repeatable from the seed that is printed.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    /// The seed of this run: `STILLPOINT_TEST_SEED`, else taken from the clock. Printed, so that a failure repeats.
    #[must_use]
    pub fn seeded() -> Self {
        let given = std::env::var("STILLPOINT_TEST_SEED").ok().and_then(|text| text.parse().ok());
        let seed = given.unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            now.as_secs() << 20 ^ u64::from(now.subsec_nanos())
        });
        eprintln!("seed: STILLPOINT_TEST_SEED={seed}");
        Self(seed)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)) % bound.max(1)
    }
}

/// Turns lists of programs into tests `now::MODE::PROGRAM` and ignored tests `not_yet::MODE::PROGRAM`, where a mode is a
/// function of [`cycle`]; and checks that `LEDGER.md` owns up to each line of `not_yet`.
#[macro_export]
macro_rules! cases {
    (now { $($mode:ident: $($name:ident)+;)* } not_yet { $($later:ident: $($waits:ident)+;)* }) => {
        mod now {
            $(mod $mode { $(#[test] fn $name() { stillpoint_tests::cycle::$mode(stringify!($name)); })+ })*
        }
        mod not_yet {
            $(mod $later { $(
                #[test]
                #[ignore = "not yet: see LEDGER.md"]
                fn $waits() { stillpoint_tests::cycle::$later(stringify!($waits)); }
            )+ })*
        }
        /// What does not run yet: mode and programs.
        const NOT_YET: &[(&str, &[&str])] = &[$((stringify!($later), &[$(stringify!($waits)),+])),*];

        #[test]
        fn the_ledger_says_what_does_not_run_yet() {
            let path = stillpoint_tests::sources().join("LEDGER.md");
            let ledger = std::fs::read_to_string(path).expect("LEDGER.md is in the tree");
            for (mode, programs) in NOT_YET {
                let line = format!("`not_yet::{mode}`: {}", programs.join(" "));
                assert!(ledger.lines().any(|text| text.contains(&line)), "LEDGER.md lacks the line {line:?}");
            }
        }
    };
}
