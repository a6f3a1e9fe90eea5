//! Hugging Face directories.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::files::{read_json, read_optional_json, read_text};
use super::tensors::Shard;
use super::{Weights, check_tensors};
use crate::config::ModelConfig;
use crate::error::{PolicyError, Result};
use crate::tokenizer::{Tokenizer, TokenizerFacts};

/// A directory whose headers have been read and found right.
pub(super) struct Directory {
    pub config: ModelConfig,
    pub tokenizer: Tokenizer,
    shards: Vec<Shard>,
}

impl Directory {
    pub fn open(directory: &Path) -> Result<Self> {
        let config_path = directory.join("config.json");
        let config_json = read_json(&config_path)?;
        let config = ModelConfig::from_hf_json(&config_json, &config_path)?;
        let tokenizer = tokenizer(directory, &config_json)?;
        let shards = shard_paths(directory)?.into_iter().map(Shard::open).collect::<Result<Vec<_>>>()?;
        let found = shards.iter().flat_map(Shard::shapes).collect();
        check_tensors(directory, &config, &found)?;
        Ok(Directory { config, tokenizer, shards })
    }

    pub fn weights(self) -> Result<Weights> {
        let wanted: BTreeSet<String> =
            self.config.tensor_shapes().into_iter().map(|(name, _)| name).collect();
        let mut weights = Weights::new();
        for shard in &self.shards {
            shard.read(&wanted, &mut weights)?;
        }
        Ok(weights)
    }
}

fn shard_paths(directory: &Path) -> Result<Vec<PathBuf>> {
    let index_path = directory.join("model.safetensors.index.json");
    if !index_path.is_file() {
        let single = directory.join("model.safetensors");
        if single.is_file() {
            return Ok(vec![single]);
        }
        let cause = "it holds neither model.safetensors nor model.safetensors.index.json";
        return Err(PolicyError::broken(directory, cause));
    }
    let index = read_json(&index_path)?;
    let map = index["weight_map"].as_object();
    let map = map.ok_or_else(|| PolicyError::broken(&index_path, "it has no \"weight_map\""))?;
    let files: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
    // An index is a list of names in the same folder; a path out of it is none.
    match files.iter().find(|file| Path::new(file).file_name() != Some(file.as_ref())) {
        Some(file) => Err(PolicyError::broken(&index_path, format!("\"{file}\" is no file name"))),
        None => Ok(files.into_iter().map(|file| directory.join(file)).collect()),
    }
}

fn tokenizer(directory: &Path, model_config: &Value) -> Result<Tokenizer> {
    let path = directory.join("tokenizer.json");
    let text = read_text(&path)?;
    let config = match read_optional_json(&directory.join("tokenizer_config.json"))? {
        Some(Value::Object(config)) => config,
        _ => Map::new(),
    };
    let generation = read_optional_json(&directory.join("generation_config.json"))?.unwrap_or_default();
    let template_path = directory.join("chat_template.jinja");
    let template = match template_path.is_file() {
        true => Some((read_text(&template_path)?, "chat_template.jinja".to_string())),
        false => config
            .get("chat_template")
            .and_then(template_of)
            .map(|source| (source, "chat_template of tokenizer_config.json".to_string())),
    };
    // Older models name their tokens in a file of its own; what the configuration says goes before it.
    let mapped = read_optional_json(&directory.join("special_tokens_map.json"))?.unwrap_or_default();
    let special_tokens = special_tokens(&mapped, &config);
    // A first reading knows the ids of the tokens that the configuration names by their text.
    let plain = Tokenizer::from_json(&text, TokenizerFacts::default(), &path)?;
    let named = |key: &str| {
        let token = config.get(key)?;
        plain.id(token.as_str().or_else(|| token["content"].as_str())?)
    };
    // The first of these that says anything: conversions are known to get the others wrong.
    let listed = [ids(&generation["eos_token_id"]), ids(&model_config["eos_token_id"])];
    let eos_ids = listed.into_iter().find(|ids| !ids.is_empty());
    let eos_ids = eos_ids.unwrap_or_else(|| named("eos_token").into_iter().collect());
    let bos_id = named("bos_token").or_else(|| ids(&model_config["bos_token_id"]).first().copied());
    let facts = TokenizerFacts { eos_ids, bos_id, template, special_tokens, config };
    Tokenizer::from_json(&text, facts, &path)
}

/// The special tokens by their names, as transformers gives them to templates; `None` where no file names any.
fn special_tokens(mapped: &Value, config: &Map<String, Value>) -> Option<BTreeMap<String, String>> {
    const NAMES: [&str; 7] =
        ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
    let text = |token: &Value| token.as_str().or_else(|| token["content"].as_str()).map(str::to_string);
    let mut tokens = BTreeMap::new();
    for name in NAMES {
        let token = config.get(name).and_then(text).or_else(|| text(&mapped[name]));
        tokens.extend(token.map(|token| (name.to_string(), token)));
    }
    // A model's own, such as the token that stands for an image.
    if let Some(Value::Object(own)) = config.get("extra_special_tokens") {
        tokens.extend(own.iter().filter_map(|(name, token)| Some((name.clone(), text(token)?))));
    }
    (!tokens.is_empty()).then_some(tokens)
}

/// One template, or the one called "default" of a list of named ones.
fn template_of(value: &Value) -> Option<String> {
    let named = || value.as_array()?.iter().find(|entry| entry["name"] == "default")?["template"].as_str();
    value.as_str().or_else(named).map(str::to_string)
}

/// A token id, or a list of them.
fn ids(value: &Value) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value.as_array() {
        Some(values) => values.iter().filter_map(id).collect(),
        None => id(value).into_iter().collect(),
    }
}
