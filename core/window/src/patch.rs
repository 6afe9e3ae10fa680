//! Finds the syscall sites of a text segment that must go through the hooks, and makes the code that leads there.
//! Pure: works on bytes; whoever calls it owns the mapping.
//!
//! ```text
//!  site     b8 NN NN 00 00 [mid] 0f 05      mov $nr,%eax; a few moves; syscall   (all of glibc 2.36's sites of our list)
//!  becomes  e9 rel32       [mid] 0f 05      jmp trampoline; the rest stays: a jump into it makes the plain call
//!  site     0f 05 48 3d XX f0 ff ff         syscall; cmp $-4095,%rax       (8 bytes; _exit and syscall() of glibc)
//!  becomes  e9 rel32 0f 1f 00               jmp trampoline; nop
//!
//!  trampoline (96 bytes, within 2 GiB of the site)
//!           b8 nr                           mov $nr,%eax                   (first form only)
//!           [mid]                           the moves, copied              (first form only)
//!           48 b9 return                    movabs $return,%rcx
//!           49 bb slot                      movabs $&Upper.hook_entry,%r11
//!           41 ff 23                        jmp *(%r11)
//!  second form: return is the next instruction of the trampoline itself
//!           48 3d XX f0 ff ff  ff 25 ...    cmp $..,%rax; jmp *site+8
//!  futex: hooked only while clocks are shifted; else it costs a load
//!           b8 nr  [mid]
//!           49 bb shift                     movabs $&Upper.clock_shift,%r11
//!           49 83 3b 00  75 08              cmpq $0,(%r11); jne to the movabs $return
//!           0f 05  ff 25 ...                syscall; jmp *return            (the address stands at the end)
//! ```
//! `rcx` and `r11` are free because the syscall instruction clobbers them. What a reader would get wrong: a
//! `0f 05` inside another instruction. The first form, with a number out of our list and nothing but instructions that
//! [`movable`] knows between, has not been seen as data in a text segment; the second form is only taken after the two
//! instructions that precede it in glibc.

/// Bytes of one trampoline.
pub const TRAMPOLINE: usize = 96;

/// A site to patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// `mov $nr,%eax; ...; syscall` at this offset.
    Numbered {
        /// Offset in the text.
        at: usize,
        /// System call number.
        nr: u32,
        /// Bytes between the two instructions.
        mid: u8,
    },
    /// `syscall; cmp $imm,%rax` at this offset, number in eax.
    Variable {
        /// Offset in the text.
        at: usize,
        /// The byte XX of the comparison.
        imm: u8,
    },
}

/// System calls that go through the hooks.
pub const HOOKED: &[u32] = &[
    1, 2, 3, 4, 6, 7, 9, 11, 12, 13, 14, 19, 20, 21, 22, 23, 25, 28, 30, 32, 33, 34, 35, 39, 41, 42, 43, 44,
    45, 46, 47, 53, 56, 59, 60, 62, 65, 67, 69, 70, 72, 89, 109, 121, 124, 128, 129, 130, 140, 141, 142, 143,
    144, 145, 148, 186, 200, 202, 203, 204, 218, 220, 228, 230, 231, 232, 234, 251, 252, 257, 262, 267, 269,
    270, 271, 273, 274, 281, 283, 288, 289, 290, 291, 292, 293, 294, 297, 302, 310, 311, 312, 314, 315, 319,
    332, 334, 434, 435, 436, 437, 439, 441,
];

/// futex(2), the hot path of every lock.
pub const FUTEX: u32 = 202;

/// Most bytes between number and syscall that are copied.
const MID: usize = 24;

