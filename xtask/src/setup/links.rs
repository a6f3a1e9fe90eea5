//! Links from `.arriero` to what pip installed.

use super::{stamp, venv};
use crate::process;
use crate::workspace::{Workspace, has_libtorch};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The GGUF file in the model's wheel.
const WHEEL_MODEL: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

/// Where the program looks for its default model.
pub fn model(workspace: &Workspace) -> PathBuf {
    workspace.state().join("models/SmolLM2-135M-Instruct.gguf")
}

/// Makes the model of the wheel whose module lies in `module` the default one.
pub fn link_model(workspace: &Workspace, module: &Path) -> Result<()> {
    let (source, link) = (module.join(WHEEL_MODEL), model(workspace));
    ensure!(source.is_file(), "the model's wheel holds no {}", source.display());
    fs::create_dir_all(workspace.state().join("models"))?;
    remove(&link)?;
    if symlink(&source, &link).is_err() {
        // Some mounted file systems know no links.
        fs::copy(&source, &link).with_context(|| format!("cannot write {}", link.display()))?;
    }
    Ok(())
}

/// Whether everything that the compiler and the linker read is there.
pub fn libtorch_is_intact(workspace: &Workspace) -> bool {
    let view = workspace.libtorch_view();
    has_libtorch(&view) && view.join("include").is_dir() && view.join("build-version").is_file()
}

/// Makes the folder that LIBTORCH names, from an installed torch.
///
/// It leaves out libtorch_cuda, which torch-sys would link if it saw it. One binary is to serve machines with and
/// without a GPU.
pub fn link_libtorch(workspace: &Workspace, torch: &Path) -> Result<()> {
    check_loads(workspace, torch)?;
    let view = workspace.libtorch_view();
    remove(&view)?;
    let lib = view.join("lib");
    fs::create_dir_all(&lib).with_context(|| format!("cannot make {}", lib.display()))?;
    let link = |source: &Path, link: &Path| {
        symlink(source, link)
            .with_context(|| format!("cannot link {} to {}", link.display(), source.display()))
    };
    link(&torch.join("include"), &view.join("include"))?;
    for entry in fs::read_dir(torch.join("lib"))? {
        let entry = entry?;
        if is_linked(&entry.file_name().to_string_lossy()) {
            link(&entry.path(), &lib.join(entry.file_name()))?;
        }
    }
    // On Linux, libtorch.so has nothing of its own but a dependency on libtorch_cuda, and GNU ld would keep it.
    let (empty, cpu) = (lib.join("libtorch.so"), torch.join("lib/libtorch_cpu.so"));
    if cpu.is_file() {
        remove(&empty)?;
        link(&cpu, &empty)?;
    }
    // torch-sys compares it with the version it was made for.
    fs::write(view.join("build-version"), stamp::torch_version())?;
    Ok(())
}

/// Lets the system's loader open libtorch. So a library that it lacks is named here, and not by every program.
fn check_loads(workspace: &Workspace, torch: &Path) -> Result<()> {
    let library = ["libtorch_cpu.so", "libtorch_cpu.dylib"]
        .iter()
        .map(|name| torch.join("lib").join(name))
        .find(|library| library.is_file())
        .with_context(|| {
            format!("the torch wheel holds no libtorch_cpu in {}", torch.join("lib").display())
        })?;
    let load = "import ctypes, sys; ctypes.CDLL(sys.argv[1])";
    process::run(Command::new(venv(workspace).python()).args(["-I", "-c", load]).arg(library))
        .context("the libtorch that was just installed does not load, for the reason above")
}

/// Whether programs link this library of the wheel.
fn is_linked(file: &str) -> bool {
    ["libtorch.", "libtorch_cpu.", "libc10.", "libgomp", "libomp."]
        .iter()
        .any(|start| file.starts_with(start))
}

fn remove(path: &Path) -> Result<()> {
    let Ok(metadata) = path.symlink_metadata() else { return Ok(()) };
    if metadata.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
        .with_context(|| format!("cannot remove {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuda_and_python_libraries_are_left_out() {
        for file in
            ["libtorch.so", "libtorch_cpu.so", "libc10.so", "libgomp.so.1", "libgomp-24e2ab19.so.1.0.0"]
        {
            assert!(is_linked(file), "{file}");
        }
        for file in ["libtorch_cpu.dylib", "libc10.dylib", "libtorch.dylib", "libomp.dylib"] {
            assert!(is_linked(file), "{file}");
        }
        for file in ["libtorch_cuda.so", "libtorch_python.so", "libc10_cuda.so", "libtorch_cuda_linalg.so"] {
            assert!(!is_linked(file), "{file}");
        }
    }

    #[test]
    fn removing_a_link_keeps_what_it_points_to() {
        let folder = tempfile::tempdir().expect("temporary directory");
        let (target, link) = (folder.path().join("target"), folder.path().join("link"));
        fs::create_dir(&target).expect("target");
        symlink(&target, &link).expect("link");
        remove(&link).expect("removed");
        assert!(target.is_dir() && link.symlink_metadata().is_err());
        remove(&link).expect("nothing to remove is no error");
    }
}
