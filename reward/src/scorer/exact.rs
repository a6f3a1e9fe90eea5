//! Whether a completion is the right answer and nothing else.

use arriero_buffers::{Completion, Prompt};
use serde::{Deserialize, Serialize};

use super::per_completion::{PerCompletion, number, score};
use super::{Scorer, ScorerConfig};
use crate::checks::Checks;
use crate::error::RewardError;

/// The options of the `exact` reward.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExactConfig {
    /// Whether capitals must agree. Default true.
    pub case_sensitive: bool,
    /// Whether white space must agree. Default false: runs of it count as one space, and none
    /// around the whole.
    pub white_space: bool,
}

impl Default for ExactConfig {
    fn default() -> Self {
        ExactConfig { case_sensitive: true, white_space: false }
    }
}

impl ScorerConfig for ExactConfig {
    fn check_prompt(&self, prompt: &Prompt) -> Result<(), RewardError> {
        Checks::of(prompt)?.answer(prompt.id).map(drop)
    }

    fn check_names(&self) -> Vec<&'static str> {
        vec!["answer"]
    }

    /// Reward 1 for a completion that equals the prompt's `answer`, else 0.
    fn scorer(&self) -> Result<Box<dyn Scorer>, RewardError> {
        let ExactConfig { case_sensitive, white_space } = *self;
        let form = move |text: &str| {
            let text = match white_space {
                true => text.to_string(),
                false => text.split_whitespace().collect::<Vec<_>>().join(" "),
            };
            if case_sensitive { text } else { text.to_lowercase() }
        };
        Ok(Box::new(PerCompletion {
            name: "exact",
            score: move |prompt: &Prompt, completion: &Completion| {
                let expected = Checks::of(prompt)?.answer(prompt.id)?;
                let equal = number(form(&expected) == form(&completion.text));
                Ok(score(equal, [("exact", equal)]))
            },
        }))
    }
}

#[cfg(test)]
mod tests {
    use arriero_buffers::Finish;
    use serde_json::json;

    use super::super::group;
    use super::*;

    #[test]
    fn case_and_white_space_matter_as_told() {
        let texts =
            ["Good tea", " Good\n tea ", "good tea", "Good tea."].map(|text| (text, Finish::EndOfTurn));
        let group = group(json!({"answer": "Good tea"}), &texts);
        for (case_sensitive, white_space, expected) in [
            (true, false, [1.0, 1.0, 0.0, 0.0]),
            (false, false, [1.0, 1.0, 1.0, 0.0]),
            (true, true, [1.0, 0.0, 0.0, 0.0]),
            (false, true, [1.0, 0.0, 1.0, 0.0]),
        ] {
            let scores = ExactConfig { case_sensitive, white_space }
                .scorer()
                .expect("valid")
                .score(&group)
                .expect("scores");
            assert_eq!(scores.iter().map(|score| score.reward).collect::<Vec<_>>(), expected);
        }
    }
}
