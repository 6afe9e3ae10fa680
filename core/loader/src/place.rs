//! Reserves the window, maps segments, brings in the hook library. *Lower half*, single-threaded, before the upper half
//! exists. The only file that maps for others; everything it maps for the upper half is entered in the window's table.
#![allow(unsafe_code, reason = "maps memory at fixed addresses")]

use crate::elf::{self, Elf};
use crate::error::Error;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use stillpoint_abi::half::{
    HALF_ADDR, HALF_LEN, HOOKS_ADDR, LOW_END, LOW_START, MAGIC, MAPS_START, SPACE_ADDR, SPACE_LEN,
    STILL_ADDR, STILL_LEN, UPPER_ADDR, UPPER_LEN, WINDOW_END,
};
use stillpoint_sys::raw::nr;
use stillpoint_sys::{sys, upper};
use stillpoint_window::interval::{Interval, Space};

const ANON: usize = 0x22; // MAP_PRIVATE | MAP_ANONYMOUS
const NORESERVE: usize = 0x4000;
const FIXED: usize = 0x10;
const NOREPLACE: usize = 0x10_0000;

fn map(
    what: &str,
    addr: usize,
    len: usize,
    prot: usize,
    flags: usize,
    fd: i32,
    off: usize,
) -> Result<(), Error> {
    // SAFETY: every caller maps either where NOREPLACE guards, or over a range that this file reserved before.
    let r = unsafe { sys!(nr::MMAP, addr, len, prot, flags, fd as isize, off) };
    if r == addr as isize { Ok(()) } else { Err(Error::Map { what: what.into(), addr, errno: -r }) }
}

/// Maps the lower half's page.
///
/// # Errors
/// If something else lies there.
pub fn map_half() -> Result<(), Error> {
    map("the lower half's page", HALF_ADDR, HALF_LEN, 3, ANON | NOREPLACE, -1, 0)?;
    // SAFETY: just mapped, and nobody else runs yet; `magic` is the first field.
    unsafe { std::ptr::with_exposed_provenance_mut::<u64>(HALF_ADDR).write(MAGIC) };
    Ok(())
}

/// Maps the upper half's page, the table of free intervals and the still stack, and makes the window free.
///
/// # Errors
/// If something else lies there.
pub fn map_upper() -> Result<(), Error> {
    map("the upper half's page", UPPER_ADDR, UPPER_LEN, 3, ANON | NOREPLACE, -1, 0)?;
    map("the table of the window", SPACE_ADDR, SPACE_LEN, 3, ANON | NOREPLACE | NORESERVE, -1, 0)?;
    map("the still stack", STILL_ADDR, STILL_LEN, 3, ANON | NOREPLACE | NORESERVE, -1, 0)?;
    // SAFETY: as in `map_half`.
    unsafe { std::ptr::with_exposed_provenance_mut::<u64>(UPPER_ADDR).write(MAGIC) };
    with_space(|s| {
        s.give(LOW_START, LOW_END);
        s.give(MAPS_START, WINDOW_END);
    });
    upper().brk.store(stillpoint_abi::half::BRK_START as u64, Relaxed);
    Ok(())
}

