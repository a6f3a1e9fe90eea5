//! Links programs and tests with a path to libtorch.

#[path = "build/rpath.rs"]
mod rpath;

fn main() {
    rpath::emit();
}
