//! An LLM as the judge, over any server with OpenAI's chat completions.
//!
//! - pointwise: the judge rates each completion;
//! - pairwise: it says which of two is better, is asked in both orders (Zheng et al., "Judging LLM-as-a-Judge with
//!   MT-Bench and Chatbot Arena", arXiv:2306.05685), and a completion's reward is its win rate.
//!
//! `ask` asks and compares, and is of use without a scorer ([`Judge`]); `verdict` is what a judge says of two
//! completions; `template` fills prompts in and reads answers; `cache` remembers answers.

mod ask;
mod cache;
mod template;
mod verdict;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use arriero_buffers::{Group, Prompt, Score};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::per_completion::score;
use super::program::check_seconds;
use super::{Outcomes, Scorer, ScorerConfig};
use crate::cancellation::CancellationToken;
use crate::checks::Checks;
use crate::client::{ClientOptions, RequestError};
use crate::error::RewardError;
pub use ask::{Comparison, Judge, Question};
use template::VerdictParser;
pub use verdict::{PairVerdict, Winner};

/// How the judge is asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JudgeMode {
    /// One completion at a time; it gives a number.
    #[default]
    Pointwise,
    /// Two at a time, in both orders; it names the better one.
    Pairwise,
}

/// What a completion is compared with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Against {
    /// Every other completion of its group.
    #[default]
    Others,
    /// The `answer` of the prompt's `checks`.
    Answer,
}

/// The options of the `judge` reward.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JudgeConfig {
    /// The server, with its version, such as `http://127.0.0.1:8080/v1`. No default: it must be given.
    pub base_url: String,
    /// The model's name there. No default: it must be given.
    pub model: String,
    /// The environment variable of the key. Default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key_env: Option<String>,
    /// Headers beside. A value that begins with `$` names an environment variable. Default none.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// How it is asked. Default pointwise.
    pub mode: JudgeMode,
    /// What a completion is compared with in mode pairwise. Default the others of its group.
    pub against: Against,
    /// The message of the system. Default none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub system: String,
    /// The message of the user, in which `{prompt}`, `{answer}` (of the prompt's `checks`), `{low}`, `{high}`, and
    /// `{completion}` or `{a}` and `{b}` are filled in. Default one of ours for the mode.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub template: String,
    /// A regular expression whose first group is the verdict: a number, or A, B or tie. Its last match in the judge's
    /// answer counts. Default: what stands behind `Rating:`, or `Winner:`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pattern: String,
    /// The worst and the best rating of mode pointwise; a number outside is no answer. Default 1 and 10.
    pub scale: [f64; 2],
    /// Default 0: the most probable answer.
    pub temperature: f64,
    /// The most tokens of an answer. Default 512.
    pub max_tokens: usize,
    /// More members of every request, as the server knows them. Default none.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub request: Map<String, Value>,
    /// A file of JSON lines that keeps answers between runs. Default none: they are kept in memory only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
    /// Seconds that one try may take. Default 120.
    pub timeout: f64,
    /// Tries after the first, where the server cannot be reached, is too slow or busy, or fails. Default 5.
    pub retries: u32,
    /// Requests under way at once. Default 8.
    pub max_in_flight: usize,
    /// Tries that begin in a minute. Default any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<f64>,
}

impl Default for JudgeConfig {
    fn default() -> Self {
        JudgeConfig {
            base_url: String::new(),
            model: String::new(),
            api_key_env: None,
            headers: BTreeMap::new(),
            mode: JudgeMode::Pointwise,
            against: Against::Others,
            system: String::new(),
            template: String::new(),
            pattern: String::new(),
            scale: [1.0, 10.0],
            temperature: 0.0,
            max_tokens: 512,
            request: Map::new(),
            cache: None,
            timeout: 120.0,
            retries: 5,
            max_in_flight: 8,
            requests_per_minute: None,
        }
    }
}

impl JudgeConfig {
    fn client(&self) -> ClientOptions {
        ClientOptions {
            url: format!("{}/chat/completions", self.base_url.trim_end_matches('/')),
            headers: self.headers.clone(),
            api_key_env: self.api_key_env.clone(),
            timeout: Duration::from_secs_f64(self.timeout),
            retries: self.retries,
            in_flight: self.max_in_flight,
            per_minute: self.requests_per_minute,
        }
    }