fn with_space<R>(f: impl FnOnce(&mut Space<'_>) -> R) -> R {
    let n = SPACE_LEN / size_of::<Interval>();
    // SAFETY: mapped by `map_upper`; no upper thread runs yet, so nobody else holds the table.
    let slots = unsafe {
        std::slice::from_raw_parts_mut(std::ptr::with_exposed_provenance_mut::<Interval>(SPACE_ADDR), n)
    };
    let mut s = Space { slots, len: upper().space_len.load(Relaxed) as usize };
    let r = f(&mut s);
    upper().space_len.store(u32::try_from(s.len).unwrap_or(0), Relaxed);
    r
}

/// Takes addresses of the window for the loader's own use on behalf of the upper half.
///
/// # Errors
/// If the window is full.
pub fn allot(len: usize, align: usize) -> Result<usize, Error> {
    with_space(|s| s.take_after(MAPS_START, len, align)).ok_or(Error::Map {
        what: "the window is full".into(),
        addr: len,
        errno: 12,
    })
}

/// Maps anonymous memory in the window and returns its address.
///
/// # Errors
/// If the kernel refuses.
pub fn anonymous(what: &str, len: usize, prot: usize) -> Result<usize, Error> {
    let at = allot(len, 4096)?;
    map(what, at, (len + 4095) & !4095, prot, ANON | NOREPLACE | NORESERVE, -1, 0)?;
    Ok(at)
}

/// A mapped ELF file.
#[derive(Debug)]
pub struct Placed {
    /// What its headers say.
    pub elf: Elf,
    /// What is added to the file's addresses.
    pub base: usize,
    /// Address of the program headers in memory.
    pub phdr: usize,
}

impl Placed {
    /// Entry point in memory.
    pub fn entry(&self) -> usize {
        self.base + self.elf.entry
    }
}

/// Opens a program and checks that it may be brought in.
///
/// # Errors
/// Names what is wrong with the file.
pub fn open(path: &Path) -> Result<(File, Elf), Error> {
    let read = |source| Error::Read { path: path.to_path_buf(), source };
    let f = File::open(path).map_err(read)?;
    let m = f.metadata().map_err(read)?;
    if m.mode() & 0o6000 != 0 {
        return Err(Error::SetId { path: path.to_path_buf() });
    }
    let mut head = vec![0u8; usize::try_from(m.len().min(64 * 1024)).unwrap_or(0)];
    f.read_exact_at(&mut head, 0).map_err(read)?;
    let e = elf::parse(&head).map_err(|what| Error::NotElf { path: path.to_path_buf(), what })?;
    Ok((f, e))
}

/// Maps `elf` at `at` (or, if it is not position independent, where it wants to be).
///
/// # Errors
/// If a mapping fails.
pub fn place(path: &Path, f: &File, elf: Elf, at: Option<usize>) -> Result<Placed, Error> {
    let name = path.display().to_string();
    let (lo, hi) = elf.span();
    let base = match (elf.dynamic, at) {
        (false, _) => {
            upper().exe_start.store(lo as u64, Relaxed);
            // Room for the trampolines that patching puts behind the text.
            upper().exe_end.store((hi + 0x1100_0000) as u64, Relaxed);
            0
        }
        (true, Some(at)) => at - lo,
        (true, None) => allot(hi - lo, 4096)? - lo,
    };
    map(&name, base + lo, hi - lo, 0, ANON | NOREPLACE | NORESERVE, -1, 0)?;
    let mut phdr = 0;
    for s in &elf.loads {
        let start = base + (s.vaddr & !4095);
        let file_end = base + s.vaddr + s.filesz;
        let mem_end = (base + s.vaddr + s.memsz + 4095) & !4095;
        let file_pages = (file_end + 4095) & !4095;
        if s.filesz != 0 {
            let len = file_end - start;
            map(&name, start, len, s.prot as usize, 2 | FIXED, f.as_raw_fd(), s.offset & !4095)?;
            if s.prot & 2 != 0 {
                let n = file_pages.min(mem_end) - file_end;
                // SAFETY: the rest of the last file page, private and writable, belongs to this segment's zeros.
                unsafe { std::ptr::with_exposed_provenance_mut::<u8>(file_end).write_bytes(0, n) };
            }
        }
        let zero_from = if s.filesz == 0 { start } else { file_pages };
        if mem_end > zero_from {
            map(&name, zero_from, mem_end - zero_from, s.prot as usize, ANON | FIXED, -1, 0)?;
        }
        if (s.offset..s.offset + s.filesz).contains(&elf.phoff) {
            phdr = base + s.vaddr + (elf.phoff - s.offset);
        }
    }
    Ok(Placed { elf, base, phdr })
}

/// Functions of the hook library.
#[derive(Clone, Copy, Debug)]
pub struct Hooks {
    patch: extern "C" fn(usize, usize) -> usize,
}

impl Hooks {
    /// Patches the executable segments of something that [`place`] mapped. Returns the number of sites.
    pub fn patch(&self, p: &Placed) -> usize {
        p.elf.loads.iter().filter(|s| s.prot & 4 != 0).map(|s| (self.patch)(p.base + s.vaddr, s.filesz)).sum()
    }
}

/// Maps the hook library, relocates it and enters its addresses into `Upper`.
///
/// # Errors
/// If it cannot be mapped or is not the library of this build.
pub fn hooks(path: &Path) -> Result<Hooks, Error> {
    let bad = |what| Error::Hooks { path: path.to_path_buf(), what };
    let (f, elf) = open(path)?;
    let p = place(path, &f, elf, Some(HOOKS_ADDR))?;
    let whole = std::fs::read(path).map_err(|source| Error::Read { path: PathBuf::from(path), source })?;
    let (dynamic, len) = p.elf.dynamic_at.ok_or(bad("no dynamic section"))?;
    let word = |a: usize| -> usize {
        // SAFETY: addresses inside the library's own mapped segments, as its dynamic section gives them.
        unsafe { std::ptr::with_exposed_provenance::<usize>(p.base + a).read_unaligned() }
    };
    let tag = |t: usize| (0..len / 16).map(|k| dynamic + 16 * k).find(|a| word(*a) == t).map(|a| word(a + 8));
    if let (Some(rela), Some(size)) = (tag(7), tag(8)) {
        for r in (rela..rela + size).step_by(24) {
            // R_X86_64_RELATIVE; others (weak references to unwinding) stay zero.
            if word(r + 8) & 0xffff_ffff == 8 {
                let to = std::ptr::with_exposed_provenance_mut::<usize>(p.base + word(r));
                // SAFETY: the linker put this relocation into a writable segment of the library.
                unsafe { to.write_unaligned(p.base + word(r + 16)) };
            }
        }
    }
    let (symtab, strtab) = (tag(6).ok_or(bad("no symbols"))?, tag(5).ok_or(bad("no strings"))?);
    let find = |name: &str| -> Option<usize> {
        (symtab..strtab).step_by(24).find_map(|s| {
            let at = strtab + (word(s) & 0xffff_ffff);
            let got = whole.get(at..at + name.len() + 1)?;
            (got[..name.len()] == *name.as_bytes() && got[name.len()] == 0).then(|| p.base + word(s + 8))
        })
    };
    let init = find("stillpoint_hooks_init").ok_or(bad("stillpoint_hooks_init is missing"))?;
    let patch = find("stillpoint_hooks_patch").ok_or(bad("stillpoint_hooks_patch is missing"))?;
    // SAFETY: functions of these types under these names in core/hooks.
    let (init, patch) = unsafe {
        (
            std::mem::transmute::<usize, extern "C" fn()>(init),
            std::mem::transmute::<usize, extern "C" fn(usize, usize) -> usize>(patch),
        )
    };
    init();
    Ok(Hooks { patch })
}

/// Copies `bytes` to fresh memory of the window and returns its address.
///
/// # Errors
/// If the kernel refuses.
pub fn bytes(what: &str, bytes: &[u8], prot: usize) -> Result<usize, Error> {
    let at = anonymous(what, bytes.len(), 3)?;
    // SAFETY: mapped writable just now, at least as long.
    unsafe {
        std::ptr::with_exposed_provenance_mut::<u8>(at).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        sys!(nr::MPROTECT, at, (bytes.len() + 4095) & !4095, prot);
    }
    Ok(at)
}

/// Jumps to the upper half's dynamic loader on its fresh stack. Never returns: this thread is the upper half's now.
///
/// # Safety
/// `sp` is a stack as [`crate::stack::build`] makes it and `entry` the entry point of the placed dynamic loader.
pub unsafe fn jump(sp: usize, entry: usize) -> ! {
    // SAFETY: the caller's contract; rdx = 0 says that no function is to be registered with atexit (psABI 3.4.1).
    unsafe {
        std::arch::asm!("mov rsp, {sp}", "xor edx, edx", "xor ebp, ebp", "jmp {entry}", sp = in(reg) sp,
                        entry = in(reg) entry, options(noreturn))
    }
}
