//! The run on disk.
//!
//! ```text
//! runs/<name>/experiment.toml          what was asked, every default written out
//!             summary.json             what came of it
//!             <arm>/<seed>/experiment.toml
//!                          run.db      metrics, events, samples, drops and checkpoints (SQLite)
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
//! - [`record`]: what is recorded: [`MetricRecord`], [`SampleRecord`], [`EventLevel`];
//! - [`database`]: the tables of `run.db`;
//! - [`tensorboard`]: TensorBoard's event files;
//! - [`files`]: files that are replaced whole ([`atomic_write`]), free space;
//! - [`error`]: what can go wrong, and what to do about it.
//!
//! The process may be killed at any time. What was committed stays; of the rest, at most the last
//! second is lost, and at most the last line of `metrics.jsonl` is cut short.

pub mod arm;
pub mod database;
pub mod error;
pub mod files;
pub mod record;
pub mod run;
pub mod tensorboard;

pub use arm::ArmStore;
pub use error::StoreError;
pub use files::atomic_write;
pub use record::{EventLevel, MetricRecord, SampleKey, SampleRecord};
pub use run::{RunDir, check_arm_name, check_run_name};
