//! Opening runs: what is there, what is missing or broken, and runs of schema 1.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use arriero_buffers::{Address, Drawn, Finish, Role, Segment};
use arriero_store::{
    ArmReader, CheckpointRecord, DropRecord, EventLevel, EventRecord, MetricFilter, MetricRecord, RunDir,
    RunReader, SCHEMA_VERSION, SampleFilter, SampleRecord, SampleSegment, Timed,
};
use rusqlite::Connection;
use serde_json::json;

/// A folder `runs/old/dpo/3`, which goes with the first value.
fn arm_folder() -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().expect("a folder");
    let folder = root.path().join("old/dpo/3");
    fs::create_dir_all(&folder).expect("it can be made");
    (root, folder)
}

fn error(folder: &Path) -> String {
    ArmReader::open(folder).expect_err("it cannot be read").to_string()
}

#[test]
fn a_run_has_its_experiment_its_arms_and_its_summary() {
    let root = tempfile::tempdir().expect("a folder");
    let run = RunDir::create(root.path(), "demo", "name = \"demo\"\n", 0).expect("there is room");
    let [mut second, first] = [("sft", 10), ("sft", 9)].map(|(arm, seed)| run.arm(arm, seed).expect("made"));
    let _other = run.arm("dpo", 3).expect("it can be made");
    fs::create_dir(run.path().join("sft/notes")).expect("no seed");
    second.write_summary(&json!({"steps": 2})).expect("it can be written");

    let reader = RunReader::open(run.path()).expect("it can be read");
    assert_eq!((reader.path(), reader.experiment()), (run.path(), "name = \"demo\"\n"));
    assert_eq!(reader.summary(), None);
    let arms: Vec<(&str, u64)> =
        reader.arms().iter().map(|folder| (folder.arm.as_str(), folder.seed)).collect();
    assert_eq!(arms, [("dpo", 3), ("sft", 9), ("sft", 10)]);
    let arm = reader.arm("sft", 10).expect("it is there");
    assert_eq!((arm.arm(), arm.seed(), arm.schema_version()), ("sft", 10, SCHEMA_VERSION));
    assert_eq!(arm.summary().expect("it can be read"), Some(json!({"steps": 2})));
    assert_eq!(reader.arm("sft", 9).and_then(|arm| arm.summary()).expect("it can be read"), None);
    assert_eq!(
        reader.arm("ppo", 1).expect_err("it is not there").to_string(),
        format!(
            "the run {} has no arm \"ppo\" with seed 1; it has dpo/3, sft/9, sft/10",
            run.path().display()
        )
    );
    drop(first);
    run.write_summary(&json!({"status": "completed"})).expect("it can be written");
    let reader = RunReader::open(run.path()).expect("it can be read");
    assert_eq!(reader.summary(), Some(&json!({"status": "completed"})));
    fs::write(run.path().join("summary.json"), "{\"status\": ").expect("it can be written");
    let text = RunReader::open(run.path()).expect_err("it is cut short").to_string();
    let path = run.path().join("summary.json");
    assert!(text.starts_with(&format!("{} is damaged: EOF while parsing", path.display())), "{text}");
}

#[test]
fn what_is_not_there_is_named() {
    let (root, folder) = arm_folder();
    for path in [root.path().join("old"), root.path().join("none")] {
        assert_eq!(
            RunReader::open(&path).expect_err("it is no run").to_string(),
            format!(
                "{} is no folder of a run: there is no experiment.toml in it; name a folder such as runs/NAME",
                path.display()
            )
        );
    }
    let database = folder.join("run.db");
    assert_eq!(
        error(&folder),
        format!(
            "there is no database {}; name the folder of an arm and seed, such as runs/NAME/ARM/SEED",
            database.display()
        )
    );
}

