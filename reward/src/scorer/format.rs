//! Whether a completion has a layout of tags, such as `<think>…</think><answer>…</answer>`.

use arriero_buffers::{Completion, Prompt};
use regex::Regex;
use serde::{Deserialize, Serialize};

use super::pattern::compile;
use super::per_completion::{PerCompletion, number, score};
use super::{Scorer, ScorerConfig};
use crate::error::RewardError;

/// The options of the `format` reward.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FormatConfig {
    /// The tags that must stand one behind the other, each once, with something in it. Default
    /// `think`, `answer`, as in DeepSeek-R1 (arXiv:2501.12948).
    pub tags: Vec<String>,
    /// Whether text may follow the last tag. Default false. With `tags = ["think"]` and true it is
    /// the layout of TRL's `think_format_reward`.
    pub text_after: bool,
    /// A regular expression of the whole completion, instead of `tags`. Default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// Whether a completion without the layout earns the share of opening and closing tags that it
    /// has exactly once. Default false.
    pub partial_credit: bool,
}

impl Default for FormatConfig {
    fn default() -> Self {
        let tags = ["think", "answer"].map(String::from).into();
        FormatConfig { tags, text_after: false, pattern: None, partial_credit: false }
    }
}

impl FormatConfig {
    fn layout(&self) -> Result<Regex, String> {
        if let Some(pattern) = &self.pattern {
            if self.partial_credit {
                return Err("partial_credit counts tags, but pattern is given; leave one out".to_string());
            }
            return compile(pattern, true, false);
        }
        let named =
            |tag: &String| !tag.is_empty() && tag.chars().all(|c| c.is_alphanumeric() || "_-".contains(c));
        if self.tags.is_empty() || !self.tags.iter().all(named) {
            let tags = &self.tags;
            return Err(format!(
                "tags is {tags:?}, but must be names of letters, digits, _ and -, at least one"
            ));
        }
        if self.tags.iter().enumerate().any(|(index, tag)| self.tags[..index].contains(tag)) {
            return Err(format!("tags is {:?}, but none may stand there twice", self.tags));
        }
        let mut layout = String::from(r"\s*");
        for tag in &self.tags {
            layout.push_str(&format!(r"<{tag}>.*?\S.*?</{tag}>\s*"));
        }
        if self.text_after {
            layout.push_str(".*");
        }
        compile(&layout, true, false)
    }
}

impl ScorerConfig for FormatConfig {
    fn validate(&self) -> Result<(), String> {
        self.layout().map(drop)
    }

    /// Reward 1 for the layout, else 0.
    fn scorer(&self) -> Result<Box<dyn Scorer>, RewardError> {
        let layout = self.layout().map_err(RewardError::Config)?;
        let tags: Vec<String> = match self.pattern {
            Some(_) => Vec::new(),
            None => self.tags.iter().flat_map(|tag| [format!("<{tag}>"), format!("</{tag}>")]).collect(),
        };
        let partial_credit = self.partial_credit;
        Ok(Box::new(PerCompletion {
            name: "format",
            score: move |_: &Prompt, completion: &Completion| {
                let text = &completion.text;
                let once = tags.iter().filter(|tag| text.matches(tag.as_str()).take(2).count() == 1).count();
                let fits = number(once == tags.len() && layout.is_match(text));
                if tags.is_empty() {
                    return Ok(score(fits, [("format", fits)]));
                }
                let share = once as f64 / tags.len() as f64;
                let reward = if partial_credit { fits.max(share) } else { fits };
                Ok(score(reward, [("format", fits), ("tags", share)]))
            },
        }))
    }
}

#[cfg(test)]
mod tests {
    use arriero_buffers::Finish;
    use serde_json::Value;

    use super::super::group;
    use super::*;

    const TEXTS: [&str; 7] = [
        "<think>a</think><answer>b</answer>",
        " <think>\na\n</think>\n\n<answer>b</answer>\n",
        "<think>a</think> so <answer>b</answer>",
        "<think>a</think><answer> </answer>",
        "<think>a<think></think><answer>b</answer>",
        "<think>a</think>b",
        "b",
    ];

    fn rewards(config: &FormatConfig) -> Vec<f32> {
        let group = group(Value::Null, &TEXTS.map(|text| (text, Finish::EndOfTurn)));
        let scores = config.scorer().expect("valid").score(&group).expect("scores");
        scores.iter().map(|score| score.reward).collect()
    }

    #[test]
    fn the_layout_is_the_whole_completion() {
        let default = FormatConfig::default();
        assert_eq!(rewards(&default), [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        let partial = FormatConfig { partial_credit: true, ..default.clone() };
        assert_eq!(rewards(&partial), [1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.0]);
        let think = FormatConfig { tags: vec!["think".into()], text_after: true, ..default.clone() };
        assert_eq!(rewards(&think), [1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0]);
        let pattern = FormatConfig { pattern: Some(r"<think>.*</think>\w".into()), ..default };
        assert_eq!(rewards(&pattern), [0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
    }

    #[test]
    fn tags_that_cannot_be_are_refused() {
        for tags in [vec![], vec!["a b".to_string()], vec!["a".to_string(), "a".to_string()]] {
            let config = FormatConfig { tags, ..FormatConfig::default() };
            assert!(config.validate().expect_err("no tags").starts_with("tags is"));
        }
        let both =
            FormatConfig { pattern: Some("a".into()), partial_credit: true, ..FormatConfig::default() };
        assert!(both.validate().is_err());
    }
}
