//! What is refused, and the message that the user sees: each on the real thing, and each in `docs/refusals.md`. Runs *next
//! door*.
//!
//! What a reader would get wrong: a refusal is only half of it. The job must run on, and a checkpoint must succeed once the
//! program has let go of what was in the way; so each program of `refuse_*.c` is asked twice.
#![allow(clippy::tests_outside_test_module, reason = "an integration test is a test module")]
#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use stillpoint_tests::cycle::agents_of;
use stillpoint_tests::process::{Ended, Running, descendants, kill, machine};
use stillpoint_tests::program::{Program, Start};
use stillpoint_tests::{built, skipped, sources};

const LIMIT: Duration = Duration::from_secs(60);

/// A folder of the test's own; it stays when the test fails.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Place {
        let folder = built().join("test-work").join(format!("refused-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect("the build folder can be written to");
        Place(folder)
    }

    fn mark(&self, name: &str) {
        fs::write(self.0.join(name), "").expect("the folder can be written to");
    }

    fn stillpoint(&self, words: &[&str]) -> Running {
        let mut command = Command::new(built().join("stillpoint"));
        command.arg("--dir").arg(self.0.join("store")).args(words).current_dir(&self.0);
        Running::start(machine(&mut command))
    }

    /// One command, to its end.
    fn says(&self, words: &[&str]) -> Ended {
        self.stillpoint(words).wait(LIMIT)
    }

    /// Starts a program of `refuse_*.c` and waits until it holds what it is about. None: the machine lacks something.
    fn start(&self, name: &str, more: &[&str]) -> Option<Running> {
        let program = Program::named(name);
        let words = program.command(0, 0).map_err(|lack| skipped(&lack)).ok()?;
        let mut line = vec!["run"];
        if let Start::Ranks(2) = program.start {
            line.extend(["-n", "2"]);
        }
        line.push("--");
        line.extend(words.iter().map(String::as_str));
        line.extend(more);
        let mut job = self.stillpoint(&line);
        if !self.sees("held", &mut job) {
            let ended = job.wait(LIMIT);
            if ended.status.and_then(|s| s.code()) == Some(77) {
                skipped(&format!("{name}: this machine cannot make what it needs"));
                return None;
            }
            panic!("{name} never held anything: {ended:#?}");
        }
        Some(job)
    }

    /// Whether a file appears while the job runs.
    fn sees(&self, name: &str, job: &mut Running) -> bool {
        let deadline = Instant::now() + LIMIT;
        while !self.0.join(name).exists() && job.is_running() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.0.join(name).exists()
    }

    /// Ends the job by a checkpoint.
    fn stop(&self, job: Running) {
        let asked = self.says(&["checkpoint", "1", "--stop"]);
        assert_eq!(code(&asked), Some(0), "{asked:#?}");
        let ended = job.wait(LIMIT);
        assert!(ended.stderr.contains("'stillpoint restart 1' goes on"), "{ended:#?}");
        assert_eq!(code(&ended), Some(0));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

fn code(ended: &Ended) -> Option<i32> {
    ended.status.and_then(|status| status.code())
}

/// The message was said, and the page for users has it.
#[track_caller]
fn said(ended: &Ended, pieces: &[&str]) {
    let page =
        fs::read_to_string(sources().join("../docs/refusals.md")).expect("docs/refusals.md is in the tree");
    for piece in pieces {
        assert!(ended.stderr.contains(piece), "not said: {piece}\n{ended:#?}");
        assert!(page.contains(piece), "docs/refusals.md lacks {piece:?}");
    }
}

/// Asks for a checkpoint while `name` holds what it is about, and again when it has let go.
fn refused(name: &str, more: &[&str], pieces: &[&str]) {
    let place = Place::new(name);
    let Some(mut job) = place.start(name, more) else { return };
    let asked = place.says(&["checkpoint", "1"]);
    assert_eq!(code(&asked), Some(1), "{asked:#?}");
    said(&asked, &["no checkpoint was taken; the job runs on"]);
    said(&asked, pieces);
    let as_json = place.says(&["--json", "checkpoint", "1"]);
    assert_eq!(code(&as_json), Some(1), "{as_json:#?}");
    assert!(pieces.iter().all(|piece| as_json.stdout.contains(piece)), "{as_json:#?}");
    place.mark("let-go");
    assert!(place.sees("free", &mut job), "the job does not run on");
    let asked = place.says(&["checkpoint", "1"]);
    assert_eq!(code(&asked), Some(0), "{asked:#?}");
    assert!(asked.stdout.trim().parse::<u64>().is_ok(), "{asked:#?}");
    place.mark("end");
    let ended = job.wait(LIMIT);
    assert!(code(&ended) == Some(0) && ended.stdout.contains("EXIT-SUCCESS"), "{ended:#?}");
}

macro_rules! refusals {
    ($($name:ident: $($piece:literal),+;)*) => {
        mod checkpoint { $(#[test] fn $name() {
            super::refused(concat!("refuse_", stringify!($name)), &[], &[$($piece),+]);
        })* }
    };
}

refusals! {
    deleted: "is a file that has been deleted: ";
    pipe: "is a pipe that cannot be saved yet: pipe:[";
    socket: "is a socket that cannot be saved yet: socket:[";
    tcp_alone: "is a TCP connection from 127.0.0.1:", ", which is no rank of this job, or has not accepted it yet; it can be saved once that is closed";
    tcp_full: "bytes are on their way for which the other end has no room";
    tcp_pending: "is a TCP socket at which 1 connections wait to be accepted";
    tcp_much: "is a TCP connection in which 180000 bytes wait to be read, more than the 163840 that can be put back";
    terminal: "is a terminal that cannot be saved yet: /dev/ptmx", "is a terminal that cannot be saved yet: /dev/pts/";
    eventfd: "is of a kind that cannot be saved yet: anon_inode:[eventfd]";
    child: "is alive, or has not been waited for";
    timer: "a POSIX timer (timer_create) exists";
    shared: "is shared and writable: /";
    sysv: "is shared and writable: System V segment /SYSV";
    twice: "is mapped twice";
    room: "MiB; make room or use another --dir";
    freed: "freed intercommunicators with persistent requests; they can be saved once MPI_Request_free has been called";
    tool: "handles or sessions of the MPI tool interface (MPI_T); they can be saved once they have been freed";
    window: "MPI windows (one-sided communication); they can be saved once MPI_Win_free has been called";
    mpi_file: "open MPI files; they can be saved once MPI_File_close has been called";
    spawn: "communicators to spawned or connected processes; they can be saved once MPI_Comm_disconnect has been called";
}

#[test]
fn forbidden_by_the_program() {
    let library = built().join("libstillpoint.so");
    if !library.is_file() {
        skipped("no libstillpoint.so; run `cargo xtask build`");
        return;
    }
    let library = library.display().to_string();
    refused("refuse_forbid", &[&library], &["the application forbids checkpoints at the moment"]);
}

/// A small program, made by the machine's compiler in `place` with these options.
fn compiled(place: &Place, name: &str, options: &[&str]) -> Option<PathBuf> {
    let source = place.0.join("empty.c");
    fs::write(&source, "int main(void) { return 0; }\n").expect("the folder can be written to");
    let made = Command::new("cc").arg(&source).arg("-o").arg(place.0.join(name)).args(options).output();
    if made.is_ok_and(|made| made.status.success()) {
        return Some(place.0.join(name));
    }
    skipped(&format!("cc {options:?} does not work here"));
    None
}

fn mode(path: &Path, bits: u32) {
    fs::set_permissions(path, Permissions::from_mode(bits)).expect("the file is ours");
}

/// A program that cannot be brought in is refused with this exit status and this message.
fn not_started(name: &str, options: &[&str], bits: u32, status: i32, pieces: &[&str]) {
    let place = Place::new(name);
    let Some(program) = compiled(&place, name, options) else { return };
    mode(&program, bits);
    let ended = place.says(&["run", "--", &format!("./{name}")]);
    assert_eq!(code(&ended), Some(status), "{ended:#?}");
    said(&ended, pieces);
}

#[test]
fn static_program() {
    let what =
        "is statically linked: Stillpoint needs a dynamically linked program (link it without -static)";
    not_started("static", &["-static"], 0o755, 127, &[what]);
}

#[test]
fn setuid_program() {
    let what = "is set-user-id or set-group-id: the kernel would not give it its rights under Stillpoint; \
                remove the bit or run it without";
    not_started("setuid", &[], 0o4755, 127, &[what]);
}

#[test]
fn missing_loader() {
    let what = ["asks for the dynamic loader ", ", which cannot be read: No such file or directory"];
    not_started("missing", &["-Wl,--dynamic-linker=/no/such/ld.so"], 0o755, 127, &what);
}

#[test]
fn not_executable() {
    let what = "cannot be executed: you have no permission to execute it (chmod +x)";
    not_started("plain", &[], 0o644, 126, &[what]);
}

#[test]
fn no_program_at_all() {
    let place = Place::new("text");
    for (name, text, status, piece) in [
        ("text", "hello\n", 127, "is not a 64-bit x86 ELF program (no ELF magic)"),
        ("script", "#!/no/such/interpreter\n", 127, "asks for the interpreter "),
    ] {
        fs::write(place.0.join(name), text).expect("the folder can be written to");
        mode(&place.0.join(name), 0o755);
        let ended = place.says(&["run", "--", &format!("./{name}")]);
        assert_eq!(code(&ended), Some(status), "{ended:#?}");
        said(&ended, &[piece]);
    }
    let ended = place.says(&["run", "--", "./nothing"]);
    assert_eq!(code(&ended), Some(127), "{ended:#?}");
    said(&ended, &[": command not found"]);
    let ended = place.says(&["run", "--", "./store"]);
    assert_eq!(code(&ended), Some(126), "{ended:#?}");
    said(&ended, &["cannot be executed: it is a directory"]);
}

/// A program that may be executed but not read: for all but root, and root gives its rights away here.
#[test]
fn unreadable_program() {
    let place = Place::new("unreadable");
    let Some(program) = compiled(&place, "unreadable", &[]) else { return };
    let mut command = Command::new(built().join("stillpoint"));
    if is_root() {
        let to_nobody = ["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"];
        command = Command::new("setpriv");
        command.args(to_nobody).arg(built().join("stillpoint"));
        let tried = Command::new("setpriv").args(to_nobody).arg("test").arg("-x").arg(built()).status();
        if !tried.is_ok_and(|status| status.success()) {
            skipped("nobody but root can reach what was built");
            return;
        }
    }
    mode(&place.0, 0o777);
    mode(&program, 0o711);
    command.arg("--dir").arg(place.0.join("store")).args(["run", "--", "./unreadable"]).current_dir(&place.0);
    if !is_root() {
        mode(&program, 0o111);
    }
    let ended = Running::start(&mut command).wait(LIMIT);
    assert_eq!(code(&ended), Some(127), "{ended:#?}");
    said(&ended, &["cannot read ", "Permission denied"]);
}

fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().any(|line| line.split_whitespace().take(3).eq(["Uid:", "0", "0"]))
}

