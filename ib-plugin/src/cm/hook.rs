//! librdmacm's calls of open(2), fstat(2), write(2) and close(2) lead here. *Upper half*.
//!
//! What a reader would get wrong: only this one library's own calls do. Its table of the functions that it imports is changed, as soon as it
//! looks at the devices, which it does before anything else; nobody else's write(2) is any slower.

use std::ffi::{CStr, c_char, c_int, c_void};

use super::command;

/// Entries of a dynamic section and of its tables (System V ABI, chapter 5; psABI for x86-64, table 4.10).
mod elf {
    pub(super) const DT_PLTRELSZ: i64 = 2;
    pub(super) const DT_STRTAB: i64 = 5;
    pub(super) const DT_SYMTAB: i64 = 6;
    pub(super) const DT_RELA: i64 = 7;
    pub(super) const DT_RELASZ: i64 = 8;
    pub(super) const DT_JMPREL: i64 = 23;
    pub(super) const GLOB_DAT: u64 = 6;
    pub(super) const JUMP_SLOT: u64 = 7;
}

/// Sees to every librdmacm that is loaded; once more does nothing.
pub(crate) fn set() {
    // SAFETY: the callback gets what the loader has, and nobody unloads a library meanwhile.
    unsafe { libc::dl_iterate_phdr(Some(one), std::ptr::null_mut()) };
}

unsafe extern "C" fn one(info: *mut libc::dl_phdr_info, _size: usize, _data: *mut c_void) -> c_int {
    // SAFETY: the loader's description of a library, which is mapped.
    unsafe {
        let info = &*info;
        if info.dlpi_name.is_null() {
            return 0;
        }
        // Also one that is packed with an application, by a name with more in it.
        let name = CStr::from_ptr(info.dlpi_name).to_bytes();
        let file = name.rsplit(|b| *b == b'/').next().unwrap_or_default();
        if !file.starts_with(b"librdmacm") {
            return 0;
        }
        let base = info.dlpi_addr as usize;
        let headers = std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum));
        let find = |kind| headers.iter().find(|h| h.p_type == kind);
        let constant = find(libc::PT_GNU_RELRO)
            .map_or(0..0, |h| base + h.p_vaddr as usize..base + (h.p_vaddr + h.p_memsz) as usize);
        if let Some(dynamic) = find(libc::PT_DYNAMIC) {
            for (place, what) in slots(base, base + dynamic.p_vaddr as usize) {
                put(place, what, constant.contains(&place));
            }
        }
    }
    0
}

/// Where a library has the addresses of the functions that are to lead here, and ours.
///
/// # Safety
/// `base` and `dynamic` are those of a library that is loaded and relocated.
unsafe fn slots(base: usize, dynamic: usize) -> Vec<(usize, usize)> {
    let mut all = Vec::new();
    // SAFETY: the caller's promise; glibc has put addresses for the offsets in there.
    unsafe {
        let entry = |wanted: i64| {
            let mut at = std::ptr::with_exposed_provenance::<[i64; 2]>(dynamic);
            while (*at)[0] != 0 {
                if (*at)[0] == wanted {
                    return (*at)[1] as usize;
                }
                at = at.add(1);
            }
            0
        };
        let (symbols, texts) = (entry(elf::DT_SYMTAB), entry(elf::DT_STRTAB));
        let tables =
            [(entry(elf::DT_JMPREL), entry(elf::DT_PLTRELSZ)), (entry(elf::DT_RELA), entry(elf::DT_RELASZ))];
        for (table, size) in tables.into_iter().filter(|(table, _)| *table != 0) {
            for k in 0..size / 24 {
                // `Elf64_Rela`: offset, symbol and kind, addend.
                let [offset, info, _] = *std::ptr::with_exposed_provenance::<[u64; 3]>(table + 24 * k);
                if !matches!(info & 0xffff_ffff, elf::GLOB_DAT | elf::JUMP_SLOT) {
                    continue;
                }
                // `Elf64_Sym` begins with the place of its name.
                let symbol = symbols + 24 * (info >> 32) as usize;
                let name = texts + *std::ptr::with_exposed_provenance::<u32>(symbol) as usize;
                let name = CStr::from_ptr(std::ptr::with_exposed_provenance::<c_char>(name));
                let ours = match name.to_bytes() {
                    b"open" | b"open64" => command::open as *const () as usize,
                    b"fstat" | b"fstat64" => command::fstat as *const () as usize,
                    b"__fxstat" | b"__fxstat64" => command::fxstat as *const () as usize,
                    b"write" => command::write as *const () as usize,
                    b"close" => command::close as *const () as usize,
                    _ => continue,
                };
                all.push((base + offset as usize, ours));
            }
        }
    }
    all
}

/// # Safety
/// A place of a pointer in a library that is loaded; `constant`: in pages that are only read since it was (RELRO).
unsafe fn put(place: usize, what: usize, constant: bool) {
    // SAFETY: the caller's promise; the page holds pointers only.
    unsafe {
        let slot = std::ptr::with_exposed_provenance_mut::<usize>(place);
        if slot.read() == what {
            return;
        }
        let page = libc::sysconf(libc::_SC_PAGESIZE) as usize;
        let at = std::ptr::with_exposed_provenance_mut::<c_void>(place & !(page - 1));
        let change = |prot| !constant || libc::mprotect(at, page, prot) == 0;
        if change(libc::PROT_READ | libc::PROT_WRITE) {
            slot.write(what);
            change(libc::PROT_READ);
        }
    }
}
