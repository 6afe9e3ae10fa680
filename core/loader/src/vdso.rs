//! A fake vDSO for the upper half: the smallest ELF file that glibc's `setup_vdso` accepts, each function a jump through
//! a slot that the lower half fills at every start. Pure.
//!
//! It must be a single PT_LOAD: with two, glibc silently falls back to system calls (tried). Moving the real vDSO would
//! break the lower half. Symbols are found by glibc through DT_HASH or DT_GNU_HASH with version `LINUX_2.6`.
//!
//! ```text
//!  0    ELF header, 2 program headers (PT_LOAD, PT_DYNAMIC)
//!       .hash  .dynsym  .dynstr  .gnu.version  .gnu.version_d  .dynamic  .text
//! ```

/// Names, in the order of the slots.
pub const FUNCTIONS: [&str; 5] =
    ["__vdso_clock_gettime", "__vdso_gettimeofday", "__vdso_time", "__vdso_getcpu", "__vdso_clock_getres"];

/// SysV ELF hash (gABI, "Hash Table").
fn hash(name: &str) -> u32 {
    name.bytes().fold(0u32, |h, c| {
        let h = (h << 4).wrapping_add(u32::from(c));
        let g = h & 0xf000_0000;
        (h ^ g >> 24) & !g
    })
}

/// The image, one page; `slots` is the address of the first slot.
pub fn image(slots: usize) -> Vec<u8> {
    let n = FUNCTIONS.len();
    let mut str_tab = vec![0u8];
    let mut name = |s: &str| {
        let at = str_tab.len();
        str_tab.extend_from_slice(s.as_bytes());
        str_tab.push(0);
        at
    };
    let names: Vec<usize> = FUNCTIONS.iter().map(|f| name(f)).collect();
    let (so, ver) = (name("linux-vdso.so.1"), name("LINUX_2.6"));
    let up = |x: usize| (x + 15) & !15;
    let hash_at = 64 + 2 * 56;
    let sym_at = up(hash_at + 4 * (2 + 1 + n + 1));
    let str_at = sym_at + 24 * (n + 1);
    let ver_at = up(str_at + str_tab.len());
    let verd_at = up(ver_at + 2 * (n + 1));
    let dyn_at = up(verd_at + 2 * 28);
    let text_at = up(dyn_at + 16 * 9);
    let total = text_at + 16 * n;
    let mut b = vec![0u8; 4096];
    let mut put = |at: usize, v: u64, w: usize| b[at..at + w].copy_from_slice(&v.to_le_bytes()[..w]);
    // ELF header
    for (k, c) in [0x7f, b'E', b'L', b'F', 2, 1, 1].into_iter().enumerate() {
        put(k, u64::from(c), 1);
    }
    for (at, v, w) in
        [(16, 3, 2), (18, 62, 2), (20, 1, 4), (32, 64, 8), (52, 64, 2), (54, 56, 2), (56, 2, 2), (58, 64, 2)]
    {
        put(at, v, w);
    }
    // PT_LOAD r-x over all; PT_DYNAMIC
    for (k, (t, fl, off, len)) in [(1, 5, 0, total), (2, 4, dyn_at, 16 * 9)].into_iter().enumerate() {
        let p = 64 + 56 * k;
        put(p, t, 4);
        put(p + 4, fl, 4);
        for o in [8, 16, 24] {
            put(p + o, off as u64, 8);
        }
        put(p + 32, len as u64, 8);
        put(p + 40, len as u64, 8);
        put(p + 48, if t == 1 { 4096 } else { 8 }, 8);
    }
    // One bucket: a chain through all symbols.
    put(hash_at, 1, 4);
    put(hash_at + 4, n as u64 + 1, 4);
    put(hash_at + 8, 1, 4);
    for k in 1..n {
        put(hash_at + 12 + 4 * k, k as u64 + 1, 4);
    }
    for (k, nm) in names.iter().enumerate() {
        let s = sym_at + 24 * (k + 1);
        put(s, *nm as u64, 4);
        put(s + 4, 0x12, 1); // STB_GLOBAL, STT_FUNC
        put(s + 6, 1, 2); // any defined section
        put(s + 8, (text_at + 16 * k) as u64, 8);
        put(s + 16, 12, 8);
        put(ver_at + 2 * (k + 1), 2, 2);
    }
    // Version definitions: 1 the file itself (VER_FLG_BASE), 2 LINUX_2.6.
    for (k, (nm, h)) in [(so, hash("linux-vdso.so.1")), (ver, hash("LINUX_2.6"))].into_iter().enumerate() {
        let v = verd_at + 28 * k;
        put(v, 1, 2);
        put(v + 2, u64::from(k == 0), 2);
        put(v + 4, k as u64 + 1, 2);
        put(v + 6, 1, 2);
        put(v + 8, u64::from(h), 4);
        put(v + 12, 20, 4);
        put(v + 16, if k == 0 { 28 } else { 0 }, 4);
        put(v + 20, nm as u64, 4);
    }
    let dynamic = [
        (14, so),
        (4, hash_at),
        (5, str_at),
        (6, sym_at),
        (10, str_tab.len()),
        (11, 24),
        (0x6fff_fff0, ver_at),
        (0x6fff_fffc, verd_at),
    ];
    for (k, (tag, v)) in dynamic.into_iter().enumerate() {
        put(dyn_at + 16 * k, tag, 8);
        put(dyn_at + 16 * k + 8, v as u64, 8);
    }
    for k in 0..n {
        let t = text_at + 16 * k;
        put(t, 0xb848, 2); // movabs $slot,%rax
        put(t + 2, (slots + 8 * k) as u64, 8);
        put(t + 10, 0x20ff, 2); // jmp *(%rax)
    }
    b[str_at..str_at + str_tab.len()].copy_from_slice(&str_tab);
    b
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_load_and_the_known_hash() {
        let b = image(0x1234_5678_9abc);
        let e = crate::elf::parse(&b).unwrap();
        assert_eq!(e.loads.len(), 1, "glibc wants a single PT_LOAD");
        assert_eq!(hash("LINUX_2.6"), 0x3ae75f6, "the constant in glibc's dl-vdso.h");
    }
}
