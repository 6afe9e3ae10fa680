//! From the power cut of a node until a batch job runs again, plainly requeued and restarted from its checkpoint, on the Slurm
//! of the lab. Runs *next door*, as root.
//!
//! ```text
//!  beat  ─ ─ ─ ─ ─ ┤ node killed        SlurmdTimeout, requeue, srun, MPI_Init [image read]        ├ ─ ─ ─ beat again
//! ```
//!
//! What a reader would get wrong: nearly all of the time is Slurm's own, which waits for the node to answer before it gives
//! it up, and that varies by seconds; so both sides take the same way through it, in turns. The program tells by its own
//! beat, the time of day in a file, when it runs, after its first MPI_Allreduce between the nodes that are left.

use crate::bed::Bed;
use crate::report::{Figure, Take, Target};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use stillpoint_tests::cycle::until;
use stillpoint_tests::lab::Lab;
use stillpoint_tests::store::newest;

/// How long anything of it may take before it counts as hung.
const LIMIT: Duration = Duration::from_secs(180);
/// No beat for so long, with ranks that meet every 10 ms: they do not run.
const SILENCE: u64 = 1000;

/// The figure, of that many pairs of killed nodes.
pub(crate) fn measure(bed: &Bed, pairs: usize, native_only: bool) -> Result<Vec<Figure>, String> {
    let name = "from a node's power cut until its batch job runs again, 4 ranks";
    let mut figure = Figure::new(name, "s", Take::Median, Target::Line(1.0, 3.0));
    for _ in 0..pairs {
        if !native_only {
            figure.ours.push(killed(bed, true)?);
        }
        figure.native.push(killed(bed, false)?);
    }
    Ok(vec![figure])
}

/// One job on a cluster of its own, the node of its script killed; seconds until it beats again.
fn killed(bed: &Bed, saved: bool) -> Result<f64, String> {
    let lab = Lab::up(3, "").ok_or("no lab of Slurm on this machine")?;
    let (program, beats) = (lab.place(&bed.program("beat")), lab.work().join("beats"));
    let line = format!("srun --mpi=pmix {program} {}", beats.display());
    let script = lab.script("job.sh", &line);
    let mut words = vec!["-N2", "--ntasks-per-node=2", "--requeue", "--output=out", "--open-mode=append"];
    words.extend(saved.then_some("--ckpt-interval=1"));
    words.push(&script);
    let job = lab.submit(&words);
    let what = |what: &str| format!("{what}: {}\n{}", output(&lab), lab.logs());
    let store = lab.store();
    if !within(|| !times(&beats).is_empty() && (!saved || newest(&store) >= 2)) {
        return Err(what("the job does not run"));
    }
    // As long a life for the one as for the other.
    std::thread::sleep(Duration::from_millis(1500));
    let killed = now();
    lab.kill_node(&lab.job(&job, "BatchHost"), false);
    let mut again = None;
    let came = within(|| {
        again = after(&times(&beats), killed);
        again.is_some()
    });
    std::fs::write(beats.with_extension("end"), b"").map_err(|error| format!("write the end: {error}"))?;
    let again = again.filter(|_| came).ok_or_else(|| what("the job does not run again"))?;
    if saved != output(&lab).contains("from checkpoint") {
        return Err(what("the job was not started again as it should"));
    }
    lab.wait(&job, &["COMPLETED"], LIMIT);
    Ok((again - killed) as f64 / 1000.0)
}

fn output(lab: &Lab) -> String {
    std::fs::read_to_string(lab.work().join("out")).unwrap_or_default()
}

/// Looks now and then, so as not to take the CPU from what is measured.
fn within(mut done: impl FnMut() -> bool) -> bool {
    until(LIMIT, || {
        std::thread::sleep(Duration::from_millis(50));
        done()
    })
}

/// Time of day, ms.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

fn times(beats: &Path) -> Vec<u64> {
    let text = std::fs::read_to_string(beats).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// The first beat after the silence that began at `killed`.
fn after(times: &[u64], killed: u64) -> Option<u64> {
    let last = times.iter().copied().filter(|t| *t <= killed).max()?;
    let mut before = last;
    for &time in times.iter().filter(|t| **t > killed) {
        if time >= before + SILENCE {
            return Some(time);
        }
        before = time;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beat_or_two_after_the_kill_are_no_restart() {
        assert_eq!(after(&[100, 110, 120, 130], 115), None);
        assert_eq!(after(&[100, 110, 120, 130, 9000, 9010], 115), Some(9000));
        assert_eq!(after(&[], 115), None);
    }
}