#[test]
fn root_under_open_mpi() {
    if !is_root() || !Command::new("mpirun").arg("--version").output().is_ok_and(|out| out.status.success()) {
        skipped("not root, or no mpirun");
        return;
    }
    let place = Place::new("root");
    let mut command = Command::new(built().join("stillpoint"));
    command.arg("--dir").arg(place.0.join("store")).args(["run", "-n", "2", "--", "true"]);
    command.env_remove("OMPI_ALLOW_RUN_AS_ROOT").env_remove("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM");
    let ended = Running::start(&mut command).wait(LIMIT);
    assert_eq!(code(&ended), Some(125), "{ended:#?}");
    said(
        &ended,
        &[
            "Open MPI refuses to run as root",
            "set OMPI_ALLOW_RUN_AS_ROOT=1 and OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1",
        ],
    );
    assert_eq!(fs::read_dir(place.0.join("store")).into_iter().flatten().count(), 0, "no job is left behind");
}

/// A restart of a job stopped by a checkpoint, after `change` has been made to its files.
fn not_restarted(name: &str, change: impl FnOnce(&Path), pieces: &[&str]) {
    let place = Place::new(name);
    fs::write(place.0.join("data"), "0123456789").expect("the folder can be written to");
    let Some(job) = place.start("refuse_file", &[]) else { return };
    place.stop(job);
    change(&place.0);
    // Written after the checkpoint.
    let log = place.0.join("log");
    let whole = fs::read_to_string(&log).expect("it has been written") + "tail";
    fs::write(&log, &whole).expect("it can be written to");
    let ended = place.says(&["restart", "1", "--restarts", "0"]);
    assert!(code(&ended) != Some(0) && !ended.stdout.contains("EXIT-SUCCESS"), "{ended:#?}");
    said(&ended, pieces);
    assert_eq!(fs::read_to_string(&log).ok(), Some(whole), "a restart that is refused changes no file");
}

