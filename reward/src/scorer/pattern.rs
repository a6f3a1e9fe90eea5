//! Whether a completion matches a regular expression.

use arriero_buffers::{Completion, Prompt};
use regex::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};

use super::per_completion::{PerCompletion, number, score};
use super::{Scorer, ScorerConfig};
use crate::error::RewardError;

/// Bytes that a compiled pattern may take.
const MOST_BYTES: usize = 10 << 20;

/// The options of the `regex` reward.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegexConfig {
    /// The pattern, in the syntax of the regex crate: no look-around, no back-references, and so time
    /// in proportion to the text. No default: it must be given.
    pub pattern: String,
    /// Whether it must match the whole completion. Default false: anywhere.
    pub whole: bool,
    /// Whether capitals do not matter. Default false.
    pub ignore_case: bool,
}

impl RegexConfig {
    fn compile(&self) -> Result<Regex, String> {
        if self.pattern.is_empty() {
            return Err("pattern is \"\", but must have at least one character".to_string());
        }
        compile(&self.pattern, self.whole, self.ignore_case)
    }
}

impl ScorerConfig for RegexConfig {
    fn validate(&self) -> Result<(), String> {
        self.compile().map(drop)
    }

    /// Reward 1 for a match, else 0.
    fn scorer(&self) -> Result<Box<dyn Scorer>, RewardError> {
        let regex = self.compile().map_err(RewardError::Config)?;
        Ok(Box::new(PerCompletion {
            name: "regex",
            score: move |_: &Prompt, completion: &Completion| {
                let matches = number(regex.is_match(&completion.text));
                Ok(score(matches, [("regex", matches)]))
            },
        }))
    }
}

/// Compiles a pattern whose `.` matches line ends too.
pub(super) fn compile(pattern: &str, whole: bool, ignore_case: bool) -> Result<Regex, String> {
    let anchored = if whole { format!(r"\A(?:{pattern})\z") } else { pattern.to_string() };
    let mut builder = RegexBuilder::new(&anchored);
    builder.case_insensitive(ignore_case).dot_matches_new_line(true).size_limit(MOST_BYTES);
    builder.build().map_err(|error| format!("pattern is {pattern:?}, but cannot be used: {error}"))
}

#[cfg(test)]
mod tests {
    use arriero_buffers::Finish;
    use serde_json::Value;

    use super::super::group;
    use super::*;

    #[test]
    fn a_pattern_matches_anywhere_or_the_whole() {
        let texts = ["a1\nb2", "A1\nB2", "x a1\nb2", "ab"].map(|text| (text, Finish::EndOfTurn));
        let group = group(Value::Null, &texts);
        for (whole, ignore_case, expected) in [
            (false, false, [1.0, 0.0, 1.0, 0.0]),
            (true, false, [1.0, 0.0, 0.0, 0.0]),
            (true, true, [1.0, 1.0, 0.0, 0.0]),
        ] {
            let config = RegexConfig { pattern: r"a\d.b\d|never".into(), whole, ignore_case };
            let scores = config.scorer().expect("it compiles").score(&group).expect("scores");
            assert_eq!(scores.iter().map(|score| score.reward).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn bad_patterns_are_refused() {
        for (pattern, cause) in
            [("", "at least one character"), ("(a", "unclosed group"), ("a{9999}{9999}", "size")]
        {
            let config = RegexConfig { pattern: pattern.into(), ..RegexConfig::default() };
            let error = config.validate().expect_err("it cannot be used");
            assert!(error.contains(cause), "{pattern}: {error}");
        }
    }
}