#[test]
fn what_is_no_database_of_a_run_is_named() {
    let (_root, folder) = arm_folder();
    let path = folder.join("run.db");
    let database = path.display();
    fs::write(&path, "step,loss\n".repeat(1000)).expect("it can be written");
    assert_eq!(
        error(&folder),
        format!("{database} is no SQLite database; name the folder of an arm and seed that a run has made")
    );
    let unfinished = format!(
        "the database {database} has no tables of a run: the run ended before it had begun; remove the run's \
         folder and start it again"
    );
    // As it is before the tables are made: without a byte, and with its first page.
    fs::write(&path, "").expect("it can be written");
    assert_eq!(error(&folder), unfinished);
    let connection = Connection::open(&path).expect("it can be made");
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(())).expect("SQLite can");
    assert_eq!(error(&folder), unfinished);
    connection.pragma_update(None, "user_version", SCHEMA_VERSION + 1).expect("SQLite can");
    assert_eq!(
        error(&folder),
        format!(
            "the database {database} was made by a newer version of Arriero: its schema is 3, and this version \
             knows those up to 2; read it with a version as new as the one that made it"
        )
    );
    connection.pragma_update(None, "user_version", SCHEMA_VERSION).expect("SQLite can");
    assert!(error(&folder).starts_with(&format!("{database} is damaged: no such table: meta")));
    connection
        .execute_batch("CREATE TABLE meta (key, value); INSERT INTO meta VALUES ('arm', 'dpo')")
        .expect("SQL");
    assert!(error(&folder).starts_with(&format!("{database} is damaged: its table meta has no \"seed\"")));
}

#[test]
fn damage_is_told_from_what_is_there() {
    let root = tempfile::tempdir().expect("a folder");
    let run = RunDir::create(root.path(), "demo", "", 0).expect("there is room");
    let mut store = run.arm("dpo", 3).expect("it can be made");
    let event = EventRecord {
        key: None,
        address: None,
        level: EventLevel::Info,
        actor: "a".into(),
        message: "b".repeat(100_000),
    };
    store.event(&event).expect("it can be written");
    store.finish().expect("it can be written");
    let folder = run.path().join("dpo/3");
    let path = folder.join("run.db");
    let read = || {
        let events = ArmReader::open(&folder).and_then(|reader| reader.events());
        events.expect_err("it is damaged").to_string()
    };

    // A value that nothing writes.
    let connection = Connection::open(&path).expect("it is there");
    connection.execute_batch("UPDATE events SET level = 'loud'").expect("SQL");
    drop(connection);
    let expected = format!("{} is damaged: column level: \"loud\" is no level of an event; ", path.display());
    let found = read();
    assert!(found.starts_with(&expected), "{found}");

    // Pages of noise behind the first.
    let mut bytes = fs::read(&path).expect("it is there");
    bytes[4096..].fill(0xa5);
    fs::write(&path, bytes).expect("it can be written");
    let found = read();
    let expected = format!("{} is damaged: database disk image is malformed; ", path.display());
    assert!(found.starts_with(&expected), "{found}");
}

/// The tables as version 1 made them.
const SCHEMA_1: &str = "
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
    CREATE TABLE metrics (stage TEXT NOT NULL, step INTEGER NOT NULL, name TEXT NOT NULL, value REAL);
    CREATE TABLE events (time REAL NOT NULL, level TEXT NOT NULL, actor TEXT NOT NULL, message TEXT NOT NULL);
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
    PRAGMA user_version = 1;
    INSERT INTO meta VALUES ('schema_version', '1');
";

/// Rows as version 1 wrote them; numbers in blobs are 1 and 2, −0.5 and −0.25.
const ROWS_1: &str = "
    INSERT INTO metrics VALUES ('data', 0, 'rows', 8.0), ('data', 0, 'rows', 6.0), ('dpo', 1, 'kl', NULL),
        ('dpo', 1, 'loss', 0.5), ('dpo', 2, 'loss', 0.25);
    INSERT INTO events VALUES (5.0, 'warning', 'generator', 'it died');
    INSERT INTO samples VALUES
        ('dpo', 2, -1, '2+2?', 1, '4', NULL, '{\"exact\":1.0,\"bad\":null}', x'0100000002000000', x'000000bf000080be',
            x'000080be000000bf', x'000000bf000000bf', x'0200000002000000', 'end_of_turn', 'chosen', NULL),
        ('evaluation/ifeval', 7, 0, 'Go.', 0, '', 1.0, '{}', x'', x'', x'', NULL, x'', 'length', NULL, 'stale');
    INSERT INTO drops VALUES (6.0, 'dpo', 'tie', 3), (7.0, 'dpo', 'tie', 2), (8.0, 'dpo', 'run_failed', 1);
    INSERT INTO checkpoints VALUES (9.0, 2, 'checkpoints/step-2', '{\"round\":1,\"stage\":0}');
";

