//! Made-up crates with and without loops. Among them are the loops that this project had.

use super::cycles;
use super::modules::Modules;
use super::{Exception, without_exceptions};

/// Every loop of a crate.
fn loops(files: &[(&str, &str)]) -> Vec<String> {
    Modules::of(files).graphs().iter().flat_map(cycles::describe).collect()
}

fn assert_one_direction(files: &[(&str, &str)]) {
    assert_eq!(loops(files), [""; 0]);
}

#[test]
fn modules_in_one_direction_pass() {
    assert_one_direction(&[
        ("lib.rs", "mod error; mod store; pub use error::StoreError; pub use store::Store;"),
        ("error.rs", "pub enum StoreError { Full }"),
        (
            "store.rs",
            "use crate::error::StoreError; pub struct Store; fn f() -> StoreError { crate::StoreError::Full }",
        ),
    ]);
}

#[test]
fn two_top_level_modules_that_name_each_other_are_a_loop() {
    // The options' default stands with the error that names it.
    let found = loops(&[
        ("lib.rs", "mod config; mod error;"),
        ("config.rs", "mod hf; pub struct Config;"),
        ("config/hf.rs", "use crate::error::{PolicyError, Reason};"),
        (
            "error.rs",
            "use crate::config::hf; pub enum PolicyError {} pub enum Reason {} const A: u8 = hf::SCORE;",
        ),
    ]);
    let expected = "a loop: config → error → config\n  config/hf.rs → error.rs: PolicyError, Reason\n  \
                    error.rs → config/hf.rs: SCORE, hf";
    assert_eq!(found, [expected]);
}

#[test]
fn a_function_taken_back_is_a_loop_even_without_a_use() {
    let found = loops(&[
        ("lib.rs", "mod arm; mod run;"),
        ("arm.rs", "pub struct Arm; fn write() { crate::run::write_json() }"),
        ("run.rs", "use crate::arm::Arm; pub fn write_json() {}"),
    ]);
    assert_eq!(found, ["a loop: arm → run → arm\n  arm.rs → run.rs: write_json\n  run.rs → arm.rs: Arm"]);
}

#[test]
fn a_type_in_a_field_is_an_import() {
    let found = loops(&[
        ("lib.rs", "mod checks; pub mod code;"),
        ("checks.rs", "pub struct Checks { cases: Vec<crate::code::Case> }"),
        ("code.rs", "use crate::checks::Checks; pub struct Case;"),
    ]);
    assert_eq!(
        found,
        ["a loop: checks → code → checks\n  checks.rs → code.rs: Case\n  code.rs → checks.rs: Checks"]
    );
}

#[test]
fn what_the_root_defines_is_not_for_its_modules() {
    let found = loops(&[
        ("main.rs", "mod chat; enum Failure {} fn main() { chat::run() }"),
        ("chat.rs", "use crate::Failure; pub fn run() -> Failure {}"),
    ]);
    assert_eq!(
        found,
        ["a loop: chat → main.rs → chat\n  chat.rs → main.rs: Failure\n  main.rs → chat.rs: run"]
    );
    assert_one_direction(&[
        ("main.rs", "mod chat; mod failure; use failure::Failure; fn main() { chat::run() }"),
        ("chat.rs", "use crate::Failure; pub fn run() -> Failure {}"),
        ("failure.rs", "pub enum Failure {}"),
    ]);
}

#[test]
fn files_of_a_folder_go_in_one_direction() {
    let found = loops(&[
        ("lib.rs", "mod checkpoint;"),
        ("checkpoint.rs", "mod adapter; mod write; pub use write::Writer;"),
        ("checkpoint/adapter.rs", "use super::write::TENSORS; pub fn is_adapter() {}"),
        (
            "checkpoint/write.rs",
            "pub struct Writer; pub const TENSORS: u8 = 0; fn f() { super::adapter::is_adapter() }",
        ),
    ]);
    let expected = "a loop: checkpoint::adapter → checkpoint::write → checkpoint::adapter\n  \
                    checkpoint/adapter.rs → checkpoint/write.rs: TENSORS\n  \
                    checkpoint/write.rs → checkpoint/adapter.rs: is_adapter";
    assert_eq!(found, [expected]);
}

#[test]
fn a_re_export_does_not_hide_a_loop() {
    let found = loops(&[
        ("lib.rs", "mod experiment;"),
        ("experiment.rs", "mod average; mod stages; use stages::Stage; pub use self::average::*;"),
        ("experiment/average.rs", "use super::Stage; pub struct Average;"),
        ("experiment/stages.rs", "use crate::experiment::Average; pub struct Stage;"),
    ]);
    let expected = "a loop: experiment::average → experiment::stages → experiment::average\n  \
                    experiment/average.rs → experiment/stages.rs: Stage\n  \
                    experiment/stages.rs → experiment/average.rs: Average";
    assert_eq!(found, [expected]);
}

#[test]
fn a_parent_and_its_child_may_name_each_other() {
    assert_one_direction(&[
        ("lib.rs", "mod objective;"),
        (
            "objective.rs",
            "registry! { \"dpo\" => dpo::DpoConfig; } pub trait Objective {} mod inline { use super::dpo; }",
        ),
        ("objective/dpo.rs", "mod losses; use super::Objective; pub struct DpoConfig; pub struct Loss;"),
        ("objective/dpo/losses.rs", "use super::Loss; use crate::objective::Objective;"),
    ]);
}

#[test]
fn tests_may_name_anything() {
    assert_one_direction(&[
        ("lib.rs", "mod low; mod high;"),
        (
            "low.rs",
            "pub struct Low; #[cfg(test)] mod tests; #[cfg(test)] mod more { use crate::high::High; }",
        ),
        ("low/tests.rs", "use crate::high::High;"),
        ("high.rs", "use crate::low::Low; pub struct High;"),
    ]);
}

#[test]
fn a_longer_loop_is_found_across_folders() {
    let found = loops(&[
        ("lib.rs", "mod a; mod b; mod c;"),
        ("a.rs", "mod inner;"),
        ("a/inner.rs", "use crate::b; fn f() { b::g() }"),
        ("b.rs", "pub fn g() { crate::c::h() }"),
        ("c.rs", "use crate::a as first; pub fn h() { first::inner::i() }"),
    ]);
    let expected = "a loop: a → b → c → a\n  a/inner.rs → b.rs: b, g\n  b.rs → c.rs: h\n  \
                    c.rs → a/inner.rs: i\n  c.rs → a.rs: a";
    assert_eq!(found, [expected]);
}

#[test]
fn names_of_other_crates_are_no_imports() {
    assert_one_direction(&[
        ("lib.rs", "mod a; mod b;"),
        ("a.rs", "use b::C; use serde::b; fn f() { ::b::g(); std::b::h() }"),
        ("b.rs", "use crate::a; pub use b::C;"),
    ]);
}

#[test]
fn an_exception_takes_one_import_away() {
    let files = [
        ("lib.rs", "mod a; mod b;"),
        ("a.rs", "use crate::b::B; struct A;"),
        ("b.rs", "use crate::a::A; struct B;"),
    ];
    let exceptions = |from, to| [Exception { from, to, reason: "it was so" }];
    let mut graphs = Modules::of(&files).graphs();
    let graph = without_exceptions(graphs.remove(0), &exceptions("a.rs", "lib.rs"), &mut [false]);
    assert_eq!(cycles::describe(&graph).len(), 1);
    let mut used = [false];
    let graph = without_exceptions(graph, &exceptions("b.rs", "a.rs"), &mut used);
    assert_eq!((cycles::describe(&graph).len(), used), (0, [true]));
}
