//! The checkpoints of a job, as the store lists them, and the images in them. The store knows files and checksums; this
//! file adds what an image is. A damaged checkpoint is passed over, the one before is taken. Runs *next door*.

use std::fs;
use std::io::{IsTerminal, Write, stderr};
use std::path::{Path, PathBuf};

use stillpoint_abi::ids::{CkptId, Rank};
use stillpoint_image::Image;
use stillpoint_storage::commit::image_name;
use stillpoint_storage::manifest::Manifest;
use stillpoint_storage::run::RunDir;

use crate::error::{Error, chain};
use crate::home::Job;

/// A committed checkpoint whose manifest is right.
#[derive(Clone, Debug)]
pub(crate) struct Checkpoint {
    pub(crate) id: u64,
    pub(crate) dir: PathBuf,
    pub(crate) manifest: Manifest,
}

impl Checkpoint {
    /// Bytes of all its images.
    pub(crate) fn bytes(&self) -> u64 {
        self.manifest.images.iter().map(|e| e.file_len).sum()
    }

    /// Its images as the manifest names them; each must be of this checkpoint and its rank.
    pub(crate) fn images(&self) -> Result<Vec<Image>, Error> {
        let open = |e: &stillpoint_storage::manifest::Entry| {
            let image = Image::open_as(&self.dir.join(&e.file), CkptId(self.id), Rank(e.rank))?;
            let size = image.header().size;
            if size == self.manifest.size {
                Ok(image)
            } else {
                let what = format!("{} is of {size} ranks, not {}", e.file, self.manifest.size);
                Err(Error::Incomplete { dir: self.dir.clone(), what })
            }
        };
        self.manifest.images.iter().map(open).collect()
    }

    /// Checks every byte: each image by its own checksums, then all files against the manifest.
    pub(crate) fn verify(&self, job: &Job, progress: &mut impl FnMut(u64, u64)) -> Result<u32, Error> {
        let n = verify_all(&self.images()?, progress)?;
        RunDir::open(&job.dir)?.verify(CkptId(self.id))?;
        Ok(n)
    }
}

/// Checks every byte of some images; `progress` gets the bytes done and all there are.
pub(crate) fn verify_all(images: &[Image], progress: &mut impl FnMut(u64, u64)) -> Result<u32, Error> {
    let total: u64 = images.iter().map(|i| i.header().layout.file_len).sum();
    let mut done = 0;
    for i in images {
        i.verify(&mut |n, _| progress(done + n, total))?;
        done += i.header().layout.file_len;
        progress(done, total);
    }
    Ok(images.len() as u32)
}

/// Shows on a terminal how far a verification is, if it is one that takes its time.
pub(crate) fn meter(wanted: bool) -> impl FnMut(u64, u64) {
    const LONG: u64 = 256 << 20;
    let show = wanted && stderr().is_terminal();
    let mut last = 101;
    move |done, total| {
        let percent = (done * 100).checked_div(total).unwrap_or(100);
        if show && total >= LONG && percent != last {
            last = percent;
            eprint!("\rstillpoint: verify {percent:3} %{}", if percent == 100 { "\n" } else { "" });
            let _ = stderr().flush();
        }
    }
}

/// All images in a directory by rank; a damaged one is an error, other files are passed over.
pub(crate) fn images_in(dir: &Path) -> Result<Vec<Image>, Error> {
    let mut images = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let path = entry.map_err(Error::io("list", dir))?.path();
        if path.extension().is_some_and(|e| e == "img") {
            images.push(Image::open(&path)?);
        }
    }
    images.sort_by_key(|i| i.header().rank());
    Ok(images)
}

/// The image of one rank in a checkpoint's directory.
pub(crate) fn image_of(dir: &Path, rank: u32) -> Result<PathBuf, Error> {
    let path = dir.join(image_name(rank));
    if !path.is_file() {
        return Err(Error::NoImage { dir: dir.to_owned(), rank });
    }
    Ok(path)
}

/// All checkpoints of a job, the oldest first; those whose manifest is not right are left out.
pub(crate) fn list(job: &Job) -> Vec<Checkpoint> {
    let Ok(run) = RunDir::open(&job.dir) else { return vec![] };
    let mut all: Vec<Checkpoint> = run
        .scan()
        .unwrap_or_default()
        .into_iter()
        .filter(|(_, partial)| !partial)
        .filter_map(|(id, _)| {
            let manifest = run.manifest(id).ok()?;
            Some(Checkpoint { id: id.0, dir: run.ckpt_path(id), manifest })
        })
        .collect();
    all.sort_by_key(|c| c.id);
    all
}

/// Checkpoint `id`, or the newest. For a named one, what is wrong with its manifest is the error.
pub(crate) fn find(job: &Job, id: Option<u64>) -> Result<Checkpoint, Error> {
    let none = || Error::NoCheckpoint(job.name.clone(), id.map_or(String::new(), |i| format!(" {i}")));
    let Some(i) = id else { return list(job).pop().ok_or_else(none) };
    let run = RunDir::open(&job.dir)?;
    let dir = run.ckpt_path(CkptId(i));
    if !dir.is_dir() {
        return Err(none());
    }
    Ok(Checkpoint { id: i, manifest: run.manifest(CkptId(i))?, dir })
}

/// The one that a restart begins at, if it is sound.
pub(crate) fn last(job: &Job) -> Option<Checkpoint> {
    let way = RunDir::open(&job.dir).and_then(|run| run.way()).ok()?;
    match way.told() {
        Some(id) => find(job, Some(id.0)).ok(),
        None => list(job).into_iter().rfind(|c| way.has(CkptId(c.id), c.manifest.incarnation)),
    }
}

/// The newest checkpoint whose every byte is right and that the run has passed through, or the one at which it was told to begin.
/// `skipped` is told of each that is not right.
pub(crate) fn newest_sound(job: &Job, skipped: &mut impl FnMut(u64, &str)) -> Result<Checkpoint, Error> {
    let run = RunDir::open(&job.dir)?;
    let way = run.way()?;
    let sound = |c: Checkpoint| c.verify(job, &mut meter(true)).map(|_| c);
    if let Some(id) = way.told() {
        return match find(job, Some(id.0)) {
            // There was one: to begin anew would be to give it up.
            Err(Error::NoCheckpoint(name, _)) => Err(Error::NoneUsable(name)),
            found => found.and_then(sound),
        };
    }
    let mut any = false;
    for (id, partial) in run.scan()? {
        let found = if partial { continue } else { find(job, Some(id.0)) };
        if found.as_ref().is_ok_and(|c| !way.has(id, c.manifest.incarnation)) {
            continue;
        }
        any = true;
        match found.and_then(sound) {
            Ok(c) => return Ok(c),
            Err(e) => skipped(id.0, &chain(&e)),
        }
    }
    let name = job.name.clone();
    Err(if any { Error::NoneUsable(name) } else { Error::NoCheckpoint(name, String::new()) })
}
