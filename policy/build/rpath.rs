//! The part that the build scripts of all packages whose programs or tests load libtorch have in common.

use std::{env, path::PathBuf};

/// Tells the linker where the program finds libtorch when it starts.
///
/// `$LIBTORCH/lib` may hold links, as `cargo xtask setup` makes them, but libtorch finds its own libraries
/// relative to the path it was opened by; so the program gets the folder that the library really lies in.
/// GNU ld does not follow that path, so it must not ask for libtorch's own libraries when it links.
pub fn emit() {
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    let lib = PathBuf::from(env::var_os("LIBTORCH").unwrap_or_default()).join("lib");
    let library =
        ["libtorch_cpu.so", "libtorch_cpu.dylib"].iter().find_map(|name| lib.join(name).canonicalize().ok());
    match library.as_deref().and_then(|library| Some((library, library.parent()?))) {
        Some((library, folder)) => {
            println!("cargo::rerun-if-changed={}", library.display());
            println!("cargo::rustc-link-arg=-Wl,-rpath,{}", folder.display());
            if env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
                println!("cargo::rustc-link-arg=-Wl,--allow-shlib-undefined");
            }
        }
        None => println!(
            "cargo::error=no libtorch_cpu in {} ($LIBTORCH/lib): run `cargo xtask setup`, or set LIBTORCH to the \
             folder of a libtorch",
            lib.display()
        ),
    }
}
