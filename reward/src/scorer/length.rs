//! Whether a completion is as long as it should be, and the soft penalty for what is too long.

use arriero_buffers::{Completion, Prompt};
use serde::{Deserialize, Serialize};

use super::per_completion::{LengthUnit, PerCompletion, number, score};
use super::{Scorer, ScorerConfig};
use crate::error::RewardError;

/// The options of the `length` reward.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LengthConfig {
    /// What is counted. Default words.
    pub unit: LengthUnit,
    /// The least length that earns the whole reward. Default 0.
    pub min: usize,
    /// The greatest length that does. Default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<usize>,
    /// Over how much beyond either bound the reward falls to 0, in a straight line. Default 0: at
    /// once.
    pub slope: usize,
}

impl Default for LengthConfig {
    fn default() -> Self {
        LengthConfig { unit: LengthUnit::Words, min: 0, max: None, slope: 0 }
    }
}

impl ScorerConfig for LengthConfig {
    fn validate(&self) -> Result<(), String> {
        match self.max {
            None if self.min == 0 => {
                Err("min is 0 and max is not given: every length would do; give one".to_string())
            }
            Some(max) if max < self.min => {
                Err(format!("max is {max}, but must be at least min, {}", self.min))
            }
            _ => Ok(()),
        }
    }

    /// Reward 1 within the bounds.
    fn scorer(&self) -> Result<Box<dyn Scorer>, RewardError> {
        let config = self.clone();
        Ok(Box::new(PerCompletion {
            name: "length",
            score: move |prompt: &Prompt, completion: &Completion| {
                let length = config.unit.measure(prompt, completion)?;
                let over = config.max.map_or(0, |max| length.saturating_sub(max));
                let outside = config.min.saturating_sub(length).max(over);
                let reward = match outside {
                    0 => 1.0,
                    _ if config.slope == 0 => 0.0,
                    outside => (1.0 - outside as f64 / config.slope as f64).max(0.0),
                };
                Ok(score(reward, [("length", length as f64), ("length_in_bounds", number(outside == 0))]))
            },
        }))
    }
}

/// The options of the `soft_overlong` reward. Source: DAPO (Yu et al., arXiv:2503.14476), eq. 13; the
/// options have the names of TRL's `get_soft_overlong_punishment`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SoftOverlongConfig {
    /// L_max, the length from which on the penalty is −1. No default: it must be given.
    pub max_completion_len: usize,
    /// L_cache: so far below it the penalty begins. No default: it must be given.
    pub soft_punish_cache: usize,
    /// What is counted. Default tokens.
    pub unit: LengthUnit,
}

impl Default for SoftOverlongConfig {
    fn default() -> Self {
        SoftOverlongConfig { max_completion_len: 0, soft_punish_cache: 0, unit: LengthUnit::Tokens }
    }
}

impl ScorerConfig for SoftOverlongConfig {
    fn validate(&self) -> Result<(), String> {
        let SoftOverlongConfig { max_completion_len: max, soft_punish_cache: cache, .. } = *self;
        if max == 0 {
            return Err("max_completion_len must be given, at least 1".to_string());
        }
        if !(1..=max).contains(&cache) {
            return Err(format!(
                "soft_punish_cache is {cache}, but must be from 1 to max_completion_len, {max}"
            ));
        }
        Ok(())
    }

    /// Reward 0 up to L_max − L_cache, from there in a straight line to −1 at L_max.
    fn scorer(&self) -> Result<Box<dyn Scorer>, RewardError> {
        let SoftOverlongConfig { max_completion_len: max, soft_punish_cache: cache, unit } = *self;
        Ok(Box::new(PerCompletion {
            name: "soft_overlong",
            score: move |prompt: &Prompt, completion: &Completion| {
                let length = unit.measure(prompt, completion)?;
                let over = length.saturating_sub(max - cache) as f64 / cache as f64;
                // No "-0": the penalty of a short one is 0.
                let penalty = 0.0 - over.min(1.0);
                Ok(score(penalty, [("length", length as f64), ("overlong_penalty", penalty)]))
            },
        }))
    }
}

#[cfg(test)]
mod tests {
    use arriero_buffers::{Finish, Role, Segment};
    use serde_json::Value;

    use super::super::group;
    use super::*;

    fn rewards(mut scorer: Box<dyn Scorer>, texts: &[&str]) -> Vec<f32> {
        let texts: Vec<(&str, Finish)> = texts.iter().map(|text| (*text, Finish::EndOfTurn)).collect();
        scorer.score(&group(Value::Null, &texts)).expect("scores").iter().map(|score| score.reward).collect()
    }

    #[test]
    fn the_reward_falls_outside_the_bounds() {
        let texts = ["", "a", "a b", "a b c", "a b c d", "a b c d e f"];
        let config = LengthConfig { min: 2, max: Some(3), ..LengthConfig::default() };
        assert_eq!(rewards(config.scorer().expect("valid"), &texts), [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]);
        let sloped = LengthConfig { slope: 2, ..config };
        assert_eq!(rewards(sloped.scorer().expect("valid"), &texts), [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]);
    }

    #[test]
    fn the_penalty_is_that_of_equation_13() {
        let config =
            SoftOverlongConfig { max_completion_len: 10, soft_punish_cache: 4, unit: LengthUnit::Characters };
        let texts = ["", "123456", "1234567", "12345678", "1234567890", "1234567890123"];
        let expected = [0.0, 0.0, -0.25, -0.5, -1.0, -1.0];
        assert_eq!(rewards(config.scorer().expect("valid"), &texts), expected);
        assert!(rewards(config.scorer().expect("valid"), &[""])[0].is_sign_positive());
    }

    #[test]
    fn tokens_are_counted_where_there_are_some() {
        let mut group = group(Value::Null, &[("a b", Finish::EndOfTurn)]);
        let config = LengthConfig { unit: LengthUnit::Tokens, min: 1, max: Some(1), slope: 0 };
        assert_eq!(config.scorer().expect("valid").score(&group).expect("one token")[0].reward, 1.0);
        group.completions[0].segments.clear();
        let error = config.scorer().expect("valid").score(&group).expect_err("no tokens").to_string();
        assert!(error.contains("prompt 7, sample 0") && error.contains("\"words\""), "{error}");
    }

    /// What a tool said between two turns is not the policy's.
    #[test]
    fn only_tokens_that_the_policy_drew_are_counted() {
        let mut group = group(Value::Null, &[("a b c", Finish::EndOfTurn)]);
        let completion = &mut group.completions[0];
        completion.segments.clear();
        completion.push(5, -1.0, -1.0, 0);
        completion.segments.push(Segment::inserted(Role::Tool, vec![6; 40]));
        completion.push(7, -1.0, -1.0, 0);
        let config = LengthConfig { unit: LengthUnit::Tokens, min: 2, max: Some(2), slope: 0 };
        assert_eq!(config.scorer().expect("valid").score(&group).expect("two tokens")[0].reward, 1.0);
    }

    #[test]
    fn bounds_that_cannot_be_are_refused() {
        for config in
            [LengthConfig::default(), LengthConfig { min: 3, max: Some(2), ..LengthConfig::default() }]
        {
            assert!(config.validate().is_err(), "{config:?}");
        }
        for (max, cache) in [(0, 0), (10, 0), (10, 11)] {
            let config = SoftOverlongConfig {
                max_completion_len: max,
                soft_punish_cache: cache,
                ..Default::default()
            };
            assert!(config.validate().is_err(), "{config:?}");
        }
    }
}
