//! The functions of `fds.rs` take the place of libc's for the MPI library that is loaded into this program, which only
//! works if the program exports them (and nothing else: the library must not meet our other symbols). Runs *next door*,
//! at build time.

/// As in `fds.rs`.
const EXPORTED: &str = "socket accept accept4 eventfd epoll_create epoll_create1 timerfd_create inotify_init inotify_init1 \
    memfd_create open open64 openat openat64 dup dup2 dup3 pipe pipe2 shm_open socketpair close fcntl fcntl64";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    for name in EXPORTED.split_whitespace() {
        println!("cargo:rustc-link-arg-bins=-Wl,--export-dynamic-symbol={name}");
    }
}
