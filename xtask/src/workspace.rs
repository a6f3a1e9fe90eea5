//! Where things lie in the checkout.

use anyhow::{Context, Result, ensure};
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A checkout of Arriero.
pub struct Workspace {
    root: PathBuf,
    libtorch: Option<PathBuf>,
}

impl Workspace {
    /// The checkout that this program was built from, whatever the current directory.
    pub fn locate() -> Result<Self> {
        let package = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let root = Path::new(&package).parent().context("xtask/ has no parent directory")?.to_owned();
        let libtorch = env::var_os("LIBTORCH").map(PathBuf::from);
        Ok(Self::new(root, libtorch))
    }

    fn new(root: PathBuf, libtorch: Option<PathBuf>) -> Self {
        // `cargo xtask` itself sets LIBTORCH from .cargo/config.toml: that one is not the user's.
        let libtorch = libtorch.filter(|set| *set != root.join(".arriero/libtorch"));
        Self { root, libtorch }
    }

    /// The directory of the workspace's Cargo.toml.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What `setup` made, and links to it; never anything of the user's.
    pub fn state(&self) -> PathBuf {
        self.root.join(".arriero")
    }

    /// The project's own Python environment.
    pub fn venv(&self) -> PathBuf {
        self.root.join(".venv")
    }

    /// The folder that cargo takes libtorch from unless the user names another.
    pub fn libtorch_view(&self) -> PathBuf {
        self.state().join("libtorch")
    }

    /// The libtorch that the user named by LIBTORCH, if any.
    ///
    /// # Errors
    /// If LIBTORCH is no absolute path to a folder with `lib/libtorch_cpu`.
    pub fn users_libtorch(&self) -> Result<Option<&Path>> {
        let Some(libtorch) = &self.libtorch else { return Ok(None) };
        ensure!(
            libtorch.is_absolute(),
            "LIBTORCH must be an absolute path, found {libtorch:?}; unset it to let `cargo xtask setup` install \
             libtorch"
        );
        ensure!(
            has_libtorch(libtorch),
            "LIBTORCH is {}, but {} holds no libtorch_cpu.so or .dylib; correct LIBTORCH, or unset it to let \
             `cargo xtask setup` install libtorch",
            libtorch.display(),
            libtorch.join("lib").display()
        );
        Ok(Some(libtorch))
    }

    /// A cargo command in the root, with the environment that a plain `cargo` there would have.
    pub fn cargo(&self) -> Command {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(&self.root);
        if self.libtorch.is_none() {
            cargo.env_remove("LIBTORCH");
        }
        cargo
    }

    /// Where a release build puts its programs.
    pub fn release(&self) -> PathBuf {
        self.root.join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into())).join("release")
    }
}

/// Whether `lib/` of this folder holds the library that programs link.
pub fn has_libtorch(libtorch: &Path) -> bool {
    ["libtorch_cpu.so", "libtorch_cpu.dylib"].iter().any(|name| libtorch.join("lib").join(name).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workspace(libtorch: &str) -> Workspace {
        Workspace::new("/w".into(), Some(libtorch.into()))
    }

    #[test]
    fn a_libtorch_that_cargo_set_is_not_the_users() {
        assert_eq!(workspace("/w/.arriero/libtorch").users_libtorch().expect("accepted"), None);
    }

    #[test]
    fn a_relative_libtorch_is_refused() {
        let error = workspace("torch").users_libtorch().expect_err("relative").to_string();
        assert!(error.starts_with("LIBTORCH must be an absolute path, found \"torch\";"), "{error}");
        let error = workspace("").users_libtorch().expect_err("empty").to_string();
        assert!(error.starts_with("LIBTORCH must be an absolute path, found \"\";"), "{error}");
    }

    #[test]
    fn a_libtorch_must_hold_the_library() {
        let folder = tempfile::tempdir().expect("temporary directory");
        let workspace = Workspace::new("/w".into(), Some(folder.path().into()));
        let error = workspace.users_libtorch().expect_err("empty folder").to_string();
        assert!(error.contains("lib holds no libtorch_cpu.so or .dylib; correct LIBTORCH"), "{error}");

        std::fs::create_dir(folder.path().join("lib")).expect("lib");
        std::fs::write(folder.path().join("lib/libtorch_cpu.so"), "").expect("library");
        assert_eq!(workspace.users_libtorch().expect("accepted"), Some(folder.path()));
    }
}
