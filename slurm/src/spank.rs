//! The C interface of SPANK (slurm/spank.h), written by hand: the types, the symbols that Slurm looks for, and safe
//! functions around those that we call. *In Slurm's processes.*
//!
//! Slurm's functions are found by name when they are called, in whatever loaded us: so the unit tests link without Slurm,
//! and one that came with a later release ([`prepend`]) is used where it exists.
//!
//! # Safety
//! Slurm calls our hooks with a handle that is valid until they return; nothing of it is kept.
#![allow(unsafe_code, reason = "a C interface: symbols, handles and variadic functions of Slurm")]

use std::ffi::{CStr, CString, OsStr, OsString, c_char, c_int, c_void};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use crate::hooks;
use crate::options::{self, Which};

/// How Slurm calls us in its messages, and part of the names of its environment variables for our options.
pub(crate) const NAME: &str = "stillpoint";

/// A symbol that Slurm reads as text.
#[allow(non_upper_case_globals, reason = "the name is Slurm's")]
#[unsafe(no_mangle)]
pub(crate) static plugin_name: [u8; 11] = *b"stillpoint\0";
/// Slurm reads this as text.
#[allow(non_upper_case_globals, reason = "the name is Slurm's")]
#[unsafe(no_mangle)]
pub(crate) static plugin_type: [u8; 6] = *b"spank\0";
/// The release of Slurm we are for; `build.rs` found it.
#[allow(non_upper_case_globals, reason = "the name is Slurm's")]
#[unsafe(no_mangle)]
pub(crate) static plugin_version: u32 = decimal(env!("STILLPOINT_SLURM_NUMBER"));

const fn decimal(text: &str) -> u32 {
    let (bytes, mut i, mut n) = (text.as_bytes(), 0, 0u32);
    while i < bytes.len() {
        n = n * 10 + (bytes[i] - b'0') as u32;
        i += 1;
    }
    n
}

/// `spank_t`.
type RawHandle = *mut c_void;
/// `spank_opt_cb_f`.
type Callback = extern "C" fn(c_int, *const c_char, c_int) -> c_int;

/// `struct spank_option`.
#[repr(C)]
struct RawOption {
    name: *const c_char,
    arginfo: *const c_char,
    usage: *const c_char,
    has_arg: c_int,
    val: c_int,
    cb: Option<Callback>,
}
const _: () = assert!(size_of::<RawOption>() == 40);

/// `enum spank_item`: those that we ask for.
#[derive(Debug, Clone, Copy)]
#[repr(i32)]
enum Item {
    Uid = 0,
    Gid = 1,
    JobId = 2,
    StepId = 3,
    LocalTasks = 6,
    Argv = 9,
    Groups = 19,
}

/// `enum spank_context`: in which of Slurm's programs we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Context {
    /// srun
    Local,
    /// slurmstepd
    Remote,
    /// sbatch, salloc
    Allocator,
    /// slurmd, prolog and epilog: nothing of ours
    Other,
}

/// A function of Slurm, or of a library it has loaded.
fn find(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: a terminated name, looked up in everything that is loaded.
    let at = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    (!at.is_null()).then_some(at)
}

macro_rules! slurm {
    ($name:expr, as $kind:ty) => {
        // SAFETY: the type is the one that slurm/spank.h gives for this name.
        find($name).map(|at| unsafe { std::mem::transmute::<*mut c_void, $kind>(at) })
    };
}

/// A line of Slurm's own, by its function of this name.
fn say(function: &CStr, text: &str) {
    let line = CString::new(text.replace('\0', " ")).unwrap_or_default();
    match slurm!(function, as unsafe extern "C" fn(*const c_char, ...)) {
        // SAFETY: a format of ours and the string it wants.
        Some(say) => unsafe { say(c"stillpoint: %s".as_ptr(), line.as_ptr()) },
        #[allow(clippy::print_stderr, reason = "without Slurm, in a unit test")]
        None => eprintln!("stillpoint: {text}"),
    }
}

