//! A trained reward model: the score of the conversation that a completion makes.
//!
//! This is the only module of the crate that knows of models.

use std::collections::BTreeMap;
use std::path::PathBuf;

use arriero_buffers::{Completion, Group, Message, Role, Score};
use arriero_policy::checkpoint::Checkpoint;
use arriero_policy::device::{Compute, DeviceSpec, DtypeSpec};
use arriero_policy::model::Model;
use arriero_policy::reward_model::{Conversations, close_tokens, scores};
use arriero_policy::tokenizer::Tokenizer;
use arriero_policy::written;
use serde::{Deserialize, Serialize};

use super::{Outcomes, Scorer, ScorerConfig};
use crate::error::RewardError;

/// The options of the `reward_model` reward.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RewardModelConfig {
    /// The reward model: what a stage with `kind = "reward_model"` wrote, or a folder that transformers'
    /// `AutoModelForSequenceClassification` reads, with one label.
    pub path: PathBuf,
    /// Where it computes. Default `auto`.
    pub device: DeviceSpec,
    /// Its precision. Default `auto`.
    pub dtype: DtypeSpec,
    /// Tokens that go through it at once. Default 8192.
    pub batch_tokens: usize,
}

impl Default for RewardModelConfig {
    fn default() -> Self {
        RewardModelConfig {
            path: PathBuf::new(),
            device: DeviceSpec::default(),
            dtype: DtypeSpec::default(),
            batch_tokens: 8192,
        }
    }
}

impl ScorerConfig for RewardModelConfig {
    fn validate(&self) -> Result<(), String> {
        if self.path.as_os_str().is_empty() {
            return Err("path is \"\", but must name a reward model's folder".to_string());
        }
        if self.batch_tokens == 0 {
            return Err("batch_tokens is 0, but must be at least 1".to_string());
        }
        let inspected = Checkpoint::inspect_reward_model(&self.path);
        inspected.map(drop).map_err(|error| format!("path is wrong: {error}"))
    }

    fn scorer(&self) -> Result<Box<dyn Scorer>, RewardError> {
        let config = |error: arriero_policy::PolicyError| RewardError::Config(error.to_string());
        let Checkpoint { config: model, weights, tokenizer } =
            Checkpoint::open_reward_model(&self.path).map_err(config)?;
        let compute = Compute::resolve(self.device, self.dtype).map_err(config)?;
        let model = Model::new(&model, &weights, compute).map_err(config)?.packed();
        Ok(Box::new(RewardModelScorer {
            model,
            tokenizer,
            input: InputFormat::Text,
            batch_tokens: self.batch_tokens,
        }))
    }
}

/// Completions that are scored at once, where there are many; how many go through the model is `batch_tokens`.
const BATCH: usize = 64;

/// What a reward model is given of a completion.
#[derive(Debug)]
enum InputFormat {
    /// Its text, under the reward model's own chat template.
    Text,
    /// Its tokens, which are the reward model's own; `closing` ends a conversation.
    Tokens { closing: Vec<u32> },
}

/// Scores groups with a reward model.
#[derive(Debug)]
pub struct RewardModelScorer {
    model: Model,
    tokenizer: Tokenizer,
    input: InputFormat,
    batch_tokens: usize,
}

impl RewardModelScorer {
    /// A scorer of the policy's own samples: the model shares the policy's vocabulary, and was trained on such samples.
    ///
    /// # Errors
    /// If the model has no head, or the chat template refuses the plainest conversation.
    pub fn new(model: Model, tokenizer: Tokenizer, batch_tokens: usize) -> Result<Self, RewardError> {
        if model.score().is_none() {
            return Err(RewardError::Config("the model has no head that scores".to_string()));
        }
        let closing = tokenizer.closing_tokens().map_err(|error| RewardError::Config(error.to_string()))?;
        Ok(RewardModelScorer { model, tokenizer, input: InputFormat::Tokens { closing }, batch_tokens })
    }

