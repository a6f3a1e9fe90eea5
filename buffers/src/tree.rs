//! A prompt with its responses, as the learner sees them.

use serde::{Deserialize, Serialize};

/// One response of a [`Tree`]. The vectors have one entry a token, but for `reference_logps`, which
/// is empty until the reference has scored the tree.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Branch {
    /// Which of the prompt's samples this is.
    pub sample: u32,
    /// Token ids.
    pub tokens: Vec<u32>,
    /// True where the token is a formatting token (an end-of-turn marker, a header), which Llama 3
    /// leaves out of the DPO loss.
    pub is_format: Vec<bool>,
    /// Log-probabilities under the untempered policy that sampled the response.
    pub behaviour_logps: Vec<f32>,
    /// Log-probabilities under the frozen reference; empty where no reference has scored yet.
    pub reference_logps: Vec<f32>,
    /// The scorer's reward.
    pub reward: f32,
}

/// A prompt that stands once, and the responses that branch off it: one for SFT, chosen then
/// rejected for a preference pair, n for a group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tree {
    /// [`Prompt::id`](crate::Prompt::id).
    pub prompt_id: u64,
    /// The rendered prompt. Never empty.
    pub prompt: Vec<u32>,
    /// The responses. In a preference pair branch 0 is chosen and branch 1 rejected.
    pub branches: Vec<Branch>,
}

impl Tree {
    /// Tokens on the flat axis: the prompt once, and every branch.
    pub fn len(&self) -> usize {
        self.prompt.len() + self.response_tokens()
    }

    /// True if there is no token at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens of the branches.
    pub fn response_tokens(&self) -> usize {
        self.branches.iter().map(|branch| branch.tokens.len()).sum()
    }

    /// The longest sequence: the prompt and its longest branch.
    pub fn longest_sequence(&self) -> usize {
        self.prompt.len() + self.branches.iter().map(|branch| branch.tokens.len()).max().unwrap_or(0)
    }
}
