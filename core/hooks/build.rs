//! Links the hook library without libc: the loader maps it itself, before there is a dynamic linker upstairs.

fn main() {
    for arg in ["-nostdlib", "-nostartfiles", "-Wl,-Bsymbolic", "-Wl,-z,norelro", "-Wl,--build-id=none"] {
        println!("cargo:rustc-cdylib-link-arg={arg}");
    }
}