#[test]
fn a_run_of_schema_1_is_read() {
    let (root, folder) = arm_folder();
    fs::write(root.path().join("old/experiment.toml"), "").expect("it can be written");
    let connection = Connection::open(folder.join("run.db")).expect("it can be made");
    connection.execute_batch(SCHEMA_1).expect("SQL");
    connection.execute_batch(ROWS_1).expect("SQL");
    drop(connection);

    let run = RunReader::open(&root.path().join("old")).expect("it can be read");
    let reader = run.arm("dpo", 3).expect("it can be read");
    assert_eq!((reader.schema_version(), reader.arm(), reader.seed()), (1, "dpo", 3));
    let at = |round: u64, stage: &str| Address::new("dpo", 3, round, stage);

    let metrics = |series: &str, step: u64, part: u64, values: &[(&str, f64)]| Timed {
        time: None,
        record: MetricRecord {
            address: at(0, series),
            series: series.to_owned(),
            step,
            part,
            metrics: values.iter().map(|&(name, value)| (name.to_owned(), value)).collect(),
        },
    };
    let found = reader.metrics(&MetricFilter::default()).expect("it can be read");
    let expected = [
        metrics("data", 0, 0, &[("rows", 8.0)]),
        metrics("data", 0, 1, &[("rows", 6.0)]),
        metrics("dpo", 1, 0, &[("kl", f64::NAN), ("loss", 0.5)]),
        metrics("dpo", 2, 0, &[("loss", 0.25)]),
    ];
    assert_eq!(format!("{found:?}"), format!("{expected:?}"));
    let last = MetricFilter { series: Some("dpo"), name: Some("loss"), steps: Some(2..=u64::MAX) };
    assert_eq!(reader.metrics(&last).expect("it can be read"), expected[3..]);

    let samples = reader.samples(&SampleFilter::default()).expect("it can be read");
    let (half, quarter) = (-0.5, -0.25);
    let drawn =
        Drawn { logps: vec![half, quarter], sampled_logps: vec![quarter, half], weight_versions: vec![2, 2] };
    let segment = |tokens: &[u32], drawn: Drawn| Segment {
        role: Role::Assistant,
        tokens: tokens.to_vec(),
        drawn: Some(drawn),
    };
    let first = SampleRecord {
        address: at(2, "dpo"),
        evaluation: None,
        prompt_id: u64::MAX,
        prompt: "2+2?".into(),
        sample: 1,
        text: "4".into(),
        reward: f32::NAN,
        components: BTreeMap::from([("exact".into(), 1.0), ("bad".into(), f32::NAN)]),
        segments: vec![SampleSegment {
            segment: segment(&[1, 2], drawn),
            reference_logps: Some(vec![half, half]),
        }],
        finish: Finish::EndOfTurn,
        selected: Some("chosen".into()),
        dropped: None,
    };
    // A suite's answer had the step in the place of the round.
    let second = SampleRecord {
        address: at(0, "evaluation/ifeval"),
        evaluation: Some(7),
        prompt_id: 0,
        prompt: "Go.".into(),
        sample: 0,
        text: String::new(),
        reward: 1.0,
        components: BTreeMap::new(),
        segments: vec![segment(&[], Drawn::default()).into()],
        finish: Finish::Length,
        selected: None,
        dropped: Some("stale".into()),
    };
    let expected = [first, second].map(|record| Timed { time: None, record });
    assert_eq!(format!("{samples:?}"), format!("{expected:?}"));
    let filter = SampleFilter { evaluation: Some(7), ..SampleFilter::default() };
    assert_eq!(reader.samples(&filter).expect("it can be read"), expected[1..]);

    let event = EventRecord {
        key: None,
        address: None,
        level: EventLevel::Warning,
        actor: "generator".into(),
        message: "it died".into(),
    };
    assert_eq!(reader.events().expect("it can be read"), [Timed { time: Some(5.0), record: event }]);
    let drops = [(6.0, "tie", 0, 3), (7.0, "tie", 1, 2), (8.0, "run_failed", 0, 1)].map(
        |(time, reason, part, count)| Timed {
            time: Some(time),
            record: DropRecord { address: at(0, "dpo"), reason: reason.into(), part, count },
        },
    );
    assert_eq!(reader.drops().expect("it can be read"), drops);
    assert_eq!(
        reader.dropped().expect("it can be read"),
        BTreeMap::from([("run_failed".into(), 1), ("tie".into(), 5)])
    );
    let checkpoint = CheckpointRecord {
        address: at(1, ""),
        step: 2,
        path: "checkpoints/step-2".into(),
        manifest: json!({"round": 1, "stage": 0}),
    };
    assert_eq!(
        reader.checkpoints().expect("it can be read"),
        [Timed { time: Some(9.0), record: checkpoint }]
    );
    assert!(reader.phases().expect("it can be read").is_empty());
    assert!(reader.evaluations().expect("it can be read").is_empty());
    assert!(reader.outcomes(7).expect("it can be read").is_empty());
}
