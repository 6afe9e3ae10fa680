//! `cargo xtask install --prefix DIR`: what a site installs, in one tree. Runs *next door*.
//!
//! ```text
//! bin/stillpoint                          the command line
//! libexec/stillpoint/stillpoint-rank      a rank; beside it what it loads and starts: the agent, the hooks, the MPI front
//!                   /stillpoint-task      what the plugin starts each task with: bin/stillpoint by another name
//!                   /stillpoint-mpirun-task   what mpirun starts each rank with inside a job: the same again
//!                   /slurm/               the same again, as scontrol and scancel, for whoever puts this directory before
//!                                         Slurm's in PATH
//! lib/libstillpoint.so, include/          what a program may use that knows of us
//! lib/stillpoint/stillpoint-spank.so      the plugin; it finds the rest from its own place
//! share/stillpoint/                       a module file, and the line for plugstack.conf.d
//! ```
//!
//! What a reader would get wrong: each file is put beside its name and renamed over it, so that an installation in use can be
//! replaced; and the modes do not depend on the umask, as the ranks of every user read these files.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Outcome;
use crate::command::{cargo, root, run, target};

/// A file of the build, or of the source tree, and where it goes.
struct Piece {
    from: &'static str,
    to: &'static str,
    mode: u32,
}

const fn piece(from: &'static str, to: &'static str, mode: u32) -> Piece {
    Piece { from, to, mode }
}

/// From the directory of the build.
const BUILT: &[Piece] = &[
    piece("release/stillpoint", "bin/stillpoint", 0o755),
    piece("release/stillpoint-rank", "libexec/stillpoint/stillpoint-rank", 0o755),
    piece("release/stillpoint-agent", "libexec/stillpoint/stillpoint-agent", 0o755),
    piece("release/libstillpoint_hooks.so", "libexec/stillpoint/libstillpoint_hooks.so", 0o755),
    piece("release/libstillpoint_mpi_ompi.so", "libexec/stillpoint/libstillpoint_mpi_ompi.so", 0o755),
    piece("release/libstillpoint_ibverbs.so", "libexec/stillpoint/libstillpoint_ibverbs.so", 0o755),
    piece("release/libstillpoint.so", "lib/libstillpoint.so", 0o755),
    piece("plugin/libstillpoint_slurm.so", "lib/stillpoint/stillpoint-spank.so", 0o755),
];
/// From the source tree.
const HEADERS: &[Piece] = &[
    piece("core/capi/include/stillpoint.h", "include/stillpoint.h", 0o644),
    piece("core/capi/include/stillpoint.f90", "include/stillpoint.f90", 0o644),
];
/// Other names of the command line, and the way to it from there.
const NAMES: &[(&str, &str)] = &[
    ("libexec/stillpoint/stillpoint-task", "../../bin/stillpoint"),
    ("libexec/stillpoint/stillpoint-mpirun-task", "../../bin/stillpoint"),
    ("libexec/stillpoint/slurm/scontrol", "../../../bin/stillpoint"),
    ("libexec/stillpoint/slurm/scancel", "../../../bin/stillpoint"),
];

/// Builds, and installs below the directory that `--prefix` names.
pub(crate) fn install(words: &[&str]) -> Outcome {
    let (build_first, words) = match words {
        ["--no-build", rest @ ..] => (false, rest),
        all => (true, all),
    };
    let prefix = match words {
        ["--prefix", dir] => *dir,
        [word] if word.starts_with("--prefix=") => &word["--prefix=".len()..],
        _ => return Err("install wants [--no-build] --prefix DIR".to_owned()),
    };
    let prefix = std::env::current_dir().map_err(|e| e.to_string())?.join(prefix);
    if build_first {
        build()?;
    }
    place(&target(), &root(), &prefix)?;
    println!("installed in {}", prefix.display());
    println!(
        "Slurm: put this line into plugstack.conf.d, on every node and where srun runs:\n  {}",
        snippet(&prefix)
    );
    Ok(())
}

/// What is installed, and no more: neither MPI headers nor the tests' programs are needed.
pub(crate) fn build() -> Outcome {
    run(cargo().args(["build", "--release"]))?;
    verbs("libstillpoint_ibverbs.a", "libstillpoint_ibverbs.so")?;
    plugin()
}

/// A library in the place of libibverbs.so.1, of this archive. Symbols with versions need the linker's script, of which rustc gives a
/// library one of its own.
pub(crate) fn verbs(archive: &str, library: &str) -> Outcome {
    let (built, sources) = (target().join("release"), root().join("ib-plugin"));
    run(Command::new("cc")
        .args(["-shared", "-o"])
        .arg(built.join(library))
        .args(["-Wl,-soname,libibverbs.so.1", "-Wl,--gc-sections", "-Wl,-z,defs", "-Wl,-z,relro,-z,now"])
        .arg(format!("-Wl,--version-script={}", sources.join("verbs.map").display()))
        .arg("-Wl,--whole-archive")
        .arg(built.join(archive))
        .args(["-Wl,--no-whole-archive", "-lgcc_s", "-lc"]))
}

/// The Slurm plugin. A profile of its own: it must be able to catch a panic.
pub(crate) fn plugin() -> Outcome {
    run(cargo().args(["build", "--profile", "plugin", "--package", "stillpoint-slurm"]))
}

/// The line of plugstack.conf.
fn snippet(prefix: &Path) -> String {
    format!("optional {}/lib/stillpoint/stillpoint-spank.so local=/tmp", prefix.display())
}

