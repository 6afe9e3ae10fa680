//! Two machines with the kernel's own verbs, virtual ones: what runs there natively, and what is saved and restarted. Runs *next door*.
#![allow(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

use std::time::Duration;

use stillpoint_tests::cycle::full;
use stillpoint_tests::program::Program;
use stillpoint_tests::vm::{Guest, Guests};
use stillpoint_tests::{Random, built, skipped};

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

/// On a fast machine a program may come to its end before it was disturbed twice: then it runs for so many times as long.
const LONGER: [u32; 4] = [1, 4, 16, 64];

/// What both guests said when the program ran for long enough, and for how long that is. None: a device is missing.
fn long_enough(name: &str, run: impl Fn(&Guests, u32) -> [Guest; 2]) -> Option<(u32, [Guest; 2])> {
    for longer in LONGER {
        let ended = run(&Guests::new(name)?, longer);
        if longer == LONGER[3] || !ended[0].said.contains(" has ended with 0\n") {
            assert_eq!(ended[0].said.matches("node0: checkpoint ").count(), 2, "{ended:?}");
            return Some((longer, ended));
        }
    }
    None
}

/// A program of libibverbs' or perftest's that does something COUNT times, one end on each guest, goes on from a checkpoint on the other
/// guest's device, which is another one by then; and back. The client, and with `both` the server, says this at its end, of the LAST.
fn goes_on(name: &str, words: &str, count: u32, last: &str, both: bool) {
    let run = |guests: &Guests, longer: u32| {
        let words = words.replace("COUNT", &(longer * count).to_string());
        guests.pair("cases/verbs.sh", &[("WORDS", &words)], LIMIT)
    };
    let Some((longer, ended)) = long_enough(name, run) else { return };
    let last = last.replace("LAST", &(longer * count - 1).to_string());
    for (Guest { status, said }, speaks) in ended.iter().zip([both, true]) {
        assert!(*status == 0 && (!speaks || said.contains(&last)), "{said}");
    }
}

#[test]
fn a_reliable_connection_goes_on_over_other_devices() {
    goes_on("rc", "ibv_rc_pingpong -d rxe0 -g 1 -n COUNT", 3000, " iters in ", true);
}

#[test]
fn waiting_for_events_goes_on_over_other_devices() {
    goes_on("events", "ibv_rc_pingpong -d rxe0 -g 1 -n COUNT -e", 3000, " iters in ", true);
}

#[test]
fn an_unreliable_connection_goes_on_over_other_devices() {
    goes_on("uc", "ibv_uc_pingpong -d rxe0 -g 1 -n COUNT", 3000, " iters in ", true);
}

#[test]
fn datagrams_go_on_over_other_devices() {
    goes_on("ud", "ibv_ud_pingpong -d rxe0 -g 1 -n COUNT -s 1024", 3000, " iters in ", true);
}

#[test]
fn a_shared_receive_queue_goes_on_over_other_devices() {
    goes_on("srq", "ibv_srq_pingpong -d rxe0 -g 1 -n COUNT -q 4", 3000, " iters in ", true);
}

/// Latency and bandwidth, each with connections by its own means and by librdmacm: all of these, or one by chance.
fn perftest_goes_on(what: &str) {
    let all = [("lat", ""), ("bw", ""), ("lat", " -R"), ("bw", " -R")];
    let first = Random::seeded().below(4) as usize;
    for (kind, by) in all.iter().cycle().skip(first).take(if full() { 4 } else { 1 }) {
        let count = if *kind == "lat" { 3000 } else { 20_000 };
        let size = if what == "atomic" { "" } else { " -s 4096" };
        let name = format!("{what}_{kind}{}", by.replace(' ', ""));
        goes_on(
            &name,
            &format!("ib_{what}_{kind} -d rxe0 -x 1 -n COUNT{size} -F{by}"),
            count,
            "#bytes",
            false,
        );
    }
}

