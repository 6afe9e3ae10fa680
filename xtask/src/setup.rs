//! What the machine must have: found, and installed where we may. Runs *next door*.
//!
//! Nothing is touched when nothing is missing: no `apt-get update`, no network. Without root the missing packages are
//! named in a line that can be pasted. On a system without dpkg only the programs are looked for.

use std::path::Path;
use std::process::Command;

use crate::Outcome;
use crate::command::{root, run, succeeds};

/// A Debian package, and a program of it by which it is recognised elsewhere (empty: cannot be told).
const NEEDED: &[(&str, &str)] = &[
    ("build-essential", "cc"),
    ("gfortran", "gfortran"),
    ("openmpi-bin", "mpirun"),
    ("libopenmpi-dev", "mpicc"),
    ("libclang-dev", ""),
    ("libibverbs-dev", ""),
    ("librdmacm-dev", ""),
    ("lammps", "lmp"),
    ("python3-mpi4py", ""),
    ("python3-numpy", ""),
    ("numactl", "numactl"),
    ("python3-pip", ""),
    ("procps", "pgrep"),
];

/// What the Slurm lab is made of (`tests/labs/slurm-lab`).
const LAB: &[(&str, &str)] = &[
    ("slurmctld", "slurmctld"),
    ("slurmd", "slurmd"),
    ("slurm-client", "srun"),
    ("slurm-wlm-basic-plugins", ""),
    ("munge", "munged"),
    ("libpmi0", ""),
    ("libpmi2-0", ""),
    ("iproute2", "ip"),
];

/// What the virtual machines are made of and run (`tests/labs/rdma-vm`).
const GUESTS: &[(&str, &str)] = &[
    ("qemu-system-x86", "qemu-system-x86_64"),
    ("busybox-static", "busybox"),
    ("kmod", "depmod"),
    ("cpio", "cpio"),
    ("binutils", "objcopy"),
    ("xz-utils", "xz"),
    ("iproute2", "ip"),
    ("ibverbs-utils", "ibv_rc_pingpong"),
    ("ibverbs-providers", ""),
    ("rdmacm-utils", "rping"),
    ("perftest", "ib_send_bw"),
];

/// Installs what is missing, or says what to install.
pub(crate) fn setup() -> Outcome {
    have(NEEDED)
}

/// The same for the Slurm lab; without root there is none, and its tests say so.
pub(crate) fn lab() -> Outcome {
    if is_root() { have(LAB) } else { Ok(()) }
}

/// The same for the virtual machines, and their kernel; without root there are none, and their tests say so.
pub(crate) fn guests() -> Outcome {
    if !is_root() {
        return Ok(());
    }
    have(GUESTS)?;
    run(Command::new(root().join("tests/labs/rdma-vm/rdma-vm")).arg("build"))
}

fn have(packages: &[(&'static str, &str)]) -> Outcome {
    let debian = succeeds(Command::new("dpkg-query").arg("--version"));
    let missing: Vec<&str> = packages
        .iter()
        .filter(|(package, program)| if debian { !installed(package) } else { !on_path(program) })
        .map(|(package, _)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !debian {
        return Err(format!("missing, by their Debian names: {list}; install what your system calls them"));
    }
    if !is_root() {
        return Err(format!("missing packages; install them first: sudo apt-get install -y {list}"));
    }
    println!("setup: installing {list}");
    run(Command::new("apt-get").args(["update", "-qq"]))?;
    run(Command::new("apt-get")
        .env("DEBIAN_FRONTEND", "noninteractive")
        // Daemons of a package are not to be started: the lab has its own.
        .env("RUNLEVEL", "1")
        .args(["install", "-y", "-qq", "--no-install-recommends"])
        .args(&missing))
}

fn installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["-W", "-f=${db:Status-Status}", package])
        .output()
        .is_ok_and(|output| output.status.success() && output.stdout == b"installed")
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    program.is_empty() || std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// Whether we may install: `/proc/self` belongs to the user that we are.
pub(crate) fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    Path::new("/proc/self").metadata().is_ok_and(|own| own.uid() == 0)
}
