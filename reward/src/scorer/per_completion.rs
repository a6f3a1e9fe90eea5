//! Scorers that look at one completion at a time.

use std::collections::BTreeMap;

use arriero_buffers::{Completion, Group, Prompt, Score};
use serde::{Deserialize, Serialize};

use crate::error::RewardError;
use crate::scorer::{Outcomes, Scorer};

/// A scorer made of a function of one completion and its prompt.
pub(super) struct PerCompletion<F> {
    pub name: &'static str,
    pub score: F,
}

impl<F> Scorer for PerCompletion<F>
where
    F: FnMut(&Prompt, &Completion) -> Result<Score, RewardError> + Send,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn score(&mut self, group: &Group) -> Result<Vec<Score>, RewardError> {
        group.completions.iter().map(|completion| (self.score)(&group.prompt, completion)).collect()
    }

    fn score_groups(&mut self, groups: &[&Group]) -> Vec<Outcomes> {
        let mut outcomes = |group: &&Group| {
            group.completions.iter().map(|completion| (self.score)(&group.prompt, completion)).collect()
        };
        groups.iter().map(&mut outcomes).collect()
    }
}

/// A score with its components.
pub(super) fn score<const N: usize>(reward: f64, components: [(&str, f64); N]) -> Score {
    let components = components.map(|(name, value)| (name.to_string(), value as f32));
    Score { reward: reward as f32, components: BTreeMap::from(components) }
}

/// 1 for true, 0 for false.
pub(super) fn number(holds: bool) -> f64 {
    f64::from(u8::from(holds))
}

/// What a length is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LengthUnit {
    /// The policy's tokens, its end-of-turn tokens included.
    Tokens,
    /// Pieces between white space.
    Words,
    /// Characters (Unicode scalar values).
    Characters,
}

impl LengthUnit {
    /// How long a completion is.
    ///
    /// # Errors
    /// If it has text but no tokens, as rows of a file may, and tokens are to be counted.
    pub(super) fn measure(self, prompt: &Prompt, completion: &Completion) -> Result<usize, RewardError> {
        match self {
            LengthUnit::Tokens => match policy_tokens(completion) {
                0 if !completion.text.is_empty() => Err(RewardError::Completion {
                    prompt: prompt.id,
                    sample: completion.sample,
                    cause: "it has no `tokens` to count; give their ids, or set unit to \"words\" or \"characters\""
                        .to_string(),
                }),
                count => Ok(count),
            },
            LengthUnit::Words => Ok(completion.text.split_whitespace().count()),
            LengthUnit::Characters => Ok(completion.text.chars().count()),
        }
    }
}

/// How many tokens the policy drew. A row of a file does not say who drew its tokens: there all of them count.
fn policy_tokens(completion: &Completion) -> usize {
    match completion.drawn_segments().next() {
        Some(_) => completion.drawn_len(),
        None => completion.tokens().count(),
    }
}
