//! An image as text, for `stillpoint inspect`. What comes from the image is escaped before it is shown: a file name may hold
//! control characters of the terminal. The environment is counted, not shown: it holds secrets. Runs *next door*.

use std::fmt;

use crate::{FdKind, Header, Index, Meta, PAGE, VERSION};

/// Shows what it is given; sections that were not read are left out.
#[derive(Debug)]
pub struct Pretty<'a> {
    /// The header.
    pub header: &'a Header,
    /// META.
    pub meta: Option<&'a Meta>,
    /// INDEX.
    pub index: Option<&'a Index>,
}

fn text(b: &[u8]) -> String {
    String::from_utf8_lossy(b).escape_debug().to_string()
}

/// Bytes in the unit that leaves at least two digits.
fn size(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut u = 0;
    let mut v = n;
    while v >= 10 * 1024 && u + 1 < UNITS.len() {
        v /= 1024;
        u += 1;
    }
    format!("{v} {}", UNITS[u])
}

impl fmt::Display for Pretty<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (h, l) = (self.header, &self.header.layout);
        writeln!(f, "image        format {VERSION}, {} ({} bytes)", size(l.file_len), l.file_len)?;
        writeln!(f, "checkpoint   {}", h.ckpt())?;
        writeln!(f, "rank         {} of {}", h.rank(), h.size)?;
        writeln!(f, "incarnation  {}", h.incarnation)?;
        writeln!(f, "identity     {:032x}", h.identity())?;
        writeln!(f, "memory       {} in {} runs, {} frames", size(l.meta_off - PAGE), l.runs, l.frames)?;
        if let Some(m) = self.meta {
            meta(f, m)?;
        }
        if let Some(i) = self.index {
            writeln!(f, "runs")?;
            for r in &i.runs {
                writeln!(f, "  {:012x}-{:012x} at {:#x}", r.addr, r.addr + r.pages * PAGE, r.file_offset)?;
            }
        }
        Ok(())
    }
}

fn meta(f: &mut fmt::Formatter<'_>, m: &Meta) -> fmt::Result {
    let p = &m.process;
    writeln!(f, "program      {}", text(&p.exe))?;
    write!(f, "arguments   ")?;
    for a in &p.argv {
        write!(f, " {}", text(a))?;
    }
    writeln!(f, "\nenvironment  {} variables", p.envp.len())?;
    writeln!(f, "directory    {}, umask {:03o}", text(&p.cwd), p.umask)?;
    writeln!(f, "process      {}, generation {}", p.vpid, p.generation)?;
    writeln!(f, "taken on     {}, kernel {}", p.host.escape_debug(), p.kernel.escape_debug())?;
    let c = &p.cpu;
    writeln!(f, "processor    {} {:#x}, xcr0 {:#x}", c.vendor.escape_debug(), c.family, c.xcr0)?;
    let state = ["not initialised", "live", "finalized"].get(p.mpi.state as usize).unwrap_or(&"unknown");
    let family = if p.mpi.family.is_empty() { "none" } else { &p.mpi.family };
    writeln!(f, "mpi          {}, {state}", family.escape_debug())?;
    writeln!(f, "threads")?;
    for t in &m.threads {
        writeln!(f, "  {} {} fs {:#x}", t.vtid, t.name.escape_debug(), t.fs)?;
    }
    writeln!(f, "descriptors")?;
    for d in &m.fds {
        let (kind, path) = match &d.kind {
            FdKind::Std(n) => ("stream", n.to_string()),
            FdKind::File { path, len, .. } => ("file", format!("{} of {len} bytes", text(path))),
            FdKind::Dir { path } => ("directory", text(path)),
            FdKind::Dev { path } => ("device", text(path)),
            FdKind::Tcp(t) => {
                let [own, other] = t.ends.each_ref().map(|e| text(e));
                ("tcp", format!("{own} to {other}, {:?}, {} bytes wait", t.phase, t.waiting.len()))
            }
        };
        writeln!(f, "  {} {kind} {path} at {}", d.num, d.offset)?;
    }
    writeln!(f, "regions")?;
    for r in &m.regions {
        let bit = |b, c| if r.prot & b != 0 { c } else { '-' };
        let (a, b, c, s) = (bit(1, 'r'), bit(2, 'w'), bit(4, 'x'), if r.shared { 's' } else { 'p' });
        writeln!(f, "  {:012x}-{:012x} {a}{b}{c}{s} {}", r.start, r.end, r.name.escape_debug())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Process, RunTable, Seal};
    use stillpoint_abi::ids::{CkptId, Incarnation, Rank};

    #[test]
    fn shows_names_without_control_characters_and_no_environment() {
        let header = Header {
            seal: Seal { ckpt: CkptId(12), rank: Rank(0), seed: 0 },
            size: 1,
            incarnation: Incarnation(0),
            layout: RunTable::new(&mut []).layout(100),
            meta_sum: 0,
            index_sum: 0,
        };
        let process =
            Process { exe: b"/a\x1b[2J".to_vec(), envp: vec![b"KEY=hidden".to_vec()], ..Process::default() };
        let meta = Meta { process, ..Meta::default() };
        let s = Pretty { header: &header, meta: Some(&meta), index: None }.to_string();
        assert!(s.contains("checkpoint   12") && s.contains("1 variables") && !s.contains("hidden"));
        assert!(!s.contains('\x1b'));
        assert_eq!(size(20480), "20 KiB");
    }
}
