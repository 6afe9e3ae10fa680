//! `stillpoint-spank.so`, the SPANK plugin of Stillpoint. It runs *in Slurm's processes*: in srun, sbatch and salloc it
//! adds the `--ckpt-*` options and checks them, and srun becomes `stillpoint slurm-step`; in slurmstepd, in the child
//! that is about to become a task, it puts `stillpoint-task` in the program's place.
//!
//! - [`options`] what the user may say, and what is refused
//! - [`command`] what is done about a command line of srun
//! - [`multi`] the file of `srun --multi-prog`; [`mpirun`] what reaches the ranks that mpirun starts
//! - [`hooks`] what each hook of SPANK does
//! - [`spank`] the C interface of Slurm; [`process`] the process that we are guests in
//!
//! What a reader would get wrong: a step without an option of ours must run as if we were not there, so a hook first asks
//! for that and returns. And the plugin is `optional` in plugstack.conf (a failing `required` one drains nodes), for which
//! Slurm ignores what a hook returns: what has to end srun or a task ends it itself.
//!
//! It is built with the profile `plugin` (`cargo xtask install`): slurmstepd must outlive a panic of ours, which is caught
//! at each entry. Built with panic=abort it says so and does nothing.

mod command;
mod hooks;
mod mpirun;
mod multi;
mod options;
mod process;
mod spank;
