//! What a row of a dataset says.

use arriero_buffers::{Message, Strength};
use serde_json::{Value, json};
use xxhash_rust::xxh3::Xxh3;

/// One row of a dataset: TRL's dataset types, each in one form.
///
/// A row's prompt, if there is one, has a user turn, and its turns are in order. Completions are not empty. They begin
/// and end with a turn of the assistant, and may have other turns between.
#[derive(Debug, Clone, PartialEq)]
pub enum Row {
    /// What the policy is asked, with what scorers check (TRL: prompt-only).
    Prompt {
        /// The conversation so far.
        messages: Vec<Message>,
        /// An object, or null where there is nothing to check.
        checks: Value,
    },
    /// A prompt with its answer (TRL: prompt–completion).
    Completion {
        /// The conversation so far.
        prompt: Vec<Message>,
        /// The answer.
        completion: Vec<Message>,
    },
    /// A whole conversation (TRL: conversational language modelling).
    Conversation {
        /// All turns; at least one is the assistant's.
        messages: Vec<Message>,
    },
    /// Two answers to a prompt, one of them preferred (TRL: preference).
    Preference {
        /// The conversation so far.
        prompt: Vec<Message>,
        /// The better answer.
        chosen: Vec<Message>,
        /// The worse one.
        rejected: Vec<Message>,
        /// The better answer as an annotator has mended it (Llama 3: edited > chosen > rejected).
        edited: Option<Vec<Message>>,
        /// How much better.
        strength: Option<Strength>,
        /// How much better, as a number (Llama 2's margin, and TRL's `margin`).
        margin: Option<f64>,
    },
    /// An answer that is good or bad (TRL: unpaired preference).
    Unpaired {
        /// The conversation so far.
        prompt: Vec<Message>,
        /// The answer.
        completion: Vec<Message>,
        /// True for a good one.
        label: bool,
    },
    /// An answer in steps, each right or wrong (TRL: stepwise supervision).
    Stepwise {
        /// The conversation so far.
        prompt: Vec<Message>,
        /// The steps of one answer, at least one.
        steps: Vec<String>,
        /// One a step: true if it is right.
        labels: Vec<bool>,
    },
    /// A text (TRL: language modelling).
    Text(String),
}

impl Row {
    /// What it is, in TRL's words.
    pub fn kind(&self) -> &'static str {
        match self {
            Row::Prompt { .. } => "prompt-only",
            Row::Completion { .. } => "prompt-completion",
            Row::Conversation { .. } => "conversation",
            Row::Preference { .. } => "preference",
            Row::Unpaired { .. } => "unpaired preference",
            Row::Stepwise { .. } => "stepwise supervision",
            Row::Text(_) => "text",
        }
    }

    /// The conversation that is to be continued; none where a row is one whole.
    pub fn prompt(&self) -> Option<&[Message]> {
        match self {
            Row::Prompt { messages, .. } => Some(messages),
            Row::Completion { prompt, .. }
            | Row::Preference { prompt, .. }
            | Row::Unpaired { prompt, .. }
            | Row::Stepwise { prompt, .. } => Some(prompt),
            Row::Conversation { .. } | Row::Text(_) => None,
        }
    }

    /// The prompt's turns or, in a row without a prompt, all of them.
    pub(crate) fn first_turns_mut(&mut self) -> Option<&mut Vec<Message>> {
        match self {
            Row::Prompt { messages, .. } | Row::Conversation { messages } => Some(messages),
            Row::Completion { prompt, .. }
            | Row::Preference { prompt, .. }
            | Row::Unpaired { prompt, .. }
            | Row::Stepwise { prompt, .. } => Some(prompt),
            Row::Text(_) => None,
        }
    }

    /// What the row teaches: its answers, each with its field's name, in the order in which the row's type names them.
    /// A conversation is one answer with all of its turns.
    pub fn answers(&self) -> Vec<(&'static str, Vec<Message>)> {
        let turn = |content: &str| vec![Message::assistant(content)];
        match self {
            Row::Prompt { .. } => Vec::new(),
            Row::Completion { completion, .. } | Row::Unpaired { completion, .. } => {
                vec![("completion", completion.clone())]
            }
            Row::Conversation { messages } => vec![("messages", messages.clone())],
            Row::Preference { chosen, rejected, edited, .. } => {
                let mut answers = vec![("chosen", chosen.clone()), ("rejected", rejected.clone())];
                answers.extend(edited.iter().map(|edited| ("edited", edited.clone())));
                answers
            }
            Row::Stepwise { steps, .. } => vec![("completions", turn(&steps.join("\n")))],
            Row::Text(text) => vec![("text", turn(text))],
        }
    }

    /// A hash of the prompt or, in a row without one, of the whole row: 64 bits of XXH3, the same on every
    /// machine and in every release. Two rows of one prompt share it.
    pub fn prompt_hash(&self) -> u64 {
        let mut hasher = Xxh3::new();
        match self {
            Row::Text(text) => hasher.update(text.as_bytes()),
            Row::Conversation { messages } => hash_messages(&mut hasher, messages),
            _ => hash_messages(&mut hasher, self.prompt().unwrap_or_default()),
        }
        hasher.digest()
    }

    /// The row as JSON in TRL's conversational format, which reads back as the same row. A text alone stays
    /// a text.
    pub fn to_json(&self) -> Value {
        match self {
            Row::Prompt { messages, checks } if checks.is_null() => json!({"prompt": messages}),
            Row::Prompt { messages, checks } => json!({"prompt": messages, "checks": checks}),
            Row::Completion { prompt, completion } => json!({"prompt": prompt, "completion": completion}),
            Row::Conversation { messages } => json!({"messages": messages}),
            Row::Preference { prompt, chosen, rejected, edited, strength, margin } => {
                let mut row = json!({"prompt": prompt, "chosen": chosen, "rejected": rejected});
                if let Some(edited) = edited {
                    row["edited"] = json!(edited);
                }
                if let Some(strength) = strength {
                    row["strength"] = json!(strength.as_str());
                }
                if let Some(margin) = margin {
                    row["margin"] = json!(margin);
                }
                row
            }
            Row::Unpaired { prompt, completion, label } => {
                json!({"prompt": prompt, "completion": completion, "label": label})
            }
            Row::Stepwise { prompt, steps, labels } => {
                json!({"prompt": prompt, "completions": steps, "labels": labels})
            }
            Row::Text(text) => json!({"text": text}),
        }
    }
}

fn hash_messages(hasher: &mut Xxh3, messages: &[Message]) {
    for message in messages {
        hasher.update(message.role.as_str().as_bytes());
        // The length keeps two turns apart from one that holds both.
        hasher.update(&(message.content.len() as u64).to_le_bytes());
        hasher.update(message.content.as_bytes());
        if !message.is_plain() {
            hasher.update(json!(message).to_string().as_bytes());
        }
    }
}
