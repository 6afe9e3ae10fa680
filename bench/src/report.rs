//! Figures, their targets and the table. Runs *next door*.
//!
//! What a reader would get wrong: nanoseconds are compared by the least of all runs, since a disturbance only ever adds;
//! everything else by the median. A figure without a target is shown for knowledge.

use serde_json::{Value, json};
use std::fmt::Write as _;

/// Which of the samples counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Take {
    Least,
    Median,
}

/// What the figure under Stillpoint may be, from the native one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Target {
    /// At most `native × .0 + .1`.
    Line(f64, f64),
    /// At most this, whatever the native one is.
    Most(f64),
    /// Only shown.
    None,
}

/// One question, and the samples of both sides in the order in which they were taken.
#[derive(Debug)]
pub(crate) struct Figure {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) take: Take,
    pub(crate) target: Target,
    pub(crate) native: Vec<f64>,
    pub(crate) ours: Vec<f64>,
}

impl Figure {
    pub(crate) fn new(name: &'static str, unit: &'static str, take: Take, target: Target) -> Self {
        Figure { name, unit, take, target, native: Vec::new(), ours: Vec::new() }
    }

    fn value(&self, samples: &[f64]) -> Option<f64> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = match self.take {
            Take::Least => 0,
            Take::Median => sorted.len() / 2,
        };
        sorted.get(at).copied()
    }

    /// The most that the target allows.
    fn limit(&self) -> Option<f64> {
        match self.target {
            Target::Line(times, plus) => self.value(&self.native).map(|native| native * times + plus),
            Target::Most(most) => Some(most),
            Target::None => None,
        }
    }

    /// Whether the target is met; `None` without a target or without samples.
    pub(crate) fn met(&self) -> Option<bool> {
        Some(self.value(&self.ours)? <= self.limit()?)
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name, "unit": self.unit, "take": format!("{:?}", self.take).to_lowercase(),
            "native": self.value(&self.native), "stillpoint": self.value(&self.ours), "limit": self.limit(),
            "met": self.met(), "native_samples": self.native, "stillpoint_samples": self.ours,
        })
    }
}

/// The table, in Markdown.
pub(crate) fn table(figures: &[Figure]) -> String {
    let mut text =
        String::from("| what | native | Stillpoint | ratio | at most | |\n|---|--:|--:|--:|--:|---|\n");
    for f in figures {
        let (native, ours) = (f.value(&f.native), f.value(&f.ours));
        let number = |v: Option<f64>| v.map_or("-".to_owned(), |v| format!("{v:.2}"));
        let ratio = native.zip(ours).map(|(native, ours)| ours / native);
        let verdict = match f.met() {
            Some(true) => "met",
            Some(false) => "**missed**",
            None => "",
        };
        let ratio = ratio.map_or("-".to_owned(), |r| format!("{r:.3}"));
        let (n, o, l) = (number(native), number(ours), number(f.limit()));
        let _ = writeln!(text, "| {}, {} | {n} | {o} | {ratio} | {l} | {verdict} |", f.name, f.unit);
    }
    text
}

/// All of it, for programs.
pub(crate) fn json(machine: &Value, figures: &[Figure]) -> Value {
    json!({ "machine": machine, "figures": figures.iter().map(Figure::json).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(take: Take, target: Target) -> Figure {
        let mut f = Figure::new("x", "ns", take, target);
        f.native = vec![12.0, 10.0, 30.0];
        f.ours = vec![40.0, 14.0, 11.0];
        f
    }

    #[test]
    fn the_least_or_the_median_is_held_against_the_target() {
        assert_eq!(figure(Take::Least, Target::Line(1.1, 0.0)).met(), Some(true));
        assert_eq!(figure(Take::Median, Target::Line(1.1, 0.0)).met(), Some(false));
        assert_eq!(figure(Take::Median, Target::Line(1.0, 2.0)).met(), Some(true));
        assert_eq!(figure(Take::Median, Target::Most(13.0)).met(), Some(false));
        assert_eq!(figure(Take::Median, Target::None).met(), None);
        assert_eq!(Figure::new("y", "ms", Take::Median, Target::Most(1.0)).met(), None);
        assert!(
            table(&[figure(Take::Least, Target::None)]).contains("| x, ns | 10.00 | 11.00 | 1.100 | - |  |")
        );
    }
}
