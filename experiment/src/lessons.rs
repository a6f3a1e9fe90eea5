//! Rows of a dataset as the trees that an algorithm learns from.

use arriero_buffers::{Branch, Message, SelectionRule, Tree};
use arriero_data::{Entry, OnError, Row};
use arriero_policy::PolicyError;
use arriero_policy::tokenizer::Tokenizer;
use arriero_policy::written::{self, Marked};

use crate::arm::Stage;
use crate::data::{DataPlan, TooLong};
use crate::error::PreflightError;

/// What a row teaches under a rule.
#[derive(Debug, PartialEq)]
pub enum Lesson<'a> {
    /// Responses to a prompt, each with its reward. Of a pair the chosen one comes first.
    Responses {
        /// What was asked.
        prompt: &'a [Message],
        /// The responses with their rewards.
        responses: Vec<(&'a [Message], f32)>,
        /// Whether they are texts without roles.
        is_plain: bool,
    },
    /// A whole conversation.
    Conversation(&'a [Message]),
    /// A text.
    Text(&'a str),
    /// Nothing, for this reason.
    Nothing(&'static str),
}

impl<'a> Lesson<'a> {
    /// Of this row; `None` if the rule has no use for rows of its type.
    pub fn of(rule: SelectionRule, entry: &'a Entry) -> Option<Self> {
        let responses = |prompt: &'a [Message], responses: &[(&'a Vec<Message>, f32)]| {
            let responses = responses.iter().map(|(response, reward)| (&response[..], *reward)).collect();
            Some(Lesson::Responses { prompt, responses, is_plain: entry.is_plain })
        };
        let rule = if rule == SelectionRule::Everything { SelectionRule::BestOfN } else { rule };
        match (rule, &entry.row) {
            (SelectionRule::BestOfN, Row::Completion { prompt, completion }) => {
                responses(prompt, &[(completion, 1.0)])
            }
            (SelectionRule::BestOfN, Row::Preference { prompt, chosen, edited, .. }) => {
                responses(prompt, &[(edited.as_ref().unwrap_or(chosen), 1.0)])
            }
            (SelectionRule::BestOfN, Row::Unpaired { label: false, .. }) => {
                Some(Lesson::Nothing("undesirable"))
            }
            (SelectionRule::BestOfN, Row::Unpaired { prompt, completion, .. }) => {
                responses(prompt, &[(completion, 1.0)])
            }
            (SelectionRule::BestOfN, Row::Conversation { messages }) => Some(Lesson::Conversation(messages)),
            (SelectionRule::BestOfN, Row::Text(text)) => Some(Lesson::Text(text)),
            (SelectionRule::BestAgainstWorst, Row::Preference { prompt, chosen, rejected, .. }) => {
                responses(prompt, &[(chosen, 1.0), (rejected, 0.0)])
            }
            (SelectionRule::Ranking, Row::Preference { prompt, chosen, rejected, edited, .. }) => {
                let edited = edited.iter().map(|edited| (edited, 2.0));
                responses(prompt, &edited.chain([(chosen, 1.0), (rejected, 0.0)]).collect::<Vec<_>>())
            }
            // Whatever the least desirable reward is, a label is on its side of it.
            (SelectionRule::Unpaired { desirable_reward }, Row::Unpaired { prompt, completion, label }) => {
                let reward = if *label { desirable_reward } else { desirable_reward - 1.0 };
                responses(prompt, &[(completion, reward)])
            }
            (
                SelectionRule::Unpaired { desirable_reward },
                Row::Preference { prompt, chosen, rejected, .. },
            ) => responses(prompt, &[(chosen, desirable_reward), (rejected, desirable_reward - 1.0)]),
            _ => None,
        }
    }

    /// A tree without tokens, for an objective to look at before anything heavy loads.
    pub fn outline(&self) -> Option<Tree> {
        let rewards: Vec<f32> = match self {
            Lesson::Responses { responses, .. } => responses.iter().map(|(_, reward)| *reward).collect(),
            Lesson::Conversation(_) | Lesson::Text(_) => vec![1.0],
            Lesson::Nothing(_) => return None,
        };
        let branch = |reward: f32| Branch { reward, ..Branch::default() };
        Some(Tree { branches: rewards.into_iter().map(branch).collect(), ..Tree::default() })
    }
}

/// Notes what a row says of its preference beside which response is better.
pub fn rate(tree: &mut Tree, row: &Row) {
    if let Row::Preference { strength, margin, .. } = row {
        (tree.strength, tree.margin) = (*strength, margin.map(|margin| margin as f32));
    }
}

/// Reads all rows of an offline stage once, before anything heavy loads: they can be read, the stage's algorithm has a
/// use for them, and its own check passes on those of the first portion. Returns how many there are.
///
/// # Errors
/// Names the first row that is wrong.
pub fn check(stage: &Stage, data: &DataPlan, seed: u64) -> Result<u64, PreflightError> {
    let (kind, objective) = (stage.algorithm.kind(), stage.algorithm.objective());
    let rule = objective.needs().selection;
    let portion = data.portion(stage.training.batch_size);
    let mut outlines: Vec<Tree> = Vec::new();
    let (mut rows, mut of_use) = (0, 0);
    let mut of_no_use = None;
    for entry in data.rows.open(seed)? {
        let entry = entry?;
        rows += 1;
        match Lesson::of(rule, &entry) {
            None => {
                let message = format!(
                    "{}: this is a row of type {}, of which \"{kind}\" has no use: it learns from {}; give it other data, or \
                     change kind",
                    entry.place(),
                    entry.row.kind(),
                    rule.learns_from()
                );
                if data.rows.on_error == OnError::Stop {
                    return Err(PreflightError::Lesson(message));
                }
                of_no_use.get_or_insert(message);
            }
            Some(lesson) => {
                of_use += 1;
                let outline = lesson.outline().filter(|_| outlines.len() < portion);
                outlines.extend(outline.map(|mut tree| {
                    rate(&mut tree, &entry.row);
                    tree
                }));
            }
        }
    }
    match of_no_use {
        Some(message) if of_use == 0 => return Err(PreflightError::Lesson(message)),
        _ => {}
    }
    let views: Vec<&Tree> = outlines.iter().collect();
    objective
        .check(&views)
        .map_err(|cause| PreflightError::Lesson(format!("{}: {kind}: {cause}", data.rows.path)))?;
    Ok(rows)
}

/// Why a lesson is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfit {
    /// The reason's name.
    pub reason: &'static str,
    /// What was found and what the limit is, where there is one.
    pub detail: Option<String>,
}

