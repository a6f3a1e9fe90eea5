//! Multiple choice: the choice that the model finds most probable.
//!
//! As lm-evaluation-harness defines them: `acc` takes the choice of the greatest log-probability. `acc_norm` divides
//! log-probabilities by the choices' lengths in characters first. A question with its choices is one tree. So the
//! question, with the examples before it, is computed once.

use std::collections::{BTreeMap, HashMap};

use arriero_buffers::{Branch, Message, Role};
use serde_json::{Map, json};

use super::formats::{Item, item};
use super::{Context, Fields, Reply, Suite, Task};
use crate::config::Kind;
use crate::parts::{self, indicator, scores};
use crate::question::{PromptFormat, Question};
use arriero_results::{Figure, Form, Outcome, Sample};

/// Questions that were asked and not judged yet.
struct PendingQuestion {
    item: Item,
    shown: String,
    branches: Vec<Branch>,
}

pub(crate) struct Choice {
    kind: Kind,
    format: PromptFormat,
    context: Context,
    examples: Vec<Item>,
    pending: HashMap<u64, PendingQuestion>,
}

impl Choice {
    pub fn new(kind: Kind, format: PromptFormat, context: Context) -> Self {
        Choice { kind, format, context, examples: Vec::new(), pending: HashMap::new() }
    }

    fn question(&self, item: &Item) -> Question {
        if self.format.chat {
            let mut messages: Vec<Message> = Vec::new();
            messages.extend(self.format.system.iter().map(|text| Message::new(Role::System, text.as_str())));
            let mut preface = item.preface.as_str();
            for example in &self.examples {
                messages.push(Message::user(format!("{preface}{}", example.question)));
                preface = "";
                let content = example.choices[example.right].clone();
                messages.push(Message::assistant(content));
            }
            messages.push(Message::user(format!("{preface}{}", item.question)));
            return Question::Chat(messages);
        }
        let answered =
            |example: &Item| format!("{} {}\n\n", example.question, example.choices[example.right]);
        let examples: String = self.examples.iter().map(answered).collect();
        Question::Text(format!("{}{examples}{}", item.preface, item.question))
    }
}

/// The first of the greatest.
fn best(values: impl Iterator<Item = f64>) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (index, value) in values.enumerate() {
        if value > best.1 {
            best = (index, value);
        }
    }
    best.0
}

/// The share of outcomes that score.
fn mean(name: &str, score: &str, outcomes: &[&Outcome]) -> Option<Figure> {
    Figure::mean(name, Form::Share, outcomes.iter().map(|outcome| outcome.score(score)))
}

impl Suite for Choice {
    fn example(&mut self, fields: &Fields) -> Result<(), String> {
        self.examples.push(item(self.kind, fields)?);
        Ok(())
    }

    fn task(&mut self, id: u64, fields: &Fields) -> Result<Task, String> {
        let item = item(self.kind, fields)?;
        let question = self.question(&item);
        // The assistant's turn begins with the choice itself.
        let delimiter = if self.format.chat { "" } else { " " };
        let tree = question.tree(id, &self.context.tokenizer, delimiter, &item.choices);
        let tree = tree.map_err(|error| error.to_string())?;
        let (tokens, limit) = (tree.longest_sequence(), self.context.max_positions);
        if tokens > limit {
            return Err(format!(
                "the question with its examples and a choice has {tokens} tokens, but the model's context has {limit}"
            ));
        }
        let branches = tree.branches.clone();
        self.pending.insert(id, PendingQuestion { item, shown: question.shown(), branches });
        Ok(Task::Score(vec![tree]))
    }

    fn grade(&mut self, id: u64, reply: Reply<'_>) -> Result<Outcome, String> {
        let (Reply::Logps(logps), Some(PendingQuestion { item, shown, branches })) =
            (reply, self.pending.remove(&id))
        else {
            return Err("it was not asked".to_string());
        };
        let sums: Vec<f64> =
            logps.iter().map(|logps| logps.iter().map(|&logp| f64::from(logp)).sum()).collect();
        if let Some(index) = sums.iter().position(|sum| !sum.is_finite()) {
            return Err(format!("the log-probability of choice {} is {}", index + 1, sums[index]));
        }
        let length = |index: usize| item.choices[index].chars().count() as f64;
        let chosen = best(sums.iter().copied());
        let chosen_by_length = best(sums.iter().enumerate().map(|(index, sum)| sum / length(index)));
        let (acc, acc_norm) = (indicator(chosen == item.right), indicator(chosen_by_length == item.right));
        let scores = scores([("acc", acc), ("acc_norm", acc_norm)]);
        let branch = &branches[chosen];
        let tokens = (0..branch.tokens.len()).filter(|&index| branch.carries_loss(index));
        let tokens = tokens.map(|index| branch.tokens[index]).collect();
        let details = Map::from_iter([
            ("choices".to_string(), json!(item.choices)),
            ("logps".to_string(), json!(sums)),
            ("right".to_string(), json!(item.right)),
            ("chosen".to_string(), json!(chosen)),
            ("chosen_by_length".to_string(), json!(chosen_by_length)),
            ("subject".to_string(), json!(item.subject)),
        ]);
        let completion = parts::chosen(item.choices[chosen].clone(), tokens, logps[chosen].clone())
            .map_err(|error| error.to_string())?;
        let samples = vec![Sample { completion, scores: scores.clone(), details }];
        Ok(Outcome { place: String::new(), id, prompt: shown, scores, samples })
    }

    fn figures(&self, outcomes: &[Outcome]) -> Vec<Figure> {
        let all: Vec<&Outcome> = outcomes.iter().collect();
        // Letters are of one length.
        let measured: &[&str] = if self.kind == Kind::Mmlu { &["acc"] } else { &["acc", "acc_norm"] };
        let mut figures: Vec<Figure> = measured.iter().filter_map(|score| mean(score, score, &all)).collect();
        let mut subjects: BTreeMap<&str, Vec<&Outcome>> = BTreeMap::new();
        for outcome in outcomes {
            let details = outcome.samples.first().map(|sample| &sample.details);
            let subject = details.and_then(|details| details.get("subject")?.as_str()).unwrap_or_default();
            subjects.entry(subject).or_default().push(outcome);
        }
        if subjects.len() > 1 {
            let of_subject = |(subject, outcomes): (&&str, &Vec<&Outcome>)| {
                mean(&format!("acc/{subject}"), "acc", outcomes)
            };
            figures.extend(subjects.iter().filter_map(of_subject));
        }
        figures
    }
}
