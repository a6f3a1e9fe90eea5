//! The record of one arm and seed.
//!
//! Rows gather in a transaction and lines in a buffer. Both are handed on together, every 256 rows and every second. So
//! a killed process loses little, other processes see progress, and the disk need not keep up with every row.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use arriero_buffers::Address;

use crate::error::StoreError;
use crate::files::{atomic_write, write_json};
use crate::record::{
    CheckpointRecord, DropRecord, EventRecord, MetricRecord, OutcomeRecord, PhaseRecord, SampleKey,
    SampleRecord,
};
use crate::writer::{Writer, now};

/// How long a row may wait to be committed.
const INTERVAL: Duration = Duration::from_secs(1);

/// The record of one arm and seed. What it was told is on disk after a second, or after [`ArmStore::flush`].
///
/// A record that is written again takes its own place in `run.db`. [`record`](crate::record) says what each is known
/// by. `metrics.jsonl` and TensorBoard's files only grow.
#[derive(Debug)]
pub struct ArmStore {
    path: PathBuf,
    checkpoints: PathBuf,
    arm: String,
    seed: u64,
    writer: Arc<Mutex<Writer>>,
    /// The thread that commits every second, and the end of a channel that it watches.
    committer: Option<(Sender<()>, JoinHandle<()>)>,
}

impl ArmStore {
    /// Makes the files in `path`, an empty folder.
    pub(crate) fn create(path: PathBuf, arm: &str, seed: u64, toml: &str) -> Result<Self, StoreError> {
        let checkpoints = path.join("checkpoints");
        fs::create_dir(&checkpoints)
            .map_err(|cause| StoreError::io("make the folder", &checkpoints, cause))?;
        let writer = Arc::new(Mutex::new(Writer::create(&path, arm, seed)?));
        let (sender, receiver) = mpsc::channel();
        let shared = Arc::clone(&writer);
        let committer = thread::Builder::new()
            .name("commit".to_owned())
            .spawn(move || commit_every_second(&shared, &receiver))
            .map_err(|cause| StoreError::io("start the thread that writes to", &path, cause))?;
        let committer = Some((sender, committer));
        let store = ArmStore { path, checkpoints, arm: arm.to_owned(), seed, writer, committer };
        // The last, since its being there says that the rest is.
        atomic_write(&store.path.join("experiment.toml"), toml.as_bytes())?;
        Ok(store)
    }

    /// Records the metrics of one step: in the database, as a line of `metrics.jsonl`, and for
    /// TensorBoard as `series/metric`.
    ///
    /// # Errors
    /// If a metric is called `arm`, `stage` or `step`, the address is of another arm, or the disk fails, now or since the
    /// last call.
    pub fn log(&mut self, record: &MetricRecord) -> Result<(), StoreError> {
        self.check(&record.address)?;
        if let Some(name) = MetricRecord::KEYS.into_iter().find(|key| record.metrics.contains_key(*key)) {
            return Err(StoreError::MetricName { series: record.series.clone(), name: name.to_owned() });
        }
        self.write(|writer| writer.metrics(record))
    }

    /// Records that something happened.
    ///
    /// # Errors
    /// If the address is of another arm, or the disk fails, now or since the last call.
    pub fn event(&mut self, record: &EventRecord) -> Result<(), StoreError> {
        if let Some(address) = &record.address {
            self.check(address)?;
        }
        self.write(|writer| writer.row(|database| database.event(now(), record)))
    }

    /// Records that a phase begins, how far it has come, or that it is over.
    ///
    /// # Errors
    /// If the address is of another arm, or the disk fails, now or since the last call.
    pub fn phase(&mut self, record: &PhaseRecord) -> Result<(), StoreError> {
        self.check(&record.address)?;
        self.write(|writer| writer.row(|database| database.phase(now(), record)))
    }

    /// Records a sample with its segments. Reference log-probabilities of the same tokens that were recorded before
    /// stay.
    ///
    /// # Errors
    /// If the address is of another arm, or the disk fails, now or since the last call.
    pub fn sample(&mut self, record: &SampleRecord) -> Result<(), StoreError> {
        self.check(&record.address)?;
        self.write(|writer| writer.row(|database| database.sample(now(), record)))
    }

    /// Adds reference log-probabilities to a sample that was drawn for training and is recorded. There is one for each
    /// token that the policy drew, over all segments. A sample that was not recorded is passed over.
    ///
    /// # Errors
    /// If they are not as many as these tokens, the address is of another arm, or the disk fails, now or since the last
    /// call.
    pub fn reference(&mut self, key: SampleKey<'_>, logps: &[f32]) -> Result<(), StoreError> {
        self.check(key.address)?;
        match self.write(|writer| writer.row(|database| database.reference(&key, logps)))? {
            None => Ok(()),
            Some(expected) => Err(StoreError::ReferenceLength {
                address: key.address.to_string(),
                prompt_id: key.prompt_id,
                sample: key.sample,
                expected,
                found: logps.len(),
            }),
        }
    }

