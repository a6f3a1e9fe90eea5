//! The options that `generate`, `chat` and `serve` share: which model, and how it is computed.

use std::path::PathBuf;

use arriero_policy::checkpoint::{Checkpoint, default_model};
use arriero_policy::device::{Compute, DeviceSpec, DtypeSpec};
use arriero_policy::model::Model;
use arriero_policy::tokenizer::Tokenizer;

use crate::failure::Failure;

/// Which model, and how it is computed.
#[derive(Debug, clap::Args)]
pub struct ModelArguments {
    /// A Hugging Face directory or a GGUF file; without it, the model that set-up brought.
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// A LoRA adapter's folder in PEFT's layout, merged into the model.
    #[arg(long, value_name = "FOLDER")]
    adapter: Option<PathBuf>,
    /// auto, cpu or cuda:N.
    #[arg(long, default_value = "auto")]
    device: DeviceSpec,
    /// auto, f32 or bf16.
    #[arg(long, default_value = "auto")]
    dtype: DtypeSpec,
}

impl ModelArguments {
    /// Where it is.
    pub fn path(&self) -> Result<PathBuf, Failure> {
        match &self.model {
            Some(path) => Ok(path.clone()),
            None => default_model().map_err(Failure::input),
        }
    }

    /// Where and in which precision it is computed.
    pub fn compute(&self) -> Result<Compute, Failure> {
        Compute::resolve(self.device, self.dtype).map_err(Failure::input)
    }

    /// Reads its files.
    pub fn open(&self) -> Result<Checkpoint, Failure> {
        let checkpoint = Checkpoint::open(&self.path()?).map_err(Failure::input)?;
        match &self.adapter {
            Some(adapter) => checkpoint.with_adapter(adapter).map_err(Failure::input),
            None => Ok(checkpoint),
        }
    }

    /// Loads it.
    pub fn load(&self) -> Result<(Model, Tokenizer), Failure> {
        let compute = self.compute()?;
        let checkpoint = self.open()?;
        let model = Model::new(&checkpoint.config, &checkpoint.weights, compute).map_err(Failure::input)?;
        Ok((model, checkpoint.tokenizer))
    }
}
