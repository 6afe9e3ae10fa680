//! What Slurm says of a job, read from the output of its own commands, which are found in PATH behind ourselves.
//!
//! What a reader would get wrong: `scontrol show job -o` prints the job's name, which its owner chooses, without quotes, so
//! nothing on which a permission hangs is read from there; `squeue` with a format of numbers is. And a job that ends because
//! of a dead node may be COMPLETING for as long as another node needs to clean up: that says nothing of why. Runs *next door*.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::slurm::identity::{Index, directory};

/// Runs a command of Slurm's with these arguments: its standard output, or what it said on standard error.
pub(crate) type Ask<'a> = &'a dyn Fn(&str, &[&str]) -> Result<String, String>;

/// Asks the real Slurm.
pub(crate) fn ask(name: &str, args: &[&str]) -> Result<String, String> {
    let program = real(OsStr::new(name)).ok_or_else(|| format!("{name}: command not found"))?;
    let mut c = Command::new(program);
    // What is compared between two lives of a job is not to depend on who asks, and where.
    c.args(args).env("SLURM_TIME_FORMAT", "standard").env("TZ", "UTC0");
    let out = c.stdin(Stdio::null()).output();
    let out = out.map_err(|e| format!("{name}: {e}"))?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&out.stderr).trim().to_owned();
    Err(if said.is_empty() { format!("{name} failed") } else { said })
}

/// Where sites have Slurm, if PATH does not lead there.
const PLACES: [&str; 5] =
    ["/usr/bin", "/usr/local/bin", "/opt/slurm/bin", "/usr/local/slurm/bin", "/opt/slurm/current/bin"];
/// The directory of the srun that this process stands for.
static BESIDE: OnceLock<PathBuf> = OnceLock::new();

/// Slurm's commands are beside this one.
pub(crate) fn are_beside(program: &Path) {
    if let Some(dir) = program.parent().filter(|d| d.is_absolute()) {
        let _ = BESIDE.set(dir.to_owned());
    }
}

/// A command of Slurm's: the first of its name in PATH behind the place where we are ourselves under that name. Only what
/// stands behind: of two installations of Stillpoint each would else find the other for ever. Where PATH has none, it is looked
/// for beside srun and where sites have it, again not where we are ourselves.
pub(crate) fn real(name: &OsStr) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    let me = std::env::current_exe().and_then(|p| p.metadata()).ok().map(|m| (m.dev(), m.ino()));
    let same = |p: &Path| p.metadata().ok().map(|m| (m.dev(), m.ino())) == me && me.is_some();
    let files: Vec<PathBuf> = std::env::split_paths(&path).map(|d| d.join(name)).collect();
    let is_program =
        |p: &Path| p.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    let places = BESIDE.get().into_iter().cloned().chain(PLACES.map(PathBuf::from));
    let others: Vec<PathBuf> = places.map(|d| d.join(name)).collect();
    behind(&files, &same, &is_program).or_else(|| elsewhere(&others, &is_program))
}

/// Not another installation of ours, which would look for the real one as we do.
fn elsewhere(files: &[PathBuf], is_program: &dyn Fn(&Path) -> bool) -> Option<PathBuf> {
    let ours = |p: &Path| fs::canonicalize(p).is_ok_and(|p| p.file_name().is_some_and(|n| n == "stillpoint"));
    files.iter().find(|p| is_program(p) && !ours(p)).cloned()
}

fn behind(
    files: &[PathBuf],
    is_me: &dyn Fn(&Path) -> bool,
    is_program: &dyn Fn(&Path) -> bool,
) -> Option<PathBuf> {
    let after = files.iter().rposition(|p| is_me(p)).map_or(0, |n| n + 1);
    files[after..].iter().find(|p| is_program(p)).cloned()
}

/// One job as `squeue` lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) id: String,
    /// What its runs are filed under: the id, or ARRAYJOB_TASK.
    pub(crate) key: String,
    pub(crate) uid: u32,
    pub(crate) state: String,
}

