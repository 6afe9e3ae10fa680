//! Gives the front the soname of the library that it stands for, so that LD_PRELOAD satisfies the application.
fn main() {
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libmpi.so.40");
    println!("cargo:rerun-if-changed=build.rs");
}
