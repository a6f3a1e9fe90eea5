//! Training examples: rows of a dataset as the trees that an algorithm learns from.

use arriero_buffers::{Branch, Message, RowContent, SelectionRule, TrainingExample, Tree};
use arriero_data::{Entry, OnError, Row};
use arriero_policy::PolicyError;
use arriero_policy::tokenizer::Tokenizer;
use arriero_policy::written::{self, Marked};

use crate::arm::Stage;
use crate::data::{DataPlan, TooLong};
use crate::error::PreflightError;

/// What a rule learns from this row. `None` if it has no use for rows of its type.
pub fn example_of(rule: SelectionRule, row: &Row) -> Option<TrainingExample<'_>> {
    let content = match row {
        Row::Completion { completion, .. } => RowContent::Completion(completion),
        Row::Preference { chosen, rejected, edited, .. } => {
            RowContent::Preference { chosen, rejected, edited: edited.as_deref() }
        }
        Row::Unpaired { completion, label, .. } => RowContent::Unpaired { completion, label: *label },
        Row::Conversation { messages } => RowContent::Conversation(messages),
        Row::Text(text) => RowContent::Text(text),
        Row::Prompt { .. } | Row::Stepwise { .. } => return None,
    };
    rule.example(&content)
}

/// Notes what a row says of its preference beside which response is better.
pub fn rate(tree: &mut Tree, row: &Row) {
    if let Row::Preference { strength, margin, .. } = row {
        (tree.strength, tree.margin) = (*strength, margin.map(|margin| margin as f32));
    }
}

/// Reads all rows of an offline stage once, before anything heavy loads. Checks that they can be read and that the
/// stage's algorithm has a use for them. Runs the algorithm's own check on those of the first portion. Returns how many
/// rows there are.
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
        match example_of(rule, &entry.row) {
            None => {
                let message = format!(
                    "{}: this is a row of type {}, of which \"{kind}\" has no use: it learns from {}; give it other data, or \
                     change kind",
                    entry.place(),
                    entry.row.kind(),
                    rule.learns_from()
                );
                if data.rows.on_error == OnError::Stop {
                    return Err(PreflightError::TrainingData(message));
                }
                of_no_use.get_or_insert(message);
            }
            Some(example) => {
                of_use += 1;
                let outline = example.outline().filter(|_| outlines.len() < portion);
                outlines.extend(outline.map(|mut tree| {
                    rate(&mut tree, &entry.row);
                    tree
                }));
            }
        }
    }
    match of_no_use {
        Some(message) if of_use == 0 => return Err(PreflightError::TrainingData(message)),
        _ => {}
    }
    let views: Vec<&Tree> = outlines.iter().collect();
    objective
        .check(&views)
        .map_err(|cause| PreflightError::TrainingData(format!("{}: {kind}: {cause}", data.rows.path)))?;
    Ok(rows)
}

/// Why an example is left out.
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

/// How examples become trees.
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
    /// The tree of what is learned from a row, with `id` as its prompt's id, or why there is none.
    ///
    /// # Errors
    /// If the chat template refuses the conversation, or the tokenizer the text.
    pub fn tree(
        &self,
        id: u64,
        entry: &Entry,
        example: &TrainingExample<'_>,
    ) -> Result<Result<Tree, Unfit>, PolicyError> {
        let loss = &self.data.rows.loss;
        let (prompt, responses) = match example {
            TrainingExample::Nothing(reason) => return Ok(Err(Unfit::from(*reason))),
            TrainingExample::Responses(responses) => {
                let prompt = entry.row.prompt().unwrap_or_default();
                let (prompt, marked) = if entry.is_plain {
                    let texts: Vec<&str> = responses.iter().map(|(response, _)| text_of(response)).collect();
                    written::plain_completions(self.tokenizer, text_of(prompt), &texts)?
                } else {
                    let turns: Vec<&[Message]> = responses.iter().map(|(response, _)| *response).collect();
                    written::completions(self.tokenizer, prompt, &turns, loss)?
                };
                let rewards = responses.iter().map(|(_, reward)| *reward);
                (prompt, marked.into_iter().zip(rewards).collect())
            }
            TrainingExample::Conversation(messages) => {
                alone(written::conversation(self.tokenizer, messages, loss)?)
            }
            TrainingExample::Text(text) => alone(written::text(self.tokenizer, text)?),
        };
        Ok(self.fitted(id, prompt, responses))
    }

    fn fitted(&self, id: u64, prompt: Vec<u32>, responses: Vec<(Marked, f32)>) -> Result<Tree, Unfit> {
        let unfit = |reason, detail| Unfit { reason, detail: Some(detail) };
        let (limit, limited_by) = match self.data.examples.max_length {
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
            if truncated && self.data.examples.too_long == TooLong::Drop {
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

/// One response. Its prompt is what stands before the first token with loss.
fn alone(marked: Marked) -> (Vec<u32>, Vec<(Marked, f32)>) {
    let (prompt, response) = marked.split();
    (prompt, vec![(response, 1.0)])
}