/// `srun: error: …`, `slurmstepd: error: …`; the latter reaches the user as well.
pub(crate) fn error(text: &str) {
    say(c"slurm_error", text);
}

/// `srun: …`
pub(crate) fn info(text: &str) {
    say(c"slurm_info", text);
}

/// The handle of a hook.
#[derive(Debug)]
pub(crate) struct Handle {
    raw: RawHandle,
    arguments: Vec<OsString>,
}

impl Handle {
    /// The words after the plugin's path in plugstack.conf.
    pub(crate) fn argument(&self, key: &str) -> Option<&OsStr> {
        let value = |a: &'_ OsString| -> Option<usize> {
            let rest = a.as_bytes().strip_prefix(key.as_bytes())?;
            (rest.first() == Some(&b'=')).then_some(key.len() + 1)
        };
        self.arguments.iter().find_map(|a| value(a).map(|at| OsStr::from_bytes(&a.as_bytes()[at..])))
    }

    pub(crate) fn context() -> Context {
        let Some(ask) = slurm!(c"spank_context", as unsafe extern "C" fn() -> c_int) else {
            return Context::Other;
        };
        // SAFETY: takes nothing and may be called from any hook.
        match unsafe { ask() } {
            1 => Context::Local,
            2 => Context::Remote,
            3 => Context::Allocator,
            _ => Context::Other,
        }
    }

    /// Makes an option known. Slurm copies what it is shown.
    pub(crate) fn register(&self, entry: &options::Entry) -> bool {
        let text = |t: &str| CString::new(t).unwrap_or_default();
        let (name, arginfo, usage) = (text(entry.name), text(entry.argument), text(entry.usage));
        let mut raw = RawOption {
            name: name.as_ptr(),
            arginfo: arginfo.as_ptr(),
            usage: usage.as_ptr(),
            has_arg: 1,
            val: entry.which as c_int,
            cb: Some(on_option),
        };
        let register =
            slurm!(c"spank_option_register", as unsafe extern "C" fn(RawHandle, *mut RawOption) -> c_int);
        // SAFETY: the handle is that of `slurm_spank_init`; the strings live until after the call.
        register.is_some_and(|f| unsafe { f(self.raw, &raw mut raw) } == 0)
    }

    fn number(&self, item: Item) -> Option<u32> {
        let mut n = 0u32;
        let get = slurm!(c"spank_get_item", as unsafe extern "C" fn(RawHandle, c_int, ...) -> c_int)?;
        // SAFETY: all items but `Argv`, which nobody asks for here, are `uint32_t *` in spank.h, or `uid_t *` and `gid_t *`, which
        // are the same.
        (unsafe { get(self.raw, item as c_int, &raw mut n) } == 0).then_some(n)
    }

    pub(crate) fn job(&self) -> Option<u32> {
        self.number(Item::JobId)
    }

    pub(crate) fn step(&self) -> Option<u32> {
        self.number(Item::StepId)
    }

    /// User and group of the job.
    pub(crate) fn owner(&self) -> Option<(u32, u32)> {
        Some((self.number(Item::Uid)?, self.number(Item::Gid)?))
    }

    /// The groups of the job's user, the first one included.
    pub(crate) fn groups(&self) -> Vec<u32> {
        let (mut n, mut at) = (0 as c_int, std::ptr::null_mut::<u32>());
        let mut groups: Vec<u32> = self.number(Item::Gid).into_iter().collect();
        if let Some(get) = slurm!(c"spank_get_item", as unsafe extern "C" fn(RawHandle, c_int, ...) -> c_int)
        {
            // SAFETY: S_JOB_SUPPLEMENTARY_GIDS is `gid_t **, int *` in spank.h.
            let rc = unsafe { get(self.raw, Item::Groups as c_int, &raw mut at, &raw mut n) };
            if rc == 0 && !at.is_null() {
                // SAFETY: `n` numbers, as Slurm says; they are copied.
                groups.extend((0..usize::try_from(n).unwrap_or(0)).map(|i| unsafe { *at.add(i) }));
            }
        }
        groups
    }

    /// Tasks of the step on this node.
    pub(crate) fn local_tasks(&self) -> Option<u32> {
        self.number(Item::LocalTasks)
    }

    fn raw_argv(&self) -> Option<(usize, *mut *mut c_char)> {
        let (mut n, mut at) = (0 as c_int, std::ptr::null_mut::<*mut c_char>());
        let get = slurm!(c"spank_get_item", as unsafe extern "C" fn(RawHandle, c_int, ...) -> c_int)?;
        // SAFETY: S_JOB_ARGV is `int *, char ***` in spank.h.
        let rc = unsafe { get(self.raw, Item::Argv as c_int, &raw mut n, &raw mut at) };
        let n = usize::try_from(n).ok()?;
        (rc == 0 && n > 0 && !at.is_null()).then_some((n, at))
    }

    /// The command of the step; with --multi-prog the name of its file, and what stands in it.
    pub(crate) fn argv(&self) -> Vec<OsString> {
        let Some((n, at)) = self.raw_argv() else { return Vec::new() };
        // SAFETY: `n` strings, as Slurm says; they are copied.
        (0..n).map_while(|i| unsafe { text(*at.add(i)) }).collect()
    }

    /// Puts `value` in place of a word of the command. Up to 23.02 there is no other way; Slurm's headers forbid it, but
    /// what it hands out is what it goes on to use. The string is never freed: it must live as long as Slurm's array.
    pub(crate) fn set_argv(&self, index: usize, value: &OsStr) -> bool {
        let (Some((n, at)), Ok(value)) = (self.raw_argv(), CString::new(value.as_bytes())) else {
            return false;
        };
        if index < n {
            // SAFETY: within the array, which is this process's own.
            unsafe { at.add(index).write(value.into_raw()) };
        }
        index < n
    }

    /// Sets a variable of the task.
    pub(crate) fn set(&self, name: &str, value: &OsStr) -> bool {
        let (Ok(name), Ok(value)) = (CString::new(name), CString::new(value.as_bytes())) else {
            return false;
        };
        let set = slurm!(c"spank_setenv", as unsafe extern "C" fn(RawHandle, *const c_char, *const c_char, c_int) -> c_int
        );
        // SAFETY: the handle is that of a hook in slurmstepd; Slurm copies both strings.
        set.is_some_and(|f| unsafe { f(self.raw, name.as_ptr(), value.as_ptr(), 1) } == 0)
    }

    /// Takes a variable from the task, if it has it.
    pub(crate) fn unset(&self, name: &str) {
        let unset = slurm!(c"spank_unsetenv", as unsafe extern "C" fn(RawHandle, *const c_char) -> c_int);
        if let (Some(f), Ok(name)) = (unset, CString::new(name)) {
            // SAFETY: as in `set`.
            unsafe { f(self.raw, name.as_ptr()) };
        }
    }

    /// The value of a variable of the task.
    pub(crate) fn get(&self, name: &str) -> Option<OsString> {
        let name = CString::new(name).ok()?;
        let get = slurm!(c"spank_getenv", as unsafe extern "C" fn(RawHandle, *const c_char, *mut c_char, c_int) -> c_int
        )?;
        let mut room = [0 as c_char; 4096];
        // SAFETY: the room is as long as we say.
        let rc = unsafe { get(self.raw, name.as_ptr(), room.as_mut_ptr(), room.len() as c_int) };
        // SAFETY: Slurm has terminated what it wrote.
        if rc == 0 { unsafe { text(room.as_ptr()) } } else { None }
    }

    /// Whether Slurm has `spank_prepend_task_argv` (23.11 and later), which also reaches the tasks of --multi-prog.
    pub(crate) fn can_prepend() -> bool {
        find(c"spank_prepend_task_argv").is_some()
    }

    /// Puts a word before the task's command.
    pub(crate) fn prepend(&self, program: &Path) -> bool {
        let Ok(program) = CString::new(program.as_os_str().as_bytes()) else { return false };
        let words = [program.as_ptr(), std::ptr::null()];
        let f = slurm!(c"spank_prepend_task_argv", as unsafe extern "C" fn(RawHandle, c_int, *const *const c_char) -> c_int
        );
        // SAFETY: the handle is that of `slurm_spank_task_init`; Slurm copies the word.
        f.is_some_and(|f| unsafe { f(self.raw, 1, words.as_ptr()) } == 0)
    }
}

