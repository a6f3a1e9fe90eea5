//! Reading a run.
//!
//! - [`run`]: the folder of a run ([`RunReader`]): its experiment, its summary, its arms;
//! - [`arm`]: the records of one arm and seed ([`ArmReader`]), as what they were written as;
//! - [`filter`]: which of them.
//!
//! A reader takes no lock that a writer waits for. It sees what was committed; a running arm is at most a second ahead.
//! A run of schema 1 is read through views that look like the tables of today. What it did not record has defaults,
//! which [`Timed::time`] and the methods of [`ArmReader`] name.

pub mod arm;
mod files;
pub mod filter;
pub mod run;

pub use arm::{ArmReader, Phase, Point, Timed};
pub use filter::{MetricFilter, SampleFilter};
pub use run::{ArmFolder, RunReader};
