//! The initial stack of a process (x86-64 psABI 3.4.1): argc, argv, envp, auxv, and the strings above them. Pure: works
//! on a buffer that stands for the top of the stack.

/// Auxiliary vector types (elf.h).
pub mod at {
    #![allow(missing_docs, reason = "names of elf.h")]
    pub const PHDR: u64 = 3;
    pub const PHNUM: u64 = 5;
    pub const BASE: u64 = 7;
    pub const ENTRY: u64 = 9;
    pub const PLATFORM: u64 = 15;
    pub const RANDOM: u64 = 25;
    pub const RSEQ_FEATURE_SIZE: u64 = 27;
    pub const RSEQ_ALIGN: u64 = 28;
    pub const EXECFN: u64 = 31;
    pub const SYSINFO_EHDR: u64 = 33;
}

/// Fills the end of `mem`, whose last byte lies below address `top`, and returns the stack pointer.
/// `None` if there is no room.
///
/// Entries of `auxv` of type RANDOM, EXECFN and PLATFORM get the addresses of `random`, `execfn` and "x86_64".
pub fn build(
    mem: &mut [u8],
    top: usize,
    argv: &[Vec<u8>],
    envp: &[Vec<u8>],
    auxv: &[(u64, u64)],
    execfn: &[u8],
    random: &[u8; 16],
) -> Option<usize> {
    let base = top.checked_sub(mem.len())?;
    let mut end = mem.len();
    let mut push = |bytes: &[u8], zero: bool| -> Option<usize> {
        let n = bytes.len() + usize::from(zero);
        end = end.checked_sub(n)?;
        mem[end..end + bytes.len()].copy_from_slice(bytes);
        if zero {
            mem[end + n - 1] = 0;
        }
        Some(base + end)
    };
    // As Linux does: strings lie in order, argv[0] lowest (ps and setproctitle rely on it).
    let execfn_at = push(execfn, true)?;
    let mut env_at = Vec::new();
    for e in envp.iter().rev() {
        env_at.push(push(e, true)?);
    }
    let mut arg_at = Vec::new();
    for a in argv.iter().rev() {
        arg_at.push(push(a, true)?);
    }
    let platform_at = push(b"x86_64", true)?;
    let random_at = push(random, false)?;
    let words = 1 + arg_at.len() + 1 + env_at.len() + 1 + 2 * (auxv.len() + 1);
    let at = (end.checked_sub(8 * words)? + base) & !15;
    let mut w = at.checked_sub(base)?;
    let mut word = |v: u64| {
        mem[w..w + 8].copy_from_slice(&v.to_le_bytes());
        w += 8;
    };
    word(arg_at.len() as u64);
    arg_at.iter().rev().for_each(|a| word(*a as u64));
    word(0);
    env_at.iter().rev().for_each(|a| word(*a as u64));
    word(0);
    for (t, v) in auxv {
        word(*t);
        word(match *t {
            at::RANDOM => random_at as u64,
            at::EXECFN => execfn_at as u64,
            at::PLATFORM => platform_at as u64,
            _ => *v,
        });
    }
    word(0);
    word(0);
    Some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_as_the_psabi_says() {
        let mut mem = vec![0u8; 4096];
        let top = 0x10000;
        let sp = build(
            &mut mem,
            top,
            &[b"a".to_vec(), b"bb".to_vec()],
            &[b"X=1".to_vec()],
            &[(at::BASE, 7)],
            b"/a",
            &[9; 16],
        )
        .unwrap();
        assert_eq!(sp & 15, 0);
        let word = |k: usize| {
            let o = sp - (top - 4096) + 8 * k;
            u64::from_le_bytes(mem[o..o + 8].try_into().unwrap()) as usize
        };
        let text = |a: usize| {
            let o = a - (top - 4096);
            mem[o..].split(|c| *c == 0).next().unwrap().to_vec()
        };
        assert_eq!(word(0), 2);
        assert_eq!((text(word(1)), text(word(2)), word(3)), (b"a".to_vec(), b"bb".to_vec(), 0));
        assert_eq!((text(word(4)), word(5)), (b"X=1".to_vec(), 0));
        assert_eq!((word(6), word(7), word(8)), (7, 7, 0));
        assert!(word(1) < word(2) && word(2) < word(4));
    }

    #[test]
    fn no_room_is_said() {
        assert_eq!(build(&mut [0; 64], 0x10000, &[vec![b'x'; 100]], &[], &[], b"/a", &[0; 16]), None);
    }
}
