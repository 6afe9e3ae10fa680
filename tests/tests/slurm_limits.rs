//! Slurm: what ends before the program does. Time limits of jobs and of steps, preemption, and jobs that are long in ending.
//!
//! What a reader would get wrong: none of these tests measures time. That a checkpoint was taken for its occasion is told by its number,
//! where there is no other that could have been taken.
#![allow(clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

use std::fs;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use stillpoint_tests::cycle::until;
use stillpoint_tests::lab::{Lab, ok};
use stillpoint_tests::solver::{Case, LIMIT, ROUNDS};
use stillpoint_tests::store::newest;

/// A partition that another one preempts, and the signal instead of a SIGTERM.
const PREEMPTED: &str =
    "SlurmctldParameters=preempt_send_user_signal\nPartitionName=low Nodes=ALL PriorityTier=5 GraceTime=";
/// What a job is submitted with that wants the signal. Its time does not matter: the preemption sends it.
const WARNED: [&str; 5] = ["-p", "low", "--requeue", "--signal=USR1@10", "--ckpt-on=preempt"];

/// Takes all CPUs away from the jobs of the partition `low`; over as soon as it runs.
fn preempt(lab: &Lab) {
    let script = lab.script("high.sh", "true");
    let words = ["-p", "high", "--nodes=2", "--ntasks-per-node=4", "--output=high.out", script.as_str()];
    let _ = lab.submit(&words);
}

/// Whether the grace of a preempted job runs.
fn is_preempted(lab: &Lab, job: &str) -> bool {
    lab.job(job, "PreemptTime").starts_with(|c: char| c.is_ascii_digit())
}

/// No checkpoint but that of the preemption: the next life goes on from it.
#[test]
fn a_preempted_job_goes_on_from_a_checkpoint_of_its_grace() {
    let Some(case) = Case::with(2, ROUNDS, &format!("{PREEMPTED}8")) else { return };
    let job = case.submit(&case.srun(""), &[&WARNED[..], &["--ckpt-interval=1h"]].concat());
    case.lab.wait(&job, &["RUNNING"], LIMIT);
    let ranks = || case.lab.processes("stillpoint-rank", "jacobi").len();
    assert!(until(LIMIT, || ranks() == 4), "{}", case.lab.logs());
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(newest(&case.lab.store()), 0);
    preempt(&case.lab);
    case.commit(0);
    assert_eq!(case.lab.job(&job, "Restarts"), "0", "the grace is over before the checkpoint");
    assert!(is_preempted(&case.lab, &job), "{}", case.lab.logs());
    case.lab.wait(&job, &["COMPLETED"], LIMIT);
    assert_eq!(case.lab.job(&job, "Restarts"), "1");
    let said = case.output();
    // A second one, if the warning reached some ranks later than the first commit.
    let told = ["was taken in the grace", "goes on from checkpoint"];
    assert!(told.iter().all(|t| said.contains(t)), "{said}\n{}", case.lab.logs());
    case.ends_right(&said);
}

/// Holds a process for as long as it lives, whoever wakes it: a preemption begins with a SIGCONT.
fn hold(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id fits");
    let one = pidfd_open(pid, PidfdFlags::empty()).expect("the process is there");
    std::thread::spawn(move || {
        while pidfd_send_signal(&one, Signal::STOP).is_ok() {
            std::thread::sleep(Duration::from_millis(1));
        }
    });
}

/// A rank that does not answer: no checkpoint in the grace, and the one before it stands.
#[test]
fn a_grace_too_short_leaves_the_last_commit() {
    let Some(case) = Case::with(2, ROUNDS, &format!("{PREEMPTED}4")) else { return };
    let job = case.submit(&case.srun(""), &[&WARNED[..], &["--ckpt-interval=1h"]].concat());
    case.lab.wait(&job, &["RUNNING"], LIMIT);
    let last = case.create(&job, &case.lab.store());
    let ranks = case.lab.processes("stillpoint-rank", "jacobi");
    hold(ranks[0]);
    preempt(&case.lab);
    case.lab.wait(&job, &["COMPLETED"], LIMIT);
    let said = case.output();
    let told = [
        format!("not time enough for a checkpoint: the last commit, {last}, stands"),
        format!("goes on from checkpoint {last}"),
    ];
    assert!(told.iter().all(|t| said.contains(t)), "{said}\n{}", case.lab.logs());
    case.ends_right(&said);
}

