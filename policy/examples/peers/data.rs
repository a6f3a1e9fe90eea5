//! Preference pairs as trees.

use std::path::Path;
use std::sync::Arc;

use arriero_buffers::{Branch, Message, Prompt, Tree};
use arriero_policy::tokenizer::Tokenizer;
use serde::Deserialize;

use crate::Result;

/// A line of the file: TRL's conversational preference format.
#[derive(Debug, Deserialize)]
pub struct Pair {
    /// What was asked.
    pub prompt: Vec<Message>,
    /// The better answer.
    pub chosen: Vec<Message>,
    /// The worse one.
    pub rejected: Vec<Message>,
}

/// All pairs of a file.
///
/// # Errors
/// If it cannot be read, a line is no pair, or there is none.
pub fn read_pairs(path: &Path) -> Result<Vec<Pair>> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let pairs = lines.map(|(number, line)| {
        serde_json::from_str(line)
            .map_err(|error| format!("{}, line {}: {error}", path.display(), number + 1).into())
    });
    let pairs: Vec<Pair> = pairs.collect::<Result<_>>()?;
    if pairs.is_empty() {
        return Err(format!("{} holds no pair", path.display()).into());
    }
    Ok(pairs)
}

/// The pairs' prompts in their order, each once.
pub fn distinct_prompts(pairs: &[Pair]) -> Vec<Arc<Prompt>> {
    let mut prompts: Vec<Arc<Prompt>> = Vec::new();
    for pair in pairs {
        if prompts.iter().all(|prompt| prompt.messages != pair.prompt) {
            let (id, messages) = (prompts.len() as u64, pair.prompt.clone());
            prompts.push(Arc::new(Prompt { id, messages, checks: serde_json::Value::Null }));
        }
    }
    prompts
}

/// The tokens of an answer, its end of turn included.
pub fn answer_tokens(tokenizer: &Tokenizer, answer: &[Message]) -> Result<Vec<u32>> {
    let mut tokens = Vec::new();
    for message in answer {
        tokens.extend(tokenizer.encode(&message.content)?);
        tokens.extend(tokenizer.eos_id());
    }
    Ok(tokens)
}

/// A tree with these answers to a pair's prompt.
pub fn tree(tokenizer: &Tokenizer, id: usize, prompt: &[Message], answers: &[&[Message]]) -> Result<Tree> {
    let branch = |(sample, answer): (usize, &&[Message])| {
        let tokens = answer_tokens(tokenizer, answer)?;
        Ok(Branch {
            sample: sample as u32,
            is_format: tokens.iter().map(|&token| tokenizer.is_special(token)).collect(),
            behaviour_logps: vec![0.0; tokens.len()],
            tokens,
            ..Branch::default()
        })
    };
    Ok(Tree {
        prompt_id: id as u64,
        prompt: tokenizer.prompt_tokens(prompt)?,
        branches: answers.iter().enumerate().map(branch).collect::<Result<_>>()?,
        ..Tree::default()
    })
}
