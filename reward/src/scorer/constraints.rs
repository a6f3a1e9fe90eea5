//! The share of the prompt's verifiable instructions that a completion follows.

use std::collections::BTreeMap;

use arriero_buffers::{Completion, Finish, Group, Prompt, Score};
use serde::{Deserialize, Serialize};

use crate::checks::Checks;
use crate::constraint::Constraint;
use crate::error::RewardError;
use crate::scorer::{Scorer, ScorerConfig};

/// The options of the `constraints` reward.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConstraintsConfig {
    /// Whether a completion that follows some of the constraints earns their share. If not, it must
    /// follow all of them to earn anything. Default true: a weak model then learns from each.
    pub partial_credit: bool,
    /// What the reward of a completion that ran into the token limit is multiplied by, from 0 to 1.
    /// Default 0: an answer without an end is no answer, whatever its form.
    pub unfinished_reward_scale: f64,
}

impl Default for ConstraintsConfig {
    fn default() -> Self {
        ConstraintsConfig { partial_credit: true, unfinished_reward_scale: 0.0 }
    }
}

impl ScorerConfig for ConstraintsConfig {
    fn validate(&self) -> Result<(), String> {
        let scale = self.unfinished_reward_scale;
        if !(0.0..=1.0).contains(&scale) {
            return Err(format!("unfinished_reward_scale is {scale}, but must be from 0 to 1"));
        }
        Ok(())
    }

    fn check_prompt(&self, prompt: &Prompt) -> Result<(), RewardError> {
        match verdicts(prompt, "")?.is_empty() {
            true => Err(RewardError::NoConstraints(prompt.id)),
            false => Ok(()),
        }
    }

    fn check_names(&self) -> Vec<&'static str> {
        vec!["constraints"]
    }

    fn scorer(&self) -> Result<Box<dyn Scorer>, RewardError> {
        Ok(Box::new(ConstraintsScorer { config: self.clone() }))
    }
}

/// What became of one constraint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConstraintVerdict {
    /// The constraint.
    pub constraint: Constraint,
    /// True if the text follows it.
    pub passed: bool,
}

/// Checks a text against each of the prompt's constraints, in their order. A prompt whose `checks`
/// are null or have other members only has none. A blank text follows no constraint.
///
/// # Errors
/// If the prompt's `checks` cannot be read, or a constraint of theirs is not valid.
pub fn verdicts(prompt: &Prompt, text: &str) -> Result<Vec<ConstraintVerdict>, RewardError> {
    let judge = |constraint: Constraint| ConstraintVerdict { passed: constraint.check(text), constraint };
    Ok(constraints_of(prompt)?.into_iter().map(judge).collect())
}

/// Reads the prompt's constraints.
fn constraints_of(prompt: &Prompt) -> Result<Vec<Constraint>, RewardError> {
    let error = |cause: String| RewardError::Checks { prompt: prompt.id, cause };
    let checks = Checks::of(prompt)?;
    let read = |(index, value): (usize, serde_json::Value)| {
        let constraint: Constraint = serde_json::from_value(value)
            .map_err(|cause| error(format!("constraint {} of the list: {cause}", index + 1)))?;
        constraint
            .validate()
            .map_err(|cause| error(format!("constraint {} of the list: {cause}", index + 1)))?;
        Ok(constraint)
    };
    checks.constraints.into_iter().enumerate().map(read).collect()
}

/// Scores by the constraints in the prompt's `checks`.
pub(super) struct ConstraintsScorer {
    config: ConstraintsConfig,
}

impl ConstraintsScorer {
    fn score_one(&self, constraints: &[Constraint], completion: &Completion) -> Score {
        let passed = constraints.iter().filter(|constraint| constraint.check(&completion.text)).count();
        let share = passed as f64 / constraints.len() as f64;
        let all = f64::from(u8::from(passed == constraints.len()));
        let unfinished = completion.finish == Finish::Length;
        let earned = if self.config.partial_credit { share } else { all };
        let scale = if unfinished { self.config.unfinished_reward_scale } else { 1.0 };
        Score {
            reward: (earned * scale) as f32,
            components: BTreeMap::from([
                ("instructions".to_string(), share as f32),
                ("all_instructions".to_string(), all as f32),
                ("unfinished".to_string(), f32::from(u8::from(unfinished))),
            ]),
        }
    }
}

impl Scorer for ConstraintsScorer {
    fn name(&self) -> &'static str {
        "constraints"
    }

    fn score(&mut self, group: &Group) -> Result<Vec<Score>, RewardError> {
        let constraints = constraints_of(&group.prompt)?;
        if constraints.is_empty() {
            return Err(RewardError::NoConstraints(group.prompt.id));
        }
        Ok(group.completions.iter().map(|completion| self.score_one(&constraints, completion)).collect())
    }
}

#[cfg(test)]
mod tests {
    use arriero_buffers::Message;
    use serde_json::{Value, json};

    use super::super::group;
    use super::*;