    fn template(&self) -> &str {
        match (self.template.as_str(), self.mode) {
            ("", JudgeMode::Pointwise) => template::POINTWISE,
            ("", JudgeMode::Pairwise) => template::PAIRWISE,
            (own, _) => own,
        }
    }

    /// Whether a prompt must have an `answer`.
    fn needs_answer(&self) -> bool {
        let compared = self.mode == JudgeMode::Pairwise && self.against == Against::Answer;
        compared || self.template().contains("{answer}")
    }
}

impl ScorerConfig for JudgeConfig {
    fn validate(&self) -> Result<(), String> {
        if self.base_url.is_empty() {
            return Err("base_url is \"\", but must be as http://127.0.0.1:8080/v1".to_string());
        }
        if self.model.is_empty() {
            return Err("model is \"\", but must name a model of the server".to_string());
        }
        check_seconds("timeout", self.timeout)?;
        self.client().validate().map_err(|cause| cause.replacen("url ", "base_url ", 1))?;
        let [low, high] = self.scale;
        if !(low.is_finite() && high.is_finite() && low < high) {
            return Err(format!("scale is [{low}, {high}], but must be the worst and the best rating"));
        }
        if !(0.0..=2.0).contains(&self.temperature) {
            return Err(format!("temperature is {}, but must be from 0 to 2", self.temperature));
        }
        if self.max_tokens == 0 {
            return Err("max_tokens is 0, but must be at least 1".to_string());
        }
        let set = ["model", "messages", "temperature", "max_tokens", "stream", "n"];
        if let Some(name) = set.iter().find(|name| self.request.contains_key(**name)) {
            return Err(format!("request has {name:?}, which is set otherwise; leave it out"));
        }
        template::check(self.template(), self.mode)?;
        VerdictParser::new(&self.pattern, self.mode).map(drop)
    }

    fn check_prompt(&self, prompt: &Prompt) -> Result<(), RewardError> {
        if self.needs_answer() { Checks::of(prompt)?.answer(prompt.id).map(drop) } else { Ok(()) }
    }

    fn check_names(&self) -> Vec<&'static str> {
        if self.needs_answer() { vec!["answer"] } else { Vec::new() }
    }

    fn compares_completions(&self) -> bool {
        self.mode == JudgeMode::Pairwise && self.against == Against::Others
    }

    fn needs_several(&self) -> bool {
        self.compares_completions()
    }

    fn scorer(&self) -> Result<Box<dyn Scorer>, RewardError> {
        Ok(Box::new(JudgeScorer { judge: Judge::new(self)?, config: self.clone() }))
    }
}

/// Two completions of a group by their places; without a second, the first one and the prompt's answer.
type Pair = (usize, Option<usize>);

struct JudgeScorer {
    config: JudgeConfig,
    judge: Judge,
}

impl JudgeScorer {
    /// Each completion's rating, as a share of the scale.
    fn rate(&self, groups: &[&Group]) -> Vec<Outcomes> {
        let [low, high] = self.config.scale;
        let answers: Vec<_> = groups.iter().map(|group| self.answer(&group.prompt)).collect();
        let mut questions = Vec::new();
        for (group, answer) in groups.iter().zip(&answers) {
            let Ok(answer) = answer else { continue };
            questions.extend(group.completions.iter().map(|completion| Question {
                prompt: &group.prompt.messages,
                answer: answer.as_deref(),
                completion: &completion.text,
            }));
        }
        let mut ratings = self.judge.rate_all(&questions).into_iter();
        let outcomes = |(group, answer): (&&Group, &Result<Option<String>, RewardError>)| match answer {
            Err(error) => vec![Err(error.clone()); group.completions.len()],
            // The ratings come second: `zip` takes one of its first side before it finds the second at its end.
            Ok(_) => (group.completions.iter().zip(ratings.by_ref()))
                .map(|(completion, rating)| {
                    let rating = rating.map_err(|error| failed(group, completion.sample, error))?;
                    Ok(score((rating - low) / (high - low), [("rating", rating)]))
                })
                .collect(),
        };
        groups.iter().zip(&answers).map(outcomes).collect()
    }

