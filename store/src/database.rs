//! The tables of `run.db`.
//!
//! SQLite's integers are signed: steps, rounds and prompts' ids are stored as the same 64 bits, so
//! that ids above 2^63 read as negative numbers. NaN is stored as NULL. Times are seconds since 1970.

use std::path::Path;

use arriero_buffers::Finish;
use rusqlite::{Connection, params};

use crate::record::{EventLevel, MetricRecord, SampleKey, SampleRecord};

/// The version of the tables, in `meta` and in `PRAGMA user_version`.
pub const SCHEMA_VERSION: u32 = 1;

const SCHEMA: &str = "
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
    CREATE TABLE metrics (stage TEXT NOT NULL, step INTEGER NOT NULL, name TEXT NOT NULL, value REAL);
    CREATE TABLE events (time REAL NOT NULL, level TEXT NOT NULL, actor TEXT NOT NULL, message TEXT NOT NULL);
    -- One row a sample. Per-token columns are blobs of little-endian u32 (tokens, weight_versions) or
    -- f32 (the others); components is a JSON object.
    CREATE TABLE samples (
        stage TEXT NOT NULL, round INTEGER NOT NULL, prompt_id INTEGER NOT NULL, prompt TEXT NOT NULL,
        sample INTEGER NOT NULL, text TEXT NOT NULL, reward REAL, components TEXT NOT NULL,
        tokens BLOB NOT NULL, logps BLOB NOT NULL, sampled_logps BLOB NOT NULL, reference_logps BLOB,
        weight_versions BLOB NOT NULL, finish TEXT NOT NULL, selected TEXT, dropped TEXT,
        PRIMARY KEY (stage, round, prompt_id, sample)
    );
    CREATE TABLE drops (
        time REAL NOT NULL, stage TEXT NOT NULL, reason TEXT NOT NULL, count INTEGER NOT NULL
    );
    CREATE TABLE checkpoints (
        time REAL NOT NULL, step INTEGER NOT NULL, path TEXT NOT NULL, manifest TEXT NOT NULL
    );
";

/// An open `run.db`. Writes open a transaction that stays open until [`Database::commit`].
#[derive(Debug)]
pub struct Database {
    connection: Connection,
    rows: usize,
}

