//! The open files of an arm: rows in a transaction, lines and scalars in buffers, handed on together.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::database::Database;
use crate::error::StoreError;
use crate::record::MetricRecord;
use crate::tensorboard::EventFile;

/// Rows after which they are committed.
pub(crate) const BATCH: usize = 256;

/// The open files.
#[derive(Debug)]
pub(crate) struct Writer {
    database: Database,
    database_path: PathBuf,
    lines: BufWriter<File>,
    lines_path: PathBuf,
    scalars: EventFile,
    scalars_path: PathBuf,
    /// What went wrong while nobody called.
    pub(crate) failed: Option<StoreError>,
}

impl Writer {
    /// Makes the files in `path`, the folder of this arm and seed.
    pub(crate) fn create(path: &Path, arm: &str, seed: u64) -> Result<Self, StoreError> {
        let lines_path = path.join("metrics.jsonl");
        let lines = OpenOptions::new()
            .append(true)
            .create_new(true)
            .open(&lines_path)
            .map_err(|cause| StoreError::io("make", &lines_path, cause))?;
        let time = now();
        let scalars_path = path.join("tensorboard").join(format!("events.out.tfevents.{time:.0}.arriero"));
        let scalars = fs::create_dir(path.join("tensorboard"))
            .and_then(|()| EventFile::create(&scalars_path, time))
            .map_err(|cause| StoreError::io("make", &scalars_path, cause))?;
        let database_path = path.join("run.db");
        let database = Database::create(&database_path, arm, seed)
            .map_err(|cause| StoreError::sqlite(&database_path, cause))?;
        let lines = BufWriter::new(lines);
        Ok(Writer { database, database_path, lines, lines_path, scalars, scalars_path, failed: None })
    }

    /// Adds the metrics of one step everywhere.
    pub(crate) fn metrics(&mut self, record: &MetricRecord) -> Result<(), StoreError> {
        let time = now();
        self.line(record)?;
        self.scalars(time, record)?;
        self.row(|database| database.metrics(time, record))
    }

    /// Adds a line in one piece, so the buffer never holds a part of one.
    fn line(&mut self, record: &MetricRecord) -> Result<(), StoreError> {
        let result = serde_json::to_vec(record).map_err(io::Error::from).and_then(|mut line| {
            line.push(b'\n');
            self.lines.write_all(&line)
        });
        result.map_err(|cause| StoreError::io("write", &self.lines_path, cause))
    }

    fn scalars(&mut self, time: f64, record: &MetricRecord) -> Result<(), StoreError> {
        let tags: Vec<(String, f64)> = record
            .metrics
            .iter()
            .map(|(name, value)| (format!("{}/{name}", record.series), *value))
            .collect();
        let scalars = tags.iter().map(|(tag, value)| (tag.as_str(), *value));
        self.scalars
            .scalars(time, record.step, scalars)
            .map_err(|cause| StoreError::io("write", &self.scalars_path, cause))
    }

    /// Adds rows, and commits when there are enough.
    pub(crate) fn row<T>(
        &mut self,
        write: impl FnOnce(&mut Database) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let result =
            write(&mut self.database).map_err(|cause| StoreError::sqlite(&self.database_path, cause))?;
        if self.database.rows() >= BATCH {
            self.commit()?;
        }
        Ok(result)
    }

    /// Hands everything to the system. Other processes see it, and it survives this one.
    pub(crate) fn commit(&mut self) -> Result<(), StoreError> {
        self.database.commit().map_err(|cause| StoreError::sqlite(&self.database_path, cause))?;
        self.lines.flush().map_err(|cause| StoreError::io("write", &self.lines_path, cause))?;
        self.scalars.flush().map_err(|cause| StoreError::io("write", &self.scalars_path, cause))
    }

    /// Commits, and waits until the disk has it. It survives a crash of the machine.
    pub(crate) fn sync(&mut self) -> Result<(), StoreError> {
        self.commit()?;
        sync_log(&self.database_path)?;
        self.lines.get_ref().sync_data().map_err(|cause| StoreError::io("sync", &self.lines_path, cause))?;
        self.scalars.sync().map_err(|cause| StoreError::io("sync", &self.scalars_path, cause))
    }
}

/// With `synchronous=NORMAL`, SQLite leaves it to the system when a commit reaches the disk. Until then it is in the
/// log beside the database. (The database itself must not be opened past SQLite: closing it would release SQLite's
/// locks.)
fn sync_log(database: &Path) -> Result<(), StoreError> {
    let path = database.with_extension("db-wal");
    match OpenOptions::new().append(true).open(&path).and_then(|log| log.sync_data()) {
        Err(cause) if cause.kind() != ErrorKind::NotFound => Err(StoreError::io("sync", &path, cause)),
        _ => Ok(()),
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ArmReader;
    use crate::record::{EventLevel, EventRecord};

    #[test]
    fn a_full_batch_is_seen_by_others() {
        // Without the thread of an `ArmStore`, which might commit as well.
        let folder = tempfile::tempdir().expect("a folder");
        let mut writer = Writer::create(folder.path(), "a", 0).expect("it can be made");
        let reader = ArmReader::open(folder.path()).expect("it can be read");
        let event = EventRecord {
            key: None,
            address: None,
            level: EventLevel::Info,
            actor: "a".into(),
            message: "b".into(),
        };
        let mut write = |rows: usize| {
            for _ in 0..rows {
                writer.row(|database| database.event(1.0, &event)).expect("it can be written");
            }
        };
        write(255);
        assert_eq!(reader.events().expect("it can be read").len(), 0);
        write(1);
        assert_eq!(reader.events().expect("it can be read").len(), 256);
    }
}
