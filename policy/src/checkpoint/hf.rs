//! Hugging Face directories.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde_json::{Map, Value};
use tch::{Kind, Tensor};

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

/// A safetensors file.
pub(super) struct Shard {
    path: PathBuf,
    tensors: BTreeMap<String, Entry>,
}

/// Where a tensor lies in its file.
struct Entry {
    kind: Kind,
    shape: Vec<i64>,
    start: u64,
    bytes: usize,
}

impl Directory {
    pub fn open(directory: &Path) -> Result<Self> {
        let config_path = directory.join("config.json");
        let config_json = json(&config_path)?;
        let config = ModelConfig::from_hf_json(&config_json, &config_path)?;
        let tokenizer = tokenizer(directory, &config_json)?;
        let shards = shard_paths(directory)?.into_iter().map(Shard::open).collect::<Result<Vec<_>>>()?;
        let found = shards
            .iter()
            .flat_map(|shard| &shard.tensors)
            .map(|(name, entry)| (name.clone(), entry.shape.clone()))
            .collect();
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

impl Shard {
    /// Reads the header, and checks that the file has all the bytes that it speaks of.
    pub fn open(path: PathBuf) -> Result<Self> {
        let unreadable = |cause| PolicyError::Unreadable { path: path.clone(), cause };
        let mut file = File::open(&path).map_err(unreadable)?;
        let length = file.metadata().map_err(unreadable)?.len();
        let mut size = [0; 8];
        if length < 8 {
            return Err(PolicyError::broken(&path, format!("it has {length} bytes, too few for a header")));
        }
        file.read_exact(&mut size).map_err(unreadable)?;
        let header_end = u64::from_le_bytes(size).saturating_add(8);
        if header_end > length {
            let cause = format!("its header should end at byte {header_end}, but it has {length} bytes");
            return Err(PolicyError::broken(&path, cause));
        }
        let mut header = vec![0; header_end as usize];
        file.rewind().and_then(|()| file.read_exact(&mut header)).map_err(unreadable)?;
        let metadata: Metadata = serde_json::from_slice(&header[8..])
            .map_err(|error| PolicyError::broken(&path, format!("its header is damaged ({error})")))?;
        let expected = header_end + metadata.data_len() as u64;
        if length != expected {
            let cause = format!("it should have {expected} bytes, and has {length}");
            return Err(PolicyError::broken(&path, cause));
        }
        let mut tensors = BTreeMap::new();
        for (name, info) in metadata.tensors() {
            let kind = match info.dtype {
                Dtype::F32 => Kind::Float,
                Dtype::F16 => Kind::Half,
                Dtype::BF16 => Kind::BFloat16,
                Dtype::F64 => Kind::Double,
                other => {
                    let found = format!("the type {other:?} of the tensor {name}");
                    return Err(PolicyError::unsupported(&path, found, "F32, F16, BF16, F64"));
                }
            };
            let (start, end) = info.data_offsets;
            let shape = info.shape.iter().map(|&size| size as i64).collect();
            tensors.insert(name, Entry { kind, shape, start: header_end + start as u64, bytes: end - start });
        }
        Ok(Shard { path, tensors })
    }

    /// The shapes of its tensors by their names.
    pub fn shapes(&self) -> Vec<(String, Vec<i64>)> {
        self.tensors.iter().map(|(name, entry)| (name.clone(), entry.shape.clone())).collect()
    }

    /// Adds those of `wanted` that it has to `weights`, f32.
    pub fn read(&self, wanted: &BTreeSet<String>, weights: &mut Weights) -> Result<()> {
        let unreadable = |cause| PolicyError::Unreadable { path: self.path.clone(), cause };
        let mut file = File::open(&self.path).map_err(unreadable)?;
        for (name, entry) in self.tensors.iter().filter(|(name, _)| wanted.contains(*name)) {
            let mut bytes = vec![0; entry.bytes];
            file.seek(SeekFrom::Start(entry.start))
                .and_then(|_| file.read_exact(&mut bytes))
                .map_err(unreadable)?;
            let tensor = Tensor::f_from_data_size(&bytes, &entry.shape, entry.kind)
                .map_err(|error| PolicyError::broken(&self.path, error))?;
            weights.insert(name.clone(), tensor.to_kind(Kind::Float));
        }
        Ok(())
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
    let index = json(&index_path)?;
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
    let text = read(&path)?;
    let config = match optional_json(&directory.join("tokenizer_config.json"))? {
        Some(Value::Object(config)) => config,
        _ => Map::new(),
    };
    let generation = optional_json(&directory.join("generation_config.json"))?.unwrap_or_default();
    let template_path = directory.join("chat_template.jinja");
    let template = match template_path.is_file() {
        true => Some(read(&template_path)?),
        false => config.get("chat_template").and_then(template_of),
    };
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
    Tokenizer::from_json(&text, TokenizerFacts { eos_ids, bos_id, template, config }, &path)
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

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|cause| PolicyError::Unreadable { path: path.to_path_buf(), cause })
}

pub(super) fn json(path: &Path) -> Result<Value> {
    serde_json::from_str(&read(path)?).map_err(|error| PolicyError::broken(path, error))
}

fn optional_json(path: &Path) -> Result<Option<Value>> {
    if path.is_file() { json(path).map(Some) } else { Ok(None) }
}
