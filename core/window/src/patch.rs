//! Finds the syscall sites of a text segment that must go through the hooks, and makes the code that leads there.
//! Pure: works on bytes; whoever calls it owns the mapping.
//!
//! ```text
//!  site     b8 NN NN 00 00 0f 05            mov $nr,%eax; syscall          (7 bytes; 436 of glibc 2.36's 528)
//!  becomes  e9 rel32 66 90                  jmp trampoline; nop
//!  site     0f 05 48 3d XX f0 ff ff         syscall; cmp $-4095,%rax       (8 bytes; _exit and syscall() of glibc)
//!  becomes  e9 rel32 0f 1f 00               jmp trampoline; nop
//!
//!  trampoline (64 bytes, within 2 GiB of the site)
//!           b8 nr                           mov $nr,%eax                   (first form only)
//!           48 b9 return                    movabs $return,%rcx
//!           49 bb slot                      movabs $&Upper.hook_entry,%r11
//!           41 ff 23                        jmp *(%r11)
//!  second form: return is the next instruction of the trampoline itself
//!           48 3d XX f0 ff ff  ff 25 ...    cmp $..,%rax; jmp *site+8
//! ```
//! `rcx` and `r11` are free because the syscall instruction clobbers them. What a reader would get wrong: a
//! `0f 05` inside another instruction. The first form's seven bytes, with a number out of our list, have not been
//! seen as data in a text segment; the second form is only taken after the two instructions that precede it in glibc.

/// Bytes of one trampoline.
pub const TRAMPOLINE: usize = 64;

/// A site to patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// `mov $nr,%eax; syscall` at this offset.
    Numbered {
        /// Offset in the text.
        at: usize,
        /// System call number.
        nr: u32,
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
    7, 9, 11, 12, 13, 14, 23, 25, 30, 34, 35, 39, 56, 59, 60, 62, 67, 89, 128, 130, 186, 200, 202, 203, 204,
    218, 230, 231, 232, 234, 267, 270, 271, 273, 281, 334, 435,
];

const AFTER_MOV_ESI: &[u8] = &[0x89, 0xf0];
const AFTER_LOAD_R9: &[u8] = &[0x4c, 0x8b, 0x4c, 0x24, 0x08];

/// The next site at or after `from`.
pub fn next_site(text: &[u8], from: usize) -> Option<Site> {
    let mut k = from;
    while k + 8 <= text.len() {
        let t = &text[k..];
        if t[0] == 0xb8 && t[3] == 0 && t[4] == 0 && t[5] == 0x0f && t[6] == 0x05 {
            let nr = u32::from(t[1]) | u32::from(t[2]) << 8;
            // futex is hooked only behind syscall(): its numbered sites are the hot path of every lock.
            if HOOKED.contains(&nr) && nr != 202 {
                return Some(Site::Numbered { at: k, nr });
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
        Site::Numbered { at, .. } => at + 7,
        Site::Variable { at, .. } => at + 8,
    }
}

/// Writes the trampoline for `site` into `out`, and returns the bytes that replace the site.
///
/// `text_addr` is where the text lies, `tramp_addr` where `out` will be executed, `slot_addr` the address of
/// `Upper::hook_entry`. `None` if the trampoline is out of reach of a 32-bit jump.
pub fn emit(
    site: Site,
    text_addr: usize,
    tramp_addr: usize,
    slot_addr: usize,
    out: &mut [u8; TRAMPOLINE],
) -> Option<[u8; 8]> {
    let mut n = 0;
    let mut put = |b: &[u8]| {
        out[n..n + b.len()].copy_from_slice(b);
        n += b.len();
        n
    };
    let (at, tail): (usize, &[u8]) = match site {
        Site::Numbered { at, nr } => {
            put(&[0xb8]);
            put(&nr.to_le_bytes());
            (at, &[0x66, 0x90])
        }
        Site::Variable { at, .. } => (at, &[0x0f, 0x1f, 0x00]),
    };
    put(&[0x48, 0xb9]);
    match site {
        Site::Numbered { at, .. } => put(&(text_addr + at + 7).to_le_bytes()),
        // 2 + 8 + 2 + 8 + 3 bytes from the start of the trampoline.
        Site::Variable { .. } => put(&(tramp_addr + 23).to_le_bytes()),
    };
    put(&[0x49, 0xbb]);
    put(&slot_addr.to_le_bytes());
    put(&[0x41, 0xff, 0x23]);
    if let Site::Variable { at, imm } = site {
        put(&[0x48, 0x3d, imm, 0xf0, 0xff, 0xff]);
        put(&[0xff, 0x25, 0, 0, 0, 0]);
        put(&(text_addr + at + 8).to_le_bytes());
    }
    let rel = tramp_addr.wrapping_sub(text_addr + at + 5).cast_signed();
    let rel = i32::try_from(rel).ok()?;
    let mut patch = [0u8; 8];
    patch[0] = 0xe9;
    patch[1..5].copy_from_slice(&rel.to_le_bytes());
    patch[5..5 + tail.len()].copy_from_slice(tail);
    Some(patch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_numbered_sites_of_our_list_only() {
        let mut t = [0x90u8; 64];
        t[5..12].copy_from_slice(&[0xb8, 9, 0, 0, 0, 0x0f, 5]);
        t[20..27].copy_from_slice(&[0xb8, 1, 0, 0, 0, 0x0f, 5]);
        t[30..37].copy_from_slice(&[0xb8, 0xb3, 1, 0, 0, 0x0f, 5]);
        let a = next_site(&t, 0).unwrap();
        assert_eq!(a, Site::Numbered { at: 5, nr: 9 });
        let b = next_site(&t, behind(a)).unwrap();
        assert_eq!(b, Site::Numbered { at: 30, nr: 435 });
        assert_eq!(next_site(&t, behind(b)), None);
    }

    #[test]
    fn the_jump_lands_on_the_trampoline() {
        let mut out = [0u8; TRAMPOLINE];
        let p = emit(Site::Numbered { at: 0x10, nr: 9 }, 0x1000, 0x5000, 0x77, &mut out).unwrap();
        let rel = i32::from_le_bytes(p[1..5].try_into().unwrap());
        assert_eq!(0x1000 + 0x10 + 5 + rel as usize, 0x5000);
        assert_eq!(out[..5], [0xb8, 9, 0, 0, 0]);
        assert_eq!(usize::from_le_bytes(out[7..15].try_into().unwrap()), 0x1017);
        assert!(emit(Site::Numbered { at: 0, nr: 9 }, 0, 1 << 40, 0, &mut out).is_none());
    }

    #[test]
    fn the_second_form_replays_the_comparison() {
        let mut t = [0x90u8; 32];
        t[3..8].copy_from_slice(AFTER_LOAD_R9);
        t[8..16].copy_from_slice(&[0x0f, 5, 0x48, 0x3d, 1, 0xf0, 0xff, 0xff]);
        let s = next_site(&t, 0).unwrap();
        assert_eq!(s, Site::Variable { at: 8, imm: 1 });
        let mut out = [0u8; TRAMPOLINE];
        emit(s, 0x1000, 0x5000, 0x77, &mut out).unwrap();
        assert_eq!(usize::from_le_bytes(out[2..10].try_into().unwrap()), 0x5000 + 23);
        assert_eq!(out[23..29], [0x48, 0x3d, 1, 0xf0, 0xff, 0xff]);
        assert_eq!(usize::from_le_bytes(out[35..43].try_into().unwrap()), 0x1010);
    }
}
