//! IFEval: the share of a prompt's instructions that a completion follows, by the official rules.

use std::collections::BTreeMap;

use arriero_buffers::{Group, Prompt, Score};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::checks::Checks;
use crate::error::RewardError;
use crate::ifeval::{self, Instruction, InstructionVerdict};
use crate::scorer::{Scorer, ScorerConfig};

/// Which of the two verdicts counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IfevalMode {
    /// The completion as it is.
    #[default]
    Strict,
    /// Also without its first or last line, or its asterisks.
    Loose,
}

/// The options of the `ifeval` reward.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IfevalConfig {
    /// Which verdict is rewarded. Default strict; both are components.
    pub mode: IfevalMode,
    /// Whether a completion that follows some instructions earns their share. Default false: the
    /// benchmark's prompt-level accuracy.
    pub partial_credit: bool,
}

impl ScorerConfig for IfevalConfig {
    fn check_prompt(&self, prompt: &Prompt) -> Result<(), RewardError> {
        instructions_of(prompt).map(drop)
    }

    fn check_names(&self) -> Vec<&'static str> {
        vec!["instruction_id_list", "kwargs"]
    }

    fn scorer(&self) -> Result<Box<dyn Scorer>, RewardError> {
        Ok(Box::new(IfevalScorer { config: self.clone() }))
    }
}

/// Scores by the instructions in the prompt's `checks`.
struct IfevalScorer {
    config: IfevalConfig,
}

/// Reads a prompt's instructions.
fn instructions_of(prompt: &Prompt) -> Result<Vec<Instruction>, RewardError> {
    let checks = Checks::of(prompt)?;
    if checks.instruction_id_list.is_empty() {
        return Err(RewardError::MissingCheck {
            prompt: prompt.id,
            name: "instruction_id_list",
            example: r#"{"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}"#,
        });
    }
    let kwargs = checks.kwargs(prompt.id)?;
    ifeval::instructions(&checks.instruction_id_list, &kwargs).map_err(|cause| RewardError::Check {
        prompt: prompt.id,
        name: "instruction_id_list",
        cause,
    })
}

impl IfevalScorer {
    fn verdicts(&self, group: &Group) -> Result<Vec<Vec<InstructionVerdict>>, RewardError> {
        let instructions = instructions_of(&group.prompt)?;
        let verdicts = |text: &str| ifeval::verdicts(&instructions, text);
        Ok(group.completions.iter().map(|completion| verdicts(&completion.text)).collect())
    }

    fn score_one(&self, verdicts: &[InstructionVerdict]) -> Score {
        let count = verdicts.len() as f32;
        let share = |followed: fn(&InstructionVerdict) -> bool| {
            let share = verdicts.iter().filter(|verdict| followed(verdict)).count() as f32 / count;
            (share, f32::from(u8::from(share == 1.0)))
        };
        let (strict_share, strict) = share(|verdict| verdict.strict);
        let (loose_share, loose) = share(|verdict| verdict.loose);
        let reward = match (self.config.mode, self.config.partial_credit) {
            (IfevalMode::Strict, false) => strict,
            (IfevalMode::Strict, true) => strict_share,
            (IfevalMode::Loose, false) => loose,
            (IfevalMode::Loose, true) => loose_share,
        };
        let components = [
            ("strict", strict),
            ("loose", loose),
            ("strict_instructions", strict_share),
            ("loose_instructions", loose_share),
        ];
        let components = BTreeMap::from(components.map(|(name, value)| (name.to_string(), value)));
        Score { reward, components }
    }
}

impl Scorer for IfevalScorer {
    fn name(&self) -> &'static str {
        "ifeval"
    }

    fn score(&mut self, group: &Group) -> Result<Vec<Score>, RewardError> {
        Ok(self.verdicts(group)?.iter().map(|verdicts| self.score_one(verdicts)).collect())
    }

    fn details(&mut self, group: &Group) -> Result<Vec<Map<String, Value>>, RewardError> {
        let detail = |verdicts: Vec<InstructionVerdict>| {
            let all = |followed: fn(&InstructionVerdict) -> bool| Value::Bool(verdicts.iter().all(followed));
            Map::from_iter([
                ("strict".to_string(), all(|verdict| verdict.strict)),
                ("loose".to_string(), all(|verdict| verdict.loose)),
                ("instructions".to_string(), json!(verdicts)),
            ])
        };
        Ok(self.verdicts(group)?.into_iter().map(detail).collect())
    }
}

#[cfg(test)]
mod tests {
    use arriero_buffers::Finish;
    use serde_json::json;

    use super::*;

    fn group(completion: &str) -> Group {
        let checks = json!({
            "instruction_id_list": ["punctuation:no_comma", "startend:end_checker"],
            "kwargs": [{}, {"end_phrase": "bye"}],
        });
        super::super::group(checks, &[(completion, Finish::EndOfTurn)])
    }

    fn score(mode: IfevalMode, partial_credit: bool, completion: &str) -> Score {
        let mut scorer = IfevalScorer { config: IfevalConfig { mode, partial_credit } };
        scorer.score(&group(completion)).expect("valid checks").remove(0)
    }

    #[test]
    fn the_reward_is_the_verdict_that_was_asked_for() {
        use IfevalMode::*;
        for (completion, rewards) in [
            ("bye", [1.0; 4]),
            ("a, b", [0.0; 4]),
            ("a, bye", [0.0, 0.5, 0.0, 0.5]),
            ("Well,\nbye", [0.0, 0.5, 1.0, 1.0]),
        ] {
            let modes = [(Strict, false), (Strict, true), (Loose, false), (Loose, true)];
            let found = modes.map(|(mode, partial)| score(mode, partial, completion).reward);
            assert_eq!(found, rewards, "{completion:?}");
        }
    }

    #[test]
    fn details_have_a_verdict_for_each_instruction() {
        let mut scorer = IfevalScorer { config: IfevalConfig::default() };
        let details = scorer.details(&group("Well,\nbye")).expect("valid checks").remove(0);
        let expected = json!({
            "strict": false,
            "loose": true,
            "instructions": [
                {"id": "punctuation:no_comma", "strict": false, "loose": true},
                {"id": "startend:end_checker", "strict": true, "loose": true},
            ],
        });
        assert_eq!(Value::Object(details), expected);
    }

    #[test]
    fn a_prompt_without_instructions_is_an_error() {
        let mut scorer = IfevalScorer { config: IfevalConfig::default() };
        let group = super::super::group(Value::Null, &[("a", Finish::EndOfTurn)]);
        let error = scorer.score(&group).expect_err("nothing to check").to_string();
        assert!(error.contains("prompt 7 has no `instruction_id_list`"), "{error}");
    }
}
