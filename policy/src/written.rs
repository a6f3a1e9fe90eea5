//! Written conversations as tokens, each of which carries loss or does not: what rows of a dataset become.
//!
//! A completion is what a conversation has more than its prompt: the prompt ends where the tokens of the prompt alone,
//! with the header of the next answer, and those of the whole conversation part, as in TRL's trainers. What the chat
//! template writes behind an answer, be it an end-of-turn token or a line break, belongs to the answer.
//!
//! Where turns of others stand between, a turn is found in the text by what the template writes with and without it,
//! and a token belongs to the turn in which its text ends.

use std::ops::Range;

use arriero_buffers::{Branch, Message, Role};

use crate::chat::ONLY_TEXT;
use crate::error::{PolicyError, Result};
use crate::tokenizer::Tokenizer;

/// Tokens of which some carry loss.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Marked {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// True where the token carries loss; one entry a token.
    pub carries_loss: Vec<bool>,
}

impl Marked {
    /// All of these tokens carry loss.
    fn whole(tokens: Vec<u32>) -> Self {
        Marked { carries_loss: vec![true; tokens.len()], tokens }
    }

    /// Without its first `count` tokens.
    fn behind(mut self, count: usize) -> Self {
        self.tokens.drain(..count);
        self.carries_loss.drain(..count);
        self
    }

    /// Cuts it to at most `limit` tokens. True if something was cut off.
    pub fn truncate(&mut self, limit: usize) -> bool {
        let is_longer = self.tokens.len() > limit;
        self.tokens.truncate(limit);
        self.carries_loss.truncate(limit);
        is_longer
    }

    /// What stands before the first token that carries loss, and the rest.
    pub fn split(self) -> (Vec<u32>, Marked) {
        // The first token of a text has nothing that could predict it.
        let first = self.carries_loss.iter().skip(1).position(|&carries_loss| carries_loss);
        let prompt = first.map_or(self.tokens.len(), |first| first + 1);
        (self.tokens[..prompt].to_vec(), self.behind(prompt))
    }

    /// The response of a tree: up to the last token that carries loss. `None` where no token does.
    pub fn branch(mut self, tokenizer: &Tokenizer) -> Option<Branch> {
        let last = self.carries_loss.iter().rposition(|&carries_loss| carries_loss)?;
        self.truncate(last + 1);
        let mut is_format = Vec::new();
        // Whether a turn has ended: what the template writes behind it is no text, either.
        let mut has_ended = false;
        for (&token, &carries_loss) in self.tokens.iter().zip(&self.carries_loss) {
            has_ended &= carries_loss;
            if carries_loss {
                is_format.push(has_ended || tokenizer.is_special(token));
                has_ended |= tokenizer.eos_ids().contains(&token);
            }
        }
        let is_context = match self.carries_loss.contains(&false) {
            true => self.carries_loss.iter().map(|carries_loss| !carries_loss).collect(),
            false => Vec::new(),
        };
        Some(Branch { tokens: self.tokens, is_context, is_format, ..Branch::default() })
    }
}

/// A prompt's tokens, and those of its completions, in their order: every turn of one of `roles` carries loss.
///
/// The prompt ends where the first completion parts from it. A model without a chat template takes one message as the
/// prompt, one as the completion, and writes its end-of-text token behind it.
///
/// # Errors
/// If the chat template refuses the conversation, or shows a turn in another way where others follow.
pub fn completions(
    tokenizer: &Tokenizer,
    prompt: &[Message],
    completions: &[&[Message]],
    roles: &[Role],
) -> Result<(Vec<u32>, Vec<Marked>)> {
    if tokenizer.chat_template().is_none() {
        let texts: Vec<&str> = completions.iter().map(|turns| only_text(turns)).collect::<Result<_>>()?;
        return plain_completions(tokenizer, only_text(prompt)?, &texts);
    }
    let prompt_tokens = tokenizer.prompt_tokens(prompt)?;
    let whole = |completion: &&[Message]| {
        let messages: Vec<Message> = prompt.iter().chain(*completion).cloned().collect();
        marked(tokenizer, &messages, prompt.len(), roles)
    };
    Ok(parted(prompt_tokens, completions.iter().map(whole).collect::<Result<_>>()?))
}

