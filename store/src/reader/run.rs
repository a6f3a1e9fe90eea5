//! The folder of a run.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::arm::ArmReader;
use super::files::{summary, text, unreadable};
use crate::error::StoreError;

/// A run, as its folder is when it is opened.
#[derive(Debug)]
pub struct RunReader {
    path: PathBuf,
    experiment: String,
    summary: Option<Value>,
    arms: Vec<ArmFolder>,
}

/// An arm of a run with one of its seeds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ArmFolder {
    /// The arm's name.
    pub arm: String,
    /// The seed.
    pub seed: u64,
    /// Their folder.
    pub path: PathBuf,
}

impl RunReader {
    /// Opens `runs/NAME`.
    ///
    /// # Errors
    /// If there is no experiment in the folder, or something in it cannot be read.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let experiment =
            text(&path.join("experiment.toml"))?.ok_or_else(|| StoreError::NoRun(path.to_path_buf()))?;
        let summary = summary(path)?;
        let mut arms = Vec::new();
        for arm in folders(path)? {
            for seed in folders(&arm)? {
                if let (Some(arm), Some(number)) =
                    (name(&arm), name(&seed).and_then(|name| name.parse().ok()))
                {
                    arms.push(ArmFolder { arm: arm.to_owned(), seed: number, path: seed });
                }
            }
        }
        arms.sort();
        Ok(RunReader { path: path.to_path_buf(), experiment, summary, arms })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The experiment in TOML, every default written out.
    pub fn experiment(&self) -> &str {
        &self.experiment
    }

    /// What came of the run; `None` while it goes on, or if it was killed.
    pub fn summary(&self) -> Option<&Value> {
        self.summary.as_ref()
    }

    /// Its arms and their seeds, by name and number.
    pub fn arms(&self) -> &[ArmFolder] {
        &self.arms
    }

    /// Opens the records of an arm and seed.
    ///
    /// # Errors
    /// If there is no such arm, or as [`ArmReader::open`].
    pub fn arm(&self, arm: &str, seed: u64) -> Result<ArmReader, StoreError> {
        match self.arms.iter().find(|folder| folder.arm == arm && folder.seed == seed) {
            Some(folder) => ArmReader::open(&folder.path),
            None => {
                let there: Vec<String> =
                    self.arms.iter().map(|folder| format!("{}/{}", folder.arm, folder.seed)).collect();
                let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
                Err(StoreError::NoArm { path: self.path.clone(), arm: arm.to_owned(), seed, there })
            }
        }
    }
}

/// The folders in a folder.
fn folders(path: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let entries = fs::read_dir(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let entries = entries.map_err(|cause| unreadable(path, cause))?;
    Ok(entries.into_iter().map(|entry| entry.path()).filter(|path| path.is_dir()).collect())
}

fn name(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}
