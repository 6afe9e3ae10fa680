//! Slurm: `srun --ckpt-interval`, `scontrol checkpoint`, restarts after a lost node, on a real cluster of namespaces.
//!
//! What a reader would get wrong: the limits of jobs and steps have a file of their own (`slurm_limits.rs`), and so has what is killed
//! or stands in the way while checkpoints are taken (`slurm_faults.rs`).
#![allow(clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

use std::fs;
use std::process::Command;
use std::time::Duration;

use stillpoint_tests::cycle::{full, until};
use stillpoint_tests::lab::{Lab, STRANGER, USER, ok};
use stillpoint_tests::process::{Ended, Running, kill};
use stillpoint_tests::solver::{Case, LIMIT, ROUNDS};
use stillpoint_tests::store::newest;
use stillpoint_tests::{Random, skipped};

fn requeued(which: usize, told: bool) {
    let Some(case) = Case::new(3, ROUNDS) else { return };
    let mut random = Random::seeded();
    let line = case.srun("");
    let job = case.submit(&line, &["--requeue", "--ckpt-interval=2"]);
    case.commit(0);
    std::thread::sleep(Duration::from_millis(random.below(3000)));
    let nodes = case.nodes(&job);
    assert_eq!(nodes.len(), 2, "{}", case.lab.logs());
    case.lab.kill_node(&nodes[which], told);
    case.lab.wait(&job, &["COMPLETED"], LIMIT);
    assert_eq!(case.lab.job(&job, "Restarts"), "1");
    let said = case.output();
    assert!(
        said.contains("from checkpoint"),
        "started over instead of restarted: {said}\n{}",
        case.lab.logs()
    );
    case.ends_right(&said);
}

/// The node of the batch script and of rank 0 loses its power; slurmctld has to find out.
#[test]
fn a_requeued_batch_job_goes_on_from_its_last_checkpoint() {
    requeued(0, false);
}

#[test]
fn a_requeued_batch_job_goes_on_when_another_node_was_lost() {
    requeued(1, true);
}

fn inside(words: &[&str]) {
    let Some(case) = Case::new(3, ROUNDS) else { return };
    let mut random = Random::seeded();
    let line = case.srun("--ckpt-interval=2");
    let script = case.lab.script("step.sh", &line);
    let job = case.lab.start(&[words, &[&script]].concat());
    let job = case.commit_of(job, 0);
    std::thread::sleep(Duration::from_millis(random.below(3000)));
    let victim = ["n1", "n2"][random.below(2) as usize];
    case.lab.kill_node(victim, true);
    let ended = job.wait(LIMIT);
    assert!(ok(&ended), "{ended:#?}\n{}", case.lab.logs());
    assert!(ended.stderr.contains("from checkpoint"), "{ended:#?}");
    case.ends_right(&ended.stdout);
}

/// An allocation with a spare node: the step starts again on the nodes that are left.
#[test]
fn a_step_is_restarted_within_its_allocation() {
    inside(&["salloc", "-N3", "--ntasks-per-node=2", "--no-kill"]);
}

/// No allocation around it: srun asks for another one.
#[test]
fn an_interactive_srun_starts_over() {
    inside(&["bash"]);
}

#[test]
fn a_rank_lost_without_its_node_is_restarted() {
    let Some(case) = Case::new(2, ROUNDS) else { return };
    let line = case.srun("--ckpt-interval=2");
    let job = case.lab.start(&["bash", "-c", &line]);
    let job = case.commit_of(job, 0);
    let ranks = case.lab.processes("stillpoint-rank", "jacobi");
    assert!(!ranks.is_empty());
    assert!(kill(ranks[0]));
    let ended = job.wait(LIMIT);
    assert!(ok(&ended) && ended.stderr.contains("from checkpoint"), "{ended:#?}\n{}", case.lab.logs());
    case.ends_right(&ended.stdout);
}

