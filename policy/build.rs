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
        let x86 = env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64");
        let sources = ["operators", "attention", "draw", "elementwise", "gemm", "head", "rows_table"];
        kernels()
            .flag_if_supported("-fopenmp")
            .define(if x86 { "ARRIERO_X86" } else { "ARRIERO_OTHER" }, None)
            .include(&include)
            .include(include.join("torch/csrc/api/include"))
            .files(sources.map(|name| format!("kernels/{name}.cpp")))
            .compile("arriero_kernels");
        // Once for each instruction set; which one runs is decided when the program does.
        rows("baseline", &[]);
        if x86 {
            rows("avx2", &["-march=haswell"]);
            rows("avx512", &["-march=skylake-avx512", "-mprefer-vector-width=512"]);
            rows("avx512bf16", &["-march=cooperlake", "-mprefer-vector-width=512"]);
            kernels().flag("-march=cooperlake").file("kernels/fixed.cpp").compile("arriero_fixed");
        }
        if env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
            println!("cargo::rustc-link-lib=gomp");
        }
    }
}

fn kernels() -> cc::Build {
    let mut build = cc::Build::new();
    // Optimised whatever the profile: tests run real models.
    build.cpp(true).std("c++20").opt_level(3).warnings(false);
    build
}

fn rows(isa: &str, flags: &[&str]) {
    let mut build = kernels();
    build.define("ARRIERO_ISA", isa).file("kernels/rows.cpp");
    for flag in ["-fopenmp-simd", "-fno-trapping-math", "-fno-math-errno"].iter().chain(flags) {
        build.flag(flag);
    }
    build.compile(&format!("arriero_rows_{isa}"));
}
