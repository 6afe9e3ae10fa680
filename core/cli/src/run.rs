//! `run`: makes a job, starts it, and starts it again from its last checkpoint as long as ranks are lost and restarts are
//! left. Ends with the application's exit status. Runs *next door*.

use stillpoint_coord::interval::MTBF_HOURS;
use stillpoint_storage::run::RunDir;

use crate::RunArgs;
use crate::catalog::{self, Checkpoint};
use crate::error::{Error, chain};
use crate::home::{Description, Home, Job, bytes};
use crate::launch::{Start, spool_stdin};
use crate::signals::Heard;
use crate::slurm::choose::{newest, run_info};
use crate::slurm::start::StartFile;
use crate::verdict::Verdict;

/// How often, from what `--interval` and `--mtbf` say: seconds, or that it is to be found, where a node is lost every so many
/// hours.
pub(crate) fn every(interval: Option<&str>, mtbf: Option<f64>) -> Result<(Option<f64>, Option<f64>), Error> {
    match (interval, mtbf.unwrap_or(f64::from(MTBF_HOURS))) {
        (_, hours) if !(hours.is_finite() && (0.001..=100_000_000.0).contains(&hours)) => {
            Err(Error::Mtbf(hours))
        }
        (Some("auto"), hours) => Ok((None, Some(hours))),
        (other, _) => Ok((other.map(seconds).transpose()?, None)),
    }
}

/// The values of STILLPOINT_INTERVAL and STILLPOINT_MTBF for ranks on this many nodes.
pub(crate) fn rhythm(interval: Option<f64>, auto: Option<f64>, nodes: u32) -> [Option<String>; 2] {
    match auto {
        // A job is lost with each of its nodes. The agent takes no more than thirty years.
        Some(hours) => {
            let seconds = (hours * 3600.0 / f64::from(nodes.max(1))).clamp(1.0, 9e8);
            [Some("auto".into()), Some(seconds.to_string())]
        }
        None => [interval.map(|s| s.to_string()), None],
    }
}

/// Seconds, from `30`, `30s`, `500ms`, `10m`, `1h`.
pub(crate) fn seconds(text: &str) -> Result<f64, Error> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "s" => 1.0,
        "ms" => 0.001,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(Error::Duration(text.into())),
    };
    match digits.parse::<f64>() {
        Ok(v) if v > 0.0 && v.is_finite() && digits.bytes().all(|b| b.is_ascii_digit() || b == b'.') => {
            Ok(v * unit)
        }
        _ => Err(Error::Duration(text.into())),
    }
}

/// One line for the user, as text or as JSON. On standard error: standard output is the application's.
pub(crate) fn say(json: bool, event: &str, job: &Job, text: &str) {
    // A file that the application writes to as well: a restart has opened it anew, and our offset stands somewhere within.
    let _ = rustix::fs::seek(std::io::stderr(), rustix::fs::SeekFrom::End(0));
    if json {
        eprintln!("{}", serde_json::json!({ "event": event, "job": job.name, "text": text }));
    } else {
        eprintln!("stillpoint: {text}");
    }
}

pub(crate) fn run(home: &Home, args: RunArgs, json: bool) -> Result<u8, Error> {
    if args.ranks == Some(0) {
        return Err(Error::NoRanks);
    }
    let (interval, auto) = every(args.interval.as_deref(), args.mtbf)?;
    let launcher: Vec<String> =
        args.launcher.iter().flat_map(|l| l.split_whitespace()).map(str::to_owned).collect();
    let what = Description {
        info: run_info(&args.command, args.ranks.unwrap_or(1), &launcher)?,
        argv: bytes(&args.command),
        ranks: args.ranks,
        launch_with: args.launcher,
        interval,
        auto,
        restarts: args.restarts,
        // Ranks may start elsewhere.
        burst: args
            .burst
            .or_else(|| std::env::var_os("STILLPOINT_BURST").map(Into::into))
            .map(|b| if b.as_os_str() == "none" { b } else { std::path::absolute(&b).unwrap_or(b) }),
        slurm: false,
        by_hand: false,
        keep: None,
    };
    let job = home.create(&what)?;
    let _lock = job.lock()?;
    spool_stdin(&job)?;
    let result = drive(&job, &what, None, 0, json);
    if matches!(result, Err(Error::Root | Error::NoLauncher(_) | Error::Start { .. }))
        && catalog::list(&job).is_empty()
    {
        // Nothing has run: no job is left behind.
        let _ = std::fs::remove_dir_all(&job.dir);
    }
    result
}

