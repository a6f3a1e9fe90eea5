//! Links programs and tests with a path to libtorch.

#[path = "../policy/build/rpath.rs"]
mod rpath;

fn main() {
    rpath::emit();
}