    fn tokens(&self, group: &Group, completion: &Completion) -> Result<Vec<u32>, RewardError> {
        let refused = |cause: String| RewardError::Completion {
            prompt: group.prompt.id,
            sample: completion.sample,
            cause,
        };
        let tokens: Vec<u32> = match &self.input {
            InputFormat::Text => {
                let answer = Message::assistant(completion.text.as_str());
                let (prompt, marked) = written::completions(
                    &self.tokenizer,
                    &group.prompt.messages,
                    &[&[answer]],
                    &[Role::Assistant],
                )
                .map_err(|error| refused(error.to_string()))?;
                prompt.into_iter().chain(marked.into_iter().flat_map(|marked| marked.tokens)).collect()
            }
            InputFormat::Tokens { closing } => {
                let mut tokens: Vec<u32> =
                    group.prompt_tokens.iter().copied().chain(completion.tokens()).collect();
                close_tokens(&mut tokens, closing, self.tokenizer.eos_ids());
                tokens
            }
        };
        let limit = self.model.config().max_positions;
        match tokens.len() {
            count if count > limit => Err(refused(format!(
                "the conversation has {count} tokens, but the reward model's context has {limit}; shorten it or leave it out"
            ))),
            0 | 1 => Err(refused(
                "the conversation is empty; a reward model needs at least two tokens".to_string(),
            )),
            _ => Ok(tokens),
        }
    }
}

fn score(reward: f32) -> Score {
    Score { reward, components: BTreeMap::from([("score".to_string(), reward)]) }
}

