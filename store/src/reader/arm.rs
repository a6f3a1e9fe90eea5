//! The records of one arm and seed.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arriero_buffers::{Address, Drawn, Segment};
use rusqlite::{Connection, OpenFlags, OptionalExtension, Params, Row, params_from_iter};
use serde_json::Value;

use super::files::summary;
use super::filter::{MetricFilter, SampleFilter};
use crate::columns::{
    components_of, f32_of, f32s_of, f64_of, finish_of, json_of, level_of, name_of, role_of, u32s_of, u64_of,
};
use crate::error::StoreError;
use crate::record::{
    CheckpointRecord, DropRecord, EventRecord, MetricRecord, OutcomeRecord, PhaseRecord, SampleRecord,
    SampleSegment,
};
use crate::schema::{SCHEMA_VERSION, VIEWS_OF_SCHEMA_1};

/// How long to wait for a lock, which a writer holds for moments only.
const PATIENCE: Duration = Duration::from_secs(10);

/// The records of one arm and seed. Every method reads them as they are when it is called, in the order in which they were
/// first written.
///
/// A run of schema 1 has no phases and no outcomes, and each sample is one segment. Where its addresses were not
/// recorded, the round is 0, the stage of metrics and drops is their series, and the stage of checkpoints is empty.
#[derive(Debug)]
pub struct ArmReader {
    folder: PathBuf,
    database: PathBuf,
    connection: Connection,
    schema: u32,
    arm: Arc<str>,
    seed: u64,
}

/// A record with the time when it was first written.
#[derive(Debug, Clone, PartialEq)]
pub struct Timed<T> {
    /// Seconds since 1970. `None` for metrics and samples of a run of schema 1.
    pub time: Option<f64>,
    /// What was written.
    pub record: T,
}

/// A phase with its times, in seconds since 1970.
#[derive(Debug, Clone, PartialEq)]
pub struct Phase {
    /// When it was first written.
    pub begun: f64,
    /// When it was over; `None` while it goes on, or if it never came to its end.
    pub ended: Option<f64>,
    /// How far it has come.
    pub record: PhaseRecord,
}

/// One value of a metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Optimiser steps since the arm began.
    pub step: u64,
    /// Seconds since 1970; `None` in a run of schema 1.
    pub time: Option<f64>,
    /// The number; NaN where there was none.
    pub value: f64,
}

