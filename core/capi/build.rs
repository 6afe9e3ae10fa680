//! Gives libstillpoint.so its soname, and keeps it loaded: its thread for callbacks runs in it until the process ends.
fn main() {
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libstillpoint.so,-z,nodelete");
    println!("cargo:rerun-if-changed=build.rs");
}
