//! Slurm: the options of a step that say where checkpoints go and which one it begins with, and the kinds of steps that were only started
//! elsewhere, restarted: tasks of an array, of --multi-prog; and a step that its user interrupts. Runs *next door*.
#![allow(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

use std::fs;
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use stillpoint_tests::Random;
use stillpoint_tests::cycle::until;
use stillpoint_tests::lab::{Lab, ok};
use stillpoint_tests::process::{Running, kill};
use stillpoint_tests::solver::{Case, LIMIT, ROUNDS};
use stillpoint_tests::store::commits;

/// `--ckpt-dir`, `--ckpt-keep`, and `--ckpt-restart=RUN@ID` with one that is not the last.
#[test]
fn a_step_begins_at_the_checkpoint_that_is_named() {
    let Some(lab) = Lab::up(1, "") else { return };
    let Some(words) = lab.program("count", 7000) else { return };
    let native = Running::start(Command::new(&words[0]).args(&words[1..]));
    let there = lab.work().join("elsewhere");
    let dir = format!("--ckpt-dir={}", there.display());
    let step = |options: &[&str]| {
        let own = ["srun", "-n1", &dir];
        let program: Vec<&str> = words.iter().map(String::as_str).collect();
        lab.says(&[&own, options, &program].concat())
    };
    let ended = step(&["--ckpt-interval=1", "--ckpt-keep=3"]);
    assert!(ok(&ended), "{ended:#?}\n{}", lab.logs());
    let kept: Vec<u64> = commits(&there)
        .iter()
        .filter_map(|folder| folder.file_name()?.to_str()?.strip_prefix("ckpt-")?.parse().ok())
        .collect();
    assert!(kept.len() == 3 && commits(&lab.store()).is_empty(), "{kept:?}\n{}", lab.logs());
    for (run, why) in [("1@4711", "4711"), ("7", "7"), ("1@x", "1@x")] {
        let refused = step(&[&format!("--ckpt-restart={run}")]);
        assert!(!ok(&refused) && refused.stderr.contains(why), "{run}: {refused:#?}");
    }
    let again = step(&[&format!("--ckpt-restart=1@{}", kept[1])]);
    let said = format!("run 1: restart from checkpoint {}\n", kept[1]);
    assert!(ok(&again) && again.stderr.contains(&said), "{again:#?}\n{}", lab.logs());
    assert_eq!(again.result(), native.wait(LIMIT).result());
}

#[test]
fn a_task_of_an_array_goes_on_after_a_lost_node() {
    let Some(case) = Case::new(3, ROUNDS) else { return };
    let job = case.submit(&case.srun(""), &["--requeue", "--array=3", "--ckpt-interval=2"]);
    case.commit(0);
    std::thread::sleep(Duration::from_millis(Random::seeded().below(3000)));
    let task = format!("{job}_3");
    let nodes = case.nodes(&task);
    assert_eq!(nodes.len(), 2, "{}", case.lab.logs());
    case.lab.kill_node(&nodes[0], true);
    case.lab.wait(&task, &["COMPLETED"], LIMIT);
    let said = case.output();
    assert!(said.contains("from checkpoint"), "{said}\n{}", case.lab.logs());
    case.ends_right(&said);
}

#[test]
fn tasks_of_multi_prog_are_restarted() {
    let Some(case) = Case::new(2, ROUNDS) else { return };
    let solver = case.words.join(" ");
    let tasks = case.lab.script("tasks", "");
    fs::write(&tasks, format!("0-1 {solver}\n2-3 env A=1 {solver}\n")).expect("write");
    let line = format!("srun -N2 -n4 --mpi=pmix --ckpt-interval=2 --multi-prog {tasks}");
    let job = case.lab.start(&["bash", "-c", &line]);
    let job = case.commit_of(job, 0);
    let ranks = case.lab.processes("stillpoint-rank", "jacobi");
    assert!(ranks.len() == 4 && kill(ranks[Random::seeded().below(4) as usize]), "{ranks:?}");
    let ended = job.wait(LIMIT);
    assert!(ok(&ended) && ended.stderr.contains("from checkpoint"), "{ended:#?}\n{}", case.lab.logs());
    case.ends_right(&ended.stdout);
}

/// ^C twice within a second, as srun wants it.
#[test]
fn an_interrupted_step_is_not_restarted() {
    let Some(case) = Case::new(2, ROUNDS) else { return };
    let job = case.lab.start(&["bash", "-c", &case.srun("--ckpt-interval=1")]);
    let job = case.commit_of(job, 0);
    let group = i32::try_from(job.id()).ok().and_then(Pid::from_raw).expect("a process");
    for _ in 0..2 {
        kill_process_group(group, Signal::INT).expect("it runs");
        std::thread::sleep(Duration::from_millis(300));
    }
    let ended = job.wait(LIMIT);
    assert!(!ok(&ended) && !ended.stderr.contains("from checkpoint"), "{ended:#?}");
    let gone = || case.lab.processes("stillpoint-rank", "").is_empty();
    assert!(until(LIMIT, gone), "{}", case.lab.logs());
    std::thread::sleep(Duration::from_secs(3));
    assert!(gone() && case.lab.says(&["squeue", "-h"]).stdout.is_empty(), "{}", case.lab.logs());
}
