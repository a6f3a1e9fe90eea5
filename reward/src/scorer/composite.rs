//! Several scorers as one: clipped, normalised, weighted, added up.

use std::collections::BTreeMap;

use arriero_buffers::{Group, Prompt, Score};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Outcomes, RewardConfig, Scorer, ScorerConfig};
use crate::cancellation::CancellationToken;
use crate::error::RewardError;

/// What is added to a deviation before it divides.
const EPSILON: f64 = 1e-4;

/// How a part's rewards are brought to one scale.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalise {
    /// As they are.
    #[default]
    None,
    /// Less the mean of the prompt's completions, divided by their (unbiased) deviation: GDPO
    /// (arXiv:2601.05242), TRL's `normalize_then_sum`.
    Group,
}

/// One scorer of several.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartConfig {
    /// What its components are called. Default its kind.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// What its reward is multiplied by. Default 1; below 0 makes it a penalty.
    #[serde(default = "one")]
    pub weight: f64,
    /// The least and the greatest reward that counts. Default none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip: Option<[f64; 2]>,
    /// How it is brought to one scale with the others, after clipping. Default none.
    #[serde(default)]
    pub normalise: Normalise,
    /// The scorer: a kind and its options.
    pub reward: RewardConfig,
}

/// What the parts so far add up to, and their components.
type Sum = (f64, BTreeMap<String, f32>);

fn one() -> f64 {
    1.0
}

impl PartConfig {
    fn name(&self) -> &str {
        if self.name.is_empty() { self.reward.kind() } else { &self.name }
    }

    /// Adds what the part's scorer says of a group's completions to their sums.
    fn add(&self, sums: &mut [Result<Sum, RewardError>], outcomes: Outcomes) {
        let reward = |outcome: &Result<Score, RewardError>| {
            outcome.as_ref().map_or(f64::NAN, |score| clipped(f64::from(score.reward), self.clip))
        };
        let mut rewards: Vec<f64> = outcomes.iter().map(reward).collect();
        if self.normalise == Normalise::Group {
            normalise(&mut rewards);
        }
        let name = self.name();
        for ((sum, outcome), reward) in sums.iter_mut().zip(outcomes).zip(rewards) {
            let score = match outcome {
                Ok(score) => score,
                Err(error) => {
                    if sum.is_ok() {
                        *sum = Err(error);
                    }
                    continue;
                }
            };
            let Ok((total, components)) = sum else { continue };
            *total += self.weight * reward;
            components.insert(name.to_string(), score.reward);
            components.insert(format!("{name}/weighted"), (self.weight * reward) as f32);
            let own = score.components.into_iter();
            components.extend(own.map(|(component, value)| (format!("{name}/{component}"), value)));
        }
    }
}

/// The options of the `composite` reward.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CompositeConfig {
    /// The least and the greatest reward of the sum. Default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<[f64; 2]>,
    /// The scorers, at least one.
    pub parts: Vec<PartConfig>,
}

impl ScorerConfig for CompositeConfig {
    fn validate(&self) -> Result<(), String> {
        if self.parts.is_empty() {
            return Err("parts is empty, but must have at least one { reward = { kind = … } }".to_string());
        }
        check_clip(self.clip)?;
        for (index, part) in self.parts.iter().enumerate() {
            let name = part.name();
            let at = |cause: String| format!("part {} ({name}): {cause}", index + 1);
            if self.parts[..index].iter().any(|earlier| earlier.name() == name) {
                return Err(at("an earlier part has this name; give each its own `name`".to_string()));
            }
            if !part.weight.is_finite() {
                return Err(at(format!("weight is {}, but must be a number", part.weight)));
            }
            check_clip(part.clip).map_err(at)?;
            part.reward.validate().map_err(at)?;
        }
        Ok(())
    }

    fn check_prompt(&self, prompt: &Prompt) -> Result<(), RewardError> {
        self.parts.iter().try_for_each(|part| part.reward.check_prompt(prompt))
    }

