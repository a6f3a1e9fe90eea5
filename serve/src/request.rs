//! A client's request, validated.

use arriero_buffers::{Message, Role};
use arriero_policy::sampling::SamplingConfig;
use serde_json::Value;

use crate::error::ApiError;
use crate::fields::{Fields, Neutral};

/// Stop strings of a request.
const MAX_STOPS: usize = 16;
/// Alternatives of a token, as OpenAI's.
const MAX_ALTERNATIVES: usize = 20;

/// The options that both endpoints have.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Options {
    /// `max_new_tokens` is not decided yet: see `max_tokens`.
    pub sampling: SamplingConfig,
    pub max_tokens: Option<usize>,
    pub samples: usize,
    pub seed: Option<u64>,
    pub stream: bool,
    pub include_usage: bool,
    /// Report log-probabilities, and of how many alternatives.
    pub logprobs: Option<usize>,
}

/// The body of `/v1/chat/completions`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ChatRequest {
    pub messages: Vec<Message>,
    pub options: Options,
}

/// The body of `/v1/completions`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CompletionRequest {
    pub prompts: Vec<CompletionPrompt>,
    pub options: Options,
}

/// What is to be continued.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum CompletionPrompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// What the server itself sets.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    pub model: String,
    pub vocabulary: usize,
    /// The most samples of a prompt.
    pub batch: usize,
    /// The most sequences of a request.
    pub slots: usize,
}

impl ChatRequest {
    pub fn read(mut fields: Fields, limits: &Limits) -> Result<Self, ApiError> {
        let messages: Vec<Value> = fields.require("messages", "a list of messages")?;
        if messages.is_empty() {
            return Err(fields.error("messages", "is empty; expected at least one message"));
        }
        let messages = messages.into_iter().enumerate().map(|(index, value)| message(index, value));
        let messages = messages.collect::<Result<_, _>>()?;
        let logprobs: Option<bool> = fields.take("logprobs", "true or false")?;
        let top: Option<usize> = fields.take("top_logprobs", WHOLE)?;
        let logprobs = match (logprobs.unwrap_or(false), top) {
            (false, Some(top)) if top > 0 => {
                return Err(fields.error("top_logprobs", format!("is {top}, but logprobs is not true")));
            }
            (false, _) => None,
            (true, top) => Some(at_most(&fields, "top_logprobs", top.unwrap_or(0), MAX_ALTERNATIVES)?),
        };
        fields.ignore(&[
            ("function_call", Neutral::Text(&["none", "auto"])),
            ("functions", Neutral::Empty),
            ("modalities", Neutral::TextOnly),
            ("parallel_tool_calls", Neutral::Label),
            ("response_format", Neutral::PlainText),
            ("tool_choice", Neutral::Text(&["none", "auto"])),
            ("tools", Neutral::Empty),
        ])?;
        let max: Option<usize> = fields.take("max_completion_tokens", WHOLE)?;
        let options = options(fields, limits, max, logprobs)?;
        Ok(ChatRequest { messages, options })
    }
}

impl CompletionRequest {
    pub fn read(mut fields: Fields, limits: &Limits) -> Result<Self, ApiError> {
        let expected = "a text, a list of texts, token ids, or a list of lists of token ids";
        let prompt: Value = fields.require("prompt", expected)?;
        let wrong = |fields: &Fields| fields.error("prompt", format!("is wrong; expected {expected}"));
        let ids = |value: &Value| serde_json::from_value::<Vec<u32>>(value.clone()).ok();
        let prompts = match &prompt {
            Value::String(text) => vec![CompletionPrompt::Text(text.clone())],
            Value::Array(values) if values.is_empty() => {
                return Err(fields.error("prompt", "is an empty list; expected at least one prompt"));
            }
            Value::Array(values) if values.iter().all(Value::is_number) => {
                vec![CompletionPrompt::Tokens(ids(&prompt).ok_or_else(|| wrong(&fields))?)]
            }
            Value::Array(values) => {
                let one = |value: &Value| match value {
                    Value::String(text) => Some(CompletionPrompt::Text(text.clone())),
                    value => ids(value).map(CompletionPrompt::Tokens),
                };
                values.iter().map(one).collect::<Option<_>>().ok_or_else(|| wrong(&fields))?
            }
            _ => return Err(wrong(&fields)),
        };
        for prompt in &prompts {
            if let CompletionPrompt::Tokens(tokens) = prompt
                && let Some(token) = tokens.iter().find(|&&token| token as usize >= limits.vocabulary)
            {
                let message = format!("has the token {token}; the model has {} tokens", limits.vocabulary);
                return Err(fields.error("prompt", message));
            }
        }
        let logprobs: Option<usize> = fields.take("logprobs", WHOLE)?;
        let logprobs = logprobs.map(|top| at_most(&fields, "logprobs", top, MAX_ALTERNATIVES)).transpose()?;
        fields.ignore(&[("best_of", Neutral::One), ("echo", Neutral::False), ("suffix", Neutral::Empty)])?;
        let options = options(fields, limits, None, logprobs)?;
        let sequences = prompts.len().saturating_mul(options.samples);
        if sequences > limits.slots {
            let message = format!(
                "has {} prompts, with n that is {sequences} answers; this server takes {} at once",
                prompts.len(),
                limits.slots
            );
            return Err(ApiError::invalid_field("prompt", message));
        }
        Ok(CompletionRequest { prompts, options })
    }
}

const WHOLE: &str = "a whole number of at least 0";

fn at_most(fields: &Fields, name: &str, value: usize, most: usize) -> Result<usize, ApiError> {
    if value > most {
        return Err(fields.error(name, format!("is {value}; it must be at most {most}")));
    }
    Ok(value)
}

