//! What these tests have in common: a directory that goes with its test, and stand-ins for programs. Runs *next door*.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use stillpoint_abi::ids::{CkptId, Incarnation, Rank};
use stillpoint_image::{Header, IndexBuf, Meta, RunTable, Seal, encode_meta};
use stillpoint_storage::commit::image_name;
use stillpoint_storage::manifest::{Entry, Manifest, VERSION, hex};
use stillpoint_storage::run::RunDir;
use twox_hash::XxHash3_128;

/// A directory, removed with everything in it.
pub(crate) struct Lab(pub(crate) PathBuf);

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A program that is a shell script.
pub(crate) fn script(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/sh\n{text}")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
}

fn image(ckpt: CkptId) -> Vec<u8> {
    let seal = Seal { ckpt, rank: Rank(0), seed: 5 };
    let (meta, meta_sum) = encode_meta(&Meta::default(), &seal).unwrap();
    let mut runs = [];
    let table = RunTable::new(&mut runs);
    let layout = table.layout(meta.len() as u64);
    let mut buf = vec![0; layout.index_len as usize];
    let (index, index_sum) = IndexBuf::new(&mut buf, &table).unwrap().finish(&seal);
    let mut page = [0; 4096];
    Header { seal, size: 1, incarnation: Incarnation(0), layout, meta_sum, index_sum }.encode(&mut page);
    let mut file = vec![0; layout.file_len as usize];
    file[..4096].copy_from_slice(&page);
    file[layout.meta_off as usize..][..meta.len()].copy_from_slice(&meta);
    file[layout.index_off as usize..].copy_from_slice(index);
    file
}

/// Takes a checkpoint in `run` by the store's own rules.
pub(crate) fn commit(run: &RunDir) -> CkptId {
    let ckpt = run.begin().unwrap();
    let bytes = image(ckpt);
    let path = run.partial_path(ckpt).join(image_name(0));
    fs::write(&path, &bytes).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let entry = Entry {
        rank: 0,
        file: image_name(0),
        file_len: bytes.len() as u64,
        bytes: 0,
        xxh3: hex(XxHash3_128::oneshot(&bytes[..4096])),
    };
    run.commit(&Manifest {
        format: "stillpoint".into(),
        version: VERSION,
        ckpt: ckpt.0,
        incarnation: 0,
        size: 1,
        time: 0,
        mode: "direct".into(),
        held_ns: 0,
        stopped_ns: 0,
        total_ns: 0,
        seed: String::new(),
        images: vec![entry],
        finished: vec![],
        xxh3: String::new(),
    })
    .unwrap();
    ckpt
}
