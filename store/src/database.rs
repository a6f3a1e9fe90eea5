//! Writing to `run.db`: one transaction that stays open until [`Database::commit`].

use std::path::Path;

use arriero_buffers::Drawn;
use rusqlite::{Connection, OptionalExtension, params};

use crate::columns::{components_text, f32_blob, finish_text, u32_blob};
use crate::record::{
    CheckpointRecord, DropRecord, EventRecord, MetricRecord, OutcomeRecord, PhaseRecord, SampleKey,
    SampleRecord, SampleSegment,
};
use crate::schema::{SCHEMA, SCHEMA_VERSION};

/// An open `run.db`. Writes open a transaction that stays open until [`Database::commit`].
///
/// Times are those of the first writing. A record that is written again changes nothing unless it says something else.
#[derive(Debug)]
pub(crate) struct Database {
    connection: Connection,
    rows: usize,
}

impl Database {
    /// Makes the file and its tables. Others can read while this one writes: the log is written ahead.
    pub(crate) fn create(path: &Path, arm: &str, seed: u64) -> rusqlite::Result<Self> {
        let connection = Connection::open(path)?;
        connection.set_prepared_statement_cache_capacity(32);
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.execute_batch("BEGIN IMMEDIATE")?;
        connection.execute_batch(SCHEMA)?;
        connection.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        let meta = [
            ("schema_version", SCHEMA_VERSION.to_string()),
            ("arm", arm.to_string()),
            ("seed", seed.to_string()),
        ];
        for (key, value) in meta {
            connection.execute("INSERT INTO meta VALUES (?1, ?2)", params![key, value])?;
        }
        connection.execute_batch("COMMIT")?;
        Ok(Database { connection, rows: 0 })
    }

