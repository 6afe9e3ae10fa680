//! `restart`: starts a job again from a checkpoint, with the options it was run with unless others are given. A
//! checkpoint that was named is used or refused; without a name, the newest sound one is taken. Runs *next door*.

use std::ffi::OsStr;

use crate::error::Error;
use crate::home::{Home, split};
use crate::run::{drive, every, say};
use crate::slurm::choose::newest;
use crate::slurm::{job, step};
use crate::{catalog, drain};

/// What differs from the first run.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) ranks: Option<u32>,
    pub(crate) restarts: Option<u32>,
    pub(crate) interval: Option<String>,
    pub(crate) launcher: Option<String>,
}

pub(crate) fn restart(home: &Home, job: &str, change: Change, json: bool) -> Result<u8, Error> {
    let (name, id) = split(job);
    let job = home.job(name)?;
    let mut what = job.description()?;
    if what.by_hand {
        let n = what.ranks.unwrap_or(1);
        return Err(Error::ByHand(format!(
            "the ranks of job {name} are started by hand: 'stillpoint exec --job {name} --np {n} --restart', once for each"
        )));
    }
    if change.interval.is_some() {
        (what.interval, what.auto) = every(change.interval.as_deref(), what.auto)?;
    }
    what.restarts = change.restarts.unwrap_or(what.restarts);
    what.launch_with = change.launcher.or(what.launch_with);
    let _lock = job.lock()?;
    // Before the choice: an agent that still ends must not commit anything behind it (INV-4).
    let incarnation = drain::claim(&job, json)?;
    let from = match id {
        Some(_) => {
            let c = catalog::find(&job, id)?;
            c.verify(&job, &mut catalog::meter(!json))?;
            c
        }
        None => newest(&job, json)?,
    };
    let have = from.manifest.size;
    let want = change.ranks.or(what.ranks).unwrap_or(if what.slurm { have } else { 1 });
    if want != have {
        return Err(Error::Ranks { ckpt: from.id, have, want });
    }
    say(json, "restart", &job, &format!("restart of job {} from checkpoint {}", job.name, from.id));
    if what.slurm {
        let srun = job::real(OsStr::new("srun")).ok_or_else(|| Error::NoSlurm("srun".into()))?;
        return step::again(&job, &what, from, incarnation, &srun, json);
    }
    drive(&job, &what, Some(from), incarnation, json)
}
