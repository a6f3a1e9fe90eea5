//! A prompt with its responses, as the learner sees them.

use serde::{Deserialize, Serialize};

use crate::address::Address;

/// One response of a [`Tree`]. `tokens` and `is_context` have one entry a token, the other vectors one entry
/// a token that carries loss; each may be empty where its comment says so.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Branch {
    /// Which of the prompt's samples this is.
    pub sample: u32,
    /// Token ids.
    pub tokens: Vec<u32>,
    /// True where the token carries no loss: it is read, but not learned, such as the turns of others in a
    /// conversation. Empty where all tokens carry loss.
    pub is_context: Vec<bool>,
    /// True where the token is a formatting token (an end-of-turn marker, a header), which Llama 3
    /// leaves out of the DPO loss.
    pub is_format: Vec<bool>,
    /// Log-probabilities under the untempered policy that sampled the response; empty for a response that came
    /// from a file, or was sampled by another than the policy.
    pub behaviour_logps: Vec<f32>,
    /// Log-probabilities under the frozen reference; empty where no reference has scored yet.
    pub reference_logps: Vec<f32>,
    /// Log-probabilities as the trainer computes them under the weights that a stage's training began with:
    /// π_old where it must be told from the sampler's. Empty where the algorithm does not need it.
    pub old_logps: Vec<f32>,
    /// The critic's values under the weights that a stage's training began with: one a token, of the state that it was
    /// drawn in. Empty where there is no critic.
    #[serde(default)]
    pub old_values: Vec<f32>,
    /// log π(y' | x) − log π_ref(y' | x) of another prompt's response y' behind this prompt, as the trainer finds it in a
    /// step: what KTO's KL is estimated from. `None` where the algorithm does not need it.
    #[serde(default)]
    pub mismatched_ratio: Option<f32>,
    /// The scorer's reward.
    pub reward: f32,
    /// True where the token limit cut the response short.
    pub truncated: bool,
}

impl Branch {
    /// Whether the token of this index carries loss.
    pub fn carries_loss(&self, index: usize) -> bool {
        !self.is_context.get(index).copied().unwrap_or(false)
    }

    /// Tokens that carry loss.
    pub fn loss_tokens(&self) -> usize {
        self.tokens.len() - self.is_context.iter().filter(|&&is_context| is_context).count()
    }

    /// Log-probabilities under π_old, the policy that a stage's training began with: the trainer's own where they are
    /// there, else the sampler's.
    pub fn old_policy_logps(&self) -> &[f32] {
        if self.old_logps.is_empty() { &self.behaviour_logps } else { &self.old_logps }
    }
}

/// How much better the chosen answer is: the four strengths of the Llama 3 report (arXiv:2407.21783, 4.2.1),
/// the weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strength {
    /// Marginally better.
    Marginal,
    /// Slightly better.
    Slight,
    /// Better.
    Better,
    /// Significantly better.
    Significant,
}

impl Strength {
    /// Its words in the report.
    pub fn as_str(self) -> &'static str {
        match self {
            Strength::Marginal => "marginally better",
            Strength::Slight => "slightly better",
            Strength::Better => "better",
            Strength::Significant => "significantly better",
        }
    }

    /// Reads "significantly better", "significantly_better", "significant" and their like.
    pub fn parse(text: &str) -> Option<Self> {
        let words = text.trim().to_lowercase().replace(['_', '-'], " ");
        Some(match words.as_str() {
            "significantly better" | "significantly" | "significant" => Strength::Significant,
            "better" => Strength::Better,
            "slightly better" | "slightly" | "slight" => Strength::Slight,
            "marginally better" | "marginally" | "marginal" => Strength::Marginal,
            _ => return None,
        })
    }
}

/// A prompt that stands once, and the responses that branch off it: one for SFT, chosen then
/// rejected for a preference pair (an edited one before them, where people wrote one), n for a group.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Tree {
    /// The stage whose experience it is; empty outside a run.
    #[serde(default)]
    pub address: Address,
    /// [`Prompt::id`](crate::Prompt::id).
    pub prompt_id: u64,
    /// The rendered prompt. Never empty.
    pub prompt: Vec<u32>,
    /// The responses. In a preference pair branch 0 is chosen and branch 1 rejected; a ranking has the best first.
    pub branches: Vec<Branch>,
    /// The oldest weights that drew a token of the branches; `None` where these came from a file.
    #[serde(default)]
    pub version: Option<u32>,
    /// Reward of the prompt's greedy response, which is no branch: ReMax's baseline. `None` where there is none.
    pub greedy_reward: Option<f32>,
    /// Rewards of responses that are no branches, one a branch: of those that Nash-MD's samples stand against. Empty where
    /// there are none.
    #[serde(default)]
    pub rival_rewards: Vec<f32>,
    /// Of a preference: how strong it is, where the data say it.
    #[serde(default)]
    pub strength: Option<Strength>,
    /// Of a preference: by how much the chosen response is better than the rejected one, in rewards, where the data say it.
    #[serde(default)]
    pub margin: Option<f32>,
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

    /// Tokens of the branches that carry loss.
    pub fn loss_tokens(&self) -> usize {
        self.branches.iter().map(Branch::loss_tokens).sum()
    }

    /// The longest sequence: the prompt and its longest branch.
    pub fn longest_sequence(&self) -> usize {
        self.prompt.len() + self.branches.iter().map(|branch| branch.tokens.len()).max().unwrap_or(0)
    }
}
