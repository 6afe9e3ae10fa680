//! `--interval auto`: the time between two checkpoints by which least is lost, from what one has cost and how often the job
//! loses a node. Pure. *Next door*.
//!
//! J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", Future Generation Computer
//! Systems 22 (2006), doi:10.1016/j.future.2004.11.016, equation 37; its first term is Young's of 1974.
//!
//! What a reader would get wrong: the cost is the time for which the job stands still, not the time until the checkpoint is
//! durable: the job runs on while it is written. But it cannot be more frequent than it can be written.

use crate::state::Nanos;

/// No more often than this.
const LEAST: Nanos = 10_000_000_000;
/// Before anything was measured: the first one measures.
pub const FIRST: Nanos = LEAST;
/// Hours between two losses of one node, if the site does not say better: five years.
pub const MTBF_HOURS: u32 = 43_800;
/// No less often, however cheap and however reliable.
const MOST: Nanos = 4 * 3_600_000_000_000;

/// Daly's estimate, in seconds of work between two checkpoints that cost `cost`, where a loss is due every `mtbf`.
fn daly(cost: f64, mtbf: f64) -> f64 {
    if cost >= 2.0 * mtbf {
        return mtbf;
    }
    let x = cost / (2.0 * mtbf);
    (2.0 * cost * mtbf).sqrt() * (1.0 + x.sqrt() / 3.0 + x / 9.0) - cost
}

/// The time from the end of a checkpoint to the beginning of the next one. `held`: for how long the job stood still; `whole`: how
/// long it took altogether; `mtbf`: the mean time between losses of the job.
pub fn optimum(held: Nanos, whole: Nanos, mtbf: Nanos) -> Nanos {
    let (held, whole, mtbf) = (held as f64 / 1e9, whole as f64 / 1e9, mtbf as f64 / 1e9);
    let work = daly(held, mtbf);
    // While it is written the job works already.
    let pause = work - (whole - held).max(0.0);
    // As long as it takes to write one, at least nothing is written for as long.
    ((pause.max(whole) * 1e9) as Nanos).clamp(LEAST, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: f64 = 1e9;
    fn of(held: f64, whole: f64, mtbf: f64) -> f64 {
        optimum((held * S) as Nanos, (whole * S) as Nanos, (mtbf * S) as Nanos) as f64 / S
    }

    #[test]
    fn dalys_equation() {
        // By hand: sqrt(2 * 300 * 86400) = 7200; x = 300 / 172800.
        let x: f64 = 300.0 / 172_800.0;
        let want = 7200.0 * (1.0 + x.sqrt() / 3.0 + x / 9.0) - 300.0;
        assert!((daly(300.0, 86_400.0) - want).abs() < 1e-6);
        assert!((daly(300.0, 86_400.0) - 7001.4).abs() < 1.0, "{}", daly(300.0, 86_400.0));
        assert!((daly(10.0, 4.0) - 4.0).abs() < 1e-9, "a checkpoint that costs more than a life");
    }

    /// The least waste, found by trying: exp(M) model of the paper, equation 20 without the time of a restart.
    #[test]
    fn nothing_else_wastes_less() {
        for (cost, mtbf) in [(1.0, 3600.0), (10.0, 3600.0), (60.0, 86_400.0), (300.0, 3600.0)] {
            let waste = |work: f64| mtbf * (((work + cost) / mtbf).exp() - 1.0) / work;
            let best = waste(daly(cost, mtbf));
            for other in 1..2000 {
                let work = f64::from(other) * mtbf / 1000.0;
                assert!(best < waste(work) * 1.001, "cost {cost}, mtbf {mtbf}: {work} wastes less");
            }
        }
    }

    #[test]
    fn it_stays_within_its_bounds() {
        assert!((of(0.000_1, 0.1, 3600.0) - 10.0).abs() < 1e-9, "not more often than every 10 s");
        assert!((of(30.0, 40.0, 1e9) - 14_400.0).abs() < 1e-9, "not less often than every 4 h");
        assert!((of(0.01, 300.0, 3600.0) - 300.0).abs() < 1e-9, "writing takes half the time at most");
        assert!(of(1.0, 1.0, 1e6) > of(1.0, 1.0, 1e5) && of(2.0, 2.0, 1e6) > of(1.0, 1.0, 1e6));
        assert_eq!(optimum(0, 0, 0), LEAST);
        assert_eq!(optimum(Nanos::MAX, Nanos::MAX, Nanos::MAX), MOST);
    }
}