    fn check_names(&self) -> Vec<&'static str> {
        self.parts.iter().flat_map(|part| part.reward.check_names()).collect()
    }

    fn compares_completions(&self) -> bool {
        self.parts.iter().any(|part| part.normalise == Normalise::Group || part.reward.compares_completions())
    }

    fn needs_several(&self) -> bool {
        self.parts.iter().any(|part| part.reward.needs_several())
    }

    fn scorer(&self) -> Result<Box<dyn Scorer>, RewardError> {
        let build = |part: &PartConfig| Ok(Part { config: part.clone(), scorer: part.reward.build()? });
        let parts = self.parts.iter().map(build).collect::<Result<_, RewardError>>()?;
        Ok(Box::new(Composite { clip: self.clip, parts }))
    }
}

fn check_clip(clip: Option<[f64; 2]>) -> Result<(), String> {
    match clip {
        Some([low, high]) if low.is_nan() || high.is_nan() || low > high => {
            Err(format!("clip is [{low}, {high}], but must be the least and the greatest reward"))
        }
        _ => Ok(()),
    }
}

fn clipped(reward: f64, clip: Option<[f64; 2]>) -> f64 {
    clip.map_or(reward, |[low, high]| reward.clamp(low, high))
}

struct Part {
    config: PartConfig,
    scorer: Box<dyn Scorer>,
}

struct Composite {
    clip: Option<[f64; 2]>,
    parts: Vec<Part>,
}

impl Scorer for Composite {
    fn name(&self) -> &'static str {
        "composite"
    }

    fn score(&mut self, group: &Group) -> Result<Vec<Score>, RewardError> {
        self.score_groups(&[group]).remove(0).into_iter().collect()
    }

    /// A part's reward is the component of its name, what it adds to the sum is `NAME/weighted`, and
    /// its components are `NAME/COMPONENT`. A completion that one part cannot score has no score.
    fn score_groups(&mut self, groups: &[&Group]) -> Vec<Outcomes> {
        let nothing = |_| Ok((0.0, BTreeMap::new()));
        let mut sums: Vec<Vec<Result<Sum, RewardError>>> =
            groups.iter().map(|group| group.completions.iter().map(nothing).collect()).collect();
        for Part { config, scorer } in &mut self.parts {
            for (sums, outcomes) in sums.iter_mut().zip(scorer.score_groups(groups)) {
                config.add(sums, outcomes);
            }
        }
        let score = |(sum, components)| Score { reward: clipped(sum, self.clip) as f32, components };
        sums.into_iter().map(|sums| sums.into_iter().map(|sum| sum.map(score)).collect()).collect()
    }

    fn batch(&self) -> usize {
        self.parts.iter().map(|part| part.scorer.batch()).max().unwrap_or(1)
    }

    fn set_cancellation(&mut self, cancellation: &CancellationToken) {
        self.parts.iter_mut().for_each(|part| part.scorer.set_cancellation(cancellation));
    }

    fn details(&mut self, group: &Group) -> Result<Vec<Map<String, Value>>, RewardError> {
        let mut details = vec![Map::new(); group.completions.len()];
        for part in &mut self.parts {
            for (all, own) in details.iter_mut().zip(part.scorer.details(group)?) {
                all.extend(own);
            }
        }
        Ok(details)
    }
}

/// Rewards that are no numbers, of completions without a score, take no part.
fn normalise(rewards: &mut [f64]) {
    let scored = || rewards.iter().copied().filter(|reward| !reward.is_nan());
    let count = scored().count() as f64;
    let mean = scored().sum::<f64>() / count;
    let squares: f64 = scored().map(|reward| (reward - mean).powi(2)).sum();
    let deviation = if count > 1.0 { (squares / (count - 1.0)).sqrt() } else { 0.0 };
    for reward in rewards {
        *reward = (*reward - mean) / (deviation + EPSILON);
    }
}

#[cfg(test)]
mod tests {
    use arriero_buffers::Finish;
    use serde_json::json;

    use super::super::group;
    use super::*;

    fn config(value: Value) -> RewardConfig {
        serde_json::from_value(value).expect("a reward")
    }

    fn score(config: &RewardConfig, texts: &[&str]) -> Vec<Score> {
        let texts: Vec<(&str, Finish)> = texts.iter().map(|text| (*text, Finish::EndOfTurn)).collect();
        config.build().expect("valid").score(&group(json!({"answer": 4}), &texts)).expect("scores")
    }

