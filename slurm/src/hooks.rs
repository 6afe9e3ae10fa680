//! What each hook of SPANK does. *In srun, sbatch and salloc, and in slurmstepd.*
//!
//! ```text
//! srun --ckpt-interval=600 ./a     init, options, post_opt ──▶ becomes `stillpoint slurm-step … -- …`, which starts
//!  └ srun --ckpt-run=RUN@INC …     init, options, post_opt (goes on), local_user_init (the file of --multi-prog)
//!     └ slurmstepd                 init, options, task_init: `stillpoint-task` in the program's place
//!        └ stillpoint-task ./a     task_exit, after the last one: `stillpoint slurm-hold`, with `burst=` only
//! ```
//!
//! What a reader would get wrong: what a hook returns is ignored, as the plugin is `optional`; see the crate's head.

use std::ffi::{OsStr, OsString, c_int};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::command::{self, Line, Verdict};
use crate::options::{self, ENTRIES, Given, Which};
use crate::spank::{self, Context, Handle};
use crate::{mpirun, multi, process};

/// The options given to this process. Written by option callbacks, on the one thread that reads options.
static GIVEN: Mutex<Given> = Mutex::new(Given::new());

/// Steps of Slurm's own making (batch, extern, interactive) have numbers from here on: SLURM_MAX_NORMAL_STEP_ID.
const NOT_A_USERS_STEP: u32 = 0xffff_fff0;
/// Of these, the ones in which a user's own commands run: SLURM_INTERACTIVE_STEP and SLURM_BATCH_SCRIPT.
const SHELLS: [u32; 2] = [0xffff_fffa, 0xffff_fffb];

fn options() -> MutexGuard<'static, Given> {
    GIVEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says why and ends the program that we are in.
fn refuse(why: &str) -> ! {
    spank::error(why);
    process::leave()
}

/// Where stillpoint is installed: `prefix=` in plugstack.conf, else three levels above this plugin
/// (`<prefix>/lib/stillpoint/stillpoint-spank.so`).
fn prefix(sp: &Handle) -> Option<PathBuf> {
    let given = sp.argument("prefix").map(PathBuf::from);
    given.or_else(|| Some(process::own_file()?.ancestors().nth(3)?.to_owned()))
}

/// `slurm_spank_init`: makes the options known.
pub(crate) fn init(sp: &Handle) -> c_int {
    let context = Handle::context();
    if context == Context::Other {
        return 0;
    }
    if cfg!(panic = "abort") {
        if context != Context::Remote {
            spank::error(
                "this plugin was built with panic=abort and does nothing; build it with `cargo xtask install`",
            );
        }
        return 0;
    }
    if ENTRIES.iter().all(|e| sp.register(e)) { 0 } else { -1 }
}

/// An option was given. Not zero: Slurm refuses the value and ends (slurmstepd goes on without it).
pub(crate) fn option(which: Which, value: OsString) -> c_int {
    match options().take(which, value) {
        Ok(()) => 0,
        Err(refusal) => {
            spank::error(&refusal.to_string());
            -1
        }
    }
}

/// `slurm_spank_init_post_opt`: all options have been read.
pub(crate) fn post_opt(sp: &Handle) -> c_int {
    let given = options().clone();
    match Handle::context() {
        Context::Local if given.get(Which::Run).is_none() => in_srun(sp, &given),
        Context::Allocator => in_allocator(sp, &given),
        _ => 0,
    }
}

fn in_srun(sp: &Handle, given: &Given) -> c_int {
    let variable = |name: &str| std::env::var_os(name);
    if !given.asked(variable) {
        return 0;
    }
    let words = process::command_line();
    let line = Line { command: process::command_at(words.len()), words };
    match line.verdict(variable("SLURM_HET_SIZE").as_deref()) {
        Verdict::Alone => return 0,
        Verdict::Daemons => {
            let reached = mpirun::is_reached(line.program()) && variable(mpirun::OPTIONS).is_some();
            if !reached && variable("STILLPOINT_RUN").is_none() {
                spank::info(
                    "the ranks that this MPI launcher starts are not checkpointed: that needs Open MPI 4, and --ckpt options of \
                     sbatch or salloc; start them with srun, or the launcher with `stillpoint run`",
                );
            }
            return 0;
        }
        Verdict::Refused(why) => refuse(why),
        Verdict::Step => {}
    }
    let all = given.clone().with(variable).unwrap_or_else(|refusal| refuse(&refusal.to_string()));
    let Some(stillpoint) = prefix(sp).map(|p| p.join("bin/stillpoint")) else {
        refuse(
            "cannot tell where stillpoint is installed; say prefix=DIR behind the plugin in plugstack.conf",
        )
    };
    let srun =
        process::program().unwrap_or_else(|e| refuse(&format!("cannot tell which file srun runs: {e}")));
    let step = line.step(&stillpoint, &srun, arguments(sp, &all));
    let why = process::become_program(&step, command::is_ours);
    refuse(&format!(
        "cannot start {}: {why}; install stillpoint there (cargo xtask install --prefix DIR), or say prefix=DIR behind the \
         plugin in plugstack.conf",
        stillpoint.display()
    ))
}

