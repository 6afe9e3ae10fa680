//! `slurm-step`, `stillpoint-task` and the fronts of scontrol and scancel against stand-ins for Slurm's commands and for
//! `stillpoint-rank`: shell scripts. What is proven here is what the command line decides; Slurm itself is in tests/labs.
//! Runs *next door*.
#![forbid(unsafe_code)]

#[cfg(test)]
mod scratch;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::process::ExitStatusExt;
    use std::path::{Path, PathBuf};
    use std::process::{Command, Output, Stdio};
    use std::time::{Duration, Instant};

    use stillpoint_storage::run::RunDir;

    use crate::scratch::{Lab, commit, script};

    /// Stand-ins: an srun that does what the plugin makes of it, for one task; a scontrol that tells what `job` holds; a rank
    /// that runs the program.
    fn lab(name: &str) -> Lab {
        let top = std::env::temp_dir().join(format!("stillpoint-cli-slurm-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&top);
        fs::create_dir_all(top.join("bin")).unwrap();
        fs::create_dir_all(top.join("front")).unwrap();
        fs::set_permissions(&top, fs::Permissions::from_mode(0o700)).unwrap();
        let me = env!("CARGO_BIN_EXE_stillpoint");
        for name in ["stillpoint-task", "front/scontrol", "front/scancel"] {
            symlink(me, top.join(name)).unwrap();
        }
        let t = top.display();
        script(
            &top.join("bin/srun"),
            &format!(
                "r=${{1#--ckpt-run=}}; shift\nexport STILLPOINT_RUN=${{r%@*}} STILLPOINT_INCARNATION=${{r##*@}}\n\
                 echo \"srun $STILLPOINT_INCARNATION $*\" >>{t}/log\n\
                 export STILLPOINT_LOCAL_BASE={t} SLURM_JOB_ID=${{SLURM_JOB_ID:-77}} SLURM_STEP_ID=0 SLURM_PROCID=0 \
                 SLURM_STEP_NUM_TASKS=1 SLURM_CLUSTER_NAME=lab SLURM_STEP_NODELIST=n1\n\
                 [ -e {t}/no-start ] && exit 1\n\
                 while [ \"${{1#-}}\" != \"$1\" ]; do shift; done\n\
                 export STILLPOINT_TASK_PROGRAM=$1; shift\nexec {t}/stillpoint-task \"$@\"\n"
            ),
        );
        script(
            &top.join("bin/scontrol"),
            &format!(
                "echo \"scontrol $*\" >>{t}/asked\n[ \"$1\" = show ] || exit 0\n\
                 echo JobId=$4 JobName=a UserId=x JobState=$(cat {t}/job) Requeue=1 Restarts=${{SLURM_RESTART_COUNT:-0}} \
                 BatchFlag=1 StartTime=t${{SLURM_RESTART_COUNT:-0}} EndTime=Unknown NodeList=n1\n"
            ),
        );
        script(
            &top.join("bin/squeue"),
            &format!(
                "[ \"$1\" = -s ] && {{ echo 5.0; echo 5.batch; exit; }}\n\
                 echo \"5|5|N/A|$(cat {t}/uid 2>/dev/null || id -u)|$(cat {t}/job)\"\n"
            ),
        );
        script(&top.join("bin/scancel"), &format!("echo \"scancel $*\" >>{t}/asked\n"));
        for name in ["sinfo", "sacct"] {
            script(&top.join("bin").join(name), "exit 1\n");
        }
        script(&top.join("stillpoint-rank"), "while [ \"$1\" != -- ]; do shift; done\nshift\nexec \"$@\"\n");
        fs::write(top.join("job"), "RUNNING").unwrap();
        Lab(top)
    }

    fn command(top: &Path, program: &Path, args: &[&str]) -> Command {
        let mut c = Command::new(program);
        c.args(args).env_clear().current_dir(top);
        c.env("PATH", format!("{0}/front:{0}/bin:/usr/bin:/bin", top.display()));
        c.env("HOME", top.join("home")).env("STILLPOINT_LIBEXEC", top).stdin(Stdio::null());
        c
    }

    fn step(top: &Path, env: &[(&str, &str)], options: &[&str], args: &[&str]) -> Command {
        let srun = top.join("bin/srun");
        let mut all = vec!["slurm-step", "--interval", "600"];
        all.extend(options);
        all.extend(["--srun", srun.to_str().unwrap(), "--"]);
        all.extend(args);
        let mut c = command(top, Path::new(env!("CARGO_BIN_EXE_stillpoint")), &all);
        c.envs(env.iter().copied());
        c
    }

    fn said(out: &Output) -> String {
        String::from_utf8_lossy(&out.stderr).into_owned()
    }
    fn log(top: &Path) -> String {
        fs::read_to_string(top.join("log")).unwrap_or_default()
    }
    fn run(top: &Path, n: u32) -> PathBuf {
        top.join(format!("home/.local/state/stillpoint/{n}"))
    }
    const JOB: [(&str, &str); 2] = [("SLURM_JOB_ID", "5"), ("SLURM_CLUSTER_NAME", "lab")];

    #[test]
    fn the_status_is_the_programs_and_the_step_is_known() {
        let lab = lab("status");
        let out = step(&lab.0, &[], &[], &["-n1", "sh", "-c", "env; exit 3"]).output().unwrap();
        assert_eq!(out.status.code(), Some(3), "{}", said(&out));
        let env = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(
            env.contains("\nSTILLPOINT_INTERVAL=600\n") && !env.contains("STILLPOINT_TASK_PROGRAM"),
            "{env}"
        );
        assert!(env.contains(&format!("STILLPOINT_LOCAL={}/stillpoint-", lab.0.display())), "{env}");
        assert_eq!(log(&lab.0), "srun 0 -n1 sh -c env; exit 3\n");
        let text = fs::read_to_string(run(&lab.0, 1).join("slurm.json")).unwrap();
        let w: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&w["cluster"], &w["job"], &w["step"], &w["incarnation"]),
            (&"lab".into(), &"77".into(), &"0".into(), &0.into())
        );
        let index = run(&lab.0, 1).with_file_name("slurm").join("lab.77/step-0");
        assert!(fs::read_to_string(index).unwrap().contains("\"run\""));
    }

    #[test]
    fn a_requeued_job_does_not_run_again_what_has_ended() {
        let lab = lab("requeue");
        let once = |life: &str, program: &str| {
            let env = [JOB[0], JOB[1], ("SLURM_RESTART_COUNT", life)];
            step(&lab.0, &env, &[], &["sh", "-c", program]).output().unwrap()
        };
        assert_eq!(once("0", "exit 4").status.code(), Some(4));
        // The second is cut off by the requeue: the job is no more running when srun has ended.
        fs::write(lab.0.join("job"), "COMPLETING").unwrap();
        assert_eq!(once("0", "exit 0").status.code(), Some(0));
        fs::write(lab.0.join("job"), "RUNNING").unwrap();
        let first = once("1", "exit 4");
        assert_eq!(first.status.code(), Some(4));
        assert!(said(&first).contains("has ended before the job was requeued"), "{}", said(&first));
        let second = once("1", "exit 0");
        assert!(said(&second).contains("starts from the beginning"), "{}", said(&second));
        assert_eq!(log(&lab.0), "srun 0 sh -c exit 4\nsrun 0 sh -c exit 0\nsrun 1 sh -c exit 0\n");
        assert!(!run(&lab.0, 3).exists());
        assert!(said(&once("1", "exit 4")).is_empty(), "one more than before the requeue is a new run");
    }

    #[test]
    fn a_requeued_job_with_another_command_line_says_that_it_begins_anew() {
        let lab = lab("unlike");
        let once = |life: &str, program: &str| {
            let env = [JOB[0], JOB[1], ("SLURM_RESTART_COUNT", life)];
            said(&step(&lab.0, &env, &[], &["sh", "-c", program]).output().unwrap())
        };
        // Cut off by the requeue, with and without a checkpoint.
        fs::write(lab.0.join("job"), "COMPLETING").unwrap();
        once("0", "exit 0");
        fs::write(lab.0.join("job"), "RUNNING").unwrap();
        assert!(!once("1", "exit  0").contains("beginning"), "nothing is lost");
        commit(&RunDir::open(&run(&lab.0, 1)).unwrap());
        let told = once("2", "exit   0");
        assert!(told.contains("run 3: starts from the beginning: no step of the job's former"), "{told}");
        assert!(told.contains("stillpoint/1, with which"), "{told}");
        assert!(once("2", "exit 0").contains("run 1: goes on from checkpoint 1"));
    }

    #[test]
    fn a_lost_step_without_a_checkpoint_is_not_run_again_but_for_a_dead_node() {
        let lab = lab("lost");
        let out = step(&lab.0, &JOB, &[], &["sh", "-c", "kill -9 $$"]).output().unwrap();
        assert_eq!(out.status.code(), Some(137), "{}", said(&out));
        assert!(said(&out).contains("a rank lost") && said(&out).contains("no restart"), "{}", said(&out));
        script(&lab.0.join("bin/sinfo"), "echo down*\n");
        let out = step(&lab.0, &JOB, &[], &["sh", "-c", "kill -9 $$"]).output().unwrap();
        assert_eq!(out.status.code(), Some(137), "{}", said(&out));
        assert_eq!(said(&out).matches("restart from the beginning").count(), 3, "{}", said(&out));
        assert!(
            log(&lab.0).ends_with("srun 2 sh -c kill -9 $$\nsrun 3 sh -c kill -9 $$\n"),
            "{}",
            log(&lab.0)
        );
    }

    #[test]
    fn a_cancelled_job_restarts_nothing() {
        let lab = lab("cancelled");
        fs::write(lab.0.join("job"), "CANCELLED").unwrap();
        script(&lab.0.join("bin/sinfo"), "echo down*\n");
        let out = step(&lab.0, &[], &[], &["sh", "-c", "kill -9 $$"]).output().unwrap();
        assert_eq!((out.status.code(), log(&lab.0).lines().count()), (Some(137), 1), "{}", said(&out));
    }

    #[test]
    fn what_slurm_cannot_start_is_told_by_its_status() {
        let lab = lab("nostart");
        fs::write(lab.0.join("no-start"), "").unwrap();
        let out = step(&lab.0, &JOB, &[], &["true"]).output().unwrap();
        assert_eq!((out.status.code(), log(&lab.0).lines().count()), (Some(1), 1), "{}", said(&out));
        assert!(!run(&lab.0, 1).exists(), "nothing has run");
    }

    #[test]
    fn signals_are_handed_on_and_srun_dies_with_us() {
        let lab = lab("signals");
        let program = "trap 'exit 9' USR1; echo $$ >pid; while :; do sleep 0.05; done";
        let pid = |lab: &Lab| {
            let until = Instant::now() + Duration::from_secs(20);
            loop {
                let text = fs::read_to_string(lab.0.join("pid")).unwrap_or_default();
                match text.trim().parse::<i32>() {
                    Ok(n) => return n,
                    Err(_) => assert!(Instant::now() < until, "it did not start"),
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        let kill = |s: &str, p: u32| {
            assert!(Command::new("kill").args([s, &p.to_string()]).status().unwrap().success())
        };
        let mut child = step(&lab.0, &JOB, &[], &["sh", "-c", program]).spawn().unwrap();
        pid(&lab);
        kill("-USR1", child.id());
        assert_eq!(child.wait().unwrap().code(), Some(9));
        fs::remove_file(lab.0.join("pid")).unwrap();
        let mut child = step(&lab.0, &JOB, &[], &["sh", "-c", program]).spawn().unwrap();
        let task = pid(&lab);
        kill("-KILL", child.id());
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        let until = Instant::now() + Duration::from_secs(10);
        while Path::new(&format!("/proc/{task}")).exists() {
            assert!(Instant::now() < until, "the task has outlived its supervisor");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_checkpoint_before_the_time_limit_is_asked_for() {
        let lab = lab("limit");
        // The step has no limit of its own; the job's four seconds are not all spent on a checkpoint.
        let left = format!(
            "case $2 in --steps=*) echo 'UNLIMITED|0:01'; exit;; esac\n\
             cd {} && cat left 2>/dev/null || echo 0:04\necho 0:01 >left\n",
            lab.0.display()
        );
        script(&lab.0.join("bin/squeue"), &left);
        let out = step(&lab.0, &JOB, &["--on", "timelimit,preempt"], &["sleep", "5"]).output().unwrap();
        assert_eq!(out.status.code(), Some(0), "{}", said(&out));
        assert!(said(&out).contains(" 1 s to the time limit; a checkpoint is taken"), "{}", said(&out));
    }

    #[test]
    fn standard_input_is_kept_for_a_restart() {
        let lab = lab("stdin");
        fs::write(lab.0.join("in"), "one\ntwo\n").unwrap();
        let with = |args: &[&str]| {
            let mut c = step(&lab.0, &JOB, &[], args);
            c.stdin(fs::File::open(lab.0.join("in")).unwrap());
            String::from_utf8_lossy(&c.output().unwrap().stdout).into_owned()
        };
        assert_eq!(with(&["cat"]), "one\ntwo\n");
        assert_eq!(fs::read_to_string(run(&lab.0, 1).join("stdin")).unwrap(), "one\ntwo\n");
        assert_eq!(with(&["--input=0", "cat"]), "one\ntwo\n");
        assert_eq!(with(&["--input=1", "cat"]), "");
        assert_eq!(with(&["--input=none", "true"]), "");
        assert!(!run(&lab.0, 4).join("stdin").exists(), "somebody else's input is not read");
    }

    #[test]
    fn scontrol_answers_checkpoint_and_hands_on_the_rest() {
        let lab = lab("scontrol");
        let scontrol = |args: &[&str]| command(&lab.0, &lab.0.join("front/scontrol"), args).output().unwrap();
        let asked = || fs::read_to_string(lab.0.join("asked")).unwrap_or_default();
        assert!(scontrol(&["requeue", "5"]).status.success() && scontrol(&[]).status.success());
        assert_eq!(asked(), "scontrol requeue 5\nscontrol \n");
        let bad = scontrol(&["checkp", "grow", "5"]);
        assert_eq!(bad.status.code(), Some(1));
        assert!(said(&bad).contains("invalid checkpoint operation grow"), "{}", said(&bad));
        let none = scontrol(&["checkpoint", "create", "5"]);
        assert_eq!(none.status.code(), Some(1));
        assert!(said(&none).contains("no step of job 5 runs under Stillpoint"), "{}", said(&none));
        let mut child = step(&lab.0, &JOB, &[], &["sh", "-c", "while [ ! -e end ]; do sleep 0.05; done"])
            .spawn()
            .unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        while !run(&lab.0, 1).join("slurm.json").exists() {
            assert!(Instant::now() < until);
            std::thread::sleep(Duration::from_millis(10));
        }
        // No agent: the stand-in for a rank starts none.
        let able = scontrol(&["checkpoint", "able", "5.0"]);
        let text = String::from_utf8_lossy(&able.stdout).into_owned();
        assert!(able.status.success() && text.starts_with("5.0: No: "), "{text} {}", said(&able));
        assert!(scontrol(&["checkpoint", "disable", "5"]).status.success());
        let create = scontrol(&["checkpoint", "create", "5"]);
        assert_eq!(create.status.code(), Some(1));
        assert!(said(&create).contains("checkpoints are disabled"), "{}", said(&create));
        assert!(scontrol(&["checkpoint", "enable", "5"]).status.success());
        assert!(said(&scontrol(&["checkpoint", "restart", "5"])).contains("job 5 is not over (running)"));
        assert!(said(&scontrol(&["checkpoint", "create", "5.1"])).contains("no step 1"));
        let scancel = command(&lab.0, &lab.0.join("front/scancel"), &["5.0"]).output().unwrap();
        assert!(scancel.status.success() && asked().ends_with("scancel 5.0\n"), "{}", asked());
        assert!(run(&lab.0, 1).join("cancelled").exists());
        fs::write(lab.0.join("uid"), "4242").unwrap();
        fs::write(lab.0.join("end"), "").unwrap();
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn a_strangers_job_is_denied() {
        let lab = lab("denied");
        // Root would become the owner.
        let root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
        fs::write(lab.0.join("uid"), if root { "4242424" } else { "0" }).unwrap();
        let out =
            command(&lab.0, &lab.0.join("front/scontrol"), &["checkpoint", "create", "5"]).output().unwrap();
        assert_eq!(out.status.code(), Some(1));
        assert!(said(&out).contains("access denied: job 5 belongs to"), "{}", said(&out));
    }
}