    #[test]
    fn the_reward_is_the_weighted_sum_of_clipped_parts() {
        let config = config(json!({
            "kind": "composite",
            "clip": [-0.5, 2.0],
            "parts": [
                {"weight": 2.0, "reward": {"kind": "math"}},
                {"name": "short", "weight": 0.5, "clip": [-0.25, 0.0],
                 "reward": {"kind": "repetition", "ngram": 1, "penalty": 4.0}},
                {"weight": -1.0, "reward": {"kind": "contains", "text": "no"}},
            ],
        }));
        let scores = score(&config, &["4", "no no no 4", "no"]);
        // 2·1; 2·1 − 0.5·0.25 − 1; then −1, which the sum's bound raises.
        assert_eq!(scores.iter().map(|score| score.reward).collect::<Vec<_>>(), [2.0, 0.875, -0.5]);
        let expected = [
            ("contains", 1.0),
            ("contains/contains", 1.0),
            ("contains/weighted", -1.0),
            ("math", 1.0),
            ("math/answer_found", 1.0),
            ("math/correct", 1.0),
            ("math/weighted", 2.0),
            ("short", -2.0),
            ("short/repetition", 0.5),
            ("short/weighted", -0.125),
        ];
        let components: Vec<(&str, f32)> =
            scores[1].components.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        assert_eq!(components, expected);
    }

    #[test]
    fn a_group_is_normalised_part_by_part() {
        let config = config(json!({
            "kind": "composite",
            "parts": [
                {"normalise": "group", "reward": {"kind": "math"}},
                {"weight": 3.0, "normalise": "group", "reward": {"kind": "contains", "text": "4"}},
            ],
        }));
        assert!(config.compares_completions());
        let rewards: Vec<f32> = score(&config, &["4", "5"]).iter().map(|score| score.reward).collect();
        // Both parts are (1, 0): mean 0.5, deviation √0.5.
        let expected = (4.0 * 0.5 / (0.5f64.sqrt() + EPSILON)) as f32;
        assert_eq!(rewards, [expected, -expected]);
        assert_eq!(score(&config, &["4"])[0].reward, 0.0);
    }

    #[test]
    fn what_one_part_cannot_score_has_no_score_and_no_say() {
        // Lengths in tokens: of a completion with a text but no tokens there is none.
        let config = config(json!({
            "kind": "composite",
            "parts": [
                {"normalise": "group", "reward": {"kind": "contains", "text": "4"}},
                {"normalise": "group", "reward": {"kind": "length", "unit": "tokens", "max": 1}},
            ],
        }));
        let mut group = group(json!({}), &[("4", Finish::EndOfTurn); 3]);
        group.completions[1].segments.clear();
        group.completions[2].segments[0].tokens = vec![1, 1];
        let found = config.build().expect("valid").score_groups(&[&group]).remove(0);
        assert!(matches!(found[1], Err(RewardError::Completion { sample: 1, .. })), "{found:?}");
        let reward = |index: usize| found[index].as_ref().expect("a score").reward;
        // The lengths' rewards are 1 and 0, as if the second completion were not there.
        let expected = (0.5 / (0.5f64.sqrt() + EPSILON)) as f32;
        assert!((reward(0) - expected).abs() < 1e-6 && (reward(2) + expected).abs() < 1e-6, "{found:?}");
    }

    #[test]
    fn wrong_parts_are_named() {
        for (value, cause) in [
            (json!([]), "parts is empty"),
            (
                json!([{"reward": {"kind": "math"}}, {"reward": {"kind": "math"}}]),
                "part 2 (math): an earlier part",
            ),
            (json!([{"clip": [1.0, 0.0], "reward": {"kind": "math"}}]), "part 1 (math): clip"),
            (json!([{"reward": {"kind": "regex"}}]), "part 1 (regex): pattern"),
        ] {
            let error = config(json!({"kind": "composite", "parts": value})).validate().expect_err("wrong");
            assert!(error.contains(cause), "{error}");
        }
    }
}
