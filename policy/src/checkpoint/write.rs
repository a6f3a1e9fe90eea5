//! Writing checkpoints. A directory is complete or not there: it is written beside its final place and
//! renamed.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use safetensors::tensor::{View, serialize_to_file};
use safetensors::{Dtype, SafeTensorError};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use super::Weights;
use super::adapter::adapter_files;
use crate::config::{Head, ModelConfig, one_or_many};
use crate::error::{PolicyError, Result};
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
    whole(directory, |folder| model_files(folder, config, tokenizer, weights))
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
    whole(directory, |folder| {
        model_files(folder, config, tokenizer, weights)?;
        if let Some(optimizer) = beside.optimizer {
            tensors(&folder.join("optimizer.safetensors"), optimizer)?;
        }
        if let Some((adapter, base)) = beside.adapter {
            adapter_files(&folder.join("adapter"), config, adapter, base)?;
        }
        if let Some(critic) = beside.critic {
            tensors(&folder.join("critic.safetensors"), critic)?;
        }
        if let Some((config, weights)) = beside.reward_model {
            let folder = folder.join("reward_model");
            fs::create_dir(&folder).map_err(|error| unwritable(&folder, &error))?;
            model_files(&folder, config, tokenizer, weights)?;
        }
        json_file(&folder.join("state.json"), state)
    })
}

fn model_files(folder: &Path, config: &ModelConfig, tokenizer: &Tokenizer, weights: &Weights) -> Result<()> {
    tensors(&folder.join("model.safetensors"), weights)?;
    let (eos_ids, bos_id) = (tokenizer.eos_ids(), tokenizer.bos_id());
    json_file(&folder.join("config.json"), &config.to_hf_json(eos_ids, bos_id))?;
    let generation = json!({
        "bos_token_id": bos_id, "eos_token_id": one_or_many(eos_ids), "pad_token_id": eos_ids.first(),
    });
    json_file(&folder.join("generation_config.json"), &generation)?;
    file(&folder.join("tokenizer.json"), &tokenizer.to_json()?)?;
    let mut tokenizer_config = tokenizer.config_json();
    if let Head::Score { pad: Some(pad) } = config.head {
        // Both files must name one token: transformers takes the last that is another for the end of the text.
        tokenizer_config["pad_token"] = json!(tokenizer.token(pad));
    }
    json_file(&folder.join("tokenizer_config.json"), &tokenizer_config)
}

/// Lets `fill` write a folder beside `directory`, makes it durable, and puts it in its place.
pub(super) fn whole(directory: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let partial = PathBuf::from(format!("{}.partial", directory.display()));
    let clear = |folder: &Path| match folder.exists() {
        true => fs::remove_dir_all(folder),
        false => Ok(()),
    };
    let unwritable = |error: std::io::Error| unwritable(directory, &error);
    clear(&partial).and_then(|()| fs::create_dir_all(&partial)).map_err(unwritable)?;
    let written = fill(&partial).and_then(|()| {
        clear(directory).map_err(unwritable)?;
        fs::rename(&partial, directory).map_err(unwritable)?;
        let parent = directory.parent().unwrap_or(Path::new("."));
        File::open(parent).and_then(|parent| parent.sync_all()).map_err(unwritable)
    });
    if written.is_err() {
        // The first error is the one to report.
        let _ = clear(&partial);
    }
    written
}

pub(super) fn json_file(path: &Path, value: &Value) -> Result<()> {
    file(path, &format!("{value:#}\n"))
}

fn file(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)
        .and_then(|()| File::open(path)?.sync_all())
        .map_err(|error| unwritable(path, &error))
}

pub(super) fn tensors(path: &Path, weights: &Weights) -> Result<()> {
    // safetensors makes a file that only its owner may read; a checkpoint is like any other file.
    let permissions = File::create(path).and_then(|file| file.metadata());
    let permissions = permissions.map_err(|error| unwritable(path, &error))?.permissions();
    let views = weights.iter().map(|(name, tensor)| (name, HostView::new(tensor)));
    // transformers refuses files that do not say which framework's layout they have.
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    serialize_to_file(views, Some(metadata), path).map_err(|error| match error {
        SafeTensorError::IoError(error) => unwritable(path, &error),
        error => PolicyError::Unwritable { path: path.to_path_buf(), cause: error.to_string() },
    })?;
    fs::set_permissions(path, permissions)
        .and_then(|()| File::open(path)?.sync_all())
        .map_err(|error| unwritable(path, &error))
}

pub(super) fn unwritable(path: &Path, error: &std::io::Error) -> PolicyError {
    let advice = match error.kind() {
        std::io::ErrorKind::StorageFull => "; free some space",
        std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => "; make it writable",
        _ => "",
    };
    PolicyError::Unwritable { path: path.to_path_buf(), cause: format!("{error}{advice}") }
}

/// A tensor whose bytes are copied when they are written, one tensor at a time.
struct HostView<'a> {
    tensor: &'a Tensor,
    shape: Vec<usize>,
}

impl<'a> HostView<'a> {
    fn new(tensor: &'a Tensor) -> Self {
        HostView { tensor, shape: tensor.size().iter().map(|&size| size as usize).collect() }
    }
}

impl View for HostView<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let host = self.tensor.detach().to_device(Device::Cpu).to_kind(Kind::Float).contiguous();
        let mut bytes = vec![0; self.data_len()];
        host.copy_data_u8(&mut bytes, host.numel());
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        self.tensor.numel() * 4
    }
}
