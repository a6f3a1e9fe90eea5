//! The tables of `run.db`, and how a database of schema 1 is seen through those of schema 2.
//!
//! The columns are described in `docs/run-folder.md`. SQLite's integers are signed. Steps, rounds and prompts' ids are
//! stored as the same 64 bits, so ids above 2^63 read as negative numbers in other programs. NaN is stored as NULL, and
//! −0 as 0. Times are seconds since 1970. Every table has a key under which a record that is written twice takes its
//! own place.

/// The version of the tables, in `meta` and in `PRAGMA user_version`.
pub const SCHEMA_VERSION: u32 = 2;

/// The tables of this version.
pub(crate) const SCHEMA: &str = "
    -- schema_version, arm, seed: they hold for every row of the database.
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);

    CREATE TABLE metrics (
        id INTEGER PRIMARY KEY, time REAL NOT NULL,
        round INTEGER NOT NULL, stage TEXT NOT NULL, series TEXT NOT NULL, step INTEGER NOT NULL, part INTEGER NOT NULL,
        name TEXT NOT NULL, value REAL,
        UNIQUE (series, name, step, part, round, stage)
    );

    -- key: what names the event where it may be told twice.
    CREATE TABLE events (
        id INTEGER PRIMARY KEY, key TEXT UNIQUE, time REAL NOT NULL, round INTEGER, stage TEXT,
        level TEXT NOT NULL, actor TEXT NOT NULL, message TEXT NOT NULL
    );

    CREATE TABLE phases (
        id INTEGER PRIMARY KEY, begun REAL NOT NULL, ended REAL,
        round INTEGER NOT NULL, stage TEXT NOT NULL, kind TEXT NOT NULL, part INTEGER NOT NULL,
        done INTEGER NOT NULL, total INTEGER NOT NULL,
        UNIQUE (round, stage, kind, part)
    );

    -- evaluation: the step that was measured, NULL where the sample was drawn for training. components: a JSON object.
    CREATE TABLE samples (
        id INTEGER PRIMARY KEY, time REAL NOT NULL,
        round INTEGER NOT NULL, stage TEXT NOT NULL, evaluation INTEGER, prompt_id INTEGER NOT NULL, sample INTEGER NOT NULL,
        prompt TEXT NOT NULL, text TEXT NOT NULL, reward REAL, components TEXT NOT NULL, finish TEXT NOT NULL,
        selected TEXT, dropped TEXT
    );
    CREATE UNIQUE INDEX samples_key ON samples (round, stage, prompt_id, sample, ifnull(evaluation, -1));

    -- Blobs of little-endian u32 (tokens, weight_versions) or f32 (the others), one entry a token. Those but tokens are NULL
    -- where the policy did not draw the segment.
    CREATE TABLE segments (
        sample_id INTEGER NOT NULL, position INTEGER NOT NULL, role TEXT NOT NULL, tokens BLOB NOT NULL,
        logps BLOB, sampled_logps BLOB, reference_logps BLOB, weight_versions BLOB,
        PRIMARY KEY (sample_id, position)
    ) WITHOUT ROWID;

    CREATE TABLE outcomes (
        id INTEGER PRIMARY KEY, time REAL NOT NULL,
        round INTEGER NOT NULL, stage TEXT NOT NULL, step INTEGER NOT NULL, prompt_id INTEGER NOT NULL,
        instructions INTEGER NOT NULL, followed INTEGER NOT NULL, reward REAL, tokens INTEGER NOT NULL, text TEXT NOT NULL,
        UNIQUE (step, prompt_id, round, stage)
    );

    CREATE TABLE drops (
        id INTEGER PRIMARY KEY, time REAL NOT NULL,
        round INTEGER NOT NULL, stage TEXT NOT NULL, reason TEXT NOT NULL, part INTEGER NOT NULL, count INTEGER NOT NULL,
        UNIQUE (round, stage, reason, part)
    );

    -- manifest: a JSON object.
    CREATE TABLE checkpoints (
        step INTEGER PRIMARY KEY, time REAL NOT NULL, round INTEGER NOT NULL, stage TEXT NOT NULL,
        path TEXT NOT NULL, manifest TEXT NOT NULL
    );
";

/// Views on the tables of schema 1, with the names and columns of this version's. They hide the tables from every
/// query.
///
/// Schema 1 had no address. Its column `stage` held the series, and only samples had a round. So metrics and drops get
/// round 0, and their series as stage. Answers of an evaluation's suite had its step in place of the round. Rows that
/// were written several times under one key become parts.
pub(crate) const VIEWS_OF_SCHEMA_1: &str = "
    CREATE TEMP VIEW metrics AS
        SELECT rowid AS id, NULL AS time, 0 AS round, stage, stage AS series, step,
            row_number() OVER (PARTITION BY stage, step, name ORDER BY rowid) - 1 AS part, name, value
        FROM main.metrics;
    CREATE TEMP VIEW events AS
        SELECT rowid AS id, NULL AS key, time, NULL AS round, NULL AS stage, level, actor, message FROM main.events;
    CREATE TEMP VIEW phases AS
        SELECT 0 AS id, 0.0 AS begun, NULL AS ended, 0 AS round, '' AS stage, '' AS kind, 0 AS part, 0 AS done, 0 AS total
        WHERE 0;
    CREATE TEMP VIEW samples AS
        SELECT rowid AS id, NULL AS time, iif(is_measured, 0, round) AS round, stage,
            iif(is_measured, round, NULL) AS evaluation, prompt_id, sample, prompt, text, reward, components, finish,
            selected, dropped
        FROM (SELECT rowid, *, stage = 'eval' OR stage GLOB 'evaluation/*' AS is_measured FROM main.samples);
    CREATE TEMP VIEW segments AS
        SELECT rowid AS sample_id, 0 AS position, 'assistant' AS role, tokens, logps, sampled_logps, reference_logps,
            weight_versions
        FROM main.samples;
    CREATE TEMP VIEW outcomes AS
        SELECT 0 AS id, 0.0 AS time, 0 AS round, '' AS stage, 0 AS step, 0 AS prompt_id, 0 AS instructions, 0 AS followed,
            0.0 AS reward, 0 AS tokens, '' AS text
        WHERE 0;
    CREATE TEMP VIEW drops AS
        SELECT rowid AS id, time, 0 AS round, stage, reason,
            row_number() OVER (PARTITION BY stage, reason ORDER BY rowid) - 1 AS part, count
        FROM main.drops;
    CREATE TEMP VIEW checkpoints AS
        SELECT step, time, ifnull(json_extract(manifest, '$.round'), 0) AS round, '' AS stage, path, manifest
        FROM main.checkpoints;
";
