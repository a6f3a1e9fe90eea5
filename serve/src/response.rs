//! Responses as OpenAI's JSON, from the engine's tokens: whole, or as a stream of chunks.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::{SystemTime, UNIX_EPOCH};

use arriero_buffers::Finish;
use arriero_policy::generate::DrawnToken;
use arriero_policy::tokenizer::Tokenizer;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use crate::error::ApiError;
use crate::scheduler::TokenEvent;

/// What JSON has in place of an infinite log-probability, as OpenAI's.
const MIN_LOGPROB: f32 = -9999.0;

/// Which endpoint answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Chat,
    Completions,
}

/// Makes the response to a request; what its choices have in common.
pub(crate) struct ResponseBuilder {
    pub endpoint: Endpoint,
    /// Distinguishes answers; without the endpoint's prefix.
    pub id: u64,
    pub model: String,
    pub tokenizer: Tokenizer,
    pub prompts: usize,
    pub samples: usize,
    pub prompt_tokens: usize,
    pub logprobs: bool,
    pub include_usage: bool,
}

/// One sample as far as it has come.
#[derive(Debug, Clone, Default)]
struct Choice {
    text: String,
    logprobs: Logprobs,
    finish: Option<Finish>,
}

/// Log-probabilities of the tokens of a choice or of a chunk.
#[derive(Debug, Clone, Default)]
struct Logprobs {
    tokens: Vec<TokenLogprobs>,
}

#[derive(Debug, Clone)]
struct TokenLogprobs {
    bytes: Vec<u8>,
    logprob: f32,
    top: Vec<(Vec<u8>, f32)>,
    /// Characters of the choice's tokens before this one.
    offset: usize,
}

/// The error when no more tokens come.
fn engine_stopped() -> ApiError {
    ApiError::internal("the engine stopped before the answer was complete")
}

impl ResponseBuilder {
    /// The whole response, when all tokens are there.
    pub async fn whole(self, mut events: mpsc::Receiver<TokenEvent>) -> Result<Value, ApiError> {
        let mut choices = vec![Choice::default(); self.prompts * self.samples];
        let (mut open, mut completion_tokens) = (choices.len(), 0);
        let mut offsets = vec![TextOffset::default(); choices.len()];
        while open > 0 {
            let (prompt, drawn) =
                events.recv().await.ok_or_else(engine_stopped)?.map_err(ApiError::internal)?;
            let index = prompt * self.samples + drawn.sample as usize;
            completion_tokens += 1;
            if self.logprobs {
                choices[index].logprobs.tokens.push(self.token(&drawn, &mut offsets[index]));
            }
            choices[index].text.push_str(&drawn.text);
            if drawn.finish.is_some() {
                choices[index].finish = drawn.finish;
                open -= 1;
            }
        }
        let choices: Vec<Value> =
            choices.into_iter().enumerate().map(|(index, choice)| self.choice(index, choice)).collect();
        let mut body = self.envelope(false);
        body.insert("choices".to_string(), Value::Array(choices));
        body.insert("usage".to_string(), self.usage(completion_tokens));
        Ok(Value::Object(body))
    }

    /// Server-sent events: a chunk for each token as it comes.
    pub fn stream(self, events: mpsc::Receiver<TokenEvent>) -> Response {
        let choices = self.prompts * self.samples;
        let mut chunks = ChunkStream {
            events,
            ready: VecDeque::new(),
            open: choices,
            completion_tokens: 0,
            offsets: vec![TextOffset::default(); choices],
            builder: self,
        };
        if chunks.builder.endpoint == Endpoint::Chat {
            for index in 0..choices {
                let delta = json!({ "role": "assistant", "content": "" });
                chunks.chunk(
                    json!({ "index": index, "delta": delta, "logprobs": null, "finish_reason": null }),
                );
            }
        }
        let events = stream::unfold(chunks, |mut chunks| async move {
            let event = chunks.next().await?;
            Some((Ok::<_, Infallible>(Event::default().data(event)), chunks))
        });
        Sse::new(events).keep_alive(KeepAlive::default()).into_response()
    }