/// A program that ends well in the grace: because it was told to, and then its next life runs it again; or by itself.
fn ends_in_the_grace(lines: &str, options: &[&str], program: &str) -> Option<String> {
    let lab = Lab::up(2, lines)?;
    let program = lab.script("program.sh", program);
    let job = lab.script(
        "job.sh",
        &format!("srun -n1 {program}\necho status $? of life ${{SLURM_RESTART_COUNT:-0}}\nsleep 60"),
    );
    let words =
        [&["-N2", "--output=out", "--open-mode=append", "--ckpt-interval=1h"], options, &[job.as_str()]];
    let job = lab.submit(&words.concat());
    let output = || fs::read_to_string(lab.work().join("out")).unwrap_or_default();
    assert!(until(LIMIT, || output().contains("begun")), "{}\n{}", output(), lab.logs());
    preempt(&lab);
    assert!(until(LIMIT, || is_preempted(&lab, &job)), "{}", lab.logs());
    fs::write(lab.work().join("preempted"), "").expect("tell the program");
    assert!(until(LIMIT, || output().contains("of life 1")), "{}\n{}", output(), lab.logs());
    assert!(ok(&lab.says(&["scancel", &job])));
    Some(output())
}

#[test]
fn who_was_told_to_end_has_not_reached_the_end() {
    let lines = "PartitionName=low Nodes=ALL PriorityTier=5 GraceTime=8";
    let program = "[ -n \"$SLURM_RESTART_COUNT\" ] && exit 5\ntrap 'exit 0' TERM\necho begun\nwhile :; do sleep 0.1; done";
    let Some(said) = ends_in_the_grace(lines, &["-p", "low", "--requeue"], program) else { return };
    assert!(said.contains("status 5 of life 1"), "its first end was taken for a result: {said}");
    assert!(!said.contains("of life 0"), "the script went on behind it: {said}");
}

#[test]
fn who_ends_by_itself_in_the_grace_has_ended() {
    // Without processes below it, which a checkpoint would wait for.
    let program = "echo begun again\nwhile [ ! -e preempted ]; do :; done\nend=$((SECONDS + 4))\nwhile ((SECONDS < end)); do :; done";
    let Some(said) = ends_in_the_grace(&format!("{PREEMPTED}10"), &WARNED, program) else { return };
    assert!(said.contains("status 0 of life 0") && said.contains("status 0 of life 1"), "{said}");
    assert!(said.matches("begun again").count() == 1 && said.contains("has ended before"), "{said}");
}

/// One minute of time for a program that needs more: one checkpoint a life, and the job goes on from it.
#[test]
fn a_job_is_saved_before_its_time_limit() {
    let Some(case) = Case::new(2, 2 * ROUNDS) else { return };
    let options = ["--requeue", "--time=1", "--ckpt-interval=1h", "--ckpt-on=timelimit"];
    let job = case.submit(&case.srun(""), &options);
    let limit = 3 * LIMIT;
    assert!(["COMPLETED"].contains(&case.lab.wait(&job, &["COMPLETED", "TIMEOUT"], limit).as_str()));
    let said = case.output();
    let told = ["a checkpoint is taken", "stopped at checkpoint 1", "goes on from checkpoint 1"];
    assert!(told.iter().all(|t| said.contains(t)), "{said}\n{}", case.lab.logs());
    assert_ne!(case.lab.job(&job, "Restarts"), "0");
    case.ends_right(&said);
}

