//! Reading an image. Opening reads the header page only; META and INDEX are read, and their checksums checked, when they
//! are asked for; memory is checked by [`Image::verify`], or frame by frame by whoever reads it.
//!
//! What a reader would get wrong: nothing is allocated before the length was checked against the file and, for the
//! sections, before their checksum was found right. Runs in the *lower half* at a restart and *next door*.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use stillpoint_abi::ids::{CkptId, Rank};

use crate::header::NoHeader;
use crate::section::{HEAD, SECTION_VERSION, decode_head};
use crate::{
    Error, FRAME_PAGES, Frame, Header, Index, Meta, PAGE, Run, SECTION_HEAD, Section, VERSION, decode_meta,
};

const CHUNK: usize = (FRAME_PAGES * PAGE) as usize;

/// An image whose header is right.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    file: File,
    header: Header,
}

impl Image {
    /// Opens an image and checks its header. Links are not followed.
    pub fn open(path: &Path) -> Result<Image, Error> {
        let io = |step| move |source| Error::Io { path: path.to_owned(), step, source };
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let file =
            OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path).map_err(io("open"))?;
        let stat = file.metadata().map_err(io("stat"))?;
        if !stat.is_file() {
            return Err(Error::NotAFile { path: path.to_owned() });
        }
        let mut page = [0; PAGE as usize];
        file.read_exact_at(&mut page, 0).map_err(|e| {
            if e.kind() == io::ErrorKind::UnexpectedEof {
                damaged(path, Section::Header, format!("the file has {} bytes", stat.len()))
            } else {
                io("read the header")(e)
            }
        })?;
        let header = Header::decode(&page, stat.len()).map_err(|e| match e {
            NoHeader::NotAnImage => Error::NotAnImage { path: path.to_owned() },
            NoHeader::Version(found) => {
                Error::Version { path: path.to_owned(), section: Section::Header, found, known: VERSION }
            }
            NoHeader::Bad(what) => damaged(path, Section::Header, what),
        })?;
        Ok(Image { path: path.to_owned(), file, header })
    }

    /// As [`Image::open`]; the image must be of this checkpoint and rank.
    pub fn open_as(path: &Path, ckpt: CkptId, rank: Rank) -> Result<Image, Error> {
        let image = Image::open(path)?;
        let seal = image.header.seal;
        if (seal.ckpt, seal.rank) != (ckpt, rank) {
            return Err(Error::Other {
                path: image.path,
                found_ckpt: seal.ckpt.0,
                found_rank: seal.rank.0,
                ckpt: ckpt.0,
                rank: rank.0,
            });
        }
        Ok(image)
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }
    /// The open file, for mapping it.
    pub fn file(&self) -> &File {
        &self.file
    }
    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// META, checked.
    pub fn meta(&self) -> Result<Meta, Error> {
        let l = &self.header.layout;
        let payload = self.section(Section::Meta, l.meta_off, l.meta_len, self.header.meta_sum)?;
        self.zeros(l.meta_off + l.meta_len, l.index_off)?;
        decode_meta(&payload).map_err(|what| damaged(&self.path, Section::Meta, what))
    }

    /// INDEX, checked.
    pub fn index(&self) -> Result<Index, Error> {
        let l = &self.header.layout;
        let payload = self.section(Section::Index, l.index_off, l.index_len, self.header.index_sum)?;
        Index::decode(&payload, l).map_err(|what| damaged(&self.path, Section::Index, what))
    }

    /// The runs, checked.
    pub fn runs(&self) -> Result<Vec<Run>, Error> {
        Ok(self.index()?.runs)
    }

    /// Checks every byte of the file. `progress` gets the bytes of memory that are done and all there are.
    pub fn verify(&self, progress: &mut impl FnMut(u64, u64)) -> Result<(), Error> {
        self.meta()?;
        let index = self.index()?;
        let total = self.header.layout.meta_off - PAGE;
        let mut buf = vec![0; CHUNK.min(usize::try_from(total).unwrap_or(CHUNK))];
        for (frame, sum) in index.frames() {
            let bytes = &mut buf[..frame.len];
            self.read(Section::Memory, bytes, frame.file_offset)?;
            self.check_frame(&frame, sum, bytes)?;
            progress(frame.file_offset + frame.len as u64 - PAGE, total);
        }
        Ok(())
    }

    /// Checks the bytes of one frame, wherever they were read to.
    pub fn check_frame(&self, frame: &Frame, sum: u128, bytes: &[u8]) -> Result<(), Error> {
        if self.header.seal.frame(frame.no, bytes) == sum {
            return Ok(());
        }
        let what = format!("frame {} at address {:#x}: checksum", frame.no, frame.addr);
        Err(damaged(&self.path, Section::Memory, what))
    }

    /// Reads run number `run` of `index` to the front of `buf`, checking each frame. Returns the bytes read.
    pub fn read_run_into(&self, index: &Index, run: usize, buf: &mut [u8]) -> Result<usize, Error> {
        let r = index
            .runs
            .get(run)
            .ok_or_else(|| damaged(&self.path, Section::Index, format!("no run {run}")))?;
        let len = usize::try_from(r.pages * PAGE).unwrap_or(usize::MAX);
        if buf.len() < len {
            return Err(Error::Short { have: buf.len(), need: r.pages * PAGE });
        }
        let span = r.addr..r.addr + r.pages * PAGE;
        for (f, sum) in index.frames().filter(|(f, _)| span.contains(&f.addr)) {
            let at = (f.addr - r.addr) as usize;
            let bytes = &mut buf[at..at + f.len];
            self.read(Section::Memory, bytes, f.file_offset)?;
            self.check_frame(&f, sum, bytes)?;
        }
        Ok(len)
    }

    fn read(&self, section: Section, buf: &mut [u8], at: u64) -> Result<(), Error> {
        self.file.read_exact_at(buf, at).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => damaged(&self.path, section, "the file ends within it".into()),
            _ => Error::Io { path: self.path.clone(), step: "read", source },
        })
    }

    /// The payload of a section, once its head and its checksum are right.
    fn section(&self, section: Section, off: u64, len: u64, sum: u128) -> Result<Vec<u8>, Error> {
        let bad = |what: &str| damaged(&self.path, section, what.into());
        let mut head = [0; HEAD];
        self.read(section, &mut head, off)?;
        let head = decode_head(section, &head).map_err(|what| bad(&what))?;
        if head.len != len - SECTION_HEAD || head.sum != sum {
            return Err(bad("does not belong to this header"));
        }
        if head.version != SECTION_VERSION {
            let (found, known) = (head.version, SECTION_VERSION);
            return Err(Error::Version { path: self.path.clone(), section, found, known });
        }
        // First the checksum, in pieces: a length that a sparse file seems to justify allocates nothing.
        let mut summer = self.header.seal.summer(section, 0);
        let mut buf = vec![0; CHUNK.min(usize::try_from(head.len).unwrap_or(CHUNK))];
        let mut done = 0;
        while done < head.len {
            let n = buf.len().min(usize::try_from(head.len - done).unwrap_or(usize::MAX));
            self.read(section, &mut buf[..n], off + SECTION_HEAD + done)?;
            summer.add(&buf[..n]);
            done += n as u64;
        }
        if summer.sum() != sum {
            return Err(bad("checksum"));
        }
        let mut payload = vec![0; usize::try_from(head.len).map_err(|_| bad("length"))?];
        self.read(section, &mut payload, off + SECTION_HEAD)?;
        // The file may have changed between the two passes; what is used is what was checked (INV-6).
        if self.header.seal.digest(section, 0, &payload) != sum {
            return Err(bad("changed while it was read"));
        }
        Ok(payload)
    }

    fn zeros(&self, from: u64, to: u64) -> Result<(), Error> {
        let mut pad = [0; PAGE as usize];
        let pad = &mut pad[..(to - from) as usize];
        self.read(Section::Meta, pad, from)?;
        if pad.iter().any(|b| *b != 0) {
            return Err(damaged(&self.path, Section::Meta, "padding".into()));
        }
        Ok(())
    }
}

