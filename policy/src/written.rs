//! Written conversations as tokens, each of which carries loss or does not: what rows of a dataset become.
//!
//! A completion is what a conversation has more than its prompt, as in TRL's trainers. What the chat template writes
//! behind an answer, be it an end-of-turn token or a line break, belongs to the answer.
//!
//! Where turns of others stand between, a turn is found in the text by what the template writes with and without it.
//! Where the template marks the model's own words with `{% generation %}`, these marks say what the assistant's turns are.
//!
//! Which tokens carry loss is found by rendering, and it is checked: the turns before one must be written as they are
//! without it, no word of another turn may be among its own, and there must be a token that ends it. A template of which
//! this is not true is refused by name. A token belongs to the turn in which its text ends.

use std::ops::Range;

use arriero_buffers::{Branch, Message, Role};

use crate::chat::{ONLY_TEXT, Rendered};
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
/// If the chat template refuses the conversation, shows a turn in another way where others follow, or the prompt where it
/// is answered, or does not end a turn.
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
    let whole = |completion: &&str| {
        let text = ended(tokenizer, &format!("{prompt}{completion}"));
        let (tokens, places) = tokenizer.encode_with_places(&text, true)?;
        // Where a token holds the end of the prompt and the beginning of the answer, it is the answer's.
        let carries_loss = places.iter().map(|place| place.end > prompt.len()).collect();
        Ok(Marked { tokens, carries_loss })
    };
    Ok(parted(tokenizer.text_tokens(prompt)?, completions.iter().map(whole).collect::<Result<_>>()?))
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
    tokenizer.text_tokens(&ended(tokenizer, text)).map(Marked::whole)
}

/// A text with the end-of-text token behind it.
fn ended(tokenizer: &Tokenizer, text: &str) -> String {
    let end = tokenizer.eos_text();
    if text.ends_with(end) { text.to_string() } else { format!("{text}{end}") }
}

/// The tokens of a conversation. The turns from `first` on carry loss where they are of one of `roles`; what stands
/// before them never does, but where there is nothing before them.
fn marked(tokenizer: &Tokenizer, messages: &[Message], first: usize, roles: &[Role]) -> Result<Marked> {
    let rendered = tokenizer.render_closed(messages)?;
    let (tokens, places) = tokenizer.encode_with_places(&rendered.text, false)?;
    if first == 0 && messages.iter().all(|message| roles.contains(&message.role)) {
        return Ok(Marked::whole(tokens));
    }
    let spans = spans(tokenizer, messages, first, roles, &rendered)?;
    check_others(tokenizer, messages, first, roles)?;
    let is_within =
        |place: &Range<usize>| spans.iter().any(|span| span.start < place.end && place.end <= span.end);
    let marked = Marked { carries_loss: places.iter().map(is_within).collect(), tokens };
    check_ends(tokenizer, messages, roles, &marked)?;
    Ok(marked)
}

/// Where the turns that carry loss stand in the text of the conversation.
fn spans(
    tokenizer: &Tokenizer,
    messages: &[Message],
    first: usize,
    roles: &[Role],
    rendered: &Rendered,
) -> Result<Vec<Range<usize>>> {
    let text = &*rendered.text;
    let learned = |turn: &usize| roles.contains(&messages[*turn].role);
    let prompt_end = match first {
        0 => 0,
        first => kept(tokenizer, &messages[..first], text)?,
    };
    let by_marks = rendered.generated.as_ref().filter(|_| roles.contains(&Role::Assistant));
    let mut spans = Vec::new();
    if let Some(generated) = by_marks {
        spans.extend(generated.iter().filter(|mark| mark.start >= prompt_end && !mark.is_empty()).cloned());
        if spans.is_empty() {
            return Err(refused(
                "its {% generation %} marks stand around nothing of this conversation".to_string(),
            ));
        }
    } else if (first..messages.len()).all(|turn| learned(&turn)) {
        let completion = prompt_end..text.len();
        return Ok(Vec::from([completion]));
    }
    let by_rendering =
        |turn: &usize| learned(turn) && !(by_marks.is_some() && messages[*turn].role == Role::Assistant);
    for turn in (first..messages.len()).filter(by_rendering) {
        spans.push(span(tokenizer, messages, turn, text)?);
    }
    Ok(spans)
}

