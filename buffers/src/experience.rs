//! What comes back from the policy and from the scorers.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::prompt::{Prompt, Role};

/// Why a completion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model gave an end-of-turn token, which is the last of the completion's tokens.
    EndOfTurn,
    /// A stop string came. The completion's tokens go on to its end, its text ends before it.
    Stop,
    /// The token limit was reached.
    Length,
}

/// A stretch of a trajectory that one speaker is responsible for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Segment {
    /// Who speaks.
    pub role: Role,
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Where the tokens came from, if the policy drew them. `None` where they were inserted: a tool's result, a
    /// user's turn.
    pub drawn: Option<Drawn>,
}

/// The provenance of tokens that the policy drew. Each vector has one entry a token.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Drawn {
    /// Log-probability (nats) under the untempered, untruncated model.
    pub logps: Vec<f32>,
    /// Log-probability (nats) under the distribution that was sampled from (after temperature,
    /// top-k, top-p and min-p). 0 for greedy decoding.
    pub sampled_logps: Vec<f32>,
    /// Version of the weights that gave the token.
    pub weight_versions: Vec<u32>,
}

/// One sampled continuation of a prompt, with the provenance of each token.
///
/// The four vectors have one entry a token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Completion {
    /// Which of the prompt's samples this is, from 0; it keys the random numbers.
    pub sample: u32,
    /// Token ids, the end-of-turn token included where the model gave one.
    pub tokens: Vec<u32>,
    /// Log-probability (nats) under the untempered, untruncated model.
    pub logps: Vec<f32>,
    /// Log-probability (nats) under the distribution that was sampled from (after temperature,
    /// top-k, top-p and min-p). 0 for greedy decoding.
    pub sampled_logps: Vec<f32>,
    /// Version of the weights that gave the token.
    pub weight_versions: Vec<u32>,
    /// The text, without special tokens.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
}

/// All completions of one prompt in one round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// What was asked.
    pub prompt: Arc<Prompt>,
    /// The rendered prompt, as the policy saw it.
    pub prompt_tokens: Vec<u32>,
    /// The samples, ordered by [`Completion::sample`].
    pub completions: Vec<Completion>,
}

impl Group {
    /// True if weights of this version drew all tokens.
    pub fn is_of_version(&self, version: u32) -> bool {
        self.completions.iter().flat_map(|completion| &completion.weight_versions).all(|&own| own == version)
    }
}

/// What a scorer says of one completion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// The number that is optimised.
    pub reward: f32,
    /// The parts it is made of, by name; each becomes a metric of its own.
    pub components: BTreeMap<String, f32>,
}

/// A group with a score for each of its completions, in the same order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScoredGroup {
    /// The completions.
    pub group: Group,
    /// Their scores.
    pub scores: Vec<Score>,
}

impl ScoredGroup {
    /// The rewards, in the order of the completions.
    pub fn rewards(&self) -> impl Iterator<Item = f32> + '_ {
        self.scores.iter().map(|score| score.reward)
    }
}
