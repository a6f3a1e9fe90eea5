//! The running system: actors that pass experience to one another.
//!
//! From the file to the table:
//!
//! - [`experiment`]: an experiment file becomes a validated [`Plan`];
//! - [`run`](mod@run): checks everything, opens the model and the store, starts the conductor, and
//!   returns a [`RunSummary`];
//! - `conductor`: decides what runs next and supervises the others, whom `crew` starts;
//! - the caravan, in the order of the data: `generator` → `reward_worker` → `rejection_sampler` →
//!   the shared buffer → `reference` → `learner`; beside it `evaluator` and `recorder`;
//! - `data_reader`: fills the buffer from a dataset in place of the first three; `examples`: rows as trees;
//! - [`scoring`]: what becomes of completions that cannot be scored;
//! - `wiring`: the bounded queues, the buffer and the published weights that they share;
//! - [`suites`]: the evaluator's benchmarks; [`statistics`], [`summary`]: estimates with intervals, and what the
//!   final table shows;
//! - [`event`]: what a spectator is told; [`faults`]: panics on purpose.
//!
//! Control messages are small and go through mailboxes. Experience goes through bounded queues.
//! Tensors travel in neither. This is the only crate that names ractor and tokio.

mod conductor;
mod crew;
mod data_reader;
pub mod devices;
mod evaluator;
pub mod event;
mod examples;
pub mod experiment;
pub mod faults;
mod generator;
mod learner;
mod recorder;
mod reference;
mod rejection_sampler;
mod reward_worker;
pub mod run;
mod sampling_metrics;
pub mod scoring;
pub mod statistics;
pub mod suites;
pub mod summary;
mod wiring;

pub use event::RunEvent;
pub use experiment::Plan;
pub use faults::{Fault, Role};
pub use run::{RunError, RunOptions, run};
pub use summary::{RunSummary, Status};