/// The same of texts that stand one behind the other as they are, with the end-of-text token behind them.
///
/// # Errors
/// If the tokenizer refuses the text.
pub fn plain_completions(
    tokenizer: &Tokenizer,
    prompt: &str,
    completions: &[&str],
) -> Result<(Vec<u32>, Vec<Marked>)> {
    let wholes = completions.iter().map(|completion| text(tokenizer, &format!("{prompt}{completion}")));
    Ok(parted(tokenizer.text_tokens(prompt)?, wholes.collect::<Result<_>>()?))
}

/// Parts the prompt from what follows it: it ends where the first of the wholes goes on in another way.
fn parted(mut prompt: Vec<u32>, wholes: Vec<Marked>) -> (Vec<u32>, Vec<Marked>) {
    let shared = wholes.iter().map(|whole| common_prefix(&prompt, &whole.tokens)).min();
    prompt.truncate(shared.unwrap_or(prompt.len()));
    let completions = wholes.into_iter().map(|whole| whole.behind(prompt.len())).collect();
    (prompt, completions)
}

/// A conversation: every turn of one of `roles` carries loss.
///
/// # Errors
/// As [`completions`].
pub fn conversation(tokenizer: &Tokenizer, messages: &[Message], roles: &[Role]) -> Result<Marked> {
    if tokenizer.chat_template().is_none() {
        return text(tokenizer, only_text(messages)?);
    }
    marked(tokenizer, messages, 0, roles)
}

/// A text as it stands, with the end-of-text token behind it; all of it carries loss.
///
/// # Errors
/// If the tokenizer refuses the text.
pub fn text(tokenizer: &Tokenizer, text: &str) -> Result<Marked> {
    let end = tokenizer.eos_text();
    let tokens = match text.ends_with(end) {
        true => tokenizer.text_tokens(text),
        false => tokenizer.text_tokens(&format!("{text}{end}")),
    };
    tokens.map(Marked::whole)
}

/// The tokens of a conversation. The turns from `first` on carry loss where they are of one of `roles`; what stands
/// before them never does, but where there is nothing before them.
fn marked(tokenizer: &Tokenizer, messages: &[Message], first: usize, roles: &[Role]) -> Result<Marked> {
    let learned = |message: &Message| roles.contains(&message.role);
    let text = tokenizer.render_closed(messages)?;
    if messages[first..].iter().all(learned) {
        return Ok(Marked::whole(tokenizer.encode(&text)?));
    }
    let (tokens, ends) = tokenizer.encode_with_ends(&text)?;
    let turns = (first..messages.len()).filter(|&turn| learned(&messages[turn]));
    let spans: Vec<Range<usize>> =
        turns.map(|turn| span(tokenizer, messages, turn, &text)).collect::<Result<_>>()?;
    let is_within = |&end: &usize| spans.iter().any(|span| span.start < end && end <= span.end);
    Ok(Marked { tokens, carries_loss: ends.iter().map(is_within).collect() })
}

/// Where a turn stands in the text of the conversation, without the header if it is the assistant's.
fn span(tokenizer: &Tokenizer, messages: &[Message], turn: usize, text: &str) -> Result<Range<usize>> {
    let before = match messages[turn].role {
        // A template may refuse a conversation without any turn.
        Role::Assistant => tokenizer.render(&messages[..turn]).or_else(|error| match turn {
            0 => Ok(String::new()),
            _ => Err(error),
        })?,
        _ if turn == 0 => String::new(),
        _ => tokenizer.render_closed(&messages[..turn])?,
    };
    let through = tokenizer.render_closed(&messages[..=turn])?;
    // Templates that show an open answer in another way than a closed one agree up to the header.
    let start = common_prefix(before.as_bytes(), text.as_bytes());
    let is_kept = text.starts_with(&through) && start <= through.len();
    is_kept.then_some(start..through.len()).ok_or_else(|| PolicyError::Template {
        cause: format!(
            "it shows turn {} in another way where other turns follow, so that its tokens cannot be told from theirs",
            turn + 1
        ),
    })
}

/// The text of the one message that a model without a chat template can take.
fn only_text(messages: &[Message]) -> Result<&str> {
    match messages {
        [only] if only.is_plain() => Ok(&only.content),
        [_] => Err(PolicyError::Template { cause: ONLY_TEXT.to_string() }),
        _ => Err(PolicyError::Template {
            cause: format!(
                "the model has no chat template, so that a prompt and its answer must be one message each, and there \
                 are {}; give the model a template, or the data as texts",
                messages.len()
            ),
        }),
    }
}

fn common_prefix<T: PartialEq>(one: &[T], other: &[T]) -> usize {
    one.iter().zip(other).take_while(|(a, b)| a == b).count()
}
