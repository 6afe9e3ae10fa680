//! The plugin on a real Slurm of several nodes (tests/labs/slurm-lab), with scripts in the place of `stillpoint` and
//! `stillpoint-task` that say what they were given. Runs *next door*, as root; elsewhere it is skipped, and says so.
//!
//! What a reader would get wrong: each test has a lab of its own, up in a second; the labs do not see one another. The plugin
//! must have been built with its profile before (`cargo xtask test` does).
#![allow(clippy::print_stderr, reason = "a skipped test says so")]
#![allow(clippy::tests_outside_test_module, clippy::unwrap_used, reason = "an integration test")]

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::{fs, io::Write};

struct Lab {
    dir: PathBuf,
}

struct Said {
    out: String,
    err: String,
    code: i32,
}

fn crate_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// `plugin/libstillpoint_slurm.so` beside the directory this test was built in.
fn plugin() -> PathBuf {
    let me = std::env::current_exe().unwrap();
    let so = me.ancestors().nth(3).unwrap().join("plugin/libstillpoint_slurm.so");
    assert!(so.is_file(), "{} is missing; cargo build --profile plugin -p stillpoint-slurm", so.display());
    so
}

impl Lab {
    /// A lab with the plugin, or none where it cannot be.
    fn up(name: &str, conf: &str) -> Option<Lab> {
        if Path::new("/proc/self").metadata().unwrap().uid() != 0 {
            eprintln!("skipped: a lab of Slurm needs root");
            return None;
        }
        let lab = Lab { dir: PathBuf::from(format!("/tmp/stillpoint-lab-{name}-{}", std::process::id())) };
        let place = |from: &Path, to: &str| {
            let to = lab.dir.join(to);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(from, &to).unwrap();
            fs::set_permissions(to, fs::Permissions::from_mode(0o755)).unwrap();
        };
        place(&plugin(), "prefix/lib/stillpoint/stillpoint-spank.so");
        place(&crate_dir().join("tests/stubs/stillpoint"), "prefix/bin/stillpoint");
        place(&crate_dir().join("tests/stubs/stillpoint-task"), "prefix/libexec/stillpoint/stillpoint-task");
        for d in ["etc/plugstack.conf.d", "work"] {
            fs::create_dir_all(lab.dir.join(d)).unwrap();
        }
        fs::set_permissions(lab.work(), fs::Permissions::from_mode(0o1777)).unwrap();
        fs::write(lab.dir.join("etc/slurm.extra.conf"), conf).unwrap();
        lab.plug(true);
        let up = lab.script(&["up", "-n", "2"]).output().unwrap();
        assert!(up.status.success(), "slurm-lab up: {}", String::from_utf8_lossy(&up.stderr));
        Some(lab)
    }

    fn work(&self) -> PathBuf {
        self.dir.join("work")
    }

    /// With or without the plugin, from the next command on.
    fn plug(&self, with: bool) {
        let line = format!(
            "optional {}/prefix/lib/stillpoint/stillpoint-spank.so local=/var/tmp\n",
            self.dir.display()
        );
        fs::write(self.dir.join("etc/plugstack.conf.d/stillpoint.conf"), if with { &line } else { "" })
            .unwrap();
    }

    fn script(&self, words: &[&str]) -> Command {
        let mut c = Command::new("timeout");
        c.arg("100").arg(crate_dir().join("../tests/labs/slurm-lab/slurm-lab")).args(words);
        c.env("SLURM_LAB_DIR", &self.dir).stdin(Stdio::null());
        c
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut c = self.script(&["exec"]);
        c.args(words).current_dir(self.work());
        c
    }

    /// A command line, on the login node, as an unprivileged user.
    fn run(&self, line: &str) -> Said {
        said(self.command(&["sh", "-c", line]).output().unwrap())
    }

