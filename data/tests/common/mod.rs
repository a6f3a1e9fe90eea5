//! What several tests share.
#![allow(dead_code)] // each test file uses its own part

use arriero_data::{DataConfig, DataError, Entry};
use tempfile::TempDir;

/// A file `rows.jsonl` in a folder of its own.
pub fn file(text: &str) -> (TempDir, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, text).expect("written");
    let path = path.display().to_string();
    (folder, path)
}

/// All rows under seed 1.
pub fn open_all(config: &DataConfig) -> Result<Vec<Entry>, DataError> {
    config.open(1)?.collect()
}
