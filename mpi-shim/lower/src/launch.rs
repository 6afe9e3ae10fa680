//! The first start of an application: everything from the command line to the jump. *Lower half*.
#![allow(unsafe_code, reason = "sets up the pages and leaves by a jump")]

use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::{Relaxed, Release};
use stillpoint_abi::half::{HALF_ADDR, Half};
use stillpoint_loader::{Error as LoadError, place, stack, vdso};
use stillpoint_sys::raw::{getpid, gettid, monotonic_ns, nr};
use stillpoint_sys::{half, sys, upper};

/// Why the application cannot be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The command line makes no sense.
    #[error("usage: stillpoint-rank [--argv0 NAME] [--mask HEX] -- PROGRAM ARGS…")]
    Usage,
    /// The loader's reasons.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The image's reasons.
    #[error("cannot restart")]
    Restart(#[from] stillpoint_capture::restart::Error),
    /// The image itself.
    #[error("cannot restart")]
    Image(#[from] stillpoint_image::Error),
    /// MPI's objects, connections, or another plugin's things cannot be made anew.
    #[error("cannot restart: what was outside of the process cannot be set up as it was: {0}")]
    Rebuild(String),
    /// A script's first line names what is not there.
    #[error("{script} asks for the interpreter {interp}, which cannot be used")]
    Script {
        /// The script.
        script: PathBuf,
        /// What its first line names.
        interp: PathBuf,
        /// Why.
        #[source]
        source: LoadError,
    },
    /// A piece of the installation is missing.
    #[error("cannot find {name} beside {dir}; reinstall Stillpoint or set STILLPOINT_LIBEXEC")]
    Missing {
        /// File name.
        name: &'static str,
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// Something of the system failed.
    #[error("cannot {what}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// What the command line asks for.
#[derive(Debug)]
enum Plan {
    /// `mask` is the signal mask of the first thread, where all are blocked at the moment.
    Start {
        program: PathBuf,
        argv: Vec<Vec<u8>>,
        mask: Option<u64>,
    },
    Restart {
        image: PathBuf,
    },
}

fn parse(args: impl Iterator<Item = OsString>) -> Option<Plan> {
    let mut args = args.skip(1).peekable();
    let (mut argv0, mut mask) = (None, None);
    loop {
        match args.next()?.as_bytes() {
            b"--argv0" => argv0 = Some(args.next()?),
            b"--mask" => mask = Some(u64::from_str_radix(args.next()?.to_str()?, 16).ok()?),
            b"--restart" => return Some(Plan::Restart { image: args.next()?.into() }),
            b"--" => break,
            _ => return None,
        }
    }
    let program = PathBuf::from(args.next()?);
    let mut argv = vec![argv0.unwrap_or_else(|| program.clone().into_os_string()).into_vec()];
    argv.extend(args.map(OsStringExt::into_vec));
    Some(Plan::Start { program, argv, mask })
}

/// Directory of the parts: STILLPOINT_LIBEXEC, else beside this program.
fn parts() -> PathBuf {
    std::env::var_os("STILLPOINT_LIBEXEC").map_or_else(
        || std::env::current_exe().ok().and_then(|p| p.parent().map(Path::to_path_buf)).unwrap_or_default(),
        PathBuf::from,
    )
}

pub(crate) fn part(name: &'static str) -> Result<PathBuf, Error> {
    let dir = parts();
    let p = dir.join(name);
    if p.is_file() { Ok(p) } else { Err(Error::Missing { name, dir }) }
}

/// Sets the calling thread's signal mask. The one it had.
pub(crate) fn swap_mask(mask: u64) -> u64 {
    let mut old = 0u64;
    // SAFETY: SIG_SETMASK (2) reads and writes 8-byte sets.
    unsafe { sys!(nr::RT_SIGPROCMASK, 2, &raw const mask, &raw mut old, 8) };
    old
}

pub(crate) fn block_all_signals() -> u64 {
    swap_mask(u64::MAX)
}

fn vdso_functions() -> Vec<usize> {
    vdso::FUNCTIONS
        .iter()
        .map(|f| {
            let name = CString::new(*f).unwrap_or_default();
            // SAFETY: looks the kernel's vDSO up by its soname; both strings are terminated.
            unsafe {
                let lib = libc::dlopen(c"linux-vdso.so.1".as_ptr(), libc::RTLD_NOLOAD | libc::RTLD_LAZY);
                if lib.is_null() { 0 } else { libc::dlsym(lib, name.as_ptr()).expose_provenance() }
            }
        })
        .collect()
}

/// Fills the lower half's page. Both pages are mapped.
pub(crate) fn fill_half() {
    let at = std::ptr::with_exposed_provenance_mut::<Half>(HALF_ADDR);
    // SAFETY: mapped by `map_half`; this thread is alone; AT_HWCAP2 bit 1 is FSGSBASE.
    unsafe {
        let fsgs =
            libc::getauxval(libc::AT_HWCAP2) & 2 != 0 && std::env::var_os("STILLPOINT_NO_FSGSBASE").is_none();
        (&raw mut (*at).fsgsbase).write(u64::from(fsgs));
        (&raw mut (*at).slot_offset).write(crate::tcb::slot_offset());
    }
    let h = half();
    // Never 0, and not the pid: a record of another start must not look valid.
    h.epoch.store(monotonic_ns() << 20 | u64::from(getpid().unsigned_abs()) & 0xf_ffff | 1, Relaxed);
    h.pid.store(getpid(), Relaxed);
    h.acquire.store((crate::tcb::acquire as *const ()).expose_provenance(), Relaxed);
    h.goodbye.store((crate::line::goodbye as *const ()).expose_provenance(), Relaxed);
    h.resolve.store((crate::below::resolve as *const ()).expose_provenance(), Relaxed);
    h.load_back.store((crate::back::load as *const ()).expose_provenance(), Relaxed);
    h.request.store((crate::mail::request as *const ()).expose_provenance(), Relaxed);
    h.warn_signal.store(crate::warn::signal(), Relaxed);
    h.end_signal.store(crate::ended::signal(), Relaxed);
    crate::fds::ready();
    h.exec.store((crate::exec::exec as *const ()).expose_provenance(), Relaxed);
    let number = |names: &[&str]| names.iter().find_map(|n| std::env::var(n).ok()?.parse().ok());
    h.rank.store(
        number(&["STILLPOINT_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"])
            .unwrap_or(0),
        Relaxed,
    );
    h.size.store(
        number(&["STILLPOINT_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS"]).unwrap_or(1),
        Relaxed,
    );
    for (slot, f) in h.vdso.iter().zip(vdso_functions()) {
        slot.store(f, Release);
    }
}

/// Functions that the kernel's vDSO does not offer make the system call.
pub(crate) fn fill_vdso_gaps() {
    for (slot, fallback) in half().vdso.iter().zip(&upper().vdso_fallback) {
        if slot.load(Relaxed) == 0 {
            slot.store(fallback.load(Relaxed), Release);
        }
    }
}

/// The upper half's LD_PRELOAD as the user wants it; the front, which stands before it, puts it back.
pub(crate) const USER_PRELOAD: &str = "STILLPOINT_USER_PRELOAD";

pub(crate) fn setting(key: &[u8], value: &[u8]) -> Vec<u8> {
    [key, b"=", value].concat()
}

/// Our environment as `key=value`, as far as the keys are wanted.
pub(crate) fn settings(wanted: impl Fn(&OsStr) -> bool) -> impl Iterator<Item = CString> {
    let all = std::env::vars_os().filter(move |(k, _)| wanted(k));
    all.filter_map(|(k, v)| CString::new(setting(k.as_bytes(), v.as_bytes())).ok())
}

/// The environment of the application: ours, with the front before what the user has preloaded.
fn environment() -> Vec<Vec<u8>> {
    let user =
        std::env::var_os(USER_PRELOAD).or_else(|| std::env::var_os("LD_PRELOAD")).filter(|v| !v.is_empty());
    let mut envp: Vec<Vec<u8>> =
        settings(|k| k != "LD_PRELOAD" && k != USER_PRELOAD).map(CString::into_bytes).collect();
    let fronts: Vec<PathBuf> = ["libstillpoint_mpi_ompi.so", "libstillpoint_ibverbs.so"]
        .iter()
        .filter_map(|f| part(f).ok())
        .collect();
    let all: Vec<&OsStr> = fronts.iter().map(|f| f.as_os_str()).chain(user.as_deref()).collect();
    if !all.is_empty() {
        let joined: Vec<&[u8]> = all.iter().map(|p| p.as_bytes()).collect();
        envp.push(setting(b"LD_PRELOAD", &joined.join(&b':')));
    }
    if let Some(u) = user {
        envp.push(setting(USER_PRELOAD.as_bytes(), u.as_bytes()));
    }
    envp
}

/// Standard input that was spooled into a file is read from there by rank 0, as a launcher would hand it on: a file has an
/// offset, at which a restart goes on. The program that an execve brings in inherits it.
fn spooled_input() {
    let Some(path) = std::env::var_os("STILLPOINT_STDIN") else { return };
    // SAFETY: this thread is alone; nobody else uses the environment.
    unsafe { std::env::remove_var("STILLPOINT_STDIN") };
    if half().rank.load(Relaxed) != 0 {
        return;
    }
    match std::fs::File::open(&path) {
        Ok(f) => {
            // SAFETY: standard input becomes a copy of our own descriptor, and is the application's.
            unsafe { sys!(nr::DUP2, std::os::fd::AsRawFd::as_raw_fd(&f), 0) };
        }
        Err(e) => crate::control::log(&format!(
            "standard input cannot be read from {}: {e}; the program gets none",
            Path::new(&path).display()
        )),
    }
}

/// Brings the application in and runs it. Returns only if that is impossible.
pub(crate) fn from_command_line() -> Result<Infallible, Error> {
    // First of all: a scheduler's warning may come at any moment, and until there is a handler for it, it would end us.
    let inherited = block_all_signals();
    let (mut program, mut argv, mask) = match parse(std::env::args_os()).ok_or(Error::Usage)? {
        Plan::Start { program, argv, mask } => (program, argv, mask.unwrap_or(inherited)),
        Plan::Restart { image } => return crate::restart::from_image(&image),
    };
    let script = crate::exec::interpreter(&program).map(|(interp, arg)| {
        let mut new = vec![interp.as_os_str().as_bytes().to_vec()];
        new.extend(arg);
        new.push(program.as_os_str().as_bytes().to_vec());
        new.extend(argv.drain(1..));
        argv = new;
        std::mem::replace(&mut program, interp)
    });
    let (file, elf) = place::open(&program).map_err(|source| match script {
        Some(script) => Error::Script { script, interp: program.clone(), source },
        None => Error::Load(source),
    })?;
    let interp = elf.interp.clone().ok_or_else(|| LoadError::Static { path: program.clone() })?;
    let interp = PathBuf::from(interp);
    let (ld_file, ld_elf) = place::open(&interp).map_err(|e| match e {
        LoadError::Read { source, .. } => {
            LoadError::Interp { path: program.clone(), interp: interp.clone(), source }
        }
        e => e,
    })?;
    place::map_half()?;
    place::map_upper()?;
    fill_half();
    spooled_input();
    crate::tcb::start().map_err(|source| Error::System { what: "start the thread factory", source })?;
    crate::control::start(false)
        .map_err(|source| Error::System { what: "start the control thread", source })?;
    let hooks = place::hooks(&part("libstillpoint_hooks.so")?)?;
    fill_vdso_gaps();
    let app = place::place(&program, &file, elf, None)?;
    crate::tcb::make_way();
    hooks.patch(&app);
    let ld = place::place(&interp, &ld_file, ld_elf, None)?;
    hooks.patch(&ld);
    drop((file, ld_file));
    let slots = HALF_ADDR + std::mem::offset_of!(Half, vdso);
    let vdso_at = place::bytes("the fake vDSO", &vdso::image(slots), 5)?;
    enter(&program, &argv, &app, &ld, vdso_at, mask)
}

fn stack_size() -> usize {
    let mut lim = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes `lim`.
    unsafe { libc::getrlimit(libc::RLIMIT_STACK, &raw mut lim) };
    // Unlimited stacks: 64 GiB without commit, for Fortran's automatic arrays.
    usize::try_from(lim.rlim_cur).unwrap_or(usize::MAX).clamp(1 << 20, 64 << 30)
}

fn enter(
    program: &Path,
    argv: &[Vec<u8>],
    app: &place::Placed,
    ld: &place::Placed,
    vdso_at: usize,
    mask: u64,
) -> Result<Infallible, Error> {
    let size = stack_size();
    let stack_at = place::anonymous("the main stack", size, 3)?;
    let top = stack_at + size;
    let envp = environment();
    let raw = std::fs::read("/proc/self/auxv")
        .map_err(|source| Error::System { what: "read /proc/self/auxv", source })?;
    let mut random = [0u8; 16];
    let auxv: Vec<(u64, u64)> = raw
        .chunks_exact(16)
        .map(|c| {
            let w = |k: usize| c[k..k + 8].try_into().map_or(0, u64::from_le_bytes);
            (w(0), w(8))
        })
        .take_while(|(t, _)| *t != 0)
        .map(|(t, v)| {
            let v = match t {
                stack::at::PHDR => app.phdr as u64,
                stack::at::PHNUM => app.elf.phnum as u64,
                stack::at::BASE => ld.base as u64,
                stack::at::ENTRY => app.entry() as u64,
                stack::at::SYSINFO_EHDR => vdso_at as u64,
                _ => v,
            };
            (t, v)
        })
        .collect();
    // SAFETY: getrandom fills the 16 bytes.
    unsafe { libc::getrandom(random.as_mut_ptr().cast(), 16, 0) };
    let exe = std::fs::canonicalize(program).unwrap_or_else(|_| program.to_path_buf());
    let span = size.min(8 << 20);
    // SAFETY: the top of the stack mapped above; nobody else uses it.
    let mem = unsafe {
        std::slice::from_raw_parts_mut(std::ptr::with_exposed_provenance_mut::<u8>(top - span), span)
    };
    let sp = stack::build(mem, top, argv, &envp, &auxv, program.as_os_str().as_bytes(), &random).ok_or_else(
        || Error::System {
            what: "put arguments and environment on the stack",
            source: std::io::Error::from_raw_os_error(7),
        },
    )?;
    let u = upper();
    let exe = exe.as_os_str().as_bytes();
    let n = exe.len().min(4095);
    let to = stillpoint_abi::half::UPPER_ADDR + std::mem::offset_of!(stillpoint_abi::half::Upper, exe_path);
    // SAFETY: 4096 bytes of the upper page, zero so far; no other thread reads it yet.
    unsafe { std::ptr::with_exposed_provenance_mut::<u8>(to).copy_from_nonoverlapping(exe.as_ptr(), n) };
    u.vpid.store(getpid(), Relaxed);
    let rec = &u.threads[0];
    rec.vtid.store(gettid(), Relaxed);
    rec.tid.store(gettid(), Relaxed);
    u.n_threads.store(1, Release);
    leave_rseq();
    install_handlers();
    // The one that the launcher gave us.
    swap_mask(mask);
    // SAFETY: the stack built above and the entry of the placed loader.
    unsafe { place::jump(sp, ld.entry()) }
}

/// The upper glibc registers its own rseq area; the kernel takes one a thread.
pub(crate) fn leave_rseq() {
    unsafe extern "C" {
        static __rseq_offset: isize;
        static __rseq_size: u32;
    }
    // SAFETY: glibc's documented variables; unregistering (flag 1) with the signature glibc uses on x86.
    unsafe {
        if __rseq_size != 0 {
            let at = stillpoint_sys::arch::fs().wrapping_add_signed(__rseq_offset as i64);
            sys!(nr::RSEQ, at, 32, 1, 0x5305_3053);
        }
    }
}

/// Installs the hook library's stop handler for the stop signal, and its wrapper for the signals that ask for a checkpoint and
/// for the end, unless the application has a handler for them or ignores them.
pub(crate) fn install_handlers() {
    let u = upper();
    install(stillpoint_abi::half::STOP_SIGNAL, u.stop_handler.load(Relaxed), u64::MAX);
    wrap(half().warn_signal.load(Relaxed));
    wrap(half().end_signal.load(Relaxed));
}

fn wrap(n: i32) {
    let u = upper();
    let Some(s) = usize::try_from(n).ok().and_then(|n| u.sig.get(n)).filter(|_| n != 0) else { return };
    if s.set.load(Relaxed) == 0 {
        let mut now = [0u64; 4];
        // SAFETY: the kernel fills its struct sigaction of four words.
        unsafe { sys!(nr::RT_SIGACTION, n, 0, now.as_mut_ptr(), 8) };
        // From here on the kernel knows more than the application does.
        s.handler.store(now[0], Relaxed);
        s.set.store(1, Release);
    }
    if s.handler.load(Relaxed) == 0 {
        install(n, u.sig_wrapper.load(Relaxed), 0);
    }
}

fn install(signal: i32, handler: usize, mask: u64) {
    const SA_RESTORER_RESTART_SIGINFO: u64 = 0x0400_0000 | 0x1000_0000 | 4;
    let action = [handler as u64, SA_RESTORER_RESTART_SIGINFO, upper().restorer.load(Relaxed) as u64, mask];
    // SAFETY: the kernel's struct sigaction of four words; the handler lives in the upper half.
    unsafe { sys!(nr::RT_SIGACTION, signal, action.as_ptr(), 0, 8) };
}
