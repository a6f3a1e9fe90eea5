//! Perplexity of texts, and of the assistant's turns of conversations.
//!
//! A long text goes through the model in windows. The first has `window` tokens; each later one predicts the next
//! `stride` tokens, with the `window - stride` tokens before them as context. So every token is predicted once. The
//! text's first token is predicted from the one that begins a text or, in a vocabulary without such a token, ends one.

use arriero_buffers::{Branch, Role, Tree};
use arriero_data::{DataConfig, Row};
use arriero_policy::written;
use serde_json::Map;

use super::{Context, Fields, Reply, Suite, Task};
use crate::config::SuiteConfig;
use crate::parts::{fixed_completion, scores};
use crate::question::first_token;
use arriero_results::{Figure, Form};
use arriero_results::{Outcome, Sample};

pub(crate) struct Perplexity {
    data: DataConfig,
    context: Context,
    window: usize,
    stride: usize,
    /// The texts whose tokens are predicted, in the order of the items.
    texts: Vec<String>,
}

/// The default of `window`.
const WINDOW: usize = 2048;

impl Perplexity {
    pub fn new(config: &SuiteConfig, context: Context) -> Result<Self, String> {
        let limit = context.max_positions;
        let window = config.window.unwrap_or(WINDOW.min(limit));
        if window > limit {
            return Err(format!("window is {window}, but the model's context has {limit} tokens"));
        }
        let stride = config.stride.unwrap_or((window / 2).max(1));
        if stride >= window {
            return Err(format!("stride is {stride}, but must be less than window, which is {window}"));
        }
        Ok(Perplexity { data: config.data(&config.path), context, window, stride, texts: Vec::new() })
    }
}

/// Windows over tokens. Those with `true` are predicted. `first` stands before them, where there is one.
fn windows(id: u64, first: Option<u32>, tokens: &[(u32, bool)], window: usize, stride: usize) -> Vec<Tree> {
    let all: Vec<(u32, bool)> =
        first.map(|token| (token, false)).into_iter().chain(tokens.iter().copied()).collect();
    let mut trees = Vec::new();
    let (mut from, mut to) = (1, window.min(all.len()));
    while from < to {
        let start = to.saturating_sub(window);
        let predicted = &all[from..to];
        // What stands behind the last token that counts need not be computed.
        let last = predicted.iter().rposition(|(_, counts)| *counts);
        if let Some(last) = last {
            let predicted = &predicted[..=last];
            let is_context = match predicted.iter().all(|(_, counts)| *counts) {
                true => Vec::new(),
                false => predicted.iter().map(|(_, counts)| !counts).collect(),
            };
            let tokens = predicted.iter().map(|(token, _)| *token).collect();
            let prompt = all[start..from].iter().map(|(token, _)| *token).collect();
            let branch = Branch { tokens, is_context, ..Branch::default() };
            trees.push(Tree { prompt_id: id, prompt, branches: vec![branch], ..Tree::default() });
        }
        (from, to) = (to, (to + stride).min(all.len()));
    }
    trees
}

impl Suite for Perplexity {
    fn task(&mut self, id: u64, fields: &Fields) -> Result<Task, String> {
        let tokenizer = &self.context.tokenizer;
        let words = |error: arriero_policy::PolicyError| error.to_string();
        let (text, tokens) = match self.data.row(fields).map_err(|error| error.to_string())?.0 {
            Row::Text(text) => {
                let tokens = tokenizer.encode(&text).map_err(words)?;
                (text, tokens.into_iter().map(|token| (token, true)).collect::<Vec<_>>())
            }
            Row::Conversation { messages } => {
                let marked = written::conversation(tokenizer, &messages, &self.data.loss).map_err(words)?;
                let said = messages.iter().filter(|message| message.role == Role::Assistant);
                let said: Vec<&str> = said.map(|message| message.content.as_str()).collect();
                (said.join("\n"), marked.tokens.into_iter().zip(marked.carries_loss).collect())
            }
            other => return Err(format!("expected `text` or `messages`, found a row of {}", other.kind())),
        };
        let trees = windows(id, first_token(tokenizer), &tokens, self.window, self.stride);
        if trees.is_empty() {
            return Err("it has no token to predict".to_string());
        }
        self.texts.push(text);
        Ok(Task::Score(trees))
    }