/// A rank that does not answer until the time is over.
#[test]
fn a_time_limit_too_near_leaves_the_last_commit() {
    let Some(case) = Case::new(2, 20 * ROUNDS) else { return };
    let job = case.submit(&case.srun(""), &["--time=1", "--ckpt-interval=1h", "--ckpt-on=timelimit"]);
    case.lab.wait(&job, &["RUNNING"], LIMIT);
    let create = || ok(&case.lab.says(&["scontrol", "checkpoint", "create", &job]));
    assert!(until(LIMIT, create), "{}", case.lab.logs());
    hold(case.lab.processes("stillpoint-rank", "jacobi")[0]);
    case.lab.wait(&job, &["TIMEOUT"], LIMIT);
    let said = case.output();
    assert!(said.contains("a checkpoint is taken"), "{said}\n{}", case.lab.logs());
    assert!(said.contains("no checkpoint before the time limit, the last commit stands"), "{said}");
    assert_eq!(newest(&case.lab.store()), 1);
}

/// The first of two steps that has its checkpoint does not take the other's chance: it is requeued when both have theirs.
#[test]
fn two_steps_are_saved_before_the_time_limit() {
    // Longer than the time, also where nothing else runs.
    let Some(case) = Case::new(2, 3 * ROUNDS) else { return };
    let step = |interval: &str| {
        let solver = case.words.join(" ");
        format!("srun -N1 -n2 --exact --mpi=pmix --ckpt-on=timelimit --ckpt-interval={interval} {solver} &")
    };
    // The first knows nothing of how long its checkpoint will take, and begins earlier.
    let script = format!("{} {} wait", step("1h"), step("2"));
    let job = case.submit(&script, &["--requeue", "--time=1"]);
    let limit = 3 * LIMIT;
    assert!(["COMPLETED"].contains(&case.lab.wait(&job, &["COMPLETED", "TIMEOUT"], limit).as_str()));
    let said = case.output();
    let first = said.split("goes on from checkpoint").next().unwrap_or_default();
    assert_eq!(first.matches("stopped at checkpoint").count(), 2, "{said}\n{}", case.lab.logs());
    assert_eq!(said.matches("EXIT-SUCCESS").count(), 2, "{said}");
    case.ends_right(&said);
}

/// A mpirun runs on with its checkpoint, which it has first here, and waits for that of the step beside it.
#[test]
fn a_mpirun_and_a_step_are_saved_before_the_time_limit() {
    let Some(case) = Case::new(2, 5 * ROUNDS) else { return };
    let solver = case.words.join(" ");
    let step = format!("srun -N1 -n1 --overlap --mpi=pmix --ckpt-interval=2 {solver}");
    let options = ["--requeue", "--time=1", "--ckpt-on=timelimit", "--ckpt-interval=1h"];
    let job = case.submit(&format!("mpirun -n 2 {solver} & {step} & wait"), &options);
    let limit = 3 * LIMIT;
    assert!(["COMPLETED"].contains(&case.lab.wait(&job, &["COMPLETED", "TIMEOUT"], limit).as_str()));
    let said = case.output();
    let first = said.split("goes on from checkpoint").next().unwrap_or_default();
    assert_eq!(first.matches("stopped at checkpoint").count(), 1, "{said}\n{}", case.lab.logs());
    assert!(!said.contains("from the beginning"), "{said}\n{}", case.lab.logs());
    for run in ["1", "2"] {
        assert!(said.contains(&format!("run {run}: goes on from checkpoint")), "{said}");
    }
    // One that a requeue ends in its last moment says again what it has said since its checkpoint.
    assert!(said.matches("EXIT-SUCCESS").count() >= 2, "{said}");
    case.ends_right(&said);
}

