//! The command line `stillpoint`: the argument tree, and the only place that prints an error with its causes.
//!
//! One file a verb: [`run`] and [`restart`], [`exec`], [`checkpoint`], [`list`] (ls, status), [`inspect`] (inspect,
//! verify), [`doctor`], [`slurm`]. What a reader would get wrong: standard output belongs to the application in `run`,
//! `restart` and `exec`; what Stillpoint has to say goes to standard error there. And under another name (argv[0]) this program
//! is another one: `stillpoint-task`, `stillpoint-mpirun-task`, `scontrol`, `scancel`. Runs *next door*.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing is what a command line is for")]

mod byhand;
mod catalog;
mod checkpoint;
mod doctor;
mod drain;
mod error;
mod exec;
mod home;
mod inspect;
mod launch;
mod list;
mod restart;
mod run;
mod signals;
mod slurm;
mod talk;
mod verdict;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use error::Error;

/// Checkpoints unmodified MPI programs and restarts them after a failure.
#[derive(Debug, Parser)]
#[command(name = "stillpoint", version)]
struct Cli {
    /// Print JSON instead of text.
    #[arg(long, global = true)]
    json: bool,
    /// Directory that holds the jobs [default: $XDG_STATE_HOME/stillpoint].
    #[arg(long, global = true)]
    dir: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a program, checkpoint it, and restart it when a rank is lost.
    Run(RunArgs),
    /// Run one rank: what stands between the launcher and the program.
    Exec {
        /// Directory of this node where images are written before they are copied to the job's.
        #[arg(long, value_name = "DIR")]
        burst: Option<PathBuf>,
        #[command(flatten)]
        job: byhand::JobArgs,
        /// The program and its arguments.
        #[arg(last = true, required_unless_present = "restart")]
        command: Vec<OsString>,
    },
    /// Take a checkpoint of a running job; returns when it is durable.
    Checkpoint {
        /// Job, as `ls` shows it.
        job: String,
        /// End the job with the checkpoint.
        #[arg(long)]
        stop: bool,
    },
    /// Start a job again from its last checkpoint, or from checkpoint ID.
    Restart {
        /// JOB or JOB@ID.
        job: String,
        /// Number of ranks; must be that of the checkpoint.
        #[arg(short = 'n', long)]
        ranks: Option<u32>,
        /// Restarts after a further loss.
        #[arg(long)]
        restarts: Option<u32>,
        /// Time between checkpoints, or auto.
        #[arg(long, value_name = "DUR|auto")]
        interval: Option<String>,
        /// What starts the ranks.
        #[arg(long, value_name = "CMD")]
        launcher: Option<String>,
    },
    /// List jobs and their checkpoints.
    Ls {
        /// Only this job.
        job: Option<String>,
    },
    /// Show what a running job is doing.
    Status {
        /// Job, as `ls` shows it; the newest if absent.
        job: Option<String>,
    },
    /// Show what an image holds.
    Inspect {
        /// An image file, JOB or JOB@ID.
        what: String,
        /// Rank, with a job.
        #[arg(long, default_value_t = 0)]
        rank: u32,
        /// Show the runs of pages too.
        #[arg(long)]
        runs: bool,
    },
    /// Check every byte of a checkpoint.
    Verify {
        /// An image file, a directory of images, JOB or JOB@ID.
        what: String,
    },
    /// Say whether this machine has what Stillpoint needs.
    Doctor,
    /// Slurm's scontrol with `scontrol checkpoint`.
    #[command(disable_help_flag = true)]
    Scontrol {
        /// As for scontrol.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// What an srun with --ckpt-… options runs.
    #[command(hide = true)]
    SlurmStep(slurm::step::StepArgs),
    /// What the plugin waits for before Slurm ends the rest of a step on a node.
    #[command(hide = true)]
    SlurmHold {
        /// Directory of the run.
        run: PathBuf,
    },
    /// Keeps the run of one mpirun inside a job of Slurm's.
    #[command(hide = true)]
    SlurmMpirun(slurm::keeper::KeepArgs),
    /// Becomes srun, bound to the life of its parent.
    #[command(hide = true)]
    SlurmChild {
        #[arg(long)]
        parent: i32,
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
}

/// Arguments of `run`.
#[derive(Debug, Args)]
struct RunArgs {
    /// Number of ranks, started by the launcher; absent: one process without a launcher.
    #[arg(short = 'n', long)]
    ranks: Option<u32>,
    /// What starts the ranks.
    #[arg(long, value_name = "CMD")]
    launcher: Option<String>,
    /// Time between checkpoints: 30, 30s, 500ms, 10m, 1h; auto: as pays best, from what one costs.
    #[arg(long, value_name = "DUR|auto")]
    interval: Option<String>,
    /// Hours between two losses of a node, for --interval auto [default: 43800].
    #[arg(long, value_name = "HOURS")]
    mtbf: Option<f64>,
    /// How often to restart after a lost rank.
    #[arg(long, default_value_t = 3)]
    restarts: u32,
    /// Directory of each node where images are written before they are copied to the job's, in the background.
    #[arg(long, value_name = "DIR")]
    burst: Option<PathBuf>,
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

fn go(cli: Cli) -> Result<u8, Error> {
    let json = cli.json;
    match &cli.verb {
        Verb::Exec { burst, job, command } if !job.by_hand() => {
            return Err(exec::exec(burst.as_deref(), command));
        }
        Verb::SlurmChild { parent, command } => return Err(slurm::srun::child(*parent, command)),
        Verb::SlurmHold { run } => {
            drain::hold(run);
            return Ok(0);
        }
        _ => {}
    }
    let home = home::Home::find(cli.dir)?;
    match cli.verb {
        Verb::Run(args) => run::run(&home, args, json),
        Verb::SlurmHold { .. } => Ok(0),
        Verb::Exec { burst, job, command } => {
            Err(byhand::exec(&home, &job, burst.as_deref(), &command, json))
        }
        Verb::SlurmChild { command, .. } => Err(exec::exec(None, &command)),
        Verb::Scontrol { args } => Ok(slurm::scontrol::scontrol("scontrol".as_ref(), &args)),
        Verb::SlurmMpirun(args) => slurm::keeper::keep(&home, &args, json),
        Verb::SlurmStep(args) => slurm::step::slurm_step(&home, args, json),
        Verb::Checkpoint { job, stop } => checkpoint::checkpoint(&home, &job, stop, json),
        Verb::Restart { job, ranks, restarts, interval, launcher } => {
            let change = restart::Change { ranks, restarts, interval, launcher };
            restart::restart(&home, &job, change, json)
        }
        Verb::Ls { job } => list::ls(&home, job.as_deref(), json),
        Verb::Status { job } => list::status(&home, job.as_deref(), json),
        Verb::Inspect { what, rank, runs } => inspect::inspect(&home, &what, rank, runs, json),
        Verb::Verify { what } => inspect::verify(&home, &what, json),
        Verb::Doctor => Ok(doctor::doctor(&home, json)),
    }
}

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    let rest = words.get(1..).unwrap_or_default();
    let name = words.first().map(Path::new).and_then(Path::file_name).and_then(|n| n.to_str());
    match (name, rest.first().and_then(|w| w.to_str())) {
        (Some(slurm::task::NAME), _) => return slurm::task::main(rest),
        (Some(slurm::mpirun::NAME), _) => return slurm::mpirun::main(rest),
        (Some("scontrol"), _) => return slurm::scontrol::scontrol(&words[0], rest).into(),
        (Some("scancel"), _) => return slurm::scancel::scancel(&words[0], rest).into(),
        // Every word behind it is scontrol's, also those that we would understand.
        (_, Some("scontrol")) => return slurm::scontrol::scontrol("scontrol".as_ref(), &rest[1..]).into(),
        _ => {}
    }
    let cli = Cli::parse();
    let json = cli.json;
    match go(cli) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            let text = error::chain(&e);
            if json {
                eprintln!("{}", serde_json::json!({ "error": text }));
            } else {
                eprintln!("stillpoint: {text}");
            }
            ExitCode::from(e.code())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_argument_tree_is_sound() {
        Cli::command().debug_assert();
        let c = Cli::try_parse_from(["stillpoint", "run", "-n", "4", "--interval", "2s", "--", "./a", "-x"])
            .unwrap();
        let Verb::Run(r) = c.verb else { panic!() };
        assert_eq!((r.ranks, r.command.len(), r.restarts), (Some(4), 2, 3));
        assert!(Cli::try_parse_from(["stillpoint", "exec"]).is_err());
    }
}