    /// Each completion's win rate.
    fn compare(&self, groups: &[&Group]) -> Vec<Outcomes> {
        let answers: Vec<_> = groups.iter().map(|group| self.answer(&group.prompt)).collect();
        let pairs = |(group, answer): (&&Group, &Result<Option<String>, RewardError>)| match answer {
            Ok(_) => self.pairs(group.completions.len()),
            Err(_) => Vec::new(),
        };
        let pairs: Vec<Vec<Pair>> = groups.iter().zip(&answers).map(pairs).collect();
        let mut comparisons = Vec::new();
        for ((group, answer), pairs) in groups.iter().zip(&answers).zip(&pairs) {
            let answer = answer.as_ref().ok().and_then(Option::as_deref);
            let text = |index: usize| group.completions[index].text.as_str();
            comparisons.extend(pairs.iter().map(|&(a, b)| Comparison {
                prompt: &group.prompt.messages,
                answer,
                a: text(a),
                b: b.map_or(answer.unwrap_or_default(), text),
            }));
        }
        let mut verdicts = self.judge.compare_all(&comparisons).into_iter();
        let mut outcomes = Vec::new();
        for ((group, answer), pairs) in groups.iter().zip(&answers).zip(&pairs) {
            let own: Vec<_> = pairs.iter().copied().zip(verdicts.by_ref()).collect();
            let count = group.completions.len();
            outcomes.push(match answer {
                Err(error) => vec![Err(error.clone()); count],
                Ok(_) => (0..count).map(|index| win_rate(group, index, &own)).collect(),
            });
        }
        outcomes
    }

    fn pairs(&self, count: usize) -> Vec<Pair> {
        match self.config.against {
            Against::Others => (0..count).flat_map(|a| (a + 1..count).map(move |b| (a, Some(b)))).collect(),
            Against::Answer => (0..count).map(|a| (a, None)).collect(),
        }
    }

    fn answer(&self, prompt: &Prompt) -> Result<Option<String>, RewardError> {
        match self.config.needs_answer() {
            true => Checks::of(prompt)?.answer(prompt.id).map(Some),
            false => Ok(None),
        }
    }
}

/// A completion's share of wins in its comparisons; a tie is half a win.
///
/// # Errors
/// If one of them has no verdict, or there is none.
fn win_rate(
    group: &Group,
    index: usize,
    verdicts: &[(Pair, Result<PairVerdict, RequestError>)],
) -> Result<Score, RewardError> {
    let sample = group.completions[index].sample;
    let (mut points, mut ties, mut swayed, mut all) = (0.0, 0.0, 0.0, 0.0);
    for ((a, _), verdict) in verdicts.iter().filter(|((a, b), _)| *a == index || *b == Some(index)) {
        let verdict = verdict.as_ref().map_err(|error| failed(group, sample, error.clone()))?;
        points += if *a == index { verdict.points() } else { 1.0 - verdict.points() };
        ties += f64::from(u8::from(verdict.winner() == Winner::Tie));
        swayed += f64::from(u8::from(!verdict.is_consistent()));
        all += 1.0;
    }
    if all == 0.0 {
        let cause = "there is no other completion of its prompt to compare it with".to_string();
        return Err(failed(group, sample, RequestError::Failed(cause)));
    }
    let rate = points / all;
    Ok(score(rate, [("win_rate", rate), ("ties", ties / all), ("swayed_by_order", swayed / all)]))
}

fn failed(group: &Group, sample: u32, error: RequestError) -> RewardError {
    match error {
        RequestError::Interrupted => RewardError::Interrupted,
        RequestError::Failed(cause) => RewardError::Completion { prompt: group.prompt.id, sample, cause },
    }
}

impl Scorer for JudgeScorer {
    fn name(&self) -> &'static str {
        "judge"
    }

    fn score(&mut self, group: &Group) -> Result<Vec<Score>, RewardError> {
        self.score_groups(&[group]).remove(0).into_iter().collect()
    }

    fn score_groups(&mut self, groups: &[&Group]) -> Vec<Outcomes> {
        match self.config.mode {
            JudgeMode::Pointwise => self.rate(groups),
            JudgeMode::Pairwise => self.compare(groups),
        }
    }

    fn batch(&self) -> usize {
        self.config.max_in_flight * 4
    }

    fn set_cancellation(&mut self, cancellation: &CancellationToken) {
        self.judge.set_cancellation(cancellation);
    }
}

#[cfg(test)]
mod tests;