impl Listed {
    /// Nothing of it runs any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.is_over() && self.state != "COMPLETING"
    }

    /// Neither waits nor runs.
    pub(crate) fn is_over(&self) -> bool {
        !["RUNNING", "SUSPENDED", "STOPPED", "CONFIGURING", "PENDING", "RESIZING", "REQUEUED", "REQUEUE_HOLD"]
            .contains(&self.state.as_str())
    }
}

const LIST: &str = "%A|%F|%K|%U|%T";

fn listed(line: &str) -> Option<Listed> {
    let mut field = line.trim().split('|');
    let (id, array, task) = (field.next()?, field.next()?, field.next()?);
    let uid = field.next()?.parse().ok()?;
    let key = if task.parse::<u64>().is_ok() { format!("{array}_{task}") } else { id.to_owned() };
    Some(Listed { id: id.to_owned(), key, uid, state: field.next()?.to_owned() })
}

/// The jobs that are meant by JOB: one, or the tasks of an array.
pub(crate) fn jobs(ask: Ask<'_>, job: &str) -> Result<Vec<Listed>, Error> {
    let out = ask("squeue", &["-h", "-r", "-t", "all", "-j", job, "-o", LIST]).map_err(Error::Slurm)?;
    let jobs: Vec<Listed> = out.lines().filter_map(listed).collect();
    if jobs.is_empty() { Err(Error::NoSlurmJob(job.to_owned())) } else { Ok(jobs) }
}

/// The steps of a job that run, without those that Slurm makes for itself (batch, extern, interactive). The job by its key: the
/// first id of an array is that of one of its tasks as well.
pub(crate) fn steps(ask: Ask<'_>, job: &str) -> Result<Vec<String>, String> {
    let out = ask("squeue", &["-s", "-h", "-j", job, "-o", "%i"])?;
    let number = |line: &str| {
        let step = line.trim().rsplit_once('.')?.1;
        step.parse::<u32>().ok().map(|n| n.to_string())
    };
    Ok(out.lines().filter_map(number).collect())
}

/// `[[D-]HH:]MM:SS`, as `squeue` has times. `None`: no limit.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let (days, clock) = match text.trim().split_once('-') {
        Some((d, c)) => (d.parse::<u64>().ok()?, c),
        None => (0, text.trim()),
    };
    let parts: Option<Vec<u64>> = clock.split(':').map(|p| p.parse().ok()).collect();
    let seconds = match *parts?.as_slice() {
        [m, s] => m * 60 + s,
        [h, m, s] => (h * 60 + m) * 60 + s,
        _ => return None,
    };
    Some(Duration::from_secs(days * 86400 + seconds))
}

/// How much time a job has left. `None`: there is no limit, or Slurm does not answer.
pub(crate) fn left(ask: Ask<'_>, job: &str) -> Option<Duration> {
    duration(&ask("squeue", &["-h", "-j", job, "-o", "%L"]).ok()?)
}

/// The same of a step that has a limit of its own (`srun --time`), from that and the time it has used.
pub(crate) fn step_left(ask: Ask<'_>, job: &str, step: &str) -> Option<Duration> {
    let out = ask("squeue", &["-h", &format!("--steps={job}.{step}"), "-o", "%l|%M"]).ok()?;
    let (limit, used) = out.lines().next()?.split_once('|')?;
    Some(duration(limit)?.saturating_sub(duration(used)?))
}

/// One job as `scontrol show job` tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) state: String,
    /// Why it is in this state. While COMPLETING hides what has ended a job, this tells: NodeDown, JobLaunchFailure, None.
    pub(crate) reason: String,
    /// Another job has its place, and its grace runs; no longer told once the grace is over.
    pub(crate) preempted: bool,
    pub(crate) start: String,
    pub(crate) end: String,
    pub(crate) nodes: String,
    pub(crate) batch: bool,
    /// It may be requeued.
    pub(crate) requeue: bool,
    pub(crate) restarts: u32,
}