/// Where a turn stands in the text of the conversation, without the header if it is the assistant's.
fn span(tokenizer: &Tokenizer, messages: &[Message], turn: usize, text: &str) -> Result<Range<usize>> {
    let start = match messages[turn].role {
        _ if turn == 0 && messages[turn].role != Role::Assistant => 0,
        // A template may refuse a conversation without any turn.
        Role::Assistant if turn == 0 => {
            tokenizer.render(&[]).map_or(0, |before| common_prefix(before.as_bytes(), text.as_bytes()))
        }
        Role::Assistant => kept(tokenizer, &messages[..turn], text)?,
        _ => {
            let before = tokenizer.render_closed(&messages[..turn])?.text;
            if !text.starts_with(&before) {
                return Err(rewritten(turn));
            }
            before.len()
        }
    };
    let through = tokenizer.render_closed(&messages[..=turn])?.text;
    let is_kept = text.starts_with(&through) && start <= through.len();
    is_kept.then_some(start..through.len()).ok_or_else(|| {
        refused(format!(
            "it shows turn {} in another way where other turns follow, so that its tokens cannot be told from theirs",
            turn + 1
        ))
    })
}

/// Where the turns `before` an answer end in the text of the whole: they must be written there as they are without it.
///
/// The header of the answer may differ, as where it opens a block of thoughts that a written answer does not have.
fn kept(tokenizer: &Tokenizer, before: &[Message], text: &str) -> Result<usize> {
    let open = tokenizer.render(before)?;
    if text.starts_with(&open) {
        return Ok(open.len());
    }
    let closed = tokenizer.render_closed(before)?.text;
    if closed.is_empty() || !text.starts_with(&closed) || !open.starts_with(&closed) {
        return Err(rewritten(before.len()));
    }
    let mut end = common_prefix(open.as_bytes(), text.as_bytes());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    Ok(end)
}

/// No words of another turn are where the model's own are: the same conversation with other words in the turns that carry
/// no loss has none of these words there.
fn check_others(tokenizer: &Tokenizer, messages: &[Message], first: usize, roles: &[Role]) -> Result<()> {
    let is_other = |turn: usize, message: &Message| {
        matches!(message.role, Role::User | Role::System) && (turn < first || !roles.contains(&message.role))
    };
    let word = |turn: usize| format!("OTHER{turn}WORDS");
    let asked: Vec<Message> = messages
        .iter()
        .enumerate()
        .map(|(turn, message)| match is_other(turn, message) {
            true => Message { content: word(turn), ..message.clone() },
            false => message.clone(),
        })
        .collect();
    // A template that reads what these turns say may refuse the words; then there is nothing to look at.
    let Ok(rendered) = tokenizer.render_closed(&asked) else { return Ok(()) };
    let Ok(spans) = spans(tokenizer, &asked, first, roles, &rendered) else { return Ok(()) };
    let shown = |turn: usize| spans.iter().any(|span| rendered.text[span.clone()].contains(&word(turn)));
    match (0..messages.len()).find(|&turn| is_other(turn, &messages[turn]) && shown(turn)) {
        Some(turn) => Err(refused(format!(
            "it shows turn {}, which is of role {}, among the words of a turn that is learned from",
            turn + 1,
            messages[turn].role.as_str()
        ))),
        None => Ok(()),
    }
}

/// Something carries loss, and where the last turn is the assistant's, a token that ends it does.
fn check_ends(tokenizer: &Tokenizer, messages: &[Message], roles: &[Role], marked: &Marked) -> Result<()> {
    let Some(last) = messages.last().filter(|last| roles.contains(&last.role)) else { return Ok(()) };
    let is_end = |token: u32| tokenizer.is_special(token) || tokenizer.eos_ids().contains(&token);
    let mut tokens = marked.tokens.iter().zip(&marked.carries_loss).rev();
    // The last run of tokens with loss.
    let mut run = tokens.by_ref().skip_while(|(_, loss)| !**loss).take_while(|(_, loss)| **loss).peekable();
    if run.peek().is_none() {
        return Err(refused("none of its tokens would carry loss".to_string()));
    }
    let has_end = tokenizer.eos_ids().is_empty() || run.any(|(token, _)| is_end(*token));
    if last.role == Role::Assistant && !has_end {
        return Err(refused(
            "no token that ends a turn is among those of the last answer, so that the model would not learn to stop; \
             let the template write eos_token behind an answer, within its {% generation %} marks if it has such"
                .to_string(),
        ));
    }
    Ok(())
}

fn rewritten(turns: usize) -> PolicyError {
    refused(format!(
        "it shows the prompt ({turns} turns) in another way where it is answered, so that tokens of the prompt would be \
         learned"
    ))
}

fn refused(cause: String) -> PolicyError {
    PolicyError::Template { cause }
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
