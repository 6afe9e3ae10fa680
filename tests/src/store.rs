//! What lies in a store while a job runs, seen from outside. Runs *next door*.
//!
//! What a reader would get wrong: nothing here is asked of Stillpoint; a test that believed the program under test could not fail
//! with it.

use std::fs;
use std::path::{Path, PathBuf};

/// Number of the newest commit, 0 if there is none.
pub fn newest(store: &Path) -> u64 {
    let number = |folder: &PathBuf| folder.file_name()?.to_str()?.rsplit('-').next()?.parse().ok();
    commits(store).iter().filter_map(number).max().unwrap_or(0)
}

/// The committed checkpoints below a store: folders that hold a manifest and are not being written.
pub fn commits(store: &Path) -> Vec<PathBuf> {
    folders(store)
        .into_iter()
        .filter(|folder| !is_partial(folder) && folder.join("manifest.json").is_file())
        .collect()
}

/// Whether a checkpoint is being written just now.
pub(crate) fn being_written(store: &Path) -> bool {
    folders(store).iter().any(|folder| is_partial(folder))
}

fn is_partial(folder: &Path) -> bool {
    folder.extension().is_some_and(|ending| ending == "partial")
}

/// A folder and all below it.
fn folders(top: &Path) -> Vec<PathBuf> {
    let mut found = vec![top.to_path_buf()];
    let mut next = 0;
    while let Some(folder) = found.get(next) {
        let below = fs::read_dir(folder).into_iter().flatten().flatten();
        let below: Vec<PathBuf> = below
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path())
            .collect();
        found.extend(below);
        next += 1;
    }
    found
}

/// Bytes of the files in a folder.
pub(crate) fn size(folder: &Path) -> u64 {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|data| data.len()).sum()
}

/// What the node agent said, for a failed assertion.
pub(crate) fn log(store: &Path) -> String {
    let is_log = |file: &PathBuf| {
        file.file_name()
            .and_then(|n| n.to_str())
            .is_some_and(|n| n.starts_with("agent") && n.ends_with(".log"))
    };
    let files = folders(store).into_iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
    let logs = files.map(|file| file.path()).filter(is_log).filter_map(|file| fs::read_to_string(file).ok());
    logs.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::Scratch;

    #[test]
    fn a_checkpoint_counts_once_it_is_renamed_into_place() {
        let scratch = Scratch::new("unit", "commits");
        let partial = scratch.0.join("run/ckpt-000001.partial");
        fs::create_dir_all(&partial).unwrap();
        fs::write(partial.join("manifest.json"), "{}").unwrap();
        assert!(commits(&scratch.0).is_empty() && being_written(&scratch.0));
        fs::rename(&partial, partial.with_extension("")).unwrap();
        assert!(commits(&scratch.0).len() == 1 && !being_written(&scratch.0));
    }
}
