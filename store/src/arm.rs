//! The record of one arm and seed.
//!
//! Rows gather in a transaction and lines in a buffer. Both are handed on together, every
//! [`BATCH`] rows and every second, so that a killed process loses little, other processes see
//! progress, and the disk is not asked to keep up with every row.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::database::Database;
use crate::error::StoreError;
use crate::files::atomic_write;
use crate::record::{EventLevel, MetricRecord, SampleKey, SampleRecord};
use crate::run::write_json;
use crate::tensorboard::EventFile;

/// Rows after which they are committed.
pub const BATCH: usize = 256;

/// How long a row may wait to be committed.
const INTERVAL: Duration = Duration::from_secs(1);

/// The record of one arm and seed; what it was told is on disk after a second, or after
/// [`ArmStore::flush`].
#[derive(Debug)]
pub struct ArmStore {
    path: PathBuf,
    checkpoints: PathBuf,
    writer: Arc<Mutex<Writer>>,
    /// The thread that commits every second, and the end of a channel that it watches.
    committer: Option<(Sender<()>, JoinHandle<()>)>,
}

impl ArmStore {
    /// Makes the files in `path`, an empty folder.
    pub(crate) fn create(path: PathBuf, toml: &str) -> Result<Self, StoreError> {
        let checkpoints = path.join("checkpoints");
        fs::create_dir(&checkpoints)
            .map_err(|cause| StoreError::io("make the folder", &checkpoints, cause))?;
        let writer = Arc::new(Mutex::new(Writer::create(&path)?));
        let (sender, receiver) = mpsc::channel();
        let shared = Arc::clone(&writer);
        let committer = thread::Builder::new()
            .name("commit".to_owned())
            .spawn(move || commit_every_second(&shared, &receiver))
            .map_err(|cause| StoreError::io("start the thread that writes to", &path, cause))?;
        let store = ArmStore { path, checkpoints, writer, committer: Some((sender, committer)) };
        // The last, since its being there says that the rest is.
        atomic_write(&store.path.join("experiment.toml"), toml.as_bytes())?;
        Ok(store)
    }

    /// Records the metrics of one step: in the database, as a line of `metrics.jsonl`, and for
    /// TensorBoard as `stage/metric`.
    ///
    /// # Errors
    /// If a metric is called `arm`, `stage` or `step`, or the disk fails, now or since the last call.
    pub fn log(&mut self, record: &MetricRecord) -> Result<(), StoreError> {
        if let Some(name) = MetricRecord::KEYS.into_iter().find(|key| record.metrics.contains_key(*key)) {
            return Err(StoreError::MetricName { stage: record.stage.clone(), name: name.to_owned() });
        }
        self.write(|writer| {
            writer.line(record)?;
            writer.scalars(record)?;
            writer.row(|database| database.metrics(record))
        })
    }

    /// Records that something happened.
    ///
    /// # Errors
    /// If the disk fails, now or since the last call.
    pub fn event(&mut self, level: EventLevel, actor: &str, message: &str) -> Result<(), StoreError> {
        self.write(|writer| writer.row(|database| database.event(now(), level, actor, message)))
    }

    /// Records a sample.
    ///
    /// # Errors
    /// If the disk fails, now or since the last call.
    pub fn sample(&mut self, record: &SampleRecord) -> Result<(), StoreError> {
        self.write(|writer| {
            let components = serde_json::to_string(&record.components).map_err(|cause| {
                StoreError::io("encode a sample for", &writer.database_path, cause.into())
            })?;
            writer.row(|database| database.sample(record, &components))
        })
    }

    /// Adds the reference log-probabilities of a sample that was recorded before.
    ///
    /// # Errors
    /// If the disk fails, now or since the last call.
    pub fn reference(&mut self, key: SampleKey<'_>, logps: &[f32]) -> Result<(), StoreError> {
        self.write(|writer| writer.row(|database| database.reference(&key, logps)))
    }

    /// Records that `count` more items were given up.
    ///
    /// # Errors
    /// If the disk fails, now or since the last call.
    pub fn drops(&mut self, stage: &str, reason: &str, count: u64) -> Result<(), StoreError> {
        self.write(|writer| writer.row(|database| database.drops(now(), stage, reason, count)))
    }

    /// Waits until the disk has all that was recorded.
    ///
    /// # Errors
    /// If the disk fails, now or since the last call.
    pub fn flush(&mut self) -> Result<(), StoreError> {
        self.write(Writer::sync)
    }