/// Nobody restarts what its user has ended.
#[test]
fn a_cancelled_job_stays_cancelled() {
    let Some(case) = Case::new(2, ROUNDS) else { return };
    let line = case.srun("--ckpt-interval=1");
    let job = case.submit(&line, &["--requeue"]);
    case.commit(0);
    assert!(ok(&case.lab.says(&["scancel", &job])));
    case.lab.wait(&job, &["CANCELLED"], LIMIT);
    std::thread::sleep(Duration::from_secs(3));
    assert!(case.lab.processes("stillpoint-rank", "").is_empty());
    let runs = || fs::read_dir(case.lab.store()).into_iter().flatten().count();
    let before = runs();
    let step = case.lab.start(&["bash", "-c", &line]);
    let second = case.lab.store().join("2");
    assert!(until(LIMIT, || newest(&second) > 0), "{before} {}: {}", runs(), case.lab.logs());
    let queue = case.lab.says(&["squeue", "-h", "-o", "%i"]);
    assert!(ok(&case.lab.says(&["scancel", &format!("{}.0", queue.stdout.trim())])));
    let ended = step.wait(LIMIT);
    assert!(!ok(&ended) && !ended.stderr.contains("from checkpoint"), "{ended:#?}");
}

/// An exit status is a result.
#[test]
fn a_step_that_fails_by_itself_is_not_restarted() {
    let Some(lab) = Lab::up(2, "") else { return };
    let ended = lab.says(&["srun", "-N2", "--ckpt-interval=1", "sh", "-c", "exit 7"]);
    assert_eq!(ended.status.and_then(|s| s.code()), Some(7), "{ended:#?}");
    assert!(!ended.stderr.contains("restart"), "{ended:#?}");
}

#[test]
fn scontrol_checkpoint_answers_when_the_checkpoint_is_durable() {
    let Some(case) = Case::new(2, ROUNDS) else { return };
    let line = case.srun("--ckpt-interval=1h");
    let job = case.submit(&line, &[]);
    case.lab.wait(&job, &["RUNNING"], LIMIT);
    let store = case.lab.store();
    let first = case.create(&job, &store);
    assert!(case.create(&format!("{job}.0"), &store) > first);
    // A stranger's request, and a stranger's look.
    let _ = Command::new("useradd").args(["-m", STRANGER]).output();
    let said = case.lab.says_as(STRANGER, &["scontrol", "checkpoint", "create", &job]);
    assert!(!ok(&said) && said.stderr.contains("belongs to labuser"), "{said:#?}");
    let said = case.lab.says_as(STRANGER, &["ls", store.to_str().expect("text")]);
    assert!(!ok(&said), "{said:#?}");
    // Root's request, answered as the owner, with the owner's groups.
    let project = case.lab.state().join("project");
    fs::create_dir(&project).expect("make the directory of a project");
    let line = format!(
        "groupadd -f labproject && usermod -aG labproject {USER} && chgrp labproject {0} && chmod 770 {0}",
        project.display()
    );
    assert!(Command::new("sh").args(["-c", &line]).status().is_ok_and(|s| s.success()));
    let option = format!("ImageDir={}", project.display());
    let said = case.lab.says_as("root", &["scontrol", "checkpoint", "create", &job, &option]);
    let there = project.join(format!("{job}.run-1"));
    assert!(ok(&said) && newest(&there) > first, "{said:#?}");
    // What is no checkpoint goes to the real one.
    let said = case.lab.says(&["scontrol", "show", "job", &job]);
    assert!(ok(&said) && said.stdout.contains("JobState=RUNNING"), "{said:#?}");
    case.lab.wait(&job, &["COMPLETED"], LIMIT);
    let said = case.output();
    case.ends_right(&said);
}

/// `ImageDir=`: a copy outside of the run, and a restart that begins at it although the run has newer ones.
#[test]
fn a_restart_begins_at_the_images_that_were_put_elsewhere() {
    let Some(case) = Case::new(2, ROUNDS / 2) else { return };
    let job = case.submit(&case.srun("--ckpt-interval=1h"), &["--requeue"]);
    let store = case.lab.store();
    let first = case.create(&job, &store);
    let dir = case.lab.work().join("images");
    let (there, option) = (dir.join(format!("{job}.run-1")), format!("ImageDir={}", dir.display()));
    let said = case.lab.says(&["scontrol", "checkpoint", "create", &job, &option]);
    let kept = newest(&there);
    assert!(ok(&said) && kept > first && newest(&store) == kept, "{said:#?}\n{}", case.lab.logs());
    assert!(said.stdout.contains(there.to_str().expect("text")), "{said:#?}");
    assert!(case.create(&job, &store) > kept);
    case.lab.wait(&job, &["COMPLETED"], LIMIT);
    let before = case.output();
    let said = case.lab.says(&["scontrol", "checkpoint", "restart", &job, "ImageDir=/tmp"]);
    assert!(!ok(&said) && said.stderr.contains("no checkpoint of job"), "{said:#?}");
    let said = case.lab.says(&["stillpoint", "verify", there.to_str().expect("text")]);
    assert!(ok(&said), "{said:#?}");
    let said = case.lab.says(&["scontrol", "checkpoint", "restart", &job, &option]);
    assert!(ok(&said), "{said:#?}\n{}", case.lab.logs());
    case.lab.wait(&job, &["PENDING", "RUNNING"], LIMIT);
    case.lab.wait(&job, &["COMPLETED"], LIMIT);
    let all = case.output();
    let since = all.strip_prefix(&before).expect("the same file").to_owned();
    assert!(since.contains(&format!("goes on from checkpoint {kept}\n")), "{since}\n{}", case.lab.logs());
    case.ends_right(&since);
}

