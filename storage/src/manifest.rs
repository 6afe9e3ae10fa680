//! What is in a checkpoint: `manifest.json`. Runs *next door*.
//!
//! What a reader would get wrong: a file's checksum here is of its first [`HEAD`] bytes only. It binds the manifest to an
//! image, whose header says the rest and whose frames carry checksums of their own. The manifest's own checksum covers its
//! text without the checksum's line, so that it can be printed and edited by no one.

use crate::{At, Result, StoreError};
use serde::{Deserialize, Serialize};
use std::path::Path;
use twox_hash::XxHash3_128;

/// Bytes at the beginning of a file that a manifest's checksum covers.
pub const HEAD: usize = 4096;

/// Name of the file.
pub const MANIFEST: &str = "manifest.json";
/// Version of its layout.
pub const VERSION: u32 = 1;

/// One file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Whose.
    pub rank: u32,
    /// Name within the directory.
    pub file: String,
    /// Length in bytes.
    pub file_len: u64,
    /// Bytes of memory in it.
    pub bytes: u64,
    /// xxh3-128 of the file's first [`HEAD`] bytes, 32 hexadecimal digits, most significant first. Whoever writes the
    /// file puts the checksums of the rest there, so that this one binds it all.
    pub xxh3: String,
}

/// A rank that had ended before the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    /// Which.
    pub rank: u32,
    /// Its exit status.
    pub status: i32,
}

/// The manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// `stillpoint`.
    pub format: String,
    /// [`VERSION`].
    pub version: u32,
    /// Number of the checkpoint.
    pub ckpt: u64,
    /// Which start of the job took it.
    pub incarnation: u32,
    /// Ranks of the job.
    pub size: u32,
    /// Seconds since 1970.
    pub time: u64,
    /// `direct` or `forked`.
    pub mode: String,
    /// From the first rank held to the resume.
    pub held_ns: u64,
    /// From the order to stop to the resume.
    pub stopped_ns: u64,
    /// From the request until the last image is durable where a commit looks.
    pub total_ns: u64,
    /// Seed of the images' hashes, hexadecimal.
    #[serde(default)]
    pub seed: String,
    /// The images, by rank.
    pub images: Vec<Entry>,
    /// Ranks that had ended.
    pub finished: Vec<Finished>,
    /// xxh3-128 of the rest.
    #[serde(default)]
    pub xxh3: String,
}

impl Manifest {
    /// The text, with its checksum.
    pub fn to_json(&self) -> serde_json::Result<String> {
        let mut sealed = self.clone();
        sealed.xxh3 = self.checksum()?;
        Ok(serde_json::to_string_pretty(&sealed)? + "\n")
    }

    fn checksum(&self) -> serde_json::Result<String> {
        let mut bare = self.clone();
        bare.xxh3.clear();
        Ok(hex(XxHash3_128::oneshot(serde_json::to_string(&bare)?.as_bytes())))
    }

    /// Reads and checks everything that can be checked without the images.
    pub fn read(dir: &Path) -> Result<Manifest> {
        let path = dir.join(MANIFEST);
        let text = crate::run::read_small(&path)?;
        let m: Manifest = serde_json::from_slice(&text)
            .map_err(|source| StoreError::Json { path: path.clone(), source })?;
        let sum = m.checksum().map_err(|source| StoreError::Json { path: path.clone(), source })?;
        let wrong = |reason: &str| Err(StoreError::Manifest { path: path.clone(), reason: reason.into() });
        if m.format != "stillpoint" {
            return wrong("not a manifest of ours");
        }
        if m.version != VERSION {
            return wrong(&format!("version {}, expected {VERSION}", m.version));
        }
        if m.xxh3 != sum {
            return wrong("its checksum does not fit");
        }
        let mut ranks: Vec<u32> =
            m.images.iter().map(|e| e.rank).chain(m.finished.iter().map(|f| f.rank)).collect();
        ranks.sort_unstable();
        if !ranks.iter().copied().eq(0..m.size) {
            return wrong("it does not name every rank once");
        }
        if m.images.iter().any(|e| e.file != crate::commit::image_name(e.rank)) {
            return wrong("it names a file that is none of its images");
        }
        Ok(m)
    }

    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        let path = dir.join(MANIFEST);
        let text = self.to_json().map_err(|source| StoreError::Json { path: path.clone(), source })?;
        std::fs::remove_file(&path).or_else(not_there).at("replace", &path)?;
        crate::run::create_new(&path, text.as_bytes(), true)
    }
}

fn not_there(e: std::io::Error) -> std::io::Result<()> {
    if e.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(e) }
}

/// 32 hexadecimal digits.
pub fn hex(sum: u128) -> String {
    format!("{sum:032x}")
}