    /// What whole answers and chunks have in common.
    fn envelope(&self, chunk: bool) -> Map<String, Value> {
        let (prefix, object) = match (self.endpoint, chunk) {
            (Endpoint::Chat, false) => ("chatcmpl", "chat.completion"),
            (Endpoint::Chat, true) => ("chatcmpl", "chat.completion.chunk"),
            (Endpoint::Completions, _) => ("cmpl", "text_completion"),
        };
        let mut envelope = Map::new();
        let mut put = |key: &str, value: Value| envelope.insert(key.to_string(), value);
        put("id", json!(format!("{prefix}-{:016x}", self.id)));
        put("object", json!(object));
        put("created", json!(now()));
        put("model", json!(self.model));
        envelope
    }

    fn usage(&self, completion_tokens: usize) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": self.prompt_tokens + completion_tokens,
        })
    }

    /// A choice of a whole answer.
    fn choice(&self, index: usize, choice: Choice) -> Value {
        let logprobs = if self.logprobs { self.logprobs(&choice.logprobs) } else { Value::Null };
        let finish = choice.finish.map(finish_reason);
        match self.endpoint {
            Endpoint::Chat => {
                let message = json!({ "role": "assistant", "content": choice.text, "refusal": null });
                json!({ "index": index, "message": message, "logprobs": logprobs, "finish_reason": finish })
            }
            Endpoint::Completions => {
                json!({ "index": index, "text": choice.text, "logprobs": logprobs, "finish_reason": finish })
            }
        }
    }

    fn token(&self, drawn: &DrawnToken, offset: &mut TextOffset) -> TokenLogprobs {
        let bytes = |token: u32| self.tokenizer.token_bytes(token);
        let top = drawn.alternatives.iter().map(|other| (bytes(other.token), other.logp)).collect();
        let own = bytes(drawn.draw.token);
        let before = offset.characters;
        // The text that is returned leaves markers out.
        if !self.tokenizer.is_special(drawn.draw.token) {
            offset.advance(&own);
        }
        TokenLogprobs { bytes: own, logprob: drawn.draw.logp, top, offset: before }
    }

    fn logprobs(&self, logprobs: &Logprobs) -> Value {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let number = |logprob: f32| logprob.max(MIN_LOGPROB);
        let tokens = &logprobs.tokens;
        match self.endpoint {
            Endpoint::Chat => {
                let entry = |bytes: &[u8], logprob: f32| json!({ "token": text(bytes), "logprob": number(logprob), "bytes": bytes });
                let content = tokens.iter().map(|token| {
                    let top: Vec<Value> =
                        token.top.iter().map(|(bytes, logprob)| entry(bytes, *logprob)).collect();
                    let mut entry = entry(&token.bytes, token.logprob);
                    entry["top_logprobs"] = Value::Array(top);
                    entry
                });
                json!({ "content": content.collect::<Vec<_>>(), "refusal": null })
            }
            Endpoint::Completions => {
                // Pieces of characters may read the same; the most probable one stays.
                let top = |token: &TokenLogprobs| -> Map<String, Value> {
                    token
                        .top
                        .iter()
                        .rev()
                        .map(|(bytes, logprob)| (text(bytes), json!(number(*logprob))))
                        .collect()
                };
                json!({
                    "tokens": tokens.iter().map(|token| text(&token.bytes)).collect::<Vec<_>>(),
                    "token_logprobs": tokens.iter().map(|token| number(token.logprob)).collect::<Vec<_>>(),
                    "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
                    "text_offset": tokens.iter().map(|token| token.offset).collect::<Vec<_>>(),
                })
            }
        }
    }
}

/// How long the text of a choice is so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct TextOffset {
    /// Its whole characters; bytes that make none are one U+FFFD each run, as the text has them.
    characters: usize,
    /// The beginning of a character that the next token may complete.
    begun: Vec<u8>,
}

