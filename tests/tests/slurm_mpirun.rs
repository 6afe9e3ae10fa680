//! Slurm: `mpirun` inside a job that asks for checkpoints, on a real cluster of namespaces.
//!
//! What a reader would get wrong: nothing here is started by srun but Open MPI's own daemon; the ranks beside mpirun are in the
//! batch step. And mpirun is not started again by anybody but the job's next life, or `stillpoint run`.
#![allow(clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

use std::fs;
use std::time::Duration;

use stillpoint_tests::cycle::until;
use stillpoint_tests::lab::ok;
use stillpoint_tests::process::kill;
use stillpoint_tests::solver::{Case, LIMIT, ROUNDS};
use stillpoint_tests::store::newest;

/// Four ranks on the two nodes of the job.
fn line(case: &Case) -> String {
    format!("mpirun -n 4 --map-by ppr:2:node {}", case.words.join(" "))
}

fn requeued(which: usize, told: bool) {
    let Some(case) = Case::new(3, ROUNDS) else { return };
    let job = case.submit(&line(&case), &["--requeue", "--ckpt-interval=2"]);
    case.commit(0);
    let nodes = case.nodes(&job);
    assert_eq!(nodes.len(), 2, "{}", case.lab.logs());
    case.lab.kill_node(&nodes[which], told);
    case.lab.wait(&job, &["COMPLETED"], LIMIT);
    assert_eq!(case.lab.job(&job, "Restarts"), "1");
    let said = case.output();
    assert!(said.contains("goes on from checkpoint"), "started over: {said}\n{}", case.lab.logs());
    case.ends_right(&said);
}

/// The node of the script, of mpirun and of rank 0.
#[test]
fn the_same_line_goes_on_after_a_requeue() {
    requeued(0, false);
}

#[test]
fn the_same_line_goes_on_when_the_node_of_orted_was_lost() {
    requeued(1, false);
}

/// What mpirun started is one run, by job and by the step of orted; what had ended is not run again; standard input of a file is
/// read once.
#[test]
fn scontrol_checkpoint_reaches_the_ranks_of_mpirun() {
    let Some(case) = Case::new(2, ROUNDS) else { return };
    fs::write(case.lab.work().join("in"), "one\ntwo\n").expect("write");
    let lines =
        format!("mpirun -n 2 --map-by ppr:1:node bash -c 'cat; echo first; sleep 5' < in\n{}", line(&case));
    let job = case.submit(&lines, &["--requeue", "--ckpt-interval=1h"]);
    let second = case.lab.store().join("2");
    assert!(until(LIMIT, || second.join("slurm.json").is_file()), "{}\n{}", case.output(), case.lab.logs());
    let first = case.create(&job, &second);
    // The job goes on in another life, by request.
    let said = case.lab.says(&["scontrol", "checkpoint", "requeue", &job]);
    let last = newest(&second);
    assert!(ok(&said) && last > first, "{said:#?}\n{}", case.lab.logs());
    case.lab.wait(&job, &["COMPLETED"], LIMIT);
    let said = case.output();
    assert!(said.contains(&format!("run 2: goes on from checkpoint {last}")), "{said}\n{}", case.lab.logs());
    assert!(said.contains("run 1: this step has ended before"), "{said}");
    // Open MPI may have something to say as well, in which there are such words.
    let lines = |of: &str| said.lines().filter(|line| *line == of).count();
    assert_eq!((lines("first"), lines("two")), (2, 1), "{said}");
    case.ends_right(&said);
}

/// Two of the same program and number of ranks are told apart by where their output goes, whichever comes first.
#[test]
fn twins_keep_their_runs_and_their_output() {
    let Some(case) = Case::new(2, 2 * ROUNDS) else { return };
    let script = format!(
        "one() {{ mpirun -n 2 {} >>$1.out 2>>$1.err & }}\n\
         if [ \"${{SLURM_RESTART_COUNT:-0}}\" = 0 ]; then one a; sleep 3; one b; else one b; sleep 3; one a; fi\nwait",
        case.words.join(" ")
    );
    // On one node: Slurm starts the daemons of one mpirun after another's.
    let job = case.submit(&script, &["-N1", "--requeue", "--ckpt-interval=1"]);
    for run in ["1", "2"] {
        let store = case.lab.store().join(run);
        assert!(until(LIMIT, || newest(&store) > 0), "{}\n{}", case.output(), case.lab.logs());
    }
    let said = case.lab.says(&["scontrol", "requeue", &job]);
    assert!(ok(&said), "{said:#?}");
    case.lab.wait(&job, &["COMPLETED"], LIMIT);
    let work = case.lab.work();
    let mut out = String::new();
    for (name, run) in [("a", "1"), ("b", "2")] {
        let text = |end: &str| fs::read_to_string(work.join(format!("{name}.{end}"))).expect("read");
        let told = [format!("run {run}: checkpoints of"), format!("run {run}: goes on from checkpoint")];
        assert!(told.iter().all(|t| text("err").contains(t)), "{name}: {}\n{}", text("err"), case.lab.logs());
        assert!(text("out").contains("result "), "{name}");
        out += &text("out");
    }
    case.ends_right(&out);
}