#[test]
fn file_replaced() {
    let replace = |place: &Path| {
        fs::write(place.join("other"), "0123456789").expect("the folder can be written to");
        fs::rename(place.join("other"), place.join("data")).expect("the folder can be written to");
    };
    not_restarted("replaced", replace, &["which has been replaced by another file since the checkpoint"]);
}

#[test]
fn file_cut() {
    let cut = |place: &Path| fs::write(place.join("data"), "0123").expect("the folder can be written to");
    not_restarted("cut", cut, &["which has been cut to 4 bytes since the checkpoint (10 then)"]);
}

#[test]
fn file_gone() {
    let remove = |place: &Path| fs::remove_file(place.join("data")).expect("the folder can be written to");
    not_restarted("gone", remove, &["which cannot be found (No such file or directory"]);
}

/// The image of the only checkpoint of job 1.
fn image(place: &Path) -> PathBuf {
    let files = fs::read_dir(place.join("store/1")).into_iter().flatten().flatten();
    let folder =
        files.map(|f| f.path()).find(|p| p.join("manifest.json").is_file()).expect("there is a checkpoint");
    folder.join("rank-00000.img")
}

#[test]
fn damaged_image() {
    let damage = |place: &Path| {
        let mut bytes = fs::read(image(place)).expect("the image is ours");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(image(place), bytes).expect("the image is ours");
    };
    let pieces = ["checkpoint 1 cannot be used: ", " damaged: ", "no checkpoint of job 1 can be used"];
    not_restarted("damaged", damage, &pieces);
}

