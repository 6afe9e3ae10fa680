//! A line of `/proc/<pid>/maps` at a time, from a buffer, without allocation. Format: proc_pid_maps(5).
//! A reader would expect paths to be unescaped: they are not; a newline in a path is `\012` there.

/// One mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Map<'a> {
    /// First address.
    pub start: usize,
    /// First address behind it.
    pub end: usize,
    /// PROT_READ 1, PROT_WRITE 2, PROT_EXEC 4.
    pub prot: u32,
    /// MAP_SHARED (`s` in the listing).
    pub shared: bool,
    /// Offset in the file.
    pub offset: u64,
    /// Inode, 0 for anonymous memory.
    pub inode: u64,
    /// Path, `[stack]` and its like, or empty.
    pub name: &'a [u8],
}

fn hex(s: &[u8]) -> Option<u64> {
    if s.is_empty() || s.len() > 16 {
        return None;
    }
    s.iter().try_fold(0u64, |v, c| Some(v << 4 | u64::from((*c as char).to_digit(16)?)))
}

fn dec(s: &[u8]) -> Option<u64> {
    s.iter().try_fold(0u64, |v, c| v.checked_mul(10)?.checked_add(u64::from((*c as char).to_digit(10)?)))
}

/// Parses one line (without its newline).
pub fn parse_line(line: &[u8]) -> Option<Map<'_>> {
    let mut f = line.splitn(6, |c| *c == b' ');
    let range = f.next()?;
    let dash = range.iter().position(|c| *c == b'-')?;
    let (start, end) = (hex(&range[..dash])?, hex(&range[dash + 1..])?);
    let p = f.next()?;
    if p.len() != 4 {
        return None;
    }
    let prot = u32::from(p[0] == b'r') | u32::from(p[1] == b'w') << 1 | u32::from(p[2] == b'x') << 2;
    let offset = hex(f.next()?)?;
    let _dev = f.next()?;
    let inode = dec(f.next()?)?;
    let name = f.next().unwrap_or(&[]);
    let skip = name.iter().position(|c| *c != b' ').unwrap_or(name.len());
    let (start, end) = (usize::try_from(start).ok()?, usize::try_from(end).ok()?);
    Some(Map { start, end, prot, shared: p[3] == b's', offset, inode, name: &name[skip..] })
}

/// All mappings in a whole listing; lines that do not parse are left out.
pub fn parse(text: &[u8]) -> impl Iterator<Item = Map<'_>> {
    text.split(|c| *c == b'\n').filter_map(parse_line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_line_and_an_anonymous_line() {
        let m = parse_line(b"7f00-7fff r-xs 00001000 08:01 42                         /lib/a b.so").unwrap();
        assert_eq!(
            (m.start, m.end, m.prot, m.shared, m.offset, m.inode),
            (0x7f00, 0x7fff, 5, true, 0x1000, 42)
        );
        assert_eq!(m.name, b"/lib/a b.so");
        let m = parse_line(b"1000-2000 rw-p 00000000 00:00 0 ").unwrap();
        assert_eq!((m.prot, m.shared, m.name), (3, false, &b""[..]));
    }

    #[test]
    fn rubbish_is_left_out() {
        assert_eq!(parse(b"x\n\n1-\n1000-2000 rw-p\n1000-2000 rw-p 0 0:0 0 [heap]\n").count(), 1);
    }
}
