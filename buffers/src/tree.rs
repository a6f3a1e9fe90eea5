//! A prompt with its responses, as the learner sees them.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::address::Address;
use crate::experience::{Completion, Finish};

/// One response of a [`Tree`].
///
/// `tokens` and `is_context` have one entry a token. Every other vector has one entry a token that carries loss, a
/// *loss token*. Each may be empty where its comment says so. A vector of several branches is flat: one entry a loss
/// token, branch after branch. [`Branch::split_by_loss_tokens`] cuts it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Branch {
    /// Which of the prompt's samples this is.
    pub sample: u32,
    /// Token ids.
    pub tokens: Vec<u32>,
    /// True where the token carries no loss: it is read and not learned, such as the turns of others in a conversation.
    /// Empty where all tokens carry loss.
    pub is_context: Vec<bool>,
    /// True where the token is a formatting token (an end-of-turn marker, a header), which Llama 3
    /// leaves out of the DPO loss.
    pub is_format: Vec<bool>,
    /// Log-probabilities under the untempered policy that sampled the response. Empty for a response that came from a
    /// file, or from another sampler than the policy.
    pub behaviour_logps: Vec<f32>,
    /// Log-probabilities under the frozen reference; empty where no reference has scored yet.
    pub reference_logps: Vec<f32>,
    /// Log-probabilities as the trainer computes them under the weights that a stage's training began with:
    /// π_old where it must be told from the sampler's. Empty where the algorithm does not need it.
    pub old_logps: Vec<f32>,
    /// The critic's values under the weights that a stage's training began with. A token has the value of the state in
    /// which it was drawn. Empty where there is no critic.
    #[serde(default)]
    pub old_values: Vec<f32>,
    /// log π(y' | x) − log π_ref(y' | x), with y' a response to another prompt. The trainer computes it in a step, and
    /// KTO estimates its KL from it. `None` where the algorithm does not need it.
    #[serde(default)]
    pub mismatched_ratio: Option<f32>,
    /// The scorer's reward.
    pub reward: f32,
    /// True where the token limit cut the response short.
    pub truncated: bool,
}

impl Branch {
    /// The branch of a completion, without a reward yet. What the policy drew carries loss; everything else is context.
    /// `is_format` tells formatting tokens from text.
    pub fn of(completion: &Completion, is_format: impl Fn(u32) -> bool) -> Self {
        let is_inserted = |segment: &crate::Segment| segment.drawn.is_none();
        let is_context = match completion.segments.iter().any(is_inserted) {
            true => {
                let marks = completion.segments.iter();
                marks.flat_map(|segment| vec![is_inserted(segment); segment.tokens.len()]).collect()
            }
            false => Vec::new(),
        };
        Branch {
            sample: completion.sample,
            tokens: completion.tokens().collect(),
            is_context,
            is_format: completion.drawn_tokens().map(is_format).collect(),
            behaviour_logps: completion.logps().collect(),
            truncated: completion.finish == Finish::Length,
            ..Branch::default()
        }
    }

    /// Where each branch's entries stand in a flat vector of one entry a loss token.
    pub fn loss_token_ranges<'b>(
        branches: impl IntoIterator<Item = &'b Branch>,
    ) -> impl Iterator<Item = Range<usize>> {
        branches.into_iter().scan(0, |end, branch| {
            let start = *end;
            *end += branch.loss_tokens();
            Some(start..*end)
        })
    }

    /// Cuts a flat vector of one entry a loss token into one piece a branch.
    ///
    /// # Panics
    /// If `flat` has fewer entries than the branches have loss tokens.
    pub fn split_by_loss_tokens<'b, 'v, T>(
        branches: impl IntoIterator<Item = &'b Branch>,
        flat: &'v [T],
    ) -> impl Iterator<Item = &'v [T]> {
        Branch::loss_token_ranges(branches).map(|range| &flat[range])
    }

    /// Whether the token of this index carries loss.
    pub fn carries_loss(&self, index: usize) -> bool {
        !self.is_context.get(index).copied().unwrap_or(false)
    }

    /// How many tokens carry loss.
    pub fn loss_tokens(&self) -> usize {
        self.tokens.len() - self.is_context.iter().filter(|&&is_context| is_context).count()
    }

    /// Log-probabilities under π_old, the policy that a stage's training began with: the trainer's where there are any,
    /// else the sampler's.
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