    fn grade(&mut self, id: u64, reply: Reply<'_>) -> Result<Outcome, String> {
        let text = self.texts.get_mut(id as usize).map(std::mem::take);
        let (Reply::Logps(logps), Some(text)) = (reply, text) else {
            return Err("it was not asked".to_string());
        };
        let logps: Vec<f32> = logps.concat();
        let sum: f64 = logps.iter().map(|&logp| f64::from(logp)).sum();
        if !sum.is_finite() {
            return Err(format!("its log-probability is {sum}"));
        }
        let scores = scores([
            ("logp", sum),
            ("tokens", logps.len() as f64),
            ("words", text.split_whitespace().count() as f64),
            ("bytes", text.len() as f64),
        ]);
        // The tokens are the text's own and may be many, so they are not recorded.
        let completion = fixed_completion(text);
        let samples = vec![Sample { completion, scores: scores.clone(), details: Map::new() }];
        Ok(Outcome { place: String::new(), id, prompt: String::new(), scores, samples })
    }

    fn figures(&self, outcomes: &[Outcome]) -> Vec<Figure> {
        let nats = |name: &str, unit: &str| {
            let pair = |outcome: &Outcome| (-outcome.score("logp"), outcome.score(unit));
            Figure::ratio(name, Form::Number, outcomes.iter().map(pair))
        };
        let bits = nats("bits_per_byte", "bytes").map(|figure| Figure {
            value: figure.value / std::f64::consts::LN_2,
            standard_error: figure.standard_error.map(|error| error / std::f64::consts::LN_2),
            ..figure
        });
        let perplexity = |name: &str, unit: &str| nats(name, unit).map(Figure::exp);
        [
            perplexity("token_perplexity", "tokens"),
            perplexity("word_perplexity", "words"),
            perplexity("byte_perplexity", "bytes"),
            bits,
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prompt and predicted tokens of each window over 1..=n.
    fn cut(n: u32, window: usize, stride: usize) -> Vec<(Vec<u32>, Vec<u32>)> {
        let tokens: Vec<(u32, bool)> = (1..=n).map(|token| (token, true)).collect();
        let trees = windows(0, Some(0), &tokens, window, stride);
        trees.into_iter().map(|tree| (tree.prompt, tree.branches[0].tokens.clone())).collect()
    }

    #[test]
    fn every_token_is_predicted_once() {
        assert_eq!(cut(3, 8, 4), [(vec![0], vec![1, 2, 3])]);
        assert_eq!(
            cut(9, 5, 3),
            [(vec![0], vec![1, 2, 3, 4]), (vec![3, 4], vec![5, 6, 7]), (vec![5, 6, 7], vec![8, 9])]
        );
        for (n, window, stride) in [(1, 2, 1), (7, 2, 1), (50, 8, 7), (64, 16, 4)] {
            let all: Vec<u32> =
                cut(n, window, stride).into_iter().flat_map(|(_, predicted)| predicted).collect();
            assert_eq!(all, (1..=n).collect::<Vec<_>>());
            assert!(cut(n, window, stride).iter().all(|(prompt, predicted)| {
                !prompt.is_empty() && prompt.len() + predicted.len() <= window
            }));
        }
    }

    #[test]
    fn what_carries_no_loss_is_context() {
        let tokens = [(1, false), (2, true), (3, false), (4, false), (5, false), (6, false), (7, true)];
        let trees = windows(0, Some(0), &tokens, 4, 2);
        let branches: Vec<(&[u32], &[bool])> = trees
            .iter()
            .map(|tree| (&tree.branches[0].tokens[..], &tree.branches[0].is_context[..]))
            .collect();
        assert_eq!(branches, [(&[1, 2][..], &[true, false][..]), (&[6, 7], &[true, false])]);
        assert_eq!(trees[1].prompt, [4, 5]);
    }
}