/// The root agent alone is killed: the job goes on, and the next checkpoint commits.
#[test]
fn the_root_agent_is_lost() {
    let Some(case) = Case::new(2, ROUNDS) else { return };
    let line = case.srun("--ckpt-interval=1");
    let job = case.lab.start(&["bash", "-c", &line]);
    let before = case.commit(0);
    let agents = case.lab.processes("stillpoint-agent", "");
    assert_eq!(agents.len(), 2, "one a node: {}", case.lab.logs());
    for agent in agents {
        assert!(kill(agent));
        case.commit(newest(&case.lab.store()).max(before) + 1);
    }
    let ended = job.wait(LIMIT);
    assert!(ok(&ended) && !ended.stderr.contains("from checkpoint"), "{ended:#?}\n{}", case.lab.logs());
    case.ends_right(&ended.stdout);
}

/// slurmctld starts again, and the network is away for five seconds: nothing is restarted, checkpoints go on.
#[test]
fn controller_and_network_fail_for_a_moment() {
    let Some(case) = Case::new(2, ROUNDS) else { return };
    let line = case.srun("--ckpt-interval=1");
    let job = case.lab.start(&["bash", "-c", &line]);
    let job = case.commit_of(job, 0);
    let limit = Duration::from_secs(30);
    assert!(ok(&case.lab.lab(&["restart-ctld"], limit)));
    case.commit(newest(&case.lab.store()) + 1);
    assert!(ok(&case.lab.lab(&["cut-node", "n2"], limit)));
    std::thread::sleep(Duration::from_secs(5));
    assert!(ok(&case.lab.lab(&["heal-node", "n2"], limit)));
    case.commit(newest(&case.lab.store()) + 1);
    let ended = job.wait(LIMIT);
    assert!(ok(&ended) && !ended.stderr.contains("from checkpoint"), "{ended:#?}\n{}", case.lab.logs());
    case.ends_right(&ended.stdout);
}

/// 1.2 times what the program has in memory is all that the job may have, its checkpoints included.
#[test]
fn a_job_with_little_memory_survives_its_checkpoints() {
    let Some(lab) = Lab::limited(1) else { return };
    let Some(words) = lab.program("resident", 12_000) else { return };
    let native = Running::start(Command::new(&words[0]).args(&words[1..]));
    // 256 MiB of its own, and 1.2 times the 12 MiB of a process under Stillpoint.
    let mut line = vec!["srun", "-n1", "--mem=322M", "--ckpt-interval=2"];
    line.extend(words.iter().map(String::as_str));
    let ended = lab.says(&line);
    assert!(ok(&ended) && newest(&lab.store()) >= 3, "{ended:#?}\n{}", lab.logs());
    assert_eq!(ended.stdout, native.wait(LIMIT).stdout);
}