#[test]
fn torn_image() {
    let tear = |place: &Path| {
        let file = fs::OpenOptions::new().write(true).open(image(place)).expect("the image is ours");
        let half = file.metadata().expect("it is open").len() / 2;
        file.set_len(half).expect("the image is ours");
    };
    not_restarted("torn", tear, &["checkpoint 1 cannot be used: ", "no checkpoint of job 1 can be used"]);
}

#[test]
fn another_number_of_ranks() {
    let place = Place::new("ranks");
    place.mark("let-go");
    let Some(mut job) = place.start("refuse_window", &[]) else { return };
    assert!(place.sees("free", &mut job), "the job does not run");
    place.stop(job);
    let ended = place.says(&["restart", "1", "-n", "3"]);
    assert_eq!(code(&ended), Some(125), "{ended:#?}");
    said(&ended, &["holds 2 ranks, 3 were asked for"]);
    place.mark("end");
    let ended = place.says(&["restart", "1"]);
    assert!(code(&ended) == Some(0) && ended.stdout.contains("EXIT-SUCCESS"), "{ended:#?}");
    let ended = place.says(&["restart", "1@7"]);
    assert_eq!(code(&ended), Some(125), "{ended:#?}");
    said(&ended, &["has no checkpoint 7"]);
}

/// Without its agent a job runs on and can no longer be checkpointed, and says so.
#[test]
fn agent_gone() {
    let place = Place::new("agent");
    place.mark("data");
    fs::write(place.0.join("data"), "x").expect("the folder can be written to");
    let Some(mut job) = place.start("refuse_file", &[]) else { return };
    let asked = place.says(&["checkpoint", "1"]);
    assert_eq!(code(&asked), Some(0), "{asked:#?}");
    let agents = agents_of(&place.0.join("store"));
    assert_eq!(agents.len(), 1, "one agent a node");
    assert!(agents.into_iter().all(kill));
    // The rank starts another one.
    let deadline = Instant::now() + LIMIT;
    let mut asked = place.says(&["checkpoint", "1"]);
    while code(&asked) != Some(0) && Instant::now() < deadline {
        asked = place.says(&["checkpoint", "1"]);
    }
    assert_eq!(code(&asked), Some(0), "{asked:#?}");
    place.mark("let-go");
    assert!(place.sees("free", &mut job), "the job does not run on");
    // A rank that dies now is lost all the same, and the last checkpoint stands.
    assert!(descendants(job.id(), "stillpoint-rank").into_iter().all(kill));
    place.mark("end");
    let ended = job.wait(LIMIT);
    assert!(code(&ended) == Some(0) && ended.stdout.contains("EXIT-SUCCESS"), "{ended:#?}");
    assert!(ended.stderr.contains("lost; restart 1 of 3 from checkpoint 2"), "{ended:#?}");
    let asked = place.says(&["checkpoint", "1"]);
    assert_eq!(code(&asked), Some(125), "{asked:#?}");
    said(&asked, &["job 1 is not running"]);
}
