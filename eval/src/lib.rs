//! Benchmarks: suites of questions, asked and judged, with figures that have standard errors.
//!
//! The way of a suite, in the order of the modules:
//!
//! - [`config`]: which suite, from which file, with which options ([`SuiteConfig`], [`Kind`]);
//!   [`assign`]: the same from a command line;
//! - `rows`: the rows of the file, each of which is an item, an example, or refused by name;
//! - `question`: an item as the tokens that a model is given;
//! - `suites`, with a module a kind: from a row to what the model is asked, and from its answer to an
//!   [`Outcome`];
//! - [`evaluation`]: the work in small steps ([`Evaluation`]): generation, log-probabilities or scores in packed
//!   batches;
//! - what comes of it is plain data of `arriero_results` ([`Outcome`], [`Report`]), `parts` has small parts of that;
//!   [`record`]: the same as rows of a run store;
//! - [`error`]: what can go wrong ([`EvalError`]).
//!
//! Nothing is scored silently. What cannot be read, asked or judged is named. It stops the suite, or is left out and
//! counted.

pub mod assign;
pub mod config;
pub mod error;
pub mod evaluation;
mod parts;
mod question;
pub mod record;
mod rows;
mod suites;

pub use arriero_results::{Figure, Form, Outcome, Report, Sample};
pub use config::{Kind, SuiteConfig};
pub use error::EvalError;
pub use evaluation::{EvaluatedModel, Evaluation};
