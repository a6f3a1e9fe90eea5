//! What becomes of completions that a scorer cannot score.

use std::collections::BTreeMap;

use arriero_buffers::Score;
use arriero_reward::{OnError, Outcomes, RewardError};
use serde::{Deserialize, Serialize};

/// What stands beside the scorer in `[reward]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Unscored {
    /// What a completion that cannot be scored does: stop the run, or be left out and counted. Default stop.
    pub on_error: OnError,
    /// The greatest share of a phase's completions that may be left out, from 0 to 1. Default 0.1.
    pub max_skipped: f64,
}

impl Default for Unscored {
    fn default() -> Self {
        Unscored { on_error: OnError::Stop, max_skipped: 0.1 }
    }
}

impl Unscored {
    /// Checks the range.
    ///
    /// # Errors
    /// A sentence that begins with the option's name, and tells its value and its range.
    pub fn validate(&self) -> Result<(), String> {
        match self.max_skipped {
            share if (0.0..=1.0).contains(&share) => Ok(()),
            share => Err(format!("max_skipped is {share}; it must be from 0 to 1")),
        }
    }

    /// A score for each completion, and why some have none. These get NaN as reward, and selection leaves them out.
    ///
    /// # Errors
    /// The first failure, if completions that cannot be scored stop the run, or if the failure is not of one
    /// completion.
    pub fn scores(self, outcomes: Outcomes) -> Result<(Vec<Score>, Vec<String>), RewardError> {
        let mut causes = Vec::new();
        let mut score = |outcome: Result<Score, RewardError>| match outcome {
            Ok(score) => Ok(score),
            // What is not about one completion is no better with the next.
            Err(error @ (RewardError::Config(_) | RewardError::Interrupted)) => Err(error),
            Err(error) if self.on_error == OnError::Stop => Err(error),
            Err(error) => {
                causes.push(error.to_string());
                Ok(Score { reward: f32::NAN, components: BTreeMap::new() })
            }
        };
        let scores = outcomes.into_iter().map(&mut score).collect::<Result<_, _>>()?;
        Ok((scores, causes))
    }

    /// Why the run cannot go on, if more than the share is left out.
    pub fn too_many(self, skipped: usize, all: usize, last: &str) -> Option<String> {
        (skipped as f64 > self.max_skipped * all as f64).then(|| {
            format!(
                "{skipped} of {all} completions could not be scored, more than the share of {} that reward.max_skipped \
                 allows; the last one: {last}",
                self.max_skipped
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_scored_as_zero() {
        let score = Score { reward: 0.5, components: BTreeMap::new() };
        let failed = |cause: &str| RewardError::Completion { prompt: 1, sample: 2, cause: cause.to_string() };
        let outcomes = || vec![Ok(score.clone()), Err(failed("odd"))];
        assert_eq!(Unscored::default().scores(outcomes()), Err(failed("odd")));
        let skip = Unscored { on_error: OnError::Skip, max_skipped: 0.5 };
        let (scores, causes) = skip.scores(outcomes()).expect("skipped");
        assert!(scores[0] == score && scores[1].reward.is_nan() && scores[1].components.is_empty());
        assert_eq!(causes, ["prompt 1, sample 2: odd"]);
        for always in [RewardError::Interrupted, RewardError::Config("no".to_string())] {
            assert_eq!(skip.scores(vec![Err(always.clone())]), Err(always));
        }
        assert_eq!(skip.too_many(1, 2, "odd"), None);
        assert!(skip.too_many(2, 3, "odd").expect("too many").contains("2 of 3 completions"));
    }
}
