//! What a program sees of the file system. It is worked out before the program starts, as steps that need no memory.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::process::{Gid, Uid};

use crate::error::SandboxError;
use crate::filter::Filter;
use crate::job::SCRATCH;

/// Programs and libraries, where they are there. What is a symbolic link stays one.
const SYSTEM: &[&str] =
    &["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store"];
/// What programs need of `/etc`: where libraries are, what `python3` or `cc` mean, and the time zone.
const SETTINGS: &[&str] = &["/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime"];
/// The devices.
const DEVICES: &[&str] = &["/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"];

/// Where the old root is while the new one is made; `child` makes it.
const OLD_ROOT: &str = "old-root";

/// One step towards the new root, which is the working folder.
#[derive(Debug)]
pub(crate) enum Step {
    /// Makes a folder.
    Folder(CString),
    /// Makes an empty file.
    File(CString),
    /// Makes a symbolic link.
    Link { to: CString, path: CString },
    /// Shows a file or folder of the old root here, read-only.
    Bind { from: CString, to: CString, device: bool },
}

/// Who the program is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Identity {
    /// We are root: a user id that nobody else has, for each run its own.
    Fresh,
    /// We are not: our own, in a user namespace where it is called something else.
    Namespace { uid: Uid, gid: Gid },
}

/// What all programs of a sandbox have in common.
#[derive(Debug)]
pub(crate) struct Plan {
    pub steps: Vec<Step>,
    pub identity: Identity,
    pub filter: Filter,
}

impl Plan {
    pub fn new(readable: &[PathBuf]) -> Result<Self, SandboxError> {
        let mut tree = Tree::default();
        for path in SYSTEM.iter().chain(SETTINGS) {
            // A path that is not there, or is a link to nowhere, is not needed here.
            let _ = tree.show(Path::new(path), false);
        }
        for path in DEVICES {
            tree.show(Path::new(path), true)?;
        }
        for path in readable {
            let refuse =
                |cause: &str| SandboxError::Readable { path: path.clone(), cause: cause.to_string() };
            let whole = fs::canonicalize(path).map_err(|cause| refuse(&cause.to_string()))?;
            let home = std::env::home_dir().and_then(|home| fs::canonicalize(home).ok());
            if whole == Path::new("/") || home.is_some_and(|home| home.starts_with(&whole)) {
                return Err(refuse("it is the root or holds the home folder; name what is needed of it"));
            }
            let absolute = std::path::absolute(path).map_err(|cause| refuse(&cause.to_string()))?;
            tree.show(&absolute, false)?;
            tree.show(&whole, false)?;
        }
        tree.steps.retain(|step| !matches!(step, Step::Folder(path) if path.as_bytes() == b"tmp"));
        Ok(Plan { steps: tree.steps, identity: identity()?, filter: Filter::new()? })
    }
}

/// Root of the whole machine (and not of a container's user namespace, which cannot take any user id).
fn identity() -> Result<Identity, SandboxError> {
    let uid = rustix::process::geteuid();
    let map = fs::read_to_string("/proc/self/uid_map").map_err(|cause| SandboxError::Unavailable {
        step: "reading /proc/self/uid_map",
        cause: cause.to_string(),
        advice: "The sandbox needs /proc and a kernel with user namespaces",
    })?;
    let whole = map.split_whitespace().eq(["0", "0", "4294967295"]);
    if uid.is_root() && whole {
        return Ok(Identity::Fresh);
    }
    Ok(Identity::Namespace { uid, gid: rustix::process::getegid() })
}

/// The new root as it grows.
#[derive(Default)]
struct Tree {
    steps: Vec<Step>,
    made: BTreeSet<PathBuf>,
    shown: Vec<PathBuf>,
}

impl Tree {
    /// Shows a path where it is; what is within a shown one is there already.
    fn show(&mut self, path: &Path, device: bool) -> Result<(), SandboxError> {
        let refuse = |cause: String| SandboxError::Readable { path: path.to_path_buf(), cause };
        if self.is_shown(path) {
            return Ok(());
        }
        let whole = fs::canonicalize(path).map_err(|cause| refuse(cause.to_string()))?;
        if whole.starts_with("/proc") || whole.starts_with("/sys") {
            return Err(refuse("programs see nothing of the kernel's own file systems".to_string()));
        }
        if path == Path::new(SCRATCH) {
            return Err(refuse(format!("{SCRATCH} is the program's own working folder")));
        }
        if path.parent() == Some(Path::new("/")) && path.is_symlink() {
            let to = fs::read_link(path).map_err(|cause| refuse(cause.to_string()))?;
            self.steps.push(Step::Link { to: c_path(&to)?, path: relative(path)? });
            self.shown.push(path.to_path_buf());
            return self.show(&whole, device);
        }
        self.parents(path)?;
        self.steps.push(match whole.is_dir() {
            true => Step::Folder(relative(path)?),
            false => Step::File(relative(path)?),
        });
        let from = Path::new(OLD_ROOT).join(whole.strip_prefix("/").unwrap_or(&whole));
        self.steps.push(Step::Bind { from: c_path(&from)?, to: relative(path)?, device });
        self.shown.push(path.to_path_buf());
        Ok(())
    }

    fn is_shown(&self, path: &Path) -> bool {
        self.shown.iter().any(|shown| path.starts_with(shown))
    }

    fn parents(&mut self, path: &Path) -> Result<(), SandboxError> {
        let mut folder = PathBuf::from("/");
        for part in path.parent().into_iter().flat_map(Path::components) {
            if let Component::Normal(name) = part {
                folder.push(name);
                if self.made.insert(folder.clone()) {
                    self.steps.push(Step::Folder(relative(&folder)?));
                }
            }
        }
        Ok(())
    }
}

/// A path of the new root, from the new root.
fn relative(path: &Path) -> Result<CString, SandboxError> {
    c_path(path.strip_prefix("/").unwrap_or(path))
}

/// A path for the kernel.
pub(crate) fn c_path(path: &Path) -> Result<CString, SandboxError> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|cause| SandboxError::Readable { path: path.to_path_buf(), cause: cause.to_string() })
}
