//! `cargo xtask test` and `cargo xtask ci`.

use crate::{process, setup, structure, workspace::Workspace};
use anyhow::{Result, ensure};
use std::fs;

/// Sets up and runs all tests. `args` go to `cargo test`, `test_args` to the test programs.
pub fn test(workspace: &Workspace, args: &[String], test_args: &[String]) -> Result<()> {
    setup::setup(workspace, false)?;
    let mut cargo = workspace.cargo();
    cargo.args(["test", "--workspace"]).args(args);
    if !test_args.is_empty() {
        cargo.arg("--").args(test_args);
    }
    process::step(&mut cargo)
}

/// Everything that a change must pass; the first failure ends it.
pub fn ci(workspace: &Workspace) -> Result<()> {
    for tool in ["fmt", "clippy"] {
        let version = workspace.cargo().args([tool, "--version"]).output();
        ensure!(
            version.is_ok_and(|output| output.status.success()),
            "`cargo {tool}` is missing: run `rustup component add rustfmt clippy`"
        );
    }
    structure::check(workspace)?;
    // Macros declare the modules of the algorithms and of the selection rules. rustfmt does not see these, so their
    // files are named to it.
    let mut registered = Vec::new();
    for folder in ["policy/src/objective", "buffers/src/selection"] {
        for entry in fs::read_dir(workspace.root().join(folder))? {
            let path = entry?.path();
            registered.extend(path.extension().is_some_and(|extension| extension == "rs").then_some(path));
        }
    }
    process::step(workspace.cargo().args(["fmt", "--all", "--", "--check"]).args(registered))?;
    setup::setup(workspace, false)?;
    let clippy = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    process::step(workspace.cargo().args(clippy))?;
    let doc = ["doc", "--workspace", "--no-deps"];
    process::step(workspace.cargo().args(doc).env("RUSTDOCFLAGS", "-D warnings"))?;
    test(workspace, &[], &[])
}
