//! Slurm: what is killed or stands in the way while checkpoints are taken. Nodes of different parts in a job, agents in the midst
//! of writing, strangers at an agent's door.
//!
//! What a reader would get wrong: the nodes share this machine's process table, so that a test sees and kills processes of all of
//! them; but a port is reached only from within the lab's network.
#![allow(clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use stillpoint_tests::cycle::until;
use stillpoint_tests::lab::{Lab, STRANGER, ok};
use stillpoint_tests::process::{Running, kill};
use stillpoint_tests::solver::{Case, LIMIT, RANKS, ROUNDS};
use stillpoint_tests::store::newest;

/// The script runs on the first of three nodes, the ranks on the two others, rank 0 on the second; a fourth is spare.
fn apart(victim: usize) {
    let Some(case) = Case::new(4, ROUNDS) else { return };
    let line = case.srun("--relative=1");
    let job = case.submit(&line, &["-N3", "--requeue", "--ckpt-interval=2"]);
    case.commit(0);
    let nodes = case.nodes(&job);
    assert_eq!((nodes.len(), case.lab.job(&job, "BatchHost")), (3, nodes[0].clone()));
    let run = fs::read_to_string(case.lab.store().join("1/slurm.json")).expect("task 0 has told where it is");
    assert!(run.contains("n[2-3]"), "{run}");
    case.lab.kill_node(&nodes[victim], true);
    case.lab.wait(&job, &["COMPLETED"], LIMIT);
    assert_eq!(case.lab.job(&job, "Restarts"), "1");
    let said = case.output();
    assert!(said.contains("goes on from checkpoint"), "{said}\n{}", case.lab.logs());
    case.ends_right(&said);
}

#[test]
fn the_node_of_rank_0_is_not_that_of_the_script_and_is_killed() {
    apart(1);
}

/// No rank is lost with it, and yet none may go on beside the job's next life.
#[test]
fn the_node_of_the_script_is_not_that_of_rank_0_and_is_killed() {
    apart(0);
}

/// An image that is being written, and has some of its bytes already.
fn underway(run: &Path) -> Option<PathBuf> {
    let folders = fs::read_dir(run).ok()?.flatten().map(|e| e.path());
    let mut partial = folders.filter(|p| p.extension().is_some_and(|e| e == "partial"));
    partial.find(|p| {
        fs::read_dir(p).into_iter().flatten().flatten().any(|f| f.metadata().is_ok_and(|m| m.len() > 1 << 20))
    })
}

/// Each agent is killed while images are written: the checkpoint before stays sound, the next commits, nothing is restarted. A
/// rank that is killed then shows that what was committed can be used.
#[test]
fn agents_are_killed_while_images_are_written() {
    let Some(lab) = Lab::up(2, "") else { return };
    let Some(words) = lab.program("resident", 30_000) else { return };
    let native = Running::start(Command::new(&words[0]).args(&words[1..]));
    let line = [
        &["srun", "-N2", "-n2", "--ntasks-per-node=1", "--ckpt-interval=2"],
        &words.iter().map(String::as_str).collect::<Vec<_>>()[..],
    ];
    let job = lab.start(&line.concat());
    let run = lab.store().join("1");
    assert!(until(LIMIT, || newest(&run) > 0), "{:#?}\n{}", job.wait(Duration::ZERO), lab.logs());
    let mut hit = 0;
    for agent in lab.processes("stillpoint-agent", "") {
        assert!(until(LIMIT, || underway(&run).is_some()), "{}", lab.logs());
        let before = newest(&run);
        assert!(kill(agent));
        hit += u32::from(underway(&run).is_some());
        let good = run.join(format!("ckpt-{before:06}"));
        let text = good.to_str().expect("text");
        let verified = lab.says(&["stillpoint", "verify", text]);
        assert!(ok(&verified) || !good.exists(), "{verified:#?}");
        assert!(until(LIMIT, || newest(&run) > before + 1), "{}", lab.logs());
    }
    assert!(hit > 0, "no agent was killed in the midst of an image");
    assert!(kill(lab.processes("stillpoint-rank", "resident")[0]));
    let ended = job.wait(2 * LIMIT);
    assert!(ok(&ended), "{ended:#?}\n{}", lab.logs());
    assert_eq!(ended.stderr.matches("restart from checkpoint").count(), 1, "{ended:#?}");
    let sorted = |text: &str| -> Vec<String> {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&ended.stdout), sorted(&native.wait(LIMIT).stdout.repeat(2)));
}

