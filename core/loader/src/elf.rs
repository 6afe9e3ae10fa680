//! The parts of an ELF64 file that a loader needs (System V gABI, chapters 4 and 5). Pure; every offset is checked, so
//! that a damaged file is an error and never a fault.

/// One PT_LOAD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Address in the file's own numbering.
    pub vaddr: usize,
    /// Offset in the file.
    pub offset: usize,
    /// Bytes from the file.
    pub filesz: usize,
    /// Bytes in memory.
    pub memsz: usize,
    /// PROT_READ 1, PROT_WRITE 2, PROT_EXEC 4.
    pub prot: u32,
}

/// What the headers say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elf {
    /// ET_DYN (position independent) or ET_EXEC.
    pub dynamic: bool,
    /// Entry point.
    pub entry: usize,
    /// Offset of the program headers.
    pub phoff: usize,
    /// Number of program headers.
    pub phnum: usize,
    /// PT_LOADs in order.
    pub loads: Vec<Segment>,
    /// PT_INTERP.
    pub interp: Option<String>,
    /// PT_DYNAMIC: address and size.
    pub dynamic_at: Option<(usize, usize)>,
}

fn u16_at(b: &[u8], o: usize) -> Option<usize> {
    Some(u16::from_le_bytes(b.get(o..o + 2)?.try_into().ok()?) as usize)
}
fn u32_at(b: &[u8], o: usize) -> Option<u32> {
    Some(u32::from_le_bytes(b.get(o..o + 4)?.try_into().ok()?))
}
fn u64_at(b: &[u8], o: usize) -> Option<usize> {
    usize::try_from(u64::from_le_bytes(b.get(o..o.checked_add(8)?)?.try_into().ok()?)).ok()
}

/// Parses the headers of a whole file (or of its first pages, if these hold the headers and PT_INTERP).
///
/// # Errors
/// What is wrong, in a few words.
pub fn parse(b: &[u8]) -> Result<Elf, &'static str> {
    if b.get(..4) != Some(b"\x7fELF") {
        return Err("no ELF magic");
    }
    if b.get(4..6) != Some(&[2, 1]) {
        return Err("not 64-bit little-endian");
    }
    let short = "the headers are cut off";
    let kind = u16_at(b, 16).ok_or(short)?;
    if u16_at(b, 18) != Some(62) {
        return Err("made for another processor");
    }
    if kind != 2 && kind != 3 {
        return Err("neither a program nor a shared object");
    }
    let (phoff, phnum) = (u64_at(b, 32).ok_or(short)?, u16_at(b, 56).ok_or(short)?);
    if u16_at(b, 54) != Some(56) || phnum == 0 {
        return Err("no program headers");
    }
    let mut e = Elf {
        dynamic: kind == 3,
        entry: u64_at(b, 24).ok_or(short)?,
        phoff,
        phnum,
        loads: Vec::new(),
        interp: None,
        dynamic_at: None,
    };
    for k in 0..phnum {
        let p = phoff.checked_add(k * 56).ok_or(short)?;
        let flags = u32_at(b, p + 4).ok_or(short)?;
        let s = Segment {
            offset: u64_at(b, p + 8).ok_or(short)?,
            vaddr: u64_at(b, p + 16).ok_or(short)?,
            filesz: u64_at(b, p + 32).ok_or(short)?,
            memsz: u64_at(b, p + 40).ok_or(short)?,
            // PF_X 1, PF_W 2, PF_R 4
            prot: (flags >> 2 & 1) | (flags & 2) | (flags & 1) << 2,
        };
        match u32_at(b, p).ok_or(short)? {
            1 => {
                if s.filesz > s.memsz || s.vaddr.checked_add(s.memsz).is_none_or(|e| e >= 1 << 47) {
                    return Err("a segment has an impossible size");
                }
                if s.offset & 4095 != s.vaddr & 4095 {
                    return Err("a segment is not aligned to pages");
                }
                e.loads.push(s);
            }
            2 => e.dynamic_at = Some((s.vaddr, s.memsz)),
            3 => {
                let raw = s.offset.checked_add(s.filesz).and_then(|end| b.get(s.offset..end));
                let raw = raw.ok_or("PT_INTERP lies outside the file")?;
                let n = raw.iter().position(|c| *c == 0).ok_or("PT_INTERP is not terminated")?;
                e.interp = Some(String::from_utf8_lossy(&raw[..n]).into_owned());
            }
            _ => {}
        }
    }
    if e.loads.is_empty() {
        return Err("nothing to load");
    }
    Ok(e)
}

impl Elf {
    /// Lowest page and end of all segments, in the file's numbering.
    pub fn span(&self) -> (usize, usize) {
        let lo = self.loads.iter().map(|s| s.vaddr & !4095).min().unwrap_or(0);
        let hi = self.loads.iter().map(|s| (s.vaddr + s.memsz + 4095) & !4095).max().unwrap_or(0);
        (lo, hi)
    }
}

/// Directories where the dynamic loader looks for the libraries of this program first (DT_RUNPATH, else DT_RPATH).
/// `b` is the whole file, `origin` the directory that holds it.
pub fn run_path(b: &[u8], e: &Elf, origin: &std::path::Path) -> Vec<std::path::PathBuf> {
    let in_file = |addr: usize| {
        let s = e.loads.iter().find(|s| (s.vaddr..s.vaddr + s.filesz).contains(&addr))?;
        Some(s.offset + (addr - s.vaddr))
    };
    let find = || -> Option<String> {
        let (at, len) = e.dynamic_at?;
        let at = in_file(at)?;
        let tag = |want| (0..len / 16).find(|k| u64_at(b, at + 16 * k) == Some(want));
        let value = |k: usize| u64_at(b, at + 16 * k + 8);
        let strings = in_file(value(tag(5)?)?)?;
        // DT_RUNPATH 29, DT_RPATH 15 (gABI, chapter 5).
        let name = strings.checked_add(value(tag(29).or_else(|| tag(15))?)?)?;
        let text = b.get(name..)?;
        let n = text.iter().position(|c| *c == 0)?;
        Some(String::from_utf8_lossy(&text[..n]).into_owned())
    };
    let origin = origin.to_string_lossy();
    let all = find().unwrap_or_default();
    all.split(':')
        .filter(|d| !d.is_empty())
        .map(|d| d.replace("${ORIGIN}", &origin).replace("$ORIGIN", &origin).into())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_very_program_parses() {
        let b = std::fs::read("/proc/self/exe").unwrap();
        let e = parse(&b).unwrap();
        assert!(e.dynamic && e.interp.is_some() && e.loads.len() > 1);
    }

    #[test]
    fn cut_or_flipped_headers_never_panic() {
        let b = std::fs::read("/proc/self/exe").unwrap();
        let head = &b[..4096.min(b.len())];
        for n in 0..head.len() {
            let _ = parse(&head[..n]);
        }
        let mut x = 1u64;
        for _ in 0..20000 {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let mut c = head.to_vec();
            let k = (x >> 33) as usize % c.len().min(1024);
            c[k] ^= 1 << (x >> 60 & 7);
            let _ = parse(&c);
        }
    }
}
