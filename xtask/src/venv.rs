//! Virtual environments of Python that are ours to make and remove.

use crate::process;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Says that an environment is ours to remove.
const OWNER: &str = "made-by-cargo-xtask-setup";

/// A virtual environment, there or not.
pub struct Venv {
    folder: PathBuf,
}

impl Venv {
    /// The environment in this folder.
    pub fn at(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Its interpreter.
    pub fn python(&self) -> PathBuf {
        self.program("python")
    }

    /// A program that is installed in it.
    pub fn program(&self, name: &str) -> PathBuf {
        self.folder.join("bin").join(name)
    }

    /// An empty environment, in place of any that we left unfinished.
    pub fn make(&self, python: &str) -> Result<()> {
        let folder = self.folder.display();
        if self.folder.symlink_metadata().is_ok() {
            ensure!(
                self.folder.join(OWNER).is_file(),
                "{folder} is there, but `cargo xtask` did not make it; move it away or remove it"
            );
            println!("==> removing an unfinished or outdated {folder}");
            fs::remove_dir_all(&self.folder).with_context(|| format!("cannot remove {folder}"))?;
        }
        // Marked before it is filled: an interrupted set-up is ours as well.
        fs::create_dir(&self.folder).with_context(|| format!("cannot make {folder}"))?;
        fs::write(self.folder.join(OWNER), "`cargo xtask` may remove this directory and make it again.\n")?;
        process::run(Command::new(python).args(["-m", "venv"]).arg(&self.folder))
            .with_context(|| format!("cannot make a virtual environment in {folder}"))
    }

    /// Installs the wheels of a requirements file. `disk` says what they take, for an error where there is too little.
    pub fn install(&self, requirements: &Path, options: &[&str], disk: &str) -> Result<()> {
        println!("==> installing {} into {}", requirements.display(), self.folder.display());
        let mut pip = Command::new(self.python());
        pip.args(["-m", "pip", "install", "--disable-pip-version-check", "--only-binary=:all:"])
            .args(options)
            .arg("--requirement")
            .arg(requirements);
        process::run(&mut pip).with_context(|| {
            format!(
                "pip could not install the pinned packages, for the reason above; they come from PyPI and need up \
                 to {disk} of disk. Run the same command again when that is mended"
            )
        })
    }

    /// The folder of an installed Python module, without importing it.
    pub fn module(&self, name: &str) -> Result<PathBuf> {
        let script =
            format!("import importlib.util as u; print(u.find_spec({name:?}).submodule_search_locations[0])");
        let output = Command::new(self.python()).args(["-I", "-c", &script]).output()?;
        ensure!(
            output.status.success(),
            "pip installed no module {name} into {}: {}",
            self.folder.display(),
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
        Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim_end()))
    }
}
