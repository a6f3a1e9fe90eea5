//! An OpenAI-compatible HTTP server on the project's own generation engine.
//!
//! From the request to the answer:
//!
//! - [`server`]: sockets, signals, the end; `routes`: which path does what;
//! - `fields`: a JSON body read field by field, so that each error names its field;
//! - `asked`: what a client asks, validated;
//! - `house`: places for a bounded number of sequences, and the engine on a thread of its own;
//! - `told`: tokens as OpenAI's JSON, whole or in chunks;
//! - [`error`]: refusals as OpenAI's JSON, and why a server does not start.
//!
//! Handlers parse, tokenise and write JSON; tensors never leave the engine's thread. A client that
//! goes away drops the receiving end of its tokens, by which the engine knows.

mod asked;
pub mod error;
mod fields;
mod house;
mod routes;
pub mod server;
mod told;

pub use error::ServeError;
pub use server::{ServeConfig, Server, Stopper};
