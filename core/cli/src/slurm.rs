//! Slurm: what `srun --ckpt-interval=… ./solver` runs, from the login node to the task.
//!
//! ```text
//!  srun ──plugin──▶ stillpoint slurm-step ──child──▶ srun --ckpt-run=RUN@INC … ──▶ slurmstepd, on each node
//!                    step.rs  judge.rs                                              │ plugin
//!                    identity.rs: which run                                         ▼
//!  scontrol checkpoint … ─▶ scontrol.rs                               stillpoint-task ─▶ stillpoint-rank
//!                                                                      task.rs
//! ```
//!
//! - [`step`]: the supervisor in srun's place, [`srun`], its child; [`judge`]: how a start ended, and what is to be done.
//! - [`choose`]: which run a step is.
//! - [`identity`]: the index of runs by job, where a requeued job finds its own.
//! - [`start`]: the file by which the supervisor tells the tasks what to do.
//! - [`task`]: in front of every task. [`mpirun`], [`keeper`]: the same for ranks that mpirun starts inside a job.
//! - [`job`]: what Slurm says of a job. [`args`]: the little that must be known of srun's command line.
//! - [`occasion`]: checkpoints before the time limit, and when the job is preempted. [`after`]: the requeue that follows.
//! - [`scontrol`]: `scontrol checkpoint`, and [`request`], its arguments, [`images`], its ImageDir, [`again`], its restart;
//!   [`owner`], whose the job is; [`scancel`].
//!
//! What a reader would get wrong: none of these talks to Slurm but by its own commands (srun, scontrol, squeue, scancel), found
//! in PATH behind ourselves, so that one build serves every release. Runs *next door*.

pub(crate) mod after;
pub(crate) mod again;
pub(crate) mod args;
pub(crate) mod choose;
pub(crate) mod identity;
pub(crate) mod images;
pub(crate) mod job;
pub(crate) mod judge;
pub(crate) mod keeper;
pub(crate) mod mpirun;
pub(crate) mod occasion;
pub(crate) mod owner;
pub(crate) mod request;
pub(crate) mod scancel;
pub(crate) mod scontrol;
pub(crate) mod srun;
pub(crate) mod start;
pub(crate) mod step;
pub(crate) mod task;