    fn prompt(checks: Value) -> Prompt {
        Prompt { id: 7, messages: vec![Message::user("hi")], checks }
    }

    fn two() -> Value {
        json!({"constraints": [{"kind": "no_comma"}, {"kind": "keywords", "words": ["tea"]}]})
    }

    fn scores(config: ConstraintsConfig) -> Vec<Score> {
        let texts = [
            ("I like tea.", Finish::EndOfTurn),
            ("I like, well, tea.", Finish::EndOfTurn),
            ("Well, no.", Finish::EndOfTurn),
            (" \n", Finish::EndOfTurn),
            ("I like tea.", Finish::Length),
        ];
        ConstraintsScorer { config }.score(&group(two(), &texts)).expect("the checks are valid")
    }

    #[test]
    fn the_reward_is_the_share_or_all_or_nothing() {
        let reward = |config| scores(config).iter().map(|score| score.reward).collect::<Vec<_>>();
        let partial = ConstraintsConfig { unfinished_reward_scale: 0.25, ..Default::default() };
        assert_eq!(reward(ConstraintsConfig::default()), [1.0, 0.5, 0.0, 0.0, 0.0]);
        assert_eq!(reward(partial.clone()), [1.0, 0.5, 0.0, 0.0, 0.25]);
        assert_eq!(
            reward(ConstraintsConfig { partial_credit: false, ..partial }),
            [1.0, 0.0, 0.0, 0.0, 0.25]
        );
    }

    #[test]
    fn the_components_do_not_depend_on_the_options() {
        let parts = |score: &Score| {
            ["instructions", "all_instructions", "unfinished"].map(|name| score.components[name])
        };
        let expected = [[1.0, 1.0, 0.0], [0.5, 0.0, 0.0], [0.0; 3], [0.0; 3], [1.0, 1.0, 1.0]];
        let strict = ConstraintsConfig { partial_credit: false, unfinished_reward_scale: 1.0 };
        for config in [ConstraintsConfig::default(), strict] {
            assert_eq!(scores(config).iter().map(parts).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn verdicts_come_in_the_order_of_the_constraints() {
        let passed = |text| -> Vec<(&str, bool)> {
            let verdicts = verdicts(&prompt(two()), text).expect("the checks are valid");
            verdicts.iter().map(|verdict| (verdict.constraint.kind(), verdict.passed)).collect()
        };
        assert_eq!(passed("Green, black."), [("no_comma", false), ("keywords", false)]);
        assert_eq!(passed("Tea, please."), [("no_comma", false), ("keywords", true)]);
        assert_eq!(passed(""), [("no_comma", false), ("keywords", false)]);
        assert_eq!(verdicts(&prompt(Value::Null), "tea"), Ok(Vec::new()));
    }

    #[test]
    fn malformed_checks_are_errors_that_say_where_and_why() {
        for (checks, cause) in [
            (json!([1]), "invalid type"),
            (json!("no_comma"), "no_comma"),
            (json!({"constraints": [], "more": 1}), "unknown field `more`"),
            (json!({"constraints": {"kind": "no_comma"}}), "invalid type: map"),
            (json!({"constraints": [{"kind": "no_comma"}, {"kind": "no_colon"}]}), "constraint 2"),
            (json!({"constraints": [{"kind": "no_comma", "count": 1}]}), "unknown field `count`"),
            (json!({"constraints": [{"kind": "bullets", "count": "two"}]}), "constraint 1"),
            (json!({"constraints": [{"kind": "keywords", "words": []}]}), "words is empty"),
        ] {
            let error = verdicts(&prompt(checks.clone()), "tea").expect_err("malformed").to_string();
            assert!(error.contains("prompt 7") && error.contains(cause), "{checks}: {error}");
        }
    }

    #[test]
    fn a_prompt_without_constraints_is_not_scored() {
        for checks in [Value::Null, json!({}), json!({"constraints": []}), json!({"answer": "4"})] {
            let mut scorer = ConstraintsScorer { config: ConstraintsConfig::default() };
            let error =
                scorer.score(&group(checks, &[("tea", Finish::EndOfTurn)])).expect_err("no constraints");
            assert_eq!(error, RewardError::NoConstraints(7));
            assert!(error.to_string().contains(r#"{"constraints": [{"kind": "no_comma"}]}"#), "{error}");
        }
    }

    #[test]
    fn the_scale_lies_between_0_and_1() {
        for (scale, valid) in [(0.0, true), (1.0, true), (-0.1, false), (1.5, false), (f64::NAN, false)] {
            let config = ConstraintsConfig { unfinished_reward_scale: scale, ..Default::default() };
            assert_eq!(config.validate().is_ok(), valid, "{scale}");
        }
        let config = ConstraintsConfig { unfinished_reward_scale: 1.5, ..Default::default() };
        assert_eq!(
            config.validate(),
            Err("unfinished_reward_scale is 1.5, but must be from 0 to 1".to_string())
        );
    }
}