impl From<&'static str> for Unfit {
    fn from(reason: &'static str) -> Self {
        Unfit { reason, detail: None }
    }
}

/// How lessons become trees.
#[derive(Debug)]
pub struct Tokenisation<'a> {
    /// Text to tokens.
    pub tokenizer: &'a Tokenizer,
    /// The stage's dataset.
    pub data: &'a DataPlan,
    /// The model's context.
    pub max_positions: usize,
    /// The most tokens of a tree that a training step takes.
    pub budget: usize,
}

impl Tokenisation<'_> {
    /// The tree of a lesson, with `id` as its prompt's id, or why there is none.
    ///
    /// # Errors
    /// If the chat template refuses the conversation, or the tokenizer the text.
    pub fn tree(&self, id: u64, lesson: &Lesson<'_>) -> Result<Result<Tree, Unfit>, PolicyError> {
        let loss = &self.data.rows.loss;
        let (prompt, responses) = match lesson {
            Lesson::Nothing(reason) => return Ok(Err(Unfit::from(*reason))),
            Lesson::Responses { prompt, responses, is_plain } => {
                let (prompt, marked) = if *is_plain {
                    let texts: Vec<&str> = responses.iter().map(|(response, _)| text_of(response)).collect();
                    written::plain_completions(self.tokenizer, text_of(prompt), &texts)?
                } else {
                    let turns: Vec<&[Message]> = responses.iter().map(|(response, _)| *response).collect();
                    written::completions(self.tokenizer, prompt, &turns, loss)?
                };
                let rewards = responses.iter().map(|(_, reward)| *reward);
                (prompt, marked.into_iter().zip(rewards).collect())
            }
            Lesson::Conversation(messages) => alone(written::conversation(self.tokenizer, messages, loss)?),
            Lesson::Text(text) => alone(written::text(self.tokenizer, text)?),
        };
        Ok(self.fitted(id, prompt, responses))
    }

    fn fitted(&self, id: u64, prompt: Vec<u32>, responses: Vec<(Marked, f32)>) -> Result<Tree, Unfit> {
        let unfit = |reason, detail| Unfit { reason, detail: Some(detail) };
        let (limit, limited_by) = match self.data.lessons.max_length {
            max_length if max_length < self.max_positions => (max_length, "max_length"),
            _ => (self.max_positions, "the model's context"),
        };
        let Some(room) = limit.checked_sub(prompt.len()).filter(|&room| room > 0) else {
            let detail = format!("its prompt has {} tokens, {limited_by} is {limit}", prompt.len());
            return Err(unfit("prompt_too_long", detail));
        };
        let mut branches = Vec::with_capacity(responses.len());
        for (sample, (mut marked, reward)) in responses.into_iter().enumerate() {
            let whole = prompt.len() + marked.tokens.len();
            let truncated = marked.truncate(room);
            if truncated && self.data.lessons.too_long == TooLong::Drop {
                let detail = format!("prompt and response have {whole} tokens, {limited_by} is {limit}");
                return Err(unfit("response_too_long", detail));
            }
            let Some(branch) = marked.branch(self.tokenizer) else {
                return Err(Unfit::from("no_token_with_loss"));
            };
            branches.push(Branch { sample: sample as u32, reward, truncated, ..branch });
        }
        let tree = Tree { prompt_id: id, prompt, branches, ..Tree::default() };
        if tree.len() > self.budget {
            let detail = format!(
                "prompt and responses have {} tokens, a micro-batch takes {}",
                tree.len(),
                self.budget
            );
            return Err(unfit("over_micro_batch_tokens", detail));
        }
        Ok(tree)
    }
}

/// The one message of a text that stands without a role.
fn text_of(messages: &[Message]) -> &str {
    messages.first().map_or("", |message| &message.content)
}

/// One response, whose prompt is what stands before its first token with loss.
fn alone(marked: Marked) -> (Vec<u32>, Vec<(Marked, f32)>) {
    let (prompt, response) = marked.split();
    (prompt, vec![(response, 1.0)])
}
