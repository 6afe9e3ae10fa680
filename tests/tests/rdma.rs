//! Two machines with the kernel's own verbs, virtual ones: what runs there natively, and what is saved and restarted. Runs *next door*.
#![allow(clippy::tests_outside_test_module, reason = "an integration test is a test module")]
#![allow(clippy::print_stderr, reason = "a test says which of its cases took how long")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use stillpoint_tests::cycle::full;
use stillpoint_tests::program::Program;
use stillpoint_tests::vm::{Guest, Guests};
use stillpoint_tests::{Random, built, skipped};

const LIMIT: Duration = Duration::from_secs(240);

/// What is tried on two guests; its name is that of the function.
type Case = (&'static str, fn(&mut Guests));

/// Cases that share two guests, which take a while to begin: each is tried, on new ones behind one that has failed, and those that failed
/// are named. `STILLPOINT_TEST_CASE` names those that are wanted, with commas between them.
fn together(name: &str, cases: &[Case]) {
    let Some(mut guests) = Guests::new(name) else { return };
    let some = std::env::var("STILLPOINT_TEST_CASE").ok();
    let is_one = |what: &str| some.as_ref().is_none_or(|s| s.split(',').any(|one| one == what));
    let mut failed = Vec::new();
    for (what, case) in cases.iter().filter(|(what, _)| is_one(what)) {
        let begun = Instant::now();
        if catch_unwind(AssertUnwindSafe(|| case(&mut guests))).is_err() {
            failed.push(what);
            guests.end();
        }
        eprintln!("{what}: {:.1} s", begun.elapsed().as_secs_f64());
    }
    assert!(failed.is_empty(), "these have failed: {failed:?}");
}

macro_rules! together {
    ($($name:ident: $($case:ident,)*;)*) => {$(
        #[test]
        fn $name() {
            together(stringify!($name), &[$((stringify!($case), $case)),*]);
        }
    )*};
}

together! {
    examples_of_libibverbs:
        verbs_programs_run_natively,
        verbs_programs_run_through_the_front,
        a_reliable_connection_goes_on_over_other_devices,
        waiting_for_events_goes_on_over_other_devices,
        an_unreliable_connection_goes_on_over_other_devices,
        datagrams_go_on_over_other_devices,
        a_shared_receive_queue_goes_on_over_other_devices,
        librdmacms_own_ping_goes_on,;
    perftest:
        perftest_sends_go_on_over_other_devices,
        perftest_writes_go_on_over_other_devices,
        perftest_reads_go_on_over_other_devices,
        perftest_atomics_go_on_over_other_devices,
        perftest_datagrams_over_librdmacm_go_on,;
    programs_of_ours:
        a_connection_goes_on_between_other_machines,
        atomics_happen_once,
        writes_arrive_in_order,
        messages_that_wait_for_a_receive_are_sent_again,
        events_wake_who_waits,
        connections_and_regions_are_made_anew,
        many_connections_share_their_receives,;
    rarer_programs_of_ours:
        connections_of_librdmacm_come_and_go,
        who_listens_is_found_elsewhere,
        each_kind_of_request_happens_once,
        ends_that_are_the_only_ones_left_stay,
        memory_windows_are_bound_again,
        multicast_groups_are_joined_again,;
    mpi:
        mpi_over_verbs_goes_on_over_other_devices,
        mpi_and_verbs_of_a_program_go_on_over_other_devices,;
}

/// The programs that come with libibverbs, and perftest: the ground that everything else stands on.
fn verbs_programs_run_natively(guests: &mut Guests) {
    let ended = guests.pair("examples/pair.sh", &[], LIMIT);
    for Guest { status, said } in ended {
        assert_eq!(status, 0);
        assert_eq!(said.matches(" rc=0 ").count(), 10, "{said}");
    }
}

/// The same through the front: requests are logged, completions translated, those that nobody asked for swallowed.
fn verbs_programs_run_through_the_front(guests: &mut Guests) {
    let wrap = format!("{} --dir /run/case/jobs run --", built().join("stillpoint").display());
    for Guest { status, said } in guests.pair("examples/pair.sh", &[("WRAP", &wrap)], LIMIT) {
        assert_eq!(status, 0);
        assert_eq!(said.matches(" rc=0 ").count(), 5, "{said}");
    }
}

/// On a fast machine a program may come to its end before it was disturbed twice: then it runs for so many times as long.
const LONGER: [u32; 4] = [1, 4, 16, 64];

/// What both guests said when the program ran for long enough, and for how long that is.
fn long_enough(mut run: impl FnMut(u32) -> [Guest; 2]) -> (u32, [Guest; 2]) {
    for longer in LONGER {
        let ended = run(longer);
        if !ended[0].said.contains(" has ended with 0\n") {
            assert_eq!(ended[0].said.matches("node0: checkpoint ").count(), 2, "{ended:?}");
            return (longer, ended);
        }
    }
    panic!("it was over before it was disturbed twice, also with {} times its rounds", LONGER[3]);
}

/// A program of libibverbs' or perftest's that does something COUNT times, one end on each guest, goes on from a checkpoint on the other
/// guest's device, which is another one by then; and back. The client, and with `both` the server, says this at its end, of the LAST.
fn goes_on(guests: &mut Guests, words: &str, count: u32, last: &str, both: bool) {
    let (longer, ended) = long_enough(|longer| {
        let words = words.replace("COUNT", &(longer * count).to_string());
        guests.pair("cases/verbs.sh", &[("WORDS", &words)], LIMIT)
    });
    let last = last.replace("LAST", &(longer * count - 1).to_string());
    for (Guest { status, said }, speaks) in ended.iter().zip([both, true]) {
        assert!(*status == 0 && (!speaks || said.contains(&last)), "{said}");
    }
}

/// All of these, or one by chance.
fn some_of<T: Copy>(all: &[T]) -> impl Iterator<Item = T> {
    let first = Random::seeded().below(all.len() as u64) as usize;
    all.iter().copied().cycle().skip(first).take(if full() { all.len() } else { 1 })
}

/// One of libibverbs' examples, polling and waiting for events.
fn pingpong(guests: &mut Guests, words: &str) {
    for wait in some_of(&["", " -e"]) {
        goes_on(guests, &format!("{words} -d rxe0 -g 1 -n COUNT{wait}"), 3000, " iters in ", true);
    }
}

fn a_reliable_connection_goes_on_over_other_devices(guests: &mut Guests) {
    goes_on(guests, "ibv_rc_pingpong -d rxe0 -g 1 -n COUNT", 3000, " iters in ", true);
}

fn waiting_for_events_goes_on_over_other_devices(guests: &mut Guests) {
    goes_on(guests, "ibv_rc_pingpong -d rxe0 -g 1 -n COUNT -e", 3000, " iters in ", true);
}

fn an_unreliable_connection_goes_on_over_other_devices(guests: &mut Guests) {
    pingpong(guests, "ibv_uc_pingpong");
}

fn datagrams_go_on_over_other_devices(guests: &mut Guests) {
    pingpong(guests, "ibv_ud_pingpong -s 1024");
}

fn a_shared_receive_queue_goes_on_over_other_devices(guests: &mut Guests) {
    pingpong(guests, "ibv_srq_pingpong -q 4");
}

/// Latency and bandwidth, each with connections by its own means and by librdmacm.
fn perftest_goes_on(guests: &mut Guests, what: &str) {
    let all = [("lat", ""), ("bw", ""), ("lat", " -R"), ("bw", " -R")];
    for (kind, by) in some_of(&all) {
        let count = if kind == "lat" { 3000 } else { 20_000 };
        let size = if what == "atomic" { "" } else { " -s 4096" };
        let words = format!("ib_{what}_{kind} -d rxe0 -x 1 -n COUNT{size} -F{by}");
        goes_on(guests, &words, count, "#bytes", false);
    }
}

fn perftest_sends_go_on_over_other_devices(guests: &mut Guests) {
    perftest_goes_on(guests, "send");
}

fn perftest_writes_go_on_over_other_devices(guests: &mut Guests) {
    perftest_goes_on(guests, "write");
}

fn perftest_reads_go_on_over_other_devices(guests: &mut Guests) {
    perftest_goes_on(guests, "read");
}

fn perftest_atomics_go_on_over_other_devices(guests: &mut Guests) {
    perftest_goes_on(guests, "atomic");
}

fn perftest_datagrams_over_librdmacm_go_on(guests: &mut Guests) {
    // Of its bandwidth test some datagrams are lost natively, and it waits for them.
    goes_on(guests, "ib_send_lat -d rxe0 -x 1 -n COUNT -s 1024 -c UD -F -R", 3000, "#bytes", false);
}

fn librdmacms_own_ping_goes_on(guests: &mut Guests) {
    goes_on(guests, "rping -C COUNT -v", 1500, "ping data: rdma-ping-LAST: ", false);
}

/// Two ends of a program of ours, which check what they get; saved after so many seconds.
fn both_go_on(guests: &mut Guests, name: &str, rounds: u32, pause: u32) {
    let program = Program::named(name);
    let words = match program.command(0, 0) {
        Ok(words) => words,
        Err(lack) => return skipped(&lack),
    };
    let pause = pause.to_string();
    let (_, [one, other]) = long_enough(|longer| {
        let rounds = (longer * rounds).to_string();
        let environment =
            [("PROGRAM", words[0].as_str()), ("ROUNDS", &rounds), ("SEED", "1"), ("PAUSE", &pause)];
        guests.pair("cases/pair.sh", &environment, LIMIT)
    });
    assert_eq!(result(&one), result(&other), "both have added up the same numbers");
}

fn atomics_happen_once(guests: &mut Guests) {
    both_go_on(guests, "verbs_atomics", 12_000, 1);
}

fn writes_arrive_in_order(guests: &mut Guests) {
    both_go_on(guests, "verbs_writes", 3000, 1);
}

fn messages_that_wait_for_a_receive_are_sent_again(guests: &mut Guests) {
    both_go_on(guests, "verbs_messages", 2000, 1);
}

fn events_wake_who_waits(guests: &mut Guests) {
    both_go_on(guests, "verbs_events", 2000, 1);
}

fn connections_and_regions_are_made_anew(guests: &mut Guests) {
    both_go_on(guests, "verbs_again", 1000, 1);
}

fn many_connections_share_their_receives(guests: &mut Guests) {
    both_go_on(guests, "verbs_shared", 6000, 1);
}

fn connections_of_librdmacm_come_and_go(guests: &mut Guests) {
    both_go_on(guests, "verbs_manager", 1000, 6);
}

fn who_listens_is_found_elsewhere(guests: &mut Guests) {
    both_go_on(guests, "verbs_listens", 4000, 1);
}

fn each_kind_of_request_happens_once(guests: &mut Guests) {
    both_go_on(guests, "verbs_once", 250, 1);
}

fn ends_that_are_the_only_ones_left_stay(guests: &mut Guests) {
    both_go_on(guests, "verbs_gone", 1300, 1);
}

fn memory_windows_are_bound_again(guests: &mut Guests) {
    both_go_on(guests, "verbs_windows", 1000, 1);
}

fn multicast_groups_are_joined_again(guests: &mut Guests) {
    both_go_on(guests, "verbs_groups", 2000, 1);
}

fn result(guest: &Guest) -> &str {
    assert!(guest.status == 0 && guest.said.contains("EXIT-SUCCESS"), "{guest:?}");
    guest.said.lines().find(|line| line.starts_with("result ")).expect("a result was printed")
}

/// Each rank goes on with the other machine's address, and back.
fn a_connection_goes_on_between_other_machines(guests: &mut Guests) {
    let words = match Program::named("stream").command(0, 0) {
        Ok(words) => words,
        Err(lack) => return skipped(&lack),
    };
    let [one, other] = guests.pair("cases/stream.sh", &[("STREAM", &words[0]), ("ROUNDS", "4000")], LIMIT);
    assert_eq!(result(&one), result(&other), "both have added up the same numbers");
    assert_eq!(one.said.matches("node0: checkpoint ").count(), 2, "{one:?}");
}

/// MPI over verbs: the library has them, below, and makes them anew on devices with other addresses and numbers.
fn mpi_over_verbs_goes_on_over_other_devices(guests: &mut Guests) {
    mpi_goes_on(guests, "ring", 2000);
}

/// The same below, and queue pairs of the program's own above.
fn mpi_and_verbs_of_a_program_go_on_over_other_devices(guests: &mut Guests) {
    mpi_goes_on(guests, "verbs_mpi", 2000);
}

fn mpi_goes_on(guests: &mut Guests, name: &str, rounds: u32) {
    let program = Program::named(name);
    let words = match program.command(0, 0) {
        Ok(words) => words,
        Err(lack) => return skipped(&lack),
    };
    let (_, [one, _]) = long_enough(|longer| {
        let rounds = (longer * rounds).to_string();
        guests.pair("cases/mpi.sh", &[("PROGRAM", words[0].as_str()), ("ROUNDS", &rounds)], LIMIT)
    });
    result(&one);
}
