//! An HTTP endpoint of the user's: it is posted completions, and answers with rewards.

use std::collections::BTreeMap;
use std::time::Duration;

use arriero_buffers::{Group, Score};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::program::check_seconds;
use super::protocol::{Item, Unit, items, matched, regroup};
use super::{Outcomes, Scorer, ScorerConfig};
use crate::cancellation::CancellationToken;
use crate::client::{Client, ClientOptions, RequestError};
use crate::error::{RewardError, quoted};

/// The options of the `http` reward.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpConfig {
    /// Where to post, such as `http://127.0.0.1:8000/score`. No default: it must be given.
    pub url: String,
    /// The environment variable of a key that is sent as `Authorization: Bearer …`. Default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key_env: Option<String>,
    /// Headers beside. A value that begins with `$` names an environment variable. Default none.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// What one item of a request is about. Default a completion.
    pub unit: Unit,
    /// Items of a request, at least 1. Default 16.
    pub batch: usize,
    /// Whether every reward must come with the `id` of its item. Default false: those that come with one must have
    /// the right one.
    pub require_ids: bool,
    /// Seconds that one try may take. Default 60.
    pub timeout: f64,
    /// Tries after the first, where the server cannot be reached, is too slow or busy, or fails. Default 3.
    pub retries: u32,
    /// Requests under way at once. Default 4.
    pub max_in_flight: usize,
    /// Tries that begin in a minute. Default any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<f64>,
}

impl Default for HttpConfig {
    fn default() -> Self {
        HttpConfig {
            url: String::new(),
            api_key_env: None,
            headers: BTreeMap::new(),
            unit: Unit::Completion,
            batch: 16,
            require_ids: false,
            timeout: 60.0,
            retries: 3,
            max_in_flight: 4,
            requests_per_minute: None,
        }
    }
}

impl HttpConfig {
    fn client(&self) -> ClientOptions {
        ClientOptions {
            url: self.url.clone(),
            headers: self.headers.clone(),
            api_key_env: self.api_key_env.clone(),
            timeout: Duration::from_secs_f64(self.timeout),
            retries: self.retries,
            in_flight: self.max_in_flight,
            per_minute: self.requests_per_minute,
        }
    }
}

impl ScorerConfig for HttpConfig {
    fn validate(&self) -> Result<(), String> {
        if self.batch == 0 {
            return Err("batch is 0, but must be at least 1".to_string());
        }
        check_seconds("timeout", self.timeout)?;
        self.client().validate()
    }

    fn compares_completions(&self) -> bool {
        self.unit == Unit::Group
    }

    fn scorer(&self) -> Result<Box<dyn Scorer>, RewardError> {
        let client = Client::new(self.client()).map_err(RewardError::Config)?;
        Ok(Box::new(HttpScorer {
            config: self.clone(),
            client,
            next_id: 0,
            cancellation: CancellationToken::default(),
        }))
    }
}

struct HttpScorer {
    config: HttpConfig,
    client: Client,
    /// The number of the next item: none is used twice.
    next_id: u64,
    cancellation: CancellationToken,
}

impl HttpScorer {
    /// The answers about the items of one request, whose ids run up from `first`.
    fn read(&self, items: &[Item], first: u64, answer: Result<Value, RequestError>) -> Vec<Outcomes> {
        let all = |cause: &str| items.iter().map(|item| item.failed(cause)).collect();
        let answer = match answer {
            Ok(answer) => answer,
            Err(RequestError::Interrupted) => return items.iter().map(Item::interrupted).collect(),
            Err(RequestError::Failed(cause)) => return all(&cause),
        };
        let url = &self.config.url;
        let list = match answer.get("rewards").unwrap_or(&answer) {
            Value::Array(list) => list,
            _ => {
                let answer = quoted(&answer.to_string());
                return all(&format!("{url} answered {answer}; expected {{\"rewards\": […]}}"));
            }
        };
        match matched(list, first, items.len(), self.config.require_ids) {
            Ok(answers) => items.iter().zip(answers).map(|(item, reward)| item.read(url, reward)).collect(),
            Err(cause) => all(&format!("{url} answered {cause}")),
        }
    }
}

/// The body of a request about items whose ids run up from `first`.
fn body(items: &[Item], first: u64) -> Value {
    let item = |(id, item): (u64, &Item)| {
        let mut members = Map::from_iter([("id".to_string(), Value::from(id))]);
        members.extend(item.request.clone());
        Value::Object(members)
    };
    json!({"items": (first..).zip(items).map(item).collect::<Vec<_>>()})
}

impl Scorer for HttpScorer {
    fn name(&self) -> &'static str {
        "http"
    }

    fn score(&mut self, group: &Group) -> Result<Vec<Score>, RewardError> {
        self.score_groups(&[group]).remove(0).into_iter().collect()
    }

    fn score_groups(&mut self, groups: &[&Group]) -> Vec<Outcomes> {
        let items = items(groups, self.config.unit);
        let firsts = (self.next_id..).step_by(self.config.batch);
        self.next_id += items.len() as u64;
        let batches = || items.chunks(self.config.batch).zip(firsts.clone());
        let bodies = batches().map(|(batch, first)| body(batch, first)).collect();
        let answers = self.client.post_all(bodies, &self.cancellation);
        let read = batches()
            .zip(answers)
            .flat_map(|((batch, first), answer)| self.read(batch, first, answer))
            .collect();
        regroup(groups.len(), &items, read)
    }

    fn batch(&self) -> usize {
        self.config.batch * self.config.max_in_flight
    }

    fn set_cancellation(&mut self, cancellation: &CancellationToken) {
        self.cancellation = cancellation.clone();
    }
}

#[cfg(test)]
mod tests;