/// `srun --time` in an allocation: that the time of the step is over is no loss, and the allocation goes on.
#[test]
fn the_time_of_a_step_restarts_nothing() {
    let Some(case) = Case::new(2, 10 * ROUNDS) else { return };
    let line = case.srun("--time=1 --ckpt-interval=2");
    let script = case.lab.script("step.sh", &format!("{line}\necho status $?\nsrun -n1 echo next"));
    let ended = case.lab.start(&["salloc", "-N2", "--ntasks-per-node=2", &script]).wait(LIMIT);
    assert!(ok(&ended) && ended.stdout == "status 143\nnext\n", "{ended:#?}\n{}", case.lab.logs());
    let said = &ended.stderr;
    assert!(said.contains("DUE TO TIME LIMIT") && said.contains("its last checkpoint is"), "{said}");
    assert!(!said.contains("restart") && !said.contains("lost"), "{said}");
    assert!(newest(&case.lab.store()) > 1);
}

/// The same with `--ckpt-on=timelimit`: the checkpoint ends the step, and another srun goes on from it in the same job.
#[test]
fn a_step_is_saved_before_its_own_time_limit() {
    let Some(case) = Case::new(2, 2 * ROUNDS) else { return };
    let first = case.srun("--time=1 --ckpt-interval=1h --ckpt-on=timelimit");
    let second = case.srun("--ckpt-restart=1");
    let job = case.submit(&format!("{first}\necho status $?\n{second}"), &["--requeue"]);
    case.lab.wait(&job, &["COMPLETED"], 2 * LIMIT);
    let said = case.output();
    assert!(
        said.contains("stopped at checkpoint 1") && said.contains("status 143"),
        "{said}\n{}",
        case.lab.logs()
    );
    assert!(said.contains("restart from checkpoint 1"), "{said}\n{}", case.lab.logs());
    assert_eq!(case.lab.job(&job, "Restarts"), "0", "the job had time left");
    case.ends_right(&said);
}

/// srun's own job is cancelled, its tasks do not obey, and its nodes need long to clean up.
#[test]
fn a_cancelled_job_that_is_long_in_completing_stays_cancelled() {
    let Some(case) = Case::with(2, 10 * ROUNDS, "Epilog=/etc/slurm/epilog") else { return };
    let epilog = case.lab.work().join("../etc/epilog");
    fs::copy(case.lab.script("epilog", "sleep 25"), epilog).expect("put the epilog in");
    let line = case
        .srun("--ckpt-interval=1")
        .replace(&case.words[0], &format!("env --ignore-signal=TERM {}", case.words[0]));
    let step = case.lab.start(&["bash", "-c", &line]);
    let step = case.commit_of(step, 0);
    let queue = case.lab.says(&["squeue", "-h", "-o", "%i"]);
    assert!(ok(&case.lab.says(&["scancel", queue.stdout.trim()])));
    let ended = step.wait(LIMIT);
    assert!(!ok(&ended) && ended.stderr.contains("ended from outside"), "{ended:#?}\n{}", case.lab.logs());
    assert!(!ended.stderr.contains("restart") && !ended.stderr.contains("lost"), "{ended:#?}");
}

/// A job that is vacated ends with its checkpoint: its script does not come to its next line. What it was doing goes on elsewhere.
#[test]
fn the_script_of_a_vacated_job_does_not_go_on() {
    let Some(case) = Case::new(2, ROUNDS) else { return };
    let line = case.srun("");
    let job = case.submit(&format!("{line}\necho the next line"), &["--ckpt-interval=1h"]);
    case.lab.wait(&job, &["RUNNING"], LIMIT);
    let vacate = || case.lab.says(&["scontrol", "checkpoint", "vacate", &job]);
    let mut said = vacate();
    // A step comes to life in its own time.
    until(LIMIT, || {
        ok(&said) || {
            said = vacate();
            false
        }
    });
    assert!(ok(&said), "{said:#?}\n{}", case.lab.logs());
    case.lab.wait(&job, &["CANCELLED"], LIMIT);
    let output = case.output();
    assert!(output.contains("stopped at checkpoint") && !output.contains("the next line"), "{output}");
    let again = case.lab.start(&["bash", "-c", &case.srun("--ckpt-restart=1")]).wait(LIMIT);
    assert!(ok(&again), "{again:#?}\n{}", case.lab.logs());
    case.ends_right(&again.stdout);
}
