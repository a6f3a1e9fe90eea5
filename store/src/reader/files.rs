//! The text files of a run and of an arm.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde_json::Value;

use crate::error::StoreError;

/// The `summary.json` of a run or an arm, if there is one.
pub(super) fn summary(folder: &Path) -> Result<Option<Value>, StoreError> {
    let path = folder.join("summary.json");
    let Some(text) = text(&path)? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).map_err(|cause| StoreError::Corrupt { path, cause: cause.into() })
}

/// A file's text, if it is there.
pub(super) fn text(path: &Path) -> Result<Option<String>, StoreError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(cause) if matches!(cause.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(cause) if cause.kind() == ErrorKind::InvalidData => {
            Err(StoreError::Corrupt { path: path.to_path_buf(), cause: cause.into() })
        }
        Err(cause) => Err(unreadable(path, cause)),
    }
}

/// The error of a path that the system does not let us read.
pub(super) fn unreadable(path: &Path, cause: std::io::Error) -> StoreError {
    StoreError::Unreadable { path: path.to_path_buf(), cause: cause.into() }
}
