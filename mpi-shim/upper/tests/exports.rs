//! The front exports what the site's libmpi.so.40 does: every MPI_ and PMPI_ name, what Open MPI's Fortran and C++
//! libraries import from it, and data of the same sizes. Next door: reads symbol tables with nm(1) and readelf(1).
//!
//! What a reader would get wrong: an internal symbol of the library is only missed here if one of those libraries asks
//! for it.
#![allow(clippy::tests_outside_test_module, reason = "an integration test is a test module")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test says why it skips, and fails loudly")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

const PLACES: [&str; 3] = ["/usr/lib/x86_64-linux-gnu", "/usr/lib64/openmpi/lib", "/usr/lib"];
const CLIENTS: [&str; 4] =
    ["libmpi_cxx.so.40", "libmpi_mpifh.so.40", "libmpi_usempif08.so.40", "libmpi_usempi_ignore_tkr.so.40"];

fn output(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).output().unwrap();
    assert!(out.status.success(), "{program} {args:?}");
    String::from_utf8(out.stdout).unwrap()
}

fn site(name: &str) -> Option<String> {
    let found = PLACES.iter().map(|d| format!("{d}/{name}")).find(|p| PathBuf::from(p).exists());
    if found.is_none() {
        println!("skipped: no {name}");
    }
    found
}

/// The library under test stands beside the directory of this test's own file.
fn front() -> Option<String> {
    let exe = std::env::current_exe().ok()?;
    let dir = exe.parent()?;
    let found = [dir.join("libstillpoint_mpi_ompi.so"), dir.parent()?.join("libstillpoint_mpi_ompi.so")]
        .into_iter()
        .filter(|p| p.exists())
        .max_by_key(|p| p.metadata().and_then(|m| m.modified()).ok());
    if found.is_none() {
        println!("skipped: the front is not built as a shared library");
    }
    found.map(|p| p.display().to_string())
}

fn names(path: &str, which: &str) -> BTreeSet<String> {
    output("nm", &["-D", which, path])
        .lines()
        .filter_map(|l| l.split_whitespace().last())
        .map(|n| n.split('@').next().unwrap_or(n).to_owned())
        .collect()
}

/// Sizes of data symbols.
fn data(path: &str) -> BTreeMap<String, u64> {
    output("readelf", &["-W", "--dyn-syms", path])
        .lines()
        .filter_map(|l| {
            let f: Vec<&str> = l.split_whitespace().collect();
            let size = f.get(2)?;
            let size = match size.strip_prefix("0x") {
                Some(hex) => u64::from_str_radix(hex, 16).ok()?,
                None => size.parse().ok()?,
            };
            (f.get(3) == Some(&"OBJECT") && f.get(6) != Some(&"UND")).then_some((f.get(7)?.to_string(), size))
        })
        .collect()
}

#[test]
fn every_function_of_the_standard_is_there() {
    let (Some(lib), Some(front)) = (site("libmpi.so.40"), front()) else { return };
    let ours = names(&front, "--defined-only");
    let missing: Vec<String> = names(&lib, "--defined-only")
        .into_iter()
        .filter(|n| {
            n.starts_with("MPI_")
                || n.starts_with("PMPI_")
                || n.starts_with("MPIX_")
                || n.starts_with("PMPIX_")
        })
        .filter(|n| !ours.contains(n))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn what_fortran_and_cxx_import_is_there() {
    let (Some(lib), Some(front)) = (site("libmpi.so.40"), front()) else { return };
    let (theirs, ours) = (names(&lib, "--defined-only"), names(&front, "--defined-only"));
    let mut missing = Vec::new();
    for client in CLIENTS {
        let Some(path) = site(client) else { continue };
        for n in names(&path, "--undefined-only") {
            if theirs.contains(&n) && !ours.contains(&n) {
                missing.push(format!("{client}: {n}"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn data_has_the_same_size() {
    let (Some(lib), Some(front)) = (site("libmpi.so.40"), front()) else { return };
    let (theirs, ours) = (data(&lib), data(&front));
    let wrong: Vec<String> = ours
        .iter()
        .filter_map(|(n, size)| theirs.get(n).filter(|t| *t != size).map(|t| format!("{n}: {size}, not {t}")))
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}
