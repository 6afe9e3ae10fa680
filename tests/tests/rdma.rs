//! Two machines with the kernel's own verbs, virtual ones: what runs there natively, and what is saved and restarted. Runs *next door*.
#![allow(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

use std::time::Duration;

use stillpoint_tests::program::Program;
use stillpoint_tests::skipped;
use stillpoint_tests::vm::{Guest, Guests};

const LIMIT: Duration = Duration::from_secs(420);

/// The programs that come with libibverbs, and perftest: the ground that everything else stands on.
#[test]
fn verbs_programs_run_natively() {
    let Some(guests) = Guests::new("native") else { return };
    let ended = guests.pair("examples/pair.sh", &[], LIMIT);
    for Guest { status, said } in ended {
        assert_eq!(status, 0);
        assert_eq!(said.matches(" rc=0 ").count(), 10, "{said}");
    }
}

fn result(guest: &Guest) -> &str {
    assert!(guest.status == 0 && guest.said.contains("EXIT-SUCCESS"), "{guest:?}");
    guest.said.lines().find(|line| line.starts_with("result ")).expect("a result was printed")
}

/// Each rank goes on with the other machine's address, and back.
#[test]
fn a_connection_goes_on_between_other_machines() {
    let words = match Program::named("stream").command(0, 0) {
        Ok(words) => words,
        Err(lack) => return skipped(&lack),
    };
    let Some(guests) = Guests::new("stream") else { return };
    let [one, other] = guests.pair("cases/stream.sh", &[("STREAM", &words[0]), ("ROUNDS", "4000")], LIMIT);
    assert_eq!(result(&one), result(&other), "both have added up the same numbers");
    assert_eq!(one.said.matches("node0: checkpoint ").count(), 2, "{one:?}");
}

/// MPI over verbs: the library has them, below, and makes them anew on devices with other addresses and numbers.
#[test]
fn mpi_over_verbs_goes_on_over_other_devices() {
    let program = Program::named("ring");
    let words = match program.command(0, 0) {
        Ok(words) => words,
        Err(lack) => return skipped(&lack),
    };
    let Some(guests) = Guests::new("mpi") else { return };
    let environment = [("PROGRAM", words[0].as_str()), ("ROUNDS", "3000")];
    let [one, _] = guests.pair("cases/mpi.sh", &environment, LIMIT);
    assert_eq!(one.said.matches("node0: checkpoint ").count(), 2, "{one:?}");
    result(&one);
}