    /// Records what the policy made of a held-out prompt.
    ///
    /// # Errors
    /// If the address is of another arm, or the disk fails, now or since the last call.
    pub fn outcome(&mut self, record: &OutcomeRecord) -> Result<(), StoreError> {
        self.check(&record.address)?;
        self.write(|writer| writer.row(|database| database.outcome(now(), record)))
    }

    /// Records how many items were given up for a reason.
    ///
    /// # Errors
    /// If the address is of another arm, or the disk fails, now or since the last call.
    pub fn drops(&mut self, record: &DropRecord) -> Result<(), StoreError> {
        self.check(&record.address)?;
        self.write(|writer| writer.row(|database| database.drops(now(), record)))
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

    /// Records a checkpoint that is on disk, and flushes. A later run starts from it.
    ///
    /// # Errors
    /// If the address is of another arm, or the disk fails, now or since the last call.
    pub fn record_checkpoint(&mut self, record: &CheckpointRecord) -> Result<(), StoreError> {
        self.check(&record.address)?;
        self.write(|writer| {
            writer.row(|database| database.checkpoint(now(), record))?;
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

    /// The database is of one arm and seed, and its rows do not repeat them.
    fn check(&self, address: &Address) -> Result<(), StoreError> {
        if *address.arm == *self.arm && address.seed == self.seed {
            return Ok(());
        }
        Err(StoreError::OtherArm {
            address: address.to_string(),
            arm: self.arm.clone(),
            seed: self.seed,
            path: self.path.clone(),
        })
    }

    fn write<T>(
        &mut self,
        write: impl FnOnce(&mut Writer) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
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

/// A writer that panicked may have left out rows or lines. It has left nothing half done that others build on.
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::ErrorKind;
    use std::time::Instant;

    use serde_json::json;

    use super::*;
    use crate::reader::{ArmReader, MetricFilter};
    use crate::record::EventLevel;
    use crate::run::RunDir;
    use crate::tensorboard;

    /// An arm in a folder that goes with the first value.
    fn arm() -> (tempfile::TempDir, ArmStore) {
        let root = tempfile::tempdir().expect("a folder");
        let run = RunDir::create(root.path(), "demo", "", 0).expect("there is room");
        let arm = run.arm("dpo", 3).expect("it can be made");
        (root, arm)
    }

    fn address() -> Address {
        Address::new("dpo", 3, 0, "dpo")
    }

    fn metrics(step: u64, metrics: &[(&str, f64)]) -> MetricRecord {
        let metrics: BTreeMap<String, f64> =
            metrics.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
        MetricRecord { address: address(), series: "train".into(), step, part: 0, metrics }
    }

    fn event() -> EventRecord {
        EventRecord {
            key: None,
            address: None,
            level: EventLevel::Info,
            actor: "a".into(),
            message: "b".into(),
        }
    }

    #[test]
    fn a_store_can_be_sent_to_another_thread() {
        fn is_send<T: Send>() {}
        is_send::<ArmStore>();
    }

    #[test]
    fn metrics_are_lines_and_scalars() {
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
            "a metric of series \"train\" is called \"step\", as is a key of every line of metrics.jsonl; \
             give the metric another name"
        );
        store.flush().expect("it can be written");
        assert_eq!(fs::read(store.path.join("metrics.jsonl")).expect("it is there"), b"");
    }

    #[test]
    fn a_record_of_another_arm_is_refused() {
        let (_root, mut store) = arm();
        for other in [Address::new("sft", 3, 0, "sft"), Address::new("dpo", 4, 0, "dpo")] {
            let error = store.log(&MetricRecord { address: other.clone(), ..metrics(1, &[("loss", 0.5)]) });
            assert_eq!(
                error.expect_err("it is another's").to_string(),
                format!(
                    "a record of {other} came to the store of dpo/3 in {}; give each record to the store of its \
                     own arm and seed",
                    store.path.display()
                )
            );
        }
    }

    #[test]
    fn a_lone_row_is_seen_by_others_within_seconds() {
        let (_root, mut store) = arm();
        let reader = ArmReader::open(&store.path).expect("it can be read");
        store.log(&metrics(1, &[("loss", 0.5)])).expect("it can be written");
        let began = Instant::now();
        while reader.metrics(&MetricFilter::default()).expect("it can be read").is_empty() {
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
        let error = store.event(&event()).expect_err("the disk was full");
        assert!(error.to_string().starts_with("the disk of run.db is full"), "{error}");
        store.event(&event()).expect("there is room again");
    }

    #[test]
    fn a_finished_or_dropped_store_is_whole() {
        for finish in [true, false] {
            let (_root, mut store) = arm();
            let path = store.path.clone();
            store.event(&event()).expect("it can be written");
            store.write_summary(&json!({"a": 1})).expect("it can be written");
            if finish {
                store.finish().expect("it can be written");
            } else {
                drop(store);
            }
            // The log is merged and gone.
            assert!(!path.join("run.db-wal").exists());
            let reader = ArmReader::open(&path).expect("it can be read");
            assert_eq!(reader.events().expect("it can be read").len(), 1);
            let summary = fs::read_to_string(path.join("summary.json")).expect("it is there");
            assert_eq!(summary, "{\n  \"a\": 1\n}\n");
        }
    }
}