    /// Rows written since the last commit.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Ends the open transaction, if there is one. If that fails, its rows are given up, so that the next write starts
    /// afresh.
    pub(crate) fn commit(&mut self) -> rusqlite::Result<()> {
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
    pub(crate) fn metrics(&mut self, time: f64, record: &MetricRecord) -> rusqlite::Result<()> {
        let MetricRecord { address, series, step, part, metrics } = record;
        for (name, value) in metrics {
            self.write(
                "INSERT INTO metrics (time, round, stage, series, step, part, name, value) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) \
                 ON CONFLICT (series, name, step, part, round, stage) DO UPDATE SET value = excluded.value",
                params![
                    time,
                    address.round.cast_signed(),
                    address.stage,
                    series,
                    step.cast_signed(),
                    part.cast_signed(),
                    name,
                    value
                ],
            )?;
        }
        Ok(())
    }

    pub(crate) fn event(&mut self, time: f64, record: &EventRecord) -> rusqlite::Result<()> {
        let EventRecord { key, address, level, actor, message } = record;
        let (round, stage) =
            address.as_ref().map(|address| (address.round.cast_signed(), &*address.stage)).unzip();
        self.write(
            "INSERT INTO events (key, time, round, stage, level, actor, message) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) \
             ON CONFLICT (key) DO UPDATE SET round = excluded.round, stage = excluded.stage, level = excluded.level, \
             actor = excluded.actor, message = excluded.message",
            params![key, time, round, stage, level.as_str(), actor, message],
        )
    }

    pub(crate) fn phase(&mut self, time: f64, record: &PhaseRecord) -> rusqlite::Result<()> {
        let PhaseRecord { address, kind, part, done, total, is_over } = record;
        self.write(
            "INSERT INTO phases (begun, ended, round, stage, kind, part, done, total) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) \
             ON CONFLICT (round, stage, kind, part) DO UPDATE SET done = excluded.done, total = excluded.total, \
             ended = iif(excluded.ended IS NULL, NULL, ifnull(ended, excluded.ended))",
            params![
                time,
                is_over.then_some(time),
                address.round.cast_signed(),
                address.stage,
                kind,
                part.cast_signed(),
                done.cast_signed(),
                total.cast_signed()
            ],
        )
    }

    /// A sample and its segments.
    pub(crate) fn sample(&mut self, time: f64, record: &SampleRecord) -> rusqlite::Result<()> {
        let components = components_text(&record.components)?;
        self.begin()?;
        let mut statement = self.connection.prepare_cached(
            "INSERT INTO samples (time, round, stage, evaluation, prompt_id, sample, prompt, text, reward, components, \
             finish, selected, dropped) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13) \
             ON CONFLICT (round, stage, prompt_id, sample, ifnull(evaluation, -1)) DO UPDATE SET \
             prompt = excluded.prompt, text = excluded.text, reward = excluded.reward, components = excluded.components, \
             finish = excluded.finish, selected = excluded.selected, dropped = excluded.dropped RETURNING id",
        )?;
        let id: i64 = statement.query_row(
            params![
                time,
                record.address.round.cast_signed(),
                record.address.stage,
                record.evaluation.map(u64::cast_signed),
                record.prompt_id.cast_signed(),
                record.sample,
                record.prompt,
                record.text,
                record.reward,
                components,
                finish_text(record.finish),
                record.selected,
                record.dropped,
            ],
            |row| row.get(0),
        )?;
        drop(statement);
        for (position, segment) in record.segments.iter().enumerate() {
            self.segment(id, position, segment)?;
        }
        self.write(
            "DELETE FROM segments WHERE sample_id = ?1 AND position >= ?2",
            params![id, row_number(record.segments.len())],
        )
    }

    /// Reference log-probabilities of these very tokens stay, if they were recorded before.
    fn segment(&mut self, sample: i64, position: usize, record: &SampleSegment) -> rusqlite::Result<()> {
        let SampleSegment { segment, reference_logps } = record;
        let of = |logps: fn(&Drawn) -> &[f32]| segment.drawn.as_ref().map(|drawn| f32_blob(logps(drawn)));
        self.write(
            "INSERT INTO segments VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) \
             ON CONFLICT (sample_id, position) DO UPDATE SET role = excluded.role, tokens = excluded.tokens, \
             logps = excluded.logps, sampled_logps = excluded.sampled_logps, \
             weight_versions = excluded.weight_versions, reference_logps = ifnull(excluded.reference_logps, \
             iif(tokens = excluded.tokens, reference_logps, NULL))",
            params![
                sample,
                row_number(position),
                segment.role.as_str(),
                u32_blob(&segment.tokens),
                of(|drawn| &drawn.logps),
                of(|drawn| &drawn.sampled_logps),
                reference_logps.as_deref().map(f32_blob),
                segment.drawn.as_ref().map(|drawn| u32_blob(&drawn.weight_versions)),
            ],
        )
    }

    /// Adds the reference log-probabilities of a sample, one for each token that the policy drew. If the sample has
    /// another number of such tokens, writes nothing and returns that number. A sample that is not there is passed
    /// over.
    pub(crate) fn reference(
        &mut self,
        key: &SampleKey<'_>,
        logps: &[f32],
    ) -> rusqlite::Result<Option<usize>> {
        let SampleKey { address, prompt_id, sample } = *key;
        let id: Option<i64> = self
            .connection
            .prepare_cached(
                "SELECT id FROM samples WHERE round = ?1 AND stage = ?2 AND prompt_id = ?3 AND sample = ?4 \
                 AND evaluation IS NULL",
            )?
            .query_row(
                params![address.round.cast_signed(), address.stage, prompt_id.cast_signed(), sample],
                |row| row.get(0),
            )
            .optional()?;
        let Some(id) = id else { return Ok(None) };
        let drawn: Vec<(i64, u32)> = self
            .connection
            .prepare_cached(
                "SELECT position, length(tokens) / 4 FROM segments WHERE sample_id = ?1 AND logps IS NOT NULL \
                 ORDER BY position",
            )?
            .query_map([id], |row| row.try_into())?
            .collect::<Result<_, _>>()?;
        let tokens = drawn.iter().map(|&(_, length)| length as usize).sum();
        if tokens != logps.len() {
            return Ok(Some(tokens));
        }
        let mut rest = logps;
        for (position, length) in drawn {
            let (own, others) = rest.split_at(length as usize);
            rest = others;
            self.write(
                "UPDATE segments SET reference_logps = ?1 WHERE sample_id = ?2 AND position = ?3",
                params![f32_blob(own), id, position],
            )?;
        }
        Ok(None)
    }

    pub(crate) fn outcome(&mut self, time: f64, record: &OutcomeRecord) -> rusqlite::Result<()> {
        self.write(
            "INSERT INTO outcomes (time, round, stage, step, prompt_id, instructions, followed, reward, tokens, text) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) \
             ON CONFLICT (step, prompt_id, round, stage) DO UPDATE SET instructions = excluded.instructions, \
             followed = excluded.followed, reward = excluded.reward, tokens = excluded.tokens, text = excluded.text",
            params![
                time,
                record.address.round.cast_signed(),
                record.address.stage,
                record.step.cast_signed(),
                record.prompt_id.cast_signed(),
                record.instructions.cast_signed(),
                record.followed.cast_signed(),
                record.reward,
                record.tokens.cast_signed(),
                record.text
            ],
        )
    }

    pub(crate) fn drops(&mut self, time: f64, record: &DropRecord) -> rusqlite::Result<()> {
        let DropRecord { address, reason, part, count } = record;
        self.write(
            "INSERT INTO drops (time, round, stage, reason, part, count) VALUES (?1, ?2, ?3, ?4, ?5, ?6) \
             ON CONFLICT (round, stage, reason, part) DO UPDATE SET count = excluded.count",
            params![
                time,
                address.round.cast_signed(),
                address.stage,
                reason,
                part.cast_signed(),
                count.cast_signed()
            ],
        )
    }

    pub(crate) fn checkpoint(&mut self, time: f64, record: &CheckpointRecord) -> rusqlite::Result<()> {
        let CheckpointRecord { address, step, path, manifest } = record;
        self.write(
            "INSERT INTO checkpoints (step, time, round, stage, path, manifest) VALUES (?1, ?2, ?3, ?4, ?5, ?6) \
             ON CONFLICT (step) DO UPDATE SET round = excluded.round, stage = excluded.stage, path = excluded.path, \
             manifest = excluded.manifest",
            params![
                step.cast_signed(),
                time,
                address.round.cast_signed(),
                address.stage,
                path.to_string_lossy(),
                manifest.to_string()
            ],
        )
    }

    fn begin(&mut self) -> rusqlite::Result<()> {
        if self.connection.is_autocommit() {
            self.connection.execute_batch("BEGIN IMMEDIATE")
        } else {
            Ok(())
        }
    }

    fn write(&mut self, sql: &str, values: impl rusqlite::Params) -> rusqlite::Result<()> {
        self.begin()?;
        self.connection.prepare_cached(sql)?.execute(values)?;
        self.rows += 1;
        Ok(())
    }
}

/// SQLite's integers have 64 bits with a sign; no sample has as many segments.
fn row_number(position: usize) -> i64 {
    (position as u64).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::EventLevel;

    #[test]
    fn others_read_while_it_writes_and_know_its_version() {
        let folder = tempfile::tempdir().expect("a folder");
        let database = Database::create(&folder.path().join("run.db"), "a", 0).expect("it can be made");
        let value = |query: &str| -> rusqlite::types::Value {
            database.connection.query_row(query, [], |row| row.get(0)).expect("SQLite knows")
        };
        assert_eq!(value("PRAGMA journal_mode"), "wal".to_owned().into());
        assert_eq!(value("PRAGMA user_version"), 2.into());
        assert_eq!(value("SELECT value FROM meta WHERE key = 'schema_version'"), "2".to_owned().into());
    }

    #[test]
    fn a_full_disk_is_told_and_the_next_commit_works() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("run.db");
        let mut database = Database::create(&path, "a", 0).expect("it can be made");
        let event = |message: String| EventRecord {
            key: None,
            address: None,
            level: EventLevel::Info,
            actor: "a".into(),
            message,
        };
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
            .event(1.0, &event("x".repeat(100_000)))
            .and_then(|()| database.commit())
            .expect_err("there is no room");
        let error = crate::StoreError::sqlite(&path, error).to_string();
        let start = format!("the disk of {} is full: database or disk is full; free", path.display());
        assert!(error.starts_with(&start), "{error}");
        limit(&database, pages + 100);
        database.event(1.0, &event("x".into())).expect("there is room");
        database.commit().expect("there is room");
        let events = crate::ArmReader::open(folder.path()).and_then(|reader| reader.events());
        assert_eq!(events.expect("it can be read").len(), 1);
    }
}
