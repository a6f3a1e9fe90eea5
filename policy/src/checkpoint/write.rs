//! Writing checkpoints. A directory is complete or not there; see [`write_folder`].

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::Weights;
use super::adapter::adapter_files;
use super::files::{unwritable, write_folder, write_json, write_text};
use super::tensors::save_weights;
use crate::config::{Head, ModelConfig, one_or_many};
use crate::error::Result;
use crate::lora::Adapter;
use crate::tokenizer::Tokenizer;

/// Writes a model in Hugging Face layout, f32: a language model, or (with [`Head::Score`]) a reward model that
/// `AutoModelForSequenceClassification` reads. A directory that is there already is replaced.
///
/// # Errors
/// If the disk is full or the place is not writable; then nothing is left behind.
pub fn write_hf(
    directory: &Path,
    config: &ModelConfig,
    tokenizer: &Tokenizer,
    weights: &Weights,
) -> Result<()> {
    write_folder(directory, |folder| model_files(folder, config, tokenizer, weights))
}

/// What stands beside a model in the checkpoint of its training, where there is such a thing.
#[derive(Debug, Default)]
pub struct Beside<'a> {
    /// The optimiser's moments: `optimizer.safetensors`.
    pub optimizer: Option<&'a Weights>,
    /// An adapter and the name of its base model: the folder `adapter`.
    pub adapter: Option<(&'a Adapter, &'a str)>,
    /// A critic: `critic.safetensors`.
    pub critic: Option<&'a Weights>,
    /// A reward model over the same vocabulary: the folder `reward_model`, in Hugging Face layout.
    pub reward_model: Option<(&'a ModelConfig, &'a Weights)>,
}

/// As [`write_hf`], with `state.json` and what training needs to go on.
///
/// # Errors
/// As [`write_hf`].
pub fn write_training(
    directory: &Path,
    config: &ModelConfig,
    tokenizer: &Tokenizer,
    weights: &Weights,
    beside: &Beside<'_>,
    state: &Value,
) -> Result<()> {
    write_folder(directory, |folder| {
        model_files(folder, config, tokenizer, weights)?;
        if let Some(optimizer) = beside.optimizer {
            save_weights(&folder.join("optimizer.safetensors"), optimizer)?;
        }
        if let Some((adapter, base)) = beside.adapter {
            adapter_files(&folder.join("adapter"), config, adapter, base)?;
        }
        if let Some(critic) = beside.critic {
            save_weights(&folder.join("critic.safetensors"), critic)?;
        }
        if let Some((config, weights)) = beside.reward_model {
            let folder = folder.join("reward_model");
            fs::create_dir(&folder).map_err(|error| unwritable(&folder, &error))?;
            model_files(&folder, config, tokenizer, weights)?;
        }
        write_json(&folder.join("state.json"), state)
    })
}

fn model_files(folder: &Path, config: &ModelConfig, tokenizer: &Tokenizer, weights: &Weights) -> Result<()> {
    save_weights(&folder.join("model.safetensors"), weights)?;
    let (eos_ids, bos_id) = (tokenizer.eos_ids(), tokenizer.bos_id());
    write_json(&folder.join("config.json"), &config.to_hf_json(eos_ids, bos_id))?;
    let generation = json!({
        "bos_token_id": bos_id, "eos_token_id": one_or_many(eos_ids), "pad_token_id": eos_ids.first(),
    });
    write_json(&folder.join("generation_config.json"), &generation)?;
    write_text(&folder.join("tokenizer.json"), &tokenizer.to_json()?)?;
    let mut tokenizer_config = tokenizer.config_json();
    if let Head::Score { pad: Some(pad) } = config.head {
        // Both files must name one token: transformers takes the last that is another for the end of the text.
        tokenizer_config["pad_token"] = json!(tokenizer.token(pad));
    }
    write_json(&folder.join("tokenizer_config.json"), &tokenizer_config)
}