/// Array tasks, several steps at once, --multi-prog, and programs behind env and sh: each a run of its own, with checkpoints.
#[test]
fn steps_and_arrays_have_runs_of_their_own() {
    let Some(case) = Case::new(2, 3000) else { return };
    let solver = case.words.join(" ");
    let both = format!(
        "srun -N1 -n2 --exact --mpi=pmix --ckpt-interval=1 {solver} & srun -N1 -n2 --exact --mpi=pmix --ckpt-interval=1 env A=1 sh -c 'exec {solver}' & wait"
    );
    let job = case.submit(&both, &["--array=0-1"]);
    for task in ["0", "1"] {
        case.lab.wait(&format!("{job}_{task}"), &["COMPLETED"], LIMIT);
    }
    let said = case.output();
    assert_eq!(said.matches("EXIT-SUCCESS").count(), 4, "{said}\n{}", case.lab.logs());
    let tasks = case.lab.script("tasks", "");
    fs::write(&tasks, format!("0-1 {solver}\n2-3 {solver}\n")).expect("write");
    let ended =
        case.lab.says(&["srun", "-N2", "-n4", "--mpi=pmix", "--ckpt-interval=1", "--multi-prog", &tasks]);
    assert!(ok(&ended), "{ended:#?}\n{}", case.lab.logs());
    let commits: Vec<u64> = (1..=5).map(|run| newest(&case.lab.store().join(run.to_string()))).collect();
    assert!(commits.iter().all(|newest| *newest > 0), "{commits:?}\n{}", case.lab.logs());
    let all = format!("{said}{}", ended.stdout);
    case.ends_right(&all);
}

/// Without options of ours a task is what it is on a machine without the plugin: environment and arguments.
#[test]
fn a_step_without_options_is_untouched() {
    let Some(lab) = Lab::up(1, "") else { return };
    let look = [
        "srun",
        "-n1",
        "bash",
        "-c",
        "env | sort; tr '\\0' ' ' </proc/$$/cmdline; cat /proc/$$/maps | awk '{print $6}' | sort -u",
    ];
    let with = lab.says(&look);
    let line = lab.work().join("../etc/plugstack.conf.d/stillpoint.conf");
    fs::remove_file(line).expect("take the plugin away");
    let without = lab.says(&look);
    // What tells one job from the next: its number, ports, process ids.
    let changes = [
        "SLURM_JOB_ID=",
        "SLURM_JOBID=",
        "SLURM_SRUN_COMM_PORT=",
        "SLURM_TASK_PID=",
        "SLURM_STEP_LAUNCHER_PORT=",
    ];
    let plain = |ended: &Ended| -> Vec<String> {
        assert!(ok(ended), "{ended:#?}");
        let lines = ended.stdout.lines().filter(|l| !changes.iter().any(|c| l.starts_with(c)));
        let mask = |l: &str| {
            if l.starts_with("PMIX_") || l.starts_with("SLURM_PMIXP_") {
                l.chars().filter(|c| !c.is_ascii_digit()).collect()
            } else {
                l.to_owned()
            }
        };
        lines.map(mask).collect()
    };
    assert_eq!(plain(&with), plain(&without));
}

/// The lab of a test that is killed goes down without it.
#[test]
fn a_lab_ends_with_its_test() {
    const HOLD: &str = "STILLPOINT_TEST_HOLD_LAB";
    if let Some(told) = std::env::var_os(HOLD) {
        let Some(lab) = Lab::up(1, "") else { return };
        fs::write(told, lab.state().to_str().expect("text")).expect("tell which");
        std::thread::sleep(LIMIT);
        return;
    }
    let told = std::env::temp_dir().join(format!("stillpoint-lab-held-{}", std::process::id()));
    let mut again = Command::new(std::env::current_exe().expect("this program"));
    again.args(["--exact", "a_lab_ends_with_its_test"]).env(HOLD, &told);
    let mut again = Running::start(&mut again);
    let state = || fs::read_to_string(&told).unwrap_or_default();
    until(LIMIT, || !state().is_empty() || !again.is_running());
    let state = state();
    if state.is_empty() {
        return;
    }
    let pid: u32 = fs::read_to_string(format!("{state}/nodes/n1/init.pid"))
        .expect("it is up")
        .trim()
        .parse()
        .expect("a number");
    assert!(kill(again.id()));
    let gone =
        || !std::path::Path::new(&format!("/proc/{pid}")).exists() && !std::path::Path::new(&state).exists();
    assert!(until(LIMIT, gone), "{state} still stands");
    let _ = fs::remove_file(told);
}

/// Nodes are killed at random moments, the three ways in turn.
#[test]
fn killed_nodes() {
    if !full() {
        skipped("twenty killed nodes take half an hour; they run with --full");
        return;
    }
    for time in 0..20 {
        match time % 3 {
            0 => requeued((time / 3 % 2) as usize, time % 2 == 0),
            1 => inside(&["salloc", "-N3", "--ntasks-per-node=2", "--no-kill"]),
            _ => inside(&["bash"]),
        }
    }
}
