//! Files of JSON and text, and folders that are replaced whole.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{PolicyError, Result};

/// Replaces a folder as a whole: lets `fill` write one beside `directory`, and puts it there by one rename. What `fill` writes
/// must be on the disk when it returns.
///
/// # Errors
/// Those of `fill`, or if the disk is full or the place is not writable; then nothing is left beside it.
pub fn write_folder(directory: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let partial = PathBuf::from(format!("{}.partial", directory.display()));
    let clear = |folder: &Path| match folder.exists() {
        true => fs::remove_dir_all(folder),
        false => Ok(()),
    };
    let unwritable = |error: std::io::Error| unwritable(directory, &error);
    clear(&partial).and_then(|()| fs::create_dir_all(&partial)).map_err(unwritable)?;
    let written = fill(&partial).and_then(|()| {
        clear(directory).map_err(unwritable)?;
        fs::rename(&partial, directory).map_err(unwritable)?;
        let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        File::open(parent).and_then(|parent| parent.sync_all()).map_err(unwritable)
    });
    if written.is_err() {
        // The first error is the one to report.
        let _ = clear(&partial);
    }
    written
}

/// Writes JSON and makes it durable. An f64 that is finite keeps its bits; one that is not becomes `null`.
///
/// # Errors
/// If the disk is full or the place is not writable.
pub fn write_json(path: &Path, value: &Value) -> Result<()> {
    write_text(path, &format!("{value:#}\n"))
}

pub(super) fn write_text(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)
        .and_then(|()| File::open(path)?.sync_all())
        .map_err(|error| unwritable(path, &error))
}

pub(super) fn unwritable(path: &Path, error: &std::io::Error) -> PolicyError {
    let advice = match error.kind() {
        std::io::ErrorKind::StorageFull => "; free some space",
        std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => "; make it writable",
        _ => "",
    };
    PolicyError::Unwritable { path: path.to_path_buf(), cause: format!("{error}{advice}") }
}

pub(super) fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|cause| PolicyError::Unreadable { path: path.to_path_buf(), cause })
}

/// Reads JSON; see [`write_json`].
///
/// # Errors
/// If the file is not there, or is no JSON.
pub fn read_json(path: &Path) -> Result<Value> {
    serde_json::from_str(&read_text(path)?).map_err(|error| PolicyError::broken(path, error))
}

pub(super) fn read_optional_json(path: &Path) -> Result<Option<Value>> {
    if path.is_file() { read_json(path).map(Some) } else { Ok(None) }
}