/// # Safety
/// Null, or a terminated string.
unsafe fn text(at: *const c_char) -> Option<OsString> {
    // SAFETY: the caller says so.
    (!at.is_null()).then(|| OsString::from_vec(unsafe { CStr::from_ptr(at) }.to_bytes().to_vec()))
}

/// Runs a hook; a panic of ours ends here.
fn guarded(name: &str, body: impl FnOnce() -> c_int) -> c_int {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| {
        error(&format!("{name} of the plugin panicked; this is a bug of stillpoint"));
        -1
    })
}

extern "C" fn on_option(which: c_int, value: *const c_char, _remote: c_int) -> c_int {
    guarded("an option", || {
        // SAFETY: Slurm passes what the user wrote, terminated.
        let value = unsafe { text(value) };
        Which::from_number(which).map_or(-1, |w| hooks::option(w, value.unwrap_or_default()))
    })
}

/// # Safety
/// The arguments are those that Slurm passes to a hook.
unsafe fn enter(
    name: &str,
    raw: RawHandle,
    count: c_int,
    words: *const *const c_char,
    hook: fn(&Handle) -> c_int,
) -> c_int {
    guarded(name, || {
        let count = if words.is_null() { 0 } else { usize::try_from(count).unwrap_or(0) };
        // SAFETY: `count` strings.
        let arguments = (0..count).map_while(|i| unsafe { text(*words.add(i)) }).collect();
        hook(&Handle { raw, arguments })
    })
}