impl ArmReader {
    /// Opens `runs/NAME/ARM/SEED`.
    ///
    /// # Errors
    /// If the folder has no database, or one that is not a run's, was left half made, is damaged, or was made by a
    /// newer version.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let database = folder.join("run.db");
        if !database.is_file() {
            return Err(StoreError::NoDatabase(database));
        }
        let failed = |cause| StoreError::reading(&database, cause);
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&database, flags).map_err(failed)?;
        connection.busy_timeout(PATIENCE).map_err(failed)?;
        let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed)?;
        let schema = match u32::try_from(found) {
            Ok(schema @ 1..=SCHEMA_VERSION) => schema,
            Ok(1..) => {
                return Err(StoreError::NewerSchema { path: database, found, known: SCHEMA_VERSION });
            }
            _ => return Err(StoreError::Unfinished(database)),
        };
        let (arm, seed) = if schema == 1 {
            connection.execute_batch(VIEWS_OF_SCHEMA_1).map_err(failed)?;
            names_of_folders(folder)
        } else {
            let meta = |key: &str| -> Result<String, StoreError> {
                let query = "SELECT value FROM meta WHERE key = ?1";
                let value =
                    connection.query_row(query, [key], |row| row.get(0)).optional().map_err(failed)?;
                let cause = || format!("its table meta has no {key:?}").into();
                value.ok_or_else(|| StoreError::Corrupt { path: database.clone(), cause: cause() })
            };
            let (arm, seed) = (meta("arm")?, meta("seed")?);
            let seed = seed.parse().map_err(|cause| StoreError::Corrupt {
                path: database.clone(),
                cause: format!("the seed {seed:?} in its table meta is wrong: {cause}").into(),
            })?;
            (arm.into(), seed)
        };
        Ok(ArmReader { folder: folder.to_path_buf(), database, connection, schema, arm, seed })
    }

    /// The version of the tables.
    pub fn schema_version(&self) -> u32 {
        self.schema
    }

    /// The arm's name.
    pub fn arm(&self) -> &str {
        &self.arm
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// What came of the arm; `None` while it goes on, or if it was killed.
    ///
    /// # Errors
    /// If `summary.json` cannot be read.
    pub fn summary(&self) -> Result<Option<Value>, StoreError> {
        summary(&self.folder)
    }

    /// Metrics. With a name in the filter, each record has this metric alone.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn metrics(&self, filter: &MetricFilter<'_>) -> Result<Vec<Timed<MetricRecord>>, StoreError> {
        let conditions = filter.conditions();
        let query = format!("SELECT * FROM metrics {} ORDER BY id", conditions.clause());
        let rows = self.rows(&query, params_from_iter(&conditions.values), |row| {
            let record = MetricRecord {
                address: self.address(row)?,
                series: row.get("series")?,
                step: u64_of(row, "step")?,
                part: u64_of(row, "part")?,
                metrics: BTreeMap::from([(row.get("name")?, f64_of(row, "value")?)]),
            };
            Ok(Timed { time: row.get("time")?, record })
        })?;
        let mut records: Vec<Timed<MetricRecord>> = Vec::new();
        let mut places = HashMap::new();
        for row in rows {
            let Timed { record, .. } = &row;
            let key = (record.address.clone(), record.series.clone(), record.step, record.part);
            let place = *places.entry(key).or_insert(records.len());
            match records.get_mut(place) {
                Some(Timed { record, .. }) => record.metrics.extend(row.record.metrics),
                None => records.push(row),
            }
        }
        Ok(records)
    }

    /// The values of one metric of a series.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn metric(&self, series: &str, name: &str) -> Result<Vec<Point>, StoreError> {
        let query = "SELECT step, time, value FROM metrics WHERE series = ?1 AND name = ?2 ORDER BY id";
        self.rows(query, [series, name], |row| {
            Ok(Point { step: u64_of(row, "step")?, time: row.get("time")?, value: f64_of(row, "value")? })
        })
    }

    /// Samples with their segments.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn samples(&self, filter: &SampleFilter<'_>) -> Result<Vec<Timed<SampleRecord>>, StoreError> {
        let conditions = filter.conditions();
        // One query, so that the segments are those of the samples although a writer is at work.
        let query = format!(
            "SELECT * FROM samples LEFT JOIN segments ON sample_id = id {} ORDER BY id, position",
            conditions.clause()
        );
        let rows = self.rows(&query, params_from_iter(&conditions.values), |row| {
            Ok((row.get::<_, i64>("id")?, row.get("time")?, self.sample(row)?))
        })?;
        let mut samples: Vec<Timed<SampleRecord>> = Vec::new();
        let mut last = None;
        for (id, time, record) in rows {
            match samples.last_mut().filter(|_| last == Some(id)) {
                Some(sample) => sample.record.segments.extend(record.segments),
                None => samples.push(Timed { time, record }),
            }
            last = Some(id);
        }
        Ok(samples)
    }

    /// A sample with one of its segments.
    fn sample(&self, row: &Row<'_>) -> rusqlite::Result<SampleRecord> {
        let has_segment = row.get::<_, Option<i64>>("position")?.is_some();
        Ok(SampleRecord {
            address: self.address(row)?,
            evaluation: row.get::<_, Option<i64>>("evaluation")?.map(i64::cast_unsigned),
            prompt_id: u64_of(row, "prompt_id")?,
            prompt: row.get("prompt")?,
            sample: row.get("sample")?,
            text: row.get("text")?,
            reward: f32_of(row, "reward")?,
            components: components_of(row, "components")?,
            segments: if has_segment { vec![segment(row)?] } else { Vec::new() },
            finish: finish_of(row, "finish")?,
            selected: row.get("selected")?,
            dropped: row.get("dropped")?,
        })
    }

    /// Events.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn events(&self) -> Result<Vec<Timed<EventRecord>>, StoreError> {
        self.rows("SELECT * FROM events ORDER BY id", [], |row| {
            let has_address = row.get::<_, Option<i64>>("round")?.is_some();
            let record = EventRecord {
                key: row.get("key")?,
                address: has_address.then(|| self.address(row)).transpose()?,
                level: level_of(row, "level")?,
                actor: row.get("actor")?,
                message: row.get("message")?,
            };
            Ok(Timed { time: row.get("time")?, record })
        })
    }

    /// Phases. There are none in a run of schema 1.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn phases(&self) -> Result<Vec<Phase>, StoreError> {
        self.rows("SELECT * FROM phases ORDER BY id", [], |row| {
            let ended: Option<f64> = row.get("ended")?;
            let record = PhaseRecord {
                address: self.address(row)?,
                kind: row.get("kind")?,
                part: u64_of(row, "part")?,
                done: u64_of(row, "done")?,
                total: u64_of(row, "total")?,
                is_over: ended.is_some(),
            };
            Ok(Phase { begun: row.get("begun")?, ended, record })
        })
    }

    /// The steps whose policy was measured on the held-out prompts, in their order.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn evaluations(&self) -> Result<Vec<u64>, StoreError> {
        let mut steps = self.rows("SELECT DISTINCT step FROM outcomes", [], |row| u64_of(row, "step"))?;
        steps.sort_unstable();
        Ok(steps)
    }

    /// What the policy of this step made of the held-out prompts, by prompt. [`OutcomeRecord::prompt_id`] pairs the
    /// outcomes of two arms, or of two steps. A run of schema 1 has none.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn outcomes(&self, step: u64) -> Result<Vec<Timed<OutcomeRecord>>, StoreError> {
        let query = "SELECT * FROM outcomes WHERE step = ?1 ORDER BY id";
        let mut outcomes = self.rows(query, [step.cast_signed()], |row| {
            let record = OutcomeRecord {
                address: self.address(row)?,
                step: u64_of(row, "step")?,
                prompt_id: u64_of(row, "prompt_id")?,
                instructions: u64_of(row, "instructions")?,
                followed: u64_of(row, "followed")?,
                reward: f32_of(row, "reward")?,
                tokens: u64_of(row, "tokens")?,
                text: row.get("text")?,
            };
            Ok(Timed { time: row.get("time")?, record })
        })?;
        outcomes.sort_by_key(|outcome| outcome.record.prompt_id);
        Ok(outcomes)
    }

    /// Counts of what was given up.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn drops(&self) -> Result<Vec<Timed<DropRecord>>, StoreError> {
        self.rows("SELECT * FROM drops ORDER BY id", [], |row| {
            let record = DropRecord {
                address: self.address(row)?,
                reason: row.get("reason")?,
                part: u64_of(row, "part")?,
                count: u64_of(row, "count")?,
            };
            Ok(Timed { time: row.get("time")?, record })
        })
    }

    /// How many items were given up in the whole arm, by reason.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn dropped(&self) -> Result<BTreeMap<String, u64>, StoreError> {
        let mut dropped = BTreeMap::new();
        for Timed { record, .. } in self.drops()? {
            let sum: &mut u64 = dropped.entry(record.reason).or_default();
            *sum = sum.saturating_add(record.count);
        }
        Ok(dropped)
    }

    /// Checkpoints, by step.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn checkpoints(&self) -> Result<Vec<Timed<CheckpointRecord>>, StoreError> {
        self.rows("SELECT * FROM checkpoints ORDER BY step", [], |row| {
            let record = CheckpointRecord {
                address: self.address(row)?,
                step: u64_of(row, "step")?,
                path: row.get::<_, String>("path")?.into(),
                manifest: json_of(row, "manifest")?,
            };
            Ok(Timed { time: row.get("time")?, record })
        })
    }

    fn rows<T>(
        &self,
        query: &str,
        values: impl Params,
        row: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, StoreError> {
        let rows = self.connection.prepare_cached(query).and_then(|mut query| {
            let rows = query.query_map(values, row)?;
            rows.collect()
        });
        rows.map_err(|cause| StoreError::reading(&self.database, cause))
    }

    fn address(&self, row: &Row<'_>) -> rusqlite::Result<Address> {
        let (round, stage) = (u64_of(row, "round")?, name_of(row, "stage")?);
        Ok(Address { arm: Arc::clone(&self.arm), seed: self.seed, round, stage })
    }
}

fn segment(row: &Row<'_>) -> rusqlite::Result<SampleSegment> {
    let drawn =
        match (f32s_of(row, "logps")?, f32s_of(row, "sampled_logps")?, u32s_of(row, "weight_versions")?) {
            (Some(logps), Some(sampled_logps), Some(weight_versions)) => {
                Some(Drawn { logps, sampled_logps, weight_versions })
            }
            _ => None,
        };
    let segment =
        Segment { role: role_of(row, "role")?, tokens: u32s_of(row, "tokens")?.unwrap_or_default(), drawn };
    Ok(SampleSegment { segment, reference_logps: f32s_of(row, "reference_logps")? })
}

/// The arm and the seed of `…/ARM/SEED`, which schema 1 recorded nowhere else.
fn names_of_folders(folder: &Path) -> (Arc<str>, u64) {
    // A relative path may not name them.
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf());
    let name = |path: Option<&Path>| {
        path.and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    };
    (name(folder.parent()).into(), name(Some(&folder)).parse().unwrap_or_default())
}
