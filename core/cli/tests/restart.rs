//! `run` and `restart` against a stand-in for `stillpoint-rank`: a shell script that leaves a checkpoint, says that it was
//! lost, and dies. What is proven here is what the command line decides; no memory is saved. Runs *next door*.
#![forbid(unsafe_code)]

#[cfg(test)]
mod scratch;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::process::{Command, Output, Stdio};

    use stillpoint_coord::message::JobOutcome;
    use stillpoint_storage::commit::image_name;
    use stillpoint_storage::run::RunDir;

    use crate::scratch::{Lab, commit, script};

    fn outcome(incarnation: u32, restart: bool) -> String {
        let lost = if restart { vec![0] } else { vec![] };
        let o = JobOutcome { incarnation, restart, lost, ended: true, ..JobOutcome::default() };
        serde_json::to_string(&o).unwrap()
    }

    /// A directory with two checkpoints to be copied, and a rank that is lost at every start below `losses`.
    fn lab(name: &str, losses: u32) -> Lab {
        let top = std::env::temp_dir().join(format!("stillpoint-cli-restart-{}-{name}", std::process::id()));
        let model = RunDir::create(&top.join("model")).unwrap();
        commit(&model);
        commit(&model);
        for n in 0..=losses {
            fs::write(top.join(format!("outcome.{n}")), outcome(n, n < losses)).unwrap();
        }
        let text = format!(
            "[ \"$1\" = --mask ] && shift 2\ncd {0}\necho \"$STILLPOINT_INCARNATION $1 ${{2##*home/}}\" >>log\n\
             cp -rpn model/ckpt-* \"$STILLPOINT_RUN\"/ 2>/dev/null\n\
             (umask 077; cat outcome.$STILLPOINT_INCARNATION >\"$STILLPOINT_RUN\"/outcome.json)\n\
             [ $STILLPOINT_INCARNATION -ge {losses} ] && exit 5\nkill -9 $$\n",
            top.display()
        );
        script(&top.join("stillpoint-rank"), &text);
        Lab(top)
    }

    fn stillpoint(top: &Path, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_stillpoint"))
            .args(args)
            .env("STILLPOINT_LIBEXEC", top)
            .env("STILLPOINT_DIR", top.join("home"))
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn log(top: &Path) -> String {
        fs::read_to_string(top.join("log")).unwrap()
    }

    #[test]
    fn a_lost_rank_is_restarted_from_the_last_checkpoint() {
        let lab = lab("lost", 2);
        let out = stillpoint(&lab.0, &["run", "--", "true"]);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(5), "{said}");
        assert!(said.contains("rank 0 lost; restart 1 of 3 from checkpoint 2"), "{said}");
        let restart = "--restart 1/ckpt-000002/rank-00000.img";
        assert_eq!(log(&lab.0), format!("0 -- {}\n1 {restart}\n2 {restart}\n", "/usr/bin/true"));
        let out = stillpoint(&lab.0, &["ls", "--json"]);
        let jobs: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        assert_eq!(jobs[0]["checkpoints"][1]["id"], 2);
        assert!(stillpoint(&lab.0, &["verify", "1"]).status.success());
        assert!(stillpoint(&lab.0, &["inspect", "1@1"]).status.success());
    }

    #[test]
    fn a_damaged_checkpoint_is_passed_over() {
        let lab = lab("damaged", 1);
        let path = lab.0.join("model/ckpt-000002").join(image_name(0));
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(&path, bytes).unwrap();
        let out = stillpoint(&lab.0, &["run", "--", "true"]);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(5), "{said}");
        assert!(said.contains("checkpoint 2 cannot be used") && said.contains("index damaged"), "{said}");
        assert!(said.contains("from checkpoint 1"), "{said}");
        assert_eq!(stillpoint(&lab.0, &["verify", "1@2"]).status.code(), Some(1));
        assert_eq!(stillpoint(&lab.0, &["restart", "1@2"]).status.code(), Some(125));
    }

    /// Checkpoint 2 is of a past that did not happen, once the job has begun again at 1.
    #[test]
    fn a_checkpoint_that_was_passed_over_is_not_taken() {
        let lab = lab("passed", 1);
        assert_eq!(stillpoint(&lab.0, &["run", "--", "true"]).status.code(), Some(5));
        assert_eq!(stillpoint(&lab.0, &["restart", "1@1"]).status.code(), Some(5));
        assert_eq!(stillpoint(&lab.0, &["restart", "1"]).status.code(), Some(5));
        let lines = log(&lab.0);
        let from: Vec<bool> = lines.lines().skip(1).map(|l| l.contains("1/ckpt-000001/")).collect();
        assert_eq!(from, [false, true, true], "{lines}");
    }

    #[test]
    fn restarts_end_and_a_job_can_be_restarted_by_hand() {
        let lab = lab("spent", 2);
        let out = stillpoint(&lab.0, &["run", "--restarts", "1", "--", "true"]);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(137), "{said}");
        assert!(said.contains("no restart left"), "{said}");
        assert_eq!(stillpoint(&lab.0, &["restart", "1", "-n", "2"]).status.code(), Some(125));
        assert_eq!(stillpoint(&lab.0, &["restart", "1"]).status.code(), Some(5));
        // The one that was refused had claimed number 2 before it looked.
        assert!(log(&lab.0).ends_with("3 --restart 1/ckpt-000002/rank-00000.img\n"));
    }
}
