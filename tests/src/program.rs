//! The programs in `programs/`: how each is built and how it is started. Runs *next door*.
//!
//! What a reader would get wrong: tests run at the same time, also in processes of their own, so a program is compiled
//! under a name of its own and renamed into place; whoever comes second finds it, or replaces it by the same.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

/// How a program is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// As it is, without MPI.
    Alone,
    /// By a launcher, with this many ranks.
    Ranks(u32),
}

/// One program of `programs/`.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// The name of its file with the ending: `count.c`.
    pub file: &'static str,
    /// How it is started.
    pub start: Start,
    /// Rounds for a few seconds of life.
    pub rounds: u32,
}

/// All programs, by name.
pub const PROGRAMS: &[Program] = &[
    Program { file: "count.c", start: Start::Alone, rounds: 3000 },
    Program { file: "files.c", start: Start::Alone, rounds: 3000 },
    Program { file: "signals.c", start: Start::Alone, rounds: 3000 },
    Program { file: "threads.c", start: Start::Alone, rounds: 3000 },
    Program { file: "fpu.c", start: Start::Alone, rounds: 5000 },
    Program { file: "mmap.c", start: Start::Alone, rounds: 3000 },
    Program { file: "sparse.c", start: Start::Alone, rounds: 3000 },
    Program { file: "exec.c", start: Start::Alone, rounds: 3000 },
    Program { file: "children.c", start: Start::Alone, rounds: 3000 },
    Program { file: "descriptors.c", start: Start::Alone, rounds: 3000 },
    Program { file: "pending.c", start: Start::Alone, rounds: 2500 },
    Program { file: "ids.c", start: Start::Alone, rounds: 3000 },
    Program { file: "transfers.c", start: Start::Alone, rounds: 3000 },
    Program { file: "advice.c", start: Start::Alone, rounds: 3000 },
    // A job with little memory to spare, in tests/slurm.rs.
    Program { file: "resident.c", start: Start::Alone, rounds: 3000 },
    // In tests/outcomes.rs.
    Program { file: "lines.c", start: Start::Alone, rounds: 0 },
    Program { file: "abort.c", start: Start::Ranks(3), rounds: 0 },
    // Two of them, in tests/byhand.rs.
    Program { file: "stream.c", start: Start::Alone, rounds: 3000 },
    // Two of each, in tests/rdma.rs.
    Program { file: "verbs_atomics.c", start: Start::Alone, rounds: 3000 },
    Program { file: "verbs_writes.c", start: Start::Alone, rounds: 3000 },
    Program { file: "verbs_messages.c", start: Start::Alone, rounds: 3000 },
    Program { file: "verbs_events.c", start: Start::Alone, rounds: 1000 },
    Program { file: "verbs_again.c", start: Start::Alone, rounds: 2000 },
    Program { file: "verbs_shared.c", start: Start::Alone, rounds: 3000 },
    Program { file: "verbs_listens.c", start: Start::Alone, rounds: 1500 },
    Program { file: "verbs_manager.c", start: Start::Alone, rounds: 3000 },
    Program { file: "verbs_mpi.c", start: Start::Ranks(2), rounds: 3000 },
    // Three of each, in tests/verbs.rs.
    Program { file: "verbs_names.c", start: Start::Alone, rounds: 1000 },
    Program { file: "verbs_idle.c", start: Start::Alone, rounds: 1000 },
    Program { file: "verbs_windows.c", start: Start::Alone, rounds: 2000 },
    Program { file: "verbs_groups.c", start: Start::Alone, rounds: 2000 },
    // The model's devices only, in tests/verbs.rs.
    Program { file: "verbs_refused.c", start: Start::Alone, rounds: 1 },
    Program { file: "verbs_xrc.c", start: Start::Alone, rounds: 2000 },
    // Two or three of each, in tests/verbs.rs.
    Program { file: "verbs_lists.c", start: Start::Alone, rounds: 3000 },
    Program { file: "verbs_counter.c", start: Start::Alone, rounds: 3000 },
    Program { file: "verbs_churn.c", start: Start::Alone, rounds: 300 },
    Program { file: "verbs_young.c", start: Start::Alone, rounds: 100 },
    Program { file: "verbs_quiet.c", start: Start::Alone, rounds: 3000 },
    Program { file: "verbs_async.c", start: Start::Alone, rounds: 300 },
    Program { file: "verbs_deaf.c", start: Start::Alone, rounds: 1 },
    Program { file: "verbs_gone.c", start: Start::Alone, rounds: 1000 },
    Program { file: "verbs_broken.c", start: Start::Alone, rounds: 1000 },
    Program { file: "verbs_twins.c", start: Start::Alone, rounds: 1000 },
    Program { file: "verbs_once.c", start: Start::Alone, rounds: 1000 },
    // The model has no extended interfaces, the front makes them.
    Program { file: "verbs_pieces.c", start: Start::Alone, rounds: 1000 },
    Program { file: "ring.c", start: Start::Ranks(4), rounds: 1500 },
    Program { file: "many_kinds.c", start: Start::Ranks(3), rounds: 300 },
    Program { file: "nbx.c", start: Start::Ranks(4), rounds: 1500 },
    Program { file: "jacobi.c", start: Start::Ranks(4), rounds: 1500 },
    Program { file: "openmp_mpi.c", start: Start::Ranks(2), rounds: 1000 },
    Program { file: "comm.c", start: Start::Ranks(4), rounds: 1000 },
    Program { file: "types.c", start: Start::Ranks(3), rounds: 1500 },
    Program { file: "vectors.c", start: Start::Ranks(3), rounds: 1000 },
    Program { file: "objects.c", start: Start::Ranks(3), rounds: 1000 },
    Program { file: "late.c", start: Start::Ranks(3), rounds: 500 },
    Program { file: "reduction.c", start: Start::Ranks(3), rounds: 400 },
    Program { file: "queries.c", start: Start::Ranks(2), rounds: 1000 },
    Program { file: "fixed.c", start: Start::Ranks(2), rounds: 1000 },
    Program { file: "underway.c", start: Start::Ranks(3), rounds: 400 },
    Program { file: "multiple.c", start: Start::Ranks(3), rounds: 800 },
    Program { file: "beside.c", start: Start::Ranks(3), rounds: 1000 },
    Program { file: "sockets.c", start: Start::Ranks(3), rounds: 1500 },
    Program { file: "f77.f", start: Start::Ranks(3), rounds: 1500 },
    Program { file: "f90.f90", start: Start::Ranks(3), rounds: 1500 },
    Program { file: "f08.f90", start: Start::Ranks(3), rounds: 1500 },
    Program { file: "cxx.cc", start: Start::Ranks(3), rounds: 1500 },
    // Debian's lmp, unmodified, on this input.
    Program { file: "lammps.in", start: Start::Ranks(4), rounds: 2000 },
    // The solver of bench/, in Rust on rsmpi.
    Program { file: "solver.rs", start: Start::Ranks(3), rounds: 400 },
    Program { file: "numpy_mpi.py", start: Start::Ranks(3), rounds: 800 },
    // What tests/refusals.rs holds against a checkpoint: they run until they are told to end.
    Program { file: "refuse_deleted.c", start: Start::Alone, rounds: 0 },
    Program { file: "refuse_pipe.c", start: Start::Alone, rounds: 0 },
    Program { file: "refuse_socket.c", start: Start::Alone, rounds: 0 },
    Program { file: "refuse_tcp_alone.c", start: Start::Alone, rounds: 0 },
    Program { file: "refuse_tcp_full.c", start: Start::Alone, rounds: 0 },
    Program { file: "refuse_tcp_pending.c", start: Start::Alone, rounds: 0 },
    Program { file: "refuse_tcp_much.c", start: Start::Alone, rounds: 0 },
    Program { file: "refuse_terminal.c", start: Start::Alone, rounds: 0 },
    Program { file: "refuse_eventfd.c", start: Start::Alone, rounds: 0 },
    Program { file: "refuse_child.c", start: Start::Alone, rounds: 0 },
    Program { file: "refuse_timer.c", start: Start::Alone, rounds: 0 },
    Program { file: "refuse_shared.c", start: Start::Alone, rounds: 0 },
    Program { file: "refuse_sysv.c", start: Start::Alone, rounds: 0 },
    Program { file: "refuse_twice.c", start: Start::Alone, rounds: 0 },
    Program { file: "refuse_forbid.c", start: Start::Alone, rounds: 0 },
    Program { file: "refuse_room.c", start: Start::Alone, rounds: 0 },
    Program { file: "refuse_file.c", start: Start::Alone, rounds: 0 },
    Program { file: "refuse_freed.c", start: Start::Ranks(2), rounds: 0 },
    Program { file: "refuse_tool.c", start: Start::Ranks(2), rounds: 0 },
    Program { file: "refuse_window.c", start: Start::Ranks(2), rounds: 0 },
    Program { file: "refuse_mpi_file.c", start: Start::Ranks(2), rounds: 0 },
    Program { file: "refuse_spawn.c", start: Start::Ranks(2), rounds: 0 },
];

