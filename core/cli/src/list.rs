//! `ls` and `status`: what jobs there are, and what one of them is doing. Runs *next door*.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::error::Error;
use crate::home::Home;
use crate::talk;
use crate::{byhand, catalog};

/// Bytes in a unit that leaves at least two digits.
fn size(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut v, mut u) = (n, 0);
    while v >= 10 * 1024 && u + 1 < units.len() {
        v /= 1024;
        u += 1;
    }
    format!("{v} {}", units[u])
}

/// How long ago a time in seconds since 1970 was.
pub(crate) fn age(time: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    match now.saturating_sub(time) {
        s @ ..=119 => format!("{s} s"),
        s @ ..=7199 => format!("{} min", s / 60),
        s @ ..=172_799 => format!("{} h", s / 3600),
        s => format!("{} days", s / 86400),
    }
}

pub(crate) fn ls(home: &Home, only: Option<&str>, as_json: bool) -> Result<u8, Error> {
    let jobs = match only {
        Some(name) => vec![home.job(name)?],
        None => home.jobs()?,
    };
    let mut out = Vec::new();
    for job in jobs {
        // A directory whose description cannot be read is shown, so that nobody looks for it in vain.
        let what = job.description();
        let runs = job.is_running() || (what.as_ref().is_ok_and(|w| w.by_hand) && byhand::runs(&job));
        let state = if runs { "running" } else { "ended" };
        let checkpoints = catalog::list(&job);
        if as_json {
            let list: Vec<_> = checkpoints
                .iter()
                .map(|c| json!({ "id": c.id, "dir": c.dir, "bytes": c.bytes(), "manifest": c.manifest }))
                .collect();
            let what = what.as_ref().ok();
            out.push(json!({
                "job": job.name, "dir": job.dir, "state": state, "checkpoints": list,
                "ranks": what.map(|w| w.ranks.unwrap_or(1)), "started": what.map(|w| w.info.time),
                "command": what.map(|w| w.title()),
            }));
            continue;
        }
        let (ranks, title) = match &what {
            // Slurm decides how many; a checkpoint knows.
            Ok(w) if w.slurm => {
                (checkpoints.last().map_or("?".into(), |c| c.manifest.size.to_string()), w.title())
            }
            Ok(w) => (w.ranks.unwrap_or(1).to_string(), w.title()),
            Err(e) => ("?".into(), e.to_string()),
        };
        println!("{:<5} {state:<8} {ranks:>5} ranks  {title}", job.name);
        for c in &checkpoints {
            let m = &c.manifest;
            let stood = m.stopped_ns as f64 / 1e6;
            let age = age(m.time);
            println!(
                "      @{:<6} {:>9}  {}, stopped {stood:.1} ms, {age} ago",
                c.id,
                size(c.bytes()),
                m.mode
            );
        }
    }
    if as_json {
        println!("{}", json!(out));
    }
    Ok(0)
}

pub(crate) fn status(home: &Home, name: Option<&str>, as_json: bool) -> Result<u8, Error> {
    let job = home.job_or_newest(name)?;
    let s = match talk::status(&job) {
        Ok(s) => s,
        Err(Error::NotRunning(_) | Error::AgentGone { .. }) => {
            let newest = catalog::last(&job).map(|c| c.id);
            let state = if job.is_running() {
                "running, but its agent does not answer (starting, ending, or gone)"
            } else {
                "ended"
            };
            if as_json {
                println!("{}", json!({ "job": job.name, "state": state, "last_checkpoint": newest }));
            } else {
                let last = newest.map_or("none".into(), |c| c.to_string());
                println!("job {}: {state}; last checkpoint: {last}", job.name);
            }
            return Ok(0);
        }
        Err(e) => return Err(e),
    };
    if as_json {
        println!("{}", json!({ "job": job.name, "state": "running", "status": s }));
        return Ok(0);
    }
    println!("job          {}", job.name);
    println!("incarnation  {}", s.incarnation);
    println!("running      {}", if s.running { "yes" } else { "not yet" });
    let at = if s.ckpt == 0 { String::new() } else { format!(", checkpoint {}", s.ckpt) };
    println!("stage        {}{at}", s.stage.escape_debug());
    if let Some((done, all)) = s.copying {
        println!("copying      {} of {} from the nodes' own disks", size(done), size(all));
    }
    println!("checkpoints  {} committed, {} given up", s.committed, s.given_up);
    if let Some(m) = s.last {
        let ms = |ns: u64| ns as f64 / 1e6;
        let way = if m.direct { "direct" } else { "forked" };
        println!(
            "last         {}: {}, {way}, held {:.1} ms, stopped {:.1} ms, {:.1} ms in all",
            m.ckpt,
            size(m.bytes),
            ms(m.held_ns),
            ms(m.stopped_ns),
            ms(m.total_ns)
        );
    }
    for r in &s.last_reasons {
        println!("given up     {}", r.escape_debug());
    }
    println!("ranks        {}", s.size);
    for (rank, (presence, pid)) in s.ranks.iter().enumerate() {
        println!("  {rank:<5} {presence:?} (process {pid})");
    }
    Ok(0)
}