impl TextOffset {
    fn advance(&mut self, bytes: &[u8]) {
        self.begun.extend(bytes);
        let mut rest = &self.begun[..];
        let begun = loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    self.characters += text.chars().count();
                    break Vec::new();
                }
                Err(error) => {
                    let (text, other) = rest.split_at(error.valid_up_to());
                    self.characters += String::from_utf8_lossy(text).chars().count();
                    let Some(broken) = error.error_len() else { break other.to_vec() };
                    self.characters += 1;
                    rest = &other[broken..];
                }
            }
        };
        self.begun = begun;
    }
}

/// A response as the chunks that are sent so far.
struct ChunkStream {
    builder: ResponseBuilder,
    events: mpsc::Receiver<TokenEvent>,
    ready: VecDeque<String>,
    /// Choices that have not ended.
    open: usize,
    completion_tokens: usize,
    /// Of each choice: the text so far.
    offsets: Vec<TextOffset>,
}

impl ChunkStream {
    /// The next event's data.
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(ready) = self.ready.pop_front() {
                return Some(ready);
            }
            if self.open == 0 {
                return None;
            }
            match self.events.recv().await {
                Some(Ok((prompt, drawn))) => self.push(prompt, drawn),
                Some(Err(message)) => self.fail(&ApiError::internal(message)),
                None => self.fail(&engine_stopped()),
            }
        }
    }

    fn fail(&mut self, error: &ApiError) {
        self.ready.push_back(error.json().to_string());
        self.open = 0;
    }

    fn push(&mut self, prompt: usize, drawn: DrawnToken) {
        let builder = &self.builder;
        let index = prompt * builder.samples + drawn.sample as usize;
        self.completion_tokens += 1;
        let logprobs = if builder.logprobs {
            let tokens = vec![builder.token(&drawn, &mut self.offsets[index])];
            builder.logprobs(&Logprobs { tokens })
        } else {
            Value::Null
        };
        let choice = |text: Option<&str>, logprobs: Value, finish: Option<&str>| match builder.endpoint {
            Endpoint::Chat => {
                let delta = text.map_or(json!({}), |text| json!({ "content": text }));
                json!({ "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish })
            }
            Endpoint::Completions => {
                let text = text.unwrap_or_default();
                json!({ "index": index, "text": text, "logprobs": logprobs, "finish_reason": finish })
            }
        };
        let mut chunks = Vec::new();
        if !drawn.text.is_empty() || builder.logprobs {
            chunks.push(choice(Some(&drawn.text), logprobs, None));
        }
        if let Some(finish) = drawn.finish {
            chunks.push(choice(None, Value::Null, Some(finish_reason(finish))));
            self.open -= 1;
        }
        for chunk in chunks {
            self.chunk(chunk);
        }
        if self.open == 0 {
            if self.builder.include_usage {
                let mut body = self.builder.envelope(true);
                body.insert("choices".to_string(), json!([]));
                body.insert("usage".to_string(), self.builder.usage(self.completion_tokens));
                self.ready.push_back(Value::Object(body).to_string());
            }
            self.ready.push_back("[DONE]".to_string());
        }
    }

    fn chunk(&mut self, choice: Value) {
        let mut body = self.builder.envelope(true);
        body.insert("choices".to_string(), json!([choice]));
        if self.builder.include_usage {
            body.insert("usage".to_string(), Value::Null);
        }
        self.ready.push_back(Value::Object(body).to_string());
    }
}

fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::EndOfTurn | Finish::Stop => "stop",
        Finish::Length => "length",
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |duration| duration.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_count_characters_and_not_their_pieces() {
        let mut offset = TextOffset::default();
        let mut after = |bytes: &[u8]| {
            offset.advance(bytes);
            offset.characters
        };
        assert_eq!(after("né".as_bytes()), 2);
        // U+1F600 in three tokens counts once it is whole.
        assert_eq!([after(b"\xf0\x9f"), after(b"\x98"), after(b"\x80")], [2, 2, 3]);
        // A byte that begins a character that never comes is U+FFFD.
        assert_eq!([after(b"\xc3"), after(b"a")], [3, 5]);
        assert_eq!(after(b"\x80b"), 7);
    }
}
