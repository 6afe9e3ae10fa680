//! Flags and environment of the agent. Runs *next door*.
//!
//! What a reader would get wrong: the environment is the ranks' (the first of them starts the agent), so it is how the
//! command line's wishes arrive; a flag overrides it.

use std::path::PathBuf;
use std::time::Duration;
use stillpoint_coord::interval::{FIRST, MTBF_HOURS};
use stillpoint_coord::state::{Config, Mode};
use stillpoint_storage::commit::KEEP;

const USAGE: &str = "usage: stillpoint-agent --run DIR [--local DIR] [--burst DIR] [--burst-rate BYTES] [--interval DUR|auto] [--mode auto|forked|direct] \
                     [--limits STAGE=DUR,…] [--keep N] [--linger DUR] [--foreground]";

/// What was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Args {
    /// Run directory.
    pub(crate) run: PathBuf,
    /// Directory of this node for the run: there are other nodes.
    pub(crate) local: Option<PathBuf>,
    /// Directory of this node below which images are written before they are copied to the run directory.
    pub(crate) burst: Option<PathBuf>,
    /// Bytes a second that this node copies at most.
    pub(crate) burst_rate: Option<u64>,
    /// Interval, mode and limits.
    pub(crate) config: Config,
    /// Checkpoints that are kept.
    pub(crate) keep: usize,
    /// How long the agent stays after the last rank has left.
    pub(crate) linger: Duration,
    /// This process is the agent, not its starter.
    pub(crate) foreground: bool,
}

impl Args {
    pub(crate) fn parse(
        args: impl Iterator<Item = String>,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Args, String> {
        let mut run = env("STILLPOINT_RUN");
        let mut local = env("STILLPOINT_LOCAL");
        let mut burst = env("STILLPOINT_BURST");
        let mut burst_rate = env("STILLPOINT_BURST_RATE");
        let mut interval = env("STILLPOINT_INTERVAL");
        let mut mode = env("STILLPOINT_MODE");
        let mut limits = env("STILLPOINT_LIMITS");
        let mut keep = env("STILLPOINT_KEEP");
        let mut linger = None;
        let mut foreground = false;
        let mut args = args;
        while let Some(arg) = args.next() {
            let (name, inline) = match arg.split_once('=') {
                Some((n, v)) => (n.to_owned(), Some(v.to_owned())),
                None => (arg, None),
            };
            if name == "--foreground" {
                foreground = true;
                continue;
            }
            let slot = match name.as_str() {
                "--run" => &mut run,
                "--local" => &mut local,
                "--burst" => &mut burst,
                "--burst-rate" => &mut burst_rate,
                "--interval" => &mut interval,
                "--mode" => &mut mode,
                "--limits" => &mut limits,
                "--keep" => &mut keep,
                "--linger" => &mut linger,
                _ => return Err(format!("{name} is not known; {USAGE}")),
            };
            *slot =
                Some(inline.or_else(|| args.next()).ok_or_else(|| format!("{name} wants a value; {USAGE}"))?);
        }
        let mut config = Config::default();
        if let Some(text) = interval.filter(|t| !t.is_empty() && t != "0") {
            if text == "auto" {
                // Of the job; if nobody tells, as of one node.
                let mtbf = env("STILLPOINT_MTBF").filter(|m| !m.is_empty());
                config.auto = Some(nanos(&mtbf.unwrap_or_else(|| format!("{MTBF_HOURS}h")))?);
                config.interval = Some(FIRST);
            } else {
                config.interval = Some(nanos(&text)?);
            }
        }
        config.mode = match mode.as_deref() {
            None | Some("" | "auto") => Mode::Auto,
            Some("forked") => Mode::Forked,
            Some("direct") => Mode::Direct,
            Some(other) => return Err(format!("mode {other} is not known; {USAGE}")),
        };
        for limit in limits.iter().flat_map(|l| l.split(',')).filter(|l| !l.is_empty()) {
            let (stage, value) = limit.split_once('=').ok_or_else(|| format!("limit {limit}: no ="))?;
            *match stage {
                "intend" => &mut config.intend,
                "settle" => &mut config.settle,
                "stop" => &mut config.stop,
                "drain" => &mut config.drain,
                "snapshot" => &mut config.snapshot,
                "write" => &mut config.write,
                "copy" => &mut config.copy,
                other => return Err(format!("limit {other}: no such stage")),
            } = nanos(value)?;
        }
        Ok(Args {
            run: run.filter(|r| !r.is_empty()).ok_or_else(|| format!("no run directory; {USAGE}"))?.into(),
            local: local.filter(|l| !l.is_empty()).map(PathBuf::from),
            // As it is meant where the agent is started, which goes elsewhere.
            burst: burst
                .filter(|b| !b.is_empty() && b != "none")
                .map(|b| std::path::absolute(&b).unwrap_or_else(|_| b.into())),
            burst_rate: burst_rate.filter(|r| !r.is_empty()).map(|r| bytes(&r)).transpose()?,
            config,
            keep: match keep.as_deref() {
                None | Some("") => KEEP,
                Some(text) => {
                    let n = text.parse().ok().filter(|n| *n > 0);
                    n.ok_or_else(|| format!("keep {text}: a number of checkpoints, at least 1"))?
                }
            },
            linger: Duration::from_nanos(nanos(linger.as_deref().unwrap_or("5s"))?),
            foreground,
        })
    }
}

/// `50000000`, `50M`, `1G`.
fn bytes(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.char_indices().next_back() {
        Some((at, 'K' | 'k')) => (&text[..at], 10),
        Some((at, 'M' | 'm')) => (&text[..at], 20),
        Some((at, 'G' | 'g')) => (&text[..at], 30),
        _ => (text, 0),
    };
    let n = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift)).filter(|n| *n > 0);
    n.ok_or_else(|| format!("{text} is no number of bytes a second: 50000000, 50M, 1G"))
}

