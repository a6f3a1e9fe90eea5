//! Text to tokens and back, with the chat template that belongs to the vocabulary.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use arriero_buffers::Message;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::sequence::Sequence;

use crate::chat::{self, Ending, Extras, Rendered, Template};
use crate::error::{PolicyError, Result};

/// A tokenizer must cover at least this share of the embedding's rows: models pad their embedding by a
/// few per cent, another model's tokenizer misses by more.
const LEAST_COVERAGE: f64 = 0.9;

/// How the tokenizer that a GGUF file describes cuts text before it merges (docs/adr/0001-digits-in-gguf-tokenizers.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenizerRule {
    /// As the model was trained.
    #[default]
    Own,
    /// As transformers converts the file: digits are not cut off. For figures that are compared with transformers'.
    Transformers,
}

/// A tokenizer with its chat template. Cloning shares it.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    tokenizer: tokenizers::Tokenizer,
    special: HashSet<u32>,
    eos_ids: Vec<u32>,
    bos_id: Option<u32>,
    template: Option<Template>,
    /// The token that begins a text, and the one that ends one; empty where there is none.
    bos: String,
    eos: String,
    /// `tokenizer_config.json`, for checkpoints.
    config: Map<String, Value>,
}

/// What a model's files say beside the vocabulary itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct TokenizerFacts {
    pub eos_ids: Vec<u32>,
    pub bos_id: Option<u32>,
    /// The chat template's source and the file that it stands in.
    pub template: Option<(String, String)>,
    /// The special tokens by their names, where the files say them. A list of tokens that end a turn is no such name.
    pub special_tokens: Option<BTreeMap<String, String>>,
    pub config: Map<String, Value>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// From the text of a `tokenizer.json`.
    pub(crate) fn from_json(json: &str, facts: TokenizerFacts, path: &Path) -> Result<Self> {
        let mut tokenizer: tokenizers::Tokenizer =
            json.parse().map_err(|error: tokenizers::Error| PolicyError::broken(path, error))?;
        // Training tools leave these behind; prompts must come through whole.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| PolicyError::broken(path, error))?;
        let added = tokenizer.get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).collect();
        let text = |id: Option<u32>| id.and_then(|id| tokenizer.id_to_token(id)).unwrap_or_default();
        let ids = || {
            let tokens = [("bos_token", facts.bos_id), ("eos_token", facts.eos_ids.first().copied())];
            let named = tokens.map(|(name, id)| (name.to_string(), text(id)));
            named.into_iter().filter(|(_, token)| !token.is_empty()).collect()
        };
        let tokens: BTreeMap<String, String> = facts.special_tokens.clone().unwrap_or_else(ids);
        let named = |name: &str, id: Option<u32>| tokens.get(name).cloned().unwrap_or_else(|| text(id));
        let bos = named("bos_token", facts.bos_id);
        let eos = named("eos_token", facts.eos_ids.first().copied());
        let template = facts.template.map(|(source, file)| Template { source, file, tokens });
        Ok(Tokenizer(Arc::new(Inner {
            special,
            eos_ids: facts.eos_ids,
            bos_id: facts.bos_id,
            template,
            bos,
            eos,
            config: facts.config,
            tokenizer,
        })))
    }

    /// The same tokenizer, cutting text by this rule.
    #[must_use]
    pub fn with_rule(&self, rule: TokenizerRule) -> Self {
        let mut inner = (*self.0).clone();
        if let (TokenizerRule::Transformers, Some(PreTokenizerWrapper::Sequence(steps))) =
            (rule, inner.tokenizer.get_pre_tokenizer())
        {
            let digits = |step: &PreTokenizerWrapper| matches!(step, PreTokenizerWrapper::Digits(_));
            let rest = steps.as_ref().iter().filter(|step| !digits(step)).cloned().collect();
            inner.tokenizer.with_pre_tokenizer(Some(PreTokenizerWrapper::Sequence(Sequence::new(rest))));
        }
        Tokenizer(Arc::new(inner))
    }

    /// Checks that the tokenizer can belong to an embedding of `rows` rows.
    pub(crate) fn check_fits(&self, rows: usize, path: &Path) -> Result<()> {
        let highest_eos = self.0.eos_ids.iter().max().map_or(0, |&id| id as usize);
        let tokens = self.vocab_size().max(highest_eos + 1);
        if tokens > rows || (tokens as f64) < LEAST_COVERAGE * rows as f64 {
            return Err(PolicyError::WrongTokenizer {
                path: path.to_path_buf(),
                tokenizer: tokens,
                model: rows,
            });
        }
        Ok(())
    }

    /// The id that a token of this text has.
    pub(crate) fn id(&self, token: &str) -> Option<u32> {
        self.0.tokenizer.token_to_id(token)
    }

    /// The text of this id's token.
    pub(crate) fn token(&self, id: u32) -> Option<String> {
        self.0.tokenizer.id_to_token(id)
    }

    /// A token for padding that ends no turn, where there is one: the first special token.
    pub fn pad_id(&self) -> Option<u32> {
        self.0.special.iter().copied().filter(|id| !self.0.eos_ids.contains(id)).min()
    }

    /// Tokens of a text as it stands; special tokens in it are recognised, none are added.
    ///
    /// # Errors
    /// If the tokenizer refuses the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_with(text, false)
    }

    /// Tokens of a text that is to be continued: with those that the tokenizer puts before a text.
    ///
    /// # Errors
    /// If the tokenizer refuses the text.
    pub fn text_tokens(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_with(text, true)
    }

    fn encode_with(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = self.0.tokenizer.encode_fast(text, add_special);
        let encoding = encoding.map_err(|error| PolicyError::Tokenizer { cause: error.to_string() })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Tokens of a text, with those that the tokenizer puts before one if `add_special`, and where in it each stands, in
    /// bytes.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub(crate) fn encode_with_places(
        &self,
        text: &str,
        add_special: bool,
    ) -> Result<(Vec<u32>, Vec<Range<usize>>)> {
        let encoding = self.0.tokenizer.encode(text, add_special);
        let encoding = encoding.map_err(|error| PolicyError::Tokenizer { cause: error.to_string() })?;
        let places = encoding.get_offsets().iter().map(|&(start, end)| start..end).collect();
        Ok((encoding.get_ids().to_vec(), places))
    }

    /// The text of tokens.
    ///
    /// # Errors
    /// If the tokenizer refuses an id.
    pub fn decode(&self, tokens: &[u32], skip_special: bool) -> Result<String> {
        let text = self.0.tokenizer.decode(tokens, skip_special);
        text.map_err(|error| PolicyError::Tokenizer { cause: error.to_string() })
    }

    /// The bytes that a token stands for, which need not be whole characters; none for an id that no
    /// token has.
    pub fn token_bytes(&self, token: u32) -> Vec<u8> {
        let Some(piece) = self.0.tokenizer.id_to_token(token) else { return Vec::new() };
        if self.0.special.contains(&token) {
            return piece.into_bytes();
        }
        let hex = piece.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
        if let Some(byte) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            return vec![byte];
        }
        let text = self.decode(&[token], false).unwrap_or_default();
        if text.contains(char::REPLACEMENT_CHARACTER) {
            // A part of a character: byte-level vocabularies write each byte as a character of its own.
            return piece.chars().map(byte_of).collect::<Option<_>>().unwrap_or(piece.into_bytes());
        }
        // Decoded alone, a token loses the space that SentencePiece writes as U+2581.
        let lost = piece.starts_with('\u{2581}') && !text.starts_with(' ');
        if lost { format!(" {text}").into_bytes() } else { text.into_bytes() }
    }

    /// One more than the highest id.
    pub fn vocab_size(&self) -> usize {
        let added = self.0.tokenizer.get_added_tokens_decoder();
        let highest = added.keys().max().map_or(0, |&id| id as usize + 1);
        self.0.tokenizer.get_vocab_size(false).max(highest)
    }

    /// True for markers such as the end of a turn, which are no text.
    pub fn is_special(&self, token: u32) -> bool {
        self.0.special.contains(&token)
    }

    /// Tokens that end a turn.
    pub fn eos_ids(&self) -> &[u32] {
        &self.0.eos_ids
    }

    /// The text of the token that ends one: the tokenizer's own `eos_token`, which need not be the first of
    /// [`Tokenizer::eos_ids`]. Empty where there is none.
    pub fn eos_text(&self) -> &str {
        &self.0.eos
    }

    /// The token of [`Tokenizer::eos_text`].
    pub fn eos_id(&self) -> Option<u32> {
        self.id(&self.0.eos).or_else(|| self.0.eos_ids.first().copied())
    }

    /// The token that begins a text, where there is one.
    pub fn bos_id(&self) -> Option<u32> {
        self.0.bos_id
    }

    /// The Jinja source of the chat template.
    pub fn chat_template(&self) -> Option<&str> {
        self.0.template.as_ref().map(|template| &*template.source)
    }

    /// The text of a conversation up to the assistant's next turn. A model without a chat template
    /// continues the one message that it is given.
    ///
    /// # Errors
    /// If the template refuses the conversation, or there is none and the conversation has several turns.
    pub fn render(&self, messages: &[Message]) -> Result<String> {
        match (&self.0.template, messages) {
            (Some(template), messages) => {
                Ok(template.render(messages, Ending::Open, &Extras::default())?.text)
            }
            (None, [message]) if message.is_plain() => Ok(message.content.clone()),
            (None, [_]) => Err(PolicyError::Template { cause: chat::ONLY_TEXT.to_string() }),
            (None, messages) => Err(PolicyError::Template {
                cause: format!(
                    "the model has no chat template, so that a prompt must be one message, and this one has {}",
                    messages.len()
                ),
            }),
        }
    }

    /// The text of a conversation that is complete: nothing stands behind its last turn but what the template
    /// writes there.
    ///
    /// # Errors
    /// As [`Tokenizer::render`].
    pub(crate) fn render_closed(&self, messages: &[Message]) -> Result<Rendered> {
        match &self.0.template {
            Some(template) => template.render(messages, Ending::Closed, &Extras::default()),
            None => Ok(Rendered { text: self.render(messages)?, generated: None }),
        }
    }

    /// The tokens with which a conversation goes on after the text of the assistant's turn: the end of the turn, and
    /// what the chat template puts behind it.
    ///
    /// # Errors
    /// If the template refuses the plainest conversation.
    pub fn closing_tokens(&self) -> Result<Vec<u32>> {
        const ANSWER: &str = "ANSWER";
        if self.0.template.is_none() {
            return Ok(self.eos_id().into_iter().collect());
        }
        let answer = Message::assistant(ANSWER);
        let text = self.render_closed(&[Message::user("QUESTION"), answer])?.text;
        self.encode(text.rsplit_once(ANSWER).map_or("", |(_, closing)| closing))
    }

    /// The tokens of a conversation up to the assistant's next turn.
    ///
    /// # Errors
    /// As [`Tokenizer::render`] and [`Tokenizer::encode`].
    pub fn prompt_tokens(&self, messages: &[Message]) -> Result<Vec<u32>> {
        // A template writes its special tokens itself; plain text gets what the tokenizer adds.
        self.encode_with(&self.render(messages)?, self.0.template.is_none())
    }

    /// The text of `tokenizer.json`.
    pub(crate) fn to_json(&self) -> Result<String> {
        let json = self.0.tokenizer.to_string(true);
        json.map_err(|error| PolicyError::Tokenizer { cause: error.to_string() })
    }

    /// `tokenizer_config.json`, as it was read or as transformers needs it.
    pub(crate) fn config_json(&self) -> Value {
        let mut config = self.0.config.clone();
        let mut default = |key: &str, value: Value| {
            if !value.is_null() {
                config.entry(key).or_insert(value);
            }
        };
        let token = |text: &str| if text.is_empty() { Value::Null } else { json!(text) };
        default("tokenizer_class", json!("PreTrainedTokenizerFast"));
        default("bos_token", token(&self.0.bos));
        default("eos_token", token(&self.0.eos));
        default("pad_token", token(&self.0.eos));
        default("clean_up_tokenization_spaces", json!(false));
        if let Some(template) = &self.0.template {
            config.insert("chat_template".to_string(), json!(template.source));
        }
        Value::Object(config)
    }
}

