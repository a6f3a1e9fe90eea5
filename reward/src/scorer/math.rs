//! Whether the final answer of a completion is right.

use arriero_buffers::{Completion, Prompt};
use serde::{Deserialize, Serialize};

use super::per_completion::{PerCompletion, number, score};
use super::{Scorer, ScorerConfig};
use crate::checks::Checks;
use crate::error::RewardError;
use crate::math::{equivalent, final_answer};

/// Where the answer must stand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerPlace {
    /// Wherever [`final_answer`] finds it.
    #[default]
    Any,
    /// In a `\boxed{…}`.
    Boxed,
    /// Behind `####`.
    Hashes,
}

/// The options of the `math` reward.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MathConfig {
    /// Where the answer must stand. Default any.
    pub answer: AnswerPlace,
    /// How far numbers that are not whole may differ, as a share of the greater one; from 0 to
    /// below 1. Default 1e-9.
    pub tolerance: f64,
}

impl Default for MathConfig {
    fn default() -> Self {
        MathConfig { answer: AnswerPlace::Any, tolerance: 1e-9 }
    }
}

impl ScorerConfig for MathConfig {
    fn validate(&self) -> Result<(), String> {
        match self.tolerance {
            tolerance if (0.0..1.0).contains(&tolerance) => Ok(()),
            tolerance => Err(format!("tolerance is {tolerance}, but must be at least 0 and below 1")),
        }
    }

    fn check_prompt(&self, prompt: &Prompt) -> Result<(), RewardError> {
        Checks::of(prompt)?.answer(prompt.id).map(drop)
    }

    fn check_names(&self) -> Vec<&'static str> {
        vec!["answer"]
    }

    /// Reward 1 for the right answer, else 0. The right one is the prompt's `answer`: itself, or a
    /// text that ends with it as GSM8K's and MATH's solutions do.
    fn scorer(&self) -> Result<Box<dyn Scorer>, RewardError> {
        let MathConfig { answer: place, tolerance } = *self;
        Ok(Box::new(PerCompletion {
            name: "math",
            score: move |prompt: &Prompt, completion: &Completion| {
                let expected = reference(&Checks::of(prompt)?.answer(prompt.id)?);
                let stands = match place {
                    AnswerPlace::Any => true,
                    AnswerPlace::Boxed => completion.text.contains("\\boxed"),
                    AnswerPlace::Hashes => completion.text.contains("####"),
                };
                let found = if stands { final_answer(&completion.text) } else { None };
                let correct = found.as_ref().is_some_and(|found| equivalent(&expected, found, tolerance));
                let components = [("correct", number(correct)), ("answer_found", number(found.is_some()))];
                Ok(score(number(correct), components))
            },
        }))
    }
}

/// The answer in a reference: what `\boxed` or `####` marks, or the whole of it.
fn reference(answer: &str) -> String {
    let marked = answer.contains("\\boxed") || answer.contains("####");
    marked.then(|| final_answer(answer)).flatten().unwrap_or_else(|| answer.to_string())
}

#[cfg(test)]
mod tests {
    use arriero_buffers::Finish;
    use serde_json::{Value, json};

    use super::super::group;
    use super::*;

    fn rewards(config: &MathConfig, answer: Value, texts: &[&str]) -> Vec<f32> {
        let texts: Vec<(&str, Finish)> = texts.iter().map(|text| (*text, Finish::EndOfTurn)).collect();
        let group = group(json!({"answer": answer}), &texts);
        config
            .scorer()
            .expect("valid")
            .score(&group)
            .expect("scores")
            .iter()
            .map(|score| score.reward)
            .collect()
    }

    #[test]
    fn the_reference_may_be_a_solution_or_a_number() {
        let texts = ["so 80", "so 81", "none"];
        for answer in
            [json!("20*4=<<20*4=80>>80\n#### 80"), json!("80"), json!(80), json!("It is $\\boxed{80}$.")]
        {
            assert_eq!(rewards(&MathConfig::default(), answer, &texts), [1.0, 0.0, 0.0]);
        }
    }

    #[test]
    fn the_answer_must_stand_where_it_should() {
        let texts = ["80", "\\boxed{80}", "#### 80"];
        let place = |answer| MathConfig { answer, ..MathConfig::default() };
        assert_eq!(rewards(&place(AnswerPlace::Any), json!(80), &texts), [1.0, 1.0, 1.0]);
        assert_eq!(rewards(&place(AnswerPlace::Boxed), json!(80), &texts), [0.0, 1.0, 0.0]);
        assert_eq!(rewards(&place(AnswerPlace::Hashes), json!(80), &texts), [0.0, 0.0, 1.0]);
    }

    #[test]
    fn a_prompt_without_an_answer_is_an_error() {
        for checks in [Value::Null, json!({"answer": " "}), json!({"answer": [1]})] {
            let group = group(checks, &[("80", Finish::EndOfTurn)]);
            let error = MathConfig::default()
                .scorer()
                .expect("valid")
                .score(&group)
                .expect_err("no answer")
                .to_string();
            assert!(error.contains("prompt 7") && error.contains("`answer`"), "{error}");
        }
    }
}