    /// The folder for checkpoints.
    pub fn checkpoints(&self) -> &Path {
        &self.checkpoints
    }

    /// Records a checkpoint that is on disk, and flushes: it is what a later run starts from.
    ///
    /// # Errors
    /// If the disk fails, now or since the last call.
    pub fn record_checkpoint(
        &mut self,
        step: u64,
        path: &Path,
        manifest: &serde_json::Value,
    ) -> Result<(), StoreError> {
        let (path, manifest) = (path.to_string_lossy(), manifest.to_string());
        self.write(|writer| {
            writer.row(|database| database.checkpoint(now(), step, &path, &manifest))?;
            writer.sync()
        })
    }

    /// Writes what came of the arm.
    ///
    /// # Errors
    /// If the file cannot be written; an earlier one stays.
    pub fn write_summary(&mut self, summary: &serde_json::Value) -> Result<(), StoreError> {
        write_json(&self.path.join("summary.json"), summary)
    }

    /// Flushes and closes the files. A store that is dropped does so too, but cannot say whether it
    /// worked.
    ///
    /// # Errors
    /// If the disk fails, now or since the last call.
    pub fn finish(mut self) -> Result<(), StoreError> {
        self.flush()
    }

    fn write(&mut self, write: impl FnOnce(&mut Writer) -> Result<(), StoreError>) -> Result<(), StoreError> {
        let mut writer = lock(&self.writer);
        match writer.failed.take() {
            Some(error) => Err(error),
            None => write(&mut writer),
        }
    }
}

impl Drop for ArmStore {
    fn drop(&mut self) {
        if let Some((sender, committer)) = self.committer.take() {
            drop(sender);
            // It holds the files open until it ends.
            let _ = committer.join();
        }
        let _ = lock(&self.writer).commit();
    }
}

/// A writer that panicked left rows or lines out, but nothing half done that others would build on.
fn lock(writer: &Mutex<Writer>) -> MutexGuard<'_, Writer> {
    writer.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Commits every second until the store is gone. An error waits for the store's next call.
fn commit_every_second(writer: &Mutex<Writer>, store: &Receiver<()>) {
    while store.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
        let mut writer = lock(writer);
        if let Err(error) = writer.commit() {
            writer.failed.get_or_insert(error);
        }
    }
}

/// The open files.
#[derive(Debug)]
struct Writer {
    database: Database,
    database_path: PathBuf,
    lines: BufWriter<File>,
    lines_path: PathBuf,
    scalars: EventFile,
    scalars_path: PathBuf,
    /// What went wrong while nobody called.
    failed: Option<StoreError>,
}

impl Writer {
    fn create(path: &Path) -> Result<Self, StoreError> {
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
        let database =
            Database::create(&database_path).map_err(|cause| StoreError::sqlite(&database_path, cause))?;
        let lines = BufWriter::new(lines);
        Ok(Writer { database, database_path, lines, lines_path, scalars, scalars_path, failed: None })
    }

    /// Adds a line in one piece: the buffer never holds a part of one, and is handed on as it is.
    fn line(&mut self, record: &MetricRecord) -> Result<(), StoreError> {
        let result = serde_json::to_vec(record).map_err(io::Error::from).and_then(|mut line| {
            line.push(b'\n');
            self.lines.write_all(&line)
        });
        result.map_err(|cause| StoreError::io("write", &self.lines_path, cause))
    }

    fn scalars(&mut self, record: &MetricRecord) -> Result<(), StoreError> {
        let tags: Vec<(String, f64)> =
            record.metrics.iter().map(|(name, value)| (format!("{}/{name}", record.stage), *value)).collect();
        let scalars = tags.iter().map(|(tag, value)| (tag.as_str(), *value));
        self.scalars
            .scalars(now(), record.step, scalars)
            .map_err(|cause| StoreError::io("write", &self.scalars_path, cause))
    }

    /// Adds rows, and commits when there are enough.
    fn row(&mut self, insert: impl FnOnce(&mut Database) -> rusqlite::Result<()>) -> Result<(), StoreError> {
        insert(&mut self.database).map_err(|cause| StoreError::sqlite(&self.database_path, cause))?;
        if self.database.rows() >= BATCH { self.commit() } else { Ok(()) }
    }