fn damaged(path: &Path, section: Section, what: String) -> Error {
    Error::Damaged { path: path.to_owned(), section, what }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::*;
    use stillpoint_abi::ids::Incarnation;

    /// Small generator (splitmix64), so that a failing seed can be named.
    struct Rng(u64);
    impl Rng {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }
        fn below(&mut self, n: u64) -> u64 {
            self.next() % n
        }
        fn bytes(&mut self, n: u64) -> Vec<u8> {
            (0..n).map(|_| self.next() as u8).collect()
        }
    }

    struct Temp(PathBuf);
    impl Temp {
        fn new(name: &str) -> Temp {
            let p = std::env::temp_dir().join(format!("stillpoint-image-{}-{name}", std::process::id()));
            Temp(p)
        }
    }
    impl Drop for Temp {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    fn meta(g: &mut Rng) -> Meta {
        let n = g.below(5);
        Meta {
            process: Process {
                exe: b"/bin/a\xff".to_vec(),
                argv: (0..n).map(|i| g.bytes(i)).collect(),
                host: "node7".into(),
                cpu: Cpu { features: vec![1, g.next() as u32], xcr0: g.next(), ..Cpu::default() },
                mpi: Mpi { state: 1, level: 3, family: "openmpi".into() },
                vpid: -1,
                ..Process::default()
            },
            regions: (0..n)
                .map(|i| Region { start: i << 12, end: (i + 1) << 12, ..Region::default() })
                .collect(),
            threads: vec![
                Thread {
                    fs: g.next(),
                    affinity: g.bytes(8),
                    name: "main".into(),
                    ..Thread::default()
                };
                2
            ],
            signals: Signals { pending: g.bytes(128), itimers: [(1, 2), (0, 0), (g.next(), 4)] },
            fds: vec![
                Fd { num: 1, kind: FdKind::Std(1), ..Fd::default() },
                Fd {
                    num: 5,
                    offset: 9,
                    kind: FdKind::File { path: b"x".to_vec(), len: 10, dev: 1, ino: 2 },
                    ..Fd::default()
                },
            ],
        }
    }

    type Memory = Vec<(u64, Vec<u8>)>;

    /// Writes an image as the frozen child does, and returns it with what should be read.
    fn sample(seed: u64, biggest: u64) -> (Vec<u8>, Meta, Memory) {
        let g = &mut Rng(seed);
        let meta = meta(g);
        let seal = Seal { ckpt: CkptId(4), rank: Rank(1), seed: g.next() };
        let mut addr = 0x1000_0000_0000;
        let memory: Vec<(u64, Vec<u8>)> = (0..g.below(5))
            .map(|_| {
                addr += (1 + g.below(1000)) * PAGE;
                let pages = 1 + g.below(biggest);
                let bytes = g.bytes(pages * PAGE);
                let m = (addr, bytes);
                addr += m.1.len() as u64;
                m
            })
            .collect();
        let (meta_bytes, meta_sum) = encode_meta(&meta, &seal).unwrap();
        let mut runs = [Run::default(); 8];
        let mut table = RunTable::new(&mut runs);
        for (a, b) in &memory {
            table.push(*a, b.len() as u64 / PAGE).unwrap();
        }
        let layout = table.layout(meta_bytes.len() as u64);
        let mut file = vec![0; layout.file_len as usize];
        let mut index_bytes = vec![0; layout.index_len as usize];
        let mut index = IndexBuf::new(&mut index_bytes, &table).unwrap();
        for f in frames(table.runs()) {
            let (a, b) = memory.iter().find(|(a, b)| (*a..*a + b.len() as u64).contains(&f.addr)).unwrap();
            let bytes = &b[(f.addr - a) as usize..][..f.len];
            file[f.file_offset as usize..][..f.len].copy_from_slice(bytes);
            index.set(f.no, frame_digest(seal, f.no, bytes));
        }
        let (index_bytes, index_sum) = index.finish(&seal);
        file[layout.meta_off as usize..][..meta_bytes.len()].copy_from_slice(&meta_bytes);
        file[layout.index_off as usize..][..index_bytes.len()].copy_from_slice(index_bytes);
        let header = Header { seal, size: 2, incarnation: Incarnation(1), layout, meta_sum, index_sum };
        let mut page = [0; PAGE as usize];
        header.encode(&mut page);
        file[..PAGE as usize].copy_from_slice(&page);
        (file, meta, memory)
    }

    fn check(path: &Path) -> Result<(), Error> {
        Image::open(path)?.verify(&mut |_, _| {})
    }

    #[test]
    fn what_was_written_is_read() {
        let t = Temp::new("round");
        for seed in 0..20 {
            let (file, meta, memory) = sample(seed, 600);
            std::fs::write(&t.0, &file).unwrap();
            let image = Image::open_as(&t.0, CkptId(4), Rank(1)).unwrap();
            let mut last = (0, 0);
            image.verify(&mut |a, b| last = (a, b)).unwrap();
            assert_eq!(last.0, last.1, "seed {seed}");
            assert_eq!(image.meta().unwrap(), meta);
            let index = image.index().unwrap();
            assert_eq!(index.runs.len(), memory.len(), "seed {seed}");
            for (i, (addr, bytes)) in memory.iter().enumerate() {
                let mut buf = vec![0; bytes.len()];
                assert_eq!(image.read_run_into(&index, i, &mut buf).unwrap(), bytes.len());
                assert_eq!((index.runs[i].addr, &buf), (*addr, bytes));
                assert!(image.read_run_into(&index, i, &mut buf[1..]).is_err());
            }
            assert!(matches!(Image::open_as(&t.0, CkptId(5), Rank(1)), Err(Error::Other { .. })));
        }
    }

    #[test]
    fn every_flipped_bit_is_found_and_its_section_named() {
        let t = Temp::new("flip");
        let (file, ..) = sample(3, 4);
        std::fs::write(&t.0, &file).unwrap();
        let l = Image::open(&t.0).unwrap().header.layout;
        let g = &mut Rng(1);
        let dense = (l.meta_off..l.meta_off + l.meta_len).chain(l.index_off..l.file_len);
        let sparse: Vec<u64> = (0..2000).map(|_| g.below(l.file_len)).collect();
        let out = OpenOptions::new().write(true).open(&t.0).unwrap();
        for at in dense.chain(sparse) {
            let good = file[at as usize];
            out.write_all_at(&[good ^ (1 << g.below(8))], at).unwrap();
            let want = match at {
                a if a < PAGE => Section::Header,
                a if a < l.meta_off => Section::Memory,
                a if a < l.index_off => Section::Meta,
                _ => Section::Index,
            };
            match check(&t.0).unwrap_err() {
                Error::Damaged { section, .. } | Error::Version { section, .. } => {
                    assert_eq!(section, want, "{at}")
                }
                Error::NotAnImage { .. } => assert!(at < 8),
                e => panic!("byte {at}: {e}"),
            }
            out.write_all_at(&[good], at).unwrap();
        }
        check(&t.0).unwrap();
    }

    #[test]
    fn every_truncation_is_found() {
        let t = Temp::new("cut");
        let (file, ..) = sample(5, 4);
        std::fs::write(&t.0, &file).unwrap();
        let out = OpenOptions::new().write(true).open(&t.0).unwrap();
        let g = &mut Rng(2);
        let mut lens: Vec<u64> = (0..500).map(|_| g.below(file.len() as u64)).collect();
        lens.extend([0, 1, 4095, 4096, 4097, file.len() as u64 - 1]);
        lens.sort_unstable();
        for len in lens.into_iter().rev() {
            out.set_len(len).unwrap();
            assert!(matches!(check(&t.0), Err(Error::Damaged { section: Section::Header, .. })), "{len}");
        }
        out.set_len(0).unwrap();
        out.write_all_at(&file, 0).unwrap();
        out.write_all_at(&[0], file.len() as u64).unwrap();
        assert!(check(&t.0).is_err(), "one byte more");
    }

    #[test]
    fn swapped_frames_do_not_pass() {
        let t = Temp::new("swap");
        let mut seed = 0;
        let (mut file, memory) = loop {
            let (file, _, memory) = sample(seed, 4);
            if memory.len() >= 2 && memory[0].1.len() == memory[1].1.len() {
                break (file, memory);
            }
            seed += 1;
        };
        let n = memory[0].1.len();
        let (a, b) = (PAGE as usize, PAGE as usize + n);
        file[a..a + n].copy_from_slice(&memory[1].1);
        file[b..b + n].copy_from_slice(&memory[0].1);
        std::fs::write(&t.0, &file).unwrap();
        assert!(matches!(check(&t.0), Err(Error::Damaged { section: Section::Memory, .. })));
    }

    #[test]
    fn a_link_and_a_directory_are_refused() {
        let t = Temp::new("link");
        std::os::unix::fs::symlink("/dev/null", &t.0).unwrap();
        assert!(matches!(Image::open(&t.0), Err(Error::Io { step: "open", .. })));
        assert!(matches!(Image::open(&std::env::temp_dir()), Err(Error::NotAFile { .. })));
    }
}