/// A prompt that stands once, and the responses that branch off it. SFT has one, a group n. A preference pair has the
/// chosen one, then the rejected one; before them an edited one, where people wrote one.
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
    /// Rewards of the rivals that Nash-MD's samples stand against, one a branch. The rivals are no branches themselves.
    /// Empty where there are none.
    #[serde(default)]
    pub rival_rewards: Vec<f32>,
    /// Of a preference: how strong it is, where the data say it.
    #[serde(default)]
    pub strength: Option<Strength>,
    /// Of a preference: how much better the chosen response is than the rejected one, in rewards, where the data say
    /// it.
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::experience::Segment;
    use crate::prompt::Role;

    /// Drawn, a tool's result, drawn.
    fn two_turns() -> Completion {
        let mut completion = Completion::empty(4);
        completion.push(10, -1.0, -0.5, 3);
        completion.push(2, -2.0, -0.5, 3);
        completion.segments.push(Segment::inserted(Role::Tool, vec![90, 91, 2]));
        completion.push(11, -4.0, -0.25, 4);
        completion.push(2, -8.0, -0.25, 4);
        completion.finish = Finish::EndOfTurn;
        completion
    }

    #[test]
    fn what_the_policy_drew_carries_loss_and_what_was_inserted_does_not() {
        let branch = Branch::of(&two_turns(), |token| token == 2);
        assert_eq!(branch.tokens, [10, 2, 90, 91, 2, 11, 2]);
        assert_eq!(branch.is_context, [false, false, true, true, true, false, false]);
        assert_eq!(branch.loss_tokens(), 4);
        // Of drawn tokens only.
        assert_eq!(branch.behaviour_logps, [-1.0, -2.0, -4.0, -8.0]);
        assert_eq!(branch.is_format, [false, true, false, true]);
        assert_eq!((branch.sample, branch.truncated), (4, false));
        let with_loss = (0..branch.tokens.len()).filter(|&index| branch.carries_loss(index));
        let with_loss: Vec<u32> = with_loss.map(|index| branch.tokens[index]).collect();
        assert_eq!(with_loss, two_turns().drawn_tokens().collect::<Vec<_>>());
    }

    #[test]
    fn a_single_turn_has_no_context() {
        let mut completion = Completion::empty(1);
        completion.push(10, -1.0, -0.5, 0);
        completion.push(11, -2.0, -0.5, 0);
        let expected = Branch {
            sample: 1,
            tokens: vec![10, 11],
            is_format: vec![false; 2],
            behaviour_logps: vec![-1.0, -2.0],
            truncated: true,
            ..Branch::default()
        };
        assert_eq!(Branch::of(&completion, |_| false), expected);
    }

    proptest! {
        /// The pieces are as long as the branches have loss tokens, and make the whole again.
        #[test]
        fn a_flat_vector_is_cut_by_loss_tokens(marks in prop::collection::vec(prop::collection::vec(any::<bool>(), 0..6), 0..6)) {
            let branch = |is_context: &Vec<bool>| Branch {
                tokens: vec![7; is_context.len()],
                // As everywhere: none where all carry loss.
                is_context: if is_context.contains(&true) { is_context.clone() } else { Vec::new() },
                ..Branch::default()
            };
            let branches: Vec<Branch> = marks.iter().map(branch).collect();
            let with_loss = |marks: &Vec<bool>| marks.iter().filter(|&&is_context| !is_context).count();
            let lengths: Vec<usize> = marks.iter().map(with_loss).collect();
            let flat: Vec<usize> = (0..lengths.iter().sum()).collect();
            let pieces: Vec<&[usize]> = Branch::split_by_loss_tokens(&branches, &flat).collect();
            prop_assert_eq!(pieces.iter().map(|piece| piece.len()).collect::<Vec<_>>(), lengths);
            prop_assert_eq!(pieces.concat(), flat);
        }
    }
}
