//! An OpenAI-compatible HTTP server on the project's own generation engine.
//!
//! From the request to the answer:
//!
//! - [`server`]: sockets, signals, the end; `routes`: which path does what;
//! - `fields`: a JSON body read field by field, so that each error names its field;
//! - `request`: a client's request, validated;
//! - `scheduler`: slots for a bounded number of sequences, and the engine on a thread of its own;
//! - `response`: the engine's tokens as OpenAI's JSON, whole or as a stream of chunks;
//! - [`error`]: errors of a request as OpenAI's JSON, and why a server does not start.
//!
//! Handlers parse, tokenise and write JSON. Tensors never leave the engine's thread. A client that goes away drops the
//! receiving end of its tokens. So the engine knows that it is gone.

pub mod error;
mod fields;
mod request;
mod response;
mod routes;
mod scheduler;
pub mod server;

pub use error::ServeError;
pub use server::{ServeConfig, Server, ShutdownHandle};
