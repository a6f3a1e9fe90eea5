//! Dataset files: from JSON lines and Parquet to typed rows.
//!
//! The way of the data, in the order of the modules:
//!
//! - [`config`]: the `[data]` section ([`DataConfig`]): which files, what their rows are, in which order;
//! - `source`, with `parquet`, `hub`, [`lines`] and `shuffle`: which files there are, and the objects of one file, one
//!   after the other;
//! - `parse`: from an object to a [`Row`], TRL's dataset types and a few datasets' own; [`messages`]: the
//!   turns of a conversation and their order;
//! - [`row`]: what a row says;
//! - [`rows`]: the rows of a dataset ([`Rows`]), with what was left out and why; [`objects`]: its objects as they
//!   stand, for other readers;
//! - [`prepare`]: from several datasets to one that is worth learning from;
//! - [`error`]: what can go wrong.
//!
//! Rows stream: a file may be larger than memory.

pub mod config;
pub mod error;
pub mod lines;
pub mod messages;
pub mod objects;
mod parse;
pub mod prepare;
pub mod row;
pub mod rows;
mod shuffle;
mod source;

pub use config::{DataConfig, Format, OnError, Split, Template};
pub use error::{DataError, Reason, RowError};
pub use objects::{Object, Objects};
pub use row::Row;
pub use rows::{Counts, Entry, Rows};
