//! Asks a judge, many questions at once, and none twice.

use std::collections::HashMap;

use arriero_buffers::Message;
use serde_json::{Value, json};

use super::cache::{Cache, key};
use super::template::{VerdictParser, conversation, fill};
use super::verdict::{PairVerdict, Winner};
use super::{JudgeConfig, JudgeMode, ScorerConfig};
use crate::cancellation::CancellationToken;
use crate::client::{Client, RequestError};
use crate::error::RewardError;
use crate::error::quoted;

/// A completion to be rated.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// What was asked.
    pub prompt: &'a [Message],
    /// The right answer, where the template shows it.
    pub answer: Option<&'a str>,
    /// What is rated.
    pub completion: &'a str,
}

/// Two completions to be compared.
#[derive(Debug, Clone, Copy)]
pub struct Comparison<'a> {
    /// What was asked.
    pub prompt: &'a [Message],
    /// The right answer, where the template shows it.
    pub answer: Option<&'a str>,
    /// One completion.
    pub a: &'a str,
    /// The other.
    pub b: &'a str,
}

/// A model on a server that rates or compares, as its [`JudgeConfig`] says.
#[derive(Debug)]
pub struct Judge {
    config: JudgeConfig,
    client: Client,
    cache: Cache,
    reading: VerdictParser,
    cancellation: CancellationToken,
}

impl Judge {
    /// Makes no connection yet.
    ///
    /// # Errors
    /// If an option is out of its range, the key's environment variable is not set, or the cache cannot be used.
    pub fn new(config: &JudgeConfig) -> Result<Self, RewardError> {
        config.validate().map_err(RewardError::Config)?;
        Ok(Judge {
            client: Client::new(config.client()).map_err(RewardError::Config)?,
            cache: Cache::open(config.cache.as_deref()).map_err(RewardError::Config)?,
            reading: VerdictParser::new(&config.pattern, config.mode).map_err(RewardError::Config)?,
            config: config.clone(),
            cancellation: CancellationToken::default(),
        })
    }

    /// Takes the token that ends its waiting.
    pub fn set_cancellation(&mut self, cancellation: &CancellationToken) {
        self.cancellation = cancellation.clone();
    }

    /// Rates one completion in mode pointwise: a number of the scale.
    ///
    /// # Errors
    /// If the server gives no answer, or the judge none that says a number.
    pub fn rate(&self, question: Question<'_>) -> Result<f64, RequestError> {
        self.rate_all(&[question]).remove(0)
    }

    /// Rates several, as [`Judge::rate`], in their order.
    pub fn rate_all(&self, questions: &[Question<'_>]) -> Vec<Result<f64, RequestError>> {
        let bodies = questions.iter().map(|question| {
            self.body(question.prompt, question.answer, &[("completion", question.completion)])
        });
        let rating = |answer: &str| self.reading.rating(answer, self.config.scale);
        self.ask_all(bodies.collect(), JudgeMode::Pointwise, rating)
    }

    /// Compares two completions in mode pairwise, in both orders.
    ///
    /// # Errors
    /// If the server gives no answer in one of the orders, or the judge none that says who wins.
    pub fn compare(&self, prompt: &[Message], a: &str, b: &str) -> Result<PairVerdict, RequestError> {
        self.compare_all(&[Comparison { prompt, answer: None, a, b }]).remove(0)
    }

    /// Compares several pairs, as [`Judge::compare`], in their order.
    pub fn compare_all(&self, pairs: &[Comparison<'_>]) -> Vec<Result<PairVerdict, RequestError>> {
        let bodies = pairs.iter().flat_map(|&Comparison { prompt, answer, a, b }| {
            [[("a", a), ("b", b)], [("a", b), ("b", a)]].map(|shown| self.body(prompt, answer, &shown))
        });
        let winners =
            self.ask_all(bodies.collect(), JudgeMode::Pairwise, |answer| self.reading.winner(answer));
        let verdict = |pair: &[Result<Winner, RequestError>]| {
            let [a_first, b_first] = pair else { return Err(RequestError::Interrupted) };
            Ok(PairVerdict { a_first: a_first.clone()?, b_first: b_first.clone()?.swapped() })
        };
        winners.chunks(2).map(verdict).collect()
    }

    /// A request.
    fn body(&self, prompt: &[Message], answer: Option<&str>, shown: &[(&str, &str)]) -> Value {
        let prompt = conversation(prompt);
        let [low, high] = self.config.scale.map(|bound| bound.to_string());
        let mut values = vec![("prompt", prompt.as_str()), ("low", &low), ("high", &high)];
        values.extend(answer.map(|answer| ("answer", answer)));
        values.extend(shown);
        let user = json!({"role": "user", "content": fill(self.config.template(), &values)});
        let system = json!({"role": "system", "content": self.config.system});
        let messages = if self.config.system.is_empty() { vec![user] } else { vec![system, user] };
        let mut body = json!({
            "model": self.config.model,
            "messages": messages,
            "temperature": self.config.temperature,
            "max_tokens": self.config.max_tokens,
        });
        if let Value::Object(members) = &mut body {
            members.extend(self.config.request.clone());
        }
        body
    }

    /// Asks what is not known yet, each request once, and reads the answers. Answers that say nothing are not kept.
    fn ask_all<T: Clone>(
        &self,
        bodies: Vec<Value>,
        mode: JudgeMode,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<Result<T, RequestError>> {
        if mode != self.config.mode {
            let cause = format!("the judge's mode is {:?}; this needs {mode:?}", self.config.mode);
            return bodies.iter().map(|_| Err(RequestError::Failed(cause.clone()))).collect();
        }
        let url = self.config.client().url;
        let keys: Vec<String> = bodies.iter().map(|body| key(&url, &body.to_string())).collect();
        let mut found: HashMap<&str, Result<T, RequestError>> = HashMap::new();
        let mut asked: Vec<(&str, Value)> = Vec::new();
        for (key, body) in keys.iter().zip(bodies) {
            if found.contains_key(key.as_str()) || asked.iter().any(|(other, _)| other == key) {
                continue;
            }
            match self.cache.get(key).and_then(|answer| read(&answer).ok()) {
                Some(known) => _ = found.insert(key, Ok(known)),
                None => asked.push((key.as_str(), body)),
            }
        }
        let (asked, bodies): (Vec<&str>, Vec<Value>) = asked.into_iter().unzip();
        for (key, answer) in asked.into_iter().zip(self.client.post_all(bodies, &self.cancellation)) {
            let outcome = answer.and_then(|answer| {
                let text = content(&answer).map_err(RequestError::Failed)?;
                let value = read(text).map_err(RequestError::Failed)?;
                self.cache.put(key.to_string(), text).map_err(RequestError::Failed)?;
                Ok(value)
            });
            found.insert(key, outcome);
        }
        keys.iter()
            .map(|key| found.get(key.as_str()).cloned().unwrap_or(Err(RequestError::Interrupted)))
            .collect()
    }
}

/// The text of an answer.
fn content(answer: &Value) -> Result<&str, String> {
    let content = &answer["choices"][0]["message"]["content"];
    content.as_str().ok_or_else(|| {
        let answer = quoted(&answer.to_string());
        format!(
            "the server answered {answer}; expected choices[0].message.content as OpenAI's servers have it"
        )
    })
}
