//! `cargo xtask structure`: crates and modules name each other in one direction.
//!
//! - [`crates`]: which crate may depend on which, and who may name the large libraries
//! - [`sources`]: one file of Rust: what it defines and what it names
//! - [`modules`]: the files of a crate, and which names each takes from which other
//! - [`cycles`]: the loops in such a graph
//!
//! Two rules hold for the modules of a crate:
//!
//! 1. **A crate's top-level modules import in one direction.** `foo.rs` with the files in `foo/` is one module here. The
//!    root (`lib.rs`, `main.rs`) counts, too: it names its modules, so they take nothing that it defines. A name that
//!    the root only re-exports is taken from the file that defines it.
//! 2. **The files of a folder import in one direction.** Each file counts with the folder below it.
//!
//! Rust's usual exchange between `foo.rs` and `foo/bar.rs` is allowed: the parent calls its child, and the child uses
//! what its parent defines. Code under `#[cfg(test)]` is left out. So are tests, benches, examples and build scripts.
//! Paths within texts, such as serde's `with = "…"`, are not seen.

mod crates;
mod cycles;
mod modules;
mod sources;

use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use modules::Modules;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// An import that would close a loop and may stay.
struct Exception {
    /// The file that imports, from the workspace's root.
    from: &'static str,
    /// The file that it imports from.
    to: &'static str,
    /// Why it stays.
    reason: &'static str,
}

/// All of them. One that the sources no longer need fails the check.
const EXCEPTIONS: &[Exception] = &[];

/// What is read of `cargo metadata`.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// `dev`, `build`, or none for a normal one.
    kind: Option<String>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
    src_path: PathBuf,
}

impl Target {
    /// Whether rules about modules hold for it: a library or a program.
    fn has_modules(&self) -> bool {
        self.kind.iter().any(|kind| kind == "lib" || kind == "bin")
    }
}

/// Checks all crates of the workspace.
///
/// # Errors
/// If a rule is broken: every breach, with what to do. If sources cannot be read.
pub fn check(workspace: &Workspace) -> Result<()> {
    let metadata = metadata(workspace)?;
    let mut problems = crates::problems(&metadata.packages);
    let mut files = 0;
    let mut used = vec![false; EXCEPTIONS.len()];
    for target in metadata.packages.iter().flat_map(|package| &package.targets) {
        if !target.has_modules() {
            continue;
        }
        let modules = Modules::read(workspace.root(), &target.src_path)?;
        files += modules.file_count();
        for graph in modules.graphs() {
            let graph = without_exceptions(graph, EXCEPTIONS, &mut used);
            problems.extend(cycles::describe(&graph));
        }
    }
    for (exception, used) in EXCEPTIONS.iter().zip(used) {
        if !used {
            let Exception { from, to, reason } = exception;
            problems.push(format!("{from} imports nothing from {to}: remove the exception ({reason})"));
        }
    }
    if problems.is_empty() {
        println!("==> structure: {} crates, {files} files, one direction", metadata.packages.len());
        return Ok(());
    }
    for problem in &problems {
        eprintln!("{problem}\n");
    }
    bail!("{} breaches of the structure that ARCHITECTURE.md describes", problems.len())
}

fn metadata(workspace: &Workspace) -> Result<Metadata> {
    let output = workspace
        .cargo()
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .output()
        .context("cannot start `cargo metadata`")?;
    if !output.status.success() {
        bail!("`cargo metadata` failed: {}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    serde_json::from_slice(&output.stdout).context("`cargo metadata` wrote what this program cannot read")
}

/// Leaves out the imports that may stay, and notes which exceptions met one.
fn without_exceptions(
    mut graph: cycles::Graph,
    exceptions: &[Exception],
    used: &mut [bool],
) -> cycles::Graph {
    graph.retain(|import| {
        let excepted = exceptions.iter().position(|exception| {
            import.from == Path::new(exception.from) && import.to == Path::new(exception.to)
        });
        if let Some(index) = excepted {
            used[index] = true;
        }
        excepted.is_none()
    });
    graph
}

#[cfg(test)]
mod tests;
