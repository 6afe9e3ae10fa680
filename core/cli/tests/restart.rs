//! `run` and `restart` against a stand-in for `stillpoint-rank`: a shell script that leaves a checkpoint, says that it was
//! lost, and dies. What is proven here is what the command line decides; no memory is saved. Runs *next door*.
#![forbid(unsafe_code)]

#[cfg(test)]
mod scratch;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::process::{Command, Output, Stdio};

    use stillpoint_abi::ids::{CkptId, Incarnation, Rank};
    use stillpoint_coord::message::JobOutcome;
    use stillpoint_image::{Header, IndexBuf, Meta, RunTable, Seal, encode_meta};
    use stillpoint_storage::commit::image_name;
    use stillpoint_storage::manifest::{Entry, Manifest, VERSION, hex};
    use stillpoint_storage::run::RunDir;
    use xxhash_rust::xxh3::xxh3_128;

    use crate::scratch::{Lab, script};

    fn image(ckpt: CkptId) -> Vec<u8> {
        let seal = Seal { ckpt, rank: Rank(0), seed: 5 };
        let (meta, meta_sum) = encode_meta(&Meta::default(), &seal).unwrap();
        let mut runs = [];
        let table = RunTable::new(&mut runs);
        let layout = table.layout(meta.len() as u64);
        let mut buf = vec![0; layout.index_len as usize];
        let (index, index_sum) = IndexBuf::new(&mut buf, &table).unwrap().finish(&seal);
        let mut page = [0; 4096];
        Header { seal, size: 1, incarnation: Incarnation(0), layout, meta_sum, index_sum }.encode(&mut page);
        let mut file = vec![0; layout.file_len as usize];
        file[..4096].copy_from_slice(&page);
        file[layout.meta_off as usize..][..meta.len()].copy_from_slice(&meta);
        file[layout.index_off as usize..].copy_from_slice(index);
        file
    }

    /// Takes a checkpoint in `run` by the store's own rules.
    fn commit(run: &RunDir) -> CkptId {
        let ckpt = run.begin().unwrap();
        let bytes = image(ckpt);
        let path = run.partial_path(ckpt).join(image_name(0));
        fs::write(&path, &bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let entry = Entry {
            rank: 0,
            file: image_name(0),
            file_len: bytes.len() as u64,
            bytes: 0,
            xxh3: hex(xxh3_128(&bytes[..4096])),
        };
        run.commit(&Manifest {
            format: "stillpoint".into(),
            version: VERSION,
            ckpt: ckpt.0,
            incarnation: 0,
            size: 1,
            time: 0,
            mode: "direct".into(),
            held_ns: 0,
            stopped_ns: 0,
            total_ns: 0,
            seed: String::new(),
            images: vec![entry],
            finished: vec![],
            xxh3: String::new(),
        })
        .unwrap();
        ckpt
    }

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
            "cd {0}\necho \"$STILLPOINT_INCARNATION $1 ${{2##*home/}}\" >>log\n\
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
