//! Files that are replaced whole; whether a folder can be written to, and its free space.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::StoreError;

/// Replaces a file as a whole. A reader finds the old bytes or the new ones, also after a crash.
///
/// # Errors
/// If the new file cannot be written beside the old one or put in its place. The old file then is
/// as it was, and nothing is left beside it.
pub fn atomic_write(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    replace(path, |file| file.write_all(bytes))
}

/// Writes readable JSON as a whole.
pub(crate) fn write_json(path: &Path, value: &serde_json::Value) -> Result<(), StoreError> {
    atomic_write(path, format!("{value:#}\n").as_bytes())
}

fn replace(path: &Path, fill: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), StoreError> {
    let temporary = beside(path.parent().unwrap_or(Path::new("")));
    let written = OpenOptions::new().write(true).create_new(true).open(&temporary).and_then(|mut file| {
        fill(&mut file)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    });
    written.map_err(|cause| {
        // If it is not there, it was never made.
        let _ = fs::remove_file(&temporary);
        StoreError::io("write", path, cause)
    })
}

/// A name in `folder` that no other call gives.
fn beside(folder: &Path) -> PathBuf {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    folder.join(format!(".arriero-{}-{}.tmp", process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)))
}

/// The part of `path` that exists: itself, or the nearest folder above it.
pub(crate) fn nearest_existing(path: &Path) -> PathBuf {
    // The last ancestor of a relative path is the empty one: the current folder.
    let there = |path: &&Path| path.as_os_str().is_empty() || path.symlink_metadata().is_ok();
    match path.ancestors().find(there) {
        Some(path) if !path.as_os_str().is_empty() => path.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// Tries whether `folder` can be written to, by making a file in it and removing it. Permission bits
/// would not tell of read-only mounts.
pub(crate) fn check_writable(folder: &Path) -> Result<(), StoreError> {
    let probe = beside(folder);
    let made = OpenOptions::new().write(true).create_new(true).open(&probe);
    made.and_then(|_| fs::remove_file(&probe)).map_err(|cause| match StoreError::io("write", folder, cause) {
        // Some file systems have other words for "no".
        StoreError::Io { path, cause, .. } => StoreError::ReadOnly { path, cause: cause.into() },
        error => error,
    })
}

/// Checks that the disk of `folder` has `needed` bytes free.
pub(crate) fn check_space(folder: &Path, needed: u64) -> Result<(), StoreError> {
    let disk = rustix::fs::statvfs(folder)
        .map_err(|cause| StoreError::io("ask for the free space of", folder, cause.into()))?;
    let found = disk.f_bavail.saturating_mul(disk.f_frsize);
    // A file system of no blocks does not say how large it is.
    if disk.f_blocks > 0 && found < needed {
        return Err(StoreError::DiskFull { path: folder.to_path_buf(), found, needed });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("it is there");
        entries.map(|entry| entry.expect("it is there").file_name().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn a_file_is_replaced_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.json");
        atomic_write(&path, b"old").expect("it can be written");
        atomic_write(&path, b"new").expect("it can be written");
        assert_eq!(fs::read(&path).expect("it is there"), b"new");
        assert_eq!(names(folder.path()), ["a.json"]);
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.json");
        atomic_write(&path, b"old").expect("it can be written");
        let result = replace(&path, |file| {
            file.write_all(b"ne")?;
            Err(io::ErrorKind::StorageFull.into())
        });
        let error = result.expect_err("the disk is full");
        assert!(error.to_string().starts_with(&format!("the disk of {} is full", path.display())), "{error}");
        assert_eq!(fs::read(&path).expect("it is there"), b"old");
        assert_eq!(names(folder.path()), ["a.json"]);
    }

    #[test]
    fn a_failed_rename_leaves_nothing_beside() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("taken");
        fs::create_dir(&path).expect("it can be made");
        let error = atomic_write(&path, b"new").expect_err("a folder is in its place");
        assert!(error.to_string().starts_with(&format!("could not write {}: ", path.display())), "{error}");
        assert_eq!(names(folder.path()), ["taken"]);
    }

    #[test]
    fn the_nearest_existing_folder_of_a_relative_path_is_the_current_one() {
        assert_eq!(nearest_existing(Path::new("no-such/folder")), Path::new("."));
        assert_eq!(nearest_existing(Path::new("src/no-such")), Path::new("src"));
        assert_eq!(nearest_existing(Path::new("/no-such/folder")), Path::new("/"));
    }
}