/// A value of a file of json with a line for each.
fn value<'a>(text: &'a str, key: &str) -> &'a str {
    let mark = format!("\"{key}\": ");
    let line = text.lines().find_map(|l| l.trim().strip_prefix(mark.as_str())).expect("the key is there");
    line.trim_matches([',', '"'])
}

/// Who is not the owner gets nothing from an agent's port, holds nobody up there, and sees no image.
#[test]
fn a_stranger_gets_nothing() {
    let Some(case) = Case::new(2, 20 * ROUNDS) else { return };
    let _ = Command::new("useradd").args(["-m", STRANGER]).output();
    let line = case.srun("--ckpt-interval=1");
    let job = case.lab.start(&["bash", "-c", &line]);
    let job = case.commit_of(job, 0);
    let run = case.lab.store().join("1");
    let as_stranger = |line: &str| case.lab.says_as(STRANGER, &["bash", "-c", line]);
    let root = fs::read_to_string(run.join("roots/000001.json")).expect("the root agent's file");
    let token = value(&root, "token");
    let door = format!("{}/{}", value(&root, "host"), value(&root, "port"));
    // What he may say: nothing, rubbish, or the beginning of a handshake without the token at its end.
    let mark = format!("SPROOT01{}c", "a".repeat(32));
    for words in ["", "GET / HTTP/1.0", &mark, &format!("{mark}{}", "b".repeat(32))] {
        let line =
            format!("exec 3<>/dev/tcp/{door} && printf '{words}' >&3 && timeout 20 cat <&3 | od -An -v -tx1");
        let said = as_stranger(&line);
        assert!(ok(&said), "he reaches the port: {said:#?}");
        let bytes: Vec<u8> =
            said.stdout.split_whitespace().filter_map(|b| u8::from_str_radix(b, 16).ok()).collect();
        // To a handshake a nonce and a proof, which tell nothing without the token; and no answer to a question.
        assert_eq!(bytes.len(), if words.starts_with(&mark) { 64 } else { 0 }, "{words:?}: {said:#?}");
        assert!(!String::from_utf8_lossy(&bytes).contains(token));
    }
    // He keeps the door busy with more connections than are let in at once; checkpoints go on beside.
    let many = format!("for n in $(seq 40); do exec {{fd}}<>/dev/tcp/{door}; done; echo all; sleep 8");
    let before = newest(&run);
    let said = as_stranger(&many);
    assert!(ok(&said) && said.stdout.contains("all"), "{said:#?}");
    assert!(newest(&run) > before, "{}", case.lab.logs());
    // What lies in the run directory, by its names and by the sockets in it.
    let image = run.join(format!("ckpt-{:06}/rank-00000.img", newest(&run)));
    for look in [
        format!("ls {}", run.display()),
        format!("head -c 1 {}", image.display()),
        format!("cat {}", run.join("roots/000001.json").display()),
        format!("ls {}", case.lab.store().display()),
    ] {
        let said = as_stranger(&look);
        assert!(!ok(&said) && said.stderr.contains("Permission denied"), "{look}: {said:#?}");
    }
    let sockets = case.lab.lab(
        &["exec", "-u", STRANGER, "-n", "n1", "sh", "-c", "ls -d /tmp/stillpoint-* && ls /tmp/stillpoint-*"],
        LIMIT,
    );
    assert!(
        !ok(&sockets)
            && sockets.stdout.contains("stillpoint-")
            && sockets.stderr.contains("Permission denied"),
        "{sockets:#?}"
    );
    let before = newest(&run);
    case.commit(before);
    assert!(ok(&case.lab.says(&["scancel", "-u", "labuser"])));
    let ended = job.wait(LIMIT);
    assert!(!ended.stderr.contains("restart"), "{ended:#?}\n{}", case.lab.logs());
}

/// A chain of programs in front of the solver, each of which replaces itself by the next.
#[test]
fn behind_numactl() {
    let Some(case) = Case::new(2, ROUNDS / 2) else { return };
    let line =
        format!("srun {} --ckpt-interval=1 numactl --localalloc {}", RANKS.join(" "), case.words.join(" "));
    let job = case.lab.start(&["bash", "-c", &line]);
    let job = case.commit_of(job, 1);
    assert!(kill(case.lab.processes("stillpoint-rank", "jacobi")[0]));
    let ended = job.wait(LIMIT);
    assert!(ok(&ended) && ended.stderr.contains("from checkpoint"), "{ended:#?}\n{}", case.lab.logs());
    case.ends_right(&ended.stdout);
}
