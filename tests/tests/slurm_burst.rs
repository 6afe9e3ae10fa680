//! Slurm with `burst=`: images on the nodes' own disks first, copied from there to the run directory.
//!
//! What a reader would get wrong: copies are slow here because the plugin's line says so (`burst-rate=`), which is what a site
//! may say as well; so that there is time to look at them, and to lose a rank meanwhile.
#![allow(clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use stillpoint_tests::cycle::until;
use stillpoint_tests::lab::{Lab, ok};
use stillpoint_tests::process::{Ended, Running, kill, machine};
use stillpoint_tests::store::newest;

const LIMIT: Duration = Duration::from_secs(180);
const SRUN: &str = "srun -N2 -n4 --ntasks-per-node=2 --mpi=pmix";

/// Says in the plugin's line that images are kept below /var/tmp, and how fast they are copied.
fn keep_images(lab: &Lab, rate: &str) {
    let line = lab.work().join("../etc/plugstack.conf.d/stillpoint.conf");
    let text = fs::read_to_string(&line).expect("read the plugin's line");
    let with = format!("{} burst=/var/tmp burst-rate={rate}\n", text.trim_end());
    fs::write(&line, with).expect("write the plugin's line");
}

/// A lab whose nodes keep images below /var/tmp, and the solver, which runs natively beside it.
struct Case {
    lab: Lab,
    solver: String,
    native: Running,
}

impl Case {
    fn new(nodes: u32, rate: &str) -> Option<Self> {
        let lab = Lab::up(nodes, "")?;
        keep_images(&lab, rate);
        let words = lab.program("jacobi", 12_000)?;
        let mut native = Command::new("mpirun");
        native.args(["-n", "1"]).args(&words).current_dir(std::env::temp_dir());
        Some(Self { solver: words.join(" "), native: Running::start(machine(&mut native)), lab })
    }

    fn start(&self, options: &str) -> Running {
        self.lab.start(&["bash", "-c", &format!("{SRUN} {options} {}", self.solver)])
    }

    /// The images on the disk of a node.
    fn kept(&self, node: &str) -> Vec<String> {
        let disk = self.lab.work().join("../nodes").join(node).join("disk");
        let mut found = Vec::new();
        let mut folders = vec![disk];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let path: PathBuf = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|e| e == "img") {
                    found.push(path.display().to_string());
                }
            }
        }
        found
    }

    fn commit(&self, than: u64) {
        let store = self.lab.store();
        assert!(until(LIMIT, || newest(&store) > than), "no checkpoint after {than}: {}", self.lab.logs());
    }

    /// The result is the native one.
    fn ends_right(self, ended: &Ended) {
        let native = self.native.wait(LIMIT);
        let result = |text: &str| text.lines().find(|l| l.starts_with("result ")).map(str::to_owned);
        assert!(ok(&native) && ok(ended), "{native:#?}\n{ended:#?}\n{}", self.lab.logs());
        assert_eq!(result(&ended.stdout), result(&native.stdout), "{ended:#?}");
    }
}

/// The number of the only job.
fn job(lab: &Lab) -> String {
    let mut job = String::new();
    until(LIMIT, || {
        job = lab.says(&["squeue", "-h", "-t", "R", "-o", "%i"]).stdout.trim().to_owned();
        !job.is_empty()
    });
    job
}

/// Asks for a checkpoint once the ranks run, and returns while it is being copied.
fn copied(lab: &Lab, job: &str, create: &[&str]) -> Running {
    let able = || lab.says(&["scontrol", "checkpoint", "able", job]).stdout;
    assert!(until(LIMIT, || able().contains("Yes;")), "{}\n{}", able(), lab.logs());
    let mut asked = lab.start(create);
    let seen = until(LIMIT, || able().contains("is being copied") || !asked.is_running());
    if seen && asked.is_running() {
        return asked;
    }
    panic!("{:#?}\n{}", asked.wait(Duration::ZERO), lab.logs());
}

/// Images are on both nodes before they are in the run directory, and a dead node costs no more than what was not copied.
#[test]
fn a_node_is_lost_with_its_disk() {
    let Some(case) = Case::new(3, "200M") else { return };
    let job = case.start("--ckpt-interval=1");
    let mut seen = [false; 2];
    let both = until(LIMIT, || {
        for (there, node) in seen.iter_mut().zip(["n1", "n2"]) {
            *there |= !case.kept(node).is_empty();
        }
        seen == [true; 2]
    });
    assert!(both, "{seen:?}: {}", case.lab.logs());
    case.commit(0);
    case.lab.kill_node("n2", true);
    let ended = job.wait(LIMIT);
    assert!(ended.stderr.contains("from checkpoint"), "{ended:#?}\n{}", case.lab.logs());
    assert!(until(LIMIT, || case.kept("n1").is_empty()), "{:?}", case.kept("n1"));
    case.ends_right(&ended);
}