    /// A file that all nodes and users see.
    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.work().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.script(&["down"]).output();
        if std::thread::panicking() {
            eprintln!("the lab's logs: {}/log", self.dir.display());
        } else {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

fn said(o: Output) -> Said {
    let text = |b: Vec<u8>| String::from_utf8_lossy(&b).into_owned();
    Said { out: text(o.stdout), err: text(o.stderr), code: o.status.code().unwrap_or(-1) }
}

impl Said {
    #[track_caller]
    fn good(self) -> Said {
        assert_eq!(self.code, 0, "{}{}", self.out, self.err);
        self
    }

    #[track_caller]
    fn refused(self, why: &str) {
        assert!(self.code != 0 && self.err.contains(why), "{} {}{}", self.code, self.out, self.err);
        assert!(!self.out.contains("RAN") && !self.err.contains("STEP"), "it ran: {}{}", self.out, self.err);
    }

    #[track_caller]
    fn has(self, texts: &[&str]) -> Said {
        for t in texts {
            assert!(self.err.contains(t) || self.out.contains(t), "no {t:?} in\n{}{}", self.out, self.err);
        }
        self
    }

    #[track_caller]
    fn untouched(self) -> Said {
        assert!(!self.err.contains("STEP") && !self.err.contains("TASK"), "{}", self.err);
        self
    }
}

#[test]
fn options_are_shown_and_bad_values_refused() {
    let Some(lab) = Lab::up("options", "") else { return };
    let script = lab.file("job.sh", "#!/bin/sh\necho RAN\n");
    for (program, rest) in
        [("srun", "echo RAN"), ("salloc", "echo RAN"), ("sbatch", script.to_str().unwrap())]
    {
        let help = lab.run(&format!("{program} --help")).good();
        for option in [
            "interval=TIME",
            "dir=PATH",
            "keep=N",
            "restart=RUN",
            "redundancy=none",
            "on=timelimit",
            "run=RUN",
        ] {
            assert!(help.out.contains(&format!("--ckpt-{option}")), "{program} {option}: {}", help.out);
        }
        for (option, value, allowed) in [
            ("interval", "abc", "like 600, 500ms, 10m; or auto, or off"),
            ("interval", "0", "a time above zero"),
            ("dir", "here", "absolute path"),
            ("keep", "0", "from 1 to"),
            ("restart", "12@", "RUN@ID"),
            ("redundancy", "xor:8", "allowed is none or shared"),
            ("on", "sundays", "timelimit, preempt"),
        ] {
            let refusal = lab.run(&format!("{program} --ckpt-{option}={value} {rest}"));
            assert!(refusal.err.contains(&format!("--ckpt-{option}={value}:")), "{}", refusal.err);
            refusal.refused(allowed);
            let name = option.to_uppercase();
            if program == "salloc" {
                continue;
            }
            // Of the variables only those that ask for us are looked at where nothing else does.
            let asks = "STILLPOINT_CKPT_ON=preempt";
            let other = if name == "ON" { "STILLPOINT_CKPT_INTERVAL=5" } else { asks };
            lab.run(&format!("{other} STILLPOINT_CKPT_{name}={value} {program} {rest}")).refused(allowed);
        }
    }
    lab.run("sbatch --ckpt-run=/a@1 job.sh").refused("set by stillpoint itself");
    assert!(lab.run("squeue -h").good().out.is_empty());
}

/// What may differ between two runs of the same program. Each is Slurm's: numbers of job, process and port.
const VOLATILE: [&str; 9] = [
    "SLURM_JOB_ID",
    "SLURM_JOBID",
    "SLURM_TASK_PID",
    "SLURM_SRUN_COMM_PORT",
    "SLURM_STEP_LAUNCHER_PORT",
    "SLURM_STEPMGR",
    "SLURM_JOB_START_TIME",
    "SLURM_JOB_END_TIME",
    "SLURM_STEP_RESV_PORTS",
];

/// The environment of a task as `env -0` wrote it.
fn environment(bytes: &[u8]) -> BTreeMap<String, String> {
    let text = String::from_utf8_lossy(bytes);
    let pairs = text.split('\0').filter_map(|p| p.split_once('='));
    pairs.map(|(k, v)| (k.to_owned(), if VOLATILE.contains(&k) { "…" } else { v }.to_owned())).collect()
}

#[test]
fn without_an_option_nothing_differs() {
    let Some(lab) = Lab::up("untouched", "") else { return };
    // Without a shell in between, which would change the environment: one program a question.
    let shown = |name: &str, with: bool| -> Vec<String> {
        lab.plug(with);
        let mut all = Vec::new();
        for (program, more) in [
            ("env -0", ""),
            ("cat /proc/self/cmdline", ""),
            ("cat /proc/self/limits", ""),
            ("cat /proc/self/maps", ""),
            ("ls -l /proc/self/fd", ""),
        ] {
            let line = format!(
                "STILLPOINT_CKPT_DIR=/scratch LD_PRELOAD=libm.so.6 srun --mpi=none -w n1 {program}{more}"
            );
            let o = lab.run(&line).good();
            all.push(match program {
                "env -0" => format!("{:#?}", environment(o.out.as_bytes())),
                // Which files are mapped, and which descriptors are open: their names and not their numbers.
                "cat /proc/self/maps" => {
                    let mut files: Vec<_> =
                        o.out.lines().filter_map(|l| l.split_whitespace().nth(5)).collect();
                    files.dedup();
                    files.join("\n")
                }
                p if p.starts_with("ls") => o.out.lines().filter(|l| l.contains("->")).count().to_string(),
                _ => o.out,
            });
        }
        // In a batch job: the script, which is a task of a step of Slurm's making, and a step.
        let job = lab.file("job.sh", "#!/bin/sh\nenv -0 > $1.batch\nsrun --mpi=none env -0 > $1.step\ncat /proc/$$/cmdline > $1.argv\n");
        let path = lab.work().join(name);
        lab.run(&format!("sbatch -W -w n1 -o /dev/null {} {}", job.display(), path.display())).good();
        for part in ["batch", "step"] {
            let bytes = fs::read(path.with_extension(part)).unwrap();
            assert!(!bytes.is_empty());
            all.push(format!("{:#?}", environment(&bytes)));
        }
        all
    };
    let without = shown("job", false);
    let with = shown("job", true);
    for (without, with) in without.iter().zip(&with) {
        assert_eq!(without, with);
    }
    assert!(with[0].contains(r#""LD_PRELOAD": "libm.so.6""#), "{}", with[0]);
    assert!(!with.iter().any(|t| t.contains("SPANK")), "{with:?}");
}

#[test]
fn user_steps_are_wrapped_and_nothing_else() {
    let Some(lab) = Lab::up("wrapped", "LaunchParameters=use_interactive_step\n") else { return };
    let o = lab.run("srun --ckpt-interval=10m --ckpt-keep=3 -n2 -N2 --mpi=none echo RAN --keep=x").good();
    let o = o.has(&["STEP [slurm-step] [--interval] [10m] [--keep] [3] [--srun] ["]);
    let o = o.has(&[
        "srun] [--] [--ckpt-interval=10m] [--ckpt-keep=3] [-n2] [-N2] [--mpi=none] [echo] [RAN] [--keep=x]\n",
    ]);
    assert_eq!(o.out, "RAN --keep=x\nRAN --keep=x\n");
    assert_eq!(
        o.err.matches("TASK /a/run/12 7 /var/tmp 1.0 [echo] [RAN] [--keep=x]\n").count(),
        2,
        "{}",
        o.err
    );

    // The environment instead of an option; the option wins; off wins over both.
    lab.run("STILLPOINT_CKPT_INTERVAL=60 srun true").good().has(&["[--interval] [60]"]);
    lab.run("STILLPOINT_CKPT_INTERVAL=60 srun --ckpt-interval=5 true").good().has(&["[--interval] [5]"]);
    lab.run("STILLPOINT_CKPT_INTERVAL=60 srun --ckpt-interval=off true").good().untouched();
    lab.run("srun --ckpt-on=timelimit,preempt --ckpt-dir=/s true")
        .good()
        .has(&["[--dir] [/s] [--on] [timelimit,preempt]"]);

    // What a task sees of us, also with an environment of its own, and what it does not see.
    let o = lab
        .run("srun --ckpt-interval=5 --export=NONE /usr/bin/env")
        .good()
        .has(&["STILLPOINT_RUN=/a/run/12\n"]);
    assert!(!o.out.contains("SPANK") && !o.out.contains("STILLPOINT_CKPT"), "{}", o.out);

    // Exit status, standard input, a program of its own for each task, a broadcast program.
    assert_eq!(lab.run("srun --ckpt-interval=5 sh -c 'exit 3'").code, 3);
    let mut cat = lab.command(&["srun", "--ckpt-interval=5", "cat"]);
    let mut child = cat.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"one\ntwo\n").unwrap();
    assert_eq!(said(child.wait_with_output().unwrap()).good().out, "one\ntwo\n");
    lab.file("many.conf", "# two programs\n0 sh -c \\\n'echo zero; echo RAN'\n1 echo %t one\n");
    let o = lab.run("srun --ckpt-interval=5 -l -n2 --multi-prog many.conf more").good();
    let o = o.has(&[
        "[sh] [-c] [echo zero; echo RAN] [more]",
        "1: TASK",
        "[echo] [1] [one] [more]",
        "1: 1 one more\n",
    ]);
    assert_eq!(o.err.matches("TASK").count(), 2, "{}", o.err);
    fs::copy("/bin/echo", lab.file("mine", "")).unwrap();
    lab.run("srun --ckpt-interval=5 --bcast=/tmp/ ./mine RAN").good().has(&["[/tmp/slurm_bcast_"]);

    // Daemons of MPI launchers, and what starts nothing.
    lab.file("orted", "#!/bin/sh\necho RAN\n");
    lab.run("srun --ckpt-interval=5 ./orted")
        .good()
        .untouched()
        .has(&["RAN", "are not checkpointed: that needs Open MPI 4, and --ckpt options of sbatch"]);
    let mpirun = lab.run("command -v mpirun.openmpi >/dev/null || exit 0; salloc --ckpt-interval=5 -N2 -n2 mpirun.openmpi hostname");
    let mpirun = mpirun.good().untouched();
    assert!(mpirun.out.is_empty() || mpirun.out.lines().count() == 2, "{}", mpirun.out);
    lab.run("srun --ckpt-interval=5 --test-only true").untouched();

    // Heterogeneous steps and jobs.
    lab.run("srun --ckpt-interval=5 -n1 echo RAN : -n1 echo RAN").refused("a heterogeneous step");
    let het = lab.run("salloc --ckpt-interval=5 -N1 : -N1 srun echo RAN");
    assert!(het.err.contains("steps of a heterogeneous job cannot be checkpointed"), "{}", het.err);

    // A terminal.
    let o = lab.run("script -qec \"srun --ckpt-interval=5 --pty sh -c 'tty; exit 4'\" /dev/null");
    assert_eq!(o.code, 4, "{}", o.out);
    o.has(&["[--pty]", "/dev/pts/"]);
    // salloc's shell on the node is a step of Slurm's making; the srun within it is a user's.
    let o = lab.run("echo 'srun echo RAN; exit' | script -qec 'salloc --ckpt-interval=5' /dev/null");
    let o = o.has(&["STEP [slurm-step] [--interval] [5] [--srun]", "[--] [echo] [RAN]"]);
    assert!(!o.out.contains("[--interactive]"), "{}", o.out);
}

#[test]
fn a_batch_job_hands_its_options_to_its_steps() {
    let Some(lab) = Lab::up("batch", "") else { return };
    let script = "#!/bin/bash\n#SBATCH --ckpt-keep=4\ntr '\\0' ' ' < /proc/$$/cmdline; echo\n\
                  echo mpirun $OMPI_MCA_orte_fork_agent $STILLPOINT_MPIRUN | tr '\\037' ' '\n\
                  srun /bin/echo one\nsrun --ckpt-interval=5 bash -c 'echo two$STILLPOINT_MPIRUN$OMPI_MCA_orte_fork_agent'\nsrun --ckpt-interval=off /bin/echo three\n";
    let script = lab.file("job.sh", script);
    for export in ["", "--export=NONE"] {
        let line = format!("sbatch -W -o out {export} --ckpt-interval=600 {}; cat out", script.display());
        let o = lab.run(&line).good();
        let o = o.has(&[
            "[--interval] [600] [--keep] [4] ",
            "[--interval] [5] [--keep] [4] ",
            "one\n",
            "two\n",
            "three\n",
        ]);
        // For the ranks of mpirun; of a step of ours it is taken away again. Where nothing is exported orted would not get it, and
        // the ranks are all ours or none.
        let agent = lab.dir.join("prefix/libexec/stillpoint/stillpoint-mpirun-task");
        let set = format!("mpirun {} --interval 600 --keep 4 --local /var/tmp\n", agent.display());
        let o = o.has(&[if export.is_empty() { &set } else { "mpirun\n" }]);
        // Two of three steps, and not the script itself.
        assert_eq!((o.out.matches("STEP").count(), o.out.matches("TASK").count()), (2, 2), "{}", o.out);
        assert!(o.out.contains("/bin/bash /") && o.out.contains("/slurm_script"), "{}", o.out);
    }
    // An allocation, and a job that is started again.
    let o = lab.run("salloc --ckpt-interval=60 srun true").good();
    o.has(&["[--interval] [60]"]);
    let o = lab.run("salloc --ckpt-interval=60 bash -c 'echo $STILLPOINT_MPIRUN'").good();
    o.has(&["--interval\u{1f}60\u{1f}--local\u{1f}/var/tmp\n"]);
    let script = lab.file(
        "again.sh",
        "#!/bin/sh\nsrun /bin/true\n[ -n \"$SLURM_RESTART_COUNT\" ] || { touch first; sleep 100; }\n",
    );
    let line = format!(
        "id=$(sbatch --parsable --requeue -o out --open-mode=append --ckpt-interval=60 {}); \
         until [ -e first ]; do sleep 0.2; done; scontrol requeue $id; \
         for i in $(seq 300); do [ $(scontrol -o show job $id | grep -c JobState=COMPLETED) = 1 ] && break; sleep 0.2; done",
        script.display()
    );
    fs::write(lab.work().join("out"), "").unwrap();
    fs::set_permissions(lab.work().join("out"), fs::Permissions::from_mode(0o666)).unwrap();
    lab.run(&line).good();
    let out = fs::read_to_string(lab.work().join("out")).unwrap();
    assert_eq!(out.matches("STEP [slurm-step] [--interval] [60] ").count(), 2, "{out}");
}

#[test]
fn srun_becomes_the_step_as_it_was_started() {
    let Some(lab) = Lab::up("become", "") else { return };
    let dump = lab.work().join("dump");
    lab.run(&format!(
        "STUB_DUMP={0} MINE=1 LD_PRELOAD=libm.so.6 srun --ckpt-interval=5 true",
        dump.display()
    ))
    .good();
    let o = lab.run(&format!(
        "STUB_DUMP={0} MINE=1 LD_PRELOAD=libm.so.6 env -0; cat /proc/self/status /proc/self/limits > own",
        dump.display()
    ));
    let (mine, its) =
        (environment(o.out.as_bytes()), environment(&fs::read(dump.with_extension("env")).unwrap()));
    let added: Vec<_> = its.keys().filter(|k| !mine.contains_key(*k) && *k != "_").collect();
    // srun sets these two for itself before it asks plugins.
    assert_eq!(added, ["SLURM_CONF", "SLURM_MPI_TYPE"]);
    for (k, v) in mine.iter().filter(|(k, _)| !["_", "SHLVL", "OLDPWD"].contains(&k.as_str())) {
        assert_eq!(its.get(k), Some(v), "{k}");
    }
    let lines = |text: String, which: &str| -> Vec<String> {
        text.lines().filter(|l| l.starts_with(which)).map(str::to_owned).collect()
    };
    let (own, its) = (
        fs::read_to_string(lab.work().join("own")).unwrap(),
        fs::read_to_string(dump.with_extension("status")).unwrap(),
    );
    // srun has blocked its signals by then; whatever comes after must hear them.
    for mask in ["SigBlk", "SigIgn"] {
        assert_eq!(lines(own.clone(), mask), lines(its.clone(), mask));
    }
    let limits = fs::read_to_string(dump.with_extension("limits")).unwrap();
    assert_eq!(lines(own, "Max "), lines(limits, "Max "));

    // What is missing is named, and nothing runs.
    fs::remove_file(lab.dir.join("prefix/libexec/stillpoint/stillpoint-task")).unwrap();
    let o = lab.run("srun --ckpt-interval=5 echo RAN");
    assert!(
        o.code != 0 && o.out.is_empty() && o.err.contains("stillpoint-task on this node: No such file"),
        "{}",
        o.err
    );
    fs::remove_file(lab.dir.join("prefix/bin/stillpoint")).unwrap();
    lab.run("srun --ckpt-interval=5 echo RAN").refused("prefix/bin/stillpoint: No such file");
    lab.run("srun echo RAN").good().untouched().has(&["RAN"]);
}
