//! Experience on the host, and the bounded queues it moves through.
//!
//! The way of the data, in the order of the modules:
//!
//! - [`address`]: where a piece of work belongs: arm, seed, round and stage;
//! - [`prompt`]: what the policy is asked ([`Prompt`], a list of typed [`Message`]s);
//! - [`experience`]: what comes back: a [`Group`] of [`Completion`]s. Their [`Segment`]s are turns, with the provenance
//!   of every token that the policy drew. A scorer makes a [`ScoredGroup`] of it;
//! - [`selection`]: the rejection sampler's rules, one file each, from a scored group to a training [`Tree`];
//! - [`example`]: what a rule sees of a dataset's row, and what it learns from it;
//! - [`tree`]: a prompt with its responses as the learner sees them;
//! - [`buffer`]: the bounded, ordered store of trees from which the learner draws minibatches;
//! - [`queue`]: the bounded queues between the actors, with leases and exact accounting;
//! - [`random`]: counter-based random numbers, keyed by what is drawn and not by when.
//!
//! Everything here is plain serialisable data: no tensors, no threads, no I/O.

pub mod address;
pub mod buffer;
pub mod example;
pub mod experience;
pub mod prompt;
pub mod queue;
pub mod random;
pub mod selection;
pub mod tree;

pub use address::Address;
pub use buffer::{BufferError, ExperienceBuffer};
pub use example::{RowContent, TrainingExample};
pub use experience::{Completion, Drawn, Finish, Group, Score, ScoredGroup, Segment, UnevenSegment};
pub use prompt::{Message, Prompt, Role, ToolCall};

pub use queue::{Leased, PushError, Queue, QueueStats};
pub use selection::{Selection, SelectionConfig, SelectionRule, select};
pub use tree::{Branch, Strength, Tree};
