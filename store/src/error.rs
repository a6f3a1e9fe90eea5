//! What can go wrong with the run on disk, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

/// Why the run could not be written or read. Every text says what, where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The run's name cannot be the name of a folder everywhere.
    #[error(
        "the run name {0:?} is not allowed: use 1 to 100 of the characters A-Z a-z 0-9 . _ - and do not \
         start with . or -; choose another with --set name=NAME"
    )]
    RunName(String),
    /// The arm's name cannot name a folder, or names a file beside it.
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
        "a metric of series {series:?} is called {name:?}, as is a key of every line of metrics.jsonl; give \
         the metric another name"
    )]
    MetricName {
        /// The series.
        series: String,
        /// The metric.
        name: String,
    },
    /// A record has the address of another arm or seed.
    #[error(
        "a record of {address} came to the store of {arm}/{seed} in {path}; give each record to the store of \
         its own arm and seed"
    )]
    OtherArm {
        /// The record's address.
        address: String,
        /// The store's arm.
        arm: String,
        /// The store's seed.
        seed: u64,
        /// The store's folder.
        path: PathBuf,
    },
    /// A reference has not scored the tokens that were drawn.
    #[error(
        "sample {sample} of prompt {prompt_id} ({address}) has {expected} drawn tokens, but {found} reference \
         log-probabilities came for it; give one for each token that the policy drew"
    )]
    ReferenceLength {
        /// Where the sample was drawn.
        address: String,
        /// Its prompt.
        prompt_id: u64,
        /// Its number.
        sample: u32,
        /// Its tokens that the policy drew.
        expected: usize,
        /// Log-probabilities.
        found: usize,
    },
    /// The folder is none of a run.
    #[error("{0} is no folder of a run: there is no experiment.toml in it; name a folder such as runs/NAME")]
    NoRun(PathBuf),
    /// The run has no such arm and seed.
    #[error("the run {path} has no arm {arm:?} with seed {seed}; it has {there}")]
    NoArm {
        /// The run's folder.
        path: PathBuf,
        /// The arm that was asked for.
        arm: String,
        /// The seed that was asked for.
        seed: u64,
        /// What there is, as `ARM/SEED, …`, or "none".
        there: String,
    },
    /// The folder is none of an arm and seed.
    #[error("there is no database {0}; name the folder of an arm and seed, such as runs/NAME/ARM/SEED")]
    NoDatabase(PathBuf),
    /// The file is something else.
    #[error("{0} is no SQLite database; name the folder of an arm and seed that a run has made")]
    NotADatabase(PathBuf),
    /// The making of the database did not come to its end.
    #[error(
        "the database {0} has no tables of a run: the run ended before it had begun; remove the run's folder \
         and start it again"
    )]
    Unfinished(PathBuf),
    /// The database is of a later version of the program.
    #[error(
        "the database {path} was made by a newer version of Arriero: its schema is {found}, and this version \
         knows those up to {known}; read it with a version as new as the one that made it"
    )]
    NewerSchema {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// The newest that is known.
        known: u32,
    },
    /// A file has content that it cannot have.
    #[error("{path} is damaged: {cause}; take an undamaged copy, or remove the run's folder")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What was found.
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file cannot be read.
    #[error("could not read {path}: {cause}; look whether that path is a file that you may read")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system or SQLite says.
        cause: Box<dyn std::error::Error + Send + Sync>,
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

    /// The error of a query that failed: damage has a variant of its own.
    pub(crate) fn reading(path: &Path, cause: rusqlite::Error) -> Self {
        use rusqlite::Error::{
            FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnName, InvalidColumnType,
            QueryReturnedNoRows, Utf8Error,
        };
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
        let path = path.to_path_buf();
        match cause {
            FromSqlConversionFailure(_, _, cause) => StoreError::Corrupt { path, cause },
            InvalidColumnName(_)
            | InvalidColumnType(..)
            | IntegralValueOutOfRange(..)
            | QueryReturnedNoRows
            | Utf8Error(..) => StoreError::Corrupt { path, cause: cause.into() },
            cause => match cause.sqlite_error_code() {
                Some(NotADatabase) => StoreError::NotADatabase(path),
                // A table that is missing, or has other columns, is an unknown error.
                Some(DatabaseCorrupt | rusqlite::ErrorCode::Unknown) => {
                    StoreError::Corrupt { path, cause: cause.into() }
                }
                _ => StoreError::Unreadable { path, cause: cause.into() },
            },
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