/// Names the ranks that were lost.
pub(crate) fn ranks_text(lost: &[u32]) -> String {
    let ranks: Vec<String> = lost.iter().map(u32::to_string).collect();
    match ranks.as_slice() {
        [] => "a rank".to_owned(),
        [one] => format!("rank {one}"),
        many => format!("ranks {}", many.join(", ")),
    }
}

/// Starts the job, again and again if need be, until it ends by itself. The first start of all is incarnation 0, which
/// needs no claim.
pub(crate) fn drive(
    job: &Job,
    what: &Description,
    mut from: Option<Checkpoint>,
    mut incarnation: u32,
    json: bool,
) -> Result<u8, Error> {
    let mut left = what.restarts;
    let mut heard = Heard::new()?;
    loop {
        if let Some(c) = &from {
            // Those behind it are of a past that did not happen: no later restart takes one of them.
            StartFile { incarnation, ..StartFile::default() }.at(Some(c)).write(job)?;
        }
        let dir = from.as_ref().map(|c| c.dir.as_path());
        let verdict = Start { job, what, incarnation, from: dir, json }.run(&mut heard);
        let was = !matches!(verdict, Err(Error::Root | Error::NoLauncher(_) | Error::Start { .. }));
        StartFile::over(job, incarnation, was);
        let (lost, status) = match verdict? {
            Verdict::Ended(status) => return Ok(status),
            Verdict::Stopped(ckpt) => {
                let text = format!(
                    "job {0} stopped at checkpoint {ckpt}; 'stillpoint restart {0}' goes on",
                    job.name
                );
                say(json, "stopped", job, &text);
                return Ok(0);
            }
            Verdict::Interrupted(status) => {
                if let Some(c) = catalog::last(job) {
                    let n = &job.name;
                    let text = format!(
                        "job {n} interrupted; 'stillpoint restart {n}' goes on from checkpoint {}",
                        c.id
                    );
                    say(json, "interrupted", job, &text);
                }
                return Ok(status);
            }
            Verdict::Lost(lost, status) => (lost, status),
        };
        let ranks = ranks_text(&lost);
        if left == 0 {
            say(json, "lost", job, &format!("{ranks} lost; no restart left"));
            return Ok(status);
        }
        left -= 1;
        // Before the choice: from here on no agent of the former start commits anything that was not looked at (INV-4).
        incarnation = RunDir::open(&job.dir)?.claim_incarnation()?;
        match newest(job, json) {
            Ok(c) => {
                let n = what.restarts - left;
                let text = format!("{ranks} lost; restart {n} of {} from checkpoint {}", what.restarts, c.id);
                say(json, "restart", job, &text);
                from = Some(c);
            }
            Err(e) => {
                say(json, "lost", job, &format!("{ranks} lost; {}", chain(&e)));
                return Ok(status);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let ok = |t| seconds(t).unwrap();
        assert_eq!((ok("30"), ok("2s"), ok("500ms"), ok("1.5m"), ok("1h")), (30.0, 2.0, 0.5, 90.0, 3600.0));
        for bad in ["", "s", "-1", "0", "5d", "1e3", "inf", "nan", "auto", "1..2"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_interval_that_is_found() {
        assert_eq!(every(Some("10m"), None).unwrap(), (Some(600.0), None));
        assert_eq!(every(None, Some(5.0)).unwrap(), (None, None));
        assert_eq!(every(Some("auto"), None).unwrap(), (None, Some(43_800.0)));
        assert_eq!(every(Some("auto"), Some(10.0)).unwrap(), (None, Some(10.0)));
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(matches!(every(None, Some(bad)), Err(Error::Mtbf(_))), "{bad}");
        }
        let text = |s: &str| Some(s.to_owned());
        assert_eq!(rhythm(Some(0.5), None, 2), [text("0.5"), None]);
        assert_eq!(rhythm(None, Some(10.0), 2), [text("auto"), text("18000")]);
        assert_eq!(rhythm(None, Some(1e8), 1), [text("auto"), text("900000000")]);
    }
}
