//! Compiles the kernels against libtorch's headers, and links programs and tests with a path to libtorch.

#[path = "build/rpath.rs"]
mod rpath;

use std::{env, path::PathBuf};

fn main() {
    rpath::emit();
    println!("cargo::rerun-if-changed=kernels");
    let include = PathBuf::from(env::var_os("LIBTORCH").unwrap_or_default()).join("include");
    // rpath::emit has said so where there is no libtorch.
    if include.exists() {
        cc::Build::new()
            .cpp(true)
            .std("c++20")
            // Whatever the profile: tests run real models.
            .opt_level(3)
            .warnings(false)
            .flag_if_supported("-fopenmp")
            .include(&include)
            .include(include.join("torch/csrc/api/include"))
            .files(["operators", "attention", "elementwise", "gemm", "head"].map(|name| format!("kernels/{name}.cpp")))
            .compile("arriero_kernels");
        if env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
            println!("cargo::rustc-link-lib=gomp");
        }
    }
}