/// From the shell of salloc mpirun is on another node than all its ranks.
#[test]
fn mpirun_from_the_shell_of_salloc() {
    let Some(case) = Case::new(2, ROUNDS) else { return };
    let script = case.lab.script("step.sh", &line(&case));
    let job = case.lab.start(&["salloc", "-N2", "--ntasks-per-node=2", "--ckpt-interval=1", "bash", &script]);
    let job = case.commit_of(job, 0);
    let ended = job.wait(LIMIT);
    assert!(ok(&ended) && newest(&case.lab.store()) > 0, "{ended:#?}\n{}", case.lab.logs());
    case.ends_right(&ended.stdout);
}

/// Within an allocation of several nodes `stillpoint run` starts mpirun again.
#[test]
fn stillpoint_run_restarts_within_the_allocation() {
    let Some(case) = Case::new(2, ROUNDS) else { return };
    let line = format!(
        "stillpoint run -n 4 --interval 1 --launcher 'mpirun --map-by ppr:2:node' -- {}",
        case.words.join(" ")
    );
    let job = case.submit(&line, &["--ckpt-interval=1h"]);
    case.commit(0);
    let ranks = case.lab.processes("stillpoint-rank", "jacobi");
    assert!(!ranks.is_empty() && kill(ranks[0]));
    case.lab.wait(&job, &["COMPLETED"], LIMIT);
    let said = case.output();
    assert!(said.contains("restart 1 of 3 from checkpoint"), "{said}\n{}", case.lab.logs());
    assert!(!case.lab.store().join("2").exists(), "the ranks are of one run alone: {said}");
    case.ends_right(&said);
}

/// `disable` ends the checkpoints of the interval as well, also under agents that come later; `enable` begins them again.
#[test]
fn disabled_checkpoints_stay_so_under_other_agents() {
    let Some(case) = Case::new(2, ROUNDS) else { return };
    let job = case.submit(&case.srun(""), &["--ckpt-interval=1"]);
    case.commit(0);
    let store = case.lab.store();
    let said = case.lab.says(&["scontrol", "checkpoint", "disable", &job]);
    assert!(ok(&said), "{said:#?}\n{}", case.lab.logs());
    // One may have been under way.
    std::thread::sleep(Duration::from_secs(2));
    let last = newest(&store);
    let agents = case.lab.processes("stillpoint-agent", "");
    assert!(agents.len() == 2 && agents.into_iter().all(kill));
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(newest(&store), last, "{}", case.lab.logs());
    let said = case.lab.says(&["scontrol", "checkpoint", "create", &job]);
    assert!(!ok(&said) && said.stderr.contains("checkpoints are disabled"), "{said:#?}");
    let said = case.lab.says(&["scontrol", "checkpoint", "enable", &job]);
    assert!(ok(&said), "{said:#?}\n{}", case.lab.logs());
    case.commit(last);
    case.lab.wait(&job, &["COMPLETED"], LIMIT);
    let said = case.output();
    case.ends_right(&said);
}

/// After its first checkpoint the agent knows what one costs, and says when the next one is due.
#[test]
fn an_interval_is_found() {
    let Some(case) = Case::new(2, ROUNDS) else { return };
    let job = case.submit(&case.srun(""), &["--ckpt-interval=auto"]);
    case.commit(0);
    let found = || {
        let next = case
            .lab
            .logs()
            .lines()
            .find_map(|l| l.split("the next one in ").nth(1)?.split(' ').next()?.parse().ok());
        next.unwrap_or(0_u64)
    };
    assert!(until(LIMIT, || found() > 0), "{}", case.lab.logs());
    // A few milliseconds, once in 43800 hours for each of two nodes.
    assert!((100_000..=14_400_000).contains(&found()), "{}", found());
    case.lab.wait(&job, &["COMPLETED"], LIMIT);
    let said = case.output();
    case.ends_right(&said);
}

/// A job that has ended runs again from its last checkpoint when that is asked for, and does not answer as it ended.
#[test]
fn an_ended_job_is_restarted_by_request() {
    let Some(case) = Case::new(2, 4000) else { return };
    let job = case.submit(&case.srun(""), &["--requeue", "--ckpt-interval=1"]);
    case.lab.wait(&job, &["COMPLETED"], LIMIT);
    let before = case.output();
    let said = case.lab.says(&["scontrol", "checkpoint", "restart", &job]);
    assert!(ok(&said), "{said:#?}\n{}", case.lab.logs());
    case.lab.wait(&job, &["PENDING", "RUNNING"], LIMIT);
    case.lab.wait(&job, &["COMPLETED"], LIMIT);
    let all = case.output();
    let since = all.strip_prefix(&before).expect("the same file").to_owned();
    assert!(since.contains("goes on from checkpoint") && !since.contains("has ended before"), "{since}");
    case.ends_right(&since);
}