impl Scorer for RewardModelScorer {
    fn name(&self) -> &'static str {
        "reward_model"
    }

    fn score(&mut self, group: &Group) -> Result<Vec<Score>, RewardError> {
        self.score_groups(&[group]).remove(0).into_iter().collect()
    }

    /// In packed batches: less work than one group after the other.
    fn score_groups(&mut self, groups: &[&Group]) -> Vec<Outcomes> {
        let tokens = |group: &&Group| -> Vec<Result<Vec<u32>, RewardError>> {
            group.completions.iter().map(|completion| self.tokens(group, completion)).collect()
        };
        let all: Vec<_> = groups.iter().map(tokens).collect();
        let usable = |(group, tokens): (&&Group, &Vec<Result<Vec<u32>, RewardError>>)| Conversations {
            prompt_id: group.prompt.id,
            sequences: tokens.iter().filter_map(|tokens| tokens.as_ref().ok().cloned()).collect(),
        };
        let usable: Vec<Conversations> = groups.iter().zip(&all).map(usable).collect();
        // What does not fit was found out before: an error is not about one conversation.
        let found = scores(&self.model, &usable, self.batch_tokens)
            .map_err(|error| RewardError::Config(error.to_string()));
        let mut found = found.map(|found| found.into_iter().flatten());
        let mut outcome = |tokens: Result<Vec<u32>, RewardError>| {
            tokens?;
            let found = found.as_mut().map_err(|error| error.clone())?;
            found.next().map(score).ok_or(RewardError::Interrupted)
        };
        all.into_iter().map(|tokens| tokens.into_iter().map(&mut outcome).collect()).collect()
    }

    fn batch(&self) -> usize {
        BATCH
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use arriero_buffers::{Finish, Prompt};
    use serde_json::{Value, json};

    use super::super::{RewardConfig, TINY_REWARD_MODEL};
    use super::*;

    /// The conversations of the vectors, each as a group of one, with what transformers says.
    fn vectors() -> (Vec<Group>, Vec<f32>) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policy/tests/vectors/values.json");
        let text = std::fs::read_to_string(path).expect("it is in the repository");
        let vectors: Value = serde_json::from_str(&text).expect("JSON");
        let group = |conversation: &Value| {
            let message = |turn: &Value| {
                let role = serde_json::from_value(turn[0].clone()).expect("a role");
                Message::new(role, turn[1].as_str().expect("a text"))
            };
            let mut messages: Vec<Message> =
                conversation.as_array().expect("turns").iter().map(message).collect();
            let answer = messages.pop().expect("an answer").content;
            let completion = Completion::given(0, Vec::new(), answer, Finish::EndOfTurn);
            let prompt = Arc::new(Prompt { id: 7, messages, checks: Value::Null });
            Group { prompt, prompt_tokens: Vec::new(), completions: vec![completion] }
        };
        let groups = vectors["conversations"].as_array().expect("conversations").iter().map(group);
        let scores = vectors["scores"]
            .as_array()
            .expect("scores")
            .iter()
            .map(|score| score.as_f64().unwrap_or(0.0) as f32);
        (groups.collect(), scores.collect())
    }

    fn config() -> RewardConfig {
        let value =
            json!({"kind": "reward_model", "path": TINY_REWARD_MODEL, "device": "cpu", "dtype": "f32"});
        serde_json::from_value(value).expect("a reward")
    }

    fn close(found: &[Score], expected: f32) -> bool {
        found.len() == 1 && (found[0].reward - expected).abs() < 1e-4
    }

    #[test]
    fn scores_equal_transformers_for_texts_and_for_samples() {
        let (groups, expected) = vectors();
        let mut scorer = config().build().expect("it loads");
        for (group, expected) in groups.iter().zip(&expected) {
            let found = scorer.score(group).expect("a score");
            assert!(close(&found, *expected), "{found:?}, not {expected}");
        }
        // The same as samples of a policy: with the end of the turn, or cut short before it.
        let Checkpoint { config, weights, tokenizer } =
            Checkpoint::open_reward_model(Path::new(TINY_REWARD_MODEL)).expect("it loads");
        let model = Model::new(&config, &weights, Compute::CPU_F32).expect("it fits");
        let mut scorer = RewardModelScorer::new(model, tokenizer.clone(), 64).expect("it has a head");
        for ending in [&[2][..], &[]] {
            let sampled = |group: &Group| {
                let mut group = group.clone();
                group.prompt_tokens = tokenizer.prompt_tokens(&group.prompt.messages).expect("tokens");
                let completion = &mut group.completions[0];
                let mut tokens = tokenizer.encode(&completion.text).expect("tokens");
                tokens.extend(ending);
                *completion = Completion::given(0, tokens, "not looked at", Finish::EndOfTurn);
                group
            };
            let groups: Vec<Group> = groups.iter().map(sampled).collect();
            let found = scorer.score_groups(&groups.iter().collect::<Vec<_>>());
            for (found, expected) in found.into_iter().zip(&expected) {
                let found = found.into_iter().collect::<Result<Vec<_>, _>>().expect("a score");
                assert!(close(&found, *expected), "{found:?}, not {expected}");
            }
        }
    }

    #[test]
    fn what_is_too_long_is_named_and_leaves_the_others_alone() {
        let (groups, expected) = vectors();
        let mut long = groups[0].clone();
        long.completions[0].text = "rain ".repeat(300);
        let Checkpoint { config, weights, tokenizer } =
            Checkpoint::open_reward_model(Path::new(TINY_REWARD_MODEL)).expect("it loads");
        let model = Model::new(&config, &weights, Compute::CPU_F32).expect("it fits");
        let mut scorer = RewardModelScorer { model, tokenizer, input: InputFormat::Text, batch_tokens: 1000 };
        // Beside it in its group, and in another.
        long.completions.push(groups[0].completions[0].clone());
        let found = scorer.score_groups(&[&long, &groups[1]]);
        let error = found[0][0].as_ref().expect_err("too long").to_string();
        assert!(
            error.contains("prompt 7, sample 0: the conversation has") && error.contains("256"),
            "{error}"
        );
        for (outcome, expected) in [(&found[0][1], expected[0]), (&found[1][0], expected[1])] {
            assert!(close(&[outcome.clone().expect("a score")], expected), "{outcome:?}");
        }
    }

    #[test]
    fn a_part_of_a_composite_like_any_other() {
        let (groups, expected) = vectors();
        let config: RewardConfig = serde_json::from_value(json!({"kind": "composite", "parts": [
            {"weight": 0.5, "reward": config()},
            {"reward": {"kind": "contains", "text": "rains"}},
        ]}))
        .expect("a reward");
        let found = config.build().expect("it loads").score(&groups[0]).expect("a score");
        assert!(close(&found, 0.5 * expected[0] + 1.0), "{found:?}");
        assert!((found[0].components["reward_model/score"] - expected[0]).abs() < 1e-4, "{found:?}");
    }

    #[test]
    fn models_without_a_score_are_refused() {
        let tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tiny");
        for (path, cause) in [
            ("", "path is \"\""),
            ("no/such/folder", "there is no model at no/such/folder"),
            (tiny, "is a reward model without a value head"),
        ] {
            let config = RewardModelConfig { path: path.into(), ..RewardModelConfig::default() };
            let error = config.validate().expect_err("refused");
            assert!(error.contains(cause), "{error}");
        }
    }
}