fn plugstack_text(prefix: &Path) -> String {
    let line = snippet(prefix);
    format!(
        "# Stillpoint for Slurm; goes to plugstack.conf.d on every node and wherever srun, sbatch and salloc run.\n\
         # optional: a plugin that is `required` and fails drains the node.\n\
         # local=DIR: a directory of each node for what a run keeps there while it lives. burst=DIR: a large one, on a disk of\n\
         # the node: images are written there and copied to the run directory in the background (burst-rate=BYTES a second at\n\
         # most, 500M say). prefix=DIR: where stillpoint is, if\n\
         # this plugin was moved away from it.\n{line}\n"
    )
}

/// Puts what was installed in `prefix` into a plugstack.conf.d of the lab.
pub(crate) fn plugstack(prefix: &Path, folder: &Path) -> Outcome {
    let from = prefix.join("share/stillpoint/plugstack.conf.d/stillpoint.conf");
    fs::create_dir_all(folder)
        .and_then(|()| fs::copy(from, folder.join("stillpoint.conf")))
        .map(drop)
        .map_err(|e| format!("{}: {e}", folder.display()))
}

fn module(prefix: &Path) -> String {
    format!(
        "#%Module1.0\n\
         # For Environment Modules and Lmod.\n\
         proc ModulesHelp {{ }} {{\n    puts stderr \"Stillpoint: checkpoint and restart of MPI jobs. See stillpoint --help.\"\n}}\n\
         module-whatis \"Stillpoint {version}: checkpoint and restart of MPI jobs\"\n\
         conflict stillpoint\n\
         set prefix {{{prefix}}}\n\
         prepend-path PATH $prefix/bin\n\
         # `scontrol checkpoint`, and a scancel that says that it was meant; the rest is handed on to Slurm's own.\n\
         prepend-path PATH $prefix/libexec/stillpoint/slurm\n\
         prepend-path LD_LIBRARY_PATH $prefix/lib\n\
         prepend-path LIBRARY_PATH $prefix/lib\n\
         prepend-path CPATH $prefix/include\n",
        version = env!("CARGO_PKG_VERSION"),
        prefix = prefix.display(),
    )
}

/// Puts everything in place. `built`: the directory of the build; `source`: the tree.
fn place(built: &Path, source: &Path, prefix: &Path) -> Outcome {
    for (from, pieces) in [(built, BUILT), (source, HEADERS)] {
        for p in pieces {
            let from = from.join(p.from);
            put(&prefix.join(p.to), |new| {
                fs::copy(&from, new).map_err(|e| format!("{}: {e}", from.display()))?;
                set_mode(new, p.mode)
            })?;
        }
    }
    for (name, to) in NAMES {
        put(&prefix.join(name), |new| symlink(to, new).map_err(|e| format!("{}: {e}", new.display())))?;
    }
    let texts = [
        (format!("share/stillpoint/modulefiles/stillpoint/{}", env!("CARGO_PKG_VERSION")), module(prefix)),
        ("share/stillpoint/plugstack.conf.d/stillpoint.conf".to_owned(), plugstack_text(prefix)),
    ];
    for (name, text) in texts {
        put(&prefix.join(name), |new| {
            fs::write(new, &text).map_err(|e| format!("{}: {e}", new.display()))?;
            set_mode(new, 0o644)
        })?;
    }
    Ok(())
}

fn set_mode(path: &Path, mode: u32) -> Outcome {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(|e| format!("{}: {e}", path.display()))
}

/// Makes the directory, then the file under a name of its own, then gives it its name.
fn put(path: &Path, make: impl FnOnce(&Path) -> Outcome) -> Outcome {
    let directory = path.parent().unwrap_or(path);
    directories(directory)?;
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let _ = fs::remove_file(&new);
    make(&new)?;
    fs::rename(&new, path).map_err(|e| format!("{}: {e}", path.display()))
}

/// Makes a directory and those above it; those that are new can be read by all.
fn directories(path: &Path) -> Outcome {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(above) = path.parent() {
        directories(above)?;
    }
    fs::create_dir(path).map_err(|e| format!("{}: {e}", path.display()))?;
    set_mode(path, 0o755)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_has_its_place_and_can_be_replaced() {
        let base = std::env::temp_dir().join(format!("stillpoint-install-{}", std::process::id()));
        let (built, prefix) = (base.join("built"), base.join("a/prefix"));
        for p in BUILT {
            let from = built.join(p.from);
            fs::create_dir_all(from.parent().unwrap()).unwrap();
            fs::write(&from, p.from).unwrap();
        }
        for _ in 0..2 {
            place(&built, &root(), &prefix).unwrap();
        }
        for p in BUILT.iter().chain(HEADERS) {
            let mode = fs::metadata(prefix.join(p.to)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, p.mode, "{}", p.to);
        }
        for (name, _) in NAMES {
            assert_eq!(fs::read_to_string(prefix.join(name)).unwrap(), "release/stillpoint");
        }
        let line =
            fs::read_to_string(prefix.join("share/stillpoint/plugstack.conf.d/stillpoint.conf")).unwrap();
        assert!(line.contains(&format!("\noptional {}/lib/stillpoint/", prefix.display())), "{line}");
        fs::remove_dir_all(base).unwrap();
    }

    #[test]
    fn a_prefix_is_wanted() {
        assert!(install(&[]).is_err());
        assert!(install(&["--prefix"]).is_err());
    }
}
