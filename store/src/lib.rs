//! The run on disk.
//!
//! ```text
//! runs/<name>/experiment.toml          what was asked, every default written out
//!             summary.json             what came of it
//!             <arm>/<seed>/experiment.toml
//!                          run.db      metrics, events, phases, samples, outcomes, drops and checkpoints (SQLite)
//!                          metrics.jsonl
//!                          tensorboard/events.out.tfevents.*
//!                          checkpoints/
//!                          summary.json
//! ```
//!
//! The modules, from the outside in:
//!
//! - [`run`]: the folder of a run ([`RunDir`]): checked before anything starts, made whole or not
//!   at all;
//! - [`arm`]: the record of one arm and seed ([`ArmStore`]), written in batches;
//! - [`reader`]: a run that is there ([`RunReader`], [`ArmReader`]), of this schema or an earlier one, also while it is
//!   written;
//! - [`record`]: what is recorded ([`MetricRecord`], [`SampleRecord`], …), and what each record is known by;
//! - `writer`: the open files of an arm;
//! - `database`, `schema`, `columns`: writing to `run.db`, its tables, how values stand in columns;
//! - [`tensorboard`]: TensorBoard's event files;
//! - [`files`]: files that are replaced whole ([`atomic_write`]), free space;
//! - [`error`]: what can go wrong, and what to do about it.
//!
//! The process may be killed at any time. What was committed stays. At most the last second is lost, and at most the
//! last line of `metrics.jsonl` is cut short.

pub mod arm;
mod columns;
mod database;
pub mod error;
pub mod files;
pub mod reader;
pub mod record;
pub mod run;
mod schema;
pub mod tensorboard;
mod writer;

pub use arm::ArmStore;
pub use error::StoreError;
pub use files::atomic_write;
pub use reader::{ArmReader, MetricFilter, RunReader, SampleFilter, Timed};
pub use record::{
    CheckpointRecord, DropRecord, EventLevel, EventRecord, MetricRecord, OutcomeRecord, PhaseRecord,
    SampleKey, SampleRecord, SampleSegment,
};
pub use run::{RunDir, check_arm_name, check_run_name};
pub use schema::SCHEMA_VERSION;