/// sbatch and salloc only check; the sruns inside act. What mpirun needs besides, salloc's shell gets here, and a batch script
/// on its node.
fn in_allocator(sp: &Handle, given: &Given) -> c_int {
    let variable = |name: &str| std::env::var_os(name);
    if let Some(run) = given.get(Which::Run) {
        refuse(&options::Refusal::Internal(format!("--ckpt-run={}", run.to_string_lossy())).to_string());
    }
    if !given.asked(variable) {
        return 0;
    }
    let all = given.clone().with(variable).unwrap_or_else(|refusal| refuse(&refusal.to_string()));
    if process::program().is_ok_and(|p| p.file_name().is_some_and(|n| n == "salloc")) {
        for (name, value) in for_mpirun(sp, &all, variable) {
            process::set_variable(name, &value);
        }
    }
    0
}

/// What is to be set where mpirun may be called.
fn for_mpirun(
    sp: &Handle,
    all: &Given,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Vec<(&'static str, OsString)> {
    // Somebody has an agent already; ours would be in the way, and the ranks of one mpirun are all ours or none.
    if variable(mpirun::AGENT).is_some_and(|v| !mpirun::is_ours(OsStr::new(mpirun::AGENT), &v)) {
        return Vec::new();
    }
    let Some(prefix) = prefix(sp) else { return Vec::new() };
    match mpirun::variables(&prefix, arguments(sp, all), local(sp)) {
        Ok(variables) => variables.into(),
        Err(why) => {
            spank::info(&why);
            Vec::new()
        }
    }
}

/// What was given, as arguments, and what the site says about its nodes.
fn arguments(sp: &Handle, all: &Given) -> Vec<OsString> {
    let mut words = all.arguments();
    if let Some(hours) = sp.argument("mtbf") {
        words.extend([OsString::from("--mtbf"), hours.to_owned()]);
    }
    words
}

/// Where the nodes have room for what a run keeps there while it lives.
fn local(sp: &Handle) -> &OsStr {
    sp.argument("local").unwrap_or(OsStr::new("/tmp"))
}

/// The task program as text; a path that is not UTF-8 cannot stand in a file of --multi-prog.
fn task_program(sp: &Handle) -> Option<PathBuf> {
    prefix(sp).map(|p| p.join("libexec/stillpoint/stillpoint-task"))
}

/// `slurm_spank_local_user_init`, in srun just before the step is launched: the file of --multi-prog.
pub(crate) fn local_user_init(sp: &Handle) -> c_int {
    if options().get(Which::Run).is_none() || Handle::can_prepend() {
        return 0;
    }
    let words = process::command_line();
    let argv = sp.argv();
    let given = process::command_at(words.len()).map_or(0, |at| words.len() - at);
    // With --multi-prog, and only then, Slurm has put a word in: what stands in the file.
    if argv.len() != given + 1 {
        return 0;
    }
    let task = task_program(sp);
    let (Some(text), Some(task)) = (argv[1].to_str(), task.as_deref().and_then(Path::to_str)) else {
        refuse(&format!("{}: not UTF-8, and so not for a step with checkpoints", argv[0].to_string_lossy()))
    };
    if !sp.set_argv(1, OsStr::new(&multi::wrap(text, task))) {
        refuse("this release of Slurm does not let a plugin change what --multi-prog starts");
    }
    0
}

/// `slurm_spank_task_init`, as the user, in the child that is about to become the task.
pub(crate) fn task_init(sp: &Handle) -> c_int {
    let given = options();
    if Handle::context() == Context::Remote && sp.step().is_some_and(|s| SHELLS.contains(&s)) {
        in_shell(sp, &given);
        return 0;
    }
    let Some((run, incarnation)) = given.get(Which::Run).and_then(options::run) else { return 0 };
    if Handle::context() != Context::Remote || sp.step().is_none_or(|s| s >= NOT_A_USERS_STEP) {
        return 0;
    }
    if let Err(why) = wrap(sp, run, incarnation) {
        // To go on would be to run without the checkpoints that were asked for.
        spank::error(&why);
        process::leave_task();
    }
    0
}

/// Tasks of this step that have ended on this node.
static ENDED: AtomicU32 = AtomicU32::new(0);

/// `slurm_spank_task_exit`, in slurmstepd, as root, after a task has been waited for. When none is left, Slurm kills what else there
/// is of the step on this node (`job_manager` in its mgr.c): the agent, too, where a control group holds it. That waits
/// until what the agent copies is copied.
pub(crate) fn task_exit(sp: &Handle) -> c_int {
    let given = options().clone();
    let Some((run, _)) = given.get(Which::Run).and_then(options::run) else { return 0 };
    let keeps = sp.argument("burst").is_some() || sp.get("STILLPOINT_BURST").is_some_and(|b| !b.is_empty());
    let user_step = sp.step().is_some_and(|s| s < NOT_A_USERS_STEP);
    if Handle::context() != Context::Remote || !keeps || !user_step {
        return 0;
    }
    if ENDED.fetch_add(1, SeqCst) + 1 != sp.local_tasks().unwrap_or(0) {
        return 0;
    }
    let (Some((uid, gid)), Some(prefix)) = (sp.owner(), prefix(sp)) else { return 0 };
    let words = [prefix.join("bin/stillpoint").into(), "slurm-hold".into(), run.to_owned()];
    if let Err(why) = process::run_as(uid, gid, &sp.groups(), &words) {
        spank::error(&format!("cannot wait for what is being copied from this node: {why}"));
    }
    0
}

/// The batch script, or the shell of salloc on its node: not wrapped, but what it calls may be mpirun. Under `--export=NONE` the
/// options are not seen here, though they are by srun; and that is right, as no variable reaches orted then.
fn in_shell(sp: &Handle, given: &Given) {
    let variable = |name: &str| sp.get(name);
    if !given.asked(variable) || sp.get("SLURM_HET_SIZE").is_some_and(|n| n != "1") {
        // Of a job that was submitted within one that asks for us.
        for name in [mpirun::AGENT, mpirun::OPTIONS] {
            if sp.get(name).is_some_and(|v| mpirun::is_ours(OsStr::new(name), &v)) {
                sp.unset(name);
            }
        }
        return;
    }
    // What is wrong with a value was said by sbatch, and will be by each srun.
    let Ok(all) = given.clone().with(variable) else { return };
    for (name, value) in for_mpirun(sp, &all, variable) {
        if !sp.set(name, &value) {
            spank::info(&format!(
                "the ranks of mpirun are not checkpointed: Slurm does not let a plugin set {name}"
            ));
            return;
        }
    }
}

fn wrap(sp: &Handle, run: &OsStr, incarnation: u64) -> Result<(), String> {
    let task = task_program(sp)
        .ok_or("cannot tell where stillpoint is installed; say prefix=DIR in plugstack.conf")?;
    process::may_execute(&task).map_err(|e| {
        format!("cannot execute {} on this node: {e}; install stillpoint there", task.display())
    })?;
    let (job, step) = (sp.job().unwrap_or(0), sp.step().unwrap_or(0));
    let argv = sp.argv();
    if Handle::can_prepend() {
        sp.unset("STILLPOINT_TASK_PROGRAM");
        if !sp.prepend(&task) {
            return Err("Slurm does not let a plugin put stillpoint-task before the program".to_owned());
        }
    } else if is_multi(&argv, &task) {
        sp.unset("STILLPOINT_TASK_PROGRAM");
    } else {
        let named = argv.first().ok_or("Slurm does not tell a plugin what the task runs")?;
        let node = sp.get("SLURMD_NODENAME").unwrap_or_default();
        let program = command::broadcast(named, job, step, &node).unwrap_or_else(|| named.clone());
        if !sp.set("STILLPOINT_TASK_PROGRAM", &program) || !sp.set_argv(0, task.as_os_str()) {
            return Err("Slurm does not let a plugin put stillpoint-task in the program's place".to_owned());
        }
    }
    let local = local(sp);
    let (incarnation, job_step) = (incarnation.to_string(), format!("{job}.{step}"));
    let variables: [(&str, &OsStr); 4] = [
        ("STILLPOINT_RUN", run),
        ("STILLPOINT_INCARNATION", OsStr::new(&incarnation)),
        ("STILLPOINT_LOCAL_BASE", local),
        ("STILLPOINT_STEP", OsStr::new(&job_step)),
    ];
    let burst = ["burst", "burst-rate"].iter().zip(["STILLPOINT_BURST", "STILLPOINT_BURST_RATE"]);
    let burst = burst.filter_map(|(word, name)| Some((name, sp.argument(word)?)));
    for (name, value) in variables.into_iter().chain(burst) {
        if !sp.set(name, value) {
            return Err(format!("Slurm does not let a plugin set {name} for the task"));
        }
    }
    Ok(())
}

/// Whether the words of the step are those of --multi-prog, as `local_user_init` made them: the file's name, and a text
/// in which each program already has `stillpoint-task` before it.
fn is_multi(argv: &[OsString], task: &Path) -> bool {
    let task = task.to_str().map(multi::word);
    let text = argv.get(1).and_then(|t| t.to_str());
    matches!((text, task), (Some(text), Some(task)) if text.contains(&format!(" {task} ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_of_many_programs_is_told_by_its_text() {
        let task = Path::new("/p q/stillpoint-task");
        let text = multi::wrap("0 ./a\n1 ./b\n", "/p q/stillpoint-task");
        assert!(is_multi(&["file".into(), text.into()], task));
        assert!(!is_multi(&["./a".into(), "-x".into()], task));
        assert!(!is_multi(&["./a".into()], task));
    }
}