/// The byte that a character of a byte-level vocabulary stands for. Printable ones stand for themselves;
/// the 68 others, in their order, are U+0100 and what follows (GPT-2's `bytes_to_unicode`).
fn byte_of(character: char) -> Option<u8> {
    let code = u32::from(character);
    let printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let byte = if printable(code) {
        Some(code)
    } else {
        let place = code.checked_sub(256)?;
        (0..256).filter(|&byte| !printable(byte)).nth(place as usize)
    };
    byte.and_then(|byte| u8::try_from(byte).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;

    #[test]
    fn the_bytes_of_tokens_make_the_text() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny");
        let (_, tokenizer) = Checkpoint::inspect(&path).expect("the fixture");
        // Every byte that UTF-8 uses above ASCII's printable ones, roughly: spaces, controls, 2 to 4 bytes.
        let text: String = (0u32..0x2400).chain(0x1F600..0x1F640).filter_map(char::from_u32).collect();
        let tokens = tokenizer.encode(&text).expect("it encodes");
        let bytes: Vec<u8> = tokens.iter().flat_map(|&token| tokenizer.token_bytes(token)).collect();
        assert_eq!(String::from_utf8(bytes).as_deref(), Ok(text.as_str()));
        assert_eq!(tokenizer.token_bytes(2), b"<|im_end|>");
        assert_eq!(tokenizer.token_bytes(99_999), b"");
    }
}