impl Program {
    /// The program with this name, without the ending.
    #[must_use]
    pub fn named(name: &str) -> Self {
        let found = PROGRAMS.iter().find(|program| program.name() == name);
        *found.unwrap_or_else(|| panic!("no program {name:?} in tests/programs"))
    }

    /// Its name without the ending.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.file.rsplit_once('.').map_or(self.file, |(name, _)| name)
    }

    /// The command line of the program itself, compiled if need be; `Err` says what the machine lacks.
    pub fn command(&self, rounds: u32, seed: u64) -> Result<Vec<String>, String> {
        let source = crate::sources().join("programs").join(self.file);
        let mut words = match self.file.rsplit_once('.').map(|(_, ending)| ending) {
            Some("py") => vec![python()?, path_text(&source)],
            Some("in") => {
                let words = ["lmp", "-in", &path_text(&source), "-log", "none", "-var", "rounds"];
                let mut words: Vec<String> = words.map(str::to_owned).into();
                words.extend([
                    rounds.to_string(),
                    "-var".to_owned(),
                    "seed".to_owned(),
                    (seed + 1).to_string(),
                ]);
                return Ok(words);
            }
            Some("rs") => {
                let solver = crate::built().join("bench-solver");
                if !solver.is_file() {
                    return Err("bench-solver is not built; run `cargo xtask build`".to_owned());
                }
                vec![path_text(&solver)]
            }
            _ => vec![path_text(&self.compile(&source)?)],
        };
        words.extend([rounds.to_string(), seed.to_string()]);
        Ok(words)
    }

    fn compile(&self, source: &Path) -> Result<PathBuf, String> {
        let folder = crate::built().join("test-programs");
        let program = folder.join(self.name());
        let headers = ["check.h", "verbs.h"].map(|h| crate::sources().join("programs").join(h));
        if newest(&[source, &headers[0], &headers[1]])
            .is_some_and(|source| newest(&[&program]).is_some_and(|built| built > source))
        {
            return Ok(program);
        }
        static TURNS: AtomicU32 = AtomicU32::new(0);
        let turn = TURNS.fetch_add(1, Ordering::Relaxed);
        let scratch = folder.join(format!("{}.{}.{turn}", self.name(), std::process::id()));
        fs::create_dir_all(&scratch).map_err(|error| format!("create {}: {error}", scratch.display()))?;
        let fresh = scratch.join(self.name());
        let ending = source.extension().and_then(|ending| ending.to_str());
        let compiler = match (ending, self.start) {
            (Some("f" | "f90"), _) => "mpif90",
            (Some("cc"), _) => "mpicxx",
            (_, Start::Ranks(_)) => "mpicc",
            (_, Start::Alone) => "cc",
        };
        let mut command = Command::new(compiler);
        command
            .args(["-O2", "-g", "-pthread", "-fopenmp"])
            .arg(source)
            .arg("-o")
            .arg(&fresh)
            .current_dir(&scratch);
        if self.file == "fixed.c" {
            command.args(["-no-pie", "-fno-pie", "-mcmodel=medium"]);
        }
        if ending == Some("c") {
            command.args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-lm"]);
        }
        if self.file.starts_with("verbs_") {
            command.args(["-libverbs", "-lrdmacm"]);
        }
        let output = command.output().map_err(|error| format!("no {compiler}: {error}"))?;
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{compiler} {}: {text}", self.file);
        fs::rename(&fresh, &program).map_err(|error| format!("rename {}: {error}", fresh.display()))?;
        let _ = fs::remove_dir_all(&scratch);
        Ok(program)
    }
}

pub(crate) fn path_text(path: &Path) -> String {
    path.to_str().expect("a path of the tree is text").to_owned()
}

/// The time of the last change to the newest of some files; `None` when one is missing.
fn newest(files: &[&Path]) -> Option<SystemTime> {
    files
        .iter()
        .map(|file| file.metadata().and_then(|data| data.modified()).ok())
        .collect::<Option<Vec<_>>>()?
        .into_iter()
        .max()
}

/// The system's Python, if it has mpi4py and numpy: another one on `PATH` may have its own MPI or none.
fn python() -> Result<String, String> {
    let python = "/usr/bin/python3";
    let asked = Command::new(python)
        .args([
            "-c",
            "import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, ('mpi4py', 'numpy'))))",
        ])
        .output();
    match asked {
        Ok(output) if output.status.success() => Ok(python.to_owned()),
        _ => Err("no mpi4py and numpy in the system's python3".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_in_the_folder_is_listed() {
        for entry in fs::read_dir(crate::sources().join("programs")).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(name.ends_with(".h") || PROGRAMS.iter().any(|program| program.file == name), "{name}");
        }
    }
}
