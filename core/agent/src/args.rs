//! Flags and environment of the agent. Runs *next door*.
//!
//! What a reader would get wrong: the environment is the ranks' (the first of them starts the agent), so it is how the
//! command line's wishes arrive; a flag overrides it.

use std::path::PathBuf;
use std::time::Duration;
use stillpoint_coord::state::{Config, Mode};
use stillpoint_storage::commit::KEEP;

const USAGE: &str = "usage: stillpoint-agent --run DIR [--local DIR] [--interval DUR] [--mode auto|forked|direct] \
                     [--limits STAGE=DUR,…] [--keep N] [--linger DUR] [--foreground]";

/// What was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Args {
    /// Run directory.
    pub(crate) run: PathBuf,
    /// Directory of this node for the run: there are other nodes.
    pub(crate) local: Option<PathBuf>,
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
            config.interval = Some(nanos(&text)?);
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
                other => return Err(format!("limit {other}: no such stage")),
            } = nanos(value)?;
        }
        Ok(Args {
            run: run.filter(|r| !r.is_empty()).ok_or_else(|| format!("no run directory; {USAGE}"))?.into(),
            local: local.filter(|l| !l.is_empty()).map(PathBuf::from),
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
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in [
            "",
            "--run",
            "--run /r --interval x",
            "--run /r --interval 5y",
            "--run /r --keep 0",
            "--run /r --limits a=1",
            "--what 1",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
