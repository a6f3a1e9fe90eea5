//! A row as tokens, and which of them carry loss.

use arriero_buffers::{Message, Role};
use arriero_data::{Entry, Row};
use arriero_policy::PolicyError;
use arriero_policy::tokenizer::Tokenizer;
use arriero_policy::written::{self, Marked};
use serde_json::{Value, json};

/// What stands around tokens with loss until it is known what the terminal can show. These are noncharacters of
/// Unicode.
pub const OPEN: char = '\u{fdd0}';
/// The end of the same.
pub const CLOSE: char = '\u{fdd1}';

/// The most tokens of a part that are shown.
const SHOWN: usize = 400;

/// Part of a row: its prompt, or one of its answers.
pub struct Part {
    /// The field's name.
    pub name: &'static str,
    pub marked: Marked,
}

impl Part {
    pub fn loss_tokens(&self) -> usize {
        self.marked.carries_loss.iter().filter(|&&carries_loss| carries_loss).count()
    }

    fn without_loss(name: &'static str, tokens: Vec<u32>) -> Self {
        Part { name, marked: Marked { carries_loss: vec![false; tokens.len()], tokens } }
    }
}

/// The parts of a row as training reads them, where turns of `roles` carry loss. The prompt comes first, if there is
/// one. Answers follow.
///
/// # Errors
/// If the model's chat template refuses the row.
pub fn parts(tokenizer: &Tokenizer, entry: &Entry, roles: &[Role]) -> Result<Vec<Part>, PolicyError> {
    let answers = entry.row.answers();
    let (prompt, marked) = match &entry.row {
        Row::Prompt { messages, .. } => (tokenizer.prompt_tokens(messages)?, Vec::new()),
        Row::Conversation { messages } => {
            return Ok(vec![Part {
                name: "messages",
                marked: written::conversation(tokenizer, messages, roles)?,
            }]);
        }
        Row::Text(text) => return Ok(vec![Part { name: "text", marked: written::text(tokenizer, text)? }]),
        row if entry.is_plain => {
            let texts: Vec<&str> = answers.iter().map(|(_, turns)| text_of(turns)).collect();
            written::plain_completions(tokenizer, text_of(row.prompt().unwrap_or_default()), &texts)?
        }
        row => {
            let turns: Vec<&[Message]> = answers.iter().map(|(_, turns)| &turns[..]).collect();
            written::completions(tokenizer, row.prompt().unwrap_or_default(), &turns, roles)?
        }
    };
    // No algorithm learns from steps: none of their tokens carries loss.
    let is_of_use = !matches!(entry.row, Row::Stepwise { .. });
    let answer = |(answer, marked): (&(&'static str, Vec<Message>), Marked)| match is_of_use {
        true => Part { name: answer.0, marked },
        false => Part::without_loss(answer.0, marked.tokens),
    };
    let prompt = Part::without_loss("prompt", prompt);
    Ok([prompt].into_iter().chain(answers.iter().zip(marked).map(answer)).collect())
}

fn text_of(messages: &[Message]) -> &str {
    messages.first().map_or("", |message| &message.content)
}

/// The text of a part with its tokens that carry loss between [`OPEN`] and [`CLOSE`].
pub fn marked_text(tokenizer: &Tokenizer, marked: &Marked) -> String {
    let shown = marked.tokens.len().min(SHOWN);
    let mut text = String::new();
    let mut rest = 0..shown;
    while let Some(first) = rest.next() {
        let carries_loss = marked.carries_loss[first];
        let end = (first..shown).find(|&at| marked.carries_loss[at] != carries_loss).unwrap_or(shown);
        // Several tokens may make one character.
        let bytes: Vec<u8> =
            marked.tokens[first..end].iter().flat_map(|&token| tokenizer.token_bytes(token)).collect();
        // The marks are noncharacters, which a text may hold all the same.
        let run = String::from_utf8_lossy(&bytes).replace([OPEN, CLOSE], "\u{fffd}");
        match carries_loss {
            true => text += &format!("{OPEN}{run}{CLOSE}"),
            false => text += &run,
        }
        rest = end..shown;
    }
    if shown < marked.tokens.len() {
        let with_loss = marked.carries_loss[shown..].iter().filter(|&&carries_loss| carries_loss).count();
        text += &format!("\n… {} more tokens, {with_loss} with loss", marked.tokens.len() - shown);
    }
    text
}

/// Every token with its id, text, and whether it carries loss.
pub fn token_list(tokenizer: &Tokenizer, marked: &Marked) -> Value {
    let tokens = marked.tokens.iter().zip(&marked.carries_loss);
    let token = |(&id, &loss): (&u32, &bool)| json!({"id": id, "text": String::from_utf8_lossy(&tokenizer.token_bytes(id)), "loss": loss});
    Value::Array(tokens.map(token).collect())
}
