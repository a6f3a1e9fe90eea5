//! What is optimised: scorers, the instructions that can be checked, and prompts that give them.
//!
//! The modules, from the smallest part to the whole:
//!
//! - [`constraint`]: one verifiable instruction ([`Constraint`]): how it is told, how it is checked,
//!   and which others it cannot stand beside;
//! - [`ifeval`]: IFEval's own 25 kinds of instructions, with its official checker's verdicts;
//! - [`math`]: the final answer of a completion, and whether two answers are equal;
//! - [`code`]: whether a completion's code does what tests ask, run in a sandbox;
//! - `checks`: what a prompt gives scorers to check;
//! - [`scorer`]: what makes [`Score`](arriero_buffers::Score)s of a group's completions (the
//!   [`Scorer`] trait, [`RewardConfig`] that chooses one), with a module for each scorer;
//! - [`rows`], [`mod@score_file`]: rows of a file of completions, and scoring the whole file;
//! - [`cancellation`]: ends a scorer's waiting; `client`: JSON over HTTP;
//! - [`instructions`]: the built-in generator of prompts with verifiable instructions;
//! - [`error`]: what can go wrong ([`RewardError`]).
//!
//! The built-in instructions are in the manner of IFEval (Zhou et al., "Instruction-Following Evaluation for
//! Large Language Models", arXiv:2311.07911), cut down to what a small model can do in a short
//! answer. They judge the form of an answer and never its content.

pub mod cancellation;
mod checks;
mod client;
pub mod code;
pub mod constraint;
pub mod error;
pub mod ifeval;
pub mod instructions;
pub mod math;
pub mod rows;
pub mod score_file;
pub mod scorer;

pub use cancellation::CancellationToken;
pub use constraint::{Constraint, Relation};
pub use error::RewardError;
pub use instructions::{InstructionsConfig, Split, generate};
pub use score_file::{FileError, FileOptions, FileReport, OnError, score_file};
pub use scorer::constraints::{ConstraintVerdict, ConstraintsConfig, verdicts};
pub use scorer::contains::ContainsConfig;
pub use scorer::judge::Judge;
pub use scorer::{Outcomes, RewardConfig, Scorer};
