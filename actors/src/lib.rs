//! The running system: actors that pass experience to one another.
//!
//! From a plan to its summary:
//!
//! - [`run`](mod@run): checks everything, opens the model and the store, starts the conductor, and returns a summary;
//! - [`schedule`]: the order of a run as a state machine without actors: what happened goes in, what is to be done
//!   comes out. `conductor`: the actor that does it, and supervises the others. `crew` starts these;
//! - the caravan, in the order of the data: `generator` → `reward_worker` → `rejection_sampler` →
//!   the shared buffer → `reference` → `learner`; `data_reader` fills the buffer from a dataset in place of the first
//!   three; beside it `evaluator`, with `suites`, and `recorder`;
//! - what they say: [`job`], what is asked of them; [`report`], what they tell the conductor; [`record`], what they tell
//!   the recorder; [`event`], what a spectator is told. All of it has an address;
//! - `context`: the bounded queues, the buffer and the published weights that they share, with `groups` and `shutdown`;
//! - [`role`]: who they are; [`faults`]: panics on purpose; [`error`]: why a run did not complete.
//!
//! Imports go one way, from each line to those below it. Control messages are small and go through mailboxes.
//! Experience goes through bounded queues. Tensors travel in neither. This is the only crate that names ractor.

mod conductor;
mod context;
mod crew;
mod data_reader;
pub mod error;
mod evaluator;
pub mod event;
pub mod faults;
mod generator;
mod groups;
pub mod job;
mod learner;
pub mod record;
mod recorder;
mod reference;
mod rejection_sampler;
pub mod report;
mod reward_worker;
pub mod role;
pub mod run;
pub mod schedule;
mod shutdown;
mod suites;

pub use error::RunError;
pub use event::RunEvent;
pub use faults::Fault;
pub use role::ActorRole;
pub use run::{RunOptions, run};