/// Reads the rest of a body.
fn options(
    mut fields: Fields,
    limits: &Limits,
    max_completion_tokens: Option<usize>,
    logprobs: Option<usize>,
) -> Result<Options, ApiError> {
    let model: Option<String> = fields.take("model", "a text")?;
    if let Some(model) = model.filter(|model| *model != limits.model) {
        return Err(ApiError::model_not_found(&model, &limits.model));
    }
    let max_tokens: Option<usize> = fields.take("max_tokens", WHOLE)?;
    if let (Some(one), Some(other)) = (max_tokens, max_completion_tokens)
        && one != other
    {
        return Err(fields.error("max_tokens", format!("is {one}, but max_completion_tokens is {other}")));
    }
    let (max_tokens, named) = match max_completion_tokens {
        Some(max) => (Some(max), "max_completion_tokens"),
        None => (max_tokens, "max_tokens"),
    };
    if max_tokens == Some(0) {
        return Err(fields.error(named, "is 0; it must be at least 1"));
    }
    let samples = fields.take("n", "a whole number of at least 1")?.unwrap_or(1);
    if !(1..=limits.batch).contains(&samples) {
        let message = format!("is {samples}; it must be at least 1 and at most {}", limits.batch);
        return Err(fields.error("n", message));
    }
    let seed = match fields.value("seed") {
        None => None,
        Some(value) => {
            let seed = value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned));
            Some(seed.ok_or_else(|| fields.error("seed", format!("is {value}; expected a whole number")))?)
        }
    };
    let number = "a number";
    let sampling = SamplingConfig {
        max_new_tokens: 1,
        temperature: fields.take("temperature", number)?.unwrap_or(1.0),
        top_k: top_k(&mut fields)?,
        top_p: fields.take("top_p", number)?.unwrap_or(1.0),
        min_p: fields.take("min_p", number)?.unwrap_or(0.0),
        stop: stops(&mut fields)?,
    };
    sampling.validate().map_err(|sentence| {
        let (name, message) = sentence.split_once(' ').unwrap_or((&sentence, ""));
        fields.error(name, message)
    })?;
    let stream = fields.take("stream", "true or false")?.unwrap_or(false);
    let include_usage = match fields.value("stream_options") {
        None => false,
        Some(_) if !stream => return Err(fields.error("stream_options", "is given, but stream is not true")),
        Some(value) => {
            let mut inner = Fields::nested("stream_options", value)?;
            let include_usage = inner.take("include_usage", "true or false")?.unwrap_or(false);
            inner.ignore(&[("include_obfuscation", Neutral::False)])?;
            inner.finish()?;
            include_usage
        }
    };
    fields.ignore(&[
        ("frequency_penalty", Neutral::Zero),
        ("logit_bias", Neutral::Empty),
        ("metadata", Neutral::Label),
        ("presence_penalty", Neutral::Zero),
        ("prompt_cache_key", Neutral::Label),
        ("repetition_penalty", Neutral::One),
        ("safety_identifier", Neutral::Label),
        ("service_tier", Neutral::Text(&["auto", "default"])),
        ("store", Neutral::False),
        ("user", Neutral::Label),
    ])?;
    fields.finish()?;
    Ok(Options { sampling, max_tokens, samples, seed, stream, include_usage, logprobs })
}

/// Other servers take -1 for all tokens.
fn top_k(fields: &mut Fields) -> Result<usize, ApiError> {
    match fields.take::<i64>("top_k", "a whole number")? {
        None | Some(-1) => Ok(0),
        Some(k) => {
            usize::try_from(k).map_err(|_| fields.error("top_k", format!("is {k}; 0 or -1 means all")))
        }
    }
}

fn stops(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let stops = match fields.value("stop") {
        None => Vec::new(),
        Some(Value::String(stop)) => vec![stop],
        Some(value) => serde_json::from_value(value)
            .map_err(|_| fields.error("stop", "is wrong; expected a text or a list of texts"))?,
    };
    if stops.len() > MAX_STOPS {
        return Err(fields.error("stop", format!("has {} texts; it may have {MAX_STOPS}", stops.len())));
    }
    Ok(stops)
}

fn message(index: usize, value: Value) -> Result<Message, ApiError> {
    let mut fields = Fields::nested(&format!("messages[{index}]"), value)?;
    let roles = "system, developer, user, assistant or tool";
    let role: String = fields.require("role", roles)?;
    let role = match role.as_str() {
        // The newer name of the same.
        "system" | "developer" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" => Role::Tool,
        other => return Err(fields.error("role", format!("is \"{other}\"; expected {roles}"))),
    };
    let content = match fields.value("content") {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => {
            let name = fields.name("content");
            let parts = parts.into_iter().enumerate();
            parts
                .map(|(part, value)| text_part(&format!("{name}[{part}]"), value))
                .collect::<Result<_, _>>()?
        }
        _ => {
            return Err(
                fields.error("content", "is missing or wrong; expected a text or a list of text parts")
            );
        }
    };
    // What comes with an assistant's message when a client sends it back.
    fields.ignore(&[
        ("annotations", Neutral::Empty),
        ("refusal", Neutral::Empty),
        ("tool_calls", Neutral::Empty),
    ])?;
    let tool_call_id = match role {
        Role::Tool => fields.take("tool_call_id", "a text")?,
        _ => None,
    };
    fields.finish()?;
    Ok(Message { tool_call_id, ..Message::new(role, content) })
}

fn text_part(name: &str, value: Value) -> Result<String, ApiError> {
    let mut fields = Fields::nested(name, value)?;
    let kind: String = fields.require("type", "\"text\"")?;
    if kind != "text" {
        return Err(fields.error("type", format!("is \"{kind}\"; this server reads \"text\" only")));
    }
    let text = fields.require("text", "a text")?;
    fields.finish()?;
    Ok(text)
}
