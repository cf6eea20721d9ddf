//! Links ckpt-stub as a program that needs nothing: no C runtime, no interpreter, no relocation.

fn main() {
    for arg in
        ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-z,noexecstack"]
    {
        println!("cargo:rustc-link-arg-bin=ckpt-stub={arg}");
    }
    println!("cargo:rerun-if-changed=build.rs");
}
