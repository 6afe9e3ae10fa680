//! Says for which release of Slurm the plugin is built. Slurm compares year and month of a SPANK plugin with its own and
//! refuses another: one build a release, from one source.
//!
//! Asked in this order: STILLPOINT_SLURM_VERSION (22.05.8), the installed Slurm's programs, its header, else 22.05.

use std::path::Path;
use std::process::Command;

const DEFAULT: &str = "22.05";
const NONE: &str = "no Slurm found here";
const HEADERS: [&str; 3] = [
    "/usr/include/slurm/slurm_version.h",
    "/usr/local/include/slurm/slurm_version.h",
    "/opt/slurm/include/slurm/slurm_version.h",
];

/// `22.05.8`, also with text behind a dash, as Slurm's own number: one byte each for year, month and patch.
fn number(version: &str) -> Option<u32> {
    let digits = version.split('-').next()?;
    let mut parts = digits.split('.').map(str::parse::<u8>);
    let (year, month) = (parts.next()?.ok()?, parts.next()?.ok()?);
    let patch = parts.next().and_then(Result::ok).unwrap_or(0);
    Some(u32::from(year) << 16 | u32::from(month) << 8 | u32::from(patch))
}

/// Slurm's programs read their configuration before they say their release, and may have none on a build machine.
fn of_program(name: &str, stand_in: &Path) -> Option<String> {
    let output = Command::new(name).arg("--version").env("SLURM_CONF", stand_in).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.split_whitespace().last().filter(|v| number(v).is_some()).map(str::to_owned)
}

/// `#define SLURM_VERSION_NUMBER 0x160508`
fn of_header(path: &str) -> Option<u32> {
    let text = std::fs::read_to_string(path).ok()?;
    let value = text.lines().find_map(|l| l.strip_prefix("#define SLURM_VERSION_NUMBER"))?;
    u32::from_str_radix(value.trim().strip_prefix("0x")?, 16).ok()
}

fn find() -> (u32, String) {
    if let Ok(v) = std::env::var("STILLPOINT_SLURM_VERSION") {
        match number(&v) {
            Some(n) => return (n, format!("STILLPOINT_SLURM_VERSION={v}")),
            None => panic!("STILLPOINT_SLURM_VERSION={v}: a release like 22.05.8 is wanted"),
        }
    }
    let stand_in = Path::new(&std::env::var_os("OUT_DIR").unwrap_or_default()).join("slurm.conf");
    let written = std::fs::write(&stand_in, "ClusterName=none\nSlurmctldHost=localhost\n").is_ok();
    for program in ["srun", "scontrol"].iter().filter(|_| written) {
        if let Some((n, v)) = of_program(program, &stand_in).and_then(|v| Some((number(&v)?, v))) {
            return (n, format!("{program} --version: {v}"));
        }
    }
    for path in HEADERS {
        if let Some(n) = of_header(path) {
            return (n, path.to_owned());
        }
    }
    (number(DEFAULT).unwrap_or_default(), NONE.to_owned())
}

fn main() {
    println!("cargo:rerun-if-env-changed=STILLPOINT_SLURM_VERSION");
    println!("cargo:rerun-if-changed=build.rs");
    let (n, why) = find();
    // What cargo compares is the time of a file, which for a packaged program is that of its packaging: an upgrade of Slurm
    // would go unseen. The lists of what is installed tell. A file that never exists makes cargo ask at each build.
    let lists = ["/var/lib/dpkg/status", "/var/lib/rpm"].into_iter().filter(|l| Path::new(l).exists());
    let watched: Vec<&str> = if why == NONE { vec!["no-slurm-found"] } else { lists.collect() };
    for path in watched {
        println!("cargo:rerun-if-changed={path}");
    }
    println!("cargo:rustc-env=STILLPOINT_SLURM_NUMBER={n}");
    println!("cargo:warning=the plugin is for Slurm {}.{:02} ({why})", n >> 16, n >> 8 & 0xff);
}