/// Length of the instruction at the start of `t` if it is one that may be executed elsewhere, just as it is, and leaves
/// rax alone: moves, lea, cmov, zero extension, simple arithmetic on registers and on memory that is not relative to rip.
fn movable(t: &[u8]) -> Option<usize> {
    let at = |k: usize| t.get(k).copied();
    let (rex, mut n) = match at(0)? {
        r @ 0x40..=0x4f => (r, 1),
        _ => (0, 0),
    };
    let op = at(n)?;
    n += 1;
    // What the instruction writes: the register field, or the register or memory of the other operand.
    let (writes_reg, imm) = match op {
        0x8b | 0x8d | 0x33 | 0x63 | 0x2b | 0x03 | 0x23 | 0x0b => (true, 0),
        0x89 | 0x31 | 0x29 | 0x01 | 0x21 | 0x09 | 0x85 | 0x39 | 0x3b => (false, 0),
        0x80 | 0x83 | 0xc1 => (false, 1),
        0x81 | 0xc7 => (false, 4),
        0xb8..=0xbf if rex & 8 == 0 => return (op != 0xb8 || rex & 1 == 1).then_some(n + 4),
        0x0f => {
            let second = at(n)?;
            n += 1;
            match second {
                0x40..=0x4f | 0xb6 | 0xb7 => (true, 0),
                0x90..=0x9f => (false, 0),
                _ => return None,
            }
        }
        _ => return None,
    };
    let modrm = at(n)?;
    n += 1;
    let (mode, reg, rm) = (modrm >> 6, modrm >> 3 & 7, modrm & 7);
    // Without a prefix byte register 4 is ah.
    if matches!(op, 0x80 | 0x0f) && mode == 3 && rm == 4 && rex == 0 {
        return None;
    }
    if writes_reg && reg == 0 && rex & 4 == 0 || mode == 3 && !writes_reg && rm == 0 && rex & 1 == 0 {
        return None;
    }
    if mode != 3 && rm == 4 {
        let base = at(n)? & 7;
        n += 1;
        if mode == 0 && base == 5 {
            return None;
        }
    } else if mode == 0 && rm == 5 {
        return None;
    }
    n += match mode {
        1 => 1,
        2 => 4,
        _ => 0,
    };
    Some(n + imm)
}

/// Bytes between `mov $nr,%eax` (which ends where `t` begins) and a syscall instruction.
fn middle(t: &[u8]) -> Option<usize> {
    let mut n = 0;
    while n <= MID {
        let rest = t.get(n..)?;
        if rest.starts_with(&[0x0f, 0x05]) {
            return Some(n);
        }
        n += movable(rest)?;
    }
    None
}

const AFTER_MOV_ESI: &[u8] = &[0x89, 0xf0];
const AFTER_LOAD_R9: &[u8] = &[0x4c, 0x8b, 0x4c, 0x24, 0x08];

/// The next site at or after `from`.
pub fn next_site(text: &[u8], from: usize) -> Option<Site> {
    let mut k = from;
    while k + 8 <= text.len() {
        let t = &text[k..];
        // 0xb8 behind a REX prefix that extends it is another register.
        if t[0] == 0xb8 && t[3] == 0 && t[4] == 0 && !(k > 0 && text[k - 1] & 0xf1 == 0x41) {
            let nr = u32::from(t[1]) | u32::from(t[2]) << 8;
            if HOOKED.contains(&nr)
                && let Some(mid) = middle(&t[5..])
            {
                return Some(Site::Numbered { at: k, nr, mid: mid as u8 });
            }
        }
        if t[0] == 0x0f && t[1] == 0x05 && t[2] == 0x48 && t[3] == 0x3d && t[5..8] == [0xf0, 0xff, 0xff] {
            let before = &text[..k];
            if (before.ends_with(AFTER_MOV_ESI) && t[4] == 0)
                || (before.ends_with(AFTER_LOAD_R9) && t[4] == 1)
            {
                return Some(Site::Variable { at: k, imm: t[4] });
            }
        }
        k += 1;
    }
    None
}

/// First offset behind a site.
pub fn behind(site: Site) -> usize {
    match site {
        Site::Numbered { at, mid, .. } => at + 7 + usize::from(mid),
        Site::Variable { at, .. } => at + 8,
    }
}

/// Addresses that a trampoline loads.
#[derive(Clone, Copy, Debug)]
pub struct Slots {
    /// `Upper::hook_entry`.
    pub hook_entry: usize,
    /// `Upper::clock_shift`.
    pub clock_shift: usize,
}

