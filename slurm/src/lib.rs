//! Will be the SPANK plugin of Stillpoint. It is empty: nothing of Slurm works yet, and DESIGN.md beside it says what is
//! meant to. It will run *next door*, in Slurm's own processes.