#[test]
fn perftest_sends_go_on_over_other_devices() {
    perftest_goes_on("send");
}

#[test]
fn perftest_writes_go_on_over_other_devices() {
    perftest_goes_on("write");
}

#[test]
fn perftest_reads_go_on_over_other_devices() {
    perftest_goes_on("read");
}

#[test]
fn perftest_atomics_go_on_over_other_devices() {
    perftest_goes_on("atomic");
}

#[test]
fn perftest_datagrams_over_librdmacm_go_on() {
    // Of its bandwidth test some datagrams are lost natively, and it waits for them.
    goes_on("cm_ud", "ib_send_lat -d rxe0 -x 1 -n COUNT -s 1024 -c UD -F -R", 3000, "#bytes", false);
}

#[test]
fn librdmacms_own_ping_goes_on() {
    goes_on("rping", "rping -C COUNT -v", 1500, "ping data: rdma-ping-LAST: ", false);
}

/// Two ends of a program of ours, which check what they get; saved after so many seconds.
fn both_go_on(name: &str, rounds: u32, pause: u32) {
    let program = Program::named(name);
    let words = match program.command(0, 0) {
        Ok(words) => words,
        Err(lack) => return skipped(&lack),
    };
    let pause = pause.to_string();
    let run = |guests: &Guests, longer: u32| {
        let rounds = (longer * rounds).to_string();
        let environment =
            [("PROGRAM", words[0].as_str()), ("ROUNDS", &rounds), ("SEED", "1"), ("PAUSE", &pause)];
        guests.pair("cases/pair.sh", &environment, LIMIT)
    };
    if let Some((_, [one, other])) = long_enough(name, run) {
        assert_eq!(result(&one), result(&other), "both have added up the same numbers");
    }
}

#[test]
fn atomics_happen_once() {
    both_go_on("verbs_atomics", 12_000, 1);
}

#[test]
fn writes_arrive_in_order() {
    both_go_on("verbs_writes", 3000, 1);
}

#[test]
fn messages_that_wait_for_a_receive_are_sent_again() {
    both_go_on("verbs_messages", 2000, 1);
}

#[test]
fn events_wake_who_waits() {
    both_go_on("verbs_events", 2000, 1);
}

#[test]
fn connections_and_regions_are_made_anew() {
    both_go_on("verbs_again", 1000, 1);
}

#[test]
fn many_connections_share_their_receives() {
    both_go_on("verbs_shared", 6000, 1);
}

#[test]
fn connections_of_librdmacm_come_and_go() {
    both_go_on("verbs_manager", 1000, 6);
}

#[test]
fn each_kind_of_request_happens_once() {
    both_go_on("verbs_once", 250, 1);
}

#[test]
fn ends_that_are_the_only_ones_left_stay() {
    both_go_on("verbs_gone", 1300, 1);
}

#[test]
fn memory_windows_are_bound_again() {
    both_go_on("verbs_windows", 1000, 1);
}

#[test]
fn multicast_groups_are_joined_again() {
    both_go_on("verbs_groups", 2000, 1);
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
    mpi_goes_on("ring", 2000);
}

/// The same below, and queue pairs of the program's own above.
#[test]
fn mpi_and_verbs_of_a_program_go_on_over_other_devices() {
    mpi_goes_on("verbs_mpi", 2000);
}

fn mpi_goes_on(name: &str, rounds: u32) {
    let program = Program::named(name);
    let words = match program.command(0, 0) {
        Ok(words) => words,
        Err(lack) => return skipped(&lack),
    };
    let run = |guests: &Guests, longer: u32| {
        let rounds = (longer * rounds).to_string();
        guests.pair("cases/mpi.sh", &[("PROGRAM", words[0].as_str()), ("ROUNDS", &rounds)], LIMIT)
    };
    if let Some((_, [one, _])) = long_enough(&format!("mpi-{name}"), run) {
        result(&one);
    }
}
