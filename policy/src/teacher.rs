//! A teacher: a model of the policy's vocabulary, whose next-token distributions the policy is compared with.

use std::path::Path;

use crate::checkpoint::{Checkpoint, locate};
use crate::config::ModelConfig;
use crate::device::Compute;
use crate::error::{PolicyError, Result};
use crate::model::Model;
use crate::tokenizer::Tokenizer;

/// Checks, from headers alone, that the model at `path` (see [`locate`]) can teach a policy of this vocabulary.
///
/// # Errors
/// If there is no model, it cannot be read, or it has another vocabulary.
pub fn check(path: &Path, policy: &ModelConfig, tokenizer: &Tokenizer) -> Result<()> {
    let path = locate(path)?;
    let (config, theirs) = Checkpoint::inspect(&path)?;
    let difference = check_sizes(&config, policy).and_then(|()| check_tokens(&theirs, tokenizer));
    difference.map_err(|cause| PolicyError::WrongTeacher { teacher: path.display().to_string(), cause })
}

/// Reads a teacher that [`check`] has found fit.
///
/// # Errors
/// As [`check`].
pub fn open(path: &Path, policy: &ModelConfig, tokenizer: &Tokenizer, compute: Compute) -> Result<Model> {
    check(path, policy, tokenizer)?;
    let Checkpoint { config, weights, .. } = Checkpoint::open(&locate(path)?)?;
    Ok(Model::new(&config, &weights, compute)?.packed())
}

/// `Err` with a sentence unless both output matrices have as many rows.
pub(crate) fn check_sizes(teacher: &ModelConfig, policy: &ModelConfig) -> std::result::Result<(), String> {
    let (found, expected) = (teacher.vocab_size, policy.vocab_size);
    match found == expected {
        true => Ok(()),
        false => Err(format!("its output has {found} tokens, expected {expected}")),
    }
}

/// `Err` with a sentence unless both tokenizers give every id the same token.
fn check_tokens(teacher: &Tokenizer, policy: &Tokenizer) -> std::result::Result<(), String> {
    let ids = teacher.vocab_size().max(policy.vocab_size()) as u32;
    let shown = |token: Option<String>| token.map_or("no token".to_string(), |token| format!("{token:?}"));
    match (0..ids).find(|&id| teacher.token(id) != policy.token(id)) {
        None => Ok(()),
        Some(id) => {
            let (found, expected) = (shown(teacher.token(id)), shown(policy.token(id)));
            Err(format!("its tokenizer has {found} as number {id}, expected {expected}"))
        }
    }
}