/// Writes the trampoline for `site` of `text` into `out`, and returns the bytes that replace the site's first ones.
///
/// `text_addr` is where the text lies, `tramp_addr` where `out` will be executed. `None` if the trampoline is out of reach
/// of a 32-bit jump.
pub fn emit(
    site: Site,
    text: &[u8],
    text_addr: usize,
    tramp_addr: usize,
    slots: Slots,
    out: &mut [u8; TRAMPOLINE],
) -> Option<Patch> {
    let mut n = 0;
    let mut put = |b: &[u8]| {
        out[n..n + b.len()].copy_from_slice(b);
        n += b.len();
        n
    };
    let back = text_addr + behind(site);
    let at = match site {
        Site::Numbered { at, nr, mid } => {
            put(&[0xb8]);
            put(&nr.to_le_bytes());
            put(text.get(at + 5..at + 5 + usize::from(mid))?);
            if nr == FUTEX {
                put(&[0x49, 0xbb]);
                put(&slots.clock_shift.to_le_bytes());
                // The 8 bytes that are jumped over are the next two instructions.
                let here = put(&[0x49, 0x83, 0x3b, 0x00, 0x75, 0x08, 0x0f, 0x05]);
                // jmp *to the last 8 bytes of the trampoline
                let rel = (TRAMPOLINE - 8 - (here + 6)) as u32;
                put(&[0xff, 0x25]);
                put(&rel.to_le_bytes());
            }
            at
        }
        Site::Variable { at, .. } => at,
    };
    let here = put(&[0x48, 0xb9]);
    match site {
        Site::Numbered { .. } => put(&back.to_le_bytes()),
        // The instruction behind the jump.
        Site::Variable { .. } => put(&(tramp_addr + here + 8 + 10 + 3).to_le_bytes()),
    };
    put(&[0x49, 0xbb]);
    put(&slots.hook_entry.to_le_bytes());
    put(&[0x41, 0xff, 0x23]);
    if let Site::Variable { imm, .. } = site {
        put(&[0x48, 0x3d, imm, 0xf0, 0xff, 0xff]);
        put(&[0xff, 0x25, 0, 0, 0, 0]);
        put(&back.to_le_bytes());
    }
    out[TRAMPOLINE - 8..].copy_from_slice(&back.to_le_bytes());
    let rel = tramp_addr.wrapping_sub(text_addr + at + 5) as isize;
    let rel = i32::try_from(rel).ok()?;
    let mut bytes = [0xe9, 0, 0, 0, 0, 0x0f, 0x1f, 0x00];
    bytes[1..5].copy_from_slice(&rel.to_le_bytes());
    let len = if matches!(site, Site::Numbered { .. }) { 5 } else { 8 };
    Some(Patch { bytes, len })
}

/// The first bytes of a patched site.
#[derive(Clone, Copy, Debug)]
pub struct Patch {
    bytes: [u8; 8],
    len: usize,
}

impl Patch {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOTS: Slots = Slots { hook_entry: 0x77, clock_shift: 0x99 };

    #[test]
    fn finds_numbered_sites_of_our_list_only() {
        let mut t = [0x90u8; 64];
        t[5..12].copy_from_slice(&[0xb8, 9, 0, 0, 0, 0x0f, 5]);
        t[20..27].copy_from_slice(&[0xb8, 8, 0, 0, 0, 0x0f, 5]);
        t[30..37].copy_from_slice(&[0xb8, 0xb3, 1, 0, 0, 0x0f, 5]);
        let a = next_site(&t, 0).unwrap();
        assert_eq!(a, Site::Numbered { at: 5, nr: 9, mid: 0 });
        let b = next_site(&t, behind(a)).unwrap();
        assert_eq!(b, Site::Numbered { at: 30, nr: 435, mid: 0 });
        assert_eq!(next_site(&t, behind(b)), None);
    }

    #[test]
    fn moves_between_number_and_syscall_are_copied() {
        // pthread_kill: mov $234,%eax; mov 0x10(%r8),%esi; syscall
        let mut t = [0x90u8; 32];
        t[..11].copy_from_slice(&[0xb8, 234, 0, 0, 0, 0x41, 0x8b, 0x70, 0x10, 0x0f, 5]);
        let s = next_site(&t, 0).unwrap();
        assert_eq!((s, behind(s)), (Site::Numbered { at: 0, nr: 234, mid: 4 }, 11));
        let mut out = [0u8; TRAMPOLINE];
        let p = emit(s, &t, 0x1000, 0x5000, SLOTS, &mut out).unwrap();
        assert_eq!(p.bytes().len(), 5, "the rest of the site stays");
        assert_eq!(out[5..9], t[5..9]);
        assert_eq!(usize::from_le_bytes(out[11..19].try_into().unwrap()), 0x100b);
    }