/// An answer comes when the copy is there; a rank that is lost before does not cost the checkpoint.
#[test]
fn a_rank_is_lost_while_its_image_is_copied() {
    let Some(case) = Case::new(2, "2M") else { return };
    let step = case.start("--ckpt-interval=1h");
    let job = job(&case.lab);
    let store = case.lab.store();
    let asked = copied(&case.lab, &job, &["scontrol", "checkpoint", "create", &job]);
    assert_eq!((case.kept("n1").len(), case.kept("n2").len(), newest(&store)), (2, 2, 0));
    let said = asked.wait(LIMIT);
    assert!(ok(&said) && newest(&store) == 1, "{said:#?}\n{}", case.lab.logs());
    let asked = copied(&case.lab, &job, &["scontrol", "checkpoint", "create", &job]);
    let ranks = case.lab.processes("stillpoint-rank", "jacobi");
    assert!(newest(&store) == 1 && !ranks.is_empty());
    assert!(kill(ranks[0]));
    let said = asked.wait(LIMIT);
    assert!(ok(&said) && newest(&store) == 2, "{said:#?}\n{}", case.lab.logs());
    let ended = step.wait(LIMIT);
    assert!(ended.stderr.contains("from checkpoint 2"), "{ended:#?}\n{}", case.lab.logs());
    case.ends_right(&ended);
}

/// The step ends when the copies are durable, and not before.
#[test]
fn vacate_waits_for_the_copies() {
    let Some(case) = Case::new(2, "2M") else { return };
    let step = case.start("--ckpt-interval=1h");
    let job = job(&case.lab);
    let name = format!("{job}.0");
    let asked = copied(&case.lab, &job, &["scontrol", "checkpoint", "vacate", &name]);
    assert!(!case.lab.processes("stillpoint-rank", "jacobi").is_empty(), "they stand still, and wait");
    let said = asked.wait(LIMIT);
    assert!(ok(&said) && newest(&case.lab.store()) == 1, "{said:#?}\n{}", case.lab.logs());
    let ended = step.wait(LIMIT);
    assert!(ended.stderr.contains("stopped at checkpoint 1"), "{ended:#?}\n{}", case.lab.logs());
    let again = case.lab.start(&["bash", "-c", &format!("{SRUN} --ckpt-restart=1 {}", case.solver)]);
    let ended = again.wait(LIMIT);
    case.ends_right(&ended);
}

/// Slurm kills what is left of a step on a node behind its last task there; the plugin has it wait for the copy.
#[test]
fn an_agent_in_a_control_group_finishes_its_copy() {
    let Some(lab) = Lab::limited(2) else { return };
    keep_images(&lab, "40M");
    let Some(words) = lab.program("resident", 12_000) else { return };
    let native = Running::start(Command::new(&words[0]).args(&words[1..]));
    let line = "srun -N2 -n2 --ntasks-per-node=1 --mpi=none --mem=400M --ckpt-interval=1h";
    let step = lab.start(&["bash", "-c", &format!("{line} {}", words.join(" "))]);
    let job = job(&lab);
    let asked = copied(&lab, &job, &["scontrol", "checkpoint", "create", &job]);
    let ranks = lab.processes("stillpoint-rank", "SLURM_NODEID=1");
    assert_eq!(ranks.len(), 1, "{}", lab.logs());
    assert!(kill(ranks[0]) && newest(&lab.store()) == 0);
    let said = asked.wait(LIMIT);
    assert!(ok(&said) && newest(&lab.store()) == 1, "{said:#?}\n{}", lab.logs());
    let ended = step.wait(LIMIT);
    assert!(ok(&ended) && ended.stderr.contains("from checkpoint 1"), "{ended:#?}\n{}", lab.logs());
    let native = native.wait(LIMIT).stdout;
    // The other rank may have come to its end before.
    let times = ended.stdout.len() / native.len();
    assert!((2..=3).contains(&times) && ended.stdout == native.repeat(times), "{ended:#?}");
}
