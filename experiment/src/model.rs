//! `[model]`: what every arm starts from.

use std::path::{Path, PathBuf};

use arriero_policy::PolicyError;
use arriero_policy::checkpoint::{DEFAULT, locate};
use arriero_policy::device::{DeviceSpec, DtypeSpec};
use arriero_policy::tokenizer::TokenizerRule;

use crate::document::Section;
use crate::error::ExperimentError;

/// The model and what it is computed with.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelPlan {
    /// A Hugging Face directory or a GGUF file.
    pub path: PathBuf,
    /// A LoRA adapter in PEFT's layout. It is merged into the weights before anything else.
    pub adapter: Option<PathBuf>,
    /// How the tokenizer of a GGUF file cuts text. Default `own`.
    pub tokenizer: TokenizerRule,
    /// Default `auto`.
    pub device: DeviceSpec,
    /// Default `auto`.
    pub dtype: DtypeSpec,
}

pub(crate) fn model(mut section: Section<'_>) -> Result<(ModelPlan, String), ExperimentError> {
    let written: String = section.take("path")?.unwrap_or_else(|| DEFAULT.to_string());
    let path = locate(Path::new(&written))
        .map_err(|error| section.fail("path", &format!("is \"{DEFAULT}\", but {error}")))?;
    if !path.exists() {
        return Err(section.fail("path", &format!("is wrong: {}", PolicyError::NoModel { path })));
    }
    let adapter: Option<PathBuf> = section.take("adapter")?;
    if let Some(folder) = adapter.as_ref().filter(|folder| !folder.is_dir()) {
        let message = format!(
            "is \"{}\", which is no folder; expected one with adapter_config.json and adapter_model.safetensors",
            folder.display()
        );
        return Err(section.fail("adapter", &message));
    }
    let tokenizer = section.take("tokenizer")?.unwrap_or_default();
    let device = section.take("device")?.unwrap_or_default();
    let dtype = section.take("dtype")?.unwrap_or_default();
    section.finish()?;
    Ok((ModelPlan { path, adapter, tokenizer, device, dtype }, written))
}