/// The value of one key in a line of `KEY=VALUE` words. The last of its name: what a user may name comes in front.
fn value<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let mark = format!(" {key}=");
    let at = line.rfind(&mark)? + mark.len();
    line[at..].split(' ').next()
}

pub(crate) fn view(line: &str) -> Option<View> {
    // The name is the second word, and the command and the rest of what users choose come behind the keys wanted here.
    let line = line.split(" Command=").next()?;
    let text = |k| value(line, k).unwrap_or("").to_owned();
    Some(View {
        state: value(line, "JobState")?.to_owned(),
        reason: text("Reason"),
        preempted: value(line, "PreemptTime").is_some_and(|v| v.starts_with(|c: char| c.is_ascii_digit())),
        start: text("StartTime"),
        end: text("EndTime"),
        nodes: text("NodeList"),
        batch: value(line, "BatchFlag").is_some_and(|v| v != "0"),
        requeue: value(line, "Requeue") == Some("1"),
        restarts: text("Restarts").parse().unwrap_or(0),
    })
}

/// How a job stands. `None`: Slurm does not answer, or knows it no more.
pub(crate) fn look(ask: Ask<'_>, job: &str) -> Option<View> {
    view(ask("scontrol", &["show", "job", "-o", job]).ok()?.lines().next()?)
}

/// Whether Slurm has given up one of these nodes, or gets no answer from it.
pub(crate) fn is_node_gone(ask: Ask<'_>, nodes: &str) -> bool {
    if nodes.is_empty() {
        return false;
    }
    ask("sinfo", &["-h", "-N", "-n", nodes, "-o", "%T"]).is_ok_and(|out| out.lines().any(gone))
}

fn gone(state: &str) -> bool {
    let state = state.trim().to_ascii_lowercase();
    state.starts_with("down")
        || state.starts_with("fail")
        || state.ends_with('*')
        || state.starts_with("unknown")
}

/// Whether the accounting data base, if there is one, says that somebody cancelled this step.
pub(crate) fn was_cancelled(ask: Ask<'_>, job: &str, step: &str) -> bool {
    let id = format!("{job}.{step}");
    ask("sacct", &["-n", "-P", "-j", &id, "-o", "State"]).is_ok_and(|out| out.trim().starts_with("CANCELLED"))
}

/// What task 0 leaves in the run directory (`slurm.json`) and in the index (`step-N`): where the start has come to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Whereabouts {
    pub(crate) cluster: String,
    pub(crate) job: String,
    pub(crate) array_job: Option<String>,
    pub(crate) array_task: Option<String>,
    pub(crate) step: String,
    pub(crate) restart_count: u32,
    pub(crate) nodes: String,
    pub(crate) incarnation: u32,
    /// The run directory.
    #[serde(default)]
    pub(crate) run: PathBuf,
    /// Which mpirun, if one has started the ranks.
    #[serde(default)]
    pub(crate) mpirun: Option<String>,
}

impl Whereabouts {
    /// The step in which mpirun itself runs, as Slurm calls it.
    pub(crate) const BATCH: &str = "batch";

    /// From the environment of a rank that mpirun has started, in a step of orted or beside mpirun.
    pub(crate) fn of_mpirun(
        var: impl Fn(&str) -> Option<OsString>,
        run: &Path,
        incarnation: u32,
        token: &str,
    ) -> Option<Whereabouts> {
        let step = |n: &str| {
            let given = var(n);
            let number = given.as_ref().and_then(|v| v.to_str()?.parse::<u32>().ok()).is_some();
            if n == "SLURM_STEP_ID" && !number { Some(Self::BATCH.into()) } else { given }
        };
        let w = Self::from(step, run, incarnation)?;
        Some(Whereabouts { mpirun: Some(token.to_owned()), ..w })
    }

