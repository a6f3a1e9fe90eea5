//! What can go wrong with the run on disk, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

/// Why the run could not be written. Every text says what, where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The run's name cannot be the name of a folder everywhere.
    #[error(
        "the run name {0:?} is not allowed: use 1 to 100 of the characters A-Z a-z 0-9 . _ - and do not \
         start with . or -; choose another with --set name=NAME"
    )]
    RunName(String),
    /// The arm's name cannot be the name of a folder, or is that of a file beside it.
    #[error(
        "the arm name {0:?} is not allowed: use 1 to 100 of the characters A-Z a-z 0-9 . _ - and do not \
         start with . or -, nor call it experiment.toml or summary.json; rename the arm in the experiment"
    )]
    ArmName(String),
    /// There is a run of this name.
    #[error(
        "the run {name:?} exists already in {path}; choose another name with --set name=NAME, or remove \
         that folder"
    )]
    Exists {
        /// The run.
        name: String,
        /// Its folder.
        path: PathBuf,
    },
    /// The run has this arm with this seed.
    #[error(
        "the arm {arm:?} with seed {seed} exists already in {path}; give every arm a name of its own, and \
         name every seed once"
    )]
    ArmExists {
        /// The arm.
        arm: String,
        /// The seed.
        seed: u64,
        /// Their folder.
        path: PathBuf,
    },
    /// A file stands where a folder is needed.
    #[error("{0} is not a folder; choose another place for the runs with --runs DIR")]
    NotAFolder(PathBuf),
    /// The place cannot be written to.
    #[error(
        "{path} cannot be written to: {cause}; allow it, or choose another place for the runs with \
         --runs DIR"
    )]
    ReadOnly {
        /// Where.
        path: PathBuf,
        /// What the system or SQLite says.
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// There is less space than the run needs.
    #[error(
        "the disk of {path} has {found} MB free and the run needs {needed} MB; free some space, or choose \
         another place for the runs with --runs DIR",
        found = found / MEGABYTE, needed = needed.div_ceil(MEGABYTE)
    )]
    DiskFull {
        /// Where.
        path: PathBuf,
        /// Bytes free.
        found: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// The disk filled up.
    #[error(
        "the disk of {path} is full: {cause}; free some space, or choose another place for the runs with \
         --runs DIR"
    )]
    NoSpace {
        /// Where.
        path: PathBuf,
        /// What the system or SQLite says.
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A metric has the name of one of the fixed keys of a line, and would hide it.
    #[error(
        "a metric of stage {stage:?} is called {name:?}, as is a key of every line of metrics.jsonl; give \
         the metric another name"
    )]
    MetricName {
        /// The stage.
        stage: String,
        /// The metric.
        name: String,
    },
    /// The system refused something else.
    #[error(
        "could not {action} {path}: {cause}; look at that path, or choose another place for the runs with \
         --runs DIR"
    )]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// SQLite refused something else.
    #[error(
        "the database {path} failed: {cause}; look whether another program changes or locks it, or choose \
         another place for the runs with --runs DIR"
    )]
    Database {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        cause: rusqlite::Error,
    },
}

/// Bytes in the unit of the messages.
const MEGABYTE: u64 = 1_000_000;

impl StoreError {
    /// The error for a failed system call: the causes that users can do something about get variants
    /// of their own.
    pub(crate) fn io(action: &'static str, path: &Path, cause: io::Error) -> Self {
        use io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
        let path = path.to_path_buf();
        match cause.kind() {
            StorageFull | QuotaExceeded => StoreError::NoSpace { path, cause: cause.into() },
            PermissionDenied | ReadOnlyFilesystem => StoreError::ReadOnly { path, cause: cause.into() },
            _ => StoreError::Io { action, path, cause },
        }
    }

    /// The same for SQLite.
    pub(crate) fn sqlite(path: &Path, cause: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode::{DiskFull, PermissionDenied, ReadOnly};
        let path = path.to_path_buf();
        match cause.sqlite_error_code() {
            Some(DiskFull) => StoreError::NoSpace { path, cause: cause.into() },
            Some(ReadOnly | PermissionDenied) => StoreError::ReadOnly { path, cause: cause.into() },
            _ => StoreError::Database { path, cause },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_errors_say_what_where_and_what_to_do() {
        let text =
            |kind: io::ErrorKind| StoreError::io("write", Path::new("runs/a"), kind.into()).to_string();
        assert_eq!(
            text(io::ErrorKind::StorageFull),
            "the disk of runs/a is full: no storage space; free some space, or choose another place for the \
             runs with --runs DIR"
        );
        assert_eq!(
            text(io::ErrorKind::QuotaExceeded),
            text(io::ErrorKind::StorageFull).replace("no storage space", "quota exceeded")
        );
        assert_eq!(
            text(io::ErrorKind::PermissionDenied),
            "runs/a cannot be written to: permission denied; allow it, or choose another place for the runs \
             with --runs DIR"
        );
        assert_eq!(
            text(io::ErrorKind::ReadOnlyFilesystem),
            "runs/a cannot be written to: read-only filesystem or storage medium; allow it, or choose \
             another place for the runs with --runs DIR"
        );
        assert_eq!(
            text(io::ErrorKind::NotFound),
            "could not write runs/a: entity not found; look at that path, or choose another place for the \
             runs with --runs DIR"
        );
    }

    #[test]
    fn sqlite_errors_say_what_where_and_what_to_do() {
        let text = |code: i32| {
            let cause =
                rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), Some("a cause".to_owned()));
            StoreError::sqlite(Path::new("run.db"), cause).to_string()
        };
        assert_eq!(
            text(rusqlite::ffi::SQLITE_FULL),
            "the disk of run.db is full: a cause; free some space, or \
             choose another place for the runs with --runs DIR"
        );
        assert_eq!(
            text(rusqlite::ffi::SQLITE_READONLY),
            "run.db cannot be written to: a cause; allow it, or choose another \
             place for the runs with --runs DIR"
        );
        assert_eq!(
            text(rusqlite::ffi::SQLITE_CORRUPT),
            "the database run.db failed: a cause; look whether another program \
             changes or locks it, or choose another place for the runs with --runs DIR"
        );
    }

    #[test]
    fn space_is_told_in_megabytes_found_rounded_down_and_needed_up() {
        let error = StoreError::DiskFull { path: "runs".into(), found: 12_999_999, needed: 500_000_001 };
        assert_eq!(
            error.to_string(),
            "the disk of runs has 12 MB free and the run needs 501 MB; free some space, or choose another \
             place for the runs with --runs DIR"
        );
    }
}
