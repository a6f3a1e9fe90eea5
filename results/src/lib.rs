//! What came of a run. Everything here is plain data: it can be written down and read back.
//!
//! From one answer to the final table:
//!
//! - [`evaluation`]: what a version of the policy did with the held-out prompts ([`Evaluation`], [`PromptOutcome`]);
//! - [`outcome`]: what it did with an item of a benchmark ([`Outcome`]); [`report`]: the benchmark as a whole
//!   ([`Report`]), made of [`figure`]s with standard errors;
//! - [`statistics`]: estimates with 95% intervals ([`Estimate`]);
//! - [`summary`]: an arm and a run in numbers ([`ArmSummary`], [`RunSummary`]): `summary.json`.

pub mod evaluation;
pub mod figure;
mod json_number;
pub mod outcome;
pub mod report;
pub mod statistics;
pub mod summary;

pub use evaluation::{Evaluation, PromptOutcome, SuiteResult};
pub use figure::{Figure, Form};
pub use outcome::{Outcome, Sample};
pub use report::Report;
pub use statistics::Estimate;
pub use summary::{ArmSummary, HeldOut, RunSummary, Status, SuiteFigures};