impl Database {
    /// Makes the file and its tables. Others can read while this one writes: the log is written ahead.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn create(path: &Path) -> rusqlite::Result<Self> {
        let connection = Connection::open(path)?;
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        let database = Database { connection, rows: 0 };
        database.connection.execute_batch("BEGIN IMMEDIATE")?;
        database.connection.execute_batch(SCHEMA)?;
        database.connection.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        database
            .connection
            .execute("INSERT INTO meta VALUES ('schema_version', ?1)", [SCHEMA_VERSION.to_string()])?;
        database.connection.execute_batch("COMMIT")?;
        Ok(database)
    }

    /// Rows written since the last commit.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Ends the open transaction, if there is one. If that fails its rows are given up, so that the
    /// next write starts afresh.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn commit(&mut self) -> rusqlite::Result<()> {
        self.rows = 0;
        if self.connection.is_autocommit() {
            return Ok(());
        }
        self.connection.execute_batch("COMMIT").inspect_err(|_| {
            // SQLite may have rolled back by itself.
            let _ = self.connection.execute_batch("ROLLBACK");
        })
    }

    /// One row a metric.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn metrics(&mut self, record: &MetricRecord) -> rusqlite::Result<()> {
        for (name, value) in &record.metrics {
            self.insert(
                "INSERT INTO metrics VALUES (?1, ?2, ?3, ?4)",
                params![record.stage, record.step.cast_signed(), name, value],
            )?;
        }
        Ok(())
    }

    /// One event.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn event(
        &mut self,
        time: f64,
        level: EventLevel,
        actor: &str,
        message: &str,
    ) -> rusqlite::Result<()> {
        self.insert(
            "INSERT INTO events VALUES (?1, ?2, ?3, ?4)",
            params![time, level.as_str(), actor, message],
        )
    }

    /// One sample; `components` is its components as JSON. A sample that is recorded again, because the
    /// actor that recorded it died and began anew, takes its own place.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn sample(&mut self, record: &SampleRecord, components: &str) -> rusqlite::Result<()> {
        let finish = match record.finish {
            Finish::EndOfTurn => "end_of_turn",
            Finish::Stop => "stop",
            Finish::Length => "length",
        };
        self.insert(
            "INSERT OR REPLACE INTO samples VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, \
             ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)",
            params![
                record.stage,
                record.round.cast_signed(),
                record.prompt_id.cast_signed(),
                record.prompt,
                record.sample,
                record.text,
                record.reward,
                components,
                u32_blob(&record.tokens),
                f32_blob(&record.logps),
                f32_blob(&record.sampled_logps),
                record.reference_logps.as_deref().map(f32_blob),
                u32_blob(&record.weight_versions),
                finish,
                record.selected,
                record.dropped,
            ],
        )
    }

    /// Adds a sample's reference log-probabilities.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn reference(&mut self, key: &SampleKey<'_>, logps: &[f32]) -> rusqlite::Result<()> {
        let SampleKey { stage, round, prompt_id, sample } = *key;
        self.insert(
            "UPDATE samples SET reference_logps = ?1 \
             WHERE stage = ?2 AND round = ?3 AND prompt_id = ?4 AND sample = ?5",
            params![f32_blob(logps), stage, round.cast_signed(), prompt_id.cast_signed(), sample],
        )
    }

    /// Items given up, on top of those told of before.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn drops(&mut self, time: f64, stage: &str, reason: &str, count: u64) -> rusqlite::Result<()> {
        self.insert(
            "INSERT INTO drops VALUES (?1, ?2, ?3, ?4)",
            params![time, stage, reason, count.cast_signed()],
        )
    }

    /// One checkpoint; `manifest` is JSON.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn checkpoint(&mut self, time: f64, step: u64, path: &str, manifest: &str) -> rusqlite::Result<()> {
        self.insert(
            "INSERT INTO checkpoints VALUES (?1, ?2, ?3, ?4)",
            params![time, step.cast_signed(), path, manifest],
        )
    }

    fn insert(&mut self, sql: &str, values: impl rusqlite::Params) -> rusqlite::Result<()> {
        if self.connection.is_autocommit() {
            self.connection.execute_batch("BEGIN IMMEDIATE")?;
        }
        self.connection.prepare_cached(sql)?.execute(values)?;
        self.rows += 1;
        Ok(())
    }
}

fn u32_blob(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

fn f32_blob(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_and_the_next_commit_works() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("run.db");
        let mut database = Database::create(&path).expect("it can be made");
        let pages: u32 =
            database.connection.query_row("PRAGMA page_count", [], |row| row.get(0)).expect("SQLite knows");
        let limit = |database: &Database, pages: u32| {
            database
                .connection
                .pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))
                .expect("SQLite can")
        };
        limit(&database, pages);
        let error = database
            .event(1.0, EventLevel::Info, "a", &"x".repeat(100_000))
            .and_then(|()| database.commit())
            .expect_err("there is no room");
        let error = crate::StoreError::sqlite(&path, error).to_string();
        let start = format!("the disk of {} is full: database or disk is full; free", path.display());
        assert!(error.starts_with(&start), "{error}");
        limit(&database, pages + 100);
        database.event(1.0, EventLevel::Info, "a", "x").expect("there is room");
        database.commit().expect("there is room");
        let count: u32 = database
            .connection
            .query_row("SELECT count(*) FROM events", [], |row| row.get(0))
            .expect("SQLite knows");
        assert_eq!(count, 1);
    }

    #[test]
    fn blobs_are_little_endian() {
        assert_eq!(u32_blob(&[1, 0x0102_0304]), [1, 0, 0, 0, 4, 3, 2, 1]);
        assert_eq!(f32_blob(&[1.0, -0.5]), [0, 0, 0x80, 0x3f, 0, 0, 0, 0xbf]);
    }
}