    #[test]
    fn what_depends_on_its_place_or_writes_rax_is_not_copied() {
        for (mid, what) in [
            (&[0x48, 0x8d, 0x35, 1, 2, 3, 4][..], "lea rip-relative"),
            (&[0x8b, 0x44, 0x24, 8][..], "mov 8(%rsp),%eax"),
            (&[0x89, 0xf8][..], "mov %edi,%eax"),
            (&[0xb8, 8, 0, 0, 0][..], "mov $8,%eax"),
            (&[0x75, 0x08][..], "jne"),
        ] {
            let mut t = [0x90u8; 48];
            t[..5].copy_from_slice(&[0xb8, 234, 0, 0, 0]);
            t[5..5 + mid.len()].copy_from_slice(mid);
            t[5 + mid.len()..7 + mid.len()].copy_from_slice(&[0x0f, 5]);
            assert_eq!(next_site(&t, 0), None, "{what}");
        }
        for (mid, what) in [
            (&[0x8b, 0x74, 0x24, 0x1c][..], "mov 0x1c(%rsp),%esi"),
            (&[0x4c, 0x0f, 0x46, 0xc6][..], "cmovbe %rsi,%r8"),
            (&[0x40, 0x80, 0xf6, 0x81][..], "xor $0x81,%sil"),
        ] {
            let mut t = [0x90u8; 48];
            t[..5].copy_from_slice(&[0xb8, 234, 0, 0, 0]);
            t[5..5 + mid.len()].copy_from_slice(mid);
            t[5 + mid.len()..7 + mid.len()].copy_from_slice(&[0x0f, 5]);
            assert!(next_site(&t, 0).is_some(), "{what}");
        }
    }

    #[test]
    fn a_futex_site_looks_at_the_shift_first() {
        let mut t = [0x90u8; 16];
        t[..7].copy_from_slice(&[0xb8, 202, 0, 0, 0, 0x0f, 5]);
        let mut out = [0u8; TRAMPOLINE];
        emit(next_site(&t, 0).unwrap(), &t, 0x1000, 0x5000, SLOTS, &mut out).unwrap();
        assert_eq!(usize::from_le_bytes(out[7..15].try_into().unwrap()), 0x99);
        let jump = 5 + 10 + 6 + 2;
        assert_eq!(out[jump..jump + 2], [0xff, 0x25]);
        let rel = u32::from_le_bytes(out[jump + 2..jump + 6].try_into().unwrap()) as usize;
        let at = jump + 6 + rel;
        assert_eq!(usize::from_le_bytes(out[at..at + 8].try_into().unwrap()), 0x1007);
        assert_eq!(out[jump + 6..jump + 8], [0x48, 0xb9], "where jne leads");
    }

    #[test]
    fn the_jump_lands_on_the_trampoline() {
        let mut out = [0u8; TRAMPOLINE];
        let t = [0u8; 64];
        let p =
            emit(Site::Numbered { at: 0x10, nr: 9, mid: 0 }, &t, 0x1000, 0x5000, SLOTS, &mut out).unwrap();
        let rel = i32::from_le_bytes(p.bytes()[1..5].try_into().unwrap());
        assert_eq!(0x1000 + 0x10 + 5 + rel as usize, 0x5000);
        assert_eq!(out[..5], [0xb8, 9, 0, 0, 0]);
        assert_eq!(usize::from_le_bytes(out[7..15].try_into().unwrap()), 0x1017);
        assert!(emit(Site::Numbered { at: 0, nr: 9, mid: 0 }, &t, 0, 1 << 40, SLOTS, &mut out).is_none());
    }

    #[test]
    fn the_second_form_replays_the_comparison() {
        let mut t = [0x90u8; 32];
        t[3..8].copy_from_slice(AFTER_LOAD_R9);
        t[8..16].copy_from_slice(&[0x0f, 5, 0x48, 0x3d, 1, 0xf0, 0xff, 0xff]);
        let s = next_site(&t, 0).unwrap();
        assert_eq!(s, Site::Variable { at: 8, imm: 1 });
        let mut out = [0u8; TRAMPOLINE];
        emit(s, &t, 0x1000, 0x5000, SLOTS, &mut out).unwrap();
        assert_eq!(usize::from_le_bytes(out[2..10].try_into().unwrap()), 0x5000 + 23);
        assert_eq!(out[23..29], [0x48, 0x3d, 1, 0xf0, 0xff, 0xff]);
        assert_eq!(usize::from_le_bytes(out[35..43].try_into().unwrap()), 0x1010);
    }
}