macro_rules! hooks {
    ($($symbol:ident => $hook:path;)*) => { $(
        /// A hook that Slurm looks for by name.
        ///
        /// # Safety
        /// Called by Slurm only.
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C" fn $symbol(raw: RawHandle, count: c_int, words: *const *const c_char) -> c_int {
            // SAFETY: Slurm's arguments.
            unsafe { enter(stringify!($symbol), raw, count, words, $hook) }
        }
    )* };
}

hooks! {
    slurm_spank_init => hooks::init;
    slurm_spank_init_post_opt => hooks::post_opt;
    slurm_spank_local_user_init => hooks::local_user_init;
    slurm_spank_task_init => hooks::task_init;
    slurm_spank_task_exit => hooks::task_exit;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_ends_at_the_entry() {
        assert_eq!(guarded("a test", || panic!("of the test")), -1);
        assert_eq!(guarded("a test", || 3), 3);
    }

    #[test]
    fn the_release_is_slurms_number() {
        assert_eq!(decimal("1443080"), 0x0016_0508);
        assert!(plugin_version >= 0x0014_0000);
        assert_eq!(plugin_name, *b"stillpoint\0");
    }

    #[test]
    fn arguments_of_the_plugin_are_found_by_their_key() {
        let arguments = vec!["local=/x".into(), "prefix=/a=b".into(), "prefixes".into()];
        let sp = Handle { raw: std::ptr::null_mut(), arguments };
        assert_eq!(sp.argument("prefix"), Some(OsStr::new("/a=b")));
        assert_eq!(sp.argument("local"), Some(OsStr::new("/x")));
        assert_eq!(sp.argument("pre"), None);
    }

    #[test]
    fn without_slurm_there_is_nothing_to_ask() {
        let sp = Handle { raw: std::ptr::null_mut(), arguments: Vec::new() };
        assert_eq!(Handle::context(), Context::Other);
        assert!(sp.argv().is_empty() && sp.job().is_none() && !Handle::can_prepend());
        assert!(!sp.set("A", OsStr::new("b")) && !sp.set_argv(0, OsStr::new("b")));
    }
}
