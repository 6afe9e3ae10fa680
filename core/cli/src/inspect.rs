//! `inspect` and `verify`: an image as text, and every byte of it checked. Both take a file, a directory, or a job's
//! checkpoint. Nothing is changed. Runs *next door*.

use std::path::Path;

use serde_json::json;
use stillpoint_image::{Image, Pretty};

use crate::catalog;
use crate::error::{Error, chain};
use crate::home::{Home, split};

/// The image that `what` means: a file, or that of `rank` in a directory or a checkpoint.
fn one(home: &Home, what: &str, rank: u32) -> Result<Image, Error> {
    let path = Path::new(what);
    if path.is_file() {
        return Ok(Image::open(path)?);
    }
    if path.is_dir() && !path.join("run.json").is_file() {
        return Ok(Image::open(&catalog::image_of(path, rank)?)?);
    }
    let (name, id) = split(what);
    let c = catalog::find(&home.job(name)?, id)?;
    Ok(Image::open(&catalog::image_of(&c.dir, rank)?)?)
}

pub(crate) fn inspect(home: &Home, what: &str, rank: u32, runs: bool, as_json: bool) -> Result<u8, Error> {
    let image = one(home, what, rank)?;
    let meta = image.meta()?;
    let index = if runs { Some(image.index()?) } else { None };
    let h = image.header();
    if !as_json {
        print!("{}", Pretty { header: h, meta: Some(&meta), index: index.as_ref() });
        return Ok(0);
    }
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    let p = &meta.process;
    let mut out = json!({
        "path": image.path(), "checkpoint": h.ckpt().0, "rank": h.rank().0, "size": h.size,
        "incarnation": h.incarnation.0, "identity": format!("{:032x}", h.identity()),
        "file_length": h.layout.file_len, "runs": h.layout.runs, "frames": h.layout.frames,
        "program": text(&p.exe), "arguments": p.argv.iter().map(|a| text(a)).collect::<Vec<_>>(),
        "directory": text(&p.cwd), "host": p.host, "kernel": p.kernel, "generation": p.generation,
        "process": p.vpid, "cpu": p.cpu, "mpi": p.mpi,
        "threads": meta.threads, "regions": meta.regions, "descriptors": meta.fds,
    });
    if let Some(i) = &index {
        let list: Vec<_> = i.runs.iter().map(|r| json!([r.addr, r.pages, r.file_offset])).collect();
        out["run_table"] = json!(list);
    }
    println!("{out}");
    Ok(0)
}

pub(crate) fn verify(home: &Home, what: &str, as_json: bool) -> Result<u8, Error> {
    let path = Path::new(what);
    let mut progress = catalog::meter(!as_json);
    let result = if path.is_file() {
        Image::open(path).map_err(Error::from).and_then(|i| catalog::verify_all(&[i], &mut progress))
    } else if path.is_dir() && !path.join("run.json").is_file() {
        catalog::images_in(path).and_then(|images| {
            let none = Error::Incomplete { dir: path.to_owned(), what: "no image".into() };
            if images.is_empty() { Err(none) } else { catalog::verify_all(&images, &mut progress) }
        })
    } else {
        let (name, id) = split(what);
        let job = home.job(name)?;
        catalog::find(&job, id)?.verify(&job, &mut progress)
    };
    match result {
        Ok(n) if as_json => println!("{}", json!({ "what": what, "sound": true, "images": n })),
        Ok(n) => println!("{what}: sound, {n} image{}", if n == 1 { "" } else { "s" }),
        Err(e) if as_json => {
            println!("{}", json!({ "what": what, "sound": false, "error": chain(&e) }));
            return Ok(1);
        }
        Err(e) => {
            println!("{what}: not sound: {}", chain(&e));
            return Ok(1);
        }
    }
    Ok(0)
}