    /// Makes known in the index which run this is.
    pub(crate) fn announce(&self, index: &Index, name: &str) -> Result<(), Error> {
        let key = match (&self.array_job, &self.array_task) {
            (Some(a), Some(t)) => format!("{a}_{t}"),
            _ => self.job.clone(),
        };
        let text = serde_json::to_vec_pretty(self).unwrap_or_default();
        index.announce(&directory(&self.cluster, &key), name, &text)
    }

    /// From a task's environment.
    pub(crate) fn from(
        var: impl Fn(&str) -> Option<OsString>,
        run: &Path,
        incarnation: u32,
    ) -> Option<Whereabouts> {
        let text = |n: &str| var(n).and_then(|v| v.into_string().ok()).filter(|v| !v.is_empty());
        Some(Whereabouts {
            cluster: text("SLURM_CLUSTER_NAME").unwrap_or_else(|| "cluster".into()),
            job: text("SLURM_JOB_ID")?,
            array_job: text("SLURM_ARRAY_JOB_ID"),
            array_task: text("SLURM_ARRAY_TASK_ID"),
            step: text("SLURM_STEP_ID")?,
            restart_count: text("SLURM_RESTART_COUNT").and_then(|v| v.parse().ok()).unwrap_or(0),
            nodes: text("SLURM_STEP_NODELIST").or_else(|| text("SLURM_JOB_NODELIST")).unwrap_or_default(),
            incarnation,
            run: run.to_owned(),
            mpirun: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_of_22_05() {
        let line = "JobId=22 JobName=x JobState=FAKE Restarts=7 UserId=labuser(1001) GroupId=labuser(1001) MCS_label=N/A \
            Priority=1 Nice=0 Account=(null) QOS=(null) JobState=NODE_FAIL Reason=NodeDown Dependency=(null) Requeue=1 \
            Restarts=2 BatchFlag=1 Reboot=0 ExitCode=0:15 RunTime=00:00:20 TimeLimit=UNLIMITED TimeMin=N/A \
            SubmitTime=2026-11-21T13:57:19 EligibleTime=2026-11-21T13:57:19 AccrueTime=Unknown \
            StartTime=2026-11-21T13:57:19 EndTime=2026-11-21T13:57:39 Deadline=N/A \
            PreemptEligibleTime=2026-11-21T13:57:19 PreemptTime=None SuspendTime=None Partition=main \
            ReqNodeList=(null) ExcNodeList=(null) NodeList=n[1-2] BatchHost=n1 NumNodes=2 \
            Command=/w/JobState=RUNNING JobState=RUNNING WorkDir=/w Power= ";
        let v = view(line).unwrap();
        assert_eq!((v.state.as_str(), v.restarts, v.batch, v.requeue), ("NODE_FAIL", 2, true, true));
        assert_eq!((v.nodes.as_str(), v.start.as_str()), ("n[1-2]", "2026-11-21T13:57:19"));
        assert_eq!((v.reason.as_str(), v.preempted), ("NodeDown", false));
        assert!(
            view(&line.replace("PreemptTime=None", "PreemptTime=2026-11-21T13:57:30")).unwrap().preempted
        );
        assert!(view("slurm_load_jobs error: Invalid job id specified").is_none());
    }

    #[test]
    fn jobs_and_steps() {
        let fake = |name: &str, args: &[&str]| -> Result<String, String> {
            Ok(match (name, args[0]) {
                ("squeue", "-s") => "5.0\n5.batch\n5.extern\n5.12\n".into(),
                ("squeue", _) => "101|100|3|1001|RUNNING\n102|102|N/A|1001|COMPLETED\n".into(),
                ("sinfo", _) => "allocated\ndown*\n".into(),
                _ => return Err("slurm_persist_conn_open: no accounting".into()),
            })
        };
        let jobs = jobs(&fake, "100").unwrap();
        assert_eq!((jobs[0].key.as_str(), jobs[0].uid, jobs[0].is_over()), ("100_3", 1001, false));
        assert_eq!((jobs[1].key.as_str(), jobs[1].is_over()), ("102", true));
        assert_eq!(steps(&fake, "5").unwrap(), ["0", "12"]);
        assert!(is_node_gone(&fake, "n[1-2]") && !is_node_gone(&fake, ""));
        assert!(!was_cancelled(&fake, "5", "0"));
        let none = |_: &str, _: &[&str]| Err("Invalid job id specified".to_owned());
        assert!(super::jobs(&none, "7").is_err() && look(&none, "7").is_none());
    }

    #[test]
    fn times_of_jobs_and_steps() {
        let s = Duration::from_secs;
        assert_eq!(
            (duration("9:59"), duration("1:00:00\n"), duration("2-00:00:01")),
            (Some(s(599)), Some(s(3600)), Some(s(172_801)))
        );
        for no in ["UNLIMITED", "INVALID", "", "NOT_SET", "1"] {
            assert_eq!(duration(no), None, "{no}");
        }
        let fake = |_: &str, args: &[&str]| -> Result<String, String> {
            Ok(if args.contains(&"--steps=5.1") { "10:00|9:15\n" } else { "UNLIMITED|0:03\n" }.into())
        };
        assert_eq!((step_left(&fake, "5", "1"), step_left(&fake, "5", "0")), (Some(s(45)), None));
    }

    #[test]
    fn a_node_that_is_gone() {
        assert!(gone("down") && gone("DOWN*") && gone("mixed*") && gone("fail"));
        assert!(!gone("idle") && !gone("allocated") && !gone("mixed") && !gone("drained"));
    }

    #[test]
    fn slurms_own_command_stands_behind_ours() {
        let files: Vec<PathBuf> =
            ["/a/scontrol", "/us/scontrol", "/usr/bin/scontrol"].map(PathBuf::from).to_vec();
        let is = |p: &'static str| move |q: &Path| q == Path::new(p);
        let all = |_: &Path| true;
        assert_eq!(behind(&files, &is("/us/scontrol"), &all), Some("/usr/bin/scontrol".into()));
        assert_eq!(behind(&files, &is("/no"), &all), Some("/a/scontrol".into()));
        assert_eq!(behind(&files, &is("/usr/bin/scontrol"), &all), None);
    }

    #[test]
    fn slurm_is_found_where_path_does_not_lead() {
        let dir = std::env::temp_dir().join(format!("stillpoint-cli-places-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        for name in ["ours", "slurms"] {
            fs::create_dir_all(dir.join(name)).unwrap();
        }
        fs::write(dir.join("ours/stillpoint"), "").unwrap();
        std::os::unix::fs::symlink("stillpoint", dir.join("ours/scontrol")).unwrap();
        fs::write(dir.join("slurms/scontrol"), "").unwrap();
        let files = ["none", "ours", "slurms"].map(|d| dir.join(d).join("scontrol"));
        let found = elsewhere(&files, &|p: &Path| p.is_file());
        assert_eq!(found, Some(dir.join("slurms/scontrol")));
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn whereabouts_of_a_task() {
        let env = [("SLURM_JOB_ID", "101"), ("SLURM_STEP_ID", "0"), ("SLURM_ARRAY_JOB_ID", "100")];
        let var = |n: &str| env.iter().find(|(k, _)| *k == n).map(|(_, v)| OsString::from(v));
        let w = Whereabouts::from(var, Path::new("/r"), 2).unwrap();
        assert_eq!((w.job.as_str(), w.incarnation, w.restart_count), ("101", 2, 0));
        assert!(Whereabouts::from(|_| None, Path::new("/r"), 0).is_none());
        let of_mpirun = |step: Option<&'static str>| {
            let var = |n: &str| if n == "SLURM_STEP_ID" { step.map(OsString::from) } else { var(n) };
            Whereabouts::of_mpirun(var, Path::new("/r"), 2, "t").unwrap()
        };
        assert_eq!(of_mpirun(None).step, "batch", "beside mpirun, on the node of the script");
        assert_eq!(
            (of_mpirun(Some("1")).step.as_str(), of_mpirun(Some("1")).mpirun),
            ("1", Some("t".into()))
        );
    }
}
