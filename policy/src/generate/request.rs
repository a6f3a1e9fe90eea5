//! What the engine is asked, and what it answers.

use std::sync::Arc;

use arriero_buffers::{Completion, Finish};

use crate::sampling::{Alternative, Draw, SamplingConfig};

/// What is to be completed, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The prompt.
    pub tokens: Vec<u32>,
    /// Completions of it.
    pub samples: usize,
    /// How tokens are drawn, and what ends a completion.
    pub sampling: SamplingConfig,
    /// Tokens that end a completion, of which they are the last; usually [`crate::tokenizer::Tokenizer::eos_ids`].
    pub end_tokens: Vec<u32>,
    /// Keys the random numbers, with `prompt_id` and the number of the sample.
    pub seed: u64,
    /// See `seed`; names the prompt in errors, too.
    pub prompt_id: u64,
    /// Take the most probable tokens for the last sample, whatever `sampling` says.
    pub greedy_last: bool,
    /// How many samples, the last ones, are drawn from the mixture of the engine's two models; 0 without a second one. Their
    /// log-probabilities are the mixture's: tempered and not.
    pub mixed: usize,
    /// Report each token as it is drawn, through [`super::Engine::take_drawn`].
    pub report: bool,
    /// The most probable tokens to report with each; for requests that report.
    pub alternatives: usize,
}

/// One token of a request that reports.
#[derive(Debug, Clone, PartialEq)]
pub struct DrawnToken {
    /// As [`super::Engine::submit`] gave it.
    pub request_id: u64,
    /// Which of the request's samples, from 0.
    pub sample: u32,
    /// The token and its log-probabilities.
    pub draw: Draw,
    /// The most probable tokens in its place, the first one first.
    pub alternatives: Vec<Alternative>,
    /// The text that this token completes: none while a character, or what may become a stop string,
    /// is incomplete. A sample's texts make the completion's.
    pub text: String,
    /// Why the completion ended, with its last token.
    pub finish: Option<Finish>,
}

/// A request with all its completions.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// As [`super::Engine::submit`] gave it.
    pub request_id: u64,
    /// What was asked.
    pub request: Arc<Request>,
    /// The samples, ordered by [`Completion::sample`].
    pub completions: Vec<Completion>,
}