/// `500ms`, `2s`, `10m`, `1h`; a bare number is seconds.
fn nanos(text: &str) -> Result<u64, String> {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let unit = match unit {
        "ms" => 1e6,
        "" | "s" => 1e9,
        "m" | "min" => 60e9,
        "h" => 3600e9,
        _ => return Err(format!("{text} is no duration: 500ms, 2s, 10m, 1h")),
    };
    match number.parse::<f64>() {
        Ok(n) if n > 0.0 && n * unit < 1e18 => Ok((n * unit) as u64),
        _ => Err(format!("{text} is no duration: 500ms, 2s, 10m, 1h")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, String> {
        Args::parse(line.split_whitespace().map(String::from), |name| {
            (name == "STILLPOINT_INTERVAL").then(|| "10m".to_owned())
        })
    }

    #[test]
    fn flags_override_the_environment() {
        assert_eq!(parse("--run /r").unwrap().config.interval, Some(600_000_000_000));
        let a = parse("--run=/r --interval 500ms --mode direct --limits settle=1.5s,drain=2").unwrap();
        assert_eq!(a.config.interval, Some(500_000_000));
        assert_eq!((a.config.settle, a.config.drain), (1_500_000_000, 2_000_000_000));
        assert_eq!(a.config.mode, Mode::Direct);
        assert_eq!((a.burst, a.burst_rate), (None, None));
        let a = parse("--run /r --burst /b --burst-rate 3M --limits copy=5").unwrap();
        assert_eq!((a.burst, a.burst_rate), (Some("/b".into()), Some(3 << 20)));
        assert_eq!(a.config.copy, 5_000_000_000);
        assert_eq!(parse("--run /r --burst none").unwrap().burst, None);
    }

    #[test]
    fn an_interval_that_is_found() {
        let a = parse("--run /r --interval auto").unwrap().config;
        assert_eq!((a.interval, a.auto), (Some(FIRST), Some(43_800 * 3_600_000_000_000)));
        let of = |mtbf: &str| {
            let mtbf = mtbf.to_owned();
            Args::parse(["--run=/r", "--interval=auto"].map(String::from).into_iter(), |n| {
                (n == "STILLPOINT_MTBF").then(|| mtbf.clone())
            })
        };
        assert_eq!(of("3600").unwrap().config.auto, Some(3_600_000_000_000));
        assert!(of("0").is_err() && of("often").is_err());
        assert_eq!(parse("--run /r").unwrap().config.auto, None);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in [
            "",
            "--run",
            "--run /r --interval x",
            "--run /r --interval 5y",
            "--run /r --keep 0",
            "--run /r --burst-rate 0",
            "--run /r --burst-rate 5x",
            "--run /r --limits a=1",
            "--what 1",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
