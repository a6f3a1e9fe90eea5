//! Experiment files: from TOML to a validated [`Plan`], and what is checked before anything runs.
//!
//! The way of a file:
//!
//! - [`load()`]: reads a file with `--set` on top of it, section by section, into a [`Plan`];
//! - `document`: the file with the positions of its keys. Its sections are read key by key, and complain about what is
//!   left over; [`error`]: what is wrong, with line and key;
//! - a module a section: `mode`, `model`, `devices`, `prompts`, `data`, `reward` (with `unscored`), `generator`,
//!   `selection`, `evaluation`; `stages` and `averages` read the arms;
//! - [`plan`], with [`arm`] and [`average`]: the result, in which nothing is left open; `resolve` writes it out as TOML;
//! - [`preflight()`]: what else can be wrong, found before weights are read: the model's headers, devices, prompts that do
//!   not fit, rows that an algorithm has no use for; [`examples`]: rows as what an algorithm learns from;
//! - [`preparation`]: the file of `arriero data prepare`.
//!
//! No actors, and no tensors but what reading headers and tokenisers needs.

pub mod arm;
pub mod average;
mod averages;
pub mod data;
pub mod devices;
mod document;
pub mod error;
pub mod evaluation;
pub mod examples;
pub mod generator;
mod load;
pub mod mode;
pub mod model;
pub mod plan;
pub mod preflight;
pub mod preparation;
pub mod prompts;
mod resolve;
mod reward;
mod selection;
mod stages;
pub mod unscored;

pub use arm::{Arm, ArmStage, ExperienceOf, ReferenceWeights, ScoredBy, Stage, StartFrom};
pub use average::{AverageSource, AverageStage};
pub use data::{DataPlan, ExampleConfig, TooLong, read_data};
pub use devices::{Computes, DevicePlan};
pub use document::nearest;
pub use error::{ExperimentError, PreflightError};
pub use evaluation::EvaluationPlan;
pub use generator::GeneratorPlan;
pub use load::load;
pub use mode::Mode;
pub use model::ModelPlan;
pub use plan::{CheckpointPlan, Plan};
pub use preflight::{Preflight, preflight};
pub use preparation::{PreparationPlan, read_preparation};
pub use prompts::{PromptData, PromptFiles, PromptSet, PromptSource, Prompts, Split, read_prompts};
pub use reward::read_reward;
pub use unscored::Unscored;

#[cfg(test)]
mod tests;
