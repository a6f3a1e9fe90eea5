//! A model on disk: read from a Hugging Face directory or a GGUF file, written as the former.
//!
//! - `hf`: `config.json`, one or several safetensors files, `tokenizer.json`, chat template;
//! - `gguf`: all of it in one file, quantised or not;
//! - `write`: a directory that transformers, vLLM and llama.cpp's converter read;
//! - `adapter`: LoRA adapters in PEFT's layout, read and written;
//! - `tensors`: safetensors files, `files`: all others, and folders that are replaced whole.
//!
//! Reading goes in two steps: everything that can be wrong is found from the headers, then weights are
//! read.

mod adapter;
mod files;
mod gguf;
mod hf;
mod tensors;
mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tch::Tensor;

use crate::config::{Head, ModelConfig, SCORE};
use crate::error::{PolicyError, Result};
use crate::tokenizer::Tokenizer;

pub use adapter::{read_adapter, write_adapter};
pub use files::{read_json, write_folder, write_json};
pub use tensors::{load_weights, save_weights};
pub use write::{Beside, write_hf, write_training};

/// What the model that set-up brought is called.
pub const DEFAULT: &str = "default";

/// Tensors by their Hugging Face names.
pub type Weights = BTreeMap<String, Tensor>;

/// Handles of the same tensors.
pub fn handles(weights: &Weights) -> Weights {
    weights.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
}

/// A model in memory.
#[derive(Debug)]
pub struct Checkpoint {
    /// The architecture.
    pub config: ModelConfig,
    /// f32, on the CPU.
    pub weights: Weights,
    /// The tokenizer, with its chat template.
    pub tokenizer: Tokenizer,
}

impl Checkpoint {
    /// Reads a language model.
    ///
    /// # Errors
    /// If there is none at `path`, a file is broken or ends early, the architecture is not supported, the
    /// tokenizer does not fit the vocabulary, or it is a reward model.
    pub fn open(path: &Path) -> Result<Self> {
        Checkpoint::read(Source::language(path)?)
    }

    /// Reads a reward model: what this program wrote, or an `AutoModelForSequenceClassification` of one label.
    ///
    /// # Errors
    /// As [`Checkpoint::open`], but if it is no reward model.
    pub fn open_reward_model(path: &Path) -> Result<Self> {
        Checkpoint::read(Source::reward_model(path)?)
    }

    fn read(source: Source) -> Result<Self> {
        let (config, tokenizer) = source.facts();
        let (config, tokenizer) = (config.clone(), tokenizer.clone());
        let weights = match source {
            Source::HuggingFace(directory) => directory.weights()?,
            Source::Gguf(file) => file.weights()?,
        };
        Ok(Checkpoint { config, weights, tokenizer })
    }

    /// The same model with a LoRA adapter in PEFT's layout merged into its weights.
    ///
    /// # Errors
    /// As [`read_adapter`].
    pub fn with_adapter(mut self, directory: &Path) -> Result<Self> {
        self.weights = read_adapter(directory, &self.config)?.merge(&self.config, &self.weights)?;
        Ok(self)
    }

    /// Reads everything but the weights, and checks from the headers that they are all there.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn inspect(path: &Path) -> Result<(ModelConfig, Tokenizer)> {
        let source = Source::language(path)?;
        let (config, tokenizer) = source.facts();
        Ok((config.clone(), tokenizer.clone()))
    }

    /// As [`Checkpoint::inspect`], of a reward model.
    ///
    /// # Errors
    /// As [`Checkpoint::open_reward_model`].
    pub fn inspect_reward_model(path: &Path) -> Result<(ModelConfig, Tokenizer)> {
        let source = Source::reward_model(path)?;
        let (config, tokenizer) = source.facts();
        Ok((config.clone(), tokenizer.clone()))
    }
}

enum Source {
    HuggingFace(hf::Directory),
    Gguf(gguf::GgufFile),
}

impl Source {
    fn language(path: &Path) -> Result<Self> {
        let source = Source::open(path)?;
        match source.facts().0.head {
            Head::Language => Ok(source),
            Head::Score { .. } => Err(PolicyError::NoVocabularyHead { path: path.to_path_buf() }),
        }
    }

    fn reward_model(path: &Path) -> Result<Self> {
        let source = Source::open(path)?;
        match source.facts().0.head {
            Head::Score { .. } => Ok(source),
            Head::Language => Err(PolicyError::NoScoreHead { path: path.to_path_buf(), tensor: SCORE }),
        }
    }

    fn open(path: &Path) -> Result<Self> {
        let source = if path.is_dir() {
            Source::HuggingFace(hf::Directory::open(path)?)
        } else if path.is_file() {
            Source::Gguf(gguf::GgufFile::open(path)?)
        } else {
            return Err(PolicyError::NoModel { path: path.to_path_buf() });
        };
        let (config, tokenizer) = source.facts();
        tokenizer.check_fits(config.vocab_size, path)?;
        Ok(source)
    }

    fn facts(&self) -> (&ModelConfig, &Tokenizer) {
        match self {
            Source::HuggingFace(directory) => (&directory.config, &directory.tokenizer),
            Source::Gguf(file) => (&file.config, &file.tokenizer),
        }
    }
}

/// Checks the names and shapes that a file has against those that the configuration wants.
fn check_tensors(path: &Path, config: &ModelConfig, found: &BTreeMap<String, Vec<i64>>) -> Result<()> {
    let wanted: BTreeMap<String, Vec<i64>> = config.tensor_shapes().into_iter().collect();
    for (name, expected) in &wanted {
        match found.get(name) {
            None if name == SCORE => {
                return Err(PolicyError::NoScoreHead { path: path.to_path_buf(), tensor: SCORE });
            }
            None => return Err(PolicyError::broken(path, format!("it lacks the tensor {name}"))),
            Some(shape) if shape != expected => {
                let cause = format!("the tensor {name} has the shape {shape:?}, expected {expected:?}");
                return Err(PolicyError::broken(path, cause));
            }
            Some(_) => {}
        }
    }
    // A tied model may carry its output matrix all the same; old files carry rotary frequencies.
    let known = |name: &str| {
        wanted.contains_key(name) || name == "lm_head.weight" || name.ends_with("rotary_emb.inv_freq")
    };
    match found.keys().find(|name| !known(name)) {
        Some(name) => {
            Err(PolicyError::unsupported(path, format!("the tensor {name}"), supported_tensors(config)))
        }
        None => Ok(()),
    }
}

/// For messages.
fn supported_tensors(config: &ModelConfig) -> String {
    format!("the tensors that its configuration asks for, of the family \"{}\"", config.family.name())
}

/// Where the model lies that somebody names: a path, or `default` for the one that set-up brought.
///
/// # Errors
/// If the default model is asked for, and is not there.
pub fn locate(named: &Path) -> Result<PathBuf> {
    if named.as_os_str() == DEFAULT { default_model() } else { Ok(named.to_path_buf()) }
}

/// The model that `cargo xtask setup` brought: in `.arriero/models` of the current folder, of one above it,
/// or of one above the program.
///
/// # Errors
/// If it is not there.
pub fn default_model() -> Result<PathBuf> {
    const NAME: &str = ".arriero/models/SmolLM2-135M-Instruct.gguf";
    let current = std::env::current_dir().unwrap_or_default();
    let program = std::env::current_exe().unwrap_or_default();
    let mut places = current.ancestors().chain(program.ancestors()).map(|folder| folder.join(NAME));
    places.find(|path| path.is_file()).ok_or_else(|| PolicyError::NoDefaultModel { path: current.join(NAME) })
}
