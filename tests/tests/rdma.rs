//! Two machines with the kernel's own verbs, virtual ones: what runs there natively, and what is saved and restarted. Runs *next door*.
#![allow(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

use std::time::Duration;

use stillpoint_tests::program::Program;
use stillpoint_tests::vm::{Guest, Guests};
use stillpoint_tests::{built, skipped};

const LIMIT: Duration = Duration::from_secs(240);

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

/// The same through the front: requests are logged, completions translated, those that nobody asked for swallowed.
#[test]
fn verbs_programs_run_through_the_front() {
    let Some(guests) = Guests::new("through") else { return };
    let wrap = format!("{} --dir /run/jobs run --", built().join("stillpoint").display());
    for Guest { status, said } in guests.pair("examples/pair.sh", &[("WRAP", &wrap)], LIMIT) {
        assert_eq!(status, 0);
        assert_eq!(said.matches(" rc=0 ").count(), 5, "{said}");
    }
}

/// A program of libibverbs' or perftest's, one end on each guest, goes on from a checkpoint on the other guest's device, which is another
/// one by then; and back. The client, and with `both` the server, says this at its end.
fn goes_on(name: &str, words: &str, last: &str, both: bool) {
    let Some(guests) = Guests::new(name) else { return };
    let ended = guests.pair("cases/verbs.sh", &[("WORDS", words)], LIMIT);
    for (Guest { status, said }, speaks) in ended.iter().zip([both, true]) {
        assert!(*status == 0 && (!speaks || said.contains(last)), "{said}");
    }
    assert_eq!(ended[0].said.matches("node0: checkpoint ").count(), 2, "{ended:?}");
}

#[test]
fn a_reliable_connection_goes_on_over_other_devices() {
    goes_on("rc", "ibv_rc_pingpong -d rxe0 -g 1 -n 5000", " iters in ", true);
}

#[test]
fn waiting_for_events_goes_on_over_other_devices() {
    goes_on("events", "ibv_rc_pingpong -d rxe0 -g 1 -n 5000 -e", " iters in ", true);
}

#[test]
fn an_unreliable_connection_goes_on_over_other_devices() {
    goes_on("uc", "ibv_uc_pingpong -d rxe0 -g 1 -n 5000", " iters in ", true);
}

#[test]
fn datagrams_go_on_over_other_devices() {
    goes_on("ud", "ibv_ud_pingpong -d rxe0 -g 1 -n 5000 -s 1024", " iters in ", true);
}

#[test]
fn a_shared_receive_queue_goes_on_over_other_devices() {
    goes_on("srq", "ibv_srq_pingpong -d rxe0 -g 1 -n 5000 -q 4", " iters in ", true);
}

#[test]
fn perftest_sends_go_on_over_other_devices() {
    goes_on("send_bw", "ib_send_bw -d rxe0 -x 1 -n 20000 -s 4096 -F", "#bytes", false);
}

#[test]
fn perftest_writes_go_on_over_other_devices() {
    goes_on("write_lat", "ib_write_lat -d rxe0 -x 1 -n 5000 -F", "#bytes", false);
}

#[test]
fn perftest_reads_go_on_over_other_devices() {
    goes_on("read_bw", "ib_read_bw -d rxe0 -x 1 -n 20000 -s 4096 -F", "#bytes", false);
}

#[test]
fn perftest_atomics_go_on_over_other_devices() {
    goes_on("atomic_lat", "ib_atomic_lat -d rxe0 -x 1 -n 20000 -F", "#bytes", false);
}

/// Two ends of a program of ours, which check what they get.
fn both_go_on(name: &str, rounds: u32) {
    let program = Program::named(name);
    let words = match program.command(0, 0) {
        Ok(words) => words,
        Err(lack) => return skipped(&lack),
    };
    let Some(guests) = Guests::new(name) else { return };
    let rounds = rounds.to_string();
    let environment = [("PROGRAM", words[0].as_str()), ("ROUNDS", &rounds), ("SEED", "1"), ("PAUSE", "1")];
    let [one, other] = guests.pair("cases/pair.sh", &environment, LIMIT);
    assert_eq!(result(&one), result(&other), "both have added up the same numbers");
    assert_eq!(one.said.matches("node0: checkpoint ").count(), 2, "{one:?}");
}

#[test]
fn atomics_happen_once() {
    both_go_on("verbs_atomics", 12_000);
}

#[test]
fn writes_arrive_in_order() {
    both_go_on("verbs_writes", 3000);
}

#[test]
fn messages_that_wait_for_a_receive_are_sent_again() {
    both_go_on("verbs_messages", 3000);
}

#[test]
fn events_wake_who_waits() {
    both_go_on("verbs_events", 2000);
}

#[test]
fn connections_and_regions_are_made_anew() {
    both_go_on("verbs_again", 1500);
}

#[test]
fn many_connections_share_their_receives() {
    both_go_on("verbs_shared", 3000);
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