    /// Hands everything to the system: other processes see it, and it survives this one.
    fn commit(&mut self) -> Result<(), StoreError> {
        self.database.commit().map_err(|cause| StoreError::sqlite(&self.database_path, cause))?;
        self.lines.flush().map_err(|cause| StoreError::io("write", &self.lines_path, cause))?;
        self.scalars.flush().map_err(|cause| StoreError::io("write", &self.scalars_path, cause))
    }

    /// Commits, and waits until the disk has it: it survives the machine.
    fn sync(&mut self) -> Result<(), StoreError> {
        self.commit()?;
        sync_log(&self.database_path)?;
        self.lines.get_ref().sync_data().map_err(|cause| StoreError::io("sync", &self.lines_path, cause))?;
        self.scalars.sync().map_err(|cause| StoreError::io("sync", &self.scalars_path, cause))
    }
}

/// With `synchronous=NORMAL`, SQLite leaves it to the system when a commit reaches the disk; it is in
/// the log beside the database until then. (The database itself must not be opened past SQLite: closing
/// it would release SQLite's locks.)
fn sync_log(database: &Path) -> Result<(), StoreError> {
    let path = database.with_extension("db-wal");
    match OpenOptions::new().append(true).open(&path).and_then(|log| log.sync_data()) {
        Err(cause) if cause.kind() != ErrorKind::NotFound => Err(StoreError::io("sync", &path, cause)),
        _ => Ok(()),
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Instant;

    use arriero_buffers::Finish;
    use rusqlite::{Connection, OpenFlags};
    use serde_json::json;

    use super::*;
    use crate::run::RunDir;
    use crate::tensorboard;

    /// An arm in a folder that goes with the first value.
    fn arm() -> (tempfile::TempDir, ArmStore) {
        let root = tempfile::tempdir().expect("a folder");
        let run = RunDir::create(root.path(), "demo", "", 0).expect("there is room");
        let arm = run.arm("dpo", 3).expect("it can be made");
        (root, arm)
    }

    /// A second connection, as another process would have it.
    fn reader(store: &ArmStore) -> Connection {
        Connection::open_with_flags(store.path.join("run.db"), OpenFlags::SQLITE_OPEN_READ_ONLY)
            .expect("it can be read")
    }

    fn count(reader: &Connection, table: &str) -> u32 {
        reader
            .query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0))
            .expect("SQLite knows")
    }

    fn metrics(step: u64, metrics: &[(&str, f64)]) -> MetricRecord {
        let metrics = metrics.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
        MetricRecord { arm: "dpo".into(), stage: "train".into(), step, metrics }
    }

    fn sample() -> SampleRecord {
        SampleRecord {
            stage: "train".into(),
            round: 2,
            prompt_id: u64::MAX,
            prompt: "<user>2+2?".into(),
            sample: 1,
            text: "4\0!".into(),
            reward: 0.75,
            components: BTreeMap::from([("exact".into(), 1.0), ("length".into(), -0.25)]),
            tokens: vec![7, 2],
            logps: vec![-0.5, -0.25],
            sampled_logps: vec![-1.0, 0.0],
            reference_logps: None,
            weight_versions: vec![1, 2],
            finish: Finish::EndOfTurn,
            selected: Some("best".into()),
            dropped: None,
        }
    }

    #[test]
    fn a_store_can_be_sent_to_another_thread() {
        fn is_send<T: Send>() {}
        is_send::<ArmStore>();
    }

    #[test]
    fn metrics_are_rows_lines_and_scalars() {
        let (_root, mut store) = arm();
        store.log(&metrics(1, &[("loss", 0.5), ("kl", f64::NAN)])).expect("it can be written");
        store.log(&metrics(2, &[("loss", 0.25)])).expect("it can be written");
        store.flush().expect("it can be written");

        assert_eq!(
            fs::read_to_string(store.path.join("metrics.jsonl")).expect("it is there"),
            concat!(
                r#"{"arm":"dpo","stage":"train","step":1,"kl":null,"loss":0.5}"#,
                "\n",
                r#"{"arm":"dpo","stage":"train","step":2,"loss":0.25}"#,
                "\n"
            )
        );

        let reader = reader(&store);
        let mut statement = reader.prepare("SELECT stage, step, name, value FROM metrics").expect("SQL");
        let rows = statement.query_map([], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, String>(2)?, row.get(3)?))
        });
        let rows: Vec<(String, i64, String, Option<f64>)> =
            rows.expect("SQL").collect::<Result<_, _>>().expect("its columns are right");
        let row = |step, name: &str, value| ("train".to_owned(), step, name.to_owned(), value);
        assert_eq!(rows, [row(1, "kl", None), row(1, "loss", Some(0.5)), row(2, "loss", Some(0.25))]);

        let mut files = fs::read_dir(store.path.join("tensorboard")).expect("it is there");
        let file = files.next().expect("there is a file").expect("it is there").path();
        assert!(files.next().is_none());
        let name = file.file_name().expect("it has a name").to_string_lossy().into_owned();
        assert!(name.starts_with("events.out.tfevents."), "{name}");
        let messages = tensorboard::tests::messages(&fs::read(file).expect("it is there"));
        assert_eq!(messages.len(), 3);
        // After the time: step 2; a summary of 19 bytes with a value of 17: a tag of 10, and 0.25.
        let mut expected = vec![0x10, 0x02, 0x2a, 0x13, 0x0a, 0x11, 0x0a, 0x0a];
        expected.extend(b"train/loss");
        expected.extend([0x15, 0, 0, 0x80, 0x3e]);
        assert_eq!(messages[2][9..], expected);
    }

    #[test]
    fn a_metric_cannot_hide_the_keys_of_its_line() {
        let (_root, mut store) = arm();
        let error = store.log(&metrics(1, &[("loss", 0.5), ("step", 1.0)])).expect_err("step is taken");
        assert_eq!(
            error.to_string(),
            "a metric of stage \"train\" is called \"step\", as is a key of every line of metrics.jsonl; \
             give the metric another name"
        );
        store.flush().expect("it can be written");
        assert_eq!(fs::read(store.path.join("metrics.jsonl")).expect("it is there"), b"");
    }

    #[test]
    fn samples_come_back() {
        let (_root, mut store) = arm();
        let mut first = sample();
        let reference_logps = Some(vec![-0.125, -2.0]);
        let (finish, dropped) = (Finish::Length, Some("stale".to_owned()));
        let second = SampleRecord {
            reference_logps,
            finish,
            dropped,
            selected: None,
            sample: first.sample + 1,
            ..sample()
        };
        // Recorded twice, as by an actor that died and began anew: it is one sample.
        for record in [&first, &first, &second] {
            store.sample(record).expect("it can be written");
        }
        // What the reference says comes later, and to this sample alone.
        let SampleRecord { round, prompt_id, sample, .. } = first;
        let key = SampleKey { stage: &first.stage, round, prompt_id, sample };
        store.reference(key, &[-0.5, -0.25]).expect("it can be written");
        first.reference_logps = Some(vec![-0.5, -0.25]);
        store.flush().expect("it can be written");

        let numbers = |blob: Vec<u8>| -> Vec<u32> {
            blob.chunks(4).map(|bytes| u32::from_le_bytes(bytes.try_into().expect("4 bytes"))).collect()
        };
        let floats = |blob: Vec<u8>| -> Vec<f32> { numbers(blob).into_iter().map(f32::from_bits).collect() };
        let reader = reader(&store);
        let mut statement = reader.prepare("SELECT * FROM samples ORDER BY sample").expect("SQL");
        let rows = statement.query_map([], |row| {
            let components: String = row.get("components")?;
            Ok(SampleRecord {
                stage: row.get("stage")?,
                round: row.get::<_, i64>("round")?.cast_unsigned(),
                prompt_id: row.get::<_, i64>("prompt_id")?.cast_unsigned(),
                prompt: row.get("prompt")?,
                sample: row.get("sample")?,
                text: row.get("text")?,
                reward: row.get("reward")?,
                components: serde_json::from_str(&components).expect("JSON"),
                tokens: numbers(row.get("tokens")?),
                logps: floats(row.get("logps")?),
                sampled_logps: floats(row.get("sampled_logps")?),
                reference_logps: row.get::<_, Option<Vec<u8>>>("reference_logps")?.map(floats),
                weight_versions: numbers(row.get("weight_versions")?),
                finish: serde_json::from_value(row.get::<_, String>("finish")?.into()).expect("a finish"),
                selected: row.get("selected")?,
                dropped: row.get("dropped")?,
            })
        });
        let rows: Vec<SampleRecord> =
            rows.expect("SQL").collect::<Result<_, _>>().expect("its columns are right");
        assert_eq!(rows, [first, second]);
    }

    #[test]
    fn events_drops_checkpoints_and_the_version_come_back() {
        let (_root, mut store) = arm();
        store.event(EventLevel::Warning, "generator-1", "it died").expect("it can be written");
        store.drops("train", "stale", 3).expect("it can be written");
        let path = store.checkpoints().join("step-5");
        store.record_checkpoint(5, &path, &json!({"step": 5})).expect("it can be written");

        let reader = reader(&store);
        let event: (f64, String, String, String) =
            reader.query_row("SELECT * FROM events", [], |row| row.try_into()).expect("there is one");
        assert!((now() - event.0).abs() < 60.0, "{}", event.0);
        assert_eq!(
            (event.1.as_str(), event.2.as_str(), event.3.as_str()),
            ("warning", "generator-1", "it died")
        );
        let drop: (String, String, i64) = reader
            .query_row("SELECT stage, reason, count FROM drops", [], |row| row.try_into())
            .expect("there is one");
        assert_eq!(drop, ("train".into(), "stale".into(), 3));
        let checkpoint: (i64, String, String) = reader
            .query_row("SELECT step, path, manifest FROM checkpoints", [], |row| row.try_into())
            .expect("there is one");
        assert_eq!(checkpoint, (5, path.display().to_string(), r#"{"step":5}"#.into()));
        let meta: (String, String) =
            reader.query_row("SELECT * FROM meta", [], |row| row.try_into()).expect("there is one");
        assert_eq!(meta, ("schema_version".into(), "1".into()));
        let pragma = |name: &str| -> rusqlite::types::Value {
            reader.query_row(&format!("PRAGMA {name}"), [], |row| row.get(0)).expect("SQLite knows")
        };
        assert_eq!(pragma("user_version"), 1.into());
        assert_eq!(pragma("journal_mode"), "wal".to_owned().into());
    }

    #[test]
    fn a_full_batch_is_seen_by_others() {
        // Without the thread, which might commit as well.
        let folder = tempfile::tempdir().expect("a folder");
        let mut writer = Writer::create(folder.path()).expect("it can be made");
        let reader = Connection::open(folder.path().join("run.db")).expect("it can be read");
        let mut write = |rows: usize| {
            for _ in 0..rows {
                let row = writer.row(|database| database.event(1.0, EventLevel::Info, "a", "b"));
                row.expect("it can be written");
            }
        };
        write(255);
        assert_eq!(count(&reader, "events"), 0);
        write(1);
        assert_eq!(count(&reader, "events"), 256);
    }

    #[test]
    fn a_lone_row_is_seen_by_others_within_seconds() {
        let (_root, mut store) = arm();
        let reader = reader(&store);
        store.log(&metrics(1, &[("loss", 0.5)])).expect("it can be written");
        let began = Instant::now();
        while count(&reader, "metrics") == 0 {
            assert!(began.elapsed() < Duration::from_secs(30), "nothing was committed");
            thread::sleep(Duration::from_millis(20));
        }
        // The line is handed on right after the row.
        drop(lock(&store.writer));
        let lines = fs::read_to_string(store.path.join("metrics.jsonl")).expect("it is there");
        assert_eq!(lines, "{\"arm\":\"dpo\",\"stage\":\"train\",\"step\":1,\"loss\":0.5}\n");
    }

    #[test]
    fn a_failure_while_nobody_called_is_told_at_the_next_call() {
        let (_root, mut store) = arm();
        let failure = StoreError::io("write", Path::new("run.db"), ErrorKind::StorageFull.into());
        lock(&store.writer).failed = Some(failure);
        let error = store.event(EventLevel::Info, "a", "b").expect_err("the disk was full");
        assert!(error.to_string().starts_with("the disk of run.db is full"), "{error}");
        store.event(EventLevel::Info, "a", "b").expect("there is room again");
    }

    #[test]
    fn a_finished_or_dropped_store_is_whole() {
        for finish in [true, false] {
            let (_root, mut store) = arm();
            let path = store.path.clone();
            store.event(EventLevel::Info, "a", "b").expect("it can be written");
            store.write_summary(&json!({"a": 1})).expect("it can be written");
            if finish {
                store.finish().expect("it can be written");
            } else {
                drop(store);
            }
            // The log is merged and gone.
            assert!(!path.join("run.db-wal").exists());
            let reader = Connection::open(path.join("run.db")).expect("it can be read");
            assert_eq!(count(&reader, "events"), 1);
            let summary = fs::read_to_string(path.join("summary.json")).expect("it is there");
            assert_eq!(summary, "{\n  \"a\": 1\n}\n");
        }
    }
}
